// What the x86 files of this folder share, in 256-bit instructions. Include after vector/avx2.h or vector/avx512.h.
#pragma once

namespace shoal {
namespace {

// Bytes between a read and the fetch beside it. Many rows compute for so long that the hardware's own prefetcher falls
// behind; for few it is enough on some processors, and in the way on others: see prefetch.cc.
template <int N>
inline std::size_t ahead() {
  return N <= 2 ? prefetch_distance : kPrefetchDistance;
}

inline void prefetch(const std::uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// The same address, but the compiler cannot know it: what is broadcast from there is loaded once more, where it would
// otherwise be kept, and for want of registers be stored and loaded as a whole vector.
template <typename T>
inline const T* again(const T* p) {
#if defined(__GNUC__)
  __asm__ volatile("" : "+r"(p));
#endif
  return p;
}

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Four int8 of a row of activations in every 32-bit lane.
inline __m256i broadcast4(const std::int8_t* q) {
  std::int32_t four;
  __builtin_memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

inline void sum_groups(const std::int8_t* q, std::int16_t* sum16) {
  const __m256i ones = _mm256_set1_epi8(1), scale = _mm256_set1_epi16(-16);
  for (int half = 0; half < 2; ++half) {
    __m256i fours[4];  // -16 * (sum of 4), of 32 values each
    for (int i = 0; i < 4; ++i)
      fours[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, load_bytes(q + 128 * half + 32 * i)), scale);
    // lower lane: groups 0, 2, 4, 6 of this half; upper lane: 1, 3, 5, 7
    const __m256i groups =
        _mm256_hadd_epi32(_mm256_hadd_epi32(fours[0], fours[1]), _mm256_hadd_epi32(fours[2], fours[3]));
    const __m128i even = _mm256_castsi256_si128(groups), odd = _mm256_extracti128_si256(groups, 1);
    const __m128i ordered = _mm_packs_epi32(_mm_unpacklo_epi32(even, odd), _mm_unpackhi_epi32(even, odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sum16 + 8 * half), ordered);
  }
}

}  // namespace
}  // namespace shoal
