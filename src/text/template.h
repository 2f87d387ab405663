/* Inside of the chat-template interpreter (private to room text).
 *
 *     source --lex--> tokens --parse--> nodes (arena of the template, immutable)
 *     nodes + variables --eval--> text (arena of the render, gone when it ends)
 *
 * Nothing is freed one by one: a render owns one arena with a maximum, so a
 * hostile template runs into a limit and never into the machine. Lists, tuples
 * and dicts cannot change once built (Hugging Face renders in jinja2's
 * ImmutableSandboxedEnvironment, which refuses append, pop, update, …); only
 * namespaces can. All text is UTF-8; positions and lengths seen by a template
 * count code points, as Python's do.
 */
#ifndef TEMPLATE_H
#define TEMPLATE_H

#include "text/text.h"
#include <locale.h>

/* ------------------------------------------------------------------ limits */

enum {
    TPL_MAX_SOURCE = 4 << 20,  /* bytes of template text */
    TPL_MAX_PARSE_DEPTH = 200, /* nested expressions and blocks */
    TPL_MAX_EVAL_DEPTH = 900,  /* nested evaluations: Python's own limit is 1000 frames */
    TPL_MAX_VALUE_DEPTH = 200, /* nested lists when printed, compared, converted */
    TPL_MAX_RANGE = 100000,    /* items of range(), as in jinja2's sandbox */
    TPL_MAX_CALL_ARGS = 1000   /* arguments of one call */
};
#define TPL_MAX_PARSE_BYTES  ((size_t)64 << 20)
#define TPL_MAX_RENDER_BYTES ((size_t)256 << 20)

/* ------------------------------------------------------------------ values */

enum value_kind {
    VAL_ABSENT, /* an argument that was not given; never visible to templates */
    VAL_UNDEFINED,
    VAL_NONE,
    VAL_BOOL,
    VAL_INT,
    VAL_FLOAT,
    VAL_STRING,
    VAL_LIST,
    VAL_TUPLE,
    VAL_VIEW,     /* dict keys/values/items and range: sized, can be walked again */
    VAL_ITERATOR, /* result of map, select, reverse, …: walked once, has no length */
    VAL_DICT,
    VAL_NAMESPACE,
    VAL_MACRO,
    VAL_FUNCTION, /* global function */
    VAL_METHOD,   /* method bound to its object */
    VAL_LOOP
};

enum value_flag {
    FLAG_MARKUP = 1, /* string: result of |safe or |escape; + escapes the other side */
    FLAG_UNSAFE = 2, /* undefined: an attribute the sandbox hides; calling it is a security error */
    FLAG_VIEW_RANGE = 1,
    FLAG_VIEW_KEYS = 2,
    FLAG_VIEW_VALUES = 3,
    FLAG_VIEW_ITEMS = 4 /* VAL_VIEW: what it prints as */
};

struct value {
    uint8_t kind;
    uint8_t flag;
    union {
        bool boolean;
        int64_t integer;
        double real;
        const struct text *text;       /* VAL_STRING, VAL_UNDEFINED (what is missing; may be NULL) */
        struct sequence *sequence;     /* VAL_LIST … VAL_ITERATOR */
        struct dict *dict;             /* VAL_DICT, VAL_NAMESPACE */
        const struct macro *macro;     /* VAL_MACRO */
        const struct builtin *builtin; /* VAL_FUNCTION */
        const struct method *method;   /* VAL_METHOD */
        struct loop *loop;             /* VAL_LOOP */
    };
};

struct text {
    const char *data; /* not NUL-terminated */
    size_t bytes;
};

struct sequence {
    struct value *items;
    size_t count;
    size_t next; /* VAL_ITERATOR: items before it are used up */
};

struct dict_entry {
    struct value key, value;
    uint64_t hash;
};
struct dict {
    struct dict_entry *entries; /* in insertion order */
    size_t count, cap;
    uint32_t *index; /* open addressing, entry number + 1; NULL while small */
    size_t index_cap;
};

struct method {
    struct value self;
    const struct builtin *builtin;
};

/* Arguments as evaluated. */
struct named_value {
    const struct text *name;
    struct value value;
};
struct arguments {
    struct value *items;
    struct named_value *named;
    size_t count, named_count;
};

enum { BUILTIN_MAX_PARAMS = 6 };
struct call {
    struct value self;                    /* filters, tests: the value; methods: the object */
    struct value arg[BUILTIN_MAX_PARAMS]; /* VAL_ABSENT where not given */
    const struct arguments *raw;          /* for builtins that take any arguments */
};
struct interp;
typedef int builtin_fn(struct interp *in, const struct call *call, struct value *out);
struct builtin {
    const char *name;
    const char *params; /* "a b c"; NULL = any arguments, read from call.raw */
    int required;
    builtin_fn *fn;
};

/* ------------------------------------------------------------------- nodes */

enum node_kind {
    /* expressions */
    NODE_CONST,
    NODE_NAME,
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT,  /* list: key, value, key, value … */
    NODE_ATTR,  /* a.text */
    NODE_ITEM,  /* a[b] */
    NODE_SLICE, /* b : c : d, only below NODE_ITEM */
    NODE_CALL,
    NODE_FILTER, /* a | name(args); a NULL inside filter blocks */
    NODE_TEST,
    NODE_NOT,
    NODE_AND,
    NODE_OR,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_BINARY,
    NODE_CONCAT,  /* list joined with ~ */
    NODE_COMPARE, /* a, then list of NODE_OPERAND */
    NODE_OPERAND,
    NODE_CONDITIONAL, /* b if a else c */
    /* statements */
    NODE_TEXT,
    NODE_PRINT,
    NODE_IF,
    NODE_FOR,
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_SET,
    NODE_SET_BLOCK,
    NODE_MACRO,
    NODE_CALL_BLOCK,
    NODE_FILTER_BLOCK,
    NODE_SCOPE /* with, generation: a body with its own variables */
};

enum operator_kind {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR_DIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN
};

struct node_list {
    struct node **items;
    size_t count;
};
struct call_args {
    struct node **items;
    struct node **named;
    const struct text **names; /* [named_count] */
    size_t count, named_count;
    struct node *star, *star_star; /* *args and **kwargs or NULL */
};
enum node_flag {
    NODE_USES_CALLER = 1,
    NODE_USES_VARARGS = 2,
    NODE_USES_KWARGS = 4, /* NODE_MACRO */
    NODE_NEGATED = 8,     /* NODE_TEST: is not */
    NODE_ATTR_TARGET = 16 /* NODE_ATTR as the target of set */
};

struct node {
    uint8_t kind, op, flags;
    int line, column;
    int name;                      /* NODE_NAME, NODE_MACRO: number of the variable */
    const struct text *text;       /* attribute, filter or test name; NODE_TEXT */
    struct value constant;         /* NODE_CONST */
    const struct builtin *builtin; /* filter or test; NULL = no such name */
    /* a, b, c: operands. NODE_IF: a = test. NODE_FOR: a = target, b = iterable, c = filter.
     * NODE_SET: a = target, b = value. NODE_SET_BLOCK: a = target, b = filter chain or NULL.
     * NODE_MACRO: list = parameters, b.list = defaults. NODE_CALL_BLOCK: a = NODE_MACRO, b = NODE_CALL. */
    struct node *a, *b, *c, *d;
    struct node_list list; /* elements, operands, or (NODE_SCOPE) targets and values in turn */
    struct node_list body, otherwise;
    const struct call_args *args;
};

/* ---------------------------------------------------------------- template */

struct template {
    struct arena arena;
    struct node_list body;
    const struct text **names; /* variable names by number */
    size_t name_count;
    int loop_name, caller_name, kwargs_name, varargs_name; /* numbers of these names, -1 if never used */
    locale_t locale;                                       /* C.UTF-8: character classes and case */
    int64_t fixed_time;
};

/* ------------------------------------------------------------------- lexer */

enum token_kind {
    TOK_END,
    TOK_DATA,
    TOK_BLOCK_BEGIN,
    TOK_BLOCK_END,
    TOK_VARIABLE_BEGIN,
    TOK_VARIABLE_END,
    TOK_NAME,
    TOK_STRING,
    TOK_INTEGER,
    TOK_FLOAT,
    TOK_OPERATOR /* op holds one of enum lex_op */
};
enum lex_op {
    LEX_ADD = 1,
    LEX_SUB,
    LEX_DIV,
    LEX_FLOOR_DIV,
    LEX_MUL,
    LEX_MOD,
    LEX_POW,
    LEX_TILDE,
    LEX_LBRACKET,
    LEX_RBRACKET,
    LEX_LPAREN,
    LEX_RPAREN,
    LEX_LBRACE,
    LEX_RBRACE,
    LEX_EQ,
    LEX_NE,
    LEX_GT,
    LEX_GE,
    LEX_LT,
    LEX_LE,
    LEX_ASSIGN,
    LEX_DOT,
    LEX_COLON,
    LEX_PIPE,
    LEX_COMMA,
    LEX_SEMICOLON
};
struct lex_token {
    uint8_t kind, op;
    int line, column;
    struct text text; /* data, name, or decoded string */
    int64_t integer;
    double real;
};
struct lex_tokens {
    struct lex_token *items;
    size_t count, cap;
};
/* Cuts the source into tokens; trim_blocks and lstrip_blocks are on, one final newline is dropped. */
int template_lex(struct arena *arena, const char *source, size_t bytes, struct lex_tokens *out, struct shu_error *err);
/* Fills tpl->body and tpl->names. */
int template_parse(struct template *tpl, const struct lex_tokens *tokens, struct shu_error *err);

/* ------------------------------------------------------------- interpreter */

/* Variables of one block. Macros keep the scope they were defined in alive. */
struct variable {
    int name;
    struct value value;
};
struct scope {
    struct scope *parent;
    struct variable *items;
    int count, cap;
    bool captured; /* a macro refers to it: must not be reused by the next loop turn */
};

struct macro {
    const struct node *node;
    struct scope *scope;
};

struct loop {
    struct sequence *source;
    size_t source_next;
    struct value *items; /* what passed the filter so far */
    size_t count, cap, index;
    bool complete; /* the source is used up */
    const struct node *node;
    struct scope *scope; /* where the filter is evaluated */
    struct value last_changed;
};

struct interp {
    const struct template *tpl;
    struct arena arena;
    struct buf out; /* output so far; its tail is also the scratch for building strings */
    uint64_t steps, max_steps;
    int depth;
    struct value *globals; /* [name_count] variables of the top level; VAL_ABSENT = not set */
    struct scope *scope;   /* NULL at the top level */
    struct shu_error *err;
    bool placed; /* the error message already names line and column */
};

/* Raise without a position: the evaluator adds that of the innermost node on the way out. */
#define TPL_FAIL(in, ...)  ((in)->placed = false, SHU_FAIL((in)->err, SHU_E_USAGE, __VA_ARGS__))
#define TPL_LIMIT(in, ...) ((in)->placed = false, SHU_FAIL((in)->err, SHU_E_RANGE, __VA_ARGS__))

int template_charge(struct interp *in, uint64_t steps); /* work done; fails when max_steps is used up */
void *template_alloc(struct interp *in, size_t count, size_t bytes_each); /* NULL: error is already raised */

int eval_expression(struct interp *in, const struct node *node, struct value *out);
int eval_filter(struct interp *in, const struct node *node, struct value input, struct value *out); /* filter chains */
int eval_call_with(struct interp *in, const struct node *node, struct value caller, struct value *out);
int eval_place(struct interp *in, const struct node *node, int status); /* adds line and column to an error, once */
int eval_call(struct interp *in, struct value callee, const struct arguments *args, struct value *out);
int eval_attribute(struct interp *in, struct value object, const struct text *name, struct value *out);
int eval_item(struct interp *in, struct value object, struct value key, struct value *out);
int eval_binary(struct interp *in, enum operator_kind op, struct value a, struct value b, struct value *out);
int eval_operator(struct interp *in, enum operator_kind op, struct value a, struct value b, bool *out);
/* One more item for the loop, if there is one. */
int loop_pull(struct interp *in, struct loop *loop, bool *got);
int loop_complete(struct interp *in, struct loop *loop);

/* --------------------------------------------------------- value functions */

static inline struct value value_of(enum value_kind kind) {
    return (struct value){.kind = (uint8_t)kind};
}
static inline struct value value_bool(bool b) {
    return (struct value){.kind = VAL_BOOL, .boolean = b};
}
static inline struct value value_int(int64_t i) {
    return (struct value){.kind = VAL_INT, .integer = i};
}
static inline struct value value_float(double f) {
    return (struct value){.kind = VAL_FLOAT, .real = f};
}
static inline bool value_is_number(struct value v) {
    return v.kind >= VAL_BOOL && v.kind <= VAL_FLOAT;
}
static inline bool value_is_integer(struct value v) {
    return v.kind == VAL_BOOL || v.kind == VAL_INT;
}
static inline int64_t value_integer(struct value v) {
    return v.kind == VAL_BOOL ? v.boolean : v.integer;
}
static inline double value_real(struct value v) {
    return v.kind == VAL_FLOAT ? v.real : (double)value_integer(v);
}
static inline bool value_is_sequence(struct value v) {
    return v.kind >= VAL_LIST && v.kind <= VAL_ITERATOR;
}

const char *value_kind_name(struct value value); /* as Python names it: "str", "dict", … */
int value_string(struct interp *in, const char *data, size_t bytes, struct value *out); /* copies */
int value_borrow(struct interp *in, const char *data, size_t bytes, struct value *out); /* keeps the pointer */
/* An undefined value; before + name + after say what is missing. name may be NULL. */
int value_undefined(struct interp *in, const char *before, const struct text *name, const char *after,
                    struct value *out);
int value_sequence(struct interp *in, enum value_kind kind, size_t count, struct value *out); /* zeroed items */
bool value_truth(struct value value);
int value_equal(struct interp *in, struct value a, struct value b, int depth, bool *out);
int value_compare(struct interp *in, struct value a, struct value b, int depth, int *out); /* -1, 0, 1 */
int value_from_json(struct interp *in, const json_t *json, int depth, struct value *out);
int value_length(struct interp *in, struct value value, int64_t *out);
/* Items of anything that can be walked, as an array; an iterator is used up by it. */
int value_iterate(struct interp *in, struct value value, struct sequence **out);
int value_contains(struct interp *in, struct value container, struct value item, bool *out);

/* Python's str() and repr(), appended to in->out. */
int value_print(struct interp *in, struct value value);
int value_repr(struct interp *in, struct value value, int depth);
int value_print_float(struct interp *in, double number);
/* str() as a value; strings come back as they are. */
int value_to_string(struct interp *in, struct value value, struct value *out);

struct json_style {
    bool ascii, sort;
    struct text indent;    /* data NULL = one line */
    struct text item, key; /* separators */
};
int value_to_json(struct interp *in, struct value value, const struct json_style *style, int depth);

int dict_new(struct interp *in, struct value *out);
int dict_set(struct interp *in, struct dict *dict, struct value key, struct value value);
int dict_get(struct interp *in, const struct dict *dict, struct value key,
             const struct value **out); /* NULL if absent */
int dict_get_text(struct interp *in, const struct dict *dict, const struct text *key, const struct value **out);

/* Scratch: text appended to in->out between begin and end becomes a string. */
static inline size_t scratch_begin(const struct interp *in) {
    return in->out.len;
}
int scratch_end(struct interp *in, size_t mark, struct value *out);
int emit(struct interp *in, const void *bytes, size_t count); /* appends to in->out, charges */
int emit_text(struct interp *in, const char *text);

/* ---------------------------------------------------------------- builtins */

const struct builtin *builtin_filter(const char *name, size_t bytes);
const struct builtin *builtin_test(const char *name, size_t bytes);
const struct builtin *builtin_global(const char *name, size_t bytes);
const struct builtin *builtin_method(struct value object, const struct text *name, bool *unsafe);
const struct builtin *string_method(const struct text *name);
int builtin_call(struct interp *in, const struct builtin *builtin, struct value self, const struct arguments *args,
                 struct value *out);
int loop_attribute(struct interp *in, struct loop *loop, const struct text *name, struct value *out);

/* Python's "…" % values and "…".format(values). */
int format_percent(struct interp *in, const struct text *format, struct value values, const struct arguments *args,
                   struct value *out);
int format_braces(struct interp *in, const struct text *format, const struct arguments *args, struct value *out);

/* String pieces shared by methods and filters. Results are strings. */
enum case_kind { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE, CASE_SWAP };
int string_case(struct interp *in, const struct text *text, enum case_kind kind, struct value *out);
enum strip_kind { STRIP_LEFT = 1, STRIP_RIGHT = 2, STRIP_BOTH = 3 };
struct text string_strip(struct text text, const struct text *chars, enum strip_kind kind);
int string_replace(struct interp *in, const struct text *text, const struct text *old, const struct text *new_text,
                   int64_t count, struct value *out);
int string_escape(struct interp *in, struct value value, struct value *out); /* &lt; &gt; &amp; &#34; &#39; */
int string_center(struct interp *in, const struct text *text, int64_t width, const char *fill, int where,
                  struct value *out);
size_t text_length(const struct text *text);                          /* code points */
size_t text_offset(const struct text *text, size_t code_points);      /* byte offset of a code point */
uint32_t text_scalar(const struct text *text, size_t at, int *bytes); /* invalid bytes count as one each */
bool text_is(const struct text *text, const char *literal);
bool text_equal(const struct text *a, const struct text *b);
bool scalar_is_space(uint32_t scalar);                                           /* str.isspace */
bool text_is_case(const struct interp *in, const struct text *text, bool upper); /* str.isupper, str.islower */
/* Python's int() and float() on a string: surrounding spaces and underscores allowed. */
bool text_to_integer(struct text text, int base, int64_t *out);
bool text_to_real(struct text text, double *out);

#endif
