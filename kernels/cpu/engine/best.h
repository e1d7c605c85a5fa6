// The best of many, kept in a caller's array.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "engine/arena.h"
#include "engine/batch.h"

namespace shoal {

// What candidates are ordered by; NaN is worse than everything.
inline float rank_of(float logit) { return std::isnan(logit) ? -INFINITY : logit; }

// Higher adjusted logits first, then lower ids.
inline bool is_better(const Candidate& a, const Candidate& b) {
  return a.adjusted > b.adjusted || (a.adjusted == b.adjusted && a.id < b.id);
}

// Keeps the `capacity` best of what it is offered, capacity at least 1, as a heap whose first is the worst.
class Best {
 public:
  Best(Candidate* kept, std::size_t capacity) : kept_(kept), capacity_(capacity) {}

  std::size_t count() const { return count_; }
  const Candidate* begin() const { return kept_; }
  const Candidate* end() const { return kept_ + count_; }
  bool is_full() const { return count_ == capacity_; }
  const Candidate& worst() const { return kept_[0]; }

  // Nothing below this can enter.
  float threshold() const { return is_full() ? kept_[0].adjusted : -INFINITY; }

  void offer(const Candidate& c) {
    if (count_ < capacity_) {
      kept_[count_++] = c;
      std::push_heap(kept_, kept_ + count_, is_better);
    } else if (is_better(c, kept_[0])) {
      std::pop_heap(kept_, kept_ + count_, is_better);
      kept_[count_ - 1] = c;
      std::push_heap(kept_, kept_ + count_, is_better);
    }
  }

  void sort() { std::sort(kept_, kept_ + count_, is_better); }

 private:
  Candidate* kept_;
  std::size_t capacity_, count_ = 0;
};

// Adjustments of one row, looked up by ids in any order.
inline float adjustment_of(const Top& top, std::int32_t id) {
  const std::int32_t* end = top.adjust_ids + top.num_adjustments;
  const std::int32_t* found = std::lower_bound(top.adjust_ids, end, id);
  return found != end && *found == id ? top.adjust_values[found - top.adjust_ids] : 0.0f;
}

}  // namespace shoal
