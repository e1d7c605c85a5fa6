#include "engine/arena.h"

#include <algorithm>

namespace shoal {
namespace {

// Hands out consecutive parts of a block that may not exist yet.
class Carver {
 public:
  explicit Carver(std::uint8_t* base) : base_(base) {}

  template <typename Item>
  Item* take(std::size_t count) {
    Item* p = base_ == nullptr ? nullptr : reinterpret_cast<Item*>(base_ + used_);
    used_ += round_up(count * sizeof(Item), 64);
    return p;
  }

  QuantisedRows take_quantised(std::size_t rows, std::size_t cols) {
    QuantisedRows r;
    r.q = take<std::int8_t>(rows * cols);
    r.scale = take<float>(rows * (cols / kBlockCols));
    r.sum16 = take<std::int16_t>(rows * (cols / kGroupCols));
    r.sum256 = take<std::int32_t>(rows * (cols / kBlockCols));
    return r;
  }

  std::size_t used() const { return used_; }

 private:
  std::uint8_t* base_;
  std::size_t used_ = 0;
};

}  // namespace

Buffers carve(const ModelShape& shape, const EngineSizes& sizes, std::uint8_t* base) {
  const bool has_delta = shape.count(LayerKind::kDelta) > 0, has_attention = shape.count(LayerKind::kAttention) > 0;
  const std::size_t mixed = std::max(has_delta ? shape.delta_value_dim() : 0, has_attention ? shape.query_dim() : 0);
  const std::size_t projected = std::max(has_delta ? shape.in_proj_dim() : 0, has_attention ? shape.qkv_dim() : 0);
  Buffers b;
  b.hidden_stride = round_up(shape.hidden, kBlockCols);
  b.projected_stride = round_up(projected, 16);
  b.gates_stride = has_delta ? round_up(2 * shape.value_heads, 16) : 0;
  b.mixed_stride = round_up(mixed, kBlockCols);
  b.inner_stride = round_up(shape.intermediate, kBlockCols);
  b.num_scan_panels = (shape.vocab + kPanelRows - 1) / kPanelRows;
  b.scan_stride = b.num_scan_panels * kPanelRows;
  const std::size_t widest = std::max({b.hidden_stride, b.mixed_stride, b.inner_stride});
  const std::size_t tokens = sizes.max_tokens, few = std::min(tokens, kDirectRows);
  const std::size_t angles = has_attention ? tokens * shape.inverse_frequencies.size() : 0;

  Carver carver(base);
  b.x = carver.take<float>(tokens * b.hidden_stride);
  b.normed = carver.take<float>(tokens * b.hidden_stride);
  b.projected = carver.take<float>(tokens * b.projected_stride);
  b.gates = carver.take<float>(tokens * b.gates_stride);
  b.mixed = carver.take<float>(tokens * b.mixed_stride);
  b.inner = carver.take<float>(tokens * b.inner_stride);
  b.cos = carver.take<float>(angles);
  b.sin = carver.take<float>(angles);
  b.quantised = carver.take_quantised(tokens, widest);
  b.full_x = carver.take<float>(sizes.max_full_rows * b.hidden_stride);
  b.top_x = carver.take<float>(sizes.max_rows * b.hidden_stride);
  b.scan = carver.take<float>(sizes.max_rows * b.scan_stride);
  b.panel_best = carver.take<float>(sizes.max_rows * b.num_scan_panels);
  b.panel_sigma = carver.take<float>(b.num_scan_panels);
  b.panel_peak = carver.take<float>(b.num_scan_panels);
  b.candidates = carver.take<Candidate>(sizes.max_rows * kMaxCandidates);
  b.ids = carver.take<std::int32_t>(sizes.max_rows * kMaxCandidates);
  b.scores = carver.take<float>(sizes.max_rows * kMaxCandidates);
  b.threads.resize(sizes.threads);
  for (ThreadBuffers& t : b.threads) {
    t.normed = carver.take<float>(few * b.hidden_stride);
    t.quantised = carver.take_quantised(few, widest);
    t.scratch = carver.take<std::uint8_t>(std::max(kTileScratchBytes, kMixerScratchBytes));
  }
  b.num_bytes = carver.used();
  return b;
}

std::size_t arena_bytes(const ModelShape& shape, const EngineSizes& sizes) {
  return carve(shape, sizes, nullptr).num_bytes;
}

}  // namespace shoal
