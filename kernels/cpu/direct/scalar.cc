// Few-row products in portable C++: what the other files of this folder must equal.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "vector/scalar.h"
#include "vector/functions.h"

namespace shoal {
namespace {

template <int N>
constexpr std::size_t ahead() {
  return 0;
}
inline void prefetch(const std::uint8_t*) {}
template <typename T>
inline const T* again(const T* p) {
  return p;
}

template <int N>
constexpr int kBf16Halves = 2;

inline V from_int32(const std::int32_t* p) {
  V r;
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(p[i]);
  return r;
}

// Never by way of a subnormal binary32: threads of the engine take those for zero.
inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  const std::uint32_t exponent = h >> 10 & 31, fraction = h & 0x3ff;
  float magnitude = static_cast<float>(static_cast<std::int32_t>(fraction)) * 0x1p-24f;
  if (exponent != 0) magnitude = bits_to_float((exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
  return bits_to_float(sign | float_to_bits(magnitude));
}

inline std::uint16_t word(const std::uint8_t* p) {
  std::uint16_t u;
  std::memcpy(&u, p, 2);
  return u;
}

inline V from_half(const std::uint8_t* p) {
  V r;
  for (int i = 0; i < 16; ++i) r.lane[i] = half_to_float(word(p + 2 * i));
  return r;
}
inline V even_bf16(const std::uint8_t* p) {
  V r;
  for (int i = 0; i < 16; ++i) r.lane[i] = bits_to_float(static_cast<std::uint32_t>(word(p + 4 * i)) << 16);
  return r;
}
inline V odd_bf16(const std::uint8_t* p) { return even_bf16(p + 2); }

inline void sum_groups(const std::int8_t* q, std::int16_t* sum16) {
  for (std::size_t g = 0; g < kBlockCols / kGroupCols; ++g) {
    int sum = 0;
    for (std::size_t k = 0; k < kGroupCols; ++k) sum += q[kGroupCols * g + k];
    sum16[g] = static_cast<std::int16_t>(-16 * sum);
  }
}

// Sixteen values at a time are decoded, once for all rows of activations.
template <int N>
void int4_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride, const std::int16_t*, std::size_t,
                 std::int32_t (&total)[N][kPanelRows]) {
  std::memset(total, 0, sizeof total);
  for (int g = 0; g < 16; ++g) {
    for (int r = 0; r < 32; ++r) {
      const int half = r / 16, lane = r % 16;
      const std::uint8_t codes = block[128 * half + 16 * (g % 8) + lane];
      const int s = kInt4Scales[g < 8 ? codes & 15 : codes >> 4];
      std::int8_t v[16];
      for (int j = 0; j < 2; ++j) {
        const std::uint8_t* four = block + kInt4LinesOffset + ((g * 2 + j) * 2 + half) * 64 + 4 * lane;
        for (int b = 0; b < 4; ++b) {
          v[8 * j + b] = static_cast<std::int8_t>(s * kInt4Levels[four[b] & 15]);
          v[8 * j + 4 + b] = static_cast<std::int8_t>(s * kInt4Levels[four[b] >> 4]);
        }
      }
      for (int i = 0; i < N; ++i) {
        const std::int8_t* a = q + static_cast<std::size_t>(i) * q_stride + 16 * g;
        int sum = 0;
        for (int k = 0; k < 16; ++k) sum += v[k] * a[k];
        total[i][r] += sum;
      }
    }
  }
}

template <int N>
void int8_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride, const std::int32_t* sum256,
                 std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < 32; ++r) total[i][r] = sum256[static_cast<std::size_t>(i) * sum_stride];
  for (int k4 = 0; k4 < 64; ++k4) {
    for (int r = 0; r < 32; ++r) {
      const std::uint8_t* v = block + (k4 * 2 + r / 16) * 64 + 4 * (r % 16);
      for (int i = 0; i < N; ++i) {
        const std::int8_t* a = q + static_cast<std::size_t>(i) * q_stride + 4 * k4;
        total[i][r] += v[0] * a[0] + v[1] * a[1] + v[2] * a[2] + v[3] * a[3];
      }
    }
  }
}

}  // namespace
}  // namespace shoal

#include "direct/panels.h"
#include "direct/quantise.h"

namespace shoal {

const DirectKernels direct_scalar = {quantise,
                                     {multiply<Format::kInt4>, multiply<Format::kInt8>, multiply<Format::kBf16>}};

}  // namespace shoal
