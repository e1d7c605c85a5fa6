#include "engine/arena.h"

#include <algorithm>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace shoal {
namespace {

constexpr std::size_t kSmallPage = 4096, kLargePage = std::size_t{2} << 20;

// Hands out consecutive parts of a block that may not exist yet.
class Carver {
 public:
  explicit Carver(std::uint8_t* base) : base_(base) {}

  template <typename Item>
  Item* take(std::size_t count) {
    Item* p = base_ == nullptr ? nullptr : reinterpret_cast<Item*>(base_ + used_);
    used_ += round_up(count * sizeof(Item), 64);
    return p;
  }

  QuantisedRows take_quantised(std::size_t rows, std::size_t cols) {
    QuantisedRows r;
    r.q = take<std::int8_t>(rows * cols);
    r.scale = take<float>(rows * (cols / kBlockCols));
    r.sum16 = take<std::int16_t>(rows * (cols / kGroupCols));
    r.sum256 = take<std::int32_t>(rows * (cols / kBlockCols));
    return r;
  }

  std::size_t used() const { return used_; }

 private:
  std::uint8_t* base_;
  std::size_t used_ = 0;
};

}  // namespace

Buffers carve(const ModelShape& shape, const EngineSizes& sizes, std::uint8_t* base) {
  const bool has_delta = shape.count(LayerKind::kDelta) > 0, has_attention = shape.count(LayerKind::kAttention) > 0;
  const std::size_t mixed = std::max(has_delta ? shape.delta_value_dim() : 0, has_attention ? shape.query_dim() : 0);
  const std::size_t projected = std::max(has_delta ? shape.in_proj_dim() : 0, has_attention ? shape.qkv_dim() : 0);
  Buffers b;
  b.hidden_stride = round_up(shape.hidden, kBlockCols);
  b.projected_stride = round_up(projected, 16);
  b.gates_stride = has_delta ? round_up(2 * shape.value_heads, 16) : 0;
  b.mixed_stride = round_up(mixed, kBlockCols);
  b.inner_stride = round_up(shape.intermediate, kBlockCols);
  b.num_scan_panels = (shape.vocab + kPanelRows - 1) / kPanelRows;
  b.scan_stride = b.num_scan_panels * kPanelRows;
  const std::size_t widest = std::max({b.hidden_stride, b.mixed_stride, b.inner_stride});
  const std::size_t tokens = sizes.max_tokens, few = std::min(tokens, kDirectRows);
  const std::size_t angles = has_attention ? tokens * shape.inverse_frequencies.size() : 0;

  Carver carver(base);
  b.x = carver.take<float>(tokens * b.hidden_stride);
  b.normed = carver.take<float>(tokens * b.hidden_stride);
  b.projected = carver.take<float>(tokens * b.projected_stride);
  b.gates = carver.take<float>(tokens * b.gates_stride);
  b.mixed = carver.take<float>(tokens * b.mixed_stride);
  b.inner = carver.take<float>(tokens * b.inner_stride);
  b.cos = carver.take<float>(angles);
  b.sin = carver.take<float>(angles);
  b.quantised = carver.take_quantised(tokens, widest);
  b.full_x = carver.take<float>(sizes.max_full_rows * b.hidden_stride);
  b.top_x = carver.take<float>(sizes.max_rows * b.hidden_stride);
  b.scan = carver.take<float>(sizes.max_rows * b.scan_stride);
  b.panel_best = carver.take<float>(sizes.max_rows * b.num_scan_panels);
  b.panel_sigma = carver.take<float>(b.num_scan_panels);
  b.panel_peak = carver.take<float>(b.num_scan_panels);
  b.candidates = carver.take<Candidate>(sizes.max_rows * kMaxCandidates);
  b.ids = carver.take<std::int32_t>(sizes.max_rows * kMaxCandidates);
  b.scores = carver.take<float>(sizes.max_rows * kMaxCandidates);
  b.threads.resize(sizes.threads);
  for (ThreadBuffers& t : b.threads) {
    t.normed = carver.take<float>(few * b.hidden_stride);
    t.quantised = carver.take_quantised(few, widest);
    t.scratch = carver.take<std::uint8_t>(std::max(kTileScratchBytes, kMixerScratchBytes));
  }
  b.num_bytes = carver.used();
  return b;
}

std::size_t arena_bytes(const ModelShape& shape, const EngineSizes& sizes) {
  return carve(shape, sizes, nullptr).num_bytes;
}

#if defined(__linux__)

// Fresh pages are zero. Writing them once more would double the time of a start with large pools.
Memory::Memory(std::size_t num_bytes) : data_(nullptr), num_bytes_(num_bytes) {
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
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14
  if (madvise(data_, kept, kPopulateWrite) == 0) return;
  volatile std::uint8_t* touched = data_;
  for (std::size_t at = 0; at < num_bytes; at += kSmallPage) touched[at] = 0;
}

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, round_up(num_bytes_, kSmallPage));
}

#else

Memory::Memory(std::size_t num_bytes) : data_(nullptr), num_bytes_(num_bytes) {
  if (num_bytes == 0) return;
  data_ = static_cast<std::uint8_t*>(::operator new(num_bytes, std::align_val_t(kSmallPage)));
  std::memset(data_, 0, num_bytes);
}

Memory::~Memory() {
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t(kSmallPage));
}

#endif

}  // namespace shoal
