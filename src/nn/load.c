/* Loading: every tensor found, checked, and packed (matrices) or decoded (vectors). */
#include "nn/rules.h"

#include <string.h>

/* ------------------------------------------------------------------- collection */

/* One tensor of the file and its place. */
struct load_item {
    const struct model_tensor *tensor;
    struct packed *matrix; /* or */
    const float **vector;
    size_t bytes, offset; /* in the decoder's block */
};

struct loader {
    const struct model *model;
    const struct kernels *kernels;
    struct decoder *decoder;
    struct load_item *items; /* [tensors of the model] */
    int64_t count;
};

static int check_tensor(const struct loader *loader, const struct model_tensor *tensor, const struct tensor_rule *rule,
                        struct shu_error *err) {
    int status = rule_check_shape(&loader->decoder->config, rule, tensor, err);
    if (status) return status;
    const struct tensor *view = &tensor->view;
    bool usable =
        rule->rows == DIM_NONE ? dtype_table[view->dtype].to_f32 != NULL : loader->kernels->matmul[view->dtype] != NULL;
    if (!usable)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tensor %.64s: type %s cannot be used as a %s", tensor->name,
                        dtype_table[view->dtype].name, rule->rows == DIM_NONE ? "vector" : "matrix");
    return SHU_OK;
}

/* Finds the tensor of a rule and notes where it goes. `layer` < 0: a tensor of the whole model. */
static int collect(struct loader *loader, const struct tensor_rule *rule, int layer, void *place,
                   struct shu_error *err) {
    const struct decoder_config *config = &loader->decoder->config;
    char name[96];
    rule_name(rule, layer, name);
    const struct model_tensor *tensor = model_tensor_find(loader->model, name);
    if (tensor == NULL) {
        if (!rule_needed(config, rule->need)) return SHU_OK;
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor %s is missing: expected [%lld, %lld] in a model of architecture %s",
                        name, (long long)rule_dim(config, rule->cols), (long long)rule_dim(config, rule->rows),
                        decoder_arch_name(config->arch));
    }
    if (!rule_allowed(config, rule->need)) return SHU_OK; /* counted as left over */
    int status = check_tensor(loader, tensor, rule, err);
    if (status) return status;
    struct load_item *item = &loader->items[loader->count++];
    *item = (struct load_item){.tensor = tensor};
    loader->decoder->read_bytes += tensor_bytes(&tensor->view);
    if (rule->rows == DIM_NONE) {
        item->vector = place;
        item->bytes = (size_t)tensor->view.shape[0] * sizeof(float);
    } else {
        item->matrix = place;
        item->bytes = packed_plan(loader->kernels, tensor->view.dtype, tensor->view.shape[1], tensor->view.shape[0],
                                  item->matrix);
    }
    return SHU_OK;
}

/* Names a tensor that no rule took. */
static int refuse_left_over(const struct loader *loader, struct shu_error *err) {
    for (int64_t i = 0; i < model_tensor_count(loader->model); i++) {
        const struct model_tensor *tensor = model_tensor_at(loader->model, i);
        bool used = !loader->decoder->config.tied_output && strcmp(tensor->name, "token_embd.weight") == 0;
        for (int64_t k = 0; k < loader->count && !used; k++) used = loader->items[k].tensor == tensor;
        if (!used)
            return SHU_FAIL(
                err, SHU_E_UNSUPPORTED,
                "tensor %.64s has no place in a decoder of architecture %s with %d layers; ignoring it would "
                "give wrong answers",
                tensor->name, decoder_arch_name(loader->decoder->config.arch), loader->decoder->config.layers);
    }
    return SHU_OK;
}

static int collect_all(struct loader *loader, struct shu_error *err) {
    struct decoder *decoder = loader->decoder;
    int status = SHU_OK;
    for (int i = 0; i < MODEL_SLOTS && !status; i++)
        status = collect(loader, &model_rules[i], -1, (char *)decoder + model_rules[i].offset, err);
    if (!status && decoder->config.tied_output) status = collect(loader, &tied_rule, -1, &decoder->output, err);
    for (int layer = 0; layer < decoder->config.layers; layer++)
        for (int i = 0; i < LAYER_SLOTS && !status; i++)
            status =
                collect(loader, &layer_rules[i], layer, (char *)&decoder->layers[layer] + layer_rules[i].offset, err);
    if (!status) status = refuse_left_over(loader, err);
    return status;
}

/* --------------------------------------------------------------------- packing */

static int layout_block(struct loader *loader, struct shu_error *err) {
    struct decoder *decoder = loader->decoder;
    size_t total = 0;
    for (int64_t i = 0; i < loader->count; i++) {
        struct load_item *item = &loader->items[i];
        item->offset = total;
        if (size_add(total, item->bytes, &total) || size_add(total, 63, &total))
            return SHU_FAIL(err, SHU_E_RANGE, "the model's tensors exceed the address space");
        total = total / 64 * 64;
    }
    decoder->block = mem_alloc_large(total);
    if (decoder->block == NULL)
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for %zu MiB of weights; use a smaller or further quantised model",
                        total >> 20);
    decoder->block_bytes = total;
    return SHU_OK;
}

/* Panels that one thread packs at a time, and source bytes after which their pages
 * are given back: a tied table is two thirds of a small model's file. */
#define PACK_TILE_BYTES  ((size_t)512 << 10)
#define PACK_CHUNK_BYTES ((size_t)8 << 20)

struct pack_run {
    struct packed *matrix;
    const void *rows;
    int64_t first, last, panels_per_tile; /* panels */
};

static void pack_tile(void *context, int thread, int64_t tile) {
    (void)thread;
    const struct pack_run *run = context;
    int64_t first = run->first + tile * run->panels_per_tile, last = first + run->panels_per_tile;
    packed_fill(run->matrix, run->rows, first, last < run->last ? last : run->last);
}

/* The part of a tensor that panels [first, last) were packed from. */
static struct model_tensor tensor_part(const struct load_item *item, int64_t first, int64_t last) {
    struct model_tensor part = *item->tensor;
    int64_t row0 = first * item->matrix->lanes, row1 = last * item->matrix->lanes;
    if (row1 > item->matrix->rows) row1 = item->matrix->rows;
    part.view.shape[1] = row1 - row0;
    part.view.data =
        (const uint8_t *)part.view.data + dtype_row_bytes(part.view.dtype, part.view.shape[0]) * (size_t)row0;
    return part;
}

static void pack_matrix(struct loader *loader, struct pool *pool, const struct load_item *item) {
    struct packed *matrix = item->matrix;
    matrix->data = loader->decoder->block + item->offset;
    int64_t panels = packed_panels(matrix), chunk = (int64_t)(PACK_CHUNK_BYTES / (matrix->panel_bytes + 1)) + 1;
    struct pack_run run = {.matrix = matrix, .rows = item->tensor->view.data};
    run.panels_per_tile = (int64_t)(PACK_TILE_BYTES / (matrix->panel_bytes + 1)) + 1;
    for (run.first = 0; run.first < panels; run.first = run.last) {
        run.last = run.first + chunk < panels ? run.first + chunk : panels;
        pool_run(pool, pack_tile, &run, (run.last - run.first + run.panels_per_tile - 1) / run.panels_per_tile);
        struct model_tensor part = tensor_part(item, run.first, run.last);
        model_tensor_release(loader->model, &part);
    }
}

static void decode_vector(struct loader *loader, const struct load_item *item) {
    float *out = (float *)(loader->decoder->block + item->offset);
    const struct tensor *view = &item->tensor->view;
    dtype_table[view->dtype].to_f32(view->data, out, view->shape[0]);
    for (int64_t i = 0; item->tensor->norm_plus_one && i < view->shape[0]; i++) out[i] += 1;
    *item->vector = out;
}

/* The largest come first: threads share them best while the file is read for the first time. */
static void sort_items(struct loader *loader) {
    for (int64_t gap = loader->count / 2; gap > 0; gap /= 2) /* Shell's sort: some hundred items */
        for (int64_t i = gap; i < loader->count; i++) {
            struct load_item item = loader->items[i];
            int64_t at = i;
            for (; at >= gap && loader->items[at - gap].bytes < item.bytes; at -= gap)
                loader->items[at] = loader->items[at - gap];
            loader->items[at] = item;
        }
}

static void fill_block(struct loader *loader, struct pool *pool) {
    sort_items(loader);
    for (int64_t i = 0; i < loader->count; i++) {
        const struct load_item *item = &loader->items[i];
        if (item->matrix)
            pack_matrix(loader, pool, item);
        else
            decode_vector(loader, item);
    }
    /* A fault maps some neighbours of the page it was about: once more for all that is done. */
    for (int64_t i = 0; i < loader->count; i++) model_tensor_release(loader->model, loader->items[i].tensor);
}

static void keep_embedding(struct loader *loader) {
    struct decoder *decoder = loader->decoder;
    if (decoder->config.tied_output) return;
    decoder->embedding = model_tensor_find(loader->model, "token_embd.weight")->view;
    decoder->read_bytes += dtype_row_bytes(decoder->embedding.dtype, decoder->config.width);
}

/* Divisors of rotation frequencies must be usable numbers. */
static int check_factors(const struct decoder *decoder, struct shu_error *err) {
    for (int i = 0; decoder->rope_factors && i < decoder->config.rot / 2; i++)
        if (!(decoder->rope_factors[i] > 0 && decoder->rope_factors[i] < 1e9F))
            return SHU_FAIL(err, SHU_E_FORMAT, "tensor rope_freqs.weight: expected positive numbers, found %g at %d",
                            (double)decoder->rope_factors[i], i);
    return SHU_OK;
}

int decoder_load(const struct model *model, const struct kernels *kernels, struct pool *pool, struct decoder **out,
                 struct shu_error *err) {
    struct loader loader = {.model = model, .kernels = kernels};
    struct decoder *decoder = mem_calloc(1, sizeof *decoder);
    int status = SHU_OK;
    if (decoder == NULL) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a decoder");
    status = decoder_config_read(model, &decoder->config, err);
    if (status) goto out;
    decoder->lanes = kernels->lanes;
    decoder->layers = mem_calloc((size_t)decoder->config.layers, sizeof *decoder->layers);
    loader.items = mem_calloc((size_t)model_tensor_count(model) + 1, sizeof *loader.items);
    if (decoder->layers == NULL || loader.items == NULL) {
        status = SHU_FAIL(err, SHU_E_NOMEM, "no memory for %d decoder layers", decoder->config.layers);
        goto out;
    }
    loader.decoder = decoder;
    status = collect_all(&loader, err);
    if (!status) status = layout_block(&loader, err);
    if (status) goto out;
    fill_block(&loader, pool);
    keep_embedding(&loader);
    status = check_factors(decoder, err);
out:
    mem_free(loader.items);
    if (status)
        decoder_free(decoder);
    else
        *out = decoder;
    return status;
}

void decoder_free(struct decoder *decoder) {
    if (decoder == NULL) return;
    if (decoder->block) mem_free_large(decoder->block, decoder->block_bytes);
    if (decoder->adapter_block) mem_free_large(decoder->adapter_block, decoder->adapter_room);
    mem_free(decoder->layers);
    mem_free(decoder);
}

const struct decoder_config *decoder_config(const struct decoder *decoder) {
    return &decoder->config;
}
uint64_t decoder_weight_bytes(const struct decoder *decoder) {
    return decoder->block_bytes + decoder->adapter_bytes;
}
uint64_t decoder_read_bytes(const struct decoder *decoder) {
    return decoder->read_bytes;
}
