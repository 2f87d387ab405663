/* train: objectives, data, optimiser, schedules, checkpoints: how a network learns.
 *
 *     recipe (defaults, YAML, options) -> trainset_open (text to shards, once; later runs map them)
 *         -> trainer_open (network as a graph, parameters, optimiser, checkpoint) -> trainer_step …
 *         -> trainer_finish -> trainer_close
 *
 * A step takes `batch` packs of `context` tokens from the set, in an order that follows the seed and the
 * epoch; a pack is several whole sequences behind each other, which do not see one another. The packs of a
 * step are run `micro_batch` at a time; gradients add up, weighted per token, so that without dropout the result
 * does not depend on the micro-batch beyond rounding. Everything a run needs to go on is in its checkpoint: after
 * kill -9 it repeats the steps since the last one and, on the same machine, writes the same metrics.
 *
 * Preference tuning (DPO, Rafailov et al. 2023) trains adapters on pairs of answers: a pack then holds whole
 * pairs, both answers of one prompt side by side, in up to 2 * `context` tokens.
 */
#ifndef TRAIN_H
#define TRAIN_H

#include "nn/nn.h"

/* ------------------------------------------------------------------ recipe */

enum train_method { TRAIN_LORA, TRAIN_FULL, TRAIN_SCRATCH, TRAIN_DPO, TRAIN_METHODS };
enum train_schedule { SCHEDULE_COSINE, SCHEDULE_WSD, SCHEDULE_CONSTANT };

/* Everything a run is told. Keys of YAML are the field names below (docs/train.md describes them all). */
struct recipe {
    enum train_method method;
    enum gemm_precision precision;
    /* LoRA (Hu et al. 2021; rsLoRA, Kalajdzievski 2023: scale alpha / sqrt(rank)); also of DPO */
    int rank;
    double alpha, dropout;
    bool rank_stabilised;
    unsigned targets; /* DECODER_Q | … */
    /* steps */
    int context, batch, micro_batch; /* tokens of a pack; packs of a step; packs run at once */
    int64_t steps;                   /* 0: by epochs */
    double epochs;
    enum train_schedule schedule;
    double learning_rate, min_learning_rate;      /* min: end of the schedule */
    double warmup, decay;                         /* shares of all steps; decay: WSD only */
    double beta1, beta2, eps, weight_decay, clip; /* clip 0 = none; weight_decay: matrices only */
    enum dtype state_type;                        /* of weights and moments in full training: F32 | BF16 */
    bool recompute;                               /* keep no activations inside a layer */
    bool all_tokens;                              /* loss on prompts too */
    bool cut;                                     /* conversations longer than the context are cut, not refused */
    double dpo_beta;
    /* guards */
    double spike;    /* a loss above the running mean by this many deviations skips the step; 0 = off */
    int patience;    /* early stopping: evaluations without gain; 0 = off */
    double held_out; /* share of documents kept for evaluation */
    int64_t eval_every, checkpoint_every; /* steps; 0 = only at the end */
    uint64_t seed;
    double watts, price_per_kwh; /* assumed, for the plan's estimate */
    /* scratch: the network */
    struct decoder_config network; /* valid only when method is TRAIN_SCRATCH; vocab comes from the tokenizer */
};
void recipe_defaults(enum train_method method, struct recipe *out);
const char *train_method_name(enum train_method method);          /* "lora" */
bool train_method_find(const char *name, enum train_method *out); /* false: no such method */
/* Lays a YAML file over `recipe`; unknown keys and wrong values name file, line and column. A "method"
 * in it first sets the defaults of that method. */
int recipe_read(const char *path, struct recipe *recipe, struct shu_error *err);
/* The same for YAML text in memory, of which the mapping at `under` ("train"; "" = the whole) is the recipe. */
int recipe_read_text(const char *text, size_t bytes, const char *name, const char *under, struct recipe *recipe,
                     struct shu_error *err);
/* One key from the command line, its value spelled as in YAML; messages begin with `shown`, the option ("--lr"). */
int recipe_set(struct recipe *recipe, const char *key, const char *value, const char *shown, struct shu_error *err);
/* Checks what belongs together; every message names the key. */
int recipe_check(const struct recipe *recipe, struct shu_error *err);
json_t *recipe_to_json(const struct recipe *recipe); /* all keys that count for its method; NULL without memory */

/* --------------------------------------------------------------------- data */

/* Text to tokens, once: `path` is JSONL (OpenAI "messages", ShareGPT "conversations", "prompt"/"completion", "text",
 * DPO "prompt"/"chosen"/"rejected") or plain text (one document per blank-line separated block), told apart by its
 * first line; or a shard file (train/shard.h). The shard is written to shard_path and mapped; its key is the hash of
 * data, tokenizer, template and settings, so that an unchanged file is not tokenised again. The data is mapped and
 * read once from front to back; pages behind are given back. */
struct trainset;
struct trainset_report {
    int64_t lines, sequences, held_out, tokens, loss_tokens, rejected; /* lines: documents of plain text */
    int64_t cut; /* documents longer than the context that were split or cut */
    bool reused; /* the shard was there already */
};
struct trainset_options {
    int context;
    bool all_tokens, preference, cut;
    double
        held_out; /* which documents: by the hash of their content or first passage, so that no copy is on both sides */
    uint64_t seed;
    const char *template_text; /* chat template or NULL */
    bool quiet;
    bool keep; /* a shard that is there is that of a run: refuse to replace it */
};
/* Rejected lines go to `<shard>.rejects.jsonl` ({"line", "reason"}) and are counted; SHU_E_FORMAT, with the first
 * reason, if none is left. SHU_E_CANCELLED on interrupt. The tokenizer is not needed afterwards. */
int trainset_open(const char *path, const char *shard_path, const struct tokenizer *tokenizer,
                  const struct trainset_options *options, struct trainset **out, struct trainset_report *report,
                  struct shu_error *err);
void trainset_close(struct trainset *set);              /* NULL is a no-op */
const char *trainset_key(const struct trainset *set);   /* 64 hexadecimal digits: the content and how it was made */
int64_t trainset_sequences(const struct trainset *set); /* of both parts */
int64_t trainset_pack_rows(const struct trainset *set); /* rows of a pack at most */

/* A pack: rows of tokens ready for the graph. All arrays borrowed until the next call. The last token of a sequence
 * is only a target and has no row; nor has what follows the last token with a loss. */
struct train_pack {
    int64_t rows, sequences;
    const int32_t *tokens, *targets; /* [rows]; targets: the next token of the sequence; -1 where there is no loss */
    const int32_t *begin, *position; /* [rows] first row of each row's sequence (from 0 in this pack); place in it */
    const float *weight;             /* [rows] of each row's loss; 0 = none */
    const int64_t *sequence;         /* [sequences] their numbers in the set; pairs: chosen, rejected, chosen, … */
    const int32_t *first;            /* [sequences + 1] first row of each; the last is `rows` */
};
/* Packs of an epoch; the held-out part has the same in every epoch. Epochs are packed when they are asked for and
 * one of each part is kept: go through them in order. SHU_E_NOMEM. */
int trainset_packs(struct trainset *set, bool held_out, int64_t epoch, int64_t *out, struct shu_error *err);
/* Pack `index` of epoch `epoch` in the order that follows from the seed; index is below trainset_packs. */
int trainset_pack(struct trainset *set, bool held_out, int64_t epoch, int64_t index, struct train_pack *out,
                  struct shu_error *err);
/* Where a sequence comes from: line (or document) of the data, from 1, and the passages its record named. */
int64_t trainset_line(const struct trainset *set, int64_t sequence);
int trainset_passage_count(const struct trainset *set, int64_t sequence);
struct span trainset_passage(const struct trainset *set, int64_t sequence, int index);

/* ------------------------------------------------------------------ training */

/* Seam for data-parallel training: called twice a step with a flat list of numbers, which it replaces by their sums
 * over all ranks: once before the first pass with the step's loss weights and counts (doubles), once after the last
 * with all gradients (floats, parameter by parameter in the order of learner_parameters). Rank r takes the packs
 * r, r + ranks, … of every step. Every rank must end with the same bits. */
struct train_span {
    float *values;   /* gradients; NULL where … */
    double *doubles; /* … these are the numbers */
    int64_t count;
};
struct train_reduce {
    int rank, ranks;
    int (*sum)(void *context, const struct train_span *spans, int count, struct shu_error *err);
    void *context;
};

struct trainer;
struct trainer_options {
    const char *base;      /* model; NULL for TRAIN_SCRATCH */
    const char *tokenizer; /* TRAIN_SCRATCH: file of `shu tokenizer train`, or any model */
    const char *data, *out_dir;
    const char *config; /* the recipe's file, or NULL: only looked at so that it is not written over */
    bool resume, quiet;
    bool probe;                        /* for trainer_plan: leaves nothing behind */
    int threads;                       /* 0 = usable cores */
    const struct train_reduce *reduce; /* NULL = alone */
};
struct train_metrics {
    int64_t step, steps, tokens; /* tokens: rows of this step */
    double loss;                 /* mean over the step's loss tokens; DPO: over its pairs */
    double held_out_loss;        /* NAN: not evaluated after this step */
    double margin, accuracy;     /* DPO only: mean of beta times the margin; share of pairs above 0 */
    double held_out_margin, held_out_accuracy;
    double learning_rate, gradient_norm, tokens_per_second, seconds; /* seconds: of this step */
    uint64_t peak_bytes;
    bool skipped; /* the guard refused this step */
};
/* Everything up to the first step: afterwards trainer_data tells what will be learned from, before any time is spent
 * on it. Without `resume`, out_dir must hold no checkpoints. With it, the newest whole one is taken (none: the start),
 * after it was checked against base, data and recipe; metrics.jsonl is cut back to its step. */
int trainer_open(const struct recipe *recipe, const struct trainer_options *options, struct trainer **out,
                 struct shu_error *err);
const struct trainset_report *trainer_data(const struct trainer *trainer);
int64_t trainer_at(const struct trainer *trainer);         /* steps done */
int64_t trainer_steps(const struct trainer *trainer);      /* steps in all */
int64_t trainer_parameters(const struct trainer *trainer); /* numbers that learn */
bool trainer_done(const struct trainer *trainer);          /* all steps, or early stopping */
/* One step, its metrics written to metrics.jsonl; checkpoints and evaluations happen when due. The first call also
 * evaluates the base (and, for DPO, computes the reference). *done: it was the
 * last. SHU_E_RANGE: the guard refused too many steps in a row. A step that failed may not be repeated. */
int trainer_step(struct trainer *trainer, struct train_metrics *out, bool *done, struct shu_error *err);
int trainer_checkpoint(struct trainer *trainer, struct shu_error *err); /* now; for an interrupt */
/* What out_dir receives at the end: adapter.gguf + adapter/ (PEFT) or model.gguf, loss.svg, README.md (model card).
 * With `patience`, the weights are those of the best evaluation. */
int trainer_finish(struct trainer *trainer, struct shu_error *err);
void trainer_close(struct trainer *trainer); /* NULL is a no-op */

/* Estimate before starting, from `probe_seconds` of real steps; the trainer was opened with `probe` and is of no other
 * use afterwards. Energy is an estimate: the recipe's watts over the time. */
struct train_plan {
    int64_t tokens, steps, parameters;
    double seconds, tokens_per_second, kwh_estimated, money_estimated;
    uint64_t peak_bytes;
};
int trainer_plan(struct trainer *trainer, double probe_seconds, struct train_plan *out, struct shu_error *err);

/* Speed of training steps on random tokens, for `shu bench train`: `batch` sequences of `context` tokens run at once,
 * the last `loss_share` of each with a loss; clipping and the optimiser are part of a step. The first step is not
 * counted. */
struct train_bench_options {
    const char *model;
    struct recipe
        recipe; /* method LoRA or full; batch, context, precision, state_type, recompute and the adapter count */
    double loss_share;
    int steps, threads; /* counted steps, at most TRAIN_BENCH_STEPS; threads 0 = usable cores */
};
#define TRAIN_BENCH_STEPS 64
struct train_bench {
    double tokens_per_second; /* median */
    double rates[TRAIN_BENCH_STEPS];
    double loss; /* of the last step */
    uint64_t peak_bytes;
};
int train_bench(const struct train_bench_options *options, struct train_bench *out, struct shu_error *err);

#endif
