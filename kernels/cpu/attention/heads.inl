// What happens to one head's vector before it meets others: norm, rotation, and how a page stores it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace shoal {
namespace {

// y = turn(x * rsqrt(mean(x^2) + eps) * w) * scale. Of the first rotary_dim elements, half = rotary_dim / 2:
// y[j] = x[j] cos[j] - x[j + half] sin[j];  y[j + half] = x[j + half] cos[j] + x[j] sin[j].
void norm_and_turn(const AttentionShape& shape, const float* x, const float* w, const float* cos, const float* sin,
                   float scale, float* y) {
  V squares = zero();
  for (std::size_t i = 0; i < shape.head_dim; i += 16) squares = fma(load(x + i), load(x + i), squares);
  const float mean = sum(squares) / static_cast<float>(shape.head_dim);
  const V inverse = div(set1(1.0f), sqrt(set1(mean + shape.eps)));
  for (std::size_t i = 0; i < shape.head_dim; i += 16) store(y + i, mul(mul(load(x + i), inverse), load(w + i)));
  const std::size_t half = shape.rotary_dim / 2;
  std::size_t j = 0;
  for (; j + 16 <= half; j += 16) {
    const V a = load(y + j), b = load(y + j + half), c = load(cos + j), s = load(sin + j);
    store(y + j, fnma(b, s, mul(a, c)));
    store(y + j + half, fma(a, s, mul(b, c)));
  }
  for (; j < half; ++j) {
    const float a = y[j], b = y[j + half];
    y[j] = fma1(-b, sin[j], a * cos[j]);
    y[j + half] = fma1(a, sin[j], b * cos[j]);
  }
  for (std::size_t i = 0; i < shape.head_dim; i += 16) store(y + i, mul(load(y + i), set1(scale)));
}

// x -> int8, max / 127, to nearest even; returns the scale. A vector without a magnitude worth a scale is zero.
float quantise(const float* x, std::size_t n, std::int8_t* q) {
  V most = zero();
  for (std::size_t i = 0; i < n; i += 16) most = max(most, max(load(x + i), sub(zero(), load(x + i))));
  const float amax = largest(most);
  const bool empty = !(amax > 1e-30f);
  const V factor = empty ? zero() : set1(127.0f / amax);
  for (std::size_t i = 0; i < n; i += 16) store_s8(q + i, mul(load(x + i), factor));
  return empty ? 0.0f : amax / 127.0f;
}

// A page's parts (layout.h).
template <class Element>
struct Page {
  Element* keys;       // [head_dim][kPageTokens]
  Element* values;     // [kPageTokens][head_dim]
  float* key_scale;    // [kPageTokens], int8 alone
  float* value_scale;  // [kPageTokens]
};

template <class Element>
Page<Element> page_of(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, std::size_t page) {
  const std::size_t index = static_cast<std::size_t>(rows.pages[page]) * shape.kv_heads + kv_head;
  std::uint8_t* base = rows.pool + index * page_bytes(rows.format, shape.head_dim);
  Element* keys = reinterpret_cast<Element*>(base);
  Element* values = keys + kPageTokens * shape.head_dim;
  float* scales = sizeof(Element) == 1 ? reinterpret_cast<float*>(values + kPageTokens * shape.head_dim) : nullptr;
  return {keys, values, scales, scales ? scales + kPageTokens : nullptr};
}

void store_token(const float* key, const float* value, std::size_t dims, std::size_t slot,
                 const Page<std::uint16_t>& page, std::uint16_t* line) {
  for (std::size_t i = 0; i < dims; i += 16) store_bf16(line + i, load(key + i));
  for (std::size_t d = 0; d < dims; ++d) page.keys[d * kPageTokens + slot] = line[d];
  for (std::size_t i = 0; i < dims; i += 16) store_bf16(page.values + slot * dims + i, load(value + i));
}

void store_token(const float* key, const float* value, std::size_t dims, std::size_t slot,
                 const Page<std::int8_t>& page, std::int8_t* line) {
  page.key_scale[slot] = quantise(key, dims, line);
  for (std::size_t d = 0; d < dims; ++d) page.keys[d * kPageTokens + slot] = line[d];
  page.value_scale[slot] = quantise(value, dims, page.values + slot * dims);
}

void store_token(const float* key, const float* value, std::size_t dims, std::size_t slot, const Page<float>& page,
                 float*) {
  for (std::size_t d = 0; d < dims; ++d) page.keys[d * kPageTokens + slot] = key[d];
  for (std::size_t i = 0; i < dims; i += 16) store(page.values + slot * dims + i, load(value + i));
}

// scratch holds a key as it is computed and, behind it, as it is stored.
template <class Element>
void store_head(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, void* scratch) {
  const std::size_t dims = shape.head_dim, half = shape.rotary_dim / 2;
  float* key = static_cast<float*>(scratch);
  Element* line = reinterpret_cast<Element*>(key + dims);
  for (std::size_t i = 0; i < rows.n; ++i) {
    const float* keys = rows.in + i * rows.in_stride + 2 * shape.heads * dims;
    const float* values = keys + shape.kv_heads * dims;
    norm_and_turn(shape, keys + kv_head * dims, rows.k_norm, rows.cos + i * half, rows.sin + i * half, 1.0f, key);
    const std::size_t position = rows.position + i;
    const Page<Element> page = page_of<Element>(shape, rows, kv_head, position / kPageTokens);
    store_token(key, values + kv_head * dims, dims, position % kPageTokens, page, line);
  }
}

void store_rows(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, void* scratch) {
  if (rows.format == KvFormat::kBf16) return store_head<std::uint16_t>(shape, rows, kv_head, scratch);
  if (rows.format == KvFormat::kF32) return store_head<float>(shape, rows, kv_head, scratch);
  store_head<std::int8_t>(shape, rows, kv_head, scratch);
}

}  // namespace
}  // namespace shoal
