/* Grammars: patterns of JSON Schema (a subset of ECMA 262 regular expressions; see grammar.h). */
#include "infer/grammar_chars.h"

#include <string.h>

static int parse_sequence(struct reader *r, const struct expr **out);

/* ---------------------------------------------------------------- classes */

struct class {
    struct range ranges[CLASS_MAX_RANGES];
    size_t count;
};

static int add_range(struct reader *r, struct class *class, uint32_t low, uint32_t high) {
    if (class->count == CLASS_MAX_RANGES) return reader_fail(r, "a class with more than %d ranges", CLASS_MAX_RANGES);
    class->ranges[class->count++] = (struct range){low, high};
    return 0;
}

/* \d \w \s, and their opposites within ASCII: beyond it, engines disagree on what a digit or letter is. */
static int add_named(struct reader *r, struct class *class, char name) {
    static const struct range digits[] = {{'0', '9'}}, words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
                              spaces[] = {{9, 13}, {' ', ' '}};
    const struct range *set = name == 'd' || name == 'D' ? digits : name == 'w' || name == 'W' ? words : spaces;
    size_t count = set == digits ? 1 : set == words ? 4 : 2;
    uint32_t low = 0;
    int status = 0;
    bool opposite = name < 'a';
    for (size_t i = 0; !status && i < count; i++) {
        if (!opposite)
            status = add_range(r, class, set[i].low, set[i].high);
        else if (set[i].low > low)
            status = add_range(r, class, low, set[i].low - 1);
        low = set[i].high + 1;
    }
    return status || !opposite ? status : add_range(r, class, low, 0x7F);
}

/* An escape behind "\": a single character, or the name of a class (then *named is set). */
static int parse_escape(struct reader *r, uint32_t *out, char *named) {
    static const char from[] = "tnrfv0", to[] = "\t\n\r\f\v";
    *named = 0;
    if (!reader_more(r)) return reader_fail(r, "the pattern ends behind \\");
    char c = r->text[r->at];
    const char *known = c ? strchr(from, c) : NULL;
    if (c && strchr("dDwWsS", c)) {
        *named = c;
        r->at++;
        return 0;
    }
    if (known) {
        *out = (uint32_t)(unsigned char)to[known - from];
        r->at++;
        return 0;
    }
    if (c == 'x' || c == 'u') {
        r->at++;
        return reader_hex(r, c == 'x' ? 2 : 4, out);
    }
    if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'))
        return reader_fail(r, "\\%c is not supported in patterns", c);
    return reader_scalar(r, out);
}

/* One end of a range; *named when it is a class like \d instead. */
static int class_atom(struct reader *r, uint32_t *out, char *named) {
    *named = 0;
    if (reader_skip(r, '\\')) {
        if (reader_skip(r, 'b')) {
            *out = '\b';
            return 0;
        }
        return parse_escape(r, out, named);
    }
    return reader_scalar(r, out);
}

/* Behind "[". */
static int parse_class(struct reader *r, const struct expr **out) {
    struct class class = {.count = 0};
    bool negate = reader_skip(r, '^'), ascii = false;
    int status = 0;
    while (!status && !reader_skip(r, ']')) {
        uint32_t low = 0, high;
        char named, named_high = 0;
        status = class_atom(r, &low, &named);
        if (!status && named) {
            status = add_named(r, &class, named);
            ascii = true;
            continue;
        }
        high = low;
        bool dash = r->at + 1 < r->bytes && r->text[r->at] == '-' && r->text[r->at + 1] != ']';
        if (!status && dash) {
            r->at++;
            status = class_atom(r, &high, &named_high);
        }
        if (!status && (named_high || high < low)) return reader_fail(r, "the range in [ ] ends before it begins");
        if (!status) status = add_range(r, &class, low, high);
    }
    /* [^\d] must not let in what other engines also call a digit. */
    if (!status && negate && ascii) status = add_range(r, &class, 0x80, 0x10FFFF);
    if (status) return status;
    *out = expr_class(r->b, class.ranges, class.count, negate, r->json);
    return *out ? 0 : SHU_E_NOMEM;
}

/* ------------------------------------------------------------------- atoms */

static int parse_group(struct reader *r, const struct expr **out) {
    if (reader_skip(r, '?') && !reader_skip(r, ':'))
        return reader_fail(r, "only ( ) and (?: ) are supported: no look-around, no named groups");
    if (++r->depth > GRAMMAR_MAX_NESTING) return reader_fail(r, "more than %d nested groups", GRAMMAR_MAX_NESTING);
    int status = reader_choice(r, parse_sequence, out);
    r->depth--;
    if (!status && !reader_skip(r, ')')) return reader_fail(r, "expected )");
    return status;
}

static int parse_dot(struct reader *r, const struct expr **out) {
    static const struct range ends[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    *out = expr_class(r->b, ends, 3, true, r->json);
    return *out ? 0 : SHU_E_NOMEM;
}

static int parse_atom(struct reader *r, const struct expr **out) {
    if (reader_skip(r, '(')) return parse_group(r, out);
    if (reader_skip(r, '[')) return parse_class(r, out);
    if (reader_skip(r, '.')) return parse_dot(r, out);
    char c = r->text[r->at], named = 0;
    if (c && strchr("*+?{", c)) return reader_fail(r, "nothing stands before %c to repeat", c);
    if (c == '^' || c == '$') return reader_fail(r, "%c is only supported at the outer ends of the pattern", c);
    struct class class = {.count = 0};
    uint32_t scalar = 0;
    int status = reader_skip(r, '\\') ? parse_escape(r, &scalar, &named) : reader_scalar(r, &scalar);
    if (!status) status = named ? add_named(r, &class, named) : add_range(r, &class, scalar, scalar);
    if (status) return status;
    *out = expr_class(r->b, class.ranges, class.count, false, r->json);
    return *out ? 0 : SHU_E_NOMEM;
}

static bool at_end(const struct reader *r) {
    if (!reader_more(r) || r->text[r->at] == '|' || r->text[r->at] == ')') return true;
    /* "$" in front of an outer end is an anchor, read by the caller */
    return r->depth == 0 && r->text[r->at] == '$' && (r->at + 1 == r->bytes || r->text[r->at + 1] == '|');
}

static int parse_sequence(struct reader *r, const struct expr **out) {
    struct expr_items items = {0};
    int status = 0;
    while (!status && !at_end(r)) {
        const struct expr *atom = NULL;
        bool repeated;
        int64_t min, max;
        status = parse_atom(r, &atom);
        if (!status) status = reader_repeat(r, &repeated, &min, &max);
        if (!status && repeated) {
            atom = expr_repeat(r->b, atom, min, max);
            (void)reader_skip(r, '?'); /* lazy or not, the same texts match */
        }
        if (!status) status = expr_push(r->b, &items, atom);
    }
    if (!status) *out = expr_list(r->b, EXPR_SEQ, items.items, items.count);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}

static const struct expr *anything(struct reader *r) {
    return expr_repeat(r->b, expr_class(r->b, NULL, 0, true, r->json), 0, -1);
}

/* Outer alternatives, each with anchors of its own; without them, anything may stand around. */
int regex_parse(struct builder *b, const char *pattern, size_t bytes, bool json, const char *where,
                const struct expr **out) {
    struct reader r = {.b = b, .text = pattern, .bytes = bytes, .json = json, .where = where};
    struct expr_items choices = {0};
    int status = 0;
    do {
        struct expr_items parts = {0};
        const struct expr *body = NULL;
        if (!reader_skip(&r, '^')) status = expr_push(b, &parts, anything(&r));
        if (!status) status = parse_sequence(&r, &body);
        if (!status) status = expr_push(b, &parts, body);
        if (!status && !reader_skip(&r, '$')) status = expr_push(b, &parts, anything(&r));
        if (!status) status = expr_push(b, &choices, expr_list(b, EXPR_SEQ, parts.items, parts.count));
    } while (!status && reader_skip(&r, '|'));
    if (!status && reader_more(&r)) return reader_fail(&r, "unexpected \")\"");
    if (!status) *out = expr_list(b, EXPR_ALT, choices.items, choices.count);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}
