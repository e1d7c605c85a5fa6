// Elementary functions over V, the same bits on every instruction set. Include after one of the vector files.
#pragma once

namespace shoal {
namespace {

// exp(x), error below 2 units in the last place; 0 below -87.3, finite above 88.3. Reduction to [-ln2/2, ln2/2] with
// ln 2 in two parts (Cody and Waite), then the Taylor polynomial of degree 7 (its last term is below 2^-24).
inline V exp(V x) {
  const V t = fma(min(x, set1(88.3f)), set1(1.44269504088896341f), set1(12582912.0f));  // 1.5 * 2^23: rounds to integer
  const V n = sub(t, set1(12582912.0f));
  V r = fnma(n, set1(0.693359375f), min(x, set1(88.3f)));
  r = fnma(n, set1(-2.12194440e-4f), r);
  V p = set1(1.98412698e-4f);
  p = fma(p, r, set1(1.38888889e-3f));
  p = fma(p, r, set1(8.33333333e-3f));
  p = fma(p, r, set1(4.16666667e-2f));
  p = fma(p, r, set1(1.66666667e-1f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return keep_if_ge(shift_exponent(p, t), x, set1(-87.3f));
}

inline V sigmoid(V x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }
inline V silu(V x) { return mul(x, sigmoid(x)); }

// log(1 + y) for 0 <= y <= 1, error below 3 units in the last place: 2 atanh(s) with s = y / (2 + y) <= 1/3, the series
// up to s^15 (the next term is below 2^-26).
inline V log1p_unit(V y) {
  const V s = div(y, add(y, set1(2.0f)));
  const V s2 = mul(s, s);
  V p = set1(1.0f / 15.0f);
  p = fma(p, s2, set1(1.0f / 13.0f));
  p = fma(p, s2, set1(1.0f / 11.0f));
  p = fma(p, s2, set1(1.0f / 9.0f));
  p = fma(p, s2, set1(1.0f / 7.0f));
  p = fma(p, s2, set1(1.0f / 5.0f));
  p = fma(p, s2, set1(1.0f / 3.0f));
  return mul(add(s, s), fma(p, s2, set1(1.0f)));
}

// log(1 + exp(x)); 0 below -87.3.
inline V softplus(V x) {
  return add(max(x, zero()), log1p_unit(exp(min(x, sub(zero(), x)))));
}

}  // namespace
}  // namespace shoal
