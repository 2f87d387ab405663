/* Kernels of training besides products and attention. Gradients are compared with central differences of the forward
 * function in double, which are exact to ten digits: far more than f32 has. */
#include "check.h"

#define EPS   1e-5f
#define CAP   1.5f
#define SCALE 0.37f

enum op {
    OP_RMS,
    OP_RMS_PLAIN,
    OP_LAYER,
    OP_LAYER_PLAIN,
    OP_SOFTMAX,
    OP_SOFTCAP,
    OP_UNARY,                         /* + kind */
    OP_GATE = OP_UNARY + UNARY_KINDS, /* + kind: gradient of the gate */
    OP_UP = OP_GATE + UNARY_KINDS,    /* + kind: of the other factor */
    OP_COUNT = OP_UP + UNARY_KINDS
};
#define ROW_OPS OP_SOFTCAP /* below: every output depends on every input */

/* ----------------------------------------------------------- forward in double */

/* sum of dy * f(x); b: gain, or the other factor of a gated op. Element by element where [i, i + 1) is asked for. */
static double objective(int op, const double *x, const float *b, const float *dy, int64_t n) {
    double sum = 0, mean = 0, square = 0, total = 0;
    bool centred = op == OP_LAYER || op == OP_LAYER_PLAIN, plain = op == OP_RMS_PLAIN || op == OP_LAYER_PLAIN;
    for (int64_t i = 0; i < n; i++) mean += centred ? x[i] / (double)n : 0;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean), total += exp((double)SCALE * x[i]);
    double inverse = 1 / sqrt(square / (double)n + (double)EPS);
    for (int64_t i = 0; i < n; i++) {
        double y;
        if (op <= OP_LAYER_PLAIN)
            y = (x[i] - mean) * inverse * (plain ? 1 : (double)b[i]);
        else if (op == OP_SOFTMAX)
            y = exp((double)SCALE * x[i]) / total;
        else if (op == OP_SOFTCAP)
            y = (double)CAP * tanh(x[i] / (double)CAP);
        else if (op < OP_GATE)
            y = unary_reference((enum unary_kind)(op - OP_UNARY), x[i]);
        else if (op < OP_UP)
            y = unary_reference((enum unary_kind)(op - OP_GATE), x[i]) * (double)b[i];
        else
            y = unary_reference((enum unary_kind)(op - OP_UP), (double)b[i]) * x[i];
        sum += (double)dy[i] * y;
    }
    return sum;
}

static void differences(int op, const float *x, const float *b, const float *dy, int64_t n, double *want) {
    double *at = malloc((size_t)n * sizeof *at);
    const double step = 1e-5;
    for (int64_t i = 0; i < n; i++) at[i] = (double)x[i];
    for (int64_t i = 0; i < n; i++) {
        int64_t from = op < ROW_OPS ? 0 : i, count = op < ROW_OPS ? n : 1;
        at[i] = (double)x[i] + step;
        double above = objective(op, at + from, b + from, dy + from, count);
        at[i] = (double)x[i] - step;
        want[i] = (above - objective(op, at + from, b + from, dy + from, count)) / (2 * step);
        at[i] = (double)x[i];
    }
    free(at);
}

/* --------------------------------------------------------------------- kernels */

/* y of softmax, which its backward pass takes in place of x. */
static void softmax_of(const float *x, int64_t n, float *y) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += exp((double)SCALE * (double)x[i]);
    for (int64_t i = 0; i < n; i++) y[i] = (float)(exp((double)SCALE * (double)x[i]) / total);
}

static void run(const struct kernels *kernels, int op, const float *x, const float *b, const float *dy, int64_t n,
                float *dx, float *other) {
    const struct training_kernels *k = &kernels->training;
    if (op == OP_RMS || op == OP_RMS_PLAIN)
        k->rms_norm_backward(dy, x, op == OP_RMS ? b : NULL, EPS, n, dx, other);
    else if (op == OP_LAYER || op == OP_LAYER_PLAIN)
        k->layer_norm_backward(dy, x, op == OP_LAYER ? b : NULL, EPS, n, dx, other);
    else if (op == OP_SOFTMAX) {
        softmax_of(x, n, other);
        k->softmax_backward(dy, other, SCALE, n, dx);
    } else if (op == OP_SOFTCAP)
        k->softcap_backward(dy, x, CAP, n, dx);
    else if (op < OP_GATE)
        k->unary_backward((enum unary_kind)(op - OP_UNARY), dy, x, n, dx);
    else if (op < OP_UP)
        k->gated_backward((enum unary_kind)(op - OP_GATE), dy, x, b, n, dx, other);
    else
        k->gated_backward((enum unary_kind)(op - OP_UP), dy, b, x, n, other, dx);
}

static void fill(struct rng *rng, const struct guarded *x) {
    float *values = x->data;
    for (size_t i = 0; i < x->bytes / sizeof *values; i++) {
        values[i] = 2 * rng_normal(rng);
        if (fabsf(values[i]) < 0.05f) values[i] = 0.5f; /* the norm of one small value bends faster than the step */
    }
}

static const int64_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 100, 255, 300};
#define SIZES (sizeof sizes / sizeof *sizes)

static void check_case(const struct kernels *k, int op, int64_t n, struct rng *rng) {
    size_t bytes = (size_t)n * sizeof(float);
    struct guarded x = guarded_new(bytes), b = guarded_new(bytes), dy = guarded_new(bytes), dx = guarded_new(bytes);
    struct guarded other = guarded_new(bytes);
    double *want = malloc((size_t)n * sizeof *want);
    fill(rng, &x), fill(rng, &b), fill(rng, &dy);
    differences(op, x.data, b.data, dy.data, n, want);
    run(k, op, x.data, b.data, dy.data, n, dx.data, other.data);
    double error = 0, energy = 0, square = 0;
    for (int64_t i = 0; i < n; i++) square += (double)((float *)x.data)[i] * (double)((float *)x.data)[i];
    double factor = op <= OP_LAYER_PLAIN ? 1 / sqrt(square / (double)n) : 1;
    for (int64_t i = 0; i < n; i++) {
        double off = (double)((float *)dx.data)[i] - want[i], size = factor * (double)((float *)dy.data)[i];
        size *= fmax(1, fabs((double)((float *)b.data)[i]));
        error += off * off, energy += want[i] * want[i] + 0.1 * size * size; /* what cancels is judged by its parts */
    }
    if (!(error <= 2e-12 * energy)) fail_msg("%s op %d size %lld: %g", k->isa, op, (long long)n, error / energy);
    assert_true(guarded_intact(&dx) && guarded_intact(&other));
    if (op < OP_GATE) { /* dx may be dy */
        run(k, op, x.data, b.data, dy.data, n, dy.data, other.data);
        assert_memory_equal(dy.data, dx.data, bytes);
    }
    assert_true(guarded_intact(&x) && guarded_intact(&b) && guarded_intact(&dy));
    guarded_free(&x), guarded_free(&b), guarded_free(&dy), guarded_free(&dx), guarded_free(&other);
    free(want);
}

static void test_every_gradient(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 1);
    for (int isa = 0; isa < count; isa++)
        for (int op = 0; op < OP_COUNT; op++)
            for (size_t i = 0; i < SIZES; i++) check_case(tables[isa], op, sizes[i], &rng);
}

/* x / rms, which the gain's gradient needs, and that nobody has to ask for it. */
static void test_normed(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 2);
    float x[101], dy[101], dx[101], again[101], normed[101], want[101];
    for (int i = 0; i < 101; i++) x[i] = 1 + rng_normal(&rng), dy[i] = rng_normal(&rng);
    for (int isa = 0; isa < count; isa++) {
        const struct kernels *k = tables[isa];
        for (int centred = 0; centred < 2; centred++) {
            int op = centred ? OP_LAYER_PLAIN : OP_RMS_PLAIN;
            run(k, op, x, NULL, dy, 101, dx, normed);
            run(k, op, x, NULL, dy, 101, again, NULL);
            assert_memory_equal(again, dx, sizeof dx);
            if (centred)
                k->layer_norm(x, NULL, NULL, EPS, 101, want);
            else
                k->rms_norm(x, NULL, EPS, 101, want);
            for (int i = 0; i < 101; i++) assert_true(fabsf(normed[i] - want[i]) <= 1e-5f);
        }
    }
}

/* A NaN stays at its place, or takes the row where all depends on all. */
static void test_nan(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    float x[19], b[19], dy[19], dx[19], other[19];
    for (int isa = 0; isa < count; isa++) {
        for (int op = 0; op < OP_COUNT; op++) {
            for (int in = 0; in < 2; in++) {
                for (int i = 0; i < 19; i++) x[i] = (float)i * 0.1f - 0.9f, b[i] = dy[i] = 1;
                if (op >= OP_UP) {
                    (in ? dy : b)[17] = NAN;
                } else {
                    (in ? dy : x)[17] = NAN;
                }
                run(tables[isa], op, x, b, dy, 19, dx, other);
                assert_true(isnan(dx[17]));
                for (int i = 0; i < 17; i++) assert_int_equal(isnan(dx[i]) != 0, op < ROW_OPS);
            }
        }
    }
}

/* An element's result depends on its value alone. */
static void test_place_does_not_matter(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 3);
    float x[67], b[67], dy[67], dx[67], other[67], single, single_other;
    for (int i = 0; i < 67; i++) x[i] = 3 * rng_normal(&rng), b[i] = rng_normal(&rng), dy[i] = rng_normal(&rng);
    for (int isa = 0; isa < count; isa++) {
        for (int op = ROW_OPS; op < OP_COUNT; op++) {
            run(tables[isa], op, x, b, dy, 67, dx, other);
            for (int i = 0; i < 67; i++) {
                run(tables[isa], op, x + i, b + i, dy + i, 1, &single, &single_other);
                assert_memory_equal(&single, dx + i, sizeof single);
            }
        }
    }
}

/* ------------------------------------------------------------------------ loss */

static double loss_reference(const float *logits, int64_t n, int32_t target, double weight, double *gradient) {
    double max = -INFINITY, total = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, (double)logits[i]);
    for (int64_t i = 0; i < n; i++) total += exp((double)logits[i] - max);
    for (int64_t i = 0; i < n; i++) gradient[i] = weight * (exp((double)logits[i] - max) / total - (i == target));
    return log(total) + (max - (double)logits[target]);
}

static void check_loss(const struct kernels *k, int64_t n, int32_t target, float spread, struct rng *rng) {
    struct guarded logits = guarded_new((size_t)n * sizeof(float));
    float *x = logits.data, *start = malloc(logits.bytes);
    double *want = malloc((size_t)n * sizeof *want);
    for (int64_t i = 0; i < n; i++) start[i] = x[i] = spread * rng_normal(rng);
    double loss = loss_reference(start, n, target, 0.3, want);
    double found = (double)k->training.cross_entropy(x, n, target, 0.3f, false);
    assert_memory_equal(x, start, logits.bytes);
    if (!(fabs(found - loss) <= 1e-6 * (1 + fabs(loss))))
        fail_msg("%s n %lld: %g, not %g", k->isa, (long long)n, found, loss);
    found = (double)k->training.cross_entropy(x, n, target, 0.3f, true);
    assert_true(fabs(found - loss) <= 1e-6 * (1 + fabs(loss)));
    double relative = 2e-6 + 2e-7 * (double)spread; /* the distance to the maximum is rounded, too */
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs((double)x[i] - want[i]) <= (i == target ? 1e-7 : 1e-30) + relative * fabs(want[i]));
    assert_true(guarded_intact(&logits));
    guarded_free(&logits);
    free(start), free(want);
}

static void test_loss(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 2, 7, 8, 9, 33, 4095, 4096, 4097, 8200, 151936};
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 4);
    for (int isa = 0; isa < count; isa++) {
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            check_loss(tables[isa], counts[i], 0, 3, &rng);
            check_loss(tables[isa], counts[i], (int32_t)counts[i] - 1, 0.1f, &rng);
            check_loss(tables[isa], counts[i], (int32_t)(counts[i] / 2), 60, &rng);
        }
    }
}

static void test_loss_edges(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    static float x[9000];
    for (int isa = 0; isa < count; isa++) {
        const struct training_kernels *k = &tables[isa]->training;
        for (int i = 0; i < 9000; i++) x[i] = i < 4500 ? -INFINITY : 1; /* a whole chunk is excluded */
        assert_true(fabs((double)k->cross_entropy(x, 9000, 8000, 1, true) - log(4500)) < 1e-5);
        assert_true(x[0] == 0 && x[4499] == 0 && fabsf(x[4500] - 1.0f / 4500) < 1e-9f && x[8000] < -0.99f);
        for (int i = 0; i < 9000; i++) x[i] = -1e30f; /* far away, all alike */
        assert_true(fabs((double)k->cross_entropy(x, 9000, 1, 1, true) - log(9000)) < 1e-5);
        for (int i = 0; i < 9000; i++) x[i] = (float)(i % 7);
        x[100] = NAN;
        assert_true(isnan(k->cross_entropy(x, 9000, 8000, 1, false)));
        assert_true(isnan(k->cross_entropy(x, 9000, 8000, 1, true)));
        assert_true(isnan(x[0]) && isnan(x[8999]));
    }
}

/* ------------------------------------------------------------------------ sums */

static void test_column_sum(void **state) {
    (void)state;
    enum { ROWS = 37, COLS = 150, STEP = 153 };
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 5);
    static float x[ROWS * STEP], want[COLS];
    for (int i = 0; i < ROWS * STEP; i++) x[i] = rng_normal(&rng);
    for (int c = 0; c < COLS; c++) {
        want[c] = 1;
        for (int r = 0; r < ROWS; r++) want[c] += x[r * STEP + c];
    }
    for (int isa = 0; isa < count; isa++) {
        static const int64_t cuts[] = {0, 3, 75, 140, COLS};
        struct guarded sum = guarded_new(sizeof want);
        float *found = sum.data;
        for (int c = 0; c < COLS; c++) found[c] = 1;
        for (int i = 0; i < 4; i++) tables[isa]->training.column_sum(x, STEP, ROWS, cuts[i], cuts[i + 1], found);
        assert_memory_equal(found, want, sizeof want); /* the order is given: the very bits */
        assert_true(guarded_intact(&sum));
        guarded_free(&sum);
    }
}

static void test_sum_of_squares(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 6);
    static float x[5000];
    for (int i = 0; i < 5000; i++) x[i] = rng_normal(&rng);
    for (int isa = 0; isa < count; isa++) {
        for (int64_t n = 0; n < 5000; n = n * 3 + 1) {
            double want = 0;
            for (int64_t i = 0; i < n; i++) want += (double)x[i] * (double)x[i];
            double found = tables[isa]->training.sum_of_squares(x, n);
            assert_true(fabs(found - want) <= 1e-13 * want);
        }
        float huge[3] = {1e30f, 1e30f, NAN}; /* f32 would overflow */
        assert_true(fabs(tables[isa]->training.sum_of_squares(huge, 2) / 2e60 - 1) < 1e-6);
        assert_true(isnan(tables[isa]->training.sum_of_squares(huge, 3)));
    }
}

/* ------------------------------------------------------------------- optimiser */

static const struct adamw_args adamw = {.learning_rate = 0.01f,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.99f,
                                        .eps = 1e-8f,
                                        .weight_decay = 0.1f,
                                        .correction1 = 0.271f,
                                        .correction2 = 0.0297f,
                                        .gradient_scale = 0.5f,
                                        .seed = 7};

struct state_of {
    double value, m, v;
};

static struct state_of adamw_reference(float gradient, float value, float m, float v) {
    double g = (double)gradient * (double)adamw.gradient_scale;
    struct state_of s = {(double)value, (double)adamw.beta1 * (double)m + (1 - (double)adamw.beta1) * g,
                         (double)adamw.beta2 * (double)v + (1 - (double)adamw.beta2) * g * g};
    double step = s.m / (double)adamw.correction1 / (sqrt(s.v / (double)adamw.correction2) + (double)adamw.eps);
    s.value -= (double)adamw.learning_rate * (step + (double)adamw.weight_decay * s.value);
    return s;
}

static void test_adamw_f32(void **state) {
    (void)state;
    enum { N = 101 };
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 8);
    for (int isa = 0; isa < count; isa++) {
        for (int64_t n = 1; n <= N; n += 10) {
            struct guarded part[3];
            float gradient[N], *x[3];
            struct state_of want[N];
            for (int p = 0; p < 3; p++) part[p] = guarded_new((size_t)n * sizeof(float)), x[p] = part[p].data;
            for (int64_t i = 0; i < n; i++) {
                gradient[i] = rng_normal(&rng), x[0][i] = rng_normal(&rng), x[1][i] = 0.1f * rng_normal(&rng);
                x[2][i] = fabsf(0.1f * rng_normal(&rng));
                want[i] = adamw_reference(gradient[i], x[0][i], x[1][i], x[2][i]);
            }
            tables[isa]->training.adamw_f32(&adamw, gradient, n, x[0], x[1], x[2]);
            for (int64_t i = 0; i < n; i++) {
                assert_true(fabs((double)x[0][i] - want[i].value) <= 1e-6 * (1 + fabs(want[i].value)));
                assert_true(fabs((double)x[1][i] - want[i].m) <= 1e-7);
                assert_true(fabs((double)x[2][i] - want[i].v) <= 1e-6 * want[i].v);
            }
            for (int p = 0; p < 3; p++) assert_true(guarded_intact(&part[p])), guarded_free(&part[p]);
        }
    }
}

/* Values, moments and gradients of the bf16 tests, deterministic. */
enum { BF16_VALUES = 20011 };
struct bf16_state {
    uint16_t x[3][BF16_VALUES];
};
static float bf16_gradient[BF16_VALUES];

static void bf16_start(struct bf16_state *s) {
    struct rng rng;
    rng_seed(&rng, 9);
    for (int i = 0; i < BF16_VALUES; i++) {
        bf16_gradient[i] = rng_normal(&rng);
        s->x[0][i] = f32_to_bf16(rng_normal(&rng)), s->x[1][i] = f32_to_bf16(rng_normal(&rng));
        s->x[2][i] = f32_to_bf16(fabsf(rng_normal(&rng)));
    }
}

static void bf16_run(const struct kernels *k, struct bf16_state *s, const struct adamw_args *args, int64_t from,
                     int64_t to) {
    struct adamw_args part = *args;
    part.offset += from;
    k->training.adamw_bf16(&part, bf16_gradient + from, to - from, s->x[0] + from, s->x[1] + from, s->x[2] + from);
}

/* Every result is one of the two neighbours of the exact one, and their mean error vanishes. */
static void check_rounding(const struct kernels *k) {
    static struct bf16_state before, after;
    bf16_start(&before);
    after = before;
    bf16_run(k, &after, &adamw, 0, BF16_VALUES);
    double bias[3] = {0};
    for (int i = 0; i < BF16_VALUES; i++) {
        struct state_of s = adamw_reference(bf16_gradient[i], bf16_to_f32(before.x[0][i]), bf16_to_f32(before.x[1][i]),
                                            bf16_to_f32(before.x[2][i]));
        double want[3] = {s.value, s.m, s.v};
        for (int p = 0; p < 3; p++) {
            int exponent;
            frexp(want[p], &exponent);
            double off =
                ((double)bf16_to_f32(after.x[p][i]) - want[p]) / ldexp(1, exponent - 8); /* in its last place */
            assert_true(fabs(off) <= 1.001);
            bias[p] += off / BF16_VALUES;
        }
    }
    for (int p = 0; p < 3; p++)
        if (!(fabs(bias[p]) <= 0.015)) fail_msg("%s part %d: rounding leans by %g", k->isa, p, bias[p]);
}

static void test_adamw_bf16(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    static struct bf16_state whole, parts;
    for (int isa = 0; isa < count; isa++) {
        const struct kernels *k = tables[isa];
        check_rounding(k);
        struct adamw_args args = adamw;
        args.offset = (INT64_C(3) << 20) - 10007; /* crosses what shares a key */
        bf16_start(&whole), bf16_start(&parts);
        bf16_run(k, &whole, &args, 0, BF16_VALUES);
        for (int64_t i = 0; i < BF16_VALUES; i += 997)
            bf16_run(k, &parts, &args, i, i + 997 < BF16_VALUES ? i + 997 : BF16_VALUES);
        assert_memory_equal(&whole, &parts, sizeof whole); /* tiles change nothing */
        bf16_start(&parts);
        args.seed++;
        bf16_run(k, &parts, &args, 0, BF16_VALUES);
        int same = 0;
        for (int i = 0; i < BF16_VALUES; i++) same += whole.x[0][i] == parts.x[0][i];
        assert_true(same < BF16_VALUES * 3 / 4 && same > BF16_VALUES / 2); /* on average two thirds agree by chance */
    }
}

static void test_adamw_nan(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int isa = 0; isa < count; isa++) {
        float gradient[9] = {0}, value[9] = {0}, m[9] = {0}, v[9] = {0};
        uint16_t value16[9] = {0}, m16[9] = {0}, v16[9] = {0};
        gradient[8] = NAN;
        v16[3] = 0x7f80; /* infinity stays */
        tables[isa]->training.adamw_f32(&adamw, gradient, 9, value, m, v);
        tables[isa]->training.adamw_bf16(&adamw, gradient, 9, value16, m16, v16);
        assert_true(isnan(value[8]) && isnan(m[8]) && isnan(v[8]) && value[7] == 0);
        assert_true(isnan(bf16_to_f32(value16[8])) && isnan(bf16_to_f32(m16[8])) && isnan(bf16_to_f32(v16[8])));
        assert_true(value16[7] == 0 && v16[3] == 0x7f80);
    }
}

static void test_dropout(void **state) {
    (void)state;
    int zeros = 0, both = 0, other_seed = 0;
    for (int row = 0; row < 200; row++) {
        for (int col = 0; col < 200; col++) {
            float f = dropout_factor(5, row, col, 0.25f);
            assert_true(f == 0 || f == 1 / 0.75f);
            assert_true(f == dropout_factor(5, row, col, 0.25f));
            zeros += f == 0;
            both += f == 0 && dropout_factor(5, row, col + 1, 0.25f) == 0;
            other_seed += f == 0 && dropout_factor(6, row, col, 0.25f) == 0;
        }
    }
    assert_true(abs(zeros - 10000) < 400); /* 4.6 deviations */
    assert_true(abs(both - 2500) < 250 && abs(other_seed - 2500) < 250);
    assert_true(dropout_factor(5, 1, 1, 0) == 1 && dropout_factor(5, 1, 1, 1) == 0);
}

/* The comparisons must be able to fail. */
static void test_negative_control(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 10);
    float x[40], b[40], dy[40], dx[40], other[40];
    double want[40], wrong[40];
    const struct kernels *k;
    assert_int_equal(kernels_select("scalar", &k, NULL), SHU_OK);
    for (int i = 0; i < 40; i++) x[i] = rng_normal(&rng), b[i] = 1 + rng_normal(&rng), dy[i] = rng_normal(&rng);
    for (int op = 0; op < OP_COUNT; op++) {
        differences(op, x, b, dy, 40, want);
        differences(op, x, b, b, 40, wrong);
        run(k, op, x, b, dy, 40, dx, other);
        assert_true(nmse(dx, want, 40) <= 1e-11);
        assert_false(nmse(dx, wrong, 40) <= 1e-11);
        dx[11] += 1e-3f;
        assert_false(nmse(dx, want, 40) <= 1e-11);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_gradient),
        cmocka_unit_test(test_normed),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_place_does_not_matter),
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_loss_edges),
        cmocka_unit_test(test_column_sum),
        cmocka_unit_test(test_sum_of_squares),
        cmocka_unit_test(test_adamw_f32),
        cmocka_unit_test(test_adamw_bf16),
        cmocka_unit_test(test_adamw_nan),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_negative_control),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
