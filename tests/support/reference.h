/* What kernels and graphs are measured against: error in one number, functions in double. */
#ifndef TESTS_SUPPORT_REFERENCE_H
#define TESTS_SUPPORT_REFERENCE_H

#include <math.h>

#include "tensor/tensor.h"

/* Squared error relative to the reference's energy; a NaN or infinity gives a NaN, which fails !(x <= bound). */
static inline double nmse(const float *found, const double *wanted, int64_t count) {
    double error = 0, energy = 0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)found[i] - wanted[i]) * ((double)found[i] - wanted[i]);
        energy += wanted[i] * wanted[i];
    }
    return error / (energy > 0 ? energy : 1);
}

static inline double unary_reference(enum unary_kind kind, double x) {
    switch (kind) {
    case UNARY_SILU:
        return x / (1 + exp(-x));
    case UNARY_GELU_TANH:
        return x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case UNARY_GELU_ERF:
        return 0.5 * x * erfc(-x * 0.70710678118654752440);
    case UNARY_RELU:
        return x > 0 ? x : 0;
    case UNARY_SIGMOID:
        return 1 / (1 + exp(-x));
    case UNARY_TANH:
        return tanh(x);
    case UNARY_EXP:
        return exp(x);
    case UNARY_KINDS:
        break;
    }
    return NAN;
}

#endif
