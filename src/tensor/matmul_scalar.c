/* Matrix products and the activation quantiser in plain C: the reference that the SIMD versions are read against.
 *
 * Quantised types: a block of each row of a panel is restored to GGML's form, decoded to small integers, and met with
 * the ACT8 blocks of every token. Sums over 32 columns are exact integers; the f32 accumulators, one lane per row, then
 * take one block after the other in ascending order, which is the fixed order of the room (kernels.h). */
#include "tensor/kernels.h"

#include <math.h>
#include <string.h>

#include "tensor/blocks.h"
#include "tensor/packed.h"
#include "tensor/simd_scalar.h"

/* A block as integers. Per 32 columns s: weight = scale[s] * group[i / 16] * q[i] + min[s] * group_min[i / 16]. */
struct integers {
    float scale[8], min[8];
    int16_t group[16], group_min[16];
    int8_t q[SUPER_BLOCK];
};

/* How the minimum of a type enters. */
enum minimum {
    MINIMUM_NONE,
    MINIMUM_WHOLE, /* one for 32 columns: meets act8_block.sum */
    MINIMUM_GROUPS /* integers per 16 columns: meet act8_block.half_sum */
};

static float load_half(const uint8_t bytes[2]) {
    return f16_to_f32(load_u16(bytes));
}

/* ------------------------------------------------------- blocks of 32 */

static void integers_simple(struct integers *out, float d, float m) {
    out->scale[0] = d;
    out->min[0] = m;
    out->group[0] = out->group[1] = 1;
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

static void scales_fill(struct integers *out, float d, float dmin) {
    for (int s = 0; s < 8; s++) {
        out->scale[s] = d;
        out->min[s] = -dmin;
    }
}

static void q2_k_integers(const void *plain, struct integers *out) {
    const struct block_q2_k *block = plain;
    scales_fill(out, load_half(block->d), load_half(block->dmin));
    for (int g = 0; g < 16; g++) {
        out->group[g] = block->scales[g] & 15;
        out->group_min[g] = block->scales[g] >> 4;
    }
    for (int i = 0; i < SUPER_BLOCK; i++)
        out->q[i] = (int8_t)(block->qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3);
}

static void q3_k_integers(const void *plain, struct integers *out) {
    const struct block_q3_k *block = plain;
    scales_fill(out, load_half(block->d), 0);
    for (int g = 0; g < 16; g++) {
        int low = block->scales[g % 8] >> (g / 8 * 4) & 15, high = block->scales[8 + g % 4] >> (g / 4 * 2) & 3;
        out->group[g] = (int16_t)((low | high << 4) - 32);
    }
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int low = block->qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3, high = block->hmask[i % 32] >> (i / 32) & 1;
        out->q[i] = (int8_t)((low | high << 2) - 4);
    }
}

/* Q4_K, Q5_K: both products are exact in f32. */
static void k_scales(const uint8_t packed[12], float d, float dmin, struct integers *out) {
    for (int s = 0; s < 8; s++) {
        uint8_t scale, min;
        scale_min_get(packed, s, &scale, &min);
        out->scale[s] = d * (float)scale;
        out->min[s] = -dmin * (float)min;
        out->group[2 * s] = out->group[2 * s + 1] = 1;
    }
}

static void q4_k_integers(const void *plain, struct integers *out) {
    const struct block_q4_k *block = plain;
    k_scales(block->scales, load_half(block->d), load_half(block->dmin), out);
    for (int i = 0; i < SUPER_BLOCK; i++)
        out->q[i] = (int8_t)(block->qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15);
}

static void q5_k_integers(const void *plain, struct integers *out) {
    const struct block_q5_k *block = plain;
    k_scales(block->scales, load_half(block->d), load_half(block->dmin), out);
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int low = block->qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15, high = block->qh[i % 32] >> (i / 32) & 1;
        out->q[i] = (int8_t)(low | high << 4);
    }
}

static void q6_k_integers(const void *plain, struct integers *out) {
    const struct block_q6_k *block = plain;
    scales_fill(out, load_half(block->d), 0);
    for (int g = 0; g < 16; g++) out->group[g] = block->scales[g];
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int low = block->ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        int high = block->qh[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        out->q[i] = (int8_t)((low | high << 4) - 32);
    }
}

/* ---------------------------------------------------------------- products */

/* Rows of a panel, and the vectors that hold one number of each. */
#define PANEL   8
#define VECTORS (PANEL / SIMD_LANES)

/* Tokens that share one decoding of the weights. */
#define TOKEN_TILE 16

typedef void integers_fn(const void *plain, struct integers *out);

static const struct {
    integers_fn *decode;
    enum minimum minimum;
} types[DT_COUNT] = {
    [DT_Q4_0] = {q4_0_integers, MINIMUM_NONE},  [DT_Q4_1] = {q4_1_integers, MINIMUM_WHOLE},
    [DT_Q5_0] = {q5_0_integers, MINIMUM_NONE},  [DT_Q5_1] = {q5_1_integers, MINIMUM_WHOLE},
    [DT_Q8_0] = {q8_0_integers, MINIMUM_NONE},  [DT_Q2_K] = {q2_k_integers, MINIMUM_GROUPS},
    [DT_Q3_K] = {q3_k_integers, MINIMUM_NONE},  [DT_Q4_K] = {q4_k_integers, MINIMUM_WHOLE},
    [DT_Q5_K] = {q5_k_integers, MINIMUM_WHOLE}, [DT_Q6_K] = {q6_k_integers, MINIMUM_NONE},
};

/* One number of each row of a panel. */
struct lanes {
    vec v[VECTORS];
};

/* acc += a * b, b the same for all rows. */
static void lanes_add(struct lanes *acc, const float a[PANEL], float b) {
    for (int v = 0; v < VECTORS; v++) acc->v[v] = v_fma(v_load(a + v * SIMD_LANES), v_set1(b), acc->v[v]);
}

/* acc += integers * (a * b). */
static void lanes_add_scaled(struct lanes *acc, const int32_t integers[PANEL], const float a[PANEL], float b) {
    float sum[PANEL];
    for (int r = 0; r < PANEL; r++) sum[r] = (float)integers[r];
    for (int v = 0; v < VECTORS; v++) {
        vec scale = v_mul(v_load(a + v * SIMD_LANES), v_set1(b));
        acc->v[v] = v_fma(v_load(sum + v * SIMD_LANES), scale, acc->v[v]);
    }
}

static void lanes_store(const struct matmul_args *args, int64_t panel, int64_t token, const struct lanes *value) {
    int64_t row = panel * PANEL, left = args->weight->rows - row;
    float *out = args->out + token * args->out_stride + row, total[PANEL];
    for (int v = 0; v < VECTORS; v++) v_store(total + v * SIMD_LANES, value->v[v]);
    for (int64_t r = 0; r < (left < PANEL ? left : PANEL); r++)
        out[r] = args->bias ? total[r] + args->bias[row + r] : total[r];
}

/* A plain loop of its own: compilers turn it into whatever dot product the machine has. */
static int32_t dot16(const int8_t *w, const int8_t *x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += w[i] * x[i];
    return sum;
}

/* Adds 32 columns, number s of a block, of all rows of a panel to their accumulators. */
static void columns_add(const struct integers w[PANEL], int s, enum minimum minimum, const struct act8_block *x,
                        struct lanes *acc) {
    int32_t product[PANEL], least[PANEL];
    float scale[PANEL], min[PANEL];
    for (int r = 0; r < PANEL; r++) {
        const int8_t *q = w[r].q + 32 * s;
        const int16_t *group = w[r].group + 2 * s, *group_min = w[r].group_min + 2 * s;
        product[r] = dot16(q, x->q) * group[0] + dot16(q + 16, x->q + 16) * group[1];
        scale[r] = w[r].scale[s];
        min[r] = w[r].min[s];
        if (minimum == MINIMUM_GROUPS) least[r] = x->half_sum[0] * group_min[0] + x->half_sum[1] * group_min[1];
    }
    lanes_add_scaled(acc, product, scale, x->scale);
    if (minimum == MINIMUM_WHOLE) lanes_add(acc, min, x->sum);
    if (minimum == MINIMUM_GROUPS) lanes_add_scaled(acc, least, min, x->scale);
}

static void panel_quantised(const struct matmul_args *args, int64_t panel, int64_t t0, int64_t tokens) {
    const struct packed *weight = args->weight;
    int block = dtype_table[weight->dtype].block;
    uint8_t plain[PACKED_MAX_BLOCK_BYTES];
    struct integers w[PANEL];
    struct lanes acc[TOKEN_TILE];
    memset(acc, 0, sizeof acc);
    for (int64_t b = 0; b < weight->cols / block; b++) {
        for (int r = 0; r < PANEL; r++) {
            packed_block(weight, panel * PANEL + r, b, plain);
            types[weight->dtype].decode(plain, &w[r]);
        }
        for (int64_t t = 0; t < tokens; t++) {
            const uint8_t *x_row = (const uint8_t *)args->x + (size_t)(t0 + t) * args->x_row_bytes;
            const struct act8_block *x = (const struct act8_block *)x_row + b * (block / ACT8_BLOCK);
            for (int s = 0; s < block / ACT8_BLOCK; s++)
                columns_add(w, s, types[weight->dtype].minimum, x + s, &acc[t]);
        }
    }
    for (int64_t t = 0; t < tokens; t++) lanes_store(args, panel, t0 + t, &acc[t]);
}

static void quantised(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    for (int64_t panel = panel0; panel < panel1; panel++)
        for (int64_t t = t0; t < t1; t += TOKEN_TILE)
            panel_quantised(args, panel, t, t1 - t < TOKEN_TILE ? t1 - t : TOKEN_TILE);
}

/* Columns that one partial sum takes before it joins the total: bounds the growth of rounding errors. */
#define CHUNK 256

/* One column of the rows of a panel. */
static void column_load(const uint8_t *panel, enum dtype dtype, int64_t column, float out[PANEL]) {
    uint16_t half[PANEL];
    if (dtype == DT_F32) {
        memcpy(out, panel + column * PANEL * 4, PANEL * 4);
        return;
    }
    memcpy(half, panel + column * PANEL * 2, sizeof half);
    for (int v = 0; v < VECTORS; v++) {
        const uint16_t *from = half + v * SIMD_LANES;
        v_store(out + v * SIMD_LANES, dtype == DT_F16 ? v_load_f16(from) : v_load_bf16(from));
    }
}

static void panel_floats(const struct matmul_args *args, int64_t panel, int64_t t0, int64_t tokens) {
    const struct packed *weight = args->weight;
    const uint8_t *data = weight->data + (size_t)panel * weight->panel_bytes;
    struct lanes total[TOKEN_TILE], part[TOKEN_TILE];
    memset(total, 0, sizeof total);
    for (int64_t first = 0; first < weight->cols; first += CHUNK) {
        int64_t last = weight->cols - first < CHUNK ? weight->cols : first + CHUNK;
        memset(part, 0, sizeof part);
        for (int64_t c = first; c < last; c++) {
            float column[PANEL];
            column_load(data, weight->dtype, c, column);
            for (int64_t t = 0; t < tokens; t++) {
                const uint8_t *x_row = (const uint8_t *)args->x + (size_t)(t0 + t) * args->x_row_bytes;
                lanes_add(&part[t], column, ((const float *)(const void *)x_row)[c]);
            }
        }
        for (int64_t t = 0; t < tokens; t++)
            for (int v = 0; v < VECTORS; v++) total[t].v[v] = v_add(total[t].v[v], part[t].v[v]);
    }
    for (int64_t t = 0; t < tokens; t++) lanes_store(args, panel, t0 + t, &total[t]);
}

static void floats(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    for (int64_t panel = panel0; panel < panel1; panel++)
        for (int64_t t = t0; t < t1; t += TOKEN_TILE)
            panel_floats(args, panel, t, t1 - t < TOKEN_TILE ? t1 - t : TOKEN_TILE);
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
