// AVX2 table of the search. Per 16 weights and trial: 2 vfmadd, 2 vmin, 2 vmax, 2 vcvttps2dq; the sixteen cells packed
// into bytes, 4 vpshufb (16 cells each) and 3 vpblendvb; 2 vpmovzxbd, 2 vcvtdq2ps, 2 vsub, 2 vfmadd. Gathering from a
// table of floats took twice as long.
#include "vector/avx2.h"

#include "convert/cells.h"

namespace shoal {
namespace {

inline V select_lt(V x, V y, V a, V b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}

// Of each byte of `cell`, by its low four bits, from the sixteen cells that begin with `first`.
inline __m128i among_sixteen(int first, __m128i cell) {
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kCells.twice + first)), cell);
}

inline V nearest_cell(V y) {
  __m256i words = _mm256_packs_epi32(_mm256_cvttps_epi32(y.lo), _mm256_cvttps_epi32(y.hi));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i cell = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i bit4 = _mm_slli_epi16(cell, 3), bit5 = _mm_slli_epi16(cell, 2);  // as the sign of each byte
  const __m128i low = _mm_blendv_epi8(among_sixteen(0, cell), among_sixteen(16, cell), bit4);
  const __m128i high = _mm_blendv_epi8(among_sixteen(32, cell), among_sixteen(48, cell), bit4);
  const __m128i found = _mm_blendv_epi8(low, high, bit5);
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(found)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(found, 8)))};
}

}  // namespace
}  // namespace shoal

#include "convert/search.h"

namespace shoal {
const QuantiseKernels quantise_avx2 = {&quantise_int4};
}
