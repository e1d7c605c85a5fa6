// Work on single rows: norms before products, rows of a table, exact scores. Written once over V; include after one of the
// vector files. Scales of a table are binary16, widened by integer arithmetic (exact, and denormals survive any mode).
//
//   rms_norm  r = 1 / sqrt(sum(x^2) / cols + eps); y = (x * r) * w. The sum runs in four vectors, k / 16 mod 4 each,
//             joined ((0 + 1) + (2 + 3)) and then over their lanes.
//   score     kRows8: for each 256 columns a vector b in the same four parts from 0; total = fma(b, scale, total) with
//             blocks ascending from 0. kRows16: total = total + b. Then the sum over lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace shoal {
namespace {

constexpr std::size_t kLanes = 16;

float widen_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = (half >> 10) & 31, fraction = half & 0x3ff;
  float magnitude;
  if (exponent == 0) {
    magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
  } else {
    const std::uint32_t bits = (exponent + 112) << 23 | fraction << 13;
    std::memcpy(&magnitude, &bits, 4);
  }
  return sign ? -magnitude : magnitude;
}

float scale_of(const std::uint8_t* row, std::size_t padded, std::size_t block) {
  std::uint16_t half;
  std::memcpy(&half, row + padded + 2 * block, 2);
  return widen_half(half);
}

// The last cols % 16 elements of a row as a vector, zero beyond.
inline V load_part(const float* p, std::size_t count) {
  float lane[kLanes] = {};
  for (std::size_t i = 0; i < count; ++i) lane[i] = p[i];
  return load(lane);
}

float sum_of_squares(const float* x, std::size_t cols) {
  V part[4] = {zero(), zero(), zero(), zero()};
  std::size_t k = 0;
  for (; k + 4 * kLanes <= cols; k += 4 * kLanes) {
    for (std::size_t j = 0; j < 4; ++j) {
      const V v = load(x + k + j * kLanes);
      part[j] = fma(v, v, part[j]);
    }
  }
  for (std::size_t j = 0; k < cols; k += kLanes, ++j) {
    const V v = k + kLanes <= cols ? load(x + k) : load_part(x + k, cols - k);
    part[j] = fma(v, v, part[j]);
  }
  return sum(add(add(part[0], part[1]), add(part[2], part[3])));
}

void rms_norm(const float* x, std::size_t x_stride, const float* w, float eps, std::size_t n, std::size_t cols, float* y,
              std::size_t y_stride) {
  const std::size_t padded = (cols + kBlockCols - 1) / kBlockCols * kBlockCols;
  for (std::size_t i = 0; i < n; ++i, x += x_stride, y += y_stride) {
    const V mean = div(set1(sum_of_squares(x, cols)), set1(static_cast<float>(cols)));
    const V r = div(set1(1.0f), sqrt(add(mean, set1(eps))));
    std::size_t k = 0;
    for (; k + kLanes <= cols; k += kLanes) store(y + k, mul(mul(load(x + k), r), load(w + k)));
    if (k < cols) {
      float lane[kLanes];
      store(lane, mul(mul(load_part(x + k, cols - k), r), load_part(w + k, cols - k)));
      for (std::size_t j = 0; k < cols; ++j, ++k) y[k] = lane[j];
    }
    for (; k < padded; ++k) y[k] = 0.0f;
  }
}

void read(const Table& table, std::size_t row, float* out) {
  const std::size_t padded = table.padded_cols();
  const std::uint8_t* p = table.data + row * table.row_bytes();
  if (table.format == TableFormat::kRows16) {
    const std::uint16_t* values = reinterpret_cast<const std::uint16_t*>(p);
    for (std::size_t k = 0; k < padded; k += kLanes) store(out + k, load_bf16(values + k));
    return;
  }
  const std::int8_t* values = reinterpret_cast<const std::int8_t*>(p);
  for (std::size_t k = 0; k < padded; k += kLanes) {
    store(out + k, mul(load_s8(values + k), set1(scale_of(p, padded, k / kBlockCols))));
  }
}

inline V load_item(const std::int8_t* p) { return load_s8(p); }
inline V load_item(const std::uint16_t* p) { return load_bf16(p); }

// One block of one row times x, as a vector of 16 partial sums.
template <typename Item>
inline V score_block(const Item* w, const float* x) {
  V part[4] = {zero(), zero(), zero(), zero()};
  for (std::size_t k = 0; k < kBlockCols; k += 4 * kLanes) {
    part[0] = fma(load_item(w + k), load(x + k), part[0]);
    part[1] = fma(load_item(w + k + 16), load(x + k + 16), part[1]);
    part[2] = fma(load_item(w + k + 32), load(x + k + 32), part[2]);
    part[3] = fma(load_item(w + k + 48), load(x + k + 48), part[3]);
  }
  return add(add(part[0], part[1]), add(part[2], part[3]));
}

void score(const Table& table, const std::int32_t* ids, std::size_t count, const float* x, float* out) {
  const std::size_t padded = table.padded_cols(), stride = table.row_bytes();
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* row = table.data + static_cast<std::size_t>(ids[i]) * stride;
    V total = zero();
    if (table.format == TableFormat::kRows8) {
      const std::int8_t* values = reinterpret_cast<const std::int8_t*>(row);
      for (std::size_t k = 0; k < padded; k += kBlockCols) {
        const V scale = set1(scale_of(row, padded, k / kBlockCols));
        total = fma(score_block(values + k, x + k), scale, total);
      }
    } else {
      const std::uint16_t* values = reinterpret_cast<const std::uint16_t*>(row);
      for (std::size_t k = 0; k < padded; k += kBlockCols) total = add(total, score_block(values + k, x + k));
    }
    out[i] = sum(total);
  }
}

}  // namespace
}  // namespace shoal
