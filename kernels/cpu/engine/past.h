// Single tokens out of pages of keys and values (layout.h), for those who look from outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layout.h"

namespace shoal {

// The key, or the value, of the token at place `token` of a page, f32 [head_dim].
inline void read_page(const std::uint8_t* page, KvFormat format, std::size_t head_dim, std::size_t token, bool value,
                      float* out) {
  const std::size_t half = head_dim * kPageTokens;  // elements of K
  for (std::size_t d = 0; d < head_dim; ++d) {
    const std::size_t at = value ? half + token * head_dim + d : d * kPageTokens + token;
    if (format == KvFormat::kBf16) {
      std::uint16_t bits;
      std::memcpy(&bits, page + 2 * at, 2);
      const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
      std::memcpy(out + d, &wide, 4);
    } else if (format == KvFormat::kF32) {
      std::memcpy(out + d, page + 4 * at, 4);
    } else {
      float scale;
      std::memcpy(&scale, page + 2 * half + 4 * (value ? kPageTokens + token : token), 4);
      out[d] = static_cast<float>(static_cast<std::int8_t>(page[at])) * scale;
    }
  }
}

}  // namespace shoal
