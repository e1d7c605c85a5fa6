// Sixteen f32 lanes in one AVX-512 register. What each name means stands in scalar.h.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13  // its own header warns of registers meant to be undefined
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

namespace shoal {
namespace {

using V = __m512;

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V a) { _mm512_storeu_ps(p, a); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
inline V sqrt(V a) { return _mm512_sqrt_ps(a); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V keep_if_ge(V a, V x, V y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, y, _CMP_GE_OQ), a); }
inline V shift_exponent(V a, V t) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
inline V load_bf16(const std::uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline V load_s8(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_bf16(std::uint16_t* p, V a) {
  const __m512i u = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}
inline void store_s8(std::int8_t* p, V a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
inline float sum(V a) {
  const __m256 e = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(V a) {
  const __m256 e = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline V insert(V a, std::size_t at, float x) {
  return _mm512_mask_mov_ps(a, static_cast<__mmask16>(1u << at), _mm512_set1_ps(x));
}
inline void load_quads(const float* p, V t[4]) {
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);  // j = 0, then 1
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));                               // j = 2, then 3
  const V a = load(p), b = load(p + 16), c = load(p + 32), d = load(p + 48);
  const V low01 = _mm512_permutex2var_ps(a, first, b), high01 = _mm512_permutex2var_ps(c, first, d);
  const V low23 = _mm512_permutex2var_ps(a, second, b), high23 = _mm512_permutex2var_ps(c, second, d);
  t[0] = _mm512_shuffle_f32x4(low01, high01, 0x44);
  t[1] = _mm512_shuffle_f32x4(low01, high01, 0xee);
  t[2] = _mm512_shuffle_f32x4(low23, high23, 0x44);
  t[3] = _mm512_shuffle_f32x4(low23, high23, 0xee);
}
inline V low_pairs(V a, V b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline V high_pairs(V a, V b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline void transpose(V r[16]) {
  // Within blocks of 4 x 4: afterwards block b of r[4 g + c] is column 4 b + c of rows 4 g .. 4 g + 3.
  for (int g = 0; g < 16; g += 4) {
    const V a = _mm512_unpacklo_ps(r[g], r[g + 1]), b = _mm512_unpackhi_ps(r[g], r[g + 1]);
    const V c = _mm512_unpacklo_ps(r[g + 2], r[g + 3]), d = _mm512_unpackhi_ps(r[g + 2], r[g + 3]);
    r[g] = low_pairs(a, c);
    r[g + 1] = high_pairs(a, c);
    r[g + 2] = low_pairs(b, d);
    r[g + 3] = high_pairs(b, d);
  }
  for (int c = 0; c < 4; ++c) {  // then the blocks themselves
    const V even_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), odd_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    const V even_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const V odd_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
inline float fma1(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

}  // namespace
}  // namespace shoal
