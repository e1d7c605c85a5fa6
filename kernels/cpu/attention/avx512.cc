#include "vector/avx512.h"
#include "vector/functions.h"

namespace shoal {
namespace {
constexpr int kTileVectors = 4;  // 6 x 4 vectors are 24 of the 32 registers; 5 are left for keys and a query.
}
}  // namespace shoal

#include "attention/attention.inl"

namespace shoal {
const AttentionKernels attention_avx512 = {store_rows, attend_rows};
}  // namespace shoal
