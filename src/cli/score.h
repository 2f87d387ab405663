/* score: teacher-forced passes over a text, for `logits` and `perplexity`.
 *
 * The text's tokens are cut into windows of `context` positions, each run from
 * an empty cache; where the vocabulary begins texts with BOS, the first token
 * of every window is replaced by it. */
#ifndef SCORE_H
#define SCORE_H

#include "cli/cli.h"

/* Logits rows [first, first + rows) of the current window, [rows, V]. Nonzero stops the pass. */
typedef int score_rows(void *context, const int32_t *window, int first, int rows, const float *logits,
                       struct shu_error *err);
struct score_options {
    int window;       /* positions per window; the last one may be shorter when partial is set */
    int first_scored; /* logits of earlier positions of a window are not computed */
    bool partial;
};
int score_text(struct engine *engine, const struct tokens *tokens, const struct score_options *options,
               struct progress *progress, score_rows *rows, void *context, struct shu_error *err);
/* Reads and tokenises a file, BOS where the vocabulary asks. */
int score_read(struct engine *engine, const char *path, struct tokens *out, struct shu_error *err);

#endif
