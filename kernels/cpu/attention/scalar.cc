#include "vector/scalar.h"
#include "vector/functions.h"

namespace shoal {
namespace {
constexpr int kTileVectors = 1;  // One vector at a time: the compiler keeps what it can.
}
}  // namespace shoal

#include "attention/attention.inl"

namespace shoal {
const AttentionKernels attention_scalar = {store_rows, attend_rows};
}  // namespace shoal
