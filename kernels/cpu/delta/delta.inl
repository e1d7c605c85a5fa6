// Gated DeltaNet, written over V: the entries of DeltaKernels. Formula of a token at place t of its chunk, for one value
// head, with S the state at the beginning of the chunk (layout.h):
//   G[t] = G[t-1] + g                                  D[j] = e^(G[t] - G[j])
//   n = beta * (v - e^G[t] k^T S - sum over j < t of (k . key[j]) D[j] N[j]);   N[t] = n
//   o = e^G[t] q^T S + sum over j <= t of (q . key[j]) D[j] N[j]
// and behind place 15, S = e^G[15] S + sum over j of e^(G[15] - G[j]) key[j] N[j]^T. S is only read by 15 tokens of 16.
// Every element's operations and their order are the same for a token alone and in a whole chunk.
#pragma once

#include "delta/inputs.inl"
#include "delta/products.inl"
#include "kernels.h"

namespace shoal {
namespace {

// Parts of the caller's scratch: at most 7 * 16 * kMaxDeltaDim + 1,024 floats.
struct DeltaScratch {
  float *q, *k;      // [count][key_dim]
  float *q_t, *k_t;  // [key_dim][16], of a whole chunk
  float *kk, *qk;    // [16][16], products with the keys of the chunk
  float *m, *w;      // [16][16], the same faded for one value head
  float *v;          // [count][value_dim]
  float *kS, *qS;    // [count][value_dim]; qS becomes o

  DeltaScratch(const DeltaShape& shape, void* memory) {
    float* next = static_cast<float*>(memory);
    const std::size_t keys = kChunk * shape.key_dim, values = kChunk * shape.value_dim, square = kChunk * kChunk;
    q = next, next += keys;
    k = next, next += keys;
    q_t = next, next += keys;
    k_t = next, next += keys;
    kk = next, next += square;
    qk = next, next += square;
    m = next, next += square;
    w = next, next += square;
    v = next, next += values;
    kS = next, next += values;
    qS = next;
  }
};

// One value head's part of a state.
struct HeadState {
  float *S, *N, *totals;

  HeadState(const DeltaShape& shape, float* state, std::size_t value_head) {
    S = state + shape.head_offset(value_head);
    N = S + shape.key_dim * shape.value_dim;
    totals = N + kChunk * shape.value_dim;
  }
};

inline void clear(float* x, std::size_t count) {
  for (std::size_t i = 0; i < count; i += 16) store(x + i, zero());
}

// The state before the first token, as far as this key head owns it.
inline void reset(const DeltaShape& shape, float* state, std::size_t key_head) {
  const std::size_t group = shape.value_heads / shape.key_heads, values = group * shape.value_dim;
  for (std::size_t i = 0; i < kTaps - 1; ++i) {
    float* column = state + i * shape.conv_dim();
    clear(column + key_head * shape.key_dim, shape.key_dim);
    clear(column + (shape.key_heads + key_head) * shape.key_dim, shape.key_dim);
    clear(column + 2 * shape.key_heads * shape.key_dim + key_head * values, values);
  }
  clear(state + shape.keys_offset(key_head), shape.key_dim * kChunk);
  clear(state + shape.head_offset(key_head * group), group * shape.head_floats());
}

// x [16][width] -> y [width][16]
inline void transpose_rows(const float* x, std::size_t width, float* y) {
  for (std::size_t c = 0; c < width; c += 16) {
    V rows[16];
    SHOAL_UNROLL for (int i = 0; i < 16; ++i) rows[i] = load(x + i * width + c);
    transpose(rows);
    SHOAL_UNROLL for (int i = 0; i < 16; ++i) store(y + (c + i) * kChunk, rows[i]);
  }
}

// Unit queries and keys of a run, the keys also into the open chunk; and both times the keys of the chunk (kk, qk).
inline void place_keys(const DeltaScratch& s, std::size_t place, std::size_t count, std::size_t depth, float* keys) {
  alignas(64) float k_factors[16], q_factors[16];
  store(k_factors, inverse_sqrt(add(squares(s.k, count, depth), set1(kUnitEps))));
  const V q_unit = inverse_sqrt(add(squares(s.q, count, depth), set1(kUnitEps)));
  store(q_factors, mul(q_unit, inverse_sqrt(set1(static_cast<float>(depth)))));
  for (std::size_t i = 0; i < count; ++i) {
    const V k_factor = set1(k_factors[i]), q_factor = set1(q_factors[i]);
    for (std::size_t c = 0; c < depth; c += 16) {
      const V key = mul(load(s.k + i * depth + c), k_factor);
      store(s.k + i * depth + c, key);
      store(keys + (place + i) * depth + c, key);
      store(s.q + i * depth + c, mul(load(s.q + i * depth + c), q_factor));
    }
  }
  if (count == kChunk) {
    transpose_rows(s.k, depth, s.k_t);
    transpose_rows(s.q, depth, s.q_t);
    multiply_keys_chunk(s.k_t, s.k_t, depth, s.kk);
    multiply_keys_chunk(s.q_t, s.k_t, depth, s.qk);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    multiply_keys(s.k + i * depth, s.q + i * depth, keys, place + i + 1, depth, s.kk + i * kChunk, s.qk + i * kChunk);
  }
}

// n and o of the token at place t for 16 * C columns. v, kS, o (in: qS) and N at the first of the columns; m, w [16].
template <int C>
inline void correct(const float* v, const float* kS, float* o, float* N, const float* m, const float* w, std::size_t t,
                    float beta, float grown, std::size_t width) {
  V n[C], y[C];
  SHOAL_UNROLL for (int c = 0; c < C; ++c) {
    n[c] = fnma(set1(grown), load(kS + 16 * c), load(v + 16 * c));
    y[c] = mul(set1(grown), load(o + 16 * c));
  }
  for (std::size_t j = 0; j < t; ++j) {
    const V mj = set1(m[j]), wj = set1(w[j]);
    SHOAL_UNROLL for (int c = 0; c < C; ++c) {
      const V nj = load(N + j * width + 16 * c);
      n[c] = fnma(mj, nj, n[c]);
      y[c] = fma(wj, nj, y[c]);
    }
  }
  SHOAL_UNROLL for (int c = 0; c < C; ++c) {
    n[c] = mul(set1(beta), n[c]);
    store(N + t * width + 16 * c, n[c]);
    store(o + 16 * c, fma(set1(w[t]), n[c], y[c]));
  }
}

// The delta rule for a run: s.v, s.kS, s.qS -> N and s.qS (o).
inline void correct_run(const DeltaScratch& s, const HeadState& head, const float* beta, std::size_t place,
                        std::size_t count, std::size_t width) {
  alignas(64) float grown[16];
  const V totals = load(head.totals);
  store(grown, exp(totals));
  for (std::size_t i = 0; i < count; ++i) {
    const V faded = exp(sub(set1(head.totals[place + i]), totals));  // lanes behind place + i are never read
    store(s.m + i * kChunk, mul(load(s.kk + i * kChunk), faded));
    store(s.w + i * kChunk, mul(load(s.qk + i * kChunk), faded));
  }
  for (std::size_t i = 0; i < count; ++i) {
    const float *m = s.m + i * kChunk, *w = s.w + i * kChunk, *v = s.v + i * width, *kS = s.kS + i * width;
    float* o = s.qS + i * width;
    const std::size_t t = place + i;
    std::size_t c = 0;
    for (; c + 16 * kTokenCols <= width; c += 16 * kTokenCols) {
      correct<kTokenCols>(v + c, kS + c, o + c, head.N + c, m, w, t, beta[i], grown[t], width);
    }
    for (; c < width; c += 16) correct<1>(v + c, kS + c, o + c, head.N + c, m, w, t, beta[i], grown[t], width);
  }
}

// What a single token reads of the next head beside its states: keys of the open chunk, taps, columns. In decode all of it
// has left the caches, and a processor does not guess so many short ranges.
inline void look_ahead(const DeltaShape& shape, const DeltaWeights& weights, const float* state, std::size_t key_head,
                       std::size_t place, Ahead& ahead) {
  const std::size_t values = shape.value_heads / shape.key_heads * shape.value_dim;
  const std::size_t channels[3] = {key_head * shape.key_dim, (shape.key_heads + key_head) * shape.key_dim,
                                   2 * shape.key_heads * shape.key_dim + key_head * values};
  const std::size_t counts[3] = {shape.key_dim, shape.key_dim, values};
  ahead.add(state + shape.keys_offset(key_head), place * shape.key_dim);
  for (int i = 0; i < 3; ++i) {
    ahead.add(weights.conv + kTaps * channels[i], kTaps * counts[i]);
    for (std::size_t j = 0; j < kTaps - 1; ++j) ahead.add(state + j * shape.conv_dim() + channels[i], counts[i]);
  }
}

void advance(const DeltaShape& shape, const DeltaWeights& weights, float* state, std::size_t key_head, const float* in,
             std::size_t in_stride, const float* gates, std::size_t gates_stride, std::size_t n, std::size_t position,
             float* out, std::size_t out_stride, void* scratch) {
  if (n == 0) return;
  if (position == 0) reset(shape, state, key_head);
  const DeltaScratch s(shape, scratch);
  const std::size_t depth = shape.key_dim, width = shape.value_dim, conv_dim = shape.conv_dim();
  const std::size_t group = shape.value_heads / shape.key_heads;
  const std::size_t q_channel = key_head * depth, k_channel = (shape.key_heads + key_head) * depth;
  float* keys = state + shape.keys_offset(key_head);
  for (std::size_t done = 0; done < n;) {
    const std::size_t place = (position + done) % kChunk;
    const std::size_t count = kChunk - place < n - done ? kChunk - place : n - done;
    const float *x = in + done * in_stride, *taps = weights.conv;
    convolve(taps + kTaps * q_channel, state + q_channel, conv_dim, x + q_channel, in_stride, count, depth, s.q);
    convolve(taps + kTaps * k_channel, state + k_channel, conv_dim, x + k_channel, in_stride, count, depth, s.k);
    place_keys(s, place, count, depth, keys);
    Ahead ahead;
    if (n == 1 && key_head + 1 < shape.key_heads) look_ahead(shape, weights, state, key_head + 1, place, ahead);
    for (std::size_t h = key_head * group; h < (key_head + 1) * group; ++h) {
      const HeadState head(shape, state, h);
      const std::size_t v_channel = 2 * shape.key_heads * depth + h * width, z_channel = conv_dim + h * width;
      convolve(taps + kTaps * v_channel, state + v_channel, conv_dim, x + v_channel, in_stride, count, width, s.v);
      alignas(64) float beta[16];
      compute_gates(gates + done * gates_stride + h, gates_stride, shape.value_heads, count, weights.decay[h],
                    weights.dt_bias[h], place == 0 ? 0.0f : head.totals[place - 1], beta, head.totals + place);
      if (count == kChunk) {
        multiply_chunk(s.k_t, s.q_t, head.S, depth, width, s.kS, s.qS);
      } else {
        multiply_few(s.k, s.q, count, head.S, depth, width, s.kS, s.qS, ahead);
      }
      correct_run(s, head, beta, place, count, width);
      if (place + count == kChunk) apply_chunk(keys, head.totals, head.N, kChunk, depth, width, head.S, head.S);
      gated_norm(s.qS, weights.norm, weights.eps, x + z_channel, in_stride, count, width,
                 out + done * out_stride + h * width, out_stride);
    }
    done += count;
  }
}

void read_state(const DeltaShape& shape, const float* state, std::size_t value_head, std::size_t position, float* out) {
  const std::size_t depth = shape.key_dim, width = shape.value_dim, count = position % kChunk;
  const float* S = state + shape.head_offset(value_head);
  const float* N = S + depth * width;
  const float* keys = state + shape.keys_offset(value_head / (shape.value_heads / shape.key_heads));
  if (position == 0) {
    clear(out, depth * width);
  } else if (count == 0) {
    for (std::size_t i = 0; i < depth * width; i += 16) store(out + i, load(S + i));
  } else {
    apply_chunk(keys, N + kChunk * width, N, count, depth, width, S, out);
  }
}

}  // namespace
}  // namespace shoal
