// Portable table of the search.
#include "vector/scalar.h"

#include "convert/cells.h"

namespace shoal {
namespace {

// x < y ? a : b
inline V select_lt(V x, V y, V a, V b) {
  for (int i = 0; i < 16; ++i) a.lane[i] = x.lane[i] < y.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

// y in 0..63.5 -> 2 * (level + 16) of the cell that it lies in
inline V nearest_cell(V y) {
  for (int i = 0; i < 16; ++i) y.lane[i] = static_cast<float>(kCells.twice[static_cast<int>(y.lane[i])]);
  return y;
}

}  // namespace
}  // namespace shoal

#include "convert/search.h"

namespace shoal {
const QuantiseKernels quantise_scalar = {&quantise_int4};
}
