// The distance of software prefetch, chosen by measurement on the weights themselves: what their pages and this machine's
// caches make of it cannot be read off the processor's name.
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace shoal {

std::size_t prefetch_distance = kPrefetchDistance;

namespace {

constexpr std::size_t kDistances[] = {kPrefetchDistance, kPrefetchDistance / 2, 0};  // what comes first wins a draw
constexpr std::size_t kNumDistances = sizeof kDistances / sizeof kDistances[0];
constexpr std::size_t kRounds = 6;
constexpr std::size_t kSliceBytes = 3 << 20;  // long against the start of a stream, short against a time slice
constexpr double kClearly = 0.97;             // of the time, to leave the distance that came before

// So that no page is first touched while the clock runs.
void touch_pages(const std::uint8_t* p, std::size_t num_bytes) {
  volatile std::uint8_t byte;
  for (std::size_t i = 0; i < num_bytes; i += 4096) byte = p[i];
  (void)byte;
}

}  // namespace

void measure_prefetch_distance(const DirectKernels& kernels, const Matrix& w) {
  if (&kernels == &direct_scalar) return;  // which has no prefetch
  const std::size_t slice = kSliceBytes / w.panel_bytes() + 1, num_slices = w.num_panels() / slice;
  if (num_slices < kRounds * kNumDistances) return;
  const std::size_t padded = w.padded_cols();
  const std::vector<float> x(padded), scale(w.num_blocks());
  const std::vector<std::int8_t> q(padded);
  const std::vector<std::int16_t> sum16(padded / kGroupCols);
  const std::vector<std::int32_t> sum256(w.num_blocks());
  std::vector<float> y(w.num_panels() * kPanelRows);
  const Activations a = {1, padded, x.data(), padded, q.data(), scale.data(), sum16.data(), sum256.data()};
  const Output out = {y.data(), y.size(), Store::kSet};
  double best[kNumDistances];  // of each, seconds: interruptions and neighbours only ever add
  for (std::size_t round = 0; round < kRounds; ++round) {
    for (std::size_t d = 0; d < kNumDistances; ++d) {
      prefetch_distance = kDistances[d];
      const std::size_t first = (round * kNumDistances + d) * slice;  // every slice once: none is cached from before
      touch_pages(w.data + first * w.panel_bytes(), slice * w.panel_bytes());
      const auto begin = std::chrono::steady_clock::now();
      kernels.multiply[static_cast<int>(w.format)](w, a, first, slice, out);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (round == 0 || seconds < best[d]) best[d] = seconds;
    }
  }
  std::size_t chosen = 0;
  for (std::size_t d = 1; d < kNumDistances; ++d)
    if (best[d] < kClearly * best[chosen]) chosen = d;
  prefetch_distance = kDistances[chosen];
}

}  // namespace shoal
