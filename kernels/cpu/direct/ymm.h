// What the 256-bit kernels (AVX2, VNNI of 256 bits) share beyond x86.h. Include after vector/avx2.h and direct/x86.h.
#pragma once

namespace shoal {
namespace {

#if defined(__AVX512VL__)
constexpr bool kManyRegisters = true;  // thirty-two
#else
constexpr bool kManyRegisters = false;  // sixteen
#endif

template <int N>
constexpr int kBf16Halves = N <= 3 || kManyRegisters ? 2 : 1;  // 4 N or 2 N sums

inline V from_int32(const std::int32_t* p) {
  return {_mm256_cvtepi32_ps(load_bytes(p)), _mm256_cvtepi32_ps(load_bytes(p + 8))};
}
inline V from_half(const std::uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
inline V even_bf16(const std::uint8_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(load_bytes(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(load_bytes(p + 32), 16))};
}
inline V odd_bf16(const std::uint8_t* p) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(load_bytes(p), upper)),
          _mm256_castsi256_ps(_mm256_and_si256(load_bytes(p + 32), upper))};
}

inline void store_ints(std::int32_t* p, __m256i a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }

inline __m256i both_lanes(const std::int8_t* sixteen) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
}

inline __m256i level_table() { return _mm256_add_epi8(both_lanes(kInt4Levels), _mm256_set1_epi8(16)); }
inline __m256i scale_table() { return both_lanes(kInt4Scales); }

// The int8 scales of group g, 16 rows of one half, in both lanes.
inline __m256i group_scales(const std::uint8_t* block, int half, int g, __m256i mask, __m256i scales) {
  const __m128i* codes = reinterpret_cast<const __m128i*>(block + 128 * half + 16 * (g % 8));
  const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes));
  return _mm256_shuffle_epi8(scales, _mm256_and_si256(g < 8 ? both : _mm256_srli_epi16(both, 4), mask));
}

// vpshufb's choice that spreads the int8 of rows 8 * eight .. + 7 to the upper bytes of int16 lanes: 256 * s. `pairs`: in
// both int16 of a row's 32 bits; `singles`: in the lower, the upper being zero.
inline __m256i pairs_of_eight(int eight) {
  const __m256i rows = _mm256_setr_epi32(0x00ff00ff, 0x01ff01ff, 0x02ff02ff, 0x03ff03ff,  //
                                         0x04ff04ff, 0x05ff05ff, 0x06ff06ff, 0x07ff07ff);
  return _mm256_add_epi8(rows, _mm256_set1_epi16(static_cast<short>(eight << 11)));
}
inline __m256i singles_of_eight(int eight) {
  return _mm256_or_si256(pairs_of_eight(eight), _mm256_set1_epi32(static_cast<int>(0xff000000u)));
}

}  // namespace
}  // namespace shoal
