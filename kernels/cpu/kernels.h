// The contract of the native CPU kernels: one table of function pointers for each instruction set.
//
// Common to all entries
//   - Matrices are row major and dense. `bf16` is the upper half of an IEEE binary32, held in a uint16_t.
//   - The caller owns every buffer, has checked every shape, and passes no overlapping output. No entry allocates,
//     throws, locks, starts a thread or keeps a pointer after it returns. Any size may be zero.
//   - Pointers need the natural alignment of their element only.
//   - Infinities, NaN and subnormal numbers follow IEEE 754: nothing is flushed, clamped or skipped.
//   - Two calls of the same entry of the same table give the same bits for the same row of x and W, whatever the other
//     rows are. Different tables may differ in the order of additions and in fusing, so in the last bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

struct Kernels {
  // The name of the instruction set, as users spell it: "scalar", "avx2".
  const char* isa;

  // y = x @ W^T :  y[n, out] f32,  w[out, in] bf16,  x[n, in] f32;  products and sums in f32.
  // W is read from memory once, for all n rows of x; n is meant to be small (the rows of one decode step).
  void (*matvec_bf16)(float* y, const std::uint16_t* w, const float* x, std::size_t n, std::size_t out,
                      std::size_t in);
};

// One table for each <family>/<isa>.cc that this build has. Only the dispatch may touch these: entering a table on a
// machine without its instructions ends the process.
extern const Kernels kernels_scalar;
#if defined(SHOAL_HAVE_AVX2)
extern const Kernels kernels_avx2;
#endif

// The tables that this build has and this machine can run, best first, ended by a null pointer. Never empty: "scalar"
// is always the last. The probe runs once for the process.
const Kernels* const* available_kernels();

// The table of that name; "auto" is the best. Null if this build or this machine lacks it.
const Kernels* find_kernels(const char* isa);

}  // namespace shoal
