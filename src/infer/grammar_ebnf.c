/* Grammars: the EBNF form (see grammar.h). */
#include "infer/grammar_chars.h"

#include <string.h>

static int parse_sequence(struct reader *r, const struct expr **out);

static bool is_name_char(char c, bool first) {
    bool letter = ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_';
    return letter || (!first && ((c >= '0' && c <= '9') || c == '-'));
}

static void skip_blank(struct reader *r) {
    while (reader_more(r)) {
        char c = r->text[r->at];
        if (c == '#') {
            while (reader_more(r) && r->text[r->at] != '\n') r->at++;
        } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
            r->at++;
        } else {
            break;
        }
    }
}

/* A name at the current place, without consuming it: its bytes. */
static size_t peek_name(const struct reader *r) {
    size_t n = 0;
    while (r->at + n < r->bytes && is_name_char(r->text[r->at + n], n == 0)) n++;
    return n;
}

static bool at_definition(const struct reader *r) {
    struct reader ahead = *r;
    size_t n = peek_name(r);
    if (n == 0) return false;
    ahead.at += n;
    skip_blank(&ahead);
    return ahead.bytes - ahead.at >= 3 && memcmp(ahead.text + ahead.at, "::=", 3) == 0;
}

static int find_rule(struct reader *r, size_t bytes, int *out) {
    char name[80];
    if (bytes >= sizeof name) return reader_fail(r, "a rule name of more than %zu characters", sizeof name - 1);
    memcpy(name, r->text + r->at, bytes);
    name[bytes] = 0;
    r->at += bytes;
    for (size_t i = 0; i < r->b->count; i++)
        if (strcmp(r->b->rules[i].name, name) == 0) {
            *out = (int)i;
            return 0;
        }
    return builder_rule(r->b, name, out);
}

static int parse_escaped(struct reader *r, uint32_t *out) {
    static const char from[] = "nrt\\\"'[]-^", to[] = "\n\r\t\\\"'[]-^";
    char c = reader_more(r) ? r->text[r->at] : 0;
    const char *known = c ? strchr(from, c) : NULL;
    r->at += c != 0;
    if (known) {
        *out = (uint32_t)(unsigned char)to[known - from];
        return 0;
    }
    if (c == 'x' || c == 'u' || c == 'U') return reader_hex(r, c == 'x' ? 2 : c == 'u' ? 4 : 8, out);
    return reader_fail(r, "unknown escape");
}

static int parse_character(struct reader *r, uint32_t *out) {
    return reader_skip(r, '\\') ? parse_escaped(r, out) : reader_scalar(r, out);
}

static int parse_literal(struct reader *r, const struct expr **out) {
    struct buf text = {.max = GRAMMAR_MAX_SOURCE_BYTES};
    char quote = r->text[r->at++], bytes[4];
    int status = 0;
    while (!status && !reader_skip(r, quote)) {
        uint32_t scalar;
        status = parse_character(r, &scalar);
        if (!status && buf_append(&text, bytes, (size_t)utf8_encode(scalar, bytes))) status = builder_no_memory(r->b);
    }
    if (!status) {
        *out = text.len ? expr_bytes(r->b, text.data, text.len) : expr_simple(r->b, EXPR_EMPTY);
        status = *out ? 0 : SHU_E_NOMEM;
    }
    buf_free(&text);
    return status;
}

static int parse_class(struct reader *r, const struct expr **out) {
    struct range ranges[CLASS_MAX_RANGES];
    size_t count = 0;
    bool negate = reader_skip(r, '^');
    int status = 0;
    while (!status && !reader_skip(r, ']')) {
        if (count == CLASS_MAX_RANGES) return reader_fail(r, "a class with more than %d ranges", CLASS_MAX_RANGES);
        struct range *range = &ranges[count++];
        status = parse_character(r, &range->low);
        range->high = range->low;
        if (!status && r->at + 1 < r->bytes && r->text[r->at] == '-' && r->text[r->at + 1] != ']') {
            r->at++;
            status = parse_character(r, &range->high);
        }
        if (!status && range->high < range->low) return reader_fail(r, "the range in [ ] ends before it begins");
    }
    if (status) return status;
    *out = expr_class(r->b, ranges, count, negate, false);
    return *out ? 0 : SHU_E_NOMEM;
}

static int parse_item(struct reader *r, const struct expr **out) {
    char c = r->text[r->at];
    if (c == '"' || c == '\'') return parse_literal(r, out);
    if (reader_skip(r, '[')) return parse_class(r, out);
    if (reader_skip(r, '.')) {
        *out = expr_class(r->b, NULL, 0, true, false);
        return *out ? 0 : SHU_E_NOMEM;
    }
    if (reader_skip(r, '(')) {
        if (++r->depth > GRAMMAR_MAX_NESTING) return reader_fail(r, "more than %d nested groups", GRAMMAR_MAX_NESTING);
        int status = reader_choice(r, parse_sequence, out);
        r->depth--;
        if (!status && !reader_skip(r, ')')) return reader_fail(r, "expected )");
        return status;
    }
    size_t name = peek_name(r);
    int rule = 0;
    if (name == 0) return reader_fail(r, "expected a literal, a class, a group or the name of a rule");
    int status = find_rule(r, name, &rule);
    if (!status) *out = expr_rule(r->b, rule);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}

static int parse_sequence(struct reader *r, const struct expr **out) {
    struct expr_items items = {0};
    int status = 0;
    for (skip_blank(r); !status && reader_more(r); skip_blank(r)) {
        const struct expr *item = NULL;
        bool repeated;
        int64_t min, max;
        if (r->text[r->at] == '|' || r->text[r->at] == ')' || at_definition(r)) break;
        status = parse_item(r, &item);
        if (!status) status = reader_repeat(r, &repeated, &min, &max);
        if (!status && repeated) item = expr_repeat(r->b, item, min, max);
        if (!status) status = expr_push(r->b, &items, item);
    }
    if (!status) *out = expr_list(r->b, EXPR_SEQ, items.items, items.count);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}

static int parse_definition(struct reader *r) {
    size_t name = peek_name(r);
    int rule = 0;
    if (!at_definition(r)) return reader_fail(r, "expected NAME ::=");
    int status = find_rule(r, name, &rule);
    if (status) return status;
    if (r->b->rules[rule].body) return reader_fail(r, "rule \"%s\" is defined twice", r->b->rules[rule].name);
    skip_blank(r);
    r->at += 3;
    const struct expr *body = NULL;
    status = reader_choice(r, parse_sequence, &body);
    r->b->rules[rule].body = body;
    return status;
}

int ebnf_build(struct builder *b, const char *source, size_t bytes) {
    struct reader r = {.b = b, .text = source, .bytes = bytes, .where = "grammar"};
    int root;
    if (bytes > GRAMMAR_MAX_SOURCE_BYTES)
        return SHU_FAIL(b->err, SHU_E_RANGE, "a grammar of %zu bytes, at most %zu are accepted", bytes,
                        GRAMMAR_MAX_SOURCE_BYTES);
    int status = builder_rule(b, "root", &root);
    for (skip_blank(&r); !status && reader_more(&r); skip_blank(&r)) status = parse_definition(&r);
    for (size_t i = 0; !status && i < b->count; i++)
        if (!b->rules[i].body) return reader_fail(&r, "rule \"%s\" is used but not defined", b->rules[i].name);
    return status;
}
