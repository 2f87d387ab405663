/* logits: passes over a row of V logits. Private to room infer.
 *
 * A row may have 262,144 entries, so every pass is written on 4-wide vectors
 * (GCC and clang extensions: SSE2 and NEON are the baseline everywhere) with
 * several independent accumulators. Sums are kept in double per block of 256
 * and reduced in index order: same row, same bits.
 */
#ifndef INFER_LOGITS_H
#define INFER_LOGITS_H

#include <stdint.h>

/* Largest value; NaN if any value is NaN. count 0 gives -infinity. */
float logits_max(const float *x, int count);
/* First index that holds `value`; -1 if none. */
int logits_index_of(const float *x, int count, float value);
/* weight[i] = exp((x[i] - max) * factor), 0 below exp(-87); returns their sum.
 * x[i] <= max, no NaN. weight may be NULL. Relative error below 3e-7. */
double logits_weights(const float *x, int count, float max, float factor, float *weight);
/* log(sum(exp(x))) computed around the maximum; NaN and +infinity spread. */
double logits_log_sum(const float *x, int count);
/* Copies x to out with -infinity where the mask (one bit per entry) is 0. */
void logits_mask(const float *x, const uint64_t *mask, int count, float *out);
/* Ids of the `count` largest, ties to the lower id, as a heap in `ids` (worst first); returns how many
 * there are. Entries of -infinity are never taken. */
int logits_top(const float *x, int vocab, int count, int32_t *ids);
/* Ids, ascending, of the entries that are at least `floor` (above 0); ids has room for `count`. */
int logits_above(const float *x, int count, float floor, int32_t *ids);

#endif
