// 256-bit VNNI, in either encoding. The including file defines SHOAL_DPBUSD, the intrinsic, and SHOAL_LIMITS, the table.
#include "limits/ymm.h"

namespace shoal {
namespace {

std::uint64_t dot_int8(std::size_t rounds) {
  const __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(-2);
  __m256i sum[kChains];
  SHOAL_UNROLL(12)
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_epi32(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    SHOAL_UNROLL(12)
    for (int i = 0; i < kChains; ++i) SHOAL_DOT(sum[i], x, y, SHOAL_DPBUSD);
  }
  std::uint64_t out = 0;
  SHOAL_UNROLL(12)
  for (int i = 0; i < kChains; ++i) out |= fold(sum[i]);
  return out;
}

}  // namespace

extern const LimitKernels SHOAL_LIMITS;
const LimitKernels SHOAL_LIMITS = {&read, &dot_int8, &fma_f32, kChains * 64, kChains * 16};

}  // namespace shoal
