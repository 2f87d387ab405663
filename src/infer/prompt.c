/* From messages to prompt tokens, through the model's own chat template.
 *
 * What a user wrote must not become a control token: "<|im_start|>system" in a
 * message is text. Before rendering, a private-use mark is put inside every
 * control token's spelling in every message string; after rendering the text
 * is cut at the marks and the pieces are encoded one by one, so that no piece
 * holds a whole spelling that came from a message. */
#include <string.h>

#include "infer/infer.h"

/* U+F8FF, last of the private-use area: no template and no sane text holds it. */
static const char MARK[] = "\xEF\xA3\xBF";
enum { MARK_BYTES = 3 };

/* Bytes of the longest control token spelled at text; 0 if none. */
static size_t control_at(const struct tokenizer *tokenizer, const char *text, size_t bytes) {
    size_t longest = bytes < 64 ? bytes : 64;
    for (size_t n = longest; n > 1; n--) {
        if (text[n - 1] != '>' && text[n - 1] != ']') continue; /* how every known control token ends */
        int32_t id = tokenizer_find(tokenizer, text, n);
        if (id >= 0 && tokenizer_type(tokenizer, id) == TOKEN_CONTROL) return n;
    }
    return 0;
}

/* Copies text, dropping marks it already held and breaking control tokens. */
static int neutralise(const struct tokenizer *tokenizer, const char *text, size_t bytes, struct buf *out) {
    for (size_t i = 0; i < bytes; i++) {
        if (bytes - i >= MARK_BYTES && memcmp(text + i, MARK, MARK_BYTES) == 0) {
            i += MARK_BYTES - 1;
            continue;
        }
        int status = buf_putc(out, text[i]);
        if (!status && (text[i] == '<' || text[i] == '[') && control_at(tokenizer, text + i, bytes - i))
            status = buf_append(out, MARK, MARK_BYTES);
        if (status) return status;
    }
    return SHU_OK;
}

/* Deep copy of a JSON value with every string neutralised. NULL on failure. */
static json_t *neutral_copy(const struct tokenizer *tokenizer, const json_t *value, int depth) {
    if (depth > 64) return NULL;
    if (json_is_string(value)) {
        struct buf text = {0};
        json_t *copy = NULL;
        if (!neutralise(tokenizer, json_string_value(value), json_string_length(value), &text))
            copy = json_stringn(text.data ? text.data : "", text.len);
        buf_free(&text);
        return copy;
    }
    if (json_is_array(value)) {
        json_t *copy = json_array(), *item;
        size_t i;
        json_array_foreach(value, i,
                           item) if (copy && json_array_append_new(copy, neutral_copy(tokenizer, item, depth + 1))) {
            json_decref(copy);
            copy = NULL;
        }
        return copy;
    }
    if (json_is_object(value)) {
        json_t *copy = json_object(), *item;
        const char *key;
        json_object_foreach((json_t *)(uintptr_t)value, key,
                            item) if (copy &&
                                      json_object_set_new(copy, key, neutral_copy(tokenizer, item, depth + 1))) {
            json_decref(copy);
            copy = NULL;
        }
        return copy;
    }
    return json_deep_copy(value);
}

static int encode_between_marks(struct engine *engine, const char *text, size_t bytes, int flags, struct tokens *out,
                                struct shu_error *err) {
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    struct tokenizer_work *work = engine_tokenizer_work(engine);
    for (;;) {
        const char *mark = memmem(text, bytes, MARK, MARK_BYTES);
        size_t piece = mark ? (size_t)(mark - text) : bytes;
        int status = tokenizer_encode(tokenizer, work, text, piece, flags, out, err);
        if (status || !mark) return status;
        flags &= ~ENCODE_ADD_SPECIAL; /* BOS once, before the first piece */
        text = mark + MARK_BYTES;
        bytes -= piece + MARK_BYTES;
    }
}

static const char *token_text(const struct tokenizer *tokenizer, int32_t id, struct span *hold) {
    *hold = id >= 0 ? tokenizer_piece(tokenizer, id, true) : (struct span){"", 0};
    return hold->text ? hold->text : "";
}

static json_t *template_variables(struct engine *engine, const json_t *messages, const json_t *tools, bool answer) {
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    struct span bos, eos;
    const char *bos_text = token_text(tokenizer, tokenizer_bos(tokenizer), &bos);
    const char *eos_text = token_text(tokenizer, tokenizer_eos(tokenizer), &eos);
    json_t *variables = json_object();
    int failed = json_object_set_new(variables, "messages", neutral_copy(tokenizer, messages, 0)) |
                 json_object_set_new(variables, "add_generation_prompt", json_boolean(answer)) |
                 json_object_set_new(variables, "bos_token", json_stringn(bos_text, bos.bytes)) |
                 json_object_set_new(variables, "eos_token", json_stringn(eos_text, eos.bytes));
    if (tools) failed |= json_object_set_new(variables, "tools", neutral_copy(tokenizer, tools, 0));
    if (!failed) return variables;
    json_decref(variables);
    return NULL;
}

int prompt_from_messages(struct engine *engine, const json_t *messages, const json_t *tools, bool answer,
                         struct tokens *out, struct shu_error *err) {
    const char *source = engine_chat_template(engine);
    if (!source)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "expected a chat model, found one without a chat template; continue plain text with --raw");
    struct template *tpl = NULL;
    struct buf text = {.max = (size_t)64 << 20};
    json_t *variables = template_variables(engine, messages, tools, answer);
    int status =
        variables ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %zu messages", json_array_size(messages));
    if (!status) status = template_new(source, strlen(source), &tpl, err);
    if (!status) status = template_render(tpl, variables, NULL, &text, err);
    if (!status) {
        const struct tokenizer *tokenizer = engine_tokenizer(engine);
        struct span bos;
        token_text(tokenizer, tokenizer_bos(tokenizer), &bos);
        /* A template that writes BOS itself must not get a second one. */
        bool has_bos = bos.bytes && text.len >= bos.bytes && memcmp(text.data, bos.text, bos.bytes) == 0;
        int flags = ENCODE_PARSE_SPECIAL | (has_bos ? 0 : ENCODE_ADD_SPECIAL);
        status = encode_between_marks(engine, text.data ? text.data : "", text.len, flags, out, err);
    }
    template_free(tpl);
    json_decref(variables);
    buf_free(&text);
    return status;
}

int prompt_from_text(struct engine *engine, const char *text, size_t bytes, struct tokens *out, struct shu_error *err) {
    return tokenizer_encode(engine_tokenizer(engine), engine_tokenizer_work(engine), text, bytes, ENCODE_ADD_SPECIAL,
                            out, err);
}
