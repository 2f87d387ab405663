/* One step. */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

double seconds_now(void) {
    return (double)clock_ns() * 1e-9;
}

/* --------------------------------------------------------------- gradients */

static bool is_preference(const struct trainer *trainer) {
    return trainer->recipe.method == TRAIN_DPO;
}

static int rank_of(const struct trainer *trainer) {
    return trainer->reduce ? trainer->reduce->rank : 0;
}

static int ranks_of(const struct trainer *trainer) {
    return trainer->reduce ? trainer->reduce->ranks : 1;
}

static int reduce(const struct trainer *trainer, const struct train_span *spans, int count, struct shu_error *err) {
    return trainer->reduce ? trainer->reduce->sum(trainer->reduce->context, spans, count, err) : SHU_OK;
}

/* What the whole step weighs, before its first pass: a token's share of the mean does not depend on how the
 * step is cut into micro-batches or over ranks. */
static int weigh_step(struct trainer *trainer, struct cursor cursor, struct sums *out, struct shu_error *err) {
    double numbers[3] = {0};
    int status = SHU_OK;
    for (int i = 0; i < trainer->recipe.batch && !status; i++) {
        struct train_pack pack;
        status = cursor_take(trainer, &cursor, &pack, err);
        if (status || i % ranks_of(trainer) != rank_of(trainer)) continue;
        numbers[1] += (double)pack.rows;
        for (int64_t r = 0; r < pack.rows; r++) {
            numbers[2] += pack.targets[r] >= 0;
            if (!is_preference(trainer)) numbers[0] += (double)pack.weight[r];
        }
        if (is_preference(trainer)) numbers[0] += preference_weight(&pack);
    }
    const struct train_span span = {.doubles = numbers, .count = 3};
    if (!status) status = reduce(trainer, &span, 1, err);
    out->weight = numbers[0];
    out->rows = (int64_t)numbers[1];
    out->loss_rows = (int64_t)numbers[2];
    return status;
}

static uint64_t dropout_seed(const struct trainer *trainer, int pack) {
    struct rng rng;
    rng_seed(&rng, trainer->recipe.seed + 0x5851F42D4C957F2Du * (uint64_t)trainer->state.step + (uint64_t)pack);
    return rng_next(&rng);
}

/* Forward and backward over the rows, their gradients added to what is there. */
static int run_rows(struct trainer *trainer, int pack, struct sums *sums, struct shu_error *err) {
    struct rows *rows = &trainer->rows;
    int status = SHU_OK;
    if (is_preference(trainer)) {
        status = preference_margins(trainer, sums->weight, sums, err);
        if (!status) preference_weigh(trainer, sums->weight);
        return status ? status : pass_run(trainer, PASS_LEARN, dropout_seed(trainer, pack), err);
    }
    for (int64_t g = 0; g < rows->gathered; g++) rows->weight[g] = (float)((double)rows->weight[g] / sums->weight);
    status = pass_run(trainer, PASS_LEARN, dropout_seed(trainer, pack), err);
    const float *nll = trainer->passes[PASS_LEARN].nll;
    for (int64_t g = 0; g < rows->gathered && !status; g++) sums->loss += (double)rows->weight[g] * (double)nll[g];
    return status;
}

/* All gradients as one flat list, and the sums of the losses. */
static int reduce_gradients(struct trainer *trainer, struct sums *sums, struct shu_error *err) {
    int count = trainer->optimiser.count;
    double numbers[3] = {sums->loss, sums->margin, sums->accuracy};
    if (!trainer->reduce) return SHU_OK;
    struct train_span *spans = mem_calloc((size_t)count + 1, sizeof *spans);
    if (!spans) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the list of gradients");
    for (int i = 0; i < count; i++) {
        const struct graph_parameter *parameter = &trainer->optimiser.parameters[i].parameter;
        spans[i] = (struct train_span){.values = parameter->gradient, .count = parameter->rows * parameter->cols};
    }
    spans[count] = (struct train_span){.doubles = numbers, .count = 3};
    int status = reduce(trainer, spans, count + 1, err);
    sums->loss = numbers[0];
    sums->margin = numbers[1];
    sums->accuracy = numbers[2];
    mem_free(spans);
    return status;
}

int step_gradients(struct trainer *trainer, struct cursor *cursor, struct sums *out, double limit_s,
                   struct shu_error *err) {
    const struct recipe *recipe = &trainer->recipe;
    struct rows *rows = &trainer->rows;
    double start = seconds_now();
    *out = (struct sums){0};
    int held = 0, status = weigh_step(trainer, *cursor, out, err);
    if (limit_s > 0) out->rows = 0; /* the plan counts what was run */
    if (!status) learner_clear_gradients(trainer->learner, trainer->pool);
    rows_clear(rows);
    for (int i = 0; i < recipe->batch && !status; i++) {
        struct train_pack pack;
        status = cursor_take(trainer, cursor, &pack, err);
        if (status) break;
        if (i % ranks_of(trainer) == rank_of(trainer)) {
            rows_add(rows, &pack);
            held++;
        }
        if (held == 0 || (held < recipe->micro_batch && i + 1 < recipe->batch)) continue;
        status = run_rows(trainer, i, out, err);
        if (limit_s > 0) out->rows += rows->rows;
        rows_clear(rows);
        held = 0;
        if (limit_s > 0 && seconds_now() - start > limit_s) break;
    }
    return status ? status : reduce_gradients(trainer, out, err);
}

/* -------------------------------------------------------- evaluation, saving */

int trainer_checkpoint(struct trainer *trainer, struct shu_error *err) {
    struct buf path = {0};
    const struct checkpoint content = {.identity = trainer->identity,
                                       .state = &trainer->state,
                                       .parameters = trainer->optimiser.parameters,
                                       .count = trainer->optimiser.count};
    if (trainer->probe || rank_of(trainer) != 0) return SHU_OK;
    int status = metrics_sync(trainer, err); /* whoever finds the checkpoint finds the lines before it */
    if (!status && checkpoint_path(trainer->out_dir, trainer->state.step, &path))
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) status = checkpoint_write(&content, path.data, err);
    if (!status) checkpoint_prune(trainer->out_dir);
    buf_free(&path);
    return status;
}

static int save_best(struct trainer *trainer, struct shu_error *err) {
    struct buf path = {0};
    const struct checkpoint content = {.identity = trainer->identity,
                                       .state = &trainer->state,
                                       .parameters = trainer->optimiser.parameters,
                                       .count = trainer->optimiser.count,
                                       .weights_only = true};
    int status = buf_printf(&path, "%s/best.shu", trainer->out_dir);
    status = status ? SHU_FAIL(err, status, "out of memory") : checkpoint_write(&content, path.data, err);
    buf_free(&path);
    return status;
}

/* Early stopping: keeps the best weights, and says when there was no gain for too long. */
static int judge(struct trainer *trainer, double loss, struct shu_error *err) {
    struct run_state *state = &trainer->state;
    if (!trainer->recipe.patience) return SHU_OK;
    if (state->best_step == 0 || loss < state->best) {
        state->best = loss;
        state->best_step = state->step;
        state->without_gain = 0;
        return rank_of(trainer) == 0 && !trainer->probe ? save_best(trainer, err) : SHU_OK;
    }
    state->stopped = ++state->without_gain >= trainer->recipe.patience;
    return SHU_OK;
}

static bool due(int64_t step, int64_t every, bool last) {
    return last || (every > 0 && step % every == 0);
}

/* ------------------------------------------------------------------- steps */

static void fill_metrics(struct trainer *trainer, const struct sums *sums, double seconds, struct train_metrics *out) {
    *out = (struct train_metrics){.step = trainer->state.step,
                                  .steps = trainer->steps,
                                  .tokens = sums->rows,
                                  .loss = sums->loss,
                                  .held_out_loss = (double)NAN,
                                  .margin = sums->margin,
                                  .accuracy = sums->accuracy,
                                  .learning_rate = out->learning_rate,
                                  .gradient_norm = out->gradient_norm,
                                  .skipped = out->skipped,
                                  .seconds = seconds,
                                  .tokens_per_second = seconds > 0 ? (double)sums->rows / seconds : 0,
                                  .peak_bytes = rss_peak_bytes()};
}

static void update(struct trainer *trainer, const struct sums *sums, struct train_metrics *metrics) {
    const struct recipe *recipe = &trainer->recipe;
    struct run_state *state = &trainer->state;
    double norm = optimiser_norm(&trainer->optimiser);
    metrics->gradient_norm = norm;
    metrics->learning_rate = schedule_rate(recipe, state->step + 1, trainer->steps);
    metrics->skipped = !guard_accepts(&state->guard, recipe->spike, sums->loss, norm);
    if (metrics->skipped) return;
    double scale = recipe->clip > 0 && norm > recipe->clip ? recipe->clip / norm : 1;
    optimiser_step(&trainer->optimiser, recipe, metrics->learning_rate, scale, ++state->updates);
}

static int guard_stops(struct trainer *trainer, double loss, struct shu_error *err) {
    if (trainer->state.guard.streak < GUARD_STREAK) return SHU_OK;
    return SHU_FAIL(err, SHU_E_RANGE,
                    "step %lld: loss %g, %d steps in a row were refused; lower learning_rate, look at the data, or set "
                    "spike: 0; the last checkpoint is unharmed",
                    (long long)trainer->state.step, loss, GUARD_STREAK);
}

static void draw_progress(struct trainer *trainer, const struct train_metrics *metrics) {
    snprintf(trainer->label, sizeof trainer->label, "train  loss %.4f%s", metrics->loss,
             metrics->skipped ? " (step refused)" : "");
    progress_update(&trainer->progress, trainer->progress.done + 1);
}

/* Evaluates and saves what is due after a step. */
static int after_step(struct trainer *trainer, const struct sums *sums, struct train_metrics *metrics,
                      struct shu_error *err) {
    const struct recipe *recipe = &trainer->recipe;
    int64_t step = trainer->state.step;
    bool last = step >= trainer->steps;
    struct sums held_out = {0};
    int status = guard_stops(trainer, sums->loss, err);
    if (!status && due(step, recipe->eval_every, last)) status = evaluate(trainer, &held_out, err);
    if (!status && held_out.weight > 0) {
        metrics->held_out_loss = held_out.loss;
        metrics->held_out_margin = held_out.margin;
        metrics->held_out_accuracy = held_out.accuracy;
        status = judge(trainer, held_out.loss, err);
    }
    if (!status) status = metrics_write(trainer, metrics, sums, &held_out, err);
    last = last || trainer->state.stopped;
    if (!status && due(step, recipe->checkpoint_every, last)) status = trainer_checkpoint(trainer, err);
    return status;
}

bool trainer_done(const struct trainer *trainer) {
    return trainer->state.step >= trainer->steps || trainer->state.stopped;
}

int trainer_step(struct trainer *trainer, struct train_metrics *out, bool *done, struct shu_error *err) {
    struct run_state *state = &trainer->state;
    struct cursor cursor = {state->epoch, state->pack};
    struct sums sums;
    *done = trainer_done(trainer);
    *out = (struct train_metrics){.step = state->step, .steps = trainer->steps, .held_out_loss = (double)NAN};
    if (*done) return SHU_OK;
    int status = trainer_begin(trainer, err);
    double start = seconds_now();
    if (!status) status = step_gradients(trainer, &cursor, &sums, 0, err);
    if (status) return status;
    update(trainer, &sums, out);
    state->step++;
    state->epoch = cursor.epoch;
    state->pack = cursor.pack;
    state->tokens += sums.rows;
    fill_metrics(trainer, &sums, seconds_now() - start, out);
    status = after_step(trainer, &sums, out, err);
    draw_progress(trainer, out);
    *done = trainer_done(trainer);
    if (*done) progress_finish(&trainer->progress);
    return status;
}
