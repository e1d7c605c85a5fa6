// The products of the delta rule, written over V. Include after vector/functions.h and these of the instruction set:
//   kTileRows x kTileCols   rows and columns (in vectors) of a product's register tile
//   kTokenCols              columns (in vectors) of one token's corrections
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

static_assert(kChunk == 16 && 16 % kTileRows == 0, "a chunk is a vector wide and whole tiles high");

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

// What is read next, from places far apart: asked for a little with each row of a state, which alone is a long stream.
struct Ahead {
  static constexpr int kMax = 16;
  const float* next[kMax];
  const float* end[kMax];
  int count = 0, at = 0;

  void add(const float* begin, std::size_t floats) {
    if (count == kMax || floats == 0) return;
    next[count] = begin;
    end[count++] = begin + floats;
  }
  void ask() {
    if (at == count) return;
    prefetch_far(next[at]);
    if ((next[at] += 16) >= end[at]) ++at;
  }
};

// kS += k^T S, qS += q^T S of one token, some rows of S and 16 * C columns. k, q [depth]; kS, qS [16 * C].
template <int C>
inline void multiply_strip_once(const float* k, const float* q, const float* S, std::size_t depth, std::size_t width,
                                float* kS, float* qS, Ahead& ahead) {
  V a[C], b[C];
  SHOAL_UNROLL for (int c = 0; c < C; ++c) {
    a[c] = load(kS + 16 * c);
    b[c] = load(qS + 16 * c);
  }
  for (std::size_t r = 0; r < depth; ++r) {
    const V kr = set1(k[r]), qr = set1(q[r]);
    ahead.ask();
    ahead.ask();
    SHOAL_UNROLL for (int c = 0; c < C; ++c) {
      const V s = load(S + r * width + 16 * c);
      a[c] = fma(kr, s, a[c]);
      b[c] = fma(qr, s, b[c]);
    }
  }
  SHOAL_UNROLL for (int c = 0; c < C; ++c) {
    store(kS + 16 * c, a[c]);
    store(qS + 16 * c, b[c]);
  }
}

inline void multiply_once(const float* k, const float* q, const float* S, std::size_t depth, std::size_t width,
                          float* kS, float* qS, Ahead& ahead) {
  std::size_t c = 0;
  for (; c + 128 <= width; c += 128) multiply_strip_once<8>(k, q, S + c, depth, width, kS + c, qS + c, ahead);
  for (; c < width; c += 16) multiply_strip_once<1>(k, q, S + c, depth, width, kS + c, qS + c, ahead);
}

// The same as multiply_chunk for `count` tokens, a few. k, q [count][depth]. S is read from memory once; one token reads it
// line by line, which the processor's own prefetching follows best (best even where the sums spill), of more tokens a block
// of rows stays in the nearest cache while all pass over it.
inline void multiply_few(const float* k, const float* q, std::size_t count, const float* S, std::size_t depth,
                         std::size_t width, float* kS, float* qS, Ahead& ahead) {
  for (std::size_t c = 0; c < count * width; c += 16) {
    store(kS + c, zero());
    store(qS + c, zero());
  }
  const std::size_t block = count == 1 && width == 128 ? depth : 16;
  for (std::size_t r = 0; r < depth; r += block) {
    const float* rows = S + r * width;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t first = i * depth + r;
      multiply_once(k + first, q + first, rows, block, width, kS + i * width, qS + i * width, ahead);
    }
  }
}

// kk[i][j] = k[i] . keys[j], qk[i][j] = q[i] . keys[j], in this order: sixteen chains, of the columns that are equal modulo
// 16, each over ascending columns; then the chains as sum() adds lanes.

// For one token. k, q [depth]; keys [count][depth]; kk, qk [count].
inline void multiply_keys(const float* k, const float* q, const float* keys, std::size_t count, std::size_t depth,
                          float* kk, float* qk) {
  for (std::size_t j = 0; j < count; ++j) {
    V a = zero(), b = zero();
    for (std::size_t c = 0; c < depth; c += 16) {
      const V key = load(keys + j * depth + c);
      a = fma(load(k + c), key, a);
      b = fma(load(q + c), key, b);
    }
    kk[j] = sum(a);
    qk[j] = sum(b);
  }
}

// For a whole chunk and one of k, q. x_t, keys_t [depth][16], transposed; products [16][16].
inline void multiply_keys_chunk(const float* x_t, const float* keys_t, std::size_t depth, float* products) {
  constexpr int R = 4;
  for (int first = 0; first < 16; first += R) {
    V halves[8][R];
    for (int l = 0; l < 8; ++l) {
      V low[R], high[R];
      SHOAL_UNROLL for (int r = 0; r < R; ++r) low[r] = high[r] = zero();
      for (std::size_t k = l; k < depth; k += 16) {
        const V key_low = load(keys_t + k * kChunk), key_high = load(keys_t + (k + 8) * kChunk);
        const float *x_low = x_t + k * kChunk + first, *x_high = x_t + (k + 8) * kChunk + first;
        SHOAL_UNROLL for (int r = 0; r < R; ++r) {
          low[r] = fma(set1(x_low[r]), key_low, low[r]);
          high[r] = fma(set1(x_high[r]), key_high, high[r]);
        }
      }
      SHOAL_UNROLL for (int r = 0; r < R; ++r) halves[l][r] = add(low[r], high[r]);
    }
    for (int width = 4; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) {
        for (int r = 0; r < R; ++r) halves[l][r] = add(halves[l][r], halves[l + width][r]);
      }
    }
    for (int r = 0; r < R; ++r) store(products + (first + r) * kChunk, halves[0][r]);
  }
}

// to = grown * S + sum over j < count of keys[j] N[j]^T, for R rows and 16 * C columns. keys [count][16], R of them.
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
      const V key = set1(keys[j * 16 + r]);
      SHOAL_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = fma(key, n[c], acc[r][c]);
    }
  }
  SHOAL_UNROLL for (int r = 0; r < R; ++r) {
    SHOAL_UNROLL for (int c = 0; c < C; ++c) store(to + r * width + 16 * c, acc[r][c]);
  }
}

// The state after the first `count` tokens of the open chunk, count >= 1:
//   to = e^G[last] S + sum over j < count of (e^(G[last] - G[j]) keys[j]) N[j]^T
// keys [16][depth], totals (G) [16], N [16][width]; S and `to` [depth][width] may be the same.
inline void apply_chunk(const float* keys, const float* totals, const float* N, std::size_t count, std::size_t depth,
                        std::size_t width, const float* S, float* to) {
  alignas(64) float grown[16], fade[16], faded[16 * 16];
  const V last = set1(totals[count - 1]);
  store(grown, exp(last));
  store(fade, exp(sub(last, load(totals))));  // lanes from `count` on are never read
  for (std::size_t k = 0; k < depth; k += 16) {
    for (std::size_t j = 0; j < count; ++j) store(faded + 16 * j, mul(load(keys + j * depth + k), set1(fade[j])));
    for (std::size_t r = 0; r < 16; r += kTileRows) {
      const float* from = S + (k + r) * width;
      float* rows = to + (k + r) * width;
      std::size_t c = 0;
      for (; c + 16 * kTileCols <= width; c += 16 * kTileCols) {
        add_tile<kTileRows, kTileCols>(faded + r, N + c, count, grown[0], from + c, width, rows + c);
      }
      for (; c < width; c += 16) add_tile<kTileRows, 1>(faded + r, N + c, count, grown[0], from + c, width, rows + c);
    }
  }
}

}  // namespace
}  // namespace shoal
