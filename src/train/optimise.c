/* Schedules, gradient norm, AdamW, guard. */
#include "train/optimise.h"

#include <math.h>
#include <string.h>

/* --------------------------------------------------------------- schedule */

double schedule_rate(const struct recipe *recipe, int64_t step, int64_t steps) {
    double high = recipe->learning_rate, low = recipe->min_learning_rate;
    int64_t warmup = (int64_t)ceil(recipe->warmup * (double)steps);
    if (step <= warmup) return high * (double)step / (double)warmup;
    if (recipe->schedule == SCHEDULE_CONSTANT) return high;
    int64_t start = warmup;
    if (recipe->schedule == SCHEDULE_WSD) {
        start = steps - (int64_t)floor(recipe->decay * (double)steps);
        if (start < warmup) start = warmup;
        if (step <= start) return high;
    }
    double done = (double)(step - 1 - start) / (double)(steps - start);
    double share = recipe->schedule == SCHEDULE_WSD ? 1 - sqrt(done) : 0.5 * (1 + cos(acos(-1.0) * done));
    return low + (high - low) * share;
}

/* -------------------------------------------------------------- optimiser */

#define CHUNK ((int64_t)1 << 16)

static int64_t parameter_values(const struct learn_parameter *at) {
    return at->parameter.rows * at->parameter.cols;
}

int optimiser_new(const struct training_kernels *kernels, struct pool *pool, struct learn_parameter *parameters,
                  int count, struct optimiser *out, struct shu_error *err) {
    *out = (struct optimiser){.kernels = kernels, .pool = pool, .parameters = parameters, .count = count};
    int64_t chunks = 0;
    for (int i = 0; i < count; i++) chunks += (parameter_values(&parameters[i]) + CHUNK - 1) / CHUNK;
    out->chunks = mem_calloc((size_t)chunks, sizeof *out->chunks);
    out->partial = mem_calloc((size_t)chunks, sizeof *out->partial);
    if (!out->chunks || !out->partial) {
        optimiser_free(out);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the optimiser");
    }
    for (int i = 0; i < count; i++) {
        int64_t values = parameter_values(&parameters[i]);
        for (int64_t first = 0; first < values; first += CHUNK)
            out->chunks[out->chunk_count++] =
                (struct optimise_chunk){i, first, values - first < CHUNK ? values - first : CHUNK};
    }
    return SHU_OK;
}

void optimiser_free(struct optimiser *optimiser) {
    mem_free(optimiser->chunks);
    mem_free(optimiser->partial);
    *optimiser = (struct optimiser){0};
}

int64_t optimiser_values(const struct optimiser *optimiser) {
    int64_t values = 0;
    for (int i = 0; i < optimiser->count; i++) values += parameter_values(&optimiser->parameters[i]);
    return values;
}

static void square_chunk(void *context, int thread, int64_t tile) {
    const struct optimiser *optimiser = context;
    const struct optimise_chunk *chunk = &optimiser->chunks[tile];
    const float *gradient = optimiser->parameters[chunk->parameter].parameter.gradient + chunk->first;
    (void)thread;
    optimiser->partial[tile] = optimiser->kernels->sum_of_squares(gradient, chunk->count);
}

double optimiser_norm(struct optimiser *optimiser) {
    double sum = 0;
    pool_run(optimiser->pool, square_chunk, optimiser, optimiser->chunk_count);
    for (int64_t i = 0; i < optimiser->chunk_count; i++) sum += optimiser->partial[i];
    return sqrt(sum);
}

struct update {
    const struct optimiser *optimiser;
    struct adamw_args args;
    double weight_decay;
    uint64_t seed;
};

static void update_chunk(void *context, int thread, int64_t tile) {
    const struct update *update = context;
    const struct optimise_chunk *chunk = &update->optimiser->chunks[tile];
    const struct learn_parameter *at = &update->optimiser->parameters[chunk->parameter];
    struct adamw_args args = update->args;
    const float *gradient = at->parameter.gradient + chunk->first;
    (void)thread;
    args.weight_decay = at->decays ? (float)update->weight_decay : 0;
    args.seed = update->seed + (uint64_t)chunk->parameter;
    args.offset = chunk->first;
    if (at->parameter.dtype == DT_BF16)
        update->optimiser->kernels->adamw_bf16(&args, gradient, chunk->count,
                                               (uint16_t *)at->parameter.data + chunk->first,
                                               (uint16_t *)at->m + chunk->first, (uint16_t *)at->v + chunk->first);
    else
        update->optimiser->kernels->adamw_f32(&args, gradient, chunk->count, (float *)at->parameter.data + chunk->first,
                                              (float *)at->m + chunk->first, (float *)at->v + chunk->first);
}

void optimiser_step(struct optimiser *optimiser, const struct recipe *recipe, double rate, double scale,
                    int64_t update) {
    struct rng rng; /* one seed per update, spread over the parameters */
    rng_seed(&rng, recipe->seed ^ (uint64_t)update << 20);
    struct update work = {
        .optimiser = optimiser,
        .args = {.learning_rate = (float)rate,
                 .beta1 = (float)recipe->beta1,
                 .beta2 = (float)recipe->beta2,
                 .eps = (float)recipe->eps,
                 .correction1 = (float)(1 - pow(recipe->beta1, (double)update)),
                 .correction2 = (float)(1 - pow(recipe->beta2, (double)update)),
                 .gradient_scale = (float)scale},
        .weight_decay = recipe->weight_decay,
        .seed = rng_next(&rng),
    };
    pool_run(optimiser->pool, update_chunk, &work, optimiser->chunk_count);
}

/* ------------------------------------------------------------------ guard */

/* Losses fluctuate by this share of themselves even where they hardly seem to: keeps the deviation off zero. */
#define GUARD_FLOOR  0.05
#define GUARD_MEMORY 0.98

bool guard_accepts(struct guard *guard, double spike, double loss, double norm) {
    double deviation = sqrt(guard->variance), floor = GUARD_FLOOR * fabs(guard->mean);
    double limit = guard->mean + spike * (deviation > floor ? deviation : floor);
    bool finite = isfinite(loss) && isfinite(norm);
    if (!finite || (spike > 0 && guard->seen >= GUARD_WARMUP && loss > limit)) {
        guard->skipped++;
        guard->streak++;
        return false;
    }
    guard->streak = 0;
    guard->seen++;
    double keep = 1 - 1 / (double)guard->seen; /* a plain mean at first */
    if (keep > GUARD_MEMORY) keep = GUARD_MEMORY;
    double step = loss - guard->mean;
    guard->mean += (1 - keep) * step;
    guard->variance = keep * (guard->variance + (1 - keep) * step * step);
    return true;
}
