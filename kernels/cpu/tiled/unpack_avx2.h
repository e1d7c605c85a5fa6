// Reading kInt4 blocks in 256 bits, for the sets that have no AVX-512: tables of levels and codes, scales of rows.
#pragma once

namespace shoal {
namespace {

inline __m256i load_line(const std::uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_line(std::uint8_t* p, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }

inline void read_scales(const std::uint8_t* halves, float* d) {
  for (int i = 0; i < 4; ++i) {
    const __m128i h = _mm_load_si128(reinterpret_cast<const __m128i*>(halves + 16 * i));
    _mm256_store_ps(d + 8 * i, _mm256_cvtph_ps(h));
  }
}

// A table of 16 bytes, in both halves of a register.
struct Bytes {
  alignas(32) std::uint8_t value[32];
};
inline __m256i table(const Bytes& bytes) { return load_line(bytes.value); }

// L + 16, in 0..31
constexpr Bytes make_levels() {
  Bytes bytes = {};
  for (int i = 0; i < 32; ++i) bytes.value[i] = static_cast<std::uint8_t>(kInt4Levels[i % 16] + 16);
  return bytes;
}
constexpr Bytes kLevels = make_levels();

// Codes of the 16 rows of a half panel, in group g, one a byte, in both halves of the register.
inline __m256i read_codes(const std::uint8_t* block, std::size_t g, std::size_t half) {
  const __m128i* p = reinterpret_cast<const __m128i*>(block + 128 * half + 16 * (g % 8));
  const __m256i pair = _mm256_broadcastsi128_si256(_mm_load_si128(p));
  return _mm256_and_si256(g < 8 ? pair : _mm256_srli_epi16(pair, 4), _mm256_set1_epi8(15));
}

// Index of _mm256_shuffle_epi8 that takes byte 8 part + i of 16 to the bytes of 32-bit lane i that are set in `mask`.
inline __m256i spread(std::size_t part, std::uint32_t mask) {
  const __m256i row = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * part));
  const __m256i everywhere = _mm256_mullo_epi32(row, _mm256_set1_epi32(0x01010101));
  return _mm256_or_si256(everywhere, _mm256_set1_epi32(static_cast<int>(~mask)));
}

}  // namespace
}  // namespace shoal
