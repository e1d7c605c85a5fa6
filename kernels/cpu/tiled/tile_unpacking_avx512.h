// kInt4 tiles that unpack the next block while they multiply this one: dot products keep two of the four vector pipes
// busy, unpacking fits into the other two. Include after tile_avx512.h and the definition of kFactors.
//
// An iteration is four steps and one group of 16 columns: four lines, of which each becomes two lines of the unpacked
// block. Registers beside those of the tile: zmm27, zmm28, zmm29 hold magnitude, inversion and offset of half a panel's
// rows, zmm30, zmm31 weights. Up to eight tokens leave room for the four tables (zmm16 .. zmm19); twelve read them from
// memory.
#pragma once

#define SHOAL_MAGNITUDES_8 "%%zmm16"
#define SHOAL_INVERTS_8 "%%zmm17"
#define SHOAL_OFFSETS_8 "%%zmm18"
#define SHOAL_LEVELS_8 "%%zmm19"
#define SHOAL_LOAD_TABLES_8                                                                                \
  SHOAL_LINE("vmovdqa64 (%[tables]), %%zmm16") SHOAL_LINE("vmovdqa64 64(%[tables]), %%zmm17")              \
  SHOAL_LINE("vmovdqa64 128(%[tables]), %%zmm18") SHOAL_LINE("vmovdqa64 192(%[tables]), %%zmm19")
#define SHOAL_MAGNITUDES_4 SHOAL_MAGNITUDES_8
#define SHOAL_INVERTS_4 SHOAL_INVERTS_8
#define SHOAL_OFFSETS_4 SHOAL_OFFSETS_8
#define SHOAL_LEVELS_4 SHOAL_LEVELS_8
#define SHOAL_LOAD_TABLES_4 SHOAL_LOAD_TABLES_8
#define SHOAL_MAGNITUDES_12 "(%[tables])"
#define SHOAL_INVERTS_12 "64(%[tables])"
#define SHOAL_OFFSETS_12 "128(%[tables])"
#define SHOAL_LEVELS_12 "192(%[tables])"
#define SHOAL_LOAD_TABLES_12

#define SHOAL_FACTORS(T, half, shift)                                          \
  SHOAL_LINE("vpmovzxbd 128*" #half "(%[codes]), %%zmm29") shift               \
  SHOAL_LINE("vpermd " SHOAL_MAGNITUDES_##T ", %%zmm29, %%zmm27")              \
  SHOAL_LINE("vpermd " SHOAL_INVERTS_##T ", %%zmm29, %%zmm28")                 \
  SHOAL_LINE("vpermd " SHOAL_OFFSETS_##T ", %%zmm29, %%zmm29")
#define SHOAL_UNPACK(T, from, to)                                              \
  SHOAL_LINE("prefetcht0 8192+" #from "(%[line])")                             \
  SHOAL_LINE("vmovdqa64 " #from "(%[line]), %%zmm30")                          \
  SHOAL_LINE("vpsrlw $4, %%zmm30, %%zmm31")                                    \
  SHOAL_LINE("vpermb " SHOAL_LEVELS_##T ", %%zmm30, %%zmm30")                  \
  SHOAL_LINE("vpermb " SHOAL_LEVELS_##T ", %%zmm31, %%zmm31")                  \
  SHOAL_LINE("vpmullw %%zmm27, %%zmm30, %%zmm30")                              \
  SHOAL_LINE("vpmullw %%zmm27, %%zmm31, %%zmm31")                              \
  SHOAL_LINE("vpxord %%zmm28, %%zmm30, %%zmm30")                               \
  SHOAL_LINE("vpxord %%zmm28, %%zmm31, %%zmm31")                               \
  SHOAL_LINE("vpaddb %%zmm29, %%zmm30, %%zmm30")                               \
  SHOAL_LINE("vpaddb %%zmm29, %%zmm31, %%zmm31")                               \
  SHOAL_LINE("vmovdqa64 %%zmm30, " #to "(%[to])")                              \
  SHOAL_LINE("vmovdqa64 %%zmm31, 128+" #to "(%[to])")

// Eight groups, codes shifted by `shift`.
#define SHOAL_EIGHT_GROUPS(T, label, shift)                                                                   \
  SHOAL_LINE("movl $8, %[steps]")                                                                             \
  ".p2align 5\n" label ":\n\t"                                                                                \
  SHOAL_FACTORS(T, 0, shift)                                                                                  \
  SHOAL_DOTS(T, 0) SHOAL_UNPACK(T, 0, 0)                                                                      \
  SHOAL_DOTS(T, 4) SHOAL_UNPACK(T, 128, 256)                                                                  \
  SHOAL_FACTORS(T, 1, shift)                                                                                  \
  SHOAL_DOTS(T, 8) SHOAL_UNPACK(T, 64, 64)                                                                    \
  SHOAL_DOTS(T, 12) SHOAL_UNPACK(T, 192, 320)                                                                 \
  SHOAL_LINE("addq $16, %[a0]") SHOAL_LINE("addq $16, %[a1]") SHOAL_LINE("addq $16, %[a2]")                   \
  SHOAL_LINE("addq $16, %[a3]") SHOAL_LINE("addq $512, %[w]") SHOAL_LINE("addq $16, %[codes]")                \
  SHOAL_LINE("addq $256, %[line]") SHOAL_LINE("addq $512, %[to]")                                             \
  SHOAL_LINE("decl %[steps]") SHOAL_LINE("jnz " label "b")

// `block` is the packed block that becomes the unpacked `to`.
#define SHOAL_UNPACKING_TILE(T)                                                                                    \
  inline void unpacking_tile_##T(const Block& b, const std::uint8_t* block, std::uint8_t* to) {                    \
    const std::uint8_t *w = b.w, *codes = block, *line = block + kInt4LinesOffset;                                 \
    const std::int8_t *a0 = b.q, *a1 = a0 + 3 * b.stride, *a2 = a0 + 6 * b.stride, *a3 = a0 + 9 * b.stride;        \
    int steps;                                                                                                     \
    __asm__ volatile(                                                                                              \
        SHOAL_TOKENS_##T(SHOAL_START, 0)                                                                           \
        SHOAL_LOAD_TABLES_##T                                                                                      \
        SHOAL_EIGHT_GROUPS(T, "1", "")                                                                             \
        SHOAL_LINE("addq $-128, %[codes]")                                                                         \
        SHOAL_EIGHT_GROUPS(T, "2", SHOAL_LINE("vpsrld $4, %%zmm29, %%zmm29"))                                      \
        SHOAL_LINE("movq %c[at_d](%[b]), %[w]")                                                                    \
        SHOAL_LINE("movq %c[at_in](%[b]), %[a0]") SHOAL_LINE("movq %c[at_out](%[b]), %[a1]")                       \
        SHOAL_LINE("vmovaps (%[w]), %%zmm24") SHOAL_LINE("vmovaps 64(%[w]), %%zmm25")                              \
        SHOAL_TOKENS_##T(SHOAL_SCALE_LATE, 0)                                                                      \
        : [w] "+r"(w), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [steps] "=&r"(steps),           \
          [codes] "+r"(codes), [line] "+r"(line), [to] "+r"(to)                                                    \
        : [stride] "r"(b.stride), [b] "r"(&b), [sums] "r"(b.sums), [tables] "r"(&kFactors),                        \
          [at_d] "i"(offsetof(Block, d)), [at_in] "i"(offsetof(Block, f_in)), [at_out] "i"(offsetof(Block, f_out)) \
        : "cc", "memory", "xmm30", "xmm31", SHOAL_CLOBBERED);                                                      \
  }
