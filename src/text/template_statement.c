/* Chat templates: blocks. */
#include "text/template_parse.h"

#include <string.h>

static int parse_statements(struct parser *ps, const char *const *ends, struct node_list *out);

static int expect_block_end(struct parser *ps) {
    int status = parse_expect_kind(ps, TOK_BLOCK_END, "%}", NULL);
    return status ? status : parse_check_unknown(ps);
}

static int fail_word(struct parser *ps, const char *word) {
    char found[64];
    parse_describe(ps->at, found, sizeof found);
    return parse_fail(ps, ps->at, "expected \"%s\", found %s", word, found);
}

/* A body that may be skipped (soft) or that is a function of its own (not soft), up to one of `ends`. */
static int parse_body(struct parser *ps, bool soft, const char *const *ends, struct node_list *out) {
    bool outer = ps->soft;
    ps->soft = soft;
    int status = parse_statements(ps, ends, out);
    ps->soft = outer;
    return status;
}

/* Reads `{% end %}`; the opening "{%" is already consumed by parse_statements. */
static int finish_block(struct parser *ps, const char *end) {
    return parse_skip_name(ps, end) ? expect_block_end(ps) : fail_word(ps, end);
}

/* --------------------------------------------------------------- targets */

/* name, name.attribute (namespaces), or a tuple of names. */
static int parse_one_target(struct parser *ps, bool attributes, struct node **out) {
    const struct lex_token *token = ps->at;
    if (parse_skip_op(ps, LEX_LPAREN)) return parse_fail(ps, token, "brackets around targets are not supported");
    int status = parse_expect_kind(ps, TOK_NAME, "the name of a variable", NULL);
    if (status) return status;
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
        if (text_is(&token->text, reserved[i]))
            return parse_fail(ps, token, "\"%s\" cannot be assigned to", reserved[i]);
    struct node *name = NULL;
    status = parse_name_node(ps, token, &name);
    *out = name;
    if (status || !attributes || !parse_skip_op(ps, LEX_DOT)) return status;
    const struct lex_token *attribute = NULL;
    status = parse_expect_kind(ps, TOK_NAME, "the name of an attribute", &attribute);
    if (!status) status = parse_node(ps, NODE_ATTR, token, out);
    if (status) return status;
    (*out)->a = name;
    (*out)->flags = NODE_ATTR_TARGET;
    (*out)->text = parse_text(ps, attribute->text.data, attribute->text.bytes);
    return (*out)->text ? 0 : SHU_E_NOMEM;
}

static int parse_target(struct parser *ps, bool attributes, struct node **out) {
    const struct lex_token *start = ps->at;
    struct node *first = NULL, *item = NULL;
    if (parse_skip_op(ps, LEX_LPAREN)) {
        int status = parse_target(ps, attributes, out);
        return status ? status : parse_expect_op(ps, LEX_RPAREN, "\")\"");
    }
    int status = parse_one_target(ps, attributes, &first);
    *out = first;
    if (status || !parse_is_op(ps, LEX_COMMA)) return status;
    struct growing items = {0};
    status = parse_append(ps, &items, first);
    while (!status && parse_skip_op(ps, LEX_COMMA)) {
        if (ps->at->kind != TOK_NAME || parse_is_name(ps, "in")) break;
        status = parse_one_target(ps, attributes, &item);
        if (!status) status = parse_append(ps, &items, item);
    }
    if (!status) status = parse_node(ps, NODE_TUPLE, start, out);
    if (!status) (*out)->list = parse_list(&items);
    return status;
}

/* ---------------------------------------------------------------- blocks */

static int parse_if(struct parser *ps, struct node *node) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    int status = parse_tuple(ps, false, false, &node->a);
    if (!status) status = parse_expect_kind(ps, TOK_BLOCK_END, "%}", NULL);
    bool soft = ps->soft;
    ps->soft = true; /* jinja2 counts the test itself as skippable */
    if (!status) status = parse_check_unknown(ps);
    ps->soft = soft;
    if (!status) status = parse_body(ps, true, ends, &node->body);
    if (status) return status;
    if (parse_is_name(ps, "elif")) {
        struct node *nested = NULL;
        status = parse_node(ps, NODE_IF, parse_next(ps), &nested);
        if (!status) status = parse_enter(ps);
        if (!status) status = parse_if(ps, nested);
        struct growing one = {0};
        if (!status) status = parse_append(ps, &one, nested);
        if (!status) node->otherwise = parse_list(&one);
        ps->depth--;
        return status;
    }
    if (parse_skip_name(ps, "else")) {
        status = expect_block_end(ps);
        if (!status) status = parse_body(ps, true, last, &node->otherwise);
        if (status) return status;
    }
    return finish_block(ps, "endif");
}

static int parse_for(struct parser *ps, struct node *node) {
    static const char *const ends[] = {"else", "endfor", NULL};
    static const char *const last[] = {"endfor", NULL};
    int status = parse_target(ps, false, &node->a);
    if (!status && !parse_skip_name(ps, "in")) status = fail_word(ps, "in");
    if (!status) status = parse_tuple(ps, false, false, &node->b);
    if (!status && parse_skip_name(ps, "if")) status = parse_expression(ps, true, &node->c);
    if (!status && parse_is_name(ps, "recursive"))
        status = parse_fail(ps, ps->at, "recursive loops are not supported: use a macro that calls itself");
    if (!status) status = expect_block_end(ps);
    ps->loops++;
    if (!status) status = parse_body(ps, false, ends, &node->body);
    ps->loops--;
    if (!status && parse_skip_name(ps, "else")) {
        status = expect_block_end(ps);
        if (!status) status = parse_body(ps, false, last, &node->otherwise);
    }
    return status ? status : finish_block(ps, "endfor");
}

static int parse_set(struct parser *ps, struct node *node) {
    static const char *const ends[] = {"endset", NULL};
    int status = parse_target(ps, true, &node->a);
    if (status) return status;
    if (parse_skip_op(ps, LEX_ASSIGN)) {
        status = parse_tuple(ps, true, false, &node->b);
        return status ? status : expect_block_end(ps);
    }
    node->kind = NODE_SET_BLOCK;
    status = parse_filters(ps, NULL, false, &node->b);
    if (!status) status = expect_block_end(ps);
    if (!status) status = parse_body(ps, false, ends, &node->body);
    return status ? status : finish_block(ps, "endset");
}

/* "(a, b=1)": node->list = names, node->b->list = defaults (fewer, for the last ones). */
static int parse_signature(struct parser *ps, struct node *node) {
    struct growing names = {0}, defaults = {0};
    struct node *item = NULL;
    int status = parse_expect_op(ps, LEX_LPAREN, "\"(\"");
    while (!status && !parse_is_op(ps, LEX_RPAREN)) {
        if (names.count) status = parse_expect_op(ps, LEX_COMMA, "\",\" or \")\"");
        if (!status) status = parse_one_target(ps, false, &item);
        if (!status) status = parse_append(ps, &names, item);
        if (!status && parse_skip_op(ps, LEX_ASSIGN)) {
            status = parse_expression(ps, true, &item);
            if (!status) status = parse_append(ps, &defaults, item);
        } else if (!status && defaults.count) {
            status = parse_fail(ps, ps->at, "a parameter without default follows one with default");
        }
    }
    if (!status) status = parse_expect_op(ps, LEX_RPAREN, "\")\"");
    if (!status) status = parse_node(ps, NODE_LIST, ps->at, &node->b);
    if (status) return status;
    node->list = parse_list(&names);
    node->b->list = parse_list(&defaults);
    return 0;
}

/* The body of a macro or caller: a function of its own. */
static int parse_macro_body(struct parser *ps, struct node *node, const char *end) {
    const char *const ends[] = {end, NULL};
    int outer = ps->special_names, loops = ps->loops;
    ps->loops = 0;
    ps->special_names = 0;
    int status = parse_body(ps, false, ends, &node->body);
    node->flags |= (uint8_t)ps->special_names;
    ps->special_names |= outer;
    ps->loops = loops;
    return status ? status : finish_block(ps, end);
}

static int parse_macro(struct parser *ps, struct node *node) {
    struct node *name = NULL;
    int status = parse_one_target(ps, false, &name);
    if (!status) status = parse_signature(ps, node);
    if (!status) status = expect_block_end(ps);
    if (status) return status;
    node->name = name->name;
    node->text = ps->tpl->names[name->name];
    return parse_macro_body(ps, node, "endmacro");
}

static int parse_call_block(struct parser *ps, struct node *node) {
    const struct lex_token *at = ps->at;
    int status = parse_node(ps, NODE_MACRO, at, &node->a);
    if (status) return status;
    node->a->name = -1;
    if (parse_is_op(ps, LEX_LPAREN))
        status = parse_signature(ps, node->a);
    else
        status = parse_node(ps, NODE_LIST, at, &node->a->b);
    at = ps->at;
    if (!status) status = parse_expression(ps, true, &node->b);
    if (!status && node->b->kind != NODE_CALL) status = parse_fail(ps, at, "expected a call of a macro");
    if (!status) status = expect_block_end(ps);
    return status ? status : parse_macro_body(ps, node->a, "endcall");
}

static int parse_filter_block(struct parser *ps, struct node *node) {
    static const char *const ends[] = {"endfilter", NULL};
    int status = parse_filters(ps, NULL, true, &node->b);
    if (!status) status = expect_block_end(ps);
    if (!status) status = parse_body(ps, false, ends, &node->body);
    return status ? status : finish_block(ps, "endfilter");
}

/* {% with a = 1, b = 2 %}: values are evaluated outside, then assigned inside. */
static int parse_with(struct parser *ps, struct node *node) {
    static const char *const ends[] = {"endwith", NULL};
    struct growing items = {0};
    struct node *target = NULL, *value = NULL;
    int status = 0;
    while (!status && ps->at->kind != TOK_BLOCK_END) {
        if (items.count) status = parse_expect_op(ps, LEX_COMMA, "\",\" or %}");
        if (!status) status = parse_one_target(ps, false, &target);
        if (!status) status = parse_expect_op(ps, LEX_ASSIGN, "\"=\"");
        if (!status) status = parse_expression(ps, true, &value);
        if (!status) status = parse_append(ps, &items, target);
        if (!status) status = parse_append(ps, &items, value);
    }
    if (!status) status = expect_block_end(ps);
    node->list = parse_list(&items);
    if (!status) status = parse_body(ps, false, ends, &node->body);
    return status ? status : finish_block(ps, "endwith");
}

/* Hugging Face's {% generation %}: marks the assistant's words for training masks; here only a scope. */
static int parse_generation(struct parser *ps, struct node *node) {
    static const char *const ends[] = {"endgeneration", NULL};
    int loops = ps->loops;
    ps->loops = 0;
    int status = expect_block_end(ps);
    if (!status) status = parse_body(ps, false, ends, &node->body);
    ps->loops = loops;
    return status ? status : finish_block(ps, "endgeneration");
}

static int parse_loop_control(struct parser *ps, struct node *node) {
    (void)node;
    if (!ps->loops) return parse_fail(ps, ps->at - 1, "break and continue are only possible inside a for block");
    return expect_block_end(ps);
}

static int parse_print_block(struct parser *ps, struct node *node) {
    int status = parse_tuple(ps, true, false, &node->a);
    return status ? status : expect_block_end(ps);
}

static const struct {
    const char *word;
    enum node_kind kind;
    int (*parse)(struct parser *ps, struct node *node);
} blocks[] = {
    {"if", NODE_IF, parse_if},
    {"for", NODE_FOR, parse_for},
    {"set", NODE_SET, parse_set},
    {"macro", NODE_MACRO, parse_macro},
    {"call", NODE_CALL_BLOCK, parse_call_block},
    {"filter", NODE_FILTER_BLOCK, parse_filter_block},
    {"with", NODE_SCOPE, parse_with},
    {"generation", NODE_SCOPE, parse_generation},
    {"break", NODE_BREAK, parse_loop_control},
    {"continue", NODE_CONTINUE, parse_loop_control},
    {"print", NODE_PRINT, parse_print_block},
};

static int parse_block(struct parser *ps, struct node **out) {
    const struct lex_token *word = ps->at;
    int status = parse_expect_kind(ps, TOK_NAME, "the name of a block", NULL);
    if (status) return status;
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        if (!text_is(&word->text, blocks[i].word)) continue;
        status = parse_enter(ps);
        if (!status) status = parse_node(ps, blocks[i].kind, word, out);
        if (!status) status = blocks[i].parse(ps, *out);
        ps->depth--;
        return status;
    }
    return parse_fail(ps, word, "block \"%.*s\" is unknown here or not supported",
                      (int)(word->text.bytes < 40 ? word->text.bytes : 40), word->text.data);
}

static bool is_one_of(const struct parser *ps, const char *const *words) {
    for (; words && *words; words++)
        if (parse_is_name(ps, *words)) return true;
    return false;
}

static int fail_unclosed(struct parser *ps, const char *const *ends) {
    const char *last = "";
    for (; *ends; ends++) last = *ends;
    return parse_fail(ps, ps->at, "the template ends inside a block: expected {%% %s %%}", last);
}

/* Statements up to `{%` + one of `ends` (consuming "{%" only), or to the end of the template. */
static int parse_statements(struct parser *ps, const char *const *ends, struct node_list *out) {
    struct growing items = {0};
    int status = 0;
    while (!status) {
        const struct lex_token *token = ps->at;
        struct node *node = NULL;
        if (token->kind == TOK_END) {
            if (ends) return fail_unclosed(ps, ends);
            break;
        }
        parse_next(ps);
        if (token->kind == TOK_DATA) {
            status = parse_node(ps, NODE_TEXT, token, &node);
            if (!status) node->text = &token->text;
        } else if (token->kind == TOK_VARIABLE_BEGIN) {
            status = parse_node(ps, NODE_PRINT, token, &node);
            if (!status) status = parse_tuple(ps, true, false, &node->a);
            if (!status) status = parse_expect_kind(ps, TOK_VARIABLE_END, "}}", NULL);
            if (!status) status = parse_check_unknown(ps);
        } else {
            if (is_one_of(ps, ends)) break;
            status = parse_block(ps, &node);
        }
        if (!status) status = parse_append(ps, &items, node);
    }
    *out = parse_list(&items);
    return status;
}

static int number_of(const struct template *tpl, const char *name) {
    for (size_t i = 0; i < tpl->name_count; i++)
        if (text_is(tpl->names[i], name)) return (int)i;
    return -1;
}

int template_parse(struct template *tpl, const struct lex_tokens *tokens, struct shu_error *err) {
    struct parser ps = {.tpl = tpl, .at = tokens->items, .err = err};
    int status = parse_statements(&ps, NULL, &tpl->body);
    tpl->loop_name = number_of(tpl, "loop");
    tpl->caller_name = number_of(tpl, "caller");
    tpl->kwargs_name = number_of(tpl, "kwargs");
    tpl->varargs_name = number_of(tpl, "varargs");
    return status;
}
