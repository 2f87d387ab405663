/* Private to room train: a shard and the packs it is cut into.
 *
 * A unit is what may not be parted: a sequence, or the two answers of a pair. Units of a part (0 = training, 1 =
 * held out) are packed first-fit: in an order that follows seed and epoch (held out: the order of the data), each goes
 * into the first of OPEN_PACKS open packs with room; where none has, the oldest is closed. So any pack can be had from
 * (epoch, index) alone. */
#ifndef TRAIN_TRAINSET_H
#define TRAIN_TRAINSET_H

#include "train/data.h"

struct train_part {
    int64_t *units; /* [unit_count] first sequence of each */
    int64_t unit_count;
    int64_t epoch;   /* that is packed; -1 = none */
    int64_t *order;  /* [unit_count] units in the order of the packs */
    int64_t *starts; /* [pack_count + 1] in order */
    int64_t pack_count;
};

struct trainset {
    struct shard shard;
    uint64_t seed;
    int64_t capacity;   /* rows of a pack */
    int unit_sequences; /* 1, or 2 of a pair */
    struct train_part parts[2];
    /* The pack handed out: [capacity], one block. */
    int32_t *tokens, *targets, *begin, *position, *first;
    float *weight;
    int64_t *sequence;
};
/* Lists the units and allocates the packs; shard and seed are set. */
int trainset_prepare(struct trainset *set, int context, struct shu_error *err);

#endif
