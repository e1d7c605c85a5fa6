// The tiles of tile_avx512.h in intrinsics, for compilers without GNU assembly. Same results.
#pragma once

#include <cstring>

namespace shoal {
namespace {

template <int T>
inline void integer_tile(const Block& b) {
  __m512i sum[T][2];
  for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = _mm512_set1_epi32(b.sums->start[t]);
  for (std::size_t k = 0; k < kBlockCols; k += 4) {
    const __m512i w0 = _mm512_load_si512(b.w + k * kPanelRows), w1 = _mm512_load_si512(b.w + k * kPanelRows + 64);
    for (int t = 0; t < T; ++t) {
      std::int32_t four;
      std::memcpy(&four, b.q + t * b.stride + k, 4);
      const __m512i q = _mm512_set1_epi32(four);
      sum[t][0] = _mm512_dpbusd_epi32(sum[t][0], w0, q);
      sum[t][1] = _mm512_dpbusd_epi32(sum[t][1], w1, q);
    }
  }
  for (int t = 0; t < T; ++t) {
    const V scale = set1(b.sums->scale[t]);
    for (int half = 0; half < 2; ++half) {
      const std::size_t at = t * kPanelRows + 16 * half;
      const V v = mul(_mm512_cvtepi32_ps(sum[t][half]), load(b.d + 16 * half));
      store(b.f_out + at, fma(v, scale, load(b.f_in + at)));
    }
  }
}

template <int T>
inline void bf16_tile(const Block& b) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  V sum[T][2];
  for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = zero();
  for (std::size_t first = 0; first < kBlockCols; first += kChainCols) {
    V chain[T][2];
    for (int t = 0; t < T; ++t) chain[t][0] = chain[t][1] = zero();
    for (std::size_t k = first; k < first + kChainCols; k += 2) {
      V even[2], odd[2];
      for (int half = 0; half < 2; ++half) {
        const __m512i pairs = _mm512_load_si512(b.w + k * 64 + 64 * half);
        even[half] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        odd[half] = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
      }
      for (int t = 0; t < T; ++t) {
        const V x0 = set1(b.x[t * b.stride + k]), x1 = set1(b.x[t * b.stride + k + 1]);
        for (int half = 0; half < 2; ++half) {
          chain[t][half] = fma(x0, even[half], chain[t][half]);
          chain[t][half] = fma(x1, odd[half], chain[t][half]);
        }
      }
    }
    for (int t = 0; t < T; ++t) {
      for (int half = 0; half < 2; ++half) sum[t][half] = add(sum[t][half], chain[t][half]);
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int half = 0; half < 2; ++half) {
      const std::size_t at = t * kPanelRows + 16 * half;
      store(b.f_out + at, add(load(b.f_in + at), sum[t][half]));
    }
  }
}

}  // namespace
}  // namespace shoal

#define SHOAL_INTEGER_TILE(T) \
  inline void integer_tile_##T(const Block& b) { integer_tile<T>(b); }
#define SHOAL_BF16_TILE(T) \
  inline void bf16_tile_##T(const Block& b) { bf16_tile<T>(b); }
