/* Matrix products and the activation quantiser in plain C: the reference that the SIMD versions are read against.
 *
 * Quantised types: a block of one row is restored to GGML's form, decoded to small integers, and met with the
 * ACT8 blocks of every token. Sums over 32 columns are exact integers; the f32 accumulator then takes one block after
 * the other in ascending order, which is the fixed order of the room. */
#include "tensor/kernels.h"

#include <math.h>
#include <string.h>

#include "tensor/blocks.h"
#include "tensor/packed.h"

/* A block as integers: weight = d * scale[i / 16] * q[i] - dmin * min[i / 16]. */
struct integers {
    float d, dmin;
    int16_t scale[16], min[16];
    int8_t q[SUPER_BLOCK];
};

static float load_half(const uint8_t bytes[2]) {
    return f16_to_f32(load_u16(bytes));
}

/* ------------------------------------------------------- blocks of 32 */

static void integers_simple(struct integers *out, float d, float m) {
    out->d = d;
    out->dmin = -m; /* the _1 types add their minimum */
    for (int h = 0; h < 2; h++) out->scale[h] = out->min[h] = 1;
}

static void nibbles_decode(const uint8_t qs[16], uint32_t high, int offset, int8_t q[32]) {
    for (int i = 0; i < 32; i++) {
        int nibble = i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
        q[i] = (int8_t)((nibble | (int)(high >> i & 1) << 4) - offset);
    }
}

static void q4_0_integers(const void *plain, struct integers *out) {
    const struct block_q4_0 *block = plain;
    integers_simple(out, load_half(block->d), 0);
    nibbles_decode(block->qs, 0, 8, out->q);
}

static void q4_1_integers(const void *plain, struct integers *out) {
    const struct block_q4_1 *block = plain;
    integers_simple(out, load_half(block->d), load_half(block->m));
    nibbles_decode(block->qs, 0, 0, out->q);
}

static void q5_0_integers(const void *plain, struct integers *out) {
    const struct block_q5_0 *block = plain;
    integers_simple(out, load_half(block->d), 0);
    nibbles_decode(block->qs, load_u32(block->qh), 16, out->q);
}

static void q5_1_integers(const void *plain, struct integers *out) {
    const struct block_q5_1 *block = plain;
    integers_simple(out, load_half(block->d), load_half(block->m));
    nibbles_decode(block->qs, load_u32(block->qh), 0, out->q);
}

static void q8_0_integers(const void *plain, struct integers *out) {
    const struct block_q8_0 *block = plain;
    integers_simple(out, load_half(block->d), 0);
    memcpy(out->q, block->qs, 32);
}

/* ------------------------------------------------- super-blocks of 256 */

static void q2_k_integers(const void *plain, struct integers *out) {
    const struct block_q2_k *block = plain;
    out->d = load_half(block->d);
    out->dmin = load_half(block->dmin);
    for (int g = 0; g < 16; g++) {
        out->scale[g] = block->scales[g] & 15;
        out->min[g] = block->scales[g] >> 4;
    }
    for (int i = 0; i < SUPER_BLOCK; i++)
        out->q[i] = (int8_t)(block->qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3);
}

static void q3_k_integers(const void *plain, struct integers *out) {
    const struct block_q3_k *block = plain;
    out->d = load_half(block->d);
    out->dmin = 0;
    for (int g = 0; g < 16; g++) {
        int low = block->scales[g % 8] >> (g / 8 * 4) & 15, high = block->scales[8 + g % 4] >> (g / 4 * 2) & 3;
        out->scale[g] = (int16_t)((low | high << 4) - 32);
        out->min[g] = 0;
    }
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int low = block->qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3, high = block->hmask[i % 32] >> (i / 32) & 1;
        out->q[i] = (int8_t)((low | high << 2) - 4);
    }
}

static void k_scales(const uint8_t packed[12], struct integers *out) {
    for (int g = 0; g < 16; g++) {
        uint8_t scale, min;
        scale_min_get(packed, g / 2, &scale, &min);
        out->scale[g] = scale;
        out->min[g] = min;
    }
}

static void q4_k_integers(const void *plain, struct integers *out) {
    const struct block_q4_k *block = plain;
    out->d = load_half(block->d);
    out->dmin = load_half(block->dmin);
    k_scales(block->scales, out);
    for (int i = 0; i < SUPER_BLOCK; i++)
        out->q[i] = (int8_t)(block->qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15);
}

static void q5_k_integers(const void *plain, struct integers *out) {
    const struct block_q5_k *block = plain;
    out->d = load_half(block->d);
    out->dmin = load_half(block->dmin);
    k_scales(block->scales, out);
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int low = block->qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15, high = block->qh[i % 32] >> (i / 32) & 1;
        out->q[i] = (int8_t)(low | high << 4);
    }
}

static void q6_k_integers(const void *plain, struct integers *out) {
    const struct block_q6_k *block = plain;
    out->d = load_half(block->d);
    out->dmin = 0;
    for (int g = 0; g < 16; g++) {
        out->scale[g] = block->scales[g];
        out->min[g] = 0;
    }
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int low = block->ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        int high = block->qh[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        out->q[i] = (int8_t)((low | high << 4) - 32);
    }
}

/* ---------------------------------------------------------------- products */

typedef void integers_fn(const void *plain, struct integers *out);

static integers_fn *const integers_table[DT_COUNT] = {
    [DT_Q4_0] = q4_0_integers, [DT_Q4_1] = q4_1_integers, [DT_Q5_0] = q5_0_integers, [DT_Q5_1] = q5_1_integers,
    [DT_Q8_0] = q8_0_integers, [DT_Q2_K] = q2_k_integers, [DT_Q3_K] = q3_k_integers, [DT_Q4_K] = q4_k_integers,
    [DT_Q5_K] = q5_k_integers, [DT_Q6_K] = q6_k_integers,
};

/* A plain loop of its own: compilers turn it into whatever dot product the machine has. */
static int32_t dot16(const int8_t *w, const int8_t *x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += w[i] * x[i];
    return sum;
}

/* Adds 32 columns, the sub-blocks 2s and 2s + 1 of a block, to an accumulator. */
static float dot_add(const struct integers *w, int s, const struct act8_block *x, float acc) {
    const int8_t *q = w->q + 32 * s;
    int32_t product = dot16(q, x->q) * w->scale[2 * s] + dot16(q + 16, x->q + 16) * w->scale[2 * s + 1];
    int32_t minimum = x->half_sum[0] * w->min[2 * s] + x->half_sum[1] * w->min[2 * s + 1];
    acc += w->d * x->scale * (float)product;
    return acc - w->dmin * x->scale * (float)minimum;
}

static float bias_of(const struct matmul_args *args, int64_t row) {
    return args->bias ? args->bias[row] : 0.0f;
}

/* Tokens that share one decoding of the weights. */
#define TOKEN_TILE 16

static void row_quantised(const struct matmul_args *args, int64_t row, int64_t t0, int64_t tokens) {
    const struct packed *weight = args->weight;
    int block = dtype_table[weight->dtype].block;
    uint8_t plain[PACKED_MAX_BLOCK_BYTES];
    struct integers w;
    float acc[TOKEN_TILE] = {0};
    for (int64_t b = 0; b < weight->cols / block; b++) {
        packed_block(weight, row, b, plain);
        integers_table[weight->dtype](plain, &w);
        for (int64_t t = 0; t < tokens; t++) {
            const uint8_t *x_row = (const uint8_t *)args->x + (size_t)(t0 + t) * args->x_row_bytes;
            const struct act8_block *x = (const struct act8_block *)x_row + b * (block / ACT8_BLOCK);
            for (int s = 0; s < block / ACT8_BLOCK; s++) acc[t] = dot_add(&w, s, x + s, acc[t]);
        }
    }
    for (int64_t t = 0; t < tokens; t++) args->out[(t0 + t) * args->out_stride + row] = acc[t] + bias_of(args, row);
}

static void quantised(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    int64_t lanes = args->weight->lanes, end = panel1 * lanes;
    if (end > args->weight->rows) end = args->weight->rows;
    for (int64_t row = panel0 * lanes; row < end; row++)
        for (int64_t t = t0; t < t1; t += TOKEN_TILE)
            row_quantised(args, row, t, t1 - t < TOKEN_TILE ? t1 - t : TOKEN_TILE);
}

/* Columns that one partial sum takes before it joins the total: bounds the growth of rounding errors. */
#define CHUNK 256

static float float_element(const uint8_t *column, enum dtype dtype, int64_t index) {
    if (dtype == DT_F32) {
        float value;
        memcpy(&value, column + index * 4, 4);
        return value;
    }
    uint16_t bits = load_u16(column + index * 2);
    return dtype == DT_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

static void floats(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    const struct packed *weight = args->weight;
    int64_t lanes = weight->lanes, end = panel1 * lanes;
    if (end > weight->rows) end = weight->rows;
    for (int64_t row = panel0 * lanes; row < end; row++) {
        const uint8_t *panel = weight->data + (size_t)(row / lanes) * weight->panel_bytes;
        for (int64_t t = t0; t < t1; t++) {
            const float *x = (const float *)((const uint8_t *)args->x + (size_t)t * args->x_row_bytes);
            float total = 0, part = 0;
            for (int64_t c = 0; c < weight->cols; c++) {
                part += x[c] * float_element(panel, weight->dtype, c * lanes + row % lanes);
                if (c % CHUNK == CHUNK - 1 || c == weight->cols - 1) {
                    total += part;
                    part = 0;
                }
            }
            args->out[t * args->out_stride + row] = total + bias_of(args, row);
        }
    }
}

/* ------------------------------------------------------------- activations */

static void block_quantize(const float x[32], struct act8_block *out) {
    float max = 0;
    bool finite = true;
    for (int i = 0; i < 32; i++) {
        if (!isfinite(x[i])) finite = false;
        if (fabsf(x[i]) > max) max = fabsf(x[i]);
    }
    bool quiet = !(max >= 0x1p-100f) || !finite;
    float inverse = quiet ? 0 : 127.0f / max;
    int part[2][2] = {{0}};
    *out = (struct act8_block){.scale = finite ? (quiet ? 0 : max / 127.0f) : NAN};
    for (int i = 0; i < 32; i++) {
        int q = quiet ? 0 : (int)lrintf(x[i] * inverse);
        out->q[i] = (int8_t)q;
        part[i / 16][i % 4 / 2] += q;
    }
    for (int k = 0; k < 2; k++) {
        out->minus8[k] = (int16_t)(-8 * (part[0][k] + part[1][k]));
        out->minus16[k] = (int16_t)(-16 * (part[0][k] + part[1][k]));
        for (int h = 0; h < 2; h++) out->minus32[h][k] = (int16_t)(-32 * part[h][k]);
        out->half_sum[k] = (int16_t)(part[k][0] + part[k][1]);
    }
    out->sum = out->scale * (float)(out->half_sum[0] + out->half_sum[1]);
}

static void quantize(const float *x, int64_t cols, void *out) {
    struct act8_block *block = out;
    for (int64_t c = 0; c < cols; c += ACT8_BLOCK, block++) {
        float padded[ACT8_BLOCK] = {0};
        int64_t count = cols - c < ACT8_BLOCK ? cols - c : ACT8_BLOCK;
        memcpy(padded, x + c, (size_t)count * sizeof *x);
        block_quantize(padded, block);
    }
}

const struct matmul_table matmul_scalar = {
    .lanes = 8,
    .matmul =
        {
            [DT_F32] = floats,
            [DT_F16] = floats,
            [DT_BF16] = floats,
            [DT_Q4_0] = quantised,
            [DT_Q4_1] = quantised,
            [DT_Q5_0] = quantised,
            [DT_Q5_1] = quantised,
            [DT_Q8_0] = quantised,
            [DT_Q2_K] = quantised,
            [DT_Q3_K] = quantised,
            [DT_Q4_K] = quantised,
            [DT_Q5_K] = quantised,
            [DT_Q6_K] = quantised,
        },
    .act8_quantize = quantize,
};
