// Gated DeltaNet, portable.
#include "vector/scalar.h"
#include "vector/functions.h"

namespace shoal {
namespace {
constexpr int kTileRows = 4, kTileCols = 1, kTokenCols = 1;
}
}  // namespace shoal

#include "delta/delta.inl"

namespace shoal {
const DeltaKernels delta_scalar = {advance, read_state};
}  // namespace shoal
