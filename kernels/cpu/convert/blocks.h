// The byte layouts that need no search, and all of them back to floats. Included by quantise.cc alone.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "convert/half.h"
#include "convert/quantise.h"

namespace shoal {
namespace {

constexpr float kLargestInt8 = 127.0f;

std::size_t blocks_of(std::size_t cols) { return (cols + kBlockCols - 1) / kBlockCols; }

bool is_table(PackedLayout layout) { return layout == PackedLayout::kRows8 || layout == PackedLayout::kRows16; }

std::size_t block_bytes_of(PackedLayout layout) { return block_bytes(static_cast<Format>(layout)); }

// Bytes of `rows` rows of a table, or of one panel.
std::size_t stripe_bytes(PackedLayout layout, std::size_t rows, std::size_t cols) {
  if (layout == PackedLayout::kRows8) return rows * blocks_of(cols) * (kBlockCols + 2);
  if (layout == PackedLayout::kRows16) return rows * blocks_of(cols) * kBlockCols * 2;
  return blocks_of(cols) * block_bytes_of(layout);
}

void put_half(std::uint8_t* p, float value) {
  const std::uint16_t h = half_of_float(value);
  std::memcpy(p, &h, sizeof h);
}

float get_half(const std::uint8_t* p) {
  std::uint16_t h;
  std::memcpy(&h, p, sizeof h);
  return float_of_half(h);
}

// --- int8: D = the largest |w| / 127, as binary16 --------------------------------------------------------------------

float int8_scale(const float* w) {
  float largest = 0.0f;
  for (std::size_t k = 0; k < kBlockCols; ++k) largest = std::fabs(w[k]) > largest ? std::fabs(w[k]) : largest;
  return float_of_half(half_of_float(largest / kLargestInt8));
}

// q = w / scale to nearest, ties to even, within -127..127.
void int8_values(const float* w, float scale, std::int8_t* q) {
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (std::size_t k = 0; k < kBlockCols; ++k) {
    float x = w[k] * inverse;
    x = x > kLargestInt8 ? kLargestInt8 : x < -kLargestInt8 ? -kLargestInt8 : x;
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    q[k] = static_cast<std::int8_t>(bits_of_float(x + 12582912.0f) - bits_of_float(12582912.0f));
  }
}

void pack_int8_block(const float* w, std::size_t stride, std::uint8_t* block) {
  std::int8_t q[kBlockCols];
  for (std::size_t row = 0; row < kPanelRows; ++row) {
    const float scale = int8_scale(w + row * stride);
    int8_values(w + row * stride, scale, q);
    std::uint8_t* lines = block + row / 16 * 64 + row % 16 * 4;
    for (std::size_t k = 0; k < kBlockCols; ++k) lines[k / 4 * 128 + k % 4] = static_cast<std::uint8_t>(128 + q[k]);
    put_half(block + kInt8ScaleOffset + 2 * row, scale);
  }
}

void pack_bf16_block(const float* w, std::size_t stride, std::uint8_t* block) {
  for (std::size_t row = 0; row < kPanelRows; ++row) {
    std::uint8_t* lines = block + row / 16 * 64 + row % 16 * 4;
    for (std::size_t k = 0; k < kBlockCols; ++k) {
      const std::uint16_t h = bf16_of_float(w[row * stride + k]);
      std::memcpy(lines + k / 2 * 128 + k % 2 * 2, &h, sizeof h);
    }
  }
}

void pack_table_row(PackedLayout layout, const float* w, std::size_t blocks, std::uint8_t* out) {
  for (std::size_t b = 0; b < blocks; ++b) {
    const float* x = w + b * kBlockCols;
    if (layout == PackedLayout::kRows8) {
      const float scale = int8_scale(x);
      int8_values(x, scale, reinterpret_cast<std::int8_t*>(out + b * kBlockCols));
      put_half(out + blocks * kBlockCols + 2 * b, scale);
    } else {
      std::uint16_t h[kBlockCols];
      for (std::size_t k = 0; k < kBlockCols; ++k) h[k] = bf16_of_float(x[k]);
      std::memcpy(out + b * sizeof h, h, sizeof h);
    }
  }
}

void unpack_table_row(PackedLayout layout, const std::uint8_t* row, std::size_t blocks, float* out) {
  for (std::size_t b = 0; b < blocks; ++b) {
    float* y = out + b * kBlockCols;
    if (layout == PackedLayout::kRows8) {
      const float scale = get_half(row + blocks * kBlockCols + 2 * b);
      const auto* q = reinterpret_cast<const std::int8_t*>(row + b * kBlockCols);
      for (std::size_t k = 0; k < kBlockCols; ++k) y[k] = scale * static_cast<float>(q[k]);
    } else {
      std::uint16_t h[kBlockCols];
      std::memcpy(h, row + b * sizeof h, sizeof h);
      for (std::size_t k = 0; k < kBlockCols; ++k) y[k] = float_of_bf16(h[k]);
    }
  }
}

// --- blocks back to floats -------------------------------------------------------------------------------------------

std::size_t scale_offset(PackedLayout layout) {
  return layout == PackedLayout::kInt4 ? kInt4ScaleOffset : kInt8ScaleOffset;
}

void unpack_int4_row(const std::uint8_t* block, std::size_t row, float* out) {
  const std::size_t half = row / 16, lane = row % 16;
  const float d = get_half(block + kInt4ScaleOffset + 2 * row);
  for (std::size_t g = 0; g < 16; ++g) {
    const std::uint8_t codes = block[128 * half + 16 * (g % 8) + lane];
    const float scale = d * static_cast<float>(kInt4Scales[g < 8 ? codes & 15 : codes >> 4]);
    for (std::size_t j = 0; j < 2; ++j) {
      const std::uint8_t* line = block + kInt4LinesOffset + 64 * ((g * 2 + j) * 2 + half) + 4 * lane;
      float* y = out + 16 * g + 8 * j;
      for (std::size_t b = 0; b < 4; ++b) {
        y[b] = scale * static_cast<float>(kInt4Levels[line[b] & 15]);
        y[b + 4] = scale * static_cast<float>(kInt4Levels[line[b] >> 4]);
      }
    }
  }
}

void unpack_block_row(PackedLayout layout, const std::uint8_t* block, std::size_t row, float* out) {
  if (layout == PackedLayout::kInt4) return unpack_int4_row(block, row, out);
  const std::uint8_t* lines = block + row / 16 * 64 + row % 16 * 4;
  if (layout == PackedLayout::kInt8) {
    const float d = get_half(block + kInt8ScaleOffset + 2 * row);
    for (std::size_t k = 0; k < kBlockCols; ++k) out[k] = d * static_cast<float>(lines[k / 4 * 128 + k % 4] - 128);
  } else {
    for (std::size_t k = 0; k < kBlockCols; ++k) {
      std::uint16_t h;
      std::memcpy(&h, lines + k / 2 * 128 + k % 2 * 2, sizeof h);
      out[k] = float_of_bf16(h);
    }
  }
}

// Row `row` of a stripe: a panel, or `rows` rows of a table.
void unpack_row(PackedLayout layout, const std::uint8_t* stripe, std::size_t row, std::size_t cols, float* out) {
  const std::size_t blocks = blocks_of(cols);
  if (is_table(layout)) return unpack_table_row(layout, stripe + row * stripe_bytes(layout, 1, cols), blocks, out);
  for (std::size_t b = 0; b < blocks; ++b)
    unpack_block_row(layout, stripe + b * block_bytes_of(layout), row, out + b * kBlockCols);
}

}  // namespace
}  // namespace shoal
