// The level nearest to a value, by table: 64 cells of half a level from -16 upwards. The middles between neighbouring
// levels are multiples of a half, so every value of a cell has the same nearest level.
#pragma once

#include "layout.h"

namespace shoal {
namespace {

struct Cells {
  unsigned char nibble[64];
  unsigned char twice[64];  // 2 * (level + 16)
};

constexpr Cells make_cells() {
  Cells cells = {};
  for (int cell = 0; cell < 64; ++cell) {
    const int middle = 2 * cell - 63;  // of the cell, in quarters of a level
    int best = 0;
    for (int q = 1; q < 16; ++q) {
      const int here = middle - 4 * kInt4Levels[q], there = middle - 4 * kInt4Levels[best];
      if (here * here < there * there) best = q;
    }
    cells.nibble[cell] = static_cast<unsigned char>(best);
    cells.twice[cell] = static_cast<unsigned char>(2 * (kInt4Levels[best] + 16));
  }
  return cells;
}

constexpr Cells kCells = make_cells();

}  // namespace
}  // namespace shoal
