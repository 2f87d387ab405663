/* infer: an engine that holds one model and runs many sequences at once.
 *
 *     engine_open -> sequence_new -> engine_step (any mix of sequences, prefill
 *     and decode rows together) -> logits -> sampler -> engine_step … -> engine_close
 *
 * `generate` is the loop for one sequence that most callers want: chunked
 * prefill, sampling, grammar, stop strings, speculation. An engine is used by
 * one thread at a time; the parallelism is inside engine_step.
 */
#ifndef INFER_H
#define INFER_H

#include "nn/nn.h"

/* ------------------------------------------------------------------ engine */

struct engine_options {
    int threads;          /* 0 = usable cores */
    int context;          /* positions per sequence at most; 0 = min(model's, 4096) */
    int64_t kv_positions; /* positions the cache holds in all; 0 = context */
    enum kv_type kv_type; /* KV_F16 (default) or KV_Q8 */
    int max_sequences;    /* 0 = 1 */
    int max_rows;         /* rows per step at most: the prefill chunk; 0 = 512 */
    int max_logits;       /* rows with logits per step at most; 0 = 64 */
    const char *isa;      /* NULL = SHU_ISA or best */
};
struct engine;
int engine_open(const char *model, const struct engine_options *options, struct engine **out, struct shu_error *err);
void engine_close(struct engine *engine);
const struct decoder_config *engine_config(const struct engine *engine);
const struct tokenizer *engine_tokenizer(const struct engine *engine);
struct tokenizer_work *engine_tokenizer_work(struct engine *engine);
const char *engine_chat_template(const struct engine *engine); /* NULL if the model has none */
int engine_context(const struct engine *engine);
int engine_threads(const struct engine *engine);

/* The numbers that `bench speed` and the ledger report. */
struct engine_stats {
    uint64_t load_ns;
    uint64_t weight_bytes, kv_bytes, activation_bytes;
    uint64_t read_bytes_per_token; /* decoder_read_bytes */
};
void engine_stats(const struct engine *engine, struct engine_stats *out);
void engine_profile(struct engine *engine, bool on);
void engine_profile_read(struct engine *engine, uint64_t ns[OP_KINDS]);

/* --------------------------------------------------------------- sequences */

/* A sequence is a list of positions in the paged cache. Pages are reference
 * counted: a fork shares every full page with its parent. */
int sequence_new(struct engine *engine, int *out, struct shu_error *err); /* SHU_E_RANGE: max_sequences reached */
int sequence_fork(struct engine *engine, int sequence, int *out, struct shu_error *err);
void sequence_free(struct engine *engine, int sequence);
int sequence_length(const struct engine *engine, int sequence);
int sequence_truncate(struct engine *engine, int sequence, int length, struct shu_error *err);
/* Saves and restores cache content and tokens; the file names model and geometry, and is checked. */
int sequence_save(struct engine *engine, int sequence, const char *path, struct shu_error *err);
int sequence_restore(struct engine *engine, int sequence, const char *path, struct shu_error *err);

/* Tokens of one sequence in a step. */
struct step_item {
    int sequence;
    const int32_t *tokens;
    int count;
    int logits; /* how many of the last rows need logits: 0, 1, or up to count */
};
/* Runs all items in one pass and appends them to their sequences; on failure no sequence changes.
 * Logits rows of item i follow those of item i-1: read with engine_logits. SHU_E_RANGE when a
 * sequence would outgrow its context, the cache is full, or the step has too many rows. */
int engine_step(struct engine *engine, const struct step_item *items, int count, struct shu_error *err);
const float *engine_logits(const struct engine *engine, int row); /* [V], valid until the next step */

/* ---------------------------------------------------------------- sampling */

/* The chain, in this order: logit bias by grammar mask, repetition / presence / frequency
 * penalties over the last `penalty_last` tokens, then (temperature 0: take the maximum, lowest
 * id on a tie) or temperature, top-k, top-p, min-p, draw. */
struct sampler_options {
    float temperature;   /* 0 = greedy */
    int top_k;           /* 0 = off */
    float top_p, min_p;  /* 1 and 0 = off */
    float repetition;    /* 1 = off (Keskar et al. 2019) */
    float presence, frequency; /* 0 = off (OpenAI) */
    int penalty_last;    /* tokens looked back; 0 = 64 */
    uint64_t seed;
};
void sampler_defaults(struct sampler_options *options); /* temperature 0.7, top-k 40, top-p 0.9, rest off */
struct sampler;
int sampler_new(const struct sampler_options *options, int vocab, struct sampler **out, struct shu_error *err);
void sampler_free(struct sampler *sampler);
/* mask: one bit per token, NULL = all allowed. Returns the token; logprob (may be NULL) of the
 * token under the unmodified softmax. history: tokens so far, for penalties. -1 if nothing is allowed. */
int32_t sampler_draw(struct sampler *sampler, const float *logits, const uint64_t *mask, const int32_t *history,
                     size_t history_count, float *logprob);
void top_logprobs(const float *logits, int vocab, int count, int32_t *ids, float *logprobs);

/* ---------------------------------------------------------------- grammars */

/* A grammar is compiled once against a tokenizer and shared; a grammar_state
 * walks it. Masks are cached per automaton state. */
struct grammar;
struct grammar_state;
int grammar_from_schema(const json_t *schema, const struct tokenizer *tokenizer, struct grammar **out,
                        struct shu_error *err); /* JSON Schema 2020-12 subset: documented in grammar.h */
int grammar_from_ebnf(const char *source, size_t bytes, const struct tokenizer *tokenizer, struct grammar **out,
                      struct shu_error *err);
void grammar_free(struct grammar *grammar);
int grammar_state_new(const struct grammar *grammar, struct grammar_state **out, struct shu_error *err);
void grammar_state_free(struct grammar_state *state);
void grammar_state_reset(struct grammar_state *state);
/* One bit per token, [(V + 63) / 64]; end tokens are allowed exactly when the text may end here. */
const uint64_t *grammar_mask(struct grammar_state *state);
bool grammar_accept(struct grammar_state *state, int32_t token); /* false: not allowed here; state unchanged */
bool grammar_done(const struct grammar_state *state); /* complete, and nothing more may follow */
/* Copy of a state, for speculation. */
int grammar_state_copy(struct grammar_state *to, const struct grammar_state *from);

/* -------------------------------------------------------------- generation */

struct generate_options {
    int max_tokens;              /* 0 = until end or context */
    struct sampler_options sampler;
    const struct grammar *grammar; /* NULL = none */
    const char *const *stop;     /* [stop_count] strings that end the answer and are not part of it */
    int stop_count;
    int speculate;               /* prompt-lookup draft length at most; 0 = off. Greedy only: same text as without */
    int logprobs;                /* top alternatives reported per token; 0 = none */
    bool ignore_end;             /* benchmarks: go on past end tokens */
};
struct generated_token {
    int32_t id;
    float logprob;
    const char *text; /* whole characters that became final with this token; may be "" */
    size_t bytes;
    int top_count;
    const int32_t *top_ids;
    const float *top_logprobs;
};
/* Called per token; false cancels. */
typedef bool generate_callback(void *context, const struct generated_token *token);
enum finish_reason { FINISH_END, FINISH_STOP, FINISH_LENGTH, FINISH_CONTEXT, FINISH_CANCELLED, FINISH_GRAMMAR };
const char *finish_reason_name(enum finish_reason reason); /* "stop", "length", … as OpenAI names them */
struct generate_result {
    enum finish_reason reason;
    int prompt_tokens, prompt_cached, completion_tokens;
    int draft_tokens, draft_accepted;
    uint64_t prefill_ns, decode_ns, first_token_ns;
};
/* Feeds `prompt` to the sequence (positions it already holds with the same tokens are reused) and
 * answers. The answer's tokens stay in the sequence. */
int generate(struct engine *engine, int sequence, const int32_t *prompt, size_t prompt_count,
             const struct generate_options *options, generate_callback *callback, void *context,
             struct generate_result *out, struct shu_error *err);

#endif
