// Tiles for the 256-bit form of AVX-512 VNNI.
#define SHOAL_VEX ""
#define SHOAL_DPBUSD _mm256_dpbusd_epi32
#include "tiled/vnni256.h"

namespace shoal {

extern const TiledKernels tiled_evexvnni = {{multiply<Int4>, multiply<Int8>, multiply<Bf16>}};

}  // namespace shoal
