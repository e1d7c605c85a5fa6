// AVX2 table of the search. Per 16 weights and trial: 2 vfmadd, 2 vmin, 2 vmax, 2 vcvttps2dq, 2 vgatherdps (from four
// lines of the first cache), 2 vsub, 2 vfmadd.
#include "vector/avx2.h"

#include "convert/cells.h"

namespace shoal {
namespace {

struct FloatOfCell {
  float twice[64];
};

constexpr FloatOfCell floats_of_cells() {
  FloatOfCell table = {};
  for (int cell = 0; cell < 64; ++cell) table.twice[cell] = kCells.twice[cell];
  return table;
}

alignas(64) constexpr FloatOfCell kFloatOfCell = floats_of_cells();

inline V select_lt(V x, V y, V a, V b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}

inline V nearest_cell(V y) {
  return {_mm256_i32gather_ps(kFloatOfCell.twice, _mm256_cvttps_epi32(y.lo), 4),
          _mm256_i32gather_ps(kFloatOfCell.twice, _mm256_cvttps_epi32(y.hi), 4)};
}

}  // namespace
}  // namespace shoal

#include "convert/search.h"

namespace shoal {
const QuantiseKernels quantise_avx2 = {&quantise_int4};
}
