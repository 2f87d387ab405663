/* Private to room tensor: memory of one thread's matrix product (training.h). */
#ifndef TENSOR_GEMM_H
#define TENSOR_GEMM_H

#include "tensor/tensor.h"

/* The tile of b, GEMM_DEPTH x GEMM_COLS values as f32. Packed, it is panels of a few columns each, one row of the
 * panel behind the other; a line between panels spreads them over the sets of the cache. */
#define GEMM_LINE     16 /* f32 in a cache line */
#define GEMM_A_ROWS   96 /* rows of a that are packed at a time: a multiple of every microkernel's height */
#define GEMM_B_VALUES (GEMM_COLS * GEMM_DEPTH + GEMM_COLS / GEMM_LINE * GEMM_LINE)

struct gemm_scratch {
    _Alignas(64) float b[GEMM_B_VALUES];
    _Alignas(64) float a[GEMM_A_ROWS * (GEMM_DEPTH + GEMM_LINE)]; /* groups of rows, a line between them */
    _Alignas(64) float rows[8 * (GEMM_DEPTH + GEMM_LINE)];        /* rows of b between decoding and packing */
};

#endif
