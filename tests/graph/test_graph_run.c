/* Misuse is refused with an error that names the node; a run allocates nothing. */
#include "graph/check.h"

#include <limits.h>

/* ---------------------------------------------------------------- bad networks */

static float values[64];

static const struct packed no_weight = {.dtype = DT_I32, .rows = 8, .cols = 8};

static void bad_columns(struct graph *graph) {
    graph_label(graph, "blk.7");
    node_id a = graph_input(graph, DT_F32, GRAPH_ROWS, 8, "a"), b = graph_input(graph, DT_F32, GRAPH_ROWS, 9, "b");
    graph_add(graph, a, b);
}
static void bad_rows(struct graph *graph) {
    node_id a = graph_input(graph, DT_F32, GRAPH_ROWS, 8, "a"), b = graph_input(graph, DT_F32, 3, 8, "b");
    graph_mul(graph, a, b);
}
static void bad_type(struct graph *graph) {
    graph_unary(graph, graph_input(graph, DT_I32, 4, 1, "ids"), UNARY_SILU);
}
static void bad_gain(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x");
    graph_rms_norm(graph, x, graph_const(graph, values, 7, "gain"), 1e-5F, 0);
}
static void bad_gain_kind(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x");
    graph_rms_norm(graph, x, x, 1e-5F, 0);
}
static void bad_group(struct graph *graph) {
    graph_rms_norm(graph, graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x"), -1, 1e-5F, 3);
}
static void bad_eps(struct graph *graph) {
    graph_rms_norm(graph, graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x"), -1, NAN, 0);
}
static void bad_weight(struct graph *graph) {
    graph_matmul(graph, graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x"), &no_weight, -1);
}
static void bad_null_weight(struct graph *graph) {
    graph_matmul(graph, graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x"), NULL, -1);
}
static void bad_heads(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 48, "x");
    node_id stored = graph_kv_store(graph, x, x, 0);
    graph_attention(graph, x, stored, &(struct graph_params){.heads = 3, .kv_heads = 2, .head_dim = 16, .scale = 1});
}
static void bad_head_dim(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, HEAD_DIM_MAX + 1, "x");
    node_id stored = graph_kv_store(graph, x, x, 0);
    graph_attention(graph, x, stored,
                    &(struct graph_params){.heads = 1, .kv_heads = 1, .head_dim = HEAD_DIM_MAX + 1, .scale = 1});
}
static void bad_layer(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 32, "x");
    node_id stored = graph_kv_store(graph, x, x, 1);
    graph_attention(graph, x, stored, &(struct graph_params){.heads = 2, .kv_heads = 2, .head_dim = 16, .scale = 1});
}
static void bad_rope(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 32, "x");
    graph_rope(graph, x, graph_rope_table(graph, 32, 10000, 1, NULL), 2, 16, 32, true);
}
static void bad_rope_base(struct graph *graph) {
    graph_rope_table(graph, 32, -1, 1, NULL);
}
static void bad_ids(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 32, "x");
    graph_gather(graph, x, x);
}
static void bad_store(struct graph *graph) {
    node_id x = graph_input(graph, DT_F32, 4, 32, "x");
    graph_kv_store(graph, x, x, 0);
}
static void bad_node(struct graph *graph) {
    graph_add(graph, 0, 17);
}
static void bad_output(struct graph *graph) {
    graph_output(graph, 3);
}
static void bad_size(struct graph *graph) {
    graph_input(graph, DT_F32, 0, 8, "x");
}
static void bad_const(struct graph *graph) {
    graph_const(graph, NULL, 8, "gain");
}

static const struct {
    void (*build)(struct graph *graph);
    const char *says; /* part of the message */
} bad_networks[] = {
    {bad_columns, "node 2 (add, blk.7): input 1 must have 8 columns, found node 1 (input, b) of 9"},
    {bad_rows, "must have the same rows, found node 0 (input, a) of [-1, 1, 1]"},
    {bad_type, "node 1 (unary): input 0 must be f32 values, found node 0 (input, ids) of type I32"},
    {bad_gain, "must be a constant of 8 columns, found node 1 (const, gain) of 7 columns"},
    {bad_gain_kind, "must be a constant of 8 columns"},
    {bad_group, "8 columns are no multiple of groups of 3"},
    {bad_eps, "epsilon must be finite"},
    {bad_weight, "no matrix product for weights of type I32"},
    {bad_null_weight, "no matrix product for weights of type (no weight given)"},
    {bad_heads, "3 query heads of 16 cannot share 2 key heads"},
    {bad_head_dim, "heads have at most 256 dimensions, found 257"},
    {bad_layer, "needs f32 queries and the kv_store of layer 0"},
    {bad_rope, "cannot rotate 32 dimensions of 2 heads of 16"},
    {bad_rope_base, "positive base"},
    {bad_ids, "input 1 must be an I32 input of 1 column"},
    {bad_store, "keys and values need one row per token"},
    {bad_node, "input 0 is no earlier node"},
    {bad_output, "graph output 3 is no node"},
    {bad_size, "positive sizes"},
    {bad_const, "constant gain: has no values"},
};

static void test_bad_networks(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_networks / sizeof *bad_networks; i++) {
        struct graph *graph = new_graph();
        struct shu_error err = {0};
        bad_networks[i].build(graph);
        graph_input(graph, DT_I32, -7, 8, "a later failure is not the one reported");
        assert_int_not_equal(graph_plan(graph, 8, 8, 1, &err), SHU_OK);
        if (!strstr(err.message, bad_networks[i].says))
            fail_msg("case %zu says \"%s\", expected \"%s\"", i, err.message, bad_networks[i].says);
        graph_free(graph);
    }
}

static void test_sizes_overflow(void **state) {
    (void)state;
    struct graph *graph = new_graph();
    struct shu_error err = {0};
    graph_input(graph, DT_F32, INT64_MAX / 8, INT64_MAX / 1024, "huge");
    assert_int_equal(graph_plan(graph, 8, 8, 1, &err), SHU_E_RANGE);
    assert_non_null(strstr(err.message, "too large"));
    graph_free(graph);
}

/* -------------------------------------------------------------------- bad runs */

struct embed_world {
    struct graph *graph;
    struct pool *pool;
    node_id ids, pick, out;
    struct tensor table;
};

static void embed_world_open(struct embed_world *world) {
    world->graph = new_graph();
    world->pool = new_pool(2);
    world->table = (struct tensor){.dtype = DT_F32, .ndim = 2, .shape = {8, 8, 1, 1}, .data = values};
    world->ids = graph_input(world->graph, DT_I32, GRAPH_ROWS, 1, "ids");
    world->pick = graph_input(world->graph, DT_I32, GRAPH_GATHERED, 1, "pick");
    world->out = graph_gather(world->graph, graph_embed_plain(world->graph, world->ids, &world->table), world->pick);
    graph_output(world->graph, world->out);
}

static void assert_refused(struct embed_world *world, struct graph_step step, const char *says) {
    struct shu_error err = {0};
    assert_int_equal(graph_run(world->graph, world->pool, &step, &err), SHU_E_USAGE);
    if (!strstr(err.message, says)) fail_msg("says \"%s\", expected \"%s\"", err.message, says);
}

static void test_bad_runs(void **state) {
    (void)state;
    struct embed_world world;
    embed_world_open(&world);
    assert_refused(&world, (struct graph_step){.rows = 1}, "not planned");
    assert_null(graph_data(world.graph, world.ids));
    plan_graph(world.graph, 4, 2, 2);
    struct shu_error err = {0};
    assert_int_equal(graph_plan(world.graph, 4, 2, 2, &err), SHU_E_USAGE);
    assert_refused(&world, (struct graph_step){.rows = 0}, "1 to 4 rows");
    assert_refused(&world, (struct graph_step){.rows = 5}, "1 to 4 rows");
    assert_refused(&world, (struct graph_step){.rows = 4, .gathered = 3}, "2 gathered");
    int32_t *ids = graph_data(world.graph, world.ids), *pick = graph_data(world.graph, world.pick);
    ids[1] = 8;
    assert_refused(&world, (struct graph_step){.rows = 2, .gathered = 1}, "index 1 must be in [0, 8), found 8");
    ids[1] = -1;
    assert_refused(&world, (struct graph_step){.rows = 2, .gathered = 1}, "found -1");
    ids[1] = 7;
    pick[0] = 2;
    assert_refused(&world, (struct graph_step){.rows = 2, .gathered = 1}, "index 0 must be in [0, 2), found 2");
    pick[0] = 1;
    run_graph(world.graph, world.pool, &(struct graph_step){.rows = 2, .gathered = 1});
    run_graph(world.graph, world.pool, &(struct graph_step){.rows = 2, .gathered = 0});
    pool_free(world.pool);
    world.pool = new_pool(3);
    assert_refused(&world, (struct graph_step){.rows = 2}, "planned for 2 threads, the pool has 3");
    pool_free(world.pool);
    graph_free(world.graph);
}

static void test_bad_kv(void **state) {
    (void)state;
    struct embed_world world = {.graph = new_graph(), .pool = new_pool(1)};
    node_id x = graph_input(world.graph, DT_F32, GRAPH_ROWS, 32, "x");
    node_id stored = graph_kv_store(world.graph, x, x, 0);
    struct graph_params params = {.heads = 2, .kv_heads = 2, .head_dim = 16, .scale = 1};
    graph_output(world.graph, graph_attention(world.graph, x, stored, &params));
    plan_graph(world.graph, 4, 0, 1);
    struct kv_step kv = {.kv_heads = 2, .head_dim = 16, .rows = 3};
    assert_refused(&world, (struct graph_step){.rows = 2}, "needs a KV step of 2 rows, found 0");
    assert_refused(&world, (struct graph_step){.rows = 2, .kv = &kv}, "needs a KV step of 2 rows, found 3");
    kv.rows = 2;
    kv.head_dim = 8;
    assert_refused(&world, (struct graph_step){.rows = 2, .kv = &kv}, "needs KV pages of 2 heads of 16, found 2 of 8");
    pool_free(world.pool);
    graph_free(world.graph);
}

/* --------------------------------------------------------- allocation, profile */

static void test_run_allocates_nothing(void **state) {
    (void)state;
    struct embed_world world;
    embed_world_open(&world);
    plan_graph(world.graph, 4, 2, 2);
    fault_arm(FAULT_ALLOC, LONG_MAX);
    for (int i = 0; i < 20; i++) run_graph(world.graph, world.pool, &(struct graph_step){.rows = 4, .gathered = 2});
    assert_int_equal(fault_count(FAULT_ALLOC), 0);
#ifdef SHU_FAULTS
    mem_free(mem_alloc(1));
    assert_int_equal(fault_count(FAULT_ALLOC), 1); /* the counter does count */
#endif
    fault_arm(FAULT_ALLOC, 0);
    pool_free(world.pool);
    graph_free(world.graph);
}

/* Each allocation of build and plan may fail: an error, no leak, no crash. */
static void test_allocation_failures(void **state) {
    (void)state;
#ifdef SHU_FAULTS
    int failures = 0;
    for (long kth = 1; kth < 40; kth++) {
        struct graph *graph = NULL;
        fault_arm(FAULT_ALLOC, kth);
        int status = graph_new(kernels_get(), &graph, NULL);
        if (status == SHU_OK) {
            node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, 8, "x");
            for (int i = 0; i < 100; i++) x = graph_unary(graph, x, UNARY_TANH);
            status = graph_plan(graph, 4, 4, 1, NULL);
        }
        failures += status != SHU_OK;
        if (status) assert_int_equal(status, SHU_E_NOMEM);
        graph_free(graph);
    }
    fault_arm(FAULT_ALLOC, 0);
    assert_true(failures >= 8 && failures < 39);
#endif
}

static void test_profile(void **state) {
    (void)state;
    struct embed_world world;
    uint64_t ns[OP_KINDS];
    embed_world_open(&world);
    graph_profile_read(world.graph, ns);
    plan_graph(world.graph, 4, 2, 2);
    graph_profile(world.graph, true);
    run_graph(world.graph, world.pool, &(struct graph_step){.rows = 4, .gathered = 2});
    graph_profile_read(world.graph, ns);
    assert_true(ns[OP_EMBED] > 0 && ns[OP_GATHER] > 0 && ns[OP_MATMUL] == 0);
    graph_profile(world.graph, true);
    graph_profile_read(world.graph, ns);
    assert_true(ns[OP_EMBED] == 0);
    assert_string_equal(graph_op_name(OP_EMBED), "embed");
    assert_string_equal(graph_op_name(OP_KINDS), "unknown");
    pool_free(world.pool);
    graph_free(world.graph);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_networks),
        cmocka_unit_test(test_sizes_overflow),
        cmocka_unit_test(test_bad_runs),
        cmocka_unit_test(test_bad_kv),
        cmocka_unit_test(test_run_allocates_nothing),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
