#include "engine/mapped_file.h"

#include <cerrno>
#include <system_error>

#include "engine/model.h"

#if defined(_WIN32)
#include <cstdio>
#include <new>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#if defined(__linux__)
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#endif

namespace shoal {

#if defined(_WIN32)

// Read, not mapped: a copy of its own in each process.
MappedFile::MappedFile(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw std::system_error(errno, std::generic_category(), path);
  _fseeki64(file, 0, SEEK_END);
  num_bytes_ = static_cast<std::size_t>(_ftelli64(file));
  _fseeki64(file, 0, SEEK_SET);
  std::uint8_t* data = static_cast<std::uint8_t*>(::operator new(num_bytes_ + 1, std::align_val_t(4096)));
  const std::size_t count = std::fread(data, 1, num_bytes_, file);
  std::fclose(file);
  data_ = data;
  if (count != num_bytes_) {
    ::operator delete(data, std::align_val_t(4096));
    throw std::system_error(EIO, std::generic_category(), path);
  }
}

MappedFile::~MappedFile() { ::operator delete(const_cast<std::uint8_t*>(data_), std::align_val_t(4096)); }

#else

MappedFile::MappedFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), path);
  struct stat status;
  int error = fstat(fd, &status) != 0 ? errno : 0;
  if (error == 0 && status.st_size > 0) {
    num_bytes_ = static_cast<std::size_t>(status.st_size);
    if (!map(fd)) error = errno;
  }
  close(fd);
  if (error != 0) throw std::system_error(error, std::generic_category(), path);
}

#if defined(__linux__)

namespace {

constexpr std::size_t kPage = 4096, kLargePage = std::size_t{2} << 20;
constexpr std::size_t kWorthReloading = std::size_t{64} << 20;  // smaller files lie in caches, or take no time
constexpr std::size_t kTrial = std::size_t{32} << 20;
constexpr double kMaxReloadSeconds = 4.0;

// Every page is read in each step; faults one by one would cost the first step dearly. A refusal costs speed only.
void populate(const std::uint8_t* begin, std::size_t num_bytes) {
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14
  void* p = const_cast<std::uint8_t*>(begin);
  if (madvise(p, num_bytes, kPopulateRead) != 0) madvise(p, num_bytes, MADV_WILLNEED);
}

// Out of this process's view, then out of the system's cache unless others see it or it waits to be written.
void evict(int fd, const std::uint8_t* data, std::size_t begin, std::size_t end) {
  madvise(const_cast<std::uint8_t*>(data) + begin, end - begin, MADV_DONTNEED);
  posix_fadvise(fd, static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
}

}  // namespace

// The mapping begins at a large page and asks for such: a file that is read into the system's cache this way lies there in
// large pages, for all processes, and streams a third faster where translation is dear (nested paging of virtual machines:
// 24 instead of 18 GB/s on one core).
bool MappedFile::map(int fd) {
  const std::size_t kept = round_up(num_bytes_, kPage), reserved = kept + kLargePage;
  void* place = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return false;
  std::uint8_t* begin = static_cast<std::uint8_t*>(place);
  const std::size_t before = (kLargePage - reinterpret_cast<std::uintptr_t>(begin) % kLargePage) % kLargePage;
  if (before > 0) munmap(begin, before);
  begin += before;
  munmap(begin + kept, reserved - before - kept);
  if (mmap(begin, num_bytes_, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const int error = errno;
    munmap(begin, kept);
    errno = error;
    return false;
  }
  data_ = begin;
  madvise(begin, num_bytes_, MADV_HUGEPAGE);
  populate(begin, num_bytes_);
  cache_in_large_pages(fd);
  return true;
}

// A file that was copied, or read in the ordinary way, is cached in small pages and would stay so. It is read once more,
// where a trial on its beginning shows that this helps and is not long.
void MappedFile::cache_in_large_pages(int fd) {
  if (num_bytes_ < kWorthReloading || large_page_bytes() >= num_bytes_ / 2) return;
  const auto start = std::chrono::steady_clock::now();
  evict(fd, data_, 0, kTrial);
  const std::size_t left = large_page_bytes();
  populate(data_, kTrial);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const bool helps = large_page_bytes() >= left + kTrial / 2;
  if (!helps || seconds * static_cast<double>(num_bytes_) > kMaxReloadSeconds * static_cast<double>(kTrial)) return;
  evict(fd, data_, kTrial, num_bytes_);
  populate(data_ + kTrial, num_bytes_ - kTrial);
}

std::size_t MappedFile::large_page_bytes() const {
  if (num_bytes_ == 0) return 0;
  std::FILE* maps = std::fopen("/proc/self/smaps", "re");
  if (maps == nullptr) return 0;
  char line[512];
  bool is_ours = false;
  std::size_t kilobytes = 0;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    std::uintptr_t begin, end;
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2) {
      if (is_ours) break;  // the next mapping
      is_ours = begin == reinterpret_cast<std::uintptr_t>(data_);
    } else if (is_ours && std::sscanf(line, "FilePmdMapped: %zu", &kilobytes) == 1) {
      break;
    }
  }
  std::fclose(maps);
  return std::min(kilobytes * 1024, num_bytes_);
}

#else

bool MappedFile::map(int fd) {
  void* place = mmap(nullptr, num_bytes_, PROT_READ, MAP_SHARED, fd, 0);
  if (place == MAP_FAILED) return false;
  data_ = static_cast<const std::uint8_t*>(place);
  madvise(place, num_bytes_, MADV_WILLNEED);
  return true;
}

#endif

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::uint8_t*>(data_), num_bytes_);
}

#endif

#if !defined(__linux__)
std::size_t MappedFile::large_page_bytes() const { return 0; }
#endif

}  // namespace shoal
