// The walk over panels, columns and tokens that all tiles share. Include after a vector file, vector/functions.h and
// block.h, inside an ISA file.
//
// A group is what is unpacked together and then met by every token: whole panels while they fit, else a run of blocks of
// one panel, whose unfinished sums wait in the scratch. With few tokens a group is one block, which then stays in the
// first-level cache. How the work is cut never shows in a result: each sum takes its blocks in ascending order.
//
// F describes one format on one instruction set:
//   kIsInteger                int8 activations with sums and scales, else f32
//   kUnpackedBytes            of a block, a multiple of 64; 0: the tiles read the packed block
//   take(left)                tokens of the next tile when `left` are to come
//   prepare(block, to, d)     unpacks, and converts the scales of the rows to f32
//   tile(tokens, Block)
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace shoal {
namespace {

constexpr std::size_t kFewTokens = 96;        // up to here a group is one block
constexpr std::size_t kGroupBlocks = 32;      // 256 KiB of unpacked integers, about half a second-level cache
constexpr std::size_t kRangeTokens = 512;     // whose unfinished sums fit the scratch
constexpr std::size_t kPrefetchBytes = 8192;  // ahead of the reader of weights; a shorter way leaves bandwidth unused

struct Scratch {
  alignas(64) float zeros[kMaxTile * kPanelRows];
  alignas(64) float d[kGroupBlocks][kPanelRows];
  alignas(64) float f[kRangeTokens * kPanelRows];
  alignas(64) std::uint8_t unpacked[kTileScratchBytes - 128 * (kMaxTile + kGroupBlocks + kRangeTokens)];
};
static_assert(sizeof(Scratch) == kTileScratchBytes, "scratch");

// What is the same for every tile of a call.
struct Task {
  const Matrix& w;
  const Activations& a;
  const Output& out;
  Scratch& scratch;
};

inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Sums of blocks [block, block + count) of `tokens` tokens from `token` on.
inline void gather_sums(const Activations& a, std::size_t token, std::size_t tokens, std::size_t block,
                        std::size_t count, Sums* sums) {
  const std::size_t stride = a.cols / kBlockCols;
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t b = 0; b < count; ++b) {
      sums[b].start[t] = a.sum256[(token + t) * stride + block + b];
      sums[b].scale[t] = a.scale[(token + t) * stride + block + b];
    }
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

// Panels [panel, panel + panels) x blocks [block, block + blocks) x tokens [token, end).
template <class F>
void multiply_group(const Task& task, std::size_t panel, std::size_t panels, std::size_t block, std::size_t blocks,
                    std::size_t token, std::size_t end) {
  const Activations& a = task.a;
  Scratch& scratch = task.scratch;
  const std::size_t packed_bytes = block_bytes(task.w.format), panel_bytes = task.w.panel_bytes();
  const std::uint8_t* packed = task.w.data + panel * panel_bytes + block * packed_bytes;
  for (std::size_t p = 0; p < panels; ++p) {
    for (std::size_t b = 0; b < blocks; ++b) {
      F::prepare(packed + p * panel_bytes + b * packed_bytes, scratch.unpacked + (p * blocks + b) * F::kUnpackedBytes,
                 scratch.d[p * blocks + b]);
    }
  }
  const bool is_whole = blocks == task.w.num_blocks(), is_last = block + blocks == task.w.num_blocks();
  Sums sums[kGroupBlocks];
  const std::size_t first_token = token;
  for (std::size_t tokens; token < end; token += tokens) {
    tokens = F::take(end - token);
    if constexpr (F::kIsInteger) gather_sums(a, token, tokens, block, blocks, sums);
    float* f = scratch.f + (is_whole ? 0 : token - first_token) * kPanelRows;
    for (std::size_t p = 0; p < panels; ++p) {
      for (std::size_t b = 0; b < blocks; ++b) {
        const std::size_t column = (block + b) * kBlockCols;
        Block tile = {};
        const std::uint8_t* in_place = packed + p * panel_bytes + b * packed_bytes;
        tile.w = F::kUnpackedBytes == 0 ? in_place : scratch.unpacked + (p * blocks + b) * F::kUnpackedBytes;
        if constexpr (F::kIsInteger) {
          tile.d = scratch.d[p * blocks + b];
          tile.q = a.q + token * a.cols + column;
          tile.sum16 = a.sum16 + (token * a.cols + column) / kGroupCols;
          tile.stride = a.cols;
          tile.sums = &sums[b];
        } else {
          tile.x = a.x + token * a.x_stride + column;
          tile.stride = a.x_stride;
        }
        tile.ahead = panels * blocks == 1 ? in_place + kPrefetchBytes : tile.w + F::kUnpackedBytes;
        tile.f_in = block + b == 0 ? scratch.zeros : f;
        tile.f_out = f;
        F::tile(tokens, tile);
      }
      if (is_last) finish(task, panel + p, token, tokens, f);
    }
  }
}

template <class F>
void multiply(const Matrix& w, const Activations& a, std::size_t first, std::size_t count, const Output& out,
              void* scratch_memory) {
  static_assert(kGroupBlocks * F::kUnpackedBytes <= sizeof(Scratch::unpacked), "scratch");
  Scratch& scratch = *static_cast<Scratch*>(scratch_memory);
  for (std::size_t i = 0; i < kMaxTile * kPanelRows; ++i) scratch.zeros[i] = 0.0f;
  const Task task = {w, a, out, scratch};
  const std::size_t blocks = w.num_blocks();
  const bool is_few = a.n <= kFewTokens;
  const std::size_t limit = is_few ? 1 : F::kIsInteger ? kGroupBlocks : kGroupBlocks / 4;
  const std::size_t run = smaller(blocks, limit), panels = run < blocks || run == 0 ? 1 : limit / run;
  const std::size_t range = run < blocks ? kRangeTokens : a.n;
  for (std::size_t token = 0; token < a.n; token += range) {
    const std::size_t end = smaller(a.n, token + range);
    for (std::size_t panel = first; panel < first + count; panel += panels) {
      const std::size_t in_group = smaller(panels, first + count - panel);
      for (std::size_t block = 0; block < blocks; block += run) {
        multiply_group<F>(task, panel, in_group, block, smaller(run, blocks - block), token, end);
      }
    }
  }
}

}  // namespace
}  // namespace shoal
