// Few-row products for AVX-512 with VNNI and VBMI.
//
// int4   vpermb turns nibbles into levels + 16 (unsigned); it looks at six bits, and the table repeats four times, so
//        nothing is masked. A group's sum of 16 columns starts at -16 * (sum of the group's activations), so it ends as
//        the sum of L * a, an int16, and vpdpwssd multiplies it with s. The lane's upper int16 is the sign of the sum: it
//        meets the upper half of s, which is therefore zero, not its sign.
// int8   values are stored as 128 + v, so sums start at -128 * (sum of the block's activations).
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vector/avx512.h"
#include "vector/functions.h"

#include "direct/x86.h"

namespace shoal {
namespace {

template <int N>
constexpr int kBf16Halves = 2;

inline __m512i load_line(const void* p) { return _mm512_loadu_si512(p); }

inline V from_int32(const std::int32_t* p) { return _mm512_cvtepi32_ps(load_line(p)); }
inline V from_half(const std::uint8_t* p) { return _mm512_cvtph_ps(load_bytes(p)); }
inline V even_bf16(const std::uint8_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(load_line(p), 16)); }
inline V odd_bf16(const std::uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_and_si512(load_line(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline __m512i broadcast4_512(const std::int8_t* q) {
  std::int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

inline __m128i load_sixteen(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// Codes of group g, 16 rows; the high nibbles' groups need a shift, the low nibbles' no mask: vpermd looks at four bits.
template <int N>
inline void int4_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride,
                        const std::int16_t* sum16, std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  alignas(64) std::int32_t start[N][16];
  for (int i = 0; i < N; ++i) {
    const __m256i sums = load_bytes(sum16 + static_cast<std::size_t>(i) * sum_stride);
    _mm512_store_si512(start[i], _mm512_cvtepi16_epi32(sums));
  }
  const __m512i levels = _mm512_broadcast_i32x4(_mm_add_epi8(load_sixteen(kInt4Levels), _mm_set1_epi8(16)));
  const __m512i scales = _mm512_and_si512(_mm512_cvtepi8_epi32(load_sixteen(kInt4Scales)), _mm512_set1_epi32(0xffff));
  __m512i t[2][N];
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < N; ++i) t[r][i] = _mm512_setzero_si512();
  const std::size_t distance = ahead<N>();
  for (int g = 0; g < 16; ++g) {
    const std::uint8_t* lines = block + kInt4LinesOffset + 256 * g;
    __m512i acc[2][N];
    for (int i = 0; i < N; ++i) acc[0][i] = acc[1][i] = _mm512_set1_epi32(start[i][g]);
    for (int j = 0; j < 2; ++j) {
      __m512i low[2], high[2];
      for (int r = 0; r < 2; ++r) {
        const std::uint8_t* line = lines + 128 * j + 64 * r;
        prefetch(line + distance);
        const __m512i v = load_line(line);
        low[r] = _mm512_permutexvar_epi8(v, levels);
        high[r] = _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), levels);
      }
      for (int i = 0; i < N; ++i) {
        const std::int8_t* a = q + static_cast<std::size_t>(i) * q_stride + 16 * g + 8 * j;
        const __m512i a0 = broadcast4_512(a), a1 = broadcast4_512(a + 4);
        for (int r = 0; r < 2; ++r)
          acc[r][i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc[r][i], low[r], a0), high[r], a1);
      }
    }
    for (int r = 0; r < 2; ++r) {
      __m512i codes = _mm512_cvtepu8_epi32(load_sixteen(block + 128 * r + 16 * (g % 8)));
      if (g >= 8) codes = _mm512_srli_epi32(codes, 4);
      const __m512i s = _mm512_permutexvar_epi32(codes, scales);
      for (int i = 0; i < N; ++i) t[r][i] = _mm512_dpwssd_epi32(t[r][i], acc[r][i], s);
    }
  }
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < N; ++i) _mm512_storeu_si512(total[i] + 16 * r, t[r][i]);
}

template <int N>
inline void int8_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride,
                        const std::int32_t* sum256, std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  __m512i t[2][N];
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < N; ++i) t[r][i] = _mm512_set1_epi32(sum256[static_cast<std::size_t>(i) * sum_stride]);
  const std::size_t distance = ahead<N>();
  for (int k4 = 0; k4 < 64; ++k4) {
    const std::uint8_t* lines = block + 128 * k4;
    __m512i v[2];
    for (int r = 0; r < 2; ++r) {
      prefetch(lines + 64 * r + distance);
      v[r] = load_line(lines + 64 * r);
    }
    for (int i = 0; i < N; ++i) {
      const __m512i a = broadcast4_512(q + static_cast<std::size_t>(i) * q_stride + 4 * k4);
      for (int r = 0; r < 2; ++r) t[r][i] = _mm512_dpbusd_epi32(t[r][i], v[r], a);
    }
  }
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < N; ++i) _mm512_storeu_si512(total[i] + 16 * r, t[r][i]);
}

}  // namespace
}  // namespace shoal

#include "direct/panels.h"
#include "direct/quantise.h"

namespace shoal {

const DirectKernels direct_avx512 = {quantise,
                                     {multiply<Format::kInt4>, multiply<Format::kInt8>, multiply<Format::kBf16>}};

}  // namespace shoal
