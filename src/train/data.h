/* Private to room train: from lines of data to sequences of tokens.
 *
 *     source_open -> source_next (a line or document) -> record_read (JSON to one common form)
 *         -> examples_make (chat template, tokens, where the loss is) -> shard
 *
 * A line that cannot be used is no failure of the whole: the functions then return SHU_E_FORMAT or SHU_E_RANGE with
 * the reason, which the caller writes to the rejects. SHU_E_NOMEM ends everything.
 */
#ifndef TRAIN_DATA_H
#define TRAIN_DATA_H

#include "infer/infer.h"
#include "train/shard.h"

/* ---------------------------------------------------------------- sources */

enum source_kind { SOURCE_JSONL, SOURCE_TEXT, SOURCE_SHARD };
struct source {
    struct map map;
    enum source_kind kind;
    size_t at, released;
    int64_t line; /* of the last record, from 1 */
    int64_t next_line;
};
int source_open(const char *path, struct source *out, struct shu_error *err);
void source_close(struct source *source);
/* The next line that is not blank, or the next block of lines between blank ones; false at the end. */
bool source_next(struct source *source, const char **text, size_t *bytes);
/* SHA-256 of the whole file. */
int source_hash(struct source *source, char out[65], struct shu_error *err);

/* ---------------------------------------------------------------- records */

/* One line in its common form. Spans point into `root`. */
struct record {
    json_t *root;              /* owned */
    json_t *messages;          /* owned; [{role, content, …}]; NULL: plain text */
    json_t *rejected;          /* owned; preference only: the other answer after the same prompt */
    size_t answers_from;       /* messages before this one are prompt, also the assistant's */
    const json_t *tools;       /* or NULL */
    struct span prompt, text;  /* messages NULL: text to be learned after prompt, which may be empty */
    struct span rejected_text; /* messages NULL, preference only */
    double weight;
    const json_t *passages; /* array of strings, or NULL */
};
/* chat: there is a template, so prompts and answers in plain words become messages. */
int record_read(const char *line, size_t bytes, bool preference, bool chat, struct record *out, struct shu_error *err);
void record_free(struct record *record);

/* --------------------------------------------------------------- examples */

/* Sequences of one record, ids with SHARD_LOSS, behind each other in `tokens`. */
struct examples {
    struct tokens ids; /* being encoded */
    uint32_t *tokens;  /* [used] */
    size_t used, cap;
    size_t *ends; /* [count] */
    size_t count, ends_cap;
    uint64_t document; /* hash of the content */
    bool cut;          /* it was longer than the context */
};
void examples_clear(struct examples *examples); /* keeps the memory */
void examples_free(struct examples *examples);

struct encoder_options {
    const struct tokenizer *tokenizer;
    struct tokenizer_work *work;
    const struct template *tpl; /* NULL: none */
    int context;
    bool all_tokens, cut;
    bool space_prefix; /* the vocabulary puts a space before every text that it encodes */
};
bool tokenizer_prefixes_space(const struct tokenizer *tokenizer, struct tokenizer_work *work);
/* All sequences of a record; preference: exactly two, chosen and rejected. */
int examples_make(const struct encoder_options *options, const struct record *record, bool preference,
                  struct examples *out, struct shu_error *err);
/* Plain text of any length, cut into sequences of context + 1 tokens that share one token with their neighbour. */
int examples_from_text(const struct encoder_options *options, const char *text, size_t bytes, struct examples *out,
                       struct shu_error *err);

/* Chat: tokens of a conversation with the loss on what the assistant says, appended to `out` as one sequence, or
 * as one per answer where the template renders a turn differently once another follows. */
int chat_encode(const struct encoder_options *options, const json_t *messages, const json_t *tools, size_t answers_from,
                struct examples *out, struct shu_error *err);
/* Ends the sequence whose ids lie in out->ids, `loss` (one byte per id) beside them: trims, checks, appends it. */
int examples_push(const struct encoder_options *options, const uint8_t *loss, struct examples *out,
                  struct shu_error *err);

#endif
