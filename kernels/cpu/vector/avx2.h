// Sixteen f32 lanes in two AVX2 registers. What each name means stands in scalar.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace shoal {
namespace {

struct V {
  __m256 lo, hi;
};

inline V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline V add(V a, V b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline V sub(V a, V b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline V mul(V a, V b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline V div(V a, V b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline V fnma(V a, V b, V c) { return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)}; }
inline V sqrt(V a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline V max(V a, V b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline V min(V a, V b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline V keep_if_ge(V a, V x, V y) {
  return {_mm256_and_ps(a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_GE_OQ)),
          _mm256_and_ps(a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_GE_OQ))};
}
inline __m256 shift_exponent_8(__m256 a, __m256 t) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
inline V shift_exponent(V a, V t) { return {shift_exponent_8(a.lo, t.lo), shift_exponent_8(a.hi, t.hi)}; }
inline __m256 load_bf16_8(const std::uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline V load_bf16(const std::uint16_t* p) { return {load_bf16_8(p), load_bf16_8(p + 8)}; }
inline __m256 load_s8_8(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline V load_s8(const std::int8_t* p) { return {load_s8_8(p), load_s8_8(p + 8)}; }
inline __m256i round_bf16_8(__m256 a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
}
inline void store_bf16(std::uint16_t* p, V a) {
  const __m256i packed = _mm256_packus_epi32(round_bf16_8(a.lo), round_bf16_8(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void store_s8(std::int8_t* p, V a) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline float sum(V a) {
  const __m256 e = _mm256_add_ps(a.lo, a.hi);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(V a) {
  const __m256 e = _mm256_max_ps(a.lo, a.hi);
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline V insert(V a, std::size_t at, float x) {
  const __m256i place = _mm256_set1_epi32(static_cast<int>(at));
  const __m256 value = _mm256_set1_ps(x);
  const __m256i lo = _mm256_cmpeq_epi32(place, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i hi = _mm256_cmpeq_epi32(place, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
  return {_mm256_blendv_ps(a.lo, value, _mm256_castsi256_ps(lo)), _mm256_blendv_ps(a.hi, value, _mm256_castsi256_ps(hi))};
}
inline __m256 low_pairs(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline __m256 high_pairs(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline void load_quads_8(const float* p, __m256 t[4]) {
  const __m256 y0 = _mm256_loadu_ps(p), y1 = _mm256_loadu_ps(p + 8);
  const __m256 y2 = _mm256_loadu_ps(p + 16), y3 = _mm256_loadu_ps(p + 24);
  const __m256 p0 = _mm256_permute2f128_ps(y0, y2, 0x20), p1 = _mm256_permute2f128_ps(y0, y2, 0x31);
  const __m256 p2 = _mm256_permute2f128_ps(y1, y3, 0x20), p3 = _mm256_permute2f128_ps(y1, y3, 0x31);
  const __m256 a = _mm256_unpacklo_ps(p0, p1), b = _mm256_unpackhi_ps(p0, p1);
  const __m256 c = _mm256_unpacklo_ps(p2, p3), d = _mm256_unpackhi_ps(p2, p3);
  t[0] = low_pairs(a, c);
  t[1] = high_pairs(a, c);
  t[2] = low_pairs(b, d);
  t[3] = high_pairs(b, d);
}
inline void load_quads(const float* p, V t[4]) {
  __m256 lo[4], hi[4];
  load_quads_8(p, lo);
  load_quads_8(p + 32, hi);
  for (int j = 0; j < 4; ++j) t[j] = {lo[j], hi[j]};
}
inline void transpose_8(__m256 r[8]) {
  for (int g = 0; g < 8; g += 4) {  // within blocks of 4 x 4
    const __m256 a = _mm256_unpacklo_ps(r[g], r[g + 1]), b = _mm256_unpackhi_ps(r[g], r[g + 1]);
    const __m256 c = _mm256_unpacklo_ps(r[g + 2], r[g + 3]), d = _mm256_unpackhi_ps(r[g + 2], r[g + 3]);
    r[g] = low_pairs(a, c);
    r[g + 1] = high_pairs(a, c);
    r[g + 2] = low_pairs(b, d);
    r[g + 3] = high_pairs(b, d);
  }
  for (int c = 0; c < 4; ++c) {  // then the blocks themselves
    const __m256 low = r[c], high = r[4 + c];
    r[c] = _mm256_permute2f128_ps(low, high, 0x20);
    r[4 + c] = _mm256_permute2f128_ps(low, high, 0x31);
  }
}
inline void transpose(V r[16]) {
  __m256 quarter[4][8];  // rows 0-7 lanes 0-7; rows 0-7 lanes 8-15; rows 8-15 lanes 0-7; rows 8-15 lanes 8-15
  for (int i = 0; i < 8; ++i) {
    quarter[0][i] = r[i].lo;
    quarter[1][i] = r[i].hi;
    quarter[2][i] = r[8 + i].lo;
    quarter[3][i] = r[8 + i].hi;
  }
  for (int i = 0; i < 4; ++i) transpose_8(quarter[i]);
  for (int i = 0; i < 8; ++i) {
    r[i] = {quarter[0][i], quarter[2][i]};
    r[8 + i] = {quarter[1][i], quarter[3][i]};
  }
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
inline float fma1(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

}  // namespace
}  // namespace shoal
