// Many-row products, one matrix a call: for tests and measurements. The engine calls the tables itself.
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bindings/arrays.h"

namespace shoal {
namespace {

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

// x [n, cols] padded and quantised, multiplied by panels [first, first + count) of w.
void multiply(const Kernels& kernels, const Matrix& w, const float* x, std::size_t n, std::size_t first,
              std::size_t count, const Output& out) {
  const std::size_t cols = w.padded_cols(), blocks = w.num_blocks();
  std::vector<float> wide(n * cols);
  for (std::size_t i = 0; i < n && w.cols > 0; ++i) std::memcpy(&wide[i * cols], x + i * w.cols, 4 * w.cols);
  std::vector<std::int8_t> q(n * cols);
  std::vector<float> scale(n * blocks);
  std::vector<std::int16_t> sum16(n * cols / kGroupCols);
  std::vector<std::int32_t> sum256(n * blocks);
  if (w.format != Format::kBf16) {
    kernels.direct->quantise(x, w.cols, n, w.cols, q.data(), scale.data(), sum16.data(), sum256.data());
  }
  const Activations a = {n,        cols,         wide.data(),  cols,
                         q.data(), scale.data(), sum16.data(), sum256.data()};
  const std::unique_ptr<void, FreeAligned> scratch(::operator new(kTileScratchBytes, std::align_val_t(64)));
  kernels.tiled->multiply[static_cast<int>(w.format)](w, a, first, count, out, scratch.get());
}

void tiled_multiply(int format, const Input& weights, std::size_t rows, std::size_t cols, const Input& x,
                    const OutputArray& out, int store, const std::string& isa, std::size_t first_panel,
                    std::int64_t num_panels) {
  if (format < 0 || format > 2) throw nb::value_error("format must be 0 (int4), 1 (int8) or 2 (bf16)");
  if (store < 0 || store > 2) throw nb::value_error("store must be 0 (set), 1 (add) or 2 (swiglu)");
  if (x.ndim() != 2) throw nb::value_error("x must have two dimensions");
  const Matrix w = {static_cast<const std::uint8_t*>(weights.data()), static_cast<Format>(format), rows, cols};
  const Store how = static_cast<Store>(store);
  const std::size_t n = x.shape(0), out_cols = how == Store::kSwiglu ? rows / 2 : rows;
  check<std::uint8_t>("weights", weights, w.num_panels() * w.panel_bytes());
  check<float>("x", x, n * cols);
  check<float>("out", out, n * out_cols);
  if (reinterpret_cast<std::uintptr_t>(weights.data()) % 64 != 0) {
    throw nb::value_error("weights must begin at a multiple of 64 bytes");
  }
  if (first_panel > w.num_panels()) throw nb::value_error("first_panel is beyond the matrix");
  const std::size_t left = w.num_panels() - first_panel;
  const std::size_t count = num_panels < 0 ? left : static_cast<std::size_t>(num_panels);
  if (count > left) throw nb::value_error("num_panels reaches beyond the matrix");
  const Kernels& kernels = kernels_named(isa);
  const float* from = static_cast<const float*>(x.data());
  const Output to = {static_cast<float*>(out.data()), out_cols, how};
  nb::gil_scoped_release release;
  multiply(kernels, w, from, n, first_panel, count, to);
}

}  // namespace

void bind_tiled(nb::module_& m) {
  using namespace nb::literals;
  m.def("tiled_multiply", &tiled_multiply, "format"_a, "weights"_a, "rows"_a, "cols"_a, "x"_a, "out"_a, "store"_a = 0,
        "isa"_a = "auto", "first_panel"_a = 0, "num_panels"_a = -1);
}

}  // namespace shoal
