// Tiles for AVX2 without dot products of four.
//
// kInt4: with unsigned levels L + 16 a 16-bit lane of vpmaddubsw sums two products, and of four of them eight: at most
// 31 * 127 * 8 = 31,496, no saturation. vpmaddwd then multiplies by the group's s and adds the lanes of a row. The
// +16 is cancelled once a block, by the sums of the activations' groups times s, two groups a vpmaddwd.
// kInt8: an unsigned weight uses all eight bits and would saturate, so pairs are widened to 16 bits for vpmaddwd.
//
//   instruction          Zen 4: cycles, pipes    Skylake         of kInt4, 8 rows x 16 columns x 1 token
//   vpmaddubsw ymm       0.5  FP03               0.5   p01       4
//   vpmaddwd ymm         0.5  FP03               0.5   p01       1.5
//   vpaddw, vpaddd ymm   0.25 FP0123             0.33  p015      4.5
//   vpbroadcastd ymm,m   0.5  load               0.5   p23       4.5
#include "vector/avx2.h"
#include "vector/functions.h"

#include "tiled/block.h"
#include "tiled/driver.h"
#include "tiled/bf16_avx2.h"
#include "tiled/unpack_avx2.h"

namespace shoal {
namespace {

inline __m256i load_words(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }

// 32 bits of q or sum16 in every lane.
inline __m256i broadcast(const void* p) {
  return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)));
}

// f = fma(float(sum) * D, scale, f) of rows [row, row + 8), token t.
inline void finish_sum(const Block& b, std::size_t row, int t, __m256i sum) {
  const __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(b.d + row));
  const std::size_t at = t * kPanelRows + row;
  _mm256_store_ps(b.f_out + at, _mm256_fmadd_ps(v, _mm256_set1_ps(b.sums->scale[t]), _mm256_load_ps(b.f_in + at)));
}

// An unpacked kInt4 block: levels in the lines of kInt8; then s, twice, in the 32-bit lane of each row, a group a line
// of 128 bytes; then s of two groups likewise.
constexpr std::size_t kTwiceOffset = kPanelRows * kBlockCols;
constexpr std::size_t kPairsOffset = kTwiceOffset + 16 * 4 * kPanelRows;

template <int T>
inline void int4_tile(const Block& b) {
  for (std::size_t row = 0; row < kPanelRows; row += 8) {
    __m256i sum[T];
    for (int t = 0; t < T; ++t) sum[t] = _mm256_setzero_si256();
    for (std::size_t g = 0; g < 16; ++g) {
      const std::uint8_t* w = b.w + g * 512 + 4 * row;
      const __m256i w0 = load_words(w), w1 = load_words(w + 128), w2 = load_words(w + 256), w3 = load_words(w + 384),
                    s = load_words(b.w + kTwiceOffset + g * 128 + 4 * row);
      for (int t = 0; t < T; ++t) {
        const std::int8_t* q = b.q + t * b.stride + 16 * g;
        __m256i lanes = _mm256_maddubs_epi16(w0, broadcast(q));
        lanes = _mm256_add_epi16(lanes, _mm256_maddubs_epi16(w1, broadcast(q + 4)));
        lanes = _mm256_add_epi16(lanes, _mm256_maddubs_epi16(w2, broadcast(q + 8)));
        lanes = _mm256_add_epi16(lanes, _mm256_maddubs_epi16(w3, broadcast(q + 12)));
        sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(lanes, s));
      }
    }
    for (std::size_t g = 0; g < 16; g += 2) {
      const __m256i s = load_words(b.w + kPairsOffset + g * 64 + 4 * row);
      for (int t = 0; t < T; ++t) {
        const __m256i pair = broadcast(b.sum16 + t * (b.stride / kGroupCols) + g);
        sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pair, s));
      }
    }
    for (int t = 0; t < T; ++t) finish_sum(b, row, t, sum[t]);
  }
}

template <int T>
inline void int8_tile(const Block& b) {
  alignas(32) std::int16_t q[T][kBlockCols];
  for (int t = 0; t < T; ++t) {
    for (std::size_t k = 0; k < kBlockCols; k += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b.q + t * b.stride + k));
      _mm256_store_si256(reinterpret_cast<__m256i*>(&q[t][k]), _mm256_cvtepi8_epi16(bytes));
    }
  }
  const __m256i first = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1,  //
                                         0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
  for (std::size_t row = 0; row < kPanelRows; row += 8) {
    __m256i sum[T];
    for (int t = 0; t < T; ++t) sum[t] = _mm256_set1_epi32(b.sums->start[t]);
    for (std::size_t k = 0; k < kBlockCols; k += 4) {
      const __m256i w = load_words(b.w + k * kPanelRows + 4 * row);
      const __m256i w0 = _mm256_shuffle_epi8(w, first), w1 = _mm256_shuffle_epi8(_mm256_srli_epi32(w, 16), first);
      for (int t = 0; t < T; ++t) {
        sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(w0, broadcast(&q[t][k])));
        sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(w1, broadcast(&q[t][k + 2])));
      }
    }
    for (int t = 0; t < T; ++t) finish_sum(b, row, t, sum[t]);
  }
}

constexpr Bytes make_scales() {
  Bytes bytes = {};
  for (int i = 0; i < 32; ++i) bytes.value[i] = static_cast<std::uint8_t>(kInt4Scales[i % 16]);
  return bytes;
}
constexpr Bytes kScales = make_scales();

struct Integer : OneByOne {
  static constexpr bool kIsInteger = true;
  static std::size_t take(std::size_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : left; }
};

struct Int4 : Integer {
  static constexpr std::size_t kUnpackedBytes = kPairsOffset + 8 * 4 * kPanelRows;

  static void prepare(const std::uint8_t* block, std::uint8_t* to, float* d) {
    const __m256i levels = table(kLevels), nibble = _mm256_set1_epi8(15), scales = table(kScales);
    read_scales(block + kInt4ScaleOffset, d);
    const std::uint8_t* line = block + kInt4LinesOffset;
    for (std::size_t i = 0; i < 64; ++i, line += 64) {  // line of (group, j), half
      prefetch(line + kPrefetchBytes);
      std::uint8_t* out = to + i / 2 * 256 + i % 2 * 64;
      for (std::size_t part = 0; part < 64; part += 32) {
        const __m256i packed = load_line(line + part);
        store_line(out + part, _mm256_shuffle_epi8(levels, _mm256_and_si256(packed, nibble)));
        store_line(out + 128 + part,
                   _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble)));
      }
    }
    for (std::size_t g = 0; g < 16; g += 2) {
      for (std::size_t half = 0; half < 2; ++half) {
        const __m256i even16 = _mm256_shuffle_epi8(scales, read_codes(block, g, half)),
                      odd16 = _mm256_shuffle_epi8(scales, read_codes(block, g + 1, half));
        for (std::size_t part = 0; part < 2; ++part) {
          const std::size_t at = 64 * half + 32 * part;
          // s in the upper byte of each 16-bit lane, then shifted down with its sign
          const __m256i words = spread(part, 0xff00ff00);
          const __m256i even = _mm256_srai_epi16(_mm256_shuffle_epi8(even16, words), 8),
                        odd = _mm256_srai_epi16(_mm256_shuffle_epi8(odd16, words), 8);
          store_line(to + kTwiceOffset + g * 128 + at, even);
          store_line(to + kTwiceOffset + (g + 1) * 128 + at, odd);
          store_line(to + kPairsOffset + g * 64 + at, _mm256_blend_epi16(even, odd, 0xaa));
        }
      }
    }
  }

  static void tile(std::size_t tokens, const Block& b) {
    switch (tokens) {
      case 8: return int4_tile<8>(b);
      case 4: return int4_tile<4>(b);
      case 2: return int4_tile<2>(b);
      default: return int4_tile<1>(b);
    }
  }
};

struct Int8 : Integer {
  static constexpr std::size_t kUnpackedBytes = 0;
  static void prepare(const std::uint8_t* block, std::uint8_t*, float* d) { read_scales(block + kInt8ScaleOffset, d); }
  static void tile(std::size_t tokens, const Block& b) {
    switch (tokens) {
      case 8: return int8_tile<8>(b);
      case 4: return int8_tile<4>(b);
      case 2: return int8_tile<2>(b);
      default: return int8_tile<1>(b);
    }
  }
};

}  // namespace

extern const TiledKernels tiled_avx2 = {{multiply<Int4>, multiply<Int8>, multiply<Bf16>}};

}  // namespace shoal
