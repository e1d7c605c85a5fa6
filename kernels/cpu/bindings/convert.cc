// Quantisation for Python: pieces of matrices and tables, with the GIL released.
#include <nanobind/stl/optional.h>

#include <cstring>
#include <optional>

#include "bindings/arrays.h"
#include "convert/quantise.h"

namespace shoal {
namespace {

PackedLayout layout_named(const std::string& name) {
  const char* names[] = {"int4", "int8", "bf16", "rows8", "rows16"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<PackedLayout>(i);
  }
  throw nb::value_error(("there is no layout named '" + name + "'").c_str());
}

const QuantiseKernels& quantiser(const std::string& isa) {
  const char* name = kernels_named(isa).isa;
#if defined(SHOAL_X86)
  if (std::strcmp(name, "avx512") == 0) return quantise_avx512;
  if (std::strcmp(name, "avx2") == 0 || std::strcmp(name, "avxvnni") == 0) return quantise_avx2;
#endif
  static_cast<void>(name);
  return quantise_scalar;
}

// Floats, or binary16 or bfloat16 as the 16-bit integers that numpy has for them.
SourceType source_type_named(const std::string& name) {
  if (name == "F32") return SourceType::kF32;
  if (name == "F16") return SourceType::kF16;
  if (name == "BF16") return SourceType::kBf16;
  throw nb::value_error(("weights are F32, F16 or BF16, not '" + name + "'").c_str());
}

template <typename T, typename Array>
auto* optional_data(const char* name, const std::optional<Array>& a, std::size_t size) {
  if (a.has_value()) check<T>(name, *a, size);
  return a.has_value() ? static_cast<std::conditional_t<Array::ReadOnly, const T*, T*>>(a->data()) : nullptr;
}

nb::tuple quantise_array(const std::string& layout, const Input& source, const std::string& source_type,
                         std::size_t rows, std::size_t cols, const OutputArray& out,
                         const std::optional<Input>& importance, const std::optional<OutputArray>& sigma,
                         const std::string& exact, const std::optional<Input>& inputs,
                         const std::optional<Input>& rounded, std::size_t num_inputs, std::size_t probe_step,
                         const std::optional<OutputArray>& output_error,
                         const std::optional<OutputArray>& output_energy, std::size_t threads, const std::string& isa) {
  QuantiseJob job = {};
  job.source_type = source_type_named(source_type);
  if (job.source_type == SourceType::kF32) {
    check<float>("source", source, rows * cols);
  } else {
    check<std::uint16_t>("source", source, rows * cols);
  }
  job.source = source.data();
  job.rows = rows;
  job.cols = cols;
  job.layout = layout_named(layout);
  job.importance = optional_data<float>("importance", importance, cols);
  check<std::uint8_t>("out", out, packed_bytes(job.layout, rows, cols));
  job.out = static_cast<std::uint8_t*>(out.data());
  job.inputs = optional_data<float>("inputs", inputs, num_inputs * cols);
  job.rounded = optional_data<float>("rounded", rounded, num_inputs * cols);
  job.output_error = optional_data<double>("output_error", output_error, num_inputs);
  job.output_energy = optional_data<double>("output_energy", output_energy, num_inputs);
  if (num_inputs > 0 && !(job.inputs && job.rounded && job.output_error && job.output_energy && probe_step > 0)) {
    throw nb::value_error("inputs need all of rounded, output_error, output_energy and a step");
  }
  job.num_inputs = num_inputs;
  job.probe_step = probe_step;
  job.sigma = optional_data<float>("sigma", sigma, rows);
  job.exact = layout_named(exact);
  if (job.exact != PackedLayout::kRows8 && job.exact != PackedLayout::kRows16) {
    throw nb::value_error("exact must be rows8 or rows16");
  }
  const QuantiseKernels& kernels = quantiser(isa);
  QuantiseResult result;
  {
    nb::gil_scoped_release without_gil;
    result = quantise(job, kernels, threads);
  }
  return nb::make_tuple(result.finite, result.error, result.energy, result.weighted_error, result.weighted_energy);
}

void dequantise_array(const std::string& layout, const Input& packed, std::size_t rows, std::size_t cols,
                      const OutputArray& out) {
  const PackedLayout kind = layout_named(layout);
  check<std::uint8_t>("packed", packed, packed_bytes(kind, rows, cols));
  check<float>("out", out, rows * cols);
  nb::gil_scoped_release without_gil;
  dequantise(kind, static_cast<const std::uint8_t*>(packed.data()), rows, cols, static_cast<float*>(out.data()));
}

}  // namespace

void bind_convert(nb::module_& m) {
  using namespace nb::literals;
  m.def("quantise_weights", &quantise_array, "layout"_a, "source"_a, "source_type"_a, "rows"_a, "cols"_a, "out"_a,
        nb::kw_only(), "importance"_a = nb::none(), "sigma"_a = nb::none(), "exact"_a = "rows8",
        "inputs"_a = nb::none(), "rounded"_a = nb::none(), "num_inputs"_a = 0, "probe_step"_a = 1,
        "output_error"_a = nb::none(), "output_energy"_a = nb::none(), "threads"_a = 1, "isa"_a = "auto");
  m.def("dequantise_weights", &dequantise_array, "layout"_a, "packed"_a, "rows"_a, "cols"_a, "out"_a);
}

}  // namespace shoal
