// Few-row products with the dot products of VNNI in 256-bit registers. Two files include this, each after a definition of
//   __m256i dpbusd(__m256i sum, __m256i u8, __m256i s8)          sum + four products of bytes, by 32-bit lane
//   __m256i dpwssd(__m256i sum, __m256i a, __m256i b)            sum + two products of int16
// in the encoding of its instruction set.
//
// int4   vpshufb turns nibbles into levels + 16 (unsigned); a group's sum of 16 columns starts at -16 * (sum of the
//        group's activations), so it ends as the sum of L * a, an int16, and vpdpwssd multiplies it with 256 * s. The
//        lane's upper int16 is the sign of the sum: it meets zero.
// int8   values are stored as 128 + v, so sums start at -128 * (sum of the block's activations).
#pragma once

namespace shoal {
namespace {

// Registers of eight rows that int8 works on at once, and for how many fours of columns: what the registers hold.
template <int N>
constexpr int kInt8Eights = N <= 3 || kManyRegisters ? 4 : 2;
template <int N>
constexpr int kInt8Window = kInt8Eights<N> == 4 ? 64 : 8;

template <int N>
inline void int4_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride,
                        const std::int16_t* sum16, std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  alignas(32) std::int32_t start[N][16];
  for (int i = 0; i < N; ++i) {
    const __m256i sums = load_bytes(sum16 + static_cast<std::size_t>(i) * sum_stride);
    store_ints(start[i], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums)));
    store_ints(start[i] + 8, _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums, 1)));
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
          acc[i] = dpbusd(dpbusd(acc[i], low, broadcast4(a)), high, broadcast4(a + 4));
        }
      }
      const __m256i s = _mm256_shuffle_epi8(group_scales(block, half, g, mask, scales), singles_of_eight(eight));
      for (int i = 0; i < N; ++i) t[e][i] = dpwssd(t[e][i], acc[i], s);
    }
  }
  for (int e = 0; e < 4; ++e)
    for (int i = 0; i < N; ++i) store_ints(total[i] + 8 * e, _mm256_srai_epi32(t[e][i], 8));
}

template <int N>
inline void int8_totals(const std::uint8_t* block, const std::int8_t* q, std::size_t q_stride,
                        const std::int32_t* sum256, std::size_t sum_stride, std::int32_t (&total)[N][kPanelRows]) {
  constexpr int kEights = kInt8Eights<N>;
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
        for (int i = 0; i < N; ++i) {
          const __m256i a = broadcast4(q + static_cast<std::size_t>(i) * q_stride + 4 * k4);
          for (int e = 0; e < kEights; ++e) t[e][i] = dpbusd(t[e][i], load_bytes(lines + 32 * (first + e)), a);
        }
      }
      for (int e = 0; e < kEights; ++e)
        for (int i = 0; i < N; ++i) store_ints(total[i] + 8 * (first + e), t[e][i]);
    }
  }
}

}  // namespace
}  // namespace shoal
