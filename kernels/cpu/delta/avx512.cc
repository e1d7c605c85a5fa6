// Gated DeltaNet, AVX-512: 16 of 32 registers accumulate.
#include "vector/avx512.h"
#include "vector/functions.h"

namespace shoal {
namespace {
constexpr int kTileRows = 8, kTileCols = 2, kTokenCols = 8;
}
}  // namespace shoal

#include "delta/delta.inl"

namespace shoal {
const DeltaKernels delta_avx512 = {advance, read_state};
}  // namespace shoal
