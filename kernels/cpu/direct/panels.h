// Few-row products, the part that every instruction set shares: the walk over panels and blocks, all floating-point
// code (over V), and the choice of a routine by the number of rows. Include at the end of an ISA file, which defines
// before it, in namespace shoal {namespace {:
//   V from_int32(const std::int32_t* p)                  16 integers as f32
//   V from_half(const std::uint8_t* p)                   16 binary16 as f32
//   V even_bf16(const std::uint8_t* p), odd_bf16(p)      of the 16 pairs of bfloat16 in a line, the first; the second
//   void prefetch(const std::uint8_t* p)                 may be an address beyond the end of the data
//   int4_totals<N>, int8_totals<N>(block, q, q_stride, sum, sum_stride, total)
//                                                        exact integer part of one block, N rows of activations:
//                                                        total[i][r] = sum over k of q[i, k] * v[r, k]
//   kBf16Halves<N>                                       halves of a panel that bf16 accumulates at once: 1 or 2
//
// A call reads its panels as one sequential stream, and that decides the speed: software prefetch kAhead bytes in front
// fetches what the hardware's prefetcher asks for too late.
#pragma once

namespace shoal {
namespace {

template <int N>
using Totals = std::int32_t[N][kPanelRows];

template <int N>
using Sums = float[N][kPanelRows];

// f[i][r] = fma(float(total[i][r]) * D[r], scale[i], f[i][r]). The totals are below 2^24: their floats are exact.
template <int N>
inline void add_scaled(const Totals<N>& total, const std::uint8_t* halves, const float* scale, std::size_t scale_stride,
                       Sums<N>& f) {
  for (int r = 0; r < 2; ++r) {
    const V d = from_half(halves + 32 * r);
    for (int i = 0; i < N; ++i) {
      float* to = f[i] + 16 * r;
      const V product = mul(from_int32(total[i] + 16 * r), d);
      store(to, fma(product, set1(scale[static_cast<std::size_t>(i) * scale_stride]), load(to)));
    }
  }
}

// f[i][r] = f[i][r] + (the block's sum of x[i, k] * w[r, k] from 0, k ascending, one fma each).
template <int N>
inline void add_bf16(const std::uint8_t* block, const float* x, std::size_t x_stride, Sums<N>& f) {
  constexpr int kHalves = kBf16Halves<N>;
  for (int first = 0; first < 2; first += kHalves) {
    V t[kHalves][N];
    for (int h = 0; h < kHalves; ++h)
      for (int i = 0; i < N; ++i) t[h][i] = zero();
    for (std::size_t k = 0; k < kBlockCols; k += 2) {
      V w[kHalves][2];
      for (int h = 0; h < kHalves; ++h) {
        const std::uint8_t* line = block + k * 64 + 64 * (first + h);
        prefetch(line + kAhead);
        w[h][0] = even_bf16(line);
        w[h][1] = odd_bf16(line);
      }
      for (int i = 0; i < N; ++i) {
        const float* row = x + static_cast<std::size_t>(i) * x_stride + k;
        const V even = set1(row[0]), odd = set1(row[1]);
        for (int h = 0; h < kHalves; ++h) t[h][i] = fma(odd, w[h][1], fma(even, w[h][0], t[h][i]));
      }
    }
    for (int h = 0; h < kHalves; ++h) {
      for (int i = 0; i < N; ++i) {
        float* to = f[i] + 16 * (first + h);
        store(to, add(load(to), t[h][i]));
      }
    }
  }
}

// The results of one row and panel to their place; see Store.
inline void put(const float* p, const Matrix& w, std::size_t panel, Store how, float* y) {
  if (how == Store::kSwiglu) {
    y += 16 * panel;
    const std::size_t left = w.rows / 2 - 16 * panel;
    const V result = mul(silu(load(p)), load(p + 16));
    if (left >= 16) {
      store(y, result);
    } else {
      float lanes[16];
      store(lanes, result);
      for (std::size_t l = 0; l < left; ++l) y[l] = lanes[l];
    }
    return;
  }
  y += kPanelRows * panel;
  const std::size_t left = w.rows - kPanelRows * panel;
  if (left >= kPanelRows) {
    for (int r = 0; r < 32; r += 16) store(y + r, how == Store::kAdd ? add(load(y + r), load(p + r)) : load(p + r));
  } else {
    for (std::size_t l = 0; l < left; ++l) y[l] = how == Store::kAdd ? y[l] + p[l] : p[l];
  }
}

template <int N, Format kFormat>
void multiply_rows(const Matrix& w, const Activations& a, std::size_t first, std::size_t count, const Output& out) {
  const std::size_t num_blocks = w.num_blocks();
  const std::uint8_t* block = w.data + first * w.panel_bytes();
  for (std::size_t panel = first; panel < first + count; ++panel) {
    alignas(64) Sums<N> f = {};
    for (std::size_t b = 0; b < num_blocks; ++b) {
      if constexpr (kFormat == Format::kBf16) {
        add_bf16<N>(block, a.x + b * kBlockCols, a.x_stride, f);
      } else {
        alignas(64) Totals<N> total;
        const std::int8_t* q = a.q + b * kBlockCols;
        const std::size_t a_blocks = a.cols / kBlockCols;
        if constexpr (kFormat == Format::kInt4) {
          int4_totals<N>(block, q, a.cols, a.sum16 + b * 16, a.cols / kGroupCols, total);
          add_scaled<N>(total, block + kInt4ScaleOffset, a.scale + b, a_blocks, f);
        } else {
          int8_totals<N>(block, q, a.cols, a.sum256 + b, a_blocks, total);
          add_scaled<N>(total, block + kInt8ScaleOffset, a.scale + b, a_blocks, f);
        }
      }
      block += block_bytes(kFormat);
    }
    for (int i = 0; i < N; ++i) put(f[i], w, panel, out.store, out.y + static_cast<std::size_t>(i) * out.stride);
  }
}

template <Format kFormat>
void multiply(const Matrix& w, const Activations& a, std::size_t first, std::size_t count, const Output& out) {
  static_assert(kDirectRows == 6, "one case for each number of rows");
  switch (a.n) {
    case 1: return multiply_rows<1, kFormat>(w, a, first, count, out);
    case 2: return multiply_rows<2, kFormat>(w, a, first, count, out);
    case 3: return multiply_rows<3, kFormat>(w, a, first, count, out);
    case 4: return multiply_rows<4, kFormat>(w, a, first, count, out);
    case 5: return multiply_rows<5, kFormat>(w, a, first, count, out);
    case 6: return multiply_rows<6, kFormat>(w, a, first, count, out);
    default: return;
  }
}

}  // namespace
}  // namespace shoal
