/* Quantising: which types tensors get, what the values become, and that a
 * failure leaves nothing behind. That the choice of types equals llama.cpp's is
 * pinned here for known shapes; bench/vs-quantize.sh compares whole files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/tiny.h"
#include "weights/model.h"

/* A model of names and shapes only: quantize_choose looks at nothing else. */
struct sketch {
    struct model model;
    struct buf meta;
};

static void sketch_init(struct sketch *sketch, const char *arch, uint32_t layers, uint32_t heads, uint32_t kv_heads,
                        uint32_t experts) {
    char path[TINY_PATH_BYTES], key[96];
    struct gguf_writer *writer = NULL;
    struct shu_error err = {0};
    memset(sketch, 0, sizeof *sketch);
    tiny_path(path, ".gguf");
    assert_int_equal(gguf_writer_open(path, &writer, &err), 0);
    gguf_writer_set_string(writer, "general.architecture", arch);
    const struct {
        const char *tail;
        uint32_t value;
    } keys[] = {{"block_count", layers},
                {"attention.head_count", heads},
                {"attention.head_count_kv", kv_heads},
                {"expert_count", experts}};
    for (size_t i = 0; i < 4; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, keys[i].tail);
        assert_int_equal(gguf_writer_set_int(writer, key, keys[i].value), 0);
    }
    assert_int_equal(gguf_writer_commit(writer, &err), 0);
    assert_int_equal(file_read(path, 1 << 20, &sketch->meta, &err), 0);
    unlink(path);
    arena_init(&sketch->model.arena, 1 << 24);
    assert_int_equal(gguf_parse(&sketch->model, (const uint8_t *)sketch->meta.data, sketch->meta.len, &err), 0);
    sketch->model.tensors = calloc(4096, sizeof *sketch->model.tensors);
    assert_int_equal(name_index_init(&sketch->model.tensor_index, &sketch->model.arena, 4096), 0);
}

static void sketch_add(struct sketch *sketch, const char *name, int64_t cols, int64_t rows) {
    name_index_add(&sketch->model.tensor_index, name, sketch->model.tensor_count);
    struct model_tensor *tensor = &sketch->model.tensors[sketch->model.tensor_count++];
    *tensor = (struct model_tensor){.name = arena_strndup(&sketch->model.arena, name, strlen(name)),
                                    .view = {.dtype = DT_F16, .ndim = 2, .shape = {cols, rows, 1, 1}}};
}

static void sketch_layers(struct sketch *sketch, int layers, int64_t width, int64_t ffn) {
    char name[64];
    for (int i = layers - 1; i >= 0; i--) { /* in no useful order: the rules count by layer */
        const struct {
            const char *tail;
            int64_t cols, rows;
        } parts[] = {{"attn_q.weight", width, width}, {"attn_k.weight", width, width},
                     {"attn_v.weight", width, width}, {"attn_output.weight", width, width},
                     {"ffn_gate.weight", width, ffn}, {"ffn_up.weight", width, ffn},
                     {"ffn_down.weight", ffn, width}, {"attn_norm.weight", width, 1}};
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            snprintf(name, sizeof name, "blk.%d.%s", i, parts[p].tail);
            sketch_add(sketch, name, parts[p].cols, parts[p].rows);
        }
    }
}

static void sketch_free(struct sketch *sketch) {
    free(sketch->model.tensors);
    arena_free(&sketch->model.arena);
    buf_free(&sketch->meta);
}

static void expect(struct sketch *sketch, const char *name, const char *target, enum dtype expected) {
    for (uint32_t i = 0; i < sketch->model.tensor_count; i++) {
        const struct model_tensor *tensor = &sketch->model.tensors[i];
        if (strcmp(tensor->name, name) != 0) continue;
        enum dtype found = quantize_choose(&sketch->model, tensor, target);
        if (found != expected)
            fail_msg("%s under %s is %s, expected %s", name, target, dtype_table[found].name,
                     dtype_table[expected].name);
        return;
    }
    fail_msg("no tensor %s", name);
}

static void expect_layer(struct sketch *sketch, int layer, const char *tail, enum dtype expected) {
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s", layer, tail);
    expect(sketch, name, "Q4_K_M", expected);
}

/* Llama 3 8B: 32 layers, everything a multiple of 256. */
static void test_mix_regular(void **state) {
    (void)state;
    struct sketch sketch;
    sketch_init(&sketch, "llama", 32, 32, 8, 0);
    sketch_layers(&sketch, 32, 4096, 14336);
    sketch_add(&sketch, "token_embd.weight", 4096, 128256);
    sketch_add(&sketch, "output.weight", 4096, 128256);
    sketch_add(&sketch, "rope_freqs.weight", 64, 1);
    for (int layer = 0; layer < 32; layer++) {
        bool more = layer < 4 || layer >= 28 || (layer - 4) % 3 == 2;
        expect_layer(&sketch, layer, "attn_v.weight", more ? DT_Q6_K : DT_Q4_K);
        expect_layer(&sketch, layer, "ffn_down.weight", more ? DT_Q6_K : DT_Q4_K);
        expect_layer(&sketch, layer, "attn_q.weight", DT_Q4_K);
        expect_layer(&sketch, layer, "attn_output.weight", DT_Q4_K);
        expect_layer(&sketch, layer, "attn_norm.weight", DT_F32);
    }
    expect(&sketch, "token_embd.weight", "Q4_K_M", DT_Q4_K);
    expect(&sketch, "output.weight", "Q4_K_M", DT_Q6_K);
    expect(&sketch, "output.weight", "Q8_0", DT_Q8_0);
    expect(&sketch, "output.weight", "F16", DT_F16);
    expect(&sketch, "blk.3.attn_q.weight", "BF16", DT_BF16);
    expect(&sketch, "rope_freqs.weight", "F16", DT_F32);
    expect(&sketch, "blk.3.attn_q.weight", "Q9", DT_F16); /* no such target: stays */
    sketch_free(&sketch);
}

/* Qwen 0.5B: 896 columns, a separate output matrix; Gemma 270M: 640 columns, tied. */
static void test_mix_odd_columns(void **state) {
    (void)state;
    struct sketch sketch;
    sketch_init(&sketch, "qwen2", 24, 14, 2, 0);
    sketch_layers(&sketch, 24, 896, 4864);
    sketch_add(&sketch, "token_embd.weight", 896, 151936);
    sketch_add(&sketch, "output.weight", 896, 151936);
    expect_layer(&sketch, 0, "attn_v.weight", DT_Q8_0);
    expect_layer(&sketch, 3, "attn_v.weight", DT_Q5_0);
    expect_layer(&sketch, 0, "ffn_down.weight", DT_Q6_K);
    expect_layer(&sketch, 3, "ffn_down.weight", DT_Q4_K);
    expect_layer(&sketch, 0, "ffn_up.weight", DT_Q5_0);
    expect(&sketch, "token_embd.weight", "Q4_K_M", DT_Q5_0);
    expect(&sketch, "output.weight", "Q4_K_M", DT_Q8_0);
    sketch_free(&sketch);
    sketch_init(&sketch, "gemma3", 18, 4, 1, 0);
    sketch_layers(&sketch, 18, 640, 2048);
    sketch_add(&sketch, "token_embd.weight", 640, 262144);
    sketch_add(&sketch, "odd.weight", 100, 7);
    expect(&sketch, "token_embd.weight", "Q4_K_M", DT_Q8_0);
    expect(&sketch, "odd.weight", "Q4_K_M", DT_F16);
    expect(&sketch, "odd.weight", "Q8_0", DT_F16);
    sketch_free(&sketch);
}

static void test_mix_special_models(void **state) {
    (void)state;
    struct sketch sketch;
    sketch_init(&sketch, "llama", 80, 64, 8, 0); /* 70B: values at least Q5_K */
    sketch_layers(&sketch, 80, 8192, 28672);
    sketch_add(&sketch, "output.weight", 8192, 32000);
    expect_layer(&sketch, 10, "attn_v.weight", DT_Q5_K);
    expect_layer(&sketch, 10, "attn_q.weight", DT_Q4_K);
    sketch_free(&sketch);
    sketch_init(&sketch, "llama", 32, 32, 8, 8); /* Mixtral 8x7B */
    sketch_layers(&sketch, 32, 4096, 14336);
    sketch_add(&sketch, "output.weight", 4096, 32000);
    sketch_add(&sketch, "blk.5.ffn_gate_inp.weight", 4096, 8);
    sketch_add(&sketch, "blk.6.ffn_down_exps.weight", 14336, 4096);
    sketch_add(&sketch, "blk.7.ffn_down_exps.weight", 14336, 4096);
    expect_layer(&sketch, 9, "attn_v.weight", DT_Q8_0);
    expect_layer(&sketch, 9, "attn_k.weight", DT_Q8_0);
    expect_layer(&sketch, 9, "attn_output.weight", DT_Q5_K);
    expect(&sketch, "blk.5.ffn_gate_inp.weight", "Q4_K_M", DT_F16);
    expect(&sketch, "blk.6.ffn_down_exps.weight", "Q4_K_M", DT_Q6_K);
    expect(&sketch, "blk.7.ffn_down_exps.weight", "Q4_K_M", DT_Q4_K);
    sketch_free(&sketch);
}

/* ------------------------------------------------------------------- values */

/* Root of mean squared error over root of mean square. */
static double relative_error(const struct model_tensor *a, const struct model_tensor *b) {
    int64_t cols = a->view.shape[0], rows = tensor_rows(&a->view);
    float *left = malloc((size_t)cols * sizeof *left), *right = malloc((size_t)cols * sizeof *right);
    double error = 0, square = 0;
    for (int64_t row = 0; row < rows; row++) {
        size_t at = (size_t)row;
        dtype_table[a->view.dtype].to_f32((const uint8_t *)a->view.data + at * dtype_row_bytes(a->view.dtype, cols),
                                          left, cols);
        dtype_table[b->view.dtype].to_f32((const uint8_t *)b->view.data + at * dtype_row_bytes(b->view.dtype, cols),
                                          right, cols);
        for (int64_t i = 0; i < cols; i++) {
            error += (double)(left[i] - right[i]) * (double)(left[i] - right[i]);
            square += (double)left[i] * (double)left[i];
        }
    }
    free(left);
    free(right);
    return sqrt(error / square);
}

static void write_wide(const char *path, enum dtype dtype) {
    struct tiny_spec spec;
    struct shu_error err = {0};
    tiny_defaults("qwen2", &spec);
    spec.width = 256;
    spec.heads = 4;
    spec.head_dim = 64;
    spec.ffn = 512;
    spec.layers = 3;
    spec.dtype = dtype;
    if (tiny_write(path, &spec, &err)) fail_msg("%s", err.message);
}

static void test_values(void **state) {
    (void)state;
    static const struct {
        const char *target;
        double bound;
        uint32_t file_type;
    } cases[] = {{"F32", 0, 0}, {"F16", 4e-4, 1}, {"BF16", 3e-3, 32}, {"Q8_0", 7e-3, 7}, {"Q4_K_M", 0.09, 15}};
    char from[TINY_PATH_BYTES], to[TINY_PATH_BYTES];
    struct shu_error err = {0};
    struct pool *pool = NULL;
    tiny_path(from, ".gguf");
    tiny_path(to, ".gguf");
    write_wide(from, DT_F32);
    assert_int_equal(pool_new(2, &pool, &err), 0);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct model *model = NULL, *result = NULL;
        struct progress progress = {.quiet = true};
        int64_t file_type = -1;
        bool differs = false;
        if (model_open(from, &model, &err) || model_quantize(model, to, cases[c].target, pool, &progress, &err) ||
            model_open(to, &result, &err))
            fail_msg("%s", err.message);
        assert_true(progress.total > 0 && progress.done == progress.total);
        assert_true(meta_int(result, "general.file_type", &file_type) && file_type == cases[c].file_type);
        assert_int_equal(meta_array_count(result, "tokenizer.ggml.tokens"), tiny_vocab_count());
        assert_int_equal(model_tensor_count(result), model_tensor_count(model));
        for (int64_t i = 0; i < model_tensor_count(model); i++) {
            const struct model_tensor *a = model_tensor_at(model, i), *b = model_tensor_find(result, a->name);
            assert_non_null(b);
            assert_int_equal(b->view.dtype, quantize_choose(model, a, cases[c].target));
            double error = relative_error(a, b);
            if (!(error <= cases[c].bound)) fail_msg("%s as %s: error %g", a->name, cases[c].target, error);
            differs |= error > 0;
        }
        assert_int_equal(differs, c > 0); /* the bound is not met by copying */
        model_close(model);
        model_close(result);
    }
    pool_free(pool);
    unlink(from);
    unlink(to);
}

/* The same file, whatever the threads; and a target equal to the source copies its bytes. */
static void test_exactness(void **state) {
    (void)state;
    char from[TINY_PATH_BYTES], to[2][TINY_PATH_BYTES];
    struct shu_error err = {0};
    struct buf bytes[2] = {{0}, {0}};
    struct model *model = NULL;
    tiny_path(from, ".gguf");
    write_wide(from, DT_F16);
    assert_int_equal(model_open(from, &model, &err), 0);
    for (int i = 0; i < 2; i++) {
        struct pool *pool = NULL;
        assert_int_equal(pool_new(i ? 3 : 1, &pool, &err), 0);
        tiny_path(to[i], ".gguf");
        if (model_quantize(model, to[i], "Q4_K_M", pool, NULL, &err)) fail_msg("%s", err.message);
        assert_int_equal(file_read(to[i], 1 << 26, &bytes[i], &err), 0);
        pool_free(pool);
        unlink(to[i]);
    }
    assert_int_equal(bytes[0].len, bytes[1].len);
    assert_memory_equal(bytes[0].data, bytes[1].data, bytes[0].len);
    model_close(model);
    unlink(from);
    buf_free(&bytes[0]);
    buf_free(&bytes[1]);
}

static void test_unknown_target(void **state) {
    (void)state;
    char from[TINY_PATH_BYTES];
    struct shu_error err = {0};
    struct model *model = NULL;
    struct pool *pool = NULL;
    tiny_path(from, ".gguf");
    write_wide(from, DT_F16);
    assert_int_equal(model_open(from, &model, &err), 0);
    assert_int_equal(pool_new(1, &pool, &err), 0);
    assert_int_equal(model_quantize(model, "/nonexistent/x.gguf", "Q3_K_XXL", pool, NULL, &err), SHU_E_USAGE);
    assert_non_null(strstr(err.message, "Q4_K_M"));
    assert_int_equal(model_quantize(model, "/nonexistent/x.gguf", "Q8_0", pool, NULL, &err), SHU_E_IO);
    model_close(model);
    pool_free(pool);
    unlink(from);
}

static void test_faults(void **state) {
    (void)state;
    char from[TINY_PATH_BYTES], to[TINY_PATH_BYTES];
    struct tiny_spec spec;
    struct model *model = NULL;
    struct pool *pool = NULL;
    tiny_defaults("gemma3", &spec);
    spec.dtype = DT_F16;
    spec.layers = 1;
    tiny_path(from, ".gguf");
    tiny_path(to, ".gguf");
    assert_int_equal(tiny_write(from, &spec, NULL), 0);
    assert_int_equal(model_open(from, &model, NULL), 0);
    assert_int_equal(pool_new(2, &pool, NULL), 0);
    for (int kind = FAULT_ALLOC; kind < FAULT_KINDS; kind++) {
        fault_arm((enum fault_kind)kind, 1000000);
        assert_int_equal(model_quantize(model, to, "Q8_0", pool, NULL, NULL), 0);
        long operations = fault_count((enum fault_kind)kind);
        unlink(to);
        for (long k = 1; k <= operations; k++) {
            struct shu_error err = {0};
            fault_arm((enum fault_kind)kind, k);
            int rc = model_quantize(model, to, "Q8_0", pool, NULL, &err);
            fault_arm((enum fault_kind)kind, 0);
            assert_int_equal(rc, err.code);
            if (rc && k < operations)
                assert_false(file_exists(to)); /* the last write operation comes after the rename */
            unlink(to);
        }
    }
    model_close(model);
    pool_free(pool);
    unlink(from);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mix_regular),
        cmocka_unit_test(test_mix_odd_columns),
        cmocka_unit_test(test_mix_special_models),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_exactness),
        cmocka_unit_test(test_unknown_target),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
