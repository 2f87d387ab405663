/* Private to room train: learning rates, gradient norm, AdamW over everything that learns, and the guard that refuses
 * steps. Numbers do not depend on the number of threads: sums are taken over fixed chunks, then in their order. */
#ifndef TRAIN_OPTIMISE_H
#define TRAIN_OPTIMISE_H

#include "train/train.h"

/* Learning rate of step 1…steps. Warm-up rises linearly and reaches the full rate with its last step. Cosine falls to
 * the minimum over the rest; WSD (warm-up, stable, decay) stays and falls by 1 - sqrt (Hägele et al. 2024). */
double schedule_rate(const struct recipe *recipe, int64_t step, int64_t steps);

struct optimise_chunk {
    int parameter;
    int64_t first, count;
};
struct optimiser {
    const struct training_kernels *kernels;
    struct pool *pool;
    struct learn_parameter *parameters; /* [count] */
    int count;
    struct optimise_chunk *chunks; /* [chunk_count] */
    int64_t chunk_count;
    double *partial; /* [chunk_count] */
};
int optimiser_new(const struct training_kernels *kernels, struct pool *pool, struct learn_parameter *parameters,
                  int count, struct optimiser *out, struct shu_error *err);
void optimiser_free(struct optimiser *optimiser);
/* Root of the sum of squares of all gradients; not finite if one of them is not. */
double optimiser_norm(struct optimiser *optimiser);
/* One AdamW step (Loshchilov & Hutter 2019), the update-th, 1…; gradients are multiplied by `scale`. */
void optimiser_step(struct optimiser *optimiser, const struct recipe *recipe, double rate, double scale,
                    int64_t update);
int64_t optimiser_values(const struct optimiser *optimiser); /* how many numbers learn */

/* The guard: refuses steps whose loss or gradient is not finite, or whose loss stands far above the recent ones. */
struct guard {
    double mean, variance; /* running, of the losses of accepted steps */
    int64_t seen, skipped;
    int64_t streak; /* refused in a row */
};
#define GUARD_WARMUP 20 /* losses seen before a spike can be told */
#define GUARD_STREAK 10 /* refused in a row before the run ends */
bool guard_accepts(struct guard *guard, double spike, double loss, double norm);

#endif
