#include "engine/weights.h"

#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <unordered_map>

#if defined(_WIN32)
#include <cstdio>
#include <new>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
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

// On Linux the mapping begins at a large page and asks for such: a file that is read into the system's cache this way lies
// there in large pages, for all processes, and streams a third faster where translation is dear (nested paging of virtual
// machines: 24 instead of 18 GB/s). Files that are cached in small pages already stay so.
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

bool MappedFile::map(int fd) {
  constexpr std::size_t kLargePage = std::size_t{2} << 20, kPage = 4096;
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14
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
  // Every page is read in each step; faults one by one would cost the first step dearly. Refusals cost speed only.
  madvise(begin, num_bytes_, MADV_HUGEPAGE);
  if (madvise(begin, num_bytes_, kPopulateRead) != 0) madvise(begin, num_bytes_, MADV_WILLNEED);
  return true;
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

namespace {

class Finder {
 public:
  Finder(const std::vector<TensorEntry>& entries, const std::uint8_t* data, std::size_t num_bytes)
      : data_(data), num_bytes_(num_bytes) {
    for (const TensorEntry& entry : entries) by_name_[entry.spec.name] = &entry;
  }

  const float* vector(const std::string& name, std::size_t rows, std::size_t cols = 1) const {
    const TensorEntry& entry = find(name, rows, cols);
    if (entry.spec.layout != Layout::kF32) refuse(name, "must be f32");
    return reinterpret_cast<const float*>(data_ + entry.offset);
  }

  Matrix matrix(const std::string& name, std::size_t rows, std::size_t cols) const {
    const TensorEntry& entry = find(name, rows, cols);
    if (!is_panels(entry.spec.layout)) refuse(name, "must be int4, int8 or bf16");
    return {data_ + entry.offset, static_cast<Format>(entry.spec.layout), rows, cols};
  }

  Table table(const std::string& name, std::size_t rows, std::size_t cols) const {
    const TensorEntry& entry = find(name, rows, cols);
    if (!is_table(entry.spec.layout)) refuse(name, "must be rows8 or rows16");
    const TableFormat format = entry.spec.layout == Layout::kRows8 ? TableFormat::kRows8 : TableFormat::kRows16;
    return {data_ + entry.offset, format, rows, cols};
  }

 private:
  [[noreturn]] static void refuse(const std::string& name, const std::string& what) {
    throw std::invalid_argument("tensor " + name + " " + what);
  }

  const TensorEntry& find(const std::string& name, std::size_t rows, std::size_t cols) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) refuse(name, "is missing");
    const TensorEntry& entry = *found->second;
    const TensorSpec& spec = entry.spec;
    if (spec.rows * spec.cols != rows * cols || (spec.layout != Layout::kF32 && spec.rows != rows)) {
      refuse(name, "has shape " + std::to_string(spec.rows) + " x " + std::to_string(spec.cols) + ", the model needs " +
                       std::to_string(rows) + " x " + std::to_string(cols));
    }
    if (entry.offset % 64 != 0) refuse(name, "does not begin at a multiple of 64 bytes");
    if (entry.offset > num_bytes_ || entry.num_bytes > num_bytes_ - entry.offset) refuse(name, "lies outside the file");
    if (entry.num_bytes < used_bytes(spec.layout, rows, cols)) refuse(name, "is too short for its layout");
    return entry;
  }

  std::unordered_map<std::string, const TensorEntry*> by_name_;
  const std::uint8_t* data_;
  std::size_t num_bytes_;
};

LayerWeights find_layer(const ModelShape& s, const Finder& find, std::size_t index) {
  const std::string layer = "layers." + std::to_string(index) + ".";
  LayerWeights w = {};
  w.kind = s.layers[index];
  w.input_norm = find.vector(layer + "input_norm", s.hidden);
  w.post_norm = find.vector(layer + "post_norm", s.hidden);
  w.gate_up = find.matrix(layer + "gate_up", 2 * s.inner_dim(), s.hidden);
  w.down = find.matrix(layer + "down", s.hidden, s.intermediate);
  if (w.kind == LayerKind::kDelta) {
    w.projection = find.matrix(layer + "in_proj", s.in_proj_dim(), s.hidden);
    w.gates = find.matrix(layer + "gates", 2 * s.value_heads, s.hidden);
    w.delta.conv = find.vector(layer + "conv", s.delta().conv_dim(), kTaps);
    w.delta.decay = find.vector(layer + "decay", s.value_heads);
    w.delta.dt_bias = find.vector(layer + "dt_bias", s.value_heads);
    w.delta.norm = find.vector(layer + "mixer_norm", s.value_dim);
    w.delta.eps = s.eps;
    w.out_proj = find.matrix(layer + "out_proj", s.hidden, s.delta_value_dim());
  } else {
    w.projection = find.matrix(layer + "qkv", s.qkv_dim(), s.hidden);
    w.q_norm = find.vector(layer + "q_norm", s.head_dim);
    w.k_norm = find.vector(layer + "k_norm", s.head_dim);
    w.out_proj = find.matrix(layer + "out_proj", s.hidden, s.query_dim());
  }
  return w;
}

}  // namespace

Weights find_weights(const ModelShape& shape, const std::vector<TensorEntry>& entries, const std::uint8_t* data,
                     std::size_t num_bytes) {
  const Finder find(entries, data, num_bytes);
  Weights w;
  w.embedding = find.table("embed.table", shape.vocab, shape.hidden);
  w.head_table = shape.tied_head ? w.embedding : find.table("head.table", shape.vocab, shape.hidden);
  w.head_scan = find.matrix("head.scan", shape.vocab, shape.hidden);
  w.head_sigma = find.vector("head.sigma", shape.vocab);
  w.norm = find.vector("norm", shape.hidden);
  for (std::size_t i = 0; i < shape.layers.size(); ++i) w.layers.push_back(find_layer(shape, find, i));
  w.num_bytes = 0;
  for (const TensorEntry& entry : entries) w.num_bytes += entry.num_bytes;
  return w;
}

}  // namespace shoal
