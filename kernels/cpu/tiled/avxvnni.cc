// Tiles for AVX-VNNI, which has the dot product in VEX encoding.
#define SHOAL_VEX "%{vex%} "
#define SHOAL_DPBUSD _mm256_dpbusd_avx_epi32
#include "tiled/vnni256.h"

namespace shoal {

extern const TiledKernels tiled_avxvnni = {{multiply<Int4>, multiply<Int8>, multiply<Bf16>}};

}  // namespace shoal
