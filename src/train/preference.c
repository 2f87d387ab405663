/* Direct preference optimisation (Rafailov et al. 2023).
 *
 * A pair's margin is z = beta * ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))), its loss
 * -log sigmoid(z). p0, the base without adapters, does not change: its values are computed once. The gradient of the
 * loss is that of a weighted sum of log-likelihoods, so a forward pass finds the margins and the usual
 * pass then learns with weights +-beta * sigmoid(-z). */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

#include "train/checksum.h"

/* Log-probability of the answer that is sequence i of the rows. */
static double log_probability(const struct rows *rows, const float *nll, int64_t i) {
    double sum = 0;
    for (int64_t g = rows->loss_first[i]; g < rows->loss_first[i + 1]; g++) sum -= (double)nll[g];
    return sum;
}

/* log(1 + e^x) without overflow. */
static double softplus(double x) {
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double sigmoid(double x) {
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

double preference_weight(const struct train_pack *pack) {
    double sum = 0;
    for (int64_t s = 0; s < pack->sequences; s += 2)
        for (int32_t r = pack->first[s]; r < pack->first[s + 1]; r++)
            if (pack->targets[r] >= 0) {
                sum += (double)pack->weight[r];
                break;
            }
    return sum;
}

int preference_margins(struct trainer *trainer, double total, struct sums *sums, struct shu_error *err) {
    const struct rows *rows = &trainer->rows;
    int status = pass_run(trainer, PASS_EVALUATE, 0, err);
    const float *nll = trainer->passes[PASS_EVALUATE].nll;
    for (int64_t s = 0; s < rows->sequences && !status; s += 2) {
        double gain[2];
        for (int k = 0; k < 2; k++)
            gain[k] = log_probability(rows, nll, s + k) - trainer->reference[rows->sequence[s + k]];
        double z = trainer->recipe.dpo_beta * (gain[0] - gain[1]);
        double weight = (double)rows->weight[rows->loss_first[s]] / total;
        trainer->margins[s / 2] = z;
        sums->loss += weight * softplus(-z);
        sums->margin += weight * z;
        sums->accuracy += z > 0 ? weight : 0;
    }
    return status;
}

void preference_weigh(struct trainer *trainer, double total) {
    struct rows *rows = &trainer->rows;
    for (int64_t s = 0; s < rows->sequences; s++) {
        double pair = (double)rows->weight[rows->loss_first[s]] / total;
        double weight = pair * trainer->recipe.dpo_beta * sigmoid(-trainer->margins[s / 2]);
        for (int64_t g = rows->loss_first[s]; g < rows->loss_first[s + 1]; g++)
            rows->weight[g] = (float)(s % 2 ? -weight : weight);
    }
}

/* --------------------------------------------------------------- reference */

/* out_dir/reference.shu: "SHUREFER", 64 digits of the run's base, 64 of its data, f64 per sequence, XXH64. It only
 * saves time: what does not fit is computed again. */
#define REFERENCE_HEAD (8 + 64 + 64)

static int reference_key(const struct trainer *trainer, char out[REFERENCE_HEAD + 1], struct shu_error *err) {
    char base[65];
    int status = adapter_base_fingerprint(trainer->model, base, err);
    if (!status) snprintf(out, REFERENCE_HEAD + 1, "SHUREFER%s%s", base, trainset_key(trainer->set));
    return status;
}

static bool reference_load(const struct trainer *trainer, const char *path, const char *key) {
    size_t bytes = (size_t)trainset_sequences(trainer->set) * sizeof(double);
    struct map map;
    bool fits = false;
    if (map_open(path, &map, NULL)) return false;
    if (map.bytes == REFERENCE_HEAD + bytes + 8 && memcmp(map.data, key, REFERENCE_HEAD) == 0) {
        uint64_t sum = checksum_of(map.data, REFERENCE_HEAD + bytes);
        fits = memcmp(map.data + REFERENCE_HEAD + bytes, &sum, sizeof sum) == 0;
        if (fits) memcpy(trainer->reference, map.data + REFERENCE_HEAD, bytes);
    }
    map_close(&map);
    return fits;
}

static int reference_save(const struct trainer *trainer, const char *path, const char *key, struct shu_error *err) {
    size_t bytes = (size_t)trainset_sequences(trainer->set) * sizeof(double);
    struct atomic_file file;
    struct checksum sum;
    checksum_init(&sum);
    checksum_update(&sum, key, REFERENCE_HEAD);
    checksum_update(&sum, trainer->reference, bytes);
    uint64_t value = checksum_finish(&sum);
    int status = atomic_open(path, &file, err);
    if (status) return status;
    status = atomic_write(&file, key, REFERENCE_HEAD, err);
    if (!status) status = atomic_write(&file, trainer->reference, bytes, err);
    if (!status) status = atomic_write(&file, &value, sizeof value, err);
    return atomic_end(&file, status, err);
}

static int reference_part(struct trainer *trainer, bool held_out, struct progress *progress, struct shu_error *err) {
    struct rows *rows = &trainer->rows;
    int64_t packs = 0;
    int status = trainset_packs(trainer->set, held_out, 0, &packs, err);
    for (int64_t p = 0; p < packs && !status; p++) {
        struct train_pack pack;
        rows_clear(rows);
        status = trainset_pack(trainer->set, held_out, 0, p, &pack, err);
        if (status) break;
        rows_add(rows, &pack);
        status = pass_run(trainer, PASS_REFERENCE, 0, err);
        for (int64_t s = 0; s < rows->sequences && !status; s++)
            trainer->reference[rows->sequence[s]] = log_probability(rows, trainer->passes[PASS_REFERENCE].nll, s);
        progress_update(progress, progress->done + (uint64_t)rows->sequences);
        if (!status && interrupt_pending())
            status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted before the first step");
    }
    return status;
}

int preference_open(struct trainer *trainer, struct shu_error *err) {
    size_t sequences = (size_t)trainset_sequences(trainer->set);
    char key[REFERENCE_HEAD + 1];
    struct buf path = {0};
    struct progress progress;
    trainer->reference = mem_calloc(sequences, sizeof *trainer->reference);
    trainer->margins = mem_calloc((size_t)trainer->rows.max_rows, sizeof *trainer->margins);
    int status = buf_printf(&path, "%s/reference.shu", trainer->out_dir);
    if (status || !trainer->reference || !trainer->margins)
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %zu answers", sequences);
    if (status || trainer->probe) goto out; /* speed does not depend on the values */
    status = reference_key(trainer, key, err);
    if (status || reference_load(trainer, path.data, key)) goto out;
    progress_start(&progress, "reference", "answers", sequences, trainer->quiet);
    status = reference_part(trainer, false, &progress, err);
    if (!status) status = reference_part(trainer, true, &progress, err);
    progress_finish(&progress);
    pass_free(&trainer->passes[PASS_REFERENCE]); /* never needed again */
    if (!status) status = reference_save(trainer, path.data, key, err);
out:
    buf_free(&path);
    return status;
}
