#include "engine/model.h"

#include <algorithm>

#include "engine/arena.h"

namespace shoal {
namespace {

constexpr std::size_t kLaneCount = 16;
constexpr std::size_t kMaxHeadDim = 1024;  // a block of query rows must fit kMixerScratchBytes
constexpr std::size_t kLargest = std::size_t{1} << 31;  // of any size: products of two stay far from overflow

void require(bool holds, const std::string& constraint) {
  if (!holds) throw UnsupportedShape(constraint);
}

void require_size(const char* name, std::size_t value) {
  require(value > 0 && value < kLargest, std::string(name) + " must lie in 1..2^31 - 1");
}

}  // namespace

std::size_t ModelShape::count(LayerKind kind) const {
  return static_cast<std::size_t>(std::count(layers.begin(), layers.end(), kind));
}

void ModelShape::check() const {
  require(experts == 0, "sparse experts are not computed natively");
  require_size("vocab_size", vocab);
  require_size("hidden_size", hidden);
  require_size("intermediate_size", intermediate);
  require(!layers.empty(), "there must be a layer");
  require(eps > 0, "eps must be positive");
  if (count(LayerKind::kDelta) > 0) {
    require(taps == kTaps, "the convolution must have 4 taps, not " + std::to_string(taps));
    require_size("key_heads", key_heads);
    require_size("value_heads", value_heads);
    require_size("key_dim", key_dim);
    require_size("value_dim", value_dim);
    require(value_heads % key_heads == 0, "value_heads must be a multiple of key_heads");
    require(key_dim % kLaneCount == 0, "key_dim must be a multiple of 16, not " + std::to_string(key_dim));
    require(value_dim % kLaneCount == 0, "value_dim must be a multiple of 16, not " + std::to_string(value_dim));
    require(key_dim <= kMaxDeltaDim && value_dim <= kMaxDeltaDim, "key_dim and value_dim must not exceed 1024");
  }
  if (count(LayerKind::kAttention) > 0) {
    require_size("heads", heads);
    require_size("kv_heads", kv_heads);
    require_size("head_dim", head_dim);
    require(heads % kv_heads == 0, "heads must be a multiple of kv_heads");
    require(head_dim % kLaneCount == 0, "head_dim must be a multiple of 16, not " + std::to_string(head_dim));
    require(head_dim <= kMaxHeadDim, "head_dim must not exceed 1024");
    require(!inverse_frequencies.empty() && rotary_dim() <= head_dim, "rotary_dim must lie in 2..head_dim");
    require(rotary_axes.size() == inverse_frequencies.size(), "rotary_axes must have an entry for each frequency");
    for (int axis : rotary_axes) require(axis >= 0 && axis < 3, "rotary_axes must lie in 0..2");
  }
}

void EngineSizes::check(const ModelShape& shape) const {
  const auto refuse = [](const char* what) { throw std::invalid_argument(what); };
  if (num_pages >= kLargest || num_slots >= kLargest) refuse("num_pages and num_slots must lie below 2^31");
  if (max_tokens == 0 || max_tokens > (1u << 20)) refuse("max_tokens must lie in 1..2^20");
  if (max_rows == 0 || max_rows > max_tokens) refuse("max_rows must lie in 1..max_tokens");
  if (max_full_rows > max_tokens) refuse("max_full_rows must not exceed max_tokens");
  if (threads == 0 || threads > 1024) refuse("threads must lie in 1..1024");
  if (!cpus.empty() && cpus.size() != threads) refuse("cpus must be empty or name one for each thread");
  if (drawable_vocab == 0 || drawable_vocab > shape.vocab) refuse("drawable_vocab_size must lie in 1..vocab_size");
}

namespace {

constexpr struct {
  Layout layout;
  const char* name;
} kLayoutNames[] = {{Layout::kInt4, "int4"},   {Layout::kInt8, "int8"},     {Layout::kBf16, "bf16"},
                    {Layout::kRows8, "rows8"}, {Layout::kRows16, "rows16"}, {Layout::kF32, "f32"}};

}  // namespace

Layout layout_named(const std::string& name) {
  for (const auto& entry : kLayoutNames) {
    if (name == entry.name) return entry.layout;
  }
  throw std::invalid_argument("no layout is named '" + name + "'");
}

const char* name_of(Layout layout) { return kLayoutNames[static_cast<std::size_t>(layout)].name; }

bool is_panels(Layout layout) { return layout <= Layout::kBf16; }
bool is_table(Layout layout) { return layout == Layout::kRows8 || layout == Layout::kRows16; }

std::size_t used_bytes(Layout layout, std::size_t rows, std::size_t cols) {
  if (is_panels(layout)) {
    const Matrix matrix = {nullptr, static_cast<Format>(layout), rows, cols};
    return matrix.num_panels() * matrix.panel_bytes();
  }
  if (is_table(layout)) {
    const TableFormat format = layout == Layout::kRows8 ? TableFormat::kRows8 : TableFormat::kRows16;
    return rows * Table{nullptr, format, rows, cols}.row_bytes();
  }
  return rows * cols * sizeof(float);
}

std::size_t tensor_bytes(Layout layout, std::size_t rows, std::size_t cols) {
  return round_up(used_bytes(layout, rows, cols), 64);
}

std::vector<TensorSpec> expected_tensors(const ModelShape& s, Format format) {
  const Layout panels = static_cast<Layout>(format);
  const Layout scan = format == Format::kBf16 ? Layout::kInt8 : Layout::kInt4;
  const Layout table = format == Format::kBf16 ? Layout::kRows16 : Layout::kRows8;
  std::vector<TensorSpec> tensors = {{"embed.table", table, s.vocab, s.hidden},
                                     {"head.scan", scan, s.vocab, s.hidden},
                                     {"head.sigma", Layout::kF32, s.vocab, 1}};
  if (!s.tied_head) tensors.push_back({"head.table", table, s.vocab, s.hidden});
  tensors.push_back({"norm", Layout::kF32, s.hidden, 1});
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    const auto add = [&](const char* name, Layout layout, std::size_t rows, std::size_t cols) {
      tensors.push_back({layer + name, layout, rows, cols});
    };
    add("input_norm", Layout::kF32, s.hidden, 1);
    if (s.layers[i] == LayerKind::kDelta) {
      add("in_proj", panels, s.in_proj_dim(), s.hidden);
      add("gates", Layout::kBf16, 2 * s.value_heads, s.hidden);
      add("conv", Layout::kF32, s.delta().conv_dim(), kTaps);
      add("decay", Layout::kF32, s.value_heads, 1);
      add("dt_bias", Layout::kF32, s.value_heads, 1);
      add("mixer_norm", Layout::kF32, s.value_dim, 1);
      add("out_proj", panels, s.hidden, s.delta_value_dim());
    } else {
      add("qkv", panels, s.qkv_dim(), s.hidden);
      add("q_norm", Layout::kF32, s.head_dim, 1);
      add("k_norm", Layout::kF32, s.head_dim, 1);
      add("out_proj", panels, s.hidden, s.query_dim());
    }
    add("post_norm", Layout::kF32, s.hidden, 1);
    add("gate_up", panels, 2 * s.inner_dim(), s.hidden);
    add("down", panels, s.hidden, s.intermediate);
  }
  return tensors;
}

std::size_t weight_bytes(const std::vector<TensorSpec>& tensors) {
  std::size_t bytes = 0;
  for (const TensorSpec& t : tensors) bytes += tensor_bytes(t.layout, t.rows, t.cols);
  return bytes;
}

PoolBytes pool_bytes(const ModelShape& s, const EngineSizes& sizes, std::size_t weights) {
  const std::size_t num_attention = s.count(LayerKind::kAttention), num_delta = s.count(LayerKind::kDelta);
  std::size_t kv = 0, state = 0;
  if (num_attention > 0) kv = num_attention * sizes.num_pages * s.kv_heads * page_bytes(sizes.kv_format, s.head_dim);
  if (num_delta > 0) state = num_delta * sizes.num_slots * s.delta().floats() * sizeof(float);
  return {weights, kv, state, arena_bytes(s, sizes)};
}

}  // namespace shoal
