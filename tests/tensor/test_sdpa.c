/* Attention over packed sequences: shapes x instruction sets against double, gradients against finite differences. */
#include "check.h"

struct shape {
    int heads, kv_heads, dim, window;
    bool causal;
    float softcap;
    int lengths[5]; /* of the sequences, 0 = no more */
};

static const struct shape shapes[] = {
    {1, 1, 8, 0, true, 0, {1}},         {2, 1, 16, 0, true, 0, {3, 5}},      {4, 2, 64, 0, true, 0, {70, 1, 33}},
    {7, 1, 64, 0, true, 0, {130}},      {3, 3, 20, 0, true, 0, {65, 64, 2}}, {2, 2, 13, 0, true, 0, {40, 70}},
    {4, 1, 32, 16, true, 0, {150, 20}}, {2, 1, 24, 100, true, 1.5f, {140}},  {2, 2, 40, 0, false, 0, {66, 9}},
    {2, 1, 12, 7, false, 2, {80, 5}},   {1, 1, 256, 0, true, 0, {67}},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

enum part { Q, K, V, D_OUT, OUT, LSE, DQ, DK, DV, PARTS };

/* Operands and results; every matrix has a gap behind each row. */
struct problem {
    struct sdpa_args args;
    struct guarded part[PARTS];
    int64_t row[PARTS], cols[PARTS];
    int32_t *begin;
    void *scratch;
};

static float *values(const struct problem *p, enum part part) {
    return p->part[part].data;
}

static void connect(struct problem *p) {
    struct sdpa_args *a = &p->args;
    a->q = values(p, Q), a->k = values(p, K), a->v = values(p, V), a->d_out = values(p, D_OUT);
    a->out = values(p, OUT), a->lse = values(p, LSE);
    a->dq = values(p, DQ), a->dk = values(p, DK), a->dv = values(p, DV);
    a->q_row = p->row[Q], a->k_row = p->row[K], a->v_row = p->row[V], a->d_out_row = p->row[D_OUT];
    a->out_row = p->row[OUT], a->lse_row = p->row[LSE];
    a->dq_row = p->row[DQ], a->dk_row = p->row[DK], a->dv_row = p->row[DV];
}

static void problem_new(struct problem *p, const struct shape *shape, struct rng *rng) {
    *p = (struct problem){0};
    int64_t rows = 0;
    for (int i = 0; i < 5; i++) rows += shape->lengths[i];
    p->begin = malloc((size_t)rows * sizeof *p->begin);
    for (int i = 0, at = 0; i < 5; at += shape->lengths[i++])
        for (int j = 0; j < shape->lengths[i]; j++) p->begin[at + j] = at;
    p->args = (struct sdpa_args){.rows = rows,
                                 .begin = p->begin,
                                 .heads = shape->heads,
                                 .kv_heads = shape->kv_heads,
                                 .head_dim = shape->dim,
                                 .scale = 1 / sqrtf((float)shape->dim),
                                 .softcap = shape->softcap,
                                 .window = shape->window,
                                 .causal = shape->causal};
    for (enum part part = 0; part < PARTS; part++) {
        bool kv = part == K || part == V || part == DK || part == DV;
        p->cols[part] = part == LSE ? shape->heads : (kv ? shape->kv_heads : shape->heads) * shape->dim;
        p->row[part] = p->cols[part] + 1 + (int)part;
        p->part[part] = guarded_new((size_t)(rows * p->row[part]) * sizeof(float));
        for (int64_t i = 0; i < rows * p->row[part]; i++) values(p, part)[i] = 1.5f * rng_normal(rng);
    }
    int group = shape->heads / shape->kv_heads;
    assert_int_equal(posix_memalign(&p->scratch, 64, sdpa_scratch_bytes(shape->dim, group)), 0);
    connect(p);
}

static void problem_free(struct problem *p) {
    for (enum part part = 0; part < PARTS; part++) guarded_free(&p->part[part]);
    free(p->begin), free(p->scratch);
}

/* ------------------------------------------------------------------ reference */

static bool sees(const struct sdpa_args *a, int64_t row, int64_t key) {
    if (a->begin[row] != a->begin[key] || (a->causal && key > row)) return false;
    return a->window == 0 || llabs((long long)(row - key)) < a->window;
}

struct exact {
    double *part[PARTS]; /* [rows, cols] */
};

static double dot(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Weights of one row and head in w, slopes of the cap in slope; returns the log of the sum of exponentials. */
static double weights_of(const struct sdpa_args *a, int64_t row, int head, double *w, double *slope) {
    int kv = head / (a->heads / a->kv_heads), n = a->head_dim;
    double sum = 0;
    for (int64_t key = 0; key < a->rows; key++) {
        double s = (double)a->scale * dot(a->q + row * a->q_row + head * n, a->k + key * a->k_row + kv * n, n);
        slope[key] = 1;
        if (a->softcap > 0) {
            double t = tanh(s / (double)a->softcap);
            s = (double)a->softcap * t, slope[key] = 1 - t * t;
        }
        sum += w[key] = sees(a, row, key) ? exp(s) : 0;
    }
    for (int64_t key = 0; key < a->rows; key++) w[key] /= sum;
    return log(sum);
}

static void row_reference(const struct problem *p, int64_t row, int head, double *w, double *slope, struct exact *e) {
    const struct sdpa_args *a = &p->args;
    int kv = head / (a->heads / a->kv_heads), n = a->head_dim;
    const float *d_out = a->d_out + row * a->d_out_row + head * n, *q = a->q + row * a->q_row + head * n;
    double *out = e->part[OUT] + row * p->cols[OUT] + head * n, *dq = e->part[DQ] + row * p->cols[DQ] + head * n;
    double delta = 0;
    e->part[LSE][row * a->heads + head] = weights_of(a, row, head, w, slope);
    for (int64_t key = 0; key < a->rows; key++)
        for (int d = 0; d < n; d++) out[d] += w[key] * (double)a->v[key * a->v_row + kv * n + d];
    for (int d = 0; d < n; d++) delta += (double)d_out[d] * out[d];
    for (int64_t key = 0; key < a->rows; key++) {
        const float *k = a->k + key * a->k_row + kv * n;
        double *dk = e->part[DK] + key * p->cols[DK] + kv * n, *dv = e->part[DV] + key * p->cols[DV] + kv * n;
        double d_score = w[key] * (dot(d_out, a->v + key * a->v_row + kv * n, n) - delta) * slope[key];
        for (int d = 0; d < n; d++) {
            dv[d] += w[key] * (double)d_out[d];
            dk[d] += d_score * (double)a->scale * (double)q[d];
            dq[d] += d_score * (double)a->scale * (double)k[d];
        }
    }
}

static void exact_new(const struct problem *p, struct exact *e) {
    double *w = malloc((size_t)p->args.rows * sizeof *w), *slope = malloc((size_t)p->args.rows * sizeof *slope);
    for (enum part part = 0; part < PARTS; part++)
        e->part[part] = calloc((size_t)(p->args.rows * p->cols[part]), sizeof(double));
    for (int64_t row = 0; row < p->args.rows; row++)
        for (int head = 0; head < p->args.heads; head++) row_reference(p, row, head, w, slope, e);
    free(w), free(slope);
}

static void exact_free(struct exact *e) {
    for (enum part part = 0; part < PARTS; part++) free(e->part[part]);
}

/* --------------------------------------------------------------------- running */

/* All rows of [row0, row1), in units of at most `unit` rows that span no two sequences. */
static void run(const struct problem *p, const struct kernels *k, int unit, int64_t row0, int64_t row1) {
    const struct training_kernels *t = &k->training;
    for (int pass = 0; pass < 3; pass++) {
        for (int64_t row = row0; row < row1;) {
            int64_t end = row + 1;
            while (end < row1 && end - row < unit && p->begin[end] == p->begin[row]) end++;
            for (int kv = 0; kv < p->args.kv_heads; kv++)
                (pass == 0   ? t->sdpa_forward
                 : pass == 1 ? t->sdpa_backward_q
                             : t->sdpa_backward_kv)(&p->args, row, end, kv, p->scratch);
            row = end;
        }
    }
}

static double part_error(const struct problem *p, enum part part, const double *want) {
    double error = 0, energy = 0;
    for (int64_t row = 0; row < p->args.rows; row++) {
        for (int64_t col = 0; col < p->cols[part]; col++) {
            double wanted = want[row * p->cols[part] + col];
            double off = (double)values(p, part)[row * p->row[part] + col] - wanted;
            error += off * off, energy += wanted * wanted;
        }
    }
    return error / (energy > 0 ? energy : 1);
}

static const enum part results[] = {OUT, LSE, DQ, DK, DV};
#define RESULTS   5
#define BOUND     1e-12
#define UNIT_MOST SDPA_ROWS

static void test_against_double(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 1);
    for (size_t shape = 0; shape < SHAPES; shape++) {
        struct problem p;
        struct exact exact;
        problem_new(&p, &shapes[shape], &rng);
        exact_new(&p, &exact);
        for (int isa = 0; isa < count; isa++) {
            run(&p, tables[isa], UNIT_MOST, 0, p.args.rows);
            for (int i = 0; i < RESULTS; i++) {
                double error = part_error(&p, results[i], exact.part[results[i]]);
                if (!(error <= BOUND))
                    fail_msg("%s shape %zu part %d: nmse %g", tables[isa]->isa, shape, results[i], error);
            }
            for (enum part part = 0; part < PARTS; part++) assert_true(guarded_intact(&p.part[part]));
        }
        exact_free(&exact);
        problem_free(&p);
    }
}

/* The gaps between rows of every matrix stay as they were. */
static void test_gaps(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 2);
    struct problem p;
    problem_new(&p, &shapes[5], &rng);
    for (int isa = 0; isa < count; isa++) {
        for (enum part part = 0; part < PARTS; part++)
            for (int64_t row = 0; row < p.args.rows; row++)
                for (int64_t i = p.cols[part]; i < p.row[part]; i++) values(&p, part)[row * p.row[part] + i] = 77;
        run(&p, tables[isa], UNIT_MOST, 0, p.args.rows);
        for (enum part part = 0; part < PARTS; part++)
            for (int64_t row = 0; row < p.args.rows; row++)
                for (int64_t i = p.cols[part]; i < p.row[part]; i++)
                    assert_true(values(&p, part)[row * p.row[part] + i] == 77);
    }
    problem_free(&p);
}

/* ----------------------------------------------------------------- fixed order */

static void copy_results(const struct problem *p, float *to[RESULTS]) {
    for (int i = 0; i < RESULTS; i++) memcpy(to[i], p->part[results[i]].data, p->part[results[i]].bytes);
}

static void check_units(struct problem *p, const struct kernels *k) {
    static const int units[] = {1, 7, 13, 33};
    float *whole[RESULTS];
    for (int i = 0; i < RESULTS; i++) whole[i] = malloc(p->part[results[i]].bytes);
    run(p, k, UNIT_MOST, 0, p->args.rows);
    copy_results(p, whole);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        run(p, k, units[u], 0, p->args.rows);
        for (int i = 0; i < RESULTS; i++)
            assert_memory_equal(p->part[results[i]].data, whole[i], p->part[results[i]].bytes);
    }
    for (int i = 0; i < RESULTS; i++) free(whole[i]);
}

static void test_units_change_nothing(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 3);
    for (int isa = 0; isa < count; isa++) {
        for (size_t shape = 0; shape < SHAPES; shape++) {
            struct problem p;
            problem_new(&p, &shapes[shape], &rng);
            check_units(&p, tables[isa]);
            problem_free(&p);
        }
    }
}

/* A sequence alone gives what it gives behind another one, to which a NaN belongs. */
static void test_sequences_are_apart(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 4);
    struct shape shape = {4, 2, 24, 0, true, 0, {37, 90}};
    struct problem p;
    problem_new(&p, &shape, &rng);
    for (int i = 0; i < 4; i++) values(&p, (enum part)i)[20 * p.row[i] + 3] = NAN;
    for (int isa = 0; isa < count; isa++) {
        float *both[RESULTS];
        for (int i = 0; i < RESULTS; i++) both[i] = malloc(p.part[results[i]].bytes);
        run(&p, tables[isa], UNIT_MOST, 0, p.args.rows);
        copy_results(&p, both);
        for (int i = 0; i < RESULTS; i++) assert_true(isnan(both[i][36 * p.row[results[i]]]) || results[i] >= DK);
        assert_true(isnan(both[3][20 * p.row[DK]]) && isnan(both[4][20 * p.row[DV]]));
        struct problem alone = p;
        int32_t begin[90] = {0};
        alone.args.begin = begin, alone.args.rows = 90, alone.begin = begin;
        const float **in[] = {&alone.args.q, &alone.args.k, &alone.args.v, &alone.args.d_out};
        for (int i = 0; i < 4; i++) *in[i] += 37 * p.row[i];
        run(&alone, tables[isa], UNIT_MOST, 0, 90);
        for (int i = 0; i < RESULTS; i++) {
            const float *got = values(&p, results[i]), *behind = both[i] + 37 * p.row[results[i]];
            for (int64_t row = 0; row < 90; row++)
                assert_memory_equal(got + row * p.row[results[i]], behind + row * p.row[results[i]],
                                    (size_t)p.cols[results[i]] * sizeof(float));
            free(both[i]);
        }
    }
    problem_free(&p);
}

/* ----------------------------------------------------------- finite differences */

/* sum of d_out * out in double, as q, k or v has it. */
static double objective(const struct problem *p) {
    const struct sdpa_args *a = &p->args;
    double sum = 0, *w = malloc((size_t)a->rows * sizeof *w), *slope = malloc((size_t)a->rows * sizeof *slope);
    for (int64_t row = 0; row < a->rows; row++) {
        for (int head = 0; head < a->heads; head++) {
            int kv = head / (a->heads / a->kv_heads), n = a->head_dim;
            weights_of(a, row, head, w, slope);
            for (int64_t key = 0; key < a->rows; key++)
                sum += w[key] * dot(a->d_out + row * a->d_out_row + head * n, a->v + key * a->v_row + kv * n, n);
        }
    }
    free(w), free(slope);
    return sum;
}

static double difference(struct problem *p, enum part part, int64_t row, int64_t col) {
    float *x = values(p, part) + row * p->row[part] + col, old = *x;
    float high = old + 0x1p-7f, low = old - 0x1p-7f; /* as f32 has them */
    *x = high;
    double above = objective(p);
    *x = low;
    double below = objective(p);
    *x = old;
    return (above - below) / ((double)high - (double)low);
}

static void test_finite_differences(void **state) {
    (void)state;
    static const struct shape some[] = {
        {2, 1, 6, 0, true, 0, {5, 9}}, {2, 2, 5, 3, true, 1.5f, {11}}, {2, 1, 7, 4, false, 0, {9, 4}}};
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    struct rng rng;
    rng_seed(&rng, 5);
    for (size_t shape = 0; shape < 3; shape++) {
        struct problem p;
        problem_new(&p, &some[shape], &rng);
        for (int isa = 0; isa < count; isa++) {
            run(&p, tables[isa], UNIT_MOST, 0, p.args.rows);
            for (int i = 0; i < 3; i++) {
                enum part gradient = (enum part)(DQ + i);
                for (int64_t row = 0; row < p.args.rows; row += 2) {
                    int64_t col = (row * 3 + 1) % p.cols[gradient];
                    double want = difference(&p, (enum part)(Q + i), row, col);
                    double got = (double)values(&p, gradient)[row * p.row[gradient] + col];
                    if (!(fabs(got - want) <= 2e-4 * (1 + fabs(want))))
                        fail_msg("%s shape %zu part %d row %lld: %g, differences %g", tables[isa]->isa, shape, gradient,
                                 (long long)row, got, want);
                }
            }
        }
        problem_free(&p);
    }
}

/* The comparison must be able to fail: a key too many, a wrong window, a damaged element. */
static void test_negative_control(void **state) {
    (void)state;
    const struct kernels *k;
    assert_int_equal(kernels_select("scalar", &k, NULL), SHU_OK);
    struct rng rng;
    rng_seed(&rng, 6);
    struct problem p;
    struct exact exact;
    problem_new(&p, &shapes[6], &rng);
    exact_new(&p, &exact);
    run(&p, k, UNIT_MOST, 0, p.args.rows);
    assert_true(part_error(&p, OUT, exact.part[OUT]) <= BOUND);
    values(&p, OUT)[5] += 1e-3f;
    assert_false(part_error(&p, OUT, exact.part[OUT]) <= BOUND);
    p.args.window++;
    run(&p, k, UNIT_MOST, 0, p.args.rows);
    for (int i = 0; i < RESULTS; i++) assert_false(part_error(&p, results[i], exact.part[results[i]]) <= BOUND);
    exact_free(&exact);
    problem_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),       cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_units_change_nothing), cmocka_unit_test(test_sequences_are_apart),
        cmocka_unit_test(test_finite_differences),   cmocka_unit_test(test_negative_control),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
