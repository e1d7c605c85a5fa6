#include "bindings/staged_step.h"

#include <algorithm>
#include <limits>

namespace shoal {
namespace {

// The memory of an object while this exists.
class View {
 public:
  View(const char* name, nb::handle from, char format) {
    if (PyObject_GetBuffer(from.ptr(), &view_, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
    const char* given = view_.format == nullptr ? "B" : view_.format;
    // A C long has four bytes on some systems, and arrays of int32 may then name it so.
    const bool is_long = format == 'i' && given[0] == 'l';
    if (view_.itemsize != 4 || (given[0] != format && !is_long) || given[1] != '\0') {
      PyBuffer_Release(&view_);
      throw nb::type_error((std::string(name) + " has the wrong element type").c_str());
    }
  }
  ~View() { PyBuffer_Release(&view_); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  template <typename T>
  const T* begin() const {
    return static_cast<const T*>(view_.buf);
  }
  std::size_t size() const { return static_cast<std::size_t>(view_.len) / 4; }

 private:
  Py_buffer view_;
};

std::int32_t int_of(const char* name, nb::handle from) {
  const long long value = PyLong_AsLongLong(from.ptr());
  if (value == -1 && PyErr_Occurred()) throw nb::python_error();
  if (value < std::numeric_limits<std::int32_t>::min() || value > std::numeric_limits<std::int32_t>::max()) {
    throw nb::value_error((std::string(name) + " has " + std::to_string(value) + ", which is no int32").c_str());
  }
  return static_cast<std::int32_t>(value);
}

void append_array(const char* name, nb::handle from, std::vector<std::int32_t>& to) {
  const View view(name, from, 'i');
  to.insert(to.end(), view.begin<std::int32_t>(), view.begin<std::int32_t>() + view.size());
}

// Empties `to` first; its capacity stays.
void gather(const char* name, nb::handle from, std::vector<std::int32_t>& to) {
  to.clear();
  if (!PyList_Check(from.ptr())) {
    append_array(name, from, to);
    return;
  }
  const Py_ssize_t size = PyList_Size(from.ptr());
  for (Py_ssize_t i = 0; i < size; ++i) {
    const nb::handle item = PyList_GetItem(from.ptr(), i);
    if (PyLong_Check(item.ptr())) {
      to.push_back(int_of(name, item));
    } else {
      append_array(name, item, to);
    }
  }
}

template <typename T>
nb::list list_of(const T* values, std::size_t count) {
  nb::list list;
  for (std::size_t i = 0; i < count; ++i) list.append(values[i]);
  return list;
}

}  // namespace

StepInput StagedStep::take(nb::handle token_ids, nb::handle rows, nb::handle tables, nb::handle full_at,
                           nb::handle top) {
  gather("token_ids", token_ids, token_ids_);
  gather("rows", rows, rows_);
  gather("tables", tables, tables_);
  gather("full_at", full_at, full_at_);
  if (rows_.size() % 4 != 0) throw nb::value_error("rows must have 4 numbers each");
  take_top(top);
  StepInput in = {};
  in.token_ids = token_ids_.data();
  in.num_tokens = token_ids_.size();
  in.rows = rows_.data();
  in.num_rows = rows_.size() / 4;
  in.tables = tables_.data();
  in.num_table_entries = tables_.size();
  in.full_at = full_at_.data();
  in.num_full = full_at_.size();
  in.top = top_.data();
  in.num_top = top_.size() / 3;
  in.adjust_ids = adjust_ids_.data();
  in.adjust_values = adjust_values_.data();
  in.num_adjustments = adjust_ids_.size();
  in.top_ids = top_ids_.data();
  in.top_adjusted = top_adjusted_.data();
  in.top_logits = top_logits_.data();
  in.top_stride = stride_;
  return in;
}

void StagedStep::take_top(nb::handle top) {
  top_.clear();
  adjust_ids_.clear();
  adjust_values_.clear();
  stride_ = 0;
  for (const nb::handle request : top) {
    if (!PyTuple_Check(request.ptr()) || PyTuple_Size(request.ptr()) != 4) {
      throw nb::type_error("top has (at, k, ids, values) each");
    }
    const auto part = [&](Py_ssize_t i) { return nb::handle(PyTuple_GetItem(request.ptr(), i)); };
    const std::int32_t k = int_of("top", part(1));
    const std::size_t before = adjust_ids_.size();
    if (!part(2).is_none()) adjust(part(2), part(3));
    top_.push_back(int_of("top", part(0)));
    top_.push_back(k);
    top_.push_back(static_cast<std::int32_t>(adjust_ids_.size() - before));
    if (k > 0 && static_cast<std::size_t>(k) <= kMaxTopK) stride_ = std::max(stride_, static_cast<std::size_t>(k));
  }
  const std::size_t size = top_.size() / 3 * stride_;
  if (top_ids_.size() < size) {
    top_ids_.resize(size);
    top_adjusted_.resize(size);
    top_logits_.resize(size);
  }
}

// In the order of the ids, as the engine wants them.
void StagedStep::adjust(nb::handle ids, nb::handle values) {
  const View id_view("adjust_ids", ids, 'i'), value_view("adjust_values", values, 'f');
  if (id_view.size() != value_view.size()) throw nb::value_error("adjust_ids and adjust_values differ in length");
  ascending_.clear();
  for (std::size_t i = 0; i < id_view.size(); ++i) {
    ascending_.emplace_back(id_view.begin<std::int32_t>()[i], value_view.begin<float>()[i]);
  }
  const auto by_id = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::sort(ascending_.begin(), ascending_.end(), by_id);
  for (const auto& [id, value] : ascending_) {
    adjust_ids_.push_back(id);
    adjust_values_.push_back(value);
  }
}

nb::list StagedStep::best(std::size_t num_drawable) const {
  nb::list rows;
  for (std::size_t i = 0; i < top_.size() / 3; ++i) {
    const std::size_t count = std::min(static_cast<std::size_t>(top_[3 * i + 1]), num_drawable), at = i * stride_;
    rows.append(nb::make_tuple(list_of(top_ids_.data() + at, count), list_of(top_adjusted_.data() + at, count),
                               list_of(top_logits_.data() + at, count)));
  }
  return rows;
}

}  // namespace shoal
