// The engine as Python sees it (kernels/cpu/engine.py gives the dictionaries types).
#include "engine/engine.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <system_error>
#include <tuple>

#include "bindings/arrays.h"
#include "bindings/staged_step.h"

namespace shoal {
namespace {

using Entry = std::tuple<std::string, std::string, std::size_t, std::size_t, std::size_t, std::size_t>;

template <typename T>
T item(const nb::dict& values, const char* name) {
  return nb::cast<T>(values[name]);
}

ModelShape shape_of(const nb::dict& d) {
  ModelShape s;
  s.vocab = item<std::size_t>(d, "vocab_size");
  s.hidden = item<std::size_t>(d, "hidden_size");
  s.intermediate = item<std::size_t>(d, "intermediate_size");
  for (const std::string& kind : item<std::vector<std::string>>(d, "layers")) {
    if (kind != "delta" && kind != "attention") throw std::invalid_argument("a layer is neither delta nor attention");
    s.layers.push_back(kind == "delta" ? LayerKind::kDelta : LayerKind::kAttention);
  }
  s.heads = item<std::size_t>(d, "heads");
  s.kv_heads = item<std::size_t>(d, "kv_heads");
  s.head_dim = item<std::size_t>(d, "head_dim");
  s.key_heads = item<std::size_t>(d, "key_heads");
  s.value_heads = item<std::size_t>(d, "value_heads");
  s.key_dim = item<std::size_t>(d, "key_dim");
  s.value_dim = item<std::size_t>(d, "value_dim");
  s.eps = item<float>(d, "eps");
  s.inverse_frequencies = item<std::vector<double>>(d, "inverse_frequencies");
  s.rotary_axes = item<std::vector<int>>(d, "rotary_axes");
  s.rotary_amplitude = item<double>(d, "rotary_amplitude");
  s.tied_head = item<bool>(d, "tied_head");
  s.taps = item<std::size_t>(d, "num_taps");
  s.experts = item<std::size_t>(d, "num_experts");
  s.check();
  return s;
}

EngineSizes sizes_of(const nb::dict& d, const ModelShape& shape) {
  EngineSizes s;
  s.num_pages = item<std::size_t>(d, "num_pages");
  s.num_slots = item<std::size_t>(d, "num_slots");
  s.max_tokens = item<std::size_t>(d, "max_tokens");
  s.max_rows = item<std::size_t>(d, "max_rows");
  s.max_full_rows = item<std::size_t>(d, "max_full_rows");
  s.kv_format = kv_format_named(item<std::string>(d, "kv_format"));
  s.threads = item<std::size_t>(d, "threads");
  s.cpus = item<std::vector<int>>(d, "cpus");
  s.drawable_vocab = item<std::optional<std::size_t>>(d, "drawable_vocab_size").value_or(shape.vocab);
  s.check(shape);
  return s;
}

Format format_named(const std::string& name) {
  const Layout layout = layout_named(name);
  if (!is_panels(layout)) throw std::invalid_argument("weight_format must be bf16, int8 or int4");
  return static_cast<Format>(layout);
}

nb::dict pools_as_dict(const PoolBytes& bytes) {
  nb::dict d;
  d["weights"] = bytes.weights;
  d["kv"] = bytes.kv;
  d["state"] = bytes.state;
  d["activations"] = bytes.activations;
  return d;
}

std::vector<Entry> expected(const nb::dict& shape, const std::string& weight_format) {
  std::vector<Entry> entries;
  std::size_t offset = 0;
  for (const TensorSpec& t : expected_tensors(shape_of(shape), format_named(weight_format))) {
    const std::size_t bytes = tensor_bytes(t.layout, t.rows, t.cols);
    entries.emplace_back(t.name, name_of(t.layout), t.rows, t.cols, offset, bytes);
    offset += bytes;
  }
  return entries;
}

nb::dict planned_pools(const nb::dict& shape, const nb::dict& sizes, const std::string& weight_format) {
  const ModelShape s = shape_of(shape);
  const std::size_t weights = weight_bytes(expected_tensors(s, format_named(weight_format)));
  return pools_as_dict(pool_bytes(s, sizes_of(sizes, s), weights));
}

// An engine, and the buffer that its weights may lie in.
struct BoundEngine {
  std::optional<Input> buffer;
  std::unique_ptr<Engine> engine;
  StagedStep staged;
  std::atomic_flag is_busy = ATOMIC_FLAG_INIT;

  BoundEngine(const nb::dict& shape, const nb::dict& sizes, const std::optional<std::string>& path,
              const std::optional<Input>& weights, const std::vector<Entry>& tensors)
      : buffer(weights) {
    if (path.has_value() == weights.has_value()) throw std::invalid_argument("weights come from a path or a buffer");
    const std::uint8_t* data = nullptr;
    std::size_t num_bytes = 0;
    if (weights) {
      check<std::uint8_t>("weights", *weights, weights->size());
      data = static_cast<const std::uint8_t*>(weights->data());
      num_bytes = weights->size();
      if (reinterpret_cast<std::uintptr_t>(data) % 64 != 0) throw std::invalid_argument("weights must be aligned to 64");
    }
    std::vector<TensorEntry> entries;
    for (const auto& [name, layout, rows, cols, offset, bytes] : tensors) {
      entries.push_back({{name, layout_named(layout), rows, cols}, offset, bytes});
    }
    const ModelShape s = shape_of(shape);
    const EngineSizes z = sizes_of(sizes, s);
    const Kernels& kernels = kernels_named(item<std::string>(sizes, "isa"));
    const nb::gil_scoped_release unlocked;
    engine = std::make_unique<Engine>(s, z, kernels, path.value_or(""), data, num_bytes, entries);
  }

  // What a row brings: the ids, adjusted logits and logits of its best tokens.
  nb::list step(nb::handle token_ids, nb::handle rows, nb::handle tables, nb::handle full_at,
                const std::optional<OutputArray>& full, nb::handle top) {
    const Turn turn(is_busy);
    StepInput in = staged.take(token_ids, rows, tables, full_at, top);
    if (full) {
      check<float>("full", *full, in.num_full * engine->shape().vocab);
      in.full = static_cast<float*>(full->data());
    } else if (in.num_full > 0) {
      throw std::invalid_argument("full_at names tokens, and there is no full for their logits");
    }
    {
      const nb::gil_scoped_release unlocked;
      engine->step(in);
    }
    return staged.best(engine->sizes().drawable_vocab);
  }

  void read_columns(std::size_t layer, std::size_t slot, const OutputArray& out) const {
    check<float>("out", out, engine->shape().delta().conv_dim() * (kTaps - 1));
    engine->read_columns(layer, slot, static_cast<float*>(out.data()));
  }

  void read_state(std::size_t layer, std::size_t slot, std::size_t position, const OutputArray& out) const {
    check<float>("out", out, engine->shape().delta_value_dim() * engine->shape().key_dim);
    engine->read_state(layer, slot, position, static_cast<float*>(out.data()));
  }

  void read_past(std::size_t layer, const Input& table, bool values, const OutputArray& out) const {
    const std::size_t width = engine->shape().kv_heads * engine->shape().head_dim;
    const std::size_t num_tokens = width == 0 ? 0 : out.size() / width;
    check<float>("out", out, num_tokens * width);
    engine->read_past(layer, ints("table", table, table.size()), table.size(), values, num_tokens,
                      static_cast<float*>(out.data()));
  }

 private:
  static const std::int32_t* ints(const char* name, const Input& a, std::size_t size) {
    check<std::int32_t>(name, a, size);
    return static_cast<const std::int32_t*>(a.data());
  }
};

}  // namespace

void bind_engine(nb::module_& m) {
  nb::exception<UnsupportedShape>(m, "UnsupportedShape", PyExc_ValueError);
  nb::register_exception_translator(
      [](const std::exception_ptr& p, void*) {
        try {
          std::rethrow_exception(p);
        } catch (const std::system_error& error) {
          errno = error.code().value();
          PyErr_SetFromErrno(PyExc_OSError);
        }
      },
      nullptr);
  m.def("check_shape", [](const nb::dict& shape) { shape_of(shape); }, nb::arg("shape"));
  m.def("expected_tensors", &expected, nb::arg("shape"), nb::arg("weight_format"));
  m.def("pool_bytes", &planned_pools, nb::arg("shape"), nb::arg("sizes"), nb::arg("weight_format"));
  m.def("large_page_bytes", [](const std::string& path) { return MappedFile(path).large_page_bytes(); }, nb::arg("path"));
  nb::class_<BoundEngine>(m, "Engine")
      .def(nb::init<const nb::dict&, const nb::dict&, const std::optional<std::string>&, const std::optional<Input>&,
                    const std::vector<Entry>&>(),
           nb::arg("shape"), nb::arg("sizes"), nb::arg("path").none(), nb::arg("buffer").none(), nb::arg("tensors"))
      .def_prop_ro("isa", [](const BoundEngine& e) { return e.engine->isa(); })
      .def_prop_ro("pool_bytes", [](const BoundEngine& e) { return pools_as_dict(e.engine->pools()); })
      .def_prop_ro("allocations_in_last_step",
                   [](const BoundEngine& e) { return e.engine->allocations_in_last_step(); })
      .def("step", &BoundEngine::step, nb::arg("token_ids"), nb::arg("rows"), nb::arg("tables"), nb::arg("full_at"),
           nb::arg("full").none(), nb::arg("top"))
      .def("make_present", [](BoundEngine& e) {
             const nb::gil_scoped_release unlocked;
             e.engine->make_present();
           })
      .def("copy_slot", [](BoundEngine& e, std::size_t from, std::size_t to) { e.engine->copy_slot(from, to); },
           nb::arg("source"), nb::arg("target"))
      .def("copy_page", [](BoundEngine& e, std::size_t from, std::size_t to) { e.engine->copy_page(from, to); },
           nb::arg("source"), nb::arg("target"))
      .def("read_columns", &BoundEngine::read_columns, nb::arg("layer"), nb::arg("slot"), nb::arg("out"))
      .def("read_state", &BoundEngine::read_state, nb::arg("layer"), nb::arg("slot"), nb::arg("position"),
           nb::arg("out"))
      .def("read_past", &BoundEngine::read_past, nb::arg("layer"), nb::arg("table"), nb::arg("values"), nb::arg("out"));
}

}  // namespace shoal
