// The walk over panels, columns and tokens that all tiles share. Include after a vector file, vector/functions.h and
// block.h, inside an ISA file.
//
// A block is unpacked into the first-level cache, then meets every token, and the unfinished sums of all tokens wait in
// the scratch for the panel's next block. How the work is cut never shows in a result: a sum takes its blocks in order.
//
// F describes one format on one instruction set:
//   kIsInteger                int8 activations with sums and scales, else f32
//   kUnpackedBytes            of a block, a multiple of 64; 0: the tiles read the packed block
//   take(left)                tokens of the next tile when `left` are to come
//   prepare(block, to, d)     unpacks, and converts the scales of the rows to f32
//   tile(tokens, Block)
//   unpacks(tokens)           whether tile_and_prepare(tokens, Block, block, to, d), both at once, beats one by one
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace shoal {
namespace {

constexpr std::size_t kRangeTokens = 256;     // whose sums, and activations of a block, share the second-level cache
constexpr std::size_t kTableSums = 1536;      // tiles x blocks whose sums are laid out once for all panels
constexpr std::size_t kPrefetchBytes = 8192;  // ahead of the reader of weights; a shorter way leaves bandwidth unused

// Weights and scales come in pairs: while one is multiplied, the other is unpacked.
template <class F>
struct Scratch {
  alignas(64) float zeros[kMaxTile * kPanelRows];
  alignas(64) float d[2][kPanelRows];
  alignas(64) float f[kRangeTokens * kPanelRows];
  alignas(64) std::uint8_t unpacked[2][F::kUnpackedBytes + 64];
  alignas(64) Sums sums[kTableSums];  // [block][tile]
};

// What is the same for every tile of a call.
struct Task {
  const Matrix& w;
  const Activations& a;
  const Output& out;
};

// For formats whose tiles only multiply.
struct OneByOne {
  static constexpr bool unpacks(std::size_t) { return false; }
  static void tile_and_prepare(std::size_t, const Block&, const std::uint8_t*, std::uint8_t*, float*) {}
};

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Sums and scales of `tokens` tokens from `token` on, in one block.
inline void gather_sums(const Activations& a, std::size_t token, std::size_t tokens, std::size_t block, Sums& sums) {
  const std::size_t stride = a.cols / kBlockCols, first = token * stride + block;
  for (std::size_t t = 0; t < tokens; ++t) {
    sums.start[t] = a.sum256[first + t * stride];
    sums.scale[t] = a.scale[first + t * stride];
  }
}

// Where the results of a tile go is asked for while the tile computes: a row's next panel lies on other lines.
inline void ask_for_output(const Task& task, std::size_t panel, std::size_t token, std::size_t tokens) {
  const bool is_swiglu = task.out.store == Store::kSwiglu;
  const float* y = task.out.y + token * task.out.stride + panel * (is_swiglu ? 16 : kPanelRows);
  for (std::size_t t = 0; t < tokens; ++t, y += task.out.stride) {
    prefetch(reinterpret_cast<const std::uint8_t*>(y));
    if (!is_swiglu) prefetch(reinterpret_cast<const std::uint8_t*>(y + 16));
  }
}

// Finished sums f [tokens][32] of one panel -> out.
inline void finish(const Task& task, std::size_t panel, std::size_t token, std::size_t tokens, const float* f) {
  const Output& out = task.out;
  const std::size_t rows = smaller(kPanelRows, task.w.rows - panel * kPanelRows);
  if (out.store == Store::kSwiglu) {
    const std::size_t results = smaller(16, task.w.rows / 2 - panel * 16);
    for (std::size_t t = 0; t < tokens; ++t, f += kPanelRows) {
      float* y = out.y + (token + t) * out.stride + panel * 16;
      const V p = mul(silu(load(f)), load(f + 16));
      if (results == 16) {
        store(y, p);
      } else {
        float lanes[16];
        store(lanes, p);
        for (std::size_t r = 0; r < results; ++r) y[r] = lanes[r];
      }
    }
    return;
  }
  const bool adds = out.store == Store::kAdd;
  for (std::size_t t = 0; t < tokens; ++t, f += kPanelRows) {
    float* y = out.y + (token + t) * out.stride + panel * kPanelRows;
    if (rows < kPanelRows) {
      for (std::size_t r = 0; r < rows; ++r) y[r] = adds ? y[r] + f[r] : f[r];
    } else if (adds) {
      store(y, add(load(y), load(f)));
      store(y + 16, add(load(y + 16), load(f + 16)));
    } else {
      store(y, load(f));
      store(y + 16, load(f + 16));
    }
  }
}

// Lays out the sums of all tiles of tokens [begin, end), [block][tile]. 0, and nothing written: they are more than fit.
template <class F>
std::size_t lay_out_sums(const Activations& a, Scratch<F>& scratch, std::size_t begin, std::size_t end) {
  const std::size_t blocks = a.cols / kBlockCols;
  std::size_t tiles = 0;
  for (std::size_t token = begin; token < end; token += F::take(end - token)) ++tiles;
  if (tiles * blocks > kTableSums) return 0;
  for (std::size_t block = 0; block < blocks; ++block) {
    Sums* to = scratch.sums + block * tiles;
    for (std::size_t token = begin, tokens; token < end; token += tokens) {
      tokens = F::take(end - token);
      gather_sums(a, token, tokens, block, *to++);
    }
  }
  return tiles;
}

// Panels [first, first + count) x tokens [begin, end): a tile's walk is tokens, then blocks, then panels.
template <class F>
void multiply_range(const Task& task, Scratch<F>& scratch, std::size_t first, std::size_t count, std::size_t begin,
                    std::size_t end) {
  const Activations& a = task.a;
  const std::size_t packed_bytes = block_bytes(task.w.format), blocks = task.w.num_blocks(), total = count * blocks;
  if (total == 0) return;
  const std::uint8_t* packed = task.w.data + first * task.w.panel_bytes();
  std::size_t tiles = 0;
  if constexpr (F::kIsInteger) tiles = lay_out_sums<F>(a, scratch, begin, end);
  F::prepare(packed, scratch.unpacked[0], scratch.d[0]);
  for (std::size_t i = 0; i < total; ++i, packed += packed_bytes) {
    const std::size_t panel = first + i / blocks, block = i % blocks, column = block * kBlockCols;
    const std::size_t now = i % 2, next = 1 - now;
    const bool is_last = block + 1 == blocks;
    bool is_prepared = i + 1 == total;
    const Sums* laid_out = scratch.sums + block * tiles;
    for (std::size_t token = begin, tokens; token < end; token += tokens) {
      tokens = F::take(end - token);
      float* f = scratch.f + (token - begin) * kPanelRows;
      Sums sums;
      Block tile = {};
      tile.w = F::kUnpackedBytes == 0 ? packed : scratch.unpacked[now];
      tile.ahead = packed + kPrefetchBytes;
      tile.f_in = block == 0 ? scratch.zeros : f;
      tile.f_out = f;
      if constexpr (F::kIsInteger) {
        if (tiles == 0) gather_sums(a, token, tokens, block, sums);
        tile.sums = tiles == 0 ? &sums : laid_out++;
        tile.d = scratch.d[now];
        tile.q = a.q + token * a.cols + column;
        tile.sum16 = a.sum16 + (token * a.cols + column) / kGroupCols;
        tile.stride = a.cols;
      } else {
        tile.x = a.x + token * a.x_stride + column;
        tile.stride = a.x_stride;
      }
      if (is_last) ask_for_output(task, panel, token, tokens);
      if (!is_prepared && F::unpacks(tokens)) {
        F::tile_and_prepare(tokens, tile, packed + packed_bytes, scratch.unpacked[next], scratch.d[next]);
        is_prepared = true;
      } else {
        F::tile(tokens, tile);
      }
      if (is_last) finish(task, panel, token, tokens, f);
    }
    if (!is_prepared) F::prepare(packed + packed_bytes, scratch.unpacked[next], scratch.d[next]);
  }
}

template <class F>
void multiply(const Matrix& w, const Activations& a, std::size_t first, std::size_t count, const Output& out,
              void* scratch_memory) {
  static_assert(sizeof(Scratch<F>) <= kTileScratchBytes, "scratch");
  Scratch<F>& scratch = *static_cast<Scratch<F>*>(scratch_memory);
  for (std::size_t i = 0; i < kMaxTile * kPanelRows; ++i) scratch.zeros[i] = 0.0f;
  const Task task = {w, a, out};
  for (std::size_t token = 0; token < a.n; token += kRangeTokens) {
    multiply_range<F>(task, scratch, first, count, token, smaller(a.n, token + kRangeTokens));
  }
}

}  // namespace
}  // namespace shoal
