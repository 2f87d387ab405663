/* The microkernel of training's products over the vocabulary of simd_*.h: MICRO_ROWS x 2 vectors of c in registers,
 * against one panel of b (pack_avx2.h). Included by gemm_simd.h and sdpa_avx2.c, whose includers define MICRO_ROWS. */
#ifndef TENSOR_MICRO_SIMD_H
#define TENSOR_MICRO_SIMD_H

#include "tensor/kernels.h"

/* factor * b + sum, by lanes; an includer whose elements are pairs of bf16 puts a dot product here. */
#ifndef MICRO_FMA
#define MICRO_FMA(factor, b, sum) v_fma(factor, b, sum)
#endif

#define MICRO_WIDTH (2 * SIMD_LANES)
#define MICRO_LINE  16 /* f32 in a cache line */

#if defined(SHU_EMULATED) || defined(SHU_COMPACT_KERNELS)
#define UNROLL_16
#elif defined(__clang__)
#define UNROLL_16 _Pragma("unroll") /* whole: before arrays become registers */
#else
#define UNROLL_16 _Pragma("GCC unroll 16")
#endif

/* One panel against rows of a: where the results go. */
struct strip {
    const float *b;
    int64_t depth;
    int cols; /* of the panel */
    bool start;
    int64_t prefetch; /* a is new: distance to the rows that come next, else 0 */
    float alpha;
    const float *bias; /* of the panel's first column, or NULL */
    float *c;
    int64_t c_row;
};

SIMD_INLINE vec strip_load(const struct strip *strip, const float *c, int v) {
    int left = strip->cols - v * SIMD_LANES;
    const float *from = strip->start ? strip->bias : c;
    if (!from || left <= 0) return v_set1(0.0f);
    return left >= SIMD_LANES ? v_load(from + v * SIMD_LANES) : v_load_part(from + v * SIMD_LANES, left);
}

SIMD_INLINE void strip_store(const struct strip *strip, float *c, int v, vec value) {
    int left = strip->cols - v * SIMD_LANES;
    if (left >= SIMD_LANES)
        v_store(c + v * SIMD_LANES, value);
    else if (left > 0)
        v_store_part(c + v * SIMD_LANES, left, value);
}

/* `rows` x MICRO_WIDTH elements of c, from row `row` on. */
SIMD_INLINE void micro(const int rows, const struct strip *strip, int64_t row, const float *a, const int64_t a_row,
                       const int64_t a_col) {
    const float *b = strip->b;
    float *c = strip->c + row * strip->c_row;
    vec sum[MICRO_ROWS][2];
    UNROLL_16 for (int r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = v_set1(0.0f);
        __builtin_prefetch(c + r * strip->c_row, 1);
    }
    const float *third[(MICRO_ROWS + 2) / 3]; /* every third row: x86 addresses the two after it from here */
    UNROLL_16 for (int r = 0; r < rows; r += 3) third[r / 3] = a + r * a_row;
    for (int64_t k = 0; k < strip->depth;) {
        int64_t line = k + MICRO_LINE < strip->depth ? k + MICRO_LINE : strip->depth;
        if (strip->prefetch)
            UNROLL_16 for (int r = 0; r < rows; r++) __builtin_prefetch(third[r / 3] + r % 3 * a_row + strip->prefetch);
        UNROLL_4 for (; k < line; k++) {
            vec left = v_load(b), right = v_load(b + SIMD_LANES);
            UNROLL_16 for (int r = 0; r < rows; r++) {
                vec factor = v_set1(third[r / 3][r % 3 * a_row]);
                sum[r][0] = MICRO_FMA(factor, left, sum[r][0]);
                sum[r][1] = MICRO_FMA(factor, right, sum[r][1]);
            }
            UNROLL_16 for (int r = 0; r < rows; r += 3) third[r / 3] += a_col;
            b += MICRO_WIDTH;
        }
    }
    vec alpha = v_set1(strip->alpha);
    UNROLL_16 for (int r = 0; r < rows; r++, c += strip->c_row) {
        vec left = v_fma(alpha, sum[r][0], strip_load(strip, c, 0));
        vec right = v_fma(alpha, sum[r][1], strip_load(strip, c, 1));
        strip_store(strip, c, 0, left);
        strip_store(strip, c, 1, right);
    }
}

#define MICRO_HEIGHT(height, a_row, a_col)                                                                             \
    if ((height) < MICRO_ROWS && rows - row >= (height)) {                                                             \
        micro((height) < MICRO_ROWS ? (height) : 1, strip, row, a, a_row, a_col);                                      \
        row += (height), a += (height) * (a_row);                                                                      \
    }

/* Body of a function (strip, rows, a): all rows, the last ones in heights of 8, 4, 2 and 1. group: from MICRO_ROWS rows
 * of a to the next. */
#define STRIP_ROWS(a_row, a_col, group)                                                                                \
    int64_t row = 0;                                                                                                   \
    for (; row + MICRO_ROWS <= rows; row += MICRO_ROWS, a += (group)) micro(MICRO_ROWS, strip, row, a, a_row, a_col);  \
    MICRO_HEIGHT(8, a_row, a_col)                                                                                      \
    MICRO_HEIGHT(4, a_row, a_col)                                                                                      \
    MICRO_HEIGHT(2, a_row, a_col)                                                                                      \
    MICRO_HEIGHT(1, a_row, a_col)

#endif
