// The pools of an engine: zeroed memory, counted to the byte, on large pages where the system gives them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace shoal {

// Zeroed memory, aligned to a page, or to a large page where it fills one. Its first kPresentAtOnce bytes are present when the
// constructor returns; the rest is made present by a thread that runs only where a processor has nothing else to do, so that an
// engine with gigabytes of pools serves at once and still holds soon what was planned. What is used before comes when it is used.
class Memory {
 public:
  explicit Memory(std::size_t num_bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::uint8_t* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }

 private:
  void fill(std::size_t begin);

  std::uint8_t* data_ = nullptr;
  std::size_t num_bytes_;
  std::atomic<bool> is_ending_{false};
  std::thread filler_;
};

constexpr std::size_t kPresentAtOnce = std::size_t{256} << 20;

}  // namespace shoal
