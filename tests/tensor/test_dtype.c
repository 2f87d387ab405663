/* Number formats: conversions over all halves, decoders against golden vectors, encoders against bars. */
#include "check.h"

#include <float.h>
#include <stdio.h>

/* ------------------------------------------------------------ f16 and bf16 */

/* What the bits of a half mean, by definition. */
static double half_value(unsigned h) {
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void test_f16_all(void **state) {
    (void)state;
    for (unsigned h = 0; h < 0x10000; h++) {
        float value = f16_to_f32((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00) {
            assert_true((h & 0x3ff) ? isnan(value) : isinf(value));
            assert_int_equal(signbit(value) != 0, h >> 15);
        } else {
            assert_true((double)value == half_value(h));
        }
        uint16_t back = f32_to_f16(value);
        if (isnan(value))
            assert_true((back & 0x7c00) == 0x7c00 && (back & 0x3ff) && (back >> 15) == (h >> 15));
        else
            assert_int_equal(back, h);
    }
}

/* Between neighbours: just below the middle goes down, just above goes up, the middle goes to even. */
static void test_f16_rounding(void **state) {
    (void)state;
    for (unsigned h = 0; h < 0x7bff; h++) {
        float middle = (float)((half_value(h) + half_value(h + 1)) / 2); /* exact: one more bit */
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(f32_to_f16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(f32_to_f16(-middle), (h & 1 ? h + 1 : h) | 0x8000);
    }
    assert_int_equal(f32_to_f16(65504.0f), 0x7bff);
    assert_int_equal(f32_to_f16(nextafterf(65520.0f, 0)), 0x7bff);
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(f32_to_f16(FLT_MAX), 0x7c00);
    assert_int_equal(f32_to_f16(-FLT_MIN / 2), 0x8000);
}

static void test_bf16(void **state) {
    (void)state;
    for (unsigned b = 0; b < 0x10000; b++) {
        float value = bf16_to_f32((uint16_t)b);
        uint16_t back = f32_to_bf16(value);
        if (isnan(value))
            assert_true((back & 0x7f80) == 0x7f80 && (back & 0x7f));
        else
            assert_int_equal(back, b);
        if ((b & 0x7fff) >= 0x7f7f) continue; /* a finite neighbour follows */
        uint32_t bits = (uint32_t)b << 16 | 0x8000;
        float middle;
        memcpy(&middle, &bits, 4);
        assert_int_equal(f32_to_bf16(middle), b & 1 ? b + 1 : b);
        bits++;
        memcpy(&middle, &bits, 4);
        assert_int_equal(f32_to_bf16(middle), b + 1);
    }
    assert_int_equal(f32_to_bf16(FLT_MAX), 0x7f80); /* rounds to infinity */
}

/* ------------------------------------------------------------------- table */

static void test_table(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t ggml;
        int64_t cols;
        size_t bytes;
    } rows[] = {{"F32", 0, 7, 28},      {"F16", 1, 7, 14},      {"q4_0", 2, 64, 36},    {"Q4_1", 3, 64, 40},
                {"Q5_0", 6, 896, 616},  {"Q5_1", 7, 64, 48},    {"q8_0", 8, 96, 102},   {"Q2_K", 10, 512, 168},
                {"Q3_k", 11, 256, 110}, {"Q4_K", 12, 256, 144}, {"Q5_K", 13, 256, 176}, {"Q6_K", 14, 512, 420},
                {"BF16", 30, 3, 6},     {"I32", 26, 2, 8}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int dtype = dtype_from_name(rows[i].name);
        assert_true(dtype >= 0);
        assert_int_equal(dtype_from_ggml(rows[i].ggml), dtype);
        assert_int_equal(dtype_row_bytes((enum dtype)dtype, rows[i].cols), rows[i].bytes);
    }
    assert_int_equal(dtype_from_name("Q9_Z"), -1);
    assert_int_equal(dtype_from_ggml(9), -1);
    assert_int_equal(dtype_from_ggml(UINT32_MAX), -1);
    assert_int_equal(dtype_row_bytes(DT_Q4_K, 255), 0);
    assert_int_equal(dtype_row_bytes(DT_Q4_K, -256), 0);
    assert_int_equal(dtype_row_bytes(DT_F32, INT64_MAX), 0);
    struct tensor tensor = {DT_Q8_0, 3, {64, 5, 2, 1}, NULL};
    assert_int_equal(tensor_rows(&tensor), 10);
    assert_int_equal(tensor_bytes(&tensor), 680);
}

/* ----------------------------------------------------------------- decoders */

/* Compares every type of the golden file; `spoil` flips one bit of each first block. Returns failing types. */
static int golden_mismatches(bool spoil) {
    FILE *file = fopen(TEST_DATA "/tensor/golden_quant.bin", "rb");
    assert_non_null(file);
    char name[9] = {0};
    uint32_t sizes[2];
    int types = 0, wrong = 0;
    while (fread(name, 1, 8, file) == 8) {
        assert_int_equal(fread(sizes, 4, 2, file), 2);
        uint8_t *blocks = malloc(sizes[1]);
        double *want = malloc(sizes[0] * sizeof *want), top = 0;
        struct guarded got = guarded_new(sizes[0] * sizeof(float));
        assert_int_equal(fread(blocks, 1, sizes[1], file), sizes[1]);
        assert_int_equal(fread(want, sizeof *want, sizes[0], file), sizes[0]);
        int dtype = dtype_from_name(name);
        assert_true(dtype >= 0);
        assert_int_equal(dtype_row_bytes((enum dtype)dtype, sizes[0]), sizes[1]);
        if (spoil) blocks[17] ^= 1;
        dtype_table[dtype].to_f32(blocks, got.data, sizes[0]);
        assert_true(guarded_intact(&got));
        for (uint32_t i = 0; i < sizes[0]; i++) top = fmax(top, fabs(want[i]));
        bool same = true;
        for (uint32_t i = 0; i < sizes[0]; i++)
            if (!(fabs((double)((float *)got.data)[i] - want[i]) <= 4e-7 * top)) same = false;
        wrong += !same;
        types++;
        guarded_free(&got);
        free(blocks), free(want);
    }
    fclose(file);
    assert_int_equal(types, 10);
    return wrong;
}

static void test_decoders_golden(void **state) {
    (void)state;
    assert_int_equal(golden_mismatches(false), 0);
    assert_int_equal(golden_mismatches(true), 10); /* negative control: one bit shows in every type */
}

/* ----------------------------------------------------------------- encoders */

#define SAMPLE 65536

static double round_trip_error(enum dtype dtype, const float *x, const float *importance, int64_t count, float *y) {
    const struct dtype_info *info = &dtype_table[dtype];
    size_t bytes = dtype_row_bytes(dtype, count);
    struct guarded blocks = guarded_new(bytes);
    double error = 0, energy = 0;
    info->from_f32(x, importance, blocks.data, count);
    assert_true(guarded_intact(&blocks));
    info->to_f32(blocks.data, y, count);
    guarded_free(&blocks);
    for (int64_t i = 0; i < count; i++) {
        error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        energy += (double)x[i] * (double)x[i];
    }
    return sqrt(error / energy);
}

/* Relative root mean square error: bars are what ggml 0.25.3 reaches on half a
 * million values of these distributions. */
static void test_encoders_beat_bars(void **state) {
    (void)state;
    static const struct {
        enum dtype dtype;
        double normal, outliers;
    } bars[] = {{DT_F16, 3e-4, 3e-4},      {DT_BF16, 2e-3, 2e-3},     {DT_Q4_0, 0.0858, 0.1551},
                {DT_Q5_0, 0.0426, 0.0810}, {DT_Q5_1, 0.0378, 0.0495}, {DT_Q8_0, 0.00534, 0.01021},
                {DT_Q4_K, 0.0712, 0.0956}, {DT_Q5_K, 0.0361, 0.0478}, {DT_Q6_K, 0.01775, 0.0295}};
    float *x = malloc(SAMPLE * sizeof *x), *y = malloc(SAMPLE * sizeof *y);
    for (int outliers = 0; outliers < 2; outliers++) {
        struct rng rng;
        rng_seed(&rng, 42 + (uint64_t)outliers);
        for (int i = 0; i < SAMPLE; i++) x[i] = rng_normal(&rng) * 0.02f * (outliers && i % 97 == 0 ? 12 : 1);
        for (size_t t = 0; t < sizeof bars / sizeof *bars; t++) {
            double error = round_trip_error(bars[t].dtype, x, NULL, SAMPLE, y);
            double bar = outliers ? bars[t].outliers : bars[t].normal;
            if (!(error <= bar)) fail_msg("%s: %g, bar %g", dtype_table[bars[t].dtype].name, error, bar);
            if (t >= 2) assert_false(error <= bar / 2); /* the measure itself works */
        }
    }
    free(x), free(y);
}

static double column_error(const float *x, const float *y, const float *importance) {
    double error = 0;
    for (int i = 0; i < SAMPLE; i++) error += (double)importance[i] * (double)(x[i] - y[i]) * (double)(x[i] - y[i]);
    return error;
}

static void test_importance_counts(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_Q4_0, DT_Q5_0, DT_Q5_1, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};
    float *x = malloc(SAMPLE * sizeof *x), *y = malloc(SAMPLE * sizeof *y), *w = malloc(SAMPLE * sizeof *w);
    struct rng rng;
    rng_seed(&rng, 7);
    for (int i = 0; i < SAMPLE; i++) x[i] = rng_normal(&rng), w[i] = i % 8 == 0 ? 50.0f : 0.1f;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        round_trip_error(types[t], x, NULL, SAMPLE, y);
        double plain = column_error(x, y, w);
        round_trip_error(types[t], x, w, SAMPLE, y);
        assert_true(column_error(x, y, w) < 0.95 * plain);
    }
    memset(w, 0, SAMPLE * sizeof *w); /* says nothing: as good as none */
    round_trip_error(DT_Q4_K, x, w, SAMPLE, y);
    double with_zeros = round_trip_error(DT_Q4_K, x, w, SAMPLE, y);
    assert_true(with_zeros == round_trip_error(DT_Q4_K, x, NULL, SAMPLE, y));
    free(x), free(y), free(w);
}

/* Zeros, constants, tiny and huge values, values that are not finite: no trap, no stray NaN, no lost NaN. */
static void test_encoders_edges(void **state) {
    (void)state;
    for (int dtype = 0; dtype < DT_COUNT; dtype++) {
        const struct dtype_info *info = &dtype_table[dtype];
        if (!info->from_f32) continue;
        float x[512], y[512];
        uint8_t blocks[2048];
        memset(x, 0, sizeof x);
        info->from_f32(x, NULL, blocks, 512);
        info->to_f32(blocks, y, 512);
        for (int i = 0; i < 512; i++) assert_true(y[i] == 0);
        static const float constants[] = {1.0f, -1.0f, 0.015f, -300.0f};
        for (int c = 0; c < 4; c++) {
            for (int i = 0; i < 512; i++) x[i] = constants[c];
            info->from_f32(x, NULL, blocks, 512);
            info->to_f32(blocks, y, 512);
            for (int i = 0; i < 512; i++) assert_true(fabsf(y[i] - x[i]) <= 0.01f * fabsf(x[i]));
        }
        for (int i = 0; i < 512; i++) x[i] = (i % 2 ? 1e-30f : -1e-30f) * (float)i;
        info->from_f32(x, NULL, blocks, 512);
        info->to_f32(blocks, y, 512);
        for (int i = 0; i < 512; i++) assert_true(isfinite(y[i]));
        static const float spoilers[] = {NAN, INFINITY, -INFINITY, 1e38f};
        for (int c = 0; c < 4; c++) {
            for (int i = 0; i < 512; i++) x[i] = (float)(i % 13) - 6;
            x[300] = spoilers[c];
            info->from_f32(x, NULL, blocks, 512);
            info->to_f32(blocks, y, 512);
            if (c < 3) assert_false(isfinite(y[300]));
            for (int i = 0; i < 256; i++) assert_true(isfinite(y[i])); /* the other super-block is clean */
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_all),
        cmocka_unit_test(test_f16_rounding),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_decoders_golden),
        cmocka_unit_test(test_encoders_beat_bars),
        cmocka_unit_test(test_importance_counts),
        cmocka_unit_test(test_encoders_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
