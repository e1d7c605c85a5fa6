// Gated attention of single layers, for tests and measurements. The engine calls the table itself.
#include <cstdint>
#include <vector>

#include "bindings/arrays.h"

namespace shoal {
namespace {

struct Scratch {
  std::vector<std::uint8_t> bytes = std::vector<std::uint8_t>(kMixerScratchBytes + 63);
  void* data() { return bytes.data() + (64 - reinterpret_cast<std::uintptr_t>(bytes.data()) % 64) % 64; }
};

// The array under its own type, once `check` has passed it.
template <typename T>
const T* read(const char* name, const Input& a, std::size_t size) {
  check<T>(name, a, size);
  return static_cast<const T*>(a.data());
}

AttentionShape shape_of(std::size_t heads, std::size_t kv_heads, std::size_t head_dim, const Input& cos, float scale,
                        float eps) {
  if (kv_heads == 0 || heads == 0 || heads % kv_heads != 0) {
    throw nb::value_error("heads must be a multiple of kv_heads, and neither zero");
  }
  if (head_dim == 0 || head_dim % 16 != 0 || head_dim > 1024) {
    throw nb::value_error("head_dim must be a multiple of 16, 1,024 at most");
  }
  if (cos.ndim() != 2 || 2 * cos.shape(1) > head_dim) {
    throw nb::value_error("cos must be [rows, rotary_dim / 2], rotary_dim at most head_dim");
  }
  return {heads, kv_heads, head_dim, 2 * cos.shape(1), scale, eps};
}

// What both calls share; the norms and the output are the caller's to set.
AttentionRows rows_of(const AttentionShape& shape, const Input& in, std::size_t position, const Input& cos,
                      const Input& sin, OutputArray& pool, const std::string& kv_format, const Input& pages) {
  AttentionRows rows = {};
  rows.n = cos.shape(0);
  rows.in_stride = 2 * (shape.heads + shape.kv_heads) * shape.head_dim;
  rows.in = read<float>("rows", in, rows.n * rows.in_stride);
  rows.position = position;
  rows.cos = read<float>("cos", cos, rows.n * shape.rotary_dim / 2);
  rows.sin = read<float>("sin", sin, rows.n * shape.rotary_dim / 2);
  rows.format = kv_format_named(kv_format);
  const std::size_t bytes = shape.kv_heads * page_bytes(rows.format, shape.head_dim);
  const std::size_t num_pages = pool.size() / bytes;
  check<std::uint8_t>("pool", pool, num_pages * bytes);
  rows.pool = static_cast<std::uint8_t*>(pool.data());
  const std::size_t length = (position + rows.n + kPageTokens - 1) / kPageTokens;
  rows.pages = read<std::int32_t>("pages", pages, pages.size());
  if (pages.size() < length) throw nb::value_error("pages does not reach the last row");
  for (std::size_t i = 0; i < length; ++i) {
    if (rows.pages[i] < 0 || static_cast<std::size_t>(rows.pages[i]) >= num_pages) {
      throw nb::value_error("pages names a page that the pool does not have");
    }
  }
  return rows;
}

const AttentionKernels& attention_of(const std::string& isa) {
  const AttentionKernels* table = kernels_named(isa).attention;
  if (table == nullptr) throw UnsupportedIsa("this build has no attention for '" + isa + "'");
  return *table;
}

void attention_store(const std::string& isa, const Input& in, std::size_t position, const Input& cos, const Input& sin,
                     const Input& k_norm, OutputArray pool, const std::string& kv_format, const Input& pages,
                     std::size_t heads, std::size_t kv_heads, float eps) {
  const AttentionKernels& table = attention_of(isa);
  const AttentionShape shape = shape_of(heads, kv_heads, k_norm.size(), cos, 1.0f, eps);
  AttentionRows rows = rows_of(shape, in, position, cos, sin, pool, kv_format, pages);
  rows.k_norm = read<float>("k_norm", k_norm, shape.head_dim);
  Scratch scratch;
  nb::gil_scoped_release release;
  for (std::size_t head = 0; head < kv_heads; ++head) table.store(shape, rows, head, scratch.data());
}

void attention_attend(const std::string& isa, const Input& in, std::size_t position, const Input& cos, const Input& sin,
                      const Input& q_norm, OutputArray pool, const std::string& kv_format, const Input& pages,
                      std::size_t heads, std::size_t kv_heads, float scale, float eps, OutputArray out,
                      std::size_t begin, std::size_t end) {
  const AttentionKernels& table = attention_of(isa);
  const AttentionShape shape = shape_of(heads, kv_heads, q_norm.size(), cos, scale, eps);
  AttentionRows rows = rows_of(shape, in, position, cos, sin, pool, kv_format, pages);
  rows.q_norm = read<float>("q_norm", q_norm, shape.head_dim);
  rows.out_stride = heads * shape.head_dim;
  check<float>("out", out, rows.n * rows.out_stride);
  rows.out = static_cast<float*>(out.data());
  if (begin > end || end > rows.n) throw nb::value_error("begin and end must be a range of the rows");
  Scratch scratch;
  nb::gil_scoped_release release;
  for (std::size_t head = 0; head < kv_heads; ++head) table.attend(shape, rows, head, begin, end, scratch.data());
}

}  // namespace

void bind_attention(nb::module_& m) {
  using namespace nb::literals;
  m.def("attention_store", &attention_store, "isa"_a, "rows"_a.noconvert(), "position"_a, "cos"_a.noconvert(),
        "sin"_a.noconvert(), "k_norm"_a.noconvert(), "pool"_a.noconvert(), "kv_format"_a, "pages"_a.noconvert(),
        "heads"_a, "kv_heads"_a, "eps"_a);
  m.def("attention_attend", &attention_attend, "isa"_a, "rows"_a.noconvert(), "position"_a, "cos"_a.noconvert(),
        "sin"_a.noconvert(), "q_norm"_a.noconvert(), "pool"_a.noconvert(), "kv_format"_a, "pages"_a.noconvert(),
        "heads"_a, "kv_heads"_a, "scale"_a, "eps"_a, "out"_a.noconvert(), "begin"_a, "end"_a);
}

}  // namespace shoal
