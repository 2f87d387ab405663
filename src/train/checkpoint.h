/* Private to room train: checkpoints, everything a run needs to go on, in one file.
 *
 * All numbers little-endian.
 *
 *     offset  bytes
 *          0      8  magic "SHUTRAIN"
 *          8      4  version, 1
 *         12      4  flags: 1 = weights only (no moments)
 *         16      8  bytes of the identity
 *         24      8  parameters
 *         32    256  struct run_state, zeros behind it
 *        288         identity: JSON {"base", "data", "recipe"}, zeros up to a multiple of 8
 *                    per parameter: u32 dtype, u32 bytes of its name, u64 rows, u64 cols, the name, zeros up to 8
 *                    zeros up to a multiple of 64
 *                    per parameter: values, first moments, second moments, each with zeros up to a multiple of 64
 *  size - 8        8  XXH64 of all bytes before
 *
 * A file is written beside its name, synced and renamed: it is whole or not there. There is no state of a random
 * number generator: what is random follows from the recipe's seed, the step and the place.
 */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include "train/optimise.h"

/* What changes from step to step, beside the weights. */
struct run_state {
    int64_t step, updates; /* done; updates: those the guard let pass */
    int64_t epoch, pack;   /* next pack */
    int64_t tokens;        /* seen */
    struct guard guard;
    double best;          /* lowest held-out loss */
    int64_t best_step;    /* 0 = none */
    int64_t without_gain; /* evaluations since */
    int64_t stopped;      /* early stopping ended the run */
};

struct checkpoint {
    const char *identity; /* canonical JSON */
    struct run_state *state;
    struct learn_parameter *parameters; /* [count] */
    int count;
    bool weights_only;
};
int checkpoint_write(const struct checkpoint *content, const char *path, struct shu_error *err);
/* Fills state and parameters of `content`. SHU_E_FORMAT, SHU_E_CHECKSUM: damaged; SHU_E_UNSUPPORTED: of another run,
 * naming what differs. Only after all checks is anything changed. */
int checkpoint_read(const struct checkpoint *content, const char *path, struct shu_error *err);
/* The same on bytes in memory: for the fuzzer. */
int checkpoint_parse(const struct checkpoint *content, const uint8_t *data, size_t bytes, const char *path,
                     struct shu_error *err);

#define CHECKPOINTS_KEPT 2
/* "checkpoint-STEP.shu" in a folder: steps of the newest, at most `room` of them, newest first; returns how many there
 * are in all, or -1 after an error. */
int checkpoint_list(const char *folder, int64_t *steps, int room, struct shu_error *err);
int checkpoint_path(const char *folder, int64_t step, struct buf *out); /* appended, with its NUL */
/* Deletes all but the newest CHECKPOINTS_KEPT and what crashes left half-written. */
void checkpoint_prune(const char *folder);

#endif
