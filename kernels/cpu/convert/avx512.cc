// AVX-512 table of the search. Per 16 weights and trial: vfmadd, vminps, vmaxps, vcvttps2dq, vpermb (64 cells are one
// register of bytes), vcvtdq2ps, vsubps, vfmadd.
#include "vector/avx512.h"

#include "convert/cells.h"

namespace shoal {
namespace {

inline V select_lt(V x, V y, V a, V b) { return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), a); }

inline V nearest_cell(V y) {
  const __m512i table = _mm512_loadu_si512(kCells.twice);
  const __mmask64 low_bytes = 0x1111111111111111u;
  return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(low_bytes, _mm512_cvttps_epi32(y), table));
}

}  // namespace
}  // namespace shoal

#include "convert/search.h"

namespace shoal {
const QuantiseKernels quantise_avx512 = {&quantise_int4};
}
