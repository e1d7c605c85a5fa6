#include "engine/thread_pool.h"

#include <chrono>
#include <cstdint>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace shoal {
namespace {

constexpr std::chrono::microseconds kWatch{50};
constexpr int kLooksPerClock = 32;  // reading the clock is dearer than looking

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Denormals count as zero from construction to destruction, on this thread.
class FlushDenormals {
#if defined(__x86_64__) || defined(_M_X64)
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_ | (1u << 24)));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#else
 public:
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

// This thread runs on one processor from construction to destruction. Where that is refused it runs where it may.
class Pin {
#if defined(__linux__)
 public:
  explicit Pin(const std::vector<int>& cpus, std::size_t thread) {
    if (cpus.empty() || cpus[thread] < 0 || cpus[thread] >= CPU_SETSIZE) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus[thread], &one);
    is_pinned_ = pthread_getaffinity_np(pthread_self(), sizeof saved_, &saved_) == 0 &&
                 pthread_setaffinity_np(pthread_self(), sizeof one, &one) == 0;
  }
  ~Pin() {
    if (is_pinned_) pthread_setaffinity_np(pthread_self(), sizeof saved_, &saved_);
  }

 private:
  cpu_set_t saved_;
  bool is_pinned_ = false;
#else
 public:
  Pin(const std::vector<int>&, std::size_t) {}
  ~Pin() {}
#endif
};

}  // namespace

void Gate::open() {
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  { const std::lock_guard<std::mutex> lock(mutex_); }  // who has counted itself as a sleeper now sleeps or has seen it
  woken_.notify_all();
}

void Gate::wait(unsigned passed) {
  const auto until = std::chrono::steady_clock::now() + kWatch;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (generation() != passed) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < until);
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  woken_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != passed; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

ThreadPool::ThreadPool(std::size_t num_threads, const std::vector<int>& cpus)
    : num_threads_(num_threads), cpus_(cpus) {
  threads_.reserve(num_threads_ - 1);
  try {
    for (std::size_t i = 1; i < num_threads_; ++i) threads_.emplace_back([this, i] { serve(i); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_release);
  started_.open();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::serve(std::size_t thread) {
  const Pin pin(cpus_, thread);
  const FlushDenormals flush;
  for (unsigned generation = 0;; ++generation) {
    started_.wait(generation);
    if (stopping_.load(std::memory_order_acquire)) return;
    work_(context_, thread);
    barrier();
  }
}

void ThreadPool::run(Work work, void* context) {
  const Pin pin(cpus_, 0);
  const FlushDenormals flush;
  work_ = work;
  context_ = context;
  started_.open();
  work(context, 0);
  barrier();
}

void ThreadPool::barrier() {
  if (num_threads_ == 1) return;
  const unsigned generation = passed_.generation();
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
    num_arrived_.store(0, std::memory_order_relaxed);
    passed_.open();
  } else {
    passed_.wait(generation);
  }
}

}  // namespace shoal
