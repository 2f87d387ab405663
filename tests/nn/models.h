/* Tiny models for the decoder tests: one per architecture and variant, and edited copies of them. */
#ifndef TESTS_NN_MODELS_H
#define TESTS_NN_MODELS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nn/nn.h"
#include "support/tiny.h"

static inline struct model *open_model(const char *path) {
    struct model *model = NULL;
    struct shu_error err = {0};
    if (model_open(path, &model, &err)) fail_msg("%s", err.message);
    return model;
}

/* ------------------------------------------------------------ edited copies */

/* Changes of a copy: a key set to a value, a tensor left out, renamed, added or reshaped. */
struct edit {
    enum { EDIT_NONE, EDIT_INT, EDIT_FLOAT, EDIT_TEXT, EDIT_INTS, EDIT_DROP, EDIT_ADD, EDIT_CUT } kind;
    const char *name; /* of the key or tensor */
    double value;     /* EDIT_INT, EDIT_FLOAT; EDIT_ADD: columns */
    const char *text; /* EDIT_TEXT; EDIT_INTS: digits, one value each */
};

static inline int edit_meta(struct gguf_writer *writer, const struct edit *edit) {
    int32_t values[64];
    int count = 0;
    switch (edit->kind) {
    case EDIT_INT:
        return gguf_writer_set_int(writer, edit->name, (uint32_t)edit->value);
    case EDIT_FLOAT:
        return gguf_writer_set_float(writer, edit->name, (float)edit->value);
    case EDIT_TEXT:
        return gguf_writer_set_string(writer, edit->name, edit->text);
    case EDIT_INTS:
        for (const char *at = edit->text; *at; at++) values[count++] = *at - '0';
        return gguf_writer_set_ints(writer, edit->name, values, count);
    default:
        return SHU_OK;
    }
}

static inline const struct edit *edit_of(const struct edit *edits, int count, const char *tensor) {
    for (int i = 0; i < count; i++)
        if (edits[i].kind >= EDIT_DROP && strcmp(edits[i].name, tensor) == 0) return &edits[i];
    return NULL;
}

/* Row count of a tensor in the copy: EDIT_CUT takes the last row (of a vector: the last element) away. */
static inline void copy_shape(const struct model_tensor *tensor, const struct edit *edit, int64_t shape[4]) {
    for (int i = 0; i < 4; i++) shape[i] = tensor->view.shape[i];
    if (edit && edit->kind == EDIT_CUT) shape[tensor->view.ndim - 1]--;
}

static inline void copy_tensors(struct gguf_writer *writer, const struct model *model, const struct edit *edits,
                                int count, bool data) {
    struct shu_error err = {0};
    for (int64_t i = 0; i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        const struct edit *edit = edit_of(edits, count, tensor->name);
        struct tensor view = tensor->view;
        if (edit && edit->kind == EDIT_DROP) continue;
        copy_shape(tensor, edit, view.shape);
        if (!data)
            assert_int_equal(gguf_writer_declare(writer, tensor->name, view.dtype, view.ndim, view.shape), SHU_OK);
        else if (gguf_writer_data(writer, view.data, tensor_bytes(&view), &err))
            fail_msg("%s", err.message);
    }
}

/* Added vectors hold 1, 1.5, 2, 2.5, … */
static inline void add_tensors(struct gguf_writer *writer, const struct edit *edits, int count, bool data) {
    for (int i = 0; i < count; i++) {
        if (edits[i].kind != EDIT_ADD) continue;
        int64_t shape[4] = {(int64_t)edits[i].value, 1, 1, 1};
        float values[256];
        for (int k = 0; k < 256; k++) values[k] = 1 + 0.5F * (float)k;
        if (!data)
            assert_int_equal(gguf_writer_declare(writer, edits[i].name, DT_F32, 1, shape), SHU_OK);
        else
            assert_int_equal(gguf_writer_data(writer, values, (size_t)shape[0] * sizeof *values, NULL), SHU_OK);
    }
}

static inline void write_edited(const char *from, const char *to, const struct edit *edits, int count) {
    struct model *model = open_model(from);
    struct gguf_writer *writer = NULL;
    struct shu_error err = {0};
    if (gguf_writer_open(to, &writer, &err)) fail_msg("%s", err.message);
    assert_int_equal(gguf_writer_copy_meta(writer, model), SHU_OK);
    for (int i = 0; i < count; i++) assert_int_equal(edit_meta(writer, &edits[i]), SHU_OK);
    copy_tensors(writer, model, edits, count, false);
    add_tensors(writer, edits, count, false);
    copy_tensors(writer, model, edits, count, true);
    add_tensors(writer, edits, count, true);
    if (gguf_writer_commit(writer, &err)) fail_msg("%s", err.message);
    model_close(model);
}

/* ------------------------------------------------------------- golden models */

/* A tiny model and its edits; golden/NAME.f32 holds llama.cpp's logits. */
struct golden_case {
    const char *name, *arch;
    int layers, heads, kv_heads, head_dim;
    bool tied;
    struct edit edits[3];
};

static const struct golden_case golden_cases[] = {
    {.name = "llama", .arch = "llama", .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16},
    {.name = "llama-factors",
     .arch = "llama",
     .layers = 2,
     .heads = 4,
     .kv_heads = 1,
     .head_dim = 16,
     .tied = true,
     .edits = {{.kind = EDIT_ADD, .name = "rope_freqs.weight", .value = 8}}},
    {.name = "llama-linear",
     .arch = "llama",
     .layers = 2,
     .heads = 4,
     .kv_heads = 4,
     .head_dim = 16,
     .edits = {{.kind = EDIT_TEXT, .name = "llama.rope.scaling.type", .text = "linear"},
               {.kind = EDIT_FLOAT, .name = "llama.rope.scaling.factor", .value = 4}}},
    {.name = "qwen2", .arch = "qwen2", .layers = 3, .heads = 4, .kv_heads = 2, .head_dim = 16, .tied = true},
    {.name = "qwen3", .arch = "qwen3", .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 32},
    {.name = "gemma2", .arch = "gemma2", .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 24, .tied = true},
    {.name = "gemma3",
     .arch = "gemma3",
     .layers = 7,
     .heads = 4,
     .kv_heads = 1,
     .head_dim = 32,
     .tied = true,
     .edits = {{.kind = EDIT_FLOAT, .name = "gemma3.rope.freq_base", .value = 1e6},
               {.kind = EDIT_TEXT, .name = "gemma3.rope.scaling.type", .text = "linear"},
               {.kind = EDIT_FLOAT, .name = "gemma3.rope.scaling.factor", .value = 8}}},
};
#define GOLDEN_CASES ((int)(sizeof golden_cases / sizeof *golden_cases))

static inline void write_golden_model(const struct golden_case *golden, enum dtype dtype, const char *path) {
    struct tiny_spec spec;
    struct shu_error err = {0};
    char plain[TINY_PATH_BYTES];
    tiny_defaults(golden->arch, &spec);
    spec.layers = golden->layers;
    spec.heads = golden->heads;
    spec.kv_heads = golden->kv_heads;
    spec.head_dim = golden->head_dim;
    spec.tied = golden->tied;
    spec.dtype = dtype;
    tiny_path(plain, ".gguf");
    if (tiny_write(plain, &spec, &err)) fail_msg("%s", err.message);
    write_edited(plain, path, golden->edits, 3);
    unlink(plain);
}

/* --------------------------------------------------------------- a runnable one */

enum { RUN_ROWS = 24, RUN_PAGES = 2, RUN_LAYERS = 8 };

/* A decoder with its graph and a small cache of one sequence. */
struct runnable {
    struct model *model;
    struct pool *pool;
    struct decoder *decoder;
    struct graph *graph;
    struct decoder_nodes nodes;
    struct kv_step kv;
    struct kv_row rows[RUN_ROWS];
    int32_t table[RUN_PAGES];
    const int32_t *tables[1];
    uint8_t *base[RUN_LAYERS];
    int position;
};

static inline void runnable_open(struct runnable *run, const char *path, int threads) {
    struct shu_error err = {0};
    *run = (struct runnable){.model = open_model(path), .table = {1, 0}};
    if (pool_new(threads, &run->pool, &err) ||
        decoder_load(run->model, kernels_get(), run->pool, &run->decoder, &err) ||
        graph_new(kernels_get(), &run->graph, &err) || decoder_graph(run->decoder, run->graph, &run->nodes, &err) ||
        graph_plan(run->graph, RUN_ROWS, RUN_ROWS, threads, &err))
        fail_msg("%s", err.message);
    const struct decoder_config *config = decoder_config(run->decoder);
    size_t page_bytes = (size_t)config->kv_heads * kv_page_head_bytes(KV_F16, config->head_dim);
    assert_true(config->layers <= RUN_LAYERS);
    for (int l = 0; l < config->layers; l++) assert_non_null(run->base[l] = mem_alloc_large(RUN_PAGES * page_bytes));
    run->tables[0] = run->table;
    run->kv = (struct kv_step){.type = KV_F16,
                               .kv_heads = config->kv_heads,
                               .head_dim = config->head_dim,
                               .row = run->rows,
                               .tables = run->tables,
                               .layer_base = run->base,
                               .page_bytes = page_bytes};
}

/* Appends `count` tokens; logits of the last `wanted` of them, [wanted, V]. */
static inline const float *runnable_step(struct runnable *run, const int32_t *tokens, int count, int wanted) {
    struct shu_error err = {0};
    int32_t *gather = graph_data(run->graph, run->nodes.gather);
    memcpy(graph_data(run->graph, run->nodes.tokens), tokens, (size_t)count * sizeof *tokens);
    for (int i = 0; i < wanted; i++) gather[i] = count - wanted + i;
    for (int i = 0; i < count; i++) run->rows[i] = (struct kv_row){.position = run->position + i};
    run->kv.rows = count;
    struct graph_step step = {.rows = count, .gathered = wanted, .kv = &run->kv};
    if (graph_run(run->graph, run->pool, &step, &err)) fail_msg("%s", err.message);
    run->position += count;
    return graph_data(run->graph, run->nodes.logits);
}

static inline void runnable_close(struct runnable *run) {
    const struct decoder_config *config = decoder_config(run->decoder);
    for (int l = 0; l < config->layers; l++) mem_free_large(run->base[l], RUN_PAGES * run->kv.page_bytes);
    graph_free(run->graph);
    decoder_free(run->decoder);
    pool_free(run->pool);
    model_close(run->model);
}

#endif
