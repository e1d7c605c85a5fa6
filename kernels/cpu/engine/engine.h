// A model with its pools, ready to advance sequences. One thread at a time may call it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/batch.h"
#include "engine/claims.h"
#include "engine/memory.h"
#include "engine/model.h"
#include "engine/team.h"
#include "engine/thread_pool.h"
#include "engine/weights.h"

namespace shoal {

// Holds an engine, or what belongs to one, for one caller; std::logic_error for another meanwhile.
class Turn {
 public:
  explicit Turn(std::atomic_flag& is_busy) : is_busy_(is_busy) {
    if (is_busy_.test_and_set(std::memory_order_acquire)) throw std::logic_error("another thread uses this engine");
  }
  ~Turn() { is_busy_.clear(std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic_flag& is_busy_;
};

class Engine {
 public:
  // Weights come from the file at `path`, or where that is empty from `data`, which must outlive the engine. Throws
  // UnsupportedShape, std::invalid_argument, std::system_error, std::bad_alloc.
  Engine(const ModelShape& shape, const EngineSizes& sizes, const Kernels& kernels, const std::string& path,
         const std::uint8_t* data, std::size_t num_bytes, const std::vector<TensorEntry>& tensors);

  const ModelShape& shape() const { return shape_; }
  const EngineSizes& sizes() const { return sizes_; }
  const char* isa() const { return kernels_.isa; }
  PoolBytes pools() const;  // as allocated

  // All layers and results. Throws std::invalid_argument before anything is changed, std::logic_error while another
  // thread's step runs.
  void step(const StepInput& input);
  std::ptrdiff_t allocations_in_last_step() const { return allocations_in_last_step_; }  // -1: not counted

  void make_present();  // every page of the pools, for who measures steps alone
  void copy_slot(std::size_t source, std::size_t target);
  void copy_page(std::size_t source, std::size_t target);

  // `layer` counts all layers. Throw std::invalid_argument for one of the other kind and for what leaves a bound.
  void read_columns(std::size_t layer, std::size_t slot, float* out) const;                   // [conv_dim][3]
  void read_state(std::size_t layer, std::size_t slot, std::size_t position, float* out) const;  // [heads][dk][dv]
  void read_past(std::size_t layer, const std::int32_t* table, std::size_t num_entries, bool values,
                 std::size_t num_tokens, float* out) const;  // [num_tokens][kv_heads][head_dim]

 private:
  struct StepContext;
  static void work(void* context, std::size_t thread);
  void choose_wanted();
  std::size_t ordinal_of(std::size_t layer, LayerKind kind) const;
  float* state_of(std::size_t ordinal, std::size_t slot) const;
  std::size_t page_size() const { return page_bytes(sizes_.kv_format, shape_.head_dim); }

  const ModelShape shape_;
  const EngineSizes sizes_;
  const Kernels& kernels_;
  std::unique_ptr<MappedFile> file_;
  Weights weights_;
  std::vector<std::size_t> ordinals_;
  Memory kv_, states_, arena_;
  Buffers buffers_;
  ThreadPool pool_;
  Claims claims_;
  Job job_;
  std::vector<std::uint8_t> slot_marks_;
  std::ptrdiff_t allocations_in_last_step_ = 0;
  std::atomic_flag is_busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace shoal
