/* What a run will take, from a short piece of it. */
#include "train/trainer.h"

#include <math.h>

/* Rows of the training part (0) or the held-out one (1). */
static int64_t part_rows(const struct trainer *trainer, int part) {
    const struct train_part *of = &trainer->set->parts[part];
    int64_t rows = 0;
    for (int64_t i = 0; i < of->unit_count; i++)
        for (int s = 0; s < trainer->set->unit_sequences; s++)
            rows += (int64_t)trainer->set->shard.index[of->units[i] + s].tokens - 1;
    return rows;
}

/* Rows of an average pack. */
static int rows_per_pack(struct trainer *trainer, double *out, struct shu_error *err) {
    int64_t packs = 0;
    int status = trainset_packs(trainer->set, false, 0, &packs, err);
    *out = packs ? (double)part_rows(trainer, 0) / (double)packs : 0;
    return status;
}

/* Evaluations, and the reference of DPO, need a forward pass only: a third of the work. */
static double evaluation_rows(const struct trainer *trainer) {
    const struct recipe *recipe = &trainer->recipe;
    double held_out = (double)part_rows(trainer, 1), times = 2; /* before the first step, and after the last */
    if (recipe->eval_every) times += floor((double)(trainer->steps - 1) / (double)recipe->eval_every);
    double reference = recipe->method == TRAIN_DPO ? (double)part_rows(trainer, 0) + held_out : 0;
    return (held_out * times + reference) / 3;
}

/* Steps for `seconds`, updates of rate 0 included; rows and seconds of what was run. */
static int probe(struct trainer *trainer, struct cursor *cursor, double seconds, double *rows, double *spent,
                 struct shu_error *err) {
    double start = seconds_now();
    int status = SHU_OK;
    *rows = *spent = 0;
    while (!status && *spent < seconds) {
        struct sums sums;
        status = step_gradients(trainer, cursor, &sums, seconds - *spent, err);
        if (!status) optimiser_step(&trainer->optimiser, &trainer->recipe, 0, 1, 1);
        *rows += (double)sums.rows;
        *spent = seconds_now() - start;
        if (!status && interrupt_pending()) status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was planned");
    }
    return status;
}

int trainer_plan(struct trainer *trainer, double probe_seconds, struct train_plan *out, struct shu_error *err) {
    struct cursor cursor = {trainer->state.epoch, trainer->state.pack};
    const struct recipe *recipe = &trainer->recipe;
    double rows = 0, spent = 0, first_rows, first, per_pack;
    /* The first pass builds the graph and touches its memory: it counts only if nothing else fits the time. */
    int status = trainer_begin(trainer, err);
    if (!status) status = probe(trainer, &cursor, 1e-9, &first_rows, &first, err);
    if (!status && first < probe_seconds) status = probe(trainer, &cursor, probe_seconds - first, &rows, &spent, err);
    if (!status) status = rows_per_pack(trainer, &per_pack, err);
    if (status) return status;
    double rate = rows > 0 ? rows / spent : first_rows / first;
    double tokens = per_pack * (double)recipe->batch * (double)trainer->steps;
    double seconds = (tokens + evaluation_rows(trainer)) / rate, kwh = recipe->watts * seconds / 3.6e6;
    *out = (struct train_plan){.tokens = (int64_t)tokens,
                               .steps = trainer->steps,
                               .parameters = trainer_parameters(trainer),
                               .seconds = seconds,
                               .tokens_per_second = rate,
                               .kwh_estimated = kwh,
                               .money_estimated = kwh * recipe->price_per_kwh,
                               .peak_bytes = rss_peak_bytes()};
    return SHU_OK;
}
