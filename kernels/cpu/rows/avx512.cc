// Work on single rows with AVX-512.
#include "vector/avx512.h"

#include "rows/rows.h"

namespace shoal {

extern const RowKernels rows_avx512 = {rms_norm, read, score};

}  // namespace shoal
