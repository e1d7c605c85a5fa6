// The choice of D, codes and nibbles for one block of layout.h's kInt4. Included once by each ISA file, after the
// vectors, `select_lt` and `nearest_cell`. A lane is a row; everything is elementwise, so every set gives the same
// bytes.
//
// For a row of a block, D and sixteen groups: w^ = D * s[g] * L[q], s in -7..8. The cost of a group depends on the step
// t = D * s alone:  cost(t) = sum_k importance[k] * (w[k] - t * L[nearest])^2.
//   1. For each group and each sign of t, the step with the least cost, of a geometric row of steps.
//   2. For each |D| of another row (the largest group wants |s| = 8 or a little less): each group takes the best of
//      three integers around (best step / D), for both signs. +8 belongs to D > 0, -8 to D < 0: both sums come from one
//      pass.
//   3. The best D, then twice the D that fits the chosen products best (least squares), kept where the cost falls.
//   4. D as binary16, and for it codes and nibbles once more.
#pragma once

#include <cstring>

#include "convert/half.h"
#include "convert/quantise.h"

namespace shoal {
namespace {

constexpr int kGroups = kBlockCols / kGroupCols;
constexpr int kLanes = 16;
constexpr int kSteps = 10;
constexpr float kFirstStep = 0.78f, kStepRatio = 1.06f;  // times the largest |w| / 16
constexpr int kScales = 20;
constexpr float kFirstScale = 0.80f, kScaleRatio = 1.0275f;  // times the largest |w| / 128
constexpr int kIntegers = 3;  // tried for each sign of s
constexpr int kRefinements = 2;
constexpr float kRound = 12582912.0f;  // adding and subtracting 1.5 * 2^23 rounds to an integer
constexpr float kTiny = 1e-30f;
constexpr float kHuge = 3e38f;

// Sixteen rows of one block, a vector for each column, and the groups' largest magnitudes.
struct Half {
  V x[kBlockCols];
  V best[2][kGroups];  // step of least cost, positive (0) and negative (1), as magnitudes
  V largest;
};

// For one D: cost, and the sums of its least-squares successor.
struct Choice {
  V cost, num, den;
  V s[kGroups];
};

inline V magnitude(V a) { return max(a, sub(zero(), a)); }

// y in units of half a level, from level -16: its cell is floor(y), clipped.
inline V in_cells(V x, V r2) { return min(max(fma(x, r2, set1(32.0f)), zero()), set1(63.5f)); }

// Of the 16 columns at x, in units of (t / 2)^2; r2 = 2 / t.
template <bool kWeighted>
inline V group_cost(const V* x, const float* importance, V r2) {
  V total = zero();
  for (std::size_t k = 0; k < kGroupCols; ++k) {
    const V y = fma(x[k], r2, set1(32.0f));
    const V d = sub(y, nearest_cell(min(max(y, zero()), set1(63.5f))));
    total = fma(kWeighted ? mul(d, set1(importance[k])) : d, d, total);
  }
  return total;
}

template <bool kWeighted>
inline V step_cost(const V* x, const float* importance, V t) {
  return mul(group_cost<kWeighted>(x, importance, div(set1(2.0f), t)), mul(mul(t, t), set1(0.25f)));
}

template <bool kWeighted>
void find_steps(Half& half, const float* importance) {
  half.largest = zero();
  for (int g = 0; g < kGroups; ++g) {
    const V* x = half.x + g * kGroupCols;
    V largest = set1(kTiny);
    for (std::size_t k = 0; k < kGroupCols; ++k) largest = max(largest, magnitude(x[k]));
    half.largest = max(half.largest, largest);
    for (int sign = 0; sign < 2; ++sign) {
      V t = mul(largest, set1((sign ? -kFirstStep : kFirstStep) / 16.0f));
      V least = set1(kHuge), best = t;
      for (int j = 0; j < kSteps; ++j, t = mul(t, set1(kStepRatio))) {
        const V cost = step_cost<kWeighted>(x, importance ? importance + g * kGroupCols : nullptr, t);
        best = select_lt(cost, least, t, best);
        least = min(cost, least);
      }
      half.best[sign][g] = magnitude(best);
    }
  }
}

// Costs of |D| = d as a positive and as a negative D.
template <bool kWeighted>
void try_scale(const Half& half, const float* importance, V d, V& positive, V& negative) {
  positive = negative = zero();
  const V inverse = div(set1(1.0f), d);
  for (int g = 0; g < kGroups; ++g) {
    const float* weights = importance ? importance + g * kGroupCols : nullptr;
    V common = set1(kHuge), eight[2];
    for (int sign = 0; sign < 2; ++sign) {
      eight[sign] = set1(kHuge);
      const V ratio = sub(mul(half.best[sign][g], inverse), set1(1.0f));
      V s = min(max(sub(add(ratio, set1(kRound)), set1(kRound)), set1(1.0f)), set1(8.0f));
      for (int more = 0; more < kIntegers; ++more, s = min(add(s, set1(1.0f)), set1(8.0f))) {
        const V t = mul(d, sign ? sub(zero(), s) : s);
        const V cost = step_cost<kWeighted>(half.x + g * kGroupCols, weights, t);
        common = select_lt(s, set1(7.5f), min(common, cost), common);
        eight[sign] = select_lt(s, set1(7.5f), eight[sign], min(eight[sign], cost));
      }
    }
    positive = add(positive, min(common, eight[0]));
    negative = add(negative, min(common, eight[1]));
  }
}

// Codes for a signed D: the best of three integers for each sign, and 0.
template <bool kWeighted>
void choose_codes(const Half& half, const float* importance, V d, Choice& choice) {
  choice.cost = choice.num = choice.den = zero();
  const V size = max(magnitude(d), set1(kTiny));
  const V inverse = div(set1(1.0f), size);
  for (int g = 0; g < kGroups; ++g) {
    const V* x = half.x + g * kGroupCols;
    const float* weights = importance ? importance + g * kGroupCols : nullptr;
    V least = zero(), s_best = zero();
    for (std::size_t k = 0; k < kGroupCols; ++k) {
      least = fma(kWeighted ? mul(x[k], set1(weights[k])) : x[k], x[k], least);
    }
    for (int sign = 0; sign < 2; ++sign) {  // of s; the sign of t is that of s times that of D
      const V best = select_lt(d, zero(), half.best[1 - sign][g], half.best[sign][g]);
      const V most = set1(sign ? 7.0f : 8.0f);
      const V ratio = sub(mul(best, inverse), set1(1.0f));
      V s = min(max(sub(add(ratio, set1(kRound)), set1(kRound)), set1(1.0f)), most);
      for (int more = 0; more < kIntegers; ++more, s = min(add(s, set1(1.0f)), most)) {
        const V signed_s = sign ? sub(zero(), s) : s;
        const V size_s = mul(size, s);
        const V t = select_lt(mul(d, signed_s), zero(), sub(zero(), size_s), size_s);
        const V cost = step_cost<kWeighted>(x, weights, t);
        s_best = select_lt(cost, least, signed_s, s_best);
        least = min(cost, least);
      }
    }
    choice.s[g] = s_best;
    choice.cost = add(choice.cost, least);
    // Products s * L of the nearest levels, for the least squares; with s = 0 they vanish.
    const V t = mul(size, select_lt(magnitude(s_best), set1(0.5f), set1(1.0f), s_best));
    const V r2 = div(set1(2.0f), select_lt(d, zero(), sub(zero(), t), t));
    for (std::size_t k = 0; k < kGroupCols; ++k) {
      const V level = fma(nearest_cell(in_cells(x[k], r2)), set1(0.5f), set1(-16.0f));
      const V product = mul(level, s_best);
      const V weighted = kWeighted ? mul(product, set1(weights[k])) : product;
      choice.num = fma(weighted, x[k], choice.num);
      choice.den = fma(weighted, product, choice.den);
    }
  }
}

// Codes, nibbles and D of sixteen rows, as layout.h orders them. D is a binary16 already.
void write_half(const Half& half, const Choice& choice, V d, int which, std::uint8_t* block) {
  float scale[kLanes], s[kLanes], cells[kGroupCols][kLanes];
  store(scale, d);
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::uint16_t h = half_of_float(scale[lane]);
    std::memcpy(block + kInt4ScaleOffset + 2 * (kLanes * which + lane), &h, sizeof h);
  }
  for (int g = 0; g < kGroups; ++g) {
    store(s, choice.s[g]);
    // Where the step is zero every level will do: level 0 is cell 32.
    const V t = mul(d, choice.s[g]);
    const V r2 = select_lt(magnitude(t), set1(kTiny), zero(), div(set1(2.0f), t));
    for (std::size_t k = 0; k < kGroupCols; ++k) store(cells[k], in_cells(half.x[g * kGroupCols + k], r2));
    for (int lane = 0; lane < kLanes; ++lane) {
      const int integer = static_cast<int>(s[lane]);
      const int code = integer >= 0 ? integer : 8 - integer;
      std::uint8_t* codes = block + 128 * which + 16 * (g % 8) + lane;
      *codes = static_cast<std::uint8_t>(g < 8 ? code : *codes | code << 4);
      for (int j = 0; j < 2; ++j) {
        std::uint8_t* line = block + kInt4LinesOffset + 64 * ((g * 2 + j) * 2 + which) + 4 * lane;
        for (int b = 0; b < 4; ++b) {
          const int low = kCells.nibble[static_cast<int>(cells[8 * j + b][lane])];
          const int high = kCells.nibble[static_cast<int>(cells[8 * j + b + 4][lane])];
          line[b] = static_cast<std::uint8_t>(low | high << 4);
        }
      }
    }
  }
}

inline V rounded_to_half(V d) {
  float scale[kLanes];
  store(scale, d);
  for (int lane = 0; lane < kLanes; ++lane) scale[lane] = float_of_half(half_of_float(scale[lane]));
  return load(scale);
}

template <bool kWeighted>
void quantise_half(const float* w, std::size_t stride, const float* importance, int which, std::uint8_t* block) {
  Half half;
  float column[kLanes];
  for (std::size_t k = 0; k < kBlockCols; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) column[lane] = w[(kLanes * which + lane) * stride + k];
    half.x[k] = load(column);
  }
  find_steps<kWeighted>(half, importance);
  V d = mul(half.largest, set1(kFirstScale / 128.0f)), least = set1(kHuge), best = d;
  for (int i = 0; i < kScales; ++i, d = mul(d, set1(kScaleRatio))) {
    V positive, negative;
    try_scale<kWeighted>(half, importance, d, positive, negative);
    best = select_lt(positive, least, d, best);
    least = min(positive, least);
    best = select_lt(negative, least, sub(zero(), d), best);
    least = min(negative, least);
  }
  Choice choice;
  least = set1(kHuge);
  V next = best;
  for (int i = 0; i <= kRefinements; ++i) {
    choose_codes<kWeighted>(half, importance, next, choice);
    best = select_lt(choice.cost, least, next, best);
    least = min(choice.cost, least);
    next = select_lt(zero(), choice.den, div(choice.num, max(choice.den, set1(kTiny))), next);
  }
  d = rounded_to_half(best);
  choose_codes<kWeighted>(half, importance, d, choice);
  write_half(half, choice, d, which, block);
}

void quantise_int4(const float* w, std::size_t stride, const float* importance, std::uint8_t* block) {
  for (int which = 0; which < 2; ++which) {
    if (importance != nullptr) {
      quantise_half<true>(w, stride, importance, which, block);
    } else {
      quantise_half<false>(w, stride, nullptr, which, block);
    }
  }
}

}  // namespace
}  // namespace shoal
