// What every binding needs: arrays that are checked and never converted, and tables found by name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace shoal {

namespace nb = nanobind;

// Any CPU array that speaks DLPack or the buffer protocol; nothing is converted or copied on the way in.
using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using OutputArray = nb::ndarray<nb::device::cpu>;

struct UnsupportedIsa : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Row major without gaps. A dimension of length 0 or 1 may carry any stride.
template <typename Array>
bool is_dense(const Array& a) {
  std::int64_t expected = 1;
  if (a.size() == 0) return true;
  for (std::size_t i = a.ndim(); i-- > 0;) {
    if (a.shape(i) != 1 && a.stride(i) != expected) return false;
    expected *= static_cast<std::int64_t>(a.shape(i));
  }
  return true;
}

// Raises TypeError unless the elements are T, ValueError unless the array is dense and has `size` elements.
template <typename T, typename Array>
void check(const char* name, const Array& a, std::size_t size) {
  if (a.dtype() != nb::dtype<T>()) throw nb::type_error((std::string(name) + " has the wrong element type").c_str());
  if (!is_dense(a)) throw nb::value_error((std::string(name) + " must be C-contiguous").c_str());
  if (a.size() != size) {
    throw nb::value_error((std::string(name) + " must have " + std::to_string(size) + " elements, not " +
                           std::to_string(a.size())).c_str());
  }
}

// Raises ValueError.
inline KvFormat kv_format_named(const std::string& name) {
  if (name == "bf16") return KvFormat::kBf16;
  if (name == "int8") return KvFormat::kInt8;
  if (name == "f32") return KvFormat::kF32;
  throw std::invalid_argument("kv_format must be bf16, int8 or f32");
}

// Raises UnsupportedIsa.
const Kernels& kernels_named(const std::string& isa);

// Each bindings/<name>.cc defines one and module.cc calls it.
void bind_direct(nb::module_& m);
void bind_tiled(nb::module_& m);
void bind_delta(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_rows(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_convert(nb::module_& m);
void bind_limits(nb::module_& m);
void bind_vector(nb::module_& m);
void bind_vocabulary(nb::module_& m);

}  // namespace shoal
