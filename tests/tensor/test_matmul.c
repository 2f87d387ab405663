/* Packed weights and matrix products: every type, odd shapes, every instruction set, against sums in double, and
 * all sets against each other bit for bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tensor/kernels.h"
#include "tensor/packed.h"

/* ------------------------------------------------------------ fixtures */

static const enum dtype weight_types[] = {DT_F32,  DT_F16,  DT_BF16, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1,
                                          DT_Q8_0, DT_Q2_K, DT_Q3_K, DT_Q4_K, DT_Q5_K, DT_Q6_K};
#define WEIGHT_TYPES (sizeof weight_types / sizeof *weight_types)

static bool runs_avx2(void) {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

static bool runs_avx512(void) {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

/* The tables that can run here. */
static size_t tables_here(const struct matmul_table *out[4]) {
    size_t count = 0;
    out[count++] = &matmul_scalar;
#ifdef __x86_64__
    if (runs_avx2()) out[count++] = &matmul_avx2;
    if (runs_avx512()) out[count++] = &matmul_avx512;

#ifdef SHU_EMULATE_AVX512
    if (runs_avx2()) out[count++] = &matmul_avx512_emulated;
#endif
#else
    (void)runs_avx2;
    (void)runs_avx512;
#endif
    return count;
}

enum filling { FILL_RANDOM, FILL_MAX, FILL_MIN, FILL_KINDS };

/* Half-precision scales of either sign around 2^-6: nothing overflows, rounding errors show. */
static uint16_t random_half(struct rng *rng) {
    return f32_to_f16((float)(rng_uniform(rng) - 0.5) * 0.03f);
}

/* Plain rows. FILL_MAX and FILL_MIN drive all quants and all integer scales to their extremes. */
static void weights_fill(struct rng *rng, enum dtype dtype, enum filling filling, uint8_t *plain, size_t bytes) {
    const struct packed_layout *layout = &packed_layouts[dtype];
    size_t block = (size_t)dtype_table[dtype].block_bytes;
    for (size_t at = 0; at < bytes; at += block) {
        if (layout->halves == 0) {
            float value = filling == FILL_RANDOM ? rng_normal(rng) : filling == FILL_MAX ? 3.0f : -3.0f;
            dtype_table[dtype].from_f32(&value, NULL, plain + at, 1);
            continue;
        }
        for (size_t i = 0; i < block; i++)
            plain[at + i] = filling == FILL_RANDOM ? (uint8_t)rng_next(rng) : filling == FILL_MAX ? 0xff : 0x00;
        /* Signed bytes reach their extremes at other patterns. */
        if (dtype == DT_Q8_0 && filling != FILL_RANDOM) memset(plain + at + 2, filling == FILL_MAX ? 127 : -128, 32);
        if (dtype == DT_Q6_K && filling != FILL_RANDOM) memset(plain + at + 192, filling == FILL_MAX ? 127 : -128, 16);
        for (int h = 0; h < layout->halves; h++) {
            uint16_t half = filling == FILL_RANDOM ? random_half(rng) : f32_to_f16(0.01f);
            memcpy(plain + at + layout->half_offset[h], &half, 2);
        }
    }
}

#define GUARD (-12345.0f)

struct problem {
    enum dtype dtype;
    int64_t rows, cols, tokens, out_stride;
    struct packed packed;
    size_t packed_bytes, x_row_bytes;
    uint8_t *plain, *x;
    float *weights; /* [rows][cols] decoded */
    float *inputs;  /* [tokens][cols] as the product sees them */
    float *bias;
    float *out;
};

static void inputs_fill(struct rng *rng, enum filling filling, float *x, int64_t cols) {
    for (int64_t c = 0; c < cols; c++) {
        float extreme = c % 3 == 0 && filling == FILL_MIN ? -4.0f : 4.0f;
        x[c] = filling == FILL_RANDOM ? rng_normal(rng) : extreme;
    }
}

static void act8_decode(const void *row, int64_t cols, float *out) {
    const struct act8_block *block = row;
    for (int64_t c = 0; c < cols; c++) out[c] = block[c / 32].scale * (float)block[c / 32].q[c % 32];
}

static void problem_new(struct problem *p, const struct matmul_table *table, enum dtype dtype, int64_t rows,
                        int64_t cols, int64_t tokens, enum filling filling, uint64_t seed) {
    struct kernels kernels = {.lanes = table->lanes};
    struct rng rng;
    rng_seed(&rng, seed);
    *p = (struct problem){.dtype = dtype, .rows = rows, .cols = cols, .tokens = tokens, .out_stride = rows + 3};
    size_t row_bytes = dtype_row_bytes(dtype, cols);
    p->plain = malloc((size_t)rows * row_bytes);
    weights_fill(&rng, dtype, filling, p->plain, (size_t)rows * row_bytes);
    p->weights = malloc((size_t)(rows * cols) * sizeof(float));
    dtype_table[dtype].to_f32(p->plain, p->weights, rows * cols);
    p->packed_bytes = packed_plan(&kernels, dtype, rows, cols, &p->packed);
    p->packed.data = aligned_alloc(64, p->packed_bytes);
    memset(p->packed.data, 0xa5, p->packed_bytes);
    packed_fill(&p->packed, p->plain, 0, packed_panels(&p->packed));
    bool quantised = packed_layouts[dtype].halves != 0;
    p->x_row_bytes = quantised ? act8_row_bytes(cols) : (size_t)cols * sizeof(float);
    p->x = aligned_alloc(64, ((size_t)tokens * p->x_row_bytes + 63) & ~(size_t)63);
    p->inputs = malloc((size_t)(tokens * cols) * sizeof(float));
    for (int64_t t = 0; t < tokens; t++) {
        float *row = p->inputs + t * cols;
        inputs_fill(&rng, filling, row, cols);
        if (quantised) {
            table->act8_quantize(row, cols, p->x + (size_t)t * p->x_row_bytes);
            act8_decode(p->x + (size_t)t * p->x_row_bytes, cols, row);
        } else {
            memcpy(p->x + (size_t)t * p->x_row_bytes, row, (size_t)cols * sizeof(float));
        }
    }
    p->bias = malloc((size_t)rows * sizeof(float));
    for (int64_t r = 0; r < rows; r++) p->bias[r] = rng_normal(&rng);
    p->out = malloc((size_t)(tokens * p->out_stride) * sizeof(float));
}

static void problem_free(struct problem *p) {
    free(p->plain);
    free(p->weights);
    free(p->packed.data);
    free(p->x);
    free(p->inputs);
    free(p->bias);
    free(p->out);
}

static struct matmul_args problem_args(const struct problem *p, float *out) {
    return (struct matmul_args){&p->packed, p->x, p->x_row_bytes, p->bias, out, p->out_stride};
}

static void out_clear(const struct problem *p, float *out) {
    for (int64_t i = 0; i < p->tokens * p->out_stride; i++) out[i] = GUARD;
}

/* Largest error relative to the sum of magnitudes of an output's terms, and the guard columns. */
static double worst_error(const struct problem *p, const float *out) {
    double worst = 0;
    for (int64_t t = 0; t < p->tokens; t++)
        for (int64_t r = 0; r < p->out_stride; r++) {
            float got = out[t * p->out_stride + r];
            if (r >= p->rows) {
                if (got != GUARD) return INFINITY;
                continue;
            }
            double sum = p->bias[r], size = fabs(sum);
            for (int64_t c = 0; c < p->cols; c++) {
                double term = (double)p->weights[r * p->cols + c] * p->inputs[t * p->cols + c];
                sum += term;
                size += fabs(term);
            }
            double error = fabs(got - sum) / size;
            if (!(error <= worst)) worst = error;
        }
    return worst;
}

/* Minima and their counterpart may cancel: the terms of the K formats with minima are larger than
 * the decoded weights show, hence a bound somewhat above rows of 2^-24. */
#define ERROR_BOUND 2e-6

/* ---------------------------------------------------------------- tests */

static void check_problem(const struct matmul_table *table, struct problem *p) {
    struct matmul_args args = problem_args(p, p->out);
    out_clear(p, p->out);
    table->matmul[p->dtype](&args, 0, packed_panels(&p->packed), 0, p->tokens);
    double error = worst_error(p, p->out);
    if (!(error <= ERROR_BOUND))
        fail_msg("%s, %d lanes, [%d, %d] x %d: error %g", dtype_table[p->dtype].name, table->lanes, (int)p->rows,
                 (int)p->cols, (int)p->tokens, error);
}

static int64_t cols_of(enum dtype dtype, int i) {
    static const int64_t plain[3] = {1, 37, 515}, blocks[3] = {32, 96, 160}, supers[3] = {256, 512, 768};
    return dtype_table[dtype].block == 1 ? plain[i] : dtype_table[dtype].block == 32 ? blocks[i] : supers[i];
}

struct product_case {
    enum dtype dtype;
    int64_t rows, cols, tokens;
    enum filling filling;
    uint64_t seed;
};

/* Every set within the bound of the sums in double, and all of them the same bits. */
static void check_sets(const struct product_case *c) {
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables), bytes = 0;
    float *first = NULL;
    for (size_t i = 0; i < count; i++) {
        struct problem p;
        problem_new(&p, tables[i], c->dtype, c->rows, c->cols, c->tokens, c->filling, c->seed);
        check_problem(tables[i], &p);
        if (i == 0) {
            bytes = (size_t)(p.tokens * p.out_stride) * sizeof(float);
            first = malloc(bytes);
            memcpy(first, p.out, bytes);
        } else if (memcmp(first, p.out, bytes) != 0) {
            fail_msg("%s, %d lanes, [%d, %d] x %d: other bits than the scalar product", dtype_table[c->dtype].name,
                     tables[i]->lanes, (int)c->rows, (int)c->cols, (int)c->tokens);
        }
        problem_free(&p);
    }
    free(first);
}

static void test_products(void **state) {
    (void)state;
    static const int64_t token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 37}, row_counts[] = {1, 7, 16, 43};
    for (size_t k = 0; k < WEIGHT_TYPES; k++)
        for (size_t t = 0; t < 10; t++)
            for (size_t r = 0; r < 4; r++)
                for (int filling = 0; filling < FILL_KINDS; filling++) {
                    if (filling != FILL_RANDOM && (r != 1 || t % 4 != 0)) continue;
                    int64_t cols = cols_of(weight_types[k], (int)((t + r) % 3));
                    check_sets(&(struct product_case){weight_types[k], row_counts[r], cols, token_counts[t],
                                                      (enum filling)filling, t * 100 + r});
                }
}

static void test_control_finds_a_wrong_weight(void **state) {
    (void)state;
    struct problem p;
    problem_new(&p, &matmul_scalar, DT_Q5_0, 9, 96, 2, FILL_RANDOM, 1);
    struct matmul_args args = problem_args(&p, p.out);
    out_clear(&p, p.out);
    p.packed.data[40] ^= 1; /* one bit of a plane: one weight is off by 16 steps */
    matmul_scalar.matmul[DT_Q5_0](&args, 0, packed_panels(&p.packed), 0, 2);
    assert_true(worst_error(&p, p.out) > 100 * ERROR_BOUND);
    problem_free(&p);
}

/* One token alone, all tokens at once, any cut into tiles: the same bits. */
static void test_fixed_order(void **state) {
    (void)state;
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < WEIGHT_TYPES; k++) {
            struct problem p;
            const struct matmul_table *table = tables[i];
            problem_new(&p, table, weight_types[k], 75, cols_of(weight_types[k], 2), 39, FILL_RANDOM, 7 + k);
            int64_t panels = packed_panels(&p.packed);
            size_t bytes = (size_t)(p.tokens * p.out_stride) * sizeof(float);
            float *other = malloc(bytes);
            struct matmul_args args = problem_args(&p, p.out), other_args = problem_args(&p, other);
            out_clear(&p, p.out);
            table->matmul[p.dtype](&args, 0, panels, 0, p.tokens);
            for (int64_t step = 1; step <= 9; step++) {
                out_clear(&p, other);
                int64_t panel_step = 1 + step % 4;
                for (int64_t panel = 0; panel < panels; panel += panel_step)
                    for (int64_t t = 0; t < p.tokens; t += step)
                        table->matmul[p.dtype](&other_args, panel,
                                               panel + panel_step < panels ? panel + panel_step : panels, t,
                                               t + step < p.tokens ? t + step : p.tokens);
                assert_memory_equal(p.out, other, bytes);
            }
            free(other);
            problem_free(&p);
        }
}

static void test_no_bias(void **state) {
    (void)state;
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < WEIGHT_TYPES; k++) {
            struct problem p;
            problem_new(&p, tables[i], weight_types[k], 21, cols_of(weight_types[k], 1), 3, FILL_RANDOM, 70 + k);
            memset(p.bias, 0, (size_t)p.rows * sizeof(float));
            struct matmul_args args = problem_args(&p, p.out);
            args.bias = NULL;
            out_clear(&p, p.out);
            tables[i]->matmul[p.dtype](&args, 0, packed_panels(&p.packed), 0, p.tokens);
            assert_true(worst_error(&p, p.out) <= ERROR_BOUND);
            problem_free(&p);
        }
}

/* What is packed is what was there: rows decode to the same floats, blocks come back byte for byte. */
static void test_packing_is_exact(void **state) {
    (void)state;
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < WEIGHT_TYPES; k++)
            for (int shape = 0; shape < 3; shape++) {
                struct problem p;
                enum dtype dtype = weight_types[k];
                int64_t cols = cols_of(dtype, shape);
                problem_new(&p, tables[i], dtype, 19, cols, 1, FILL_RANDOM, 99 + k);
                float *row = malloc((size_t)cols * sizeof(float));
                size_t block_bytes = (size_t)dtype_table[dtype].block_bytes;
                for (int64_t r = 0; r < p.rows; r++) {
                    packed_row(&p.packed, r, row);
                    assert_memory_equal(row, p.weights + r * cols, (size_t)cols * sizeof(float));
                    uint8_t block[PACKED_MAX_BLOCK_BYTES];
                    if (packed_layouts[dtype].halves == 0) continue;
                    packed_block(&p.packed, r, 0, block);
                    assert_memory_equal(block, p.plain + (size_t)r * dtype_row_bytes(dtype, cols), block_bytes);
                }
                free(row);
                problem_free(&p);
            }
}

/* Threads fill disjoint ranges of panels: the same image as in one go, and nothing grows beyond the type's size. */
static void test_packing_in_parts(void **state) {
    (void)state;
    for (size_t k = 0; k < WEIGHT_TYPES; k++) {
        struct problem p;
        problem_new(&p, &matmul_scalar, weight_types[k], 30, cols_of(weight_types[k], 2), 1, FILL_RANDOM, 5);
        uint8_t *image = malloc(p.packed_bytes);
        memcpy(image, p.packed.data, p.packed_bytes);
        memset(p.packed.data, 0x5a, p.packed_bytes);
        packed_fill(&p.packed, p.plain, 2, 4);
        packed_fill(&p.packed, p.plain, 0, 2);
        assert_memory_equal(image, p.packed.data, p.packed_bytes);
        assert_true(p.packed.panel_bytes <= dtype_row_bytes(p.dtype, p.cols) * 8 + 32 + 63);
        free(image);
        problem_free(&p);
    }
}

/* Every instruction set quantises to the same bytes, and the sums in a block are what the header says. */
static void test_quantizer(void **state) {
    (void)state;
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables);
    struct rng rng;
    rng_seed(&rng, 3);
    for (int round = 0; round < 200; round++) {
        float x[100];
        float size = ldexpf(1, round % 60 - 30);
        for (int c = 0; c < 100; c++) x[c] = rng_normal(&rng) * size * (round % 7 == 0 && c < 32 ? 0 : 1);
        if (round % 11 == 0) x[5] = 2.5f * size, x[6] = 127 * size, x[7] = -127 * size, x[8] = 0.5f * size;
        struct act8_block expected[5], got[5];
        memset(expected, 0x77, sizeof expected);
        matmul_scalar.act8_quantize(x, 100, expected);
        for (size_t i = 1; i < count; i++) {
            memset(got, 0x77, sizeof got);
            tables[i]->act8_quantize(x, 100, got);
            assert_memory_equal(expected, got, sizeof got);
        }
        for (int b = 0; b < 4; b++) {
            int part[2][2] = {{0}};
            float max = 0;
            for (int c = 0; c < 32; c++) {
                float value = 32 * b + c < 100 ? x[32 * b + c] : 0;
                part[c / 16][c % 4 / 2] += expected[b].q[c];
                max = fmaxf(max, fabsf(value));
                assert_true(fabsf(value - expected[b].scale * expected[b].q[c]) <= expected[b].scale * 0.50001f);
            }
            assert_true(expected[b].scale == max / 127.0f);
            for (int k = 0; k < 2; k++) {
                assert_int_equal(expected[b].minus8[k], -8 * (part[0][k] + part[1][k]));
                assert_int_equal(expected[b].minus16[k], -16 * (part[0][k] + part[1][k]));
                assert_int_equal(expected[b].minus32[0][k], -32 * part[0][k]);
                assert_int_equal(expected[b].minus32[1][k], -32 * part[1][k]);
                assert_int_equal(expected[b].half_sum[k], part[k][0] + part[k][1]);
            }
        }
        assert_int_equal(((uint8_t *)&expected[4])[0], 0x77);
    }
}

static void test_nan_and_infinity_spread(void **state) {
    (void)state;
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables);
    const float poison[3] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < WEIGHT_TYPES; k++)
            for (int kind = 0; kind < 3; kind++) {
                struct problem p;
                problem_new(&p, tables[i], weight_types[k], 9, cols_of(weight_types[k], 2), 2, FILL_RANDOM, 11);
                float *x = malloc((size_t)p.cols * sizeof(float));
                memcpy(x, p.inputs + p.cols, (size_t)p.cols * sizeof(float));
                x[p.cols / 2] = poison[kind];
                bool quantised = packed_layouts[p.dtype].halves != 0;
                if (quantised)
                    tables[i]->act8_quantize(x, p.cols, p.x + p.x_row_bytes);
                else
                    memcpy(p.x + p.x_row_bytes, x, p.x_row_bytes);
                struct matmul_args args = problem_args(&p, p.out);
                tables[i]->matmul[p.dtype](&args, 0, packed_panels(&p.packed), 0, 2);
                for (int64_t r = 0; r < p.rows; r++) {
                    assert_true(isfinite(p.out[r]));
                    assert_false(isfinite(p.out[p.out_stride + r]));
                }
                free(x);
                problem_free(&p);
            }
}

/* A weight block with a NaN scale poisons its row and no other. */
static void test_nan_weight(void **state) {
    (void)state;
    const struct matmul_table *tables[4];
    size_t count = tables_here(tables);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < WEIGHT_TYPES; k++) {
            const struct packed_layout *layout = &packed_layouts[weight_types[k]];
            for (int h = 0; h < layout->halves; h++) {
                struct problem p;
                problem_new(&p, tables[i], weight_types[k], 9, cols_of(weight_types[k], 2), 1, FILL_RANDOM, 13);
                uint16_t nan = 0x7e00;
                memcpy(p.plain + 4 * dtype_row_bytes(p.dtype, p.cols) + layout->half_offset[h], &nan, 2);
                packed_fill(&p.packed, p.plain, 0, packed_panels(&p.packed));
                struct matmul_args args = problem_args(&p, p.out);
                tables[i]->matmul[p.dtype](&args, 0, packed_panels(&p.packed), 0, 1);
                for (int64_t r = 0; r < p.rows; r++) assert_true(isnan(p.out[r]) == (r == 4));
                problem_free(&p);
            }
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packing_is_exact),
        cmocka_unit_test(test_packing_in_parts),
        cmocka_unit_test(test_quantizer),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_control_finds_a_wrong_weight),
        cmocka_unit_test(test_fixed_order),
        cmocka_unit_test(test_no_bias),
        cmocka_unit_test(test_nan_and_infinity_spread),
        cmocka_unit_test(test_nan_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
