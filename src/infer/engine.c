#include "infer/engine.h"

#include <string.h>

enum {
    CONTEXT_DEFAULT = 4096,
    MAX_ROWS_DEFAULT = 512,
    MAX_ROWS_LIMIT = 65536,
    MAX_LOGITS_DEFAULT = 64,
    MAX_SEQUENCES_LIMIT = 4096
};

/* ----------------------------------------------------------------- options */

static int range_check(const char *name, int64_t value, int64_t limit, struct shu_error *err) {
    if (value >= 0 && value <= limit) return SHU_OK;
    return SHU_FAIL(err, SHU_E_RANGE, "%s must be 0 (default) to %lld, found %lld", name, (long long)limit,
                    (long long)value);
}

/* Replaces defaults by numbers and checks the rest against the model. */
static int options_settle(struct engine_options *o, const struct decoder_config *config, struct shu_error *err) {
    int status = range_check("max_rows", o->max_rows, MAX_ROWS_LIMIT, err);
    if (!status) status = range_check("max_logits", o->max_logits, MAX_ROWS_LIMIT, err);
    if (!status) status = range_check("max_sequences", o->max_sequences, MAX_SEQUENCES_LIMIT, err);
    if (!status) status = range_check("kv_positions", o->kv_positions, (int64_t)INT32_MAX * KV_PAGE, err);
    if (status) return status;
    if (o->context < 0 || o->context > config->context)
        return SHU_FAIL(err, SHU_E_RANGE,
                        "a context of %d positions was asked for, the model was trained for 1 to %d; ask for no more",
                        o->context, config->context);
    if (o->kv_type != KV_F16 && o->kv_type != KV_Q8)
        return SHU_FAIL(err, SHU_E_USAGE, "the KV cache is f16 or q8, found type %d", (int)o->kv_type);
    if (!o->context) o->context = config->context < CONTEXT_DEFAULT ? config->context : CONTEXT_DEFAULT;
    if (!o->kv_positions) o->kv_positions = o->context;
    if (!o->max_sequences) o->max_sequences = 1;
    if (!o->max_rows) o->max_rows = MAX_ROWS_DEFAULT;
    if (!o->max_logits) o->max_logits = MAX_LOGITS_DEFAULT;
    if (o->max_logits > o->max_rows) o->max_logits = o->max_rows;
    return SHU_OK;
}

/* ---------------------------------------------------------------- adapters */

/* Open only while the engine opens: the decoder packs what it needs. */
struct engine_adapters {
    struct adapter *open[ENGINE_MAX_ADAPTERS];
    float weights[ENGINE_MAX_ADAPTERS];
    int count; /* those weighted 0 are left out */
};

static int adapters_open(struct engine_adapters *adapters, const struct engine_options *o, struct shu_error *err) {
    if (o->adapter_count < 0 || o->adapter_count > ENGINE_MAX_ADAPTERS)
        return SHU_FAIL(err, SHU_E_RANGE, "an engine takes 0 to %d adapters, found %d", ENGINE_MAX_ADAPTERS,
                        o->adapter_count);
    for (int i = 0; i < o->adapter_count; i++) {
        if (o->adapters[i].weight == 0) continue;
        int status = adapter_open(o->adapters[i].path, &adapters->open[adapters->count], err);
        if (status) return status;
        adapters->weights[adapters->count++] = o->adapters[i].weight;
    }
    return SHU_OK;
}

static void adapters_close(struct engine_adapters *adapters) {
    for (int i = 0; i < adapters->count; i++) adapter_close(adapters->open[i]);
}

/* ------------------------------------------------------------- fingerprint */

/* Two engines with this in common write the same cache content: the file's size, the network's shape, samples of every
 * tensor, and the adapters with their weights. */
static int fingerprint(struct engine *engine, const struct engine_adapters *adapters, struct shu_error *err) {
    const struct decoder_config *c = decoder_config(engine->decoder);
    struct sha256 hash;
    char line[512], digest[65];
    int status = adapter_base_fingerprint(engine->model, digest, err);
    if (status) return status;
    sha256_init(&hash);
    int n =
        snprintf(line, sizeof line, "%s %llu %d %d %d %d %d %d %d %d %d %d %d %d %a %a %a %a %a %a %a %a %a\n", digest,
                 (unsigned long long)model_file_bytes(engine->model), (int)c->arch, c->layers, c->width, c->heads,
                 c->kv_heads, c->head_dim, c->ffn, c->vocab, c->window, c->window_pattern, c->rot, c->rope_neox,
                 (double)c->norm_eps, (double)c->embed_scale, (double)c->attention_scale, (double)c->attention_softcap,
                 (double)c->logit_softcap, c->rope_base, c->rope_base_local, c->rope_scale, c->rope_scale_local);
    sha256_update(&hash, line, (size_t)n);
    for (int i = 0; i < adapters->count; i++) {
        adapter_fingerprint(adapters->open[i], digest);
        n = snprintf(line, sizeof line, "%s %a\n", digest, (double)adapters->weights[i]);
        sha256_update(&hash, line, (size_t)n);
    }
    sha256_hex(&hash, engine->fingerprint);
    return SHU_OK;
}

/* -------------------------------------------------------------- open, close */

static int open_text(struct engine *engine, const struct model *model, struct shu_error *err) {
    int status = model_tokenizer(model, &engine->tokenizer, err);
    if (!status) status = tokenizer_work_new(engine->tokenizer, &engine->work, err);
    return status;
}

static int open_decoder(struct engine *engine, const struct kernels *kernels, const struct engine_options *o,
                        struct shu_error *err) {
    struct engine_adapters adapters = {.count = 0};
    int status = adapters_open(&adapters, o, err); /* before the weights are packed: a wrong one is told at once */
    for (int i = 0; i < adapters.count && !status; i++) status = adapter_check(adapters.open[i], engine->model, err);
    if (!status) status = decoder_load(engine->model, kernels, engine->pool, &engine->decoder, err);
    if (!status && adapters.count)
        status = decoder_adapt(engine->decoder, engine->model, (const struct adapter *const *)adapters.open,
                               adapters.weights, adapters.count, kernels, err);
    if (!status) status = fingerprint(engine, &adapters, err);
    adapters_close(&adapters);
    return status;
}

static int open_graph(struct engine *engine, const struct kernels *kernels, struct shu_error *err) {
    int status = graph_new(kernels, &engine->graph, err);
    if (!status) status = decoder_graph(engine->decoder, engine->graph, &engine->nodes, err);
    if (!status)
        status = graph_plan(engine->graph, engine->max_rows, engine->max_logits, pool_threads(engine->pool), err);
    return status;
}

static int open_cache(struct engine *engine, const struct engine_options *o, struct shu_error *err) {
    const struct decoder_config *config = decoder_config(engine->decoder);
    struct kv_cache *cache = &engine->cache;
    struct kv_geometry geometry = {.type = o->kv_type,
                                   .layers = config->layers,
                                   .kv_heads = config->kv_heads,
                                   .head_dim = config->head_dim,
                                   .context = o->context,
                                   .positions = o->kv_positions,
                                   .max_sequences = o->max_sequences};
    int status = kv_cache_init(cache, &geometry, err);
    if (status) return status;
    engine->row = mem_calloc((size_t)o->max_rows, sizeof *engine->row);
    engine->stamp = mem_calloc((size_t)o->max_sequences, sizeof *engine->stamp);
    if (!engine->row || !engine->stamp)
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for steps of %d rows", o->max_rows);
    engine->step = (struct kv_step){.type = o->kv_type,
                                    .kv_heads = config->kv_heads,
                                    .head_dim = config->head_dim,
                                    .row = engine->row,
                                    .tables = cache->tables,
                                    .layer_base = cache->layer_base,
                                    .page_bytes = cache->group_bytes};
    return SHU_OK;
}

static int open_all(struct engine *engine, const struct model *model, struct engine_options *o, struct shu_error *err) {
    struct decoder_config config;
    const struct kernels *kernels;
    int status = decoder_config_read(model, &config, err);
    if (!status) status = options_settle(o, &config, err);
    if (!status) status = kernels_select(o->isa, &kernels, err);
    if (status) return status;
    engine->max_rows = o->max_rows;
    engine->max_logits = o->max_logits;
    status = pool_new(o->threads, &engine->pool, err);
    if (!status) status = open_text(engine, model, err);
    if (!status) status = open_decoder(engine, kernels, o, err);
    if (!status) status = open_graph(engine, kernels, err);
    if (!status) status = open_cache(engine, o, err);
    if (!status && tokenizer_count(engine->tokenizer) > config.vocab)
        status =
            SHU_FAIL(err, SHU_E_FORMAT, "the tokenizer has %d tokens, the network only %d; the file is inconsistent",
                     (int)tokenizer_count(engine->tokenizer), config.vocab);
    return status;
}

int engine_open(const char *path, const struct engine_options *options, struct engine **out, struct shu_error *err) {
    uint64_t start = clock_ns();
    struct engine_options settled = options ? *options : (struct engine_options){0};
    struct engine *engine = mem_calloc(1, sizeof *engine);
    if (!engine) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for an engine");
    int status = model_open(path, &engine->model, err);
    if (!status) status = open_all(engine, engine->model, &settled, err);
    if (status) {
        engine_close(engine);
        return status;
    }
    engine->load_ns = clock_ns() - start;
    *out = engine;
    return SHU_OK;
}

void engine_close(struct engine *engine) {
    if (!engine) return;
    kv_cache_free(&engine->cache);
    mem_free(engine->row);
    mem_free(engine->stamp);
    graph_free(engine->graph);
    decoder_free(engine->decoder);
    tokenizer_work_free(engine->work);
    tokenizer_free(engine->tokenizer);
    pool_free(engine->pool);
    model_close(engine->model);
    mem_free(engine);
}

/* --------------------------------------------------------------- questions */

const struct decoder_config *engine_config(const struct engine *engine) {
    return decoder_config(engine->decoder);
}
const struct tokenizer *engine_tokenizer(const struct engine *engine) {
    return engine->tokenizer;
}
struct tokenizer_work *engine_tokenizer_work(struct engine *engine) {
    return engine->work;
}
const char *engine_chat_template(const struct engine *engine) {
    return model_chat_template(engine->model);
}
int engine_context(const struct engine *engine) {
    return engine->cache.context;
}
int engine_threads(const struct engine *engine) {
    return pool_threads(engine->pool);
}
int engine_max_rows(const struct engine *engine) {
    return engine->max_rows;
}
int engine_max_logits(const struct engine *engine) {
    return engine->max_logits;
}

int engine_room(const struct engine *engine, int sequence) {
    return kv_valid(&engine->cache, sequence) ? kv_room(&engine->cache, sequence) : 0;
}

void engine_stats(const struct engine *engine, struct engine_stats *out) {
    *out = (struct engine_stats){.load_ns = engine->load_ns,
                                 .weight_bytes = decoder_weight_bytes(engine->decoder),
                                 .kv_bytes = engine->cache.data_bytes,
                                 .activation_bytes = graph_memory_bytes(engine->graph),
                                 .read_bytes_per_token = decoder_read_bytes(engine->decoder)};
}

void engine_profile(struct engine *engine, bool on) {
    graph_profile(engine->graph, on);
}
void engine_profile_read(struct engine *engine, uint64_t ns[OP_KINDS]) {
    graph_profile_read(engine->graph, ns);
}

/* -------------------------------------------------------------------- steps */

int engine_check_sequence(const struct engine *engine, int sequence, struct shu_error *err) {
    if (kv_valid(&engine->cache, sequence)) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, "sequence %d does not exist; make one with sequence_new", sequence);
}

static int check_item(struct engine *engine, const struct step_item *item, struct shu_error *err) {
    int status = engine_check_sequence(engine, item->sequence, err);
    if (status) return status;
    if (engine->stamp[item->sequence] == engine->step_number)
        return SHU_FAIL(err, SHU_E_USAGE, "sequence %d occurs twice in one step; join its tokens", item->sequence);
    engine->stamp[item->sequence] = engine->step_number;
    if (item->count < 1 || item->logits < 0 || item->logits > item->count)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "a step item needs 1 or more tokens and at most as many logits, found %d and %d", item->count,
                        item->logits);
    int vocab = decoder_config(engine->decoder)->vocab;
    for (int i = 0; i < item->count; i++) {
        if (item->tokens[i] < 0 || item->tokens[i] >= vocab)
            return SHU_FAIL(err, SHU_E_USAGE, "token %d of sequence %d must be 0 to %d, found %d", i, item->sequence,
                            vocab - 1, (int)item->tokens[i]);
    }
    int length = engine->cache.sequence[item->sequence].length;
    if (item->count > engine->cache.context - length)
        return SHU_FAIL(
            err, SHU_E_RANGE,
            "sequence %d holds %d tokens and %d more would exceed its context of %d; shorten it or open the "
            "engine with a larger context",
            item->sequence, length, item->count, engine->cache.context);
    return SHU_OK;
}

static int check_items(struct engine *engine, const struct step_item *items, int count, struct shu_error *err) {
    if (++engine->step_number == 0) { /* wrapped: old stamps would look new */
        memset(engine->stamp, 0, (size_t)engine->cache.max_sequences * sizeof *engine->stamp);
        engine->step_number = 1;
    }
    int64_t rows = 0, logits = 0, pages = 0;
    for (int i = 0; i < count; i++) {
        int status = check_item(engine, &items[i], err);
        if (status) return status;
        rows += items[i].count;
        logits += items[i].logits;
        pages += kv_pages_needed(&engine->cache, items[i].sequence, items[i].count);
    }
    if (rows < 1 || rows > engine->max_rows || logits > engine->max_logits)
        return SHU_FAIL(err, SHU_E_RANGE,
                        "a step has 1 to %d rows, at most %d of them with logits; found %lld and %lld",
                        engine->max_rows, engine->max_logits, (long long)rows, (long long)logits);
    if (pages > engine->cache.free_count)
        return SHU_FAIL(err, SHU_E_RANGE,
                        "the KV cache is full: %lld pages of %d positions are needed, %d are free; free a sequence or "
                        "open the engine with more kv_positions",
                        (long long)pages, KV_PAGE, (int)engine->cache.free_count);
    return SHU_OK;
}

/* Writes the graph's inputs for the items, which are not yet appended. */
static void bind_items(struct engine *engine, const struct step_item *items, int count, struct graph_step *out) {
    int32_t *tokens = graph_data(engine->graph, engine->nodes.tokens);
    int32_t *gather = graph_data(engine->graph, engine->nodes.gather);
    int rows = 0, logits = 0;
    for (int i = 0; i < count; i++) {
        const struct step_item *item = &items[i];
        int length = engine->cache.sequence[item->sequence].length;
        for (int j = 0; j < item->count; j++) {
            if (j >= item->count - item->logits) gather[logits++] = rows;
            engine->row[rows] = (struct kv_row){.sequence = item->sequence, .position = length + j};
            tokens[rows++] = item->tokens[j];
        }
    }
    engine->step.rows = rows;
    *out = (struct graph_step){.rows = rows, .gathered = logits, .kv = &engine->step};
}

int engine_step(struct engine *engine, const struct step_item *items, int count, struct shu_error *err) {
    engine->logits_rows = 0;
    int status = check_items(engine, items, count, err);
    if (status) return status;
    struct graph_step step;
    bind_items(engine, items, count, &step);
    for (int i = 0; i < count; i++) kv_extend(&engine->cache, items[i].sequence, items[i].tokens, items[i].count);
    status = graph_run(engine->graph, engine->pool, &step, err);
    if (status) {
        for (int i = count - 1; i >= 0; i--) {
            int length = engine->cache.sequence[items[i].sequence].length;
            kv_truncate(&engine->cache, items[i].sequence, length - items[i].count);
        }
        return status;
    }
    engine->logits_rows = (int)step.gathered;
    return SHU_OK;
}

const float *engine_logits(const struct engine *engine, int row) {
    if (row < 0 || row >= engine->logits_rows) return NULL;
    const float *logits = graph_data(engine->graph, engine->nodes.logits);
    return logits + (size_t)row * (size_t)decoder_config(engine->decoder)->vocab;
}
