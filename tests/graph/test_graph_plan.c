/* The plan: no two live values overlap, strands of a wave are independent, nothing changes a number. */
#include "graph/check.h"

#include "graph/op.h"

/* ------------------------------------------------------------------- placement */

/* Number of pairs of spans that live together and share bytes. */
static int overlaps(const struct plan_span *spans, int count, size_t total) {
    int found = 0;
    for (int a = 0; a < count; a++) {
        if (spans[a].bytes == 0) continue;
        if (spans[a].offset % 64 != 0 || spans[a].offset + spans[a].bytes > total) found++;
        for (int b = 0; b < a; b++) {
            bool together = spans[a].start <= spans[b].end && spans[b].start <= spans[a].end;
            bool shared = spans[a].offset < spans[b].offset + spans[b].bytes &&
                          spans[b].offset < spans[a].offset + spans[a].bytes;
            found += spans[b].bytes > 0 && together && shared;
        }
    }
    return found;
}

/* No plan can be smaller than the fullest wave. */
static size_t fullest_wave(const struct plan_span *spans, int count, int waves) {
    size_t most = 0;
    for (int wave = 0; wave < waves; wave++) {
        size_t sum = 0;
        for (int i = 0; i < count; i++)
            if (spans[i].start <= wave && wave <= spans[i].end) sum += spans[i].bytes;
        if (sum > most) most = sum;
    }
    return most;
}

static void test_place_random(void **state) {
    (void)state;
    enum { SPANS = 120, WAVES = 60 };
    struct rng rng;
    rng_seed(&rng, 1);
    double waste = 0;
    for (int round = 0; round < 200; round++) {
        struct plan_span spans[SPANS];
        int order[SPANS];
        for (int i = 0; i < SPANS; i++) {
            int start = (int)(rng_next(&rng) % WAVES), length = (int)(rng_next(&rng) % 6);
            spans[i] = (struct plan_span){.bytes = rng_next(&rng) % 5 ? rng_next(&rng) % 5000 : 0,
                                          .start = start,
                                          .end = start + length < WAVES ? start + length : WAVES - 1};
        }
        size_t total = plan_place(spans, SPANS, order);
        assert_int_equal(overlaps(spans, SPANS, total), 0);
        waste += (double)total / (double)fullest_wave(spans, SPANS, WAVES) / 200;
    }
    if (!(waste <= 1.25)) fail_msg("plans take %.2f times the fullest wave", waste);
}

static void test_overlap_is_seen(void **state) {
    (void)state;
    struct plan_span spans[2] = {{.bytes = 100, .start = 0, .end = 2, .offset = 0},
                                 {.bytes = 100, .start = 2, .end = 3, .offset = 64}};
    assert_int_equal(overlaps(spans, 2, 1000), 1);
    spans[1].start = 3;
    assert_int_equal(overlaps(spans, 2, 1000), 0);
    assert_int_equal(overlaps(spans, 2, 150), 1);
}

/* --------------------------------------------------------------- random graphs */

enum { COLS = 32, NODES = 60, ROWS = 9, PICKS = 4 };

struct random_graph {
    struct graph *graph;
    node_id x, ids, pick_rows, pick;
    node_id last[2]; /* one value with GRAPH_ROWS rows, one with GRAPH_GATHERED */
};

/* Any earlier f32 node of COLS columns and the wanted row count. */
static node_id random_value(struct rng *rng, const struct graph *graph, int64_t rows) {
    for (;;) {
        node_id id = (node_id)(rng_next(rng) % (uint64_t)graph->count);
        const struct graph_node *node = node_at(graph, id);
        if (node->kind != OP_CONST && node->dtype == DT_F32 && node->shape[1] == rows && node->shape[0] == COLS)
            return id;
    }
}

static node_id random_node(struct rng *rng, struct random_graph *random, const struct packed *weight, node_id gain) {
    struct graph *graph = random->graph;
    int64_t rows = rng_next(rng) % 4 ? GRAPH_ROWS : GRAPH_GATHERED;
    node_id a = random_value(rng, graph, rows), b = random_value(rng, graph, rows);
    switch (rng_next(rng) % 9) {
    case 0:
        return graph_gather(graph, random_value(rng, graph, GRAPH_ROWS), random->pick);
    case 1:
        return graph_gather(graph, random_value(rng, graph, GRAPH_ROWS), random->pick_rows);
    case 2:
        return graph_matmul(graph, a, &weight[rng_next(rng) % 2], -1);
    case 3:
        return graph_rms_norm(graph, a, gain, 1e-5F, 0);
    case 4:
        return graph_unary(graph, a, UNARY_TANH);
    case 5:
        return graph_gated(graph, a, b, UNARY_SIGMOID);
    case 6:
        return graph_softcap(graph, a, 3);
    default:
        return graph_add(graph, a, b);
    }
}

/* The same seed builds the same graph; keep_all marks every node as output, so that nothing shares memory. */
static void random_graph_build(struct random_graph *random, uint64_t seed, const struct packed *weight,
                               const float *gain, bool keep_all) {
    struct rng rng;
    rng_seed(&rng, seed);
    random->graph = new_graph();
    random->x = graph_input(random->graph, DT_F32, GRAPH_ROWS, COLS, "x");
    random->ids = graph_input(random->graph, DT_F32, GRAPH_GATHERED, COLS, "y");
    random->pick_rows = graph_input(random->graph, DT_I32, GRAPH_ROWS, 1, "pick rows");
    random->pick = graph_input(random->graph, DT_I32, GRAPH_GATHERED, 1, "pick");
    node_id gain_node = graph_const(random->graph, gain, COLS, "gain");
    for (int i = 0; i < NODES; i++) random_node(&rng, random, weight, gain_node);
    for (int kind = 0; kind < 2; kind++) {
        random->last[kind] = random_value(&rng, random->graph, kind ? GRAPH_GATHERED : GRAPH_ROWS);
        graph_output(random->graph, random->last[kind]);
    }
    for (int id = 0; keep_all && id < random->graph->count; id++) graph_output(random->graph, id);
    plan_graph(random->graph, ROWS, PICKS, 4);
}

static void random_graph_run(struct random_graph *random, uint64_t seed, struct pool *pool) {
    struct rng rng;
    rng_seed(&rng, seed + 1000);
    int32_t *pick_rows = graph_data(random->graph, random->pick_rows), *pick = graph_data(random->graph, random->pick);
    for (int i = 0; i < ROWS; i++) pick_rows[i] = (int32_t)(rng_next(&rng) % ROWS);
    for (int i = 0; i < PICKS; i++) pick[i] = (int32_t)(rng_next(&rng) % ROWS);
    fill_normal(&rng, graph_data(random->graph, random->x), ROWS * COLS);
    fill_normal(&rng, graph_data(random->graph, random->ids), PICKS * COLS);
    run_graph(random->graph, pool, &(struct graph_step){.rows = ROWS, .gathered = PICKS});
}

/* Nodes that share a span without one being the in-place successor of the other, or spans that collide. */
static void check_memory(const struct graph *graph) {
    const struct plan *plan = &graph->plan;
    assert_int_equal(overlaps(plan->span, graph->count, plan->activation_bytes), 0);
    for (int id = 0; id < graph->count; id++) {
        const struct plan_node *at = &plan->node[id];
        if (at->storage < 0) continue;
        const struct plan_span *span = &plan->span[at->storage];
        assert_true(span->start <= at->wave && at->last_use <= span->end);
    }
}

/* A node reads what earlier waves or its own strand made, never a neighbour strand. */
static void check_waves(const struct graph *graph) {
    for (int id = 0; id < graph->count; id++) {
        const struct graph_node *node = node_at(graph, id);
        const struct plan_node *at = &graph->plan.node[id];
        for (int i = 0; i < node->inputs; i++) {
            const struct graph_node *in = node_at(graph, node->input[i]);
            const struct plan_node *from = &graph->plan.node[node->input[i]];
            if (in->kind == OP_INPUT || in->kind == OP_CONST) continue;
            assert_true(from->wave < at->wave || (from->wave == at->wave && from->strand == at->strand));
            if (from->wave == at->wave) assert_true(op_is_row_wise(node->kind) && node->kind != OP_GATHER);
        }
    }
}

static void test_random_graphs(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 2);
    float plain[COLS * COLS], gain[COLS];
    struct packed weight[2];
    random_packed(&rng, DT_F32, COLS, COLS, &weight[0], plain);
    random_packed(&rng, DT_Q8_0, COLS, COLS, &weight[1], plain);
    fill_normal(&rng, gain, COLS);
    struct pool *pools[3] = {new_pool(1), new_pool(2), new_pool(4)};
    size_t planned = 0, kept = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct random_graph all, few;
        random_graph_build(&all, seed, weight, gain, true);
        random_graph_build(&few, seed, weight, gain, false);
        check_memory(few.graph);
        check_waves(few.graph);
        random_graph_run(&all, seed, pools[0]);
        for (int p = 0; p < 3; p++) {
            random_graph_run(&few, seed, pools[p]);
            assert_memory_equal(graph_data(few.graph, few.last[0]), graph_data(all.graph, all.last[0]),
                                ROWS * COLS * 4);
            assert_memory_equal(graph_data(few.graph, few.last[1]), graph_data(all.graph, all.last[1]),
                                PICKS * COLS * 4);
        }
        planned += few.graph->plan.activation_bytes;
        kept += all.graph->plan.activation_bytes;
        graph_free(all.graph);
        graph_free(few.graph);
    }
    assert_true(planned < kept * 2 / 3); /* memory is in fact shared */
    for (int p = 0; p < 3; p++) pool_free(pools[p]);
    free_packed(&weight[0]);
    free_packed(&weight[1]);
}

/* --------------------------------------------------------- a transformer block */

static struct graph *block_graph(const struct packed *weight, const float *gain, node_id out[4]) {
    struct graph *graph = new_graph();
    node_id x = graph_input(graph, DT_F32, GRAPH_ROWS, COLS, "x"), gain_node = graph_const(graph, gain, COLS, "gain");
    node_id norm = graph_rms_norm(graph, x, gain_node, 1e-5F, 0);
    node_id gate = graph_matmul(graph, norm, weight, -1), up = graph_matmul(graph, norm, weight, -1);
    node_id down = graph_matmul(graph, graph_gated(graph, gate, up, UNARY_SILU), weight, -1);
    node_id sum = graph_add(graph, x, down);
    graph_output(graph, sum);
    out[0] = norm, out[1] = gate, out[2] = up, out[3] = sum;
    plan_graph(graph, ROWS, 0, 2);
    return graph;
}

/* norm and quantise chain, gate and up run side by side, gated overwrites gate. */
static void test_waves_of_a_block(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 2);
    float plain[COLS * COLS], gain[COLS];
    struct packed weight;
    random_packed(&rng, DT_Q8_0, COLS, COLS, &weight, plain);
    fill_normal(&rng, gain, COLS);
    node_id out[4];
    struct graph *graph = block_graph(&weight, gain, out);
    const struct plan *plan = &graph->plan;
    assert_int_equal(plan->waves, 5); /* norm+quantise | gate, up | gated+quantise | down | add */
    assert_int_equal(plan->wave[0].strands, 1);
    assert_int_equal(plan->wave[1].strands, 2);
    assert_int_equal(plan->node[out[0]].wave, 0);
    assert_int_equal(plan->node[out[1]].wave, plan->node[out[2]].wave);
    assert_int_not_equal(plan->node[out[1]].strand, plan->node[out[2]].strand);
    const struct graph_node *gated = node_at(graph, out[2] + 1);
    assert_int_equal(gated->kind, OP_GATED);
    assert_ptr_equal(gated->data, node_at(graph, out[1])->data);
    graph_free(graph);
    free_packed(&weight);
}

static void test_plan_bytes(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 2);
    float plain[COLS * COLS], gain[COLS] = {0};
    struct packed weight;
    random_packed(&rng, DT_Q8_0, COLS, COLS, &weight, plain);
    node_id out[4];
    struct graph *graph = block_graph(&weight, gain, out);
    size_t small = 0, large = 0;
    assert_int_equal(graph_plan_bytes(graph, ROWS, 0, 2, &small, NULL), SHU_OK);
    assert_int_equal(graph_plan_bytes(graph, ROWS * 10, 0, 2, &large, NULL), SHU_OK);
    assert_int_equal(small, graph_memory_bytes(graph));
    assert_true(large > small * 8 && large <= small * 10);
    graph_free(graph);
    free_packed(&weight);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_place_random),  cmocka_unit_test(test_overlap_is_seen),
        cmocka_unit_test(test_random_graphs), cmocka_unit_test(test_waves_of_a_block),
        cmocka_unit_test(test_plan_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
