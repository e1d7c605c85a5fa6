// Few-row products for AVX2, FMA and F16C, which have no dot product of bytes.
//
// int4   vpshufb turns nibbles into levels + 16 (unsigned), vpmaddubsw multiplies them with activations and adds pairs.
//        An int16 lane takes eight products of a group of 16 columns: it starts at -8 * (sum of the group), so the two
//        lanes of a row begin at -16 * sum together, which the 16 in the levels makes good. What a lane then holds is
//        (sum of its eight L * a) + 8 * (difference of the lanes' sums of a): at most 16,256 + 16,256, an int16; whatever
//        wraps on the way is harmless. Scales are multiplied in as 256 * s (vpmaddwd), which saves widening their signs.
// int8   bytes of 0..255 times int8 would saturate vpmaddubsw: even and odd bytes are widened and go to vpmaddwd.
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vector/avx2.h"
#include "vector/functions.h"

#include "direct/x86.h"
#include "direct/ymm.h"

namespace shoal {
namespace {

// Registers of eight rows that int8 works on at once, and for how many fours of columns: what sixteen registers allow.
template <int N>
constexpr int kInt8Eights = N <= 3 ? 4 : 2;
template <int N>
constexpr int kInt8Window = N <= 3 ? 64 : 8;

template <int N>
inline void int4_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride,
                        const std::int16_t* sum16, std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  alignas(32) std::int32_t start[N][16];  // both int16 of a row: sum16 / 2
  for (int i = 0; i < N; ++i) {
    const __m256i half = _mm256_srai_epi16(load_bytes(sum16 + static_cast<std::size_t>(i) * sum_stride), 1);
    const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(half));
    const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(half, 1));
    store_ints(start[i], _mm256_or_si256(low, _mm256_slli_epi32(low, 16)));
    store_ints(start[i] + 8, _mm256_or_si256(high, _mm256_slli_epi32(high, 16)));
  }
  const __m256i mask = _mm256_set1_epi8(15), levels = level_table(), scales = scale_table();
  __m256i t[4][N];
  for (int e = 0; e < 4; ++e)
    for (int i = 0; i < N; ++i) t[e][i] = _mm256_setzero_si256();
  const std::size_t distance = ahead<N>();
  for (int g = 0; g < 16; ++g) {
    const std::uint8_t* lines = block + kInt4LinesOffset + 256 * g;
    for (int line = 0; line < 4; ++line) prefetch(lines + 64 * line + distance);
    for (int e = 0; e < 4; ++e) {
      const int half = e / 2, eight = e % 2;
      __m256i acc[N];
      for (int i = 0; i < N; ++i) acc[i] = _mm256_set1_epi32(start[i][g]);
      for (int j = 0; j < 2; ++j) {
        const __m256i v = load_bytes(lines + 128 * j + 64 * half + 32 * eight);
        const __m256i low = _mm256_shuffle_epi8(levels, _mm256_and_si256(v, mask));
        const __m256i high = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
        for (int i = 0; i < N; ++i) {
          const std::int8_t* a = q + static_cast<std::size_t>(i) * q_stride + 16 * g + 8 * j;
          acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(low, broadcast4(a)));
          acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(high, broadcast4(a + 4)));
        }
      }
      const __m256i s = _mm256_shuffle_epi8(group_scales(block, half, g, mask, scales), pairs_of_eight(eight));
      for (int i = 0; i < N; ++i) t[e][i] = _mm256_add_epi32(t[e][i], _mm256_madd_epi16(acc[i], s));
    }
  }
  for (int e = 0; e < 4; ++e)
    for (int i = 0; i < N; ++i) store_ints(total[i] + 8 * e, _mm256_srai_epi32(t[e][i], 8));
}

template <int N>
inline void int8_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride,
                        const std::int32_t* sum256, std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  constexpr int kEights = kInt8Eights<N>;
  alignas(32) std::int32_t pairs[N][128];  // int16 pairs of columns (0, 2), (1, 3) of each four, for 32 columns (0, 2) first
  for (int i = 0; i < N; ++i) {
    for (int k = 0; k < 256; k += 32) {
      const __m256i v = load_bytes(q + static_cast<std::size_t>(i) * q_stride + k);
      store_ints(pairs[i] + k / 2, _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
      store_ints(pairs[i] + k / 2 + 8, _mm256_srai_epi16(v, 8));
    }
  }
  const __m256i even_bytes = _mm256_set1_epi16(255);
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < 32; r += 8)
      store_ints(total[i] + r, _mm256_set1_epi32(sum256[static_cast<std::size_t>(i) * sum_stride]));
  const std::size_t distance = ahead<N>();
  for (int window = 0; window < 64; window += kInt8Window<N>) {
    for (int first = 0; first < 4; first += kEights) {
      __m256i t[kEights][N];
      for (int e = 0; e < kEights; ++e)
        for (int i = 0; i < N; ++i) t[e][i] = load_bytes(total[i] + 8 * (first + e));
      for (int k4 = window; k4 < window + kInt8Window<N>; ++k4) {
        const std::uint8_t* lines = block + 128 * k4;
        for (int line = 0; line < kEights / 2; ++line) prefetch(lines + 64 * (first / 2 + line) + distance);
        for (int e = 0; e < kEights; ++e) {
          const __m256i v = load_bytes(lines + 32 * (first + e));
          const __m256i even = _mm256_and_si256(v, even_bytes), odd = _mm256_srli_epi16(v, 8);
          for (int i = 0; i < N; ++i) {
            const std::int32_t* a = pairs[i] + (k4 / 8) * 16 + k4 % 8;
            t[e][i] = _mm256_add_epi32(t[e][i], _mm256_madd_epi16(even, _mm256_set1_epi32(a[0])));
            t[e][i] = _mm256_add_epi32(t[e][i], _mm256_madd_epi16(odd, _mm256_set1_epi32(a[8])));
          }
        }
      }
      for (int e = 0; e < kEights; ++e)
        for (int i = 0; i < N; ++i) store_ints(total[i] + 8 * (first + e), t[e][i]);
    }
  }
}

}  // namespace
}  // namespace shoal

#include "direct/panels.h"
#include "direct/quantise.h"

namespace shoal {

const DirectKernels direct_avx2 = {quantise,
                                   {multiply<Format::kInt4>, multiply<Format::kInt8>, multiply<Format::kBf16>}};

}  // namespace shoal
