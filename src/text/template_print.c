/* Chat templates: values as text (Python's str and repr) and as JSON (Python's json.dumps). */
#include "text/template.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

/* ----------------------------------------------------------------- floats */

/* Shortest decimal digits that read back as the same double: "d.ddde±xx" of 1 to 17 digits. */
static void shortest(double number, char *out, size_t bytes) {
    for (int digits = 0; digits < 17; digits++) {
        snprintf(out, bytes, "%.*e", digits, number);
        if (strtod(out, NULL) == number) return;
    }
}

/* Python's repr(float): positional for exponents -4…15, else scientific. */
int value_print_float(struct interp *in, double number) {
    if (isnan(number)) return emit_text(in, "nan");
    if (isinf(number)) return emit_text(in, number > 0 ? "inf" : "-inf");
    char text[40], digits[24];
    shortest(fabs(number), text, sizeof text);
    int count = 0, exponent = 0;
    const char *at = text;
    for (; *at && *at != 'e'; at++)
        if (*at != '.') digits[count++] = *at;
    if (*at) exponent = (int)strtol(at + 1, NULL, 10);
    while (count > 1 && digits[count - 1] == '0') count--;
    char out[64];
    int n = 0;
    if (signbit(number)) out[n++] = '-';
    if (exponent < -4 || exponent >= 16) {
        n += snprintf(out + n, sizeof out - (size_t)n, "%c%s%.*se%c%02d", digits[0], count > 1 ? "." : "", count - 1,
                      digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        n += snprintf(out + n, sizeof out - (size_t)n, "0.%.*s%.*s", -exponent - 1, "0000", count, digits);
    } else {
        for (int i = 0; i <= exponent; i++) out[n++] = i < count ? digits[i] : '0';
        n += snprintf(out + n, sizeof out - (size_t)n, ".%.*s", count > exponent + 1 ? count - exponent - 1 : 1,
                      count > exponent + 1 ? digits + exponent + 1 : "0");
    }
    return emit(in, out, (size_t)n);
}

/* ------------------------------------------------------------------- repr */

/* str.isprintable for one character. */
static bool is_printable(const struct interp *in, uint32_t c) {
    if (c < 0x7F) return c >= 0x20;
    if (c < 0xA1 || c == 0xAD) return false;
    if (scalar_is_space(c) || (c >= 0x200B && c <= 0x200F) || (c >= 0x202A && c <= 0x202E)) return false;
    if ((c >= 0x2060 && c <= 0x206F) || (c >= 0xD800 && c <= 0xF8FF) || c == 0xFEFF || (c >= 0xFFF0 && c <= 0xFFFB))
        return false;
    if (c >= 0xE0000 && (c < 0xE0100 || c > 0xE01EF)) return false;
    return iswprint_l((wint_t)c, in->tpl->locale) != 0;
}

static int repr_scalar(struct interp *in, const struct text *text, size_t at, int bytes, uint32_t scalar, char quote) {
    char escaped[16];
    if (scalar == (unsigned char)quote || scalar == '\\') {
        snprintf(escaped, sizeof escaped, "\\%c", (char)scalar);
    } else if (scalar == '\n' || scalar == '\r' || scalar == '\t') {
        snprintf(escaped, sizeof escaped, "\\%c", scalar == '\n' ? 'n' : scalar == '\r' ? 'r' : 't');
    } else if (is_printable(in, scalar)) {
        return emit(in, text->data + at, (size_t)bytes);
    } else {
        snprintf(escaped, sizeof escaped,
                 scalar < 0x100     ? "\\x%02x"
                 : scalar < 0x10000 ? "\\u%04x"
                                    : "\\U%08x",
                 scalar);
    }
    return emit_text(in, escaped);
}

static int repr_string(struct interp *in, const struct text *text) {
    bool single = text->bytes && memchr(text->data, '\'', text->bytes),
         twice = text->bytes && memchr(text->data, '"', text->bytes);
    char quote = single && !twice ? '"' : '\'';
    int status = emit(in, &quote, 1);
    for (size_t at = 0; !status && at < text->bytes;) {
        int n;
        uint32_t scalar = text_scalar(text, at, &n);
        status = repr_scalar(in, text, at, n, scalar, quote);
        at += (size_t)n;
    }
    return status ? status : emit(in, &quote, 1);
}

static int repr_items(struct interp *in, const struct sequence *items, const char *open, const char *close, int depth) {
    int status = emit_text(in, open);
    for (size_t i = 0; !status && i < items->count; i++) {
        if (i) status = emit_text(in, ", ");
        if (!status) status = value_repr(in, items->items[i], depth + 1);
    }
    return status ? status : emit_text(in, close);
}

static int repr_dict(struct interp *in, const struct dict *dict, int depth) {
    int status = emit_text(in, "{");
    for (size_t i = 0; !status && i < dict->count; i++) {
        if (i) status = emit_text(in, ", ");
        if (!status) status = value_repr(in, dict->entries[i].key, depth + 1);
        if (!status) status = emit_text(in, ": ");
        if (!status) status = value_repr(in, dict->entries[i].value, depth + 1);
    }
    return status ? status : emit_text(in, "}");
}

static int repr_view(struct interp *in, struct value value, int depth) {
    char text[64];
    const struct sequence *items = value.sequence;
    if (value.flag != FLAG_VIEW_RANGE) {
        snprintf(text, sizeof text, "%s([", value_kind_name(value));
        return repr_items(in, items, text, "])", depth);
    }
    int64_t start = items->count ? items->items[0].integer : 0;
    int64_t step = items->count > 1 ? items->items[1].integer - start : 1;
    snprintf(text, sizeof text, step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)", (long long)start,
             (long long)(start + step * (int64_t)items->count), (long long)step);
    return emit_text(in, text);
}

static int repr_object(struct interp *in, struct value value, int depth) {
    char text[64];
    int status;
    switch (value.kind) {
    case VAL_NAMESPACE:
        status = emit_text(in, "<Namespace ");
        if (!status) status = repr_dict(in, value.dict, depth + 1);
        return status ? status : emit_text(in, ">");
    case VAL_MACRO: {
        const struct text *name = value.macro->node->text;
        status = emit_text(in, name ? "<Macro '" : "<Macro 'caller'>");
        if (!status && name) status = emit(in, name->data, name->bytes);
        return !name || status ? status : emit_text(in, "'>");
    }
    case VAL_LOOP:
        status = loop_complete(in, value.loop);
        if (status) return status;
        snprintf(text, sizeof text, "<LoopContext %zu/%zu>", value.loop->index + 1, value.loop->count);
        return emit_text(in, text);
    default: /* Python prints an address here, which no template can mean to show */
        snprintf(text, sizeof text, "<%s>", value_kind_name(value));
        return emit_text(in, text);
    }
}

int value_repr(struct interp *in, struct value value, int depth) {
    if (depth > TPL_MAX_VALUE_DEPTH)
        return TPL_LIMIT(in, "lists nested more than %d deep cannot be printed", TPL_MAX_VALUE_DEPTH);
    char text[32];
    switch (value.kind) {
    case VAL_UNDEFINED:
        return depth ? emit_text(in, "Undefined") : 0;
    case VAL_NONE:
        return emit_text(in, "None");
    case VAL_BOOL:
        return emit_text(in, value.boolean ? "True" : "False");
    case VAL_INT:
        snprintf(text, sizeof text, "%lld", (long long)value.integer);
        return emit_text(in, text);
    case VAL_FLOAT:
        return value_print_float(in, value.real);
    case VAL_STRING: {
        int status = value.flag & FLAG_MARKUP ? emit_text(in, "Markup(") : 0;
        if (!status) status = repr_string(in, value.text);
        return status || !(value.flag & FLAG_MARKUP) ? status : emit_text(in, ")");
    }
    case VAL_LIST:
        return repr_items(in, value.sequence, "[", "]", depth);
    case VAL_TUPLE:
        return repr_items(in, value.sequence, "(", value.sequence->count == 1 ? ",)" : ")", depth);
    case VAL_VIEW:
        return repr_view(in, value, depth);
    case VAL_DICT:
        return repr_dict(in, value.dict, depth);
    default:
        return repr_object(in, value, depth);
    }
}

int value_print(struct interp *in, struct value value) {
    if (value.kind == VAL_STRING) return emit(in, value.text->data, value.text->bytes);
    return value_repr(in, value, 0);
}

int value_to_string(struct interp *in, struct value value, struct value *out) {
    *out = value;
    if (value.kind == VAL_STRING) return 0;
    size_t mark = scratch_begin(in);
    int status = value_print(in, value);
    return status ? status : scratch_end(in, mark, out);
}

/* ------------------------------------------------------------------- JSON */

static int json_escape_scalar(struct interp *in, uint32_t scalar, bool ascii) {
    char text[16];
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    const char *known = scalar && scalar < 128 ? strchr(from, (int)scalar) : NULL;
    if (known)
        snprintf(text, sizeof text, "\\%c", to[known - from]);
    else if (scalar < 0x10000 || !ascii)
        snprintf(text, sizeof text, "\\u%04x", scalar);
    else
        snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xD800 + ((scalar - 0x10000) >> 10), 0xDC00 + (scalar & 0x3FF));
    return emit_text(in, text);
}

static int json_string_out(struct interp *in, const struct text *text, bool ascii) {
    int status = emit_text(in, "\"");
    size_t plain = 0, at = 0;
    while (!status && at < text->bytes) {
        int n;
        uint32_t scalar = text_scalar(text, at, &n);
        if (scalar < 0x20 || scalar == '"' || scalar == '\\' || (ascii && scalar > 0x7F)) {
            status = emit(in, text->data + plain, at - plain);
            if (!status) status = json_escape_scalar(in, scalar, ascii);
            plain = at + (size_t)n;
        }
        at += (size_t)n;
    }
    if (!status) status = emit(in, text->data + plain, text->bytes - plain);
    return status ? status : emit_text(in, "\"");
}

static int json_newline(struct interp *in, const struct json_style *style, int depth) {
    if (!style->indent.data) return 0;
    int status = emit_text(in, "\n");
    for (int i = 0; !status && i < depth; i++) status = emit(in, style->indent.data, style->indent.bytes);
    return status;
}

static int json_list(struct interp *in, const struct sequence *items, const struct json_style *style, int depth) {
    if (items->count == 0) return emit_text(in, "[]");
    int status = emit_text(in, "[");
    for (size_t i = 0; !status && i < items->count; i++) {
        if (i) status = emit(in, style->item.data, style->item.bytes);
        if (!status) status = json_newline(in, style, depth + 1);
        if (!status) status = value_to_json(in, items->items[i], style, depth + 1);
    }
    if (!status) status = json_newline(in, style, depth);
    return status ? status : emit_text(in, "]");
}

static int json_float(struct interp *in, double real) {
    if (isnan(real)) return emit_text(in, "NaN");
    if (isinf(real)) return emit_text(in, real > 0 ? "Infinity" : "-Infinity");
    return value_print_float(in, real);
}

/* Keys are strings; Python turns numbers, true, false and none into them. */
static int json_key(struct interp *in, struct value key, const struct json_style *style) {
    if (key.kind == VAL_STRING) return json_string_out(in, key.text, style->ascii);
    if (!value_is_number(key) && key.kind != VAL_NONE)
        return TPL_FAIL(in, "tojson: the keys of a dict must be strings or numbers, found %s", value_kind_name(key));
    int status = emit_text(in, "\"");
    if (!status) status = value_to_json(in, key, style, 0);
    return status ? status : emit_text(in, "\"");
}

static int json_dict(struct interp *in, const struct dict *dict, const struct json_style *style, int depth) {
    if (dict->count == 0) return emit_text(in, "{}");
    size_t *order = template_alloc(in, dict->count, sizeof *order);
    if (!order) return SHU_E_NOMEM;
    int status = 0;
    for (size_t i = 0; !status && i < dict->count; i++) {
        size_t j = i;
        for (; style->sort && j > 0; j--) {
            int compared;
            status = value_compare(in, dict->entries[order[j - 1]].key, dict->entries[i].key, 0, &compared);
            if (status || compared <= 0) break;
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
    if (!status) status = emit_text(in, "{");
    for (size_t i = 0; !status && i < dict->count; i++) {
        const struct dict_entry *entry = &dict->entries[order[i]];
        if (i) status = emit(in, style->item.data, style->item.bytes);
        if (!status) status = json_newline(in, style, depth + 1);
        if (!status) status = json_key(in, entry->key, style);
        if (!status) status = emit(in, style->key.data, style->key.bytes);
        if (!status) status = value_to_json(in, entry->value, style, depth + 1);
    }
    if (!status) status = json_newline(in, style, depth);
    return status ? status : emit_text(in, "}");
}

int value_to_json(struct interp *in, struct value value, const struct json_style *style, int depth) {
    if (depth > TPL_MAX_VALUE_DEPTH)
        return TPL_LIMIT(in, "tojson: lists nested more than %d deep", TPL_MAX_VALUE_DEPTH);
    switch (value.kind) {
    case VAL_NONE:
        return emit_text(in, "null");
    case VAL_BOOL:
        return emit_text(in, value.boolean ? "true" : "false");
    case VAL_INT:
        return value_repr(in, value, 0);
    case VAL_FLOAT:
        return json_float(in, value.real);
    case VAL_STRING:
        return json_string_out(in, value.text, style->ascii);
    case VAL_LIST:
    case VAL_TUPLE:
        return json_list(in, value.sequence, style, depth);
    case VAL_DICT:
        return json_dict(in, value.dict, style, depth);
    default:
        return TPL_FAIL(in, "tojson: a value of type %s cannot be written as JSON", value_kind_name(value));
    }
}
