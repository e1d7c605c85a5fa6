// AVX2 and FMA. Built with its own flags: keep everything in the anonymous namespace and use no inline or template code
// of other headers, or the linker may give the whole process a copy that needs AVX2.
//
//   instruction                  use                              latency  per cycle  (Haswell; Zen 3 the same or better)
//   vpmovzxwd  ymm, m128         8 bf16 -> 8 x 32 bit             7        1
//   vpslld     ymm, 16           -> f32                           1        1
//   vfmadd231ps ymm, ymm, m256   lane += w * x                    5        2
//   vaddps     ymm               the sums of the registers       3        1
//
// Eight registers of sums (four rows, two each) cover the latency of the multiply-add; past the caches the kernel is
// bound by the reading of W, two bytes a weight.
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

// acc + w[0..num) * x[0..num), num <= 8. Padded with zeros on both sides: 0 * 0 changes no lane.
inline __m256 add_tail(__m256 acc, const std::uint16_t* w, const float* x, std::size_t num) {
  alignas(16) std::uint16_t w_tail[8] = {};
  alignas(32) float x_tail[8] = {};
  for (std::size_t l = 0; l < num; ++l) {
    w_tail[l] = w[l];
    x_tail[l] = x[l];
  }
  return _mm256_fmadd_ps(widen(w_tail), _mm256_load_ps(x_tail), acc);
}

// The product of one row of W with x: the columns of even blocks of eight in one register, of odd blocks in another.
float dot(const std::uint16_t* w, const float* x, std::size_t in) {
  __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + 16 <= in; i += 16) {
    even = _mm256_fmadd_ps(widen(w + i), _mm256_loadu_ps(x + i), even);
    odd = _mm256_fmadd_ps(widen(w + i + 8), _mm256_loadu_ps(x + i + 8), odd);
  }
  for (; i < in; i += 8) even = add_tail(even, w + i, x + i, in - i < 8 ? in - i : 8);
  return sum_lanes(_mm256_add_ps(even, odd));
}

// Asks for the cache line of w[index], which may lie past the end: a prefetch never faults.
inline void prefetch(const std::uint16_t* w, std::size_t index) {
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(w) + index * sizeof *w;
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T1);
}

constexpr std::size_t kRows = 4;  // rows of W at a time: x is loaded once for all, and the sums are independent

// y[0..kRows) = the products of kRows consecutive rows of W with x; each row's sum has the order of `dot`. The next
// rows are fetched in the order in which they lie: four short streams alone leave the hardware prefetcher behind
// (rows of 1024 columns: 9 GB/s without, 21 with).
void dot_rows(float* y, const std::uint16_t* w, const float* x, std::size_t in) {
  __m256 even[kRows], odd[kRows];
  for (std::size_t r = 0; r < kRows; ++r) even[r] = odd[r] = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + 16 <= in; i += 16) {
    prefetch(w, kRows * (in + i));
    prefetch(w, kRows * (in + i) + 32);
    const __m256 x_even = _mm256_loadu_ps(x + i), x_odd = _mm256_loadu_ps(x + i + 8);
    for (std::size_t r = 0; r < kRows; ++r) {
      even[r] = _mm256_fmadd_ps(widen(w + r * in + i), x_even, even[r]);
      odd[r] = _mm256_fmadd_ps(widen(w + r * in + i + 8), x_odd, odd[r]);
    }
  }
  for (; i < in; i += 8) {
    const std::size_t num = in - i < 8 ? in - i : 8;
    for (std::size_t r = 0; r < kRows; ++r) even[r] = add_tail(even[r], w + r * in + i, x + i, num);
  }
  for (std::size_t r = 0; r < kRows; ++r) y[r] = sum_lanes(_mm256_add_ps(even[r], odd[r]));
}

void matvec_bf16(float* y, const std::uint16_t* w, const float* x, std::size_t n, std::size_t out, std::size_t in) {
  std::size_t o = 0;
  for (; o + kRows <= out; o += kRows) {
    for (std::size_t r = 0; r < n; ++r) dot_rows(y + r * out + o, w + o * in, x + r * in, in);
  }
  for (; o < out; ++o) {
    for (std::size_t r = 0; r < n; ++r) y[r * out + o] = dot(w + o * in, x + r * in, in);
  }
}

}  // namespace

extern const Kernels kernels_avx2 = {"avx2", matvec_bf16};

}  // namespace shoal
