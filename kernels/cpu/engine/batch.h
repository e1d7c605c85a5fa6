// What a step is asked for, checked against every bound, and how its work is cut between threads. Cuts never change results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/model.h"

namespace shoal {

// As the caller hands it over; everything stays where it is during the step.
struct StepInput {
  const std::int32_t* token_ids;
  std::size_t num_tokens;
  const std::int32_t* rows;  // [num_rows][4]: num_tokens, start, slot, first index in tables
  std::size_t num_rows;
  const std::int32_t* tables;
  std::size_t num_table_entries;

  const std::int32_t* full_at;  // [num_full]: tokens whose whole logits go to full [num_full][vocab]
  std::size_t num_full;
  float* full;

  const std::int32_t* top;  // [num_top][3]: token, k, number of adjustments
  std::size_t num_top;
  const std::int32_t* adjust_ids;  // of all of them, one after another; ascending within each
  const float* adjust_values;
  std::size_t num_adjustments;
  std::int32_t* top_ids;  // [num_top][top_stride], best first; beyond the drawable ids: untouched
  float* top_adjusted;
  float* top_logits;
  std::size_t top_stride;
};

// One sequence's tokens in a step.
struct Sequence {
  std::size_t begin, count;  // in token_ids
  std::size_t start;         // position of the first
  std::size_t slot;
  const std::int32_t* pages;
};

// One row whose best tokens are wanted.
struct Top {
  std::size_t at, k;
  const std::int32_t* adjust_ids;
  const float* adjust_values;
  std::size_t num_adjustments;
};

// Checks `input` and fills the vectors, whose capacity suffices: nothing is allocated but for a message. Throws
// std::invalid_argument, before anything else is touched.
void read_input(const StepInput& input, const ModelShape& shape, const EngineSizes& sizes,
                std::vector<Sequence>& sequences, std::vector<Top>& tops, std::vector<std::uint8_t>& slot_marks);

struct Range {
  std::size_t begin, end;

  std::size_t count() const { return end - begin; }
};

// The `thread`-th of `num_threads` contiguous shares of 0..count - 1.
inline Range share(std::size_t count, std::size_t thread, std::size_t num_threads) {
  return {count * thread / num_threads, count * (thread + 1) / num_threads};
}

// A walk over items with costs, which are cut into contiguous shares of about equal cost: an item belongs to the share in
// which its middle lies.
class CostCut {
 public:
  CostCut(std::size_t total, std::size_t thread, std::size_t num_threads)
      : begin_(total * thread / num_threads), end_(total * (thread + 1) / num_threads) {}

  // Whether the next item, which costs `cost`, is this thread's.
  bool takes(std::size_t cost) {
    const std::size_t middle = at_ + cost / 2;
    at_ += cost;
    return begin_ <= middle && middle < end_;
  }

 private:
  std::size_t begin_, end_, at_ = 0;
};

}  // namespace shoal
