// The contract of the native CPU kernels: tables of function pointers, one for each instruction set.
//
// Common to all entries
//   - The caller owns every buffer, has checked every shape, and passes no overlapping output. No entry allocates,
//     throws, locks, starts a thread or keeps a pointer after it returns. Any count may be zero.
//   - Weights, states, pages and activation buffers begin at multiples of 64 bytes.
//   - Determinism: what an entry writes for a row (a token, a sequence) depends on that row alone, never on the other
//     rows of the call, on how a range was cut, or on the instruction set. Integer sums inside a block of 256 are exact;
//     each block adds once, f = fma(float(sum) * D[row], scale, f), blocks ascending, from f = 0. Floating-point code is
//     written once over vectors of 16 lanes (vector.h) with every fusion spelt out, and is the same on every set.
//   - Products with kBf16 are sums on three levels, each from 0 and ascending: t = fma(x, w, t) over kChainCols columns,
//     s = s + t over a block's chains, f = f + s over blocks. The error of a chain of n grows as sqrt(n / 2), and beside
//     f32 weights and states these sums are where most of a model's rounding comes from.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace shoal {

constexpr std::size_t kChainCols = 32;  // of kBf16

// Products of few rows: decode.
struct DirectKernels {
  // x [n][stride] f32, cols columns each -> int8 and its sums (layout.h, Activations). Writes cols padded to 256.
  void (*quantise)(const float* x, std::size_t stride, std::size_t n, std::size_t cols, std::int8_t* q, float* scale,
                   std::int16_t* sum16, std::int32_t* sum256);

  // By Format; a.n <= kDirectRows. Streams the panels [first, first + count) of w from memory once.
  void (*multiply[3])(const Matrix& w, const Activations& a, std::size_t first, std::size_t count, const Output& out);
};

constexpr std::size_t kDirectRows = 6;

// How many bytes ahead of its reads a product of one or two rows fetches; 0 leaves that to the processor. Processors
// differ: on some 8 KiB ahead is a quarter faster than none, on others a tenth slower. It never changes a result.
extern std::size_t prefetch_distance;
constexpr std::size_t kPrefetchDistance = 8192;  // until it is measured, and for more rows always

// Measures prefetch_distance for one row on up to 64 MiB of `w` (some 10 ms); a matrix that caches may hold is left alone.
// For the start of a process, before other threads multiply.
void measure_prefetch_distance(const DirectKernels& kernels, const Matrix& w);

// Products of many rows: prefill, and decode of many sequences.
struct TiledKernels {
  // By Format, any a.n. `scratch` has kTileScratchBytes, begins at a multiple of 64, and is the calling thread's alone.
  void (*multiply[3])(const Matrix& w, const Activations& a, std::size_t first, std::size_t count, const Output& out,
                      void* scratch);
};

constexpr std::size_t kTileScratchBytes = 512 * 1024;

struct DeltaWeights {
  const float* conv;     // [conv_dim][4], tap 3 is the current token's
  const float* decay;    // [value_heads], -exp(A_log)
  const float* dt_bias;  // [value_heads]
  const float* norm;     // [value_dim], of the gated norm
  float eps;
};

constexpr std::size_t kMaxDeltaDim = 1024;  // of key_dim and value_dim

// Gated DeltaNet.
struct DeltaKernels {
  // One key head, with its value heads, of n consecutive tokens of one sequence: convolution, SiLU, unit norms, gates,
  // delta rule, gated norm. in [n][in_stride]: q, k, v, z as in_proj wrote them; gates [n][gates_stride]: b, then a; out
  // [n][out_stride]: value_heads x value_dim. At position 0 it begins from zero whatever `state` held.
  void (*advance)(const DeltaShape& shape, const DeltaWeights& w, float* state, std::size_t key_head, const float* in,
                  std::size_t in_stride, const float* gates, std::size_t gates_stride, std::size_t n,
                  std::size_t position, float* out, std::size_t out_stride, void* scratch);

  // S of one value head with the open chunk applied, after `position` tokens -> out [key_dim][value_dim].
  void (*read_state)(const DeltaShape& shape, const float* state, std::size_t value_head, std::size_t position,
                     float* out);
};

struct AttentionShape {
  std::size_t heads, kv_heads, head_dim, rotary_dim;  // pairs (j, j + rotary_dim / 2) turn
  float scale, eps;
};

// One sequence's part of one attention layer.
struct AttentionRows {
  const float* in;  // [n][in_stride]: for each head its query [head_dim] and its gate [head_dim]; then keys; then values
  std::size_t in_stride;
  std::size_t n;
  std::size_t position;  // of the first row
  const float* cos;      // [n][rotary_dim / 2]; sin alike
  const float* sin;
  const float* q_norm;  // [head_dim], 1 + w
  const float* k_norm;
  std::uint8_t* pool;  // this layer's: [num_pages][kv_heads] pages
  KvFormat format;
  const std::int32_t* pages;  // block table: pages[p / 64] holds position p
  float* out;                 // [n][out_stride]: heads x head_dim, gated
  std::size_t out_stride;
};

// Gated attention.
struct AttentionKernels {
  // Norms, turns and stores the keys, and stores the values, of one kv head.
  void (*store)(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, void* scratch);

  // Rows [begin, end) of the query heads of one kv head against all positions up to each row's own; all are stored.
  // Pages ascending; the partial results of each 2,048 positions are merged ascending, always.
  void (*attend)(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, std::size_t begin,
                 std::size_t end, void* scratch);
};

constexpr std::size_t kMixerScratchBytes = 1024 * 1024;  // of `advance`, `store` and `attend`, aligned to 64

// Work on single rows.
struct RowKernels {
  // y[i] = x[i] * rsqrt(mean(x[i]^2) + eps) * w; y is zero from cols up to a multiple of 256.
  void (*rms_norm)(const float* x, std::size_t x_stride, const float* w, float eps, std::size_t n, std::size_t cols,
                   float* y, std::size_t y_stride);

  // out = a row of the table in f32, zero beyond cols up to a multiple of 256.
  void (*read)(const Table& table, std::size_t row, float* out);

  // out[i] = table[ids[i]] * x, f32 throughout; x is zero-padded to a multiple of 256.
  void (*score)(const Table& table, const std::int32_t* ids, std::size_t count, const float* x, float* out);
};

struct LimitKernels;  // limits/limits.h: loops of the machine's limits, for benchmarks

// The lanes' operations over arrays of n floats, n a multiple of 256: what holds the sets to the same bits is tested here.
struct VectorKernels {
  struct Map {
    const char* name;
    void (*apply)(const float* x, std::size_t n, float* y);
  } maps[11];
};

struct Kernels {
  const char* isa;  // as users spell it: "scalar", "avx2", "avxvnni", "avx512"
  const DirectKernels* direct;
  const TiledKernels* tiled;
  const DeltaKernels* delta;
  const AttentionKernels* attention;
  const RowKernels* rows;
  const LimitKernels* limits;
  const VectorKernels* vector;
};

// The tables that this build has and this machine can run, best first, ended by a null pointer. Never empty: "scalar" is
// always the last. The probe runs once for the process.
const Kernels* const* available_kernels();

// The table of that name; "auto" is the best. Null if this build or this machine lacks it.
const Kernels* find_kernels(const char* isa);

// What the files <family>/<isa>.cc define. Only dispatch.cc may touch these: entering a table on a machine without its
// instructions ends the process. The 256-bit VNNI kernels exist in two encodings of the same source: VEX (AVX-VNNI) and
// EVEX (AVX-512 VL and VNNI); both are "avxvnni".
extern const DirectKernels direct_scalar, direct_avx2, direct_avxvnni, direct_evexvnni, direct_avx512;
extern const TiledKernels tiled_scalar, tiled_avx2, tiled_avxvnni, tiled_evexvnni, tiled_avx512;
extern const DeltaKernels delta_scalar, delta_avx2, delta_avx512;
extern const AttentionKernels attention_scalar, attention_avx2, attention_avx512;
extern const RowKernels rows_scalar, rows_avx2, rows_avx512;
extern const LimitKernels limits_scalar, limits_avx2, limits_avxvnni, limits_evexvnni, limits_avx512;
extern const VectorKernels vector_scalar, vector_avx2, vector_avx512;

}  // namespace shoal
