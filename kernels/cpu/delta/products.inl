// The products of the delta rule, written over V. Include after vector/functions.h and these of the instruction set:
//   kTileRows x kTileCols   rows and columns (in vectors) of a product's register tile
//   kPairCols               columns (in vectors) of the products of one token, which have two rows
// However a product is tiled, an element is one chain of fused additions over ascending k; so a token's bits are the same
// whether it comes alone or in a whole chunk.
#pragma once

#include "layout.h"

#if defined(__GNUC__) && !defined(__clang__)
#define SHOAL_UNROLL _Pragma("GCC unroll 16")
#else
#define SHOAL_UNROLL
#endif

namespace shoal {
namespace {

constexpr std::size_t kPrefetchFloats = 2048;  // 8 KiB ahead of the reading of a state

// y[r][c] = sum over k of x[k][r] * S[k][c] for R rows and 16 * C columns. x [depth][16], S and y with `width` columns.
template <int R, int C>
inline void multiply_tile(const float* x, const float* S, std::size_t depth, std::size_t width, float* y) {
  V acc[R][C];
  SHOAL_UNROLL for (int r = 0; r < R; ++r) {
    SHOAL_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = zero();
  }
  for (std::size_t k = 0; k < depth; ++k) {
    V s[C];
    SHOAL_UNROLL for (int c = 0; c < C; ++c) s[c] = load(S + k * width + 16 * c);
    SHOAL_UNROLL for (int r = 0; r < R; ++r) {
      const V xr = set1(x[k * kChunk + r]);
      SHOAL_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = fma(xr, s[c], acc[r][c]);
    }
  }
  SHOAL_UNROLL for (int r = 0; r < R; ++r) {
    SHOAL_UNROLL for (int c = 0; c < C; ++c) store(y + r * width + 16 * c, acc[r][c]);
  }
}

template <int C>
inline void multiply_strip(const float* x, const float* S, std::size_t depth, std::size_t width, float* y) {
  for (std::size_t r = 0; r < kChunk; r += kTileRows) multiply_tile<kTileRows, C>(x + r, S, depth, width, y + r * width);
}

// kS = k^T S and qS = q^T S of a whole chunk. k, q [depth][16]; S [depth][width]; kS, qS [16][width].
inline void multiply_chunk(const float* k, const float* q, const float* S, std::size_t depth, std::size_t width,
                           float* kS, float* qS) {
  std::size_t c = 0;
  for (; c + 16 * kTileCols <= width; c += 16 * kTileCols) {
    multiply_strip<kTileCols>(k, S + c, depth, width, kS + c);
    multiply_strip<kTileCols>(q, S + c, depth, width, qS + c);
  }
  for (; c < width; c += 16) {
    multiply_strip<1>(k, S + c, depth, width, kS + c);
    multiply_strip<1>(q, S + c, depth, width, qS + c);
  }
}

// kS += k^T S, qS += q^T S of one token for 16 * C columns: k, q [depth], kS, qS [16 * C].
template <int C>
inline void multiply_pair(const float* k, const float* q, const float* S, std::size_t depth, std::size_t width,
                          float* kS, float* qS) {
  V a[C], b[C];
  SHOAL_UNROLL for (int c = 0; c < C; ++c) {
    a[c] = load(kS + 16 * c);
    b[c] = load(qS + 16 * c);
  }
  for (std::size_t i = 0; i < depth; ++i) {
    const V ki = set1(k[i]), qi = set1(q[i]);
    SHOAL_UNROLL for (int c = 0; c < C; ++c) {
      const V s = load(S + i * width + 16 * c);
      prefetch(S + i * width + 16 * c + kPrefetchFloats);
      a[c] = fma(ki, s, a[c]);
      b[c] = fma(qi, s, b[c]);
    }
  }
  SHOAL_UNROLL for (int c = 0; c < C; ++c) {
    store(kS + 16 * c, a[c]);
    store(qS + 16 * c, b[c]);
  }
}

// The same as multiply_chunk for `count` tokens, a few. k, q [count][depth]. S is read from memory once and in order: a
// block of its rows stays in the nearest cache while all tokens and columns pass over it.
inline void multiply_few(const float* k, const float* q, std::size_t count, const float* S, std::size_t depth,
                         std::size_t width, float* kS, float* qS) {
  for (std::size_t c = 0; c < count * width; c += 16) {
    store(kS + c, zero());
    store(qS + c, zero());
  }
  const std::size_t block = count == 1 && width == 16 * kPairCols ? depth : 16;
  for (std::size_t first = 0; first < depth; first += block) {
    const float* rows = S + first * width;
    for (std::size_t i = 0; i < count; ++i) {
      const float *ki = k + i * depth + first, *qi = q + i * depth + first;
      std::size_t c = 0;
      for (; c + 16 * kPairCols <= width; c += 16 * kPairCols) {
        multiply_pair<kPairCols>(ki, qi, rows + c, block, width, kS + i * width + c, qS + i * width + c);
      }
      for (; c < width; c += 16) multiply_pair<1>(ki, qi, rows + c, block, width, kS + i * width + c, qS + i * width + c);
    }
  }
}

// a[j] = sum over k of x[k] * keys[k][j], b alike of y: four chains, of k = 0, 1, 2, 3 modulo 4, then (0 + 1) + (2 + 3).
// x[k] is x[k * stride]. keys [depth][16].
inline void multiply_keys(const float* x, const float* y, std::size_t stride, const float* keys, std::size_t depth,
                          float* a, float* b) {
  V p[4], r[4];
  SHOAL_UNROLL for (int j = 0; j < 4; ++j) p[j] = r[j] = zero();
  for (std::size_t k = 0; k < depth; k += 4) {
    SHOAL_UNROLL for (int j = 0; j < 4; ++j) {
      const V row = load(keys + (k + j) * kChunk);
      p[j] = fma(set1(x[(k + j) * stride]), row, p[j]);
      r[j] = fma(set1(y[(k + j) * stride]), row, r[j]);
    }
  }
  store(a, add(add(p[0], p[1]), add(p[2], p[3])));
  store(b, add(add(r[0], r[1]), add(r[2], r[3])));
}

// to = grown * S + sum over j < count of keys[.][j] * N[j], for R rows and 16 * C columns. keys [R][16].
template <int R, int C>
inline void add_tile(const float* keys, const float* N, std::size_t count, float grown, const float* S,
                     std::size_t width, float* to) {
  V acc[R][C];
  SHOAL_UNROLL for (int r = 0; r < R; ++r) {
    SHOAL_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = mul(set1(grown), load(S + r * width + 16 * c));
  }
  for (std::size_t j = 0; j < count; ++j) {
    V n[C];
    SHOAL_UNROLL for (int c = 0; c < C; ++c) n[c] = load(N + j * width + 16 * c);
    SHOAL_UNROLL for (int r = 0; r < R; ++r) {
      const V key = set1(keys[r * kChunk + j]);
      SHOAL_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = fma(key, n[c], acc[r][c]);
    }
  }
  SHOAL_UNROLL for (int r = 0; r < R; ++r) {
    SHOAL_UNROLL for (int c = 0; c < C; ++c) store(to + r * width + 16 * c, acc[r][c]);
  }
}

// The state after the first `count` tokens of the open chunk, count >= 1:
//   to = e^G[last] S + sum over j < count of e^(G[last] - G[j]) keys[.][j] N[j]
// keys [depth][16], totals (G) [16], N [16][width]; S and `to` [depth][width] may be the same.
inline void apply_chunk(const float* keys, const float* totals, const float* N, std::size_t count, std::size_t depth,
                        std::size_t width, const float* S, float* to) {
  alignas(64) float grown[16];
  alignas(64) float faded[kTileRows * kChunk];
  const V last = set1(totals[count - 1]);
  store(grown, exp(last));
  const V fade = exp(sub(last, load(totals)));  // lanes from `count` on are never read
  for (std::size_t k = 0; k < depth; k += kTileRows) {
    for (std::size_t r = 0; r < kTileRows; ++r) store(faded + r * kChunk, mul(load(keys + (k + r) * kChunk), fade));
    std::size_t c = 0;
    for (; c + 16 * kTileCols <= width; c += 16 * kTileCols) {
      add_tile<kTileRows, kTileCols>(faded, N + c, count, grown[0], S + k * width + c, width, to + k * width + c);
    }
    for (; c < width; c += 16) {
      add_tile<kTileRows, 1>(faded, N + c, count, grown[0], S + k * width + c, width, to + k * width + c);
    }
  }
}

}  // namespace
}  // namespace shoal
