// Work on single rows, for tests and measurements.
#include "bindings/arrays.h"

namespace shoal {
namespace {

Table table_of(const Input& data, bool is_rows8, std::size_t rows, std::size_t cols) {
  const Table table = {static_cast<const std::uint8_t*>(data.data()),
                       is_rows8 ? TableFormat::kRows8 : TableFormat::kRows16, rows, cols};
  check<std::uint8_t>("table", data, rows * table.row_bytes());
  return table;
}

std::size_t padded(std::size_t cols) { return (cols + kBlockCols - 1) / kBlockCols * kBlockCols; }

void rms_norm(const Input& x, const Input& w, float eps, std::size_t n, std::size_t cols, const OutputArray& y,
              const std::string& isa) {
  check<float>("x", x, n * cols);
  check<float>("w", w, cols);
  check<float>("y", y, n * padded(cols));
  kernels_named(isa).rows->rms_norm(static_cast<const float*>(x.data()), cols, static_cast<const float*>(w.data()), eps,
                                    n, cols, static_cast<float*>(y.data()), padded(cols));
}

void read_row(const Input& data, bool is_rows8, std::size_t rows, std::size_t cols, std::size_t row,
              const OutputArray& out, const std::string& isa) {
  const Table table = table_of(data, is_rows8, rows, cols);
  if (row >= rows) throw nb::value_error("row lies beyond the table");
  check<float>("out", out, padded(cols));
  kernels_named(isa).rows->read(table, row, static_cast<float*>(out.data()));
}

void score_rows(const Input& data, bool is_rows8, std::size_t rows, std::size_t cols, const Input& ids, const Input& x,
                const OutputArray& out, const std::string& isa) {
  const Table table = table_of(data, is_rows8, rows, cols);
  check<std::int32_t>("ids", ids, ids.size());
  check<float>("x", x, padded(cols));
  check<float>("out", out, ids.size());
  const std::int32_t* first = static_cast<const std::int32_t*>(ids.data());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (first[i] < 0 || static_cast<std::size_t>(first[i]) >= rows) throw nb::value_error("an id lies beyond the table");
  }
  const nb::gil_scoped_release unlocked;
  kernels_named(isa).rows->score(table, first, ids.size(), static_cast<const float*>(x.data()),
                                 static_cast<float*>(out.data()));
}

}  // namespace

void bind_rows(nb::module_& m) {
  m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("w"), nb::arg("eps"), nb::arg("n"), nb::arg("cols"), nb::arg("y"),
        nb::arg("isa"));
  m.def("read_row", &read_row, nb::arg("table"), nb::arg("is_rows8"), nb::arg("rows"), nb::arg("cols"), nb::arg("row"),
        nb::arg("out"), nb::arg("isa"));
  m.def("score_rows", &score_rows, nb::arg("table"), nb::arg("is_rows8"), nb::arg("rows"), nb::arg("cols"),
        nb::arg("ids"), nb::arg("x"), nb::arg("out"), nb::arg("isa"));
}

}  // namespace shoal
