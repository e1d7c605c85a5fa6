// The layers of a step, as one thread of the team runs them.
//
//   x = embedding[ids]
//   each layer:  x += out_proj(mixer(projection(norm(x))));  x += down(silu(gate(norm(x))) * up(norm(x)))
//
// A thread computes a contiguous range of panels of each matrix, and its share of the mixer's heads (with few rows also what
// others have not begun when it is through, claims.h); barriers between. With
// few rows every thread norms and quantises all of them for itself, which is cheaper than to meet once more; with many they
// share the rows and meet. In the last layer only tokens whose results are wanted go on behind the mixer.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/team.h"

namespace shoal {
namespace {

constexpr std::size_t kDeltaFixedCost = 3;     // of reading a head's state, in tokens
constexpr std::size_t kAttendRows = 16;        // query tokens that are not split between threads
constexpr std::size_t kAttendFixedCost = 32;   // of a query token, in positions
constexpr std::size_t kManyRowsBf16Cost = 5;   // of a bf16 panel with many rows, in integer panels

bool is_integer(const Matrix& w) { return w.format != Format::kBf16; }

class TrunkWorker {
 public:
  TrunkWorker(const Job& job, const Member& member)
      : job_(job), member_(member), shape_(member.parts.shape), buffers_(member.parts.buffers),
        kernels_(member.parts.kernels), num_rows_(job.input.num_tokens) {}

  void run() {
    member_.parts.claims.begin(member_.thread);
    embed();
    member_.barrier();
    const std::vector<LayerWeights>& layers = member_.parts.weights.layers;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const bool is_delta = layers[i].kind == LayerKind::kDelta;
      project(layers[i]);
      if (is_delta) {
        mix_delta(layers[i], member_.parts.ordinals[i]);
      } else {
        mix_attention(layers[i], member_.parts.ordinals[i]);
      }
      if (i + 1 == layers.size()) keep_wanted();
      if (num_rows_ == 0) return;
      add_mixed(layers[i], is_delta ? shape_.delta_value_dim() : shape_.query_dim());
      feed_forward(layers[i]);
    }
  }

 private:
  bool has_few_rows() const { return num_rows_ <= kDirectRows; }

  // Rows of the embedding, and cos and sin of the tokens' angles (double; rounded once).
  void embed() {
    const Range tokens = member_.share_of(num_rows_);
    const Table& table = member_.parts.weights.embedding;
    for (std::size_t i = tokens.begin; i < tokens.end; ++i) {
      const std::size_t id = static_cast<std::size_t>(job_.input.token_ids[i]);
      kernels_.rows->read(table, id, buffers_.x + i * buffers_.hidden_stride);
    }
    if (shape_.count(LayerKind::kAttention) == 0) return;
    for (const Sequence& s : job_.sequences) {
      const std::size_t end = std::min(s.begin + s.count, tokens.end);
      for (std::size_t i = std::max(s.begin, tokens.begin); i < end; ++i) {
        const double position = static_cast<double>(s.start + (i - s.begin));
        turn(i, position, position, position);
      }
    }
  }

  // Text has one position on all three axes.
  void turn(std::size_t token, double time, double height, double width) {
    const double positions[3] = {time, height, width};
    const std::size_t num = shape_.inverse_frequencies.size();
    for (std::size_t j = 0; j < num; ++j) {
      const double angle = positions[shape_.rotary_axes[j]] * shape_.inverse_frequencies[j];
      buffers_.cos[token * num + j] = static_cast<float>(std::cos(angle) * shape_.rotary_amplitude);
      buffers_.sin[token * num + j] = static_cast<float>(std::sin(angle) * shape_.rotary_amplitude);
    }
  }

  // norm(x) of all rows, quantised if asked. With many rows: ends behind a barrier.
  Activations norm(const float* w, bool quantised) {
    const std::size_t stride = buffers_.hidden_stride, cols = shape_.hidden;
    const bool few = has_few_rows();
    float* y = few ? member_.own().normed : buffers_.normed;
    const QuantisedRows& q = few ? member_.own().quantised : buffers_.quantised;
    const Range rows = few ? Range{0, num_rows_} : member_.share_of(num_rows_);
    for (std::size_t i = rows.begin; i < rows.end; ++i) {
      kernels_.rows->rms_norm(buffers_.x + i * stride, stride, w, shape_.eps, 1, cols, y + i * stride, stride);
      if (quantised) member_.quantise(y, stride, cols, {i, i + 1}, q);
    }
    if (!few) member_.barrier();
    return activations(y, stride, num_rows_, cols, q);
  }

  // The rows as they are, quantised if asked. With many rows: ends behind a barrier.
  Activations take(const float* x, std::size_t stride, std::size_t cols, bool quantised) {
    const bool few = has_few_rows();
    const QuantisedRows& q = few ? member_.own().quantised : buffers_.quantised;
    if (quantised) {
      member_.quantise(x, stride, cols, few ? Range{0, num_rows_} : member_.share_of(num_rows_), q);
      if (!few) member_.barrier();
    }
    return activations(x, stride, num_rows_, cols, q);
  }

  // projection(norm(x)), and the gates of a DeltaNet layer beside it: one list of panels for all threads.
  void project(const LayerWeights& w) {
    const bool has_gates = w.kind == LayerKind::kDelta;
    const Activations a = norm(w.input_norm, is_integer(w.projection) || (has_gates && is_integer(w.gates)));
    const Output out = {buffers_.projected, buffers_.projected_stride, Store::kSet};
    if (has_gates && has_few_rows()) {
      member_.multiply(w.projection, a, out);
      member_.multiply(w.gates, a, {buffers_.gates, buffers_.gates_stride, Store::kSet});
    } else if (has_gates) {
      const std::size_t cost = panel_cost(w.projection), gates_cost = panel_cost(w.gates);
      const std::size_t num = w.projection.num_panels(), num_gates = w.gates.num_panels();
      CostCut cut(num * cost + num_gates * gates_cost, member_.thread, member_.num_threads());
      member_.multiply(w.projection, a, taken(cut, num, cost), out);
      member_.multiply(w.gates, a, taken(cut, num_gates, gates_cost), {buffers_.gates, buffers_.gates_stride, Store::kSet});
    } else {
      member_.multiply(w.projection, a, out);
    }
    member_.barrier();
  }

  // Of many rows, which wait for arithmetic.
  static std::size_t panel_cost(const Matrix& w) { return w.num_blocks() * (is_integer(w) ? 1 : kManyRowsBf16Cost); }

  static Range taken(CostCut& cut, std::size_t num_panels, std::size_t cost) {
    Range panels = {0, 0};
    for (std::size_t i = 0; i < num_panels; ++i) {
      if (!cut.takes(cost)) continue;
      if (panels.count() == 0) panels.begin = i;
      panels.end = i + 1;
    }
    return panels;
  }

  void mix_delta(const LayerWeights& w, std::size_t ordinal) {
    const DeltaShape shape = shape_.delta();
    if (has_few_rows()) {
      member_.parts.claims.take(member_.thread, job_.sequences.size() * shape.key_heads, 1, [&](Range items) {
        advance(w, ordinal, shape, job_.sequences[items.begin / shape.key_heads], items.begin % shape.key_heads);
      });
    } else {
      std::size_t total = 0;
      for (const Sequence& s : job_.sequences) total += shape.key_heads * (s.count + kDeltaFixedCost);
      CostCut cut(total, member_.thread, member_.num_threads());
      for (const Sequence& s : job_.sequences) {
        for (std::size_t head = 0; head < shape.key_heads; ++head) {
          if (cut.takes(s.count + kDeltaFixedCost)) advance(w, ordinal, shape, s, head);
        }
      }
    }
    clear_beyond(shape_.delta_value_dim());
    member_.barrier();
  }

  void advance(const LayerWeights& w, std::size_t ordinal, const DeltaShape& shape, const Sequence& s,
               std::size_t head) const {
    float* state = member_.parts.states + (ordinal * member_.parts.sizes.num_slots + s.slot) * shape.floats();
    kernels_.delta->advance(shape, w.delta, state, head, buffers_.projected + s.begin * buffers_.projected_stride,
                            buffers_.projected_stride, buffers_.gates + s.begin * buffers_.gates_stride,
                            buffers_.gates_stride, s.count, s.start, buffers_.mixed + s.begin * buffers_.mixed_stride,
                            buffers_.mixed_stride, member_.own().scratch);
  }

  void mix_attention(const LayerWeights& w, std::size_t ordinal) {
    const AttentionShape shape = {shape_.heads, shape_.kv_heads, shape_.head_dim, shape_.rotary_dim(),
                                  static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.head_dim))), shape_.eps};
    std::size_t store_total = 0, attend_total = 0;
    for (const Sequence& s : job_.sequences) {
      store_total += shape.kv_heads * s.count;
      for (std::size_t i = 0; i < s.count; i += kAttendRows) attend_total += shape.kv_heads * attend_cost(s, i);
    }
    CostCut store_cut(store_total, member_.thread, member_.num_threads());
    for (const Sequence& s : job_.sequences) {
      const AttentionRows rows = attention_rows(w, ordinal, s);
      for (std::size_t head = 0; head < shape.kv_heads; ++head) {
        if (store_cut.takes(s.count)) kernels_.attention->store(shape, rows, head, member_.own().scratch);
      }
    }
    member_.barrier();
    CostCut cut(attend_total, member_.thread, member_.num_threads());
    for (const Sequence& s : job_.sequences) {
      const AttentionRows rows = attention_rows(w, ordinal, s);
      for (std::size_t head = 0; head < shape.kv_heads; ++head) {
        Range taken = {0, 0};
        for (std::size_t i = 0; i < s.count; i += kAttendRows) {
          if (!cut.takes(attend_cost(s, i))) continue;
          if (taken.count() == 0) taken.begin = i;
          taken.end = std::min(i + kAttendRows, s.count);
        }
        if (taken.count() > 0) {
          kernels_.attention->attend(shape, rows, head, taken.begin, taken.end, member_.own().scratch);
        }
      }
    }
    clear_beyond(shape_.query_dim());
    member_.barrier();
  }

  // Of kAttendRows query tokens from the i-th on: positions that they see.
  static std::size_t attend_cost(const Sequence& s, std::size_t i) {
    const std::size_t count = std::min(kAttendRows, s.count - i);
    return count * (s.start + i + count / 2 + kAttendFixedCost);
  }

  AttentionRows attention_rows(const LayerWeights& w, std::size_t ordinal, const Sequence& s) const {
    const KvFormat format = member_.parts.sizes.kv_format;
    const std::size_t num_angles = shape_.inverse_frequencies.size();
    const std::size_t layer_bytes =
        member_.parts.sizes.num_pages * shape_.kv_heads * page_bytes(format, shape_.head_dim);
    AttentionRows rows;
    rows.in = buffers_.projected + s.begin * buffers_.projected_stride;
    rows.in_stride = buffers_.projected_stride;
    rows.n = s.count;
    rows.position = s.start;
    rows.cos = buffers_.cos + s.begin * num_angles;
    rows.sin = buffers_.sin + s.begin * num_angles;
    rows.q_norm = w.q_norm;
    rows.k_norm = w.k_norm;
    rows.pool = member_.parts.kv + ordinal * layer_bytes;
    rows.format = format;
    rows.pages = s.pages;
    rows.out = buffers_.mixed + s.begin * buffers_.mixed_stride;
    rows.out_stride = buffers_.mixed_stride;
    return rows;
  }

  // The mixers of both kinds write rows of one buffer, of different widths: what the other left behind a narrower row's
  // end would meet the zero columns of bf16 weights, and must be a number.
  void clear_beyond(std::size_t cols) {
    if (member_.thread != 0 || cols % kBlockCols == 0) return;
    for (std::size_t i = 0; i < num_rows_; ++i) {
      float* row = buffers_.mixed + i * buffers_.mixed_stride;
      std::fill(row + cols, row + round_up(cols, kBlockCols), 0.0f);
    }
  }

  // Moves the wanted rows of x and of the mixer's output to the front: each thread some columns of all rows.
  void keep_wanted() {
    const std::size_t num_wanted = job_.wanted.size();
    if (num_wanted > 0 && num_wanted < num_rows_) {
      gather(buffers_.x, buffers_.hidden_stride);
      gather(buffers_.mixed, buffers_.mixed_stride);
      member_.barrier();
    }
    num_rows_ = num_wanted;
  }

  void gather(float* rows, std::size_t stride) {
    const Range cols = member_.share_of(stride / 16);
    for (std::size_t i = 0; i < job_.wanted.size(); ++i) {
      const float* from = rows + job_.wanted[i] * stride + 16 * cols.begin;
      float* to = rows + i * stride + 16 * cols.begin;
      if (from != to) std::memcpy(to, from, 16 * cols.count() * sizeof(float));
    }
  }

  void add_mixed(const LayerWeights& w, std::size_t cols) {
    const Activations a = take(buffers_.mixed, buffers_.mixed_stride, cols, is_integer(w.out_proj));
    member_.multiply(w.out_proj, a, {buffers_.x, buffers_.hidden_stride, Store::kAdd});
    member_.barrier();
  }

  void feed_forward(const LayerWeights& w) {
    const Activations normed = norm(w.post_norm, is_integer(w.gate_up));
    member_.multiply(w.gate_up, normed, {buffers_.inner, buffers_.inner_stride, Store::kSwiglu});
    member_.barrier();
    const Activations inner = take(buffers_.inner, buffers_.inner_stride, shape_.intermediate, is_integer(w.down));
    member_.multiply(w.down, inner, {buffers_.x, buffers_.hidden_stride, Store::kAdd});
    member_.barrier();
  }

  const Job& job_;
  const Member& member_;
  const ModelShape& shape_;
  const Buffers& buffers_;
  const Kernels& kernels_;
  std::size_t num_rows_;
};

}  // namespace

void run_trunk(const Job& job, const Member& member) { TrunkWorker(job, member).run(); }

}  // namespace shoal
