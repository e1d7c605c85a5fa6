// vpdpbusd ymm in the VEX encoding: 32 products an instruction.
#include <immintrin.h>

#define SHOAL_DPBUSD _mm256_dpbusd_avx_epi32
#define SHOAL_LIMITS limits_avxvnni
#include "limits/vnni256.h"
