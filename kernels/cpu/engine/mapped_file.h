// A file in memory, read only; its pages come from the operating system's cache and are shared between processes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace shoal {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws std::system_error
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::size_t num_bytes() const { return num_bytes_; }

  // How much of it the processor sees through large pages; 0 where the system does not say (Linux says so from 6.7 on).
  std::size_t large_page_bytes() const;

 private:
#if !defined(_WIN32)
  bool map(int fd);  // false: errno says why
#endif
#if defined(__linux__)
  struct Part {
    std::size_t begin, end;  // bytes, multiples of a large page
  };
  bool find_small_pages(std::vector<Part>& parts) const;  // false: the system does not say
  void cache_in_large_pages(int fd);
#endif

  const std::uint8_t* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

}  // namespace shoal
