/* Chat templates: blocks, scopes, macros and loops; the public functions. */
#include "text/template.h"

#include <string.h>

/* How a body ended: the loop around it looks at this. */
enum control { CONTROL_NONE, CONTROL_BREAK, CONTROL_CONTINUE };
static int eval_body(struct interp *in, const struct node_list *body, enum control *control);

/* ------------------------------------------------------------------ scopes */

static int assign(struct interp *in, int name, struct value value) {
    struct scope *scope = in->scope;
    if (!scope) {
        in->globals[name] = value;
        return 0;
    }
    for (int i = 0; i < scope->count; i++) {
        if (scope->items[i].name != name) continue;
        scope->items[i].value = value;
        return 0;
    }
    if (scope->count == scope->cap) {
        int cap = scope->cap ? scope->cap * 2 : 4;
        struct variable *items = template_alloc(in, (size_t)cap, sizeof *items);
        if (!items) return SHU_E_NOMEM;
        if (scope->count) memcpy(items, scope->items, (size_t)scope->count * sizeof *items);
        scope->items = items;
        scope->cap = cap;
    }
    scope->items[scope->count++] = (struct variable){name, value};
    return 0;
}

static struct scope *push_scope(struct interp *in, struct scope *parent) {
    struct scope *scope = template_alloc(in, 1, sizeof *scope);
    if (scope) scope->parent = parent;
    return scope;
}

static void capture(struct scope *scope) {
    for (; scope && !scope->captured; scope = scope->parent) scope->captured = true;
}

static int assign_attribute(struct interp *in, const struct node *target, struct value value) {
    struct value object, key = {.kind = VAL_STRING, .text = target->text};
    int status = eval_expression(in, target->a, &object);
    if (status) return status;
    if (object.kind != VAL_NAMESPACE)
        return TPL_FAIL(in, "only attributes of a namespace() can be set, found a value of type %s",
                        value_kind_name(object));
    return dict_set(in, object.dict, key, value);
}

static int assign_target(struct interp *in, const struct node *target, struct value value) {
    if (target->kind == NODE_NAME) return assign(in, target->name, value);
    if (target->kind == NODE_ATTR) return assign_attribute(in, target, value);
    struct sequence *items;
    int status = value_iterate(in, value, &items);
    if (status) return status;
    if (items->count != target->list.count)
        return TPL_FAIL(in, "%zu values cannot be assigned to %zu names", items->count, target->list.count);
    for (size_t i = 0; !status && i < items->count; i++)
        status = assign_target(in, target->list.items[i], items->items[i]);
    return status;
}

/* ------------------------------------------------------------------ macros */

static int bind_parameter(struct interp *in, const struct node *macro, size_t index, const struct arguments *args,
                          bool *used, struct value *out) {
    const struct node *parameter = macro->list.items[index];
    const struct text *name = in->tpl->names[parameter->name];
    if (index < args->count) {
        *out = args->items[index];
        return 0;
    }
    for (size_t i = 0; i < args->named_count; i++) {
        if (!text_equal(args->named[i].name, name)) continue;
        *out = args->named[i].value;
        used[i] = true;
        return 0;
    }
    size_t first_default = macro->list.count - macro->b->list.count;
    if (index >= first_default) return eval_expression(in, macro->b->list.items[index - first_default], out);
    return value_undefined(in, "parameter \"", name, "\" was not given", out);
}

/* caller, kwargs and varargs: what the parameters did not take. */
static int bind_special(struct interp *in, const struct node *macro, const struct arguments *args, bool *used) {
    int status = 0;
    struct value value;
    if (macro->flags & NODE_USES_CALLER) {
        status = value_undefined(in, "the macro was not called from a call block", NULL, "", &value);
        for (size_t i = 0; i < args->named_count; i++) {
            if (used[i] || !text_is(args->named[i].name, "caller")) continue;
            value = args->named[i].value;
            used[i] = true;
        }
        if (!status) status = assign(in, in->tpl->caller_name, value);
    }
    if (!status && (macro->flags & NODE_USES_KWARGS)) {
        status = dict_new(in, &value);
        for (size_t i = 0; !status && i < args->named_count; i++) {
            if (used[i]) continue;
            used[i] = true;
            status = dict_set(in, value.dict, (struct value){.kind = VAL_STRING, .text = args->named[i].name},
                              args->named[i].value);
        }
        if (!status) status = assign(in, in->tpl->kwargs_name, value);
    }
    if (!status && (macro->flags & NODE_USES_VARARGS)) {
        size_t taken = macro->list.count < args->count ? macro->list.count : args->count;
        status = value_sequence(in, VAL_TUPLE, args->count - taken, &value);
        for (size_t i = taken; !status && i < args->count; i++) value.sequence->items[i - taken] = args->items[i];
        if (!status) status = assign(in, in->tpl->varargs_name, value);
    }
    return status;
}

static int bind_arguments(struct interp *in, const struct node *macro, const struct arguments *args) {
    bool *used = template_alloc(in, args->named_count, sizeof *used);
    if (!used) return SHU_E_NOMEM;
    if (args->count > macro->list.count && !(macro->flags & NODE_USES_VARARGS))
        return TPL_FAIL(in, "the macro takes at most %zu arguments, %zu were given", macro->list.count, args->count);
    int status = 0;
    for (size_t i = 0; !status && i < macro->list.count; i++) {
        struct value value;
        status = bind_parameter(in, macro, i, args, used, &value);
        if (!status) status = assign(in, macro->list.items[i]->name, value);
    }
    if (!status) status = bind_special(in, macro, args, used);
    for (size_t i = 0; !status && i < args->named_count; i++)
        if (!used[i])
            return TPL_FAIL(in, "the macro takes no argument named \"%.*s\"", (int)args->named[i].name->bytes,
                            args->named[i].name->data);
    return status;
}

static int call_macro(struct interp *in, const struct macro *macro, const struct arguments *args, struct value *out) {
    struct scope *outer = in->scope;
    enum control control = CONTROL_NONE;
    size_t mark = scratch_begin(in);
    in->scope = push_scope(in, macro->scope);
    int status = in->scope ? bind_arguments(in, macro->node, args) : SHU_E_NOMEM;
    if (!status) status = eval_body(in, &macro->node->body, &control);
    in->scope = outer;
    return status ? status : scratch_end(in, mark, out);
}

int eval_call(struct interp *in, struct value callee, const struct arguments *args, struct value *out) {
    switch (callee.kind) {
    case VAL_MACRO:
        return call_macro(in, callee.macro, args, out);
    case VAL_FUNCTION:
        return builtin_call(in, callee.builtin, callee, args, out);
    case VAL_METHOD:
        return builtin_call(in, callee.method->builtin, callee.method->self, args, out);
    case VAL_UNDEFINED:
        return TPL_FAIL(in, "%.*s, so it cannot be called", (int)callee.text->bytes, callee.text->data);
    default:
        return TPL_FAIL(in, "a value of type %s cannot be called", value_kind_name(callee));
    }
}

static int make_macro(struct interp *in, const struct node *node, struct value *out) {
    struct macro *macro = template_alloc(in, 1, sizeof *macro);
    if (!macro) return SHU_E_NOMEM;
    *macro = (struct macro){node, in->scope};
    capture(in->scope);
    *out = (struct value){.kind = VAL_MACRO, .macro = macro};
    return 0;
}

/* ------------------------------------------------------------------- loops */

static int passes_filter(struct interp *in, struct loop *loop, struct value item, bool *out) {
    *out = true;
    if (!loop->node->c) return 0;
    struct scope *outer = in->scope;
    struct value test;
    in->scope = push_scope(in, loop->scope);
    int status = in->scope ? assign_target(in, loop->node->a, item) : SHU_E_NOMEM;
    if (!status) status = eval_expression(in, loop->node->c, &test);
    if (!status) *out = value_truth(test);
    in->scope = outer;
    return status;
}

int loop_pull(struct interp *in, struct loop *loop, bool *got) {
    *got = false;
    int status = 0;
    while (!status && !*got && loop->source_next < loop->source->count) {
        struct value item = loop->source->items[loop->source_next++];
        status = passes_filter(in, loop, item, got);
        if (!status && *got) loop->items[loop->count++] = item;
    }
    if (!status && !*got) loop->complete = true;
    return status;
}

int loop_complete(struct interp *in, struct loop *loop) {
    int status = 0;
    bool got;
    while (!status && !loop->complete) status = loop_pull(in, loop, &got);
    return status;
}

static int start_loop(struct interp *in, const struct node *node, struct loop *loop) {
    struct value source;
    int status = eval_expression(in, node->b, &source);
    if (!status) status = value_iterate(in, source, &loop->source);
    if (status) return status;
    loop->node = node;
    loop->scope = in->scope;
    loop->items = template_alloc(in, loop->source->count, sizeof *loop->items);
    return loop->items ? 0 : SHU_E_NOMEM;
}

static int run_turns(struct interp *in, const struct node *node, struct loop *loop, int loop_name) {
    struct scope *outer = in->scope, *scope = NULL;
    enum control control = CONTROL_NONE;
    int status = 0;
    for (loop->index = 0; !status && control != CONTROL_BREAK; loop->index++) {
        bool got = loop->index < loop->count;
        if (!got) status = loop_pull(in, loop, &got);
        if (status || !got) break;
        if (scope && !scope->captured)
            scope->count = 0;
        else
            scope = push_scope(in, outer);
        if (!scope) return SHU_E_NOMEM;
        in->scope = scope;
        if (loop_name >= 0) status = assign(in, loop_name, (struct value){.kind = VAL_LOOP, .loop = loop});
        if (!status) status = assign_target(in, node->a, loop->items[loop->index]);
        if (!status) status = eval_body(in, &node->body, &control);
        in->scope = outer;
    }
    in->scope = outer;
    return status;
}

static int eval_for(struct interp *in, const struct node *node) {
    struct loop *loop = template_alloc(in, 1, sizeof *loop);
    if (!loop) return SHU_E_NOMEM;
    int status = start_loop(in, node, loop);
    if (!status) status = run_turns(in, node, loop, in->tpl->loop_name);
    if (status || loop->count > 0 || node->otherwise.count == 0) return status;
    struct scope *outer = in->scope;
    enum control control = CONTROL_NONE;
    in->scope = push_scope(in, outer);
    status = in->scope ? eval_body(in, &node->otherwise, &control) : SHU_E_NOMEM;
    in->scope = outer;
    return status;
}

/* ------------------------------------------------------------------ blocks */

/* A body with variables of its own whose text becomes a value. */
static int capture_body(struct interp *in, const struct node_list *body, enum control *control, struct value *out) {
    struct scope *outer = in->scope;
    size_t mark = scratch_begin(in);
    in->scope = push_scope(in, outer);
    int status = in->scope ? eval_body(in, body, control) : SHU_E_NOMEM;
    in->scope = outer;
    return status ? status : scratch_end(in, mark, out);
}

static int eval_set(struct interp *in, const struct node *node) {
    struct value value;
    int status = eval_expression(in, node->b, &value);
    return status ? status : assign_target(in, node->a, value);
}

static int eval_set_block(struct interp *in, const struct node *node, enum control *control) {
    struct value value;
    int status = capture_body(in, &node->body, control, &value);
    if (!status && node->b) status = eval_filter(in, node->b, value, &value);
    return status ? status : assign_target(in, node->a, value);
}

static int eval_filter_block(struct interp *in, const struct node *node, enum control *control) {
    struct value value;
    int status = capture_body(in, &node->body, control, &value);
    if (!status) status = eval_filter(in, node->b, value, &value);
    return status ? status : value_print(in, value);
}

static int eval_call_block(struct interp *in, const struct node *node) {
    struct value caller, value;
    int status = make_macro(in, node->a, &caller);
    if (!status) status = eval_call_with(in, node->b, caller, &value);
    return status ? status : value_print(in, value);
}

static int eval_scope(struct interp *in, const struct node *node, enum control *control) {
    struct scope *outer = in->scope, *inner = push_scope(in, outer);
    int status = inner ? 0 : SHU_E_NOMEM;
    for (size_t i = 0; !status && i < node->list.count; i += 2) {
        struct value value;
        status = eval_expression(in, node->list.items[i + 1], &value);
        in->scope = inner;
        if (!status) status = assign_target(in, node->list.items[i], value);
        in->scope = outer;
    }
    in->scope = inner;
    if (!status) status = eval_body(in, &node->body, control);
    in->scope = outer;
    return status;
}

static int eval_if(struct interp *in, const struct node *node, enum control *control) {
    struct value test;
    int status = eval_expression(in, node->a, &test);
    if (status) return status;
    return eval_body(in, value_truth(test) ? &node->body : &node->otherwise, control);
}

static int eval_print(struct interp *in, const struct node *node) {
    struct value value;
    int status = eval_expression(in, node->a, &value);
    return status ? status : value_print(in, value);
}

static int eval_macro(struct interp *in, const struct node *node) {
    struct value value;
    int status = make_macro(in, node, &value);
    return status ? status : assign(in, node->name, value);
}

static int eval_statement(struct interp *in, const struct node *node, enum control *control) {
    switch (node->kind) {
    case NODE_TEXT:
        return emit(in, node->text->data, node->text->bytes);
    case NODE_PRINT:
        return eval_print(in, node);
    case NODE_IF:
        return eval_if(in, node, control);
    case NODE_FOR:
        return eval_for(in, node);
    case NODE_SET:
        return eval_set(in, node);
    case NODE_SET_BLOCK:
        return eval_set_block(in, node, control);
    case NODE_MACRO:
        return eval_macro(in, node);
    case NODE_CALL_BLOCK:
        return eval_call_block(in, node);
    case NODE_FILTER_BLOCK:
        return eval_filter_block(in, node, control);
    case NODE_SCOPE:
        return eval_scope(in, node, control);
    case NODE_BREAK:
        *control = CONTROL_BREAK;
        return 0;
    default:
        *control = CONTROL_CONTINUE;
        return 0;
    }
}

static int eval_body(struct interp *in, const struct node_list *body, enum control *control) {
    int status = 0;
    *control = CONTROL_NONE;
    if (++in->depth > TPL_MAX_EVAL_DEPTH) {
        in->depth--;
        return TPL_LIMIT(in, "more than %d nested evaluations: a macro that calls itself without end?",
                         TPL_MAX_EVAL_DEPTH);
    }
    for (size_t i = 0; !status && *control == CONTROL_NONE && i < body->count; i++) {
        status = template_charge(in, 1);
        if (!status) status = eval_statement(in, body->items[i], control);
        status = eval_place(in, body->items[i], status);
    }
    in->depth--;
    return status;
}

/* --------------------------------------------------------- public functions */

int template_new(const char *source, size_t bytes, struct template **out, struct shu_error *err) {
    struct template *tpl = mem_calloc(1, sizeof *tpl);
    if (!tpl) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a chat template");
    arena_init(&tpl->arena, TPL_MAX_PARSE_BYTES);
    tpl->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    struct lex_tokens tokens = {0};
    int status = 0;
    if (tpl->locale == (locale_t)0)
        status = SHU_FAIL(err, SHU_E_NOTFOUND,
                          "the locale C.UTF-8 is needed for chat templates and was not found: install libc-bin");
    if (!status) status = template_lex(&tpl->arena, source, bytes, &tokens, err);
    if (!status) status = template_parse(tpl, &tokens, err);
    if (status)
        template_free(tpl);
    else
        *out = tpl;
    return status;
}

void template_free(struct template *tpl) {
    if (!tpl) return;
    arena_free(&tpl->arena);
    if (tpl->locale != (locale_t)0) freelocale(tpl->locale);
    mem_free(tpl);
}

void template_set_time(struct template *tpl, int64_t epoch_seconds) {
    tpl->fixed_time = epoch_seconds;
}

static int load_variables(struct interp *in, const json_t *variables) {
    in->globals = template_alloc(in, in->tpl->name_count, sizeof *in->globals); /* zero is VAL_ABSENT */
    if (!in->globals) return SHU_E_NOMEM;
    int status = 0;
    for (size_t i = 0; !status && i < in->tpl->name_count; i++) {
        const struct text *name = in->tpl->names[i];
        const json_t *value = json_object_getn(variables, name->data, name->bytes);
        if (value) status = value_from_json(in, value, 0, &in->globals[i]);
    }
    return status;
}

int template_render(const struct template *tpl, const json_t *variables, const struct template_limits *limits,
                    struct buf *out, struct shu_error *err) {
    struct shu_error local = {0};
    struct interp in = {.tpl = tpl, .err = err ? err : &local};
    if (!json_is_object(variables))
        return SHU_FAIL(err, SHU_E_USAGE, "the variables of a chat template must be a JSON object");
    in.max_steps = limits && limits->max_steps ? limits->max_steps : 10000000;
    in.out.max = limits && limits->max_output_bytes ? limits->max_output_bytes : (size_t)16 << 20;
    arena_init(&in.arena, TPL_MAX_RENDER_BYTES);
    enum control control;
    int status = load_variables(&in, variables);
    if (!status) status = eval_body(&in, &tpl->body, &control);
    if (!status && in.out.len) {
        status = buf_append(out, in.out.data, in.out.len);
        if (status) SHU_FAIL(err, status, "no room for %zu bytes of rendered chat template", in.out.len);
    }
    buf_free(&in.out);
    arena_free(&in.arena);
    return status;
}
