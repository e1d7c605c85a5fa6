// Activations to int8, over V. Include after a vector file and a definition, in namespace shoal {namespace {, of
//   void sum_groups(const std::int8_t* q, std::int16_t* sum16)     of a block: sum16[g] = -16 * (sum of the g-th 16 of q)
#pragma once

namespace shoal {
namespace {

constexpr float kSmallestBlock = 0x1p-100f;  // 127 / x overflows far below, and nothing that matters is so small

// Each block of 256, m its largest magnitude: scale = m / 127, q = x * (127 / m) to the nearest, ties to even. Where
// m < 2^-100 scale is 0 and q zeros. A NaN or an infinity makes scale NaN and q zeros, so that it shows in every result.
void quantise(const float* x, std::size_t stride, std::size_t n, std::size_t cols, std::int8_t* q, float* scale,
              std::int16_t* sum16, std::int32_t* sum256) {
  const std::size_t num_blocks = (cols + kBlockCols - 1) / kBlockCols;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t b = 0; b < num_blocks; ++b) {
      const float* from = x + i * stride + b * kBlockCols;
      alignas(64) float last[kBlockCols];
      if (cols - b * kBlockCols < kBlockCols) {
        const std::size_t left = cols - b * kBlockCols;
        for (std::size_t k = 0; k < kBlockCols; ++k) last[k] = k < left ? from[k] : 0.0f;
        from = last;
      }
      V most[2] = {zero(), zero()}, bad[2] = {zero(), zero()};  // two chains each: their order cannot matter
      for (std::size_t k = 0; k < kBlockCols; k += 32) {
        for (int c = 0; c < 2; ++c) {
          const V v = load(from + k + 16 * c);
          most[c] = max(most[c], max(v, sub(zero(), v)));
          bad[c] = fma(v, zero(), bad[c]);  // stays 0 unless v is infinite or not a number
        }
      }
      const float m = largest(max(most[0], most[1]));
      const bool finite = sum(add(bad[0], bad[1])) == 0.0f;
      const bool any = finite && m >= kSmallestBlock;
      scale[b] = any ? m / 127.0f : finite ? 0.0f : NAN;
      const V inverse = any ? set1(127.0f / m) : zero();
      for (std::size_t k = 0; k < kBlockCols; k += 16) store_s8(q + k, any ? mul(load(from + k), inverse) : zero());
      sum_groups(q, sum16);
      std::int32_t sum = 0;
      for (int g = 0; g < 16; ++g) sum += sum16[g];
      sum256[b] = 8 * sum;
      q += kBlockCols;
      sum16 += kBlockCols / kGroupCols;
    }
    scale += num_blocks;
    sum256 += num_blocks;
  }
}

}  // namespace
}  // namespace shoal
