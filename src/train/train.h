/* train: objectives, data, optimiser, schedules, checkpoints: how a network learns.
 *
 *     recipe (defaults, YAML, options) -> trainset_open (text to shards, once; later runs map them)
 *         -> trainer_open (network as a graph, parameters, optimiser, checkpoint) -> trainer_run … -> trainer_close
 *
 * A step takes `batch` packs of `context` tokens from the set, in an order that follows the seed and the
 * epoch; a pack is several whole sequences behind each other, which do not see one another. The packs of a
 * step are run `micro_batch` at a time; gradients add up, weighted per token, so that the result does not
 * depend on the micro-batch beyond rounding. Everything a run needs to go on is in its checkpoint: after
 * kill -9 it repeats the steps since the last one and, on the same machine, writes the same metrics.
 */
#ifndef TRAIN_H
#define TRAIN_H

#include "nn/nn.h"

/* ------------------------------------------------------------------ recipe */

enum train_method { TRAIN_LORA, TRAIN_FULL, TRAIN_SCRATCH, TRAIN_DPO, TRAIN_METHODS };
enum train_schedule { SCHEDULE_COSINE, SCHEDULE_WSD, SCHEDULE_CONSTANT };

/* Everything a run is told. Zero-filled numbers in YAML are refused where they make no sense; keys are the
 * field names below, grouped as in docs/train.md. */
struct recipe {
    enum train_method method;
    enum gemm_precision precision;
    /* LoRA (Hu et al. 2021; rsLoRA, Kalajdzievski 2023: scale alpha / sqrt(rank)); also of DPO */
    int rank;
    double alpha, dropout;
    bool rank_stabilised;
    unsigned targets; /* DECODER_Q | … */
    /* steps */
    int context, batch, micro_batch;   /* tokens of a pack; packs of a step; packs run at once */
    int64_t steps;                     /* 0: by epochs */
    double epochs;
    enum train_schedule schedule;
    double learning_rate, min_learning_rate; /* min: end of the schedule */
    double warmup, decay;              /* shares of all steps; decay: WSD only */
    double beta1, beta2, eps, weight_decay, clip; /* clip 0 = none; weight_decay: matrices only */
    enum dtype state_type;             /* of weights and moments in full training: F32 | BF16 */
    bool recompute;                    /* keep no activations inside a layer */
    bool all_tokens;                   /* loss on prompts too */
    double dpo_beta;
    /* guards */
    double spike;                      /* a loss above the running mean by this many deviations skips the step; 0 = off */
    int patience;                      /* early stopping: evaluations without gain; 0 = off */
    double held_out;                   /* share of documents kept for evaluation */
    int64_t eval_every, checkpoint_every; /* steps; 0 = only at the end */
    uint64_t seed;
    /* scratch: the network */
    struct decoder_config network;     /* valid only when method is TRAIN_SCRATCH */
};
void recipe_defaults(enum train_method method, struct recipe *out);
/* Lays a YAML file over `recipe`; unknown keys and wrong values name file, line and column. */
int recipe_read(const char *path, struct recipe *recipe, struct shu_error *err);
/* Checks what belongs together; every message names the key. */
int recipe_check(const struct recipe *recipe, struct shu_error *err);
json_t *recipe_to_json(const struct recipe *recipe); /* all keys; NULL without memory */

/* --------------------------------------------------------------------- data */

/* Text to tokens, once: `path` is JSONL (OpenAI "messages", ShareGPT "conversations", "prompt"/"completion", "text",
 * DPO "prompt"/"chosen"/"rejected") or plain text (one document per blank-line separated block), told apart by its
 * first line; or a shard file. The shard is written beside the run and mapped; its key is the hash of data, tokenizer,
 * template and settings, so that an unchanged file is not tokenised again. */
struct trainset;
struct trainset_report {
    int64_t lines, sequences, tokens, loss_tokens, rejected, cut; /* cut: longer than the context, split or refused */
};
struct trainset_options {
    int context;
    bool all_tokens, preference;
    double held_out;
    uint64_t seed;
    const char *template_text; /* chat template or NULL */
    bool quiet;
};
/* Rejected lines go to `<shard>.rejects.jsonl` ({"line", "reason"}) and are counted; SHU_E_FORMAT if none is left. */
int trainset_open(const char *path, const char *shard_path, const struct tokenizer *tokenizer,
                  const struct trainset_options *options, struct trainset **out, struct trainset_report *report,
                  struct shu_error *err);
void trainset_close(struct trainset *set);

/* A pack: rows of tokens ready for the graph. All arrays [rows], borrowed until the next call. */
struct train_pack {
    int64_t rows;
    const int32_t *tokens, *targets; /* targets: the next token of the sequence; -1 where there is no loss */
    const int32_t *begin, *position; /* first row of each row's sequence (from 0 in this pack); place in it */
    const float *weight;             /* of each row's loss; 0 = none */
    const uint64_t *passage;         /* per sequence: see trainset_passages */
};
int64_t trainset_packs(const struct trainset *set, bool held_out);
/* Pack `index` of epoch `epoch` in the order that follows from the seed. */
void trainset_pack(struct trainset *set, bool held_out, int64_t epoch, int64_t index, struct train_pack *out);

/* ------------------------------------------------------------------ training */

struct trainer;
struct trainer_options {
    const char *base;     /* model; NULL for TRAIN_SCRATCH */
    const char *tokenizer; /* TRAIN_SCRATCH: file of `shu tokenizer train` */
    const char *data, *out_dir;
    bool resume, quiet;
    int threads;
};
struct train_metrics {
    int64_t step, steps, tokens;
    double loss, held_out_loss, learning_rate, gradient_norm, tokens_per_second, seconds;
    uint64_t peak_bytes;
    bool skipped; /* the guard refused this step */
};
int trainer_open(const struct recipe *recipe, const struct trainer_options *options, struct trainer **out,
                 struct shu_error *err);
/* One step, its metrics written to metrics.jsonl; checkpoints and evaluations happen when due. *done: it was the last. */
int trainer_step(struct trainer *trainer, struct train_metrics *out, bool *done, struct shu_error *err);
/* What out_dir receives at the end: adapter.gguf + adapter/ (PEFT) or model.gguf, loss.svg, README.md (model card). */
int trainer_finish(struct trainer *trainer, struct shu_error *err);
void trainer_close(struct trainer *trainer);

/* Estimate before starting, from `probe_seconds` of real steps. */
struct train_plan {
    int64_t tokens, steps;
    double seconds, tokens_per_second, kwh_estimated, money_estimated;
    uint64_t peak_bytes;
};
int trainer_plan(struct trainer *trainer, double probe_seconds, struct train_plan *out, struct shu_error *err);

#endif
