/* Chat templates: Python's "…" % values, "…".format(…) and the format mini-language. */
#include "text/template.h"

#include <math.h>
#include <string.h>

enum { FORMAT_MAX_WIDTH = 100000, FORMAT_MAX_PRECISION = 300 };

/* [[fill]align][sign][#][0][width][,][.precision][type] */
struct spec {
    struct text fill;
    char align, sign, type, group;
    bool alternate;
    int64_t width, precision; /* precision -1 = none */
};

static bool is_digit(const struct text *text, size_t at) {
    return at < text->bytes && text->data[at] >= '0' && text->data[at] <= '9';
}

static int read_number(struct interp *in, const struct text *text, size_t *at, int64_t *out) {
    int64_t value = 0;
    for (; is_digit(text, *at); ++*at) {
        value = value * 10 + (text->data[*at] - '0');
        if (value > FORMAT_MAX_WIDTH) return TPL_LIMIT(in, "a format width of more than %d", FORMAT_MAX_WIDTH);
    }
    *out = value;
    return 0;
}

/* Pads body (which may begin with a sign) to the width. */
static int emit_padded(struct interp *in, const struct spec *spec, const char *sign, const struct text *body,
                       char default_align) {
    char align = spec->align ? spec->align : default_align;
    int64_t pad = spec->width - (int64_t)text_length(body) - (int64_t)strlen(sign);
    int64_t left = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    int status = align == '=' ? emit_text(in, sign) : 0;
    for (int64_t i = 0; !status && i < left; i++) status = emit(in, spec->fill.data, spec->fill.bytes);
    if (!status && align != '=') status = emit_text(in, sign);
    if (!status) status = emit(in, body->data, body->bytes);
    for (int64_t i = left < 0 ? 0 : left; !status && i < pad; i++) status = emit(in, spec->fill.data, spec->fill.bytes);
    return status;
}

/* Inserts the separator into the integer digits of `text`. */
static void group_digits(char *text, size_t bytes, char separator) {
    size_t digits = strspn(text, "0123456789"), length = strlen(text), extra = digits ? (digits - 1) / 3 : 0;
    if (length + extra + 1 > bytes) return;
    memmove(text + digits + extra, text + digits, length - digits + 1);
    for (size_t i = digits, o = digits + extra, n = 0; extra > 0; n++) {
        if (n && n % 3 == 0) {
            text[--o] = separator;
            extra--;
        }
        text[--o] = text[--i];
    }
}

static const char *sign_of(const struct spec *spec, bool negative) {
    return negative ? "-" : spec->sign == '+' ? "+" : spec->sign == ' ' ? " " : "";
}

static int format_integer(struct interp *in, const struct spec *spec, int64_t number) {
    char digits[120];
    uint64_t magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    size_t n = 0;
    switch (spec->type) {
    case 'x':
        n = (size_t)snprintf(digits, 40, spec->alternate ? "0x%llx" : "%llx", (unsigned long long)magnitude);
        break;
    case 'X':
        n = (size_t)snprintf(digits, 40, spec->alternate ? "0X%llX" : "%llX", (unsigned long long)magnitude);
        break;
    case 'o':
        n = (size_t)snprintf(digits, 40, spec->alternate ? "0o%llo" : "%llo", (unsigned long long)magnitude);
        break;
    case 'b':
        if (spec->alternate) n = (size_t)snprintf(digits, 40, "0b");
        for (int bit = 63; bit >= 0; bit--)
            if (bit == 0 || magnitude >> bit) digits[n++] = (char)('0' + (magnitude >> bit & 1));
        break;
    default:
        n = (size_t)snprintf(digits, 40, "%llu", (unsigned long long)magnitude);
    }
    digits[n] = 0;
    if (spec->group) group_digits(digits, sizeof digits, spec->group);
    struct text body = {digits, strlen(digits)};
    return emit_padded(in, spec, sign_of(spec, number < 0), &body, '>');
}

static int format_real(struct interp *in, const struct spec *spec, double number) {
    char digits[1100];
    int precision = spec->precision < 0 ? 6 : (int)spec->precision;
    double magnitude = fabs(number);
    if (precision > FORMAT_MAX_PRECISION)
        return TPL_LIMIT(in, "a format precision of more than %d", FORMAT_MAX_PRECISION);
    if (spec->type == 0 && spec->precision < 0) { /* like repr */
        size_t mark = scratch_begin(in);
        struct value text;
        int status = value_print_float(in, magnitude);
        if (!status) status = scratch_end(in, mark, &text);
        if (status) return status;
        snprintf(digits, sizeof digits, "%.*s", (int)text.text->bytes, text.text->data);
    } else {
        switch (spec->type) {
        case 'f':
        case 'F':
            snprintf(digits, sizeof digits, "%.*f", precision, magnitude);
            break;
        case '%':
            snprintf(digits, sizeof digits, "%.*f%%", precision, magnitude * 100);
            break;
        case 'e':
            snprintf(digits, sizeof digits, "%.*e", precision, magnitude);
            break;
        case 'E':
            snprintf(digits, sizeof digits, "%.*E", precision, magnitude);
            break;
        case 'G':
            snprintf(digits, sizeof digits, "%.*G", precision, magnitude);
            break;
        default:
            snprintf(digits, sizeof digits, "%.*g", precision, magnitude);
        }
    }
    if (spec->group) group_digits(digits, sizeof digits, spec->group);
    struct text body = {digits, strlen(digits)};
    return emit_padded(in, spec, sign_of(spec, signbit(number) && !isnan(number)), &body, '>');
}

static int format_string(struct interp *in, const struct spec *spec, struct value value) {
    int status = value_to_string(in, value, &value);
    if (status) return status;
    struct text body = *value.text;
    if (spec->precision >= 0) body.bytes = text_offset(&body, (size_t)spec->precision);
    return emit_padded(in, spec, "", &body, '<');
}

static int apply_spec(struct interp *in, const struct spec *spec, struct value value) {
    if (spec->type && strchr("dxXobn", spec->type)) {
        if (!value_is_integer(value))
            return TPL_FAIL(in, "format %c needs an integer, found %s", spec->type, value_kind_name(value));
        return format_integer(in, spec, value_integer(value));
    }
    if (spec->type && strchr("fFeEgG%", spec->type)) {
        if (!value_is_number(value))
            return TPL_FAIL(in, "format %c needs a number, found %s", spec->type, value_kind_name(value));
        return format_real(in, spec, value_real(value));
    }
    if (spec->type && spec->type != 's') return TPL_FAIL(in, "format type \"%c\" is unknown", spec->type);
    if (spec->type == 's' && value.kind != VAL_STRING)
        return TPL_FAIL(in, "format s needs a string, found %s", value_kind_name(value));
    if (value.kind == VAL_INT) return format_integer(in, spec, value.integer);
    if (value.kind == VAL_FLOAT) return format_real(in, spec, value.real);
    return format_string(in, spec, value);
}

static int parse_spec(struct interp *in, const struct text *text, struct spec *out) {
    *out = (struct spec){.fill = {" ", 1}, .precision = -1};
    size_t at = 0;
    int n = 0, status = 0;
    if (text->bytes) text_scalar(text, 0, &n);
    if (n && (size_t)n < text->bytes && strchr("<>^=", text->data[n]) && text->data[n]) {
        out->fill = (struct text){text->data, (size_t)n};
        out->align = text->data[n];
        at = (size_t)n + 1;
    } else if (text->bytes && text->data[0] && strchr("<>^=", text->data[0])) {
        out->align = text->data[at++];
    }
    if (at < text->bytes && text->data[at] && strchr("+- ", text->data[at])) out->sign = text->data[at++];
    if (at < text->bytes && text->data[at] == '#') out->alternate = ++at;
    if (at < text->bytes && text->data[at] == '0') {
        if (!out->align) {
            out->align = '=';
            out->fill = (struct text){"0", 1};
        }
        at++;
    }
    status = read_number(in, text, &at, &out->width);
    if (!status && at < text->bytes && (text->data[at] == ',' || text->data[at] == '_')) out->group = text->data[at++];
    if (!status && at < text->bytes && text->data[at] == '.') {
        at++;
        if (!is_digit(text, at)) return TPL_FAIL(in, "a format precision is missing after \".\"");
        status = read_number(in, text, &at, &out->precision);
    }
    if (!status && at < text->bytes) out->type = text->data[at++];
    if (!status && at != text->bytes)
        return TPL_FAIL(in, "the format \"%.*s\" is not valid", (int)text->bytes, text->data);
    return status;
}

/* --------------------------------------------------------- "…".format(…) */

struct braces {
    const struct arguments *args;
    int64_t next; /* next automatic field; -1 once fields are numbered */
};

static int first_field(struct interp *in, struct braces *br, const struct text *name, struct value *out) {
    int64_t index = -1;
    if (name->bytes == 0) {
        if (br->next < 0) return TPL_FAIL(in, "format: {} cannot follow {0}");
        index = br->next++;
    } else if (is_digit(name, 0) && text_to_integer(*name, 10, &index)) {
        if (br->next > 0) return TPL_FAIL(in, "format: {0} cannot follow {}");
        br->next = -1;
    }
    if (index >= 0) {
        if ((uint64_t)index >= br->args->count)
            return TPL_FAIL(in, "format: there is no argument number %lld", (long long)index);
        *out = br->args->items[index];
        return 0;
    }
    for (size_t i = 0; i < br->args->named_count; i++)
        if (text_equal(br->args->named[i].name, name)) {
            *out = br->args->named[i].value;
            return 0;
        }
    return TPL_FAIL(in, "format: there is no argument \"%.*s\"", (int)name->bytes, name->data);
}

/* name(.attribute | [key])* */
static int resolve_field(struct interp *in, struct braces *br, const struct text *field, struct value *out) {
    size_t at = 0;
    while (at < field->bytes && field->data[at] != '.' && field->data[at] != '[') at++;
    struct text name = {field->data, at};
    int status = first_field(in, br, &name, out);
    while (!status && at < field->bytes) {
        bool item = field->data[at++] == '[';
        size_t start = at;
        while (at < field->bytes && (item ? field->data[at] != ']' : field->data[at] != '.' && field->data[at] != '['))
            at++;
        struct text *key = template_alloc(in, 1, sizeof *key);
        if (!key) return SHU_E_NOMEM;
        *key = (struct text){field->data + start, at - start};
        int64_t number;
        struct value index = {.kind = VAL_STRING, .text = key};
        if (item && is_digit(key, 0) && text_to_integer(*key, 10, &number)) index = value_int(number);
        status = item ? eval_item(in, *out, index, out) : eval_attribute(in, *out, key, out);
        if (item) at++;
    }
    return status;
}

static int format_braces_into(struct interp *in, struct braces *br, const struct text *format, int depth);

/* {field!conversion:spec}, between the braces. */
static int format_field(struct interp *in, struct braces *br, const struct text *inner, int depth) {
    size_t at = 0;
    bool bracket = false;
    while (at < inner->bytes && (bracket || (inner->data[at] != '!' && inner->data[at] != ':'))) {
        bracket = inner->data[at] == '[' || (bracket && inner->data[at] != ']');
        at++;
    }
    struct text field = {inner->data, at}, spec_text = {"", 0};
    struct value value, nested;
    char conversion = 0;
    if (at < inner->bytes && inner->data[at] == '!') {
        conversion = at + 1 < inner->bytes ? inner->data[at + 1] : 0;
        at += 2;
        if (conversion != 's' && conversion != 'r') return TPL_FAIL(in, "format: expected !r or !s");
    }
    if (at < inner->bytes && inner->data[at] != ':') return TPL_FAIL(in, "format: expected \":\" after the conversion");
    if (at < inner->bytes) spec_text = (struct text){inner->data + at + 1, inner->bytes - at - 1};
    int status = resolve_field(in, br, &field, &value);
    size_t mark = scratch_begin(in);
    if (!status && conversion) {
        status = conversion == 'r' ? value_repr(in, value, 1) : value_print(in, value);
        if (!status) status = scratch_end(in, mark, &value);
    }
    if (!status) status = format_braces_into(in, br, &spec_text, depth + 1);
    if (!status) status = scratch_end(in, mark, &nested);
    struct spec spec;
    if (!status) status = parse_spec(in, nested.text, &spec);
    if (!status && nested.text->bytes && value.kind > VAL_STRING)
        return TPL_FAIL(in, "format: a value of type %s takes no format", value_kind_name(value));
    return status ? status : apply_spec(in, &spec, value);
}

static int format_braces_into(struct interp *in, struct braces *br, const struct text *format, int depth) {
    if (depth > 2) return TPL_FAIL(in, "format: fields nested too deep");
    int status = 0;
    for (size_t at = 0; !status && at < format->bytes;) {
        char c = format->data[at];
        if ((c == '{' || c == '}') && at + 1 < format->bytes && format->data[at + 1] == c) {
            status = emit(in, &c, 1);
            at += 2;
        } else if (c == '}') {
            return TPL_FAIL(in, "format: single \"}\" in the format");
        } else if (c == '{') {
            size_t end = at + 1;
            for (int level = 1; end < format->bytes; end++) {
                level += format->data[end] == '{' ? 1 : format->data[end] == '}' ? -1 : 0;
                if (level == 0) break;
            }
            if (end >= format->bytes) return TPL_FAIL(in, "format: \"{\" is not closed");
            struct text inner = {format->data + at + 1, end - at - 1};
            status = format_field(in, br, &inner, depth);
            at = end + 1;
        } else {
            size_t end = at;
            while (end < format->bytes && format->data[end] != '{' && format->data[end] != '}') end++;
            status = emit(in, format->data + at, end - at);
            at = end;
        }
    }
    return status;
}

int format_braces(struct interp *in, const struct text *format, const struct arguments *args, struct value *out) {
    struct braces br = {args, 0};
    size_t mark = scratch_begin(in);
    int status = format_braces_into(in, &br, format, 0);
    return status ? status : scratch_end(in, mark, out);
}

/* ------------------------------------------------------------- "…" % values */

struct percent {
    struct value values;
    const struct arguments *args; /* of the format filter; NULL for the operator */
    size_t used;
    bool by_name;
};

static int next_value(struct interp *in, struct percent *pc, struct value *out) {
    if (pc->args) {
        if (pc->used >= pc->args->count) return TPL_FAIL(in, "not enough values for the format");
        *out = pc->args->items[pc->used++];
    } else if (pc->values.kind == VAL_TUPLE) {
        if (pc->used >= pc->values.sequence->count) return TPL_FAIL(in, "not enough values for the format");
        *out = pc->values.sequence->items[pc->used++];
    } else {
        if (pc->used++) return TPL_FAIL(in, "not enough values for the format");
        *out = pc->values;
    }
    return 0;
}

static int named_value(struct interp *in, struct percent *pc, const struct text *name, struct value *out) {
    pc->by_name = true;
    for (size_t i = 0; pc->args && i < pc->args->named_count; i++)
        if (text_equal(pc->args->named[i].name, name)) {
            *out = pc->args->named[i].value;
            return 0;
        }
    const struct value *found = NULL;
    int status = pc->values.kind == VAL_DICT ? dict_get_text(in, pc->values.dict, name, &found) : 0;
    if (status) return status;
    if (!found) return TPL_FAIL(in, "the format names \"%.*s\", which is not given", (int)name->bytes, name->data);
    *out = *found;
    return 0;
}

static int percent_number(struct interp *in, struct percent *pc, const struct text *format, size_t *at, int64_t *out) {
    if (*at >= format->bytes || format->data[*at] != '*') return read_number(in, format, at, out);
    struct value value;
    ++*at;
    int status = next_value(in, pc, &value);
    if (status) return status;
    if (!value_is_integer(value)) return TPL_FAIL(in, "the width * needs an integer");
    *out = value_integer(value);
    return *out > FORMAT_MAX_WIDTH ? TPL_LIMIT(in, "a format width of more than %d", FORMAT_MAX_WIDTH) : 0;
}

static int emit_percent(struct interp *in, struct spec *spec, char type, struct value value) {
    size_t mark = scratch_begin(in);
    if (type == 's' || type == 'r' || type == 'a') {
        int status = type == 's' ? value_print(in, value) : value_repr(in, value, 1);
        if (!status) status = scratch_end(in, mark, &value);
        if (!spec->align) spec->align = '>';
        spec->type = 's';
        return status ? status : apply_spec(in, spec, value);
    }
    if (type == 'c' && value.kind == VAL_STRING && text_length(value.text) == 1) return format_string(in, spec, value);
    if (!value_is_number(value)) return TPL_FAIL(in, "%%%c needs a number, found %s", type, value_kind_name(value));
    bool integral = strchr("diuxXo", type) != NULL;
    if (integral && value.kind == VAL_FLOAT && strchr("diu", type) && fabs(value.real) < 9e18)
        value = value_int((int64_t)value.real);
    if (integral && !value_is_integer(value))
        return TPL_FAIL(in, "%%%c needs an integer, found %s", type, value_kind_name(value));
    spec->type = strchr("diu", type) ? 'd' : type;
    return apply_spec(in, spec, value);
}

/* One conversion; at stands behind "%". */
static int percent_field(struct interp *in, struct percent *pc, const struct text *format, size_t *at) {
    struct spec spec = {.fill = {" ", 1}, .precision = -1};
    struct value value = value_of(VAL_ABSENT);
    bool left = false, zero = false;
    int status = 0;
    if (*at < format->bytes && format->data[*at] == '(') {
        size_t end = ++*at;
        while (end < format->bytes && format->data[end] != ')') end++;
        struct text name = {format->data + *at, end - *at};
        status = named_value(in, pc, &name, &value);
        *at = end + 1;
    }
    for (; *at < format->bytes && format->data[*at] && strchr("-+ #0", format->data[*at]); ++*at) {
        char c = format->data[*at];
        left |= c == '-';
        zero |= c == '0';
        if (c == '+' || c == ' ') spec.sign = spec.sign == '+' ? '+' : c;
        spec.alternate |= c == '#';
    }
    if (!status) status = percent_number(in, pc, format, at, &spec.width);
    if (!status && *at < format->bytes && format->data[*at] == '.') {
        ++*at;
        status = percent_number(in, pc, format, at, &spec.precision);
    }
    if (status) return status;
    if (*at >= format->bytes) return TPL_FAIL(in, "the format ends inside a %% conversion");
    char type = format->data[(*at)++];
    if (type == '%') return emit_text(in, "%");
    if (!strchr("diuxXoeEfFgGcrsa", type) || !type) return TPL_FAIL(in, "%%%c is not a known conversion", type);
    if (left)
        spec.align = '<';
    else if (zero && !strchr("sracc", type))
        spec.align = '=', spec.fill = (struct text){"0", 1};
    if (value.kind == VAL_ABSENT) status = next_value(in, pc, &value);
    return status ? status : emit_percent(in, &spec, type, value);
}

int format_percent(struct interp *in, const struct text *format, struct value values, const struct arguments *args,
                   struct value *out) {
    struct percent pc = {.values = values, .args = args};
    size_t mark = scratch_begin(in);
    int status = 0;
    for (size_t at = 0; !status && at < format->bytes;) {
        const char *next = memchr(format->data + at, '%', format->bytes - at);
        size_t plain = next ? (size_t)(next - format->data) - at : format->bytes - at;
        status = emit(in, format->data + at, plain);
        at += plain + 1;
        if (!status && next) status = percent_field(in, &pc, format, &at);
    }
    size_t given = args                       ? args->count
                   : values.kind == VAL_TUPLE ? values.sequence->count
                   : values.kind == VAL_DICT  ? 0
                                              : 1;
    if (!status && !pc.by_name && pc.used < given) return TPL_FAIL(in, "more values than the format takes");
    return status ? status : scratch_end(in, mark, out);
}
