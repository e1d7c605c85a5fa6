// The extension module: which instruction sets there are, and the parts that the other files of this folder bind.
#include "bindings/arrays.h"

namespace shoal {

const Kernels& kernels_named(const std::string& isa) {
  if (const Kernels* table = find_kernels(isa.c_str())) return *table;
  std::string names;
  for (auto table = available_kernels(); *table; ++table) names += std::string(" ") + (*table)->isa;
  throw UnsupportedIsa("this machine or build has no kernels named '" + isa + "'; it has: auto" + names);
}

namespace {

nb::tuple available_isas() {
  nb::list names;
  for (auto table = available_kernels(); *table; ++table) names.append(nb::str((*table)->isa));
  return nb::tuple(names);
}

std::string choose_isa(const std::string& asked) { return kernels_named(asked).isa; }

}  // namespace
}  // namespace shoal

NB_MODULE(_cpu, m) {
  nanobind::set_leak_warnings(false);  // an object that outlives the interpreter is no news for whoever typed a command
  nanobind::exception<shoal::UnsupportedIsa>(m, "UnsupportedIsa", PyExc_ValueError);
  m.def("available_isas", &shoal::available_isas);
  m.def("choose_isa", &shoal::choose_isa);
  shoal::bind_attention(m);
  shoal::bind_convert(m);
  shoal::bind_rows(m);
  shoal::bind_engine(m);
  shoal::bind_limits(m);
  shoal::bind_tiled(m);
  shoal::bind_delta(m);
  shoal::bind_vector(m);
  shoal::bind_vocabulary(m);
  shoal::bind_direct(m);
}
