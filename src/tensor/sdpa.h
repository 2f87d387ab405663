/* Private to room tensor: which keys a row sees, and the memory of one unit of attention (training.h).
 *
 * Keys and queries of a sequence are taken in blocks of SDPA_BLOCK, counted from the sequence's first row: the order
 * of every sum then depends on the sequence alone, whatever rows a unit covers and wherever the sequence lies. */
#ifndef TENSOR_SDPA_H
#define TENSOR_SDPA_H

#include "tensor/tensor.h"

#define SDPA_BLOCK 64

struct sdpa_range {
    int64_t first, last; /* [first, last) */
};

static inline struct sdpa_range sdpa_sequence(const struct sdpa_args *args, int64_t row) {
    struct sdpa_range range = {args->begin[row], row + 1};
    int64_t beyond = args->rows; /* begin does not descend: halve what may still belong to the sequence */
    while (range.last < beyond) {
        int64_t middle = range.last + (beyond - range.last) / 2;
        if (args->begin[middle] == args->begin[row])
            range.last = middle + 1;
        else
            beyond = middle;
    }
    return range;
}

/* Keys that `row` of `sequence` sees. */
static inline struct sdpa_range sdpa_keys(const struct sdpa_args *args, struct sdpa_range sequence, int64_t row) {
    struct sdpa_range keys = {sequence.first, args->causal ? row + 1 : sequence.last};
    if (args->window > 0) {
        if (keys.first < row - args->window + 1) keys.first = row - args->window + 1;
        if (keys.last > row + args->window) keys.last = row + args->window;
    }
    return keys;
}

/* Rows of `sequence` that see `key`. */
static inline struct sdpa_range sdpa_queries(const struct sdpa_args *args, struct sdpa_range sequence, int64_t key) {
    struct sdpa_range rows = {args->causal ? key : sequence.first, sequence.last};
    if (args->window > 0) {
        if (rows.first < key - args->window + 1) rows.first = key - args->window + 1;
        if (rows.last > key + args->window) rows.last = key + args->window;
    }
    return rows;
}

/* First row of the block that holds `row`. */
static inline int64_t sdpa_block_start(struct sdpa_range sequence, int64_t row) {
    return row - (row - sequence.first) % SDPA_BLOCK;
}

/* Parts of a thread's scratch memory. Panels: SDPA_BLOCK rows of head_dim values, or their transpose, rounded up to
 * whole panels of 16 columns. */
struct sdpa_scratch {
    float *panels[4];
    float *score, *d_score; /* [SDPA_ROWS, SDPA_BLOCK] */
    float *max, *sum;       /* [group, SDPA_ROWS]: running maximum and sum; backward: log-sum-exp and delta */
};

/* Lays the parts out in `memory` (may be NULL: sizes only); returns the bytes. */
static inline size_t sdpa_scratch_plan(void *memory, int head_dim, int group, struct sdpa_scratch *out) {
    size_t panel = SDPA_BLOCK * (((size_t)head_dim + 15) / 16 * 16), tile = SDPA_ROWS * SDPA_BLOCK;
    size_t state = (size_t)group * SDPA_ROWS, at = 0;
    float *base = memory;
#define SDPA_PLACE(part, count) (out->part = base ? base + at : NULL, at += (count))
    for (int i = 0; i < 4; i++) SDPA_PLACE(panels[i], panel);
    SDPA_PLACE(score, tile);
    SDPA_PLACE(d_score, tile);
    SDPA_PLACE(max, state);
    SDPA_PLACE(sum, state);
#undef SDPA_PLACE
    return at * sizeof(float);
}

#endif
