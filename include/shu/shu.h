/* Shu inside another program: open a model, let it answer, close it.
 *
 *     struct shu_error err = {0};
 *     struct shu_engine *engine;
 *     if (shu_engine_open("qwen2.5-coder-0.5b-instruct", NULL, &engine, &err)) …
 *     shu_chat(engine, "[{\"role\":\"user\",\"content\":\"你好\"}]", NULL, on_text, NULL, NULL, &err);
 *     shu_engine_close(engine);
 *
 * An engine holds one model and one conversation: what a prompt has in common
 * with the one before is not computed again. Engines share nothing, so each
 * thread may have its own; one engine is used by one thread at a time and runs
 * its own threads inside a call. All text is UTF-8; generated text arrives in
 * whole characters. Link with build/release/libshu_rooms.a, with what `pkg-config --libs jansson libfyaml
 * libsodium libarchive libcurl` prints, and with -lpthread -lm.
 */
#ifndef SHU_SHU_H
#define SHU_SHU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shu/error.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHU_API __attribute__((visibility("default")))

/* ------------------------------------------------------------------ engine */

struct shu_engine;

/* A zeroed struct asks for all defaults. */
struct shu_engine_options {
    int threads;   /* 0 = one per usable core */
    int context;   /* tokens of prompt and answer at most; 0 = the model's, at most 4096 */
    bool small_kv; /* 8-bit instead of 16-bit cache: half the memory, slightly less exact */
};

/* Opens a model by the name of a pulled model, the path of a GGUF file, or that of a Hugging Face folder.
 * options NULL = defaults. On success the caller owns *out. SHU_E_NOTFOUND, SHU_E_IO, SHU_E_FORMAT and
 * SHU_E_UNSUPPORTED name what is wrong with the model, SHU_E_RANGE an option, SHU_E_NOMEM memory. */
SHU_API int shu_engine_open(const char *model, const struct shu_engine_options *options, struct shu_engine **out,
                            struct shu_error *err);
/* NULL is a no-op. */
SHU_API void shu_engine_close(struct shu_engine *engine);
SHU_API int shu_engine_context(const struct shu_engine *engine);

/* ------------------------------------------------------------------ tokens */

/* Token ids of text, the model's begin-of-text token included. Writes at most `capacity` ids and the full
 * number to *count: call with capacity 0 (out may be NULL) to learn it. */
SHU_API int shu_tokenize(struct shu_engine *engine, const char *text, size_t bytes, int32_t *out, size_t capacity,
                         size_t *count, struct shu_error *err);

/* -------------------------------------------------------------- generation */

/* A zeroed struct is greedy without limits other than the context. */
struct shu_generate_options {
    int max_tokens;     /* 0 = until the model ends or the context is full */
    float temperature;  /* 0 = always the most probable token */
    int top_k;          /* 0 = off */
    float top_p;        /* 0 or 1 = off */
    float min_p;        /* 0 = off */
    uint64_t seed;      /* same seed, prompt and options: same text */
    const char *stop;   /* text that ends the answer and is not part of it; NULL = none */
    const char *schema; /* JSON Schema (JSON text) that the answer will satisfy; NULL = none */
};

/* Receives the answer piece by piece: whole characters, not NUL-terminated, valid during the call. False stops. */
typedef bool shu_text_callback(void *context, const char *text, size_t bytes);

struct shu_generate_result {
    int prompt_tokens, cached_tokens; /* cached: of the prompt, not computed again */
    int completion_tokens;
    const char *finish_reason; /* "stop", "length" or "cancelled"; static storage */
    double first_token_ms, total_ms;
};

/* Continues plain text. options, callback and out may be NULL. SHU_E_RANGE: the prompt does not fit the context;
 * SHU_E_USAGE names an option outside its limits. */
SHU_API int shu_generate(struct shu_engine *engine, const char *prompt, size_t bytes,
                         const struct shu_generate_options *options, shu_text_callback *callback, void *context,
                         struct shu_generate_result *out, struct shu_error *err);
/* Answers a conversation through the model's own chat template. messages: a JSON array of {"role", "content"}
 * objects. What messages say never becomes a control token. SHU_E_UNSUPPORTED: the model has no template. */
SHU_API int shu_chat(struct shu_engine *engine, const char *messages, const struct shu_generate_options *options,
                     shu_text_callback *callback, void *context, struct shu_generate_result *out,
                     struct shu_error *err);

#ifdef __cplusplus
}
#endif
#endif
