// Gated DeltaNet, AVX2 and FMA: 8 or 8 of 16 registers accumulate.
#include "vector/avx2.h"
#include "vector/functions.h"

namespace shoal {
namespace {
constexpr int kTileRows = 4, kTileCols = 1, kTokenCols = 2;
}
}  // namespace shoal

#include "delta/delta.inl"

namespace shoal {
const DeltaKernels delta_avx2 = {advance, read_state};
}  // namespace shoal
