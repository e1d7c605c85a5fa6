// What stands before the delta rule, written over V: convolution, unit norms, gates; and the norm behind it. Include after
// vector/functions.h.
//
// A `run` is `count` consecutive tokens of one sequence that lie in one chunk, 1 <= count <= 16. Sums of squares add lane
// by lane over ascending columns, then the lanes in the order of sum().
#pragma once

#include "layout.h"

namespace shoal {
namespace {

constexpr float kUnitEps = 1e-6f;

// dst[i][c] = silu(sum over j of taps[c][j] * x[i - 3 + j][c]) for `width` channels, x before the run being `columns`
// [3][columns_stride], which then become the last three raw columns. taps [width][4]; x [count][x_stride];
// dst [count][width].
inline void convolve(const float* taps, float* columns, std::size_t columns_stride, const float* x, std::size_t x_stride,
                     std::size_t count, std::size_t width, float* dst) {
  for (std::size_t c = 0; c < width; c += 16) {
    V tap[4];
    load_quads(taps + 4 * c, tap);
    V x0 = load(columns + c), x1 = load(columns + columns_stride + c), x2 = load(columns + 2 * columns_stride + c);
    for (std::size_t i = 0; i < count; ++i) {
      const V x3 = load(x + i * x_stride + c);
      store(dst + i * width + c, silu(fma(x3, tap[3], fma(x2, tap[2], fma(x1, tap[1], mul(x0, tap[0]))))));
      x0 = x1;
      x1 = x2;
      x2 = x3;
    }
    store(columns + c, x0);
    store(columns + columns_stride + c, x1);
    store(columns + 2 * columns_stride + c, x2);
  }
}

// Lane i: the sum of the squares of row i of x [count][width]; 0 in the lanes behind.
inline V squares(const float* x, std::size_t count, std::size_t width) {
  alignas(64) float sums[16] = {0.0f};
  for (std::size_t i = 0; i < count; ++i) {
    V total = zero();
    for (std::size_t c = 0; c < width; c += 16) {
      const V v = load(x + i * width + c);
      total = fma(v, v, total);
    }
    sums[i] = sum(total);
  }
  return load(sums);
}

inline V inverse_sqrt(V x) { return div(set1(1.0f), sqrt(x)); }

// beta[i] = sigmoid(b); totals[i] = totals[i - 1] + decay * softplus(a + dt_bias), where totals[-1] is `total`. b, a at
// gates[i * stride] and gates[i * stride + a_offset]. Writes 16 of beta, `count` of totals.
inline void compute_gates(const float* gates, std::size_t stride, std::size_t a_offset, std::size_t count, float decay,
                          float dt_bias, float total, float* beta, float* totals) {
  alignas(64) float a[16] = {0.0f};
  alignas(64) float b[16] = {0.0f};
  for (std::size_t i = 0; i < count; ++i) {
    b[i] = gates[i * stride];
    a[i] = gates[i * stride + a_offset];
  }
  store(beta, sigmoid(load(b)));
  store(a, mul(set1(decay), softplus(add(load(a), set1(dt_bias)))));
  for (std::size_t i = 0; i < count; ++i) {
    total = total + a[i];
    totals[i] = total;
  }
}

// out[i] = x[i] / sqrt(mean(x[i]^2) + eps) * weight * silu(z[i]). x [count][width].
inline void gated_norm(const float* x, const float* weight, float eps, const float* z, std::size_t z_stride,
                       std::size_t count, std::size_t width, float* out, std::size_t out_stride) {
  alignas(64) float factor[16];
  const V mean = div(squares(x, count, width), set1(static_cast<float>(width)));
  store(factor, inverse_sqrt(add(mean, set1(eps))));
  for (std::size_t c = 0; c < width; c += 16) {
    const V w = load(weight + c);
    for (std::size_t i = 0; i < count; ++i) {
      const V unit = mul(load(x + i * width + c), set1(factor[i]));
      store(out + i * out_stride + c, mul(mul(unit, w), silu(load(z + i * z_stride + c))));
    }
  }
}

}  // namespace
}  // namespace shoal
