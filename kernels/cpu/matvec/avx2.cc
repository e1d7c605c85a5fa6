// AVX2 and FMA. Built with its own flags: keep everything in the anonymous namespace and use no inline or template code
// of other headers, or the linker may give the whole process a copy that needs AVX2.
//
//   instruction                  use                              latency  per cycle  (Haswell; Zen 3 the same or better)
//   vpmovzxwd  ymm, m128         8 bf16 -> 8 x 32 bit             7        1
//   vpslld     ymm, 16           -> f32                           1        1
//   vfmadd231ps ymm, ymm, m256   lane += w * x                    5        2
//   vaddps     ymm               the sum of the four registers    3        1
//
// Four registers of eight lanes cover most of the latency of the multiply-add; past the caches the kernel is bound by
// the reading of W, two bytes a weight.
#include <immintrin.h>

#include "kernels.h"

namespace shoal {
namespace {

inline __m256 widen(const std::uint16_t* w) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline float sum_lanes(__m256 v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

float dot(const std::uint16_t* w, const float* x, std::size_t in) {
  __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps(), c = _mm256_setzero_ps(), d = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + 32 <= in; i += 32) {
    a = _mm256_fmadd_ps(widen(w + i), _mm256_loadu_ps(x + i), a);
    b = _mm256_fmadd_ps(widen(w + i + 8), _mm256_loadu_ps(x + i + 8), b);
    c = _mm256_fmadd_ps(widen(w + i + 16), _mm256_loadu_ps(x + i + 16), c);
    d = _mm256_fmadd_ps(widen(w + i + 24), _mm256_loadu_ps(x + i + 24), d);
  }
  for (; i + 8 <= in; i += 8) a = _mm256_fmadd_ps(widen(w + i), _mm256_loadu_ps(x + i), a);
  if (i < in) {  // The last columns, padded with zeros on both sides: 0 * 0 changes no lane.
    alignas(16) std::uint16_t w_tail[8] = {};
    alignas(32) float x_tail[8] = {};
    for (std::size_t l = 0; i + l < in; ++l) {
      w_tail[l] = w[i + l];
      x_tail[l] = x[i + l];
    }
    b = _mm256_fmadd_ps(widen(w_tail), _mm256_load_ps(x_tail), b);
  }
  return sum_lanes(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
}

void matvec_bf16(float* y, const std::uint16_t* w, const float* x, std::size_t n, std::size_t out, std::size_t in) {
  for (std::size_t o = 0; o < out; ++o) {
    for (std::size_t r = 0; r < n; ++r) y[r * out + o] = dot(w + o * in, x + r * in, in);
  }
}

}  // namespace

extern const Kernels kernels_avx2 = {"avx2", matvec_bf16};

}  // namespace shoal
