#include "vector/avx2.h"
#include "vector/functions.h"

namespace shoal {
namespace {
constexpr int kTileVectors = 1;  // 6 x 1 vectors are 12 of the 16 registers; 3 are left for a key and a query.
}
}  // namespace shoal

#include "attention/attention.inl"

namespace shoal {
const AttentionKernels attention_avx2 = {store_rows, attend_rows};
}  // namespace shoal
