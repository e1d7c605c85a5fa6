// What the two 256-bit sets share: a line is two loads, and f32 multiply-adds in twelve chains.
#pragma once

#include <immintrin.h>

#include "limits/limits.h"

namespace shoal {
namespace {

struct Line {
  __m256i low, high;
};
inline Line none() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Line take(Line a, const std::uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_or_si256(a.low, _mm256_loadu_si256(q)), _mm256_or_si256(a.high, _mm256_loadu_si256(q + 1))};
}
inline std::uint64_t fold(__m256i a) {
  alignas(32) std::uint64_t lane[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), a);
  return lane[0] | lane[1] | lane[2] | lane[3];
}
inline std::uint64_t fold(Line a) { return fold(_mm256_or_si256(a.low, a.high)); }

}  // namespace
}  // namespace shoal

#include "limits/loops.h"

namespace shoal {
namespace {

constexpr int kChains = 12;  // of sixteen registers; at least latency 5 x 2 a cycle

std::uint64_t fma_f32(std::size_t rounds) {
  const __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1.0f);
  __m256 sum[kChains];
  SHOAL_UNROLL(12)
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
    SHOAL_UNROLL(12)
    for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], x, y);
  }
  std::uint64_t out = 0;
  SHOAL_UNROLL(12)
  for (int i = 0; i < kChains; ++i) out |= fold(_mm256_castps_si256(sum[i]));
  return out;
}

}  // namespace
}  // namespace shoal
