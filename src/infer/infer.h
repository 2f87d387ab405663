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

/* A low-rank adapter beside the model: a GGUF file or a PEFT folder (weights/adapter.h). */
struct engine_adapter {
    const char *path;
    float weight; /* multiplies what the adapter adds; 0 leaves it out */
};
struct engine_options {
    int threads;                           /* 0 = usable cores */
    int context;                           /* positions per sequence at most; 0 = min(model's, 4096) */
    int64_t kv_positions;                  /* positions the cache holds in all; 0 = context */
    enum kv_type kv_type;                  /* KV_F16 (default) or KV_Q8 */
    int max_sequences;                     /* 0 = 1; at most 4096 */
    int max_rows;                          /* rows per step at most: the prefill chunk; 0 = 512; at most 65536 */
    int max_logits;                        /* rows with logits per step at most; 0 = 64; cut to max_rows */
    const char *isa;                       /* NULL = SHU_ISA or best */
    const struct engine_adapter *adapters; /* [adapter_count]; all of them act on every sequence */
    int adapter_count;                     /* at most ENGINE_MAX_ADAPTERS */
};
#define ENGINE_MAX_ADAPTERS 64
struct engine;
/* Opens a model by store name or path and prepares everything a step needs: packed weights,
 * tokenizer, planned graph, KV cache. options NULL = all defaults. The cache's memory becomes
 * resident only as positions are used. SHU_E_RANGE: an option outside its limits, or a context
 * larger than the model was trained for. SHU_E_UNSUPPORTED names an adapter and the model where they do not
 * belong together. Whatever room weights or nn report passes through. */
int engine_open(const char *model, const struct engine_options *options, struct engine **out, struct shu_error *err);
void engine_close(struct engine *engine); /* NULL is a no-op */
const struct decoder_config *engine_config(const struct engine *engine);
const struct tokenizer *engine_tokenizer(const struct engine *engine);
struct tokenizer_work *engine_tokenizer_work(struct engine *engine);
const char *engine_chat_template(const struct engine *engine); /* NULL if the model has none */
int engine_context(const struct engine *engine);
int engine_threads(const struct engine *engine);
int engine_max_rows(const struct engine *engine);
int engine_max_logits(const struct engine *engine);
/* Tokens that can be appended to this sequence now: the least of what its context and the free
 * pages of the cache allow (a shared last page must be copied first, which takes a page). */
int engine_room(const struct engine *engine, int sequence);

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

/* A sequence is a list of tokens with their positions in the paged cache, named by a small
 * number. Pages are reference counted: a fork shares all pages with its parent; whoever first
 * writes into a shared last page gets a copy of it. Numbers are reused after sequence_free. */
int sequence_new(struct engine *engine, int *out, struct shu_error *err); /* SHU_E_RANGE: max_sequences reached */
int sequence_fork(struct engine *engine, int sequence, int *out, struct shu_error *err);
void sequence_free(struct engine *engine, int sequence);                   /* a number that is not in use is a no-op */
int sequence_length(const struct engine *engine, int sequence);            /* 0 if not in use */
const int32_t *sequence_tokens(const struct engine *engine, int sequence); /* [length]; NULL if not in use */
/* Forgets all positions from `length` on. SHU_E_RANGE if the sequence is shorter. */
int sequence_truncate(struct engine *engine, int sequence, int length, struct shu_error *err);
/* Writes cache content and tokens to a file (format: infer/state.c), whole or not at all. */
int sequence_save(struct engine *engine, int sequence, const char *path, struct shu_error *err);
/* Replaces a sequence by a saved one. The continuation is bit-identical to that of the saved
 * sequence. SHU_E_UNSUPPORTED: written by another model or cache geometry; SHU_E_FORMAT and
 * SHU_E_CHECKSUM: not a state file, or damaged; SHU_E_RANGE: does not fit here. On any failure
 * the sequence stays as it was. */
int sequence_restore(struct engine *engine, int sequence, const char *path, struct shu_error *err);

/* Tokens of one sequence in a step. */
struct step_item {
    int sequence;
    const int32_t *tokens; /* [count], each 0…V-1 */
    int count;             /* 1 or more */
    int logits;            /* how many of the last rows need logits: 0…count */
};
/* Runs all items in one pass and appends them to their sequences; on failure no sequence changes.
 * Each sequence may occur once. Logits rows of item i follow those of item i-1: read with
 * engine_logits. SHU_E_RANGE when a sequence would outgrow its context, the cache is full, or the
 * step has too many rows; SHU_E_USAGE for a token or a sequence that does not exist. Allocates nothing. */
int engine_step(struct engine *engine, const struct step_item *items, int count, struct shu_error *err);
/* [V], valid until the next step; NULL if the last step had no such row. */
const float *engine_logits(const struct engine *engine, int row);

/* ---------------------------------------------------------------- sampling */

/* The chain, in this order:
 *   1. tokens outside the mask are dropped;
 *   2. penalties over the last `penalty_last` tokens of the history: a token seen there has its
 *      logit divided by `repetition` if positive, else multiplied (Keskar et al. 2019), then
 *      lowered by `presence` + count * `frequency` (OpenAI);
 *   3. temperature 0: the largest logit, the lowest id on a tie, and nothing further;
 *      else logits are divided by the temperature;
 *   4. top-k: the k largest, lower ids first on a tie;
 *   5. top-p: the smallest set of most probable tokens (probability over what step 4 left) whose
 *      sum reaches p; the token that crosses p is in, at least one stays (Holtzman et al. 2020);
 *   6. min-p: tokens whose probability is at least min_p times the largest;
 *   7. one draw by the remaining probabilities, walking ids upwards, from the sampler's own
 *      generator: exactly one number per token, so equal seeds give equal text. */
struct sampler_options {
    float temperature;         /* 0 = greedy */
    int top_k;                 /* 0 = off */
    float top_p, min_p;        /* 1 and 0 = off */
    float repetition;          /* 1 = off (Keskar et al. 2019) */
    float presence, frequency; /* 0 = off (OpenAI) */
    int penalty_last;          /* tokens looked back; 0 = 64; at most 65536 */
    uint64_t seed;
};
void sampler_defaults(struct sampler_options *options); /* temperature 0.7, top-k 40, top-p 0.9, rest off */
void sampler_greedy(struct sampler_options *options);   /* temperature 0, everything off */
struct sampler;
/* SHU_E_USAGE names the option that is outside its limits. Holds 12 bytes per vocabulary entry. */
int sampler_new(const struct sampler_options *options, int vocab, struct sampler **out, struct shu_error *err);
void sampler_free(struct sampler *sampler); /* NULL is a no-op */
/* mask: one bit per token, NULL = all allowed. history: tokens so far, oldest first, for
 * penalties. logprob (may be NULL) is that of the token under the unmodified softmax; asking for it
 * costs one more pass. SHU_E_NOTFOUND: the mask allows nothing. SHU_E_RANGE: a logit that counts is
 * NaN or +infinity. Allocates nothing. */
int sampler_draw(struct sampler *sampler, const float *logits, const uint64_t *mask, const int32_t *history,
                 size_t history_count, int32_t *out, float *logprob, struct shu_error *err);
/* The `count` most probable tokens, best first (lower id on a tie), with their log probabilities
 * under the unmodified softmax. Places beyond the vocabulary get id -1. */
void top_logprobs(const float *logits, int vocab, int count, int32_t *ids, float *logprobs);
/* Natural log of the softmax of one token, 0…vocab-1. Not finite if a logit is NaN or +infinity. */
double token_logprob(const float *logits, int vocab, int32_t token);

/* ---------------------------------------------------------------- grammars */

/* A grammar is compiled once against a tokenizer, which must outlive it, and is shared: any number of states on any
 * threads walk it at once. Masks are made when first needed and kept, within a limit of memory. One state
 * belongs to one thread at a time and must be freed before its grammar. */
struct grammar;
struct grammar_state;
/* JSON Schema 2020-12, the subset that grammar.h lists. SHU_E_UNSUPPORTED and SHU_E_FORMAT name the JSON pointer of
 * what is refused; SHU_E_RANGE: too large to compile. */
int grammar_from_schema(const json_t *schema, const struct tokenizer *tokenizer, struct grammar **out,
                        struct shu_error *err);
/* EBNF, the form that grammar.h describes; the text is one "root". SHU_E_FORMAT names line and column. */
int grammar_from_ebnf(const char *source, size_t bytes, const struct tokenizer *tokenizer, struct grammar **out,
                      struct shu_error *err);
void grammar_free(struct grammar *grammar); /* NULL is a no-op */
/* A state at the beginning of the text. */
int grammar_state_new(const struct grammar *grammar, struct grammar_state **out, struct shu_error *err);
void grammar_state_free(struct grammar_state *state);  /* NULL is a no-op */
void grammar_state_reset(struct grammar_state *state); /* back to the beginning, for the next text */
/* One bit per token, [(V + 63) / 64]; end tokens are allowed exactly when the text may end here. Valid
 * until the next call with this state. */
const uint64_t *grammar_mask(struct grammar_state *state);
bool grammar_accept(struct grammar_state *state, int32_t token); /* false: not allowed here; state unchanged */
bool grammar_done(const struct grammar_state *state);            /* complete, and nothing more may follow */
/* Puts `to` where `from` is, to run ahead of it. SHU_E_USAGE: states of two grammars. */
int grammar_state_copy(struct grammar_state *to, const struct grammar_state *from);

/* ----------------------------------------------------------------- prompts */

/* messages: [{role, content, …}]; tools may be NULL; answer: the prompt ends where the assistant
 * begins. Rendered by the model's chat template; control tokens spelled out inside messages stay
 * text, the noncharacter U+FDD0 is dropped. SHU_E_UNSUPPORTED if the model has no template. Appends to out. */
int prompt_from_messages(struct engine *engine, const json_t *messages, const json_t *tools, bool answer,
                         struct tokens *out, struct shu_error *err);
/* Its two halves, for whoever has no engine or needs the text between (room train). render appends the text, a mark
 * (U+FDD0) inside every control token that a message spells; encode cuts there, and may be given the text in
 * several slices. begins: the slice is the first one and gets BOS where the vocabulary asks. */
int prompt_render(const struct tokenizer *tokenizer, const struct template *tpl, const json_t *messages,
                  const json_t *tools, bool answer, struct buf *out, struct shu_error *err);
int prompt_encode(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                  bool begins, struct tokens *out, struct shu_error *err);
/* Plain text to be continued, with BOS where the vocabulary asks; nothing in it is special. */
int prompt_from_text(struct engine *engine, const char *text, size_t bytes, struct tokens *out, struct shu_error *err);

/* -------------------------------------------------------------- generation */

struct generate_options {
    int max_tokens; /* 0 = until end or context */
    struct sampler_options sampler;
    const struct grammar *grammar; /* NULL = none */
    const char *const *stop;       /* [stop_count] strings that end the answer and are not part of it */
    int stop_count;                /* 0…GENERATE_MAX_STOP */
    int speculate;                 /* prompt-lookup draft length at most, 0 = off: same text as without */
    bool logprobs;                 /* report the log probability of every token */
    int top_logprobs;              /* alternatives reported per token; 0…GENERATE_MAX_TOP */
    bool ignore_end;               /* benchmarks: go on past end tokens */
};
#define GENERATE_MAX_STOP  16
#define GENERATE_MAX_TOP   20
#define GENERATE_SPECULATE 16 /* a good draft length for most machines */
/* Greedy, no limit, nothing else on. */
void generate_defaults(struct generate_options *options);

struct generated_token {
    int32_t id;       /* -1: no token, only text that the end of the answer made final */
    float logprob;    /* valid with options.logprobs or options.top_logprobs */
    const char *text; /* whole characters that became final with this token; may be "" */
    size_t bytes;
    int top_count;
    const int32_t *top_ids;
    const float *top_logprobs;
};
/* Called for every token of the answer, the end token excepted, and a last time with id -1 if text
 * was held back that turned out to be no stop string. Pointers are valid during the call. False cancels. */
typedef bool generate_callback(void *context, const struct generated_token *token);
enum finish_reason { FINISH_END, FINISH_STOP, FINISH_LENGTH, FINISH_CONTEXT, FINISH_CANCELLED, FINISH_GRAMMAR };
const char *finish_reason_name(enum finish_reason reason); /* "stop", "length" as OpenAI names them; "cancelled" */
struct generate_result {
    enum finish_reason reason;
    int prompt_tokens, prompt_cached; /* cached: positions the sequence already held */
    int completion_tokens;            /* reported to the callback; the end token does not count */
    int draft_tokens, draft_accepted;
    uint64_t prefill_ns, decode_ns, first_token_ns; /* all from the start of the prompt */
};
/* Feeds `prompt`, the whole text from position 0, to the sequence (positions it already holds with
 * the same tokens are reused, the rest is replaced) and answers. Afterwards the sequence holds the
 * prompt and the answer, except the answer's last token, which was never fed. callback may be NULL.
 * SHU_E_RANGE: the prompt does not fit the context. Stops with FINISH_CANCELLED when
 * interrupt_pending() or the callback says so. */
int generate(struct engine *engine, int sequence, const int32_t *prompt, size_t prompt_count,
             const struct generate_options *options, generate_callback *callback, void *context,
             struct generate_result *out, struct shu_error *err);

/* The same in steps, for a scheduler that puts many answers into one engine_step:
 *     generation_new; while (!generation_done) { generation_next -> engine_step -> generation_take }
 * The engine must not truncate or step the sequence in between. `options` and what it points
 * to are borrowed until generation_free; the prompt is copied. */
struct generation;
int generation_new(struct engine *engine, int sequence, const int32_t *prompt, size_t prompt_count,
                   const struct generate_options *options, generate_callback *callback, void *context,
                   struct generation **out, struct shu_error *err);
void generation_free(struct generation *generation); /* NULL is a no-op */
bool generation_done(const struct generation *generation);
/* What the sequence wants to run next: a piece of the prompt, or one token and its draft, at most max_rows
 * rows (1 or more) of which max_logits (1 or more) may have logits. May find that the context is
 * exhausted: then generation_done, and false. */
bool generation_next(struct generation *generation, int max_rows, int max_logits, struct step_item *out);
/* Takes the results of the step that ran `generation_next`'s item; its logits rows start at first_row. */
int generation_take(struct generation *generation, int first_row, struct shu_error *err);
void generation_cancel(struct generation *generation);
void generation_result(const struct generation *generation, struct generate_result *out);

#endif
