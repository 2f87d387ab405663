/* Block formats to f32. The products are rounded in the order that the formats' definition
 * implies (scale first, then value), so every implementation of it gives the same floats. */
#include "tensor/quant.h"

#include "tensor/blocks.h"
#include "tensor/tensor.h"

static float load_f16(const uint8_t bytes[2]) {
    return f16_to_f32(load_u16(bytes));
}

/* ------------------------------------------------------- blocks of 32 */

void q4_0_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q4_0 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++, out += QUANT_BLOCK) {
        float d = load_f16(block->d);
        for (int j = 0; j < 16; j++) {
            out[j] = (float)((block->qs[j] & 15) - 8) * d;
            out[j + 16] = (float)((block->qs[j] >> 4) - 8) * d;
        }
    }
}

void q4_1_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q4_1 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++, out += QUANT_BLOCK) {
        float d = load_f16(block->d), m = load_f16(block->m);
        for (int j = 0; j < 16; j++) {
            out[j] = (float)(block->qs[j] & 15) * d + m;
            out[j + 16] = (float)(block->qs[j] >> 4) * d + m;
        }
    }
}

void q5_0_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q5_0 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++, out += QUANT_BLOCK) {
        float d = load_f16(block->d);
        uint32_t high = load_u32(block->qh);
        for (int j = 0; j < 16; j++) {
            int low_q = (block->qs[j] & 15) | (int)((high >> j) & 1) << 4;
            int high_q = (block->qs[j] >> 4) | (int)((high >> (j + 16)) & 1) << 4;
            out[j] = (float)(low_q - 16) * d;
            out[j + 16] = (float)(high_q - 16) * d;
        }
    }
}

void q5_1_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q5_1 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++, out += QUANT_BLOCK) {
        float d = load_f16(block->d), m = load_f16(block->m);
        uint32_t high = load_u32(block->qh);
        for (int j = 0; j < 16; j++) {
            int low_q = (block->qs[j] & 15) | (int)((high >> j) & 1) << 4;
            int high_q = (block->qs[j] >> 4) | (int)((high >> (j + 16)) & 1) << 4;
            out[j] = (float)low_q * d + m;
            out[j + 16] = (float)high_q * d + m;
        }
    }
}

void q8_0_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q8_0 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++, out += QUANT_BLOCK) {
        float d = load_f16(block->d);
        for (int j = 0; j < 32; j++) out[j] = (float)block->qs[j] * d;
    }
}

/* ------------------------------------------------- super-blocks of 256 */

void q2_k_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q2_k *block = blocks;
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        float d = load_f16(block->d), dmin = load_f16(block->dmin);
        for (int j = 0; j < SUPER_BLOCK; j++) {
            int quarter = j / 32;
            int q = (block->qs[quarter / 4 * 32 + j % 32] >> (quarter % 4 * 2)) & 3;
            uint8_t scale = block->scales[j / 16];
            out[j] = d * (float)(scale & 15) * (float)q - dmin * (float)(scale >> 4);
        }
    }
}

static int q3_k_scale(const uint8_t scales[12], int group) {
    int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    int high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
    return (low | high << 4) - 32;
}

void q3_k_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q3_k *block = blocks;
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        float d = load_f16(block->d);
        for (int j = 0; j < SUPER_BLOCK; j++) {
            int quarter = j / 32;
            int q = (block->qs[quarter / 4 * 32 + j % 32] >> (quarter % 4 * 2)) & 3;
            if (!((block->hmask[j % 32] >> quarter) & 1)) q -= 4;
            out[j] = d * (float)q3_k_scale(block->scales, j / 16) * (float)q;
        }
    }
}

void q4_k_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q4_k *block = blocks;
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        float d = load_f16(block->d), dmin = load_f16(block->dmin);
        for (int g = 0; g < 8; g++) {
            uint8_t scale, min;
            scale_min_get(block->scales, g, &scale, &min);
            float group_d = d * scale, group_m = dmin * min;
            const uint8_t *qs = block->qs + g / 2 * 32;
            int shift = g % 2 * 4;
            for (int j = 0; j < 32; j++) out[g * 32 + j] = group_d * (float)((qs[j] >> shift) & 15) - group_m;
        }
    }
}

void q5_k_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q5_k *block = blocks;
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        float d = load_f16(block->d), dmin = load_f16(block->dmin);
        for (int g = 0; g < 8; g++) {
            uint8_t scale, min;
            scale_min_get(block->scales, g, &scale, &min);
            float group_d = d * scale, group_m = dmin * min;
            const uint8_t *qs = block->qs + g / 2 * 32;
            int shift = g % 2 * 4;
            for (int j = 0; j < 32; j++) {
                int q = ((qs[j] >> shift) & 15) | ((block->qh[j] >> g) & 1) << 4;
                out[g * 32 + j] = group_d * (float)q - group_m;
            }
        }
    }
}

void q6_k_to_f32(const void *blocks, float *out, int64_t count) {
    const struct block_q6_k *block = blocks;
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        float d = load_f16(block->d);
        for (int quarter = 0; quarter < 8; quarter++) {
            const uint8_t *ql = block->ql + quarter / 4 * 64 + quarter % 2 * 32;
            const uint8_t *qh = block->qh + quarter / 4 * 32;
            int low_shift = quarter % 4 / 2 * 4, high_shift = quarter % 4 * 2;
            for (int j = 0; j < 32; j++) {
                int q = ((ql[j] >> low_shift) & 15) | ((qh[j] >> high_shift) & 3) << 4;
                out[quarter * 32 + j] = d * (float)block->scales[quarter * 2 + j / 16] * (float)(q - 32);
            }
        }
    }
}
