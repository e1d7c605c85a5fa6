// Python to pointers: checks what the kernels take for granted, gives up the interpreter lock, calls the table.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace nb = nanobind;

namespace {

// Any CPU array that speaks DLPack or the buffer protocol; nothing is converted or copied on the way in.
using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;

struct UnsupportedIsa : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename Array>
std::string shape_of(const Array& a) {
  std::string text = "[";
  for (std::size_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + "]";
}

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

template <typename Array>
void check(const char* name, const Array& a, bool dtype_ok, const char* dtypes) {
  if (!dtype_ok) throw nb::type_error((std::string(name) + " must be " + dtypes).c_str());
  if (!is_dense(a)) throw nb::value_error((std::string(name) + " must be C-contiguous").c_str());
}

bool is_bf16(nb::dlpack::dtype t) {
  const auto code = static_cast<nb::dlpack::dtype_code>(t.code);
  return t.bits == 16 && t.lanes == 1 &&
         (code == nb::dlpack::dtype_code::Bfloat || code == nb::dlpack::dtype_code::UInt);
}

const shoal::Kernels& kernels_named(const std::string& isa) {
  if (const shoal::Kernels* table = shoal::find_kernels(isa.c_str())) return *table;
  std::string names;
  for (auto table = shoal::available_kernels(); *table; ++table) names += std::string(" ") + (*table)->isa;
  throw UnsupportedIsa("this machine or build has no kernels named '" + isa + "'; it has: auto" + names);
}

void matvec_bf16(Input w, Input x, Output out, const std::string& isa) {
  const auto f32 = nb::dtype<float>();
  check("w", w, is_bf16(w.dtype()), "bfloat16, or uint16 that holds bfloat16 bits");
  check("x", x, x.dtype() == f32, "float32");
  check("out", out, out.dtype() == f32, "float32");
  const bool batched = x.ndim() == 2;
  if (w.ndim() != 2 || (x.ndim() != 1 && !batched) || x.shape(x.ndim() - 1) != w.shape(1)) {
    throw nb::value_error(("w must be [out, in] and x [in] or [n, in]; got w " + shape_of(w) + " and x " + shape_of(x)).c_str());
  }
  const std::size_t n = batched ? x.shape(0) : 1, num_out = w.shape(0), num_in = w.shape(1);
  if (out.ndim() != x.ndim() || out.shape(out.ndim() - 1) != num_out || (batched && out.shape(0) != n)) {
    throw nb::value_error(("out must be [out] or [n, out] as x is; got out " + shape_of(out) + " for w " + shape_of(w) + " and x " + shape_of(x)).c_str());
  }
  const shoal::Kernels& kernels = kernels_named(isa);
  nb::gil_scoped_release unlocked;
  kernels.matvec_bf16(static_cast<float*>(out.data()), static_cast<const std::uint16_t*>(w.data()),
                      static_cast<const float*>(x.data()), n, num_out, num_in);
}

nb::tuple available_isas() {
  nb::list names;
  for (auto table = shoal::available_kernels(); *table; ++table) names.append(nb::str((*table)->isa));
  return nb::tuple(names);
}

}  // namespace

NB_MODULE(_cpu, m) {
  nb::exception<UnsupportedIsa>(m, "UnsupportedIsa", PyExc_ValueError);
  m.def("matvec_bf16", &matvec_bf16, nb::arg("w").noconvert(), nb::arg("x").noconvert(), nb::arg("out").noconvert(),
        nb::arg("isa"));
  m.def("available_isas", &available_isas);
}
