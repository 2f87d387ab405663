/* Grammars: JSON Schema to expressions. What is accepted and what is written: grammar.h. */
#include "infer/grammar_schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LENGTH_RULES = 64, MAX_ENUM = 10000 };

/* A place that $ref points to, compiled once. */
struct place {
    const char *pointer;
    int rule;
};

struct compiler {
    struct builder *b;
    const json_t *root;
    struct place *places;
    size_t place_count, place_cap;
    int string_rule, value_rule; /* -1 = not made yet */
    struct {
        int64_t min, max;
        int rule;
    } lengths[MAX_LENGTH_RULES]; /* strings of bounded length, shared */
    int length_count;
    int depth;
};

static int compile(struct compiler *c, const json_t *schema, const char *where, const struct expr **out);

static int finish(const struct expr *expr, const struct expr **out) {
    *out = expr;
    return expr ? 0 : SHU_E_NOMEM;
}

#define REFUSE(c, where, ...)    refuse((c), (where), SHU_E_UNSUPPORTED, __VA_ARGS__)
#define MALFORMED(c, where, ...) refuse((c), (where), SHU_E_FORMAT, __VA_ARGS__)

static int __attribute__((format(printf, 4, 5)))
refuse(struct compiler *c, const char *where, int code, const char *format, ...) {
    char detail[240];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    return SHU_FAIL(c->b->err, code, "schema, %.200s: %s", where, detail);
}

/* where + "/" + key (+ "/" + index, if not negative), for messages. */
static const char *below(struct compiler *c, const char *where, const char *key, long index) {
    char text[600];
    int n = index < 0 ? snprintf(text, sizeof text, "%.400s/%.150s", where, key)
                      : snprintf(text, sizeof text, "%.400s/%.150s/%ld", where, key, index);
    const char *copy = arena_strndup(&c->b->arena, text, (size_t)n);
    return copy ? copy : "#";
}

/* ------------------------------------------------------------------ literals */

static int write_json(struct buf *out, const json_t *value);

static int write_string(struct buf *out, const char *text, size_t bytes) {
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    int status = buf_putc(out, '"');
    for (size_t i = 0; !status && i < bytes; i++) {
        unsigned char ch = (unsigned char)text[i];
        const char *known = ch ? strchr(from, ch) : NULL;
        if (known)
            status = buf_printf(out, "\\%c", to[known - from]);
        else
            status = ch < 0x20 ? buf_printf(out, "\\u%04x", ch) : buf_putc(out, (char)ch);
    }
    return status ? status : buf_putc(out, '"');
}

static int write_real(struct buf *out, double value) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return buf_puts(out, text);
}

static int write_container(struct buf *out, const json_t *value) {
    bool object = json_is_object(value), first = true;
    int status = buf_putc(out, object ? '{' : '[');
    const char *key;
    json_t *item;
    json_object_foreach((json_t *)(uintptr_t)value, key, item) {
        if (!status && !first) status = buf_putc(out, ',');
        if (!status) status = write_string(out, key, strlen(key));
        if (!status) status = buf_putc(out, ':');
        if (!status) status = write_json(out, item);
        first = false;
    }
    for (size_t i = 0; !status && i < json_array_size(value); i++) {
        if (i) status = buf_putc(out, ',');
        if (!status) status = write_json(out, json_array_get(value, i));
    }
    return status ? status : buf_putc(out, object ? '}' : ']');
}

static int write_json(struct buf *out, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_STRING:
        return write_string(out, json_string_value(value), json_string_length(value));
    case JSON_INTEGER:
        return buf_printf(out, "%lld", (long long)json_integer_value(value));
    case JSON_REAL:
        return write_real(out, json_real_value(value));
    case JSON_TRUE:
        return buf_puts(out, "true");
    case JSON_FALSE:
        return buf_puts(out, "false");
    case JSON_NULL:
        return buf_puts(out, "null");
    default:
        return write_container(out, value);
    }
}

static const struct expr *literal(struct compiler *c, const json_t *value) {
    struct buf text = {.max = GRAMMAR_MAX_SOURCE_BYTES};
    const struct expr *expr = NULL;
    if (write_json(&text, value))
        builder_no_memory(c->b);
    else
        expr = expr_bytes(c->b, text.data, text.len);
    buf_free(&text);
    return expr;
}

/* ------------------------------------------------------------------ keywords */

/* A non-negative integer keyword; *out keeps its value when the keyword is absent. */
static int count_keyword(struct compiler *c, const json_t *schema, const char *key, const char *where, int64_t *out) {
    const json_t *value = json_object_get(schema, key);
    if (!value) return 0;
    double number = json_is_number(value) ? json_number_value(value) : -1;
    if (number < 0 || floor(number) != number)
        return MALFORMED(c, below(c, where, key, -1), "expected a non-negative integer");
    if (number > GRAMMAR_MAX_REPEAT) {
        if (strncmp(key, "max", 3) == 0)
            number = GRAMMAR_MAX_REPEAT; /* less than allowed is still valid */
        else
            return REFUSE(c, below(c, where, key, -1), "at most %d is supported", GRAMMAR_MAX_REPEAT);
    }
    *out = (int64_t)number;
    return 0;
}

static bool is_any_schema(const json_t *schema) {
    if (json_is_true(schema)) return true;
    bool any = json_is_object(schema);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)schema, key, value) any = any && schema_is_annotation(key);
    return any;
}

/* ------------------------------------------------------------------- strings */

static const struct expr *any_character(struct compiler *c) {
    return expr_class(c->b, NULL, 0, true, true);
}

static const struct expr *quoted(struct compiler *c, const struct expr *content) {
    return expr_pair(c->b, EXPR_SEQ, expr_text(c->b, "\""), expr_pair(c->b, EXPR_SEQ, content, expr_text(c->b, "\"")));
}

/* A rule of its own, never inlined, so that all uses share the masks of its states. */
static int shared_rule(struct compiler *c, const char *name, const struct expr *body, int *out) {
    int status = body ? builder_rule(c->b, name, out) : SHU_E_NOMEM;
    if (status) return status;
    c->b->rules[*out].body = body;
    c->b->rules[*out].shared = true;
    return 0;
}

static int any_string(struct compiler *c, const struct expr **out) {
    int status = 0;
    if (c->string_rule < 0)
        status = shared_rule(c, "string", quoted(c, expr_repeat(c->b, any_character(c), 0, -1)), &c->string_rule);
    return status ? status : finish(expr_rule(c->b, c->string_rule), out);
}

static int bounded_string(struct compiler *c, int64_t min, int64_t max, const struct expr **out) {
    int rule = 0;
    for (int i = 0; i < c->length_count; i++)
        if (c->lengths[i].min == min && c->lengths[i].max == max)
            return finish(expr_rule(c->b, c->lengths[i].rule), out);
    int status =
        shared_rule(c, "string of bounded length", quoted(c, expr_repeat(c->b, any_character(c), min, max)), &rule);
    if (status) return status;
    if (c->length_count < MAX_LENGTH_RULES) {
        c->lengths[c->length_count].min = min;
        c->lengths[c->length_count].max = max;
        c->lengths[c->length_count++].rule = rule;
    }
    return finish(expr_rule(c->b, rule), out);
}

/* Formats as patterns. Dates leave out 29 February, and years are those of four digits without a leading zero. */
static const char *format_pattern(const char *name) {
#define MONTH_DAY                                                                                                      \
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))"
#define DATE  "[12]\\d{3}-" MONTH_DAY
#define TIME  "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)"
#define BYTE  "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define LABEL "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"
    static const struct {
        const char *name, *pattern;
    } formats[] = {
        {"date", "^" DATE "$"},
        {"time", "^" TIME "$"},
        {"date-time", "^" DATE "T" TIME "$"},
        {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        {"ipv4", "^" BYTE "\\." BYTE "\\." BYTE "\\." BYTE "$"},
        {"email",
         "^[A-Za-z0-9_+-]{1,30}(?:\\.[A-Za-z0-9_+-]{1,20}){0,2}@" LABEL "(?:\\." LABEL "){0,2}\\.[A-Za-z]{2,10}$"},
    };
#undef MONTH_DAY
#undef DATE
#undef TIME
#undef BYTE
#undef LABEL
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(name, formats[i].name) == 0) return formats[i].pattern;
    return NULL;
}

static int push_pattern(struct compiler *c, const json_t *pattern, const char *where, struct expr_items *demands) {
    const struct expr *expr = NULL;
    const char *place = below(c, where, "pattern", -1);
    if (!json_is_string(pattern)) return MALFORMED(c, place, "expected a string");
    char name[300];
    snprintf(name, sizeof name, "schema, %.250s", place);
    int status = regex_parse(c->b, json_string_value(pattern), json_string_length(pattern), true, name, &expr);
    return status ? status : expr_push(c->b, demands, expr);
}

static int string_demands(struct compiler *c, const json_t *schema, const char *where, struct expr_items *demands) {
    const json_t *pattern = json_object_get(schema, "pattern"), *format = json_object_get(schema, "format");
    int status = 0;
    if (json_is_array(pattern)) /* of merged schemas */
        for (size_t i = 0; !status && i < json_array_size(pattern); i++)
            status = push_pattern(c, json_array_get(pattern, i), where, demands);
    else if (pattern)
        status = push_pattern(c, pattern, where, demands);
    if (status || !format) return status;
    const char *known = json_is_string(format) ? format_pattern(json_string_value(format)) : NULL;
    const char *place = below(c, where, "format", -1);
    if (!known) return REFUSE(c, place, "supported are date, time, date-time, uuid, ipv4, email");
    const struct expr *expr = NULL;
    status = regex_parse(c->b, known, strlen(known), true, "format", &expr);
    return status ? status : expr_push(c->b, demands, expr);
}

static int compile_string(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    struct expr_items demands = {0};
    int64_t min = 0, max = -1;
    int rule = 0;
    int status = count_keyword(c, schema, "minLength", where, &min);
    if (!status) status = count_keyword(c, schema, "maxLength", where, &max);
    if (!status) status = string_demands(c, schema, where, &demands);
    if (status) return status;
    bool bounded = min > 0 || max >= 0;
    if (max >= 0 && max < min) return finish(expr_simple(c->b, EXPR_NEVER), out);
    if (demands.count == 0) return bounded ? bounded_string(c, min, max, out) : any_string(c, out);
    if (bounded) status = expr_push(c->b, &demands, expr_repeat(c->b, any_character(c), min, max));
    const struct expr *content = demands.items[0];
    if (!status && demands.count > 1) status = expr_intersect(c->b, demands.items, demands.count, &content);
    if (!status) status = shared_rule(c, where, quoted(c, content), &rule);
    return status ? status : finish(expr_rule(c->b, rule), out);
}

/* ------------------------------------------------------------------- numbers */

static int tighten(struct compiler *c, const json_t *schema, const char *key, const char *where, bool low, bool open,
                   struct bounds *out) {
    const json_t *value = json_object_get(schema, key);
    if (!value) return 0;
    if (!json_is_number(value)) return MALFORMED(c, below(c, where, key, -1), "expected a number");
    double number = json_number_value(value);
    bool has = low ? out->has_low : out->has_high;
    double old = low ? out->low : out->high;
    bool tighter = !has || (low ? number > old : number < old) || (number == old && open);
    if (!tighter) return 0;
    if (low) {
        out->has_low = true;
        out->low = number;
        out->open_low = open;
    } else {
        out->has_high = true;
        out->high = number;
        out->open_high = open;
    }
    return 0;
}

static int compile_number(struct compiler *c, const json_t *schema, const char *where, bool integer,
                          const struct expr **out) {
    struct bounds bounds = {0};
    const json_t *multiple = json_object_get(schema, "multipleOf");
    int64_t step = 1;
    int status = tighten(c, schema, "minimum", where, true, false, &bounds);
    if (!status) status = tighten(c, schema, "exclusiveMinimum", where, true, true, &bounds);
    if (!status) status = tighten(c, schema, "maximum", where, false, false, &bounds);
    if (!status) status = tighten(c, schema, "exclusiveMaximum", where, false, true, &bounds);
    if (!status && multiple) {
        double value = json_is_number(multiple) ? json_number_value(multiple) : 0;
        if (value <= 0 || floor(value) != value || value > 1e15)
            return REFUSE(c, below(c, where, "multipleOf", -1), "only positive integers are supported");
        step = (int64_t)value;
    }
    if (status) return status;
    return integer || multiple ? number_integer(c->b, &bounds, step, where, out)
                               : number_real(c->b, &bounds, where, out);
}

/* -------------------------------------------------------------------- arrays */

static int any_value(struct compiler *c, const struct expr **out);

static int compile_item(struct compiler *c, const json_t *schema, const char *where, bool repeated,
                        const struct expr **out) {
    int rule = 0;
    int status = compile(c, schema, where, out);
    bool large = !status && ((*out)->kind == EXPR_OBJECT || (*out)->kind == EXPR_ARRAY || (*out)->kind == EXPR_ALT ||
                             (*out)->kind == EXPR_SEQ);
    if (status || !repeated || !large) return status;
    status = shared_rule(c, where, *out, &rule); /* many copies of one thing: called instead */
    return status ? status : finish(expr_rule(c->b, rule), out);
}

static int compile_array(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    const json_t *items = json_object_get(schema, "items"), *prefix = json_object_get(schema, "prefixItems");
    struct expr_items first = {0};
    int64_t min = 0, max = -1;
    const struct expr *body = NULL, *one = NULL;
    int status = count_keyword(c, schema, "minItems", where, &min);
    if (!status) status = count_keyword(c, schema, "maxItems", where, &max);
    if (!status && prefix && !json_is_array(prefix))
        return MALFORMED(c, below(c, where, "prefixItems", -1), "expected a list");
    if (!status && json_is_array(items))
        return REFUSE(c, below(c, where, "items", -1), "a list here is an older draft: use prefixItems");
    for (size_t i = 0; !status && i < json_array_size(prefix); i++) {
        status = compile(c, json_array_get(prefix, i), below(c, where, "prefixItems", (long)i), &one);
        if (!status) status = expr_push(c->b, &first, one);
    }
    bool further = items ? !json_is_false(items) : !prefix || min > (int64_t)first.count;
    if (!status && further && items)
        status = compile_item(c, items, below(c, where, "items", -1), min > 2 || max > 2, &body);
    else if (!status && further)
        status = any_value(c, &body);
    if (status) return status;
    struct expr *expr = expr_new(c->b, EXPR_ARRAY);
    if (!expr) return SHU_E_NOMEM;
    expr->items = first.items;
    expr->count = first.count;
    expr->body = body;
    expr->min = min;
    expr->max = !items && prefix && body && max < 0 ? min : max;
    *out = expr;
    return 0;
}

/* ------------------------------------------------------------------- objects */

/* Texts that are none of the names [0, count), which share their first `at` bytes. */
static const struct expr *other_than(struct compiler *c, const char *const *names, size_t count, size_t at, int depth) {
    struct expr_items choices = {0};
    struct range taken[256];
    size_t taken_count = 0;
    bool ends = false;
    if (depth > 200 || count > 250) return expr_simple(c->b, EXPR_NEVER); /* fewer keys than allowed are still valid */
    const char **group = arena_alloc(&c->b->arena, (count + 1) * sizeof *group);
    if (!group) {
        builder_no_memory(c->b);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t scalar = 0, other;
        size_t n = 0;
        int bytes = utf8_decode(names[i] + at, strlen(names[i] + at), &scalar);
        bool seen = false;
        if (bytes == 0) ends = true;
        for (size_t k = 0; k < taken_count; k++) seen |= taken[k].low == scalar;
        if (bytes == 0 || seen) continue;
        taken[taken_count++] = (struct range){scalar, scalar};
        for (size_t k = i; k < count; k++)
            if (utf8_decode(names[k] + at, strlen(names[k] + at), &other) && other == scalar) group[n++] = names[k];
        const struct expr *rest = other_than(c, group, n, at + (size_t)bytes, depth + 1);
        const struct expr *one = expr_class(c->b, &taken[taken_count - 1], 1, false, true);
        if (expr_push(c->b, &choices, expr_pair(c->b, EXPR_SEQ, one, rest))) return NULL;
    }
    if (!ends && expr_push(c->b, &choices, expr_simple(c->b, EXPR_EMPTY))) return NULL;
    const struct expr *fresh = expr_class(c->b, taken, taken_count, true, true);
    const struct expr *tail = expr_repeat(c->b, any_character(c), 0, -1);
    if (expr_push(c->b, &choices, expr_pair(c->b, EXPR_SEQ, fresh, tail))) return NULL;
    return expr_list(c->b, EXPR_ALT, choices.items, choices.count);
}

struct object {
    struct member *members;
    const char **names;
    size_t count, cap;
};

static int push_member(struct compiler *c, struct object *o, const char *name, const struct expr *value,
                       bool required) {
    if (o->count == o->cap) {
        size_t cap = o->cap ? o->cap * 2 : 8;
        struct member *members = arena_alloc(&c->b->arena, cap * sizeof *members);
        const char **names = arena_alloc(&c->b->arena, cap * sizeof *names);
        if (!members || !names) return builder_no_memory(c->b);
        if (o->count) memcpy(members, o->members, o->count * sizeof *members);
        if (o->count) memcpy(names, o->names, o->count * sizeof *names);
        o->members = members;
        o->names = names;
        o->cap = cap;
    }
    json_t *key = json_string(name);
    const struct expr *text = key ? literal(c, key) : NULL;
    json_decref(key);
    const char *copy = arena_strndup(&c->b->arena, name, strlen(name));
    if (!text || !copy) return builder_no_memory(c->b);
    o->names[o->count] = copy;
    o->members[o->count++] = (struct member){text, value, required};
    return 0;
}

static bool is_required(const json_t *required, const char *name) {
    for (size_t i = 0; i < json_array_size(required); i++)
        if (strcmp(json_string_value(json_array_get(required, i)), name) == 0) return true;
    return false;
}

static int add_properties(struct compiler *c, const json_t *schema, const char *where, struct object *o) {
    json_t *properties = json_object_get(schema, "properties"), *required = json_object_get(schema, "required"), *value;
    const char *name;
    int status = 0;
    if (properties && !json_is_object(properties))
        return MALFORMED(c, below(c, where, "properties", -1), "expected an object");
    if (required && !json_is_array(required)) return MALFORMED(c, below(c, where, "required", -1), "expected a list");
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_is_string(json_array_get(required, i)))
            return MALFORMED(c, below(c, where, "required", (long)i), "expected a string");
    const char *place = below(c, where, "properties", -1);
    json_object_foreach(properties, name, value) {
        const struct expr *expr = NULL;
        if (strlen(name) != json_object_iter_key_len(json_object_key_to_iter(name)))
            return REFUSE(c, place, "a key with U+0000 in it");
        status = compile(c, value, below(c, place, name, -1), &expr);
        if (!status) status = push_member(c, o, name, expr, is_required(required, name));
        if (status) return status;
    }
    return status;
}

/* Required keys that no property describes take what additionalProperties demands. */
static int add_undescribed(struct compiler *c, const json_t *schema, const struct expr *further, struct object *o) {
    const json_t *required = json_object_get(schema, "required"), *properties = json_object_get(schema, "properties");
    int status = 0;
    for (size_t i = 0; !status && i < json_array_size(required); i++) {
        const json_t *name = json_array_get(required, i);
        bool known = json_object_getn(properties, json_string_value(name), json_string_length(name)) != NULL;
        for (size_t k = 0; k < o->count; k++) known |= strcmp(o->names[k], json_string_value(name)) == 0;
        if (!known) status = push_member(c, o, json_string_value(name), further, true);
    }
    return status;
}

static int compile_object(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    const json_t *further = json_object_get(schema, "additionalProperties");
    struct object o = {0};
    const struct expr *value = NULL;
    int rule = 0;
    int status = add_properties(c, schema, where, &o);
    bool closed = json_is_false(further);
    if (!status && closed)
        value = expr_simple(c->b, EXPR_NEVER);
    else if (!status && further)
        status = compile_item(c, further, below(c, where, "additionalProperties", -1), true, &value);
    else if (!status)
        status = any_value(c, &value);
    if (!status && !value) status = SHU_E_NOMEM;
    if (!status) status = add_undescribed(c, schema, value, &o);
    struct expr *expr = status ? NULL : expr_new(c->b, EXPR_OBJECT);
    if (!expr) return status ? status : SHU_E_NOMEM;
    expr->members = o.members;
    expr->count = o.count;
    bool open = further ? !closed : !json_object_get(schema, "properties");
    if (open && o.count) {
        status = shared_rule(c, "other keys", quoted(c, other_than(c, o.names, o.count, 0, 0)), &rule);
        if (!status) status = finish(expr_rule(c->b, rule), &expr->key);
    } else if (open) {
        status = any_string(c, &expr->key);
    }
    if (!status && open) expr->body = value;
    *out = expr;
    return status;
}

/* ---------------------------------------------------------------- any value */

static int any_value(struct compiler *c, const struct expr **out) {
    if (c->value_rule < 0) {
        int status = builder_rule(c->b, "value", &c->value_rule);
        if (status) return status;
        int rule = c->value_rule;
        c->b->rules[rule].shared = true;
        json_t *empty = json_object();
        struct expr_items choices = {0};
        static const char *const words[] = {"null", "true", "false"};
        const struct expr *one = NULL;
        status = empty ? 0 : builder_no_memory(c->b);
        for (size_t i = 0; !status && i < 3; i++) status = expr_push(c->b, &choices, expr_text(c->b, words[i]));
        if (!status) status = compile_string(c, empty, "#", &one);
        if (!status) status = expr_push(c->b, &choices, one);
        if (!status) status = compile_number(c, empty, "#", false, &one);
        if (!status) status = expr_push(c->b, &choices, one);
        if (!status) status = compile_array(c, empty, "#", &one);
        if (!status) status = expr_push(c->b, &choices, one);
        if (!status) status = compile_object(c, empty, "#", &one);
        if (!status) status = expr_push(c->b, &choices, one);
        json_decref(empty);
        const struct expr *body = status ? NULL : expr_list(c->b, EXPR_ALT, choices.items, choices.count);
        if (!body) return status ? status : SHU_E_NOMEM;
        c->b->rules[rule].body = body;
    }
    return finish(expr_rule(c->b, c->value_rule), out);
}

/* ------------------------------------------------------------- combinations */

/* enum and const: the values that the other keywords admit. */
static int compile_values(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    const json_t *list = json_object_get(schema, "enum"), *constant = json_object_get(schema, "const");
    struct expr_items choices = {0};
    int status = 0;
    if (list && !json_is_array(list)) return MALFORMED(c, below(c, where, "enum", -1), "expected a list");
    if (json_array_size(list) > MAX_ENUM) return REFUSE(c, below(c, where, "enum", -1), "at most %d values", MAX_ENUM);
    size_t count = list ? json_array_size(list) : 1;
    for (size_t i = 0; !status && i < count; i++) {
        const json_t *value = list ? json_array_get(list, i) : constant;
        bool sure;
        if (!schema_fits(schema, value, &sure)) continue;
        if (!sure)
            return REFUSE(c, where,
                          "enum or const beside pattern, format, properties, items and the like: drop the values that "
                          "do not fit");
        status = expr_push(c->b, &choices, literal(c, value));
    }
    return status ? status : finish(expr_list(c->b, EXPR_ALT, choices.items, choices.count), out);
}

/* anyOf or oneOf: each branch together with the keywords beside it. */
static int compile_choices(struct compiler *c, const json_t *schema, const char *key, const char *where,
                           const struct expr **out) {
    const json_t *list = json_object_get(schema, key);
    struct expr_items choices = {0};
    if (!json_is_array(list) || json_array_size(list) == 0)
        return MALFORMED(c, below(c, where, key, -1), "expected a list of schemas");
    json_t *rest = json_copy((json_t *)(uintptr_t)schema);
    if (!rest || json_object_del(rest, key)) {
        json_decref(rest);
        return builder_no_memory(c->b);
    }
    int status = 0;
    bool exclusive = strcmp(key, "oneOf") == 0;
    for (size_t i = 0; !status && i < json_array_size(list); i++) {
        json_t *branch = NULL;
        const struct expr *one = NULL;
        const char *place = below(c, where, key, (long)i);
        for (size_t k = 0; !status && exclusive && k < i; k++)
            if (!schema_disjoint(c->root, json_array_get(list, k), json_array_get(list, i), 0))
                status = REFUSE(
                    c, place,
                    "a value might fit this branch and branch %zu: use anyOf, or tell them apart by type or a constant",
                    k);
        if (!status && is_any_schema(rest))
            branch = json_incref(json_array_get(list, i));
        else if (!status)
            status = schema_merge(c->root, rest, json_array_get(list, i), place, 0, &branch, c->b->err);
        if (!status) status = compile(c, branch, place, &one);
        if (!status) status = expr_push(c->b, &choices, one);
        json_decref(branch);
    }
    json_decref(rest);
    return status ? status : finish(expr_list(c->b, EXPR_ALT, choices.items, choices.count), out);
}

/* A rule for the place, compiled later: places may refer to each other in circles. */
static int compile_reference(struct compiler *c, const json_t *ref, const char *where, const struct expr **out) {
    const char *pointer = json_string_value(ref);
    if (!pointer || !schema_resolve(c->root, pointer))
        return MALFORMED(c, below(c, where, "$ref", -1), "\"%.80s\" is not a place in this schema (expected \"#/…\")",
                         pointer ? pointer : "");
    for (size_t i = 0; i < c->place_count; i++)
        if (strcmp(c->places[i].pointer, pointer) == 0) return finish(expr_rule(c->b, c->places[i].rule), out);
    if (c->place_count == c->place_cap) {
        size_t cap = c->place_cap ? c->place_cap * 2 : 16;
        struct place *places = mem_realloc(c->places, cap * sizeof *places);
        if (!places) return builder_no_memory(c->b);
        c->places = places;
        c->place_cap = cap;
    }
    int rule = 0;
    int status = builder_rule(c->b, pointer, &rule);
    if (status) return status;
    c->places[c->place_count++] = (struct place){c->b->rules[rule].name, rule};
    return finish(expr_rule(c->b, rule), out);
}

/* Types by "type", or else by the keywords that are there; all if there are none. */
static unsigned wanted_types(const json_t *schema) {
    static const struct {
        const char *key;
        unsigned types;
    } hints[] = {{"properties", TYPE_OBJECT},
                 {"required", TYPE_OBJECT},
                 {"additionalProperties", TYPE_OBJECT},
                 {"items", TYPE_ARRAY},
                 {"prefixItems", TYPE_ARRAY},
                 {"minItems", TYPE_ARRAY},
                 {"maxItems", TYPE_ARRAY},
                 {"minLength", TYPE_STRING},
                 {"maxLength", TYPE_STRING},
                 {"pattern", TYPE_STRING},
                 {"format", TYPE_STRING},
                 {"minimum", TYPE_NUMBER | TYPE_INTEGER},
                 {"maximum", TYPE_NUMBER | TYPE_INTEGER},
                 {"exclusiveMinimum", TYPE_NUMBER | TYPE_INTEGER},
                 {"exclusiveMaximum", TYPE_NUMBER | TYPE_INTEGER},
                 {"multipleOf", TYPE_NUMBER | TYPE_INTEGER}};
    const json_t *type = json_object_get(schema, "type");
    unsigned types = 0;
    if (type) return schema_types(type);
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        if (json_object_get(schema, hints[i].key)) types |= hints[i].types;
    return types;
}

static int compile_types(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    const json_t *type = json_object_get(schema, "type");
    unsigned types = wanted_types(schema);
    struct expr_items choices = {0};
    const struct expr *one = NULL;
    int status = 0;
    bool empty = json_is_array(type) && json_array_size(type) == 0; /* of merged schemas: nothing is left */
    if (type && !types && !empty)
        return MALFORMED(c, below(c, where, "type", -1),
                         "expected null, boolean, integer, number, string, array, object or a list of them");
    if (!type && !types) return any_value(c, out);
    if (types & TYPE_NULL) status = expr_push(c->b, &choices, expr_text(c->b, "null"));
    if (!status && (types & TYPE_BOOLEAN)) status = expr_push(c->b, &choices, expr_text(c->b, "true"));
    if (!status && (types & TYPE_BOOLEAN)) status = expr_push(c->b, &choices, expr_text(c->b, "false"));
    static const unsigned order[] = {TYPE_INTEGER, TYPE_STRING, TYPE_ARRAY, TYPE_OBJECT};
    for (size_t i = 0; !status && i < sizeof order / sizeof *order; i++) {
        if (!(types & order[i])) continue;
        if (order[i] == TYPE_INTEGER)
            status = compile_number(c, schema, where, !(types & TYPE_NUMBER), &one);
        else if (order[i] == TYPE_STRING)
            status = compile_string(c, schema, where, &one);
        else if (order[i] == TYPE_ARRAY)
            status = compile_array(c, schema, where, &one);
        else
            status = compile_object(c, schema, where, &one);
        if (!status) status = expr_push(c->b, &choices, one);
    }
    return status ? status : finish(expr_list(c->b, EXPR_ALT, choices.items, choices.count), out);
}

/* ------------------------------------------------------------------ schemas */

static int check_keywords(struct compiler *c, const json_t *schema, const char *where) {
    static const char *const known[] = {"type",
                                        "enum",
                                        "const",
                                        "anyOf",
                                        "oneOf",
                                        "allOf",
                                        "$ref",
                                        "properties",
                                        "required",
                                        "additionalProperties",
                                        "items",
                                        "prefixItems",
                                        "minItems",
                                        "maxItems",
                                        "minLength",
                                        "maxLength",
                                        "pattern",
                                        "format",
                                        "minimum",
                                        "maximum",
                                        "exclusiveMinimum",
                                        "exclusiveMaximum",
                                        "multipleOf"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)schema, key, value) {
        bool ok = schema_is_annotation(key) || (strcmp(key, "uniqueItems") == 0 && json_is_false(value));
        for (size_t i = 0; !ok && i < sizeof known / sizeof *known; i++) ok = strcmp(key, known[i]) == 0;
        if (!ok) return REFUSE(c, below(c, where, key, -1), "this keyword is not supported");
    }
    return 0;
}

static int compile_flat(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    if (json_object_get(schema, "anyOf")) return compile_choices(c, schema, "anyOf", where, out);
    if (json_object_get(schema, "oneOf")) return compile_choices(c, schema, "oneOf", where, out);
    if (json_object_get(schema, "enum") || json_object_get(schema, "const"))
        return compile_values(c, schema, where, out);
    return compile_types(c, schema, where, out);
}

static int compile_object_schema(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    json_t *ref = json_object_get(schema, "$ref"), *flat = NULL, *rest = NULL;
    int status = check_keywords(c, schema, where);
    if (!status && ref && !json_object_get(schema, "allOf")) { /* a $ref alone keeps its own rule: it may recurse */
        rest = json_copy((json_t *)(uintptr_t)schema);
        if (!rest || json_object_del(rest, "$ref")) status = builder_no_memory(c->b);
        bool alone = !status && is_any_schema(rest);
        json_decref(rest);
        if (alone) return compile_reference(c, ref, where, out);
    }
    if (!status && !ref && !json_object_get(schema, "allOf")) return compile_flat(c, schema, where, out);
    if (!status) status = schema_flatten(c->root, schema, where, 0, &flat, c->b->err);
    if (!status) status = compile(c, flat, where, out);
    json_decref(flat);
    return status;
}

static int compile(struct compiler *c, const json_t *schema, const char *where, const struct expr **out) {
    if (++c->depth > GRAMMAR_MAX_NESTING)
        return REFUSE(c, where, "schemas nested more than %d deep", GRAMMAR_MAX_NESTING);
    int status;
    if (json_is_true(schema))
        status = any_value(c, out);
    else if (json_is_false(schema))
        status = finish(expr_simple(c->b, EXPR_NEVER), out);
    else if (json_is_object(schema))
        status = compile_object_schema(c, schema, where, out);
    else
        status = MALFORMED(c, where, "expected an object, true or false");
    c->depth--;
    return status;
}

int schema_build(struct builder *b, const json_t *schema) {
    struct compiler c = {.b = b, .root = schema, .string_rule = -1, .value_rule = -1};
    const struct expr *body = NULL;
    int root = 0;
    int status = builder_rule(b, "#", &root);
    if (!status) status = compile(&c, schema, "#", &body);
    if (!status) b->rules[root].body = body;
    for (size_t i = 0; !status && i < c.place_count; i++) {
        struct place place = c.places[i];
        status = compile(&c, schema_resolve(schema, place.pointer), place.pointer, &body);
        if (!status) b->rules[place.rule].body = body;
    }
    mem_free(c.places);
    return status;
}
