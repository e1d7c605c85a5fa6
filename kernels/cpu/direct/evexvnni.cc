// Few-row products for AVX-512 VL and VNNI (EVEX encoding), 256-bit registers.
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vector/avx2.h"
#include "vector/functions.h"

#include "direct/x86.h"
#include "direct/ymm.h"

namespace shoal {
namespace {

inline __m256i dpbusd(__m256i sum, __m256i u8, __m256i s8) { return _mm256_dpbusd_epi32(sum, u8, s8); }
inline __m256i dpwssd(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sum, a, b); }

}  // namespace
}  // namespace shoal

#include "direct/vnni256.h"
#include "direct/panels.h"
#include "direct/quantise.h"

namespace shoal {

const DirectKernels direct_evexvnni = {quantise,
    {multiply<Format::kInt4>, multiply<Format::kInt8>, multiply<Format::kBf16>}};

}  // namespace shoal
