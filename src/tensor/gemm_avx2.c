/* Products of training for AVX2: 6 x 16 elements in twelve of sixteen registers. */
#include "tensor/simd_avx2.h"

#include "tensor/training_tables.h"

#define MICRO_ROWS 6
#include "tensor/gemm_simd.h"

void gemm_avx2(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch) {
    gemm(args, m0, m1, n0, n1, scratch);
}
