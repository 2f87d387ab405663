/* The AVX2 table of products, and the activation quantiser (same floats as the scalar one, bit for bit). */
#include "tensor/matmul_avx2.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

/* Fills the correction sums from q: vpmaddubsw by ones adds columns in pairs, so that int16 2g + k is part k of group
 * g. */
static void block_sums(struct act8_block *out) {
    const __m256i q = _mm256_loadu_si256((const __m256i *)(const void *)out->q);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q); /* half h in 128-bit lane h */
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    __m128i half0 = _mm256_castsi256_si128(pairs), half1 = _mm256_extracti128_si256(pairs, 1);
    /* Words: minus8, minus16, minus32[0], minus32[1], in the order of the struct. */
    __m128i both = _mm_add_epi16(half0, half1);
    __m128i parts = _mm_unpacklo_epi64(_mm_unpacklo_epi32(both, both), _mm_unpacklo_epi32(half0, half1));
    parts = _mm_mullo_epi16(parts, _mm_setr_epi16(-8, -8, -16, -16, -32, -32, -32, -32));
    _mm_storeu_si128((__m128i *)(void *)out->minus8, parts);
    __m128i sums = _mm_madd_epi16(_mm_unpacklo_epi32(half0, half1), _mm_set1_epi16(1));
    int32_t sum0 = _mm_cvtsi128_si32(sums), sum1 = _mm_extract_epi32(sums, 1);
    out->half_sum[0] = (int16_t)sum0;
    out->half_sum[1] = (int16_t)sum1;
    out->zero = 0;
    out->sum = out->scale * (float)(sum0 + sum1);
}

static void block_quantize(const float *x, struct act8_block *out) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
    /* Magnitudes compare as integers; NaN and infinity come out on top. */
    __m256i a = _mm256_castps_si256(_mm256_and_ps(v[0], magnitude)),
            b = _mm256_castps_si256(_mm256_and_ps(v[1], magnitude));
    __m256i c = _mm256_castps_si256(_mm256_and_ps(v[2], magnitude)),
            d = _mm256_castps_si256(_mm256_and_ps(v[3], magnitude));
    a = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
    __m128i top = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    float max = _mm_cvtss_f32(_mm_castsi128_ps(top));
    bool finite = _mm_cvtsi128_si32(top) < 0x7f800000, quiet = !finite || max < 0x1p-100f;
    if (quiet) {
        *out = (struct act8_block){.scale = finite ? 0 : NAN, .sum = finite ? 0 : NAN};
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / max);
    __m256i q[4];
    for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)out->q, bytes);
    out->scale = max / 127.0f;
    block_sums(out);
}

static void quantize(const float *x, int64_t cols, void *out) {
    struct act8_block *block = out;
    int64_t whole = cols - cols % ACT8_BLOCK;
    for (int64_t c = 0; c < whole; c += ACT8_BLOCK) block_quantize(x + c, block++);
    if (whole == cols) return;
    float padded[ACT8_BLOCK] = {0};
    memcpy(padded, x + whole, (size_t)(cols - whole) * sizeof *x);
    block_quantize(padded, block);
}

const struct matmul_table matmul_avx2 = {
    .lanes = 8,
    .matmul =
        {
            [DT_F32] = matmul_f32_avx2,
            [DT_F16] = matmul_f16_avx2,
            [DT_BF16] = matmul_bf16_avx2,
            [DT_Q4_0] = matmul_q4_0_avx2,
            [DT_Q4_1] = matmul_q4_1_avx2,
            [DT_Q5_0] = matmul_q5_0_avx2,
            [DT_Q5_1] = matmul_q5_1_avx2,
            [DT_Q8_0] = matmul_q8_0_avx2,
            [DT_Q2_K] = matmul_q2_k_avx2,
            [DT_Q3_K] = matmul_q3_k_avx2,
            [DT_Q4_K] = matmul_q4_k_avx2,
            [DT_Q5_K] = matmul_q5_k_avx2,
            [DT_Q6_K] = matmul_q6_k_avx2,
        },
    .act8_quantize = quantize,
};
