/* Rows of weights to f32 for AVX2, with the roundings of quant_decode.c (scale first, then value, never fused), so
 * that every instruction set multiplies the same floats. */
#include "tensor/decode.h"

#include <immintrin.h>

#include "tensor/blocks.h"
#include "tensor/kernels.h"

INLINE __m128i load16(const void *at) {
    return _mm_loadu_si128((const __m128i *)at);
}

INLINE __m256i load32(const void *at) {
    return _mm256_loadu_si256((const __m256i *)at);
}

INLINE float load_half(const uint8_t bytes[2]) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(bytes))));
}

INLINE __m256 signed8(__m128i bytes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

/* 16 signed bytes times d. */
INLINE void store_scaled(__m128i q, __m256 d, float *out) {
    _mm256_storeu_ps(out, _mm256_mul_ps(signed8(q), d));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(signed8(_mm_srli_si128(q, 8)), d));
}

/* 16 small bytes times d plus m. */
INLINE void store_affine(__m128i q, __m256 d, __m256 m, float *out) {
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_mul_ps(signed8(q), d), m));
    _mm256_storeu_ps(out + 8, _mm256_add_ps(_mm256_mul_ps(signed8(_mm_srli_si128(q, 8)), d), m));
}

/* ------------------------------------------------------------- plain types */

static void f16_decode(const void *blocks, float *out, int64_t count) {
    const uint8_t *in = blocks;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(load16(in + 2 * i)));
    if (i < count) dtype_table[DT_F16].to_f32(in + 2 * i, out + i, count - i);
}

static void bf16_decode(const void *blocks, float *out, int64_t count) {
    const uint8_t *in = blocks;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(in + 2 * i)), 16);
        _mm256_storeu_ps(out + i, _mm256_castsi256_ps(words));
    }
    if (i < count) dtype_table[DT_BF16].to_f32(in + 2 * i, out + i, count - i);
}

/* ------------------------------------------------------------ blocks of 32 */

/* 32 nibbles, the low ones first. */
INLINE __m256i nibbles32(const uint8_t *qs) {
    __m128i bytes = load16(qs);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* Bit i of `bits` as 16 or 0 in byte i. */
INLINE __m256i fifth_bits(const uint8_t bits[4]) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)load_u32(bits)), spread);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, each), each), _mm256_set1_epi8(16));
}

INLINE void store32_scaled(__m256i q, float scale, float *out) {
    __m256 d = _mm256_set1_ps(scale);
    store_scaled(_mm256_castsi256_si128(q), d, out);
    store_scaled(_mm256_extracti128_si256(q, 1), d, out + 16);
}

INLINE void store32_affine(__m256i q, float scale, float add, float *out) {
    __m256 d = _mm256_set1_ps(scale), m = _mm256_set1_ps(add);
    store_affine(_mm256_castsi256_si128(q), d, m, out);
    store_affine(_mm256_extracti128_si256(q, 1), d, m, out + 16);
}

static void q4_0_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q4_0 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++)
        store32_scaled(_mm256_sub_epi8(nibbles32(block->qs), _mm256_set1_epi8(8)), load_half(block->d), out + i);
}

static void q4_1_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q4_1 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++)
        store32_affine(nibbles32(block->qs), load_half(block->d), load_half(block->m), out + i);
}

static void q5_0_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q5_0 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++) {
        __m256i q = _mm256_or_si256(nibbles32(block->qs), fifth_bits(block->qh));
        store32_scaled(_mm256_sub_epi8(q, _mm256_set1_epi8(16)), load_half(block->d), out + i);
    }
}

static void q5_1_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q5_1 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++) {
        __m256i q = _mm256_or_si256(nibbles32(block->qs), fifth_bits(block->qh));
        store32_affine(q, load_half(block->d), load_half(block->m), out + i);
    }
}

static void q8_0_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q8_0 *block = blocks;
    for (int64_t i = 0; i < count; i += QUANT_BLOCK, block++)
        store32_scaled(load32(block->qs), load_half(block->d), out + i);
}

/* ---------------------------------------------------- super-blocks of 256 */

/* The eight groups of Q4_K and Q5_K: scale[g] = d * six bits, minus[g] = -(dmin * six bits). */
struct groups {
    float scale[8], minus[8];
};

INLINE __m256 six_bits(uint32_t low, uint32_t high) {
    return signed8(_mm_set_epi32(0, 0, (int)high, (int)low));
}

INLINE void groups_load(const uint8_t packed[12], float d, float dmin, struct groups *out) {
    uint32_t w0 = load_u32(packed), w1 = load_u32(packed + 4), w2 = load_u32(packed + 8);
    uint32_t scale_high = (w2 & 0x0f0f0f0f) | (w0 >> 6 & 0x03030303) << 4;
    uint32_t min_high = (w2 >> 4 & 0x0f0f0f0f) | (w1 >> 6 & 0x03030303) << 4;
    _mm256_storeu_ps(out->scale, _mm256_mul_ps(_mm256_set1_ps(d), six_bits(w0 & 0x3f3f3f3f, scale_high)));
    _mm256_storeu_ps(out->minus, _mm256_mul_ps(_mm256_set1_ps(-dmin), six_bits(w1 & 0x3f3f3f3f, min_high)));
}

static void q4_k_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q4_k *block = blocks;
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        struct groups groups;
        groups_load(block->scales, load_half(block->d), load_half(block->dmin), &groups);
        UNROLL_4 for (int g = 0; g < 8; g += 2) {
            __m256i q = load32(block->qs + g * 16), high = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
            store32_affine(_mm256_and_si256(q, low), groups.scale[g], groups.minus[g], out + g * 32);
            store32_affine(high, groups.scale[g + 1], groups.minus[g + 1], out + g * 32 + 32);
        }
    }
}

/* Bit `g` of every byte as 16 or 0. */
INLINE __m256i bit_as_16(__m256i bytes, int g) {
    __m256i mask = _mm256_set1_epi8((char)(1 << g));
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask), _mm256_set1_epi8(16));
}

static void q5_k_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q5_k *block = blocks;
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++, out += SUPER_BLOCK) {
        struct groups groups;
        groups_load(block->scales, load_half(block->d), load_half(block->dmin), &groups);
        __m256i fifth = load32(block->qh);
        UNROLL_4 for (int g = 0; g < 8; g += 2) {
            __m256i q = load32(block->qs + g * 16), high = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
            q = _mm256_or_si256(_mm256_and_si256(q, low), bit_as_16(fifth, g));
            high = _mm256_or_si256(high, bit_as_16(fifth, g + 1));
            store32_affine(q, groups.scale[g], groups.minus[g], out + g * 32);
            store32_affine(high, groups.scale[g + 1], groups.minus[g + 1], out + g * 32 + 32);
        }
    }
}

/* 32 values of Q6_K: 4 low bits in place, 2 high bits at the bottom of their bytes (others are dropped). */
INLINE void q6_k_quarter(__m256i low, __m256i high, float d, const int8_t scales[2], float *out) {
    __m256i top = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4);
    __m256i q = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), top);
    q = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
    store_scaled(_mm256_castsi256_si128(q), _mm256_set1_ps(d * (float)scales[0]), out);
    store_scaled(_mm256_extracti128_si256(q, 1), _mm256_set1_ps(d * (float)scales[1]), out + 16);
}

static void q6_k_decode(const void *blocks, float *out, int64_t count) {
    const struct block_q6_k *block = blocks;
    for (int64_t i = 0; i < count; i += SUPER_BLOCK, block++) {
        float d = load_half(block->d);
        for (int half = 0; half < 2; half++, out += SUPER_BLOCK / 2) {
            const int8_t *scales = block->scales + half * 8;
            __m256i first = load32(block->ql + half * 64), second = load32(block->ql + half * 64 + 32);
            __m256i high = load32(block->qh + half * 32);
            q6_k_quarter(first, high, d, scales, out);
            q6_k_quarter(second, _mm256_srli_epi16(high, 2), d, scales + 2, out + 32);
            q6_k_quarter(_mm256_srli_epi16(first, 4), _mm256_srli_epi16(high, 4), d, scales + 4, out + 64);
            q6_k_quarter(_mm256_srli_epi16(second, 4), _mm256_srli_epi16(high, 6), d, scales + 6, out + 96);
        }
    }
}

/* F32 is read where it lies; the two rarest types go through the reference. */
decode_fn *const decode_avx2[DT_COUNT] = {
    [DT_F16] = f16_decode,   [DT_BF16] = bf16_decode, [DT_Q4_0] = q4_0_decode, [DT_Q4_1] = q4_1_decode,
    [DT_Q5_0] = q5_0_decode, [DT_Q5_1] = q5_1_decode, [DT_Q8_0] = q8_0_decode, [DT_Q4_K] = q4_k_decode,
    [DT_Q5_K] = q5_k_decode, [DT_Q6_K] = q6_k_decode};
