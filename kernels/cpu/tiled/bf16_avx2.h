// kBf16 in 256 bits: tiles of 2 registers of 8 rows x up to 6 tokens over one half of a panel, columns ascending.
#pragma once

namespace shoal {
namespace {

template <int T>
inline void bf16_tile(const Block& b, std::size_t half) {
  const __m256 upper = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  const std::uint8_t* w = b.w + 64 * half;
  V sum[T];
  for (int t = 0; t < T; ++t) sum[t] = zero();
  for (std::size_t k = 0; k < kBlockCols; k += 2, w += 128) {
    const __m256i *p = reinterpret_cast<const __m256i*>(w);
    const V even = {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(p), 16)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(p + 1), 16))};
    for (int t = 0; t < T; ++t) sum[t] = fma(set1(b.x[t * b.stride + k]), even, sum[t]);
    const float* q = reinterpret_cast<const float*>(w);
    const V odd = {_mm256_and_ps(upper, _mm256_load_ps(q)), _mm256_and_ps(upper, _mm256_load_ps(q + 8))};
    for (int t = 0; t < T; ++t) sum[t] = fma(set1(b.x[t * b.stride + k + 1]), odd, sum[t]);
  }
  for (int t = 0; t < T; ++t) {
    const std::size_t at = t * kPanelRows + 16 * half;
    store(b.f_out + at, add(load(b.f_in + at), sum[t]));
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
