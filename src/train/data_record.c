/* Lines of JSON in their usual forms, brought to one. */
#include "train/data.h"

#include <math.h>
#include <string.h>

#define RECORD_BYTES_MAX ((size_t)64 << 20)
#define PASSAGES_MAX     10000u

static int refuse(struct shu_error *err, const char *reason) {
    return SHU_FAIL(err, SHU_E_FORMAT, "%s", reason);
}

static struct span span_of(const json_t *string) {
    return (struct span){json_string_value(string), (uint32_t)json_string_length(string)};
}

/* --------------------------------------------------------------- messages */

/* Content in parts ([{"type": "text", "text": …}]) becomes one string. */
static int join_parts(json_t *message, json_t *parts, size_t number, struct shu_error *err) {
    struct buf text = {0};
    size_t i;
    json_t *part;
    int status = SHU_OK;
    json_array_foreach(parts, i, part) {
        const json_t *piece = json_object_get(part, "text");
        if (!json_is_string(piece)) {
            status = SHU_FAIL(err, SHU_E_FORMAT, "message %zu: part %zu of its content is not text", number, i + 1);
            break;
        }
        if (buf_append(&text, json_string_value(piece), json_string_length(piece))) {
            status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
            break;
        }
    }
    if (!status && json_object_set_new(message, "content", json_stringn(text.data ? text.data : "", text.len)))
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    buf_free(&text);
    return status;
}

static bool role_known(const char *role) {
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    for (size_t i = 0; role && i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role, roles[i]) == 0) return true;
    return false;
}

static int check_message(json_t *message, size_t number, struct shu_error *err) {
    json_t *content = json_object_get(message, "content");
    const char *role = json_string_value(json_object_get(message, "role"));
    if (!json_is_object(message))
        return SHU_FAIL(err, SHU_E_FORMAT, "message %zu: expected an object with role and content", number);
    if (!role_known(role))
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "message %zu: expected the role system, user, assistant or tool, found \"%.40s\"", number,
                        role ? role : "none");
    if (json_is_array(content)) return join_parts(message, content, number, err);
    if (json_is_string(content)) return SHU_OK;
    if (json_object_get(message, "tool_calls") && (!content || json_is_null(content))) {
        if (json_object_set_new(message, "content", json_string("")))
            return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
        return SHU_OK;
    }
    return SHU_FAIL(err, SHU_E_FORMAT, "message %zu: expected content as text", number);
}

/* Appends the messages of a list, their content in parts joined in place. */
static int add_messages(json_t *messages, json_t *list, struct shu_error *err) {
    size_t i;
    json_t *message;
    if (!json_is_array(list) || json_array_size(list) == 0) return refuse(err, "expected a list of messages");
    json_array_foreach(list, i, message) {
        int status = check_message(message, json_array_size(messages) + 1, err);
        if (!status && json_array_append(messages, message)) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
        if (status) return status;
    }
    return SHU_OK;
}

static int add_words(json_t *messages, const char *role, const json_t *words, struct shu_error *err) {
    json_t *message = json_pack("{s:s,s:O}", "role", role, "content", words);
    return message && !json_array_append_new(messages, message) ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
}

/* A prompt or an answer: text, spoken by `role`, or messages. */
static int add_either(json_t *messages, const char *role, json_t *value, const char *key, struct shu_error *err) {
    if (json_is_string(value)) return add_words(messages, role, value, err);
    if (json_is_array(value)) return add_messages(messages, value, err);
    return SHU_FAIL(err, SHU_E_FORMAT, "\"%s\": expected text or a list of messages", key);
}

/* --------------------------------------------------------------- ShareGPT */

static const char *sharegpt_role(const char *from) {
    static const char *const names[][2] = {
        {"human", "user"},        {"user", "user"},       {"gpt", "assistant"}, {"assistant", "assistant"},
        {"chatgpt", "assistant"}, {"model", "assistant"}, {"system", "system"}, {"tool", "tool"},
        {"observation", "tool"},  {"function", "tool"},   {"bot", "assistant"},
    };
    for (size_t i = 0; from && i < sizeof names / sizeof *names; i++)
        if (strcmp(from, names[i][0]) == 0) return names[i][1];
    return NULL;
}

static int read_sharegpt(json_t *turns, struct record *out, struct shu_error *err) {
    size_t i;
    json_t *turn;
    const json_t *system = json_object_get(out->root, "system");
    if (!json_is_array(turns) || json_array_size(turns) == 0)
        return refuse(err, "\"conversations\": expected a list of {from, value}");
    if (json_is_string(system) && json_string_length(system)) {
        int status = add_words(out->messages, "system", system, err);
        if (status) return status;
    }
    json_array_foreach(turns, i, turn) {
        const char *from = json_string_value(json_object_get(turn, "from")), *role = sharegpt_role(from);
        const json_t *value = json_object_get(turn, "value");
        if (!role)
            return SHU_FAIL(err, SHU_E_FORMAT,
                            "turn %zu: expected \"from\" human, gpt, system or tool, found \"%.40s\"", i + 1,
                            from ? from : "none");
        if (!json_is_string(value)) return SHU_FAIL(err, SHU_E_FORMAT, "turn %zu: expected \"value\" as text", i + 1);
        int status = add_words(out->messages, role, value, err);
        if (status) return status;
    }
    return SHU_OK;
}

/* ------------------------------------------------------------------ forms */

static int new_messages(json_t **out, struct shu_error *err) {
    *out = json_array();
    return *out ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
}

static int read_completion(json_t *prompt, json_t *completion, bool chat, struct record *out, struct shu_error *err) {
    if (!chat) {
        if (!json_is_string(prompt) || !json_is_string(completion))
            return refuse(err, "\"prompt\" and \"completion\": expected text, as the base has no chat template");
        out->prompt = span_of(prompt);
        out->text = span_of(completion);
        return SHU_OK;
    }
    int status = new_messages(&out->messages, err);
    if (!status) status = add_either(out->messages, "user", prompt, "prompt", err);
    if (!status) out->answers_from = json_array_size(out->messages);
    if (!status) status = add_either(out->messages, "assistant", completion, "completion", err);
    return status;
}

/* Messages that both answers begin with, where no prompt says so. */
static size_t common_messages(const json_t *a, const json_t *b) {
    size_t n = 0;
    while (n < json_array_size(a) && n < json_array_size(b) && json_equal(json_array_get(a, n), json_array_get(b, n)))
        n++;
    return n;
}

static int read_pair(json_t *prompt, json_t *chosen, json_t *rejected, bool chat, struct record *out,
                     struct shu_error *err) {
    if (!chat) {
        if (!json_is_string(prompt) || !json_is_string(chosen) || !json_is_string(rejected))
            return refuse(err,
                          "\"prompt\", \"chosen\" and \"rejected\": expected text, as the base has no chat template");
        out->prompt = span_of(prompt);
        out->text = span_of(chosen);
        out->rejected_text = span_of(rejected);
        return SHU_OK;
    }
    int status = new_messages(&out->messages, err);
    if (!status) status = new_messages(&out->rejected, err);
    if (!status && prompt) status = add_either(out->messages, "user", prompt, "prompt", err);
    if (!status && json_array_extend(out->rejected, out->messages))
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) out->answers_from = json_array_size(out->messages);
    if (!status) status = add_either(out->messages, "assistant", chosen, "chosen", err);
    if (!status) status = add_either(out->rejected, "assistant", rejected, "rejected", err);
    if (!status && !prompt) out->answers_from = common_messages(out->messages, out->rejected);
    if (!status && json_equal(out->messages, out->rejected))
        return refuse(err, "\"chosen\" and \"rejected\" are the same");
    return status;
}

static int read_form(bool preference, bool chat, struct record *out, struct shu_error *err) {
    json_t *root = out->root, *text = json_object_get(root, "text"), *messages = json_object_get(root, "messages");
    json_t *turns = json_object_get(root, "conversations"), *prompt = json_object_get(root, "prompt");
    json_t *completion = json_object_get(root, "completion");
    json_t *chosen = json_object_get(root, "chosen"), *rejected = json_object_get(root, "rejected");
    if (preference) {
        if (!chosen || !rejected) return refuse(err, "expected \"prompt\", \"chosen\" and \"rejected\"");
        return read_pair(prompt, chosen, rejected, chat, out, err);
    }
    if (messages || turns) {
        if (!chat) return refuse(err, "a conversation, but the base has no chat template");
        int status = new_messages(&out->messages, err);
        if (status) return status;
        return messages ? add_messages(out->messages, messages, err) : read_sharegpt(turns, out, err);
    }
    if (prompt && completion) return read_completion(prompt, completion, chat, out, err);
    if (json_is_string(text)) {
        out->text = span_of(text);
        return SHU_OK;
    }
    if (chosen && rejected) return refuse(err, "a pair of answers; learn from it with --method dpo");
    return refuse(err, "expected \"messages\", \"conversations\", \"prompt\" and \"completion\", or \"text\"");
}

/* ----------------------------------------------------------- common fields */

static int read_weight(struct record *out, struct shu_error *err) {
    const json_t *weight = json_object_get(out->root, "weight");
    out->weight = weight && !json_is_null(weight) ? json_number_value(weight) : 1;
    bool number = !weight || json_is_null(weight) || json_is_number(weight);
    /* Shards keep floats: what is nothing there is none. */
    if (number && (float)out->weight > 0 && out->weight <= SHARD_WEIGHT_MAX) return SHU_OK;
    return SHU_FAIL(err, SHU_E_FORMAT, "\"weight\": expected a number above 0 and at most %g", SHARD_WEIGHT_MAX);
}

static int read_passages(struct record *out, struct shu_error *err) {
    json_t *passages = json_object_get(out->root, "passages"), *id;
    size_t i;
    if (!passages || json_is_null(passages)) return SHU_OK;
    if (!json_is_array(passages) || json_array_size(passages) > PASSAGES_MAX)
        return refuse(err, "\"passages\": expected a list of passage ids");
    json_array_foreach(passages, i, id) {
        if (!json_is_string(id)) return refuse(err, "\"passages\": expected a list of passage ids");
        if (json_string_length(id) > SHARD_PASSAGE_BYTES_MAX)
            return SHU_FAIL(err, SHU_E_FORMAT, "\"passages\": expected ids of at most %u bytes, found %zu",
                            SHARD_PASSAGE_BYTES_MAX, json_string_length(id));
    }
    out->passages = passages;
    return SHU_OK;
}

int record_read(const char *line, size_t bytes, bool preference, bool chat, struct record *out, struct shu_error *err) {
    *out = (struct record){0};
    struct shu_error detail = {0};
    if (bytes > RECORD_BYTES_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "a line of %zu bytes is longer than %zu", bytes, RECORD_BYTES_MAX);
    int status = json_parse(line, bytes, "", &out->root, &detail);
    if (status) { /* ":1:17: not valid JSON: …" */
        const char *text = detail.message;
        int column = 0, skip = 0;
        if (sscanf(text, ":%*d:%d: %n", &column, &skip) < 1 || !skip) return SHU_FAIL(err, status, "%s", text);
        return SHU_FAIL(err, status, "%s (column %d)", text + skip, column);
    }
    if (!json_is_object(out->root)) return refuse(err, "expected an object {…}");
    const json_t *tools = json_object_get(out->root, "tools");
    out->tools = json_is_array(tools) ? tools : NULL;
    status = read_weight(out, err);
    if (!status) status = read_passages(out, err);
    if (!status) status = read_form(preference, chat, out, err);
    return status;
}

void record_free(struct record *record) {
    json_decref(record->messages);
    json_decref(record->rejected);
    json_decref(record->root);
    *record = (struct record){0};
}
