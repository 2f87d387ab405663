/* Chat templates: expressions and the shared part of the parser (jinja2's grammar, recursive descent). */
#include "text/template_parse.h"

#include <string.h>

/* ---------------------------------------------------------------- support */

int parse_fail(struct parser *ps, const struct lex_token *at, const char *format, ...) {
    char detail[256];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    return SHU_FAIL(ps->err, SHU_E_FORMAT, "chat template, line %d, column %d: %s", at->line, at->column, detail);
}

static int parse_no_memory(struct parser *ps) {
    return SHU_FAIL(ps->err, SHU_E_NOMEM, "chat template: no memory, %zu bytes are in use (at most %zu)",
                    ps->tpl->arena.used_bytes, ps->tpl->arena.max_bytes);
}

void parse_describe(const struct lex_token *token, char *out, size_t bytes) {
    static const char *const kinds[] = {"the end of the template",
                                        "text",
                                        "{%",
                                        "%}",
                                        "{{",
                                        "}}",
                                        "",
                                        "a string",
                                        "an integer",
                                        "a number",
                                        "an operator"};
    static const char *const ops[] = {"",  "+",  "-",  "/", "//", "*", "%",  "**", "~", "[", "]", "(", ")", "{",
                                      "}", "==", "!=", ">", ">=", "<", "<=", "=",  ".", ":", "|", ",", ";"};
    if (token->kind == TOK_NAME)
        snprintf(out, bytes, "\"%.*s\"", (int)(token->text.bytes < 40 ? token->text.bytes : 40), token->text.data);
    else
        snprintf(out, bytes, "%s", token->kind == TOK_OPERATOR ? ops[token->op] : kinds[token->kind]);
}

static int fail_expected(struct parser *ps, const char *expected) {
    char found[64];
    parse_describe(ps->at, found, sizeof found);
    return parse_fail(ps, ps->at, "expected %s, found %s", expected, found);
}

const struct lex_token *parse_next(struct parser *ps) {
    const struct lex_token *token = ps->at;
    if (token->kind != TOK_END) ps->at++;
    return token;
}

bool parse_is_op(const struct parser *ps, enum lex_op op) {
    return ps->at->kind == TOK_OPERATOR && ps->at->op == op;
}

bool parse_is_name(const struct parser *ps, const char *name) {
    return ps->at->kind == TOK_NAME && text_is(&ps->at->text, name);
}

bool parse_skip_op(struct parser *ps, enum lex_op op) {
    if (!parse_is_op(ps, op)) return false;
    parse_next(ps);
    return true;
}

bool parse_skip_name(struct parser *ps, const char *name) {
    if (!parse_is_name(ps, name)) return false;
    parse_next(ps);
    return true;
}

int parse_expect_op(struct parser *ps, enum lex_op op, const char *what) {
    return parse_skip_op(ps, op) ? 0 : fail_expected(ps, what);
}

int parse_expect_kind(struct parser *ps, enum token_kind kind, const char *what, const struct lex_token **out) {
    if (ps->at->kind != kind) return fail_expected(ps, what);
    const struct lex_token *token = parse_next(ps);
    if (out) *out = token;
    return 0;
}

int parse_node(struct parser *ps, enum node_kind kind, const struct lex_token *at, struct node **out) {
    struct node *node = arena_alloc(&ps->tpl->arena, sizeof *node);
    if (!node) return parse_no_memory(ps);
    node->kind = (uint8_t)kind;
    node->line = at->line;
    node->column = at->column;
    *out = node;
    return 0;
}

const struct text *parse_text(struct parser *ps, const char *data, size_t bytes) {
    struct text *text = arena_alloc(&ps->tpl->arena, sizeof *text);
    if (!text) {
        parse_no_memory(ps);
        return NULL;
    }
    *text = (struct text){data, bytes};
    return text;
}

int parse_append(struct parser *ps, struct growing *list, struct node *node) {
    if (list->count == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 4;
        struct node **items = arena_alloc(&ps->tpl->arena, cap * sizeof *items);
        if (!items) return parse_no_memory(ps);
        if (list->count) memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->cap = cap;
    }
    list->items[list->count++] = node;
    return 0;
}

struct node_list parse_list(const struct growing *list) {
    return (struct node_list){list->items, list->count};
}

static uint64_t hash_name(const struct text *name) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < name->bytes; i++) hash = (hash ^ (unsigned char)name->data[i]) * 1099511628211u;
    return hash;
}

static int grow_names(struct parser *ps) {
    size_t cap = ps->index_cap ? ps->index_cap * 2 : 64;
    int *index = arena_alloc(&ps->tpl->arena, cap * sizeof *index);
    const struct text **names = arena_alloc(&ps->tpl->arena, cap * sizeof *names);
    if (!index || !names) return parse_no_memory(ps);
    for (size_t i = 0; i < ps->tpl->name_count; i++) {
        names[i] = ps->tpl->names[i];
        size_t slot = hash_name(names[i]) & (cap - 1);
        while (index[slot]) slot = (slot + 1) & (cap - 1);
        index[slot] = (int)i + 1;
    }
    ps->index = index;
    ps->index_cap = cap;
    ps->tpl->names = names;
    return 0;
}

static int parse_intern(struct parser *ps, const struct text *name, int *out) {
    if (ps->tpl->name_count * 2 >= ps->index_cap) {
        int status = grow_names(ps);
        if (status) return status;
    }
    size_t slot = hash_name(name) & (ps->index_cap - 1);
    while (ps->index[slot]) {
        if (text_equal(ps->tpl->names[ps->index[slot] - 1], name)) {
            *out = ps->index[slot] - 1;
            return 0;
        }
        slot = (slot + 1) & (ps->index_cap - 1);
    }
    const struct text *kept = parse_text(ps, name->data, name->bytes);
    if (!kept) return SHU_E_NOMEM;
    *out = (int)ps->tpl->name_count;
    ps->tpl->names[ps->tpl->name_count++] = kept;
    ps->index[slot] = *out + 1;
    return 0;
}

int parse_enter(struct parser *ps) {
    if (++ps->depth > TPL_MAX_PARSE_DEPTH)
        return parse_fail(ps, ps->at, "more than %d nested expressions or blocks", TPL_MAX_PARSE_DEPTH);
    return 0;
}

/* ---------------------------------------------------------------- primaries */

static int parse_constant(struct parser *ps, struct value value, struct node **out) {
    int status = parse_node(ps, NODE_CONST, ps->at, out);
    if (!status) (*out)->constant = value;
    return status;
}

/* Macros note which special names their bodies use: that decides what they accept when called. */
static void note_special_name(struct parser *ps, const struct text *name) {
    int flag = text_is(name, "caller")    ? NODE_USES_CALLER
               : text_is(name, "varargs") ? NODE_USES_VARARGS
               : text_is(name, "kwargs")  ? NODE_USES_KWARGS
                                          : 0;
    ps->special_names |= flag;
}

int parse_name_node(struct parser *ps, const struct lex_token *token, struct node **out) {
    int status = parse_node(ps, NODE_NAME, token, out);
    return status ? status : parse_intern(ps, &token->text, &(*out)->name);
}

static int parse_name(struct parser *ps, struct node **out) {
    const struct lex_token *token = ps->at;
    const struct text *name = &token->text;
    struct value value = value_of(VAL_ABSENT);
    if (text_is(name, "true") || text_is(name, "True")) value = value_bool(true);
    if (text_is(name, "false") || text_is(name, "False")) value = value_bool(false);
    if (text_is(name, "none") || text_is(name, "None")) value = value_of(VAL_NONE);
    int status = 0;
    if (value.kind != VAL_ABSENT) {
        status = parse_constant(ps, value, out);
    } else {
        note_special_name(ps, name);
        status = parse_name_node(ps, token, out);
    }
    parse_next(ps);
    return status;
}

/* Adjacent strings are one string. */
static int parse_string(struct parser *ps, struct node **out) {
    const struct lex_token *first = ps->at;
    size_t total = 0;
    for (const struct lex_token *t = first; t->kind == TOK_STRING; t++) total += t->text.bytes;
    char *data = (char *)(uintptr_t)first->text.data;
    if (total != first->text.bytes) {
        data = arena_alloc(&ps->tpl->arena, total + 1);
        if (!data) return parse_no_memory(ps);
    }
    int status = parse_node(ps, NODE_CONST, first, out);
    if (status) return status;
    for (size_t n = 0; ps->at->kind == TOK_STRING; n += ps->at->text.bytes, parse_next(ps))
        if (data != first->text.data && ps->at->text.bytes) memcpy(data + n, ps->at->text.data, ps->at->text.bytes);
    const struct text *text = parse_text(ps, data, total);
    if (!text) return SHU_E_NOMEM;
    (*out)->constant = (struct value){.kind = VAL_STRING, .text = text};
    return 0;
}

static int parse_list_literal(struct parser *ps, struct node **out) {
    int status = parse_node(ps, NODE_LIST, parse_next(ps), out);
    struct growing items = {0};
    while (!status && !parse_is_op(ps, LEX_RBRACKET)) {
        struct node *item = NULL;
        if (items.count) status = parse_expect_op(ps, LEX_COMMA, "\",\" or \"]\"");
        if (!status && parse_is_op(ps, LEX_RBRACKET)) break;
        if (!status) status = parse_expression(ps, true, &item);
        if (!status) status = parse_append(ps, &items, item);
    }
    if (!status) status = parse_expect_op(ps, LEX_RBRACKET, "\"]\"");
    if (!status) (*out)->list = parse_list(&items);
    return status;
}

static int parse_dict_literal(struct parser *ps, struct node **out) {
    int status = parse_node(ps, NODE_DICT, parse_next(ps), out);
    struct growing items = {0};
    while (!status && !parse_is_op(ps, LEX_RBRACE)) {
        struct node *key = NULL, *value = NULL;
        if (items.count) status = parse_expect_op(ps, LEX_COMMA, "\",\" or \"}\"");
        if (!status && parse_is_op(ps, LEX_RBRACE)) break;
        if (!status) status = parse_expression(ps, true, &key);
        if (!status) status = parse_expect_op(ps, LEX_COLON, "\":\"");
        if (!status) status = parse_expression(ps, true, &value);
        if (!status) status = parse_append(ps, &items, key);
        if (!status) status = parse_append(ps, &items, value);
    }
    if (!status) status = parse_expect_op(ps, LEX_RBRACE, "\"}\"");
    if (!status) (*out)->list = parse_list(&items);
    return status;
}

static int parse_number(struct parser *ps, struct node **out) {
    const struct lex_token *token = ps->at;
    struct value value = token->kind == TOK_INTEGER ? value_int(token->integer) : value_float(token->real);
    int status = parse_constant(ps, value, out);
    parse_next(ps);
    return status;
}

static int parse_primary(struct parser *ps, struct node **out) {
    switch (ps->at->kind) {
    case TOK_NAME:
        return parse_name(ps, out);
    case TOK_STRING:
        return parse_string(ps, out);
    case TOK_INTEGER:
    case TOK_FLOAT:
        return parse_number(ps, out);
    default:
        break;
    }
    if (parse_is_op(ps, LEX_LBRACKET)) return parse_list_literal(ps, out);
    if (parse_is_op(ps, LEX_LBRACE)) return parse_dict_literal(ps, out);
    if (!parse_skip_op(ps, LEX_LPAREN)) return fail_expected(ps, "an expression");
    int status = parse_tuple(ps, true, true, out);
    return status ? status : parse_expect_op(ps, LEX_RPAREN, "\")\"");
}

/* ----------------------------------------------------- calls and subscripts */

static bool is_named_argument(const struct parser *ps) {
    return ps->at->kind == TOK_NAME && ps->at[1].kind == TOK_OPERATOR && ps->at[1].op == LEX_ASSIGN;
}

struct call_builder {
    struct growing items, named, names;
    struct node *star, *star_star;
};

static int parse_argument(struct parser *ps, struct call_builder *cb) {
    if (parse_is_op(ps, LEX_MUL) || parse_is_op(ps, LEX_POW)) {
        struct node **slot = parse_is_op(ps, LEX_MUL) ? &cb->star : &cb->star_star;
        if (*slot || cb->star_star)
            return parse_fail(ps, ps->at, "at most one *list and one **dict argument, in this order");
        parse_next(ps);
        return parse_expression(ps, true, slot);
    }
    struct node *value = NULL, *name = NULL;
    if (!is_named_argument(ps)) {
        if (cb->star || cb->star_star || cb->named.count)
            return parse_fail(ps, ps->at, "positional arguments must stand before named ones");
        int status = parse_expression(ps, true, &value);
        return status ? status : parse_append(ps, &cb->items, value);
    }
    int status = parse_name_node(ps, parse_next(ps), &name);
    parse_next(ps); /* = */
    if (!status && cb->star_star) status = parse_fail(ps, ps->at, "named arguments must stand before **dict");
    if (!status) status = parse_expression(ps, true, &value);
    if (!status) status = parse_append(ps, &cb->named, value);
    return status ? status : parse_append(ps, &cb->names, name);
}

/* "(" … ")" */
static int parse_call_args(struct parser *ps, const struct call_args **out) {
    struct call_builder cb = {0};
    int status = parse_expect_op(ps, LEX_LPAREN, "\"(\"");
    for (bool first = true; !status && !parse_is_op(ps, LEX_RPAREN); first = false) {
        if (!first) status = parse_expect_op(ps, LEX_COMMA, "\",\" or \")\"");
        if (!status && parse_is_op(ps, LEX_RPAREN)) break;
        if (!status) status = parse_argument(ps, &cb);
    }
    if (!status) status = parse_expect_op(ps, LEX_RPAREN, "\")\"");
    if (status) return status;
    if (cb.items.count > TPL_MAX_CALL_ARGS || cb.named.count > TPL_MAX_CALL_ARGS)
        return parse_fail(ps, ps->at, "more than %d arguments", TPL_MAX_CALL_ARGS);
    struct call_args *args = arena_alloc(&ps->tpl->arena, sizeof *args);
    const struct text **names = arena_alloc(&ps->tpl->arena, (cb.names.count + 1) * sizeof *names);
    if (!args || !names) return parse_no_memory(ps);
    for (size_t i = 0; i < cb.names.count; i++) names[i] = ps->tpl->names[cb.names.items[i]->name];
    *args = (struct call_args){cb.items.items, cb.named.items, names,       cb.items.count,
                               cb.named.count, cb.star,        cb.star_star};
    *out = args;
    return 0;
}

static int parse_call(struct parser *ps, struct node *callee, struct node **out) {
    int status = parse_node(ps, NODE_CALL, ps->at, out);
    if (status) return status;
    (*out)->a = callee;
    return parse_call_args(ps, &(*out)->args);
}

static int parse_attribute(struct parser *ps, struct node *object, struct node **out) {
    const struct lex_token *dot = parse_next(ps), *token = ps->at;
    if (token->kind == TOK_INTEGER) { /* x.0 is x[0] */
        int status = parse_node(ps, NODE_ITEM, dot, out);
        if (status) return status;
        (*out)->a = object;
        return parse_number(ps, &(*out)->b);
    }
    int status = parse_expect_kind(ps, TOK_NAME, "a name or an integer after \".\"", NULL);
    if (!status) status = parse_node(ps, NODE_ATTR, dot, out);
    if (status) return status;
    (*out)->a = object;
    (*out)->text = parse_text(ps, token->text.data, token->text.bytes);
    return (*out)->text ? 0 : SHU_E_NOMEM;
}

/* a, a:b, a:b:c with every part optional. */
static int parse_subscript_part(struct parser *ps, struct node **out) {
    const struct lex_token *start = ps->at;
    struct node *parts[3] = {NULL, NULL, NULL};
    int part = 0, status = 0;
    if (!parse_is_op(ps, LEX_COLON)) {
        status = parse_expression(ps, true, &parts[0]);
        if (status) return status;
        if (!parse_is_op(ps, LEX_COLON)) {
            *out = parts[0];
            return 0;
        }
    }
    while (!status && part < 2 && parse_skip_op(ps, LEX_COLON)) {
        part++;
        if (!parse_is_op(ps, LEX_COLON) && !parse_is_op(ps, LEX_RBRACKET) && !parse_is_op(ps, LEX_COMMA))
            status = parse_expression(ps, true, &parts[part]);
    }
    if (!status) status = parse_node(ps, NODE_SLICE, start, out);
    if (status) return status;
    (*out)->b = parts[0];
    (*out)->c = parts[1];
    (*out)->d = parts[2];
    return 0;
}

static int parse_subscript(struct parser *ps, struct node *object, struct node **out) {
    int status = parse_node(ps, NODE_ITEM, parse_next(ps), out);
    if (!status) status = parse_subscript_part(ps, &(*out)->b);
    if (status) return status;
    (*out)->a = object;
    if (parse_is_op(ps, LEX_COMMA)) return parse_fail(ps, ps->at, "a subscript with several keys is not supported");
    return parse_expect_op(ps, LEX_RBRACKET, "\"]\"");
}

static int parse_postfix(struct parser *ps, struct node **node) {
    int status = 0;
    while (!status) {
        struct node *object = *node;
        if (parse_is_op(ps, LEX_DOT))
            status = parse_attribute(ps, object, node);
        else if (parse_is_op(ps, LEX_LBRACKET))
            status = parse_subscript(ps, object, node);
        else if (parse_is_op(ps, LEX_LPAREN))
            status = parse_call(ps, object, node);
        else
            break;
    }
    return status;
}

/* -------------------------------------------------------- filters and tests */

/* "name" or "dotted.name". Unknown names fail here unless an enclosing if may skip them (as in jinja2). */
static int parse_builtin_name(struct parser *ps, struct node *node, bool is_test) {
    const struct lex_token *token = NULL;
    int status = parse_expect_kind(ps, TOK_NAME, is_test ? "the name of a test" : "the name of a filter", &token);
    if (status) return status;
    node->text = parse_text(ps, token->text.data, token->text.bytes);
    if (!node->text) return SHU_E_NOMEM;
    node->builtin = is_test ? builtin_test(node->text->data, node->text->bytes)
                            : builtin_filter(node->text->data, node->text->bytes);
    if (!node->builtin && !ps->unknown) {
        ps->unknown = token;
        ps->unknown_is_test = is_test;
    }
    return 0;
}

int parse_check_unknown(struct parser *ps) {
    const struct lex_token *token = ps->unknown;
    ps->unknown = NULL;
    if (!token || ps->soft) return 0;
    return parse_fail(ps, token, "no %s is named \"%.*s\"", ps->unknown_is_test ? "test" : "filter",
                      (int)(token->text.bytes < 60 ? token->text.bytes : 60), token->text.data);
}

/* Filters joined with "|". `input` may be NULL (filter blocks); with start_inline the first "|" is already gone. */
int parse_filters(struct parser *ps, struct node *input, bool start_inline, struct node **out) {
    int status = 0;
    *out = input;
    while (!status && (start_inline || parse_is_op(ps, LEX_PIPE))) {
        struct node *node = NULL;
        if (!start_inline) parse_next(ps);
        start_inline = false;
        status = parse_node(ps, NODE_FILTER, ps->at, &node);
        if (!status) status = parse_builtin_name(ps, node, false);
        if (!status && parse_is_op(ps, LEX_LPAREN)) status = parse_call_args(ps, &node->args);
        if (status) return status;
        node->a = *out;
        *out = node;
    }
    return status;
}

/* `x is divisibleby 3`: one argument without brackets. */
static int parse_bare_test_argument(struct parser *ps, struct node *node) {
    struct growing items = {0};
    struct node *argument = NULL;
    if (parse_is_name(ps, "is")) return parse_fail(ps, ps->at, "tests with \"is\" cannot be chained");
    int status = parse_primary(ps, &argument);
    if (!status) status = parse_postfix(ps, &argument);
    if (!status) status = parse_append(ps, &items, argument);
    if (status) return status;
    struct call_args *args = arena_alloc(&ps->tpl->arena, sizeof *args);
    if (!args) return parse_no_memory(ps);
    args->items = items.items;
    args->count = 1;
    node->args = args;
    return 0;
}

static int parse_test(struct parser *ps, struct node **out) {
    struct node *input = *out;
    int status = parse_node(ps, NODE_TEST, parse_next(ps), out);
    if (status) return status;
    (*out)->a = input;
    if (parse_skip_name(ps, "not")) (*out)->flags |= NODE_NEGATED;
    status = parse_builtin_name(ps, *out, true);
    if (status) return status;
    if (parse_is_op(ps, LEX_LPAREN)) return parse_call_args(ps, &(*out)->args);
    bool value = ps->at->kind == TOK_STRING || ps->at->kind == TOK_INTEGER || ps->at->kind == TOK_FLOAT ||
                 parse_is_op(ps, LEX_LBRACKET) || parse_is_op(ps, LEX_LBRACE);
    bool name =
        ps->at->kind == TOK_NAME && !parse_is_name(ps, "else") && !parse_is_name(ps, "or") && !parse_is_name(ps, "and");
    return value || name ? parse_bare_test_argument(ps, *out) : 0;
}

static int parse_filter_expression(struct parser *ps, struct node **node) {
    int status = 0;
    while (!status) {
        struct node *input = *node;
        if (parse_is_op(ps, LEX_PIPE))
            status = parse_filters(ps, input, false, node);
        else if (parse_is_name(ps, "is"))
            status = parse_test(ps, node);
        else if (parse_is_op(ps, LEX_LPAREN))
            status = parse_call(ps, input, node);
        else
            break;
    }
    return status;
}

/* ---------------------------------------------------------------- operators */

static int parse_unary(struct parser *ps, bool with_filter, struct node **out) {
    int status = parse_enter(ps);
    if (status) return status;
    if (parse_is_op(ps, LEX_SUB) || parse_is_op(ps, LEX_ADD)) {
        enum node_kind kind = parse_is_op(ps, LEX_SUB) ? NODE_NEGATE : NODE_PLUS;
        status = parse_node(ps, kind, parse_next(ps), out);
        if (!status) status = parse_unary(ps, false, &(*out)->a);
    } else {
        status = parse_primary(ps, out);
    }
    if (!status) status = parse_postfix(ps, out);
    if (!status && with_filter) status = parse_filter_expression(ps, out);
    ps->depth--;
    return status;
}

static int binary_node(struct parser *ps, enum operator_kind op, struct node **left) {
    struct node *node = NULL;
    int status = parse_node(ps, NODE_BINARY, parse_next(ps), &node);
    if (status) return status;
    node->op = (uint8_t)op;
    node->a = *left;
    *left = node;
    return 0;
}

static int parse_power(struct parser *ps, struct node **out) {
    int status = parse_unary(ps, true, out);
    while (!status && parse_is_op(ps, LEX_POW)) {
        status = binary_node(ps, OP_POW, out);
        if (!status) status = parse_unary(ps, true, &(*out)->b);
    }
    return status;
}

static int parse_product(struct parser *ps, struct node **out) {
    static const uint8_t ops[] = {
        [LEX_MUL] = OP_MUL + 1, [LEX_DIV] = OP_DIV + 1, [LEX_FLOOR_DIV] = OP_FLOOR_DIV + 1, [LEX_MOD] = OP_MOD + 1};
    int status = parse_power(ps, out);
    while (!status && ps->at->kind == TOK_OPERATOR && ps->at->op < sizeof ops && ops[ps->at->op]) {
        status = binary_node(ps, ops[ps->at->op] - 1, out);
        if (!status) status = parse_power(ps, &(*out)->b);
    }
    return status;
}

static int parse_concat(struct parser *ps, struct node **out) {
    struct node *first = NULL, *item = NULL;
    int status = parse_product(ps, &first);
    *out = first;
    if (status || !parse_is_op(ps, LEX_TILDE)) return status;
    struct growing items = {0};
    status = parse_node(ps, NODE_CONCAT, ps->at, out);
    if (!status) status = parse_append(ps, &items, first);
    while (!status && parse_skip_op(ps, LEX_TILDE)) {
        status = parse_product(ps, &item);
        if (!status) status = parse_append(ps, &items, item);
    }
    if (!status) (*out)->list = parse_list(&items);
    return status;
}

static int parse_sum(struct parser *ps, struct node **out) {
    int status = parse_concat(ps, out);
    while (!status && (parse_is_op(ps, LEX_ADD) || parse_is_op(ps, LEX_SUB))) {
        status = binary_node(ps, parse_is_op(ps, LEX_ADD) ? OP_ADD : OP_SUB, out);
        if (!status) status = parse_concat(ps, &(*out)->b);
    }
    return status;
}

/* The comparison operator here, consumed; -1 if there is none. */
static int comparison_operator(struct parser *ps) {
    static const struct {
        uint8_t lex, op;
    } table[] = {{LEX_EQ, OP_EQ}, {LEX_NE, OP_NE}, {LEX_LT, OP_LT}, {LEX_LE, OP_LE}, {LEX_GT, OP_GT}, {LEX_GE, OP_GE}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (parse_skip_op(ps, table[i].lex)) return table[i].op;
    if (parse_skip_name(ps, "in")) return OP_IN;
    if (parse_is_name(ps, "not") && ps->at[1].kind == TOK_NAME && text_is(&ps->at[1].text, "in")) {
        ps->at += 2;
        return OP_NOT_IN;
    }
    return -1;
}

static int parse_comparison(struct parser *ps, struct node **out) {
    struct node *first = NULL, *operand = NULL;
    const struct lex_token *at = ps->at;
    int op, status = parse_sum(ps, &first);
    *out = first;
    struct growing items = {0};
    while (!status && (at = ps->at, (op = comparison_operator(ps)) >= 0)) {
        if (items.count == 0) status = parse_node(ps, NODE_COMPARE, at, out);
        if (!status) status = parse_node(ps, NODE_OPERAND, at, &operand);
        if (!status) status = parse_sum(ps, &operand->a);
        if (!status) status = parse_append(ps, &items, operand);
        if (!status) operand->op = (uint8_t)op;
    }
    if (!status && items.count) {
        (*out)->a = first;
        (*out)->list = parse_list(&items);
    }
    return status;
}

static int parse_not(struct parser *ps, struct node **out) {
    if (!parse_is_name(ps, "not")) return parse_comparison(ps, out);
    int status = parse_enter(ps);
    if (!status) status = parse_node(ps, NODE_NOT, parse_next(ps), out);
    if (!status) status = parse_not(ps, &(*out)->a);
    ps->depth--;
    return status;
}

static int parse_logic(struct parser *ps, bool is_or, struct node **out) {
    int status = is_or ? parse_logic(ps, false, out) : parse_not(ps, out);
    while (!status && parse_is_name(ps, is_or ? "or" : "and")) {
        struct node *node = NULL;
        status = parse_node(ps, is_or ? NODE_OR : NODE_AND, parse_next(ps), &node);
        if (status) return status;
        node->a = *out;
        *out = node;
        status = is_or ? parse_logic(ps, false, &node->b) : parse_not(ps, &node->b);
    }
    return status;
}

int parse_expression(struct parser *ps, bool with_condition, struct node **out) {
    int status = parse_enter(ps);
    const struct lex_token *unknown = ps->unknown;
    if (!status) status = parse_logic(ps, true, out);
    while (!status && with_condition && parse_is_name(ps, "if")) {
        struct node *node = NULL, *value = *out;
        status = parse_node(ps, NODE_CONDITIONAL, parse_next(ps), &node);
        if (!status) status = parse_logic(ps, true, &node->a);
        if (!status && parse_skip_name(ps, "else")) status = parse_expression(ps, true, &node->c);
        if (status) return status;
        node->b = value;
        *out = node;
        ps->unknown = unknown; /* what an inline if may skip is looked up when it runs */
    }
    ps->depth--;
    return status;
}

/* a, b, c without brackets around; a single item without comma is itself. */
int parse_tuple(struct parser *ps, bool with_condition, bool in_brackets, struct node **out) {
    struct growing items = {0};
    const struct lex_token *start = ps->at;
    bool comma = false;
    int status = 0;
    while (!status) {
        struct node *item = NULL;
        bool end = ps->at->kind == TOK_BLOCK_END || ps->at->kind == TOK_VARIABLE_END || parse_is_op(ps, LEX_RPAREN);
        if (end) break;
        status = parse_expression(ps, with_condition, &item);
        if (!status) status = parse_append(ps, &items, item);
        if (!status) comma = parse_skip_op(ps, LEX_COMMA);
        if (!comma) break;
    }
    if (status) return status;
    if (items.count == 1 && !comma) {
        *out = items.items[0];
        return 0;
    }
    if (items.count == 0 && !in_brackets) return fail_expected(ps, "an expression");
    status = parse_node(ps, NODE_TUPLE, start, out);
    if (!status) (*out)->list = parse_list(&items);
    return status;
}
