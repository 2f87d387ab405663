/* Training kernels for AVX2 besides products and attention, over the vocabulary of simd_avx2.h. */
#include "tensor/simd_avx2.h"

#include <math.h>
#include <string.h>

#include "tensor/math_simd.h"
#include "tensor/training_tables.h"

/* Vectors of one row, the last one in part: lanes beyond the row are loaded as zero and not stored. */
#define FOR_PARTS(i, left, count) for (int64_t i = 0, left = (count); left > 0; i += SIMD_LANES, left -= SIMD_LANES)

/* The same with CHAINS sums that take turns: enough of them to hide the latency of an addition. */
#define CHAINS 4
#define FOR_CHAINS(i, left, chain, count)                                                                              \
    for (int64_t i##_first = 0; i##_first < (count); i##_first += CHAINS * SIMD_LANES)                                 \
    UNROLL_8 for (int chain = 0; chain < CHAINS;                                                                       \
                  chain++) for (int64_t i = i##_first + chain * SIMD_LANES, left = (count)-i, once = 1;                \
                                once && left > 0; once = 0)

SIMD_INLINE vec load_part(const float *x, int64_t left) {
    return left >= SIMD_LANES ? v_load(x) : v_load_part(x, (int)left);
}

SIMD_INLINE void store_part(float *x, int64_t left, vec a) {
    if (left >= SIMD_LANES)
        v_store(x, a);
    else
        v_store_part(x, (int)left, a);
}

/* Zero in lanes beyond the row. */
SIMD_INLINE vec clear_beyond(vec a, int64_t left) {
    return left >= SIMD_LANES ? a : v_select_range(0, (int)left, a, v_set1(0.0f));
}

/* ------------------------------------------------------------------- norms */

/* Three sums over a row, each in four vectors that take turns. */
struct sums {
    vec part[3][CHAINS];
};

SIMD_INLINE float sums_take(struct sums *sums, int which) {
    return v_sum_all(sums->part[which], CHAINS);
}

static float row_mean(const float *x, int64_t cols) {
    vec part[CHAINS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
    FOR_CHAINS(i, left, chain, cols) {
        part[chain] = v_add(part[chain], load_part(x + i, left));
    }
    return v_sum_all(part, CHAINS) / (float)cols;
}

/* With u = (x - mean) / deviation and d = dy * gain: dx = (d - [mean of d, if centred] - u * mean of d u) / deviation.
 */
SIMD_INLINE void norm_backward(const float *dy, const float *x, const float *gain, float mean, float eps, int64_t cols,
                               const bool centred, float *dx, float *normed) {
    struct sums sums;
    for (int s = 0; s < 3; s++)
        for (int c = 0; c < CHAINS; c++) sums.part[s][c] = v_set1(0.0f);
    vec middle = v_set1(mean);
    FOR_CHAINS(i, left, chain, cols) {
        vec u = clear_beyond(v_sub(load_part(x + i, left), middle), left), d = load_part(dy + i, left);
        if (gain) d = v_mul(d, load_part(gain + i, left));
        sums.part[0][chain] = v_fma(u, u, sums.part[0][chain]);
        sums.part[1][chain] = v_fma(d, u, sums.part[1][chain]);
        if (centred) sums.part[2][chain] = v_add(d, sums.part[2][chain]);
    }
    float inverse = 1.0f / sqrtf(sums_take(&sums, 0) / (float)cols + eps);
    vec factor = v_set1(inverse), along = v_set1(sums_take(&sums, 1) / (float)cols * inverse);
    vec shift = v_set1(centred ? sums_take(&sums, 2) / (float)cols : 0.0f);
    FOR_PARTS(i, left, cols) {
        vec u = v_mul(v_sub(load_part(x + i, left), middle), factor), d = load_part(dy + i, left);
        if (gain) d = v_mul(d, load_part(gain + i, left));
        store_part(dx + i, left, v_mul(factor, v_fnma(u, along, v_sub(d, shift))));
        if (normed) store_part(normed + i, left, u);
    }
}

static void rms_norm_backward(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                              float *normed) {
    norm_backward(dy, x, gain, 0, eps, cols, false, dx, normed);
}

static void layer_norm_backward(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                                float *normed) {
    norm_backward(dy, x, gain, row_mean(x, cols), eps, cols, true, dx, normed);
}

static void softmax_backward(const float *dy, const float *y, float scale, int64_t cols, float *dx) {
    vec part[CHAINS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
    FOR_CHAINS(i, left, chain, cols) {
        part[chain] = v_fma(load_part(dy + i, left), load_part(y + i, left), part[chain]);
    }
    vec sum = v_set1(v_sum_all(part, CHAINS)), by = v_set1(scale);
    FOR_PARTS(i, left, cols) {
        vec weight = v_mul(by, load_part(y + i, left));
        store_part(dx + i, left, v_mul(weight, v_sub(load_part(dy + i, left), sum)));
    }
}

/* ------------------------------------------------------------ element by element */

struct value_slope {
    vec value, slope;
};

/* x * gate(x), where the gate's slope is known. */
SIMD_INLINE struct value_slope gated_value(vec x, vec gate, vec gate_slope) {
    return (struct value_slope){v_mul(x, gate), v_fma(x, gate_slope, gate)};
}

SIMD_INLINE struct value_slope gelu_tanh(vec x) { /* gate = (1 + tanh u) / 2 = sigmoid(2 u) */
    vec one = v_set1(1.0f), square = v_mul(x, x), rate = v_set1(2.0f * 0.79788456080286535588f);
    vec twice_u = v_mul(rate, v_mul(x, v_fma(v_set1(0.044715f), square, one)));
    vec gate = v_sigmoid(twice_u), rise = v_mul(rate, v_fma(v_set1(3 * 0.044715f), square, one));
    return gated_value(x, gate, v_mul(v_mul(gate, v_sub(one, gate)), rise));
}

SIMD_INLINE struct value_slope gelu_erf(vec x) {
    vec gate = v_mul(v_set1(0.5f), v_one_plus_erf(v_mul(x, v_set1(0.70710678118654752440f))));
    vec density = v_mul(v_set1(0.39894228040143267794f), v_exp(v_mul(v_set1(-0.5f), v_mul(x, x))));
    return gated_value(x, gate, density);
}

SIMD_INLINE struct value_slope value_slope(enum unary_kind kind, vec x) {
    vec one = v_set1(1.0f), zero = v_set1(0.0f), s;
    switch (kind) {
    case UNARY_SILU:
        s = v_sigmoid(x);
        return gated_value(x, s, v_mul(s, v_sub(one, s)));
    case UNARY_GELU_TANH:
        return gelu_tanh(x);
    case UNARY_GELU_ERF:
        return gelu_erf(x);
    case UNARY_RELU:
        s = v_max(zero, x); /* NaN is the second operand and stays, in both */
        return (struct value_slope){s, v_select_less(zero, s, one, s)};
    case UNARY_SIGMOID:
        s = v_sigmoid(x);
        return (struct value_slope){s, v_mul(s, v_sub(one, s))};
    case UNARY_TANH:
        s = v_tanh(x);
        return (struct value_slope){s, v_fnma(s, s, one)};
    case UNARY_EXP:
        s = v_exp(x);
        return (struct value_slope){s, s};
    case UNARY_KINDS:
        break;
    }
    return (struct value_slope){v_set1(NAN), v_set1(NAN)};
}

SIMD_INLINE void unary_loop(enum unary_kind kind, const float *dy, const float *x, int64_t count, float *dx) {
    FOR_PARTS(i, left, count)
    store_part(dx + i, left, v_mul(load_part(dy + i, left), value_slope(kind, load_part(x + i, left)).slope));
}

SIMD_INLINE void gated_loop(enum unary_kind kind, const float *dy, const float *gate, const float *up, int64_t count,
                            float *d_gate, float *d_up) {
    FOR_PARTS(i, left, count) {
        struct value_slope f = value_slope(kind, load_part(gate + i, left));
        vec d = load_part(dy + i, left), through = v_mul(d, load_part(up + i, left));
        store_part(d_gate + i, left, v_mul(through, f.slope));
        store_part(d_up + i, left, v_mul(d, f.value));
    }
}

/* One loop per kind, so that the switch is settled at compile time. */
#define KIND_CASE(kind, loop, ...)                                                                                     \
    case kind:                                                                                                         \
        loop(kind, __VA_ARGS__);                                                                                       \
        break;
#define EACH_KIND(...)                                                                                                 \
    switch (kind) {                                                                                                    \
        KIND_CASE(UNARY_SILU, __VA_ARGS__)                                                                             \
        KIND_CASE(UNARY_GELU_TANH, __VA_ARGS__)                                                                        \
        KIND_CASE(UNARY_GELU_ERF, __VA_ARGS__)                                                                         \
        KIND_CASE(UNARY_RELU, __VA_ARGS__)                                                                             \
        KIND_CASE(UNARY_SIGMOID, __VA_ARGS__)                                                                          \
        KIND_CASE(UNARY_TANH, __VA_ARGS__)                                                                             \
        KIND_CASE(UNARY_EXP, __VA_ARGS__)                                                                              \
    case UNARY_KINDS:                                                                                                  \
        break;                                                                                                         \
    }

static void unary_backward(enum unary_kind kind, const float *dy, const float *x, int64_t count, float *dx) {
    EACH_KIND(unary_loop, dy, x, count, dx)
}

static void gated_backward(enum unary_kind kind, const float *dy, const float *gate, const float *up, int64_t count,
                           float *d_gate, float *d_up) {
    EACH_KIND(gated_loop, dy, gate, up, count, d_gate, d_up)
}

static void softcap_backward(const float *dy, const float *x, float cap, int64_t count, float *dx) {
    vec limit = v_set1(cap), one = v_set1(1.0f);
    FOR_PARTS(i, left, count) {
        vec t = v_tanh(v_div(load_part(x + i, left), limit));
        store_part(dx + i, left, v_mul(load_part(dy + i, left), v_fnma(t, t, one)));
    }
}

/* -------------------------------------------------------------------- loss */

/* A row of logits is read in chunks that stay in the first-level cache: their maximum, then exponentials relative to
 * it, left in place, and their sum. Only a factor per chunk is then missing: two passes over memory and one
 * exponential per logit. */
#define CHUNK       4096
#define CHUNKS_MOST 1024

static float chunk_max(const float *x, int64_t count) {
    vec top[CHAINS] = {v_set1(-INFINITY), v_set1(-INFINITY), v_set1(-INFINITY), v_set1(-INFINITY)};
    FOR_CHAINS(i, left, chain, count) {
        vec a = load_part(x + i, left);
        if (left < SIMD_LANES) a = v_select_range(0, (int)left, a, v_set1(-INFINITY));
        top[chain] = v_max(a, top[chain]); /* a NaN is dropped here and enters the sum */
    }
    float max = v_max_lane(v_max(v_max(top[0], top[1]), v_max(top[2], top[3])));
    return max == -INFINITY ? 0 : max; /* nothing but excluded logits: their exponentials are 0 */
}

SIMD_INLINE float chunk_exp(float *x, int64_t count, float shift, const bool keep) {
    vec part[CHAINS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)}, by = v_set1(shift);
    FOR_CHAINS(i, left, chain, count) {
        vec e = v_exp_weight(v_sub(load_part(x + i, left), by));
        part[chain] = v_add(part[chain], clear_beyond(e, left));
        if (keep) store_part(x + i, left, e);
    }
    return v_sum_all(part, CHAINS);
}

static void scale_row(float *x, int64_t count, float factor) {
    vec by = v_set1(factor);
    FOR_PARTS(i, left, count) store_part(x + i, left, v_mul(load_part(x + i, left), by));
}

static float cross_entropy(float *logits, int64_t count, int32_t target, float weight, bool gradient) {
    float shift[CHUNKS_MOST], sum[CHUNKS_MOST], max = -INFINITY;
    int64_t chunk = CHUNK;
    while ((count + chunk - 1) / chunk > CHUNKS_MOST) chunk *= 2;
    double logit = (double)logits[target], total = 0;
    for (int64_t first = 0, i = 0; first < count; first += chunk, i++) {
        int64_t in_chunk = count - first < chunk ? count - first : chunk;
        shift[i] = chunk_max(logits + first, in_chunk);
        sum[i] = gradient ? chunk_exp(logits + first, in_chunk, shift[i], true)
                          : chunk_exp(logits + first, in_chunk, shift[i], false);
        if (sum[i] > 0 && shift[i] > max) max = shift[i];
    }
    for (int64_t first = 0, i = 0; first < count; first += chunk, i++)
        if (sum[i] != 0) total += (double)sum[i] * exp((double)(shift[i] - max));
    float loss = (float)(log(total) + ((double)max - logit));
    if (!gradient) return loss;
    for (int64_t first = 0, i = 0; first < count; first += chunk, i++) {
        int64_t in_chunk = count - first < chunk ? count - first : chunk;
        double factor = sum[i] != 0 || total != total ? exp((double)(shift[i] - max)) / total : 0;
        scale_row(logits + first, in_chunk, (float)((double)weight * factor));
    }
    logits[target] -= weight;
    return loss;
}

/* --------------------------------------------------------------------- sums */

/* Eight vectors of columns pass down the rows in registers. */
static void column_sum(const float *x, int64_t x_row, int64_t rows, int64_t col0, int64_t col1, float *sum) {
    int64_t col = col0;
    for (; col + 8 * SIMD_LANES <= col1; col += 8 * SIMD_LANES) {
        vec part[8];
        UNROLL_8 for (int j = 0; j < 8; j++) part[j] = v_load(sum + col + j * SIMD_LANES);
        const float *at = x + col;
        for (int64_t row = 0; row < rows; row++, at += x_row)
            UNROLL_8 for (int j = 0; j < 8; j++) part[j] = v_add(part[j], v_load(at + j * SIMD_LANES));
        UNROLL_8 for (int j = 0; j < 8; j++) v_store(sum + col + j * SIMD_LANES, part[j]);
    }
    for (; col < col1; col += SIMD_LANES) {
        vec part = load_part(sum + col, col1 - col);
        const float *at = x + col;
        for (int64_t row = 0; row < rows; row++, at += x_row) part = v_add(part, load_part(at, col1 - col));
        store_part(sum + col, col1 - col, part);
    }
}

static double sum_of_squares(const float *x, int64_t count) {
    __m256d low[CHAINS], high[CHAINS];
    for (int c = 0; c < CHAINS; c++) low[c] = high[c] = _mm256_setzero_pd();
    FOR_CHAINS(i, left, chain, count) {
        vec a = load_part(x + i, left);
        __m256d first = _mm256_cvtps_pd(_mm256_castps256_ps128(a)), last = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
        low[chain] = _mm256_fmadd_pd(first, first, low[chain]);
        high[chain] = _mm256_fmadd_pd(last, last, high[chain]);
    }
    for (int c = 1; c < CHAINS; c++) {
        low[0] = _mm256_add_pd(low[0], low[c]);
        high[0] = _mm256_add_pd(high[0], high[c]);
    }
    double lanes[4];
    _mm256_storeu_pd(lanes, _mm256_add_pd(low[0], high[0]));
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

/* --------------------------------------------------------------- optimiser */

struct adamw {
    vec scale, beta1, beta2, rest1, rest2, inverse1, inverse2, eps, rate, decay;
};

static struct adamw adamw_open(const struct adamw_args *args) {
    return (struct adamw){.scale = v_set1(args->gradient_scale),
                          .beta1 = v_set1(args->beta1),
                          .beta2 = v_set1(args->beta2),
                          .rest1 = v_set1(1 - args->beta1),
                          .rest2 = v_set1(1 - args->beta2),
                          .inverse1 = v_set1(1 / args->correction1),
                          .inverse2 = v_set1(1 / args->correction2),
                          .eps = v_set1(args->eps),
                          .rate = v_set1(args->learning_rate),
                          .decay = v_set1(args->weight_decay)};
}

SIMD_INLINE void adamw_step(const struct adamw *a, vec gradient, vec *value, vec *m, vec *v) {
    vec g = v_mul(gradient, a->scale);
    *m = v_fma(a->beta1, *m, v_mul(a->rest1, g));
    *v = v_fma(a->beta2, *v, v_mul(a->rest2, v_mul(g, g)));
    vec deviation = v_add(_mm256_sqrt_ps(v_mul(*v, a->inverse2)), a->eps);
    vec step = v_fma(a->decay, *value, v_div(v_mul(*m, a->inverse1), deviation));
    *value = v_fnma(a->rate, step, *value);
}

static void adamw_f32(const struct adamw_args *args, const float *gradient, int64_t count, float *value, float *m,
                      float *v) {
    struct adamw a = adamw_open(args);
    FOR_PARTS(i, left, count) {
        vec x = load_part(value + i, left), first = load_part(m + i, left), second = load_part(v + i, left);
        adamw_step(&a, load_part(gradient + i, left), &x, &first, &second);
        store_part(value + i, left, x);
        store_part(m + i, left, first);
        store_part(v + i, left, second);
    }
}

SIMD_INLINE vec load_bf16(const uint16_t *p) {
    __m128i words = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

/* As round_stochastic in training_scalar.c: up with the probability of what truncation would lose. */
SIMD_INLINE void store_bf16(uint16_t *p, vec x, __m256i random16) {
    __m256i bits = _mm256_castps_si256(x), rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, random16), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(packed));
}

SIMD_INLINE __m256i mix8(__m256i x) {
    x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
    x = _mm256_mullo_epi32(x, _mm256_set1_epi32((int)COUNTER_MIX_1));
    x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 15));
    x = _mm256_mullo_epi32(x, _mm256_set1_epi32((int)COUNTER_MIX_2));
    return _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
}

SIMD_INLINE __m256i counter_bits8(uint64_t key, int64_t index) {
    __m256i at = _mm256_add_epi32(_mm256_set1_epi32((int)index), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i first = mix8(_mm256_add_epi32(at, _mm256_set1_epi32((int)(uint32_t)key)));
    return mix8(_mm256_xor_si256(first, _mm256_set1_epi32((int)(uint32_t)(key >> 32))));
}

/* Eight values whose first is number `index` of a run with one key. */
SIMD_INLINE void adamw_eight(const struct adamw *a, uint64_t key, int64_t index, const float *gradient, uint16_t *value,
                             uint16_t *m, uint16_t *v) {
    __m256i random = counter_bits8(key, index), more = mix8(_mm256_xor_si256(random, _mm256_set1_epi32(-1)));
    vec x = load_bf16(value), first = load_bf16(m), second = load_bf16(v);
    adamw_step(a, v_load(gradient), &x, &first, &second);
    store_bf16(value, x, _mm256_and_si256(random, _mm256_set1_epi32(0xffff)));
    store_bf16(m, first, _mm256_srli_epi32(random, 16));
    store_bf16(v, second, _mm256_srli_epi32(more, 16));
}

static void adamw_bf16_run(const struct adamw *a, uint64_t key, int64_t index, const float *gradient, int64_t count,
                           uint16_t *value, uint16_t *m, uint16_t *v) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) adamw_eight(a, key, index + i, gradient + i, value + i, m + i, v + i);
    if (i == count) return;
    float g[8] = {0};
    uint16_t part[3][8] = {{0}};
    size_t left = (size_t)(count - i);
    memcpy(g, gradient + i, left * sizeof *g);
    memcpy(part[0], value + i, left * 2), memcpy(part[1], m + i, left * 2), memcpy(part[2], v + i, left * 2);
    adamw_eight(a, key, index + i, g, part[0], part[1], part[2]);
    memcpy(value + i, part[0], left * 2), memcpy(m + i, part[1], left * 2), memcpy(v + i, part[2], left * 2);
}

static void adamw_bf16(const struct adamw_args *args, const float *gradient, int64_t count, uint16_t *value,
                       uint16_t *m, uint16_t *v) {
    struct adamw a = adamw_open(args);
    for (int64_t i = 0; i < count;) {
        int64_t index = (args->offset + i) % ADAMW_RUN, run = ADAMW_RUN - index;
        if (run > count - i) run = count - i;
        uint64_t key = counter_key(args->seed, (uint64_t)((args->offset + i) / ADAMW_RUN));
        adamw_bf16_run(&a, key, index, gradient + i, run, value + i, m + i, v + i);
        i += run;
    }
}

static void dropout(uint64_t seed, int64_t row, float p, const float *x, int64_t cols, float *y) {
    uint64_t key = counter_key(seed, (uint64_t)row);
    vec below = v_set1(p * 0x1p24f), keep = v_set1(p > 0 ? p < 1 ? 1 / (1 - p) : 0 : 1);
    for (int64_t col = 0; col < cols; col += SIMD_LANES) {
        int lanes = cols - col < SIMD_LANES ? (int)(cols - col) : SIMD_LANES;
        vec chance = _mm256_cvtepi32_ps(_mm256_srli_epi32(counter_bits8(key, col), 8));
        vec factor = v_select_less(chance, below, v_set1(0.0f), keep);
        if (lanes == SIMD_LANES)
            v_store(y + col, v_mul(v_load(x + col), factor));
        else
            v_store_part(y + col, lanes, v_mul(v_load_part(x + col, lanes), factor));
    }
}

const struct training_kernels training_avx2 = {
    .gemm = {[GEMM_F32] = gemm_avx2, [GEMM_BF16] = gemm_avx2},
    .sdpa_forward = sdpa_forward_avx2,
    .sdpa_backward_q = sdpa_backward_q_avx2,
    .sdpa_backward_kv = sdpa_backward_kv_avx2,
    .rms_norm_backward = rms_norm_backward,
    .layer_norm_backward = layer_norm_backward,
    .softmax_backward = softmax_backward,
    .unary_backward = unary_backward,
    .gated_backward = gated_backward,
    .softcap_backward = softcap_backward,
    .cross_entropy = cross_entropy,
    .column_sum = column_sum,
    .sum_of_squares = sum_of_squares,
    .adamw_f32 = adamw_f32,
    .adamw_bf16 = adamw_bf16,
    .dropout = dropout,
};
