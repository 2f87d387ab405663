/* Row operations in plain C. */
#include "tensor/simd_scalar.h"

#include "tensor/ops_simd.h"

const struct ops_table ops_scalar = OPS_SIMD_TABLE;
