/* Products of training on pairs of bf16 for AVX512_BF16: operands rounded to bf16, sums in f32. The instruction adds
 * the product of the second elements, then of the first ones, each rounded once (Intel SDM, VDPBF16PS), and takes
 * subnormal operands and results for zero. */
#include "tensor/simd_avx512.h"

#include "tensor/training_tables.h"

#define MICRO_ROWS                12
#define GEMM_PAIRS                1
#define MICRO_FMA(factor, b, sum) dot_pairs(factor, b, sum)

#ifdef SHU_EMULATED
static __attribute__((noinline)) vec dot_pairs(vec a, vec b, vec sum) {
    uint32_t left[SIMD_LANES], right[SIMD_LANES];
    float out[SIMD_LANES];
    memcpy(left, &a, sizeof left);
    memcpy(right, &b, sizeof right);
    v_store(out, sum);
    for (int i = 0; i < SIMD_LANES; i++) {
        out[i] += bf16_to_f32((uint16_t)(left[i] >> 16)) * bf16_to_f32((uint16_t)(right[i] >> 16));
        out[i] += bf16_to_f32((uint16_t)left[i]) * bf16_to_f32((uint16_t)right[i]);
    }
    return v_load(out);
}
#else
SIMD_INLINE vec dot_pairs(vec a, vec b, vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif

#include "tensor/gemm_simd.h"

void gemm_bf16_avx512(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch) {
    gemm(args, m0, m1, n0, n1, scratch);
}
