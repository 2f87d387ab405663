/* From metadata to a tokenizer: names, defaults and limits as in GGUF files of
 * llama.cpp. Token texts stay in the map; four flat arrays are all that is
 * allocated, however large the vocabulary. */
#include "weights/model.h"

#include <string.h>

#define VOCAB_TOKENS_MAX (1 << 22)

/* What a value of tokenizer.ggml.model means, and its defaults where keys are missing. */
struct vocab_kind {
    const char *name;
    enum vocab_model model;
    int32_t bos, eos, unk, pad;
    bool add_bos, add_eos, add_space_prefix;
};
static const struct vocab_kind vocab_kinds[] = {
    {"gpt2", VOCAB_BPE, 11, 11, -1, -1, false, false, false},
    {"llama", VOCAB_SPM, 1, 2, 0, -1, true, false, true},
    {"t5", VOCAB_UNIGRAM, -1, 1, 2, 0, false, true, false},
};

/* Values of tokenizer.ggml.pre whose cutting rule is one of ours. */
struct pre_name {
    const char *name;
    enum pretokenizer pre;
    bool ignore_merges, add_bos;
};
static const struct pre_name pre_names[] = {
    {"qwen2", PRE_QWEN2, false, false},
    {"deepseek-r1-qwen", PRE_QWEN2, false, false},
    {"megrez", PRE_QWEN2, false, false},
    {"stablelm2", PRE_QWEN2, false, false},
    {"hunyuan", PRE_QWEN2, false, false},
    {"solar-open", PRE_QWEN2, false, false},
    {"kormo", PRE_QWEN2, false, false},
    {"f2llmv2", PRE_QWEN2, false, false},
    {"grok-2", PRE_QWEN2, false, false},
    {"llama-bpe", PRE_LLAMA3, true, true},
    {"llama3", PRE_LLAMA3, true, true},
    {"llama-v3", PRE_LLAMA3, true, true},
    {"falcon3", PRE_LLAMA3, true, true},
    {"falcon-h1", PRE_LLAMA3, true, true},
    {"pixtral", PRE_LLAMA3, true, true},
    {"midm-2.0", PRE_LLAMA3, true, true},
    {"lfm2", PRE_LLAMA3, true, true},
    {"dbrx", PRE_LLAMA3, false, false},
    {"smaug-bpe", PRE_LLAMA3, false, false},
    {"gpt-2", PRE_GPT2, false, false},
    {"phi-2", PRE_GPT2, false, false},
    {"jina-es", PRE_GPT2, false, false},
    {"jina-de", PRE_GPT2, false, false},
    {"gigachat", PRE_GPT2, false, false},
    {"a.x-4.0", PRE_GPT2, false, false},
    {"mellum", PRE_GPT2, false, false},
    {"modern-bert", PRE_GPT2, false, false},
    {"exaone4", PRE_GPT2, false, false},
    {"mpt", PRE_GPT2, false, false},
    {"olmo", PRE_GPT2, false, false},
    {"jais", PRE_GPT2, false, false},
    {"trillion", PRE_GPT2, false, false},
    {"granite-docling", PRE_GPT2, false, false},
};

/* Arrays that live only while the tokenizer is built. */
struct vocab_parts {
    struct span *tokens, *merges;
    float *scores;
    int32_t *types;
};

static void parts_free(struct vocab_parts *parts) {
    mem_free(parts->tokens);
    mem_free(parts->merges);
    mem_free(parts->scores);
    mem_free(parts->types);
}

static int vocab_kind_of(const struct model *model, const struct vocab_kind **out, struct shu_error *err) {
    const char *name;
    char shown[64];
    if (!meta_string(model, "tokenizer.ggml.model", &name, NULL))
        return SHU_FAIL(err, SHU_E_FORMAT, "%s has no tokenizer (key tokenizer.ggml.model); use a complete model file",
                        model->path);
    for (size_t i = 0; i < sizeof vocab_kinds / sizeof *vocab_kinds; i++) {
        *out = &vocab_kinds[i];
        if (strcmp(name, vocab_kinds[i].name) == 0) return SHU_OK;
    }
    return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s has tokenizer kind \"%s\"; expected gpt2, llama or t5", model->path,
                    name_show(name, strlen(name), shown, sizeof shown));
}

static int vocab_pre_of(const struct model *model, struct vocab_spec *spec, struct shu_error *err) {
    const char *name;
    char shown[64];
    spec->pre = PRE_NONE;
    if (spec->model != VOCAB_BPE) return SHU_OK;
    if (!meta_string(model, "tokenizer.ggml.pre", &name, NULL))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "%s does not say how its text is cut (key tokenizer.ggml.pre); convert the model again",
                        model->path);
    for (size_t i = 0; i < sizeof pre_names / sizeof *pre_names; i++) {
        if (strcmp(name, pre_names[i].name) != 0) continue;
        spec->pre = pre_names[i].pre;
        spec->ignore_merges = pre_names[i].ignore_merges;
        spec->add_bos = pre_names[i].add_bos;
        return SHU_OK;
    }
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "%s cuts text by the pre-tokenizer \"%s\"; known are the rules of gpt-2, llama-bpe and qwen2",
                    model->path, name_show(name, strlen(name), shown, sizeof shown));
}

/* A special token's id: the key if it names a token, else the default if that does, else none. */
static int32_t special_id(const struct model *model, const char *key, int32_t fallback, int32_t count) {
    int64_t id;
    if (meta_int(model, key, &id) && id >= -1 && id < count) return (int32_t)id;
    return fallback < count ? fallback : -1;
}

static void vocab_flags(const struct model *model, const struct vocab_kind *kind, struct vocab_spec *spec) {
    spec->bos = special_id(model, "tokenizer.ggml.bos_token_id", kind->bos, spec->count);
    spec->eos = special_id(model, "tokenizer.ggml.eos_token_id", kind->eos, spec->count);
    spec->unk = special_id(model, "tokenizer.ggml.unknown_token_id", kind->unk, spec->count);
    spec->pad = special_id(model, "tokenizer.ggml.padding_token_id", kind->pad, spec->count);
    meta_bool(model, "tokenizer.ggml.add_bos_token", &spec->add_bos);
    meta_bool(model, "tokenizer.ggml.add_eos_token", &spec->add_eos);
    meta_bool(model, "tokenizer.ggml.add_space_prefix", &spec->add_space_prefix);
    meta_bool(model, "shu.tokenizer.ignore_merges", &spec->ignore_merges);
}

/* An array key must have one entry a token; a missing optional key leaves *out NULL. */
static int check_count(const struct model *model, const char *key, int64_t found, int64_t count,
                       struct shu_error *err) {
    if (found >= count) return SHU_OK;
    return SHU_FAIL(err, SHU_E_FORMAT, "%s: %s has %lld entries; expected one for each of the %lld tokens", model->path,
                    key, (long long)found, (long long)count);
}

static int read_spans(const struct model *model, const char *key, struct span **out, int32_t *count_out,
                      struct shu_error *err) {
    int64_t count = meta_array_count(model, key);
    if (count < 1 || count > VOCAB_TOKENS_MAX)
        return SHU_FAIL(err, SHU_E_FORMAT, "%s: %s is missing, empty or too large; expected 1…%d strings", model->path,
                        key, VOCAB_TOKENS_MAX);
    *out = mem_alloc((size_t)count * sizeof **out);
    if (!*out) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %s", key);
    if (!meta_array_spans(model, key, *out, count))
        return SHU_FAIL(err, SHU_E_FORMAT, "%s: %s is no array of strings", model->path, key);
    *count_out = (int32_t)count;
    return SHU_OK;
}

static int read_scores(const struct model *model, int32_t count, float **out, struct shu_error *err) {
    static const char key[] = "tokenizer.ggml.scores";
    if (!meta_has(model, key)) return SHU_OK;
    int status = check_count(model, key, meta_array_count(model, key), count, err);
    if (status) return status;
    *out = mem_alloc((size_t)count * sizeof **out);
    if (!*out) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %s", key);
    if (!meta_array_floats(model, key, *out, count))
        return SHU_FAIL(err, SHU_E_FORMAT, "%s: %s is no array of numbers", model->path, key);
    return SHU_OK;
}

static int read_types(const struct model *model, int32_t count, int32_t **out, struct shu_error *err) {
    static const char key[] = "tokenizer.ggml.token_type";
    if (!meta_has(model, key)) return SHU_OK;
    int status = check_count(model, key, meta_array_count(model, key), count, err);
    if (status) return status;
    *out = mem_alloc((size_t)count * sizeof **out);
    if (!*out) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %s", key);
    if (!meta_array_ints(model, key, *out, count))
        return SHU_FAIL(err, SHU_E_FORMAT, "%s: %s is no array of 32-bit integers", model->path, key);
    return SHU_OK;
}

int model_tokenizer(const struct model *model, struct tokenizer **out, struct shu_error *err) {
    struct vocab_parts parts = {0};
    struct vocab_spec spec = {0};
    const struct vocab_kind *kind;
    int status = vocab_kind_of(model, &kind, err);
    if (status) return status;
    spec.model = kind->model;
    spec.add_bos = kind->add_bos;
    spec.add_eos = kind->add_eos;
    spec.add_space_prefix = kind->add_space_prefix;
    if ((status = vocab_pre_of(model, &spec, err)) != 0) goto out;
    if ((status = read_spans(model, "tokenizer.ggml.tokens", &parts.tokens, &spec.count, err)) != 0) goto out;
    if ((status = read_scores(model, spec.count, &parts.scores, err)) != 0) goto out;
    if ((status = read_types(model, spec.count, &parts.types, err)) != 0) goto out;
    if (spec.model == VOCAB_BPE &&
        (status = read_spans(model, "tokenizer.ggml.merges", &parts.merges, &spec.merge_count, err)) != 0)
        goto out;
    vocab_flags(model, kind, &spec);
    spec.tokens = parts.tokens;
    spec.scores = parts.scores;
    spec.types = parts.types;
    spec.merges = parts.merges;
    status = tokenizer_new(&spec, out, err);
    if (status) error_context(err, status, "%s: ", model->path);
out:
    parts_free(&parts);
    return status;
}

const char *model_chat_template(const struct model *model) {
    const char *text;
    return meta_string(model, "tokenizer.chat_template", &text, NULL) ? text : NULL;
}
