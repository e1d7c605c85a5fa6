#include "vector/avx512.h"
#include "vector/functions.h"
#include "vector/maps.inl"

namespace shoal {
const VectorKernels vector_avx512 = kVectorMaps;
}  // namespace shoal
