/* Products of training in plain C, for every type that decodes: the reference, and what runs where nothing better
 * does. A tile of b is decoded to [k][n]; an element's sum over one GEMM_DEPTH of k is a chain of its own, and all
 * chains of a row stand side by side, so that compilers may vectorise across them. */
#include <string.h>

#include "tensor/gemm.h"
#include "tensor/training_tables.h"

struct tile {
    int64_t n0, cols, k0, depth;
};

static const uint8_t *b_at(const struct gemm_args *args, int64_t row, int64_t col) {
    const struct dtype_info *info = &dtype_table[args->b_dtype];
    return (const uint8_t *)args->b + (size_t)row * args->b_row_bytes +
           (size_t)(col / info->block) * (size_t)info->block_bytes;
}

static void b_decode(const struct gemm_args *args, struct tile tile, struct gemm_scratch *scratch) {
    void (*to_f32)(const void *, float *, int64_t) = dtype_table[args->b_dtype].to_f32;
    if (!args->b_transposed) {
        for (int64_t k = 0; k < tile.depth; k++)
            to_f32(b_at(args, tile.k0 + k, tile.n0), scratch->b + k * GEMM_COLS, tile.cols);
        return;
    }
    for (int64_t n = 0; n < tile.cols; n++) {
        to_f32(b_at(args, tile.n0 + n, tile.k0), scratch->rows, tile.depth);
        for (int64_t k = 0; k < tile.depth; k++) scratch->b[k * GEMM_COLS + n] = scratch->rows[k];
    }
}

static void row_start(const struct gemm_args *args, int64_t m, int64_t n0, int64_t n1) {
    float *c = args->c + m * args->c_row;
    if (args->accumulate) return;
    for (int64_t n = n0; n < n1; n++) c[n] = args->bias ? args->bias[n] : 0;
}

static void row_add(const struct gemm_args *args, struct tile tile, int64_t m, const float *b) {
    const float *a = args->a + m * args->a_row + tile.k0 * args->a_col;
    float *c = args->c + m * args->c_row + tile.n0;
    float sum[GEMM_COLS] = {0};
    for (int64_t k = 0; k < tile.depth; k++, b += GEMM_COLS) {
        float factor = a[k * args->a_col];
        for (int64_t n = 0; n < tile.cols; n++) sum[n] += factor * b[n];
    }
    for (int64_t n = 0; n < tile.cols; n++) c[n] += args->alpha * sum[n];
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void gemm_scalar(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *memory) {
    struct gemm_scratch *scratch = memory;
    for (int64_t m = m0; m < m1; m++) row_start(args, m, n0, n1);
    for (int64_t n = n0; n < n1; n += GEMM_COLS) {
        for (int64_t k = 0; k < args->k; k += GEMM_DEPTH) {
            struct tile tile = {n, smaller(n1 - n, GEMM_COLS), k, smaller(args->k - k, GEMM_DEPTH)};
            b_decode(args, tile, scratch);
            for (int64_t m = m0; m < m1; m++) row_add(args, tile, m, scratch->b);
        }
    }
}
