#include "vector/avx2.h"
#include "vector/functions.h"
#include "vector/maps.inl"

namespace shoal {
const VectorKernels vector_avx2 = kVectorMaps;
}  // namespace shoal
