/* From messages to prompt tokens, through the model's own chat template.
 *
 * What a user wrote must not become a control token: "<|im_start|>system" in a
 * message is text. Before rendering, a mark is put inside every control token's
 * spelling in every string that comes with the messages; after rendering the
 * text is cut at the marks and the pieces are encoded one by one, so that no
 * piece holds a whole spelling that came from a message. */
#include <string.h>

#include "infer/infer.h"

/* U+FDD0, a noncharacter: Unicode keeps it for use inside programs. One that a message holds is a cut like the
 * others and vanishes; it must not be taken out earlier, as what it parts could then join to a control token. */
static const char MARK[] = "\xEF\xB7\x90";
enum { MARK_BYTES = 3, CONTROL_BYTES_MAX = 64 };

/* True if the spelling of a control token ends with the byte at `at`. */
static bool closes_control(const struct tokenizer *tokenizer, const char *text, size_t at) {
    if (!text[at] || !strchr(">][", text[at])) return false; /* how every known control token ends */
    size_t longest = at + 1 < CONTROL_BYTES_MAX ? at + 1 : CONTROL_BYTES_MAX;
    for (size_t n = 2; n <= longest; n++) {
        int32_t id = tokenizer_find(tokenizer, text + at + 1 - n, n);
        if (id >= 0 && tokenizer_type(tokenizer, id) == TOKEN_CONTROL) return true;
    }
    return false;
}

/* Copies text with a mark before the last byte of every control token. */
static int neutralise(const struct tokenizer *tokenizer, const char *text, size_t bytes, struct buf *out) {
    int status = SHU_OK;
    for (size_t i = 0; i < bytes && !status; i++) {
        if (closes_control(tokenizer, text, i)) status = buf_append(out, MARK, MARK_BYTES);
        if (!status) status = buf_putc(out, text[i]);
    }
    return status;
}

static json_t *neutral_copy(const struct tokenizer *tokenizer, const json_t *value, int depth);

static json_t *neutral_string(const struct tokenizer *tokenizer, const json_t *value) {
    struct buf text = {0};
    json_t *copy = NULL;
    if (!neutralise(tokenizer, json_string_value(value), json_string_length(value), &text))
        copy = json_stringn(text.data ? text.data : "", text.len);
    buf_free(&text);
    return copy;
}

static json_t *neutral_array(const struct tokenizer *tokenizer, const json_t *value, int depth) {
    json_t *copy = json_array(), *item;
    size_t i;
    bool failed = !copy;
    json_array_foreach(value, i, item) {
        failed = failed || json_array_append_new(copy, neutral_copy(tokenizer, item, depth + 1));
    }
    if (!failed) return copy;
    json_decref(copy);
    return NULL;
}

/* Keys too: templates print whole tool descriptions. */
static json_t *neutral_object(const struct tokenizer *tokenizer, const json_t *value, int depth) {
    json_t *copy = json_object(), *item;
    const char *key;
    struct buf name = {0};
    bool failed = !copy;
    json_object_foreach((json_t *)(uintptr_t)value, key, item) {
        buf_clear(&name);
        failed = failed || neutralise(tokenizer, key, strlen(key), &name) ||
                 json_object_set_new(copy, name.len ? name.data : "", neutral_copy(tokenizer, item, depth + 1));
    }
    buf_free(&name);
    if (!failed) return copy;
    json_decref(copy);
    return NULL;
}

/* Deep copy of a JSON value with every string neutralised. NULL on failure. */
static json_t *neutral_copy(const struct tokenizer *tokenizer, const json_t *value, int depth) {
    if (depth > 64) return NULL;
    if (json_is_string(value)) return neutral_string(tokenizer, value);
    if (json_is_array(value)) return neutral_array(tokenizer, value, depth);
    if (json_is_object(value)) return neutral_object(tokenizer, value, depth);
    return json_deep_copy(value);
}

int prompt_encode(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                  bool begins, struct tokens *out, struct shu_error *err) {
    struct span bos = {"", 0};
    if (tokenizer_bos(tokenizer) >= 0) bos = tokenizer_piece(tokenizer, tokenizer_bos(tokenizer), true);
    /* A template that writes BOS itself must not get a second one. */
    bool has_bos = bos.bytes && bytes >= bos.bytes && memcmp(text, bos.text, bos.bytes) == 0;
    int flags = ENCODE_PARSE_SPECIAL | (begins && !has_bos ? ENCODE_ADD_SPECIAL : 0);
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

static json_t *template_variables(const struct tokenizer *tokenizer, const json_t *messages, const json_t *tools,
                                  bool answer) {
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

int prompt_render(const struct tokenizer *tokenizer, const struct template *tpl, const json_t *messages,
                  const json_t *tools, bool answer, struct buf *out, struct shu_error *err) {
    json_t *variables = template_variables(tokenizer, messages, tools, answer);
    int status = variables ? template_render(tpl, variables, NULL, out, err)
                           : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %zu messages", json_array_size(messages));
    json_decref(variables);
    return status;
}

int prompt_from_messages(struct engine *engine, const json_t *messages, const json_t *tools, bool answer,
                         struct tokens *out, struct shu_error *err) {
    const char *source = engine_chat_template(engine);
    if (!source)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "expected a chat model, found one without a chat template; continue plain text with --raw");
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    struct template *tpl = NULL;
    struct buf text = {.max = (size_t)64 << 20};
    int status = template_new(source, strlen(source), &tpl, err);
    if (!status) status = prompt_render(tokenizer, tpl, messages, tools, answer, &text, err);
    if (!status)
        status = prompt_encode(tokenizer, engine_tokenizer_work(engine), text.data ? text.data : "", text.len, true,
                               out, err);
    template_free(tpl);
    buf_free(&text);
    return status;
}

int prompt_from_text(struct engine *engine, const char *text, size_t bytes, struct tokens *out, struct shu_error *err) {
    return tokenizer_encode(engine_tokenizer(engine), engine_tokenizer_work(engine), text, bytes, ENCODE_ADD_SPECIAL,
                            out, err);
}
