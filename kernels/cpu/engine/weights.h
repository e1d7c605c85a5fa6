// Weights where they lie: a mapped file or a caller's buffer, and the tensors of each layer found in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/mapped_file.h"
#include "engine/model.h"

namespace shoal {

struct TensorEntry {
  TensorSpec spec;
  std::size_t offset, num_bytes;  // in the file
};

struct LayerWeights {
  LayerKind kind;
  const float* input_norm;
  const float* post_norm;
  Matrix projection;  // in_proj or qkv
  Matrix gates;       // DeltaNet: b rows, a rows
  DeltaWeights delta;
  const float* q_norm;
  const float* k_norm;
  Matrix out_proj, gate_up, down;
};

struct Weights {
  Table embedding, head_table;
  Matrix head_scan;
  const float* head_sigma;
  const float* norm;
  std::vector<LayerWeights> layers;
  std::size_t num_bytes;  // of the tensors
};

// Finds every tensor that the model needs. Throws std::invalid_argument, which names the tensor, for one that is missing,
// has another shape or layout than the model, or lies outside the data.
Weights find_weights(const ModelShape& shape, const std::vector<TensorEntry>& entries, const std::uint8_t* data,
                     std::size_t num_bytes);

}  // namespace shoal
