// Tiles for AVX-512 with VNNI and VBMI.
//
//   instruction of `prepare`   Zen 4: cycles, pipes    Golden Cove    for 64 weights
//   vpermb zmm                 1    FP12               1    p5        1
//   vpmullw zmm                1    FP03               1    p0        1
//   vpxord, vpaddb zmm         0.5  FP0123             0.5  p05       2
//   vmovdqa64 m,zmm            2    store              1    p49       1
#include "vector/avx512.h"
#include "vector/functions.h"

#include "tiled/block.h"
#include "tiled/driver.h"
#if defined(__GNUC__) && !defined(SHOAL_PLAIN_TILES)
#include "tiled/tile_avx512.h"
#else
#include "tiled/tile_avx512_plain.h"
#endif

namespace shoal {
namespace {

SHOAL_INTEGER_TILE(1)
SHOAL_INTEGER_TILE(2)
SHOAL_INTEGER_TILE(3)
SHOAL_INTEGER_TILE(4)
SHOAL_INTEGER_TILE(8)
SHOAL_INTEGER_TILE(12)
SHOAL_BF16_TILE(1)
SHOAL_BF16_TILE(2)
SHOAL_BF16_TILE(3)
SHOAL_BF16_TILE(4)
SHOAL_BF16_TILE(8)
SHOAL_BF16_TILE(12)

inline __m512i load_line(const std::uint8_t* p) { return _mm512_load_si512(reinterpret_cast<const __m512i*>(p)); }

inline void read_scales(const std::uint8_t* halves, float* d) {
  for (int half = 0; half < 2; ++half) {
    const __m256i h = _mm256_load_si256(reinterpret_cast<const __m256i*>(halves + 32 * half));
    store(d + 16 * half, _mm512_cvtph_ps(h));
  }
}

// What 128 + s * L takes, for each code of s, in every byte or 16-bit lane of a 32-bit lane. Levels are L + 16 here, in
// 0..31, so that their product with |s| has no carry from byte to byte:
//   s >= 0: (L + 16) * s + 128 - 16 * s;   s < 0: 255 - (L + 16) * |s| + 16 * |s| + 129, modulo 256
struct Factors {
  alignas(64) std::uint32_t magnitude[16], invert[16], offset[16];
  alignas(64) std::uint8_t level[64];

  constexpr Factors() : magnitude(), invert(), offset(), level() {
    for (unsigned code = 0; code < 16; ++code) {
      const bool is_negative = kInt4Scales[code] < 0;
      const unsigned size = static_cast<unsigned>(is_negative ? -kInt4Scales[code] : kInt4Scales[code]);
      magnitude[code] = size * 0x00010001u;
      invert[code] = is_negative ? 0xffffffffu : 0;
      offset[code] = (is_negative ? 129 + 16 * size : 128 - 16 * size) * 0x01010101u;
    }
    // vpermb looks at six bits of an index, of which the upper two are another weight's.
    for (unsigned i = 0; i < 64; ++i) level[i] = static_cast<std::uint8_t>(kInt4Levels[i % 16] + 16);
  }
};
constexpr Factors kFactors;

}  // namespace
}  // namespace shoal

#if defined(__GNUC__) && !defined(SHOAL_PLAIN_TILES)
#include "tiled/tile_unpacking_avx512.h"
#endif

namespace shoal {
namespace {

#if defined(SHOAL_UNPACKING_TILE)
SHOAL_UNPACKING_TILE(4)
SHOAL_UNPACKING_TILE(8)
SHOAL_UNPACKING_TILE(12)
#endif

struct Integer : OneByOne {
  static constexpr bool kIsInteger = true;
  // 16 in two equal tiles: a tile of 4 has as much work around its loop as one of 8.
  static std::size_t take(std::size_t left) {
    if (left >= 12 && left != 16) return 12;
    return left >= 8 ? 8 : left >= 4 ? 4 : left;
  }
  static void tile(std::size_t tokens, const Block& b) {
    switch (tokens) {
      case 12: return integer_tile_12(b);
      case 8: return integer_tile_8(b);
      case 4: return integer_tile_4(b);
      case 3: return integer_tile_3(b);
      case 2: return integer_tile_2(b);
      default: return integer_tile_1(b);
    }
  }
};

struct Int4 : Integer {
  static constexpr std::size_t kUnpackedBytes = kPanelRows * kBlockCols;

  static void prepare(const std::uint8_t* block, std::uint8_t* to, float* d) {
    const __m512i magnitudes = _mm512_load_si512(kFactors.magnitude), inverts = _mm512_load_si512(kFactors.invert),
                  offsets = _mm512_load_si512(kFactors.offset), levels = _mm512_load_si512(kFactors.level);
    read_scales(block + kInt4ScaleOffset, d);
    const std::uint8_t* line = block + kInt4LinesOffset;
    for (std::size_t g = 0; g < 16; ++g, line += 256, to += 512) {
      for (std::size_t half = 0; half < 2; ++half) {
        const std::uint8_t* codes = block + 128 * half + 16 * (g % 8);
        __m512i code = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(codes)));
        if (g >= 8) code = _mm512_srli_epi32(code, 4);  // vpermd looks at four bits
        const __m512i magnitude = _mm512_permutexvar_epi32(code, magnitudes),
                      invert = _mm512_permutexvar_epi32(code, inverts),
                      offset = _mm512_permutexvar_epi32(code, offsets);
        for (std::size_t j = 0; j < 2; ++j) {
          const std::uint8_t* p = line + (2 * j + half) * 64;
          prefetch(p + kPrefetchBytes);
          const __m512i packed = load_line(p);
          const __m512i nibbles[2] = {packed, _mm512_srli_epi16(packed, 4)};
          for (std::size_t high = 0; high < 2; ++high) {
            const __m512i product = _mm512_mullo_epi16(_mm512_permutexvar_epi8(nibbles[high], levels), magnitude);
            _mm512_store_si512(reinterpret_cast<__m512i*>(to + ((2 * j + high) * 2 + half) * 64),
                               _mm512_add_epi8(_mm512_xor_si512(product, invert), offset));
          }
        }
      }
    }
  }

#if defined(SHOAL_UNPACKING_TILE)
  static bool unpacks(std::size_t tokens) { return tokens >= 4; }
  static void tile_and_prepare(std::size_t tokens, const Block& b, const std::uint8_t* block, std::uint8_t* to,
                               float* d) {
    // The tile asks for 4 KiB, kPrefetchBytes ahead of its lines; what a block has more is asked for here.
    const std::uint8_t* rest = block + kInt4ScaleOffset + kPrefetchBytes;
    for (std::size_t i = 0; i < kInt4BlockBytes - 4096; i += 64) prefetch(rest + i);
    read_scales(block + kInt4ScaleOffset, d);
    switch (tokens) {
      case 12: return unpacking_tile_12(b, block, to);
      case 8: return unpacking_tile_8(b, block, to);
      default: return unpacking_tile_4(b, block, to);
    }
  }
#endif
};

struct Int8 : Integer {
  static constexpr std::size_t kUnpackedBytes = 0;
  static void prepare(const std::uint8_t* block, std::uint8_t*, float* d) { read_scales(block + kInt8ScaleOffset, d); }
};

struct Bf16 : OneByOne {
  static constexpr bool kIsInteger = false;
  static constexpr std::size_t kUnpackedBytes = 0;
  static std::size_t take(std::size_t left) { return Integer::take(left); }
  static void prepare(const std::uint8_t*, std::uint8_t*, float*) {}
  static void tile(std::size_t tokens, const Block& b) {
    switch (tokens) {
      case 12: return bf16_tile_12(b);
      case 8: return bf16_tile_8(b);
      case 4: return bf16_tile_4(b);
      case 3: return bf16_tile_3(b);
      case 2: return bf16_tile_2(b);
      default: return bf16_tile_1(b);
    }
  }
};

}  // namespace

extern const TiledKernels tiled_avx512 = {{multiply<Int4>, multiply<Int8>, multiply<Bf16>}};

}  // namespace shoal
