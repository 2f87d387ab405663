/* Records to sequences of tokens. */
#include "train/data.h"

#include <string.h>

void examples_clear(struct examples *examples) {
    examples->used = examples->count = 0;
    examples->document = 0;
    examples->cut = false;
}

void examples_free(struct examples *examples) {
    tokens_free(&examples->ids);
    mem_free(examples->tokens);
    mem_free(examples->ends);
    *examples = (struct examples){0};
}

bool tokenizer_prefixes_space(const struct tokenizer *tokenizer, struct tokenizer_work *work) {
    struct tokens ids = {0};
    bool found = false;
    if (!tokenizer_encode(tokenizer, work, "a", 1, 0, &ids, NULL) && ids.count) {
        struct span piece = tokenizer_piece(tokenizer, ids.id[0], false);
        found = piece.bytes && piece.text[0] == ' ';
    }
    tokens_free(&ids);
    return found;
}

/* ------------------------------------------------------------ common part */

static int reserve(struct examples *out, size_t count, struct shu_error *err) {
    if (out->used + count > out->cap) {
        size_t cap = 2 * (out->used + count), bytes;
        uint32_t *grown = size_mul(cap, sizeof *grown, &bytes) ? NULL : mem_realloc(out->tokens, bytes);
        if (!grown) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %zu tokens", cap);
        out->tokens = grown;
        out->cap = cap;
    }
    if (out->count == out->ends_cap) {
        size_t cap = out->ends_cap ? 2 * out->ends_cap : 16;
        size_t *grown = mem_realloc(out->ends, cap * sizeof *grown);
        if (!grown) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %zu sequences", cap);
        out->ends = grown;
        out->ends_cap = cap;
    }
    return SHU_OK;
}

static int append(struct examples *out, const int32_t *ids, const uint8_t *loss, size_t count, struct shu_error *err) {
    int status = reserve(out, count, err);
    if (status) return status;
    uint32_t *to = out->tokens + out->used;
    for (size_t i = 0; i < count; i++) to[i] = (uint32_t)ids[i] | (i && (!loss || loss[i]) ? SHARD_LOSS : 0);
    out->used += count;
    out->ends[out->count++] = out->used;
    return SHU_OK;
}

/* Tokens behind the last one with a loss teach nothing: no other token sees them. */
int examples_push(const struct encoder_options *options, const uint8_t *loss, struct examples *out,
                  struct shu_error *err) {
    size_t count = out->ids.count, most = (size_t)options->context + 1;
    if (options->all_tokens) loss = NULL;
    while (loss && count && !loss[count - 1]) count--;
    if (count > most && !options->cut)
        return SHU_FAIL(err, SHU_E_RANGE, "%zu tokens, but the context is %d; raise it, or set cut: true", count,
                        options->context);
    if (count > most) {
        out->cut = true;
        count = most;
        while (loss && count && !loss[count - 1]) count--;
    }
    if (count < 2) return SHU_FAIL(err, SHU_E_FORMAT, "nothing to learn within the context");
    return append(out, out->ids.id, loss, count, err);
}

/* ------------------------------------------------------------------- text */

static int encode_text(const struct encoder_options *options, const char *text, size_t bytes, struct examples *out,
                       struct shu_error *err) {
    int32_t end = tokenizer_eos(options->tokenizer);
    out->ids.count = 0;
    int status = tokenizer_encode(options->tokenizer, options->work, text, bytes, ENCODE_ADD_SPECIAL, &out->ids, err);
    if (status || end < 0 || (out->ids.count && out->ids.id[out->ids.count - 1] == end)) return status;
    return tokens_push(&out->ids, end) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
}

int examples_from_text(const struct encoder_options *options, const char *text, size_t bytes, struct examples *out,
                       struct shu_error *err) {
    if (!utf8_valid(text, bytes) || memchr(text, 0, bytes))
        return SHU_FAIL(err, SHU_E_FORMAT, "expected text in UTF-8, found other bytes");
    int status = encode_text(options, text, bytes, out, err);
    if (status) return status;
    size_t count = out->ids.count, most = (size_t)options->context + 1;
    if (!out->document) out->document = checksum_of(text, bytes);
    if (count < 2) return SHU_FAIL(err, SHU_E_FORMAT, "fewer than two tokens");
    out->cut = count > most;
    for (size_t at = 0; at + 1 < count && !status; at += most - 1)
        status = append(out, out->ids.id + at, NULL, count - at < most ? count - at : most, err);
    return status;
}

/* A prompt and what follows it in plain text; the loss is on the latter. */
static int continue_text(const struct encoder_options *options, struct span prompt, struct span text,
                         struct examples *out, struct shu_error *err) {
    struct buf loss = {0};
    const char *start = text.text ? text.text : "";
    size_t bytes = text.bytes, first;
    int32_t end = tokenizer_eos(options->tokenizer);
    out->ids.count = 0;
    int status = tokenizer_encode(options->tokenizer, options->work, prompt.text, prompt.bytes, ENCODE_ADD_SPECIAL,
                                  &out->ids, err);
    if (!status && out->ids.count && out->ids.id[out->ids.count - 1] == end) out->ids.count--; /* it goes on */
    first = out->ids.count;
    if (options->space_prefix && bytes && *start == ' ') start++, bytes--;
    if (!status) status = tokenizer_encode(options->tokenizer, options->work, start, bytes, 0, &out->ids, err);
    if (!status && end >= 0 && tokens_push(&out->ids, end)) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    for (size_t i = 0; i < out->ids.count && !status; i++)
        if (buf_putc(&loss, i >= first)) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status && !out->document) out->document = checksum_of(start, bytes) ^ checksum_of(prompt.text, prompt.bytes);
    if (!status) status = examples_push(options, (const uint8_t *)loss.data, out, err);
    buf_free(&loss);
    return status;
}

/* ---------------------------------------------------------------- records */

static int make_pair(const struct encoder_options *options, const struct record *record, struct examples *out,
                     struct shu_error *err) {
    int status;
    if (record->messages) {
        status = chat_encode(options, record->messages, record->tools, record->answers_from, out, err);
        if (!status && out->count == 1)
            status = chat_encode(options, record->rejected, record->tools, record->answers_from, out, err);
    } else {
        status = continue_text(options, record->prompt, record->text, out, err);
        if (!status) status = continue_text(options, record->prompt, record->rejected_text, out, err);
    }
    if (!status && out->count != 2)
        return SHU_FAIL(err, SHU_E_FORMAT, "the chat template does not show where these answers begin");
    return status;
}

int examples_make(const struct encoder_options *options, const struct record *record, bool preference,
                  struct examples *out, struct shu_error *err) {
    examples_clear(out);
    if (record->passages && json_array_size(record->passages)) { /* what one passage taught stays on one side */
        const json_t *id = json_array_get(record->passages, 0);
        out->document = checksum_of(json_string_value(id), json_string_length(id));
    }
    if (preference) return make_pair(options, record, out, err);
    if (record->messages) return chat_encode(options, record->messages, record->tools, record->answers_from, out, err);
    if (record->prompt.text) return continue_text(options, record->prompt, record->text, out, err);
    return examples_from_text(options, record->text.text, record->text.bytes, out, err);
}
