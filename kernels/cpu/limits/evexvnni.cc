// vpdpbusd ymm in the EVEX encoding: 32 products an instruction, 2 a cycle on Zen 4.
#include <immintrin.h>

#define SHOAL_DPBUSD _mm256_dpbusd_epi32
#define SHOAL_LIMITS limits_evexvnni
#include "limits/vnni256.h"
