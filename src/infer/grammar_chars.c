/* Grammars: reading characters and repetitions, shared by patterns and EBNF. */
#include "infer/grammar_chars.h"

#include <string.h>

bool reader_more(const struct reader *r) {
    return r->at < r->bytes;
}

bool reader_skip(struct reader *r, char c) {
    if (!reader_more(r) || r->text[r->at] != c) return false;
    r->at++;
    return true;
}

int reader_fail(struct reader *r, const char *format, ...) {
    char detail[200];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    int line = 1, column = 1;
    for (size_t i = 0; i < r->at && i < r->bytes; i++) {
        column = r->text[i] == '\n' ? 1 : column + (((unsigned char)r->text[i] & 0xC0) != 0x80);
        line += r->text[i] == '\n';
    }
    return SHU_FAIL(r->b->err, SHU_E_FORMAT, "%s, line %d, column %d: %s", r->where, line, column, detail);
}

int reader_scalar(struct reader *r, uint32_t *out) {
    int n = reader_more(r) ? utf8_decode(r->text + r->at, r->bytes - r->at, out) : 0;
    if (n == 0) return reader_fail(r, reader_more(r) ? "not valid UTF-8" : "the text ends too early");
    r->at += (size_t)n;
    return 0;
}

int reader_hex(struct reader *r, int digits, uint32_t *out) {
    *out = 0;
    for (int i = 0; i < digits; i++) {
        char c = reader_more(r) ? r->text[r->at] : 0;
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (d < 0) return reader_fail(r, "expected %d hexadecimal digits", digits);
        if (*out >> 27) return reader_fail(r, "the character is beyond U+10FFFF");
        *out = *out * 16 + (uint32_t)d;
        r->at++;
    }
    if (*out > 0x10FFFF || (*out >= 0xD800 && *out <= 0xDFFF)) return reader_fail(r, "U+%04X is not a character", *out);
    return 0;
}

static int read_count(struct reader *r, int64_t *out) {
    if (!reader_more(r) || r->text[r->at] < '0' || r->text[r->at] > '9')
        return reader_fail(r, "expected a number in { }");
    *out = 0;
    for (; reader_more(r) && r->text[r->at] >= '0' && r->text[r->at] <= '9'; r->at++) {
        *out = *out * 10 + (r->text[r->at] - '0');
        if (*out > GRAMMAR_MAX_REPEAT) return reader_fail(r, "at most %d repetitions are accepted", GRAMMAR_MAX_REPEAT);
    }
    return 0;
}

int reader_repeat(struct reader *r, bool *found, int64_t *min, int64_t *max) {
    static const char signs[] = "?*+{";
    const char *sign = reader_more(r) && r->text[r->at] ? strchr(signs, r->text[r->at]) : NULL;
    *found = sign != NULL;
    if (!sign) return 0;
    r->at++;
    *min = *sign == '+';
    *max = *sign == '?' ? 1 : -1;
    if (*sign != '{') return 0;
    int status = read_count(r, min);
    *max = *min;
    if (!status && reader_skip(r, ',')) {
        *max = -1;
        if (reader_more(r) && r->text[r->at] != '}') status = read_count(r, max);
    }
    if (!status && !reader_skip(r, '}')) return reader_fail(r, "expected } behind the repetition");
    if (!status && *max >= 0 && *max < *min) return reader_fail(r, "the repetition ends before it begins");
    return status;
}

int reader_choice(struct reader *r, reader_sequence *sequence, const struct expr **out) {
    struct expr_items items = {0};
    int status = 0;
    do {
        const struct expr *one = NULL;
        status = sequence(r, &one);
        if (!status) status = expr_push(r->b, &items, one);
    } while (!status && reader_skip(r, '|'));
    if (!status) *out = expr_list(r->b, EXPR_ALT, items.items, items.count);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}
