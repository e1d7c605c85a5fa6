// The buffers of a step, carved once out of one allocation. All begin at multiples of 64 bytes, all are zero at first, and
// what lies beyond a row's data up to its stride stays zero but where said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/model.h"

namespace shoal {

// Quantised rows (layout.h, Activations) with room for `cols` padded columns each.
struct QuantisedRows {
  std::int8_t* q = nullptr;
  float* scale = nullptr;
  std::int16_t* sum16 = nullptr;
  std::int32_t* sum256 = nullptr;
};

// What one thread uses alone.
struct ThreadBuffers {
  float* normed;            // [min(max_tokens, kDirectRows)][hidden padded]
  QuantisedRows quantised;  // as many rows, of any matrix
  void* scratch;            // of tiles and mixers
};

// One of the tokens that a row's best are chosen from.
struct Candidate {
  float adjusted, logit;
  std::int32_t id;
};

constexpr std::size_t kMaxCandidates = 4096;  // of a row; more are found by a full pass
constexpr std::size_t kMaxTopK = 256;

struct Buffers {
  // Strides in floats; those of matrix inputs are multiples of 256.
  std::size_t hidden_stride, projected_stride, gates_stride, mixed_stride, inner_stride, scan_stride;
  std::size_t num_scan_panels;

  float* x;          // [max_tokens][hidden_stride], the residual stream
  float* normed;     // [max_tokens][hidden_stride]
  float* projected;  // [max_tokens][projected_stride], of in_proj or qkv
  float* gates;      // [max_tokens][gates_stride], b then a
  float* mixed;      // [max_tokens][mixed_stride]; beyond a mixer's data: cleared where it matters
  float* inner;      // [max_tokens][inner_stride], silu(gate) * up
  float* cos;        // [max_tokens][rotary_dim / 2]
  float* sin;
  QuantisedRows quantised;  // max_tokens rows, of any matrix

  float* full_x;         // [max_full_rows][hidden_stride], normed; then the same for the best
  float* top_x;          // [max_rows][hidden_stride]
  float* scan;           // [max_rows][scan_stride], logits of the scan, adjusted
  float* panel_best;     // [max_rows][num_scan_panels]
  float* panel_sigma;    // [num_scan_panels], largest error of a weight; of the scan's rounding of inputs below
  float* panel_peak;     // [num_scan_panels], largest magnitude of a weight
  Candidate* candidates;  // [max_rows][kMaxCandidates]
  std::int32_t* ids;      // [max_rows][kMaxCandidates]
  float* scores;          // [max_rows][kMaxCandidates]
  std::vector<ThreadBuffers> threads;

  std::size_t num_bytes;
};

// Where each buffer begins if the arena begins at `base`, a multiple of 64; with a null pointer only sizes mean anything.
Buffers carve(const ModelShape& shape, const EngineSizes& sizes, std::uint8_t* base);

std::size_t arena_bytes(const ModelShape& shape, const EngineSizes& sizes);

}  // namespace shoal
