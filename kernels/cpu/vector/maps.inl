// The lanes' own operations as functions over arrays: entries of VectorKernels. Include after vector/functions.h.
#pragma once

#include "kernels.h"

namespace shoal {
namespace {

template <V (*F)(V)>
void map(const float* x, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; i += 16) store(y + i, F(load(x + i)));
}

inline V round_bf16(V a) {
  alignas(64) std::uint16_t half[16];
  store_bf16(half, a);
  return load_bf16(half);
}
inline V round_s8(V a) {
  alignas(64) std::int8_t bytes[16];
  store_s8(bytes, a);
  return load_s8(bytes);
}
inline V sum_lanes(V a) { return set1(sum(a)); }
inline V largest_lane(V a) { return set1(largest(a)); }

void split_quads(const float* x, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; i += 64) {
    V t[4];
    load_quads(x + i, t);
    for (int j = 0; j < 4; ++j) store(y + i + 16 * j, t[j]);
  }
}

void transpose_squares(const float* x, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; i += 256) {
    V r[16];
    for (int j = 0; j < 16; ++j) r[j] = load(x + i + 16 * j);
    transpose(r);
    for (int j = 0; j < 16; ++j) store(y + i + 16 * j, r[j]);
  }
}

constexpr VectorKernels kVectorMaps = {{
    {"exp", map<exp>},
    {"sigmoid", map<sigmoid>},
    {"silu", map<silu>},
    {"log1p_unit", map<log1p_unit>},
    {"softplus", map<softplus>},
    {"round_bf16", map<round_bf16>},
    {"round_s8", map<round_s8>},
    {"sum", map<sum_lanes>},
    {"largest", map<largest_lane>},
    {"split_quads", split_quads},
    {"transpose", transpose_squares},
}};

}  // namespace
}  // namespace shoal
