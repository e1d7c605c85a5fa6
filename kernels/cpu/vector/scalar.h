// Sixteen f32 lanes in portable C++. The three files of this folder define the same names with the same results, bit for
// bit; include exactly one, inside an ISA file, before kernels/cpu/vector/functions.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shoal {
namespace {

struct V {
  float lane[16];
};

inline float bits_to_float(std::uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline std::uint32_t float_to_bits(float f) {
  std::uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

#define SHOAL_LANES(expression)                                     \
  V r;                                                              \
  for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(expression); \
  return r

inline V zero() { SHOAL_LANES(0.0f); }
inline V set1(float x) { SHOAL_LANES(x); }
inline V load(const float* p) { SHOAL_LANES(p[i]); }
inline void store(float* p, V a) { std::memcpy(p, a.lane, sizeof a.lane); }
inline V add(V a, V b) { SHOAL_LANES(a.lane[i] + b.lane[i]); }
inline V sub(V a, V b) { SHOAL_LANES(a.lane[i] - b.lane[i]); }
inline V mul(V a, V b) { SHOAL_LANES(a.lane[i] * b.lane[i]); }
inline V div(V a, V b) { SHOAL_LANES(a.lane[i] / b.lane[i]); }
inline V fma(V a, V b, V c) { SHOAL_LANES(std::fma(a.lane[i], b.lane[i], c.lane[i])); }    // a * b + c
inline V fnma(V a, V b, V c) { SHOAL_LANES(std::fma(-a.lane[i], b.lane[i], c.lane[i])); }  // c - a * b
inline V sqrt(V a) { SHOAL_LANES(std::sqrt(a.lane[i])); }
inline V max(V a, V b) { SHOAL_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }  // b where unordered
inline V min(V a, V b) { SHOAL_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
// a where x >= y, else 0
inline V keep_if_ge(V a, V x, V y) { SHOAL_LANES(x.lane[i] >= y.lane[i] ? a.lane[i] : 0.0f); }
// bits(a) + (bits(t) << 23): times two to the power that the low bits of t hold
inline V shift_exponent(V a, V t) {
  SHOAL_LANES(bits_to_float(float_to_bits(a.lane[i]) + (float_to_bits(t.lane[i]) << 23)));
}
inline V load_bf16(const std::uint16_t* p) { SHOAL_LANES(bits_to_float(static_cast<std::uint32_t>(p[i]) << 16)); }
inline V load_s8(const std::int8_t* p) { SHOAL_LANES(p[i]); }
// To nearest, ties to even; a must be finite.
inline void store_bf16(std::uint16_t* p, V a) {
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t u = float_to_bits(a.lane[i]);
    p[i] = static_cast<std::uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
}
// To nearest, ties to even; |a| <= 127.
inline void store_s8(std::int8_t* p, V a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(std::lrintf(a.lane[i]));
}
// ((l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1)): the order of every set.
inline float sum(V a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.lane[i] = a.lane[i] + a.lane[i + width];
  return a.lane[0];
}
inline float largest(V a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.lane[i] = a.lane[i] > a.lane[i + width] ? a.lane[i] : a.lane[i + width];
  return a.lane[0];
}
// a with lane `at` replaced by x
inline V insert(V a, std::size_t at, float x) {
  a.lane[at] = x;
  return a;
}
// p[64] holds four numbers a lane: t[j] = p[4 * lane + j]
inline void load_quads(const float* p, V t[4]) {
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 16; ++i) t[j].lane[i] = p[4 * i + j];
}
// lane j of r[i] and lane i of r[j] change places
inline void transpose(V r[16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      const float x = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i];
      r[j].lane[i] = x;
    }
  }
}
// Asks for the cache line of p; p need not be readable.
inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}  // into the second-level cache, for later use
inline float fma1(float a, float b, float c) { return std::fma(a, b, c); }

#undef SHOAL_LANES

}  // namespace
}  // namespace shoal
