/* Private to room tensor: matrices rearranged into panels for microkernels (gemm_simd.h, sdpa_avx2.c), by AVX2 also
 * where the microkernel is wider. A panel is `width` columns of a matrix, row behind row: [depth][width].
 * Include in *_avx2.c and *_avx512.c only. */
#ifndef TENSOR_PACK_AVX2_H
#define TENSOR_PACK_AVX2_H

#ifndef SHU_EMULATED
#include <immintrin.h>
#endif
#include <string.h>

#include "tensor/kernels.h"

/* Up to 8 values, zeros behind them; nothing beyond is touched. */
INLINE __m256 pack_load(const float *from, int64_t count) {
    if (count >= 8) return _mm256_loadu_ps(from);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane));
}

/* One row of `cols` values into its place in every panel, panels being `stride` values apart. Columns from cols to the
 * end of the last panel become zero. */
INLINE void pack_row(const float *row, int64_t cols, float *to, int width, int64_t stride) {
    for (int64_t first = 0; first < cols; first += width, to += stride) {
        for (int i = 0; i < width; i += 8) {
            int64_t left = cols - first - i;
            _mm256_storeu_ps(to + i, left > 0 ? pack_load(row + first + i, left) : _mm256_setzero_ps());
        }
    }
}

/* 8 rows of 8 values, `step` apart, to 8 rows of 8 that are `width` apart: columns become rows. */
INLINE void transpose8(const float *from, int64_t step, float *to, int width) {
    __m256 pair[8], quad[8];
    /* Lanes 0-3 of rows r and r + 4 share a register: the 128-bit moves are done by the loads. */
    UNROLL_8 for (int r = 0; r < 4; r++) {
        const float *low = from + r * step, *high = from + (r + 4) * step;
        pair[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
        pair[r + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
    }
    UNROLL_8 for (int h = 0; h < 8; h += 4) {
        __m256 a = _mm256_unpacklo_ps(pair[h], pair[h + 1]), b = _mm256_unpackhi_ps(pair[h], pair[h + 1]);
        __m256 c = _mm256_unpacklo_ps(pair[h + 2], pair[h + 3]), d = _mm256_unpackhi_ps(pair[h + 2], pair[h + 3]);
        quad[h] = _mm256_shuffle_ps(a, c, 0x44);
        quad[h + 1] = _mm256_shuffle_ps(a, c, 0xee);
        quad[h + 2] = _mm256_shuffle_ps(b, d, 0x44);
        quad[h + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    UNROLL_8 for (int r = 0; r < 8; r++) _mm256_storeu_ps(to + r * width, quad[r]);
}

/* 8 rows of `depth` values (a multiple of 8) into columns 0…7 of `to`. */
INLINE void pack_columns(const float *rows, int64_t step, int64_t depth, float *to, int width) {
    for (int64_t k = 0; k < depth; k += 8) transpose8(rows + k, step, to + k * width, width);
}

#endif
