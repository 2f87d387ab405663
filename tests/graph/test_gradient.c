/* Every operation's gradient against central differences. */
#include "graph/gradient_check.h"

static const int64_t row_counts[] = {1, 3, 37};

#define FOR_ROWS(r) for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)

/* -------------------------------------------------------------- element by element */

struct element {
    enum graph_op_kind kind;
    enum unary_kind unary;
    int64_t cols;
};

static node_id build_element(struct world *world, const void *what) {
    const struct element *element = what;
    struct graph *graph = world->graph;
    world->away_from_zero = element->unary == UNARY_RELU;
    node_id x = world_value(world, element->cols), y = world_value(world, element->cols);
    switch (element->kind) {
    case OP_ADD:
        return graph_add(graph, graph_add(graph, x, y), x);
    case OP_MUL:
        return graph_mul(graph, graph_mul(graph, x, x), y);
    case OP_SCALE:
        return graph_scale(graph, x, 1.75F);
    case OP_SOFTCAP:
        return graph_softcap(graph, x, 1.5F);
    case OP_SOFTMAX:
        return graph_softmax(graph, x, 0.7F);
    case OP_UNARY:
        return graph_unary(graph, x, element->unary);
    case OP_DROPOUT:
        return graph_dropout(graph, x, 0.4F, 5);
    default:
        return graph_gated(graph, x, y, element->unary);
    }
}

static void check_element(enum graph_op_kind kind, enum unary_kind unary) {
    static const int64_t cols[] = {2, 19};
    for (int c = 0; c < 2; c++) FOR_ROWS(r)
    check_gradients(build_element, &(struct element){kind, unary, cols[c]}, row_counts[r], 0, graph_op_name(kind));
}

static void test_elementwise(void **state) {
    (void)state;
    static const enum graph_op_kind kinds[] = {OP_ADD, OP_MUL, OP_SCALE, OP_SOFTCAP, OP_SOFTMAX, OP_DROPOUT};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) check_element(kinds[i], UNARY_SILU);
    for (enum unary_kind unary = 0; unary < UNARY_KINDS; unary++) {
        check_element(OP_UNARY, unary);
        check_element(OP_GATED, unary);
    }
}

/* What dropout leaves is what dropout_factor says, bit for bit, under the run's seed and the node's salt. */
static void test_dropout(void **state) {
    (void)state;
    enum { ROWS = 5, COLS = 43 };
    struct graph *graph = new_graph();
    struct pool *pool = new_pool(2);
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, COLS, "x");
    assert_int_equal(graph_dropout(graph, x, 0, 1), x);
    node_id out[2] = {graph_dropout(graph, x, 0.3F, 0), graph_dropout(graph, x, 0.3F, 1)};
    for (int i = 0; i < 2; i++) graph_output(graph, out[i]);
    plan_graph(graph, ROWS, 0, 2);
    float *values = graph_data(graph, x);
    for (int i = 0; i < ROWS * COLS; i++) values[i] = 1 + (float)i;
    run_graph(graph, pool, &(struct graph_step){.rows = ROWS, .dropout_seed = 9});
    int zeros = 0, differ = 0;
    for (int i = 0; i < ROWS * COLS; i++) {
        float found = ((float *)graph_data(graph, out[0]))[i];
        assert_true(found == values[i] * dropout_factor(9, i / COLS, i % COLS, 0.3F));
        zeros += found == 0;
        differ += found != ((float *)graph_data(graph, out[1]))[i];
    }
    assert_true(zeros > 30 && zeros < 100 && differ > 40);
    pool_free(pool);
    graph_free(graph);
}

/* The checker sees a gradient that is wrong by half a percent, and one that is missing. */
static void test_wrong_is_seen(void **state) {
    (void)state;
    struct pool *pool = new_pool(1);
    struct world world;
    world_open(&world, build_element, &(struct element){OP_MUL, UNARY_SILU, 19}, 3, 0, AS_BUILT);
    assert_true(world_error(&world, pool, 0) <= GRADIENT_BOUND);
    assert_false(world_error(&world, pool, 0.005F) <= GRADIENT_BOUND);
    assert_false(world_error(&world, pool, -1) <= GRADIENT_BOUND);
    assert_false(world_error(&world, pool, NAN) <= GRADIENT_BOUND);
    world_close(&world);
    pool_free(pool);
}

/* --------------------------------------------------------------------------- norms */

struct norm {
    int64_t cols, group;
    int vectors; /* 1: gain, 2: gain and bias */
    bool layer, learns;
};

static node_id build_norm(struct world *world, const void *what) {
    const struct norm *norm = what;
    node_id x = world_value(world, norm->cols), vectors[2] = {-1, -1};
    for (int i = 0; i < norm->vectors; i++)
        vectors[i] = world_parameter(world, DT_F32, 1, norm->group, norm->learns || i == 1);
    if (norm->layer) return graph_layer_norm(world->graph, x, vectors[0], vectors[1], 1e-3F);
    return graph_rms_norm(world->graph, x, vectors[0], 1e-3F, norm->group == norm->cols ? 0 : norm->group);
}

static void test_norms(void **state) {
    (void)state;
    static const struct norm norms[] = {{19, 19, 0, false, false}, {19, 19, 1, false, true}, {19, 19, 1, false, false},
                                        {24, 8, 1, false, true},   {24, 8, 0, false, false}, {19, 19, 2, true, true},
                                        {19, 19, 2, true, false},  {19, 19, 1, true, true},  {19, 19, 0, true, true}};
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) FOR_ROWS(r)
    check_gradients(build_norm, &norms[i], row_counts[r], 0, norms[i].layer ? "layer_norm" : "rms_norm");
}

/* ----------------------------------------------------------------- rows and columns */

struct rows_case {
    enum dtype dtype;
    int64_t table, cols;
    bool base; /* what is picked from has other readers too */
};

static node_id build_embed(struct world *world, const void *what) {
    const struct rows_case *rows = what;
    node_id table = world_parameter(world, rows->dtype, rows->table, rows->cols, true);
    node_id first = graph_embed_parameter(world->graph, world_ids(world, GRAPH_ROWS, rows->table), table);
    if (!rows->base) return first;
    node_id second = graph_embed_parameter(world->graph, world_ids(world, GRAPH_ROWS, 2), table);
    return graph_mul(world->graph, first, second);
}

static void test_embed(void **state) {
    (void)state;
    static const struct rows_case cases[] = {
        {DT_F32, 5, 70, false}, {DT_BF16, 5, 9, false}, {DT_F32, 11, 300, true}, {DT_BF16, 40, 1, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_ROWS(r) check_gradients(build_embed, &cases[i], row_counts[r], 0, "embed");
}

static node_id build_gather(struct world *world, const void *what) {
    const struct rows_case *rows = what;
    node_id x = world_value(world, rows->cols);
    if (rows->base) { /* read by both picks, and by a product that is picked from */
        node_id twice = graph_mul(world->graph, x, x);
        node_id a = graph_gather(world->graph, x, world_ids(world, GRAPH_GATHERED, world->rows));
        node_id b = graph_gather(world->graph, x, world_ids(world, GRAPH_GATHERED, 1));
        node_id c = graph_gather(world->graph, twice, world_ids(world, GRAPH_GATHERED, world->rows));
        return graph_add(world->graph, graph_mul(world->graph, a, b), c);
    }
    return graph_gather(world->graph, x, world_ids(world, GRAPH_GATHERED, world->rows));
}

static void test_gather(void **state) {
    (void)state;
    static const struct rows_case cases[] = {{DT_F32, 0, 70, false}, {DT_F32, 0, 3, true}, {DT_F32, 0, 300, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_ROWS(r) check_gradients(build_gather, &cases[i], row_counts[r], 5, "gather");
}

static node_id build_columns(struct world *world, const void *what) {
    struct graph *graph = world->graph;
    node_id x = world_value(world, 23), a = graph_columns(graph, x, 0, 11), b = graph_columns(graph, x, 12, 11);
    node_id nested = graph_columns(graph, graph_columns(graph, x, 3, 15), 2, 11);
    (void)what;
    node_id mixed = graph_gated(graph, graph_mul(graph, a, b), nested, UNARY_SILU);
    node_id normed = graph_rms_norm(graph, graph_scale(graph, a, 0.5F), -1, 1e-3F, 0);
    return graph_add(graph, graph_softcap(graph, mixed, 3), graph_add(graph, normed, graph_columns(graph, x, 1, 11)));
}

static void test_columns(void **state) {
    (void)state;
    FOR_ROWS(r) check_gradients(build_columns, NULL, row_counts[r], 0, "columns");
}

/* ------------------------------------------------------------------------- products */

struct linear {
    enum dtype dtype;
    bool learns;
    int64_t in, out;
    enum { ALONE, WITH_BIAS, WITH_BASE, WITH_CONSTANT } third;
    float alpha;
};

static const float constant_bias[300];

static node_id build_linear(struct world *world, const void *what) {
    const struct linear *linear = what;
    struct graph *graph = world->graph;
    node_id x = world_value(world, linear->in);
    node_id weight = world_parameter(world, linear->dtype, linear->out, linear->in, linear->learns);
    node_id bias = -1, base = -1;
    if (linear->third == WITH_BIAS) bias = world_parameter(world, DT_F32, 1, linear->out, true);
    if (linear->third == WITH_CONSTANT) bias = graph_const(graph, constant_bias, linear->out, "bias");
    if (linear->third == WITH_BASE) base = world_value(world, linear->out);
    node_id y = graph_linear(graph, x, weight, bias, base, linear->alpha);
    /* The same base and the same weight once more: gradients add up in both. */
    if (linear->third == WITH_BASE) y = graph_add(graph, y, graph_linear(graph, x, weight, -1, base, 0.5F));
    return y;
}

static void test_linear(void **state) {
    (void)state;
    static const struct linear cases[] = {
        {DT_F32, true, 19, 7, ALONE, 1},        {DT_F32, true, 19, 7, WITH_BIAS, 0.5F},
        {DT_F32, true, 3, 270, WITH_BASE, 2},   {DT_F32, true, 261, 5, WITH_CONSTANT, 1},
        {DT_BF16, true, 19, 7, WITH_BIAS, 1},   {DT_BF16, true, 33, 9, WITH_BASE, 0.25F},
        {DT_F32, false, 19, 7, ALONE, 1},       {DT_F16, false, 19, 7, WITH_BIAS, 1},
        {DT_BF16, false, 19, 7, WITH_BASE, 1},  {DT_Q8_0, false, 64, 7, WITH_BIAS, 1},
        {DT_Q5_0, false, 32, 33, WITH_BASE, 1}, {DT_Q4_K, false, 256, 11, WITH_BIAS, 0.25F},
        {DT_Q6_K, false, 256, 5, ALONE, 0.25F}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_ROWS(r) check_gradients(build_linear, &cases[i], row_counts[r], 0, dtype_table[cases[i].dtype].name);
}

/* ------------------------------------------------------------------------ attention */

struct attention {
    int heads, kv_heads, head_dim, window;
    float softcap;
    bool causal;
    int64_t length; /* of sequences */
    int rot;        /* 0 = no rotation */
    bool neox;
};

static node_id build_attention(struct world *world, const void *what) {
    const struct attention *attention = what;
    struct graph *graph = world->graph;
    int dim = attention->head_dim;
    node_id q = world_value(world, attention->heads * dim), k = world_value(world, attention->kv_heads * dim);
    node_id v = world_value(world, attention->kv_heads * dim);
    if (attention->rot) {
        node_id positions = world_ids(world, GRAPH_ROWS, 1000);
        node_id table = graph_rope_table_at(graph, positions, attention->rot, 100, 0.5, NULL);
        q = graph_rope(graph, q, table, attention->heads, dim, attention->rot, attention->neox);
        k = graph_rope(graph, k, table, attention->kv_heads, dim, attention->rot, attention->neox);
    }
    struct graph_params params = {.heads = attention->heads,
                                  .kv_heads = attention->kv_heads,
                                  .head_dim = dim,
                                  .scale = 0.35F,
                                  .softcap = attention->softcap,
                                  .window = attention->window,
                                  .causal = attention->causal};
    return graph_sdpa(graph, q, k, v, world_begin(world, attention->length), &params);
}

static void test_attention(void **state) {
    (void)state;
    static const struct attention cases[] = {
        {1, 1, 5, 0, 0, true, 100, 0, false}, {4, 2, 8, 0, 0, true, 9, 8, true},   {6, 2, 4, 3, 0, true, 20, 2, false},
        {2, 2, 16, 0, 2, true, 7, 16, false}, {3, 1, 7, 0, 0, false, 11, 0, true}, {2, 1, 6, 4, 3, false, 13, 4, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_ROWS(r) check_gradients(build_attention, &cases[i], row_counts[r], 0, "sdpa");
    check_gradients(build_attention, &cases[1], 150, 0, "sdpa");
    check_gradients(build_attention, &cases[0], 150, 0, "sdpa");
}

static node_id build_rope(struct world *world, const void *what) {
    const struct attention *rope = what;
    node_id table = graph_rope_table_at(world->graph, world_ids(world, GRAPH_ROWS, 500), rope->rot, 1000, 1, NULL);
    node_id x = world_value(world, rope->heads * rope->head_dim);
    return graph_rope(world->graph, graph_scale(world->graph, x, 1.5F), table, rope->heads, rope->head_dim, rope->rot,
                      rope->neox);
}

static void test_rope(void **state) {
    (void)state;
    FOR_ROWS(r) {
        check_gradients(build_rope, &(struct attention){.heads = 3, .head_dim = 10, .rot = 6}, row_counts[r], 0,
                        "rope");
        check_gradients(build_rope, &(struct attention){.heads = 2, .head_dim = 18, .rot = 18, .neox = true},
                        row_counts[r], 0, "rope");
    }
}

/* --------------------------------------------------------------------------- losses */

struct loss_case {
    enum dtype dtype;
    bool learns;
    int64_t width, vocabulary, part_rows;
    float softcap;
};

static node_id build_loss(struct world *world, const void *what) {
    const struct loss_case *loss = what;
    struct graph *graph = world->graph;
    node_id x = graph_scale(graph, world_value(world, loss->width), 1 / sqrtf((float)loss->width));
    node_id hidden = graph_gather(graph, x, world_ids(world, GRAPH_GATHERED, world->rows));
    node_id weight = world_parameter(world, loss->dtype, loss->vocabulary, loss->width, loss->learns);
    world->entropy.hidden = hidden;
    world->entropy.weight = &world->parameters[world->parameter_count - 1];
    world->entropy.softcap = (double)loss->softcap;
    graph_output(graph, hidden);
    world->targets = world->input_count;
    node_id targets = world_ids(world, GRAPH_GATHERED, loss->vocabulary);
    float *weights = normal_values(world, world->gathered);
    for (int64_t i = 0; i < world->gathered; i++) weights[i] = i % 5 == 4 ? 0 : 0.3F + weights[i] * weights[i];
    world->weights = world->input_count;
    node_id weight_node = world_input(world, DT_F32, GRAPH_GATHERED, 1, weights);
    graph_cross_entropy(graph, hidden, weight, targets, weight_node, loss->softcap, loss->part_rows, world->gathered,
                        true, world->loss);
    return -1;
}

static void test_cross_entropy(void **state) {
    (void)state;
    static const struct loss_case cases[] = {{DT_F32, true, 9, 21, 100, 0},   {DT_F32, true, 9, 21, 4, 0},
                                             {DT_F32, true, 17, 300, 5, 4},   {DT_BF16, true, 9, 21, 3, 0},
                                             {DT_F32, false, 9, 21, 4, 2},    {DT_Q8_0, false, 32, 40, 1, 0},
                                             {DT_Q6_K, false, 256, 19, 7, 30}};
    static const int64_t gathered[] = {1, 4, 23};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int g = 0; g < 3; g++) check_gradients(build_loss, &cases[i], 7, gathered[g], "cross_entropy");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_dropout),       cmocka_unit_test(test_wrong_is_seen),
        cmocka_unit_test(test_norms),       cmocka_unit_test(test_embed),         cmocka_unit_test(test_gather),
        cmocka_unit_test(test_columns),     cmocka_unit_test(test_linear),        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_rope),        cmocka_unit_test(test_cross_entropy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
