// Gated DeltaNet of one layer of one sequence, all key heads.
#include <memory>
#include <new>

#include "bindings/arrays.h"

namespace shoal {
namespace {

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

// Rows of f32 that may stand apart. Raises TypeError or ValueError.
template <typename Array>
std::size_t row_stride(const char* name, const Array& a, std::size_t rows, std::size_t cols) {
  if (a.dtype() != nb::dtype<float>()) throw nb::type_error((std::string(name) + " has the wrong element type").c_str());
  if (a.ndim() != 2 || a.shape(0) != rows || a.shape(1) != cols) {
    throw nb::value_error((std::string(name) + " must have shape [" + std::to_string(rows) + ", " +
                           std::to_string(cols) + "]").c_str());
  }
  if (rows == 0) return cols;
  if (a.stride(1) != 1 || (rows > 1 && a.stride(0) < static_cast<std::int64_t>(cols))) {
    throw nb::value_error((std::string(name) + " must have dense rows in ascending order").c_str());
  }
  return rows > 1 ? static_cast<std::size_t>(a.stride(0)) : cols;
}

DeltaShape checked(std::size_t key_heads, std::size_t value_heads, std::size_t key_dim, std::size_t value_dim) {
  if (key_heads == 0 || value_heads == 0 || value_heads % key_heads != 0) {
    throw nb::value_error("the value heads must be a multiple of the key heads");
  }
  for (const std::size_t dim : {key_dim, value_dim}) {
    if (dim == 0 || dim % 16 != 0 || dim > kMaxDeltaDim) {
      throw nb::value_error("a head's dimensions must be multiples of 16 up to 1,024");
    }
  }
  return {key_heads, value_heads, key_dim, value_dim};
}

std::size_t delta_state_floats(std::size_t key_heads, std::size_t value_heads, std::size_t key_dim,
                               std::size_t value_dim) {
  return checked(key_heads, value_heads, key_dim, value_dim).floats();
}

void delta_advance(const std::string& isa, std::size_t key_heads, std::size_t value_heads, std::size_t key_dim,
                   std::size_t value_dim, const Input& conv, const Input& decay, const Input& dt_bias,
                   const Input& norm, float eps, const OutputArray& state, const Input& x, const Input& gates,
                   std::size_t position, const OutputArray& out) {
  const DeltaKernels& kernels = *kernels_named(isa).delta;
  const DeltaShape shape = checked(key_heads, value_heads, key_dim, value_dim);
  const std::size_t values = value_heads * value_dim;
  check<float>("conv", conv, shape.conv_dim() * kTaps);
  check<float>("decay", decay, value_heads);
  check<float>("dt_bias", dt_bias, value_heads);
  check<float>("norm", norm, value_dim);
  check<float>("state", state, shape.floats());
  const std::size_t n = x.ndim() == 2 ? x.shape(0) : 0;
  const std::size_t x_stride = row_stride("x", x, n, shape.conv_dim() + values);
  const std::size_t gates_stride = row_stride("gates", gates, n, 2 * value_heads);
  const std::size_t out_stride = row_stride("out", out, n, values);
  const DeltaWeights weights = {static_cast<const float*>(conv.data()), static_cast<const float*>(decay.data()),
                                static_cast<const float*>(dt_bias.data()), static_cast<const float*>(norm.data()), eps};
  const std::unique_ptr<void, FreeAligned> scratch(::operator new(kMixerScratchBytes, std::align_val_t(64)));
  for (std::size_t head = 0; head < key_heads; ++head) {
    kernels.advance(shape, weights, static_cast<float*>(state.data()), head, static_cast<const float*>(x.data()),
                    x_stride, static_cast<const float*>(gates.data()), gates_stride, n, position,
                    static_cast<float*>(out.data()), out_stride, scratch.get());
  }
}

void delta_state(const std::string& isa, std::size_t key_heads, std::size_t value_heads, std::size_t key_dim,
                 std::size_t value_dim, const Input& state, std::size_t position, const OutputArray& out) {
  const DeltaKernels& kernels = *kernels_named(isa).delta;
  const DeltaShape shape = checked(key_heads, value_heads, key_dim, value_dim);
  check<float>("state", state, shape.floats());
  check<float>("out", out, value_heads * key_dim * value_dim);
  for (std::size_t head = 0; head < value_heads; ++head) {
    kernels.read_state(shape, static_cast<const float*>(state.data()), head, position,
                       static_cast<float*>(out.data()) + head * key_dim * value_dim);
  }
}

}  // namespace

void bind_delta(nb::module_& m) {
  using namespace nb::literals;
  m.def("delta_state_floats", &delta_state_floats, "key_heads"_a, "value_heads"_a, "key_dim"_a, "value_dim"_a);
  m.def("delta_advance", &delta_advance, "isa"_a, "key_heads"_a, "value_heads"_a, "key_dim"_a, "value_dim"_a, "conv"_a,
        "decay"_a, "dt_bias"_a, "norm"_a, "eps"_a, "state"_a, "x"_a, "gates"_a, "position"_a, "out"_a);
  m.def("delta_state", &delta_state, "isa"_a, "key_heads"_a, "value_heads"_a, "key_dim"_a, "value_dim"_a, "state"_a,
        "position"_a, "out"_a);
}

}  // namespace shoal
