/* Inside of the grammars (private to room infer).
 *
 *     JSON Schema ─┐
 *                  ├─ expressions ─ NFA of bytes and rule calls ─ one DFA per rule ─ masks per state
 *     EBNF ────────┘
 *
 * A rule is a finite automaton over bytes whose edges may also call other rules; a text position is a set of
 * (state, stack of return states). What does not recurse is inlined, so most schemas are a few automata without
 * calls. All states can reach an end, so no allowed token leads into a dead end, and multi-byte characters are
 * only ever allowed in valid UTF-8 sequences.
 *
 * Masks (after XGrammar, Dong et al. 2024): for each automaton state, once, the token trie is walked with an
 * unknown stack. Tokens that stay inside are decided for good; tokens that leave the rule are kept as a small
 * trie of what remains of them, and walked at run time with the real stack. The finished mask of a position is
 * kept too: inside a string every step is a look-up.
 *
 * ---- JSON Schema subset (2020-12). Anything else is refused with the JSON pointer of the place.
 * any type     type (one or a list), enum, const, anyOf, oneOf (only if its branches exclude each other by type,
 *              constant or a required property), allOf (merged), $ref to "#/…" (may recurse), $defs, true, false
 * object       properties, required, additionalProperties
 * array        items, prefixItems, minItems, maxItems
 * string       minLength, maxLength, pattern, format: date time date-time uuid ipv4 email
 * number       minimum, maximum, exclusiveMinimum, exclusiveMaximum; integer: also multipleOf (1, 10, 100, …, or
 *              at most 1,000 values between the bounds)
 * Annotations (title, description, default, examples, $schema, $id, $comment, deprecated, readOnly, writeOnly,
 * x-…) are accepted. Without a type, the keywords present decide; without any, every JSON value is allowed.
 *
 * What is written: compact JSON, at most one space after ':' and ','. Keys in the order of "properties", optional
 * ones may be absent; keys beyond them come last and only when additionalProperties allows them in so many
 * words, or when there are no properties at all. Arrays end with prefixItems unless items is given. Characters are
 * written as themselves; escapes only where JSON demands them. Integers have at most 18 digits; numbers at most
 * 15 before and 15 after the point, an exponent of two digits only when there are no bounds, and at most 9
 * decimals when there are.
 *
 * pattern: alternatives, groups ( ) and (?: ), classes, . \d \w \s \D \W \S (ASCII), \t \n \r \f \v \xHH \uHHHH,
 * * + ? {m} {m,} {m,n}, ^ and $ at the outer ends; unanchored patterns match anywhere, as the standard says.
 *
 * ---- EBNF
 *     root ::= "select " column ("," " "? column)* (" where " cond)?      # the text is one "root"
 *     column ::= [a-z_]{1,30}
 * Rules are NAME ::= alternatives; a rule ends where the next NAME ::= begins. Literals "…" and classes [a-z] [^"]
 * take \n \r \t \\ \" \] \- \^ \xHH \uHHHH \UHHHHHHHH; "." is any character. Groups ( ), and ? * + {m} {m,} {m,n}
 * after an item. Comments run from # to the end of the line. Rules may recurse, but not on their left.
 */
#ifndef GRAMMAR_H
#define GRAMMAR_H

#include "infer/infer.h"

enum {
    GRAMMAR_MAX_RULES = 10000,
    GRAMMAR_MAX_NFA_STATES = 1 << 20,
    GRAMMAR_MAX_NFA_EDGES = 4 << 20,
    GRAMMAR_MAX_STATES = 200000, /* automaton states of all rules */
    GRAMMAR_MAX_REPEAT = 20000,  /* {m,n}, minLength, maxItems … */
    GRAMMAR_MAX_NESTING = 100,   /* of schemas, groups */
    GRAMMAR_MAX_ITEMS = 64,      /* alternatives followed at once; more are dropped, which only narrows */
    GRAMMAR_MAX_DEPTH = 400,     /* stack of rule calls; deeper ones are not taken */
    GRAMMAR_MAX_STACKS = 1 << 18 /* distinct stacks remembered */
};
#define GRAMMAR_MAX_SOURCE_BYTES ((size_t)1 << 20)
#define GRAMMAR_MAX_ARENA_BYTES  ((size_t)64 << 20)
#define GRAMMAR_MAX_TABLE_BYTES  ((size_t)96 << 20)
#define GRAMMAR_MAX_MASK_BYTES   ((size_t)64 << 20)

/* ------------------------------------------------------------- expressions */

enum expr_kind {
    EXPR_EMPTY, /* the empty text */
    EXPR_NEVER, /* nothing matches */
    EXPR_BYTES,
    EXPR_CLASS, /* one character out of ranges */
    EXPR_SEQ,
    EXPR_ALT,
    EXPR_REPEAT,
    EXPR_RULE,
    EXPR_OBJECT,
    EXPR_ARRAY,
    EXPR_DFA
};

struct range {
    uint32_t low, high; /* code points, inclusive */
};

struct member {
    const struct expr *key, *value; /* key with its quotes */
    bool required;
};

struct dfa_edge {
    uint32_t from, to;
    uint8_t low, high;
};

struct expr {
    enum expr_kind kind;
    bool json;        /* CLASS: written as inside of a JSON string */
    const char *data; /* BYTES */
    size_t bytes;
    const struct range *ranges; /* CLASS: sorted, disjoint */
    const struct expr **items;  /* SEQ, ALT; ARRAY: the first items */
    size_t count;
    int64_t min, max;             /* REPEAT, ARRAY; max -1 = no limit */
    const struct expr *body;      /* REPEAT; ARRAY: further items or NULL; OBJECT: value of further members or NULL */
    const struct expr *key;       /* OBJECT: key of further members */
    const struct member *members; /* OBJECT: [count] */
    int rule;                     /* RULE */
    const struct dfa_edge *edges; /* DFA: [count] edges between states 0…states-1; 0 is the start */
    uint32_t states;
    const bool *accept; /* DFA: [states] */
};

/* Rules under construction. */
struct rule {
    const char *name; /* for messages */
    const struct expr *body;
    bool shared; /* never inlined: one automaton, and one set of masks, for all its uses */
};
struct builder {
    struct arena arena;
    struct rule *rules;
    size_t count, cap;
    struct shu_error *err;
};

void builder_init(struct builder *b, struct shu_error *err);
void builder_free(struct builder *b);
int builder_rule(struct builder *b, const char *name, int *out); /* a new rule without body */
int builder_no_memory(struct builder *b);

/* Constructors; NULL = no memory (error is raised). */
const struct expr *expr_simple(struct builder *b, enum expr_kind kind);
const struct expr *expr_bytes(struct builder *b, const char *data, size_t bytes); /* copies */
const struct expr *expr_text(struct builder *b, const char *text);
const struct expr *expr_class(struct builder *b, const struct range *ranges, size_t count, bool negate, bool json);
const struct expr *expr_list(struct builder *b, enum expr_kind kind, const struct expr *const *items, size_t count);
const struct expr *expr_pair(struct builder *b, enum expr_kind kind, const struct expr *first,
                             const struct expr *second);
const struct expr *expr_repeat(struct builder *b, const struct expr *body, int64_t min, int64_t max);
const struct expr *expr_rule(struct builder *b, int rule);
struct expr *expr_new(struct builder *b, enum expr_kind kind);

/* Growable list of expressions in the builder's arena. */
struct expr_items {
    const struct expr **items;
    size_t count, cap;
};
int expr_push(struct builder *b, struct expr_items *list, const struct expr *item); /* NULL item: SHU_E_NOMEM */

/* Texts that match all of items (no rule calls inside): EXPR_DFA, or EXPR_NEVER. */
int expr_intersect(struct builder *b, const struct expr *const *items, size_t count, const struct expr **out);

/* A pattern as JSON Schema means it, over the characters of a JSON string (json) or plain text. */
int regex_parse(struct builder *b, const char *pattern, size_t bytes, bool json, const char *where,
                const struct expr **out);
/* Decimal numbers within bounds; see grammar_number.c. */
struct bounds {
    bool has_low, has_high, open_low, open_high; /* open: the bound itself is excluded */
    double low, high;
};
int number_integer(struct builder *b, const struct bounds *bounds, int64_t multiple, const char *where,
                   const struct expr **out);
int number_real(struct builder *b, const struct bounds *bounds, const char *where, const struct expr **out);

/* Fill the builder; the first rule is the start. */
int schema_build(struct builder *b, const json_t *schema);
int ebnf_build(struct builder *b, const char *source, size_t bytes);

/* --------------------------------------------------------------- automaton */

enum { STATE_DEAD = 0 };
enum state_flag {
    STATE_ACCEPT = 1,
    STATE_BYTES = 2, /* has byte edges */
    STATE_TAIL = 4,  /* accepts and goes nowhere: not worth a return */
    STATE_PLAIN = 8  /* byte edges and nothing else */
};

struct call_edge {
    uint32_t rule, back; /* continue in `back` when the rule has ended */
};
struct automaton {
    uint8_t class_of[256];
    uint32_t classes;
    uint32_t states;   /* state 0 is dead */
    uint32_t *next;    /* [states][classes] */
    uint8_t *flags;    /* [states] enum state_flag */
    uint32_t *call_at; /* [states + 1] */
    struct call_edge *calls;
    uint32_t *start; /* [rules] first state */
    uint32_t rules;
};
/* out[h][state]: the first state that behaves alike for all texts of at most horizons[h] bytes (ascending).
 * Each out[h] is allocated (mem_free); on failure those that were made stay in out. */
int horizon_build(const struct automaton *a, const uint32_t *horizons, int count, uint32_t **out);
int automaton_build(struct builder *b, struct automaton *out);
void automaton_free(struct automaton *a);

/* ------------------------------------------------------------- token tries */

/* Texts of tokens in sorted order as a trie in preorder. Also used for the remainders of tokens. */
struct trie_node {
    uint32_t skip;         /* number of the first node behind this subtree */
    uint32_t first, count; /* ids of the texts that end here */
    uint16_t depth;        /* 1 = first byte */
    uint8_t byte;
};
struct trie {
    struct trie_node *nodes;
    int32_t *ids;
    size_t count, id_count;
};
struct trie_text {
    const char *text;
    uint32_t bytes;
    int32_t id;
};
int trie_build(struct trie_text *texts, size_t count, struct trie *out); /* sorts texts; SHU_E_NOMEM */
void trie_free(struct trie *trie);
size_t trie_bytes(const struct trie *trie);

#endif
