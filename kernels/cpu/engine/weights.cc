#include "engine/weights.h"

#include <stdexcept>
#include <unordered_map>

namespace shoal {

namespace {

class Finder {
 public:
  Finder(const std::vector<TensorEntry>& entries, const std::uint8_t* data, std::size_t num_bytes)
      : data_(data), num_bytes_(num_bytes) {
    for (const TensorEntry& entry : entries) by_name_[entry.spec.name] = &entry;
  }

  const float* vector(const std::string& name, std::size_t rows, std::size_t cols = 1) const {
    const TensorEntry& entry = find(name, rows, cols);
    if (entry.spec.layout != Layout::kF32) refuse(name, "must be f32");
    return reinterpret_cast<const float*>(data_ + entry.offset);
  }

  Matrix matrix(const std::string& name, std::size_t rows, std::size_t cols) const {
    const TensorEntry& entry = find(name, rows, cols);
    if (!is_panels(entry.spec.layout)) refuse(name, "must be int4, int8 or bf16");
    return {data_ + entry.offset, static_cast<Format>(entry.spec.layout), rows, cols};
  }

  Table table(const std::string& name, std::size_t rows, std::size_t cols) const {
    const TensorEntry& entry = find(name, rows, cols);
    if (!is_table(entry.spec.layout)) refuse(name, "must be rows8 or rows16");
    const TableFormat format = entry.spec.layout == Layout::kRows8 ? TableFormat::kRows8 : TableFormat::kRows16;
    return {data_ + entry.offset, format, rows, cols};
  }

 private:
  [[noreturn]] static void refuse(const std::string& name, const std::string& what) {
    throw std::invalid_argument("tensor " + name + " " + what);
  }

  const TensorEntry& find(const std::string& name, std::size_t rows, std::size_t cols) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) refuse(name, "is missing");
    const TensorEntry& entry = *found->second;
    const TensorSpec& spec = entry.spec;
    if (spec.rows * spec.cols != rows * cols || (spec.layout != Layout::kF32 && spec.rows != rows)) {
      refuse(name, "has shape " + std::to_string(spec.rows) + " x " + std::to_string(spec.cols) + ", the model needs " +
                       std::to_string(rows) + " x " + std::to_string(cols));
    }
    if (entry.offset % 64 != 0) refuse(name, "does not begin at a multiple of 64 bytes");
    if (entry.offset > num_bytes_ || entry.num_bytes > num_bytes_ - entry.offset) refuse(name, "lies outside the file");
    if (entry.num_bytes < used_bytes(spec.layout, rows, cols)) refuse(name, "is too short for its layout");
    return entry;
  }

  std::unordered_map<std::string, const TensorEntry*> by_name_;
  const std::uint8_t* data_;
  std::size_t num_bytes_;
};

LayerWeights find_layer(const ModelShape& s, const Finder& find, std::size_t index) {
  const std::string layer = "layers." + std::to_string(index) + ".";
  LayerWeights w = {};
  w.kind = s.layers[index];
  w.input_norm = find.vector(layer + "input_norm", s.hidden);
  w.post_norm = find.vector(layer + "post_norm", s.hidden);
  w.gate_up = find.matrix(layer + "gate_up", 2 * s.inner_dim(), s.hidden);
  w.down = find.matrix(layer + "down", s.hidden, s.intermediate);
  if (w.kind == LayerKind::kDelta) {
    w.projection = find.matrix(layer + "in_proj", s.in_proj_dim(), s.hidden);
    w.gates = find.matrix(layer + "gates", 2 * s.value_heads, s.hidden);
    w.delta.conv = find.vector(layer + "conv", s.delta().conv_dim(), kTaps);
    w.delta.decay = find.vector(layer + "decay", s.value_heads);
    w.delta.dt_bias = find.vector(layer + "dt_bias", s.value_heads);
    w.delta.norm = find.vector(layer + "mixer_norm", s.value_dim);
    w.delta.eps = s.eps;
    w.out_proj = find.matrix(layer + "out_proj", s.hidden, s.delta_value_dim());
  } else {
    w.projection = find.matrix(layer + "qkv", s.qkv_dim(), s.hidden);
    w.q_norm = find.vector(layer + "q_norm", s.head_dim);
    w.k_norm = find.vector(layer + "k_norm", s.head_dim);
    w.out_proj = find.matrix(layer + "out_proj", s.hidden, s.query_dim());
  }
  return w;
}

}  // namespace

Weights find_weights(const ModelShape& shape, const std::vector<TensorEntry>& entries, const std::uint8_t* data,
                     std::size_t num_bytes) {
  const Finder find(entries, data, num_bytes);
  Weights w;
  w.embedding = find.table("embed.table", shape.vocab, shape.hidden);
  w.head_table = shape.tied_head ? w.embedding : find.table("head.table", shape.vocab, shape.hidden);
  w.head_scan = find.matrix("head.scan", shape.vocab, shape.hidden);
  w.head_sigma = find.vector("head.sigma", shape.vocab);
  w.norm = find.vector("norm", shape.hidden);
  for (std::size_t i = 0; i < shape.layers.size(); ++i) w.layers.push_back(find_layer(shape, find, i));
  w.num_bytes = 0;
  for (const TensorEntry& entry : entries) w.num_bytes += entry.num_bytes;
  return w;
}

}  // namespace shoal
