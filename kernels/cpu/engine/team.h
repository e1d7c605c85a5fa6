// What the threads of a step share, and what one of them sees of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/arena.h"
#include "engine/batch.h"
#include "engine/claims.h"
#include "engine/thread_pool.h"
#include "engine/weights.h"

namespace shoal {

// A checked step.
struct Job {
  StepInput input;
  std::vector<Sequence> sequences;
  std::vector<Top> tops;
  std::vector<std::size_t> wanted;    // tokens with results, ascending
  std::vector<std::size_t> full_row;  // for each of full_at: its place in `wanted`
  std::vector<std::size_t> top_row;   // for each of tops
  // Of the head, for each of tops:
  std::vector<float> input_norm, rounding_norm;  // |x|, |x - what its int8 stand for|
  std::vector<std::uint8_t> needs_all;           // too many candidates: every row of the head is scored
};

// An engine as its threads see it.
struct Parts {
  const ModelShape& shape;
  const EngineSizes& sizes;
  const Weights& weights;
  const Kernels& kernels;
  const Buffers& buffers;
  const std::vector<std::size_t>& ordinals;  // of each layer among those of its kind
  std::uint8_t* kv;                          // [attention layers][num_pages][kv_heads] pages
  float* states;                             // [DeltaNet layers][num_slots] states
  ThreadPool& pool;
  Claims& claims;
};

constexpr std::size_t kPieceBytes = 64 * 1024;  // of weights, that a thread takes at once

// One thread of a step.
struct Member {
  const Parts& parts;
  std::size_t thread;

  std::size_t num_threads() const { return parts.pool.num_threads(); }
  const ThreadBuffers& own() const { return parts.buffers.threads[thread]; }
  Range share_of(std::size_t count) const { return share(count, thread, num_threads()); }
  void barrier() const { parts.pool.barrier(); }

  // Panels [panels.begin, panels.end) of w times the rows of a.
  void multiply(const Matrix& w, const Activations& a, Range panels, const Output& out) const {
    const std::size_t format = static_cast<std::size_t>(w.format);
    if (panels.count() == 0 || a.n == 0) return;
    if (a.n <= kDirectRows) {
      parts.kernels.direct->multiply[format](w, a, panels.begin, panels.count(), out);
    } else {
      parts.kernels.tiled->multiply[format](w, a, panels.begin, panels.count(), out, own().scratch);
    }
  }

  // This thread's share of all panels: of few rows what it gets to, of many a fixed part.
  void multiply(const Matrix& w, const Activations& a, const Output& out) const {
    if (a.n > kDirectRows) return multiply(w, a, share_of(w.num_panels()), out);
    const std::size_t piece = std::max<std::size_t>(1, kPieceBytes / std::max<std::size_t>(1, w.panel_bytes()));
    parts.claims.take(thread, w.num_panels(), piece, [&](Range panels) { multiply(w, a, panels, out); });
  }

  // Rows [rows.begin, rows.end) of x [.][stride] into the same rows of `to`.
  void quantise(const float* x, std::size_t stride, std::size_t cols, Range rows, const QuantisedRows& to) const {
    const std::size_t padded = round_up(cols, kBlockCols), blocks = padded / kBlockCols, i = rows.begin;
    parts.kernels.direct->quantise(x + i * stride, stride, rows.count(), cols, to.q + i * padded, to.scale + i * blocks,
                                   to.sum16 + i * (padded / kGroupCols), to.sum256 + i * blocks);
  }
};

inline Activations activations(const float* x, std::size_t stride, std::size_t n, std::size_t cols,
                               const QuantisedRows& quantised) {
  return {n,           round_up(cols, kBlockCols), x, stride, quantised.q, quantised.scale, quantised.sum16,
          quantised.sum256};
}

// The layers: from token ids to the residual stream of the wanted tokens, rows 0.. of Buffers::x. Run by every thread;
// ends behind a barrier.
void run_trunk(const Job& job, const Member& member);

// From there to results. Run by every thread.
void run_head(Job& job, const Member& member);

// Fills Buffers::panel_sigma and panel_peak, once.
void measure_scan(const Weights& weights, const Buffers& buffers);

}  // namespace shoal
