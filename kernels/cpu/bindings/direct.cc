// Few-row products and the quantiser, one matrix a call: for tests and measurements. The engine calls the tables itself.
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/arrays.h"

namespace shoal {
namespace {

template <typename T>
T* pointer(const OutputArray& a) {
  return static_cast<T*>(a.data());
}

void check_rows(const Input& x) {
  if (x.ndim() != 2) throw nb::value_error("x must have two dimensions");
}

Format format_of(int format) {
  if (format < 0 || format > 2) throw nb::value_error("format must be 0 (int4), 1 (int8) or 2 (bf16)");
  return static_cast<Format>(format);
}

// What `quantise` fills, for a caller that has no arena.
struct Quantised {
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  std::vector<std::int16_t> sum16;
  std::vector<std::int32_t> sum256;
  std::vector<float> x;  // padded to whole blocks

  Quantised(const DirectKernels& kernels, const float* from, std::size_t n, std::size_t cols) {
    const std::size_t padded = (cols + kBlockCols - 1) / kBlockCols * kBlockCols;
    q.resize(n * padded);
    scale.resize(n * padded / kBlockCols);
    sum16.resize(n * padded / kGroupCols);
    sum256.resize(n * padded / kBlockCols);
    x.resize(n * padded);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t k = 0; k < cols; ++k) x[i * padded + k] = from[i * cols + k];
    kernels.quantise(from, cols, n, cols, q.data(), scale.data(), sum16.data(), sum256.data());
  }

  Activations rows(std::size_t first, std::size_t count, std::size_t n) const {
    const std::size_t padded = n ? q.size() / n : 0;
    return {count,           padded, x.data() + first * padded, padded, q.data() + first * padded,
            scale.data() + first * padded / kBlockCols, sum16.data() + first * padded / kGroupCols,
            sum256.data() + first * padded / kBlockCols};
  }
};

void quantise(const Input& x, const OutputArray& q, const OutputArray& scale, const OutputArray& sum16,
              const OutputArray& sum256, const std::string& isa) {
  check_rows(x);
  const std::size_t n = x.shape(0), cols = x.shape(1);
  const std::size_t blocks = (cols + kBlockCols - 1) / kBlockCols;
  check<float>("x", x, n * cols);
  check<std::int8_t>("q", q, n * blocks * kBlockCols);
  check<float>("scale", scale, n * blocks);
  check<std::int16_t>("sum16", sum16, n * blocks * kBlockCols / kGroupCols);
  check<std::int32_t>("sum256", sum256, n * blocks);
  const DirectKernels& kernels = *kernels_named(isa).direct;
  const float* from = static_cast<const float*>(x.data());
  nb::gil_scoped_release release;
  kernels.quantise(from, cols, n, cols, pointer<std::int8_t>(q), pointer<float>(scale), pointer<std::int16_t>(sum16),
                   pointer<std::int32_t>(sum256));
}

void direct_multiply(int format, const Input& weights, std::size_t rows, std::size_t cols, const Input& x,
                     const OutputArray& out, int store, const std::string& isa, std::size_t first_panel,
                     std::int64_t num_panels) {
  const Matrix matrix = {static_cast<const std::uint8_t*>(weights.data()), format_of(format), rows, cols};
  if (store < 0 || store > 2) throw nb::value_error("store must be 0 (set), 1 (add) or 2 (swiglu)");
  const Store how = static_cast<Store>(store);
  check_rows(x);
  const std::size_t n = x.shape(0), out_cols = how == Store::kSwiglu ? rows / 2 : rows;
  check<std::uint8_t>("weights", weights, matrix.num_panels() * matrix.panel_bytes());
  check<float>("x", x, n * cols);
  check<float>("out", out, n * out_cols);
  if (reinterpret_cast<std::uintptr_t>(weights.data()) % 64 != 0) {
    throw nb::value_error("weights must begin at a multiple of 64 bytes");
  }
  if (first_panel > matrix.num_panels()) throw nb::value_error("first_panel is beyond the matrix");
  const std::size_t left = matrix.num_panels() - first_panel;
  const std::size_t count = num_panels < 0 ? left : static_cast<std::size_t>(num_panels);
  if (count > left) throw nb::value_error("num_panels reaches beyond the matrix");
  const DirectKernels& kernels = *kernels_named(isa).direct;
  const float* from = static_cast<const float*>(x.data());
  nb::gil_scoped_release release;
  const Quantised quantised(kernels, from, n, cols);
  for (std::size_t i = 0; i < n; i += kDirectRows) {
    const Activations a = quantised.rows(i, n - i < kDirectRows ? n - i : kDirectRows, n);
    const Output to = {pointer<float>(out) + i * out_cols, out_cols, how};
    kernels.multiply[format](matrix, a, first_panel, count, to);
  }
}

std::size_t measured_prefetch_distance(int format, const Input& weights, std::size_t rows, std::size_t cols,
                                       const std::string& isa) {
  const Matrix matrix = {static_cast<const std::uint8_t*>(weights.data()), format_of(format), rows, cols};
  check<std::uint8_t>("weights", weights, matrix.num_panels() * matrix.panel_bytes());
  const DirectKernels& kernels = *kernels_named(isa).direct;
  nb::gil_scoped_release release;
  measure_prefetch_distance(kernels, matrix);
  return prefetch_distance;
}

}  // namespace

void bind_direct(nb::module_& m) {
  using namespace nb::literals;
  m.def("quantise", &quantise, "x"_a, "q"_a, "scale"_a, "sum16"_a, "sum256"_a, "isa"_a = "auto");
  m.def("measure_prefetch_distance", &measured_prefetch_distance, "format"_a, "weights"_a, "rows"_a, "cols"_a,
        "isa"_a = "auto");
  m.def("direct_multiply", &direct_multiply, "format"_a, "weights"_a, "rows"_a, "cols"_a, "x"_a, "out"_a,
        "store"_a = 0, "isa"_a = "auto", "first_panel"_a = 0, "num_panels"_a = -1);
}

}  // namespace shoal
