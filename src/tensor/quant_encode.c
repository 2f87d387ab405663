/* f32 to block formats. Scales are found by weighted least squares (quant_search.h); every value is then
 * rounded against the scale as it will be read back, so f16 and 6-bit scales cost no second error. Weights
 * of errors are the caller's importance, or 1: the plain root mean square error is what is minimised. */
#include "tensor/quant.h"

#include <math.h>
#include <string.h>

#include "tensor/blocks.h"
#include "tensor/quant_search.h"
#include "tensor/tensor.h"

/* Stores a scale as f16; returns what a reader will see. */
static float put_f16(float value, uint8_t out[2]) {
    uint16_t half = f32_to_f16(value);
    memcpy(out, &half, sizeof half);
    return f16_to_f32(half);
}

/* Weights of `count` elements; all ones without importance, and where importance says nothing. */
static void weights_fill(const float *importance, int count, float *w) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        w[i] = importance ? importance[i] : 1.0f;
        sum += (double)w[i];
    }
    if (sum > 0 && isfinite(sum)) return;
    for (int i = 0; i < count; i++) w[i] = 1.0f;
}

/* ------------------------------------------------------- blocks of 32 */

/* Four low bits of 32 values (already offset to be >= 0) into nibbles, the fifth into qh. */
static void pack_nibbles(const float *q, int offset, uint8_t qs[16], uint8_t qh[4]) {
    uint32_t high = 0;
    for (int j = 0; j < 16; j++) {
        uint32_t a = (uint32_t)((int)q[j] + offset), b = (uint32_t)((int)q[j + 16] + offset);
        qs[j] = (uint8_t)((a & 15) | (b & 15) << 4);
        high |= (a >> 4 & 1) << j | (b >> 4 & 1) << (j + 16);
    }
    if (qh) memcpy(qh, &high, 4);
}

void q4_0_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q4_0 *block = blocks;
    float w[QUANT_BLOCK], q[QUANT_BLOCK];
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++) {
        weights_fill(importance ? importance + i : NULL, QUANT_BLOCK, w);
        float d = put_f16(search_scale(x + i, w, QUANT_BLOCK, -8, 7), block->d);
        quantize_with(x + i, w, QUANT_BLOCK, d, 0, -8, 7, q);
        pack_nibbles(q, 8, block->qs, NULL);
    }
}

void q5_0_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q5_0 *block = blocks;
    float w[QUANT_BLOCK], q[QUANT_BLOCK];
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++) {
        weights_fill(importance ? importance + i : NULL, QUANT_BLOCK, w);
        float d = put_f16(search_scale(x + i, w, QUANT_BLOCK, -16, 15), block->d);
        quantize_with(x + i, w, QUANT_BLOCK, d, 0, -16, 15, q);
        pack_nibbles(q, 16, block->qs, block->qh);
    }
}

void q5_1_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q5_1 *block = blocks;
    float w[QUANT_BLOCK], q[QUANT_BLOCK];
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++) {
        weights_fill(importance ? importance + i : NULL, QUANT_BLOCK, w);
        struct affine fit = search_affine(x + i, w, QUANT_BLOCK, 31, 0);
        float d = put_f16(fit.scale, block->d), m = put_f16(fit.min, block->m);
        quantize_with(x + i, w, QUANT_BLOCK, d, m, 0, 31, q);
        pack_nibbles(q, 0, block->qs, block->qh);
    }
}

void q8_0_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q8_0 *block = blocks;
    float w[QUANT_BLOCK], q[QUANT_BLOCK];
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++) {
        weights_fill(importance ? importance + i : NULL, QUANT_BLOCK, w);
        float d = put_f16(search_scale(x + i, w, QUANT_BLOCK, -127, 127), block->d);
        quantize_with(x + i, w, QUANT_BLOCK, d, 0, -127, 127, q);
        for (int j = 0; j < QUANT_BLOCK; j++) block->qs[j] = (int8_t)q[j];
    }
}

/* ------------------------------------------------- super-blocks of 256 */

/* Q4_K and Q5_K before packing: eight groups of 32, y = d * scale * q - dmin * min. */
struct super_affine {
    float d, dmin; /* as f16 will hold them */
    int scale[8], min[8];
    float q[SUPER_BLOCK];
    float error;
};

static float f16_round(float value) {
    return f16_to_f32(f32_to_f16(value));
}

static int clamp_round(float value, int low, int high) {
    float r = nearbyintf(value);
    if (!(r > (float)low)) return low; /* NaN too */
    return r < (float)high ? (int)r : high;
}

/* The best of the nine neighbouring pairs of a group's 6-bit scale and minimum, with its values. */
static float group_refine(const float *x, const float *w, int high, struct super_affine *s, int g, int scale, int min) {
    float least = INFINITY, q[32];
    for (int a = scale - 1; a <= scale + 1; a++) {
        for (int b = min - 1; b <= min + 1; b++) {
            if (a < 0 || a > 63 || b < 0 || b > 63) continue;
            float error = quantize_with(x, w, 32, s->d * (float)a, -s->dmin * (float)b, 0, high, q);
            if (!(error < least)) continue;
            least = error;
            s->scale[g] = a, s->min[g] = b;
            memcpy(s->q + g * 32, q, sizeof q);
        }
    }
    return least;
}

/* Best (d, dmin) for given integers: normal equations over u = scale * q and v = -min. */
static void super_solve(const float *x, const float *w, struct super_affine *s) {
    double uu = 0, uv = 0, vv = 0, ux = 0, vx = 0;
    for (int i = 0; i < SUPER_BLOCK; i++) {
        double u = (double)(s->q[i] * (float)s->scale[i / 32]), v = -(double)s->min[i / 32];
        double weight = (double)w[i];
        uu += weight * u * u, uv += weight * u * v, vv += weight * v * v;
        ux += weight * u * (double)x[i], vx += weight * v * (double)x[i];
    }
    double det = uu * vv - uv * uv;
    if (det > 1e-9 * uu * vv) {
        s->d = f16_round((float)((ux * vv - vx * uv) / det));
        s->dmin = f16_round((float)((vx * uu - ux * uv) / det));
    } else if (uu > 0) {
        s->d = f16_round((float)((ux - uv * (double)s->dmin) / uu));
    }
}

static void super_affine_fit(const float *x, const float *w, int high, struct super_affine *best) {
    struct affine group[8];
    float top_scale = 0, top_min = 0;
    for (int g = 0; g < 8; g++) {
        group[g] = search_affine(x + g * 32, w + g * 32, 32, high, 1);
        top_scale = fmaxf(top_scale, group[g].scale);
        top_min = fmaxf(top_min, -group[g].min);
        if (isnan(group[g].scale)) top_scale = top_min = INFINITY; /* a value that is not finite spoils its block */
    }
    struct super_affine now = {.d = f16_round(top_scale / 63), .dmin = f16_round(top_min / 63), .error = 0};
    for (int pass = 0; pass < 3; pass++) {
        now.error = 0;
        for (int g = 0; g < 8; g++) {
            int scale = pass ? now.scale[g] : clamp_round(now.d > 0 ? group[g].scale / now.d : 0, 0, 63);
            int min = pass ? now.min[g] : clamp_round(now.dmin > 0 ? -group[g].min / now.dmin : 0, 0, 63);
            now.error += group_refine(x + g * 32, w + g * 32, high, &now, g, scale, min);
        }
        if (pass == 0 || now.error < best->error) *best = now;
        super_solve(x, w, &now);
        if (!(now.d > 0) || !(now.dmin >= 0)) break;
    }
}

/* The inverse of scale_min_get for all eight groups. */
static void scale_min_put(const struct super_affine *s, uint8_t packed[12]) {
    for (int g = 0; g < 4; g++) {
        packed[g] = (uint8_t)(s->scale[g] | (s->scale[g + 4] >> 4) << 6);
        packed[g + 4] = (uint8_t)(s->min[g] | (s->min[g + 4] >> 4) << 6);
        packed[g + 8] = (uint8_t)((s->scale[g + 4] & 15) | (s->min[g + 4] & 15) << 4);
    }
}

/* Low nibbles of group pairs; the fifth bits, if any, into qh. */
static void pack_pairs(const float *q, uint8_t qs[128], uint8_t qh[32]) {
    for (int i = 0; i < 128; i++) {
        const float *pair = q + i / 32 * 64 + i % 32;
        qs[i] = (uint8_t)(((int)pair[0] & 15) | ((int)pair[32] & 15) << 4);
    }
    if (!qh) return;
    memset(qh, 0, 32);
    for (int i = 0; i < SUPER_BLOCK; i++) qh[i % 32] |= (uint8_t)(((int)q[i] >> 4) << (i / 32));
}

void q4_k_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q4_k *block = blocks;
    float w[SUPER_BLOCK];
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++) {
        struct super_affine fit = {0};
        weights_fill(importance ? importance + i : NULL, SUPER_BLOCK, w);
        super_affine_fit(x + i, w, 15, &fit);
        put_f16(fit.d, block->d);
        put_f16(fit.dmin, block->dmin);
        scale_min_put(&fit, block->scales);
        pack_pairs(fit.q, block->qs, NULL);
    }
}

void q5_k_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q5_k *block = blocks;
    float w[SUPER_BLOCK];
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++) {
        struct super_affine fit = {0};
        weights_fill(importance ? importance + i : NULL, SUPER_BLOCK, w);
        super_affine_fit(x + i, w, 31, &fit);
        put_f16(fit.d, block->d);
        put_f16(fit.dmin, block->dmin);
        scale_min_put(&fit, block->scales);
        pack_pairs(fit.q, block->qs, block->qh);
    }
}

/* Q6_K before packing: sixteen groups of 16, y = d * scale * q. */
struct super_scaled {
    float d;
    int scale[16];
    float q[SUPER_BLOCK]; /* -32…31 */
    float error;
};

static void super_scaled_pass(const float *x, const float *w, struct super_scaled *s, const int *start) {
    float q[16];
    s->error = 0;
    for (int g = 0; g < 16; g++) {
        float least = INFINITY;
        int middle = start[g];
        for (int a = middle - 1; a <= middle + 1; a++) {
            if (a < -128 || a > 127) continue;
            float error = quantize_with(x + g * 16, w + g * 16, 16, s->d * (float)a, 0, -32, 31, q);
            if (!(error < least)) continue;
            least = error;
            s->scale[g] = a;
            memcpy(s->q + g * 16, q, sizeof q);
        }
        s->error += least;
    }
}

static void super_scaled_fit(const float *x, const float *w, struct super_scaled *best) {
    float scale[16], top = 0;
    int start[16];
    for (int g = 0; g < 16; g++) {
        scale[g] = search_scale(x + g * 16, w + g * 16, 16, -32, 31);
        if (!isnan(top) && !(fabsf(scale[g]) <= fabsf(top))) top = scale[g]; /* NaN wins and stays */
    }
    struct super_scaled now = {.d = f16_round(top / -128)};
    for (int g = 0; g < 16; g++) start[g] = clamp_round(now.d != 0 ? scale[g] / now.d : 0, -128, 127);
    for (int pass = 0; pass < 3; pass++) {
        super_scaled_pass(x, w, &now, start);
        if (pass == 0 || now.error < best->error) *best = now;
        double ux = 0, uu = 0;
        for (int i = 0; i < SUPER_BLOCK; i++) {
            double u = (double)(now.q[i] * (float)now.scale[i / 16]);
            uu += (double)w[i] * u * u;
            ux += (double)w[i] * u * (double)x[i];
        }
        if (!(uu > 0)) break;
        now.d = f16_round((float)(ux / uu));
        memcpy(start, now.scale, sizeof start);
    }
}

void q6_k_from_f32(const float *x, const float *importance, void *blocks, int64_t count) {
    struct block_q6_k *block = blocks;
    float w[SUPER_BLOCK];
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++) {
        struct super_scaled fit = {0};
        weights_fill(importance ? importance + i : NULL, SUPER_BLOCK, w);
        super_scaled_fit(x + i, w, &fit);
        memset(block, 0, sizeof *block);
        put_f16(fit.d, block->d);
        for (int g = 0; g < 16; g++) block->scales[g] = (int8_t)fit.scale[g];
        for (int j = 0; j < SUPER_BLOCK; j++) {
            int q = (int)fit.q[j] + 32, quarter = j / 32;
            block->ql[quarter / 4 * 64 + quarter % 2 * 32 + j % 32] |= (uint8_t)((q & 15) << (quarter % 4 / 2 * 4));
            block->qh[quarter / 4 * 32 + j % 32] |= (uint8_t)((q >> 4) << (quarter % 4 * 2));
        }
    }
}
