/* Conversations to tokens, with the loss on what the assistant says.
 *
 * Where an answer begins is found by rendering: the prompt that the model would be given for it (the messages before,
 * and the template's opening of an answer) must be how the whole conversation begins. There the text is cut, so that
 * the answer's tokens are those the model will have to write after that prompt. The answer ends with the first
 * end-of-turn token behind: what a message spells is text and holds none. */
#include "train/data.h"

#include <string.h>

struct answer {
    size_t start, end; /* bytes of the rendered text */
};

struct chat {
    const struct encoder_options *options;
    const json_t *messages, *tools;
    struct buf whole, part;
    struct answer *answers; /* [count] */
    size_t count;
    struct shu_error *err;
};

static int render(struct chat *chat, size_t count, bool answer, struct buf *out) {
    json_t *list = json_array();
    int status = list ? SHU_OK : SHU_FAIL(chat->err, SHU_E_NOMEM, "out of memory");
    for (size_t i = 0; i < count && !status; i++)
        if (json_array_append(list, json_array_get(chat->messages, i)))
            status = SHU_FAIL(chat->err, SHU_E_NOMEM, "out of memory");
    buf_clear(out);
    out->max = (size_t)256 << 20;
    if (!status)
        status = prompt_render(chat->options->tokenizer, chat->options->tpl, list, chat->tools, answer, out, chat->err);
    json_decref(list);
    return status;
}

/* Length of `messages[:count]` rendered, if that is how `text` begins; else SIZE_MAX. A template that refuses such a
 * beginning (no user yet) is no failure. */
static int prefix(struct chat *chat, const struct buf *text, size_t count, bool answer, size_t *out) {
    int status = render(chat, count, answer, &chat->part);
    *out = SIZE_MAX;
    if (status == SHU_E_NOMEM) return status;
    if (!status && chat->part.len <= text->len &&
        (!chat->part.len || memcmp(chat->part.data, text->data, chat->part.len) == 0))
        *out = chat->part.len;
    return SHU_OK;
}

/* An answer to learn: the assistant's, not marked with weight 0 (as OpenAI's fine-tuning files do). */
static bool is_answer(const struct chat *chat, size_t i, size_t answers_from) {
    const json_t *message = json_array_get(chat->messages, i), *weight = json_object_get(message, "weight");
    const char *role = json_string_value(json_object_get(message, "role"));
    return i >= answers_from && strcmp(role, "assistant") == 0 &&
           !(json_is_number(weight) && json_number_value(weight) == 0);
}

/* --------------------------------------------------------------- encoding */

static int grow_loss(struct buf *loss, size_t count, bool on) {
    int status = SHU_OK;
    while (loss->len < count && !status) status = buf_putc(loss, on);
    return status;
}

static int encode_slice(struct chat *chat, const char *text, size_t from, size_t to, struct examples *out) {
    const struct encoder_options *options = chat->options;
    if (from >= to) return SHU_OK;                                  /* BOS comes with the first text */
    if (from && options->space_prefix && text[from] == ' ') from++; /* the vocabulary adds it again */
    return prompt_encode(options->tokenizer, options->work, text + from, to - from, from == 0, &out->ids, chat->err);
}

/* The loss ends with the first end-of-turn token. */
static int encode_answer(struct chat *chat, const struct buf *text, const struct answer *answer, struct examples *out,
                         struct buf *loss) {
    size_t first = out->ids.count;
    int status = encode_slice(chat, text->data, answer->start, answer->end, out);
    if (status) return status;
    size_t last = first;
    while (last < out->ids.count && !tokenizer_is_end(chat->options->tokenizer, out->ids.id[last])) last++;
    if (last < out->ids.count) last++;
    status = grow_loss(loss, last, true);
    return status ? SHU_FAIL(chat->err, status, "out of memory") : SHU_OK;
}

static int encode(struct chat *chat, const struct buf *text, struct examples *out) {
    struct buf loss = {0};
    size_t at = 0;
    int status = SHU_OK;
    out->ids.count = 0;
    for (size_t i = 0; i <= chat->count && !status; i++) {
        size_t to = i < chat->count ? chat->answers[i].start : text->len;
        status = encode_slice(chat, text->data, at, to, out);
        if (!status && grow_loss(&loss, out->ids.count, false))
            status = SHU_FAIL(chat->err, SHU_E_NOMEM, "out of memory");
        if (status || i == chat->count) break;
        status = encode_answer(chat, text, &chat->answers[i], out, &loss);
        at = chat->answers[i].end;
    }
    if (!status) status = examples_push(chat->options, (const uint8_t *)loss.data, out, chat->err);
    buf_free(&loss);
    return status;
}

/* ---------------------------------------------------------------- answers */

/* Finds where answer `i` lies in `text`; *out.start is SIZE_MAX where that cannot be told. */
static int locate(struct chat *chat, const struct buf *text, size_t i, struct answer *out) {
    int status = prefix(chat, text, i, true, &out->start);
    if (!status && out->start != SIZE_MAX) status = prefix(chat, text, i + 1, false, &out->end);
    if (!status && out->end < out->start) out->start = SIZE_MAX;
    return status;
}

/* The whole conversation as one sequence; *fits false: a turn looks different once others follow, or a template shows
 * answers within each other. */
static int whole_conversation(struct chat *chat, size_t answers_from, struct examples *out, bool *fits) {
    size_t count = json_array_size(chat->messages), end = 0;
    int status = render(chat, count, false, &chat->whole);
    chat->count = 0;
    *fits = true;
    for (size_t i = 0; i < count && !status && *fits; i++) {
        struct answer *answer = &chat->answers[chat->count];
        if (!is_answer(chat, i, answers_from)) continue;
        *answer = (struct answer){0};
        status = locate(chat, &chat->whole, i, answer);
        *fits = answer->start != SIZE_MAX && answer->end != SIZE_MAX && answer->start >= end;
        end = answer->end;
        chat->count++;
    }
    return status || !*fits ? status : encode(chat, &chat->whole, out);
}

/* One sequence per answer, each the conversation up to it. */
static int each_answer(struct chat *chat, size_t answers_from, struct examples *out) {
    size_t count = json_array_size(chat->messages);
    int status = SHU_OK;
    for (size_t i = 0; i < count && !status; i++) {
        if (!is_answer(chat, i, answers_from)) continue;
        status = render(chat, i + 1, false, &chat->whole);
        if (!status) status = prefix(chat, &chat->whole, i, true, &chat->answers[0].start);
        if (!status && chat->answers[0].start == SIZE_MAX) /* an opening of its own, such as an empty thought */
            status = prefix(chat, &chat->whole, i, false, &chat->answers[0].start);
        if (!status && chat->answers[0].start == SIZE_MAX)
            status = SHU_FAIL(chat->err, SHU_E_FORMAT,
                              "message %zu: the chat template does not show where this answer begins", i + 1);
        chat->answers[0].end = chat->whole.len;
        chat->count = 1;
        if (!status) status = encode(chat, &chat->whole, out);
    }
    return status;
}

int chat_encode(const struct encoder_options *options, const json_t *messages, const json_t *tools, size_t answers_from,
                struct examples *out, struct shu_error *err) {
    struct chat chat = {.options = options, .messages = messages, .tools = tools, .err = err};
    size_t count = json_array_size(messages), answers = 0;
    bool fits = true;
    for (size_t i = 0; i < count; i++) answers += is_answer(&chat, i, answers_from);
    if (!answers) return SHU_FAIL(err, SHU_E_FORMAT, "no assistant turn to learn from");
    chat.answers = mem_calloc(count, sizeof *chat.answers);
    int status = chat.answers ? whole_conversation(&chat, answers_from, out, &fits)
                              : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status && !out->document) out->document = checksum_of(chat.whole.data ? chat.whole.data : "", chat.whole.len);
    if (!status && !fits) status = each_answer(&chat, answers_from, out);
    mem_free(chat.answers);
    buf_free(&chat.whole);
    buf_free(&chat.part);
    return status;
}
