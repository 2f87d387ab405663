/* Chat templates: expressions. */
#include "text/template.h"

#include <math.h>
#include <string.h>

static int fail_undefined(struct interp *in, struct value value) {
    return TPL_FAIL(in, "%.*s", (int)value.text->bytes, value.text->data);
}

/* --------------------------------------------------------------- operators */

static int integer_power(struct interp *in, int64_t base, int64_t exponent, int64_t *out) {
    int64_t result = 1;
    bool overflow = false, square_overflow = false;
    for (; exponent > 0 && !overflow; exponent >>= 1) {
        if (exponent & 1) overflow = square_overflow || __builtin_mul_overflow(result, base, &result);
        square_overflow |= __builtin_mul_overflow(base, base, &base);
    }
    *out = result;
    return overflow ? TPL_FAIL(in, "the result of ** does not fit into 64 bits") : 0;
}

static int integer_operator(struct interp *in, enum operator_kind op, int64_t a, int64_t b, struct value *out) {
    int64_t r = 0;
    bool overflow = false;
    if (op >= OP_DIV && op <= OP_MOD && b == 0) return TPL_FAIL(in, "division by zero");
    switch (op) {
    case OP_ADD:
        overflow = __builtin_add_overflow(a, b, &r);
        break;
    case OP_SUB:
        overflow = __builtin_sub_overflow(a, b, &r);
        break;
    case OP_MUL:
        overflow = __builtin_mul_overflow(a, b, &r);
        break;
    case OP_DIV:
        *out = value_float((double)a / (double)b);
        return 0;
    case OP_FLOOR_DIV:
        overflow = a == INT64_MIN && b == -1;
        if (!overflow) r = a / b - (a % b != 0 && (a % b < 0) != (b < 0));
        break;
    case OP_MOD:
        if (b != -1) r = a % b;
        if (r != 0 && (r < 0) != (b < 0)) r += b;
        break;
    default:
        if (b < 0) {
            if (a == 0) return TPL_FAIL(in, "zero cannot be raised to a negative power");
            *out = value_float(pow((double)a, (double)b));
            return 0;
        }
        if (integer_power(in, a, b, &r)) return SHU_E_USAGE;
    }
    if (overflow) return TPL_FAIL(in, "the result of an integer operation does not fit into 64 bits");
    *out = value_int(r);
    return 0;
}

static int real_operator(struct interp *in, enum operator_kind op, double a, double b, struct value *out) {
    double r;
    if (op >= OP_DIV && op <= OP_MOD && b == 0) return TPL_FAIL(in, "division by zero");
    switch (op) {
    case OP_ADD:
        r = a + b;
        break;
    case OP_SUB:
        r = a - b;
        break;
    case OP_MUL:
        r = a * b;
        break;
    case OP_DIV:
        r = a / b;
        break;
    case OP_FLOOR_DIV:
        r = floor(a / b);
        break;
    case OP_MOD:
        r = fmod(a, b);
        if (r != 0 && (r < 0) != (b < 0)) r += b;
        break;
    default:
        r = pow(a, b);
        if (isnan(r) && !isnan(a) && !isnan(b)) return TPL_FAIL(in, "a negative number cannot be raised to a fraction");
    }
    *out = value_float(r);
    return 0;
}

static int join_strings(struct interp *in, struct value a, struct value b, struct value *out) {
    uint8_t markup = (a.flag | b.flag) & FLAG_MARKUP;
    int status = 0;
    if (markup && !(a.flag & FLAG_MARKUP)) status = string_escape(in, a, &a);
    if (!status && markup && !(b.flag & FLAG_MARKUP)) status = string_escape(in, b, &b);
    size_t mark = scratch_begin(in);
    if (!status) status = emit(in, a.text->data, a.text->bytes);
    if (!status) status = emit(in, b.text->data, b.text->bytes);
    if (!status) status = scratch_end(in, mark, out);
    out->flag = markup;
    return status;
}

static int join_sequences(struct interp *in, struct value a, struct value b, struct value *out) {
    int status = value_sequence(in, a.kind, a.sequence->count + b.sequence->count, out);
    if (status) return status;
    if (a.sequence->count)
        memcpy(out->sequence->items, a.sequence->items, a.sequence->count * sizeof *a.sequence->items);
    if (b.sequence->count)
        memcpy(out->sequence->items + a.sequence->count, b.sequence->items,
               b.sequence->count * sizeof *b.sequence->items);
    return 0;
}

static int repeat(struct interp *in, struct value value, int64_t times, struct value *out) {
    if (times < 0) times = 0;
    if (value.kind == VAL_STRING) {
        size_t mark = scratch_begin(in);
        int status = 0;
        for (int64_t i = 0; !status && value.text->bytes && i < times; i++)
            status = emit(in, value.text->data, value.text->bytes);
        if (!status) status = scratch_end(in, mark, out);
        out->flag = value.flag;
        return status;
    }
    size_t count;
    const struct sequence *items = value.sequence;
    if (size_mul(items->count, (size_t)times, &count) || count > TPL_MAX_RENDER_BYTES)
        return TPL_LIMIT(in, "a list repeated %lld times is too long", (long long)times);
    int status = value_sequence(in, value.kind, count, out);
    for (size_t i = 0; !status && i < count; i++) out->sequence->items[i] = items->items[i % items->count];
    return status;
}

static int fail_operands(struct interp *in, enum operator_kind op, struct value a, struct value b) {
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (a.kind == VAL_UNDEFINED) return fail_undefined(in, a);
    if (b.kind == VAL_UNDEFINED) return fail_undefined(in, b);
    return TPL_FAIL(in, "operator %s does not work on values of type %s and %s", signs[op], value_kind_name(a),
                    value_kind_name(b));
}

int eval_binary(struct interp *in, enum operator_kind op, struct value a, struct value b, struct value *out) {
    if (op == OP_MOD && a.kind == VAL_STRING) return format_percent(in, a.text, b, NULL, out);
    if (value_is_integer(a) && value_is_integer(b))
        return integer_operator(in, op, value_integer(a), value_integer(b), out);
    if (value_is_number(a) && value_is_number(b)) return real_operator(in, op, value_real(a), value_real(b), out);
    bool a_list = a.kind == VAL_LIST || a.kind == VAL_TUPLE, b_list = b.kind == VAL_LIST || b.kind == VAL_TUPLE;
    if (op == OP_ADD && a.kind == VAL_STRING && b.kind == VAL_STRING) return join_strings(in, a, b, out);
    if (op == OP_ADD && a_list && a.kind == b.kind) return join_sequences(in, a, b, out);
    if (op == OP_MUL && (a_list || a.kind == VAL_STRING) && value_is_integer(b))
        return repeat(in, a, value_integer(b), out);
    if (op == OP_MUL && (b_list || b.kind == VAL_STRING) && value_is_integer(a))
        return repeat(in, b, value_integer(a), out);
    return fail_operands(in, op, a, b);
}

int eval_operator(struct interp *in, enum operator_kind op, struct value a, struct value b, bool *out) {
    int order = 0, status = 0;
    bool result = false;
    if (op == OP_EQ || op == OP_NE) {
        status = value_equal(in, a, b, 0, &result);
        *out = result == (op == OP_EQ);
    } else if (op == OP_IN || op == OP_NOT_IN) {
        status = value_contains(in, b, a, &result);
        *out = result == (op == OP_IN);
    } else {
        status = value_compare(in, a, b, 0, &order);
        *out = op == OP_LT   ? order == -1
               : op == OP_LE ? order == -1 || order == 0
               : op == OP_GT ? order == 1
                             : order == 0 || order == 1;
    }
    return status;
}

/* ----------------------------------------------------- attributes and items */

/* jinja2's getattr: methods first, then keys. */
int eval_attribute(struct interp *in, struct value object, const struct text *name, struct value *out) {
    bool unsafe = false;
    if (object.kind == VAL_UNDEFINED) return fail_undefined(in, object);
    if (object.kind == VAL_LOOP) return loop_attribute(in, object.loop, name, out);
    const struct builtin *builtin = builtin_method(object, name, &unsafe);
    if (builtin) {
        struct method *method = template_alloc(in, 1, sizeof *method);
        if (!method) return SHU_E_NOMEM;
        *method = (struct method){object, builtin};
        *out = (struct value){.kind = VAL_METHOD, .method = method};
        return 0;
    }
    if (unsafe) {
        int status = value_undefined(in, "attribute \"", name,
                                     "\" is hidden by the sandbox: values cannot be changed in place", out);
        out->flag = FLAG_UNSAFE;
        return status;
    }
    if (object.kind == VAL_DICT || object.kind == VAL_NAMESPACE) {
        const struct value *found;
        int status = dict_get_text(in, object.dict, name, &found);
        if (status) return status;
        if (found) {
            *out = *found;
            return 0;
        }
    }
    return value_undefined(in, "the value has no attribute or key \"", name, "\"", out);
}

static int fail_missing(struct interp *in, struct value key, struct value *out) {
    struct value text;
    if (key.kind != VAL_STRING && !value_is_number(key)) {
        struct text unknown = {"?", 1};
        return value_undefined(in, "the value has no item ", &unknown, "", out);
    }
    int status = value_to_string(in, key, &text);
    return status ? status : value_undefined(in, "the value has no item \"", text.text, "\"", out);
}

static int character_at(struct interp *in, struct value string, int64_t index, struct value *out) {
    int64_t length;
    int status = value_length(in, string, &length);
    if (status) return status;
    if (index < 0) index += length;
    if (index < 0 || index >= length) return fail_missing(in, value_int(index), out);
    size_t at = text_offset(string.text, (size_t)index);
    int n;
    text_scalar(string.text, at, &n);
    status = value_borrow(in, string.text->data + at, (size_t)n, out);
    out->flag = string.flag;
    return status;
}

int eval_item(struct interp *in, struct value object, struct value key, struct value *out) {
    if (object.kind == VAL_UNDEFINED) return fail_undefined(in, object);
    if (object.kind == VAL_DICT) {
        const struct value *found = NULL;
        bool usable = key.kind != VAL_LIST && key.kind != VAL_DICT;
        int status = usable ? dict_get(in, object.dict, key, &found) : 0;
        if (status) return status;
        if (found) {
            *out = *found;
            return 0;
        }
    }
    bool indexed = object.kind == VAL_LIST || object.kind == VAL_TUPLE ||
                   (object.kind == VAL_VIEW && object.flag == FLAG_VIEW_RANGE);
    if (indexed && value_is_integer(key)) {
        int64_t index = value_integer(key), count = (int64_t)object.sequence->count;
        if (index < 0) index += count;
        if (index < 0 || index >= count) return fail_missing(in, key, out);
        *out = object.sequence->items[index];
        return 0;
    }
    if (object.kind == VAL_STRING && value_is_integer(key)) return character_at(in, object, value_integer(key), out);
    if (key.kind == VAL_STRING) return eval_attribute(in, object, key.text, out);
    return fail_missing(in, key, out);
}

/* Python's slice.indices: start, stop and number of items. */
static int slice_range(struct interp *in, const struct value bounds[3], int64_t length, int64_t *start, int64_t *step,
                       int64_t *count) {
    for (int i = 0; i < 3; i++)
        if (bounds[i].kind != VAL_NONE && !value_is_integer(bounds[i]))
            return TPL_FAIL(in, "the bounds of a slice must be integers or none, found %s", value_kind_name(bounds[i]));
    *step = bounds[2].kind == VAL_NONE ? 1 : value_integer(bounds[2]);
    if (*step == 0) return TPL_FAIL(in, "the step of a slice cannot be zero");
    bool back = *step < 0;
    int64_t low = back ? -1 : 0, high = back ? length - 1 : length, ends[2] = {back ? high : low, back ? low : high};
    for (int i = 0; i < 2; i++) {
        if (bounds[i].kind == VAL_NONE) continue;
        int64_t at = value_integer(bounds[i]);
        if (at < 0) at = at < -length ? low : at + length;
        ends[i] = at < low ? low : at > high ? high : at;
    }
    *start = ends[0];
    int64_t distance = back ? ends[0] - ends[1] : ends[1] - ends[0];
    uint64_t stride = back ? 0 - (uint64_t)*step : (uint64_t)*step;
    *count = distance <= 0 ? 0 : (int64_t)(((uint64_t)distance - 1) / stride) + 1;
    return 0;
}

static int slice_string(struct interp *in, struct value string, int64_t start, int64_t step, int64_t count,
                        struct value *out) {
    int status;
    if (step == 1) {
        size_t from = text_offset(string.text, (size_t)start);
        struct text rest = {string.text->data + from, string.text->bytes - from};
        status = template_charge(in, string.text->bytes / 256);
        if (!status) status = value_borrow(in, rest.data, text_offset(&rest, (size_t)count), out);
    } else {
        struct sequence *items;
        size_t mark = scratch_begin(in);
        status = value_iterate(in, (struct value){.kind = VAL_STRING, .text = string.text}, &items);
        for (int64_t i = 0; !status && i < count; i++) status = value_print(in, items->items[start + i * step]);
        if (!status) status = scratch_end(in, mark, out);
    }
    out->flag = string.flag;
    return status;
}

static int eval_slice(struct interp *in, struct value object, const struct value bounds[3], struct value *out) {
    int64_t length, start = 0, step = 1, count = 0;
    if (object.kind == VAL_UNDEFINED) return fail_undefined(in, object);
    bool sliced = object.kind == VAL_LIST || object.kind == VAL_TUPLE || object.kind == VAL_STRING ||
                  (object.kind == VAL_VIEW && object.flag == FLAG_VIEW_RANGE);
    if (!sliced) return fail_missing(in, value_of(VAL_NONE), out);
    int status = value_length(in, object, &length);
    if (!status) status = slice_range(in, bounds, length, &start, &step, &count);
    if (status) return status;
    if (object.kind == VAL_STRING) return slice_string(in, object, start, step, count, out);
    status = value_sequence(in, object.kind, (size_t)count, out);
    if (status) return status;
    out->flag = object.flag;
    for (int64_t i = 0; i < count; i++) out->sequence->items[i] = object.sequence->items[start + i * step];
    return 0;
}

/* ------------------------------------------------------------------- names */

static int eval_name(struct interp *in, const struct node *node, struct value *out) {
    for (const struct scope *scope = in->scope; scope; scope = scope->parent)
        for (int i = 0; i < scope->count; i++)
            if (scope->items[i].name == node->name) {
                *out = scope->items[i].value;
                return 0;
            }
    *out = in->globals[node->name];
    if (out->kind != VAL_ABSENT) return 0;
    const struct text *name = in->tpl->names[node->name];
    const struct builtin *builtin = builtin_global(name->data, name->bytes);
    if (builtin) {
        *out = (struct value){.kind = VAL_FUNCTION, .builtin = builtin};
        return 0;
    }
    return value_undefined(in, "\"", name, "\" is undefined", out);
}

/* ------------------------------------------------------------------- calls */

static int spread_positional(struct interp *in, const struct node *star, struct sequence **out) {
    struct value value;
    int status = eval_expression(in, star, &value);
    if (!status) status = value_iterate(in, value, out);
    if (!status && (*out)->count > TPL_MAX_CALL_ARGS) return TPL_LIMIT(in, "more than %d arguments", TPL_MAX_CALL_ARGS);
    return status;
}

static int spread_named(struct interp *in, const struct node *star_star, struct dict **out) {
    struct value value;
    int status = eval_expression(in, star_star, &value);
    if (status) return status;
    if (value.kind != VAL_DICT)
        return TPL_FAIL(in, "the argument after ** must be a dict, found %s", value_kind_name(value));
    *out = value.dict;
    if ((*out)->count > TPL_MAX_CALL_ARGS) return TPL_LIMIT(in, "more than %d arguments", TPL_MAX_CALL_ARGS);
    for (size_t i = 0; i < (*out)->count; i++)
        if ((*out)->entries[i].key.kind != VAL_STRING) return TPL_FAIL(in, "the keys of a ** argument must be strings");
    return 0;
}

/* Room for `extra` more named arguments is left (caller). */
static int eval_arguments(struct interp *in, const struct call_args *args, size_t extra, struct arguments *out) {
    static const struct call_args none = {0};
    struct sequence *star = NULL;
    struct dict *star_star = NULL;
    int status = 0;
    if (!args) args = &none;
    if (args->star) status = spread_positional(in, args->star, &star);
    if (!status && args->star_star) status = spread_named(in, args->star_star, &star_star);
    if (status) return status;
    size_t count = args->count + (star ? star->count : 0),
           named = args->named_count + (star_star ? star_star->count : 0);
    *out = (struct arguments){0};
    if (count) out->items = template_alloc(in, count, sizeof *out->items);
    if (named + extra) out->named = template_alloc(in, named + extra, sizeof *out->named);
    if ((count && !out->items) || (named + extra && !out->named)) return SHU_E_NOMEM;
    for (size_t i = 0; !status && i < args->count; i++) status = eval_expression(in, args->items[i], &out->items[i]);
    for (size_t i = args->count; !status && i < count; i++) out->items[i] = star->items[i - args->count];
    for (size_t i = 0; !status && i < args->named_count; i++) {
        out->named[i].name = args->names[i];
        status = eval_expression(in, args->named[i], &out->named[i].value);
    }
    for (size_t i = args->named_count; !status && i < named; i++) {
        const struct dict_entry *entry = &star_star->entries[i - args->named_count];
        out->named[i] = (struct named_value){entry->key.text, entry->value};
    }
    out->count = count;
    out->named_count = named;
    return status;
}

static int eval_call_node(struct interp *in, const struct node *node, const struct value *caller, struct value *out) {
    static const struct text caller_name = {"caller", 6};
    struct value callee;
    struct arguments args;
    int status = eval_expression(in, node->a, &callee);
    if (!status) status = eval_arguments(in, node->args, 1, &args);
    if (status) return status;
    if (caller) args.named[args.named_count++] = (struct named_value){&caller_name, *caller};
    return eval_call(in, callee, &args, out);
}

int eval_filter(struct interp *in, const struct node *node, struct value input, struct value *out) {
    struct arguments args;
    if (node->a) {
        int status = node->a->kind == NODE_FILTER ? eval_filter(in, node->a, input, &input)
                                                  : eval_expression(in, node->a, &input);
        if (status) return status;
    }
    if (!node->builtin) return TPL_FAIL(in, "no filter is named \"%.*s\"", (int)node->text->bytes, node->text->data);
    int status = eval_arguments(in, node->args, 0, &args);
    return status ? status : builtin_call(in, node->builtin, input, &args, out);
}

static int eval_test(struct interp *in, const struct node *node, struct value *out) {
    struct value input;
    struct arguments args;
    int status = eval_expression(in, node->a, &input);
    if (status) return status;
    if (!node->builtin) return TPL_FAIL(in, "no test is named \"%.*s\"", (int)node->text->bytes, node->text->data);
    status = eval_arguments(in, node->args, 0, &args);
    if (!status) status = builtin_call(in, node->builtin, input, &args, out);
    if (!status && (node->flags & NODE_NEGATED)) *out = value_bool(!value_truth(*out));
    return status;
}

/* ------------------------------------------------------------- other nodes */

static int eval_sequence_literal(struct interp *in, const struct node *node, struct value *out) {
    int status = value_sequence(in, node->kind == NODE_LIST ? VAL_LIST : VAL_TUPLE, node->list.count, out);
    for (size_t i = 0; !status && i < node->list.count; i++)
        status = eval_expression(in, node->list.items[i], &out->sequence->items[i]);
    return status;
}

static int eval_dict_literal(struct interp *in, const struct node *node, struct value *out) {
    int status = dict_new(in, out);
    for (size_t i = 0; !status && i < node->list.count; i += 2) {
        struct value key, value;
        status = eval_expression(in, node->list.items[i], &key);
        if (!status) status = eval_expression(in, node->list.items[i + 1], &value);
        if (!status) status = dict_set(in, out->dict, key, value);
    }
    return status;
}

static int eval_item_node(struct interp *in, const struct node *node, struct value *out) {
    struct value object, key;
    int status = eval_expression(in, node->a, &object);
    if (status) return status;
    if (node->b->kind != NODE_SLICE) {
        status = eval_expression(in, node->b, &key);
        return status ? status : eval_item(in, object, key, out);
    }
    struct value bounds[3] = {value_of(VAL_NONE), value_of(VAL_NONE), value_of(VAL_NONE)};
    const struct node *parts[3] = {node->b->b, node->b->c, node->b->d};
    for (int i = 0; !status && i < 3; i++)
        if (parts[i]) status = eval_expression(in, parts[i], &bounds[i]);
    return status ? status : eval_slice(in, object, bounds, out);
}

static int eval_sign(struct interp *in, const struct node *node, struct value *out) {
    struct value value;
    int status = eval_expression(in, node->a, &value);
    if (status) return status;
    if (value.kind == VAL_UNDEFINED) return fail_undefined(in, value);
    if (!value_is_number(value)) return TPL_FAIL(in, "a value of type %s has no sign", value_kind_name(value));
    if (node->kind == NODE_PLUS)
        *out = value.kind == VAL_FLOAT ? value : value_int(value_integer(value));
    else if (value.kind == VAL_FLOAT)
        *out = value_float(-value.real);
    else
        return integer_operator(in, OP_SUB, 0, value_integer(value), out);
    return 0;
}

static int eval_concat(struct interp *in, const struct node *node, struct value *out) {
    struct value *parts = template_alloc(in, node->list.count, sizeof *parts);
    if (!parts) return SHU_E_NOMEM;
    int status = 0;
    for (size_t i = 0; !status && i < node->list.count; i++)
        status = eval_expression(in, node->list.items[i], &parts[i]);
    size_t mark = scratch_begin(in);
    for (size_t i = 0; !status && i < node->list.count; i++) status = value_print(in, parts[i]);
    return status ? status : scratch_end(in, mark, out);
}

static int eval_comparison(struct interp *in, const struct node *node, struct value *out) {
    struct value left, right;
    bool result = true;
    int status = eval_expression(in, node->a, &left);
    for (size_t i = 0; !status && result && i < node->list.count; i++) {
        const struct node *operand = node->list.items[i];
        status = eval_expression(in, operand->a, &right);
        if (!status) status = eval_operator(in, operand->op, left, right, &result);
        left = right;
    }
    *out = value_bool(result);
    return status;
}

static int eval_conditional(struct interp *in, const struct node *node, struct value *out) {
    struct value test;
    int status = eval_expression(in, node->a, &test);
    if (status) return status;
    if (value_truth(test)) return eval_expression(in, node->b, out);
    if (node->c) return eval_expression(in, node->c, out);
    return value_undefined(in, "an inline if was false and has no else", NULL, "", out);
}

static int eval_short_circuit(struct interp *in, const struct node *node, struct value *out) {
    int status = eval_expression(in, node->a, out);
    if (status || value_truth(*out) == (node->kind == NODE_OR)) return status;
    return eval_expression(in, node->b, out);
}

static int eval_binary_node(struct interp *in, const struct node *node, struct value *out) {
    struct value a, b;
    int status = eval_expression(in, node->a, &a);
    if (!status) status = eval_expression(in, node->b, &b);
    return status ? status : eval_binary(in, node->op, a, b, out);
}

static int eval_attribute_node(struct interp *in, const struct node *node, struct value *out) {
    struct value object;
    int status = eval_expression(in, node->a, &object);
    return status ? status : eval_attribute(in, object, node->text, out);
}

static int eval_not(struct interp *in, const struct node *node, struct value *out) {
    int status = eval_expression(in, node->a, out);
    *out = value_bool(!value_truth(*out));
    return status;
}

static int dispatch(struct interp *in, const struct node *node, struct value *out) {
    switch (node->kind) {
    case NODE_CONST:
        *out = node->constant;
        return 0;
    case NODE_NAME:
        return eval_name(in, node, out);
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_sequence_literal(in, node, out);
    case NODE_DICT:
        return eval_dict_literal(in, node, out);
    case NODE_ATTR:
        return eval_attribute_node(in, node, out);
    case NODE_ITEM:
        return eval_item_node(in, node, out);
    case NODE_CALL:
        return eval_call_node(in, node, NULL, out);
    case NODE_FILTER:
        return eval_filter(in, node, value_of(VAL_NONE), out);
    case NODE_TEST:
        return eval_test(in, node, out);
    case NODE_NOT:
        return eval_not(in, node, out);
    case NODE_AND:
    case NODE_OR:
        return eval_short_circuit(in, node, out);
    case NODE_NEGATE:
    case NODE_PLUS:
        return eval_sign(in, node, out);
    case NODE_BINARY:
        return eval_binary_node(in, node, out);
    case NODE_CONCAT:
        return eval_concat(in, node, out);
    case NODE_COMPARE:
        return eval_comparison(in, node, out);
    default:
        return eval_conditional(in, node, out);
    }
}

/* Names the place of the innermost failing node, once. */
int eval_place(struct interp *in, const struct node *node, int status) {
    if (!status || in->placed) return status;
    in->placed = true;
    return error_context(in->err, status, "chat template, line %d, column %d: ", node->line, node->column);
}

int eval_expression(struct interp *in, const struct node *node, struct value *out) {
    *out = value_of(VAL_NONE);
    int status = template_charge(in, 1);
    if (!status && ++in->depth > TPL_MAX_EVAL_DEPTH)
        status = TPL_LIMIT(in, "more than %d nested evaluations: a macro that calls itself without end?",
                           TPL_MAX_EVAL_DEPTH);
    if (!status) status = dispatch(in, node, out);
    in->depth--;
    return eval_place(in, node, status);
}

/* A call from a call block: passes the block's body as `caller`. */
int eval_call_with(struct interp *in, const struct node *node, struct value caller, struct value *out) {
    return eval_place(in, node, eval_call_node(in, node, &caller, out));
}
