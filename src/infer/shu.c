/* The embedder's face: room infer in a few calls. */
#include "shu/shu.h"

#include <string.h>

#include "infer/infer.h"

struct shu_engine {
    struct engine *engine;
    int sequence;
};

int shu_engine_open(const char *model, const struct shu_engine_options *options, struct shu_engine **out,
                    struct shu_error *err) {
    struct engine_options inner = {0};
    if (options) {
        inner.threads = options->threads;
        inner.context = options->context;
        inner.kv_type = options->small_kv ? KV_Q8 : KV_F16;
    }
    struct shu_engine *engine = mem_calloc(1, sizeof *engine);
    if (!engine) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for an engine");
    int status = engine_open(model, &inner, &engine->engine, err);
    if (!status) status = sequence_new(engine->engine, &engine->sequence, err);
    if (status) {
        shu_engine_close(engine);
        return status;
    }
    *out = engine;
    return SHU_OK;
}

void shu_engine_close(struct shu_engine *engine) {
    if (!engine) return;
    engine_close(engine->engine);
    mem_free(engine);
}

int shu_engine_context(const struct shu_engine *engine) {
    return engine_context(engine->engine);
}

int shu_tokenize(struct shu_engine *engine, const char *text, size_t bytes, int32_t *out, size_t capacity,
                 size_t *count, struct shu_error *err) {
    struct tokens tokens = {0};
    int status = prompt_from_text(engine->engine, text, bytes, &tokens, err);
    if (!status) {
        size_t copied = tokens.count < capacity ? tokens.count : capacity;
        if (copied) memcpy(out, tokens.id, copied * sizeof *out);
        *count = tokens.count;
    }
    tokens_free(&tokens);
    return status;
}

/* -------------------------------------------------------------- generation */

struct relay {
    shu_text_callback *callback;
    void *context;
};

static bool relay_text(void *context, const struct generated_token *token) {
    const struct relay *relay = context;
    return token->bytes == 0 || relay->callback(relay->context, token->text, token->bytes);
}

static int schema_compile(struct engine *engine, const char *schema, struct grammar **out, struct shu_error *err) {
    json_t *json;
    int status = json_parse(schema, strlen(schema), "schema", &json, err);
    if (status) return status;
    status = grammar_from_schema(json, engine_tokenizer(engine), out, err);
    json_decref(json);
    return status;
}

static void options_translate(const struct shu_generate_options *from, struct generate_options *to) {
    generate_defaults(to);
    to->speculate = GENERATE_SPECULATE;
    if (!from) return;
    to->max_tokens = from->max_tokens;
    to->sampler.temperature = from->temperature;
    to->sampler.top_k = from->top_k;
    to->sampler.top_p = from->top_p == 0 ? 1 : from->top_p;
    to->sampler.min_p = from->min_p;
    to->sampler.seed = from->seed;
    to->stop = &from->stop;
    to->stop_count = from->stop != NULL;
}

static int answer(struct shu_engine *engine, const struct tokens *prompt, const struct shu_generate_options *options,
                  const struct relay *relay, struct shu_generate_result *out, struct shu_error *err) {
    struct generate_options inner;
    struct generate_result result = {0};
    struct grammar *grammar = NULL;
    int status = SHU_OK;
    options_translate(options, &inner);
    if (options && options->schema) status = schema_compile(engine->engine, options->schema, &grammar, err);
    inner.grammar = grammar;
    struct relay copy = *relay;
    if (!status)
        status = generate(engine->engine, engine->sequence, prompt->id, prompt->count, &inner,
                          relay->callback ? relay_text : NULL, &copy, &result, err);
    grammar_free(grammar);
    if (status || !out) return status;
    *out = (struct shu_generate_result){.prompt_tokens = result.prompt_tokens,
                                        .cached_tokens = result.prompt_cached,
                                        .completion_tokens = result.completion_tokens,
                                        .finish_reason = finish_reason_name(result.reason),
                                        .first_token_ms = (double)result.first_token_ns * 1e-6,
                                        .total_ms = (double)(result.prefill_ns + result.decode_ns) * 1e-6};
    return SHU_OK;
}

int shu_generate(struct shu_engine *engine, const char *prompt, size_t bytes,
                 const struct shu_generate_options *options, shu_text_callback *callback, void *context,
                 struct shu_generate_result *out, struct shu_error *err) {
    struct tokens tokens = {0};
    struct relay relay = {callback, context};
    int status = prompt_from_text(engine->engine, prompt, bytes, &tokens, err);
    if (!status) status = answer(engine, &tokens, options, &relay, out, err);
    tokens_free(&tokens);
    return status;
}

int shu_chat(struct shu_engine *engine, const char *messages, const struct shu_generate_options *options,
             shu_text_callback *callback, void *context, struct shu_generate_result *out, struct shu_error *err) {
    struct tokens tokens = {0};
    struct relay relay = {callback, context};
    json_t *json;
    int status = json_parse(messages, strlen(messages), "messages", &json, err);
    if (status) return status;
    if (!json_is_array(json)) status = SHU_FAIL(err, SHU_E_USAGE, "messages must be a JSON array of {role, content}");
    if (!status) status = prompt_from_messages(engine->engine, json, NULL, true, &tokens, err);
    if (!status) status = answer(engine, &tokens, options, &relay, out, err);
    json_decref(json);
    tokens_free(&tokens);
    return status;
}
