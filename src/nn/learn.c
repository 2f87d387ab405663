/* The learner: which tensors there are, which of them learn, where their values and gradients lie. */
#include "nn/learner.h"

#include <math.h>
#include <string.h>

const enum layer_slot target_slots[LEARN_TARGETS] = {SLOT_Q, SLOT_K, SLOT_V, SLOT_O, SLOT_GATE, SLOT_UP, SLOT_DOWN};

/* Deviation of a new network's values, and of nothing else (GPT-2, Radford et al. 2019). */
#define NEW_DEVIATION 0.02F

enum fill {
    FILL_MAPPED, /* stays in the model's file */
    FILL_COPY,   /* decoded from the model */
    FILL_ZERO,
    FILL_ONE,
    FILL_NORMAL, /* deviation `spread` */
    FILL_UNIFORM /* in [-spread, spread) */
};

/* One tensor on its way into the learner. */
struct learn_item {
    struct graph_parameter **place;
    const struct model_tensor *source; /* FILL_MAPPED, FILL_COPY */
    const char *name;
    int64_t rows, cols;
    enum dtype dtype;
    enum fill fill;
    float spread;
    bool learns;
    size_t value, m, v, gradient; /* offsets in the block; m, v and gradient only if it learns */
};

struct learn_builder {
    struct learner *learner;
    const struct model *model; /* NULL: a new network */
    struct learn_item *items;
    int count;
};

/* ------------------------------------------------------------------ declaration */

static int declare(struct learn_builder *builder, const struct learn_item *item, const char *name,
                   struct shu_error *err) {
    struct learn_item *added = &builder->items[builder->count];
    *added = *item;
    added->name = arena_strndup(&builder->learner->names, name, strlen(name));
    if (added->name == NULL) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for the names of tensors");
    builder->count++;
    return SHU_OK;
}

static enum fill first_values(const struct tensor_rule *rule, float *spread, const struct decoder_config *config) {
    if (rule->rows == DIM_NONE) return strstr(rule->name, "bias") ? FILL_ZERO : FILL_ONE;
    *spread = NEW_DEVIATION;
    /* What is added to the residual stream 2 L times starts smaller. */
    if (rule == &layer_rules[SLOT_O] || rule == &layer_rules[SLOT_DOWN]) *spread /= sqrtf(2 * (float)config->layers);
    return FILL_NORMAL;
}

/* A tensor of the network itself. */
static int declare_rule(struct learn_builder *builder, const struct tensor_rule *rule, int layer,
                        struct graph_parameter **place, struct shu_error *err) {
    const struct decoder_config *config = &builder->learner->config;
    const struct learn_options *options = &builder->learner->options;
    bool matrix = rule->rows != DIM_NONE;
    struct learn_item item = {
        .place = place, .rows = rule_dim(config, rule->rows), .cols = rule_dim(config, rule->cols), .dtype = DT_F32};
    char name[96];
    rule_name(rule, layer, name);
    /* Frequencies of rotation are no weights. */
    item.learns = options->full && rule != &model_rules[SLOT_ROPE_FACTORS];
    if (matrix && item.learns) item.dtype = options->weight_type;
    if (builder->model) {
        item.source = model_tensor_find(builder->model, name);
        if (item.source == NULL && !rule_needed(config, rule->need)) return SHU_OK;
        if (item.source == NULL)
            return SHU_FAIL(err, SHU_E_FORMAT,
                            "tensor %s is missing: expected [%lld, %lld] in a model of architecture %s", name,
                            (long long)item.cols, (long long)item.rows, decoder_arch_name(config->arch));
        if (!rule_allowed(config, rule->need)) return SHU_OK; /* counted as left over */
        int status = rule_check_shape(config, rule, item.source, err);
        if (status) return status;
        item.fill = matrix && !item.learns ? FILL_MAPPED : FILL_COPY;
        if (item.fill == FILL_MAPPED) item.dtype = item.source->view.dtype;
    } else {
        if (!rule_needed(config, rule->need)) return SHU_OK;
        item.fill = first_values(rule, &item.spread, config);
    }
    return declare(builder, &item, name, err);
}

/* The two matrices of an adapter. A starts as PEFT starts it (Kaiming uniform with a = sqrt(5)), B at zero, so that
 * the first step sees the base. */
static int declare_adapter(struct learn_builder *builder, int layer, int target, struct shu_error *err) {
    const struct learner *learner = builder->learner;
    const struct tensor_rule *rule = &layer_rules[target_slots[target]];
    int64_t in = rule_dim(&learner->config, rule->cols), out = rule_dim(&learner->config, rule->rows);
    struct learn_layer *at = &learner->layers[layer];
    char name[96], full[112];
    rule_name(rule, layer, name);
    struct learn_item a = {.place = &at->a[target],
                           .rows = learner->options.rank,
                           .cols = in,
                           .dtype = DT_F32,
                           .fill = FILL_UNIFORM,
                           .spread = 1 / sqrtf((float)in),
                           .learns = true};
    struct learn_item b = a;
    b.place = &at->b[target];
    b.rows = out;
    b.cols = learner->options.rank;
    b.fill = FILL_ZERO;
    snprintf(full, sizeof full, "%s.lora_a", name);
    int status = declare(builder, &a, full, err);
    snprintf(full, sizeof full, "%s.lora_b", name);
    if (!status) status = declare(builder, &b, full, err);
    return status;
}

static int declare_layer(struct learn_builder *builder, int layer, struct shu_error *err) {
    struct learner *learner = builder->learner;
    int status = SHU_OK;
    for (int slot = 0; slot < LAYER_SLOTS && !status; slot++)
        status = declare_rule(builder, &layer_rules[slot], layer, &learner->layers[layer].tensor[slot], err);
    for (int target = 0; target < LEARN_TARGETS && !status && !learner->options.full; target++)
        if (learner->options.targets >> target & 1) status = declare_adapter(builder, layer, target, err);
    return status;
}

/* A tensor that the network has no place for. */
static int refuse_left_over(const struct learn_builder *builder, struct shu_error *err) {
    for (int64_t i = 0; builder->model && i < model_tensor_count(builder->model); i++) {
        const struct model_tensor *tensor = model_tensor_at(builder->model, i);
        bool used = false;
        for (int k = 0; k < builder->count && !used; k++) used = builder->items[k].source == tensor;
        if (!used)
            return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                            "tensor %.64s has no place in a decoder of architecture %s with %d layers; ignoring it "
                            "would teach something else",
                            tensor->name, decoder_arch_name(builder->learner->config.arch),
                            builder->learner->config.layers);
    }
    return SHU_OK;
}

static int declare_all(struct learn_builder *builder, struct shu_error *err) {
    struct learner *learner = builder->learner;
    int status = declare_rule(builder, &embedding_rule, -1, &learner->embedding, err);
    for (int slot = 0; slot < MODEL_SLOTS && !status; slot++)
        status = declare_rule(builder, &model_rules[slot], -1, &learner->tensor[slot], err);
    for (int layer = 0; layer < learner->config.layers && !status; layer++) status = declare_layer(builder, layer, err);
    return status ? status : refuse_left_over(builder, err);
}

/* ----------------------------------------------------------------------- layout */

static bool take(size_t *total, size_t bytes, size_t *offset) {
    *offset = *total;
    return size_add(*total, (bytes + 63) / 64 * 64, total);
}

/* Offsets of everything; gradients last, side by side, so that clearing them is one span. */
static bool layout(struct learn_builder *builder, size_t *total) {
    bool overflow = false;
    *total = 0;
    for (int i = 0; i < builder->count; i++) {
        struct learn_item *item = &builder->items[i];
        if (item->fill == FILL_MAPPED) continue;
        size_t bytes = dtype_row_bytes(item->dtype, item->cols) * (size_t)item->rows; /* checked: dims <= 2^24 */
        overflow |= take(total, bytes, &item->value);
        if (!item->learns) continue;
        overflow |= take(total, bytes, &item->m);
        overflow |= take(total, bytes, &item->v);
    }
    builder->learner->gradient_offset = *total;
    for (int i = 0; i < builder->count; i++) {
        struct learn_item *item = &builder->items[i];
        if (item->learns)
            overflow |= take(total, (size_t)item->rows * (size_t)item->cols * sizeof(float), &item->gradient);
    }
    return overflow;
}

static int allocate(struct learn_builder *builder, struct shu_error *err) {
    struct learner *learner = builder->learner;
    for (int i = 0; i < builder->count; i++) {
        if (builder->items[i].learns)
            learner->learn_count++;
        else
            learner->frozen_count++;
    }
    if (layout(builder, &learner->block_bytes))
        return SHU_FAIL(err, SHU_E_RANGE, "the tensors that learn exceed the address space");
    if (learner->block_bytes == 0) learner->block_bytes = 64;
    learner->learns = mem_calloc((size_t)learner->learn_count + 1, sizeof *learner->learns);
    learner->frozen = mem_calloc((size_t)learner->frozen_count + 1, sizeof *learner->frozen);
    learner->block = mem_alloc_large(learner->block_bytes);
    if (learner->learns == NULL || learner->frozen == NULL || learner->block == NULL)
        return SHU_FAIL(err, SHU_E_NOMEM,
                        "no memory for %zu MiB of weights, moments and gradients; take adapters or a smaller model",
                        learner->block_bytes >> 20);
    return SHU_OK;
}

/* ----------------------------------------------------------------------- values */

static void write_values(const float *values, int64_t count, enum dtype dtype, int64_t first, void *out) {
    if (dtype == DT_F32)
        memcpy((float *)out + first, values, (size_t)count * sizeof(float));
    else
        dtype_table[dtype].from_f32(values, NULL, (uint16_t *)out + first, count);
}

static void draw_values(const struct learn_item *item, struct rng *rng, void *out) {
    int64_t count = item->rows * item->cols;
    for (int64_t i = 0; i < count; i++) {
        float value = item->fill == FILL_ONE      ? 1
                      : item->fill == FILL_NORMAL ? item->spread * rng_normal(rng)
                                                  : item->spread * (float)(2 * rng_uniform(rng) - 1);
        write_values(&value, 1, item->dtype, i, out);
    }
}

static int copy_values(const struct learn_item *item, void *out, struct shu_error *err) {
    const struct tensor *view = &item->source->view;
    size_t row_bytes = dtype_row_bytes(view->dtype, item->cols);
    float *row = mem_alloc((size_t)item->cols * sizeof *row);
    if (row == NULL) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a row of %s", item->name);
    for (int64_t r = 0; r < item->rows; r++) {
        dtype_table[view->dtype].to_f32((const uint8_t *)view->data + (size_t)r * row_bytes, row, item->cols);
        for (int64_t c = 0; item->source->norm_plus_one && c < item->cols; c++) row[c] += 1;
        write_values(row, item->cols, item->dtype, r * item->cols, out);
    }
    mem_free(row);
    return SHU_OK;
}

static int fill(struct learn_builder *builder, int index, struct shu_error *err) {
    struct learner *learner = builder->learner;
    const struct learn_item *item = &builder->items[index];
    struct rng rng; /* its own for every tensor: what one gets does not depend on which others there are */
    rng_seed(&rng, learner->options.seed * 1000003 + (uint64_t)index);
    void *out = learner->block + item->value;
    if (item->fill == FILL_COPY) {
        int status = copy_values(item, out, err);
        model_tensor_release(builder->model, item->source); /* read once: its pages need not count any longer */
        return status;
    }
    if (item->fill != FILL_MAPPED && item->fill != FILL_ZERO) draw_values(item, &rng, out);
    return SHU_OK;
}

/* The item becomes a parameter. */
static void place(struct learn_builder *builder, const struct learn_item *item, int *learns, int *frozen) {
    struct learner *learner = builder->learner;
    struct graph_parameter parameter = {
        .name = item->name, .dtype = item->dtype, .rows = item->rows, .cols = item->cols};
    parameter.data = learner->block + item->value;
    if (item->fill == FILL_MAPPED) parameter.data = (void *)(uintptr_t)item->source->view.data; /* frozen: only read */
    if (!item->learns) {
        learner->frozen[*frozen] = parameter;
        *item->place = &learner->frozen[(*frozen)++];
        return;
    }
    parameter.gradient = (float *)(learner->block + item->gradient);
    struct learn_parameter *at = &learner->learns[(*learns)++];
    *at = (struct learn_parameter){.parameter = parameter, .decays = item->rows > 1};
    at->m = learner->block + item->m;
    at->v = learner->block + item->v;
    *item->place = &at->parameter;
}

static int build(struct learn_builder *builder, struct shu_error *err) {
    struct learner *learner = builder->learner;
    int layers = learner->config.layers, learns = 0, frozen = 0;
    size_t most = (size_t)layers * (LAYER_SLOTS + 2 * LEARN_TARGETS) + MODEL_SLOTS + 1;
    builder->items = mem_calloc(most, sizeof *builder->items);
    learner->layers = mem_calloc((size_t)layers, sizeof *learner->layers);
    arena_init(&learner->names, most * 128);
    if (builder->items == NULL || learner->layers == NULL)
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for %d decoder layers", layers);
    int status = declare_all(builder, err);
    if (!status) status = allocate(builder, err);
    for (int i = 0; i < builder->count && !status; i++) {
        status = fill(builder, i, err);
        place(builder, &builder->items[i], &learns, &frozen);
    }
    return status;
}

/* ------------------------------------------------------------------- open, close */

static int check_options(const struct learn_options *options, struct shu_error *err) {
    if (options->full && options->weight_type != DT_F32 && options->weight_type != DT_BF16)
        return SHU_FAIL(err, SHU_E_USAGE, "weights learn as F32 or BF16, found %s",
                        dtype_table[options->weight_type].name);
    if (options->full) return SHU_OK;
    if (options->rank < 1 || options->rank > 1024)
        return SHU_FAIL(err, SHU_E_RANGE, "rank: expected 1 to 1024, found %d", options->rank);
    if ((options->targets & DECODER_ALL) == 0 || (options->targets & ~(unsigned)DECODER_ALL) != 0)
        return SHU_FAIL(err, SHU_E_USAGE, "targets: expected at least one of q k v o gate up down");
    if (!(options->dropout >= 0 && options->dropout < 1))
        return SHU_FAIL(err, SHU_E_RANGE, "dropout: expected 0 or more and less than 1, found %g",
                        (double)options->dropout);
    return SHU_OK;
}

static int open_with(const struct model *model, const struct decoder_config *config,
                     const struct learn_options *options, struct learner **out, struct shu_error *err) {
    int status = check_options(options, err);
    if (status) return status;
    struct learner *learner = mem_calloc(1, sizeof *learner);
    if (learner == NULL) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a learner");
    learner->config = *config;
    learner->options = *options;
    learner->fresh = model == NULL;
    struct learn_builder builder = {.learner = learner, .model = model};
    status = build(&builder, err);
    mem_free(builder.items);
    if (status)
        learner_close(learner);
    else
        *out = learner;
    return status;
}

int learner_open(const struct model *model, const struct learn_options *options, struct learner **out,
                 struct shu_error *err) {
    struct decoder_config config;
    int status = decoder_config_read(model, &config, err);
    return status ? status : open_with(model, &config, options, out, err);
}

int learner_new(const struct decoder_config *config, const struct learn_options *options, struct learner **out,
                struct shu_error *err) {
    if (!options->full) return SHU_FAIL(err, SHU_E_USAGE, "a new network learns as a whole; adapters need a base");
    return open_with(NULL, config, options, out, err);
}

void learner_close(struct learner *learner) {
    if (learner == NULL) return;
    if (learner->block) mem_free_large(learner->block, learner->block_bytes);
    mem_free(learner->layers);
    mem_free(learner->learns);
    mem_free(learner->frozen);
    arena_free(&learner->names);
    mem_free(learner);
}

/* ----------------------------------------------------------------------- access */

const struct decoder_config *learner_config(const struct learner *learner) {
    return &learner->config;
}

struct learn_parameter *learner_parameters(struct learner *learner, int *count) {
    *count = learner->learn_count;
    return learner->learns;
}

#define CLEAR_BYTES ((size_t)1 << 20)

static void clear_tile(void *context, int thread, int64_t tile) {
    (void)thread;
    const struct learner *learner = context;
    size_t first = learner->gradient_offset + (size_t)tile * CLEAR_BYTES, rest = learner->block_bytes - first;
    memset(learner->block + first, 0, rest < CLEAR_BYTES ? rest : CLEAR_BYTES);
}

void learner_clear_gradients(struct learner *learner, struct pool *pool) {
    size_t bytes = learner->block_bytes - learner->gradient_offset;
    pool_run(pool, clear_tile, learner, (int64_t)((bytes + CLEAR_BYTES - 1) / CLEAR_BYTES));
}

int learner_pairs(const struct learner *learner, struct adapter_pair *out) {
    int count = 0;
    for (int layer = 0; layer < learner->config.layers; layer++)
        for (int target = 0; target < LEARN_TARGETS; target++) {
            const struct learn_layer *at = &learner->layers[layer];
            const struct graph_parameter *a = at->a[target], *b = at->b[target];
            if (a == NULL) continue;
            out[count++] = (struct adapter_pair){.name = at->tensor[target_slots[target]]->name,
                                                 .in = a->cols,
                                                 .out = b->rows,
                                                 .rank = learner->options.rank,
                                                 .a = a->data,
                                                 .b = b->data};
        }
    return count;
}
