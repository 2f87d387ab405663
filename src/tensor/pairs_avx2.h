/* Private to room tensor: neighbours along k rounded to bf16 and put side by side in 32 bits, for gemm_bf16_avx512.c.
 */
#ifndef TENSOR_PAIRS_AVX2_H
#define TENSOR_PAIRS_AVX2_H

#include "tensor/pack_avx2.h"

/* Eight values as bf16 in the lower halves of 32 bits: nearest even, NaN stays NaN. */
INLINE __m256i bf16_round(__m256 x) {
    __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    __m256i even = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, even), 16);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

/* Rows k and k + 1 of [depth][width] become row k / 2 of pairs, in place; an odd last row is paired with zeros. A width
 * that is no multiple of 8 needs room for whole registers behind the last row. */
INLINE void pair_rows(float *rows, int64_t depth, int width) {
    for (int64_t k = 0; k < depth; k += 2) {
        const float *from = rows + k * width;
        for (int i = 0; i < width; i += 8) {
            __m256 second = k + 1 < depth ? _mm256_loadu_ps(from + width + i) : _mm256_setzero_ps();
            __m256i low = bf16_round(_mm256_loadu_ps(from + i)), high = _mm256_slli_epi32(bf16_round(second), 16);
            _mm256_storeu_ps(rows + k / 2 * width + i, _mm256_castsi256_ps(_mm256_or_si256(low, high)));
        }
    }
}

/* `count` neighbours as pairs, zeros behind them up to a multiple of 16 values. */
INLINE void pair_neighbours(const float *from, int64_t count, float *to) {
    for (int64_t i = 0; i < count; i += 16, to += 8) {
        int64_t left = count - i;
        __m256 second = left > 8 ? pack_load(from + i + 8, left - 8) : _mm256_setzero_ps();
        __m256i both = _mm256_packus_epi32(bf16_round(pack_load(from + i, left)), bf16_round(second));
        _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_permute4x64_epi64(both, 0xd8)));
    }
}

#endif
