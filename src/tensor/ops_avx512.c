/* Row operations for AVX-512. */
#include "tensor/simd_avx512.h"

#include "tensor/ops_simd.h"

const struct ops_table ops_avx512 = OPS_SIMD_TABLE;
