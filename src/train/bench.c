/* Training speed on random tokens. */
#include "train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The rows of one step, all sequences of the same length; the last token of each is only a target. */
static void fill_rows(struct trainer *trainer, double loss_share, struct rng *rng) {
    const struct recipe *recipe = &trainer->recipe;
    struct rows *rows = &trainer->rows;
    uint64_t vocab = (uint64_t)learner_config(trainer->learner)->vocab;
    int32_t first_loss = (int32_t)(recipe->context * (1 - loss_share));
    rows_clear(rows);
    for (int32_t s = 0; s < recipe->batch; s++)
        for (int32_t r = 0; r < recipe->context; r++) {
            int32_t row = (int32_t)rows->rows++;
            rows->tokens[row] = (int32_t)(rng_next(rng) % vocab);
            rows->position[row] = r;
            rows->begin[row] = row - r;
            if (r < first_loss || r == recipe->context - 1) continue;
            rows->gather[rows->gathered] = row;
            rows->targets[rows->gathered++] = (int32_t)(rng_next(rng) % vocab);
        }
    for (int64_t i = 0; i < rows->gathered; i++) rows->weight[i] = 1 / (float)rows->gathered;
}

static int one_step(struct trainer *trainer, int64_t update, double *loss, struct shu_error *err) {
    learner_clear_gradients(trainer->learner, trainer->pool);
    int status = pass_run(trainer, PASS_LEARN, (uint64_t)update, err);
    if (status) return status;
    double norm = optimiser_norm(&trainer->optimiser), clip = trainer->recipe.clip;
    double scale = clip > 0 && norm > clip ? clip / norm : 1;
    optimiser_step(&trainer->optimiser, &trainer->recipe, trainer->recipe.learning_rate, scale, update);
    *loss = 0;
    for (int64_t i = 0; i < trainer->rows.gathered; i++)
        *loss += (double)trainer->passes[PASS_LEARN].nll[i] / (double)trainer->rows.gathered;
    return isfinite(*loss) ? SHU_OK : SHU_FAIL(err, SHU_E_RANGE, "the loss is not finite");
}

static int measure(struct trainer *trainer, const struct train_bench_options *options, struct train_bench *out,
                   struct shu_error *err) {
    struct rng rng;
    int status = SHU_OK;
    rng_seed(&rng, 1);
    for (int i = 0; i <= options->steps && !status; i++) {
        fill_rows(trainer, options->loss_share, &rng);
        double start = seconds_now();
        status = one_step(trainer, i + 1, &out->loss, err);
        if (i > 0) out->rates[i - 1] = (double)trainer->rows.rows / (seconds_now() - start);
        if (!status && interrupt_pending())
            status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was measured");
    }
    double sorted[TRAIN_BENCH_STEPS];
    memcpy(sorted, out->rates, sizeof sorted);
    qsort(sorted, (size_t)options->steps, sizeof *sorted, compare);
    out->tokens_per_second = sorted[options->steps / 2];
    out->peak_bytes = rss_peak_bytes();
    return status;
}

static int check(const struct train_bench_options *options, struct shu_error *err) {
    const struct recipe *recipe = &options->recipe;
    if (recipe->method != TRAIN_LORA && recipe->method != TRAIN_FULL)
        return SHU_FAIL(err, SHU_E_USAGE, "training speed is measured for lora and full");
    if (options->steps < 1 || options->steps > TRAIN_BENCH_STEPS)
        return SHU_FAIL(err, SHU_E_RANGE, "steps: expected 1 to %d, found %d", TRAIN_BENCH_STEPS, options->steps);
    /* At least one row must have a loss: the last of a sequence has none. */
    if (!(options->loss_share > 0 && options->loss_share <= 1) || recipe->context < 2 ||
        (int)(recipe->context * (1 - options->loss_share)) >= recipe->context - 1)
        return SHU_FAIL(err, SHU_E_RANGE, "loss share: expected a share of each sequence up to 1, found %g",
                        options->loss_share);
    return SHU_OK;
}

int train_bench(const struct train_bench_options *options, struct train_bench *out, struct shu_error *err) {
    *out = (struct train_bench){0};
    int status = check(options, err);
    if (status) return status;
    struct trainer *trainer = mem_calloc(1, sizeof *trainer);
    if (!trainer) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    trainer->recipe = options->recipe;
    trainer->metrics_fd = trainer->lock_fd = -1;
    status = model_open(options->model, &trainer->model, err);
    if (!status) status = trainer_learner(trainer, options->threads, err);
    if (!status) status = rows_new((int64_t)options->recipe.batch * options->recipe.context, &trainer->rows, err);
    if (!status) status = measure(trainer, options, out, err);
    trainer_close(trainer);
    return status;
}
