// vpdpbusd zmm: 64 products an instruction; vfmadd zmm: 16. One of each a cycle on Zen 4, two on Zen 5 and server Intel.
#include <immintrin.h>

#include "limits/limits.h"

namespace shoal {
namespace {

using Line = __m512i;
inline Line none() { return _mm512_setzero_si512(); }
inline Line take(Line a, const std::uint8_t* p) { return _mm512_or_si512(a, _mm512_loadu_si512(p)); }
inline std::uint64_t fold(Line a) {
  alignas(64) std::uint64_t lane[8];
  _mm512_store_si512(lane, a);
  return lane[0] | lane[1] | lane[2] | lane[3] | lane[4] | lane[5] | lane[6] | lane[7];
}

}  // namespace
}  // namespace shoal

#include "limits/loops.h"

namespace shoal {
namespace {

constexpr int kChains = 24;  // of thirty-two registers

std::uint64_t dot_int8(std::size_t rounds) {
  const __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2);
  __m512i sum[kChains];
  SHOAL_UNROLL(24)
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_epi32(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    SHOAL_UNROLL(24)
    for (int i = 0; i < kChains; ++i) SHOAL_DOT(sum[i], x, y, _mm512_dpbusd_epi32);
  }
  std::uint64_t out = 0;
  SHOAL_UNROLL(24)
  for (int i = 0; i < kChains; ++i) out |= fold(sum[i]);
  return out;
}

std::uint64_t fma_f32(std::size_t rounds) {
  const __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1.0f);
  __m512 sum[kChains];
  SHOAL_UNROLL(24)
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
    SHOAL_UNROLL(24)
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], x, y);
  }
  std::uint64_t out = 0;
  SHOAL_UNROLL(24)
  for (int i = 0; i < kChains; ++i) out |= fold(_mm512_castps_si512(sum[i]));
  return out;
}

}  // namespace

extern const LimitKernels limits_avx512;
const LimitKernels limits_avx512 = {&read, &dot_int8, &fma_f32, kChains * 128, kChains * 32};

}  // namespace shoal
