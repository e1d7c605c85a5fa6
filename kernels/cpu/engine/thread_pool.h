// A fixed team of threads that run one piece of work together and meet at barriers.
//
// The caller of `run` is thread 0; the others are started once. A thread that waits watches a counter for some 50 us (what
// a barrier of a busy step takes is far less), then sleeps until it is woken: a team that is larger than the machine, or
// idle between steps, takes no processor time from anybody. While a team works its threads treat denormals as zero; thread
// 0 gets its own mode back afterwards.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace shoal {

// A counter that can be waited for.
class Gate {
 public:
  unsigned generation() const { return generation_.load(std::memory_order_acquire); }
  void open();                 // the next generation begins; all who wait go on
  void wait(unsigned passed);  // until the generation is no longer `passed`

 private:
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
};

class ThreadPool {
 public:
  using Work = void (*)(void* context, std::size_t thread);

  // `cpus` has a processor for each thread, or is empty. Throws std::system_error where threads are refused.
  ThreadPool(std::size_t num_threads, const std::vector<int>& cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t num_threads() const { return num_threads_; }

  // Calls `work` once on every thread and returns when all are done; it must not throw. Never from two threads at once.
  void run(Work work, void* context);

  // Inside `work`: returns once all threads have called it as often as this one. What they wrote before is seen after.
  void barrier();

 private:
  void serve(std::size_t thread);
  void stop();

  const std::size_t num_threads_;
  const std::vector<int> cpus_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stopping_{false};
  Gate started_, passed_;
  alignas(64) std::atomic<std::size_t> num_arrived_{0};
  std::vector<std::thread> threads_;
};

}  // namespace shoal
