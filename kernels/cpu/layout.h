// How weights, activations and sequence states lie in memory: the one description that every kernel, the converter and
// the memory plan share. Nothing here computes. docs/weights-format.md says the same in prose; runtime/plan.py repeats
// the sizes in Python, and a test holds the two together.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

// --- weights ---------------------------------------------------------------------------------------------------------
// A matrix W [rows, cols] is a sequence of panels of 32 rows; a panel is its blocks of 256 columns in order. Rows and
// columns that W does not have are zero (rows padded to 32, columns to 256). The data begin at a multiple of 64 bytes.

enum class Format : std::uint8_t { kInt4 = 0, kInt8 = 1, kBf16 = 2 };

constexpr std::size_t kPanelRows = 32;
constexpr std::size_t kBlockCols = 256;
constexpr std::size_t kGroupCols = 16;  // columns that share one integer scale in kInt4

// kInt4, 4.3125 bits a weight. w[row, k] = D[row] * S[code(row, k / 16)] * L[nibble(row, k)].
//   bytes    0..255   codes: half r (rows 16r .. 16r+15) at 128 r, byte [128 r + 16 g + row], g = 0..7: the low nibble
//                     is group g's, the high nibble group g + 8's
//   bytes  256..4351  nibbles: 64 lines of 64 bytes, line (g * 2 + j) * 2 + r for group g, j = 0, 1, half r; byte
//                     4 * row + b of the line: low nibble = column 16 g + 8 j + b, high = column 16 g + 8 j + 4 + b
//   bytes 4352..4415  D, binary16, one a row
// |S * L| <= 128 and never +128, so the product is an exact int8; a group's sum of L * a is at most 32,512, an int16.
constexpr std::size_t kInt4BlockBytes = 4416;
constexpr std::size_t kInt4LinesOffset = 256;
constexpr std::size_t kInt4ScaleOffset = 4352;
constexpr std::int8_t kInt4Scales[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4, -5, -6, -7};
constexpr std::int8_t kInt4Levels[16] = {-16, -13, -10, -8, -6, -4, -2, -1, 0, 1, 3, 5, 7, 9, 12, 15};

// kInt8, 8.0625 bits. 128 lines of 64 bytes, line (k / 4) * 2 + r for half r; byte 4 * row + b of a line holds
// 128 + value of column 4 * (k / 4) + b, value in -127..127. Then D, binary16, one a row. w = D[row] * value.
constexpr std::size_t kInt8BlockBytes = 8256;
constexpr std::size_t kInt8ScaleOffset = 8192;

// kBf16. 256 lines of 64 bytes, line (k / 2) * 2 + r for half r; bfloat16 2 * row + b of a line is column
// 2 * (k / 2) + b.
constexpr std::size_t kBf16BlockBytes = 16384;

constexpr std::size_t block_bytes(Format format) {
  return format == Format::kInt4 ? kInt4BlockBytes : format == Format::kInt8 ? kInt8BlockBytes : kBf16BlockBytes;
}

struct Matrix {
  const std::uint8_t* data;
  Format format;
  std::size_t rows, cols;  // as published, before padding

  std::size_t num_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  std::size_t num_blocks() const { return (cols + kBlockCols - 1) / kBlockCols; }  // of a panel
  std::size_t padded_cols() const { return num_blocks() * kBlockCols; }
  std::size_t panel_bytes() const { return num_blocks() * block_bytes(format); }
};

// A table of rows that are read one by one (embedding; exact scores of the head), row major.
//   kRows8   cols padded to 256: int8 values, then one binary16 scale for each 256: padded + 2 * padded / 256 bytes
//   kRows16  bfloat16, cols padded to 256
enum class TableFormat : std::uint8_t { kRows8 = 0, kRows16 = 1 };

struct Table {
  const std::uint8_t* data;
  TableFormat format;
  std::size_t rows, cols;

  std::size_t padded_cols() const { return (cols + kBlockCols - 1) / kBlockCols * kBlockCols; }
  std::size_t row_bytes() const {
    return format == TableFormat::kRows8 ? padded_cols() + 2 * (padded_cols() / kBlockCols) : 2 * padded_cols();
  }
};

// --- activations -----------------------------------------------------------------------------------------------------
// n rows, quantised for integer weights: int8 with one scale a 256-block, max / 127, round to nearest even; scale 0 and
// all zeros where the block is zero. A row's bits depend on that row alone. Columns beyond the data are zero.

struct Activations {
  std::size_t n;
  std::size_t cols;            // padded to 256
  const float* x;              // [n][x_stride], what kBf16 weights are multiplied with; zero beyond the data up to cols
  std::size_t x_stride;
  const std::int8_t* q;        // [n][cols]
  const float* scale;          // [n][cols / 256]
  const std::int16_t* sum16;   // [n][cols / 16], -16 * the sum of each 16 of q ( |.| <= 32,512 )
  const std::int32_t* sum256;  // [n][cols / 256], -128 * the sum of each 256 of q
};

// Where results go. Row i of x and row r of W meet in y[i * stride + r]. Only rows below Matrix::rows are written.
enum class Store : std::uint8_t {
  kSet,     // y = p
  kAdd,     // y = y + p
  kSwiglu,  // W's rows are 16 of gate, then 16 of up, in each panel: y[i * stride + 16 * panel + r] = silu(gate) * up
};

struct Output {
  float* y;
  std::size_t stride;
  Store store;
};

// --- sequence states -------------------------------------------------------------------------------------------------
// Gated DeltaNet, one layer of one sequence, f32, in this order; key_dim and value_dim are multiples of 16:
//   columns  [3][conv_dim]                             raw inputs of the convolution, oldest first
//   for each key head:
//     keys   [16][key_dim]                             of the open chunk, unit length
//   for each value head:
//     S      [key_dim][value_dim]                      at the beginning of the open chunk
//     N      [16][value_dim]                           corrected values of the open chunk
//     G      [16]                                      cumulative log decay of the open chunk
// Chunks begin at absolute positions that are multiples of 16; the place of position p is p % 16.

constexpr std::size_t kChunk = 16;
constexpr std::size_t kTaps = 4;

struct DeltaShape {
  std::size_t key_heads, value_heads, key_dim, value_dim;

  std::size_t conv_dim() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  std::size_t keys_offset(std::size_t key_head) const { return (kTaps - 1) * conv_dim() + key_head * key_dim * kChunk; }
  std::size_t head_floats() const { return key_dim * value_dim + kChunk * value_dim + kChunk; }
  std::size_t head_offset(std::size_t value_head) const { return keys_offset(key_heads) + value_head * head_floats(); }
  std::size_t floats() const { return (head_offset(value_heads) + 15) / 16 * 16; }  // a multiple of 64 bytes
};

// Keys and values are paged: a page holds 64 tokens of one kv head of one layer.
//   kKvBf16   K [head_dim][64] bf16, V [64][head_dim] bf16
//   kKvF32    the same in f32
//   kKvInt8   K [head_dim][64] int8, V [64][head_dim] int8, scale of each token's K [64] f32, of each token's V [64] f32
// A layer's pool is [num_pages][kv_heads] pages. head_dim is a multiple of 16.

constexpr std::size_t kPageTokens = 64;

enum class KvFormat : std::uint8_t { kBf16 = 0, kInt8 = 1, kF32 = 2 };

constexpr std::size_t page_bytes(KvFormat format, std::size_t head_dim) {
  return format == KvFormat::kF32    ? 8 * kPageTokens * head_dim
         : format == KvFormat::kBf16 ? 4 * kPageTokens * head_dim
                                     : 2 * kPageTokens * head_dim + 8 * kPageTokens;
}

}  // namespace shoal
