/* Chat templates: calling builtins; tests, global functions, methods of dicts, lists and loops. */
#include "text/template.h"

#include <string.h>
#include <time.h>

/* ------------------------------------------------------------------ calling */

/* Position of name[0, bytes) in "a b c", or -1. */
static int parameter_index(const char *params, const char *name, size_t bytes) {
    for (int index = 0; *params; index++) {
        size_t n = strcspn(params, " ");
        if (n == bytes && memcmp(params, name, n) == 0) return index;
        params += n + (params[n] == ' ');
    }
    return -1;
}

static int count_parameters(const char *params) {
    int count = *params != 0;
    for (; *params; params++) count += *params == ' ';
    return count;
}

static int bind(struct interp *in, const struct builtin *builtin, const struct arguments *args, struct call *call) {
    int most = count_parameters(builtin->params);
    if (args->count > (size_t)most)
        return TPL_FAIL(in, "%s takes at most %d arguments, %zu were given", builtin->name, most, args->count);
    for (size_t i = 0; i < args->count; i++) call->arg[i] = args->items[i];
    for (size_t i = 0; i < args->named_count; i++) {
        const struct text *name = args->named[i].name;
        int index = parameter_index(builtin->params, name->data, name->bytes);
        if (index < 0)
            return TPL_FAIL(in, "%s takes no argument named \"%.*s\"", builtin->name, (int)name->bytes, name->data);
        if (call->arg[index].kind != VAL_ABSENT)
            return TPL_FAIL(in, "%s got \"%.*s\" twice", builtin->name, (int)name->bytes, name->data);
        call->arg[index] = args->named[i].value;
    }
    for (int i = 0; i < builtin->required; i++)
        if (call->arg[i].kind == VAL_ABSENT)
            return TPL_FAIL(in, "%s needs %d argument(s)", builtin->name, builtin->required);
    return 0;
}

int builtin_call(struct interp *in, const struct builtin *builtin, struct value self, const struct arguments *args,
                 struct value *out) {
    struct call call = {.self = self, .raw = args};
    int status = builtin->params ? bind(in, builtin, args, &call) : 0;
    return status ? status : builtin->fn(in, &call, out);
}

static const struct builtin *find(const struct builtin *table, size_t count, const char *name, size_t bytes) {
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i].name) == bytes && memcmp(table[i].name, name, bytes) == 0) return &table[i];
    return NULL;
}

/* -------------------------------------------------------------------- tests */

#define KIND_TEST(name, condition)                                                                                     \
    static int name(struct interp *in, const struct call *call, struct value *out) {                                   \
        (void)in;                                                                                                      \
        struct value v = call->self;                                                                                   \
        *out = value_bool(condition);                                                                                  \
        return 0;                                                                                                      \
    }
KIND_TEST(t_defined, v.kind != VAL_UNDEFINED)
KIND_TEST(t_undefined, v.kind == VAL_UNDEFINED)
KIND_TEST(t_none, v.kind == VAL_NONE)
KIND_TEST(t_boolean, v.kind == VAL_BOOL)
KIND_TEST(t_true, v.kind == VAL_BOOL && v.boolean)
KIND_TEST(t_false, v.kind == VAL_BOOL && !v.boolean)
KIND_TEST(t_integer, v.kind == VAL_INT)
KIND_TEST(t_float, v.kind == VAL_FLOAT)
KIND_TEST(t_number, value_is_number(v))
KIND_TEST(t_string, v.kind == VAL_STRING)
KIND_TEST(t_mapping, v.kind == VAL_DICT)
KIND_TEST(t_escaped, v.kind == VAL_STRING && (v.flag & FLAG_MARKUP))
KIND_TEST(t_callable, v.kind == VAL_MACRO || v.kind == VAL_FUNCTION || v.kind == VAL_METHOD ||
                          v.kind == VAL_UNDEFINED || v.kind == VAL_LOOP)
KIND_TEST(t_sequence, v.kind == VAL_STRING || v.kind == VAL_LIST || v.kind == VAL_TUPLE || v.kind == VAL_DICT ||
                          v.kind == VAL_UNDEFINED || (v.kind == VAL_VIEW && v.flag == FLAG_VIEW_RANGE))
KIND_TEST(t_iterable, v.kind == VAL_STRING || value_is_sequence(v) || v.kind == VAL_DICT || v.kind == VAL_UNDEFINED ||
                          v.kind == VAL_LOOP)
KIND_TEST(t_filter, v.kind == VAL_STRING && builtin_filter(v.text->data, v.text->bytes) != NULL)
KIND_TEST(t_test, v.kind == VAL_STRING && builtin_test(v.text->data, v.text->bytes) != NULL)

static int modulo(struct interp *in, struct value value, struct value divisor, struct value *out) {
    if (value.kind == VAL_STRING) return TPL_FAIL(in, "a string cannot be divided");
    return eval_binary(in, OP_MOD, value, divisor, out);
}

static int remainder_is(struct interp *in, struct value value, struct value divisor, int64_t expected,
                        struct value *out) {
    bool equal = false;
    int status = modulo(in, value, divisor, out);
    if (!status) status = value_equal(in, *out, value_int(expected), 0, &equal);
    *out = value_bool(equal);
    return status;
}
static int t_odd(struct interp *in, const struct call *call, struct value *out) {
    return remainder_is(in, call->self, value_int(2), 1, out);
}
static int t_even(struct interp *in, const struct call *call, struct value *out) {
    return remainder_is(in, call->self, value_int(2), 0, out);
}
static int t_divisibleby(struct interp *in, const struct call *call, struct value *out) {
    return remainder_is(in, call->self, call->arg[0], 0, out);
}

static int t_case(struct interp *in, const struct call *call, bool upper, struct value *out) {
    struct value text;
    int status = value_to_string(in, call->self, &text);
    if (!status) *out = value_bool(text_is_case(in, text.text, upper));
    return status;
}
static int t_upper(struct interp *in, const struct call *call, struct value *out) {
    return t_case(in, call, true, out);
}
static int t_lower(struct interp *in, const struct call *call, struct value *out) {
    return t_case(in, call, false, out);
}

static int t_sameas(struct interp *in, const struct call *call, struct value *out) {
    struct value a = call->self, b = call->arg[0];
    bool same = a.kind == b.kind;
    int status = 0;
    if (same && a.kind >= VAL_LIST)
        same = a.sequence == b.sequence;
    else if (same && a.kind != VAL_UNDEFINED)
        status = value_equal(in, a, b, 0, &same);
    *out = value_bool(same);
    return status;
}

#define OPERATOR_TEST(name, op)                                                                                        \
    static int name(struct interp *in, const struct call *call, struct value *out) {                                   \
        bool result = false;                                                                                           \
        int status = eval_operator(in, op, call->self, call->arg[0], &result);                                         \
        *out = value_bool(result);                                                                                     \
        return status;                                                                                                 \
    }
OPERATOR_TEST(t_eq, OP_EQ)
OPERATOR_TEST(t_ne, OP_NE)
OPERATOR_TEST(t_lt, OP_LT)
OPERATOR_TEST(t_le, OP_LE)
OPERATOR_TEST(t_gt, OP_GT)
OPERATOR_TEST(t_ge, OP_GE)
OPERATOR_TEST(t_in, OP_IN)

static const struct builtin tests[] = {
    {"defined", "", 0, t_defined},
    {"undefined", "", 0, t_undefined},
    {"none", "", 0, t_none},
    {"boolean", "", 0, t_boolean},
    {"true", "", 0, t_true},
    {"false", "", 0, t_false},
    {"integer", "", 0, t_integer},
    {"float", "", 0, t_float},
    {"number", "", 0, t_number},
    {"string", "", 0, t_string},
    {"mapping", "", 0, t_mapping},
    {"sequence", "", 0, t_sequence},
    {"iterable", "", 0, t_iterable},
    {"callable", "", 0, t_callable},
    {"escaped", "", 0, t_escaped},
    {"filter", "", 0, t_filter},
    {"test", "", 0, t_test},
    {"odd", "", 0, t_odd},
    {"even", "", 0, t_even},
    {"divisibleby", "num", 1, t_divisibleby},
    {"upper", "", 0, t_upper},
    {"lower", "", 0, t_lower},
    {"sameas", "other", 1, t_sameas},
    {"in", "seq", 1, t_in},
    {"eq", "b", 1, t_eq},
    {"equalto", "b", 1, t_eq},
    {"==", "b", 1, t_eq},
    {"ne", "b", 1, t_ne},
    {"!=", "b", 1, t_ne},
    {"lt", "b", 1, t_lt},
    {"lessthan", "b", 1, t_lt},
    {"<", "b", 1, t_lt},
    {"le", "b", 1, t_le},
    {"<=", "b", 1, t_le},
    {"gt", "b", 1, t_gt},
    {"greaterthan", "b", 1, t_gt},
    {">", "b", 1, t_gt},
    {"ge", "b", 1, t_ge},
    {">=", "b", 1, t_ge},
};

const struct builtin *builtin_test(const char *name, size_t bytes) {
    return find(tests, sizeof tests / sizeof *tests, name, bytes);
}

/* --------------------------------------------------------- global functions */

static int g_range(struct interp *in, const struct call *call, struct value *out) {
    const struct arguments *args = call->raw;
    int64_t bounds[3] = {0, 0, 1};
    if (args->named_count || args->count < 1 || args->count > 3)
        return TPL_FAIL(in, "range takes one to three integers");
    for (size_t i = 0; i < args->count; i++) {
        if (!value_is_integer(args->items[i]))
            return TPL_FAIL(in, "range takes integers, found %s", value_kind_name(args->items[i]));
        bounds[args->count == 1 ? 1 : i] = value_integer(args->items[i]);
    }
    int64_t start = bounds[0], stop = bounds[1], step = bounds[2];
    if (step == 0) return TPL_FAIL(in, "the step of range cannot be zero");
    uint64_t distance = step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    uint64_t count = (step > 0 ? start < stop : start > stop) ? (distance - 1) / stride + 1 : 0;
    if (count > TPL_MAX_RANGE)
        return TPL_LIMIT(in, "range of %llu items, at most %d are allowed", (unsigned long long)count, TPL_MAX_RANGE);
    int status = value_sequence(in, VAL_VIEW, count, out);
    if (status) return status;
    out->flag = FLAG_VIEW_RANGE;
    for (uint64_t i = 0; i < count; i++) out->sequence->items[i] = value_int(start + (int64_t)i * step);
    return 0;
}

static int add_pairs(struct interp *in, struct dict *dict, struct value source) {
    struct sequence *items, *pair;
    if (source.kind == VAL_DICT) {
        int status = 0;
        for (size_t i = 0; !status && i < source.dict->count; i++)
            status = dict_set(in, dict, source.dict->entries[i].key, source.dict->entries[i].value);
        return status;
    }
    int status = value_iterate(in, source, &items);
    for (size_t i = 0; !status && i < items->count; i++) {
        status = value_iterate(in, items->items[i], &pair);
        if (!status && pair->count != 2) return TPL_FAIL(in, "dict: expected pairs of key and value");
        if (!status) status = dict_set(in, dict, pair->items[0], pair->items[1]);
    }
    return status;
}

static int g_dict(struct interp *in, const struct call *call, struct value *out) {
    const struct arguments *args = call->raw;
    int status = dict_new(in, out);
    if (args->count > 1) return TPL_FAIL(in, "dict takes at most one positional argument");
    if (!status && args->count) status = add_pairs(in, out->dict, args->items[0]);
    for (size_t i = 0; !status && i < args->named_count; i++)
        status = dict_set(in, out->dict, (struct value){.kind = VAL_STRING, .text = args->named[i].name},
                          args->named[i].value);
    return status;
}

static int g_namespace(struct interp *in, const struct call *call, struct value *out) {
    int status = g_dict(in, call, out);
    out->kind = VAL_NAMESPACE;
    return status;
}

static int g_raise_exception(struct interp *in, const struct call *call, struct value *out) {
    int status = value_to_string(in, call->arg[0], out);
    if (status) return status;
    status =
        SHU_FAIL(in->err, SHU_E_USAGE, "%.*s", (int)(out->text->bytes < 480 ? out->text->bytes : 480), out->text->data);
    in->placed = true; /* the template's own words are the message */
    return status;
}

static int g_strftime_now(struct interp *in, const struct call *call, struct value *out) {
    if (call->arg[0].kind != VAL_STRING) return TPL_FAIL(in, "strftime_now needs a format string");
    const struct text *format = call->arg[0].text;
    char pattern[256], text[1024];
    if (format->bytes >= sizeof pattern || memchr(format->data, 0, format->bytes))
        return TPL_FAIL(in, "strftime_now: the format is longer than %zu bytes", sizeof pattern - 1);
    memcpy(pattern, format->data, format->bytes);
    pattern[format->bytes] = 0;
    time_t now = in->tpl->fixed_time ? (time_t)in->tpl->fixed_time : time(NULL);
    struct tm parts;
    if (in->tpl->fixed_time ? !gmtime_r(&now, &parts) : !localtime_r(&now, &parts))
        return TPL_FAIL(in, "strftime_now: the clock is out of range");
    size_t n = strftime_l(text, sizeof text, pattern, &parts, in->tpl->locale);
    if (n == 0 && format->bytes)
        return TPL_FAIL(in, "strftime_now: the result is empty or longer than %zu bytes", sizeof text);
    return value_string(in, text, n, out);
}

static const struct builtin globals[] = {
    {"range", NULL, 0, g_range},
    {"dict", NULL, 0, g_dict},
    {"namespace", NULL, 0, g_namespace},
    {"raise_exception", "message", 1, g_raise_exception},
    {"strftime_now", "format", 1, g_strftime_now},
};

const struct builtin *builtin_global(const char *name, size_t bytes) {
    return find(globals, sizeof globals / sizeof *globals, name, bytes);
}

/* ------------------------------------------------------------------ methods */

static int view(struct interp *in, const struct dict *dict, uint8_t flag, struct value *out) {
    int status = value_sequence(in, VAL_VIEW, dict->count, out);
    if (status) return status;
    out->flag = flag;
    for (size_t i = 0; !status && i < dict->count; i++) {
        struct value *item = &out->sequence->items[i];
        const struct dict_entry *entry = &dict->entries[i];
        if (flag != FLAG_VIEW_ITEMS) {
            *item = flag == FLAG_VIEW_KEYS ? entry->key : entry->value;
            continue;
        }
        status = value_sequence(in, VAL_TUPLE, 2, item);
        if (status) return status;
        item->sequence->items[0] = entry->key;
        item->sequence->items[1] = entry->value;
    }
    return status;
}
static int d_keys(struct interp *in, const struct call *call, struct value *out) {
    return view(in, call->self.dict, FLAG_VIEW_KEYS, out);
}
static int d_values(struct interp *in, const struct call *call, struct value *out) {
    return view(in, call->self.dict, FLAG_VIEW_VALUES, out);
}
static int d_items(struct interp *in, const struct call *call, struct value *out) {
    return view(in, call->self.dict, FLAG_VIEW_ITEMS, out);
}

static int d_get(struct interp *in, const struct call *call, struct value *out) {
    const struct value *found;
    int status = dict_get(in, call->self.dict, call->arg[0], &found);
    *out = found ? *found : call->arg[1].kind == VAL_ABSENT ? value_of(VAL_NONE) : call->arg[1];
    return status;
}

static int d_copy(struct interp *in, const struct call *call, struct value *out) {
    int status = dict_new(in, out);
    return status ? status : add_pairs(in, out->dict, call->self);
}

static int s_count(struct interp *in, const struct call *call, struct value *out) {
    int64_t count = 0;
    int status = 0;
    for (size_t i = 0; !status && i < call->self.sequence->count; i++) {
        bool equal;
        status = value_equal(in, call->self.sequence->items[i], call->arg[0], 0, &equal);
        count += !status && equal;
    }
    *out = value_int(count);
    return status;
}

static int s_index(struct interp *in, const struct call *call, struct value *out) {
    for (size_t i = 0; i < call->self.sequence->count; i++) {
        bool equal;
        int status = value_equal(in, call->self.sequence->items[i], call->arg[0], 0, &equal);
        *out = value_int((int64_t)i);
        if (status || equal) return status;
    }
    return TPL_FAIL(in, "index: the value is not in the list");
}

static int s_copy(struct interp *in, const struct call *call, struct value *out) {
    (void)in;
    *out = call->self; /* lists never change, so the same list is as good as a copy */
    return 0;
}

static const struct builtin dict_methods[] = {
    {"get", "key default", 1, d_get}, {"items", "", 0, d_items}, {"keys", "", 0, d_keys},
    {"values", "", 0, d_values},      {"copy", "", 0, d_copy},
};
static const struct builtin list_methods[] = {
    {"count", "value", 1, s_count}, {"index", "value", 1, s_index}, {"copy", "", 0, s_copy}};

static bool listed(const char *const *names, const struct text *name) {
    for (; *names; names++)
        if (text_is(name, *names)) return true;
    return false;
}

const struct builtin *builtin_method(struct value object, const struct text *name, bool *unsafe) {
    static const char *const list_changes[] = {"append", "clear",  "pop",    "reverse", "insert",
                                               "sort",   "extend", "remove", NULL};
    static const char *const dict_changes[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    *unsafe = name->bytes > 4 && memcmp(name->data, "__", 2) == 0 && memcmp(name->data + name->bytes - 2, "__", 2) == 0;
    switch (object.kind) {
    case VAL_STRING:
        return string_method(name);
    case VAL_DICT:
        *unsafe |= listed(dict_changes, name);
        return find(dict_methods, sizeof dict_methods / sizeof *dict_methods, name->data, name->bytes);
    case VAL_LIST:
        *unsafe |= listed(list_changes, name);
        return find(list_methods, sizeof list_methods / sizeof *list_methods, name->data, name->bytes);
    case VAL_TUPLE:
        return find(list_methods, 2, name->data, name->bytes);
    default:
        return NULL;
    }
}

/* --------------------------------------------------------------------- loop */

static int l_cycle(struct interp *in, const struct call *call, struct value *out) {
    if (call->raw->count == 0) return TPL_FAIL(in, "loop.cycle needs at least one value");
    *out = call->raw->items[call->self.loop->index % call->raw->count];
    return 0;
}

static int l_changed(struct interp *in, const struct call *call, struct value *out) {
    struct loop *loop = call->self.loop;
    struct value now;
    bool same = false;
    int status = value_sequence(in, VAL_TUPLE, call->raw->count, &now);
    if (status) return status;
    for (size_t i = 0; i < call->raw->count; i++) now.sequence->items[i] = call->raw->items[i];
    if (loop->last_changed.kind != VAL_ABSENT) status = value_equal(in, loop->last_changed, now, 0, &same);
    loop->last_changed = now;
    *out = value_bool(!same);
    return status;
}

static const struct builtin loop_methods[] = {{"cycle", NULL, 0, l_cycle}, {"changed", NULL, 0, l_changed}};

/* The neighbour at an offset from the current item, or undefined. */
static int neighbour(struct interp *in, struct loop *loop, bool next, struct value *out) {
    bool got = next ? loop->index + 1 < loop->count : loop->index > 0;
    int status = 0;
    if (next && !got) status = loop_pull(in, loop, &got);
    if (status) return status;
    if (!got) return value_undefined(in, next ? "there is no next item" : "there is no previous item", NULL, "", out);
    *out = loop->items[next ? loop->index + 1 : loop->index - 1];
    return 0;
}

static int loop_last(struct interp *in, struct loop *loop, struct value *out) {
    bool got = loop->index + 1 < loop->count;
    int status = got ? 0 : loop_pull(in, loop, &got);
    *out = value_bool(!got);
    return status;
}

int loop_attribute(struct interp *in, struct loop *loop, const struct text *name, struct value *out) {
    int64_t index = (int64_t)loop->index;
    const struct builtin *builtin = find(loop_methods, 2, name->data, name->bytes);
    if (builtin) {
        struct method *method = template_alloc(in, 1, sizeof *method);
        if (!method) return SHU_E_NOMEM;
        *method = (struct method){{.kind = VAL_LOOP, .loop = loop}, builtin};
        *out = (struct value){.kind = VAL_METHOD, .method = method};
        return 0;
    }
    if (text_is(name, "index"))
        *out = value_int(index + 1);
    else if (text_is(name, "index0"))
        *out = value_int(index);
    else if (text_is(name, "first"))
        *out = value_bool(index == 0);
    else if (text_is(name, "depth"))
        *out = value_int(1);
    else if (text_is(name, "depth0"))
        *out = value_int(0);
    else if (text_is(name, "last"))
        return loop_last(in, loop, out);
    else if (text_is(name, "previtem"))
        return neighbour(in, loop, false, out);
    else if (text_is(name, "nextitem"))
        return neighbour(in, loop, true, out);
    else if (text_is(name, "length") || text_is(name, "revindex") || text_is(name, "revindex0")) {
        int status = loop_complete(in, loop);
        int64_t count = (int64_t)loop->count;
        *out = value_int(text_is(name, "length")     ? count
                         : text_is(name, "revindex") ? count - index
                                                     : count - index - 1);
        return status;
    } else {
        return value_undefined(in, "loop has no attribute \"", name, "\"", out);
    }
    return 0;
}
