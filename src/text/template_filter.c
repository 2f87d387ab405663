/* Chat templates: filters. Names and semantics are jinja2's; tojson is Hugging Face's. */
#include "text/template.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

/* --------------------------------------------------------------- arguments */

static bool given(struct value value) {
    return value.kind != VAL_ABSENT && value.kind != VAL_NONE;
}
static bool flag(struct value value) {
    return value.kind != VAL_ABSENT && value_truth(value);
}

static int integer_arg(struct interp *in, struct value value, int64_t fallback, int64_t *out) {
    *out = fallback;
    if (value.kind == VAL_ABSENT) return 0;
    if (!value_is_integer(value)) return TPL_FAIL(in, "expected an integer argument, found %s", value_kind_name(value));
    *out = value_integer(value);
    return 0;
}

static int text_arg(struct interp *in, struct value value, const char *fallback, struct value *out) {
    if (value.kind == VAL_ABSENT) return value_string(in, fallback, strlen(fallback), out);
    return value_to_string(in, value, out);
}

/* str() of the filtered value; |safe strings stay safe. */
static int self_text(struct interp *in, const struct call *call, struct value *out) {
    return value_to_string(in, call->self, out);
}

static int iterator(struct interp *in, size_t count, struct value *out) {
    int status = value_sequence(in, VAL_ITERATOR, count, out);
    if (!status) out->sequence->count = 0; /* filled up by the caller */
    return status;
}

/* "a.b.0": the items of an attribute path, one after the other. NULL attribute = the value itself. */
static int lookup_path(struct interp *in, struct value object, struct value attribute, struct value *out) {
    *out = object;
    if (!given(attribute)) return 0;
    if (attribute.kind != VAL_STRING) return eval_item(in, object, attribute, out);
    struct text rest = *attribute.text;
    int status = 0;
    for (bool more = true; !status && more;) {
        const char *dot = rest.bytes ? memchr(rest.data, '.', rest.bytes) : NULL;
        size_t n = dot ? (size_t)(dot - rest.data) : rest.bytes;
        struct value key;
        int64_t index;
        status = value_borrow(in, rest.data, n, &key);
        if (!status && n && rest.data[0] >= '0' && rest.data[0] <= '9' && text_to_integer(*key.text, 10, &index))
            key = value_int(index);
        if (!status) status = eval_item(in, *out, key, out);
        more = dot != NULL;
        rest.data += more ? n + 1 : 0;
        rest.bytes -= more ? n + 1 : 0;
    }
    return status;
}

/* Lower-case copy of strings unless case matters: the key by which things are sorted and compared. */
static int fold_case(struct interp *in, bool case_sensitive, struct value *value) {
    return case_sensitive || value->kind != VAL_STRING ? 0 : string_case(in, value->text, CASE_LOWER, value);
}

/* -------------------------------------------------------------------- text */

static int f_string(struct interp *in, const struct call *call, struct value *out) {
    return self_text(in, call, out);
}

static int f_safe(struct interp *in, const struct call *call, struct value *out) {
    int status = self_text(in, call, out);
    out->flag = FLAG_MARKUP;
    return status;
}

static int f_escape(struct interp *in, const struct call *call, struct value *out) {
    return string_escape(in, call->self, out);
}

static int f_forceescape(struct interp *in, const struct call *call, struct value *out) {
    int status = self_text(in, call, out);
    out->flag = 0;
    return status ? status : string_escape(in, *out, out);
}

static int case_filter(struct interp *in, const struct call *call, enum case_kind kind, struct value *out) {
    struct value text;
    int status = self_text(in, call, &text);
    if (!status) status = string_case(in, text.text, kind, out);
    out->flag = text.flag;
    return status;
}
static int f_upper(struct interp *in, const struct call *call, struct value *out) {
    return case_filter(in, call, CASE_UPPER, out);
}
static int f_lower(struct interp *in, const struct call *call, struct value *out) {
    return case_filter(in, call, CASE_LOWER, out);
}
static int f_capitalize(struct interp *in, const struct call *call, struct value *out) {
    return case_filter(in, call, CASE_CAPITALIZE, out);
}

/* jinja2's title: words begin after spaces and -({[< only, unlike str.title. */
static int f_title(struct interp *in, const struct call *call, struct value *out) {
    struct value text, letter;
    int status = self_text(in, call, &text);
    size_t mark = scratch_begin(in);
    bool start = true;
    for (size_t at = 0; !status && at < text.text->bytes;) {
        int n;
        uint32_t scalar = text_scalar(text.text, at, &n);
        struct text one = {text.text->data + at, (size_t)n};
        bool separator = scalar_is_space(scalar) || (scalar < 128 && scalar && strchr("-({[<", (int)scalar));
        status = string_case(in, &one, start ? CASE_UPPER : CASE_LOWER, &letter);
        if (!status) status = value_print(in, letter);
        start = separator;
        at += (size_t)n;
    }
    return status ? status : scratch_end(in, mark, out);
}

static int f_trim(struct interp *in, const struct call *call, struct value *out) {
    struct value text;
    int status = self_text(in, call, &text);
    if (status) return status;
    if (given(call->arg[0]) && call->arg[0].kind != VAL_STRING)
        return TPL_FAIL(in, "trim: the characters must be a string");
    struct text cut = string_strip(*text.text, given(call->arg[0]) ? call->arg[0].text : NULL, STRIP_BOTH);
    status = value_borrow(in, cut.data, cut.bytes, out);
    out->flag = text.flag;
    return status;
}

static int f_replace(struct interp *in, const struct call *call, struct value *out) {
    struct value text, old, with;
    int64_t count;
    int status = self_text(in, call, &text);
    if (!status) status = value_to_string(in, call->arg[0], &old);
    if (!status) status = value_to_string(in, call->arg[1], &with);
    if (!status) status = integer_arg(in, given(call->arg[2]) ? call->arg[2] : value_of(VAL_ABSENT), -1, &count);
    return status ? status : string_replace(in, text.text, old.text, with.text, count, out);
}

static int f_center(struct interp *in, const struct call *call, struct value *out) {
    struct value text;
    int64_t width;
    int status = self_text(in, call, &text);
    if (!status) status = integer_arg(in, call->arg[0], 80, &width);
    return status ? status : string_center(in, text.text, width, " ", 0, out);
}

static int f_format(struct interp *in, const struct call *call, struct value *out) {
    struct value text;
    int status = self_text(in, call, &text);
    if (!status && call->raw->count && call->raw->named_count)
        return TPL_FAIL(in, "format takes positional or named values, not both");
    return status ? status : format_percent(in, text.text, value_of(VAL_NONE), call->raw, out);
}

/* Lines of `text` joined with newline + indentation; blank lines stay bare unless `blank`. */
static int indent_lines(struct interp *in, const struct text *text, const struct text *indent, bool first, bool blank) {
    int status = first ? emit(in, indent->data, indent->bytes) : 0;
    size_t at = 0;
    while (!status && at < text->bytes) {
        size_t start = at;
        int n = 1;
        uint32_t scalar = 0;
        for (; at < text->bytes; at += (size_t)n) {
            scalar = text_scalar(text, at, &n);
            if ((scalar >= 10 && scalar <= 13) || (scalar >= 28 && scalar <= 30) || scalar == 0x85 ||
                scalar == 0x2028 || scalar == 0x2029)
                break;
        }
        if (start > 0 && (at > start || blank)) status = emit(in, indent->data, indent->bytes);
        if (!status) status = emit(in, text->data + start, at - start);
        if (at >= text->bytes) return status;
        at += (size_t)n;
        if (scalar == '\r' && at < text->bytes && text->data[at] == '\n') at++;
        if (!status) status = emit_text(in, "\n");
    }
    /* jinja2 adds a newline before it splits, so a trailing line end leaves one blank last line. */
    if (!status && at > 0 && blank) status = emit(in, indent->data, indent->bytes);
    return status;
}

static int f_indent(struct interp *in, const struct call *call, struct value *out) {
    struct value text, indent;
    int64_t width = 4;
    int status = self_text(in, call, &text);
    size_t mark = scratch_begin(in);
    if (!status && call->arg[0].kind == VAL_STRING) {
        indent = call->arg[0];
    } else if (!status) {
        status = integer_arg(in, call->arg[0], 4, &width);
        for (int64_t i = 0; !status && i < width; i++) status = emit_text(in, " ");
        if (!status) status = scratch_end(in, mark, &indent);
    }
    if (!status) status = indent_lines(in, text.text, indent.text, flag(call->arg[1]), flag(call->arg[2]));
    return status ? status : scratch_end(in, mark, out);
}

static int f_truncate(struct interp *in, const struct call *call, struct value *out) {
    struct value text, end;
    int64_t length, leeway;
    int status = self_text(in, call, &text);
    if (!status) status = integer_arg(in, call->arg[0], 255, &length);
    if (!status) status = text_arg(in, call->arg[2], "...", &end);
    if (!status) status = integer_arg(in, given(call->arg[3]) ? call->arg[3] : value_of(VAL_ABSENT), 5, &leeway);
    if (status) return status;
    int64_t keep = length - (int64_t)text_length(end.text);
    if (keep < 0) return TPL_FAIL(in, "truncate: the length is shorter than the end mark");
    *out = text;
    if ((int64_t)text_length(text.text) <= length + leeway) return 0;
    struct text cut = {text.text->data, text_offset(text.text, (size_t)keep)};
    if (!flag(call->arg[1])) {
        const char *space = memrchr(cut.data, ' ', cut.bytes);
        if (space) cut.bytes = (size_t)(space - cut.data);
    }
    size_t mark = scratch_begin(in);
    status = emit(in, cut.data, cut.bytes);
    if (!status) status = value_print(in, end);
    return status ? status : scratch_end(in, mark, out);
}

static int f_wordcount(struct interp *in, const struct call *call, struct value *out) {
    struct value text;
    int64_t count = 0;
    bool inside = false;
    int status = self_text(in, call, &text);
    for (size_t at = 0; !status && at < text.text->bytes;) {
        int n;
        uint32_t c = text_scalar(text.text, at, &n);
        bool word = c == '_' || (c < 128 && ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'))) ||
                    (c >= 128 && iswalnum_l((wint_t)c, in->tpl->locale));
        count += word && !inside;
        inside = word;
        at += (size_t)n;
    }
    *out = value_int(count);
    return status;
}

static int quote_url(struct interp *in, struct value value, bool query) {
    int status = value_to_string(in, value, &value);
    for (size_t i = 0; !status && i < value.text->bytes; i++) {
        unsigned char c = (unsigned char)value.text->data[i];
        char escaped[4];
        bool plain = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c && strchr("_.-~", c)) ||
                     (c == '/' && !query);
        snprintf(escaped, sizeof escaped, "%%%02X", c);
        status = plain ? emit(in, &c, 1) : c == ' ' && query ? emit_text(in, "+") : emit_text(in, escaped);
    }
    return status;
}

static int f_urlencode(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items, *pair;
    size_t mark = scratch_begin(in);
    int status = 0;
    if (call->self.kind == VAL_DICT) {
        for (size_t i = 0; !status && i < call->self.dict->count; i++) {
            if (i) status = emit_text(in, "&");
            if (!status) status = quote_url(in, call->self.dict->entries[i].key, true);
            if (!status) status = emit_text(in, "=");
            if (!status) status = quote_url(in, call->self.dict->entries[i].value, true);
        }
    } else if (value_is_sequence(call->self)) {
        status = value_iterate(in, call->self, &items);
        for (size_t i = 0; !status && i < items->count; i++) {
            if (i) status = emit_text(in, "&");
            if (!status) status = value_iterate(in, items->items[i], &pair);
            if (!status && pair->count != 2) return TPL_FAIL(in, "urlencode: expected pairs of key and value");
            if (!status) status = quote_url(in, pair->items[0], true);
            if (!status) status = emit_text(in, "=");
            if (!status) status = quote_url(in, pair->items[1], true);
        }
    } else {
        status = quote_url(in, call->self, false);
    }
    return status ? status : scratch_end(in, mark, out);
}

static int json_indent(struct interp *in, struct value value, struct json_style *style) {
    if (!given(value)) return 0;
    struct value text = value;
    size_t mark = scratch_begin(in);
    int status = 0;
    if (value.kind != VAL_STRING) {
        int64_t width;
        status = integer_arg(in, value, 0, &width);
        for (int64_t i = 0; !status && i < width; i++) status = emit_text(in, " ");
        if (!status) status = scratch_end(in, mark, &text);
    }
    if (status) return status;
    style->indent = *text.text;
    style->item = (struct text){",", 1};
    return 0;
}

static int f_tojson(struct interp *in, const struct call *call, struct value *out) {
    struct json_style style = {
        .ascii = flag(call->arg[0]), .sort = flag(call->arg[3]), .item = {", ", 2}, .key = {": ", 2}};
    int status = json_indent(in, call->arg[1], &style);
    if (!status && given(call->arg[2])) {
        struct sequence *pair;
        status = value_iterate(in, call->arg[2], &pair);
        if (status) return status;
        if (pair->count != 2 || pair->items[0].kind != VAL_STRING || pair->items[1].kind != VAL_STRING)
            return TPL_FAIL(in, "tojson: separators must be two strings");
        style.item = *pair->items[0].text;
        style.key = *pair->items[1].text;
    }
    size_t mark = scratch_begin(in);
    if (!status) status = value_to_json(in, call->self, &style, 0);
    return status ? status : scratch_end(in, mark, out);
}

/* ----------------------------------------------------------------- numbers */

static int f_int(struct interp *in, const struct call *call, struct value *out) {
    struct value v = call->self, fallback = call->arg[0].kind == VAL_ABSENT ? value_int(0) : call->arg[0];
    int64_t base, integer;
    double real;
    int status = integer_arg(in, call->arg[1], 10, &base);
    if (status) return status;
    *out = fallback;
    if (v.kind == VAL_UNDEFINED) return TPL_FAIL(in, "%.*s", (int)v.text->bytes, v.text->data);
    if (value_is_integer(v)) *out = value_int(value_integer(v));
    if (v.kind == VAL_FLOAT && !isfinite(v.real)) return 0;
    if (v.kind == VAL_FLOAT && fabs(v.real) >= 9.2e18) return TPL_FAIL(in, "int: the number does not fit into 64 bits");
    if (v.kind == VAL_FLOAT) *out = value_int((int64_t)v.real);
    if (v.kind != VAL_STRING) return 0;
    if (base < 2 || base > 36) base = 10;
    if (text_to_integer(*v.text, (int)base, &integer))
        *out = value_int(integer);
    else if (text_to_real(*v.text, &real) && fabs(real) < 9.2e18)
        *out = value_int((int64_t)real);
    return 0;
}

static int f_float(struct interp *in, const struct call *call, struct value *out) {
    struct value v = call->self;
    double real;
    *out = call->arg[0].kind == VAL_ABSENT ? value_float(0) : call->arg[0];
    if (v.kind == VAL_UNDEFINED) return TPL_FAIL(in, "%.*s", (int)v.text->bytes, v.text->data);
    if (value_is_number(v)) *out = value_float(value_real(v));
    if (v.kind == VAL_STRING && text_to_real(*v.text, &real)) *out = value_float(real);
    return 0;
}

static int f_abs(struct interp *in, const struct call *call, struct value *out) {
    if (!value_is_number(call->self)) return TPL_FAIL(in, "abs needs a number, found %s", value_kind_name(call->self));
    *out = call->self;
    if (call->self.kind == VAL_FLOAT)
        *out = value_float(fabs(call->self.real));
    else if (value_integer(call->self) < 0)
        return eval_binary(in, OP_SUB, value_int(0), call->self, out);
    else
        *out = value_int(value_integer(call->self));
    return 0;
}

/* round() to digits places: exact decimal rounding, half to even, as Python's. */
static double round_places(double number, int64_t places) {
    char text[512];
    if (!isfinite(number) || places > 300) return number;
    if (places < 0) {
        double scale = pow(10, (double)-places);
        return nearbyint(number / scale) * scale;
    }
    snprintf(text, sizeof text, "%.*f", (int)places, number);
    return strtod(text, NULL);
}

static int f_round(struct interp *in, const struct call *call, struct value *out) {
    struct value v = call->self, method;
    int64_t places;
    int status = integer_arg(in, call->arg[0], 0, &places);
    if (!status) status = text_arg(in, call->arg[1], "common", &method);
    if (status) return status;
    if (!value_is_number(v)) return TPL_FAIL(in, "round needs a number, found %s", value_kind_name(v));
    if (text_is(method.text, "common")) {
        *out = value_is_integer(v) && places >= 0 ? value_int(value_integer(v))
                                                  : value_float(round_places(value_real(v), places));
        if (value_is_integer(v) && places < 0) *out = value_int((int64_t)out->real);
        return 0;
    }
    double scale = pow(10, (double)places), scaled = value_real(v) * scale;
    if (text_is(method.text, "ceil"))
        *out = value_float(ceil(scaled) / scale);
    else if (text_is(method.text, "floor"))
        *out = value_float(floor(scaled) / scale);
    else
        return TPL_FAIL(in, "round: the method must be common, ceil or floor");
    return 0;
}

/* ------------------------------------------------------------------- lists */

static int f_length(struct interp *in, const struct call *call, struct value *out) {
    int64_t length;
    int status = value_length(in, call->self, &length);
    *out = value_int(status ? 0 : length);
    return status;
}

static int f_default(struct interp *in, const struct call *call, struct value *out) {
    *out = call->self;
    if (call->self.kind != VAL_UNDEFINED && !(flag(call->arg[1]) && !value_truth(call->self))) return 0;
    if (call->arg[0].kind == VAL_ABSENT) return value_string(in, "", 0, out);
    *out = call->arg[0];
    return 0;
}

static int f_list(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    int status = value_iterate(in, call->self, &items);
    if (!status) *out = (struct value){.kind = VAL_LIST, .sequence = items};
    return status;
}

static int f_first(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    if (call->self.kind == VAL_ITERATOR && call->self.sequence->next < call->self.sequence->count) {
        *out = call->self.sequence->items[call->self.sequence->next++];
        return 0;
    }
    int status = value_iterate(in, call->self, &items);
    if (status) return status;
    if (items->count == 0) return value_undefined(in, "no first item: the sequence is empty", NULL, "", out);
    *out = items->items[0];
    return 0;
}

static int f_last(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    if (call->self.kind == VAL_ITERATOR) return TPL_FAIL(in, "last needs a list: write \"| list | last\"");
    int status = value_iterate(in, call->self, &items);
    if (status) return status;
    if (items->count == 0) return value_undefined(in, "no last item: the sequence is empty", NULL, "", out);
    *out = items->items[items->count - 1];
    return 0;
}

static int f_join(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    struct value separator, item;
    int status = text_arg(in, call->arg[0], "", &separator);
    if (!status) status = value_iterate(in, call->self, &items);
    size_t mark = scratch_begin(in);
    for (size_t i = 0; !status && i < items->count; i++) {
        if (i) status = value_print(in, separator);
        if (!status) status = lookup_path(in, items->items[i], call->arg[1], &item);
        if (!status) status = value_print(in, item);
    }
    return status ? status : scratch_end(in, mark, out);
}

static int f_reverse(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    if (call->self.kind == VAL_ITERATOR) return TPL_FAIL(in, "reverse needs a list, not a generator");
    int status = value_iterate(in, call->self, &items);
    if (!status) status = iterator(in, items->count, out);
    if (status) return status;
    for (size_t i = 0; i < items->count; i++) out->sequence->items[i] = items->items[items->count - 1 - i];
    out->sequence->count = items->count;
    if (call->self.kind != VAL_STRING) return 0;
    size_t mark = scratch_begin(in);
    for (size_t i = 0; !status && i < items->count; i++) status = value_print(in, out->sequence->items[i]);
    return status ? status : scratch_end(in, mark, out);
}

static int f_items(struct interp *in, const struct call *call, struct value *out) {
    if (call->self.kind == VAL_UNDEFINED) return iterator(in, 0, out);
    if (call->self.kind != VAL_DICT) return TPL_FAIL(in, "items needs a dict, found %s", value_kind_name(call->self));
    static const struct text name = {"items", 5};
    static const struct arguments none = {0};
    bool unsafe;
    int status = builtin_call(in, builtin_method(call->self, &name, &unsafe), call->self, &none, out);
    out->kind = VAL_ITERATOR;
    out->flag = 0;
    return status;
}

static int f_attr(struct interp *in, const struct call *call, struct value *out) {
    if (call->arg[0].kind != VAL_STRING) return TPL_FAIL(in, "attr needs the name of an attribute");
    if (call->self.kind != VAL_DICT) return eval_attribute(in, call->self, call->arg[0].text, out);
    return value_undefined(in, "the dict has no attribute \"", call->arg[0].text, "\": use an item", out);
}

static int f_sum(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    struct value item;
    *out = call->arg[1].kind == VAL_ABSENT ? value_int(0) : call->arg[1];
    int status = value_iterate(in, call->self, &items);
    for (size_t i = 0; !status && i < items->count; i++) {
        status = lookup_path(in, items->items[i], call->arg[0], &item);
        if (!status) status = eval_binary(in, OP_ADD, *out, item, out);
    }
    return status;
}

/* ------------------------------------------------------- sorting, grouping */

/* "a,b": keys of several attributes, as a list; compared item by item. */
static int sort_key(struct interp *in, struct value item, struct value attribute, bool case_sensitive,
                    struct value *out) {
    size_t parts = 1;
    const struct text *path = given(attribute) && attribute.kind == VAL_STRING ? attribute.text : NULL;
    for (size_t i = 0; path && i < path->bytes; i++) parts += path->data[i] == ',';
    int status = value_sequence(in, VAL_LIST, parts, out);
    struct text rest = path ? *path : (struct text){"", 0};
    for (size_t i = 0; !status && i < parts; i++) {
        struct value part = attribute, *slot = &out->sequence->items[i];
        if (path) {
            const char *comma = rest.bytes ? memchr(rest.data, ',', rest.bytes) : NULL;
            size_t n = comma ? (size_t)(comma - rest.data) : rest.bytes;
            status = value_borrow(in, rest.data, n, &part);
            rest = (struct text){rest.data + n + (comma != NULL), rest.bytes - n - (comma != NULL)};
        }
        if (!status) status = lookup_path(in, item, part, slot);
        if (!status) status = fold_case(in, case_sensitive, slot);
    }
    return status;
}

struct keyed {
    struct value key, item;
};

/* Stable merge sort; comparisons can fail, so qsort does not fit. */
static int merge_sort(struct interp *in, struct keyed *items, struct keyed *scratch, size_t count, bool descending) {
    if (count < 2) return 0;
    size_t half = count / 2, a = 0, b = half, n = 0;
    int status = merge_sort(in, items, scratch, half, descending);
    if (!status) status = merge_sort(in, items + half, scratch, count - half, descending);
    while (!status && a < half && b < count) {
        int order;
        status = value_compare(in, items[b].key, items[a].key, 0, &order);
        scratch[n++] = !status && (descending ? order == 1 : order == -1) ? items[b++] : items[a++];
    }
    if (status) return status;
    memcpy(scratch + n, items + a, (half - a) * sizeof *items);
    memcpy(items, scratch, (n + half - a) * sizeof *items);
    return 0;
}

static int sort_items(struct interp *in, const struct sequence *items, struct value attribute, bool case_sensitive,
                      bool descending, struct keyed **out) {
    struct keyed *keyed = template_alloc(in, items->count, sizeof *keyed),
                 *scratch = template_alloc(in, items->count, sizeof *scratch);
    if (!keyed || !scratch) return SHU_E_NOMEM;
    int status = 0;
    for (size_t i = 0; !status && i < items->count; i++) {
        keyed[i].item = items->items[i];
        status = sort_key(in, items->items[i], attribute, case_sensitive, &keyed[i].key);
    }
    *out = keyed;
    return status ? status : merge_sort(in, keyed, scratch, items->count, descending);
}

static int f_sort(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    struct keyed *keyed;
    int status = value_iterate(in, call->self, &items);
    if (!status) status = sort_items(in, items, call->arg[2], flag(call->arg[1]), flag(call->arg[0]), &keyed);
    if (!status) status = value_sequence(in, VAL_LIST, items->count, out);
    for (size_t i = 0; !status && i < items->count; i++) out->sequence->items[i] = keyed[i].item;
    return status;
}

static int f_dictsort(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    struct keyed *keyed;
    struct value by, view;
    if (call->self.kind == VAL_UNDEFINED)
        return TPL_FAIL(in, "%.*s", (int)call->self.text->bytes, call->self.text->data);
    if (call->self.kind != VAL_DICT)
        return TPL_FAIL(in, "dictsort needs a dict, found %s", value_kind_name(call->self));
    int status = text_arg(in, call->arg[1], "key", &by);
    if (status) return status;
    if (!text_is(by.text, "key") && !text_is(by.text, "value"))
        return TPL_FAIL(in, "dictsort: by must be \"key\" or \"value\"");
    status = f_items(in, call, &view);
    if (!status) status = value_iterate(in, view, &items);
    if (!status)
        status =
            sort_items(in, items, value_int(text_is(by.text, "value")), flag(call->arg[0]), flag(call->arg[2]), &keyed);
    if (!status) status = value_sequence(in, VAL_LIST, items->count, out);
    for (size_t i = 0; !status && i < items->count; i++) out->sequence->items[i] = keyed[i].item;
    return status;
}

static int f_groupby(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    struct keyed *keyed;
    int status = value_iterate(in, call->self, &items);
    if (!status) status = sort_items(in, items, call->arg[0], flag(call->arg[2]), false, &keyed);
    if (!status) status = value_sequence(in, VAL_LIST, items->count, out);
    if (!status) out->sequence->count = 0;
    for (size_t i = 0, end; !status && i < items->count; i = end) {
        bool equal = true;
        struct value *group = &out->sequence->items[out->sequence->count++], list;
        for (end = i + 1; !status && end < items->count; end++) {
            status = value_equal(in, keyed[i].key, keyed[end].key, 0, &equal);
            if (!equal) break;
        }
        if (!status) status = value_sequence(in, VAL_TUPLE, 2, group);
        if (!status) status = value_sequence(in, VAL_LIST, end - i, &list);
        if (status) return status;
        for (size_t j = i; j < end; j++) list.sequence->items[j - i] = keyed[j].item;
        status = lookup_path(in, keyed[i].item, call->arg[0], &group->sequence->items[0]);
        if (!status && group->sequence->items[0].kind == VAL_UNDEFINED && given(call->arg[1]))
            group->sequence->items[0] = call->arg[1];
        group->sequence->items[1] = list;
    }
    return status;
}

static int extreme(struct interp *in, const struct call *call, int wanted, struct value *out) {
    struct sequence *items;
    struct value best, key;
    int order, status = value_iterate(in, call->self, &items);
    if (status) return status;
    if (items->count == 0)
        return value_undefined(in, "no smallest or largest item: the sequence is empty", NULL, "", out);
    for (size_t i = 0; !status && i < items->count; i++) {
        status = lookup_path(in, items->items[i], call->arg[1], &key);
        if (!status) status = fold_case(in, flag(call->arg[0]), &key);
        if (!status && i) status = value_compare(in, key, best, 0, &order);
        if (status || (i && order != wanted)) continue;
        best = key;
        *out = items->items[i];
    }
    return status;
}
static int f_min(struct interp *in, const struct call *call, struct value *out) {
    return extreme(in, call, -1, out);
}
static int f_max(struct interp *in, const struct call *call, struct value *out) {
    return extreme(in, call, 1, out);
}

static int f_unique(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    struct value seen, key;
    int status = value_iterate(in, call->self, &items);
    if (!status) status = dict_new(in, &seen);
    if (!status) status = iterator(in, items->count, out);
    for (size_t i = 0; !status && i < items->count; i++) {
        size_t before = seen.dict->count;
        status = lookup_path(in, items->items[i], call->arg[1], &key);
        if (!status) status = fold_case(in, flag(call->arg[0]), &key);
        if (!status) status = dict_set(in, seen.dict, key, value_of(VAL_NONE));
        if (!status && seen.dict->count > before) out->sequence->items[out->sequence->count++] = items->items[i];
    }
    return status;
}

static int f_batch(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    int64_t size;
    int status = integer_arg(in, call->arg[0], 0, &size);
    if (!status && size <= 0) return TPL_FAIL(in, "batch: the number of items must be positive");
    if (!status) status = value_iterate(in, call->self, &items);
    if (!status) status = iterator(in, items->count, out);
    for (size_t i = 0; !status && i < items->count; i += (size_t)size) {
        size_t rest = items->count - i, count = rest < (size_t)size ? rest : (size_t)size;
        bool fill = given(call->arg[1]);
        if (fill && size > TPL_MAX_RANGE) return TPL_LIMIT(in, "batch: more than %d items to fill", TPL_MAX_RANGE);
        struct value *group = &out->sequence->items[out->sequence->count++];
        status = value_sequence(in, VAL_LIST, fill ? (size_t)size : count, group);
        for (size_t j = 0; !status && j < group->sequence->count; j++)
            group->sequence->items[j] = j < count ? items->items[i + j] : call->arg[1];
        if ((uint64_t)size > items->count) break;
    }
    return status;
}

/* --------------------------------------------------- map, select and friends */

/* Arguments behind the first `skip`, for the filter or test that is applied to each item. */
static struct arguments rest_of(const struct arguments *raw, size_t skip) {
    return (struct arguments){raw->items + skip, raw->named, raw->count - skip, raw->named_count};
}

static const struct value *named_argument(const struct arguments *raw, const char *name) {
    for (size_t i = 0; i < raw->named_count; i++)
        if (text_is(raw->named[i].name, name)) return &raw->named[i].value;
    return NULL;
}

static int map_attribute(struct interp *in, const struct call *call, struct sequence *items, struct value *out) {
    const struct value *attribute = named_argument(call->raw, "attribute"),
                       *fallback = named_argument(call->raw, "default");
    if (!attribute) return TPL_FAIL(in, "map needs the name of a filter or attribute=");
    int status = 0;
    for (size_t i = 0; !status && i < items->count; i++) {
        struct value *slot = &out->sequence->items[out->sequence->count++];
        status = lookup_path(in, items->items[i], *attribute, slot);
        if (!status && slot->kind == VAL_UNDEFINED && fallback) *slot = *fallback;
    }
    return status;
}

static int f_map(struct interp *in, const struct call *call, struct value *out) {
    struct sequence *items;
    if (!value_truth(call->self)) return iterator(in, 0, out); /* jinja2 lets none and 0 pass as empty here */
    int status = value_iterate(in, call->self, &items);
    if (!status) status = iterator(in, items->count, out);
    if (status) return status;
    if (call->raw->count == 0) return map_attribute(in, call, items, out);
    struct value name = call->raw->items[0];
    const struct builtin *filter = name.kind == VAL_STRING ? builtin_filter(name.text->data, name.text->bytes) : NULL;
    if (!filter) return TPL_FAIL(in, "map: no such filter");
    struct arguments args = rest_of(call->raw, 1);
    for (size_t i = 0; !status && i < items->count; i++)
        status = builtin_call(in, filter, items->items[i], &args, &out->sequence->items[out->sequence->count++]);
    return status;
}

static int select_items(struct interp *in, const struct call *call, bool by_attribute, bool keep, struct value *out) {
    struct sequence *items;
    size_t off = by_attribute;
    const struct arguments *raw = call->raw;
    if (!value_truth(call->self)) return iterator(in, 0, out); /* jinja2 lets none and 0 pass as empty here */
    if (by_attribute && raw->count == 0) return TPL_FAIL(in, "selectattr and rejectattr need the name of an attribute");
    int status = value_iterate(in, call->self, &items);
    if (!status) status = iterator(in, items->count, out);
    if (status || items->count == 0) return status;
    struct value name = raw->count > off ? raw->items[off] : value_of(VAL_ABSENT), item, result;
    const struct builtin *test = name.kind == VAL_STRING ? builtin_test(name.text->data, name.text->bytes) : NULL;
    if (name.kind != VAL_ABSENT && !test) return TPL_FAIL(in, "select and reject: no such test");
    struct arguments args = test ? rest_of(raw, off + 1) : (struct arguments){0};
    for (size_t i = 0; !status && i < items->count; i++) {
        status = lookup_path(in, items->items[i], by_attribute ? raw->items[0] : value_of(VAL_ABSENT), &item);
        result = item;
        if (!status && test) status = builtin_call(in, test, item, &args, &result);
        if (!status && value_truth(result) == keep) out->sequence->items[out->sequence->count++] = items->items[i];
    }
    return status;
}
static int f_select(struct interp *in, const struct call *call, struct value *out) {
    return select_items(in, call, false, true, out);
}
static int f_reject(struct interp *in, const struct call *call, struct value *out) {
    return select_items(in, call, false, false, out);
}
static int f_selectattr(struct interp *in, const struct call *call, struct value *out) {
    return select_items(in, call, true, true, out);
}
static int f_rejectattr(struct interp *in, const struct call *call, struct value *out) {
    return select_items(in, call, true, false, out);
}

/* ------------------------------------------------------------------- table */

static const struct builtin filters[] = {
    {"abs", "", 0, f_abs},
    {"attr", "name", 1, f_attr},
    {"batch", "linecount fill_with", 1, f_batch},
    {"capitalize", "", 0, f_capitalize},
    {"center", "width", 0, f_center},
    {"count", "", 0, f_length},
    {"d", "default_value boolean", 0, f_default},
    {"default", "default_value boolean", 0, f_default},
    {"dictsort", "case_sensitive by reverse", 0, f_dictsort},
    {"e", "", 0, f_escape},
    {"escape", "", 0, f_escape},
    {"first", "", 0, f_first},
    {"float", "default", 0, f_float},
    {"forceescape", "", 0, f_forceescape},
    {"format", NULL, 0, f_format},
    {"groupby", "attribute default case_sensitive", 1, f_groupby},
    {"indent", "width first blank", 0, f_indent},
    {"int", "default base", 0, f_int},
    {"items", "", 0, f_items},
    {"join", "d attribute", 0, f_join},
    {"last", "", 0, f_last},
    {"length", "", 0, f_length},
    {"list", "", 0, f_list},
    {"lower", "", 0, f_lower},
    {"map", NULL, 0, f_map},
    {"max", "case_sensitive attribute", 0, f_max},
    {"min", "case_sensitive attribute", 0, f_min},
    {"reject", NULL, 0, f_reject},
    {"rejectattr", NULL, 0, f_rejectattr},
    {"replace", "old new count", 2, f_replace},
    {"reverse", "", 0, f_reverse},
    {"round", "precision method", 0, f_round},
    {"safe", "", 0, f_safe},
    {"select", NULL, 0, f_select},
    {"selectattr", NULL, 0, f_selectattr},
    {"sort", "reverse case_sensitive attribute", 0, f_sort},
    {"string", "", 0, f_string},
    {"sum", "attribute start", 0, f_sum},
    {"title", "", 0, f_title},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, f_tojson},
    {"trim", "chars", 0, f_trim},
    {"truncate", "length killwords end leeway", 0, f_truncate},
    {"unique", "case_sensitive attribute", 0, f_unique},
    {"upper", "", 0, f_upper},
    {"urlencode", "", 0, f_urlencode},
    {"wordcount", "", 0, f_wordcount},
};

const struct builtin *builtin_filter(const char *name, size_t bytes) {
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strlen(filters[i].name) == bytes && memcmp(filters[i].name, name, bytes) == 0) return &filters[i];
    return NULL;
}
