// The operations of vector/*.h by name, one array at a time.
#include "bindings/arrays.h"

namespace shoal {
namespace {

void vector_map(const std::string& isa, const std::string& name, const Input& x, const OutputArray& y) {
  const Kernels& kernels = kernels_named(isa);
  check<float>("x", x, x.size());
  check<float>("y", y, x.size());
  if (x.size() % 256 != 0) throw nb::value_error("x must have a multiple of 256 elements");
  for (const VectorKernels::Map& map : kernels.vector->maps) {
    if (name == map.name) {
      map.apply(static_cast<const float*>(x.data()), x.size(), static_cast<float*>(y.data()));
      return;
    }
  }
  throw nb::value_error(("no operation is named '" + name + "'").c_str());
}

}  // namespace

void bind_vector(nb::module_& m) {
  using namespace nb::literals;
  m.def("vector_map", &vector_map, "isa"_a, "name"_a, "x"_a, "y"_a);
}

}  // namespace shoal
