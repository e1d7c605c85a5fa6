// Work of a step that is cut among the threads of a team while it is done: who is through with its own part takes pieces of
// another's. Processors of a shared machine, and its memory, do not serve all threads alike for long; the slowest would decide
// every phase. A thread walks its own part in order, as one stream. Who did what never shows in a result.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "engine/batch.h"

namespace shoal {

class Claims {
 public:
  explicit Claims(std::size_t num_threads)
      : num_threads_(num_threads), turns_(new Turn[num_threads]), next_(new Next[kTurns * num_threads]) {}

  // On every thread, before the first barrier of a step.
  void begin(std::size_t thread) {
    turns_[thread].number = 0;
    for (std::size_t turn = 0; turn < kTurns; ++turn) next(turn, thread).store(0, std::memory_order_relaxed);
  }

  // Calls f(Range) on pieces of 0..count - 1 of at most `piece` items, until all are taken. All threads call
  // this equally often and alike, with a barrier behind every call or every second one.
  template <class F>
  void take(std::size_t thread, std::size_t count, std::size_t piece, const F& f) {
    const std::size_t turn = turns_[thread].number++ % kTurns;
    next((turn + kTurns / 2) % kTurns, thread).store(0, std::memory_order_relaxed);  // nobody looks at that one now
    for (std::size_t i = 0; i < num_threads_; ++i) {
      const std::size_t owner = (thread + i) % num_threads_;
      const Range part = share(count, owner, num_threads_);
      std::atomic<std::size_t>& at = next(turn, owner);
      for (;;) {
        const std::size_t begin = part.begin + at.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= part.end) break;
        f(Range{begin, begin + piece < part.end ? begin + piece : part.end});
      }
    }
  }

 private:
  static constexpr std::size_t kTurns = 8;

  struct alignas(64) Turn {
    std::size_t number = 0;
  };
  struct alignas(64) Next {
    std::atomic<std::size_t> item{0};
  };

  std::atomic<std::size_t>& next(std::size_t turn, std::size_t thread) const {
    return next_[turn * num_threads_ + thread].item;
  }

  const std::size_t num_threads_;
  const std::unique_ptr<Turn[]> turns_;
  const std::unique_ptr<Next[]> next_;
};

}  // namespace shoal
