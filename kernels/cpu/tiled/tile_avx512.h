// Tiles of 2 registers of 16 rows x up to 12 tokens, for AVX-512 with VNNI.
//
// One asm statement holds a whole block, because compilers spill the 24 accumulators of the same loop in intrinsics,
// which costs more than half of its speed (docs/adr/0008-tile-code.md has the figures). The text comes from macros: a
// token is three instructions, a step is two loads and its tokens, a block is its start values, a loop of steps and its
// last lines.
//
//   instruction         Zen 4: cycles, pipes     Golden Cove      in one step of 12 tokens
//   vpdpbusd zmm        1    FP01                1    p0 (p05)    24
//   vpbroadcastd zmm,m  1    load                0.5  p23A        12
//   vmovdqa64 zmm,m     1    load                0.5  p23         2
//
// Registers: zmm(2 t), zmm(2 t + 1) accumulate token t; zmm24, zmm25 hold weights; zmm26.. temporaries. Tokens are
// addressed as four pointers x {0, 1, 2} strides.
#pragma once

#define SHOAL_LINE(text) text "\n\t"

// Applies M(token, first accumulator, second accumulator, address), address(d) being d bytes into the token's row.
#define SHOAL_TOKENS_1(M, d) M(0, 0, 1, #d "(%[a0])")
#define SHOAL_TOKENS_2(M, d) SHOAL_TOKENS_1(M, d) M(1, 2, 3, #d "(%[a0],%[stride])")
#define SHOAL_TOKENS_3(M, d) SHOAL_TOKENS_2(M, d) M(2, 4, 5, #d "(%[a0],%[stride],2)")
#define SHOAL_TOKENS_4(M, d) SHOAL_TOKENS_3(M, d) M(3, 6, 7, #d "(%[a1])")
#define SHOAL_TOKENS_8(M, d)                             \
  SHOAL_TOKENS_4(M, d)                                   \
  M(4, 8, 9, #d "(%[a1],%[stride])")                     \
  M(5, 10, 11, #d "(%[a1],%[stride],2)")                 \
  M(6, 12, 13, #d "(%[a2])") M(7, 14, 15, #d "(%[a2],%[stride])")
#define SHOAL_TOKENS_12(M, d)                            \
  SHOAL_TOKENS_8(M, d)                                   \
  M(8, 16, 17, #d "(%[a2],%[stride],2)")                 \
  M(9, 18, 19, #d "(%[a3])")                             \
  M(10, 20, 21, #d "(%[a3],%[stride])") M(11, 22, 23, #d "(%[a3],%[stride],2)")

#define SHOAL_CLOBBERED                                                                                        \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",      \
      "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", \
      "xmm25", "xmm26", "xmm27", "xmm28", "xmm29"

// --- integers --------------------------------------------------------------------------------------------------------

#define SHOAL_START(t, p, q, address)                           \
  SHOAL_LINE("vpbroadcastd " #t "*4(%[sums]), %%zmm" #p)        \
  SHOAL_LINE("vmovdqa64 %%zmm" #p ", %%zmm" #q)
#define SHOAL_DOT(t, p, q, address)                             \
  SHOAL_LINE("vpbroadcastd " address ", %%zmm26")               \
  SHOAL_LINE("vpdpbusd %%zmm26, %%zmm24, %%zmm" #p)             \
  SHOAL_LINE("vpdpbusd %%zmm26, %%zmm25, %%zmm" #q)
#define SHOAL_DOTS(T, d)                                        \
  SHOAL_LINE("vmovdqa64 32*" #d "(%[w]), %%zmm24")              \
  SHOAL_LINE("vmovdqa64 32*" #d "+64(%[w]), %%zmm25")           \
  SHOAL_TOKENS_##T(SHOAL_DOT, d)
#define SHOAL_STEP(T, d)                                        \
  SHOAL_LINE("prefetcht0 32*" #d "(%[ahead])")                  \
  SHOAL_LINE("prefetcht0 32*" #d "+64(%[ahead])")               \
  SHOAL_DOTS(T, d)
// f = fma(float(sum) * D, scale, f)
#define SHOAL_SCALE_FROM(t, p, q, in, out)                      \
  SHOAL_LINE("vbroadcastss 48+" #t "*4(%[sums]), %%zmm26")      \
  SHOAL_LINE("vcvtdq2ps %%zmm" #p ", %%zmm" #p)                 \
  SHOAL_LINE("vcvtdq2ps %%zmm" #q ", %%zmm" #q)                 \
  SHOAL_LINE("vmulps %%zmm24, %%zmm" #p ", %%zmm" #p)           \
  SHOAL_LINE("vmulps %%zmm25, %%zmm" #q ", %%zmm" #q)           \
  SHOAL_LINE("vfmadd213ps " #t "*128(" in "), %%zmm26, %%zmm" #p)    \
  SHOAL_LINE("vfmadd213ps " #t "*128+64(" in "), %%zmm26, %%zmm" #q) \
  SHOAL_LINE("vmovaps %%zmm" #p ", " #t "*128(" out ")")             \
  SHOAL_LINE("vmovaps %%zmm" #q ", " #t "*128+64(" out ")")
#define SHOAL_SCALE(t, p, q, address) SHOAL_SCALE_FROM(t, p, q, "%[in]", "%[out]")
#define SHOAL_SCALE_LATE(t, p, q, address) SHOAL_SCALE_FROM(t, p, q, "%[a0]", "%[a1]")

#define SHOAL_INTEGER_TILE(T)                                                                                      \
  inline void integer_tile_##T(const Block& b) {                                                                   \
    const std::uint8_t* w = b.w;                                                                                   \
    const std::int8_t *a0 = b.q, *a1 = a0 + 3 * b.stride, *a2 = a0 + 6 * b.stride, *a3 = a0 + 9 * b.stride;        \
    const std::uint8_t* ahead = b.ahead;                                                                           \
    int steps = kBlockCols / 16;                                                                                   \
    __asm__ volatile(                                                                                              \
        SHOAL_TOKENS_##T(SHOAL_START, 0)                                                                           \
        ".p2align 5\n"                                                                                             \
        "1:\n\t"                                                                                                   \
        SHOAL_STEP(T, 0) SHOAL_STEP(T, 4) SHOAL_STEP(T, 8) SHOAL_STEP(T, 12)                                       \
        SHOAL_LINE("addq $16, %[a0]") SHOAL_LINE("addq $16, %[a1]") SHOAL_LINE("addq $16, %[a2]")                  \
        SHOAL_LINE("addq $16, %[a3]") SHOAL_LINE("addq $512, %[w]") SHOAL_LINE("addq $512, %[ahead]")              \
        SHOAL_LINE("decl %[steps]") SHOAL_LINE("jnz 1b")                                                           \
        SHOAL_LINE("vmovaps (%[d]), %%zmm24") SHOAL_LINE("vmovaps 64(%[d]), %%zmm25")                              \
        SHOAL_TOKENS_##T(SHOAL_SCALE, 0)                                                                           \
        : [w] "+r"(w), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [steps] "+r"(steps),            \
          [ahead] "+r"(ahead)                                                                                      \
        : [stride] "r"(b.stride), [d] "r"(b.d), [sums] "r"(b.sums), [in] "r"(b.f_in), [out] "r"(b.f_out)           \
        : "cc", "memory", SHOAL_CLOBBERED);                                                                     \
  }

// --- bf16 ------------------------------------------------------------------------------------------------------------
// zmm24, zmm25: the even column of a pair widened to f32; zmm27, zmm28: the odd one; zmm29: 0xffff0000 in each lane.

#define SHOAL_ZERO(t, p, q, address)                            \
  SHOAL_LINE("vpxord %%zmm" #p ", %%zmm" #p ", %%zmm" #p)       \
  SHOAL_LINE("vpxord %%zmm" #q ", %%zmm" #q ", %%zmm" #q)
#define SHOAL_FMA_EVEN(t, p, q, address)                        \
  SHOAL_LINE("vbroadcastss " address ", %%zmm26")               \
  SHOAL_LINE("vfmadd231ps %%zmm26, %%zmm24, %%zmm" #p)          \
  SHOAL_LINE("vfmadd231ps %%zmm26, %%zmm25, %%zmm" #q)
#define SHOAL_FMA_ODD(t, p, q, address)                         \
  SHOAL_LINE("vbroadcastss " address ", %%zmm26")               \
  SHOAL_LINE("vfmadd231ps %%zmm26, %%zmm27, %%zmm" #p)          \
  SHOAL_LINE("vfmadd231ps %%zmm26, %%zmm28, %%zmm" #q)
#define SHOAL_PAIR(T, even, odd)                                \
  SHOAL_LINE("prefetcht0 16*" #even "(%[ahead])")               \
  SHOAL_LINE("prefetcht0 16*" #even "+64(%[ahead])")            \
  SHOAL_LINE("vpslld $16, 16*" #even "(%[w]), %%zmm24")         \
  SHOAL_LINE("vpslld $16, 16*" #even "+64(%[w]), %%zmm25")      \
  SHOAL_LINE("vpandd 16*" #even "(%[w]), %%zmm29, %%zmm27")     \
  SHOAL_LINE("vpandd 16*" #even "+64(%[w]), %%zmm29, %%zmm28")  \
  SHOAL_TOKENS_##T(SHOAL_FMA_EVEN, even)                        \
  SHOAL_TOKENS_##T(SHOAL_FMA_ODD, odd)
// s = s + chain
#define SHOAL_JOIN(t, p, q, address)                                        \
  SHOAL_LINE("vaddps " #t "*128(%[sums]), %%zmm" #p ", %%zmm" #p)           \
  SHOAL_LINE("vaddps " #t "*128+64(%[sums]), %%zmm" #q ", %%zmm" #q)        \
  SHOAL_LINE("vmovaps %%zmm" #p ", " #t "*128(%[sums])")                    \
  SHOAL_LINE("vmovaps %%zmm" #q ", " #t "*128+64(%[sums])")
// f = f + s; the last chain's sums are still in the registers
#define SHOAL_ADD(t, p, q, address)                                         \
  SHOAL_LINE("vaddps " #t "*128(%[in]), %%zmm" #p ", %%zmm" #p)             \
  SHOAL_LINE("vaddps " #t "*128+64(%[in]), %%zmm" #q ", %%zmm" #q)          \
  SHOAL_LINE("vmovaps %%zmm" #p ", " #t "*128(%[out])")                     \
  SHOAL_LINE("vmovaps %%zmm" #q ", " #t "*128+64(%[out])")

#define SHOAL_BF16_TILE(T)                                                                                         \
  inline void bf16_tile_##T(const Block& b) {                                                                      \
    alignas(64) float sums[T * kPanelRows] = {};                                                                   \
    const std::uint8_t* w = b.w;                                                                                   \
    const std::size_t stride = 4 * b.stride;                                                                       \
    const char *a0 = reinterpret_cast<const char*>(b.x), *a1 = a0 + 3 * stride, *a2 = a1 + 3 * stride,             \
               *a3 = a2 + 3 * stride;                                                                              \
    const std::uint8_t* ahead = b.ahead;                                                                           \
    int chains = kBlockCols / kChainCols, steps;                                                                   \
    __asm__ volatile(                                                                                              \
        SHOAL_LINE("vpternlogd $255, %%zmm29, %%zmm29, %%zmm29") SHOAL_LINE("vpslld $16, %%zmm29, %%zmm29")        \
        "1:\n\t"                                                                                                   \
        SHOAL_TOKENS_##T(SHOAL_ZERO, 0)                                                                            \
        SHOAL_LINE("movl %[chain_steps], %[steps]")                                                                \
        ".p2align 5\n"                                                                                             \
        "2:\n\t"                                                                                                   \
        SHOAL_PAIR(T, 0, 4) SHOAL_PAIR(T, 8, 12)                                                                   \
        SHOAL_LINE("addq $16, %[a0]") SHOAL_LINE("addq $16, %[a1]") SHOAL_LINE("addq $16, %[a2]")                  \
        SHOAL_LINE("addq $16, %[a3]") SHOAL_LINE("addq $256, %[w]") SHOAL_LINE("addq $256, %[ahead]")              \
        SHOAL_LINE("decl %[steps]") SHOAL_LINE("jnz 2b")                                                           \
        SHOAL_TOKENS_##T(SHOAL_JOIN, 0)                                                                            \
        SHOAL_LINE("decl %[chains]") SHOAL_LINE("jnz 1b")                                                          \
        SHOAL_TOKENS_##T(SHOAL_ADD, 0)                                                                             \
        : [w] "+r"(w), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [chains] "+r"(chains),          \
          [steps] "=&r"(steps), [ahead] "+r"(ahead)                                                                \
        : [stride] "r"(stride), [in] "r"(b.f_in), [out] "r"(b.f_out), [sums] "r"(sums),                            \
          [chain_steps] "n"(kChainCols / 4)                                                                        \
        : "cc", "memory", SHOAL_CLOBBERED);                                                                     \
  }
