// Everything around the search: reading the source, a head's scales, errors from the bytes that were written, threads.
#include "convert/quantise.h"

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "convert/blocks.h"
#include "convert/half.h"

namespace shoal {
namespace {

// Source row -> out, zeros up to `padded`. False where a value is not finite.
bool read_row(const QuantiseJob& job, std::size_t row, float* out, std::size_t padded) {
  const std::size_t cols = job.cols;
  if (job.source_type == SourceType::kF32) {
    std::memcpy(out, static_cast<const float*>(job.source) + row * cols, cols * sizeof(float));
  } else {
    const std::uint16_t* h = static_cast<const std::uint16_t*>(job.source) + row * cols;
    if (job.source_type == SourceType::kBf16) {
      for (std::size_t k = 0; k < cols; ++k) out[k] = float_of_bf16(h[k]);
    } else {
      for (std::size_t k = 0; k < cols; ++k) out[k] = float_of_half(h[k]);
    }
  }
  std::uint32_t largest = 0;
  for (std::size_t k = 0; k < cols; ++k) {
    const std::uint32_t magnitude = bits_of_float(out[k]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  std::memset(out + cols, 0, (padded - cols) * sizeof(float));
  return largest < 0x7f800000u;
}

// Eight partial sums in an order of their own, so that the compiler may keep them in vectors.
float dot(const float* a, const float* b, std::size_t n) {
  float sums[8] = {};
  std::size_t k = 0;
  for (; k + 8 <= n; k += 8)
    for (std::size_t i = 0; i < 8; ++i) sums[i] += a[k + i] * b[k + i];
  for (; k < n; ++k) sums[0] += a[k] * b[k];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

class Worker {
 public:
  Worker(const QuantiseJob& job, const QuantiseKernels& kernels)
      : output_error(job.num_inputs),
        output_energy(job.num_inputs),
        job_(job),
        kernels_(kernels),
        padded_(blocks_of(job.cols) * kBlockCols),
        w_(kPanelRows * padded_),
        y_(padded_),
        importance_(job.importance != nullptr ? padded_ : 0, 0.0f),
        exact_(job.sigma != nullptr ? stripe_bytes(job.exact, 1, job.cols) : 0) {
    // Columns beyond the data are zero whatever their weight.
    for (std::size_t k = 0; k < importance_.size(); ++k) importance_[k] = k < job.cols ? job.importance[k] : 1.0f;
  }

  std::vector<double> output_error, output_energy;  // of all stripes so far

  // Stripe `index`: rows 32 * index onwards.
  QuantiseResult stripe(std::size_t index) {
    QuantiseResult result = {0, 0, 0, 0, true};
    const std::size_t first = index * kPanelRows;
    const std::size_t rows = job_.rows - first < kPanelRows ? job_.rows - first : kPanelRows;
    for (std::size_t row = 0; row < rows; ++row) {
      result.finite = read_row(job_, first + row, w_.data() + row * padded_, padded_) && result.finite;
    }
    if (!result.finite) return result;
    std::memset(w_.data() + rows * padded_, 0, (kPanelRows - rows) * padded_ * sizeof(float));
    std::uint8_t* out = job_.out + index * stripe_bytes(job_.layout, kPanelRows, job_.cols);
    if (job_.sigma != nullptr) hold_exact(rows);
    pack(rows, out);
    for (std::size_t row = 0; row < rows; ++row) {
      if (job_.sigma != nullptr) unbias(out, row);
      measure(out, first, row, result);
    }
    return result;
  }

 private:
  float* row_of(std::size_t row) { return w_.data() + row * padded_; }

  // w becomes what the exact table holds of it.
  void hold_exact(std::size_t rows) {
    for (std::size_t row = 0; row < rows; ++row) {
      pack_table_row(job_.exact, row_of(row), padded_ / kBlockCols, exact_.data());
      unpack_table_row(job_.exact, exact_.data(), padded_ / kBlockCols, row_of(row));
    }
  }

  void pack(std::size_t rows, std::uint8_t* out) {
    const std::size_t blocks = padded_ / kBlockCols;
    if (is_table(job_.layout)) {
      const std::size_t bytes = stripe_bytes(job_.layout, 1, job_.cols);
      for (std::size_t row = 0; row < rows; ++row) pack_table_row(job_.layout, row_of(row), blocks, out + row * bytes);
      return;
    }
    for (std::size_t b = 0; b < blocks; ++b) {
      std::uint8_t* block = out + b * block_bytes_of(job_.layout);
      const float* w = w_.data() + b * kBlockCols;
      if (job_.layout == PackedLayout::kInt4) {
        kernels_.int4(w, padded_, importance_.empty() ? nullptr : importance_.data() + b * kBlockCols, block);
      } else if (job_.layout == PackedLayout::kInt8) {
        pack_int8_block(w, padded_, block);
      } else {
        pack_bf16_block(w, padded_, block);
      }
    }
  }

  // Each D of the row times <w, w> / <w, w^>.
  void unbias(std::uint8_t* out, std::size_t row) {
    if (job_.layout != PackedLayout::kInt4 && job_.layout != PackedLayout::kInt8) return;
    const float* w = row_of(row);
    unpack_row(job_.layout, out, row, job_.cols, y_.data());
    double ww = 0, wy = 0;
    for (std::size_t k = 0; k < job_.cols; ++k) {
      ww += static_cast<double>(w[k]) * w[k];
      wy += static_cast<double>(w[k]) * y_[k];
    }
    if (!(wy > 0)) return;
    const float factor = static_cast<float>(ww / wy);
    for (std::size_t b = 0; b < padded_ / kBlockCols; ++b) {
      std::uint8_t* d = out + b * block_bytes_of(job_.layout) + scale_offset(job_.layout) + 2 * row;
      put_half(d, get_half(d) * factor);
    }
  }

  // From the bytes that were written.
  void measure(const std::uint8_t* out, std::size_t first, std::size_t row, QuantiseResult& result) {
    const float* w = row_of(row);
    unpack_row(job_.layout, out, row, job_.cols, y_.data());
    double error = 0, energy = 0;
    for (std::size_t k = 0; k < job_.cols; ++k) {
      const double e = static_cast<double>(w[k]) - y_[k], x = w[k];
      error += e * e;
      energy += x * x;
      if (!importance_.empty()) {
        result.weighted_error += e * e * importance_[k];
        result.weighted_energy += x * x * importance_[k];
      }
    }
    result.error += error;
    result.energy += energy;
    if (job_.sigma != nullptr) {
      job_.sigma[first + row] = static_cast<float>(std::sqrt(error / static_cast<double>(job_.cols)));
    }
    if (job_.num_inputs > 0 && (first + row) % job_.probe_step == 0) compare_products(w);
  }

  // Of the row whose packed values are in y_.
  void compare_products(const float* w) {
    for (std::size_t i = 0; i < job_.num_inputs; ++i) {
      const double exact = dot(w, job_.inputs + i * job_.cols, job_.cols);
      const double difference = dot(y_.data(), job_.rounded + i * job_.cols, job_.cols) - exact;
      output_error[i] += difference * difference;
      output_energy[i] += exact * exact;
    }
  }

  const QuantiseJob& job_;
  const QuantiseKernels& kernels_;
  std::size_t padded_;
  std::vector<float> w_, y_, importance_;
  std::vector<std::uint8_t> exact_;
};

}  // namespace

std::size_t packed_bytes(PackedLayout layout, std::size_t rows, std::size_t cols) {
  if (is_table(layout)) return stripe_bytes(layout, rows, cols);
  return (rows + kPanelRows - 1) / kPanelRows * stripe_bytes(layout, kPanelRows, cols);
}

QuantiseResult quantise(const QuantiseJob& job, const QuantiseKernels& kernels, std::size_t threads) {
  const std::size_t stripes = (job.rows + kPanelRows - 1) / kPanelRows;
  std::vector<QuantiseResult> results(stripes);
  threads = threads < 1 ? 1 : threads > stripes ? stripes : threads;
  std::vector<Worker> workers;  // all allocated here: an exception inside a thread would end the process
  workers.reserve(threads);
  for (std::size_t t = 0; t < threads; ++t) workers.emplace_back(job, kernels);
  const auto run = [&](std::size_t thread) {
    for (std::size_t i = stripes * thread / threads; i < stripes * (thread + 1) / threads; ++i)
      results[i] = workers[thread].stripe(i);
  };
  std::vector<std::thread> others;
  for (std::size_t t = 1; t < threads; ++t) others.emplace_back(run, t);
  if (stripes > 0) run(0);
  for (std::thread& other : others) other.join();
  QuantiseResult total = {0, 0, 0, 0, true};
  for (std::size_t i = 0; i < job.num_inputs; ++i) {
    job.output_error[i] = job.output_energy[i] = 0;
    for (const Worker& worker : workers) {
      job.output_error[i] += worker.output_error[i];
      job.output_energy[i] += worker.output_energy[i];
    }
  }
  for (const QuantiseResult& r : results) {  // in order, so that the sums do not depend on the threads
    total.error += r.error;
    total.energy += r.energy;
    total.weighted_error += r.weighted_error;
    total.weighted_energy += r.weighted_energy;
    total.finite = total.finite && r.finite;
  }
  return total;
}

void dequantise(PackedLayout layout, const std::uint8_t* packed, std::size_t rows, std::size_t cols, float* out) {
  std::vector<float> y(blocks_of(cols) * kBlockCols);
  const std::size_t bytes = stripe_bytes(layout, kPanelRows, cols);
  for (std::size_t row = 0; row < rows; ++row) {
    unpack_row(layout, packed + row / kPanelRows * bytes, row % kPanelRows, cols, y.data());
    std::memcpy(out + row * cols, y.data(), cols * sizeof(float));
  }
}

}  // namespace shoal
