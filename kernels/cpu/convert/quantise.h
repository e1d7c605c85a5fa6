// Quantisation: from floats to the bytes that layout.h describes.
//
// The choice of scales is written once over vectors of sixteen lanes (a lane is a row of a panel's half) and gives the
// same bytes on every instruction set, so that a converted file does not depend on the machine that converted it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace shoal {

struct QuantiseKernels {
  // One block, w [32][stride] of which 256 columns, finite -> kInt4BlockBytes. For each row it looks for the D, codes
  // and nibbles that make sum_k importance[k] * (w[k] - w^[k])^2 small; importance [256] > 0, or null for all ones.
  void (*int4)(const float* w, std::size_t stride, const float* importance, std::uint8_t* block);
};

extern const QuantiseKernels quantise_scalar, quantise_avx2, quantise_avx512;

enum class SourceType : std::uint8_t { kF32 = 0, kF16 = 1, kBf16 = 2 };

// What to write. kRows8 and kRows16 are tables; the rest are panels.
enum class PackedLayout : std::uint8_t { kInt4 = 0, kInt8 = 1, kBf16 = 2, kRows8 = 3, kRows16 = 4 };

struct QuantiseJob {
  const void* source;  // [rows][cols], dense
  SourceType source_type;
  std::size_t rows, cols;
  PackedLayout layout;
  const float* importance;  // [cols] > 0, or null; only kInt4 looks at it
  std::uint8_t* out;        // packed_bytes(layout, rows, cols)

  // Of a head's first pass, else null: sigma [rows] receives the root mean square of w - w^ over the columns, and each
  // row's D is multiplied with <w, w> / <w, w^>, so that scores are unbiased. w is the row as kRows8 or kRows16
  // (`exact`) would hold it: what the candidates are scored with afterwards.
  float* sigma;
  PackedLayout exact;

  // Products to compare, every `probe_step`-th row with each of `num_inputs` inputs: as published with inputs
  // [n][cols], as packed with rounded [n][cols]. Sums of (difference)^2 and of (product as published)^2 go to
  // output_error [n] and output_energy [n]. num_inputs may be zero.
  const float* inputs;
  const float* rounded;
  std::size_t num_inputs, probe_step;
  double* output_error;
  double* output_energy;
};

struct QuantiseResult {
  double error, energy;                    // sums of (w - w^)^2 and of w^2
  double weighted_error, weighted_energy;  // the same, each column times its importance
  bool finite;                             // false: NaN or infinity in the source, and `out` means nothing
};

std::size_t packed_bytes(PackedLayout layout, std::size_t rows, std::size_t cols);

// Splits the panels (32 rows of a table) among `threads` threads; the result does not depend on how many.
QuantiseResult quantise(const QuantiseJob& job, const QuantiseKernels& kernels, std::size_t threads);

// Inverse: packed [rows][cols] -> out [rows][cols] f32.
void dequantise(PackedLayout layout, const std::uint8_t* packed, std::size_t rows, std::size_t cols, float* out);

}  // namespace shoal
