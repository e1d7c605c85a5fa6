// The pools of an engine: zeroed memory, counted to the byte, on large pages where the system gives them.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace shoal {

// Zeroed memory, aligned to a page, or to a large page where it fills one. But for small pools, pages are present when they are first
// used, and those that nobody has used kFillDelay after the constructor are made present by a thread that runs only where a processor
// has nothing else to do: an engine with gigabytes of pools answers at once, and still holds soon what was planned.
class Memory {
 public:
  explicit Memory(std::size_t num_bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void make_present();  // all of it, before it returns

  std::uint8_t* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t num_bytes_;
#if defined(__linux__)
  void fill();
  void stop_filling();

  std::mutex mutex_;
  std::condition_variable ending_;
  bool is_ending_ = false;
  std::thread filler_;
#endif
};

}  // namespace shoal
