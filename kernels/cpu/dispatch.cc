// Chooses the table of kernels: asks the processor (and the operating system, which must save the wide registers) once.
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(SHOAL_HAVE_AVX2)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace shoal {
namespace {

#if defined(SHOAL_HAVE_AVX2)

struct Registers {
  std::uint32_t eax, ebx, ecx, edx;
};

// All zeros where the processor does not know the leaf.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  Registers r = {0, 0, 0, 0};
#if defined(_MSC_VER)
  int out[4];
  __cpuid(out, 0);
  if (static_cast<std::uint32_t>(out[0]) < leaf) return r;
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<std::uint32_t>(out[0]), static_cast<std::uint32_t>(out[1]), static_cast<std::uint32_t>(out[2]),
       static_cast<std::uint32_t>(out[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// XCR0: which register files the operating system saves. Legal only where CPUID reports OSXSAVE.
std::uint64_t saved_register_files() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  std::uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

bool has_avx2() {
  constexpr std::uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28;  // leaf 1, ECX
  constexpr std::uint32_t kAvx2 = 1u << 5;                                        // leaf 7, EBX
  constexpr std::uint64_t kXmmYmm = 0x6;
  const std::uint32_t wanted = kFma | kOsxsave | kAvx;
  if ((cpuid(1, 0).ecx & wanted) != wanted) return false;
  if ((saved_register_files() & kXmmYmm) != kXmmYmm) return false;
  return (cpuid(7, 0).ebx & kAvx2) != 0;
}

#endif  // SHOAL_HAVE_AVX2

constexpr std::size_t kMaxTables = 8;

struct Available {
  const Kernels* tables[kMaxTables + 1] = {};
  std::size_t num = 0;

  void add(const Kernels* table) { tables[num++] = table; }

  Available() {
#if defined(SHOAL_HAVE_AVX2)
    if (has_avx2()) add(&kernels_avx2);
#endif
    add(&kernels_scalar);
  }
};

}  // namespace

const Kernels* const* available_kernels() {
  static const Available available;
  return available.tables;
}

const Kernels* find_kernels(const char* isa) {
  const Kernels* const* table = available_kernels();
  if (std::strcmp(isa, "auto") == 0) return *table;
  for (; *table != nullptr; ++table) {
    if (std::strcmp((*table)->isa, isa) == 0) return *table;
  }
  return nullptr;
}

}  // namespace shoal
