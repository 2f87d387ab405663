/* Parser internals shared by template_parse.c (expressions) and template_statement.c (blocks). */
#ifndef TEMPLATE_PARSE_H
#define TEMPLATE_PARSE_H

#include "text/template.h"

struct parser {
    struct template *tpl;
    const struct lex_token *at; /* the list ends with TOK_END, which is never passed */
    int *index;                 /* hash index over tpl->names: number + 1 */
    size_t index_cap;
    int depth;
    int loops;                       /* for blocks around us inside the current function body: break and continue */
    int special_names;               /* NODE_USES_* seen since the innermost macro began */
    bool soft;                       /* inside an if: unknown filters and tests are errors only when they run */
    const struct lex_token *unknown; /* first unknown filter or test of this statement */
    bool unknown_is_test;
    struct shu_error *err;
};

struct growing {
    struct node **items;
    size_t count, cap;
};

int parse_fail(struct parser *ps, const struct lex_token *at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void parse_describe(const struct lex_token *token, char *out, size_t bytes);
int parse_enter(struct parser *ps); /* one level deeper; the caller decrements ps->depth */

const struct lex_token *parse_next(struct parser *ps); /* consumes */
bool parse_is_op(const struct parser *ps, enum lex_op op);
bool parse_is_name(const struct parser *ps, const char *name);
bool parse_skip_op(struct parser *ps, enum lex_op op);
bool parse_skip_name(struct parser *ps, const char *name);
int parse_expect_op(struct parser *ps, enum lex_op op, const char *what);
int parse_expect_kind(struct parser *ps, enum token_kind kind, const char *what, const struct lex_token **out);

int parse_node(struct parser *ps, enum node_kind kind, const struct lex_token *at, struct node **out);
const struct text *parse_text(struct parser *ps, const char *data, size_t bytes);
int parse_append(struct parser *ps, struct growing *list, struct node *node);
struct node_list parse_list(const struct growing *list);
int parse_name_node(struct parser *ps, const struct lex_token *token, struct node **out);

int parse_expression(struct parser *ps, bool with_condition, struct node **out);
int parse_tuple(struct parser *ps, bool with_condition, bool in_brackets, struct node **out);
int parse_filters(struct parser *ps, struct node *input, bool start_inline, struct node **out);
int parse_check_unknown(struct parser *ps); /* at the end of each tag */

#endif
