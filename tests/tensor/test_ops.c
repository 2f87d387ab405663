/* Row operations: one table of op x odd sizes x instruction set, guarded buffers, against double, and all sets against
 * each other bit for bit. */
#include "check.h"

#include <float.h>

enum op {
    OP_RMS,
    OP_RMS_PLAIN,
    OP_LAYER,
    OP_SOFTMAX,
    OP_ADD,
    OP_MUL,
    OP_SCALE,
    OP_SOFTCAP,
    OP_UNARY,                          /* + kind */
    OP_GATED = OP_UNARY + UNARY_KINDS, /* + kind */
    OP_COUNT = OP_GATED + UNARY_KINDS
};

#define FACTOR 0.37f
#define CAP    1.5f
#define EPS    1e-5f

static void norm_reference(enum op op, const float *x, const float *gain, const float *bias, int64_t n, double *y) {
    double mean = 0, square = 0;
    if (op == OP_LAYER)
        for (int64_t i = 0; i < n; i++) mean += (double)x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean);
    double inverse = 1 / sqrt(square / (double)n + (double)EPS);
    for (int64_t i = 0; i < n; i++) {
        y[i] = ((double)x[i] - mean) * inverse * (op == OP_RMS_PLAIN ? 1 : (double)gain[i]);
        if (op == OP_LAYER) y[i] += (double)bias[i];
    }
}

static void softmax_reference(const float *x, int64_t n, double *y) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, (double)FACTOR * (double)x[i]);
    for (int64_t i = 0; i < n; i++) sum += y[i] = exp((double)FACTOR * (double)x[i] - max);
    for (int64_t i = 0; i < n; i++) y[i] /= sum;
}

static void reference(int op, const float *a, const float *b, const float *c, int64_t n, double *y) {
    if (op <= OP_LAYER) {
        norm_reference((enum op)op, a, b, c, n, y);
        return;
    }
    if (op == OP_SOFTMAX) {
        softmax_reference(a, n, y);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        double p = (double)a[i], q = (double)b[i];
        if (op == OP_ADD) y[i] = p + q;
        if (op == OP_MUL) y[i] = p * q;
        if (op == OP_SCALE) y[i] = p * (double)FACTOR;
        if (op == OP_SOFTCAP) y[i] = (double)CAP * tanh(p / (double)CAP);
        if (op >= OP_GATED)
            y[i] = unary_reference((enum unary_kind)(op - OP_GATED), p) * q;
        else if (op >= OP_UNARY)
            y[i] = unary_reference((enum unary_kind)(op - OP_UNARY), p);
    }
}

static void run(const struct kernels *k, int op, const float *a, const float *b, const float *c, int64_t n, float *y) {
    if (op >= OP_GATED)
        k->gated((enum unary_kind)(op - OP_GATED), a, b, n, y);
    else if (op >= OP_UNARY)
        k->unary((enum unary_kind)(op - OP_UNARY), a, n, y);
    else if (op == OP_RMS)
        k->rms_norm(a, b, EPS, n, y);
    else if (op == OP_RMS_PLAIN)
        k->rms_norm(a, NULL, EPS, n, y);
    else if (op == OP_LAYER)
        k->layer_norm(a, b, c, EPS, n, y);
    else if (op == OP_SOFTMAX)
        k->softmax(a, FACTOR, n, y);
    else if (op == OP_ADD)
        k->add(a, b, n, y);
    else if (op == OP_MUL)
        k->mul(a, b, n, y);
    else if (op == OP_SCALE)
        k->scale(a, FACTOR, n, y);
    else
        k->softcap(a, CAP, n, y);
}

static void fill(struct rng *rng, const struct guarded *x) {
    float *values = x->data;
    for (size_t i = 0; i < x->bytes / sizeof *values; i++) values[i] = 3 * rng_normal(rng);
}

static const int64_t sizes[] = {1,  2,  3,  5,  7,  8,  9,  15, 16,  17,  23,  24,  31,   32,
                                33, 40, 47, 63, 64, 65, 66, 97, 128, 255, 640, 896, 1536, 4093};
#define SIZES (sizeof sizes / sizeof *sizes)

struct operands {
    struct guarded a, b, c;
    double *want;
    float *bits; /* what the first instruction set made of them */
};

static void check_case(const struct kernels *k, bool first, int op, int64_t n, const struct operands *in) {
    size_t bytes = (size_t)n * sizeof(float);
    struct guarded y = guarded_new(bytes), place = guarded_new(bytes);
    run(k, op, in->a.data, in->b.data, in->c.data, n, y.data);
    double error = nmse(y.data, in->want, n);
    double bound = 2e-12;              /* a row of one element: a dozen ulps */
    if (op == OP_LAYER) bound = 1e-11; /* the mean of a short row cancels */
    if (!(error <= bound)) fail_msg("%s op %d size %lld: nmse %g", k->isa, op, (long long)n, error);
    memcpy(place.data, in->a.data, bytes);
    run(k, op, place.data, in->b.data, in->c.data, n, place.data);
    assert_memory_equal(place.data, y.data, bytes);
    assert_true(guarded_intact(&y) && guarded_intact(&place));
    if (first) memcpy(in->bits, y.data, bytes);
    int64_t at = bits_differ(in->bits, y.data, n);
    if (at >= 0) fail_msg("%s op %d size %lld: element %lld has other bits", k->isa, op, (long long)n, (long long)at);
    guarded_free(&y), guarded_free(&place);
}

static void check_size(const struct kernels *const *tables, int count, int op, int64_t n, struct rng *rng) {
    size_t bytes = (size_t)n * sizeof(float);
    struct operands in = {guarded_new(bytes), guarded_new(bytes), guarded_new(bytes),
                          malloc((size_t)n * sizeof(double)), malloc(bytes)};
    fill(rng, &in.a), fill(rng, &in.b), fill(rng, &in.c);
    reference(op, in.a.data, in.b.data, in.c.data, n, in.want);
    for (int isa = 0; isa < count; isa++) check_case(tables[isa], isa == 0, op, n, &in);
    assert_true(guarded_intact(&in.a) && guarded_intact(&in.b) && guarded_intact(&in.c));
    guarded_free(&in.a), guarded_free(&in.b), guarded_free(&in.c);
    free(in.want), free(in.bits);
}

static void test_every_op(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 1);
    for (int op = 0; op < OP_COUNT; op++)
        for (size_t i = 0; i < SIZES; i++) check_size(tables, count, op, sizes[i], &rng);
}

/* Control for the equality of bits: a sum in plain ascending order is another number on most rows. */
static void test_another_order_shows(void **state) {
    (void)state;
    const struct kernels *kernels;
    assert_int_equal(kernels_select(NULL, &kernels, NULL), SHU_OK);
    struct rng rng;
    rng_seed(&rng, 4);
    int differ = 0;
    for (int round = 0; round < 20; round++) {
        float x[640], y[640], ascending[640], sum = 0;
        for (int i = 0; i < 640; i++) x[i] = rng_normal(&rng);
        for (int i = 0; i < 640; i++) sum = fmaf(x[i], x[i], sum);
        float inverse = 1.0f / sqrtf(sum / 640.0f + EPS);
        for (int i = 0; i < 640; i++) ascending[i] = x[i] * inverse;
        kernels->rms_norm(x, NULL, EPS, 640, y);
        differ += bits_differ(y, ascending, 640) >= 0;
    }
    assert_true(differ >= 10);
}

/* The comparison must be able to fail: one element off by a part in 10,000. */
static void test_negative_control(void **state) {
    (void)state;
    float x[64];
    double want[64];
    for (int i = 0; i < 64; i++) want[i] = (double)(x[i] = (float)i);
    assert_true(nmse(x, want, 64) <= 2e-13);
    x[40] *= 1.0001f;
    assert_false(nmse(x, want, 64) <= 2e-13);
    x[40] = NAN;
    assert_false(nmse(x, want, 64) <= 2e-13);
    struct guarded guarded = guarded_new(8);
    ((uint8_t *)guarded.data)[8] ^= 1;
    assert_false(guarded_intact(&guarded));
    guarded_free(&guarded);
}

/* An element's result depends on its value alone, not on its place in a vector or on its neighbours. */
static void test_place_does_not_matter(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 2);
    float a[67], b[67], y[67], single;
    for (int i = 0; i < 67; i++) a[i] = 4 * rng_normal(&rng), b[i] = rng_normal(&rng);
    for (int isa = 0; isa < count; isa++) {
        for (int op = OP_ADD; op < OP_COUNT; op++) {
            run(tables[isa], op, a, b, NULL, 67, y);
            for (int i = 0; i < 67; i++) {
                run(tables[isa], op, a + i, b + i, NULL, 1, &single);
                assert_memory_equal(&single, y + i, sizeof single);
            }
        }
    }
}

/* ------------------------------------------------------- accuracy and edges */

/* Distance in units in the last place of the exact value. */
static double ulps(float got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1, (exponent < -125 ? -125 : exponent) - 24);
}

static void test_function_accuracy(void **state) {
    (void)state;
    static const struct {
        enum unary_kind kind;
        float from, to;
        double most; /* ulps */
    } ranges[] = {{UNARY_EXP, -87, 88.7f, 1.5}, {UNARY_EXP, -103, -87, 1.5}, {UNARY_TANH, -10, 10, 3},
                  {UNARY_SIGMOID, -80, 80, 3},  {UNARY_SILU, -80, 80, 3.5},  {UNARY_GELU_TANH, -4, 10, 40},
                  {UNARY_GELU_ERF, -5, 10, 80}};
    enum { POINTS = 20000 };
    static float x[POINTS], y[POINTS];
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int isa = 0; isa < count; isa++) {
        for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
            double worst = 0;
            for (int i = 0; i < POINTS; i++)
                x[i] = ranges[r].from + (ranges[r].to - ranges[r].from) * (float)i / (float)(POINTS - 1);
            tables[isa]->unary(ranges[r].kind, x, POINTS, y);
            for (int i = 0; i < POINTS; i++) {
                double distance = ulps(y[i], unary_reference(ranges[r].kind, (double)x[i]));
                if (!(distance <= worst)) worst = distance;
            }
            if (!(worst <= ranges[r].most)) fail_msg("%s range %zu: %g ulps", tables[isa]->isa, r, worst);
        }
    }
}

/* Any pattern of 32 bits: subnormals, infinities, NaN. */
static void test_functions_agree_on_any_bits(void **state) {
    (void)state;
    enum { POINTS = 50000 };
    static float x[POINTS], up[POINTS], first[POINTS], y[POINTS];
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 5);
    for (int i = 0; i < POINTS; i++) {
        uint32_t bits = (uint32_t)rng_next(&rng);
        memcpy(&x[i], &bits, sizeof bits);
        if (i % 4) x[i] = 30 * rng_normal(&rng); /* where the functions bend */
        up[i] = rng_normal(&rng);
    }
    for (int op = OP_ADD; op < OP_COUNT; op++) {
        for (int isa = 0; isa < count; isa++) {
            run(tables[isa], op, x, up, NULL, POINTS, isa ? y : first);
            int64_t at = isa ? bits_differ(first, y, POINTS) : -1;
            if (at >= 0)
                fail_msg("%s op %d of %a: %a instead of %a", tables[isa]->isa, op, (double)x[at], (double)y[at],
                         (double)first[at]);
        }
    }
}

static void test_infinities(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    float x[19], y[19];
    for (int isa = 0; isa < count; isa++) {
        const struct kernels *k = tables[isa];
        for (int op = 0; op < OP_COUNT; op++) { /* NaN in: NaN at its place out, whatever the op */
            float b[19];
            for (int i = 0; i < 19; i++) x[i] = (float)i - 9, b[i] = 1;
            x[17] = NAN;
            run(k, op, x, b, b, 19, y);
            assert_true(isnan(y[17]));
            bool whole_row = op <= OP_SOFTMAX;
            for (int i = 0; i < 17; i++) assert_int_equal(isnan(y[i]) != 0, whole_row);
        }
        float edges[4] = {INFINITY, -INFINITY, 200, -200};
        k->unary(UNARY_EXP, edges, 4, y);
        assert_true(y[0] == INFINITY && y[1] == 0 && y[2] == INFINITY && y[3] == 0);
        k->unary(UNARY_TANH, edges, 4, y);
        assert_true(y[0] == 1 && y[1] == -1 && y[2] == 1 && y[3] == -1);
        k->unary(UNARY_SIGMOID, edges, 4, y);
        assert_true(y[0] == 1 && y[1] == 0 && y[2] == 1 && y[3] >= 0 && y[3] < 1e-37f);
        k->unary(UNARY_RELU, edges, 4, y);
        assert_true(y[0] == INFINITY && y[1] == 0 && y[3] == 0);
        k->unary(UNARY_SILU, edges + 2, 2, y);
        assert_true(y[0] == 200 && y[1] <= 0 && y[1] > -1e-34f);
        k->unary(UNARY_GELU_ERF, edges + 2, 2, y);
        assert_true(y[0] == 200 && y[1] <= 0 && y[1] > -1e-14f);
        float hidden[3] = {1, -INFINITY, 1}; /* softmax of a masked entry */
        k->softmax(hidden, 1, 3, y);
        assert_true(y[0] == 0.5f && y[1] == 0 && y[2] == 0.5f);
    }
}

/* ----------------------------------------------------------------- rotation */

static void test_rope(void **state) {
    (void)state;
    static const struct {
        int heads, dim, rot;
    } cases[] = {{3, 64, 64}, {1, 128, 128}, {2, 96, 48}, {4, 20, 20}, {1, 256, 256}, {2, 10, 6}};
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int heads = cases[i].heads, dim = cases[i].dim, rot = cases[i].rot, half = rot / 2;
        struct guarded x = guarded_new((size_t)(heads * dim) * sizeof(float));
        float *values = x.data, *start = malloc(x.bytes), *cos_sin = malloc((size_t)rot * sizeof(float));
        double *want = malloc((size_t)(heads * dim) * sizeof *want);
        float *first = malloc(x.bytes);
        rope_table(12345, rot, 1000000.0, 1.0, NULL, cos_sin);
        fill(&rng, &x);
        memcpy(start, values, x.bytes);
        for (int neox = 0; neox < 2; neox++) {
            for (int at = 0; at < heads * dim; at++) want[at] = (double)start[at];
            for (int head = 0; head < heads; head++) {
                for (int j = 0; j < half; j++) {
                    int p = head * dim + (neox ? j : 2 * j), q = p + (neox ? half : 1);
                    double angle = 12345.0 * pow(1000000.0, -2.0 * j / rot);
                    want[p] = (double)start[p] * cos(angle) - (double)start[q] * sin(angle);
                    want[q] = (double)start[p] * sin(angle) + (double)start[q] * cos(angle);
                }
            }
            for (int isa = 0; isa < count; isa++) {
                memcpy(values, start, x.bytes);
                tables[isa]->rope(values, heads, dim, rot, neox, cos_sin);
                assert_true(nmse(values, want, heads * dim) <= 2e-13);
                assert_true(guarded_intact(&x));
                if (isa == 0) memcpy(first, values, x.bytes);
                assert_memory_equal(first, values, x.bytes);
            }
        }
        free(want), free(start), free(first), free(cos_sin);
        guarded_free(&x);
    }
}

static void test_rope_table(void **state) {
    (void)state;
    float table[8], factors[4] = {1, 2, 4, 8};
    rope_table(0, 8, 10000, 1, NULL, table);
    for (int i = 0; i < 4; i++) assert_true(table[i] == 1 && table[4 + i] == 0);
    rope_table(100, 8, 10000, 0.25, factors, table);
    for (int i = 0; i < 4; i++) {
        double angle = 25.0 * pow(10000, -i / 4.0) / (double)factors[i];
        assert_true(fabs((double)table[i] - cos(angle)) < 1e-7);
        assert_true(fabs((double)table[4 + i] - sin(angle)) < 1e-7);
    }
}

/* ----------------------------------------------------------------- dispatch */

static void test_dispatch(void **state) {
    (void)state;
    const struct kernels *kernels = NULL;
    struct shu_error err = {0};
    assert_int_equal(kernels_select("mmx", &kernels, &err), SHU_E_USAGE);
    assert_non_null(strstr(err.message, "scalar"));
    assert_non_null(strstr(err.message, "mmx"));
    assert_int_equal(kernels_select("scalar", &kernels, &err), SHU_OK);
    assert_string_equal(kernels->isa, "scalar");
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int isa = 0; isa < count; isa++) {
        const struct kernels *k = tables[isa];
        assert_true(k->rms_norm && k->layer_norm && k->softmax && k->unary && k->gated && k->add && k->mul);
        assert_true(k->scale && k->softcap && k->rope && k->kv_store && k->attention && k->act8_quantize);
        assert_true(k->lanes == (strcmp(k->isa, "avx512") == 0 ? 16 : 8));
    }
    setenv("SHU_ISA", "scalar", 1);
    assert_string_equal(kernels_get()->isa, "scalar");
    assert_int_equal(kernels_select(NULL, &kernels, NULL), SHU_OK);
    assert_string_equal(kernels->isa, "scalar");
    unsetenv("SHU_ISA");
    const struct kernels *best = kernels_get();
    setenv("SHU_ISA", "nonsense", 1);
    assert_int_equal(kernels_select(NULL, &kernels, NULL), SHU_E_USAGE);
    assert_ptr_equal(kernels_get(), best); /* never fails */
    unsetenv("SHU_ISA");
    assert_int_equal(kv_page_head_bytes(KV_F16, 64), 2 * 64 * 64 * 2);
    assert_int_equal(kv_page_head_bytes(KV_Q8, 64), 2 * 64 * 64 + 2 * 64 * 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op),          cmocka_unit_test(test_another_order_shows),
        cmocka_unit_test(test_negative_control),  cmocka_unit_test(test_place_does_not_matter),
        cmocka_unit_test(test_function_accuracy), cmocka_unit_test(test_functions_agree_on_any_bits),
        cmocka_unit_test(test_infinities),        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_rope_table),        cmocka_unit_test(test_dispatch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
