// The loops of every instruction set. The including file defines, in an anonymous namespace of shoal:
//   Line, an accumulator; Line none(); Line take(Line, const std::uint8_t*), which loads 64 bytes; std::uint64_t fold(Line)
#pragma once

#if defined(_MSC_VER)
#include <intrin.h>
#define SHOAL_UNROLL(n)
#define SHOAL_DOT(sum, x, y, intrinsic) sum = intrinsic(sum, x, y)
#else
#define SHOAL_PRAGMA(text) _Pragma(#text)
#define SHOAL_UNROLL(n) SHOAL_PRAGMA(GCC unroll n)
// By instruction: from the intrinsic GCC 12 makes copies and spills, which halve the rate.
#define SHOAL_DOT(sum, x, y, intrinsic) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y))
#endif

namespace shoal {
namespace {

constexpr std::size_t kAhead = 8 * 1024;  // the prefetch distance at which one core reads fastest

inline void prefetch(const std::uint8_t* p) {
#if defined(_MSC_VER)
#if defined(_M_X64)
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
#endif
#else
  __builtin_prefetch(p);
#endif
}

// One stream, four lines a turn.
std::uint64_t read_sequential(const std::uint8_t* data, std::size_t bytes, bool ahead) {
  Line a = none(), b = none(), c = none(), d = none();
  const std::uint8_t* const end = data + bytes;
  for (const std::uint8_t* p = data; p != end; p += 256) {
    if (ahead) {  // beyond the end a prefetch is harmless
      prefetch(p + kAhead);
      prefetch(p + kAhead + 64);
      prefetch(p + kAhead + 128);
      prefetch(p + kAhead + 192);
    }
    a = take(a, p);
    b = take(b, p + 64);
    c = take(c, p + 128);
    d = take(d, p + 192);
  }
  return fold(a) | fold(b) | fold(c) | fold(d);
}

// Four streams, a line of each a turn.
std::uint64_t read_four_streams(const std::uint8_t* data, std::size_t bytes, bool ahead) {
  Line a = none(), b = none(), c = none(), d = none();
  const std::size_t quarter = bytes / 4;
  const std::uint8_t* const end = data + quarter;
  for (const std::uint8_t* p = data; p != end; p += 64) {
    if (ahead) {
      prefetch(p + kAhead);
      prefetch(p + quarter + kAhead);
      prefetch(p + 2 * quarter + kAhead);
      prefetch(p + 3 * quarter + kAhead);
    }
    a = take(a, p);
    b = take(b, p + quarter);
    c = take(c, p + 2 * quarter);
    d = take(d, p + 3 * quarter);
  }
  return fold(a) | fold(b) | fold(c) | fold(d);
}

std::uint64_t read(const std::uint8_t* data, std::size_t bytes, ReadLoop loop) {
  switch (loop) {
    case ReadLoop::kSequential: return read_sequential(data, bytes, false);
    case ReadLoop::kSequentialPrefetch: return read_sequential(data, bytes, true);
    case ReadLoop::kFourStreams: return read_four_streams(data, bytes, false);
    default: return read_four_streams(data, bytes, true);
  }
}

}  // namespace
}  // namespace shoal
