// Counts what this module takes from the heap with `operator new`, by thread: the proof that a step takes nothing.
#pragma once

#include <cstddef>

namespace shoal {

// False where the sanitizers bring their own allocator.
bool counts_allocations();

// Allocations of the calling thread so far.
std::size_t num_allocations();

}  // namespace shoal
