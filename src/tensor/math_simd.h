/* Sums and elementary functions on vectors, over the vocabulary of simd_*.h. The
 * coefficients are our own minimax fits (Lawson iteration in double); errors
 * were measured against double over the whole range by tests/tensor/test_ops.c. */
#ifndef TENSOR_MATH_SIMD_H
#define TENSOR_MATH_SIMD_H

#include "tensor/kernels.h"

/* Sum over all lanes of `count` vectors (1, 2, 4 or 8), which is overwritten: upper half onto lower half until one
 * is left. */
SIMD_INLINE float v_sum_all(vec *part, const int count) {
    if (count > 4) UNROLL_8 for (int j = 0; j < 4; j++) part[j] = v_add(part[j], part[j + 4]);
    if (count > 2) UNROLL_8 for (int j = 0; j < 2; j++) part[j] = v_add(part[j], part[j + 2]);
    if (count > 1) part[0] = v_add(part[0], part[1]);
    return v_sum(part[0]);
}

/* e^x = (1 + p) * 2^n: x = n ln 2 + r, |r| <= ln 2 / 2, ln 2 in two parts (Cody & Waite 1980). */
SIMD_INLINE vec exp_reduce(vec x, vec *n) {
    *n = v_round(v_mul(x, v_set1(1.44269504088896340736f)));
    vec r = v_fnma(*n, v_set1(0x1.62e400p-1f), x);
    r = v_fnma(*n, v_set1(0x1.7f7d1cp-20f), r);
    vec p = v_fma(v_set1(0.00138146f), r, v_set1(0.00836872f));
    p = v_fma(p, r, v_set1(0.04166839f));
    p = v_fma(p, r, v_set1(0.16666521f));
    p = v_fma(p, r, v_set1(0.49999993f));
    p = v_fma(v_mul(p, r), r, r);
    return v_add(p, v_set1(1.0f));
}

/* e^x, within 1 ulp. */
SIMD_INLINE vec v_exp(vec x) {
    vec n, p = exp_reduce(v_min(v_set1(89.0f), v_max(v_set1(-104.0f), x)), &n); /* beyond: infinity, 0; NaN passes */
    return v_ldexp(p, n);
}

/* e^x for x <= 0 (or NaN), flushed to exactly 0 below the normal range: a quarter cheaper. */
SIMD_INLINE vec v_exp_weight(vec x) {
    vec n, p = exp_reduce(v_max(v_set1(-87.0f), x), &n);
    return v_select_less(x, v_set1(-87.0f), v_set1(0.0f), v_ldexp_normal(p, n));
}

SIMD_INLINE vec v_sigmoid(vec x) {
    vec one = v_set1(1.0f);
    return v_div(one, v_add(one, v_exp(v_sub(v_set1(0.0f), x))));
}

/* Odd polynomial near zero, 1 - 2 / (e^2x + 1) beyond. */
SIMD_INLINE vec v_tanh(vec x) {
    vec a = v_abs(x), s = v_mul(a, a), one = v_set1(1.0f);
    vec p = v_fma(v_set1(-0.00570495f), s, v_set1(0.02063905f));
    p = v_fma(p, s, v_set1(-0.0537397f));
    p = v_fma(p, s, v_set1(0.13331442f));
    p = v_fma(p, s, v_set1(-0.33333282f));
    vec near_zero = v_fma(v_mul(p, s), a, a);
    vec beyond = v_sub(one, v_div(v_set1(2.0f), v_add(v_exp(v_add(a, a)), one)));
    return v_with_sign(v_select_less(a, v_set1(0.625f), near_zero, beyond), x);
}

/* 1 + erf(x) = erfc(-x) without cancellation: odd polynomial where |x| < 0.93; beyond, the tail is
 * e^-q(|x|) with q fitted to -ln erfc on [0.92, 6]; at 6 it is 2e-17 and stays there. */
SIMD_INLINE vec v_one_plus_erf(vec x) {
    vec a = v_abs(x), s = v_mul(a, a), zero = v_set1(0.0f);
    vec p = v_fma(v_set1(-5.86203973e-04f), s, v_set1(4.96749784e-03f));
    p = v_fma(p, s, v_set1(-2.67488576e-02f));
    p = v_fma(p, s, v_set1(1.12813205e-01f));
    p = v_fma(p, s, v_set1(-3.76124459e-01f));
    p = v_fma(p, s, v_set1(1.12837914f));
    vec near_zero = v_fma(p, x, v_set1(1.0f));
    vec t = v_min(v_set1(6.0f), a);
    vec q = v_fma(v_set1(8.622276270742191e-08f), t, v_set1(-3.4311618807292277e-06f));
    q = v_fma(q, t, v_set1(6.191185617315798e-05f));
    q = v_fma(q, t, v_set1(-0.0006742047787911352f));
    q = v_fma(q, t, v_set1(0.00498678919305901f));
    q = v_fma(q, t, v_set1(-0.026829095399582465f));
    q = v_fma(q, t, v_set1(0.11051326945265409f));
    q = v_fma(q, t, v_set1(0.6315834824937511f));
    q = v_fma(q, t, v_set1(1.1302812661532518f));
    q = v_fma(q, t, v_set1(-0.0003145889752204846f));
    vec tail = v_exp(v_sub(zero, q));
    vec beyond = v_select_less(x, zero, tail, v_sub(v_set1(2.0f), tail));
    return v_select_less(a, v_set1(0.93f), near_zero, beyond);
}

#endif
