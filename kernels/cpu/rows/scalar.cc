// Work on single rows in portable C++.
#include "vector/scalar.h"

#include "rows/rows.h"

namespace shoal {

extern const RowKernels rows_scalar = {rms_norm, read, score};

}  // namespace shoal
