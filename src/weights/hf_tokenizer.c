/* tokenizer.json to GGUF keys.
 *
 * Three kinds of file are met: byte-level BPE (gpt2, llama 3, qwen), BPE over
 * "▁" text with byte fallback (llama 2, mistral, gemma: SentencePiece in other
 * clothes) and Unigram. How text is cut before byte-level BPE is given as a
 * regular expression; ours are state machines, so the expression is recognised
 * by comparison and anything unknown is refused. NFC normalisation is left
 * out, as llama.cpp leaves it out.
 */
#include "weights/hf.h"

#include <string.h>

#define IDS_MAX (1 << 22)

enum tokenizer_kind { KIND_BYTE_LEVEL, KIND_BYTE_FALLBACK, KIND_UNIGRAM };

/* One token on its way from JSON to arrays. */
struct hf_token {
    struct span text; /* NULL: no token has this id */
    float score;
    int32_t type;
};

struct hf_vocab {
    enum tokenizer_kind kind;
    const char *pre; /* KIND_BYTE_LEVEL */
    bool ignore_merges, space_prefix;
    struct hf_token *tokens;
    int64_t count;
};

static int bad(struct shu_error *err, const char *what) {
    return SHU_FAIL(err, SHU_E_FORMAT, "tokenizer.json: %s", what);
}

static int strange(struct shu_error *err, const char *what, const char *found) {
    char shown[64];
    return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tokenizer.json: %s \"%s\" is not supported here", what,
                    name_show(found, strlen(found), shown, sizeof shown));
}

/* ------------------------------------------------------------ pre-tokenizer */

struct known_pattern {
    const char *regex, *pre;
};
static const struct known_pattern known_patterns[] = {
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!"
     "\\S)|\\s+",
     "qwen2"},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+("
     "?!\\S)|\\s+",
     "llama3"},
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2"},
};

static const char *pattern_pre(const char *regex) {
    for (size_t i = 0; i < sizeof known_patterns / sizeof *known_patterns; i++)
        if (strcmp(known_patterns[i].regex, regex) == 0) return known_patterns[i].pre;
    return NULL;
}

/* Members of a Sequence, or the thing itself. */
static size_t steps_of(const json_t *thing, const char *list_key) {
    if (!json_is_object(thing)) return 0;
    return strcmp(hf_text(thing, "type"), "Sequence") == 0 ? json_array_size(json_object_get(thing, list_key)) : 1;
}

static const json_t *step_at(const json_t *thing, const char *list_key, size_t at) {
    return strcmp(hf_text(thing, "type"), "Sequence") == 0 ? json_array_get(json_object_get(thing, list_key), at)
                                                           : thing;
}

static int read_split(const json_t *step, struct hf_vocab *vocab, struct shu_error *err) {
    const char *regex = hf_text(json_object_get(step, "pattern"), "Regex");
    if (strcmp(hf_text(step, "behavior"), "Isolated") != 0 || json_is_true(json_object_get(step, "invert")))
        return strange(err, "Split behaviour", hf_text(step, "behavior"));
    vocab->pre = pattern_pre(regex);
    return vocab->pre ? SHU_OK : strange(err, "the splitting pattern", regex);
}

static int read_byte_level(const json_t *step, struct hf_vocab *vocab, struct shu_error *err) {
    if (json_is_true(json_object_get(step, "add_prefix_space")))
        return strange(err, "ByteLevel with", "add_prefix_space");
    vocab->kind = KIND_BYTE_LEVEL;
    if (!vocab->pre && !json_is_false(json_object_get(step, "use_regex"))) vocab->pre = "gpt-2";
    return SHU_OK;
}

static int read_pre_tokenizer(const json_t *root, struct hf_vocab *vocab, struct shu_error *err) {
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    for (size_t i = 0; i < steps_of(pre, "pretokenizers"); i++) {
        const json_t *step = step_at(pre, "pretokenizers", i);
        const char *type = hf_text(step, "type");
        int status = SHU_OK;
        if (strcmp(type, "ByteLevel") == 0) {
            status = read_byte_level(step, vocab, err);
        } else if (strcmp(type, "Metaspace") == 0) {
            const char *scheme = hf_text(step, "prepend_scheme");
            bool old = !*scheme && !json_is_false(json_object_get(step, "add_prefix_space"));
            vocab->space_prefix = old || (*scheme && strcmp(scheme, "never") != 0);
        } else if (strcmp(type, "Split") == 0) {
            /* Gemma names a split at spaces that its normaliser has already replaced: it never cuts. */
            bool idle = strcmp(hf_text(json_object_get(step, "pattern"), "String"), " ") == 0;
            status = idle ? SHU_OK : read_split(step, vocab, err);
        } else {
            status = strange(err, "pre-tokenizer", type);
        }
        if (status) return status;
    }
    if (vocab->kind == KIND_BYTE_LEVEL && !vocab->pre) return bad(err, "ByteLevel without a splitting pattern");
    if (vocab->kind != KIND_BYTE_LEVEL && vocab->pre) return bad(err, "a splitting pattern without ByteLevel");
    return SHU_OK;
}

static int read_normalizer(const json_t *root, struct hf_vocab *vocab, struct shu_error *err) {
    const json_t *normalizer = json_object_get(root, "normalizer");
    for (size_t i = 0; i < steps_of(normalizer, "normalizers"); i++) {
        const json_t *step = step_at(normalizer, "normalizers", i);
        const char *type = hf_text(step, "type");
        bool byte_level = vocab->kind == KIND_BYTE_LEVEL;
        if (byte_level && strcmp(type, "NFC") == 0) continue;
        if (!byte_level && strcmp(type, "Prepend") == 0)
            vocab->space_prefix = true;
        else if (byte_level || strcmp(type, "Replace") != 0 || strcmp(hf_text(step, "content"), "\xE2\x96\x81") != 0)
            return strange(err, "normalizer", type);
    }
    return SHU_OK;
}

static int read_kind(const json_t *root, const json_t *model, struct hf_vocab *vocab, struct shu_error *err) {
    const char *type = hf_text(model, "type");
    bool fallback = json_is_true(json_object_get(model, "byte_fallback"));
    if (strcmp(type, "Unigram") == 0)
        vocab->kind = KIND_UNIGRAM;
    else if (strcmp(type, "BPE") == 0 || (!*type && json_object_get(model, "merges")))
        vocab->kind = KIND_BYTE_FALLBACK; /* unless the pre-tokenizer turns out to be ByteLevel */
    else
        return strange(err, "model type", type);
    bool bpe = vocab->kind == KIND_BYTE_FALLBACK;
    int status = read_pre_tokenizer(root, vocab, err);
    if (!status) status = read_normalizer(root, vocab, err);
    if (status) return status;
    if (!bpe && vocab->kind == KIND_BYTE_LEVEL) return bad(err, "Unigram over bytes is not supported here");
    if (vocab->kind == KIND_BYTE_FALLBACK && !fallback) return bad(err, "BPE without ByteLevel needs byte_fallback");
    vocab->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    return SHU_OK;
}

/* ------------------------------------------------------------------- tokens */

static int set_token(struct hf_vocab *vocab, json_int_t id, const char *text, size_t bytes, float score, int32_t type,
                     struct shu_error *err) {
    if (id < 0 || id >= vocab->count || bytes > UINT32_MAX) return bad(err, "a token's id is not below vocab_size");
    struct hf_token *token = &vocab->tokens[id];
    if (token->text.text && type == TOKEN_NORMAL) return bad(err, "two tokens share an id");
    *token = (struct hf_token){{text, (uint32_t)bytes}, token->text.text ? token->score : score, type};
    return SHU_OK;
}

static bool is_byte_token(const char *text, size_t bytes) {
    return bytes == 6 && memcmp(text, "<0x", 3) == 0 && text[5] == '>' && strspn(text + 3, "0123456789ABCDEF") == 2;
}

/* BPE: an object text -> id. Tokens that no merge makes rank behind all that one does. */
static int read_bpe_tokens(const json_t *model, struct hf_vocab *vocab, struct shu_error *err) {
    const char *text;
    json_t *id;
    json_t *tokens = json_object_get(model, "vocab");
    if (!json_is_object(tokens)) return bad(err, "model.vocab is no object");
    json_object_foreach(tokens, text, id) {
        int status = json_is_integer(id)
                         ? set_token(vocab, json_integer_value(id), text, strlen(text), -1e9f, TOKEN_NORMAL, err)
                         : bad(err, "a token's id is no number");
        if (status) return status;
    }
    return SHU_OK;
}

/* Unigram: a list of [text, score]. */
static int read_unigram_tokens(const json_t *model, struct hf_vocab *vocab, struct shu_error *err) {
    size_t at;
    json_t *pair;
    const json_t *tokens = json_object_get(model, "vocab");
    if (!json_is_array(tokens)) return bad(err, "model.vocab is no list");
    json_array_foreach(tokens, at, pair) {
        const json_t *text = json_array_get(pair, 0), *score = json_array_get(pair, 1);
        if (!json_is_string(text) || !json_is_number(score)) return bad(err, "a token is no pair of text and score");
        int status = set_token(vocab, (json_int_t)at, json_string_value(text), json_string_length(text),
                               (float)json_number_value(score), TOKEN_NORMAL, err);
        if (status) return status;
    }
    return SHU_OK;
}

static int read_added(const json_t *root, struct hf_vocab *vocab, struct shu_error *err) {
    size_t at;
    json_t *item;
    json_array_foreach(json_object_get(root, "added_tokens"), at, item) {
        const json_t *content = json_object_get(item, "content"), *id = json_object_get(item, "id");
        if (!json_is_string(content) || !json_is_integer(id)) return bad(err, "an added token lacks its id or content");
        /* Some public files name tokens beyond the embedding table; no model can be fed those. */
        if (json_integer_value(id) >= vocab->count) continue;
        int32_t type = json_is_true(json_object_get(item, "special")) ? TOKEN_CONTROL : TOKEN_USER_DEFINED;
        int status = set_token(vocab, json_integer_value(id), json_string_value(content), json_string_length(content),
                               0, type, err);
        if (status) return status;
    }
    return SHU_OK;
}

/* SentencePiece vocabularies know bytes and the unknown token by type. */
static void mark_types(const json_t *model, struct hf_vocab *vocab) {
    const char *unknown = hf_text(model, "unk_token");
    json_int_t unknown_id = json_integer_value(json_object_get(model, "unk_id"));
    for (int64_t i = 0; i < vocab->count && vocab->kind != KIND_BYTE_LEVEL; i++) {
        struct hf_token *token = &vocab->tokens[i];
        if (!token->text.text) continue;
        bool named = *unknown && strlen(unknown) == token->text.bytes &&
                     memcmp(unknown, token->text.text, token->text.bytes) == 0;
        if (named || (vocab->kind == KIND_UNIGRAM && json_object_get(model, "unk_id") && i == unknown_id))
            token->type = TOKEN_UNKNOWN;
        else if (is_byte_token(token->text.text, token->text.bytes))
            token->type = TOKEN_BYTE;
    }
}

/* Room for as many ids as the embedding table has rows. */
static int size_vocab(const json_t *config, struct hf_vocab *vocab, struct shu_error *err) {
    int status = hf_int(config, "vocab_size", -1, 1, IDS_MAX, &vocab->count, err);
    if (status) return status;
    vocab->tokens = mem_calloc((size_t)vocab->count, sizeof *vocab->tokens);
    return vocab->tokens ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the vocabulary");
}

/* ------------------------------------------------------------------- merges */

/* A merge is "left right", or since tokenizers 0.20 ["left", "right"]. */
static int read_merge(const json_t *merge, struct buf *out, size_t *left, struct shu_error *err) {
    const json_t *first = json_array_get(merge, 0), *second = json_array_get(merge, 1);
    buf_clear(out);
    int status;
    if (json_is_string(merge)) {
        const char *space = strchr(json_string_value(merge), ' ');
        if (!space || space == json_string_value(merge) || !space[1]) return bad(err, "a merge is no pair of tokens");
        *left = (size_t)(space - json_string_value(merge));
        status = buf_append(out, json_string_value(merge), json_string_length(merge));
    } else {
        if (!json_is_string(first) || !json_is_string(second)) return bad(err, "a merge is no pair of tokens");
        *left = json_string_length(first);
        status = buf_append(out, json_string_value(first), *left);
        if (!status) status = buf_putc(out, ' ');
        if (!status) status = buf_append(out, json_string_value(second), json_string_length(second));
    }
    return status ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory for merges") : SHU_OK;
}

static int put_merges(const json_t *merges, struct meta_builder *meta, struct shu_error *err) {
    struct buf text = {0};
    size_t at, left;
    json_t *merge;
    int status = SHU_OK;
    meta_put_array(meta, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(merges));
    json_array_foreach(merges, at, merge) {
        status = read_merge(merge, &text, &left, err);
        if (!status && strchr(text.data + left + 1, ' ')) status = bad(err, "a merge holds more than one space");
        if (status) break;
        meta_put_element(meta, text.data, text.len);
    }
    buf_free(&text);
    return status;
}

/* Merge ranks become scores: the earlier the merge that makes a token, the
 * higher its score. For files made from SentencePiece this is its own order. */
static int score_by_merges(const json_t *model, struct hf_vocab *vocab, struct shu_error *err) {
    const json_t *merges = json_object_get(model, "merges"), *tokens = json_object_get(model, "vocab");
    struct buf text = {0};
    size_t at, left;
    json_t *merge;
    int status = SHU_OK;
    json_array_foreach(merges, at, merge) {
        status = read_merge(merge, &text, &left, err);
        if (status) break;
        memmove(text.data + left, text.data + left + 1, text.len - left); /* the NUL moves too */
        const json_t *id = json_object_get(tokens, text.data);
        struct hf_token *token = id ? &vocab->tokens[json_integer_value(id)] : NULL; /* ids were checked */
        if (token && token->score < -(float)at) token->score = -(float)at;
    }
    buf_free(&text);
    return status;
}

/* ------------------------------------------------------------ special tokens */

/* A special token is named by text, or by an object with its content. */
static const char *special_text(const json_t *settings, const char *key) {
    const json_t *value = json_object_get(settings, key);
    return json_is_object(value) ? hf_text(value, "content") : hf_text(settings, key);
}

static int64_t find_token(const struct hf_vocab *vocab, const char *text) {
    size_t bytes = strlen(text);
    for (int64_t i = vocab->count - 1; bytes && i >= 0; i--) { /* special ones lie at the end, mostly */
        const struct span *span = &vocab->tokens[i].text;
        if (span->text && span->bytes == bytes && memcmp(span->text, text, bytes) == 0) return i;
    }
    return -1;
}

/* By tokenizer_config.json, else by the id in config.json (a number or a list of them). */
static int64_t special_id(const struct hf_vocab *vocab, const json_t *settings, const json_t *config,
                          const char *name) {
    char key[32];
    snprintf(key, sizeof key, "%s_token", name);
    int64_t id = find_token(vocab, special_text(settings, key));
    if (id >= 0) return id;
    snprintf(key, sizeof key, "%s_token_id", name);
    const json_t *value = json_object_get(config, key);
    if (json_is_array(value)) value = json_array_get(value, 0);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= vocab->count)
        return -1;
    return json_integer_value(value);
}

/* Does the post-processor put this token before (or after) every text? */
static bool template_adds(const json_t *root, const struct hf_vocab *vocab, int64_t id, bool before) {
    const json_t *post = json_object_get(root, "post_processor");
    for (size_t i = 0; id >= 0 && i < steps_of(post, "processors"); i++) {
        const json_t *single = json_object_get(step_at(post, "processors", i), "single");
        const json_t *edge = json_array_get(single, before ? 0 : json_array_size(single) - 1);
        if (find_token(vocab, hf_text(json_object_get(edge, "SpecialToken"), "id")) == id) return true;
    }
    return false;
}

static void put_specials(const json_t *root, const json_t *settings, const json_t *config, const struct hf_vocab *vocab,
                         struct meta_builder *meta) {
    static const char *const names[4][2] = {{"bos", "tokenizer.ggml.bos_token_id"},
                                            {"eos", "tokenizer.ggml.eos_token_id"},
                                            {"unk", "tokenizer.ggml.unknown_token_id"},
                                            {"pad", "tokenizer.ggml.padding_token_id"}};
    int64_t id[4];
    for (int i = 0; i < 4; i++) {
        id[i] = special_id(vocab, settings, config, names[i][0]);
        if (id[i] >= 0) meta_put_int(meta, names[i][1], id[i]);
    }
    const json_t *bos = json_object_get(settings, "add_bos_token"), *eos = json_object_get(settings, "add_eos_token");
    meta_put_bool(meta, "tokenizer.ggml.add_bos_token",
                  id[0] >= 0 && (json_is_boolean(bos) ? json_is_true(bos) : template_adds(root, vocab, id[0], true)));
    meta_put_bool(meta, "tokenizer.ggml.add_eos_token",
                  id[1] >= 0 && (json_is_boolean(eos) ? json_is_true(eos) : template_adds(root, vocab, id[1], false)));
    meta_put_bool(meta, "tokenizer.ggml.add_space_prefix", vocab->space_prefix);
}

/* ----------------------------------------------------------------- assembly */

/* User-defined tokens of SentencePiece are matched before spaces become "▁": theirs turn back. */
static void put_spaced(struct meta_builder *meta, struct span text) {
    struct buf plain = {0};
    for (uint32_t i = 0; !meta->status && i < text.bytes; i++) {
        bool mark = text.bytes - i >= 3 && memcmp(text.text + i, "\xE2\x96\x81", 3) == 0;
        meta->status = buf_putc(&plain, mark ? ' ' : text.text[i]);
        if (mark) i += 2;
    }
    meta_put_element(meta, plain.data ? plain.data : "", plain.len);
    buf_free(&plain);
}

static void put_tokens(const struct hf_vocab *vocab, struct meta_builder *meta) {
    meta_put_array(meta, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)vocab->count);
    for (int64_t i = 0; i < vocab->count; i++) {
        const struct hf_token *token = &vocab->tokens[i];
        char unused[32];
        if (!token->text.text) {
            int bytes = snprintf(unused, sizeof unused, "[PAD%lld]", (long long)i);
            meta_put_element(meta, unused, (size_t)bytes);
        } else if (token->type == TOKEN_USER_DEFINED && vocab->kind != KIND_BYTE_LEVEL) {
            put_spaced(meta, token->text);
        } else {
            meta_put_element(meta, token->text.text, token->text.bytes);
        }
    }
    meta_put_array(meta, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)vocab->count);
    for (int64_t i = 0; i < vocab->count; i++) {
        int32_t type = vocab->tokens[i].text.text ? vocab->tokens[i].type : TOKEN_UNUSED;
        meta_put_raw(meta, &type, sizeof type);
    }
    if (vocab->kind == KIND_BYTE_LEVEL) return;
    meta_put_array(meta, "tokenizer.ggml.scores", GGUF_F32, (uint64_t)vocab->count);
    for (int64_t i = 0; i < vocab->count; i++) meta_put_raw(meta, &vocab->tokens[i].score, sizeof(float));
}

static void put_kind(const struct hf_vocab *vocab, struct meta_builder *meta) {
    const char *model = vocab->kind == KIND_BYTE_LEVEL ? "gpt2" : vocab->kind == KIND_UNIGRAM ? "t5" : "llama";
    const char *pre = vocab->kind == KIND_BYTE_LEVEL ? vocab->pre : "default";
    meta_put_string(meta, "tokenizer.ggml.model", model, strlen(model));
    meta_put_string(meta, "tokenizer.ggml.pre", pre, strlen(pre));
    if (vocab->kind == KIND_BYTE_LEVEL) meta_put_bool(meta, "shu.tokenizer.ignore_merges", vocab->ignore_merges);
}

int hf_tokenizer(const json_t *root, const json_t *settings, const json_t *config, struct meta_builder *meta,
                 struct shu_error *err) {
    struct hf_vocab vocab = {0};
    const json_t *model = json_object_get(root, "model");
    const json_t *merges = json_object_get(model, "merges");
    int status = read_kind(root, model, &vocab, err);
    if (!status && vocab.kind != KIND_UNIGRAM && !json_array_size(merges))
        status = bad(err, "model.merges is missing or empty");
    if (!status) status = size_vocab(config, &vocab, err);
    if (status) goto out;
    status = vocab.kind == KIND_UNIGRAM ? read_unigram_tokens(model, &vocab, err) : read_bpe_tokens(model, &vocab, err);
    if (!status && vocab.kind == KIND_BYTE_FALLBACK) status = score_by_merges(model, &vocab, err);
    if (!status) status = read_added(root, &vocab, err);
    if (status) goto out;
    mark_types(model, &vocab);
    put_kind(&vocab, meta);
    put_tokens(&vocab, meta);
    if (vocab.kind == KIND_BYTE_LEVEL) status = put_merges(merges, meta, err);
    put_specials(root, settings, config, &vocab, meta);
out:
    mem_free(vocab.tokens);
    return status;
}
