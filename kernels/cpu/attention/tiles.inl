// The two products of attention as register tiles: R query rows x C vectors of 16 lanes, on numbers as a page holds
// them (a decode step streams each page once) or widened before (a prefill meets each page with many rows). An
// element's operations and their order are the same in every tile, so no row can tell which one it passed through.
// Include after a vector file and functions.h, with kTileVectors defined: what the registers hold beside kTileRows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

// The loops over a tile's rows and vectors. GCC unrolls them by itself, but after it has decided that an array with a
// running index lives in memory.
#if defined(__GNUC__) && !defined(__clang__)
#define SHOAL_UNROLL _Pragma("GCC unroll 8")
#else
#define SHOAL_UNROLL
#endif

namespace shoal {
namespace {

constexpr int kTileRows = 6;

// How a tile reads keys and values. kStreams: they come from memory, and the tile asks for what is needed next.
struct Bf16 {
  using Element = std::uint16_t;
  static constexpr bool kStreams = true;
  static V read(const Element* p) { return load_bf16(p); }
};
struct Int8 {
  using Element = std::int8_t;
  static constexpr bool kStreams = true;
  static V read(const Element* p) { return load_s8(p); }
};
struct F32 {
  using Element = float;
  static constexpr bool kStreams = true;
  static V read(const Element* p) { return load(p); }
};
struct Wide {
  using Element = float;
  static constexpr bool kStreams = false;
  static V read(const Element* p) { return load(p); }
};

// `lines` moves on by what the tile itself has read. They are half a page ahead, as much as a first-level cache holds.
template <class Source, int C>
inline void prefetch_step(const char* lines, std::size_t step) {
  if (!Source::kStreams) return;
  constexpr std::size_t kBytes = sizeof(typename Source::Element) * 16 * C;
  for (std::size_t b = 0; b < kBytes; b += 64) prefetch_far(lines + step * kBytes + b);
}

// p[r][16 C] = (sum over d ascending of q[r][d] * k[d][16 C]) * scale[16 C]; no scale where it is null.
// q [R][dims], k [dims][k_stride], p [R][kPageTokens].
template <int R, int C, class Source>
void score_tile(const float* q, std::size_t dims, const typename Source::Element* k, std::size_t k_stride,
                const float* scale, float* p, const char* ahead) {
  V sum[R][C];
  SHOAL_UNROLL for (int r = 0; r < R; ++r)
    SHOAL_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = zero();
  for (std::size_t d = 0; d < dims; ++d) {
    prefetch_step<Source, C>(ahead, d);
    V key[C];
    SHOAL_UNROLL for (int c = 0; c < C; ++c) key[c] = Source::read(k + d * k_stride + 16 * c);
    SHOAL_UNROLL for (int r = 0; r < R; ++r) {
      const V x = set1(q[r * dims + d]);
      SHOAL_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = fma(x, key[c], sum[r][c]);
    }
  }
  if (scale) {
    SHOAL_UNROLL for (int r = 0; r < R; ++r)
      SHOAL_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = mul(sum[r][c], load(scale + 16 * c));
  }
  SHOAL_UNROLL for (int r = 0; r < R; ++r)
    SHOAL_UNROLL for (int c = 0; c < C; ++c) store(p + r * kPageTokens + 16 * c, sum[r][c]);
}

// o[r][16 C] = o[r] * decay[r], then + p[r][t] * v[t][16 C] for t of [begin, end) ascending.
// p [R][kPageTokens], v [tokens][v_stride], o [R][o_stride].
template <int R, int C, class Source>
void value_tile(const float* p, std::size_t begin, std::size_t end, const typename Source::Element* v,
                std::size_t v_stride, const float* decay, float* o, std::size_t o_stride, const char* ahead) {
  V sum[R][C];
  SHOAL_UNROLL for (int r = 0; r < R; ++r)
    SHOAL_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = mul(load(o + r * o_stride + 16 * c), set1(decay[r]));
  for (std::size_t t = begin; t < end; ++t) {
    prefetch_step<Source, C>(ahead, t);
    V value[C];
    SHOAL_UNROLL for (int c = 0; c < C; ++c) value[c] = Source::read(v + t * v_stride + 16 * c);
    SHOAL_UNROLL for (int r = 0; r < R; ++r) {
      const V x = set1(p[r * kPageTokens + t]);
      SHOAL_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = fma(x, value[c], sum[r][c]);
    }
  }
  SHOAL_UNROLL for (int r = 0; r < R; ++r)
    SHOAL_UNROLL for (int c = 0; c < C; ++c) store(o + r * o_stride + 16 * c, sum[r][c]);
}

// The same for a number of rows known at run time, 1 to kTileRows.
template <class Source>
void score_rows(std::size_t rows, const float* q, std::size_t dims, const typename Source::Element* k,
                std::size_t k_stride, const float* scale, float* p, const char* ahead) {
  constexpr int C = kTileVectors;
  switch (rows) {
    case 1: return score_tile<1, C, Source>(q, dims, k, k_stride, scale, p, ahead);
    case 2: return score_tile<2, C, Source>(q, dims, k, k_stride, scale, p, ahead);
    case 3: return score_tile<3, C, Source>(q, dims, k, k_stride, scale, p, ahead);
    case 4: return score_tile<4, C, Source>(q, dims, k, k_stride, scale, p, ahead);
    case 5: return score_tile<5, C, Source>(q, dims, k, k_stride, scale, p, ahead);
    default: return score_tile<6, C, Source>(q, dims, k, k_stride, scale, p, ahead);
  }
}

template <int C, class Source>
void value_rows(std::size_t rows, const float* p, std::size_t begin, std::size_t end,
                const typename Source::Element* v, std::size_t v_stride, const float* decay, float* o,
                std::size_t o_stride, const char* ahead) {
  switch (rows) {
    case 1: return value_tile<1, C, Source>(p, begin, end, v, v_stride, decay, o, o_stride, ahead);
    case 2: return value_tile<2, C, Source>(p, begin, end, v, v_stride, decay, o, o_stride, ahead);
    case 3: return value_tile<3, C, Source>(p, begin, end, v, v_stride, decay, o, o_stride, ahead);
    case 4: return value_tile<4, C, Source>(p, begin, end, v, v_stride, decay, o, o_stride, ahead);
    case 5: return value_tile<5, C, Source>(p, begin, end, v, v_stride, decay, o, o_stride, ahead);
    default: return value_tile<6, C, Source>(p, begin, end, v, v_stride, decay, o, o_stride, ahead);
  }
}

// Rows are cut into tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
inline std::size_t tile_height(std::size_t rows) {
  const std::size_t num_tiles = (rows + kTileRows - 1) / kTileRows;
  return (rows + num_tiles - 1) / num_tiles;
}

}  // namespace
}  // namespace shoal
