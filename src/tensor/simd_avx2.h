/* The small vector vocabulary in which row operations and attention are
 * written once (ops_simd.h, attention_simd.h), here for AVX2 + FMA + F16C.
 * Include in *_avx2.c only. */
#ifndef TENSOR_SIMD_AVX2_H
#define TENSOR_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_LANES  8
#define SIMD_INLINE static inline __attribute__((always_inline, unused))

typedef __m256 vec;

SIMD_INLINE vec v_set1(float x) {
    return _mm256_set1_ps(x);
}
SIMD_INLINE vec v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
SIMD_INLINE void v_store(float *p, vec a) {
    _mm256_storeu_ps(p, a);
}
/* All ones in lanes [0, count). */
SIMD_INLINE __m256i v_lane_mask(int count) {
    static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(const void *)(ones_then_zeros + 8 - count));
}
/* Lanes [0, count) from memory, the others zero; nothing beyond is touched. */
SIMD_INLINE vec v_load_part(const float *p, int count) {
    return _mm256_maskload_ps(p, v_lane_mask(count));
}
SIMD_INLINE void v_store_part(float *p, int count, vec a) {
    _mm256_maskstore_ps(p, v_lane_mask(count), a);
}
SIMD_INLINE vec v_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
SIMD_INLINE vec v_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}
SIMD_INLINE vec v_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}
SIMD_INLINE vec v_div(vec a, vec b) {
    return _mm256_div_ps(a, b);
}
SIMD_INLINE vec v_fma(vec a, vec b, vec c) { /* a * b + c */
    return _mm256_fmadd_ps(a, b, c);
}
SIMD_INLINE float lone_fma(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}
SIMD_INLINE vec v_fnma(vec a, vec b, vec c) { /* c - a * b */
    return _mm256_fnmadd_ps(a, b, c);
}
/* As the instructions define them: if either operand is NaN the result is b. */
SIMD_INLINE vec v_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}
SIMD_INLINE vec v_min(vec a, vec b) {
    return _mm256_min_ps(a, b);
}
SIMD_INLINE vec v_round(vec a) { /* to nearest even */
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SIMD_INLINE vec v_abs(vec a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
SIMD_INLINE vec v_with_sign(vec magnitude, vec sign) { /* magnitude >= 0 */
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
SIMD_INLINE vec v_select_less(vec a, vec b, vec yes, vec no) { /* a < b ? yes : no; NaN: no */
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
/* Lanes [first, last) from a, the others from b. */
SIMD_INLINE vec v_select_range(int first, int last, vec a, vec b) {
    __m256 in = _mm256_castsi256_ps(_mm256_andnot_si256(v_lane_mask(first), v_lane_mask(last)));
    return _mm256_blendv_ps(b, a, in);
}
/* a * 2^n for whole n in [-160, 160], in two exact steps so that subnormal results round once. */
SIMD_INLINE vec v_ldexp(vec a, vec n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
/* The same where the result is known to be normal. */
SIMD_INLINE vec v_ldexp_normal(vec a, vec n) {
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
/* Sum over lanes: upper half onto lower half until one is left. */
SIMD_INLINE float v_sum(vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SIMD_INLINE float v_max_lane(vec a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
SIMD_INLINE vec v_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
SIMD_INLINE vec v_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* Eight floats to eight halves, round to nearest even. */
SIMD_INLINE void f16_store8(uint16_t *p, const float *x) {
    __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128((__m128i *)(void *)p, half);
}

#endif
