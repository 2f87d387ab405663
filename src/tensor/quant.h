/* Decoders and encoders of the quantised types, rows of dtype_table. Signatures
 * and rules are those of struct dtype_info. */
#ifndef TENSOR_QUANT_H
#define TENSOR_QUANT_H

#include <stdint.h>

void q4_0_to_f32(const void *blocks, float *out, int64_t count);
void q4_1_to_f32(const void *blocks, float *out, int64_t count);
void q5_0_to_f32(const void *blocks, float *out, int64_t count);
void q5_1_to_f32(const void *blocks, float *out, int64_t count);
void q8_0_to_f32(const void *blocks, float *out, int64_t count);
void q2_k_to_f32(const void *blocks, float *out, int64_t count);
void q3_k_to_f32(const void *blocks, float *out, int64_t count);
void q4_k_to_f32(const void *blocks, float *out, int64_t count);
void q5_k_to_f32(const void *blocks, float *out, int64_t count);
void q6_k_to_f32(const void *blocks, float *out, int64_t count);

void q4_0_from_f32(const float *x, const float *importance, void *blocks, int64_t count);
void q5_0_from_f32(const float *x, const float *importance, void *blocks, int64_t count);
void q5_1_from_f32(const float *x, const float *importance, void *blocks, int64_t count);
void q8_0_from_f32(const float *x, const float *importance, void *blocks, int64_t count);
void q4_k_from_f32(const float *x, const float *importance, void *blocks, int64_t count);
void q5_k_from_f32(const float *x, const float *importance, void *blocks, int64_t count);
void q6_k_from_f32(const float *x, const float *importance, void *blocks, int64_t count);

#endif
