/* Adapters beside a model: the same answers as the merged model and as PEFT; nothing depends on batching or threads;
 * what does not belong together is refused. */
#include "infer/tiny_engine.h"

#include <math.h>

#include "support/tiny_adapter.h"
#include "support/tiny_hf.h"

enum { T = 40, MORE = 24 };

static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};

/* A tiny base and two adapters of other ranks. */
struct fixture {
    char base[TINY_PATH_BYTES], lora[2][TINY_PATH_BYTES], out[TINY_PATH_BYTES];
    int32_t tokens[T + MORE];
};

static void fixture_open(struct fixture *f, const char *arch, enum dtype dtype, int width, uint64_t seed) {
    struct tiny_spec spec;
    struct model *model = NULL;
    tiny_defaults(arch, &spec);
    spec.dtype = dtype;
    spec.seed = seed;
    if (width) {
        spec.width = spec.ffn = width;
        spec.head_dim = width / spec.heads;
    }
    tiny_path(f->base, ".gguf");
    tiny_path(f->out, ".out");
    MUST(tiny_write(f->base, &spec, &must));
    MUST(model_open(f->base, &model, &must));
    for (int i = 0; i < 2; i++) {
        struct tiny_adapter made;
        tiny_adapter_new(model, i ? 3 : 6, seed + 10 + (uint64_t)i, &made);
        made.write.base_name = "tiny base";
        tiny_path(f->lora[i], ".lora.gguf");
        MUST(adapter_write_gguf(&made.write, f->lora[i], &must));
        tiny_adapter_free(&made);
    }
    model_close(model);
    random_tokens(f->tokens, T + MORE, tiny_vocab_count(), seed);
}

static void fixture_close(struct fixture *f) {
    unlink(f->base);
    unlink(f->lora[0]);
    unlink(f->lora[1]);
    unlink(f->out);
}

static struct engine *open_with(const char *model, const struct engine_adapter *adapters, int count, int threads) {
    struct engine_options options = {.threads = threads,
                                     .context = 128,
                                     .kv_positions = 512,
                                     .max_sequences = 4,
                                     .max_rows = T + MORE,
                                     .max_logits = T + MORE,
                                     .adapters = adapters,
                                     .adapter_count = count};
    return tiny_engine(model, &options);
}

/* Logits of all of `count` tokens in one step; the caller frees them. */
static float *logits_of(struct engine *engine, const int32_t *tokens, int count) {
    size_t bytes = (size_t)count * (size_t)engine_config(engine)->vocab * sizeof(float);
    float *out = malloc(bytes);
    int s = tiny_sequence(engine);
    struct step_item item = {s, tokens, count, count};
    MUST(engine_step(engine, &item, 1, &must));
    memcpy(out, engine_logits(engine, 0), bytes);
    sequence_free(engine, s);
    return out;
}

static double largest_difference(const float *a, const float *b, size_t count) {
    double most = 0;
    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

/* Squared difference by the squared values of b. */
static double relative_error(const float *a, const float *b, size_t count) {
    double difference = 0, all = 0;
    for (size_t i = 0; i < count; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        all += (double)b[i] * (double)b[i];
    }
    return difference / all;
}

static void merge(const struct fixture *f, const struct engine_adapter *adapters, int count, const char *target) {
    struct adapter *open[2];
    struct model *model = NULL;
    struct pool *pool = NULL;
    float weights[2];
    MUST(model_open(f->base, &model, &must));
    MUST(pool_new(1, &pool, &must));
    for (int i = 0; i < count; i++) {
        MUST(adapter_open(adapters[i].path, &open[i], &must));
        weights[i] = adapters[i].weight;
    }
    MUST(model_merge(model, (const struct adapter *const *)open, weights, count, f->out, target, pool, NULL, &must));
    for (int i = 0; i < count; i++) adapter_close(open[i]);
    pool_free(pool);
    model_close(model);
}

/* ----------------------------------------------------------- merged and PEFT */

static void greedy(struct engine *engine, const int32_t *prompt, int count, int32_t *out, int more) {
    int s = tiny_sequence(engine), vocab = engine_config(engine)->vocab;
    for (int i = 0; i < more; i++) {
        struct step_item item = {s, i ? &out[i - 1] : prompt, i ? 1 : count, 1};
        MUST(engine_step(engine, &item, 1, &must));
        const float *logits = engine_logits(engine, 0);
        out[i] = 0;
        for (int32_t v = 1; v < vocab; v++)
            if (logits[v] > logits[out[i]]) out[i] = v;
    }
    sequence_free(engine, s);
}

static void test_same_as_merged(void **state) {
    (void)state;
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++)
        for (int count = 1; count <= 2; count++) {
            struct fixture f;
            fixture_open(&f, archs[a], DT_F32, 0, 1);
            struct engine_adapter adapters[] = {{f.lora[0], 1}, {f.lora[1], -0.5F}};
            merge(&f, adapters, count, "F32");
            struct engine *base = open_with(f.base, NULL, 0, 1), *merged = open_with(f.out, NULL, 0, 1);
            struct engine *adapted = open_with(f.base, adapters, count, 2);
            size_t values = (size_t)T * (size_t)engine_config(base)->vocab;
            float *plain = logits_of(base, f.tokens, T), *want = logits_of(merged, f.tokens, T);
            float *found = logits_of(adapted, f.tokens, T);
            double moved = largest_difference(plain, want, values), off = largest_difference(found, want, values);
            if (!(moved > 0.1 && off <= 2e-4 * moved))
                fail_msg("%s, %d adapters: merging moves logits by %g, the adapter is off by %g", archs[a], count,
                         moved, off);
            int32_t one[MORE], two[MORE];
            greedy(merged, f.tokens, T, one, MORE);
            greedy(adapted, f.tokens, T, two, MORE);
            assert_memory_equal(one, two, sizeof one);
            free(plain);
            free(want);
            free(found);
            engine_close(base);
            engine_close(merged);
            engine_close(adapted);
            fixture_close(&f);
        }
}

/* Logits of transformers + PEFT on the same tiny model and adapter; made by golden_peft.py. */
static void test_same_as_peft(void **state) {
    (void)state;
    static const int32_t tokens[] = {5, 77, 130, 201, 12, 260, 33, 288, 90, 1, 44, 171};
    enum { COUNT = sizeof tokens / sizeof *tokens };
    static const char *const names[] = {"llama", "qwen2"};
    for (int n = 0; n < 2; n++) {
        char base[TINY_PATH_BYTES], folder[TINY_PATH_BYTES], path[512];
        struct buf golden = {0};
        struct model *model = NULL;
        tiny_model(base, names[n], DT_F32, 0);
        tiny_path(folder, ".hf");
        MUST(model_open(base, &model, &must));
        MUST(tiny_export_hf(model, folder, 1, DT_F32, &must));
        model_close(model);
        snprintf(path, sizeof path, "%s/infer/golden/peft-%s.f32", TEST_DATA, names[n]);
        MUST(file_read(path, 1 << 20, &golden, &must));
        snprintf(path, sizeof path, "%s/infer/golden/peft-%s", TEST_DATA, names[n]);
        const char *models[] = {base, folder};
        for (int form = 0; form < 2; form++) {
            struct engine_adapter adapter = {path, 1};
            struct engine *engine = open_with(models[form], &adapter, 1, 1);
            struct engine *plain = open_with(models[form], NULL, 0, 1);
            size_t values = (size_t)COUNT * (size_t)engine_config(engine)->vocab;
            float *found = logits_of(engine, tokens, COUNT), *without = logits_of(plain, tokens, COUNT);
            assert_int_equal(golden.len, values * sizeof *found);
            double off = relative_error(found, (const float *)(const void *)golden.data, values);
            double moved = relative_error(without, (const float *)(const void *)golden.data, values);
            if (!(off <= 1e-8 && moved > 0.1))
                fail_msg("%s: off by %g; without the adapter by %g", models[form], off, moved);
            free(found);
            free(without);
            engine_close(engine);
            engine_close(plain);
        }
        buf_free(&golden);
        unlink(base);
        tiny_remove_hf(folder);
    }
}

/* ----------------------------------------------------------------- identity */

static void test_batching_and_threads_change_nothing(void **state) {
    (void)state;
    static const enum dtype dtypes[] = {DT_F32, DT_F16, DT_Q8_0, DT_Q4_K};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        struct fixture f;
        fixture_open(&f, d % 2 ? "gemma3" : "qwen2", dtypes[d], 256, 3);
        struct engine_adapter adapters[] = {{f.lora[0], 1}, {f.lora[1], 0.75F}};
        struct engine *one = open_with(f.base, adapters, 2, 1), *two = open_with(f.base, adapters, 2, 3);
        int vocab = engine_config(one)->vocab;
        float *whole = logits_of(one, f.tokens, T);
        int s = tiny_sequence(two), other = tiny_sequence(two);
        for (int i = 0; i < T; i++) { /* one row at a time, beside three rows of another sequence */
            struct step_item items[] = {{other, f.tokens + i, 3, 0}, {s, f.tokens + i, 1, 1}};
            MUST(engine_step(two, items, 2, &must));
            assert_memory_equal(engine_logits(two, 0), whole + (size_t)i * (size_t)vocab,
                                (size_t)vocab * sizeof *whole);
        }
        free(whole);
        engine_close(one);
        engine_close(two);
        fixture_close(&f);
    }
}

static void test_weight_zero_is_the_base(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "qwen2", DT_Q8_0, 256, 4);
    struct engine_adapter zero = {f.lora[0], 0}, one = {f.lora[0], 1}, half = {f.lora[0], 0.5F};
    struct engine_adapter both[] = {one, {f.lora[1], 0}};
    struct engine *engines[] = {open_with(f.base, NULL, 0, 1), open_with(f.base, &zero, 1, 1),
                                open_with(f.base, &one, 1, 1), open_with(f.base, &half, 1, 1),
                                open_with(f.base, both, 2, 1)};
    float *logits[5];
    size_t values = (size_t)T * (size_t)engine_config(engines[0])->vocab;
    for (int i = 0; i < 5; i++) logits[i] = logits_of(engines[i], f.tokens, T);
    assert_memory_equal(logits[0], logits[1], values * sizeof(float));
    assert_memory_equal(logits[2], logits[4], values * sizeof(float));
    assert_true(largest_difference(logits[0], logits[2], values) > 0.1);
    assert_true(largest_difference(logits[2], logits[3], values) > 0.01);
    struct engine_stats plain, adapted;
    engine_stats(engines[0], &plain);
    engine_stats(engines[2], &adapted);
    assert_true(adapted.read_bytes_per_token > plain.read_bytes_per_token);
    assert_true(adapted.weight_bytes > plain.weight_bytes);
    for (int i = 0; i < 5; i++) {
        free(logits[i]);
        engine_close(engines[i]);
    }
    fixture_close(&f);
}

/* Values beyond F16, and those that vanish in it, are kept as F32. */
static void test_values_that_f16_cannot_hold(void **state) {
    (void)state;
    static const float factors[] = {1e7F, 1e-7F};
    for (int i = 0; i < 2; i++) {
        struct fixture f;
        struct model *model = NULL;
        struct tiny_adapter made;
        fixture_open(&f, "qwen2", DT_Q8_0, 256, 5);
        MUST(model_open(f.base, &model, &must));
        tiny_adapter_new(model, 2, 9, &made);
        for (int p = 0; p < made.write.count; p++) { /* B smaller or larger, A the other way round: the same product */
            struct adapter_pair *pair = &made.pairs[p];
            for (int64_t k = 0; k < pair->in * pair->rank; k++) ((float *)(uintptr_t)pair->a)[k] /= factors[i];
            for (int64_t k = 0; k < pair->out * pair->rank; k++) ((float *)(uintptr_t)pair->b)[k] *= factors[i];
        }
        MUST(adapter_write_gguf(&made.write, f.lora[0], &must));
        tiny_adapter_free(&made);
        tiny_adapter_new(model, 2, 9, &made);
        MUST(adapter_write_gguf(&made.write, f.lora[1], &must));
        tiny_adapter_free(&made);
        model_close(model);
        struct engine_adapter odd = {f.lora[0], 1}, plain = {f.lora[1], 1};
        struct engine *one = open_with(f.base, &odd, 1, 1), *two = open_with(f.base, &plain, 1, 1);
        size_t values = (size_t)T * (size_t)engine_config(one)->vocab;
        float *a = logits_of(one, f.tokens, T), *b = logits_of(two, f.tokens, T);
        double off = relative_error(a, b, values);
        if (!(off <= 1e-3)) fail_msg("factor %g: off by %g", (double)factors[i], off);
        free(a);
        free(b);
        engine_close(one);
        engine_close(two);
        fixture_close(&f);
    }
}

/* ------------------------------------------------------------------ refusals */

static void expect_refused(const char *model, const struct engine_adapter *adapters, int count, int code,
                           const char *words) {
    struct shu_error err = {0};
    struct engine *engine = NULL;
    struct engine_options options = {.threads = 1, .context = 64, .adapters = adapters, .adapter_count = count};
    int rc = engine_open(model, &options, &engine, &err);
    if (rc != code) fail_msg("expected status %d, found %d: %s", code, rc, err.message);
    assert_null(engine);
    assert_null(strchr(err.message, '\n'));
    if (!strstr(err.message, words)) fail_msg("\"%s\" does not mention \"%s\"", err.message, words);
}

/* A pair that fits a tensor by name and shape, but no product: a gain as a matrix of one row. */
static void write_norm_adapter(const char *path) {
    struct gguf_writer *writer = NULL;
    float values[64] = {0};
    int64_t a[4] = {64, 1, 1, 1}, b[4] = {1, 1, 1, 1};
    MUST(gguf_writer_open(path, &writer, &must));
    assert_int_equal(gguf_writer_set_string(writer, "general.type", "adapter") |
                         gguf_writer_set_string(writer, "adapter.type", "lora") |
                         gguf_writer_set_string(writer, "general.architecture", "qwen2") |
                         gguf_writer_declare(writer, "blk.0.attn_norm.weight.lora_a", DT_F32, 2, a) |
                         gguf_writer_declare(writer, "blk.0.attn_norm.weight.lora_b", DT_F32, 2, b),
                     0);
    MUST(gguf_writer_data(writer, values, sizeof values, &must));
    MUST(gguf_writer_data(writer, values, sizeof *values, &must));
    MUST(gguf_writer_commit(writer, &must));
}

static void test_refusals(void **state) {
    (void)state;
    struct fixture f, other;
    fixture_open(&f, "qwen2", DT_F32, 0, 1);
    fixture_open(&other, "qwen2", DT_F32, 0, 2);
    struct engine_adapter foreign = {other.lora[0], 1}, endless = {f.lora[0], INFINITY},
                          none = {"/nonexistent.gguf", 1};
    struct engine_adapter many[ENGINE_MAX_ADAPTERS + 1];
    expect_refused(f.base, &foreign, 1, SHU_E_UNSUPPORTED, f.base);
    expect_refused(f.base, &foreign, 1, SHU_E_UNSUPPORTED, "tiny base");
    expect_refused(f.base, &endless, 1, SHU_E_RANGE, "finite");
    expect_refused(f.base, &none, 1, SHU_E_NOTFOUND, "/nonexistent.gguf");
    expect_refused(f.base, many, ENGINE_MAX_ADAPTERS + 1, SHU_E_RANGE, "64");
    expect_refused(f.base, many, -1, SHU_E_RANGE, "64");
    struct engine_adapter model = {f.base, 1};
    expect_refused(f.base, &model, 1, SHU_E_FORMAT, "general.type");
    write_norm_adapter(f.lora[1]);
    struct engine_adapter norm = {f.lora[1], 1};
    expect_refused(f.base, &norm, 1, SHU_E_UNSUPPORTED, "projections");
    fixture_close(&f);
    fixture_close(&other);
}

/* A saved sequence belongs to its adapters and their weights. */
static void test_states_know_their_adapters(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "qwen2", DT_F32, 0, 1);
    struct engine_adapter one = {f.lora[0], 1}, half = {f.lora[0], 0.5F}, two = {f.lora[1], 1};
    struct engine *saved = open_with(f.base, &one, 1, 1);
    int s = tiny_sequence(saved);
    struct step_item item = {s, f.tokens, T, 0};
    MUST(engine_step(saved, &item, 1, &must));
    MUST(sequence_save(saved, s, f.out, &must));
    const struct engine_adapter *others[] = {&one, NULL, &half, &two};
    for (int i = 0; i < 4; i++) {
        struct shu_error err = {0};
        struct engine *engine = open_with(f.base, others[i], others[i] != NULL, 1);
        int r = tiny_sequence(engine), rc = sequence_restore(engine, r, f.out, &err);
        if (rc != (i ? SHU_E_UNSUPPORTED : SHU_OK)) fail_msg("engine %d: status %d %s", i, rc, err.message);
        engine_close(engine);
    }
    engine_close(saved);
    fixture_close(&f);
}

static void test_faults(void **state) {
    (void)state;
    struct fixture f;
    struct engine *engine = NULL;
    fixture_open(&f, "qwen2", DT_Q8_0, 64, 1);
    struct engine_adapter adapters[] = {{f.lora[0], 1}, {f.lora[1], 1}};
    struct engine_options options = {
        .threads = 1, .context = 64, .max_rows = 4, .adapters = adapters, .adapter_count = 2};
    fault_arm(FAULT_ALLOC, 1000000);
    MUST(engine_open(f.base, &options, &engine, &must));
    long operations = fault_count(FAULT_ALLOC);
    engine_close(engine);
    for (long k = 1; k <= operations; k++) {
        struct shu_error err = {0};
        engine = NULL;
        fault_arm(FAULT_ALLOC, k);
        int rc = engine_open(f.base, &options, &engine, &err);
        fault_arm(FAULT_ALLOC, 0);
        assert_int_not_equal(rc, 0);
        assert_int_equal(rc, err.code);
        assert_null(engine);
    }
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_merged),
        cmocka_unit_test(test_same_as_peft),
        cmocka_unit_test(test_batching_and_threads_change_nothing),
        cmocka_unit_test(test_weight_zero_is_the_base),
        cmocka_unit_test(test_values_that_f16_cannot_hold),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_states_know_their_adapters),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
