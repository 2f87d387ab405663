/* Reference kernels: plain C, one obvious loop each. Sums are kept in double, in ascending order. */
#include <math.h>

#include "tensor/ops.h"

static void rms_norm(const float *x, const float *gain, float eps, int64_t cols, float *y) {
    double sum = 0;
    for (int64_t i = 0; i < cols; i++) sum += (double)x[i] * (double)x[i];
    float inverse = (float)(1.0 / sqrt(sum / (double)cols + (double)eps));
    for (int64_t i = 0; i < cols; i++) y[i] = x[i] * inverse * (gain ? gain[i] : 1.0f);
}

static void layer_norm(const float *x, const float *gain, const float *bias, float eps, int64_t cols, float *y) {
    double sum = 0, square_sum = 0;
    for (int64_t i = 0; i < cols; i++) sum += (double)x[i];
    double mean = sum / (double)cols;
    for (int64_t i = 0; i < cols; i++) square_sum += ((double)x[i] - mean) * ((double)x[i] - mean);
    float inverse = (float)(1.0 / sqrt(square_sum / (double)cols + (double)eps));
    for (int64_t i = 0; i < cols; i++)
        y[i] = (float)((double)x[i] - mean) * inverse * (gain ? gain[i] : 1.0f) + (bias ? bias[i] : 0.0f);
}

static void softmax(const float *x, float factor, int64_t cols, float *y) {
    float max = -INFINITY;
    for (int64_t i = 0; i < cols; i++) max = x[i] * factor > max ? x[i] * factor : max;
    double sum = 0;
    for (int64_t i = 0; i < cols; i++) {
        y[i] = expf(x[i] * factor - max);
        sum += (double)y[i];
    }
    float inverse = (float)(1.0 / sum);
    for (int64_t i = 0; i < cols; i++) y[i] *= inverse;
}

static float apply(enum unary_kind kind, float x) {
    switch (kind) {
    case UNARY_SILU:
        return x / (1.0f + expf(-x));
    case UNARY_GELU_TANH: /* Hendrycks & Gimpel 2016; 0.5 (1 + tanh u) = 1 / (1 + e^-2u) */
        return x / (1.0f + expf(-2.0f * 0.79788456080286535588f * (x + 0.044715f * x * x * x)));
    case UNARY_GELU_ERF:
        return 0.5f * x * erfcf(x * -0.70710678118654752440f); /* 1 + erf u = erfc(-u) */
    case UNARY_RELU:
        return x < 0.0f ? 0.0f : x; /* NaN stays */
    case UNARY_SIGMOID:
        return 1.0f / (1.0f + expf(-x));
    case UNARY_TANH:
        return tanhf(x);
    case UNARY_EXP:
        return expf(x);
    case UNARY_KINDS:
        break;
    }
    return NAN;
}

static void unary(enum unary_kind kind, const float *x, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = apply(kind, x[i]);
}

static void gated(enum unary_kind kind, const float *gate, const float *up, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = apply(kind, gate[i]) * up[i];
}

static void add(const float *a, const float *b, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = a[i] + b[i];
}

static void mul(const float *a, const float *b, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = a[i] * b[i];
}

static void scale(const float *x, float factor, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * factor;
}

static void softcap(const float *x, float cap, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++) y[i] = cap * tanhf(x[i] / cap);
}

static void rope(float *x, int heads, int head_dim, int rot, bool neox, const float *cos_sin) {
    int half = rot / 2, stride = neox ? 1 : 2, partner = neox ? half : 1;
    const float *sines = cos_sin + half;
    for (int head = 0; head < heads; head++, x += head_dim) {
        for (int i = 0; i < half; i++) {
            float a = x[i * stride], b = x[i * stride + partner];
            x[i * stride] = a * cos_sin[i] - b * sines[i];
            x[i * stride + partner] = a * sines[i] + b * cos_sin[i];
        }
    }
}

const struct ops_table ops_scalar = {rms_norm, layer_norm, softmax, unary, gated, add, mul, scale, softcap, rope};
