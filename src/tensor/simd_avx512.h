/* The vector vocabulary of simd_avx2.h for AVX-512 (F, BW, VL, DQ). Include in
 * *_avx512.c only. The few intrinsics that SIMDe 0.7.4 lacks are spelled out
 * for the emulated build; they are marked SHU_EMULATED. */
#ifndef TENSOR_SIMD_AVX512_H
#define TENSOR_SIMD_AVX512_H

#ifndef SHU_EMULATED
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define SIMD_LANES  16
#define SIMD_INLINE static inline __attribute__((always_inline, unused))

typedef __m512 vec;

SIMD_INLINE vec v_set1(float x) {
    return _mm512_set1_ps(x);
}
SIMD_INLINE vec v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
SIMD_INLINE void v_store(float *p, vec a) {
    _mm512_storeu_ps(p, a);
}
SIMD_INLINE __mmask16 v_lane_mask(int count) {
    return (__mmask16)((1u << count) - 1);
}
#ifdef SHU_EMULATED
SIMD_INLINE vec v_load_part(const float *p, int count) {
    float lanes[SIMD_LANES] = {0};
    memcpy(lanes, p, (size_t)count * sizeof *p);
    return v_load(lanes);
}
SIMD_INLINE void v_store_part(float *p, int count, vec a) {
    float lanes[SIMD_LANES];
    v_store(lanes, a);
    memcpy(p, lanes, (size_t)count * sizeof *p);
}
SIMD_INLINE vec v_round(vec a) {
    float lanes[SIMD_LANES];
    v_store(lanes, a);
    for (int i = 0; i < SIMD_LANES; i++) lanes[i] = __builtin_nearbyintf(lanes[i]);
    return v_load(lanes);
}
SIMD_INLINE __m256 v_halves_sum(vec a) {
    float x[SIMD_LANES];
    v_store(x, a);
    return _mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
}
SIMD_INLINE float v_max_lane(vec a) {
    float x[SIMD_LANES];
    v_store(x, a);
    for (int i = 1; i < SIMD_LANES; i++) x[0] = x[i] > x[0] ? x[i] : x[0];
    return x[0];
}
SIMD_INLINE vec v_load_f16(const uint16_t *p) {
    float lanes[SIMD_LANES];
    for (int i = 0; i < SIMD_LANES; i += 8)
        _mm256_storeu_ps(lanes + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + i))));
    return v_load(lanes);
}
SIMD_INLINE vec v_load_i8(const int8_t *p) {
    float lanes[SIMD_LANES];
    for (int i = 0; i < SIMD_LANES; i++) lanes[i] = (float)p[i];
    return v_load(lanes);
}
/* SIMDe computes 2^n first, which overflows at n = 128 where the instruction does not. */
SIMD_INLINE vec v_ldexp(vec a, vec n) {
    float x[SIMD_LANES], exponent[SIMD_LANES];
    v_store(x, a);
    v_store(exponent, n);
    for (int i = 0; i < SIMD_LANES; i++)
        x[i] = __builtin_ldexpf(x[i], exponent[i] == exponent[i] ? (int)exponent[i] : 0);
    return v_load(x);
}
#else
SIMD_INLINE vec v_ldexp(vec a, vec n) {
    return _mm512_scalef_ps(a, n);
}
SIMD_INLINE vec v_load_part(const float *p, int count) {
    return _mm512_maskz_loadu_ps(v_lane_mask(count), p);
}
SIMD_INLINE void v_store_part(float *p, int count, vec a) {
    _mm512_mask_storeu_ps(p, v_lane_mask(count), a);
}
SIMD_INLINE vec v_round(vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
SIMD_INLINE __m256 v_halves_sum(vec a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
SIMD_INLINE float v_max_lane(vec a) {
    return _mm512_reduce_max_ps(a);
}
SIMD_INLINE vec v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
SIMD_INLINE vec v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
#endif
/* Sum over lanes: upper half onto lower half until one is left (_mm512_reduce_add_ps leaves the order open). */
SIMD_INLINE float v_sum(vec a) {
    __m256 h = v_halves_sum(a);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SIMD_INLINE vec v_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
SIMD_INLINE vec v_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}
SIMD_INLINE vec v_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}
SIMD_INLINE vec v_div(vec a, vec b) {
    return _mm512_div_ps(a, b);
}
SIMD_INLINE vec v_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
SIMD_INLINE float lone_fma(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}
SIMD_INLINE vec v_fnma(vec a, vec b, vec c) {
    return _mm512_fnmadd_ps(a, b, c);
}
/* Written as a comparison: SIMDe's max and min do not keep the instruction's NaN rule. */
SIMD_INLINE vec v_max(vec a, vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), b, a);
}
SIMD_INLINE vec v_min(vec a, vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), b, a);
}
SIMD_INLINE vec v_abs(vec a) {
    return _mm512_abs_ps(a);
}
SIMD_INLINE vec v_with_sign(vec magnitude, vec sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
SIMD_INLINE vec v_select_less(vec a, vec b, vec yes, vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
SIMD_INLINE vec v_select_range(int first, int last, vec a, vec b) {
    return _mm512_mask_blend_ps((__mmask16)(v_lane_mask(last) & ~v_lane_mask(first)), b, a);
}
SIMD_INLINE vec v_ldexp_normal(vec a, vec n) {
    return v_ldexp(a, n);
}
SIMD_INLINE void f16_store8(uint16_t *p, const float *x) {
    __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128((__m128i *)(void *)p, half);
}

#endif
