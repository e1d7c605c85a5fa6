// Chooses the table of kernels: asks the processor (and the operating system, which must save the wide registers) once.
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(SHOAL_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace shoal {
namespace {

#if defined(SHOAL_X86)

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

constexpr bool all(std::uint32_t bits, std::uint32_t wanted) { return (bits & wanted) == wanted; }

struct Processor {
  bool avx2 = false, avxvnni = false, evexvnni = false, avx512 = false;

  Processor() {
    constexpr std::uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;  // leaf 1, ECX
    constexpr std::uint32_t kAvx2 = 1u << 5;                                                          // leaf 7, EBX
    constexpr std::uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // leaf 7, EBX: F, DQ, BW, VL
    constexpr std::uint32_t kVbmi = 1u << 1, kVnni = 1u << 11;                    // leaf 7, ECX
    constexpr std::uint32_t kAvxVnni = 1u << 4;                                   // leaf 7, subleaf 1, EAX
    constexpr std::uint64_t kXmmYmm = 0x6, kOpmaskZmm = 0xe0;
    if (!all(cpuid(1, 0).ecx, kFma | kOsxsave | kAvx | kF16c)) return;
    const std::uint64_t saved = saved_register_files();
    const Registers seven = cpuid(7, 0);
    avx2 = (saved & kXmmYmm) == kXmmYmm && all(seven.ebx, kAvx2);
    avxvnni = avx2 && seven.eax >= 1 && all(cpuid(7, 1).eax, kAvxVnni);
    const bool zmm = avx2 && (saved & kOpmaskZmm) == kOpmaskZmm && all(seven.ebx, kAvx512);
    evexvnni = zmm && all(seven.ecx, kVnni);
    avx512 = evexvnni && all(seven.ecx, kVbmi);
  }
};

constexpr Kernels kAvx512Table = {"avx512",          &direct_avx512, &tiled_avx512, &delta_avx512,
                                  &attention_avx512, &rows_avx512,   &limits_avx512, &vector_avx512};
constexpr Kernels kAvxVnniTable = {"avxvnni",       &direct_avxvnni, &tiled_avxvnni, &delta_avx2,
                                   &attention_avx2, &rows_avx2,      &limits_avxvnni, &vector_avx2};
constexpr Kernels kEvexVnniTable = {"avxvnni",       &direct_evexvnni, &tiled_evexvnni, &delta_avx2,
                                    &attention_avx2, &rows_avx2,       &limits_evexvnni, &vector_avx2};
constexpr Kernels kAvx2Table = {"avx2",          &direct_avx2, &tiled_avx2, &delta_avx2,
                                &attention_avx2, &rows_avx2,   &limits_avx2, &vector_avx2};

#endif  // SHOAL_X86

constexpr Kernels kScalarTable = {"scalar",          &direct_scalar, &tiled_scalar, &delta_scalar,
                                  &attention_scalar, &rows_scalar,   &limits_scalar, &vector_scalar};

constexpr std::size_t kMaxTables = 8;

struct Available {
  const Kernels* tables[kMaxTables + 1] = {};
  std::size_t num = 0;

  void add(const Kernels& table) { tables[num++] = &table; }

  Available() {
#if defined(SHOAL_X86)
    const Processor processor;
    if (processor.avx512) add(kAvx512Table);
    if (processor.avxvnni) {
      add(kAvxVnniTable);
    } else if (processor.evexvnni) {
      add(kEvexVnniTable);
    }
    if (processor.avx2) add(kAvx2Table);
#endif
    add(kScalarTable);
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
