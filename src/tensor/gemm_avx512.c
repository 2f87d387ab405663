/* Products of training for AVX-512: 12 x 32 elements in 24 of 32 registers. */
#include "tensor/simd_avx512.h"

#include "tensor/training_tables.h"

#define MICRO_ROWS 12
#include "tensor/gemm_simd.h"

void gemm_avx512(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch) {
    gemm(args, m0, m1, n0, n1, scratch);
}
