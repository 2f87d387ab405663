/* Private to room tensor: the training kernels of each instruction set, from which kernels.c assembles struct
 * kernels, and the hash behind everything that training draws at random.
 *
 * Randomness is counted, not streamed: a number depends on a seed and on a place (row, column, index of a value),
 * so neither threads nor tiles nor the instruction set change it, and there is no state to save. */
#ifndef TENSOR_TRAINING_TABLES_H
#define TENSOR_TRAINING_TABLES_H

#include "tensor/tensor.h"

extern const struct training_kernels training_scalar, training_avx2;

/* The products and attention of the scalar reference; the rest of training_scalar is in training_scalar.c. */
void gemm_scalar(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch);
void sdpa_forward_scalar(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);
void sdpa_backward_q_scalar(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);
void sdpa_backward_kv_scalar(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);

/* The same for AVX2, and the rest in training_avx2.c. */
void gemm_avx2(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch);
void sdpa_forward_avx2(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);
void sdpa_backward_q_avx2(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);
void sdpa_backward_kv_avx2(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);

/* AVX-512 has products of its own, and those of bf16 where the processor has AVX512_BF16; the rest is AVX2's. */
#ifdef SHU_EMULATED
#define gemm_avx512      gemm_avx512_emulated
#define gemm_bf16_avx512 gemm_bf16_avx512_emulated
#endif
void gemm_avx512(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch);
void gemm_bf16_avx512(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch);
#ifdef SHU_EMULATE_AVX512
void gemm_avx512_emulated(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch);
void gemm_bf16_avx512_emulated(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                               void *scratch);
#endif

/* ----------------------------------------------------------------- numbers by counter */

/* 64 bits of (seed, place): the finaliser of splitmix64 (Steele, Lea & Flood 2014) over a Weyl step. */
static inline uint64_t counter_key(uint64_t seed, uint64_t place) {
    uint64_t z = seed + UINT64_C(0x9e3779b97f4a7c15) * (place + 1);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* 32 bits of (key, index): two rounds of a 32-bit mixer (Wellons' "lowbias32" constants), one half of the key
 * before each. 32-bit steps only, so that eight lanes of AVX2 do the same. */
#define COUNTER_MIX_1 0x7feb352du
#define COUNTER_MIX_2 0x846ca68bu
static inline uint32_t counter_mix(uint32_t x) {
    x = (x ^ x >> 16) * COUNTER_MIX_1;
    x = (x ^ x >> 15) * COUNTER_MIX_2;
    return x ^ x >> 16;
}
static inline uint32_t counter_bits(uint64_t key, uint32_t index) {
    return counter_mix(counter_mix(index + (uint32_t)key) ^ (uint32_t)(key >> 32));
}

/* Values of a tensor share a key in runs of this many. */
#define ADAMW_RUN (INT64_C(1) << 20)

#endif
