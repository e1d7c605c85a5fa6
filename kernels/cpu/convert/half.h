// binary16 and bfloat16 in portable C++; a matrix is converted once, so nothing here is in a hurry.
#pragma once

#include <cstdint>
#include <cstring>

namespace shoal {
namespace {

inline float float_of_bits(std::uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

inline std::uint32_t bits_of_float(float f) {
  std::uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

// Exact, subnormal numbers, infinities and NaN included.
inline float float_of_half(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // The exponent's bias differs by 112; as a product, subnormal numbers come out right.
  const float magnitude = float_of_bits(rest << 13) * 0x1p112f;
  return float_of_bits(sign | bits_of_float(magnitude));
}

// To nearest, ties to even; beyond the range the largest finite value.
inline std::uint16_t half_of_float(float f) {
  const std::uint32_t u = bits_of_float(f), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude >= 0x477fe000u) return static_cast<std::uint16_t>(sign | 0x7bffu);
  if (magnitude < 0x38800000u) {  // below 2^-14: the sum's last bit is worth 2^-24
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of_float(shifted) - bits_of_float(0.5f)));
  }
  return static_cast<std::uint16_t>(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

inline std::uint16_t bf16_of_float(float f) {  // to nearest, ties to even; f must be finite
  const std::uint32_t u = bits_of_float(f);
  return static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

inline float float_of_bf16(std::uint16_t h) { return float_of_bits(static_cast<std::uint32_t>(h) << 16); }

}  // namespace
}  // namespace shoal
