/* Opening and closing a run. */
#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------------------------------------------------------------------ inputs */

static int copy_options(struct trainer *trainer, const struct trainer_options *options, struct shu_error *err) {
    const struct {
        const char *from;
        char **to;
    } texts[] = {{options->base, &trainer->base},
                 {options->tokenizer, &trainer->tokenizer_path},
                 {options->data, &trainer->data},
                 {options->out_dir, &trainer->out_dir}};
    trainer->quiet = options->quiet;
    trainer->probe = options->probe;
    trainer->reduce = options->reduce;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].from && !(*texts[i].to = mem_strdup(texts[i].from)))
            return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!options->data || !options->out_dir)
        return SHU_FAIL(err, SHU_E_USAGE, "expected data and a folder for what the run leaves");
    if (trainer->recipe.method == TRAIN_SCRATCH ? !options->tokenizer : !options->base)
        return SHU_FAIL(err, SHU_E_USAGE, "method %s: expected a %s", train_method_name(trainer->recipe.method),
                        trainer->recipe.method == TRAIN_SCRATCH ? "tokenizer (shu tokenizer train makes one)" : "base");
    return SHU_OK;
}

/* A run must not write over another, nor over what it reads. */
static int check_folder(struct trainer *trainer, const char *config, bool resume, struct shu_error *err) {
    const char *const inputs[] = {trainer->base, trainer->tokenizer_path, trainer->data, config};
    int64_t newest;
    int status = dir_make(trainer->out_dir, err);
    if (!status) status = folder_lock(trainer->out_dir, &trainer->lock_fd, err);
    if (!status && !trainer->probe) status = folder_check_inputs(trainer->out_dir, inputs, 4, err);
    if (status) return status;
    int count = checkpoint_list(trainer->out_dir, &newest, 1, err);
    if (count < 0) return SHU_E_IO;
    trainer->has_run = count > 0;
    if (count == 0 && !trainer->probe) return folder_check_foreign(trainer->out_dir, err);
    if (count && !resume && !trainer->probe)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "%s holds a run that has reached step %lld; add --resume to go on with it, or take another "
                        "folder",
                        trainer->out_dir, (long long)newest);
    return SHU_OK;
}

static int open_model(struct trainer *trainer, struct shu_error *err) {
    bool scratch = trainer->recipe.method == TRAIN_SCRATCH;
    struct decoder_config config;
    int status = model_open(scratch ? trainer->tokenizer_path : trainer->base, &trainer->model, err);
    if (!status) status = model_tokenizer(trainer->model, &trainer->tokenizer, err);
    if (!status && !scratch) status = decoder_config_read(trainer->model, &config, err);
    if (!status && !scratch && trainer->recipe.context > config.context)
        status = SHU_FAIL(err, SHU_E_RANGE, "context: the base was trained for at most %d positions, found %d",
                          config.context, trainer->recipe.context);
    if (status) return status;
    int32_t count = tokenizer_count(trainer->tokenizer);
    trainer->token_bytes = mem_calloc((size_t)count, 1);
    if (!trainer->token_bytes) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %d tokens", count);
    for (int32_t id = 0; id < count; id++) {
        uint32_t bytes = tokenizer_piece(trainer->tokenizer, id, false).bytes;
        trainer->token_bytes[id] = bytes < 255 ? (uint8_t)bytes : 255;
    }
    return SHU_OK;
}

static int open_data(struct trainer *trainer, struct shu_error *err) {
    const struct recipe *recipe = &trainer->recipe;
    const struct trainset_options options = {.context = recipe->context,
                                             .all_tokens = recipe->all_tokens,
                                             .preference = recipe->method == TRAIN_DPO,
                                             .cut = recipe->cut,
                                             .held_out = recipe->held_out,
                                             .seed = recipe->seed,
                                             .template_text = model_chat_template(trainer->model),
                                             .quiet = trainer->quiet,
                                             .keep = trainer->has_run && !trainer->probe};
    struct buf path = {0};
    int status = buf_printf(&path, "%s/%s.shard", trainer->out_dir, trainer->probe ? "plan" : "data");
    status = status ? SHU_FAIL(err, status, "out of memory")
                    : trainset_open(trainer->data, path.data, trainer->tokenizer, &options, &trainer->set,
                                    &trainer->report, err);
    if (trainer->probe && path.data) { /* mapped: it lasts as long as it is needed */
        unlink(path.data);
        if (!buf_puts(&path, ".rejects.jsonl")) unlink(path.data);
    }
    buf_free(&path);
    return status;
}

/* ------------------------------------------------------------------ network */

/* What a decoder_config needs beyond what a recipe says. */
static struct decoder_config new_network(const struct trainer *trainer) {
    struct decoder_config config = trainer->recipe.network;
    config.vocab = tokenizer_count(trainer->tokenizer);
    config.activation = UNARY_SILU;
    config.qkv_bias = config.arch == ARCH_QWEN2;
    config.qk_norm = config.arch == ARCH_QWEN3;
    config.rope_neox = config.arch != ARCH_LLAMA;
    config.embed_scale = 1;
    config.attention_scale = 1 / sqrtf((float)config.head_dim);
    config.rot = config.head_dim;
    config.rope_base_local = config.rope_base;
    config.rope_scale = config.rope_scale_local = 1;
    return config;
}

int trainer_learner(struct trainer *trainer, int threads, struct shu_error *err) {
    const struct recipe *recipe = &trainer->recipe;
    const struct learn_options options = {
        .full = recipe->method == TRAIN_FULL || recipe->method == TRAIN_SCRATCH,
        .weight_type = recipe->state_type,
        .targets = recipe->targets,
        .rank = recipe->rank,
        .scale = (float)(recipe->alpha / (recipe->rank_stabilised ? sqrt(recipe->rank) : recipe->rank)),
        .dropout = (float)recipe->dropout,
        .precision = recipe->precision,
        .recompute = recipe->recompute,
        .seed = recipe->seed};
    int count, status = kernels_select(NULL, &trainer->kernels, err);
    if (!status) status = pool_new(threads, &trainer->pool, err);
    if (status) return status;
    if (recipe->method == TRAIN_SCRATCH) {
        const struct decoder_config config = new_network(trainer);
        status = learner_new(&config, &options, &trainer->learner, err);
    } else {
        status = learner_open(trainer->model, &options, &trainer->learner, err);
    }
    if (status) return status;
    struct learn_parameter *parameters = learner_parameters(trainer->learner, &count);
    return optimiser_new(&trainer->kernels->training, trainer->pool, parameters, count, &trainer->optimiser, err);
}

/* ---------------------------------------------------------------- schedule */

static int count_steps(struct trainer *trainer, struct shu_error *err) {
    const struct recipe *recipe = &trainer->recipe;
    double packs = 0;
    int64_t in_epoch;
    trainer->steps = recipe->steps;
    for (int64_t epoch = 0; recipe->steps == 0 && (double)epoch < recipe->epochs; epoch++) {
        int status = trainset_packs(trainer->set, false, epoch, &in_epoch, err);
        double share = recipe->epochs - (double)epoch;
        if (status) return status;
        packs += (double)in_epoch * (share < 1 ? share : 1);
    }
    if (recipe->steps == 0) trainer->steps = (int64_t)ceil(packs / recipe->batch - 1e-9);
    if (trainer->steps < 1) trainer->steps = 1;
    return SHU_OK;
}

/* What must be the same for a run to go on. */
static int make_identity(struct trainer *trainer, struct shu_error *err) {
    static const char *const free_keys[] = {"checkpoint_every", "watts", "price_per_kwh"};
    char base[65] = "new";
    int status = SHU_OK;
    if (trainer->recipe.method != TRAIN_SCRATCH) status = adapter_base_fingerprint(trainer->model, base, err);
    if (status) return status;
    json_t *recipe = recipe_to_json(&trainer->recipe);
    for (size_t i = 0; i < sizeof free_keys / sizeof *free_keys; i++) json_object_del(recipe, free_keys[i]);
    json_t *identity = json_pack("{s:s,s:s,s:o}", "base", base, "data", trainset_key(trainer->set), "recipe", recipe);
    char *text = identity ? json_dumps(identity, JSON_COMPACT) : NULL;
    trainer->identity = text ? mem_strdup(text) : NULL;
    free(text);
    json_decref(identity);
    return trainer->identity ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
}

/* The newest checkpoint that is whole; damage of one leads to the one before. */
static int resume(struct trainer *trainer, struct shu_error *err) {
    int64_t steps[CHECKPOINTS_KEPT + 1];
    const int room = CHECKPOINTS_KEPT + 1;
    const struct checkpoint content = {.identity = trainer->identity,
                                       .state = &trainer->state,
                                       .parameters = trainer->optimiser.parameters,
                                       .count = trainer->optimiser.count};
    struct buf path = {0};
    int count = checkpoint_list(trainer->out_dir, steps, room, err), status = count < 0 ? SHU_E_IO : SHU_OK;
    for (int i = 0; i < count && i < room; i++) {
        struct shu_error detail = {0};
        buf_clear(&path);
        if (checkpoint_path(trainer->out_dir, steps[i], &path)) {
            status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
            break;
        }
        int found = checkpoint_read(&content, path.data, &detail);
        if (!found || i == 0) status = found;
        if (!found) break;
        if (i == 0 && err) *err = detail; /* if none is whole, the newest one's trouble is told */
        if (found != SHU_E_FORMAT && found != SHU_E_CHECKSUM) {
            if (err) *err = detail;
            status = found;
            break;
        }
    }
    buf_free(&path);
    return status;
}

/* --------------------------------------------------------------------- start */

/* How good it was before: the line of step 0. */
static int first_evaluation(struct trainer *trainer, struct shu_error *err) {
    struct sums held_out;
    const struct train_metrics none = {0};
    if (trainer->state.step > 0) return SHU_OK;
    int status = evaluate(trainer, &held_out, err);
    return status || held_out.weight == 0 ? status : metrics_write(trainer, &none, NULL, &held_out, err);
}

static int start(struct trainer *trainer, bool resumes, int threads, struct shu_error *err) {
    int status = open_model(trainer, err);
    if (!status) status = open_data(trainer, err);
    if (!status) status = trainer_learner(trainer, threads, err);
    if (!status) status = rows_new(trainer->recipe.micro_batch * trainset_pack_rows(trainer->set), &trainer->rows, err);
    if (!status) status = count_steps(trainer, err);
    if (!status) status = make_identity(trainer, err);
    if (!status && resumes && !trainer->probe) status = resume(trainer, err);
    if (!status && !trainer->probe && (!trainer->reduce || trainer->reduce->rank == 0))
        status = metrics_open(trainer, err);
    return status;
}

int trainer_begin(struct trainer *trainer, struct shu_error *err) {
    int status = SHU_OK;
    if (trainer->begun) return SHU_OK;
    if (trainer->recipe.method == TRAIN_DPO) status = preference_open(trainer, err);
    if (!status && !trainer->probe) status = first_evaluation(trainer, err);
    snprintf(trainer->label, sizeof trainer->label, "train");
    if (!status)
        progress_start(&trainer->progress, trainer->label, "steps", (uint64_t)(trainer->steps - trainer->state.step),
                       trainer->quiet || trainer->probe);
    trainer->begun = !status;
    return status;
}

int trainer_open(const struct recipe *recipe, const struct trainer_options *options, struct trainer **out,
                 struct shu_error *err) {
    struct trainer *trainer = mem_calloc(1, sizeof *trainer);
    if (!trainer) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    trainer->recipe = *recipe;
    trainer->metrics_fd = trainer->lock_fd = -1;
    int status = recipe_check(recipe, err);
    if (!status) status = copy_options(trainer, options, err);
    if (!status) status = check_folder(trainer, options->config, options->resume, err);
    if (!status) status = start(trainer, options->resume, options->threads, err);
    if (status)
        trainer_close(trainer);
    else
        *out = trainer;
    return status;
}

void trainer_close(struct trainer *trainer) {
    if (!trainer) return;
    metrics_close(trainer);
    for (int i = 0; i < PASSES; i++) pass_free(&trainer->passes[i]);
    rows_free(&trainer->rows);
    optimiser_free(&trainer->optimiser);
    learner_close(trainer->learner);
    trainset_close(trainer->set);
    tokenizer_free(trainer->tokenizer);
    model_close(trainer->model);
    pool_free(trainer->pool);
    mem_free(trainer->token_bytes);
    mem_free(trainer->reference);
    mem_free(trainer->margins);
    mem_free(trainer->identity);
    mem_free(trainer->base);
    mem_free(trainer->tokenizer_path);
    mem_free(trainer->data);
    mem_free(trainer->out_dir);
    if (trainer->lock_fd >= 0) close(trainer->lock_fd);
    mem_free(trainer);
}

const struct trainset_report *trainer_data(const struct trainer *trainer) {
    return &trainer->report;
}

int64_t trainer_at(const struct trainer *trainer) {
    return trainer->state.step;
}

int64_t trainer_steps(const struct trainer *trainer) {
    return trainer->steps;
}

int64_t trainer_parameters(const struct trainer *trainer) {
    return optimiser_values(&trainer->optimiser);
}
