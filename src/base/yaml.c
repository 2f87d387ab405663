/* YAML 1.2 core schema to jansson trees, from libfyaml's events.
 *
 * Events rather than libfyaml's documents: depth and size are limited while reading, and anchors, aliases and tags
 * (the ways in which a small text becomes a large or a surprising tree) are refused where they stand.
 */
#include "base/base.h"

#include <errno.h>
#include <libfyaml.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define YAML_MAX_BYTES ((size_t)64 << 20)
#define YAML_MAX_DEPTH 100
#define YAML_MAX_NODES 4000000u

struct reader {
    struct fy_parser *parser;
    struct fy_diag *diag;
    const char *name;
    struct shu_error *err;
    size_t nodes;
    int line, column; /* of the last event that had a position, 1-based */
    /* yaml_where only */
    const char *wanted;
    struct buf path;              /* of the node being read */
    size_t found_bytes;           /* longest prefix of `wanted` met so far … */
    int found_line, found_column; /* … and where; line 0 = none */
};

#define YAML_FAIL(r, code, format, ...)                                                                                \
    SHU_FAIL((r)->err, (code), "%s:%d:%d: " format, (r)->name, (r)->line, (r)->column, __VA_ARGS__)

static int no_memory(struct reader *r) {
    return SHU_FAIL(r->err, SHU_E_NOMEM, "%s: not enough memory for its YAML", r->name);
}

/* -------------------------------------------------------------- scalars */

static bool one_of(const char *text, const char *const words[3]) {
    return !strcmp(text, words[0]) || !strcmp(text, words[1]) || !strcmp(text, words[2]);
}

static bool is_integer(const char *text) {
    text += *text == '-' || *text == '+';
    return *text && text[strspn(text, "0123456789")] == '\0';
}

/* [-+]? ( . [0-9]+ | [0-9]+ ( . [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool is_real(const char *text) {
    text += *text == '-' || *text == '+';
    size_t whole = strspn(text, "0123456789"), fraction = 0;
    text += whole;
    if (*text == '.') {
        fraction = strspn(text + 1, "0123456789");
        text += 1 + fraction;
    }
    if (whole + fraction == 0) return false;
    if (*text == 'e' || *text == 'E') {
        text++;
        text += *text == '-' || *text == '+';
        size_t exponent = strspn(text, "0123456789");
        if (exponent == 0) return false;
        text += exponent;
    }
    return *text == '\0';
}

/* Base of "0x1f" and "0o17" (core schema: no sign), 10 for decimal integers, 0 for everything else. */
static int integer_base(const char *text) {
    if (is_integer(text)) return 10;
    const char *digits = text[0] == '0' && text[1] ? text + 2 : "";
    if (!*digits) return 0;
    if (text[1] == 'x') return digits[strspn(digits, "0123456789abcdefABCDEF")] ? 0 : 16;
    if (text[1] == 'o') return digits[strspn(digits, "01234567")] ? 0 : 8;
    return 0;
}

static int integer_value(struct reader *r, const char *text, int base, json_t **out) {
    errno = 0;
    long long value = strtoll(base == 10 ? text : text + 2, NULL, base);
    if (errno) return YAML_FAIL(r, SHU_E_RANGE, "number %.60s does not fit 64 bits; quote it if it is text", text);
    *out = json_integer(value);
    return *out ? SHU_OK : no_memory(r);
}

static int real_value(struct reader *r, const char *text, json_t **out) {
    double value = strtod(text, NULL);
    if (!isfinite(value)) {
        return YAML_FAIL(r, SHU_E_RANGE, "number %.60s is too large for a double; quote it if it is text", text);
    }
    *out = json_real(value);
    return *out ? SHU_OK : no_memory(r);
}

static bool is_not_finite(const char *text) {
    static const char *const inf[3] = {".inf", ".Inf", ".INF"}, *const nan[3] = {".nan", ".NaN", ".NAN"};
    return one_of(text, nan) || one_of(text + (*text == '-' || *text == '+'), inf);
}

static int plain_value(struct reader *r, const char *text, size_t bytes, json_t **out) {
    static const char *const yes[3] = {"true", "True", "TRUE"}, *const no[3] = {"false", "False", "FALSE"},
                             *const none[3] = {"null", "Null", "NULL"};
    int base = integer_base(text);
    if (base) return integer_value(r, text, base, out);
    if (is_real(text)) return real_value(r, text, out);
    if (is_not_finite(text)) {
        return YAML_FAIL(r, SHU_E_UNSUPPORTED, "expected a finite number, found %s; quote it if it is text", text);
    }
    if (one_of(text, yes))
        *out = json_true();
    else if (one_of(text, no))
        *out = json_false();
    else if (bytes == 0 || !strcmp(text, "~") || one_of(text, none))
        *out = json_null();
    else
        *out = json_stringn(text, bytes);
    return *out ? SHU_OK : no_memory(r);
}

/* --------------------------------------------------------------- events */

/* Raises what libfyaml found wrong; without a diagnosis it ran out of memory. */
static int parser_failed(struct reader *r) {
    void *iterator = NULL;
    const struct fy_diag_error *first = fy_diag_errors_iterate(r->diag, &iterator);
    if (!first || !first->msg) return no_memory(r);
    return SHU_FAIL(r->err, SHU_E_FORMAT, "%s:%d:%d: not valid YAML: %s", r->name, first->line, first->column,
                    first->msg);
}

static int next_event(struct reader *r, struct fy_event **out) {
    *out = fy_parser_parse(r->parser);
    if (!*out) return parser_failed(r);
    const struct fy_mark *mark = fy_event_start_mark(*out);
    if (mark) {
        r->line = mark->line + 1;
        r->column = mark->column + 1;
    }
    return SHU_OK;
}

static int refuse_extras(struct reader *r, const struct fy_event *event) {
    const struct fy_token *anchor = NULL, *tag = NULL;
    if (event->type == FYET_SCALAR) anchor = event->scalar.anchor, tag = event->scalar.tag;
    if (event->type == FYET_SEQUENCE_START) anchor = event->sequence_start.anchor, tag = event->sequence_start.tag;
    if (event->type == FYET_MAPPING_START) anchor = event->mapping_start.anchor, tag = event->mapping_start.tag;
    if (event->type != FYET_ALIAS && !anchor && !tag) return SHU_OK;
    return YAML_FAIL(r, SHU_E_UNSUPPORTED, "expected plain YAML, found %s; write the value out",
                     tag      ? "a tag (!…)"
                     : anchor ? "an anchor (&…)"
                              : "an alias (*…)");
}

static int read_scalar(struct reader *r, struct fy_event *event, json_t **out) {
    size_t bytes = 0;
    struct fy_token *token = event->scalar.value;
    const char *text = token ? fy_token_get_text(token, &bytes) : "";
    if (!text) return no_memory(r);
    if (token && fy_token_scalar_style(token) != FYSS_PLAIN) {
        *out = json_stringn(text, bytes);
        return *out ? SHU_OK : YAML_FAIL(r, SHU_E_FORMAT, "expected UTF-8 text, found %s", "a broken escape");
    }
    char *copy = mem_strndup(text, bytes); /* the token's text has no terminator */
    int status = copy ? plain_value(r, copy, bytes, out) : no_memory(r);
    mem_free(copy);
    return status;
}

/* ---------------------------------------------------------------- nodes */

static int read_node(struct reader *r, struct fy_event *event, int depth, json_t **out);

/* yaml_where: remembers the deepest node that lies on the way to `wanted`. */
static void note_position(struct reader *r) {
    size_t length = r->path.len;
    if (!r->wanted || (r->found_line && length <= r->found_bytes)) return;
    if (length && strncmp(r->path.data, r->wanted, length) != 0) return;
    if (length && r->wanted[length] != '\0' && r->wanted[length] != '/') return;
    r->found_bytes = length;
    r->found_line = r->line;
    r->found_column = r->column;
}

/* Reads the event and the value after it as the child `key` (or number `index`) of the current node. */
static int read_child(struct reader *r, struct fy_event *event, const char *key, size_t index, int depth,
                      json_t **out) {
    size_t before = r->path.len;
    int status = SHU_OK;
    if (r->wanted) {
        const char *slash = before ? "/" : "";
        status = key ? buf_printf(&r->path, "%s%s", slash, key) : buf_printf(&r->path, "%s%zu", slash, index);
        if (status) return no_memory(r);
    }
    status = read_node(r, event, depth, out);
    if (r->wanted) {
        r->path.len = before;
        r->path.data[before] = '\0';
    }
    return status;
}

static int read_sequence(struct reader *r, int depth, json_t **out) {
    json_t *array = json_array();
    int status = array ? SHU_OK : no_memory(r);
    while (!status) {
        struct fy_event *event = NULL;
        json_t *value = NULL;
        status = next_event(r, &event);
        bool end = !status && event->type == FYET_SEQUENCE_END;
        if (!status && !end) status = read_child(r, event, NULL, json_array_size(array), depth + 1, &value);
        fy_parser_event_free(r->parser, event);
        if (end) break;
        if (!status && json_array_append_new(array, value)) status = no_memory(r);
    }
    if (status)
        json_decref(array);
    else
        *out = array;
    return status;
}

/* Keys are scalars and always text: `1:` and `true:` are the keys "1" and "true". */
static int read_key(struct reader *r, struct fy_event *event, const json_t *object, char **out) {
    size_t bytes = 0;
    int status = refuse_extras(r, event);
    if (status) return status;
    if (event->type != FYET_SCALAR) {
        return YAML_FAIL(r, SHU_E_UNSUPPORTED, "expected a name as key, found a %s",
                         event->type == FYET_MAPPING_START ? "mapping" : "list");
    }
    const char *text = event->scalar.value ? fy_token_get_text(event->scalar.value, &bytes) : "";
    if (!text) return no_memory(r);
    if (bytes == 0 || memchr(text, '\0', bytes)) {
        return YAML_FAIL(r, SHU_E_FORMAT, "expected a name as key, found %s", bytes ? "a NUL byte in it" : "nothing");
    }
    char *key = mem_strndup(text, bytes);
    if (!key) return no_memory(r);
    if (json_object_get(object, key)) {
        status = YAML_FAIL(r, SHU_E_FORMAT, "key '%.80s' stands twice in one mapping; remove one", key);
        mem_free(key);
        return status;
    }
    *out = key;
    return SHU_OK;
}

static int read_pair(struct reader *r, struct fy_event *key_event, json_t *object, int depth) {
    char *key = NULL;
    struct fy_event *event = NULL;
    json_t *value = NULL;
    int status = read_key(r, key_event, object, &key);
    if (!status) status = next_event(r, &event);
    if (!status) status = read_child(r, event, key, 0, depth + 1, &value);
    if (!status && json_object_set_new(object, key, value)) status = no_memory(r);
    fy_parser_event_free(r->parser, event);
    mem_free(key);
    return status;
}

static int read_mapping(struct reader *r, int depth, json_t **out) {
    json_t *object = json_object();
    int status = object ? SHU_OK : no_memory(r);
    while (!status) {
        struct fy_event *event = NULL;
        status = next_event(r, &event);
        bool end = !status && event->type == FYET_MAPPING_END;
        if (!status && !end) status = read_pair(r, event, object, depth);
        fy_parser_event_free(r->parser, event);
        if (end) break;
    }
    if (status)
        json_decref(object);
    else
        *out = object;
    return status;
}

static int read_node(struct reader *r, struct fy_event *event, int depth, json_t **out) {
    int status = refuse_extras(r, event);
    if (status) return status;
    if (depth > YAML_MAX_DEPTH) {
        return YAML_FAIL(r, SHU_E_RANGE, "expected at most %d levels of nesting, found more", YAML_MAX_DEPTH);
    }
    if (++r->nodes > YAML_MAX_NODES) {
        return YAML_FAIL(r, SHU_E_RANGE, "expected at most %u values, found more", YAML_MAX_NODES);
    }
    note_position(r);
    if (event->type == FYET_SCALAR) return read_scalar(r, event, out);
    if (event->type == FYET_SEQUENCE_START) return read_sequence(r, depth, out);
    if (event->type == FYET_MAPPING_START) return read_mapping(r, depth, out);
    return YAML_FAIL(r, SHU_E_FORMAT, "expected a value, found %s", "the end of the text");
}

/* ----------------------------------------------------------- the stream */

static int skip_to(struct reader *r, enum fy_event_type type, bool *found) {
    struct fy_event *event = NULL;
    int status = next_event(r, &event);
    *found = !status && event->type == type;
    fy_parser_event_free(r->parser, event);
    return status;
}

/* One document and nothing after it; an empty text is null. */
static int read_stream(struct reader *r, json_t **out) {
    struct fy_event *event = NULL;
    json_t *value = NULL;
    bool found = false;
    int status = skip_to(r, FYET_STREAM_START, &found);
    if (!status) status = skip_to(r, FYET_DOCUMENT_START, &found);
    if (!status && !found) {
        *out = json_null();
        return SHU_OK;
    }
    if (!status) status = next_event(r, &event);
    if (!status) status = read_node(r, event, 1, &value);
    fy_parser_event_free(r->parser, event);
    if (!status) status = skip_to(r, FYET_DOCUMENT_END, &found);
    if (!status) status = skip_to(r, FYET_STREAM_END, &found);
    if (!status && !found) status = YAML_FAIL(r, SHU_E_UNSUPPORTED, "expected one document, found %s", "a second one");
    if (status)
        json_decref(value);
    else
        *out = value;
    return status;
}

static int reader_open(struct reader *r, const char *text, size_t bytes) {
    if (fault_fires(FAULT_ALLOC)) return no_memory(r);
    struct fy_diag_cfg diag_options;
    fy_diag_cfg_default(&diag_options);
    diag_options.fp = NULL; /* nothing on stderr */
    diag_options.colorize = false;
    r->diag = fy_diag_create(&diag_options);
    if (!r->diag) return no_memory(r);
    fy_diag_set_collect_errors(r->diag, true);
    struct fy_parse_cfg options = {.search_path = "", .flags = FYPCF_COLLECT_DIAG, .diag = r->diag};
    r->parser = fy_parser_create(&options);
    if (!r->parser || fy_parser_set_string(r->parser, text, bytes)) return no_memory(r);
    return SHU_OK;
}

static void reader_close(struct reader *r) {
    if (r->parser) fy_parser_destroy(r->parser);
    if (r->diag) fy_diag_destroy(r->diag);
    buf_free(&r->path);
}

static int check_text(struct reader *r, const char *text, size_t bytes) {
    if (bytes > YAML_MAX_BYTES) {
        return SHU_FAIL(r->err, SHU_E_RANGE, "%s: expected at most %zu bytes of YAML, found %zu", r->name,
                        YAML_MAX_BYTES, bytes);
    }
    int line = 1;
    for (size_t at = 0; at < bytes;) {
        uint32_t scalar = 0;
        int length = utf8_decode(text + at, bytes - at, &scalar);
        if (length == 0 || scalar == 0) {
            return SHU_FAIL(r->err, SHU_E_FORMAT, "%s:%d: expected UTF-8 text, found byte 0x%02x", r->name, line,
                            (unsigned char)text[at]);
        }
        line += scalar == '\n';
        at += (size_t)length;
    }
    return SHU_OK;
}

static int parse_with(struct reader *r, const char *text, size_t bytes, json_t **out) {
    int status = check_text(r, text, bytes);
    if (status) return status;
    if (bytes == 0) return *out = json_null(), SHU_OK; /* libfyaml takes length 0 for "unknown" */
    status = reader_open(r, text, bytes);
    if (!status) status = read_stream(r, out);
    reader_close(r);
    return status;
}

int yaml_parse(const char *text, size_t bytes, const char *name, json_t **out, struct shu_error *err) {
    struct reader reader = {.name = name, .err = err, .line = 1, .column = 1};
    *out = NULL;
    return parse_with(&reader, text, bytes, out);
}

int yaml_where(const char *text, size_t bytes, const char *name, const char *path, struct buf *out) {
    struct reader reader = {.name = name, .line = 1, .column = 1, .wanted = path};
    json_t *tree = NULL;
    if (!parse_with(&reader, text, bytes, &tree)) json_decref(tree);
    if (reader.found_line == 0) return buf_puts(out, name);
    return buf_printf(out, "%s:%d:%d", name, reader.found_line, reader.found_column);
}
