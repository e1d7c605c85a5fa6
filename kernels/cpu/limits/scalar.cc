// Portable C++: what the compiler makes of plain loops on the platform's baseline.
#include <cstring>

#include "limits/limits.h"

namespace shoal {
namespace {

struct Line {
  std::uint64_t word[4];
};
inline Line none() { return {{0, 0, 0, 0}}; }
inline Line take(Line a, const std::uint8_t* p) {
  std::uint64_t q[8];
  std::memcpy(q, p, sizeof q);
  return {{a.word[0] | q[0] | q[4], a.word[1] | q[1] | q[5], a.word[2] | q[2] | q[6], a.word[3] | q[3] | q[7]}};
}
inline std::uint64_t fold(Line a) { return a.word[0] | a.word[1] | a.word[2] | a.word[3]; }

}  // namespace
}  // namespace shoal

#include "limits/loops.h"

namespace shoal {
namespace {

constexpr int kChains = 64;

// The operands lie in memory, so that no product can be folded away.
struct Bytes {
  std::int8_t x[kChains], y[kChains];
};
volatile std::int8_t seed = 3;

std::uint64_t dot_int8(std::size_t rounds) {
  Bytes bytes;
  std::int32_t sum[kChains];
  for (int i = 0; i < kChains; ++i) {
    bytes.x[i] = seed;
    bytes.y[i] = static_cast<std::int8_t>(seed - 5);
    sum[i] = i;
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    bytes.x[round % kChains] = seed;
    for (int i = 0; i < kChains; ++i) sum[i] += bytes.x[i] * bytes.y[i];
  }
  std::uint64_t out = 0;
  for (int i = 0; i < kChains; ++i) out |= static_cast<std::uint32_t>(sum[i]);
  return out;
}

std::uint64_t fma_f32(std::size_t rounds) {
  const float x = 0.5f * static_cast<float>(seed) / 3.0f, y = static_cast<float>(seed);
  float sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = static_cast<float>(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * x + y;
  }
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += sum[i];
  return static_cast<std::uint64_t>(total);
}

}  // namespace

extern const LimitKernels limits_scalar;
const LimitKernels limits_scalar = {&read, &dot_int8, &fma_f32, kChains * 2, kChains * 2};

}  // namespace shoal
