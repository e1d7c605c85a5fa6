// Tiles in portable C++: one token at a time, sixteen lanes of one half panel in the inner loops.
#include "vector/scalar.h"
#include "vector/functions.h"

#include "tiled/block.h"
#include "tiled/driver.h"

namespace shoal {
namespace {

// binary16 of a finite number -> f32, exactly.
inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  // Below 2^-14 the significand counts units of 2^-24.
  if (rest < 0x400) return bits_to_float(sign | float_to_bits(static_cast<float>(rest) * 5.9604644775390625e-8f));
  return bits_to_float(sign | ((rest << 13) + (112u << 23)));
}

inline void read_scales(const std::uint8_t* halves, float* d) {
  for (std::size_t r = 0; r < kPanelRows; ++r) {
    d[r] = half_to_float(static_cast<std::uint16_t>(halves[2 * r] | halves[2 * r + 1] << 8));
  }
}

// w: 128 lines of 64 bytes as in kInt8, value + 128.
inline void integer_tile(std::size_t tokens, const Block& b) {
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::int8_t* q = b.q + t * b.stride;
    std::int32_t sum[kPanelRows];
    for (std::size_t r = 0; r < kPanelRows; ++r) sum[r] = b.sums->start[t];
    for (std::size_t k = 0; k < kBlockCols; k += 4) {
      const std::uint8_t* line = b.w + k * kPanelRows;
      for (std::size_t r = 0; r < kPanelRows; ++r) {
        const std::uint8_t* v = line + 4 * r;
        sum[r] += v[0] * q[k] + v[1] * q[k + 1] + v[2] * q[k + 2] + v[3] * q[k + 3];
      }
    }
    const V scale = set1(b.sums->scale[t]);
    for (std::size_t r = 0; r < kPanelRows; r += 16) {
      V v;
      for (std::size_t i = 0; i < 16; ++i) v.lane[i] = static_cast<float>(sum[r + i]);
      store(b.f_out + t * kPanelRows + r, fma(mul(v, load(b.d + r)), scale, load(b.f_in + t * kPanelRows + r)));
    }
  }
}

struct Int4 : OneByOne {
  static constexpr bool kIsInteger = true;
  static constexpr std::size_t kUnpackedBytes = kPanelRows * kBlockCols;
  static std::size_t take(std::size_t left) { return smaller(left, 4); }
  static void tile(std::size_t tokens, const Block& b) { integer_tile(tokens, b); }

  static void prepare(const std::uint8_t* block, std::uint8_t* to, float* d) {
    read_scales(block + kInt4ScaleOffset, d);
    const std::uint8_t* line = block + kInt4LinesOffset;
    for (std::size_t g = 0; g < 16; ++g) {
      for (std::size_t j = 0; j < 2; ++j) {
        for (std::size_t half = 0; half < 2; ++half, line += 64) {
          std::uint8_t* low = to + ((4 * g + 2 * j) * 2 + half) * 64;  // columns 16 g + 8 j .. + 3; + 4 .. + 7 follow
          for (std::size_t i = 0; i < 64; ++i) {
            const int code = block[128 * half + 16 * (g % 8) + i / 4] >> (g < 8 ? 0 : 4) & 15;
            low[i] = static_cast<std::uint8_t>(128 + kInt4Scales[code] * kInt4Levels[line[i] & 15]);
            low[128 + i] = static_cast<std::uint8_t>(128 + kInt4Scales[code] * kInt4Levels[line[i] >> 4]);
          }
        }
      }
    }
  }
};

struct Int8 : OneByOne {
  static constexpr bool kIsInteger = true;
  static constexpr std::size_t kUnpackedBytes = 0;
  static std::size_t take(std::size_t left) { return smaller(left, 4); }
  static void prepare(const std::uint8_t* block, std::uint8_t*, float* d) { read_scales(block + kInt8ScaleOffset, d); }
  static void tile(std::size_t tokens, const Block& b) { integer_tile(tokens, b); }
};

struct Bf16 : OneByOne {
  static constexpr bool kIsInteger = false;
  static constexpr std::size_t kUnpackedBytes = 0;
  static std::size_t take(std::size_t left) { return smaller(left, 4); }
  static void prepare(const std::uint8_t*, std::uint8_t*, float*) {}

  static void tile(std::size_t tokens, const Block& b) {
    for (std::size_t t = 0; t < tokens; ++t) {
      const float* x = b.x + t * b.stride;
      V sum[2] = {zero(), zero()}, chain[2] = {zero(), zero()};
      for (std::size_t k = 0; k < kBlockCols; ++k) {
        const std::uint8_t* line = b.w + k / 2 * 128 + k % 2 * 2;
        for (std::size_t half = 0; half < 2; ++half, line += 64) {
          V v;
          for (std::size_t r = 0; r < 16; ++r) {
            v.lane[r] = bits_to_float(static_cast<std::uint32_t>(line[4 * r] | line[4 * r + 1] << 8) << 16);
          }
          chain[half] = fma(set1(x[k]), v, chain[half]);
          if ((k + 1) % kChainCols != 0) continue;
          sum[half] = add(sum[half], chain[half]);
          chain[half] = zero();
        }
      }
      for (std::size_t half = 0; half < 2; ++half) {
        const std::size_t at = t * kPanelRows + 16 * half;
        store(b.f_out + at, add(load(b.f_in + at), sum[half]));
      }
    }
  }
};

}  // namespace

extern const TiledKernels tiled_scalar = {{multiply<Int4>, multiply<Int8>, multiply<Bf16>}};

}  // namespace shoal
