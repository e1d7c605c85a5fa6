// The table of tokens of a tokenizer.json, looked up where it stands: a Python string for each of a quarter of a million tokens
// takes a tenth of a second to make and tens of megabytes to keep.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings/arrays.h"

namespace shoal {
namespace {

constexpr std::size_t kMaxIds = std::size_t{1} << 24;  // an id takes four bytes of the index, whether a token has it or not

class Vocabulary {
 public:
  // json: an object of ids by token. Of an id that stands twice the last counts.
  explicit Vocabulary(const nb::bytes& json) : json_(json), text_(json.c_str()), end_(json.size()) {
    if (end_ > UINT32_MAX) refuse();
    const nb::gil_scoped_release unlocked;
    read();
  }

  std::size_t size() const { return starts_.size(); }
  std::size_t longest() const { return longest_; }

  // The token as the file spells it, a string of JSON.
  std::optional<nb::bytes> literal(std::int64_t id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= starts_.size()) return std::nullopt;
    const std::size_t start = starts_[static_cast<std::size_t>(id)];
    if (start == 0) return std::nullopt;  // where the object opens, no token does
    std::size_t at = start;
    skip_string(at);
    return nb::bytes(text_ + start, at - start);
  }

 private:
  [[noreturn]] static void refuse() { throw std::invalid_argument("is no table of ids by token"); }

  void read() {
    std::size_t at = 0;
    expect(at, '{');
    bool has_more = next(at) != '}';
    if (!has_more) ++at;
    while (has_more) {
      next(at);
      const std::size_t start = at;
      longest_ = std::max(longest_, skip_string(at));
      expect(at, ':');
      const std::size_t id = read_id(at);
      if (id >= starts_.size()) starts_.resize(id + 1);
      starts_[id] = static_cast<std::uint32_t>(start);
      has_more = is_followed(at);
    }
    next(at);
    if (at != end_) refuse();
  }

  // What comes after white space; '\0' at the end.
  char next(std::size_t& at) const {
    while (at < end_ && (text_[at] == ' ' || text_[at] == '\n' || text_[at] == '\r' || text_[at] == '\t')) ++at;
    return at < end_ ? text_[at] : '\0';
  }

  void expect(std::size_t& at, char what) const {
    if (next(at) != what || at >= end_) refuse();
    ++at;
  }

  bool is_followed(std::size_t& at) const {
    const char c = next(at);
    if (c != ',' && c != '}') refuse();
    ++at;
    return c == ',';
  }

  // Returns its characters, an escaped one beyond the first plane as two.
  std::size_t skip_string(std::size_t& at) const {
    std::size_t num_chars = 0;
    for (expect(at, '"'); at < end_; ++at) {
      const unsigned char c = static_cast<unsigned char>(text_[at]);
      if (c == '"') {
        ++at;
        return num_chars;
      }
      if (c == '\\') at += at + 1 < end_ && text_[at + 1] == 'u' ? 5 : 1;
      num_chars += (c & 0xC0) != 0x80;
    }
    refuse();
  }

  std::size_t read_id(std::size_t& at) const {
    next(at);
    const std::size_t start = at;
    std::size_t id = 0;
    for (; at < end_ && text_[at] >= '0' && text_[at] <= '9'; ++at) {
      id = 10 * id + static_cast<std::size_t>(text_[at] - '0');
      if (id >= kMaxIds) refuse();
    }
    if (at == start) refuse();
    return id;
  }

  nb::bytes json_;
  const char* text_;
  std::size_t end_;
  std::vector<std::uint32_t> starts_;
  std::size_t longest_ = 0;
};

}  // namespace

void bind_vocabulary(nb::module_& m) {
  nb::class_<Vocabulary>(m, "Vocabulary")
      .def(nb::init<const nb::bytes&>(), nb::arg("json"))
      .def_prop_ro("size", &Vocabulary::size)
      .def_prop_ro("longest", &Vocabulary::longest)
      .def("literal", &Vocabulary::literal, nb::arg("id"));
}

}  // namespace shoal
