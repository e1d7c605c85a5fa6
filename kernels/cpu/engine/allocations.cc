#include "engine/allocations.h"

#include <cstdlib>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SHOAL_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(_WIN32)
#define SHOAL_SANITIZED 1
#endif

#if defined(SHOAL_SANITIZED)

namespace shoal {

bool counts_allocations() { return false; }
std::size_t num_allocations() { return 0; }

}  // namespace shoal

#else

namespace shoal {
namespace {

thread_local std::size_t allocations_of_thread = 0;

void* allocate(std::size_t num_bytes, std::size_t alignment) {
  ++allocations_of_thread;
  if (num_bytes == 0) num_bytes = 1;
  void* p = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    p = std::malloc(num_bytes);
  } else if (posix_memalign(&p, alignment, num_bytes) != 0) {
    p = nullptr;
  }
  return p;
}

}  // namespace

bool counts_allocations() { return true; }
std::size_t num_allocations() { return allocations_of_thread; }

}  // namespace shoal

// Both come from malloc, so that memory may pass between this module and libraries with operators of their own.
void* operator new(std::size_t num_bytes) {
  if (void* p = shoal::allocate(num_bytes, 1)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t num_bytes, std::align_val_t alignment) {
  if (void* p = shoal::allocate(num_bytes, static_cast<std::size_t>(alignment))) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t num_bytes, const std::nothrow_t&) noexcept { return shoal::allocate(num_bytes, 1); }
void* operator new[](std::size_t num_bytes) { return operator new(num_bytes); }
void* operator new[](std::size_t num_bytes, std::align_val_t alignment) { return operator new(num_bytes, alignment); }
void* operator new[](std::size_t num_bytes, const std::nothrow_t&) noexcept { return shoal::allocate(num_bytes, 1); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }

#endif
