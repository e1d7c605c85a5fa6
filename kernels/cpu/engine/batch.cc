#include "engine/batch.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "engine/arena.h"

namespace shoal {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

bool is_below(std::int32_t value, std::size_t bound) { return value >= 0 && static_cast<std::size_t>(value) < bound; }

void read_sequences(const StepInput& in, const ModelShape& shape, const EngineSizes& sizes,
                    std::vector<Sequence>& sequences, std::vector<std::uint8_t>& slot_marks) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i < in.num_rows; ++i) {
    const std::int32_t* row = in.rows + 4 * i;
    const std::string name = "row " + std::to_string(i);
    if (row[0] < 1 || static_cast<std::size_t>(row[0]) > in.num_tokens - begin) {
      refuse("the rows' tokens do not add up to token_ids");
    }
    const Sequence s = {begin, static_cast<std::size_t>(row[0]), static_cast<std::size_t>(row[1]),
                        static_cast<std::size_t>(row[2]), in.tables + row[3]};
    if (row[1] < 0 || s.start + s.count > INT32_MAX) refuse(name + " starts at " + std::to_string(row[1]));
    if (!is_below(row[2], sizes.num_slots)) refuse(name + " names slot " + std::to_string(row[2]));
    if (slot_marks[s.slot]) refuse("two rows share slot " + std::to_string(row[2]));
    slot_marks[s.slot] = 1;
    sequences.push_back(s);
    begin += s.count;
    if (shape.count(LayerKind::kAttention) == 0) continue;
    const std::size_t num_pages = (s.start + s.count + kPageTokens - 1) / kPageTokens;
    if (row[3] < 0 || static_cast<std::size_t>(row[3]) > in.num_table_entries ||
        num_pages > in.num_table_entries - static_cast<std::size_t>(row[3])) {
      refuse(name + " has a block table that ends beyond tables");
    }
    for (std::size_t p = 0; p < num_pages; ++p) {
      if (!is_below(s.pages[p], sizes.num_pages)) refuse(name + " names page " + std::to_string(s.pages[p]));
    }
  }
  if (begin != in.num_tokens) refuse("the rows' tokens do not add up to token_ids");
}

void read_tops(const StepInput& in, const ModelShape& shape, std::vector<Top>& tops) {
  std::size_t first = 0;
  for (std::size_t i = 0; i < in.num_top; ++i) {
    const std::int32_t* row = in.top + 3 * i;
    if (!is_below(row[0], in.num_tokens)) refuse("top names token " + std::to_string(row[0]));
    if (row[1] < 1 || static_cast<std::size_t>(row[1]) > kMaxTopK) {
      refuse("top asks for " + std::to_string(row[1]) + " tokens, not 1.." + std::to_string(kMaxTopK));
    }
    if (static_cast<std::size_t>(row[1]) > in.top_stride) refuse("top asks for more tokens than the output holds");
    if (row[2] < 0 || static_cast<std::size_t>(row[2]) > in.num_adjustments - first) {
      refuse("the numbers of adjustments do not add up");
    }
    const Top top = {static_cast<std::size_t>(row[0]), static_cast<std::size_t>(row[1]), in.adjust_ids + first,
                     in.adjust_values + first, static_cast<std::size_t>(row[2])};
    for (std::size_t j = 0; j < top.num_adjustments; ++j) {
      if (!is_below(top.adjust_ids[j], shape.vocab)) refuse("an adjustment names id " + std::to_string(top.adjust_ids[j]));
      if (j > 0 && top.adjust_ids[j] <= top.adjust_ids[j - 1]) refuse("the ids of adjustments must ascend");
      if (std::isnan(top.adjust_values[j])) refuse("an adjustment is not a number");
    }
    tops.push_back(top);
    first += top.num_adjustments;
  }
  if (first != in.num_adjustments) refuse("the numbers of adjustments do not add up");
}

}  // namespace

void read_input(const StepInput& in, const ModelShape& shape, const EngineSizes& sizes,
                std::vector<Sequence>& sequences, std::vector<Top>& tops, std::vector<std::uint8_t>& slot_marks) {
  sequences.clear();
  tops.clear();
  slot_marks.assign(slot_marks.size(), 0);
  if (in.num_tokens > sizes.max_tokens) refuse("a step takes " + std::to_string(sizes.max_tokens) + " tokens at most");
  if (in.num_rows > sizes.max_rows) refuse("a step takes " + std::to_string(sizes.max_rows) + " rows at most");
  if (in.num_full > sizes.max_full_rows) {
    refuse("whole logits of " + std::to_string(sizes.max_full_rows) + " tokens at most");
  }
  if (in.num_top > sizes.max_rows) refuse("the best of " + std::to_string(sizes.max_rows) + " tokens at most");
  for (std::size_t i = 0; i < in.num_tokens; ++i) {
    if (!is_below(in.token_ids[i], shape.vocab)) refuse("token id " + std::to_string(in.token_ids[i]) + " is unknown");
  }
  for (std::size_t i = 0; i < in.num_full; ++i) {
    if (!is_below(in.full_at[i], in.num_tokens)) refuse("full_at names token " + std::to_string(in.full_at[i]));
  }
  read_sequences(in, shape, sizes, sequences, slot_marks);
  read_tops(in, shape, tops);
}

}  // namespace shoal
