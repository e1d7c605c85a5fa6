// Few-row products, the part that every instruction set shares: the walk over panels and blocks, all floating-point
// code (over V), and the choice of a routine by the number of rows. Include at the end of an ISA file, which defines
// before it, in namespace shoal {namespace {:
//   V from_int32(const std::int32_t* p)                  16 integers as f32
//   V from_half(const std::uint8_t* p)                   16 binary16 as f32
//   V even_bf16(const std::uint8_t* p), odd_bf16(p)      of the 16 pairs of bfloat16 in a line, the first; the second
//   void prefetch(const std::uint8_t* p), ahead<N>()     an address that may lie beyond the end of the data, how far ahead
//   int4_totals<N>, int8_totals<N>(block, q, q_stride, sum, sum_stride, total)
//                                                        exact integer part of one block, N rows of activations:
//                                                        total[i][r] = sum over k of q[i, k] * v[r, k]
//   const T* again(const T* p)                           p, unknown to the optimiser: see x86.h
//   kBf16Halves<N>                                       halves of a panel that bf16 accumulates at once: 1 or 2
//
// A call reads its panels as one sequential stream, and that decides the speed. Where there are more sums than registers
// the work is cut into windows of at most 1 KiB of the stream, and the sums rest in memory between them.
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

// Adds to t[h][i] the products of columns [k, k_end) of a block with halves first, first + 1, .. (H of them): ascending, one
// fma each.
template <int N, int H>
inline void add_bf16_columns(const std::uint8_t* block, const float* x, std::size_t x_stride, int first, std::size_t k,
                             std::size_t k_end, std::size_t distance, V (&t)[H][N]) {
  for (; k < k_end; k += 2) {
    for (int h = 0; h < H; ++h) {
      const std::uint8_t* line = block + k * 64 + 64 * static_cast<std::size_t>(first + h);
      prefetch(line + distance);
      const float* from = again(x + k);
      const V even = even_bf16(line);
      for (int i = 0; i < N; ++i) t[h][i] = fma(set1(from[static_cast<std::size_t>(i) * x_stride]), even, t[h][i]);
      const V odd = odd_bf16(line);
      for (int i = 0; i < N; ++i) t[h][i] = fma(set1(from[static_cast<std::size_t>(i) * x_stride + 1]), odd, t[h][i]);
    }
  }
}

// f[i][r] = f[i][r] + (the block's sum of x[i, k] * w[r, k], chain by chain from 0).
template <int N>
inline void add_bf16(const std::uint8_t* block, const float* x, std::size_t x_stride, Sums<N>& f) {
  const std::size_t distance = ahead<2 * N>();  // f32 products take as long as integer ones of twice the rows
  alignas(64) Sums<N> sums = {};
  if constexpr (kBf16Halves<N> == 2) {
    for (std::size_t k = 0; k < kBlockCols; k += kChainCols) {
      V t[2][N];
      for (int i = 0; i < N; ++i) t[0][i] = t[1][i] = zero();
      add_bf16_columns<N, 2>(block, x, x_stride, 0, k, k + kChainCols, distance, t);
      for (int i = 0; i < N; ++i)
        for (int h = 0; h < 2; ++h) store(sums[i] + 16 * h, add(load(sums[i] + 16 * h), t[h][i]));
    }
  } else {
    alignas(64) Sums<N> chains;
    for (std::size_t k = 0; k < kBlockCols; k += 16) {
      const bool begins = k % kChainCols == 0, ends = (k + 16) % kChainCols == 0;
      for (int h = 0; h < 2; ++h) {
        V t[1][N];
        for (int i = 0; i < N; ++i) t[0][i] = begins ? zero() : load(chains[i] + 16 * h);
        add_bf16_columns<N, 1>(block, x, x_stride, h, k, k + 16, distance, t);
        for (int i = 0; i < N; ++i) {
          store((ends ? sums : chains)[i] + 16 * h, ends ? add(load(sums[i] + 16 * h), t[0][i]) : t[0][i]);
        }
      }
    }
  }
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < 32; r += 16) store(f[i] + r, add(load(f[i] + r), load(sums[i] + r)));
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
