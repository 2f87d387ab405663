/* The decoder against llama.cpp on tiny random models of every architecture (golden_logits.py), and
 * against itself: cut into steps, on other threads, with quantised weights. */
#include "nn/models.h"

enum { KEEP = 6 };

static void golden_tokens(int vocab, int32_t out[RUN_ROWS]) {
    for (int i = 0; i < RUN_ROWS; i++) out[i] = (i * 37 + 11) % vocab;
}

static double nmse(const float *found, const float *wanted, int64_t count) {
    double error = 0, power = 0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)found[i] - wanted[i]) * ((double)found[i] - wanted[i]);
        power += (double)wanted[i] * wanted[i];
    }
    return error / power;
}

static void open_golden(const struct golden_case *golden, enum dtype dtype, int threads, struct runnable *run) {
    char path[TINY_PATH_BYTES];
    tiny_path(path, ".gguf");
    write_golden_model(golden, dtype, path);
    runnable_open(run, path, threads);
    unlink(path);
}

static float *read_golden(const struct golden_case *golden, int64_t count) {
    struct buf text = {0};
    struct shu_error err = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/nn/golden/%s.f32", TEST_DATA, golden->name);
    if (file_read(path, 1 << 20, &text, &err)) fail_msg("%s", err.message);
    assert_int_equal(text.len, (size_t)count * sizeof(float));
    return (float *)(void *)text.data; /* freed with mem_free */
}

static void check_golden(const struct golden_case *golden, double bound) {
    struct runnable run;
    int32_t tokens[RUN_ROWS];
    open_golden(golden, DT_F32, 2, &run);
    int vocab = decoder_config(run.decoder)->vocab;
    golden_tokens(vocab, tokens);
    const float *found = runnable_step(&run, tokens, RUN_ROWS, KEEP);
    float *wanted = read_golden(golden, (int64_t)KEEP * vocab);
    double error = nmse(found, wanted, (int64_t)KEEP * vocab);
    print_message("%-14s NMSE %.2e\n", golden->name, error);
    if (!(error <= bound)) fail_msg("%s: NMSE %g, bound %g", golden->name, error, bound);
    wanted[3] += 1; /* the measure sees one wrong logit */
    assert_true(nmse(found, wanted, (int64_t)KEEP * vocab) > bound);
    mem_free(wanted);
    runnable_close(&run);
}

/* Our keys and values are f16, llama.cpp's were f32 in these runs; its GELU goes through an f16 table. */
static void test_golden(void **state) {
    (void)state;
    for (int i = 0; i < GOLDEN_CASES; i++) check_golden(&golden_cases[i], 1e-6);
}

/* ------------------------------------------------------------------ fixed order */

/* One step of 24 rows, or 24 of one row, or uneven cuts, on 1 or 3 threads: the same bits. */
static void check_cuts(const struct golden_case *golden, enum dtype dtype) {
    struct runnable whole, cut;
    int32_t tokens[RUN_ROWS];
    open_golden(golden, dtype, 1, &whole);
    int vocab = decoder_config(whole.decoder)->vocab;
    golden_tokens(vocab, tokens);
    const float *all = runnable_step(&whole, tokens, RUN_ROWS, RUN_ROWS);
    static const int cuts[2][RUN_ROWS] = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                          {17, 1, 3, 3}};
    for (int c = 0; c < 2; c++) {
        open_golden(golden, dtype, 3, &cut);
        for (int i = 0, at = 0; at < RUN_ROWS; at += cuts[c][i++]) {
            const float *some = runnable_step(&cut, tokens + at, cuts[c][i], 1);
            assert_memory_equal(some, all + (size_t)(at + cuts[c][i] - 1) * (size_t)vocab,
                                (size_t)vocab * sizeof *some);
        }
        runnable_close(&cut);
    }
    runnable_close(&whole);
}

static void test_cuts(void **state) {
    (void)state;
    for (int i = 0; i < GOLDEN_CASES; i++) {
        check_cuts(&golden_cases[i], DT_F32);
        check_cuts(&golden_cases[i], DT_Q8_0);
    }
}

/* A step without logits fills the cache all the same. */
static void test_no_logits(void **state) {
    (void)state;
    struct runnable one, two;
    int32_t tokens[RUN_ROWS];
    open_golden(&golden_cases[0], DT_F32, 2, &one);
    open_golden(&golden_cases[0], DT_F32, 2, &two);
    int vocab = decoder_config(one.decoder)->vocab;
    golden_tokens(vocab, tokens);
    const float *wanted = runnable_step(&one, tokens, RUN_ROWS, 1);
    runnable_step(&two, tokens, 20, 0);
    const float *found = runnable_step(&two, tokens + 20, 4, 1);
    assert_memory_equal(found, wanted, (size_t)vocab * sizeof *found);
    runnable_close(&one);
    runnable_close(&two);
}

/* --------------------------------------------------------------------- quantised */

/* Quantised weights stay near the F32 model; how near depends on the type. */
static void test_quantised(void **state) {
    (void)state;
    static const struct {
        enum dtype dtype;
        double bound;
    } types[] = {{DT_F16, 1e-5}, {DT_BF16, 1e-3}, {DT_Q8_0, 5e-3}, {DT_Q5_0, 1e-1}, {DT_Q4_0, 4e-1}};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int i = 0; i < GOLDEN_CASES; i++) {
            struct runnable plain, small;
            int32_t tokens[RUN_ROWS];
            open_golden(&golden_cases[i], DT_F32, 2, &plain);
            open_golden(&golden_cases[i], types[t].dtype, 2, &small);
            int vocab = decoder_config(plain.decoder)->vocab;
            golden_tokens(vocab, tokens);
            const float *wanted = runnable_step(&plain, tokens, RUN_ROWS, KEEP);
            double error = nmse(runnable_step(&small, tokens, RUN_ROWS, KEEP), wanted, (int64_t)KEEP * vocab);
            if (!(error > 0 && error <= types[t].bound))
                fail_msg("%s as %s: NMSE %g", golden_cases[i].name, dtype_table[types[t].dtype].name, error);
            runnable_close(&plain);
            runnable_close(&small);
        }
    }
}

/* ------------------------------------------------------------------ sizes, misuse */

static void test_bytes(void **state) {
    (void)state;
    struct runnable run;
    open_golden(&golden_cases[0], DT_F32, 1, &run); /* untied: one row of the table counts */
    uint64_t all = 0;
    for (int64_t i = 0; i < model_tensor_count(run.model); i++)
        all += tensor_bytes(&model_tensor_at(run.model, i)->view);
    uint64_t table = tensor_bytes(&model_tensor_find(run.model, "token_embd.weight")->view);
    assert_int_equal(decoder_read_bytes(run.decoder), all - table + 64 * sizeof(float));
    assert_true(decoder_weight_bytes(run.decoder) >= all - table);
    assert_false(decoder_config(run.decoder)->tied_output);
    runnable_close(&run);
}

static void test_foreign_lanes(void **state) {
    (void)state;
    struct runnable run;
    struct graph *graph = NULL;
    struct shu_error err = {0};
    struct decoder_nodes nodes;
    struct kernels other = *kernels_get();
    other.lanes *= 2;
    open_golden(&golden_cases[0], DT_F32, 1, &run);
    assert_int_equal(graph_new(&other, &graph, &err), SHU_OK);
    assert_int_equal(decoder_graph(run.decoder, graph, &nodes, &err), SHU_E_USAGE);
    graph_free(graph);
    runnable_close(&run);
}

static void test_allocation_failures(void **state) {
    (void)state;
#ifdef SHU_FAULTS
    char path[TINY_PATH_BYTES];
    struct pool *pool = NULL;
    int failures = 0;
    tiny_path(path, ".gguf");
    write_golden_model(&golden_cases[3], DT_F32, path);
    struct model *model = open_model(path);
    assert_int_equal(pool_new(2, &pool, NULL), SHU_OK);
    for (long kth = 1; kth < 20; kth++) {
        struct decoder *decoder = NULL;
        fault_arm(FAULT_ALLOC, kth);
        int status = decoder_load(model, kernels_get(), pool, &decoder, NULL);
        if (status) assert_int_equal(status, SHU_E_NOMEM);
        failures += status != SHU_OK;
        decoder_free(decoder);
    }
    fault_arm(FAULT_ALLOC, 0);
    assert_int_equal(failures, 4); /* decoder, layers, items, block */
    pool_free(pool);
    model_close(model);
    unlink(path);
#endif
}

int main(void) {
    const char *folder = getenv("SHU_GOLDEN_MODELS");
    for (int i = 0; folder && i < GOLDEN_CASES; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s.gguf", folder, golden_cases[i].name);
        write_golden_model(&golden_cases[i], DT_F32, path);
    }
    if (folder) return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_no_logits),
        cmocka_unit_test(test_quantised),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_foreign_lanes),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
