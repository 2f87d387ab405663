/* Training kernels in plain C: the reference. Products and attention: gemm_scalar.c, sdpa_scalar.c. */
#include <math.h>
#include <string.h>

#include "tensor/training_tables.h"

/* ------------------------------------------------------------------- norms */

static void norm_backward(const float *dy, const float *x, const float *gain, float mean, float eps, int64_t cols,
                          bool centred, float *dx, float *normed) {
    double square = 0, along = 0, plain = 0;
    for (int64_t i = 0; i < cols; i++) {
        double centre = (double)(x[i] - mean), d = (double)dy[i] * (gain ? (double)gain[i] : 1);
        square += centre * centre;
        along += d * centre;
        plain += d;
    }
    float inverse = (float)(1 / sqrt(square / (double)cols + (double)eps));
    float share = (float)(along / (double)cols) * inverse, shift = centred ? (float)(plain / (double)cols) : 0;
    for (int64_t i = 0; i < cols; i++) {
        float unit = (x[i] - mean) * inverse, d = dy[i] * (gain ? gain[i] : 1);
        dx[i] = inverse * (d - shift - unit * share);
        if (normed) normed[i] = unit;
    }
}

static void rms_norm_backward(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                              float *normed) {
    norm_backward(dy, x, gain, 0, eps, cols, false, dx, normed);
}

static void layer_norm_backward(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                                float *normed) {
    double sum = 0;
    for (int64_t i = 0; i < cols; i++) sum += (double)x[i];
    norm_backward(dy, x, gain, (float)(sum / (double)cols), eps, cols, true, dx, normed);
}

/* ------------------------------------------------------------ element by element */

static void softmax_backward(const float *dy, const float *y, float scale, int64_t cols, float *dx) {
    double sum = 0;
    for (int64_t i = 0; i < cols; i++) sum += (double)dy[i] * (double)y[i];
    for (int64_t i = 0; i < cols; i++) dx[i] = scale * y[i] * (dy[i] - (float)sum);
}

static float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

/* f(x) and f'(x) */
struct value_slope {
    float value, slope;
};

static struct value_slope unary_at(enum unary_kind kind, float x) {
    float s;
    switch (kind) {
    case UNARY_SILU:
        s = sigmoid(x);
        return (struct value_slope){x * s, s * (1 + x * (1 - s))};
    case UNARY_GELU_TANH: /* s = (1 + tanh u) / 2 */
        s = sigmoid(2 * 0.79788456080286535588f * (x + 0.044715f * x * x * x));
        return (struct value_slope){x * s,
                                    s + x * 2 * s * (1 - s) * 0.79788456080286535588f * (1 + 3 * 0.044715f * x * x)};
    case UNARY_GELU_ERF:
        s = 0.5f * erfcf(-x * 0.70710678118654752440f);
        return (struct value_slope){x * s, s + x * 0.39894228040143267794f * expf(-0.5f * x * x)};
    case UNARY_RELU:
        return (struct value_slope){x < 0 ? 0 : x, x > 0 ? 1 : x < 0 ? 0 : x}; /* NaN stays */
    case UNARY_SIGMOID:
        s = sigmoid(x);
        return (struct value_slope){s, s * (1 - s)};
    case UNARY_TANH:
        s = tanhf(x);
        return (struct value_slope){s, 1 - s * s};
    case UNARY_EXP:
        s = expf(x);
        return (struct value_slope){s, s};
    case UNARY_KINDS:
        break;
    }
    return (struct value_slope){NAN, NAN};
}

static void unary_backward(enum unary_kind kind, const float *dy, const float *x, int64_t count, float *dx) {
    for (int64_t i = 0; i < count; i++) dx[i] = dy[i] * unary_at(kind, x[i]).slope;
}

static void gated_backward(enum unary_kind kind, const float *dy, const float *gate, const float *up, int64_t count,
                           float *d_gate, float *d_up) {
    for (int64_t i = 0; i < count; i++) {
        struct value_slope f = unary_at(kind, gate[i]);
        float d = dy[i];
        d_gate[i] = d * up[i] * f.slope;
        d_up[i] = d * f.value;
    }
}

static void softcap_backward(const float *dy, const float *x, float cap, int64_t count, float *dx) {
    for (int64_t i = 0; i < count; i++) {
        float t = tanhf(x[i] / cap);
        dx[i] = dy[i] * (1 - t * t);
    }
}

/* -------------------------------------------------------------------- loss */

static float cross_entropy(float *logits, int64_t count, int32_t target, float weight, bool gradient) {
    float max = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        if (logits[i] > max) max = logits[i];
    for (int64_t i = 0; i < count; i++) sum += exp((double)logits[i] - (double)max);
    float loss = (float)(log(sum) + ((double)max - (double)logits[target]));
    if (!gradient) return loss;
    double factor = (double)weight / sum;
    for (int64_t i = 0; i < count; i++) logits[i] = (float)(exp((double)logits[i] - (double)max) * factor);
    logits[target] -= weight;
    return loss;
}

/* --------------------------------------------------------------------- sums */

static void column_sum(const float *x, int64_t x_row, int64_t rows, int64_t col0, int64_t col1, float *sum) {
    for (int64_t row = 0; row < rows; row++, x += x_row)
        for (int64_t col = col0; col < col1; col++) sum[col] += x[col];
}

static double sum_of_squares(const float *x, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

/* --------------------------------------------------------------- optimiser */

static void adamw_value(const struct adamw_args *args, float gradient, float *value, float *m, float *v) {
    float g = gradient * args->gradient_scale;
    *m = args->beta1 * *m + (1 - args->beta1) * g;
    *v = args->beta2 * *v + (1 - args->beta2) * g * g;
    float step = *m / args->correction1 / (sqrtf(*v / args->correction2) + args->eps);
    *value -= args->learning_rate * (step + args->weight_decay * *value);
}

static void adamw_f32(const struct adamw_args *args, const float *gradient, int64_t count, float *value, float *m,
                      float *v) {
    for (int64_t i = 0; i < count; i++) adamw_value(args, gradient[i], value + i, m + i, v + i);
}

/* Up with the probability of what truncation would lose. Infinity stays; a NaN must not lose its last bit. */
static uint16_t round_stochastic(float x, uint32_t random16) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + random16) >> 16);
}

static void adamw_bf16(const struct adamw_args *args, const float *gradient, int64_t count, uint16_t *value,
                       uint16_t *m, uint16_t *v) {
    for (int64_t i = 0; i < count; i++) {
        int64_t index = args->offset + i;
        uint64_t key = counter_key(args->seed, (uint64_t)(index / ADAMW_RUN));
        uint32_t first = counter_bits(key, (uint32_t)(index % ADAMW_RUN)), second = counter_mix(~first);
        float value_f = bf16_to_f32(value[i]), m_f = bf16_to_f32(m[i]), v_f = bf16_to_f32(v[i]);
        adamw_value(args, gradient[i], &value_f, &m_f, &v_f);
        value[i] = round_stochastic(value_f, first & 0xffff);
        m[i] = round_stochastic(m_f, first >> 16);
        v[i] = round_stochastic(v_f, second >> 16);
    }
}

static void dropout(uint64_t seed, int64_t row, float p, const float *x, int64_t cols, float *y) {
    for (int64_t col = 0; col < cols; col++) y[col] = x[col] * dropout_factor(seed, row, col, p);
}

const struct training_kernels training_scalar = {
    .gemm = {[GEMM_F32] = gemm_scalar, [GEMM_BF16] = gemm_scalar},
    .sdpa_forward = sdpa_forward_scalar,
    .sdpa_backward_q = sdpa_backward_q_scalar,
    .sdpa_backward_kv = sdpa_backward_kv_scalar,
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
