// What one tile computes: a block of 256 columns of a panel of 32 rows against a few tokens. driver.h feeds the tiles
// of every instruction set through this.
//
//   f_out[t][r] = f_in[t][r] + (block of W)[r] . x[t]        t < tokens, r < 32, spelt out in kernels.h for each format
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace shoal {
namespace {

constexpr std::size_t kMaxTile = 12;  // tokens of the largest tile of any instruction set

// One block of the quantised activations' sums and scales, token by token.
struct Sums {
  std::int32_t start[kMaxTile];  // -128 * the sum of the 256: cancels the +128 of unsigned weights
  float scale[kMaxTile];
};

struct Block {
  const std::uint8_t* w;  // the block, as the tile wants it: packed, or unpacked by the format's `unpack`
  std::size_t stride;     // elements from a token to the next in q or x
  const float* f_in;      // [tokens][32], 64-byte aligned
  float* f_out;           // [tokens][32], 64-byte aligned; may be f_in

  const std::uint8_t* ahead;  // 8 KiB (kBf16: 16) from here on are asked for on the way: what the caller reads soon

  const float* x;  // kBf16: [tokens][stride], from the block's first column on, as q and sum16

  const std::int8_t* q;       // kInt4 and kInt8: [tokens][stride]
  const std::int16_t* sum16;  // [tokens][stride / 16]
  const Sums* sums;
  const float* d;  // [32], scale of each row, 64-byte aligned
};

}  // namespace
}  // namespace shoal
