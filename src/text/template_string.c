/* Chat templates: text helpers and the methods of strings (Python's str). */
#include "text/template.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

/* ----------------------------------------------------------------- helpers */

uint32_t text_scalar(const struct text *text, size_t at, int *bytes) {
    uint32_t scalar;
    unsigned char first = (unsigned char)text->data[at];
    *bytes = 1;
    if (first < 128) return first;
    int n = utf8_decode(text->data + at, text->bytes - at, &scalar);
    if (n == 0) return 0xFFFD;
    *bytes = n;
    return scalar;
}

size_t text_length(const struct text *text) {
    size_t count = 0;
    for (size_t at = 0; at < text->bytes; count++) {
        int n = 1;
        if ((unsigned char)text->data[at] >= 128) text_scalar(text, at, &n);
        at += (size_t)n;
    }
    return count;
}

size_t text_offset(const struct text *text, size_t code_points) {
    size_t at = 0;
    for (; code_points > 0 && at < text->bytes; code_points--) {
        int n = 1;
        if ((unsigned char)text->data[at] >= 128) text_scalar(text, at, &n);
        at += (size_t)n;
    }
    return at;
}

bool text_is(const struct text *text, const char *literal) {
    size_t n = strlen(literal);
    return text->bytes == n && memcmp(text->data, literal, n) == 0;
}

bool text_equal(const struct text *a, const struct text *b) {
    return a->bytes == b->bytes && (a->bytes == 0 || memcmp(a->data, b->data, a->bytes) == 0);
}

bool scalar_is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static bool in_set(uint32_t scalar, const struct text *set) {
    if (!set) return scalar_is_space(scalar);
    for (size_t at = 0; at < set->bytes;) {
        int n;
        if (text_scalar(set, at, &n) == scalar) return true;
        at += (size_t)n;
    }
    return false;
}

struct text string_strip(struct text text, const struct text *chars, enum strip_kind kind) {
    while ((kind & STRIP_LEFT) && text.bytes > 0) {
        int n;
        if (!in_set(text_scalar(&text, 0, &n), chars)) break;
        text.data += n;
        text.bytes -= (size_t)n;
    }
    while ((kind & STRIP_RIGHT) && text.bytes > 0) {
        size_t at = text.bytes - 1;
        int n;
        while (at > 0 && text.bytes - at < 4 && ((unsigned char)text.data[at] & 0xC0) == 0x80) at--;
        uint32_t scalar = text_scalar(&text, at, &n);
        if ((size_t)n != text.bytes - at || !in_set(scalar, chars)) break;
        text.bytes = at;
    }
    return text;
}

/* Removes Python's digit separators; false if they stand in the wrong place or the text is too long for a number. */
static bool plain_digits(struct text text, char *out, size_t bytes) {
    text = string_strip(text, NULL, STRIP_BOTH);
    size_t n = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        char c = text.data[i];
        if (c == '_') {
            bool between = i > 0 && i + 1 < text.bytes && text.data[i - 1] != '_' && text.data[i + 1] != '_' &&
                           strchr("+-.", text.data[i - 1]) == NULL;
            if (!between) return false;
            continue;
        }
        if (n + 1 >= bytes || c == 0 || scalar_is_space((unsigned char)c)) return false;
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

bool text_to_integer(struct text text, int base, int64_t *out) {
    char digits[128], *end;
    if (!plain_digits(text, digits, sizeof digits)) return false;
    errno = 0;
    long long value = strtoll(digits, &end, base);
    *out = value;
    return errno == 0 && *end == 0 && end != digits;
}

bool text_to_real(struct text text, double *out) {
    char digits[400], *end;
    if (!plain_digits(text, digits, sizeof digits) || strpbrk(digits, "xXpP(")) return false;
    *out = strtod(digits, &end);
    return *end == 0 && end != digits;
}

/* -------------------------------------------------------------------- case */

static int emit_scalar(struct interp *in, uint32_t scalar) {
    char bytes[4];
    int n = utf8_encode(scalar, bytes);
    return emit(in, bytes, (size_t)n);
}

/* Capitals that are longer than their letter; the rest comes from the locale's table. */
static const char *special_upper(uint32_t scalar, bool title) {
    switch (scalar) {
    case 0xDF:
        return title ? "Ss" : "SS";
    case 0xFB00:
        return title ? "Ff" : "FF";
    case 0xFB01:
        return title ? "Fi" : "FI";
    case 0xFB02:
        return title ? "Fl" : "FL";
    default:
        return NULL;
    }
}

static int emit_cased(struct interp *in, uint32_t scalar, bool upper, bool title) {
    const char *special = upper ? special_upper(scalar, title) : NULL;
    if (special) return emit_text(in, special);
    return emit_scalar(in, (uint32_t)(upper ? towupper_l((wint_t)scalar, in->tpl->locale)
                                            : towlower_l((wint_t)scalar, in->tpl->locale)));
}

static bool is_cased(const struct interp *in, uint32_t scalar) {
    return iswupper_l((wint_t)scalar, in->tpl->locale) || iswlower_l((wint_t)scalar, in->tpl->locale);
}

int string_case(struct interp *in, const struct text *text, enum case_kind kind, struct value *out) {
    size_t mark = scratch_begin(in);
    int status = 0;
    bool word = false;
    for (size_t at = 0; !status && at < text->bytes;) {
        int n;
        uint32_t scalar = text_scalar(text, at, &n);
        bool upper = kind == CASE_UPPER || (kind == CASE_CAPITALIZE && at == 0) || (kind == CASE_TITLE && !word) ||
                     (kind == CASE_SWAP && iswlower_l((wint_t)scalar, in->tpl->locale));
        if (n == 1 && scalar == 0xFFFD)
            status = emit(in, text->data + at, 1);
        else
            status = emit_cased(in, scalar, upper, kind == CASE_TITLE || kind == CASE_CAPITALIZE);
        word = is_cased(in, scalar);
        at += (size_t)n;
    }
    return status ? status : scratch_end(in, mark, out);
}

/* ---------------------------------------------------------------- searching */

static const char *find_text(const char *from, const char *end, const struct text *what) {
    if (what->bytes > (size_t)(end - from)) return NULL;
    return memmem(from, (size_t)(end - from), what->data, what->bytes);
}

static int replace_empty(struct interp *in, const struct text *text, const struct text *with, int64_t count) {
    int status = 0;
    for (size_t at = 0; !status;) {
        int n = 0;
        if (count-- > 0) status = emit(in, with->data, with->bytes);
        if (at >= text->bytes) break;
        text_scalar(text, at, &n);
        if (!status) status = emit(in, text->data + at, (size_t)n);
        at += (size_t)n;
    }
    return status;
}

int string_replace(struct interp *in, const struct text *text, const struct text *old, const struct text *with,
                   int64_t count, struct value *out) {
    size_t mark = scratch_begin(in);
    int status = template_charge(in, text->bytes / 64);
    if (count < 0) count = INT64_MAX;
    if (old->bytes == 0) {
        if (!status) status = replace_empty(in, text, with, count);
        return status ? status : scratch_end(in, mark, out);
    }
    const char *at = text->data, *end = text->data + text->bytes, *hit;
    while (!status && count-- > 0 && (hit = find_text(at, end, old))) {
        status = emit(in, at, (size_t)(hit - at));
        if (!status) status = emit(in, with->data, with->bytes);
        at = hit + old->bytes;
    }
    if (!status) status = emit(in, at, (size_t)(end - at));
    return status ? status : scratch_end(in, mark, out);
}

int string_escape(struct interp *in, struct value value, struct value *out) {
    if (value.kind == VAL_STRING && (value.flag & FLAG_MARKUP)) {
        *out = value;
        return 0;
    }
    int status = value_to_string(in, value, &value);
    size_t mark = scratch_begin(in);
    for (size_t i = 0; !status && i < value.text->bytes; i++) {
        char c = value.text->data[i];
        const char *entity = c == '&'    ? "&amp;"
                             : c == '<'  ? "&lt;"
                             : c == '>'  ? "&gt;"
                             : c == '"'  ? "&#34;"
                             : c == '\'' ? "&#39;"
                                         : NULL;
        status = entity ? emit_text(in, entity) : emit(in, &c, 1);
    }
    if (!status) status = scratch_end(in, mark, out);
    out->flag = FLAG_MARKUP;
    return status;
}

/* where: -1 text at the left, 0 centred, 1 text at the right. */
int string_center(struct interp *in, const struct text *text, int64_t width, const char *fill, int where,
                  struct value *out) {
    int64_t length = (int64_t)text_length(text), pad = width > length ? width - length : 0;
    int64_t left = where < 0 ? 0 : where > 0 ? pad : pad / 2 + (pad & width & 1);
    size_t mark = scratch_begin(in);
    int status = 0;
    for (int64_t i = 0; !status && i < left; i++) status = emit_text(in, fill);
    if (!status) status = emit(in, text->data, text->bytes);
    for (int64_t i = left; !status && i < pad; i++) status = emit_text(in, fill);
    return status ? status : scratch_end(in, mark, out);
}

/* find_last compares at every position: its worst case is paid for in advance. */
static int charge_find_last(struct interp *in, const struct text *text, const struct text *what) {
    return template_charge(in, (text->bytes / 64 + 1) * (what->bytes / 64 + 1));
}

/* ---------------------------------------------------------- argument checks */

static int need_string(struct interp *in, struct value value, const struct text **out) {
    static const struct text none = {"", 0};
    *out = value.kind == VAL_STRING ? value.text : &none;
    return value.kind == VAL_STRING ? 0 : TPL_FAIL(in, "expected a string argument, found %s", value_kind_name(value));
}

static int optional_integer(struct interp *in, struct value value, int64_t fallback, int64_t *out) {
    *out = fallback;
    if (value.kind == VAL_ABSENT) return 0;
    if (!value_is_integer(value)) return TPL_FAIL(in, "expected an integer argument, found %s", value_kind_name(value));
    *out = value_integer(value);
    return 0;
}

static int optional_string(struct interp *in, struct value value, const struct text **out) {
    *out = NULL;
    return value.kind == VAL_ABSENT || value.kind == VAL_NONE ? 0 : need_string(in, value, out);
}

/* A result cut out of self keeps its markup flag. */
static int piece(struct interp *in, const struct call *call, const char *data, size_t bytes, struct value *out) {
    int status = value_borrow(in, data, bytes, out);
    out->flag = call->self.flag;
    return status;
}

/* ----------------------------------------------------------------- methods */

static int strip_method(struct interp *in, const struct call *call, enum strip_kind kind, struct value *out) {
    const struct text *chars;
    int status = optional_string(in, call->arg[0], &chars);
    if (!status) status = template_charge(in, call->self.text->bytes / 64);
    if (status) return status;
    struct text result = string_strip(*call->self.text, chars, kind);
    return piece(in, call, result.data, result.bytes, out);
}
static int m_strip(struct interp *in, const struct call *call, struct value *out) {
    return strip_method(in, call, STRIP_BOTH, out);
}
static int m_lstrip(struct interp *in, const struct call *call, struct value *out) {
    return strip_method(in, call, STRIP_LEFT, out);
}
static int m_rstrip(struct interp *in, const struct call *call, struct value *out) {
    return strip_method(in, call, STRIP_RIGHT, out);
}

static int case_method(struct interp *in, const struct call *call, enum case_kind kind, struct value *out) {
    int status = string_case(in, call->self.text, kind, out);
    out->flag = call->self.flag;
    return status;
}
static int m_upper(struct interp *in, const struct call *call, struct value *out) {
    return case_method(in, call, CASE_UPPER, out);
}
static int m_lower(struct interp *in, const struct call *call, struct value *out) {
    return case_method(in, call, CASE_LOWER, out);
}
static int m_title(struct interp *in, const struct call *call, struct value *out) {
    return case_method(in, call, CASE_TITLE, out);
}
static int m_capitalize(struct interp *in, const struct call *call, struct value *out) {
    return case_method(in, call, CASE_CAPITALIZE, out);
}
static int m_swapcase(struct interp *in, const struct call *call, struct value *out) {
    return case_method(in, call, CASE_SWAP, out);
}

static int append_piece(struct interp *in, const struct call *call, struct value *list, size_t *cap, const char *data,
                        size_t bytes) {
    struct sequence *items = list->sequence;
    if (items->count == *cap) {
        size_t grown = *cap ? *cap * 2 : 8;
        struct value *copy = template_alloc(in, grown, sizeof *copy);
        if (!copy) return SHU_E_NOMEM;
        if (items->count) memcpy(copy, items->items, items->count * sizeof *copy);
        items->items = copy;
        *cap = grown;
    }
    int status = template_charge(in, 1 + bytes / 64);
    return status ? status : piece(in, call, data, bytes, &items->items[items->count++]);
}

static int split_spaces(struct interp *in, const struct call *call, int64_t limit, struct value *list) {
    struct text rest = string_strip(*call->self.text, NULL, STRIP_LEFT);
    size_t cap = 0;
    int status = 0;
    while (!status && rest.bytes > 0) {
        size_t end = 0;
        if (limit-- <= 0) end = rest.bytes;
        while (end < rest.bytes) {
            int n;
            if (scalar_is_space(text_scalar(&rest, end, &n))) break;
            end += (size_t)n;
        }
        status = append_piece(in, call, list, &cap, rest.data, end);
        rest.data += end;
        rest.bytes -= end;
        rest = string_strip(rest, NULL, STRIP_LEFT);
    }
    return status;
}

static int split_separator(struct interp *in, const struct call *call, const struct text *separator, int64_t limit,
                           struct value *list) {
    const char *at = call->self.text->data, *end = at + call->self.text->bytes, *hit;
    size_t cap = 0;
    int status = 0;
    while (!status && limit-- > 0 && (hit = find_text(at, end, separator))) {
        status = append_piece(in, call, list, &cap, at, (size_t)(hit - at));
        at = hit + separator->bytes;
    }
    return status ? status : append_piece(in, call, list, &cap, at, (size_t)(end - at));
}

static void reverse(struct sequence *items) {
    for (size_t i = 0; i < items->count / 2; i++) {
        struct value swap = items->items[i];
        items->items[i] = items->items[items->count - 1 - i];
        items->items[items->count - 1 - i] = swap;
    }
}

static int rsplit_spaces(struct interp *in, const struct call *call, int64_t limit, struct value *list) {
    struct text rest = string_strip(*call->self.text, NULL, STRIP_RIGHT);
    size_t cap = 0;
    int status = 0;
    while (!status && rest.bytes > 0) {
        size_t from = 0;
        for (size_t at = 0; limit > 0 && at < rest.bytes;) {
            int n;
            bool space = scalar_is_space(text_scalar(&rest, at, &n));
            at += (size_t)n;
            if (space) from = at;
        }
        limit--;
        status = append_piece(in, call, list, &cap, rest.data + from, rest.bytes - from);
        if (!status) status = template_charge(in, rest.bytes / 16);
        rest.bytes = from;
        rest = string_strip(rest, NULL, STRIP_RIGHT);
    }
    reverse(list->sequence);
    return status;
}

static const char *find_last(const char *from, const char *end, const struct text *what) {
    if (what->bytes > (size_t)(end - from)) return NULL;
    for (size_t at = (size_t)(end - from) - what->bytes + 1; at-- > 0;)
        if (what->bytes == 0 || memcmp(from + at, what->data, what->bytes) == 0) return from + at;
    return NULL;
}

static int rsplit_separator(struct interp *in, const struct call *call, const struct text *separator, int64_t limit,
                            struct value *list) {
    const char *from = call->self.text->data, *end = from + call->self.text->bytes, *hit;
    size_t cap = 0;
    int status = charge_find_last(in, call->self.text, separator);
    while (!status && limit-- > 0 && (hit = find_last(from, end, separator))) {
        status = append_piece(in, call, list, &cap, hit + separator->bytes, (size_t)(end - hit) - separator->bytes);
        end = hit;
    }
    if (!status) status = append_piece(in, call, list, &cap, from, (size_t)(end - from));
    reverse(list->sequence);
    return status;
}

static int split_method(struct interp *in, const struct call *call, bool right, struct value *out) {
    const struct text *separator;
    int64_t limit;
    int status = optional_string(in, call->arg[0], &separator);
    if (!status) status = optional_integer(in, call->arg[1], -1, &limit);
    if (!status) status = value_sequence(in, VAL_LIST, 0, out);
    if (status) return status;
    if (limit < 0) limit = INT64_MAX;
    if (separator && separator->bytes == 0) return TPL_FAIL(in, "split: the separator is empty");
    if (!separator) return right ? rsplit_spaces(in, call, limit, out) : split_spaces(in, call, limit, out);
    return right ? rsplit_separator(in, call, separator, limit, out) : split_separator(in, call, separator, limit, out);
}
static int m_split(struct interp *in, const struct call *call, struct value *out) {
    return split_method(in, call, false, out);
}
static int m_rsplit(struct interp *in, const struct call *call, struct value *out) {
    return split_method(in, call, true, out);
}

static bool is_line_end(uint32_t c) {
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static int m_splitlines(struct interp *in, const struct call *call, struct value *out) {
    const struct text *text = call->self.text;
    bool keep = call->arg[0].kind != VAL_ABSENT && value_truth(call->arg[0]);
    size_t cap = 0, start = 0;
    int status = value_sequence(in, VAL_LIST, 0, out);
    for (size_t at = 0; !status && at < text->bytes;) {
        int n;
        uint32_t scalar = text_scalar(text, at, &n);
        size_t end = at;
        at += (size_t)n;
        if (!is_line_end(scalar)) continue;
        if (scalar == '\r' && at < text->bytes && text->data[at] == '\n') at++;
        status = append_piece(in, call, out, &cap, text->data + start, (keep ? at : end) - start);
        start = at;
    }
    return status || start == text->bytes ? status
                                          : append_piece(in, call, out, &cap, text->data + start, text->bytes - start);
}

/* [start, end) in code points, Python rules, as a piece of self. */
static int window(struct interp *in, const struct call *call, int start_arg, struct text *out, int64_t *first) {
    int64_t length = (int64_t)text_length(call->self.text), start, end;
    struct value a = call->arg[start_arg], b = call->arg[start_arg + 1];
    if (a.kind == VAL_NONE) a = value_of(VAL_ABSENT);
    if (b.kind == VAL_NONE) b = value_of(VAL_ABSENT);
    int status = optional_integer(in, a, 0, &start);
    if (!status) status = optional_integer(in, b, length, &end);
    if (!status) status = template_charge(in, call->self.text->bytes / 64);
    if (status) return status;
    if (start < 0) start = start < -length ? 0 : start + length;
    if (end < 0) end = end < -length ? 0 : end + length;
    if (end > length) end = length;
    *first = start;
    size_t from = text_offset(call->self.text, start > length ? (size_t)length : (size_t)start);
    size_t to = text_offset(call->self.text, (size_t)end);
    *out = (struct text){call->self.text->data + from, to > from ? to - from : 0};
    if (start > end) *first = -1; /* nothing matches here, not even the empty string */
    return 0;
}

static bool has_affix(const struct text *text, const struct text *affix, bool at_end) {
    if (affix->bytes > text->bytes) return false;
    return affix->bytes == 0 ||
           memcmp(text->data + (at_end ? text->bytes - affix->bytes : 0), affix->data, affix->bytes) == 0;
}

static int affix_method(struct interp *in, const struct call *call, bool at_end, struct value *out) {
    struct text text;
    int64_t first;
    int status = window(in, call, 1, &text, &first);
    bool found = false;
    if (status) return status;
    if (call->arg[0].kind == VAL_TUPLE) {
        const struct sequence *items = call->arg[0].sequence;
        for (size_t i = 0; !status && i < items->count; i++) {
            const struct text *affix;
            status = need_string(in, items->items[i], &affix);
            if (!status) found = found || (first >= 0 && has_affix(&text, affix, at_end));
        }
    } else {
        const struct text *affix;
        status = need_string(in, call->arg[0], &affix);
        if (!status) found = first >= 0 && has_affix(&text, affix, at_end);
    }
    *out = value_bool(found);
    return status;
}
static int m_startswith(struct interp *in, const struct call *call, struct value *out) {
    return affix_method(in, call, false, out);
}
static int m_endswith(struct interp *in, const struct call *call, struct value *out) {
    return affix_method(in, call, true, out);
}

static int search_method(struct interp *in, const struct call *call, bool last, bool must, struct value *out) {
    const struct text *what;
    struct text text;
    int64_t first;
    int status = need_string(in, call->arg[0], &what);
    if (!status) status = window(in, call, 1, &text, &first);
    if (!status && last) status = charge_find_last(in, &text, what);
    if (status) return status;
    const char *end = text.data + text.bytes, *hit = NULL;
    if (first >= 0)
        hit = last ? find_last(text.data, end, what) : what->bytes ? find_text(text.data, end, what) : text.data;
    if (!hit && must) return TPL_FAIL(in, "index: the substring was not found");
    struct text before = {text.data, hit ? (size_t)(hit - text.data) : 0};
    *out = value_int(hit ? first + (int64_t)text_length(&before) : -1);
    return 0;
}
static int m_find(struct interp *in, const struct call *call, struct value *out) {
    return search_method(in, call, false, false, out);
}
static int m_rfind(struct interp *in, const struct call *call, struct value *out) {
    return search_method(in, call, true, false, out);
}
static int m_index(struct interp *in, const struct call *call, struct value *out) {
    return search_method(in, call, false, true, out);
}
static int m_rindex(struct interp *in, const struct call *call, struct value *out) {
    return search_method(in, call, true, true, out);
}

static int m_count(struct interp *in, const struct call *call, struct value *out) {
    const struct text *what;
    struct text text;
    int64_t first, count = 0;
    int status = need_string(in, call->arg[0], &what);
    if (!status) status = window(in, call, 1, &text, &first);
    if (status) return status;
    const char *at = text.data, *end = at + text.bytes;
    if (what->bytes == 0)
        count = first >= 0 ? (int64_t)text_length(&text) + 1 : 0;
    else
        while ((at = find_text(at, end, what))) {
            count++;
            at += what->bytes;
        }
    *out = value_int(count);
    return 0;
}

static int m_replace(struct interp *in, const struct call *call, struct value *out) {
    const struct text *old, *with;
    int64_t count;
    int status = need_string(in, call->arg[0], &old);
    if (!status) status = need_string(in, call->arg[1], &with);
    if (!status) status = optional_integer(in, call->arg[2], -1, &count);
    if (!status) status = string_replace(in, call->self.text, old, with, count, out);
    out->flag = call->self.flag;
    return status;
}

static int m_join(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    size_t mark = scratch_begin(in);
    int status = value_iterate(in, call->arg[0], &items);
    for (size_t i = 0; !status && i < items->count; i++) {
        const struct text *item;
        if (i) status = value_print(in, call->self);
        if (!status) status = need_string(in, items->items[i], &item);
        if (!status) status = emit(in, item->data, item->bytes);
    }
    if (!status)
        status = scratch_end(in, mark, out);
    else
        in->out.len = mark;
    out->flag = call->self.flag;
    return status;
}

static int m_format(struct interp *in, const struct call *call, struct value *out) {
    return format_braces(in, call->self.text, call->raw, out);
}

static int pad_method(struct interp *in, const struct call *call, int where, struct value *out) {
    const struct text *fill = NULL;
    char text[8] = " ";
    int64_t width;
    int status = optional_integer(in, call->arg[0], 0, &width);
    if (!status && call->arg[1].kind != VAL_ABSENT) status = need_string(in, call->arg[1], &fill);
    if (status) return status;
    if (fill && text_length(fill) != 1) return TPL_FAIL(in, "the fill character must be exactly one character");
    if (fill) {
        memcpy(text, fill->data, fill->bytes);
        text[fill->bytes] = 0;
    }
    return string_center(in, call->self.text, width, text, where, out);
}
static int m_center(struct interp *in, const struct call *call, struct value *out) {
    return pad_method(in, call, 0, out);
}
static int m_ljust(struct interp *in, const struct call *call, struct value *out) {
    return pad_method(in, call, -1, out);
}
static int m_rjust(struct interp *in, const struct call *call, struct value *out) {
    return pad_method(in, call, 1, out);
}

static int m_zfill(struct interp *in, const struct call *call, struct value *out) {
    int64_t width;
    const struct text *text = call->self.text;
    int status = optional_integer(in, call->arg[0], 0, &width);
    size_t mark = scratch_begin(in), sign = text->bytes && (text->data[0] == '-' || text->data[0] == '+');
    int64_t pad = width - (int64_t)text_length(text);
    if (!status) status = emit(in, text->data, sign);
    for (; !status && pad > 0; pad--) status = emit_text(in, "0");
    if (!status) status = emit(in, text->data + sign, text->bytes - sign);
    return status ? status : scratch_end(in, mark, out);
}

static int remove_affix(struct interp *in, const struct call *call, bool at_end, struct value *out) {
    const struct text *affix, *text = call->self.text;
    int status = need_string(in, call->arg[0], &affix);
    if (status) return status;
    size_t cut = has_affix(text, affix, at_end) ? affix->bytes : 0;
    return piece(in, call, text->data + (at_end ? 0 : cut), text->bytes - cut, out);
}
static int m_removeprefix(struct interp *in, const struct call *call, struct value *out) {
    return remove_affix(in, call, false, out);
}
static int m_removesuffix(struct interp *in, const struct call *call, struct value *out) {
    return remove_affix(in, call, true, out);
}

static int partition_method(struct interp *in, const struct call *call, bool last, struct value *out) {
    const struct text *separator, *text = call->self.text;
    int status = need_string(in, call->arg[0], &separator);
    if (!status && last) status = charge_find_last(in, text, separator);
    if (status) return status;
    if (separator->bytes == 0) return TPL_FAIL(in, "partition: the separator is empty");
    const char *end = text->data + text->bytes;
    const char *hit = last ? find_last(text->data, end, separator) : find_text(text->data, end, separator);
    size_t cuts[3] = {hit ? (size_t)(hit - text->data) : last ? 0 : text->bytes, hit ? separator->bytes : 0, 0};
    cuts[2] = text->bytes - cuts[0] - cuts[1];
    status = value_sequence(in, VAL_TUPLE, 3, out);
    const char *at = text->data;
    for (int i = 0; !status && i < 3; at += cuts[i++]) status = piece(in, call, at, cuts[i], &out->sequence->items[i]);
    return status;
}
static int m_partition(struct interp *in, const struct call *call, struct value *out) {
    return partition_method(in, call, false, out);
}
static int m_rpartition(struct interp *in, const struct call *call, struct value *out) {
    return partition_method(in, call, true, out);
}

/* ------------------------------------------------------------- is…() methods */

enum class_kind { CLASS_DIGIT, CLASS_ALPHA, CLASS_ALNUM, CLASS_SPACE, CLASS_ASCII, CLASS_PRINTABLE };

static bool in_class(const struct interp *in, uint32_t c, enum class_kind kind) {
    locale_t locale = in->tpl->locale;
    bool digit = (c >= '0' && c <= '9') || (c >= 0xFF10 && c <= 0xFF19) || (c >= 0x660 && c <= 0x669) ||
                 (c >= 0x966 && c <= 0x96F);
    switch (kind) {
    case CLASS_DIGIT:
        return digit;
    case CLASS_ALPHA:
        return !digit && iswalpha_l((wint_t)c, locale);
    case CLASS_ALNUM:
        return digit || iswalnum_l((wint_t)c, locale);
    case CLASS_SPACE:
        return scalar_is_space(c);
    case CLASS_ASCII:
        return c < 128;
    default:
        return c == ' ' || (!scalar_is_space(c) && iswprint_l((wint_t)c, locale));
    }
}

static int class_method(struct interp *in, const struct call *call, enum class_kind kind, bool if_empty,
                        struct value *out) {
    const struct text *text = call->self.text;
    bool all = text->bytes || if_empty;
    for (size_t at = 0; all && at < text->bytes;) {
        int n;
        all = in_class(in, text_scalar(text, at, &n), kind);
        at += (size_t)n;
    }
    *out = value_bool(all);
    return template_charge(in, text->bytes / 64);
}
static int m_isdigit(struct interp *in, const struct call *call, struct value *out) {
    return class_method(in, call, CLASS_DIGIT, false, out);
}
static int m_isalpha(struct interp *in, const struct call *call, struct value *out) {
    return class_method(in, call, CLASS_ALPHA, false, out);
}
static int m_isalnum(struct interp *in, const struct call *call, struct value *out) {
    return class_method(in, call, CLASS_ALNUM, false, out);
}
static int m_isspace(struct interp *in, const struct call *call, struct value *out) {
    return class_method(in, call, CLASS_SPACE, false, out);
}
static int m_isascii(struct interp *in, const struct call *call, struct value *out) {
    return class_method(in, call, CLASS_ASCII, true, out);
}
static int m_isprintable(struct interp *in, const struct call *call, struct value *out) {
    return class_method(in, call, CLASS_PRINTABLE, true, out);
}

bool text_is_case(const struct interp *in, const struct text *text, bool upper) {
    bool cased = false;
    for (size_t at = 0; at < text->bytes;) {
        int n;
        wint_t c = (wint_t)text_scalar(text, at, &n);
        bool is_upper = iswupper_l(c, in->tpl->locale) != 0, is_lower = iswlower_l(c, in->tpl->locale) != 0;
        if (upper ? is_lower : is_upper) return false;
        cased |= is_upper || is_lower;
        at += (size_t)n;
    }
    return cased;
}
static int m_isupper(struct interp *in, const struct call *call, struct value *out) {
    *out = value_bool(text_is_case(in, call->self.text, true));
    return template_charge(in, call->self.text->bytes / 64);
}
static int m_islower(struct interp *in, const struct call *call, struct value *out) {
    *out = value_bool(text_is_case(in, call->self.text, false));
    return template_charge(in, call->self.text->bytes / 64);
}

static const struct builtin methods[] = {
    {"strip", "chars", 0, m_strip},
    {"lstrip", "chars", 0, m_lstrip},
    {"rstrip", "chars", 0, m_rstrip},
    {"split", "sep maxsplit", 0, m_split},
    {"rsplit", "sep maxsplit", 0, m_rsplit},
    {"splitlines", "keepends", 0, m_splitlines},
    {"startswith", "prefix start end", 1, m_startswith},
    {"endswith", "suffix start end", 1, m_endswith},
    {"upper", "", 0, m_upper},
    {"lower", "", 0, m_lower},
    {"casefold", "", 0, m_lower},
    {"title", "", 0, m_title},
    {"capitalize", "", 0, m_capitalize},
    {"swapcase", "", 0, m_swapcase},
    {"replace", "old new count", 2, m_replace},
    {"join", "iterable", 1, m_join},
    {"format", NULL, 0, m_format},
    {"find", "sub start end", 1, m_find},
    {"rfind", "sub start end", 1, m_rfind},
    {"index", "sub start end", 1, m_index},
    {"rindex", "sub start end", 1, m_rindex},
    {"count", "sub start end", 1, m_count},
    {"center", "width fillchar", 1, m_center},
    {"ljust", "width fillchar", 1, m_ljust},
    {"rjust", "width fillchar", 1, m_rjust},
    {"zfill", "width", 1, m_zfill},
    {"removeprefix", "prefix", 1, m_removeprefix},
    {"removesuffix", "suffix", 1, m_removesuffix},
    {"partition", "sep", 1, m_partition},
    {"rpartition", "sep", 1, m_rpartition},
    {"isdigit", "", 0, m_isdigit},
    {"isdecimal", "", 0, m_isdigit},
    {"isnumeric", "", 0, m_isdigit},
    {"isalpha", "", 0, m_isalpha},
    {"isalnum", "", 0, m_isalnum},
    {"isspace", "", 0, m_isspace},
    {"isascii", "", 0, m_isascii},
    {"isprintable", "", 0, m_isprintable},
    {"isupper", "", 0, m_isupper},
    {"islower", "", 0, m_islower},
};

const struct builtin *string_method(const struct text *name) {
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (text_is(name, methods[i].name)) return &methods[i];
    return NULL;
}
