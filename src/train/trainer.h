/* Private to room train: what a trainer holds, and its parts by file.
 *
 *     trainer.c      opens everything, checks the run's identity, resumes
 *     folder.c       one run at a time in a folder, and never over its inputs
 *     rows.c         packs to rows of a graph; the graphs ("passes")
 *     step.c         one step: gradients over micro-batches, guard, update; when to evaluate and save
 *     evaluate.c     loss on the held-out part
 *     preference.c   DPO: reference, margins, weights
 *     metrics.c      metrics.jsonl
 *     finish.c       what a finished run leaves; curve.c draws the loss
 *     plan.c         the estimate before starting
 *     bench.c        speed on random tokens
 */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "train/checkpoint.h"
#include "train/trainset.h"

/* -------------------------------------------------------------- rows and passes */

/* Rows of one run of a graph. The loss rows of sequence i are [loss_first[i], loss_first[i + 1]) of gather. */
struct rows {
    int64_t max_rows;
    int64_t rows, gathered, sequences;
    int32_t *tokens, *position, *begin; /* [rows] */
    int32_t *gather, *targets;          /* [gathered] */
    float *weight;                      /* [gathered] */
    int64_t *sequence, *loss_first;     /* [sequences (+ 1)] */
};
int rows_new(int64_t max_rows, struct rows *out, struct shu_error *err);
void rows_free(struct rows *rows);
void rows_clear(struct rows *rows);
void rows_add(struct rows *rows, const struct train_pack *pack); /* they fit: at most max_rows in all */

enum pass_kind { PASS_LEARN, PASS_EVALUATE, PASS_REFERENCE, PASSES };
struct pass {
    struct graph *graph; /* NULL: not needed so far */
    struct learner_nodes nodes;
    float *nll; /* [max_rows] after a run: negative log-likelihood of every loss row */
};

/* Where the next pack comes from. */
struct cursor {
    int64_t epoch, pack;
};

/* What a step or an evaluation adds up. */
struct sums {
    double weight;           /* of all loss rows, or pairs */
    double loss;             /* weighted */
    double margin, accuracy; /* weighted; pairs only */
    int64_t rows, loss_rows;
    double nats, bytes; /* over loss rows, unweighted: bits per byte */
};

/* -------------------------------------------------------------------- trainer */

struct trainer {
    struct recipe recipe;
    char *base, *tokenizer_path, *data, *out_dir;
    bool quiet, probe, begun;
    const struct train_reduce *reduce;

    struct model *model; /* the base, or what the tokenizer came from */
    struct tokenizer *tokenizer;
    uint8_t *token_bytes; /* [vocabulary] of each token's text, at most 255 */
    struct trainset *set;
    struct trainset_report report;
    const struct kernels *kernels;
    struct pool *pool;
    struct learner *learner;
    struct optimiser optimiser;

    int64_t steps;
    struct run_state state;
    char *identity;
    struct rows rows;
    struct pass passes[PASSES];
    double *reference; /* [sequences] log-probability of every answer under the base; pairs only */
    double *margins;   /* [pairs of a micro-batch] */

    int metrics_fd; /* -1 = none */
    int lock_fd;    /* of the folder; -1 = none */
    bool has_run;   /* the folder holds checkpoints */
    struct progress progress;
    char label[64];
};

double seconds_now(void);
/* trainer.c: what happens once before the first step: the reference of DPO, the first evaluation. */
int trainer_begin(struct trainer *trainer, struct shu_error *err);
/* trainer.c: pool, kernels, network and optimiser of the recipe; the model (or tokenizer) is open. */
int trainer_learner(struct trainer *trainer, int threads, struct shu_error *err);

/* rows.c: runs a graph over trainer->rows, building it when first needed. */
int pass_run(struct trainer *trainer, enum pass_kind kind, uint64_t dropout_seed, struct shu_error *err);
void pass_free(struct pass *pass);
/* The pack under the cursor, which moves on. */
int cursor_take(struct trainer *trainer, struct cursor *cursor, struct train_pack *out, struct shu_error *err);

/* folder.c */
/* Refuses inputs (NULL entries are skipped) that a run in `folder` would write over. */
int folder_check_inputs(const char *folder, const char *const *inputs, int count, struct shu_error *err);
/* Refuses a folder that holds files of a run's names without being a run's. */
int folder_check_foreign(const char *folder, struct shu_error *err);
/* One run at a time: the lock lasts until *fd is closed. SHU_E_USAGE: another run holds it. */
int folder_lock(const char *folder, int *fd, struct shu_error *err);

/* step.c: gradients of one step from `cursor` on, which moves behind it; `limit_s` > 0 stops early, for the plan. */
int step_gradients(struct trainer *trainer, struct cursor *cursor, struct sums *out, double limit_s,
                   struct shu_error *err);

/* evaluate.c */
int evaluate(struct trainer *trainer, struct sums *out, struct shu_error *err); /* weight 0: nothing is held out */

/* preference.c: all take the pairs in trainer->rows. */
int preference_open(struct trainer *trainer, struct shu_error *err); /* log-probabilities of the base, once */
double preference_weight(const struct train_pack *pack);             /* pairs, weighted */
/* Margins of the rows' pairs under the present weights, added to `sums` over `total`. */
int preference_margins(struct trainer *trainer, double total, struct sums *sums, struct shu_error *err);
/* Turns margins into the weights of the rows' losses. */
void preference_weigh(struct trainer *trainer, double total);

/* metrics.c */
int metrics_open(struct trainer *trainer, struct shu_error *err); /* cuts the file back to state.step */
int metrics_write(struct trainer *trainer, const struct train_metrics *metrics, const struct sums *sums,
                  const struct sums *held_out, struct shu_error *err);
void metrics_close(struct trainer *trainer);
int metrics_sync(struct trainer *trainer, struct shu_error *err);
/* One line of the file, for the curve and the card. */
struct metrics_point {
    int64_t step;
    double loss, held_out, bits_per_byte, margin, accuracy; /* NAN: not in this line */
};
/* All points of a folder's metrics.jsonl; the caller frees them. */
int metrics_read(const char *folder, struct metrics_point **out, int64_t *count, struct shu_error *err);

/* curve.c: the loss as a picture, appended to `out`. */
int curve_svg(const struct metrics_point *points, int64_t count, const char *title, struct buf *out);

#endif
