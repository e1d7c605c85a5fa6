// The table of 256-bit VNNI, in the encoding that SHOAL_VEX chooses: avxvnni.cc and evexvnni.cc are this source.
#include "vector/avx2.h"
#include "vector/functions.h"

#include "tiled/block.h"
#include "tiled/driver.h"
#include "tiled/bf16_avx2.h"
#include "tiled/unpack_avx2.h"
#if defined(__GNUC__) && !defined(SHOAL_PLAIN_TILES)
#include "tiled/tile_vnni256.h"
#else
#include "tiled/tile_vnni256_plain.h"
#endif

namespace shoal {
namespace {

SHOAL_INTEGER_TILE(1)
SHOAL_INTEGER_TILE(2)
SHOAL_INTEGER_TILE(4)
SHOAL_INTEGER_TILE(6)

// By code: 128 + s * L out of L + 16, as avx512.cc explains.
constexpr Bytes make_magnitudes() {
  Bytes bytes = {};
  for (int i = 0; i < 32; ++i) {
    bytes.value[i] = static_cast<std::uint8_t>(kInt4Scales[i % 16] < 0 ? -kInt4Scales[i % 16] : kInt4Scales[i % 16]);
  }
  return bytes;
}
constexpr Bytes make_inverts() {
  Bytes bytes = {};
  for (int i = 0; i < 32; ++i) bytes.value[i] = kInt4Scales[i % 16] < 0 ? 255 : 0;
  return bytes;
}
constexpr Bytes make_offsets() {
  Bytes bytes = {};
  for (int i = 0; i < 32; ++i) {
    const int s = kInt4Scales[i % 16];
    bytes.value[i] = static_cast<std::uint8_t>(s < 0 ? 129 - 16 * s : 128 - 16 * s);
  }
  return bytes;
}
constexpr Bytes kMagnitudes = make_magnitudes(), kInverts = make_inverts(), kOffsets = make_offsets();

struct Integer : OneByOne {
  static constexpr bool kIsInteger = true;
  static std::size_t take(std::size_t left) {
    if (left >= 6 && left != 8) return 6;
    return left >= 4 ? 4 : left >= 2 ? 2 : left;
  }
  static void tile(std::size_t tokens, const Block& b) {
    for (std::size_t half = 0; half < 2; ++half) {
      switch (tokens) {
        case 6: integer_tile_6(b, half); break;
        case 4: integer_tile_4(b, half); break;
        case 2: integer_tile_2(b, half); break;
        default: integer_tile_1(b, half); break;
      }
    }
  }
};

struct Int4 : Integer {
  static constexpr std::size_t kUnpackedBytes = kPanelRows * kBlockCols;

  static void prepare(const std::uint8_t* block, std::uint8_t* to, float* d) {
    const __m256i levels = table(kLevels), magnitudes = table(kMagnitudes), inverts = table(kInverts),
                  offsets = table(kOffsets), nibble = _mm256_set1_epi8(15);
    const __m256i every_byte[2] = {spread(0, 0xffffffff), spread(1, 0xffffffff)};
    const __m256i every_word[2] = {spread(0, 0x00ff00ff), spread(1, 0x00ff00ff)};
    read_scales(block + kInt4ScaleOffset, d);
    const std::uint8_t* line = block + kInt4LinesOffset;
    for (std::size_t g = 0; g < 16; ++g, line += 256, to += 512) {
      for (std::size_t half = 0; half < 2; ++half) {
        prefetch(line + 64 * half + kPrefetchBytes);
        prefetch(line + 64 * half + 128 + kPrefetchBytes);
        const __m256i codes = read_codes(block, g, half);
        const __m256i magnitude16 = _mm256_shuffle_epi8(magnitudes, codes),
                      invert16 = _mm256_shuffle_epi8(inverts, codes), offset16 = _mm256_shuffle_epi8(offsets, codes);
        for (std::size_t part = 0; part < 2; ++part) {
          const __m256i magnitude = _mm256_shuffle_epi8(magnitude16, every_word[part]),
                        invert = _mm256_shuffle_epi8(invert16, every_byte[part]),
                        offset = _mm256_shuffle_epi8(offset16, every_byte[part]);
          for (std::size_t j = 0; j < 2; ++j) {
            const __m256i packed = load_line(line + (2 * j + half) * 64 + 32 * part);
            const __m256i nibbles[2] = {packed, _mm256_srli_epi16(packed, 4)};
            for (std::size_t high = 0; high < 2; ++high) {
              const __m256i level = _mm256_shuffle_epi8(levels, _mm256_and_si256(nibbles[high], nibble));
              const __m256i product = _mm256_mullo_epi16(level, magnitude);
              store_line(to + ((2 * j + high) * 2 + half) * 64 + 32 * part,
                         _mm256_add_epi8(_mm256_xor_si256(product, invert), offset));
            }
          }
        }
      }
    }
  }
};

struct Int8 : Integer {
  static constexpr std::size_t kUnpackedBytes = 0;
  static void prepare(const std::uint8_t* block, std::uint8_t*, float* d) { read_scales(block + kInt8ScaleOffset, d); }
};

}  // namespace
}  // namespace shoal
