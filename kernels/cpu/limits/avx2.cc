// AVX2 has no dot product of bytes: vpmaddubsw (16 pairs, 2 a cycle on Zen 4 and on Intel since Skylake), then vpaddw.
#include "limits/ymm.h"

namespace shoal {
namespace {

// By instruction where the compiler takes it: GCC 12 would spill the sums.
inline __m256i add_products(__m256i sum, __m256i x, __m256i y) {
#if defined(_MSC_VER)
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(x, y));
#else
  __m256i products;
  __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(x), "x"(y));
  return sum;
#endif
}

std::uint64_t dot_int8(std::size_t rounds) {
  const __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(-2);
  __m256i sum[kChains];
  SHOAL_UNROLL(12)
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_epi16(static_cast<short>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
    SHOAL_UNROLL(12)
    for (int i = 0; i < kChains; ++i) sum[i] = add_products(sum[i], x, y);
  }
  std::uint64_t out = 0;
  SHOAL_UNROLL(12)
  for (int i = 0; i < kChains; ++i) out |= fold(sum[i]);
  return out;
}

}  // namespace

extern const LimitKernels limits_avx2;
const LimitKernels limits_avx2 = {&read, &dot_int8, &fma_f32, kChains * 64, kChains * 16};

}  // namespace shoal
