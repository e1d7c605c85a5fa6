// kBf16 in 256 bits: tiles of 2 registers of 8 rows x up to 6 tokens over one half of a panel, a chain of kChainCols
// columns after the other (kernels.h).
#pragma once

#if defined(__GNUC__)
#define SHOAL_APART __attribute__((noinline))
#elif defined(_MSC_VER)
#define SHOAL_APART __declspec(noinline)
#else
#define SHOAL_APART
#endif

namespace shoal {
namespace {

// sums[t] = sums[t] + the chain of kChainCols columns from w and x on. A function of its own: with anything around the
// loop gcc 12 keeps sums in memory, at half of the speed.
template <int T>
SHOAL_APART void bf16_chain(const std::uint8_t* w, const float* x, std::size_t stride, float (&sums)[T][16]) {
  const __m256 upper = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  V chain[T];
  for (int t = 0; t < T; ++t) chain[t] = zero();
  for (std::size_t k = 0; k < kChainCols; k += 2, w += 128) {
    const __m256i *p = reinterpret_cast<const __m256i*>(w);
    const V even = {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(p), 16)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(p + 1), 16))};
    for (int t = 0; t < T; ++t) chain[t] = fma(set1(x[t * stride + k]), even, chain[t]);
    const float* q = reinterpret_cast<const float*>(w);
    const V odd = {_mm256_and_ps(upper, _mm256_load_ps(q)), _mm256_and_ps(upper, _mm256_load_ps(q + 8))};
    for (int t = 0; t < T; ++t) chain[t] = fma(set1(x[t * stride + k + 1]), odd, chain[t]);
  }
  for (int t = 0; t < T; ++t) store(sums[t], add(load(sums[t]), chain[t]));
}

template <int T>
inline void bf16_tile(const Block& b, std::size_t half) {
  alignas(32) float sums[T][16] = {};
  for (std::size_t k = 0; k < kBlockCols; k += kChainCols) {
    bf16_chain<T>(b.w + 64 * (k + half), b.x + k, b.stride, sums);
  }
  for (int t = 0; t < T; ++t) {
    const std::size_t at = t * kPanelRows + 16 * half;
    store(b.f_out + at, add(load(b.f_in + at), load(sums[t])));
  }
}

struct Bf16 : OneByOne {
  static constexpr bool kIsInteger = false;
  static constexpr std::size_t kUnpackedBytes = 0;
  static std::size_t take(std::size_t left) {
    if (left >= 6 && left != 8) return 6;
    return left >= 4 ? 4 : left >= 2 ? 2 : left;
  }
  static void prepare(const std::uint8_t*, std::uint8_t*, float*) {}
  static void tile(std::size_t tokens, const Block& b) {
    for (std::size_t half = 0; half < 2; ++half) {
      switch (tokens) {
        case 6: bf16_tile<6>(b, half); break;
        case 4: bf16_tile<4>(b, half); break;
        case 2: bf16_tile<2>(b, half); break;
        default: bf16_tile<1>(b, half); break;
      }
    }
  }
};

}  // namespace
}  // namespace shoal
