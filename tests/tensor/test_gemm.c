/* Products of training: precision x type of b x layout x odd shapes x instruction set, against double. */
#include "check.h"

static const enum dtype types[] = {DT_F32,  DT_F16,  DT_BF16, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1,
                                   DT_Q8_0, DT_Q2_K, DT_Q3_K, DT_Q4_K, DT_Q5_K, DT_Q6_K};
#define TYPES (sizeof types / sizeof *types)

#define BOUND 1e-12 /* squared error by the sum of squares of all terms: chains of 256 in f32 */

/* One product with its operands; a and b are exactly as large as they must be, so that a sanitizer sees overreads. */
struct product {
    struct gemm_args args;
    float *a, *b_values, *bias, *c_start;
    void *b, *scratch;
    struct guarded c;
    double *want, energy; /* sum of the squares of all terms: a small sum of large ones is not to be blamed */
    int64_t b_rows, b_cols;
};

static bool quantised(enum dtype dtype) {
    return dtype_table[dtype].block > 1;
}

static int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

/* Values of b as the type holds them. Types without an encoder get random bytes with halves of a low exponent. */
static void make_b(struct product *p, struct rng *rng) {
    const struct dtype_info *info = &dtype_table[p->args.b_dtype];
    int64_t count = p->b_rows * p->b_cols;
    p->args.b_row_bytes = dtype_row_bytes(p->args.b_dtype, p->b_cols);
    size_t bytes = (size_t)p->b_rows * p->args.b_row_bytes;
    p->b = malloc(bytes);
    p->b_values = malloc((size_t)count * sizeof(float));
    assert_true(p->b && p->b_values);
    for (int64_t i = 0; i < count; i++) p->b_values[i] = rng_normal(rng);
    if (info->from_f32) {
        info->from_f32(p->b_values, NULL, p->b, count);
    } else {
        for (size_t i = 0; i < bytes; i++) ((uint8_t *)p->b)[i] = (uint8_t)(rng_next(rng) & 0x2f);
    }
    info->to_f32(p->b, p->b_values, count);
    p->args.b = p->b;
}

/* turned_a: rows of a side by side. The gap is between rows of a and of c. */
static void product_new(struct product *p, enum dtype dtype, bool transposed, bool turned_a, int64_t m, int64_t n,
                        int64_t k, struct rng *rng) {
    *p = (struct product){0};
    if (quantised(dtype) && transposed) k = round_up(k, dtype_table[dtype].block);
    if (quantised(dtype) && !transposed) n = round_up(n, dtype_table[dtype].block);
    int64_t gap = 3, a_row = turned_a ? 1 : k + gap, a_col = turned_a ? m + gap : 1;
    int64_t a_count = (m - 1) * a_row + (k - 1) * a_col + 1, c_row = n + gap;
    p->args = (struct gemm_args){m, n, k, NULL, a_row, a_col, dtype, NULL, 0, transposed, 1, false, NULL, NULL, c_row};
    p->b_rows = transposed ? n : k, p->b_cols = transposed ? k : n;
    make_b(p, rng);
    p->a = malloc((size_t)a_count * sizeof(float));
    p->bias = malloc((size_t)n * sizeof(float));
    p->c = guarded_new((size_t)(m * c_row) * sizeof(float));
    p->c_start = malloc(p->c.bytes);
    p->want = malloc((size_t)(m * n) * sizeof(double));
    assert_int_equal(posix_memalign(&p->scratch, 64, gemm_scratch_bytes()), 0);
    assert_true(p->a && p->bias && p->c_start && p->want);
    for (int64_t i = 0; i < a_count; i++) p->a[i] = rng_normal(rng);
    for (int64_t i = 0; i < n; i++) p->bias[i] = rng_normal(rng);
    for (int64_t i = 0; i < m * c_row; i++) p->c_start[i] = rng_normal(rng);
    p->args.a = p->a, p->args.c = p->c.data;
}

static void product_free(struct product *p) {
    free(p->a), free(p->b), free(p->b_values), free(p->bias), free(p->c_start), free(p->want), free(p->scratch);
    guarded_free(&p->c);
}

static float b_value(const struct product *p, int64_t k, int64_t n) {
    return p->b_values[p->args.b_transposed ? n * p->b_cols + k : k * p->b_cols + n];
}

static double rounded(float x, bool bf16) {
    return (double)(bf16 ? bf16_to_f32(f32_to_bf16(x)) : x);
}

/* What the product should be; bf16: of operands rounded to bf16. */
static void product_reference(struct product *p, bool bf16) {
    const struct gemm_args *args = &p->args;
    double *row = malloc((size_t)args->n * sizeof *row);
    p->energy = 0;
    for (int64_t m = 0; m < args->m; m++) {
        for (int64_t n = 0; n < args->n; n++) row[n] = 0;
        for (int64_t k = 0; k < args->k; k++) {
            double a = rounded(args->a[m * args->a_row + k * args->a_col], bf16);
            for (int64_t n = 0; n < args->n; n++) {
                double term = a * rounded(b_value(p, k, n), bf16);
                row[n] += term;
                p->energy += (double)args->alpha * (double)args->alpha * term * term;
            }
        }
        for (int64_t n = 0; n < args->n; n++) {
            double start = args->accumulate ? (double)p->c_start[m * args->c_row + n] : 0;
            if (args->bias) start = (double)args->bias[n];
            p->energy += start * start;
            p->want[m * args->n + n] = start + (double)args->alpha * row[n];
        }
    }
    free(row);
}

/* The whole product in tiles of m_tile rows and n_tile columns. */
static void product_run(struct product *p, const struct kernels *kernels, enum gemm_precision precision, int64_t m_tile,
                        int64_t n_tile) {
    const struct gemm_args *args = &p->args;
    memcpy(p->c.data, p->c_start, p->c.bytes);
    for (int64_t m = 0; m < args->m; m += m_tile)
        for (int64_t n = 0; n < args->n; n += n_tile)
            kernels->training.gemm[precision](args, m, m + m_tile < args->m ? m + m_tile : args->m, n,
                                              n + n_tile < args->n ? n + n_tile : args->n, p->scratch);
}

static double product_error(const struct product *p) {
    const struct gemm_args *args = &p->args;
    double error = 0;
    for (int64_t m = 0; m < args->m; m++) {
        for (int64_t n = 0; n < args->n; n++) {
            double off = (double)args->c[m * args->c_row + n] - p->want[m * args->n + n];
            error += off * off;
        }
    }
    return error / p->energy;
}

/* Nothing but c[m, n] was written. */
static void assert_gaps_kept(const struct product *p) {
    const struct gemm_args *args = &p->args;
    assert_true(guarded_intact(&p->c));
    for (int64_t m = 0; m < args->m; m++)
        assert_memory_equal(args->c + m * args->c_row + args->n, p->c_start + m * args->c_row + args->n,
                            (size_t)(args->c_row - args->n) * sizeof(float));
}

static bool rounds_to_bf16(const struct kernels *kernels) {
    return kernels->training.gemm[GEMM_BF16] != kernels->training.gemm[GEMM_F32];
}

/* ------------------------------------------------------------------- the table */

static const struct {
    int64_t m, n, k;
} shapes[] = {{1, 1, 1},     {3, 5, 7},      {6, 16, 8},    {7, 17, 9},    {12, 32, 24},  {13, 40, 31},
              {5, 256, 256}, {11, 257, 255}, {2, 271, 257}, {97, 16, 300}, {101, 33, 16}, {16, 520, 130},
              {193, 8, 40},  {9, 300, 513},  {23, 33, 600}, {109, 20, 257}};
#define SHAPES (sizeof shapes / sizeof *shapes)

static void check_product(struct product *p, const struct kernels *kernels, enum gemm_precision precision) {
    product_run(p, kernels, precision, p->args.m, p->args.n);
    double error = product_error(p);
    if (!(error <= BOUND))
        fail_msg("%s %s precision %d m %lld n %lld k %lld transposed %d a_row %lld: error %g", kernels->isa,
                 dtype_table[p->args.b_dtype].name, precision, (long long)p->args.m, (long long)p->args.n,
                 (long long)p->args.k, p->args.b_transposed, (long long)p->args.a_row, error);
    assert_gaps_kept(p);
}

static void check_shape(const struct kernels *const *tables, int count, size_t shape, enum dtype dtype, int layout,
                        struct rng *rng) {
    struct product p;
    product_new(&p, dtype, layout & 1, layout & 2, shapes[shape].m, shapes[shape].n, shapes[shape].k, rng);
    int start = (int)((shape + (size_t)layout) % 3); /* from 0, from a bias, from what c holds */
    p.args.alpha = start == 0 ? 1 : -0.75f;
    if (start == 1) p.args.bias = p.bias;
    p.args.accumulate = start == 2;
    product_reference(&p, false);
    bool any_rounds = false;
    for (int isa = 0; isa < count; isa++) {
        check_product(&p, tables[isa], GEMM_F32);
        any_rounds |= rounds_to_bf16(tables[isa]);
    }
    if (any_rounds) product_reference(&p, true);
    for (int isa = 0; isa < count; isa++)
        if (rounds_to_bf16(tables[isa])) check_product(&p, tables[isa], GEMM_BF16);
    product_free(&p);
}

static void test_every_type(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 1);
    for (size_t type = 0; type < TYPES; type++)
        for (size_t shape = 0; shape < SHAPES; shape++)
            for (int layout = 0; layout < 4; layout++) check_shape(tables, count, shape, types[type], layout, &rng);
}

/* ---------------------------------------------------------------- fixed order */

static void check_tiles(struct product *p, const struct kernels *kernels, enum gemm_precision precision) {
    static const int64_t heights[] = {1, 5, 7, 48};
    float *whole = malloc(p->c.bytes);
    product_run(p, kernels, precision, p->args.m, p->args.n);
    memcpy(whole, p->c.data, p->c.bytes);
    for (size_t i = 0; i < sizeof heights / sizeof *heights; i++) {
        product_run(p, kernels, precision, heights[i], GEMM_COLS);
        assert_memory_equal(p->c.data, whole, p->c.bytes);
    }
    struct gemm_args all = p->args; /* a row alone: a product of one row, not a tile of the large one */
    p->args.m = 1, p->args.a = all.a + 7 * all.a_row, p->args.a_col = all.a_col, p->args.a_row = 1;
    if (all.a_col == 1) p->args.a_row = all.k;
    product_run(p, kernels, precision, 1, p->args.n);
    if (!all.accumulate) assert_memory_equal(p->c.data, whole + 7 * all.c_row, (size_t)all.n * sizeof(float));
    p->args = all;
    free(whole);
}

static void test_tiles_change_nothing(void **state) {
    (void)state;
    static const enum dtype some[] = {DT_F32, DT_BF16, DT_Q5_0, DT_Q6_K};
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 2);
    for (int isa = 0; isa < count; isa++) {
        for (size_t type = 0; type < sizeof some / sizeof *some; type++) {
            for (int layout = 0; layout < 4; layout++) {
                struct product p;
                product_new(&p, some[type], layout & 1, layout & 2, 53, 290, 280, &rng);
                p.args.bias = p.bias;
                for (enum gemm_precision i = 0; i < GEMM_PRECISIONS; i++) check_tiles(&p, tables[isa], i);
                p.args.bias = NULL, p.args.accumulate = true;
                check_tiles(&p, tables[isa], GEMM_F32);
                product_free(&p);
            }
        }
    }
}

/* ---------------------------------------------------------------------- values */

/* Rows of a with a single one pick rows of b: bit for bit what the type's own decoder gives. */
static void test_decoding_is_exact(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 3);
    for (int isa = 0; isa < count; isa++) {
        for (size_t type = 0; type < TYPES; type++) {
            for (int transposed = 0; transposed < 2; transposed++) {
                struct product p;
                product_new(&p, types[type], transposed, false, 256, 256, 256, &rng);
                memset(p.a, 0, (size_t)(255 * p.args.a_row + 256) * sizeof(float));
                for (int64_t i = 0; i < 256; i++) p.a[i * p.args.a_row + i] = 1;
                product_run(&p, tables[isa], GEMM_F32, 256, 256);
                for (int64_t k = 0; k < 256; k++)
                    for (int64_t n = 0; n < 256; n++) assert_true(p.args.c[k * p.args.c_row + n] == b_value(&p, k, n));
                product_free(&p);
            }
        }
    }
}

/* A NaN spreads over its row or column of the product and nowhere else. */
static void check_nan(struct product *p, const struct kernels *kernels, enum gemm_precision precision, int64_t row,
                      int64_t col) {
    product_run(p, kernels, precision, p->args.m, p->args.n);
    for (int64_t m = 0; m < p->args.m; m++)
        for (int64_t n = 0; n < p->args.n; n++)
            assert_int_equal(isnan(p->args.c[m * p->args.c_row + n]) != 0, m == row || n == col);
}

static void test_nan(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 4);
    for (int isa = 0; isa < count; isa++) {
        for (int layout = 0; layout < 4; layout++) {
            for (enum gemm_precision precision = 0; precision < GEMM_PRECISIONS; precision++) {
                struct product p;
                product_new(&p, DT_F32, layout & 1, layout & 2, 15, 37, 270, &rng);
                float *in_a = p.a + 11 * p.args.a_row + 260 * p.args.a_col, old = *in_a;
                float *in_b = (float *)p.b + (p.args.b_transposed ? 33 * p.b_cols + 2 : 2 * p.b_cols + 33);
                *in_a = NAN;
                check_nan(&p, tables[isa], precision, 11, -1);
                *in_a = old, *in_b = NAN;
                check_nan(&p, tables[isa], precision, -1, 33);
                product_free(&p);
            }
        }
    }
}

static void test_no_depth(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 5);
    struct product p;
    product_new(&p, DT_F32, true, false, 3, 20, 4, &rng);
    p.args.k = 0;
    for (int isa = 0; isa < count; isa++) {
        for (enum gemm_precision precision = 0; precision < GEMM_PRECISIONS; precision++) {
            p.args.accumulate = true, p.args.bias = NULL;
            product_run(&p, tables[isa], precision, 3, 20);
            assert_memory_equal(p.c.data, p.c_start, p.c.bytes);
            p.args.accumulate = false, p.args.bias = p.bias;
            product_run(&p, tables[isa], precision, 3, 20);
            for (int m = 0; m < 3; m++) assert_memory_equal(p.args.c + m * p.args.c_row, p.bias, 20 * sizeof(float));
            assert_gaps_kept(&p);
        }
    }
    product_free(&p);
}

/* The comparisons must be able to fail. */
static void test_negative_control(void **state) {
    (void)state;
    const struct kernels *kernels;
    assert_int_equal(kernels_select("scalar", &kernels, NULL), SHU_OK);
    struct rng rng;
    rng_seed(&rng, 6);
    struct product p;
    product_new(&p, DT_F32, false, false, 9, 40, 33, &rng);
    product_reference(&p, false);
    product_run(&p, kernels, GEMM_F32, 9, 40);
    assert_true(product_error(&p) <= BOUND);
    float good = p.args.c[0];
    p.args.c[0] = good + 1e-3f;
    assert_false(product_error(&p) <= BOUND);
    p.args.c[0] = NAN;
    assert_false(product_error(&p) <= BOUND);
    p.args.c[0] = good;
    product_reference(&p, true); /* rounding to bf16 is far outside the bound */
    assert_false(product_error(&p) <= BOUND);
    product_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),        cmocka_unit_test(test_tiles_change_nothing),
        cmocka_unit_test(test_decoding_is_exact), cmocka_unit_test(test_nan),
        cmocka_unit_test(test_no_depth),          cmocka_unit_test(test_negative_control),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
