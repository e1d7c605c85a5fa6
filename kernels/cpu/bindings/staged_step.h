// The numbers of a step, from Python's objects to arrays and back, in memory that the next step uses again.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "engine/arena.h"
#include "engine/batch.h"

namespace shoal {

// A handful of ints costs less as a list than as an array, which takes a dozen calls to make and to read: after a step the
// caches hold weights, and whatever the interpreter touches comes from memory. So ints may come as either.
class StagedStep {
 public:
  // Ints are int32 arrays, lists of ints, or lists of arrays, read end to end. `top`: (at, k, ids, values) each, where ids
  // and values are arrays, or None. Without `full`. The pointers hold until the next call. Raises TypeError, ValueError.
  StepInput take(nb::handle token_ids, nb::handle rows, nb::handle tables, nb::handle full_at, nb::handle top);

  // Of each row of `top` after the step: (ids, adjusted, logits), best first, no more than there are drawable ids.
  nb::list best(std::size_t num_drawable) const;

 private:
  void take_top(nb::handle top);
  void adjust(nb::handle ids, nb::handle values);

  std::vector<std::int32_t> token_ids_, rows_, tables_, full_at_, top_, adjust_ids_, top_ids_;
  std::vector<float> adjust_values_, top_adjusted_, top_logits_;
  std::vector<std::pair<std::int32_t, float>> ascending_;
  std::size_t stride_ = 0;
};

}  // namespace shoal
