#include "vector/scalar.h"
#include "vector/functions.h"
#include "vector/maps.inl"

namespace shoal {
const VectorKernels vector_scalar = kVectorMaps;
}  // namespace shoal
