/* Row operations over the vocabulary of simd_*.h; included once by each of
 * ops_scalar.c, ops_avx2.c and ops_avx512.c, which name the table. The order of
 * every sum is that of kernels.h, whatever the number of lanes. Tails go
 * through the same vector code with masked loads and stores. */
#include "tensor/math_simd.h"
#include "tensor/ops.h"

#include <math.h>

/* Lanes left at column i. */
SIMD_INLINE int lanes_left(int64_t i, int64_t count) {
    return count - i < SIMD_LANES ? (int)(count - i) : SIMD_LANES;
}

SIMD_INLINE vec load_at(const float *x, int64_t i, int lanes) {
    return lanes == SIMD_LANES ? v_load(x + i) : v_load_part(x + i, lanes);
}

SIMD_INLINE void store_at(float *y, int64_t i, int lanes, vec a) {
    if (lanes == SIMD_LANES)
        v_store(y + i, a);
    else
        v_store_part(y + i, lanes, a);
}

#define FOR_LANES(i, lanes, count)                                                                                     \
    for (int64_t i = 0, lanes = lanes_left(0, count); i < (count); i += SIMD_LANES, lanes = lanes_left(i, count))

/* A row sum as its 32 partial sums; what enters a lane beyond the tail must be zero. */
#define SUM_PARTS   32
#define SUM_VECTORS (SUM_PARTS / SIMD_LANES)

SIMD_INLINE void parts_clear(vec part[SUM_VECTORS]) {
    UNROLL_8 for (int j = 0; j < SUM_VECTORS; j++) part[j] = v_set1(0.0f);
}

/* ------------------------------------------------------------------- norms */

/* sum (x - mean)^2 */
static float square_sum(const float *x, float mean, int64_t cols) {
    vec sum[SUM_VECTORS];
    parts_clear(sum);
    vec center = v_set1(mean);
    int64_t i = 0;
    for (; i + SUM_PARTS <= cols; i += SUM_PARTS) {
        UNROLL_8 for (int j = 0; j < SUM_VECTORS; j++) {
            vec a = v_sub(v_load(x + i + j * SIMD_LANES), center);
            sum[j] = v_fma(a, a, sum[j]);
        }
    }
    for (int j = 0; i < cols; i += SIMD_LANES, j++) {
        int lanes = lanes_left(i, cols);
        vec a = v_select_range(0, lanes, v_sub(load_at(x, i, lanes), center), v_set1(0.0f));
        sum[j] = v_fma(a, a, sum[j]);
    }
    return v_sum_all(sum, SUM_VECTORS);
}

static float plain_sum(const float *x, int64_t cols) {
    vec sum[SUM_VECTORS];
    parts_clear(sum);
    int64_t i = 0;
    for (; i + SUM_PARTS <= cols; i += SUM_PARTS)
        UNROLL_8 for (int j = 0; j < SUM_VECTORS; j++) sum[j] = v_add(sum[j], v_load(x + i + j * SIMD_LANES));
    for (int j = 0; i < cols; i += SIMD_LANES, j++) {
        int lanes = lanes_left(i, cols);
        sum[j] = v_add(sum[j], load_at(x, i, lanes));
    }
    return v_sum_all(sum, SUM_VECTORS);
}

static void rms_norm(const float *x, const float *gain, float eps, int64_t cols, float *y) {
    float inverse = 1.0f / sqrtf(square_sum(x, 0.0f, cols) / (float)cols + eps);
    vec factor = v_set1(inverse);
    FOR_LANES(i, lanes, cols) {
        vec a = v_mul(load_at(x, i, (int)lanes), factor);
        store_at(y, i, (int)lanes, gain ? v_mul(a, load_at(gain, i, (int)lanes)) : a);
    }
}

static void layer_norm(const float *x, const float *gain, const float *bias, float eps, int64_t cols, float *y) {
    float mean = plain_sum(x, cols) / (float)cols;
    float inverse = 1.0f / sqrtf(square_sum(x, mean, cols) / (float)cols + eps);
    vec center = v_set1(mean), factor = v_set1(inverse);
    FOR_LANES(i, lanes, cols) {
        vec a = v_mul(v_sub(load_at(x, i, (int)lanes), center), factor);
        if (gain) a = v_mul(a, load_at(gain, i, (int)lanes));
        store_at(y, i, (int)lanes, bias ? v_add(a, load_at(bias, i, (int)lanes)) : a);
    }
}

static void softmax(const float *x, float factor, int64_t cols, float *y) {
    vec scale_by = v_set1(factor), top = v_set1(-INFINITY);
    FOR_LANES(i, lanes, cols) {
        vec a = v_mul(load_at(x, i, (int)lanes), scale_by);
        top = v_max(v_select_range(0, (int)lanes, a, v_set1(-INFINITY)), top); /* a NaN is dropped here, */
    }
    vec shift = v_set1(v_max_lane(top));
    vec sum[SUM_VECTORS];
    parts_clear(sum);
    FOR_LANES(i, lanes, cols) { /* and enters the sum here */
        vec e = v_exp(v_sub(v_mul(load_at(x, i, (int)lanes), scale_by), shift));
        int part = (int)(i / SIMD_LANES % SUM_VECTORS);
        sum[part] = v_add(sum[part], v_select_range(0, (int)lanes, e, v_set1(0.0f)));
        store_at(y, i, (int)lanes, e);
    }
    vec inverse = v_set1(1.0f / v_sum_all(sum, SUM_VECTORS));
    FOR_LANES(i, lanes, cols) store_at(y, i, (int)lanes, v_mul(load_at(y, i, (int)lanes), inverse));
}

/* ---------------------------------------------------------- element by element */

SIMD_INLINE vec apply(enum unary_kind kind, vec x) {
    switch (kind) {
    case UNARY_SILU:
        return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_set1(0.0f), x))));
    case UNARY_GELU_TANH: { /* 0.5 (1 + tanh u) = 1 / (1 + e^-2u): no cancellation on the negative side */
        vec cubic = v_fma(v_mul(v_set1(0.044715f), v_mul(x, x)), x, x);
        vec e = v_exp(v_mul(v_set1(-2.0f * 0.79788456080286535588f), cubic));
        return v_div(x, v_add(v_set1(1.0f), e));
    }
    case UNARY_GELU_ERF:
        return v_mul(v_mul(v_set1(0.5f), x), v_one_plus_erf(v_mul(x, v_set1(0.70710678118654752440f))));
    case UNARY_RELU:
        return v_max(v_set1(0.0f), x); /* NaN is the second operand and stays */
    case UNARY_SIGMOID:
        return v_sigmoid(x);
    case UNARY_TANH:
        return v_tanh(x);
    case UNARY_EXP:
        return v_exp(x);
    case UNARY_KINDS:
        break;
    }
    return v_set1(NAN);
}

SIMD_INLINE void unary_loop(enum unary_kind kind, const float *x, int64_t count, float *y) {
    FOR_LANES(i, lanes, count) store_at(y, i, (int)lanes, apply(kind, load_at(x, i, (int)lanes)));
}

SIMD_INLINE void gated_loop(enum unary_kind kind, const float *gate, const float *up, int64_t count, float *y) {
    FOR_LANES(i, lanes, count) {
        vec a = apply(kind, load_at(gate, i, (int)lanes));
        store_at(y, i, (int)lanes, v_mul(a, load_at(up, i, (int)lanes)));
    }
}

/* One loop per kind, so that the switch is settled at compile time. */
#define EACH_UNARY(loop, ...)                                                                                          \
    switch (kind) {                                                                                                    \
    case UNARY_SILU:                                                                                                   \
        loop(UNARY_SILU, __VA_ARGS__);                                                                                 \
        break;                                                                                                         \
    case UNARY_GELU_TANH:                                                                                              \
        loop(UNARY_GELU_TANH, __VA_ARGS__);                                                                            \
        break;                                                                                                         \
    case UNARY_GELU_ERF:                                                                                               \
        loop(UNARY_GELU_ERF, __VA_ARGS__);                                                                             \
        break;                                                                                                         \
    case UNARY_RELU:                                                                                                   \
        loop(UNARY_RELU, __VA_ARGS__);                                                                                 \
        break;                                                                                                         \
    case UNARY_SIGMOID:                                                                                                \
        loop(UNARY_SIGMOID, __VA_ARGS__);                                                                              \
        break;                                                                                                         \
    case UNARY_TANH:                                                                                                   \
        loop(UNARY_TANH, __VA_ARGS__);                                                                                 \
        break;                                                                                                         \
    case UNARY_EXP:                                                                                                    \
        loop(UNARY_EXP, __VA_ARGS__);                                                                                  \
        break;                                                                                                         \
    case UNARY_KINDS:                                                                                                  \
        break;                                                                                                         \
    }

static void unary(enum unary_kind kind, const float *x, int64_t count, float *y) {
    EACH_UNARY(unary_loop, x, count, y)
}

static void gated(enum unary_kind kind, const float *gate, const float *up, int64_t count, float *y) {
    EACH_UNARY(gated_loop, gate, up, count, y)
}

static void add(const float *a, const float *b, int64_t count, float *y) {
    FOR_LANES(i, lanes, count)
    store_at(y, i, (int)lanes, v_add(load_at(a, i, (int)lanes), load_at(b, i, (int)lanes)));
}

static void mul(const float *a, const float *b, int64_t count, float *y) {
    FOR_LANES(i, lanes, count)
    store_at(y, i, (int)lanes, v_mul(load_at(a, i, (int)lanes), load_at(b, i, (int)lanes)));
}

static void scale(const float *x, float factor, int64_t count, float *y) {
    vec by = v_set1(factor);
    FOR_LANES(i, lanes, count) store_at(y, i, (int)lanes, v_mul(load_at(x, i, (int)lanes), by));
}

static void softcap(const float *x, float cap, int64_t count, float *y) {
    vec limit = v_set1(cap);
    FOR_LANES(i, lanes, count)
    store_at(y, i, (int)lanes, v_mul(limit, v_tanh(v_div(load_at(x, i, (int)lanes), limit))));
}

/* ---------------------------------------------------------------- rotation */

static void rope_halves(float *x, int half, const float *cos_sin) {
    FOR_LANES(i, lanes, half) {
        int n = (int)lanes;
        vec a = load_at(x, i, n), b = load_at(x, half + i, n);
        vec c = load_at(cos_sin, i, n), s = load_at(cos_sin, half + i, n);
        store_at(x, i, n, v_fnma(b, s, v_mul(a, c)));
        store_at(x, half + i, n, v_fma(a, s, v_mul(b, c)));
    }
}

/* A few hundred elements per token: one pair after the other will do. */
static void rope_neighbours(float *x, int half, const float *cos_sin) {
    for (int i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1], c = cos_sin[i], s = cos_sin[half + i];
        x[2 * i] = lone_fma(-b, s, a * c);
        x[2 * i + 1] = lone_fma(a, s, b * c);
    }
}

static void rope(float *x, int heads, int head_dim, int rot, bool neox, const float *cos_sin) {
    for (int head = 0; head < heads; head++) {
        if (neox)
            rope_halves(x + (int64_t)head * head_dim, rot / 2, cos_sin);
        else
            rope_neighbours(x + (int64_t)head * head_dim, rot / 2, cos_sin);
    }
}

/* The includer writes: const struct ops_table NAME = OPS_SIMD_TABLE; */
#define OPS_SIMD_TABLE                                                                                                 \
    { rms_norm, layer_norm, softmax, unary, gated, add, mul, scale, softcap, rope }
