#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "engine/allocations.h"
#include "engine/past.h"

namespace shoal {
namespace {

// Checks before anything is allocated.
const ModelShape& checked(const ModelShape& shape, const EngineSizes& sizes) {
  shape.check();
  sizes.check(shape);
  return shape;
}

}  // namespace

struct Engine::StepContext {
  Parts parts;
  Job& job;
  std::atomic<std::size_t> num_allocations{0};
};

Engine::Engine(const ModelShape& shape, const EngineSizes& sizes, const Kernels& kernels, const std::string& path,
               const std::uint8_t* data, std::size_t num_bytes, const std::vector<TensorEntry>& tensors)
    : shape_(checked(shape, sizes)),
      sizes_(sizes),
      kernels_(kernels),
      file_(path.empty() ? nullptr : new MappedFile(path)),
      weights_(find_weights(shape, tensors, file_ ? file_->data() : data, file_ ? file_->num_bytes() : num_bytes)),
      kv_(pool_bytes(shape, sizes, 0).kv),
      states_(pool_bytes(shape, sizes, 0).state),
      arena_(arena_bytes(shape, sizes)),
      buffers_(carve(shape, sizes, arena_.data())),
      pool_(sizes.threads, sizes.cpus),
      claims_(sizes.threads) {
  std::size_t num_delta = 0, num_attention = 0;
  for (LayerKind kind : shape.layers) ordinals_.push_back(kind == LayerKind::kDelta ? num_delta++ : num_attention++);
  job_.sequences.reserve(sizes.max_rows);
  job_.tops.reserve(sizes.max_rows);
  job_.wanted.reserve(sizes.max_rows + sizes.max_full_rows);
  job_.full_row.reserve(sizes.max_full_rows);
  job_.top_row.reserve(sizes.max_rows);
  job_.input_norm.resize(sizes.max_rows);
  job_.rounding_norm.resize(sizes.max_rows);
  job_.needs_all.resize(sizes.max_rows);
  slot_marks_.resize(sizes.num_slots);
  allocations_in_last_step_ = counts_allocations() ? 0 : -1;
  measure_scan(weights_, buffers_);
  measure_prefetch_distance(*kernels_.direct, weights_.head_scan);
}

PoolBytes Engine::pools() const {
  return {weights_.num_bytes, kv_.num_bytes(), states_.num_bytes(), arena_.num_bytes()};
}

void Engine::step(const StepInput& input) {
  const Turn turn(is_busy_);
  const std::size_t before = num_allocations();
  read_input(input, shape_, sizes_, job_.sequences, job_.tops, slot_marks_);
  job_.input = input;
  choose_wanted();
  StepContext context = {{shape_, sizes_, weights_, kernels_, buffers_, ordinals_, kv_.data(),
                          reinterpret_cast<float*>(states_.data()), pool_, claims_},
                         job_};
  if (input.num_tokens > 0) pool_.run(&Engine::work, &context);
  const std::size_t here = num_allocations() - before;
  allocations_in_last_step_ = counts_allocations() ? static_cast<std::ptrdiff_t>(context.num_allocations + here) : -1;
}

void Engine::work(void* context, std::size_t thread) {
  StepContext& step = *static_cast<StepContext*>(context);
  const std::size_t before = num_allocations();
  const Member member = {step.parts, thread};
  run_trunk(step.job, member);
  run_head(step.job, member);
  if (thread != 0) step.num_allocations += num_allocations() - before;
}

// Tokens with results, each once, and where the results' rows are among them.
void Engine::choose_wanted() {
  std::vector<std::size_t>& wanted = job_.wanted;
  wanted.clear();
  for (std::size_t i = 0; i < job_.input.num_full; ++i) wanted.push_back(static_cast<std::size_t>(job_.input.full_at[i]));
  for (const Top& top : job_.tops) wanted.push_back(top.at);
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  const auto place = [&](std::size_t at) {
    return static_cast<std::size_t>(std::lower_bound(wanted.begin(), wanted.end(), at) - wanted.begin());
  };
  job_.full_row.clear();
  job_.top_row.clear();
  for (std::size_t i = 0; i < job_.input.num_full; ++i) {
    job_.full_row.push_back(place(static_cast<std::size_t>(job_.input.full_at[i])));
  }
  for (const Top& top : job_.tops) job_.top_row.push_back(place(top.at));
}

std::size_t Engine::ordinal_of(std::size_t layer, LayerKind kind) const {
  if (layer >= shape_.layers.size() || shape_.layers[layer] != kind) {
    throw std::invalid_argument("layer " + std::to_string(layer) + " is not of this kind");
  }
  return ordinals_[layer];
}

float* Engine::state_of(std::size_t ordinal, std::size_t slot) const {
  if (slot >= sizes_.num_slots) throw std::invalid_argument("slot " + std::to_string(slot) + " does not exist");
  float* states = reinterpret_cast<float*>(states_.data());
  return states + (ordinal * sizes_.num_slots + slot) * shape_.delta().floats();
}

void Engine::make_present() {
  kv_.make_present();
  states_.make_present();
  arena_.make_present();
}

void Engine::copy_slot(std::size_t source, std::size_t target) {
  for (std::size_t i = 0; i < shape_.count(LayerKind::kDelta); ++i) {
    const float* from = state_of(i, source);
    float* to = state_of(i, target);
    if (from != to) std::memcpy(to, from, shape_.delta().floats() * sizeof(float));
  }
}

void Engine::copy_page(std::size_t source, std::size_t target) {
  if (source >= sizes_.num_pages || target >= sizes_.num_pages) throw std::invalid_argument("no such page");
  const std::size_t bytes = shape_.kv_heads * page_size();
  for (std::size_t i = 0; i < shape_.count(LayerKind::kAttention); ++i) {
    std::uint8_t* layer = kv_.data() + i * sizes_.num_pages * bytes;
    if (source != target) std::memcpy(layer + target * bytes, layer + source * bytes, bytes);
  }
}

void Engine::read_columns(std::size_t layer, std::size_t slot, float* out) const {
  const float* columns = state_of(ordinal_of(layer, LayerKind::kDelta), slot);
  const std::size_t num = shape_.delta().conv_dim();
  for (std::size_t c = 0; c < num; ++c) {
    for (std::size_t tap = 0; tap + 1 < kTaps; ++tap) out[c * (kTaps - 1) + tap] = columns[tap * num + c];
  }
}

void Engine::read_state(std::size_t layer, std::size_t slot, std::size_t position, float* out) const {
  const DeltaShape shape = shape_.delta();
  const float* state = state_of(ordinal_of(layer, LayerKind::kDelta), slot);
  for (std::size_t head = 0; head < shape.value_heads; ++head) {
    kernels_.delta->read_state(shape, state, head, position, out + head * shape.key_dim * shape.value_dim);
  }
}

void Engine::read_past(std::size_t layer, const std::int32_t* table, std::size_t num_entries, bool values,
                       std::size_t num_tokens, float* out) const {
  const std::size_t ordinal = ordinal_of(layer, LayerKind::kAttention);
  if ((num_tokens + kPageTokens - 1) / kPageTokens > num_entries) throw std::invalid_argument("the table is too short");
  const std::size_t row = shape_.kv_heads * page_size();
  for (std::size_t t = 0; t < num_tokens; ++t) {
    const std::int32_t page = table[t / kPageTokens];
    if (page < 0 || static_cast<std::size_t>(page) >= sizes_.num_pages) throw std::invalid_argument("no such page");
    const std::uint8_t* heads = kv_.data() + (ordinal * sizes_.num_pages + static_cast<std::size_t>(page)) * row;
    for (std::size_t head = 0; head < shape_.kv_heads; ++head, out += shape_.head_dim) {
      read_page(heads + head * page_size(), sizes_.kv_format, shape_.head_dim, t % kPageTokens, values, out);
    }
  }
}

}  // namespace shoal
