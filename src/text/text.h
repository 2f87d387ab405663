/* text: from bytes to tokens and back, and from messages to a prompt.
 *
 * A tokenizer is built from a `struct vocab_spec` (filled by room weights from
 * a GGUF or a tokenizer.json), is immutable afterwards and may be used from any
 * number of threads; what a thread needs to keep (caches, heaps) lives in a
 * `struct tokenizer_work` of its own. Text is bytes: invalid UTF-8 and control
 * bytes survive encode + decode unchanged for byte-level and byte-fallback
 * vocabularies.
 */
#ifndef TEXT_H
#define TEXT_H

#include "base/base.h"

/* ------------------------------------------------------------- vocabulary */

enum vocab_model { VOCAB_BPE, VOCAB_SPM, VOCAB_UNIGRAM };

/* Numbers as in GGUF. */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
};

/* Pre-tokenizers: how text is cut before byte-level BPE. */
enum pretokenizer { PRE_GPT2, PRE_LLAMA3, PRE_QWEN2, PRE_NONE };

struct span {
    const char *text; /* not NUL-terminated */
    uint32_t bytes;
};

/* What a tokenizer is built from. All memory borrowed until tokenizer_new returns. */
struct vocab_spec {
    enum vocab_model model;
    enum pretokenizer pre;
    int32_t count;
    const struct span *tokens; /* [count] as stored: GPT-2 byte alphabet for VOCAB_BPE, "▁" for spaces else */
    const float *scores;       /* [count] or NULL (SPM, UNIGRAM) */
    const int32_t *types;      /* [count] or NULL = all normal; enum token_type */
    const struct span *merges; /* [merge_count] "left right" in rank order (VOCAB_BPE) */
    int32_t merge_count;
    int32_t bos, eos, unk, pad; /* -1 = none */
    bool add_bos, add_eos, add_space_prefix;
    bool ignore_merges; /* llama 3: a whole pre-token that is in the vocabulary is one token */
};

struct tokenizer;
struct tokenizer_work; /* per thread: caches and scratch */

/* SHU_E_FORMAT names what is wrong with the vocabulary (ids out of range, two tokens of one text, a merge of unknown
 * parts), SHU_E_RANGE one that is too large. */
int tokenizer_new(const struct vocab_spec *spec, struct tokenizer **out, struct shu_error *err);
void tokenizer_free(struct tokenizer *tokenizer); /* NULL is a no-op */
/* About 2 MiB, of use with this tokenizer only; one a thread. Free it before the tokenizer. */
int tokenizer_work_new(const struct tokenizer *tokenizer, struct tokenizer_work **out, struct shu_error *err);
void tokenizer_work_free(struct tokenizer_work *work); /* NULL is a no-op */

/* Growable token list. A zeroed struct is empty. */
struct tokens {
    int32_t *id;
    size_t count, cap;
};
int tokens_push(struct tokens *tokens, int32_t id); /* SHU_E_NOMEM */
void tokens_free(struct tokens *tokens);

enum encode_flags {
    ENCODE_ADD_SPECIAL = 1,  /* BOS/EOS as the vocabulary asks */
    ENCODE_PARSE_SPECIAL = 2 /* "<|im_start|>" in the text becomes its control token */
};
/* Appends the tokens of text to `out`. Same ids as llama.cpp's tokenizer. SHU_E_RANGE above 1 GiB of text,
 * SHU_E_NOMEM; `out` may then hold part of the tokens. */
int tokenizer_encode(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                     int flags, struct tokens *out, struct shu_error *err);

/* Bytes of one token ("" for control tokens unless with_special). The span is
 * valid as long as the tokenizer. Out-of-range ids give an empty span. */
struct span tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, bool with_special);
/* All tokens to bytes, appended. Drops the one leading space that add_space_prefix put there. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool with_special,
                     struct buf *out);
/* Id of a token by its exact stored text ("<|im_end|>"); -1 if none. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text, size_t bytes);
int32_t tokenizer_count(const struct tokenizer *tokenizer);
int32_t tokenizer_bos(const struct tokenizer *tokenizer); /* -1 = none */
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
/* True for every token that ends a turn: EOS, EOT, <|im_end|>, <end_of_turn>, <|eot_id|> and friends. */
bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id);
enum token_type tokenizer_type(const struct tokenizer *tokenizer, int32_t id);

/* Streaming detokenizer: bytes come out only in whole UTF-8 characters; what
 * can never become valid comes out as U+FFFD. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    char held[16];
    int held_bytes;
    bool started; /* false until the first token: leading-space rule */
};
void detokenizer_init(struct detokenizer *state, const struct tokenizer *tokenizer);
int detokenizer_push(struct detokenizer *state, int32_t id, struct buf *out); /* appends; control tokens give nothing */
int detokenizer_finish(struct detokenizer *state, struct buf *out);           /* half a character left = U+FFFD */

#include "text/train_bpe.h"

/* ---------------------------------------------------------- chat templates */

/* A sandboxed interpreter of the Jinja subset that public chat templates use.
 * Values are jansson trees. No file access, no attribute reaches the host;
 * steps, output and nesting are limited. Semantics follow jinja2 as Hugging
 * Face sets it up: trim_blocks, lstrip_blocks, tojson without ASCII escapes,
 * strftime_now, raise_exception, loop controls. */
struct template_limits {
    uint64_t max_steps;      /* evaluated nodes; 0 = 10 million */
    size_t max_output_bytes; /* 0 = 16 MiB */
};
struct template;
/* Parses. Syntax errors name line and column. */
int template_new(const char *source, size_t bytes, struct template **out, struct shu_error *err);
void template_free(struct template *tpl); /* NULL is a no-op */
/* Renders with the given top-level variables (an object: messages, tools,
 * add_generation_prompt, bos_token, eos_token, …), appended to out.
 * raise_exception(…) in the template becomes SHU_E_USAGE with its message. */
int template_render(const struct template *tpl, const json_t *variables, const struct template_limits *limits,
                    struct buf *out, struct shu_error *err);
/* Fixed clock for strftime_now in tests: seconds since the epoch, UTC; 0 = real local time. */
void template_set_time(struct template *tpl, int64_t epoch_seconds);

#endif
