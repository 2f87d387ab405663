/* Every operation through the graph, on odd shapes, against a direct double reference. */
#include "graph/check.h"

enum { MAX_ROWS = 37 };
static const int64_t row_counts[] = {1, 3, 37};

/* ------------------------------------------------------------ one-node harness */

/* A graph of f32 inputs x (and y) and one node built from them. */
struct one_node {
    struct graph *graph;
    struct pool *pool;
    node_id x, y, out;
    int64_t cols;
    struct rng rng;
};

static void one_node_open(struct one_node *test, int64_t cols) {
    *test = (struct one_node){.graph = new_graph(), .pool = new_pool(2), .cols = cols};
    rng_seed(&test->rng, 7);
    test->x = graph_input(test->graph, DT_F32, GRAPH_ROWS, cols, "x");
    test->y = graph_input(test->graph, DT_F32, GRAPH_ROWS, cols, "y");
}

static void one_node_plan(struct one_node *test, node_id out) {
    test->out = out;
    graph_output(test->graph, out);
    plan_graph(test->graph, MAX_ROWS, MAX_ROWS, 2);
}

static const float *one_node_run(struct one_node *test, int64_t rows) {
    fill_normal(&test->rng, graph_data(test->graph, test->x), rows * test->cols);
    fill_normal(&test->rng, graph_data(test->graph, test->y), rows * test->cols);
    run_graph(test->graph, test->pool, &(struct graph_step){.rows = rows, .gathered = 0});
    return graph_data(test->graph, test->out);
}

static void one_node_close(struct one_node *test) {
    pool_free(test->pool);
    graph_free(test->graph);
}

/* -------------------------------------------------------------- element-wise */

struct element_case {
    enum graph_op_kind kind;
    enum unary_kind unary;
};

static node_id element_build(struct one_node *test, const struct element_case *what) {
    switch (what->kind) {
    case OP_ADD:
        return graph_add(test->graph, test->x, test->y);
    case OP_MUL:
        return graph_mul(test->graph, test->x, test->y);
    case OP_SCALE:
        return graph_scale(test->graph, test->x, 1.75F);
    case OP_SOFTCAP:
        return graph_softcap(test->graph, test->x, 0.5F);
    case OP_UNARY:
        return graph_unary(test->graph, test->x, what->unary);
    default:
        return graph_gated(test->graph, test->x, test->y, what->unary);
    }
}

static double element_reference(const struct element_case *what, double x, double y) {
    switch (what->kind) {
    case OP_ADD:
        return x + y;
    case OP_MUL:
        return x * y;
    case OP_SCALE:
        return 1.75 * x;
    case OP_SOFTCAP:
        return 0.5 * tanh(x / 0.5);
    case OP_UNARY:
        return unary_reference(what->unary, x);
    default:
        return unary_reference(what->unary, x) * y;
    }
}

static void check_element(const struct element_case *what, int64_t cols) {
    static double wanted[MAX_ROWS * 71];
    struct one_node test;
    one_node_open(&test, cols);
    one_node_plan(&test, element_build(&test, what));
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        const float *found = one_node_run(&test, row_counts[i]);
        const float *x = graph_data(test.graph, test.x), *y = graph_data(test.graph, test.y);
        for (int64_t k = 0; k < row_counts[i] * cols; k++) wanted[k] = element_reference(what, x[k], y[k]);
        assert_nmse(found, wanted, row_counts[i] * cols, 1e-11);
    }
    one_node_close(&test);
}

static void test_elementwise(void **state) {
    (void)state;
    static const int64_t cols[] = {1, 8, 71};
    for (int c = 0; c < 3; c++) {
        for (enum graph_op_kind kind = OP_ADD; kind <= OP_SOFTCAP; kind++)
            check_element(&(struct element_case){.kind = kind}, cols[c]);
        for (enum unary_kind unary = 0; unary < UNARY_KINDS; unary++) {
            check_element(&(struct element_case){.kind = OP_UNARY, .unary = unary}, cols[c]);
            check_element(&(struct element_case){.kind = OP_GATED, .unary = unary}, cols[c]);
        }
    }
}

/* --------------------------------------------------------------------- norms */

static void reference_norm(const float *x, const float *gain, const float *bias, double eps, int64_t cols, bool centre,
                           double *out) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < cols; i++) mean += centre ? x[i] / (double)cols : 0;
    for (int64_t i = 0; i < cols; i++) square += (x[i] - mean) * (x[i] - mean) / (double)cols;
    for (int64_t i = 0; i < cols; i++)
        out[i] = (x[i] - mean) / sqrt(square + eps) * (gain ? gain[i] : 1) + (bias ? bias[i] : 0);
}

static void check_rms_norm(int64_t cols, int64_t group, bool with_gain) {
    static double wanted[MAX_ROWS * 96];
    struct one_node test;
    one_node_open(&test, cols);
    float gain[96];
    fill_normal(&test.rng, gain, group);
    node_id gain_node = with_gain ? graph_const(test.graph, gain, group, "gain") : -1;
    one_node_plan(&test, graph_rms_norm(test.graph, test.x, gain_node, 1e-5F, group == cols ? 0 : group));
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        const float *found = one_node_run(&test, row_counts[i]);
        const float *x = graph_data(test.graph, test.x);
        for (int64_t at = 0; at < row_counts[i] * cols; at += group)
            reference_norm(x + at, with_gain ? gain : NULL, NULL, 1e-5, group, false, wanted + at);
        assert_nmse(found, wanted, row_counts[i] * cols, 1e-12);
    }
    one_node_close(&test);
}

static void test_rms_norm(void **state) {
    (void)state;
    check_rms_norm(71, 71, true);
    check_rms_norm(71, 71, false);
    check_rms_norm(96, 16, true);
    check_rms_norm(1, 1, true);
}

static void test_layer_norm(void **state) {
    (void)state;
    static double wanted[MAX_ROWS * 71];
    struct one_node test;
    one_node_open(&test, 71);
    float gain[71], bias[71];
    fill_normal(&test.rng, gain, 71);
    fill_normal(&test.rng, bias, 71);
    node_id gain_node = graph_const(test.graph, gain, 71, "gain"),
            bias_node = graph_const(test.graph, bias, 71, "bias");
    one_node_plan(&test, graph_layer_norm(test.graph, test.x, gain_node, bias_node, 1e-5F));
    const float *found = one_node_run(&test, MAX_ROWS);
    const float *x = graph_data(test.graph, test.x);
    for (int64_t row = 0; row < MAX_ROWS; row++)
        reference_norm(x + row * 71, gain, bias, 1e-5, 71, true, wanted + row * 71);
    assert_nmse(found, wanted, MAX_ROWS * 71, 1e-12);
    one_node_close(&test);
}

static void test_softmax(void **state) {
    (void)state;
    static double wanted[MAX_ROWS * 71];
    struct one_node test;
    one_node_open(&test, 71);
    one_node_plan(&test, graph_softmax(test.graph, test.x, 2.5F));
    const float *found = one_node_run(&test, MAX_ROWS);
    const float *x = graph_data(test.graph, test.x);
    for (int64_t row = 0; row < MAX_ROWS; row++) {
        double sum = 0;
        for (int64_t i = 0; i < 71; i++) sum += exp(2.5 * x[row * 71 + i]);
        for (int64_t i = 0; i < 71; i++) wanted[row * 71 + i] = exp(2.5 * x[row * 71 + i]) / sum;
    }
    assert_nmse(found, wanted, MAX_ROWS * 71, 1e-11);
    one_node_close(&test);
}

/* ------------------------------------------------------------------- products */

/* Activations of quantised products are int8 per 32 columns: bounds per type differ. */
static void check_matmul(enum dtype dtype, int64_t out_cols, int64_t cols, bool with_bias, double bound) {
    struct one_node test;
    one_node_open(&test, cols);
    float *plain = mem_alloc((size_t)(out_cols * cols) * sizeof *plain);
    float *bias = mem_alloc((size_t)out_cols * sizeof *bias);
    double *wanted = mem_alloc((size_t)(MAX_ROWS * out_cols) * sizeof *wanted);
    struct packed weight;
    random_packed(&test.rng, dtype, out_cols, cols, &weight, plain);
    fill_normal(&test.rng, bias, out_cols);
    node_id bias_node = with_bias ? graph_const(test.graph, bias, out_cols, "bias") : -1;
    one_node_plan(&test, graph_matmul(test.graph, test.x, &weight, bias_node));
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        const float *found = one_node_run(&test, row_counts[i]);
        const float *x = graph_data(test.graph, test.x);
        for (int64_t t = 0; t < row_counts[i]; t++)
            for (int64_t r = 0; r < out_cols; r++) {
                double sum = with_bias ? bias[r] : 0;
                for (int64_t c = 0; c < cols; c++) sum += (double)x[t * cols + c] * plain[r * cols + c];
                wanted[t * out_cols + r] = sum;
            }
        assert_nmse(found, wanted, row_counts[i] * out_cols, bound);
    }
    free_packed(&weight);
    mem_free(plain);
    mem_free(bias);
    mem_free(wanted);
    one_node_close(&test);
}

static void test_matmul(void **state) {
    (void)state;
    check_matmul(DT_F32, 29, 71, true, 1e-12);
    check_matmul(DT_F32, 200, 33, false, 1e-12);
    check_matmul(DT_F16, 29, 64, true, 1e-6);
    check_matmul(DT_BF16, 29, 64, true, 1e-5);
    check_matmul(DT_Q8_0, 29, 96, true, 1e-4);
    check_matmul(DT_Q5_0, 131, 64, false, 1e-4);
    check_matmul(DT_Q4_K, 17, 512, true, 1e-4);
    check_matmul(DT_Q6_K, 17, 256, false, 1e-4);
}

/* Products with the same input share one quantised form; float weights need none. */
static void test_quantize_shared(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 3);
    float plain[8 * 32];
    struct packed a, b;
    random_packed(&rng, DT_Q8_0, 8, 32, &a, plain);
    random_packed(&rng, DT_F32, 8, 32, &b, plain);
    struct graph *graph = new_graph();
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 32, "x");
    node_id first = graph_matmul(graph, x, &a, -1);
    assert_int_equal(first, x + 2);
    assert_int_equal(graph_matmul(graph, x, &a, -1), first + 1);
    assert_int_equal(graph_matmul(graph, x, &b, -1), first + 2);
    plan_graph(graph, 1, 1, 1);
    graph_free(graph);
    free_packed(&a);
    free_packed(&b);
}

/* ---------------------------------------------------------- embedding, gather */

static void check_embed(enum dtype dtype, bool packed_table) {
    enum { ROWS = 53, COLS = 64 };
    struct rng rng;
    rng_seed(&rng, 5);
    static float plain[ROWS * COLS];
    struct packed packed;
    random_packed(&rng, dtype, ROWS, COLS, &packed, plain);
    static uint8_t encoded[ROWS * COLS * 4];
    for (int row = 0; row < ROWS; row++) {
        size_t row_bytes = dtype_row_bytes(dtype, COLS);
        dtype_table[dtype].from_f32(plain + row * COLS, NULL, encoded + (size_t)row * row_bytes, COLS);
    }
    struct tensor table = {.dtype = dtype, .ndim = 2, .shape = {COLS, ROWS, 1, 1}, .data = encoded};
    struct graph *graph = new_graph();
    struct pool *pool = new_pool(2);
    node_id ids = graph_input(graph, DT_I32, GRAPH_ROWS, 1, "ids"),
            pick = graph_input(graph, DT_I32, GRAPH_GATHERED, 1, "pick");
    node_id out = packed_table ? graph_embed(graph, ids, &packed) : graph_embed_plain(graph, ids, &table);
    node_id some = graph_gather(graph, out, pick);
    graph_output(graph, some);
    plan_graph(graph, 7, 3, 2);
    int32_t *id = graph_data(graph, ids), *picked = graph_data(graph, pick);
    for (int i = 0; i < 7; i++) id[i] = (i * 17 + 52) % ROWS;
    picked[0] = 6, picked[1] = 0, picked[2] = 6;
    run_graph(graph, pool, &(struct graph_step){.rows = 7, .gathered = 3});
    const float *found = graph_data(graph, some);
    for (int i = 0; i < 3; i++)
        for (int c = 0; c < COLS; c++) {
            float wanted = plain[id[picked[i]] * COLS + c];
            if (!(fabsf(found[i * COLS + c] - wanted) <= 1e-2F * fabsf(wanted))) fail_msg("row %d column %d", i, c);
        }
    graph_free(graph);
    pool_free(pool);
    free_packed(&packed);
}

static void test_embed_gather(void **state) {
    (void)state;
    check_embed(DT_F32, true);
    check_embed(DT_F32, false);
    check_embed(DT_Q8_0, true);
    check_embed(DT_Q8_0, false);
}

/* -------------------------------------------------------- rotation, attention */

/* Two sequences with pages in shuffled order; 11 old positions precede the 37 rows of the step. */
enum { HEADS = 6, KV_HEADS = 2, DIM = 16, PAGES = 8, OLD = 70 };

struct kv_world {
    struct kv_step step;
    struct kv_row rows[MAX_ROWS];
    int32_t table[2][PAGES / 2];
    const int32_t *tables[2];
    uint8_t *base[1];
};

static void kv_world_open(struct kv_world *world, enum kv_type type) {
    static const int32_t pages[2][PAGES / 2] = {{5, 0, 7, 2}, {1, 6, 3, 4}};
    memcpy(world->table, pages, sizeof pages);
    world->tables[0] = world->table[0];
    world->tables[1] = world->table[1];
    size_t page_bytes = KV_HEADS * kv_page_head_bytes(type, DIM);
    world->base[0] = mem_alloc_large(PAGES * page_bytes);
    assert_non_null(world->base[0]);
    world->step = (struct kv_step){.type = type,
                                   .kv_heads = KV_HEADS,
                                   .head_dim = DIM,
                                   .row = world->rows,
                                   .tables = world->tables,
                                   .layer_base = world->base,
                                   .page_bytes = page_bytes};
}

/* Rows of a step: `first` of sequence 0 from position start0 on, the rest of sequence 1 from start1 on. */
static void kv_world_rows(struct kv_world *world, int64_t rows, int64_t first, int32_t start0, int32_t start1) {
    world->step.rows = rows;
    for (int64_t i = 0; i < rows; i++)
        world->rows[i] =
            i < first ? (struct kv_row){0, start0 + (int32_t)i} : (struct kv_row){1, start1 + (int32_t)(i - first)};
}

static void kv_world_close(struct kv_world *world) {
    mem_free_large(world->base[0], PAGES * world->step.page_bytes);
}

static void reference_rope(const float *x, int heads, int rot, bool neox, int32_t position, double *out) {
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < DIM; i++) out[h * DIM + i] = x[h * DIM + i];
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < rot / 2; i++) {
            double angle = position * 0.5 * pow(10000, -2.0 * i / rot);
            int a = h * DIM + (neox ? i : 2 * i), b = neox ? a + rot / 2 : a + 1;
            out[a] = x[a] * cos(angle) - x[b] * sin(angle);
            out[b] = x[a] * sin(angle) + x[b] * cos(angle);
        }
}

static void check_rope(int rot, bool neox) {
    static double wanted[MAX_ROWS * HEADS * DIM];
    struct one_node test;
    one_node_open(&test, HEADS * DIM);
    struct kv_world world;
    kv_world_open(&world, KV_F16);
    kv_world_rows(&world, MAX_ROWS, 20, 3, 64);
    node_id table = graph_rope_table(test.graph, rot, 10000, 0.5, NULL);
    one_node_plan(&test, graph_rope(test.graph, test.x, table, HEADS, DIM, rot, neox));
    float *x = graph_data(test.graph, test.x);
    fill_normal(&test.rng, x, MAX_ROWS * HEADS * DIM);
    run_graph(test.graph, test.pool, &(struct graph_step){.rows = MAX_ROWS, .kv = &world.step});
    for (int64_t t = 0; t < MAX_ROWS; t++)
        reference_rope(x + t * HEADS * DIM, HEADS, rot, neox, world.rows[t].position, wanted + t * HEADS * DIM);
    assert_nmse((float *)graph_data(test.graph, test.out), wanted, MAX_ROWS * HEADS * DIM, 1e-12);
    kv_world_close(&world);
    one_node_close(&test);
}

static void test_rope(void **state) {
    (void)state;
    check_rope(DIM, true);
    check_rope(DIM, false);
    check_rope(DIM / 2, true);
}

struct attention_test {
    struct graph *graph;
    node_id q, k, v, out;
    struct graph_params params;
    struct kv_world world;
    /* What each sequence holds so far: [sequence][position][KV_HEADS * DIM]. */
    float keys[2][OLD + MAX_ROWS][KV_HEADS * DIM], values[2][OLD + MAX_ROWS][KV_HEADS * DIM];
};

static void attention_test_open(struct attention_test *test, enum kv_type type, float softcap, int window) {
    test->graph = new_graph();
    test->params = (struct graph_params){
        .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .scale = 0.3F, .softcap = softcap, .window = window};
    test->q = graph_input(test->graph, DT_F32, GRAPH_ROWS, HEADS * DIM, "q");
    test->k = graph_input(test->graph, DT_F32, GRAPH_ROWS, KV_HEADS * DIM, "k");
    test->v = graph_input(test->graph, DT_F32, GRAPH_ROWS, KV_HEADS * DIM, "v");
    node_id stored = graph_kv_store(test->graph, test->k, test->v, 0);
    test->out = graph_attention(test->graph, test->q, stored, &test->params);
    graph_output(test->graph, test->out);
    plan_graph(test->graph, MAX_ROWS, 0, 16);
    kv_world_open(&test->world, type);
}

static void attention_reference(const struct attention_test *test, int64_t t, int head, double out[DIM]) {
    const struct kv_row *row = &test->world.rows[t];
    const float *q = (const float *)graph_data(test->graph, test->q) + (t * HEADS + head) * DIM;
    int kv = head / (HEADS / KV_HEADS) * DIM;
    double sum = 0;
    memset(out, 0, DIM * sizeof *out);
    int start =
        test->params.window && row->position >= test->params.window ? row->position - test->params.window + 1 : 0;
    for (int p = start; p <= row->position; p++) {
        double score = 0;
        for (int d = 0; d < DIM; d++) score += (double)q[d] * test->keys[row->sequence][p][kv + d];
        score *= test->params.scale;
        if (test->params.softcap > 0) score = test->params.softcap * tanh(score / test->params.softcap);
        sum += exp(score);
        for (int d = 0; d < DIM; d++) out[d] += exp(score) * test->values[row->sequence][p][kv + d];
    }
    for (int d = 0; d < DIM; d++) out[d] /= sum;
}

static void attention_step(struct attention_test *test, struct rng *rng, struct pool *pool) {
    int64_t rows = test->world.step.rows;
    float *q = graph_data(test->graph, test->q), *k = graph_data(test->graph, test->k),
          *v = graph_data(test->graph, test->v);
    fill_normal(rng, q, rows * HEADS * DIM);
    fill_normal(rng, k, rows * KV_HEADS * DIM);
    fill_normal(rng, v, rows * KV_HEADS * DIM);
    for (int64_t t = 0; t < rows; t++) {
        const struct kv_row *row = &test->world.rows[t];
        memcpy(test->keys[row->sequence][row->position], k + t * KV_HEADS * DIM, KV_HEADS * DIM * sizeof *k);
        memcpy(test->values[row->sequence][row->position], v + t * KV_HEADS * DIM, KV_HEADS * DIM * sizeof *v);
    }
    run_graph(test->graph, pool, &(struct graph_step){.rows = rows, .kv = &test->world.step});
}

static void check_attention(enum kv_type type, float softcap, int window, int threads, double bound) {
    static struct attention_test test;
    static double wanted[MAX_ROWS * HEADS * DIM];
    attention_test_open(&test, type, softcap, window);
    struct pool *pool = new_pool(threads);
    struct rng rng;
    rng_seed(&rng, 11);
    for (int32_t at = 0; at < OLD; at += 35) { /* fill both sequences, then mix them */
        kv_world_rows(&test.world, 35, 35, at, 0);
        attention_step(&test, &rng, pool);
        kv_world_rows(&test.world, 35, 0, 0, at);
        attention_step(&test, &rng, pool);
    }
    kv_world_rows(&test.world, MAX_ROWS, 20, OLD, OLD - 9);
    attention_step(&test, &rng, pool);
    for (int64_t t = 0; t < MAX_ROWS; t++)
        for (int head = 0; head < HEADS; head++) attention_reference(&test, t, head, wanted + (t * HEADS + head) * DIM);
    assert_nmse((float *)graph_data(test.graph, test.out), wanted, MAX_ROWS * HEADS * DIM, bound);
    pool_free(pool);
    kv_world_close(&test.world);
    graph_free(test.graph);
}

static void test_attention(void **state) {
    (void)state;
    check_attention(KV_F16, 0, 0, 2, 1e-6);
    check_attention(KV_F16, 2.5F, 0, 1, 1e-6);
    check_attention(KV_F16, 0, 13, 2, 1e-6);
    check_attention(KV_F16, 0, 0, 16, 1e-6); /* fewer blocks than threads: heads are parted */
    check_attention(KV_Q8, 0, 0, 2, 1e-3);
}

/* The measure itself must be able to fail. */
static void test_measure_fails(void **state) {
    (void)state;
    double wanted[4] = {1, 2, 3, 4};
    float found[4] = {1, 2, 3, 4.1F};
    assert_true(nmse(found, wanted, 4) > 1e-4);
    found[3] = NAN;
    assert_false(nmse(found, wanted, 4) <= 1e9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise),   cmocka_unit_test(test_rms_norm), cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_softmax),       cmocka_unit_test(test_matmul),   cmocka_unit_test(test_quantize_shared),
        cmocka_unit_test(test_embed_gather),  cmocka_unit_test(test_rope),     cmocka_unit_test(test_attention),
        cmocka_unit_test(test_measure_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
