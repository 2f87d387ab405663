/* The vector vocabulary of simd_avx2.h in plain C: four lanes of GNU C's vector
 * extension, which gcc and clang turn into SSE2 or NEON, and every step defined
 * by IEEE 754 alone, so that its results are the bits of the other sets.
 * Include in *_scalar.c (and tests) only. */
#ifndef TENSOR_SIMD_SCALAR_H
#define TENSOR_SIMD_SCALAR_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "tensor/tensor.h"

#define SIMD_LANES  4
#define SIMD_INLINE static inline __attribute__((always_inline, unused))

typedef float vec __attribute__((vector_size(16)));
typedef int32_t vec_int __attribute__((vector_size(16)));
typedef uint32_t vec_bits __attribute__((vector_size(16)));

#define BITS_SIGN 0x80000000u

SIMD_INLINE vec_bits v_bits1(uint32_t x) {
    return (vec_bits){x, x, x, x};
}
SIMD_INLINE vec v_pick(vec_int mask, vec yes, vec no) {
    return (vec)((mask & (vec_int)yes) | (~mask & (vec_int)no));
}

SIMD_INLINE vec v_set1(float x) {
    return (vec){x, x, x, x};
}
SIMD_INLINE vec v_load(const float *p) {
    vec a;
    memcpy(&a, p, sizeof a);
    return a;
}
SIMD_INLINE void v_store(float *p, vec a) {
    memcpy(p, &a, sizeof a);
}
/* Lanes [0, count) from memory, the others zero; nothing beyond is touched. */
SIMD_INLINE vec v_load_part(const float *p, int count) {
    vec a = {0};
    for (int i = 0; i < count; i++) a[i] = p[i];
    return a;
}
SIMD_INLINE void v_store_part(float *p, int count, vec a) {
    for (int i = 0; i < count; i++) p[i] = a[i];
}
SIMD_INLINE vec v_add(vec a, vec b) {
    return a + b;
}
SIMD_INLINE vec v_sub(vec a, vec b) {
    return a - b;
}
SIMD_INLINE vec v_mul(vec a, vec b) {
    return a * b;
}
SIMD_INLINE vec v_div(vec a, vec b) {
    return a / b;
}
/* a * b + c, rounded once. x86-64 without FMA: the product of two floats is exact in double; the sum is rounded there
 * to odd (Boldo & Melquiond 2008), which keeps what the rounding to float must know. The error of the sum comes from
 * Knuth's two-sum; it is NaN, and changes nothing, where the sum is infinite or NaN. Conversions are intrinsics because
 * gcc 12 drops the rounding of double lanes that become float and double again ("-O2", seen by test_ops). */
#if defined(__x86_64__)
SIMD_INLINE __m128d fma_to_odd(__m128 a, __m128 b, __m128 c) {
    typedef uint64_t bits2 __attribute__((vector_size(16)));
    const bits2 one = {1, 1};
    __m128d product = _mm_cvtps_pd(a) * _mm_cvtps_pd(b), addend = _mm_cvtps_pd(c), sum = product + addend;
    __m128d back = sum - product, error = (product - (sum - back)) + (addend - back), zero = {0};
    bits2 bits = (bits2)sum, inexact = (bits2)((error < zero) | (error > zero));
    bits2 inward = ((bits2)error ^ bits) >> 63; /* the exact sum is nearer to zero */
    return (__m128d)(bits + ((one - inward - inward) & inexact & ((bits & one) - one)));
}
SIMD_INLINE vec v_fma(vec a, vec b, vec c) {
    __m128d low = fma_to_odd(a, b, c);
    __m128d high = fma_to_odd(_mm_movehl_ps(a, a), _mm_movehl_ps(b, b), _mm_movehl_ps(c, c));
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}
#elif defined(__aarch64__)
SIMD_INLINE vec v_fma(vec a, vec b, vec c) {
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
SIMD_INLINE vec v_fma(vec a, vec b, vec c) {
    for (int i = 0; i < SIMD_LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
#endif
SIMD_INLINE float lone_fma(float a, float b, float c) {
    return v_fma(v_set1(a), v_set1(b), v_set1(c))[0];
}
SIMD_INLINE vec v_fnma(vec a, vec b, vec c) { /* c - a * b */
    return v_fma((vec)((vec_bits)a ^ v_bits1(BITS_SIGN)), b, c);
}
/* If either operand is NaN the result is b. */
SIMD_INLINE vec v_max(vec a, vec b) {
    return v_pick(a > b, a, b);
}
SIMD_INLINE vec v_min(vec a, vec b) {
    return v_pick(a < b, a, b);
}
SIMD_INLINE vec v_abs(vec a) {
    return (vec)((vec_bits)a & ~v_bits1(BITS_SIGN));
}
SIMD_INLINE vec v_with_sign(vec magnitude, vec sign) { /* magnitude >= 0 */
    return (vec)((vec_bits)magnitude | ((vec_bits)sign & v_bits1(BITS_SIGN)));
}
/* To nearest even: what lies below 2^23 loses its fraction when 2^23 is added; the rest has none. */
SIMD_INLINE vec v_round(vec a) {
    vec size = v_abs(a), whole = v_set1(0x1p23f);
    return v_pick(size < whole, v_with_sign((size + whole) - whole, a), a);
}
SIMD_INLINE vec v_select_less(vec a, vec b, vec yes, vec no) { /* a < b ? yes : no; NaN: no */
    return v_pick(a < b, yes, no);
}
/* Lanes [first, last) from a, the others from b. */
SIMD_INLINE vec v_select_range(int first, int last, vec a, vec b) {
    const vec_int lane = {0, 1, 2, 3}, from = {first, first, first, first}, to = {last, last, last, last};
    return v_pick((lane >= from) & (lane < to), a, b);
}
/* A whole number below 2^22 as integer; anything for NaN. */
SIMD_INLINE vec_bits v_whole(vec n) {
    return (vec_bits)(n + v_set1(0x1.8p23f)) - (vec_bits)v_set1(0x1.8p23f);
}
/* a * 2^n for whole n in [-160, 160], in two exact steps so that subnormal results round once. */
SIMD_INLINE vec v_ldexp(vec a, vec n) {
    vec_bits whole = v_whole(n), half = (vec_bits)((vec_int)whole >> 1), bias = v_bits1(127);
    return a * (vec)((half + bias) << 23) * (vec)((whole - half + bias) << 23);
}
/* The same where the result is known to be normal. */
SIMD_INLINE vec v_ldexp_normal(vec a, vec n) {
    return v_pick(n == n, (vec)((vec_bits)a + (v_whole(n) << 23)), a);
}
/* Sum over lanes: upper half onto lower half until one is left. */
SIMD_INLINE float v_sum(vec a) {
    return (a[0] + a[2]) + (a[1] + a[3]);
}
SIMD_INLINE float v_max_lane(vec a) {
    float low = a[0] > a[2] ? a[0] : a[2], high = a[1] > a[3] ? a[1] : a[3];
    return low > high ? low : high;
}
/* The exponent moves by a product with 2^112, which also makes subnormal halves normal. */
SIMD_INLINE vec v_load_f16(const uint16_t *p) {
    vec_bits half = {p[0], p[1], p[2], p[3]}, size = (half & v_bits1(0x7fff)) << 13;
    vec_int special = (vec_int)(size >= v_bits1(0x7c00 << 13)); /* infinity, NaN */
    vec value = v_pick(special, (vec)(size | v_bits1(0x7f800000)), (vec)size * v_set1(0x1p112f));
    return (vec)((vec_bits)value | (half & v_bits1(0x8000)) << 16);
}
SIMD_INLINE vec v_load_bf16(const uint16_t *p) {
    return (vec)((vec_bits){p[0], p[1], p[2], p[3]} << 16);
}
SIMD_INLINE vec v_load_i8(const int8_t *p) {
    return (vec){p[0], p[1], p[2], p[3]};
}
/* Eight floats to eight halves, round to nearest even. */
SIMD_INLINE void f16_store8(uint16_t *p, const float *x) {
    for (int i = 0; i < 8; i++) p[i] = f32_to_f16(x[i]);
}

#endif
