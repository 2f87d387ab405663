/* The table of number formats, scalar conversions, and the size rules of plain views. */
#include <string.h>
#include <strings.h>

#include "tensor/blocks.h"
#include "tensor/quant.h"
#include "tensor/tensor.h"

/* ------------------------------------------------------- scalar conversions */

static uint32_t f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) return f32_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude >= 0x0400) return f32_from_bits(sign | ((magnitude << 13) + (112u << 23)));
    float value = (float)magnitude * 0x1p-24f; /* subnormal halves are exact in f32 */
    return f32_from_bits(sign | f32_bits(value));
}

uint16_t f32_to_f16(float value) {
    uint32_t bits = f32_bits(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff)); /* quiet NaN */
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and up round to infinity */
    if (magnitude < 0x38800000) {
        /* Adding 0.5 makes the FPU round at the subnormal half's last bit, 2^-24. */
        float shifted = f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (f32_bits(shifted) - 0x3f000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - (112u << 23) + 0xfff + odd) >> 13));
}

float bf16_to_f32(uint16_t value) {
    return f32_from_bits((uint32_t)value << 16);
}

uint16_t f32_to_bf16(float value) {
    uint32_t bits = f32_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ------------------------------------------------------------- plain types */

static void f32_copy_out(const void *blocks, float *out, int64_t count) {
    memcpy(out, blocks, (size_t)count * sizeof *out);
}

static void f32_copy_in(const float *values, const float *importance, void *blocks, int64_t count) {
    (void)importance;
    memcpy(blocks, values, (size_t)count * sizeof *values);
}

static void f16_decode(const void *blocks, float *out, int64_t count) {
    const uint8_t *in = blocks;
    for (int64_t i = 0; i < count; i++) out[i] = f16_to_f32(load_u16(in + 2 * i));
}

static void f16_encode(const float *values, const float *importance, void *blocks, int64_t count) {
    (void)importance;
    uint8_t *out = blocks;
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = f32_to_f16(values[i]);
        memcpy(out + 2 * i, &half, 2);
    }
}

static void bf16_decode(const void *blocks, float *out, int64_t count) {
    const uint8_t *in = blocks;
    for (int64_t i = 0; i < count; i++) out[i] = bf16_to_f32(load_u16(in + 2 * i));
}

static void bf16_encode(const float *values, const float *importance, void *blocks, int64_t count) {
    (void)importance;
    uint8_t *out = blocks;
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits = f32_to_bf16(values[i]);
        memcpy(out + 2 * i, &bits, 2);
    }
}

/* ------------------------------------------------------------------- table */

const struct dtype_info dtype_table[DT_COUNT] = {
    [DT_F32] = {"F32", 0, 1, 4, f32_copy_out, f32_copy_in},
    [DT_F16] = {"F16", 1, 1, 2, f16_decode, f16_encode},
    [DT_BF16] = {"BF16", 30, 1, 2, bf16_decode, bf16_encode},
    [DT_Q4_0] = {"Q4_0", 2, QUANT_BLOCK, sizeof(struct block_q4_0), q4_0_to_f32, q4_0_from_f32},
    [DT_Q4_1] = {"Q4_1", 3, QUANT_BLOCK, sizeof(struct block_q4_1), q4_1_to_f32, NULL},
    [DT_Q5_0] = {"Q5_0", 6, QUANT_BLOCK, sizeof(struct block_q5_0), q5_0_to_f32, q5_0_from_f32},
    [DT_Q5_1] = {"Q5_1", 7, QUANT_BLOCK, sizeof(struct block_q5_1), q5_1_to_f32, q5_1_from_f32},
    [DT_Q8_0] = {"Q8_0", 8, QUANT_BLOCK, sizeof(struct block_q8_0), q8_0_to_f32, q8_0_from_f32},
    [DT_Q2_K] = {"Q2_K", 10, SUPER_BLOCK, sizeof(struct block_q2_k), q2_k_to_f32, NULL},
    [DT_Q3_K] = {"Q3_K", 11, SUPER_BLOCK, sizeof(struct block_q3_k), q3_k_to_f32, NULL},
    [DT_Q4_K] = {"Q4_K", 12, SUPER_BLOCK, sizeof(struct block_q4_k), q4_k_to_f32, q4_k_from_f32},
    [DT_Q5_K] = {"Q5_K", 13, SUPER_BLOCK, sizeof(struct block_q5_k), q5_k_to_f32, q5_k_from_f32},
    [DT_Q6_K] = {"Q6_K", 14, SUPER_BLOCK, sizeof(struct block_q6_k), q6_k_to_f32, q6_k_from_f32},
    [DT_I32] = {"I32", 26, 1, 4, NULL, NULL},
    [DT_ACT8] = {"ACT8", -1, ACT8_BLOCK, 0, NULL, NULL},
};

int dtype_from_ggml(uint32_t ggml_type) {
    for (int i = 0; i < DT_COUNT; i++)
        if (dtype_table[i].ggml_type >= 0 && (uint32_t)dtype_table[i].ggml_type == ggml_type) return i;
    return -1;
}

int dtype_from_name(const char *name) {
    for (int i = 0; i < DT_COUNT; i++)
        if (strcasecmp(dtype_table[i].name, name) == 0) return i;
    return -1;
}

size_t dtype_row_bytes(enum dtype dtype, int64_t cols) {
    if (dtype == DT_ACT8) return act8_row_bytes(cols);
    const struct dtype_info *info = &dtype_table[dtype];
    size_t bytes;
    if (cols < 0 || cols % info->block != 0) return 0;
    return size_mul((size_t)(cols / info->block), (size_t)info->block_bytes, &bytes) ? 0 : bytes;
}

int64_t tensor_rows(const struct tensor *tensor) {
    return tensor->shape[1] * tensor->shape[2] * tensor->shape[3];
}

size_t tensor_bytes(const struct tensor *tensor) {
    return (size_t)tensor_rows(tensor) * dtype_row_bytes(tensor->dtype, tensor->shape[0]);
}
