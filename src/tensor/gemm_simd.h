/* Products of training over the vocabulary of simd_*.h; included by gemm_avx2.c and gemm_avx512.c, which define
 * MICRO_ROWS and name the function.
 *
 * A tile of b (GEMM_DEPTH x GEMM_COLS) is decoded and packed into panels of two vectors' width, which stay in the
 * second-level cache while all rows of a pass by. The microkernel holds MICRO_ROWS x 2 vectors of c in registers and
 * reads a panel (16 KiB) from the first-level cache and a by broadcasts from where it lies. Only where neighbours in
 * a are apart along k (dW = dy^T x) a is copied, GEMM_A_ROWS at a time, so that a page is not touched per element.
 *
 * With GEMM_PAIRS the packed forms of a and b are rounded to pairs of bf16 along k, each in the place of one f32, and
 * MICRO_FMA multiplies and adds both. a is then always copied, row by row where it lies along k.
 *
 * Fixed order (training.h): an element is one fused chain per GEMM_DEPTH of k, then one fused alpha * chain + c. */
#include "tensor/decode.h"
#include "tensor/gemm.h"
#include "tensor/kernels.h"
#include "tensor/micro_simd.h"
#include "tensor/pack_avx2.h"

#define GEMM_PANEL (MICRO_WIDTH * GEMM_DEPTH + GEMM_LINE) /* from a panel to the next */
#define GEMM_GROUP (MICRO_ROWS * GEMM_DEPTH + GEMM_LINE)  /* from MICRO_ROWS packed rows of a to the next */
#ifdef GEMM_PAIRS
#include "tensor/pairs_avx2.h"
#define GEMM_STEPS(depth) (((depth) + 1) / 2) /* of the microkernel */
#else
#define GEMM_STEPS(depth) (depth)
#endif
#define ROW_STEP (GEMM_DEPTH + GEMM_LINE) /* between decoded rows: no power of two */

struct tile {
    int64_t n0, cols, k0, depth;
};

/* ------------------------------------------------------------- packing of b */

static const uint8_t *b_at(const struct gemm_args *args, int64_t row, int64_t col) {
    const struct dtype_info *info = &dtype_table[args->b_dtype];
    return (const uint8_t *)args->b + (size_t)row * args->b_row_bytes +
           (size_t)(col / info->block) * (size_t)info->block_bytes;
}

static void b_decode(const struct gemm_args *args, int64_t row, int64_t col, int64_t count, float *out) {
    decode_fn *decode = decode_avx2[args->b_dtype];
    (decode ? decode : dtype_table[args->b_dtype].to_f32)(b_at(args, row, col), out, count);
}

/* The hardware does not foresee the jump from one row's part to the next: ask for what comes AHEAD rows later. */
#define AHEAD 8
static void b_prefetch(const struct gemm_args *args, int64_t row, int64_t rows_end, int64_t col, int64_t count) {
    const struct dtype_info *info = &dtype_table[args->b_dtype];
    int64_t bytes = count / info->block * info->block_bytes;
    if (row >= rows_end) return;
    const uint8_t *at = b_at(args, row, col);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
}

/* Rows of b are rows of the panels. */
static void pack_plain(const struct gemm_args *args, struct tile tile, struct gemm_scratch *scratch) {
    for (int64_t k = 0; k < tile.depth; k++) {
        const float *row = scratch->rows;
        b_prefetch(args, tile.k0 + k + AHEAD, tile.k0 + tile.depth, tile.n0, tile.cols);
        if (args->b_dtype == DT_F32)
            row = (const float *)(const void *)b_at(args, tile.k0 + k, tile.n0);
        else
            b_decode(args, tile.k0 + k, tile.n0, tile.cols, scratch->rows);
        pack_row(row, tile.cols, scratch->b + k * MICRO_WIDTH, MICRO_WIDTH, GEMM_PANEL);
    }
}

/* Rows of b are columns of the panels: eight at a time are decoded and turned. */
static void pack_turned(const struct gemm_args *args, struct tile tile, struct gemm_scratch *scratch) {
    int64_t depth = (tile.depth + 7) / 8 * 8, padded = (tile.cols + MICRO_WIDTH - 1) / MICRO_WIDTH * MICRO_WIDTH;
    bool f32 = args->b_dtype == DT_F32 && depth == tile.depth && args->b_row_bytes % sizeof(float) == 0;
    for (int64_t n = 0; n < padded; n += 8) {
        float *to = scratch->b + n / MICRO_WIDTH * GEMM_PANEL + n % MICRO_WIDTH;
        for (int i = 0; i < 8; i++) b_prefetch(args, tile.n0 + n + i + AHEAD, tile.n0 + tile.cols, tile.k0, tile.depth);
        if (f32 && n + 8 <= tile.cols) {
            const float *rows = (const float *)(const void *)b_at(args, tile.n0 + n, tile.k0);
            pack_columns(rows, (int64_t)(args->b_row_bytes / sizeof(float)), depth, to, MICRO_WIDTH);
            continue;
        }
        for (int i = 0; i < 8; i++) {
            float *row = scratch->rows + i * ROW_STEP;
            int64_t valid = n + i < tile.cols ? tile.depth : 0;
            if (valid > 0) b_decode(args, tile.n0 + n + i, tile.k0, valid, row);
            for (int64_t k = valid; k < depth; k++) row[k] = 0;
        }
        pack_columns(scratch->rows, ROW_STEP, depth, to, MICRO_WIDTH);
    }
}

/* ------------------------------------------------------------- packing of a */

/* Rows m, m + 1, … lie side by side: groups of MICRO_ROWS, each [depth][MICRO_ROWS]. Whole registers are stored: what
 * goes beyond a line is overwritten by the next one, beyond a group it falls into the gap. */
static void pack_a(const float *a, int64_t a_col, int64_t rows, int64_t depth, float *out) {
    for (int64_t k = 0; k < depth; k++, a += a_col) {
        float *to = out + k * MICRO_ROWS;
        if (k + AHEAD < depth)
            for (int64_t i = 0; i < rows; i += GEMM_LINE) __builtin_prefetch(a + AHEAD * a_col + i);
        for (int64_t first = 0; first < rows; first += MICRO_ROWS, to += GEMM_GROUP) {
            int64_t left = rows - first;
            if (left >= SIMD_LANES)
                v_store(to, v_load(a + first));
            else
                v_store(to, v_load_part(a + first, (int)left));
        }
    }
}

/* --------------------------------------------------------------------- tiles */

static void strip_direct(const struct strip *strip, int64_t rows, const float *a, int64_t a_row) {
    STRIP_ROWS(a_row, 1, MICRO_ROWS * a_row)
}

static void strip_packed(const struct strip *strip, int64_t rows, const float *a) {
    STRIP_ROWS(1, MICRO_ROWS, GEMM_GROUP)
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Rows of a as the microkernel takes them: `turned` in groups of MICRO_ROWS, else `row` apart. */
struct left {
    const float *a;
    int64_t row;
    bool turned, fresh; /* fresh: not copied, so worth asking for ahead of time */
};

static struct left left_of(const struct gemm_args *args, struct tile tile, int64_t m, int64_t rows,
                           struct gemm_scratch *scratch) {
    const float *a = args->a + m * args->a_row + tile.k0 * args->a_col;
    bool turned = args->a_col != 1;
    if (turned) pack_a(a, args->a_col, rows, tile.depth, scratch->a);
#ifdef GEMM_PAIRS
    for (int64_t row = 0; row < rows; row += turned ? MICRO_ROWS : 1) {
        if (turned)
            pair_rows(scratch->a + row / MICRO_ROWS * GEMM_GROUP, tile.depth, MICRO_ROWS);
        else
            pair_neighbours(a + row * args->a_row, tile.depth, scratch->a + row * ROW_STEP);
    }
    return (struct left){scratch->a, ROW_STEP, turned, false};
#else
    return turned ? (struct left){scratch->a, 0, true, false} : (struct left){a, args->a_row, false, true};
#endif
}

static void pack_b(const struct gemm_args *args, struct tile tile, struct gemm_scratch *scratch) {
    (args->b_transposed ? pack_turned : pack_plain)(args, tile, scratch);
#ifdef GEMM_PAIRS
    for (int64_t n = 0; n < tile.cols; n += MICRO_WIDTH)
        pair_rows(scratch->b + n / MICRO_WIDTH * GEMM_PANEL, tile.depth, MICRO_WIDTH);
#endif
}

/* Rows [m, m + rows) times the packed tile. */
static void block_times(const struct gemm_args *args, struct tile tile, int64_t m, int64_t rows,
                        struct gemm_scratch *scratch) {
    struct left left = left_of(args, tile, m, rows, scratch);
    for (int64_t n = 0; n < tile.cols; n += MICRO_WIDTH) {
        struct strip strip = {.b = scratch->b + n / MICRO_WIDTH * GEMM_PANEL,
                              .depth = GEMM_STEPS(tile.depth),
                              .cols = (int)smaller(tile.cols - n, MICRO_WIDTH),
                              .prefetch = left.fresh && n == 0 ? MICRO_ROWS * left.row : 0,
                              .start = tile.k0 == 0 && !args->accumulate,
                              .alpha = args->alpha,
                              .bias = args->bias ? args->bias + tile.n0 + n : NULL,
                              .c = args->c + m * args->c_row + tile.n0 + n,
                              .c_row = args->c_row};
        if (left.turned)
            strip_packed(&strip, rows, left.a);
        else
            strip_direct(&strip, rows, left.a, left.row);
    }
}

static void no_depth(const struct gemm_args *args, int64_t m, int64_t n0, int64_t n1) {
    float *c = args->c + m * args->c_row;
    for (int64_t n = n0; n < n1 && !args->accumulate; n++) c[n] = args->bias ? args->bias[n] : 0;
}

static void gemm(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *memory) {
    struct gemm_scratch *scratch = memory;
    if (args->k == 0)
        for (int64_t m = m0; m < m1; m++) no_depth(args, m, n0, n1);
    for (int64_t n = n0; n < n1; n += GEMM_COLS) {
        for (int64_t k = 0; k < args->k; k += GEMM_DEPTH) {
            struct tile tile = {n, smaller(n1 - n, GEMM_COLS), k, smaller(args->k - k, GEMM_DEPTH)};
            pack_b(args, tile, scratch);
            for (int64_t m = m0; m < m1; m += GEMM_A_ROWS)
                block_times(args, tile, m, smaller(m1 - m, GEMM_A_ROWS), scratch);
        }
    }
}
