/* Private to room tensor: the products of matmul_q_avx2.c and matmul_f_avx2.c, gathered in matmul_avx2.c. */
#ifndef TENSOR_MATMUL_AVX2_H
#define TENSOR_MATMUL_AVX2_H

#include "tensor/kernels.h"

matmul_fn matmul_q4_0_avx2, matmul_q4_1_avx2, matmul_q5_0_avx2, matmul_q5_1_avx2, matmul_q8_0_avx2;
matmul_fn matmul_q2_k_avx2, matmul_q3_k_avx2, matmul_q4_k_avx2, matmul_q5_k_avx2, matmul_q6_k_avx2;
matmul_fn matmul_f32_avx2, matmul_f16_avx2, matmul_bf16_avx2;

#endif
