/* Row operations for AVX2 + FMA. */
#include "tensor/simd_avx2.h"

#include "tensor/ops_simd.h"

const struct ops_table ops_avx2 = OPS_SIMD_TABLE;
