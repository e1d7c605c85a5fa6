// Results of a step, as one thread of the team finds them.
//
// Whole logits are exact scores: every row of the table times the normed x, f32. The best of a row come in two steps. A scan
// with coarse weights s(id) estimates every logit; its error has about the standard deviation
//   e(id)^2 = |x|^2 sigma(id)^2 + |r|^2 peak(id)^2
// with sigma the scan weights' own error, r what the rounding of x to int8 left over, and peak a bound of the row's weights.
// The rows with the best s are scored exactly, t is the k-th best of those, and every row with s + 6.5 e >= t is scored too:
// the best of those scored are the answer. (Of 6 million rows the largest error seen was 5.5 e.) Where too many rows
// qualify all are scored. sigma and peak are taken at their largest of each panel of 32 rows.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/best.h"
#include "engine/team.h"

namespace shoal {
namespace {

constexpr std::size_t kFirstScored = 64;      // at least
constexpr float kDeviations = 6.5f;
constexpr float kRounding = 1e-4f;            // of f32 sums, relative: more than they err
constexpr std::size_t kScanPanels = 32;       // multiplied between looks at the results
constexpr std::size_t kScoreBytes = 128 * 1024;  // of the table, kept near while all wanted rows meet it
constexpr std::size_t kScoreRows = 256;          // at most

class HeadWorker {
 public:
  HeadWorker(Job& job, const Member& member)
      : job_(job), member_(member), shape_(member.parts.shape), buffers_(member.parts.buffers),
        weights_(member.parts.weights), rows_(*member.parts.kernels.rows), drawable_(member.parts.sizes.drawable_vocab) {}

  void run() {
    if (job_.input.num_full + job_.tops.size() == 0) return;
    norm_wanted();
    member_.barrier();
    if (!job_.tops.empty()) {
      scan();
      member_.barrier();
      for (std::size_t i = member_.thread; i < job_.tops.size(); i += member_.num_threads()) find_best(i);
      member_.barrier();
      score_all_where_needed();
    }
    score_full();
  }

 private:
  const float* top_x(std::size_t i) const { return buffers_.top_x + i * buffers_.hidden_stride; }
  float* scan_of(std::size_t i) const { return buffers_.scan + i * buffers_.scan_stride; }
  float* panel_best_of(std::size_t i) const { return buffers_.panel_best + i * buffers_.num_scan_panels; }

  // norm(x) of the wanted rows into full_x and top_x; the latter quantised, and measured.
  void norm_wanted() {
    const Range rows = member_.share_of(job_.input.num_full + job_.tops.size());
    for (std::size_t i = rows.begin; i < rows.end; ++i) {
      if (i < job_.input.num_full) {
        norm_one(job_.full_row[i], buffers_.full_x + i * buffers_.hidden_stride);
      } else {
        const std::size_t top = i - job_.input.num_full;
        norm_one(job_.top_row[top], buffers_.top_x + top * buffers_.hidden_stride);
        member_.quantise(buffers_.top_x, buffers_.hidden_stride, shape_.hidden, {top, top + 1}, buffers_.quantised);
        measure(top);
      }
    }
  }

  void norm_one(std::size_t row, float* to) {
    const float* x = buffers_.x + row * buffers_.hidden_stride;
    rows_.rms_norm(x, buffers_.hidden_stride, weights_.norm, shape_.eps, 1, shape_.hidden, to, buffers_.hidden_stride);
  }

  void measure(std::size_t top) {
    const std::size_t stride = buffers_.hidden_stride;
    const float* x = top_x(top);
    const std::int8_t* q = buffers_.quantised.q + top * stride;
    const float* scale = buffers_.quantised.scale + top * (stride / kBlockCols);
    double input = 0, rounding = 0;
    for (std::size_t k = 0; k < stride; ++k) {
      const float left = x[k] - static_cast<float>(q[k]) * scale[k / kBlockCols];
      input += x[k] * x[k];
      rounding += left * left;
    }
    job_.input_norm[top] = static_cast<float>(std::sqrt(input));
    job_.rounding_norm[top] = static_cast<float>(std::sqrt(rounding));
  }

  // Estimates of this thread's panels for every row, adjusted, and the best of each panel.
  void scan() {
    const Activations a = activations(buffers_.top_x, buffers_.hidden_stride, job_.tops.size(), shape_.hidden,
                                      buffers_.quantised);
    member_.parts.claims.take(member_.thread, buffers_.num_scan_panels, kScanPanels, [&](Range part) {
      member_.multiply(weights_.head_scan, a, part, {buffers_.scan, buffers_.scan_stride, Store::kSet});
      for (std::size_t i = 0; i < job_.tops.size(); ++i) look_at(i, part);
    });
  }

  void look_at(std::size_t top, Range panels) {
    float* s = scan_of(top);
    const std::size_t begin = panels.begin * kPanelRows, end = panels.end * kPanelRows;
    const Top& t = job_.tops[top];
    const std::int32_t* last = t.adjust_ids + t.num_adjustments;
    for (const std::int32_t* id = std::lower_bound(t.adjust_ids, last, static_cast<std::int32_t>(begin));
         id != last && static_cast<std::size_t>(*id) < end; ++id) {
      s[*id] += t.adjust_values[id - t.adjust_ids];
    }
    for (std::size_t r = std::max(begin, drawable_); r < end; ++r) s[r] = -INFINITY;
    for (std::size_t p = panels.begin; p < panels.end; ++p) {
      panel_best_of(top)[p] = largest_of_panel(s + p * kPanelRows);
    }
  }

  static float largest_of_panel(const float* s) {
    float lane[8];
    for (std::size_t j = 0; j < 8; ++j) lane[j] = -INFINITY;
    for (std::size_t r = 0; r < kPanelRows; r += 8) {
      for (std::size_t j = 0; j < 8; ++j) lane[j] = s[r + j] > lane[j] ? s[r + j] : lane[j];
    }
    for (std::size_t j = 1; j < 8; ++j) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    return lane[0];
  }

  void find_best(std::size_t top) {
    const Top& wanted = job_.tops[top];
    const std::size_t k = std::min(wanted.k, drawable_);
    const std::size_t num_first = std::min(std::max(k, kFirstScored), drawable_);
    Candidate* candidates = buffers_.candidates + top * kMaxCandidates;
    std::int32_t* ids = buffers_.ids + top * kMaxCandidates;
    collect_first(top, num_first, candidates, ids);
    score(top, ids, 0, num_first, candidates);
    std::nth_element(candidates, candidates + (k - 1), candidates + num_first, is_better);
    const float bar = candidates[k - 1].adjusted;

    std::sort(ids, ids + num_first);
    const std::size_t num = collect_rest(top, bar, ids, num_first);
    job_.needs_all[top] = num > kMaxCandidates;
    if (num > kMaxCandidates) return;
    score(top, ids, num_first, num, candidates);
    std::partial_sort(candidates, candidates + k, candidates + num, is_better);
    write_best(top, candidates, k);
  }

  // The drawable rows with the best estimates: those of as many panels with the best estimates.
  void collect_first(std::size_t top, std::size_t count, Candidate* kept, std::int32_t* ids) {
    const float* best = panel_best_of(top);
    const float* s = scan_of(top);
    const std::size_t num_panels = (drawable_ + kPanelRows - 1) / kPanelRows;
    Best panels(kept, std::min(count, num_panels));
    for (std::size_t p = 0; p < num_panels; ++p) {
      if (best[p] >= panels.threshold()) panels.offer({best[p], 0, static_cast<std::int32_t>(p)});
    }
    Best rows(kept + kMaxTopK, count);
    for (const Candidate& panel : panels) {
      const std::size_t begin = static_cast<std::size_t>(panel.id) * kPanelRows;
      for (std::size_t r = begin; r < std::min(begin + kPanelRows, drawable_); ++r) {
        rows.offer({rank_of(s[r]), 0, static_cast<std::int32_t>(r)});
      }
    }
    std::size_t num = 0;
    for (const Candidate& row : rows) ids[num++] = row.id;
  }

  // Appends the drawable rows that may reach `bar` and are not among the first `num` ids, which ascend. Returns how many
  // there are then, more than kMaxCandidates if they do not fit.
  std::size_t collect_rest(std::size_t top, float bar, std::int32_t* ids, std::size_t num_first) {
    const float* best = panel_best_of(top);
    const float* s = scan_of(top);
    const float input = job_.input_norm[top], rounding = job_.rounding_norm[top];
    const float floor = bar - kRounding * (std::fabs(bar) + 1.0f);
    std::size_t num = num_first;
    for (std::size_t p = 0; p * kPanelRows < drawable_; ++p) {
      const float of_weights = input * buffers_.panel_sigma[p], of_input = rounding * buffers_.panel_peak[p];
      const float margin = kDeviations * std::sqrt(of_weights * of_weights + of_input * of_input);
      if (!(best[p] + margin >= floor)) continue;
      for (std::size_t r = p * kPanelRows; r < std::min((p + 1) * kPanelRows, drawable_); ++r) {
        const std::int32_t id = static_cast<std::int32_t>(r);
        if (!(s[r] + margin >= floor) || std::binary_search(ids, ids + num_first, id)) continue;
        if (num == kMaxCandidates) return kMaxCandidates + 1;
        ids[num++] = id;
      }
    }
    return num;
  }

  // Candidates [begin, end) from exact scores of ids [begin, end).
  void score(std::size_t top, const std::int32_t* ids, std::size_t begin, std::size_t end, Candidate* candidates) {
    float* scores = buffers_.scores + top * kMaxCandidates;
    rows_.score(weights_.head_table, ids + begin, end - begin, top_x(top), scores + begin);
    for (std::size_t i = begin; i < end; ++i) {
      candidates[i] = {rank_of(scores[i] + adjustment_of(job_.tops[top], ids[i])), scores[i], ids[i]};
    }
  }

  void write_best(std::size_t top, const Candidate* candidates, std::size_t k) {
    const std::size_t at = top * job_.input.top_stride;
    for (std::size_t i = 0; i < k; ++i) {
      job_.input.top_ids[at + i] = candidates[i].id;
      job_.input.top_adjusted[at + i] = candidates[i].adjusted;
      job_.input.top_logits[at + i] = candidates[i].logit;
    }
  }

  void score_all_where_needed() {
    const Range rows = member_.share_of(shape_.vocab);
    bool any = false;
    for (std::size_t i = 0; i < job_.tops.size(); ++i) {
      if (!job_.needs_all[i]) continue;
      any = true;
      score_range(rows, [&](std::size_t) { return top_x(i); }, [&](std::size_t) { return scan_of(i); }, 1);
    }
    if (!any) return;
    member_.barrier();
    for (std::size_t i = member_.thread; i < job_.tops.size(); i += member_.num_threads()) {
      if (!job_.needs_all[i]) continue;
      const float* s = scan_of(i);
      const Top& top = job_.tops[i];
      Best best(buffers_.candidates + i * kMaxCandidates, std::min(top.k, drawable_));
      std::size_t next = 0;
      for (std::size_t r = 0; r < drawable_; ++r) {
        float adjusted = s[r];
        if (next < top.num_adjustments && static_cast<std::size_t>(top.adjust_ids[next]) == r) {
          adjusted += top.adjust_values[next++];
        }
        if (adjusted >= best.threshold() || !best.is_full()) {
          best.offer({rank_of(adjusted), s[r], static_cast<std::int32_t>(r)});
        }
      }
      best.sort();
      write_best(i, best.begin(), best.count());
    }
  }

  void score_full() {
    const auto x_of = [&](std::size_t i) { return buffers_.full_x + i * buffers_.hidden_stride; };
    const auto out_of = [&](std::size_t i) { return job_.input.full + i * shape_.vocab; };
    score_range(member_.share_of(shape_.vocab), x_of, out_of, job_.input.num_full);
  }

  // Exact scores of the table's rows [rows.begin, rows.end) with each of `count` vectors; the table is read once.
  template <typename XOf, typename OutOf>
  void score_range(Range rows, const XOf& x_of, const OutOf& out_of, std::size_t count) {
    const std::size_t fit = std::max<std::size_t>(1, kScoreBytes / weights_.head_table.row_bytes());
    const std::size_t step = std::min(fit, kScoreRows);
    std::int32_t ids[kScoreRows];
    for (std::size_t begin = rows.begin; begin < rows.end; begin += step) {
      const std::size_t num = std::min(step, rows.end - begin);
      for (std::size_t j = 0; j < num; ++j) ids[j] = static_cast<std::int32_t>(begin + j);
      for (std::size_t i = 0; i < count; ++i) rows_.score(weights_.head_table, ids, num, x_of(i), out_of(i) + begin);
    }
  }

  Job& job_;
  const Member& member_;
  const ModelShape& shape_;
  const Buffers& buffers_;
  const Weights& weights_;
  const RowKernels& rows_;
  const std::size_t drawable_;
};

// binary16 magnitudes order as their bits do.
float magnitude_of_half(std::uint16_t half) {
  const std::uint32_t exponent = (half >> 10) & 31, fraction = half & 0x3ff;
  if (exponent == 0) return std::ldexp(static_cast<float>(fraction), -24);
  return std::ldexp(static_cast<float>(fraction | 0x400), static_cast<int>(exponent) - 25);
}

float peak_of_panel(const Matrix& scan, std::size_t panel) {
  if (scan.format == Format::kBf16) return 0;  // multiplied with x itself
  const std::size_t scale_offset = scan.format == Format::kInt4 ? kInt4ScaleOffset : kInt8ScaleOffset;
  std::uint16_t largest = 0;
  for (std::size_t b = 0; b < scan.num_blocks(); ++b) {
    const std::uint8_t* block = scan.data + panel * scan.panel_bytes() + b * block_bytes(scan.format);
    std::uint16_t scales[kPanelRows];
    std::memcpy(scales, block + scale_offset, sizeof scales);
    for (std::uint16_t scale : scales) largest = std::max<std::uint16_t>(largest, scale & 0x7fff);
  }
  return 128.0f * magnitude_of_half(largest);
}

}  // namespace

void run_head(Job& job, const Member& member) { HeadWorker(job, member).run(); }

void measure_scan(const Weights& weights, const Buffers& buffers) {
  for (std::size_t p = 0; p < buffers.num_scan_panels; ++p) {
    float sigma = 0;
    const std::size_t end = std::min((p + 1) * kPanelRows, weights.head_scan.rows);
    for (std::size_t r = p * kPanelRows; r < end; ++r) sigma = std::max(sigma, std::fabs(weights.head_sigma[r]));
    buffers.panel_sigma[p] = sigma;
    buffers.panel_peak[p] = peak_of_panel(weights.head_scan, p);
  }
}

}  // namespace shoal
