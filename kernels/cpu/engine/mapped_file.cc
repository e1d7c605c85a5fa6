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
#include <sys/ioctl.h>

#include <algorithm>
#include <chrono>
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
constexpr std::size_t kTolerated = 32;                          // a part in so many may lie in small pages
constexpr std::size_t kTrial = std::size_t{8} << 20;  // in vain at each start where the file system has no large pages
constexpr double kMaxReloadSeconds = 4.0;

// PAGEMAP_SCAN of Linux 6.7, <linux/fs.h>: older headers lack it.
struct ScannedRegion {
  std::uint64_t begin, end, categories;
};
struct Scan {
  std::uint64_t size, flags, begin, end, walk_end, regions, num_regions, max_pages, category_inverted, category_mask,
      category_anyof_mask, return_mask;
};
constexpr std::uint64_t kIsHuge = 1 << 6;

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

// What was copied, or read in the ordinary way, is cached in small pages and would stay so. It is read once more, where a
// trial on its beginning shows that this helps and is not long.
void MappedFile::cache_in_large_pages(int fd) {
  std::vector<Part> parts;
  if (num_bytes_ < kWorthReloading || !find_small_pages(parts)) return;
  std::size_t small = 0;
  for (const Part& part : parts) small += part.end - part.begin;
  if (small < num_bytes_ / kTolerated) return;
  std::size_t tried = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const Part& part : parts) {
    for (std::size_t at = part.begin; at < part.end; at += kTrial) {
      const std::size_t end = std::min(at + kTrial, part.end);
      evict(fd, data_, at, end);
      populate(data_ + at, end - at);
      if (tried >= kTrial) continue;
      tried += end - at;
      if (tried < std::min(kTrial, small)) continue;
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      std::vector<Part> left;
      if (!find_small_pages(left)) return;
      std::size_t still = 0;
      for (const Part& one : left) still += one.end - one.begin;
      const bool helps = still + tried / 2 <= small;
      if (!helps || seconds * static_cast<double>(small) > kMaxReloadSeconds * static_cast<double>(tried)) return;
    }
  }
}

// Whole large pages that the processor sees as small ones, ascending.
bool MappedFile::find_small_pages(std::vector<Part>& parts) const {
  const int pages = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pages < 0) return false;
  const std::uint64_t first = reinterpret_cast<std::uintptr_t>(data_);
  const std::size_t end = num_bytes_ / kLargePage * kLargePage;
  ScannedRegion regions[256];
  Scan scan = {};
  scan.size = sizeof scan;
  scan.begin = first;
  scan.end = first + end;
  scan.regions = reinterpret_cast<std::uintptr_t>(regions);
  scan.num_regions = 256;
  scan.category_inverted = scan.category_mask = kIsHuge;
  scan.return_mask = kIsHuge;
  int count = 0;
  while (scan.begin < scan.end && (count = ioctl(pages, _IOWR('f', 16, Scan), &scan)) > 0) {
    for (int i = 0; i < count; ++i) {
      const std::size_t from = (regions[i].begin - first) / kLargePage * kLargePage;
      const std::size_t to = std::min(round_up(regions[i].end - first, kLargePage), end);
      if (!parts.empty() && from <= parts.back().end) {
        parts.back().end = std::max(parts.back().end, to);
      } else {
        parts.push_back({from, to});
      }
    }
    scan.begin = scan.walk_end;
  }
  close(pages);
  return count >= 0;
}

std::size_t MappedFile::large_page_bytes() const {
  std::vector<Part> parts;
  if (num_bytes_ < kLargePage || !find_small_pages(parts)) return 0;
  std::size_t large = num_bytes_ / kLargePage * kLargePage;
  for (const Part& part : parts) large -= part.end - part.begin;
  return large;
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
