// Times the loops of limits/ on several threads. A repetition is timed from the moment that all threads stand ready to
// the moment that the last one is done, and says how often the system took a processor away meanwhile.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "bindings/arrays.h"
#include "limits/limits.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#endif

namespace shoal {
namespace {

struct Repetition {
  double seconds;
  long switches;  // involuntary, of all threads; 0 where the system does not tell
};

// All threads wait for each other, spinning; each use gives the next one its number.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const int round = round_.load(std::memory_order_acquire);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      waiting_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    while (round_.load(std::memory_order_acquire) == round) {
    }
  }

 private:
  const int threads_;
  std::atomic<int> waiting_{0}, round_{0};
};

#if defined(__linux__)
// The `index`-th processor that this process may use, or any where there are fewer.
void pin(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) <= index) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || index-- != 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
}

long involuntary_switches() {
  struct rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}
#else
void pin(int) {}
long involuntary_switches() { return 0; }
#endif

std::atomic<std::uint64_t> sink{0};  // results end here, so that the loops are not dropped

// work(thread) on each of `threads` threads, `repetitions` times.
template <typename Work>
nb::list time_repetitions(int threads, int repetitions, const Work& work) {
  if (threads < 1 || threads > 1024) throw nb::value_error("threads must be between 1 and 1024");
  if (repetitions < 0) throw nb::value_error("repetitions must not be negative");
  std::vector<Repetition> times(static_cast<std::size_t>(repetitions));
  std::atomic<long> switches{0};
  Barrier barrier(threads);
  const auto run = [&](int index) {
    pin(index);
    for (Repetition& time : times) {
      barrier.wait();
      const long before = involuntary_switches();
      const auto start = std::chrono::steady_clock::now();
      sink.fetch_or(work(index), std::memory_order_relaxed);
      switches.fetch_add(involuntary_switches() - before, std::memory_order_relaxed);
      barrier.wait();
      if (index == 0) {
        time.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        time.switches = switches.exchange(0, std::memory_order_relaxed);
      }
      barrier.wait();  // the count is taken before anyone adds to it again
    }
  };
  {
    nb::gil_scoped_release release;
    std::vector<std::thread> pool;
    for (int index = 0; index < threads; ++index) pool.emplace_back(run, index);
    for (std::thread& thread : pool) thread.join();
  }
  nb::list out;
  for (const Repetition& time : times) out.append(nb::make_tuple(time.seconds, time.switches));
  return out;
}

const LimitKernels& limits_named(const std::string& isa) { return *kernels_named(isa).limits; }

// Each thread reads its own part once a repetition, whole multiples of kReadGrain; what is left over is not read.
nb::list time_read(const std::string& isa, const Input& data, int loop, int threads, int repetitions) {
  const LimitKernels& limits = limits_named(isa);
  if (data.dtype() != nb::dtype<std::uint8_t>() || !is_dense(data)) throw nb::type_error("data must be dense bytes");
  if (loop < 0 || loop >= kReadLoops) throw nb::value_error("there is no such loop");
  const auto* bytes = static_cast<const std::uint8_t*>(data.data());
  const std::size_t part = data.size() / static_cast<std::size_t>(threads < 1 ? 1 : threads) / kReadGrain * kReadGrain;
  return time_repetitions(threads, repetitions, [&](int index) {
    return limits.read(bytes + part * static_cast<std::size_t>(index), part, static_cast<ReadLoop>(loop));
  });
}

nb::list time_dot_int8(const std::string& isa, std::size_t rounds, int threads, int repetitions) {
  const LimitKernels& limits = limits_named(isa);
  return time_repetitions(threads, repetitions, [&](int) { return limits.dot_int8(rounds); });
}

nb::list time_fma_f32(const std::string& isa, std::size_t rounds, int threads, int repetitions) {
  const LimitKernels& limits = limits_named(isa);
  return time_repetitions(threads, repetitions, [&](int) { return limits.fma_f32(rounds); });
}

nb::tuple limit_operations(const std::string& isa) {
  const LimitKernels& limits = limits_named(isa);
  return nb::make_tuple(limits.dot_int8_operations, limits.fma_f32_operations);
}

}  // namespace

void bind_limits(nb::module_& m) {
  m.def("time_read", &time_read);
  m.def("time_dot_int8", &time_dot_int8);
  m.def("time_fma_f32", &time_fma_f32);
  m.def("limit_operations", &limit_operations);
}

}  // namespace shoal
