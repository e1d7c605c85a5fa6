// Work on single rows with AVX2, FMA and F16C.
#include "vector/avx2.h"

#include "rows/rows.h"

namespace shoal {

extern const RowKernels rows_avx2 = {rms_norm, read, score};

}  // namespace shoal
