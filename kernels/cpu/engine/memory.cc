#include "engine/memory.h"

#include <algorithm>
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
constexpr std::size_t kPiece = std::size_t{16} << 20;  // made present between two looks at whether to end

// Makes pages present, whatever they hold. False where the system has no memory left or does not know the call.
bool populate(std::uint8_t* begin, std::size_t num_bytes) {
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14
  return madvise(begin, num_bytes, kPopulateWrite) == 0;
}

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
  if (is_large) {
    const std::size_t before = (kLargePage - reinterpret_cast<std::uintptr_t>(p) % kLargePage) % kLargePage;
    if (before > 0) munmap(data_, before);
    munmap(data_ + before + kept, mapped - before - kept);
    data_ += before;
    // Fewer misses of the translation buffer; a refusal costs speed only. Whole large pages: no more memory than asked for.
    madvise(data_, num_bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
  }
  const std::size_t at_once = std::min(kept, kPresentAtOnce);
  if (!populate(data_, at_once)) {
    volatile std::uint8_t* touched = data_;
    for (std::size_t at = 0; at < kept; at += kSmallPage) touched[at] = 0;
    return;
  }
  if (at_once == kept) return;
  try {
    filler_ = std::thread(&Memory::fill, this, at_once);
  } catch (const std::system_error&) {  // no thread to be had: pages come when they are used
  }
}

void Memory::fill(std::size_t begin) {
  sched_param none{};
  sched_setscheduler(0, SCHED_IDLE, &none);  // of this thread alone
  const std::size_t kept = round_up(num_bytes_, kSmallPage);
  for (std::size_t at = begin; at < kept && !is_ending_.load(std::memory_order_relaxed); at += kPiece) {
    if (!populate(data_ + at, std::min(kPiece, kept - at))) return;
  }
}

Memory::~Memory() {
  is_ending_.store(true, std::memory_order_relaxed);
  if (filler_.joinable()) filler_.join();
  if (data_ != nullptr) munmap(data_, round_up(num_bytes_, kSmallPage));
}

#else

Memory::Memory(std::size_t num_bytes) : num_bytes_(num_bytes) {
  if (num_bytes == 0) return;
  data_ = static_cast<std::uint8_t*>(::operator new(num_bytes, std::align_val_t(kSmallPage)));
  std::memset(data_, 0, num_bytes);
}

void Memory::fill(std::size_t) {}

Memory::~Memory() {
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t(kSmallPage));
}

#endif

}  // namespace shoal
