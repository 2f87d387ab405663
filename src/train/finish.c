/* What a finished run leaves: weights, the loss curve, a model card. */
#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool adapters(const struct trainer *trainer) {
    return trainer->recipe.method == TRAIN_LORA || trainer->recipe.method == TRAIN_DPO;
}

/* out_dir/tail */
static int path_in(const struct trainer *trainer, const char *tail, struct buf *out, struct shu_error *err) {
    buf_clear(out);
    return buf_printf(out, "%s/%s", trainer->out_dir, tail) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
}

static int write_file(const char *path, const struct buf *text, struct shu_error *err) {
    struct atomic_file file;
    int status = atomic_open(path, &file, err);
    if (status) return status;
    return atomic_end(&file, atomic_write(&file, text->data, text->len, err), err);
}

/* ----------------------------------------------------------------- weights */

/* Early stopping: the weights of the best evaluation, not of the last step. */
static int take_best(struct trainer *trainer, struct shu_error *err) {
    struct run_state ignored;
    struct buf path = {0};
    const struct checkpoint content = {.identity = trainer->identity,
                                       .state = &ignored,
                                       .parameters = trainer->optimiser.parameters,
                                       .count = trainer->optimiser.count,
                                       .weights_only = true};
    if (!trainer->recipe.patience || trainer->state.best_step == 0 || trainer->state.best_step == trainer->state.step)
        return SHU_OK;
    int status = path_in(trainer, "best.shu", &path, err);
    if (!status) status = checkpoint_read(&content, path.data, err);
    buf_free(&path);
    return status;
}

/* Name of a file or folder without what stands before and behind: "dir/tiny.gguf" is "tiny". */
static void short_name(const char *path, char *out, size_t size) {
    size_t bytes = strlen(path);
    while (bytes > 1 && path[bytes - 1] == '/') bytes--;
    size_t from = bytes;
    while (from && path[from - 1] != '/') from--;
    if (bytes - from > 5 && memcmp(path + bytes - 5, ".gguf", 5) == 0) bytes -= 5;
    snprintf(out, size, "%.*s", (int)(bytes - from < 200 ? bytes - from : 200), path + from);
}

static int write_adapter(struct trainer *trainer, struct shu_error *err) {
    const struct recipe *recipe = &trainer->recipe;
    struct buf path = {0};
    char name[256];
    struct adapter_pair *pairs = mem_calloc((size_t)learner_config(trainer->learner)->layers * 7, sizeof *pairs);
    if (!pairs) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the list of adapters");
    short_name(trainer->base, name, sizeof name);
    const struct adapter_write what = {.base = trainer->model,
                                       .pairs = pairs,
                                       .count = learner_pairs(trainer->learner, pairs),
                                       .alpha = recipe->alpha,
                                       .rank_stabilised = recipe->rank_stabilised,
                                       .dropout = recipe->dropout,
                                       .base_name = name};
    int status = path_in(trainer, "adapter.gguf", &path, err);
    if (!status) status = adapter_write_gguf(&what, path.data, err);
    if (!status) status = path_in(trainer, "adapter", &path, err);
    if (!status) status = adapter_write_peft(&what, path.data, err);
    mem_free(pairs);
    buf_free(&path);
    return status;
}

static int write_model(struct trainer *trainer, struct shu_error *err) {
    struct buf path = {0};
    char name[256];
    short_name(trainer->out_dir, name, sizeof name);
    int status = path_in(trainer, "model.gguf", &path, err);
    if (!status) status = learner_save(trainer->learner, trainer->model, name, path.data, err);
    buf_free(&path);
    return status;
}

/* -------------------------------------------------------------------- card */

/* Names and licences come from files and folders and stand in YAML and Markdown: what would end a quotation there, or
 * begin something else, gives way. */
static void tame(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || strchr("\"\\`|<>", *text)) *text = '_';
}

/* The base's licence as its file or the store says; "" if neither does. */
static void find_licence(const struct trainer *trainer, char *out, size_t size) {
    const char *text = NULL;
    size_t bytes, i;
    json_t *list = NULL, *entry;
    *out = 0;
    if (meta_string(trainer->model, "general.license", &text, &bytes)) snprintf(out, size, "%.100s", text);
    if (*out || !trainer->base || store_list(&list, NULL)) return;
    json_array_foreach(list, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        const char *licence = json_string_value(json_object_get(entry, "licence"));
        if (name && licence && strcmp(name, trainer->base) == 0) snprintf(out, size, "%.100s", licence);
    }
    json_decref(list);
}

/* First and last loss of the curve, smoothed over a tenth of it, and the held-out ones. */
struct results {
    double first, last, held_first, held_last, held_best, bits, margin, accuracy;
};

static void summarise(const struct metrics_point *points, int64_t count, struct results *out) {
    int64_t losses = 0, seen = 0;
    for (int64_t i = 0; i < count; i++) losses += isfinite(points[i].loss);
    int64_t tenth = losses / 10 > 0 ? losses / 10 : 1;
    *out = (struct results){.held_first = (double)NAN,
                            .held_last = (double)NAN,
                            .held_best = (double)INFINITY,
                            .bits = (double)NAN,
                            .margin = (double)NAN,
                            .accuracy = (double)NAN};
    for (int64_t i = 0; i < count; i++) {
        const struct metrics_point *point = &points[i];
        if (isfinite(point->loss)) {
            if (seen < tenth) out->first += point->loss / (double)tenth;
            if (seen >= losses - tenth) out->last += point->loss / (double)tenth;
            seen++;
        }
        if (!isfinite(point->held_out)) continue;
        if (isnan(out->held_first)) out->held_first = point->held_out;
        out->held_last = point->held_out;
        if (point->held_out < out->held_best) out->held_best = point->held_out;
        out->bits = point->bits_per_byte;
        out->margin = point->margin;
        out->accuracy = point->accuracy;
    }
}

static int card_head(const struct trainer *trainer, const char *name, const char *licence, struct buf *out) {
    static const char *const what[TRAIN_METHODS] = {[TRAIN_LORA] = "a LoRA adapter",
                                                    [TRAIN_FULL] = "a fully fine-tuned model",
                                                    [TRAIN_SCRATCH] = "a model trained from scratch",
                                                    [TRAIN_DPO] = "a LoRA adapter, tuned on preferences (DPO)"};
    char base[256] = "";
    if (trainer->base) short_name(trainer->base, base, sizeof base);
    tame(base);
    int status = buf_puts(out, "---\n");
    if (!status && *base) status = buf_printf(out, "base_model: \"%s\"\n", base);
    if (!status && *licence) status = buf_printf(out, "license: \"%s\"\n", licence);
    if (!status)
        status = buf_printf(out, "tags: [shu, %s]\n---\n\n# %s\n\nThis is %s",
                            train_method_name(trainer->recipe.method), name, what[trainer->recipe.method]);
    if (!status && *base) status = buf_printf(out, " of `%s`", base);
    if (!status) status = buf_printf(out, ", made by shu %s.\n\n", SHU_VERSION);
    if (!status && *base)
        status =
            *licence
                ? buf_printf(out, "Licence of the base: %s. What was learned from may add conditions of its own.\n\n",
                             licence)
                : buf_puts(out, "The base's licence is not stated in its file: ask where it came from before passing "
                                "this on.\n\n");
    return status;
}

static int card_data(const struct trainer *trainer, struct buf *out) {
    const struct trainset_report *report = &trainer->report;
    char data[256];
    short_name(trainer->data, data, sizeof data);
    return buf_printf(out,
                      "## Data 数据\n\n| | |\n|---|---|\n| file | `%s` |\n| documents or lines | %lld |\n"
                      "| sequences | %lld, of which %lld held out |\n| tokens | %lld, of which %lld with a loss |\n"
                      "| rejected lines | %lld%s |\n| longer than the context | %lld |\n"
                      "| content (SHA-256 of data and how it was read) | `%s` |\n\n",
                      data, (long long)report->lines, (long long)report->sequences, (long long)report->held_out,
                      (long long)report->tokens, (long long)report->loss_tokens, (long long)report->rejected,
                      report->rejected ? ", listed in `data.shard.rejects.jsonl`" : "", (long long)report->cut,
                      trainset_key(trainer->set));
}

static int card_results(const struct trainer *trainer, const struct results *results, struct buf *out) {
    const struct run_state *state = &trainer->state;
    int status = buf_printf(out,
                            "## Results 结果\n\n![loss](loss.svg)\n\n| | first | last |\n|---|---|---|\n"
                            "| training loss (mean of a tenth of the steps) | %.4f | %.4f |\n",
                            results->first, results->last);
    if (!status && !isnan(results->held_first))
        status = buf_printf(out, "| held-out loss | %.4f | %.4f |\n", results->held_first, results->held_last);
    if (!status)
        status = buf_printf(out, "\n%lld steps, %lld tokens, %lld numbers learned", (long long)state->step,
                            (long long)state->tokens, (long long)trainer_parameters(trainer));
    if (!status && state->guard.skipped)
        status = buf_printf(out, ", %lld steps refused by the guard", (long long)state->guard.skipped);
    if (!status && !isnan(results->bits)) status = buf_printf(out, "; held out: %.4f bits per byte", results->bits);
    if (!status && !isnan(results->accuracy))
        status =
            buf_printf(out, "; held-out pairs: margin %.4f, %.1f%% right", results->margin, 100 * results->accuracy);
    if (!status && state->stopped) status = buf_puts(out, "; stopped early");
    if (!status && trainer->recipe.patience && state->best_step > 0)
        status = buf_printf(out, "; the weights are those of step %lld (held-out loss %.4f)",
                            (long long)state->best_step, state->best);
    return status ? status : buf_puts(out, ".\n\n");
}

static int card_use(const struct trainer *trainer, struct buf *out) {
    if (!adapters(trainer))
        return buf_printf(out,
                          "## Use 使用\n\n    shu run %s/model.gguf -p \"…\"%s\n\n"
                          "`model.gguf` also runs in llama.cpp; `shu model quantize` makes it smaller.\n\n",
                          trainer->out_dir, trainer->recipe.method == TRAIN_SCRATCH ? " --raw" : "");
    return buf_printf(out,
                      "## Use 使用\n\n    shu run %s --adapter %s/adapter.gguf -p \"…\"\n"
                      "    shu model merge %s %s/adapter.gguf merged.gguf\n\n"
                      "`adapter.gguf` also loads into llama.cpp (`--lora`), the folder `adapter/` into PEFT.\n\n",
                      trainer->base, trainer->out_dir, trainer->base, trainer->out_dir);
}

static int card_recipe(const struct trainer *trainer, struct buf *out) {
    json_t *recipe = recipe_to_json(&trainer->recipe);
    char *text = recipe ? json_dumps(recipe, JSON_INDENT(2) | JSON_REAL_PRECISION(10)) : NULL;
    int status = text ? buf_printf(out, "## Recipe 配方\n\n```json\n%s\n```\n", text) : SHU_E_NOMEM;
    free(text);
    json_decref(recipe);
    return status;
}

static int write_card(struct trainer *trainer, const struct results *results, struct shu_error *err) {
    struct buf path = {0}, text = {0};
    char name[256], licence[128];
    short_name(trainer->out_dir, name, sizeof name);
    find_licence(trainer, licence, sizeof licence);
    tame(name);
    tame(licence);
    int status = card_head(trainer, name, licence, &text);
    if (!status) status = card_use(trainer, &text);
    if (!status) status = card_results(trainer, results, &text);
    if (!status) status = card_data(trainer, &text);
    if (!status) status = card_recipe(trainer, &text);
    status =
        status ? SHU_FAIL(err, status, "out of memory for the model card") : path_in(trainer, "README.md", &path, err);
    if (!status) status = write_file(path.data, &text, err);
    buf_free(&path);
    buf_free(&text);
    return status;
}

static int write_curve(struct trainer *trainer, const struct metrics_point *points, int64_t count,
                       struct shu_error *err) {
    struct buf path = {0}, text = {0};
    char name[256];
    short_name(trainer->out_dir, name, sizeof name);
    int status = curve_svg(points, count, name, &text);
    status =
        status ? SHU_FAIL(err, status, "out of memory for the loss curve") : path_in(trainer, "loss.svg", &path, err);
    if (!status) status = write_file(path.data, &text, err);
    buf_free(&path);
    buf_free(&text);
    return status;
}

int trainer_finish(struct trainer *trainer, struct shu_error *err) {
    struct metrics_point *points = NULL;
    int64_t count = 0;
    struct results results;
    if (trainer->probe || (trainer->reduce && trainer->reduce->rank != 0)) return SHU_OK;
    int status = metrics_sync(trainer, err);
    if (!status) status = take_best(trainer, err);
    if (!status) status = adapters(trainer) ? write_adapter(trainer, err) : write_model(trainer, err);
    if (!status) status = metrics_read(trainer->out_dir, &points, &count, err);
    if (!status) {
        summarise(points, count, &results);
        status = write_curve(trainer, points, count, err);
    }
    if (!status) status = write_card(trainer, &results, err);
    mem_free(points);
    return status;
}
