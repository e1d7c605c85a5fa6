// Tiles of 2 registers of 8 rows x up to 6 tokens over one half of a panel, for VNNI in 256 bits. What tile_avx512.h
// says of the asm statements holds here: 12 accumulators, two weights and a broadcast leave one of 16 registers free.
//
// SHOAL_VEX is "%{vex%} " where the instruction is to be AVX-VNNI's, "" where it is AVX-512's.
//
//   instruction         Zen 4: cycles, pipes     Golden Cove     Gracemont    in one step of 6 tokens
//   vpdpbusd ymm        0.5  FP01                0.5  p01        1            12
//   vpbroadcastd ymm,m  0.5  load                0.33 p23A       0.5          6
//   vmovdqa ymm,m       0.5  load                0.33 p23A       0.5          2
#pragma once

#define SHOAL_LINE(text) text "\n\t"

// Applies M(token, first accumulator, second accumulator, address), address(d) being d bytes into the token's row.
#define SHOAL_TOKENS_1(M, d) M(0, 0, 1, #d "(%[a0])")
#define SHOAL_TOKENS_2(M, d) SHOAL_TOKENS_1(M, d) M(1, 2, 3, #d "(%[a0],%[stride])")
#define SHOAL_TOKENS_4(M, d) \
  SHOAL_TOKENS_2(M, d) M(2, 4, 5, #d "(%[a0],%[stride],2)") M(3, 6, 7, #d "(%[a1])")
#define SHOAL_TOKENS_6(M, d) \
  SHOAL_TOKENS_4(M, d) M(4, 8, 9, #d "(%[a1],%[stride])") M(5, 10, 11, #d "(%[a1],%[stride],2)")

#define SHOAL_START(t, p, q, address)                           \
  SHOAL_LINE("vpbroadcastd " #t "*4(%[sums]), %%ymm" #p)        \
  SHOAL_LINE("vmovdqa %%ymm" #p ", %%ymm" #q)
#define SHOAL_DOT(t, p, q, address)                                    \
  SHOAL_LINE("vpbroadcastd " address ", %%ymm14")                      \
  SHOAL_LINE(SHOAL_VEX "vpdpbusd %%ymm14, %%ymm12, %%ymm" #p)          \
  SHOAL_LINE(SHOAL_VEX "vpdpbusd %%ymm14, %%ymm13, %%ymm" #q)
#define SHOAL_STEP(T, d)                                        \
  SHOAL_LINE("prefetcht0 32*" #d "(%[ahead])")                  \
  SHOAL_LINE("vmovdqa 32*" #d "(%[w]), %%ymm12")                \
  SHOAL_LINE("vmovdqa 32*" #d "+32(%[w]), %%ymm13")             \
  SHOAL_TOKENS_##T(SHOAL_DOT, d)
// f = fma(float(sum) * D, scale, f)
#define SHOAL_SCALE(t, p, q, address)                           \
  SHOAL_LINE("vbroadcastss 48+" #t "*4(%[sums]), %%ymm14")      \
  SHOAL_LINE("vcvtdq2ps %%ymm" #p ", %%ymm" #p)                 \
  SHOAL_LINE("vcvtdq2ps %%ymm" #q ", %%ymm" #q)                 \
  SHOAL_LINE("vmulps %%ymm12, %%ymm" #p ", %%ymm" #p)           \
  SHOAL_LINE("vmulps %%ymm13, %%ymm" #q ", %%ymm" #q)           \
  SHOAL_LINE("vfmadd213ps " #t "*128(%[in]), %%ymm14, %%ymm" #p)    \
  SHOAL_LINE("vfmadd213ps " #t "*128+32(%[in]), %%ymm14, %%ymm" #q) \
  SHOAL_LINE("vmovaps %%ymm" #p ", " #t "*128(%[out])")             \
  SHOAL_LINE("vmovaps %%ymm" #q ", " #t "*128+32(%[out])")

// Rows [16 half, 16 half + 16) of the panel.
#define SHOAL_INTEGER_TILE(T)                                                                                   \
  inline void integer_tile_##T(const Block& b, std::size_t half) {                                              \
    const std::uint8_t* w = b.w + 64 * half;                                                                    \
    const std::int8_t *a0 = b.q, *a1 = a0 + 3 * b.stride;                                                       \
    const std::uint8_t* ahead = b.ahead + 64 * half;                                                            \
    int steps = kBlockCols / 16;                                                                                \
    __asm__ volatile(                                                                                           \
        SHOAL_TOKENS_##T(SHOAL_START, 0)                                                                        \
        ".p2align 5\n"                                                                                          \
        "1:\n\t"                                                                                                \
        SHOAL_STEP(T, 0) SHOAL_STEP(T, 4) SHOAL_STEP(T, 8) SHOAL_STEP(T, 12)                                    \
        SHOAL_LINE("addq $16, %[a0]") SHOAL_LINE("addq $16, %[a1]") SHOAL_LINE("addq $512, %[w]")               \
        SHOAL_LINE("addq $512, %[ahead]") SHOAL_LINE("decl %[steps]") SHOAL_LINE("jnz 1b")                      \
        SHOAL_LINE("vmovaps (%[d]), %%ymm12") SHOAL_LINE("vmovaps 32(%[d]), %%ymm13")                           \
        SHOAL_TOKENS_##T(SHOAL_SCALE, 0)                                                                        \
        : [w] "+r"(w), [a0] "+r"(a0), [a1] "+r"(a1), [steps] "+r"(steps), [ahead] "+r"(ahead)                   \
        : [stride] "r"(b.stride), [d] "r"(b.d + 16 * half), [sums] "r"(b.sums), [in] "r"(b.f_in + 16 * half),   \
          [out] "r"(b.f_out + 16 * half)                                                                        \
        : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",       \
          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14");                                                         \
  }
