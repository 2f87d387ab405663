/* Private to room tensor: row operations and attention of each instruction
 * set, from which kernels.c assembles struct kernels; fields as documented
 * there. Written once, in ops_simd.h and attention_simd.h, over the vocabulary
 * of simd_scalar.h, simd_avx2.h or simd_avx512.h. Symbols of sources that are
 * compiled a second time through SIMDe (SHU_EMULATED) are renamed here. */
#ifndef TENSOR_OPS_H
#define TENSOR_OPS_H

#include "tensor/tensor.h"

#ifdef SHU_EMULATED
#define ops_avx512       ops_avx512_emulated
#define attention_avx512 attention_avx512_emulated
#endif

struct ops_table {
    void (*rms_norm)(const float *x, const float *gain, float eps, int64_t cols, float *y);
    void (*layer_norm)(const float *x, const float *gain, const float *bias, float eps, int64_t cols, float *y);
    void (*softmax)(const float *x, float scale, int64_t cols, float *y);
    void (*unary)(enum unary_kind kind, const float *x, int64_t count, float *y);
    void (*gated)(enum unary_kind kind, const float *gate, const float *up, int64_t count, float *y);
    void (*add)(const float *a, const float *b, int64_t count, float *y);
    void (*mul)(const float *a, const float *b, int64_t count, float *y);
    void (*scale)(const float *x, float factor, int64_t count, float *y);
    void (*softcap)(const float *x, float cap, int64_t count, float *y);
    void (*rope)(float *x, int heads, int head_dim, int rot, bool neox, const float *cos_sin);
};

struct attention_table {
    void (*kv_store)(const struct kv_step *step, int layer, int64_t row, const float *k, const float *v);
    void (*attention)(const struct attention_args *args, int64_t row0, int64_t row1, int head0, int head1,
                      void *scratch);
};

extern const struct ops_table ops_scalar, ops_avx2, ops_avx512;
extern const struct attention_table attention_scalar, attention_avx2, attention_avx512;
#ifdef SHU_EMULATE_AVX512
extern const struct ops_table ops_avx512_emulated;
extern const struct attention_table attention_avx512_emulated;
#endif

#endif
