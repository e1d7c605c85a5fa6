// Portable kernels: the fallback everywhere, and what the other tables are compared with.
//
// Sums run over eight lanes (lane l takes the columns l, l + 8, ...), which are then added pairwise: a fixed order that
// every compiler can keep in two SSE or NEON registers without being allowed to reorder floating point.
#include <cstring>

#include "kernels.h"

namespace shoal {
namespace {

constexpr std::size_t kLanes = 8;

inline float widen(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

float dot(const std::uint16_t* w, const float* x, std::size_t in) {
  float lane[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l) lane[l] += widen(w[i + l]) * x[i + l];
  }
  for (std::size_t l = 0; i + l < in; ++l) lane[l] += widen(w[i + l]) * x[i + l];
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

void matvec_bf16(float* y, const std::uint16_t* w, const float* x, std::size_t n, std::size_t out, std::size_t in) {
  for (std::size_t o = 0; o < out; ++o) {
    for (std::size_t r = 0; r < n; ++r) y[r * out + o] = dot(w + o * in, x + r * in, in);
  }
}

}  // namespace

extern const Kernels kernels_scalar = {"scalar", matvec_bf16};

}  // namespace shoal
