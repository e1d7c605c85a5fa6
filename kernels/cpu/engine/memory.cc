#include "engine/memory.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <system_error>

#include "engine/model.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

namespace shoal {
namespace {

constexpr std::size_t kSmallPage = 4096;

}  // namespace

#if defined(__linux__)

namespace {

constexpr std::size_t kLargePage = std::size_t{2} << 20;
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14: makes pages present, whatever they hold
constexpr std::size_t kSmallPool = std::size_t{8} << 20;  // present at once: a thread for so little would cost more
constexpr std::size_t kPiece = std::size_t{4} << 20;  // made present between two looks at whether to end

// Longer than a first answer takes to begin: whoever asks once and leaves never pays for pages that he does not use, which on a
// machine that has to find them first can be most of a start.
constexpr std::chrono::milliseconds kFillDelay{500};

}  // namespace

// Fresh pages are zero. Writing them once more would double the time of a start with large pools.
Memory::Memory(std::size_t num_bytes) : num_bytes_(num_bytes) {
  if (num_bytes == 0) return;
  const std::size_t kept = round_up(num_bytes, kSmallPage);
  const bool is_large = num_bytes >= kLargePage;
  const std::size_t mapped = is_large ? kept + kLargePage : kept;  // to begin at a large page; the rest goes back
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::uint8_t*>(p);
  if (!is_large) {
    madvise(data_, kept, kPopulateWrite);
    return;
  }
  const std::size_t before = (kLargePage - reinterpret_cast<std::uintptr_t>(p) % kLargePage) % kLargePage;
  if (before > 0) munmap(data_, before);
  munmap(data_ + before + kept, mapped - before - kept);
  data_ += before;
  // Fewer misses of the translation buffer; a refusal costs speed only. Whole large pages: no more memory than asked for.
  madvise(data_, num_bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
  if (num_bytes <= kSmallPool) {
    madvise(data_, kept, kPopulateWrite);
    return;
  }
  try {
    filler_ = std::thread(&Memory::fill, this);
  } catch (const std::system_error&) {  // no thread to be had: pages come when they are used
  }
}

void Memory::fill() {
  sched_param none{};
  sched_setscheduler(0, SCHED_IDLE, &none);  // of this thread alone
  const std::size_t kept = round_up(num_bytes_, kSmallPage);
  auto wait = std::chrono::duration_cast<std::chrono::nanoseconds>(kFillDelay);
  for (std::size_t at = 0; at < kept; at += kPiece, wait = std::chrono::nanoseconds{0}) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (ending_.wait_for(lock, wait, [this] { return is_ending_; })) return;
    lock.unlock();
    if (madvise(data_ + at, std::min(kPiece, kept - at), kPopulateWrite) != 0) return;  // no memory left, or an older system
  }
}

void Memory::stop_filling() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_ending_ = true;
  }
  ending_.notify_all();
  if (filler_.joinable()) filler_.join();
}

void Memory::make_present() {
  stop_filling();
  if (data_ != nullptr) madvise(data_, round_up(num_bytes_, kSmallPage), kPopulateWrite);
}

Memory::~Memory() {
  stop_filling();
  if (data_ != nullptr) munmap(data_, round_up(num_bytes_, kSmallPage));
}

#else

Memory::Memory(std::size_t num_bytes) : num_bytes_(num_bytes) {
  if (num_bytes == 0) return;
  data_ = static_cast<std::uint8_t*>(::operator new(num_bytes, std::align_val_t(kSmallPage)));
  std::memset(data_, 0, num_bytes);
}

void Memory::make_present() {}

Memory::~Memory() {
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t(kSmallPage));
}

#endif

}  // namespace shoal
