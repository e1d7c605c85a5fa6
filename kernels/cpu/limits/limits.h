// What the machine can do at most: loops that do nothing but read, or nothing but multiply and add. A kernel's speed is
// judged against these, measured in the same minutes, because a shared machine changes by the hour.
//
// No entry is part of the engine. A loop that some kernel outruns is a wrong limit: there are several ways to read (the
// best counts), and enough independent chains of products to hide every latency.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

enum class ReadLoop : int { kSequential, kSequentialPrefetch, kFourStreams, kFourStreamsPrefetch };
constexpr int kReadLoops = 4;
constexpr std::size_t kReadGrain = 1024;  // a read's bytes are a multiple of this

struct LimitKernels {
  // Loads every byte of [data, data + bytes) once. What it returns only keeps the loads alive.
  std::uint64_t (*read)(const std::uint8_t* data, std::size_t bytes, ReadLoop loop);

  // `rounds` rounds of products of 8-bit integers summed in registers, and of f32 multiply-adds. A multiply and an add
  // are two operations. On AVX2 the products are summed in 16 bits, which a kernel must widen now and then: an upper bound.
  std::uint64_t (*dot_int8)(std::size_t rounds);
  std::uint64_t (*fma_f32)(std::size_t rounds);
  std::size_t dot_int8_operations, fma_f32_operations;  // of one round
};

}  // namespace shoal
