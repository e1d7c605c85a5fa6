// Attention of many query rows of one kv head over its pages. A query row is one query head of one token: row
// i of a block is head i % group of token i / group, so a row's position never falls along a block.
//
// For each partial result, 2,048 positions on absolute bounds, from m = -inf, l = 0, o = 0; for each page ascending:
//   s[t] = (q . k[t]) * key_scale[t]         one chain of fmas, d ascending; positions after the row's own do not count
//   decay = exp(m - m'), m' = max(m, max s)  1 where the maximum stays
//   w[t] = exp(s[t] - m');  l = l * decay + sum w;  o = o * decay, then + (w[t] * value_scale[t]) * v[t], t ascending
// Partial results merge ascending: m' = max(M, m); L = L e^(M - m') + l e^(m - m'); O alike.
// out = O / L * sigmoid(gate).
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/heads.inl"
#include "attention/tiles.inl"
#include "kernels.h"

namespace shoal {
namespace {

constexpr float kLowest = -3.402823466e38f;
constexpr std::size_t kPartPages = 2048 / kPageTokens;
constexpr std::size_t kBlockRows = 96;   // that meet a widened page: more cost cache, fewer widen more often
constexpr std::size_t kStreamRows = 12;  // up to so many rows a page is read as it lies
constexpr std::size_t kTileLanes = 16 * kTileVectors;

// A block's buffers, carved from the scratch.
struct Block {
  std::size_t rows;
  float* keys;     // [kPageTokens / kTileLanes][head_dim][kTileLanes]
  float* values;   // [head_dim / kTileLanes][kPageTokens][kTileLanes], then [kPageTokens][16] for each 16 left over
  float* query;    // [rows][head_dim]
  float* partial;  // [rows][head_dim], o
  float* total;    // [rows][head_dim], O
  float* weight;   // [rows][kPageTokens], scores, then weights
  float *m, *l, *decay, *total_m, *total_l;  // [rows]
};

Block carve(std::size_t dims, std::size_t rows, void* scratch) {
  const std::size_t num_floats = kMixerScratchBytes / sizeof(float);
  const std::size_t fixed = 2 * kPageTokens * dims, per_row = 3 * dims + kPageTokens + 5;
  const std::size_t room = (num_floats - fixed) / per_row;
  Block b;
  b.rows = rows < kBlockRows ? rows : kBlockRows;
  if (b.rows > room) b.rows = room;
  b.keys = static_cast<float*>(scratch);
  b.values = b.keys + kPageTokens * dims;
  b.query = b.values + kPageTokens * dims;
  b.partial = b.query + b.rows * dims;
  b.total = b.partial + b.rows * dims;
  b.weight = b.total + b.rows * dims;
  b.m = b.weight + b.rows * kPageTokens;
  b.l = b.m + b.rows;
  b.decay = b.l + b.rows;
  b.total_m = b.decay + b.rows;
  b.total_l = b.total_m + b.rows;
  return b;
}

inline float first_lane(V a) {
  float lane[16];
  store(lane, a);
  return lane[0];
}

// Scores of the rows from `first` on against a page. k: kPageTokens / kTileLanes slabs of [dims][k_stride], slab_stride
// apart.
template <class Source>
void score_page(const Block& b, std::size_t first, std::size_t dims, const typename Source::Element* k,
                std::size_t slab_stride, std::size_t k_stride, const float* scale, const char* ahead) {
  for (std::size_t slab = 0; slab < kPageTokens / kTileLanes; ++slab) {
    const char* lines = ahead + slab * dims * kTileLanes * sizeof(typename Source::Element);
    const float* slab_scale = scale ? scale + slab * kTileLanes : nullptr;
    const std::size_t step = tile_height(b.rows - first);
    for (std::size_t r = first; r < b.rows; r += step) {
      score_rows<Source>(b.rows - r < step ? b.rows - r : step, b.query + r * dims, dims, k + slab * slab_stride,
                         k_stride, slab_scale, b.weight + r * kPageTokens + slab * kTileLanes, lines);
    }
  }
}

// The softmax's part of one row and page: scores -> weights, and m, l, decay.
void weigh(const Block& b, std::size_t row, std::size_t visible, const float* value_scale) {
  float* w = b.weight + row * kPageTokens;
  for (std::size_t t = visible; t < kPageTokens; ++t) w[t] = kLowest;
  V s[4];
  for (int i = 0; i < 4; ++i) s[i] = load(w + 16 * i);
  const float page_max = largest(max(max(s[0], s[1]), max(s[2], s[3])));
  if (page_max > b.m[row]) {
    b.decay[row] = first_lane(exp(set1(b.m[row] - page_max)));
    b.m[row] = page_max;
    b.l[row] = b.l[row] * b.decay[row];
  } else {
    b.decay[row] = 1.0f;
  }
  const V m = set1(b.m[row]);
  for (int i = 0; i < 4; ++i) s[i] = exp(sub(s[i], m));
  b.l[row] = b.l[row] + sum(add(add(s[0], s[1]), add(s[2], s[3])));
  for (int i = 0; i < 4; ++i) store(w + 16 * i, value_scale ? mul(s[i], load(value_scale + 16 * i)) : s[i]);
}

// Tokens of the page starting at `start` that a row sees.
struct Sight {
  std::size_t position, offset;  // of row 0: its token's position, and the token's rows before it
  std::size_t group, start;

  std::size_t operator()(std::size_t row) const {
    const std::size_t seen = position + (offset + row) / group + 1 - start;
    return seen < kPageTokens ? seen : kPageTokens;
  }
  // The first row that sees anything of it, `rows` if none.
  std::size_t first(std::size_t rows) const {
    if (start <= position) return 0;
    const std::size_t row = (start - position) * group - offset;
    return row < rows ? row : rows;
  }
};

// The first row of a tile sees the fewest tokens. Beyond its sight the others go on alone: what a row does not see
// never enters its sums, not even times zero.
template <int C, class Source>
void add_values(const Block& b, std::size_t first, std::size_t dims, const Sight& sight,
                const typename Source::Element* v, std::size_t v_stride, std::size_t dim, const char* ahead) {
  const std::size_t step = tile_height(b.rows - first);
  for (std::size_t r = first; r < b.rows; r += step) {
    const std::size_t rows = b.rows - r < step ? b.rows - r : step;
    const std::size_t common = sight(r);
    float* o = b.partial + r * dims + dim;
    value_rows<C, Source>(rows, b.weight + r * kPageTokens, 0, common, v, v_stride, b.decay + r, o, dims, ahead);
    if (sight(r + rows - 1) == common) continue;
    const float keep = 1.0f;
    for (std::size_t i = 1; i < rows; ++i) {
      value_tile<1, C, Source>(b.weight + (r + i) * kPageTokens, common, sight(r + i), v, v_stride, &keep,
                               o + i * dims, dims, ahead);
    }
  }
}

// v [kPageTokens][dims], or slabs of the tile's width if it is a widened page.
template <class Source>
void add_page(const Block& b, std::size_t first, std::size_t dims, const Sight& sight,
              const typename Source::Element* v, const char* ahead) {
  constexpr std::size_t kBytes = kPageTokens * sizeof(typename Source::Element);
  std::size_t dim = 0;
  for (; dim + kTileLanes <= dims; dim += kTileLanes) {
    const auto* slab = Source::kStreams ? v + dim : v + dim * kPageTokens;
    add_values<kTileVectors, Source>(b, first, dims, sight, slab, Source::kStreams ? dims : kTileLanes, dim,
                                     ahead + dim * kBytes);
  }
  for (; dim < dims; dim += 16) {
    const auto* slab = Source::kStreams ? v + dim : v + dim * kPageTokens;
    add_values<1, Source>(b, first, dims, sight, slab, Source::kStreams ? dims : 16, dim, ahead + dim * kBytes);
  }
}

template <class Source>
void widen(const Page<typename Source::Element>& page, std::size_t dims, const Block& b) {
  float* to = b.keys;
  for (std::size_t slab = 0; slab < kPageTokens; slab += kTileLanes)
    for (std::size_t d = 0; d < dims; ++d)
      for (std::size_t i = 0; i < kTileLanes; i += 16, to += 16)
        store(to, Source::read(page.keys + d * kPageTokens + slab + i));
  to = b.values;
  for (std::size_t dim = 0, width; dim < dims; dim += width) {
    width = dim + kTileLanes <= dims ? kTileLanes : 16;
    for (std::size_t t = 0; t < kPageTokens; ++t)
      for (std::size_t i = 0; i < width; i += 16, to += 16)
        store(to, Source::read(page.values + t * dims + dim + i));
  }
}

// Rows of the block that see the page against it. `next`: the page to come, or this one again.
template <class Source>
void meet_page(const Block& b, std::size_t dims, const Sight& sight, const Page<typename Source::Element>& page,
               const Page<typename Source::Element>& next) {
  const std::size_t first = sight.first(b.rows);
  const bool stream = b.rows - first <= kStreamRows;
  if (stream) {
    score_page<Source>(b, first, dims, page.keys, kTileLanes, kPageTokens, page.key_scale,
                       reinterpret_cast<const char*>(page.values));
  } else {
    widen<Source>(page, dims, b);
    score_page<Wide>(b, first, dims, b.keys, dims * kTileLanes, kTileLanes, page.key_scale, nullptr);
  }
  for (std::size_t r = first; r < b.rows; ++r) weigh(b, r, sight(r), page.value_scale);
  if (stream) {
    if (next.key_scale) {
      for (std::size_t t = 0; t < 2 * kPageTokens; t += 16) prefetch_far(next.key_scale + t);
    }
    add_page<Source>(b, first, dims, sight, page.values, reinterpret_cast<const char*>(next.keys));
  } else {
    add_page<Wide>(b, first, dims, sight, b.values, nullptr);
  }
}

// The partial result joins the total.
void merge(const Block& b, std::size_t row, std::size_t dims) {
  const float most = b.m[row] > b.total_m[row] ? b.m[row] : b.total_m[row];
  const V old = exp(set1(b.total_m[row] - most)), fresh = exp(set1(b.m[row] - most));
  b.total_m[row] = most;
  b.total_l[row] = fma1(b.total_l[row], first_lane(old), b.l[row] * first_lane(fresh));
  float *total = b.total + row * dims, *partial = b.partial + row * dims;
  for (std::size_t i = 0; i < dims; i += 16)
    store(total + i, fma(load(total + i), old, mul(load(partial + i), fresh)));
}

void clear(float* m, float* l, float* o, std::size_t first, std::size_t end, std::size_t dims) {
  for (std::size_t r = first; r < end; ++r) {
    m[r] = kLowest;
    l[r] = 0.0f;
    for (std::size_t i = 0; i < dims; i += 16) store(o + r * dims + i, zero());
  }
}

// Query rows [from, from + b.rows) of the tokens from `begin`.
template <class Source>
void attend_block(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, std::size_t begin,
                  std::size_t from, const Block& b) {
  using Element = typename Source::Element;
  const std::size_t dims = shape.head_dim, half = shape.rotary_dim / 2, group = shape.heads / shape.kv_heads;
  for (std::size_t r = 0; r < b.rows; ++r) {
    const std::size_t token = begin + (from + r) / group, head = kv_head * group + (from + r) % group;
    norm_and_turn(shape, rows.in + token * rows.in_stride + 2 * head * dims, rows.q_norm, rows.cos + token * half,
                  rows.sin + token * half, shape.scale, b.query + r * dims);
  }
  clear(b.total_m, b.total_l, b.total, 0, b.rows, dims);
  Sight sight = {rows.position + begin + from / group, from % group, group, 0};
  const std::size_t last_page = (sight.position + (sight.offset + b.rows - 1) / group) / kPageTokens;
  for (std::size_t part = 0; part <= last_page; part += kPartPages) {
    sight.start = part * kPageTokens;
    const std::size_t first = sight.first(b.rows);
    clear(b.m, b.l, b.partial, first, b.rows, dims);
    for (std::size_t p = part; p <= last_page && p < part + kPartPages; ++p) {
      sight.start = p * kPageTokens;
      meet_page<Source>(b, dims, sight, page_of<Element>(shape, rows, kv_head, p),
                        page_of<Element>(shape, rows, kv_head, p < last_page ? p + 1 : p));
    }
    for (std::size_t r = first; r < b.rows; ++r) merge(b, r, dims);
  }
  for (std::size_t r = 0; r < b.rows; ++r) {
    const std::size_t token = begin + (from + r) / group, head = kv_head * group + (from + r) % group;
    const float* gate = rows.in + token * rows.in_stride + (2 * head + 1) * dims;
    float* out = rows.out + token * rows.out_stride + head * dims;
    const V l = set1(b.total_l[r]);
    for (std::size_t i = 0; i < dims; i += 16)
      store(out + i, mul(div(load(b.total + r * dims + i), l), sigmoid(load(gate + i))));
  }
}

void attend_rows(const AttentionShape& shape, const AttentionRows& rows, std::size_t kv_head, std::size_t begin,
                 std::size_t end, void* scratch) {
  const std::size_t num_rows = begin < end ? (end - begin) * (shape.heads / shape.kv_heads) : 0;
  for (std::size_t from = 0; from < num_rows;) {
    const Block b = carve(shape.head_dim, num_rows - from, scratch);
    if (rows.format == KvFormat::kBf16) {
      attend_block<Bf16>(shape, rows, kv_head, begin, from, b);
    } else if (rows.format == KvFormat::kF32) {
      attend_block<F32>(shape, rows, kv_head, begin, from, b);
    } else {
      attend_block<Int8>(shape, rows, kv_head, begin, from, b);
    }
    from += b.rows;
  }
}

}  // namespace
}  // namespace shoal
