// What a model consists of: its sizes, the constraints that these kernels put on them, the tensors it needs and the bytes
// that an engine takes for it. Nothing here touches weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "layout.h"

namespace shoal {

// A model that these kernels cannot compute; what() names the constraint.
struct UnsupportedShape : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

enum class LayerKind : std::uint8_t { kDelta, kAttention };

constexpr std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

// Sizes count elements. Heads and their sizes matter only where a layer of their kind is present.
struct ModelShape {
  std::size_t vocab = 0, hidden = 0, intermediate = 0;
  std::vector<LayerKind> layers;
  std::size_t heads = 0, kv_heads = 0, head_dim = 0;
  std::size_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  float eps = 0;
  std::vector<double> inverse_frequencies;  // radians a position, [rotary_dim / 2]
  std::vector<int> rotary_axes;             // which of a token's three positions turns each
  double rotary_amplitude = 1;
  bool tied_head = true;  // exact scores read the embedding's table
  std::size_t taps = kTaps, experts = 0;

  DeltaShape delta() const { return {key_heads, value_heads, key_dim, value_dim}; }
  std::size_t rotary_dim() const { return 2 * inverse_frequencies.size(); }
  std::size_t query_dim() const { return heads * head_dim; }
  std::size_t qkv_dim() const { return 2 * query_dim() + 2 * kv_heads * head_dim; }
  std::size_t delta_value_dim() const { return value_heads * value_dim; }
  std::size_t in_proj_dim() const { return delta().conv_dim() + delta_value_dim(); }
  std::size_t inner_dim() const { return round_up(intermediate, 16); }  // rows of gate, and of up
  std::size_t count(LayerKind kind) const;

  // Throws UnsupportedShape.
  void check() const;
};

struct EngineSizes {
  std::size_t num_pages = 0, num_slots = 0;
  std::size_t max_tokens = 0;     // of a step
  std::size_t max_rows = 0;       // sequences of a step, and rows whose best tokens are wanted
  std::size_t max_full_rows = 0;  // rows whose whole logits are wanted
  KvFormat kv_format = KvFormat::kBf16;
  std::size_t threads = 1;
  std::vector<int> cpus;           // one a thread, or none: not pinned
  std::size_t drawable_vocab = 0;  // ids below may be among the best

  // Throws std::invalid_argument.
  void check(const ModelShape& shape) const;
};

enum class Layout : std::uint8_t { kInt4, kInt8, kBf16, kRows8, kRows16, kF32 };

// Throws std::invalid_argument for a name that is none of int4, int8, bf16, rows8, rows16, f32.
Layout layout_named(const std::string& name);
const char* name_of(Layout layout);
bool is_panels(Layout layout);
bool is_table(Layout layout);

// Bytes of a tensor as its layout says, and in a file: up to a multiple of 64.
std::size_t used_bytes(Layout layout, std::size_t rows, std::size_t cols);
std::size_t tensor_bytes(Layout layout, std::size_t rows, std::size_t cols);

struct TensorSpec {
  std::string name;
  Layout layout;
  std::size_t rows, cols;  // a vector has 1 column
};

// All tensors of a model whose matrices are of one format: head.scan is one step coarser (int4 for int4 and int8, int8
// for bf16), tables are rows8 (rows16 for bf16), gates always bf16. A file may hold any matrix in any panel layout.
std::vector<TensorSpec> expected_tensors(const ModelShape& shape, Format format);

struct PoolBytes {
  std::size_t weights, kv, state, activations;
};

// Of an engine with these sizes. The arena counts as activations (arena.h).
PoolBytes pool_bytes(const ModelShape& shape, const EngineSizes& sizes, std::size_t weight_bytes);
std::size_t weight_bytes(const std::vector<TensorSpec>& tensors);

}  // namespace shoal
