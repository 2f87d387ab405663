/* The loss on the held-out part. */
#include "train/trainer.h"

#include <math.h>

/* Adds up what the rows' losses say. */
static void add_losses(const struct trainer *trainer, struct sums *out) {
    const struct rows *rows = &trainer->rows;
    const float *nll = trainer->passes[PASS_EVALUATE].nll;
    for (int64_t g = 0; g < rows->gathered; g++) {
        out->weight += (double)rows->weight[g];
        out->loss += (double)rows->weight[g] * (double)nll[g];
        out->nats += (double)nll[g];
        out->bytes += trainer->token_bytes[rows->targets[g]];
    }
}

static int evaluate_rows(struct trainer *trainer, struct sums *out, struct shu_error *err) {
    if (trainer->recipe.method == TRAIN_DPO) return preference_margins(trainer, 1, out, err);
    int status = pass_run(trainer, PASS_EVALUATE, 0, err);
    if (!status) add_losses(trainer, out);
    return status;
}

int evaluate(struct trainer *trainer, struct sums *out, struct shu_error *err) {
    struct rows *rows = &trainer->rows;
    int64_t packs = 0, micro = trainer->recipe.micro_batch;
    *out = (struct sums){0};
    int status = trainset_packs(trainer->set, true, 0, &packs, err);
    for (int64_t p = 0; p < packs && !status;) {
        struct train_pack pack;
        rows_clear(rows);
        for (int64_t i = 0; i < micro && p < packs && !status; i++, p++) {
            status = trainset_pack(trainer->set, true, 0, p, &pack, err);
            if (status) break;
            rows_add(rows, &pack);
            if (trainer->recipe.method == TRAIN_DPO) out->weight += preference_weight(&pack);
        }
        if (!status) status = evaluate_rows(trainer, out, err);
        out->rows += rows->rows;
        out->loss_rows += rows->gathered;
        if (!status && interrupt_pending() && trainer->state.step == 0)
            status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted before the first step");
    }
    if (!status && out->weight > 0) {
        out->loss /= out->weight;
        out->margin /= out->weight;
        out->accuracy /= out->weight;
    }
    return status;
}
