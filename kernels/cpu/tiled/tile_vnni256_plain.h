// The tiles of tile_vnni256.h in intrinsics, for compilers without GNU assembly. Same results.
#pragma once

#include <cstring>

namespace shoal {
namespace {

template <int T>
inline void integer_tile(const Block& b, std::size_t half) {
  const std::uint8_t* w = b.w + 64 * half;
  __m256i sum[T][2];
  for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm256_set1_epi32(b.sums->start[t]);
  for (std::size_t k = 0; k < kBlockCols; k += 4) {
    const __m256i w0 = load_line(w + k * kPanelRows), w1 = load_line(w + k * kPanelRows + 32);
    for (int t = 0; t < T; ++t) {
      std::int32_t four;
      std::memcpy(&four, b.q + t * b.stride + k, 4);
      const __m256i q = _mm256_set1_epi32(four);
      sum[t][0] = SHOAL_DPBUSD(sum[t][0], w0, q);
      sum[t][1] = SHOAL_DPBUSD(sum[t][1], w1, q);
    }
  }
  for (int t = 0; t < T; ++t) {
    const V scale = set1(b.sums->scale[t]);
    const std::size_t at = t * kPanelRows + 16 * half;
    const V v = mul({_mm256_cvtepi32_ps(sum[t][0]), _mm256_cvtepi32_ps(sum[t][1])}, load(b.d + 16 * half));
    store(b.f_out + at, fma(v, scale, load(b.f_in + at)));
  }
}

}  // namespace
}  // namespace shoal

#define SHOAL_INTEGER_TILE(T) \
  inline void integer_tile_##T(const Block& b, std::size_t half) { integer_tile<T>(b, half); }
