/* Grammars: rules to one table of deterministic automata. */
#include "infer/grammar_nfa.h"

#include <string.h>

enum {
    INLINE_MAX_SIZE = 4000, /* estimated NFA states up to which a rule is copied into its callers */
    INLINE_MAX_DEPTH = 300  /* rules inside rules that are looked through */
};

/* ---------------------------------------------------------------- inlining */

struct inliner {
    const struct builder *b;
    bool *inlined;
    uint8_t *seen; /* 0 not visited, 1 on the path, 2 done */
    size_t *size;  /* estimated NFA states of a rule once its callees are inlined */
};

static size_t visit_rule(struct inliner *in, int rule, int depth);

static size_t capped_add(size_t a, size_t b) {
    return a + b > ((size_t)1 << 30) ? (size_t)1 << 30 : a + b;
}
static size_t capped_mul(size_t a, int64_t times) {
    size_t r;
    return times <= 0 ? 0 : size_mul(a, (size_t)times, &r) || r > ((size_t)1 << 30) ? (size_t)1 << 30 : r;
}

static size_t visit_expr(struct inliner *in, const struct expr *expr, int depth) {
    size_t size = 2;
    switch (expr->kind) {
    case EXPR_BYTES:
        return expr->bytes + 1;
    case EXPR_CLASS:
        return 3 * expr->count + 4;
    case EXPR_DFA:
        return expr->states;
    case EXPR_RULE:
        return visit_rule(in, expr->rule, depth + 1);
    case EXPR_REPEAT:
        size = visit_expr(in, expr->body, depth);
        return capped_mul(size, expr->max < 0 ? expr->min + 1 : expr->max);
    case EXPR_OBJECT:
        for (size_t i = 0; i < expr->count; i++)
            size = capped_add(size, 6 + expr->members[i].key->bytes + visit_expr(in, expr->members[i].value, depth));
        if (expr->body)
            size = capped_add(size, 20 + visit_expr(in, expr->body, depth) + visit_expr(in, expr->key, depth));
        return size;
    default:
        for (size_t i = 0; i < expr->count; i++) size = capped_add(size, visit_expr(in, expr->items[i], depth));
        if (expr->kind != EXPR_ARRAY || !expr->body) return size;
        int64_t more = expr->max >= 0 ? expr->max : expr->min + 1;
        return capped_add(size, capped_mul(visit_expr(in, expr->body, depth), more));
    }
}

/* Estimated cost of a use of the rule. A rule met again on its own path recurses: it stays a call, which breaks
 * the cycle. Very deep chains of rules are cut the same way, so that no recursion of ours follows them. */
static size_t visit_rule(struct inliner *in, int rule, int depth) {
    if (in->seen[rule] == 1 || (in->seen[rule] == 0 && depth > INLINE_MAX_DEPTH))
        in->inlined[rule] = false;
    else if (in->seen[rule] == 0) {
        in->seen[rule] = 1;
        in->size[rule] = visit_expr(in, in->b->rules[rule].body, depth);
        in->seen[rule] = 2;
        if (in->size[rule] > INLINE_MAX_SIZE) in->inlined[rule] = false;
    }
    return in->inlined[rule] ? in->size[rule] : 1;
}

static int choose_inlined(const struct builder *b, bool **out) {
    struct inliner in = {.b = b};
    in.inlined = mem_calloc(b->count, sizeof *in.inlined);
    in.seen = mem_calloc(b->count, sizeof *in.seen);
    in.size = mem_calloc(b->count, sizeof *in.size);
    int status = in.inlined && in.seen && in.size ? 0 : SHU_E_NOMEM;
    for (size_t i = 0; !status && i < b->count; i++) in.inlined[i] = !b->rules[i].shared;
    for (size_t i = 0; !status && i < b->count; i++) (void)visit_rule(&in, (int)i, 0);
    mem_free(in.seen);
    mem_free(in.size);
    *out = in.inlined;
    return status;
}

/* --------------------------------------------------------------- assembling */

/* Ends of rule r in the NFA: 2r and 2r + 1. Only rules that are called, and the first, get bodies. */
static int emit_rules(struct nfa *nfa, const struct builder *b) {
    uint32_t unused;
    int status = 0;
    for (size_t i = 0; !status && i < 2 * b->count; i++) status = nfa_state(nfa, &unused);
    bool *done = mem_calloc(b->count, sizeof *done), more = true;
    if (!done && !status) status = SHU_FAIL(nfa->err, SHU_E_NOMEM, "no memory to compile the grammar");
    nfa->needed[0] = true;
    while (!status && more) {
        more = false;
        for (size_t i = 0; !status && i < b->count; i++) {
            if (!nfa->needed[i] || done[i]) continue;
            done[i] = more = true;
            status = nfa_emit(nfa, b->rules[i].body, (uint32_t)(2 * i), (uint32_t)(2 * i + 1));
        }
    }
    mem_free(done);
    return status;
}

static int determinise_rules(const struct nfa *nfa, const struct builder *b, struct automaton *out, struct dfa *dfa) {
    out->classes = nfa_classes(nfa, out->class_of);
    out->rules = (uint32_t)b->count;
    out->start = mem_calloc(b->count, sizeof *out->start);
    int status = out->start ? dfa_init(dfa, out->classes, b->err)
                            : SHU_FAIL(b->err, SHU_E_NOMEM, "no memory to compile the grammar");
    for (size_t i = 0; !status && i < b->count; i++)
        if (nfa->needed[i])
            status = dfa_determinise(dfa, nfa, out->class_of, (uint32_t)(2 * i), (uint32_t)(2 * i + 1), &out->start[i]);
    return status;
}

/* ---------------------------------------------------------------- trimming */

static uint32_t *row(const struct automaton *a, uint32_t state) {
    return a->next + (size_t)state * a->classes;
}

static bool leads_somewhere(const struct automaton *a, const bool *live, uint32_t state) {
    if (a->flags[state] & STATE_ACCEPT) return true;
    for (uint32_t class = 0; class < a->classes; class ++)
        if (live[row(a, state)[class]]) return true;
    for (uint32_t i = a->call_at[state]; i < a->call_at[state + 1]; i++)
        if (live[a->start[a->calls[i].rule]] && live[a->calls[i].back]) return true;
    return false;
}

/* Cuts everything from which no end can be reached. */
static int trim(struct automaton *a, struct shu_error *err) {
    bool *live = mem_calloc(a->states, sizeof *live), changed = true;
    if (!live) return SHU_FAIL(err, SHU_E_NOMEM, "no memory to compile the grammar");
    while (changed) {
        changed = false;
        for (uint32_t s = a->states; s-- > 1;)
            if (!live[s] && leads_somewhere(a, live, s)) live[s] = changed = true;
    }
    for (uint32_t s = 1; s < a->states; s++) {
        for (uint32_t class = 0; class < a->classes; class ++) {
            uint32_t *next = &row(a, s)[class];
            if (!live[*next]) *next = STATE_DEAD;
            if (*next != STATE_DEAD) a->flags[s] |= STATE_BYTES;
        }
        for (uint32_t i = a->call_at[s]; i < a->call_at[s + 1]; i++)
            if (!live[a->start[a->calls[i].rule]])
                a->calls[i].back = STATE_DEAD;
            else if (!live[a->calls[i].back])
                a->calls[i].back = STATE_DEAD;
        bool calls = a->call_at[s] != a->call_at[s + 1];
        if (a->flags[s] == STATE_ACCEPT && !calls) a->flags[s] |= STATE_TAIL;
        if (a->flags[s] == STATE_BYTES && !calls) a->flags[s] |= STATE_PLAIN;
    }
    bool empty = !live[a->start[0]];
    mem_free(live);
    if (empty)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "no text can match the grammar: its demands contradict each other, or a rule never ends");
    return 0;
}

/* ----------------------------------------------------------- left recursion */

/* Rules that match the empty text. */
static void find_nullable(const struct automaton *a, bool *nullable, bool *reach) {
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t s = a->states; s-- > 1;) {
            bool now = a->flags[s] & STATE_ACCEPT;
            for (uint32_t i = a->call_at[s]; !now && i < a->call_at[s + 1]; i++)
                now = nullable[a->calls[i].rule] && reach[a->calls[i].back];
            if (now && !reach[s]) reach[s] = changed = true;
        }
        for (uint32_t r = 0; r < a->rules; r++)
            if (a->start[r] && reach[a->start[r]] && !nullable[r]) nullable[r] = changed = true;
    }
}

struct left {
    const struct automaton *a;
    const bool *nullable;
    uint8_t *state_seen, *rule_seen; /* rule: 1 on the path, 2 done */
    uint32_t found;                  /* rule, or UINT32_MAX */
};

/* Depth-first over rules that can be called before any byte. */
static void left_rule(struct left *lf, uint32_t rule, int depth);

static void left_state(struct left *lf, uint32_t state, int depth) {
    const struct automaton *a = lf->a;
    if (state == STATE_DEAD || lf->state_seen[state]) return;
    lf->state_seen[state] = 1;
    for (uint32_t i = a->call_at[state]; i < a->call_at[state + 1] && lf->found == UINT32_MAX; i++) {
        if (a->calls[i].back == STATE_DEAD) continue;
        left_rule(lf, a->calls[i].rule, depth + 1);
        if (lf->nullable[a->calls[i].rule]) left_state(lf, a->calls[i].back, depth + 1);
    }
}

static void left_rule(struct left *lf, uint32_t rule, int depth) {
    if (lf->rule_seen[rule] == 2 || lf->found != UINT32_MAX) return;
    if (lf->rule_seen[rule] == 1 || depth > 2 * GRAMMAR_MAX_DEPTH) {
        lf->found = rule; /* or so deep that the stack limit would cut it anyway */
        return;
    }
    lf->rule_seen[rule] = 1;
    left_state(lf, lf->a->start[rule], depth + 1);
    lf->rule_seen[rule] = 2;
}

static int refuse_left_recursion(const struct automaton *a, const struct builder *b) {
    bool *nullable = mem_calloc(a->rules, sizeof *nullable), *reach = mem_calloc(a->states, sizeof *reach);
    struct left lf = {.a = a, .nullable = nullable, .found = UINT32_MAX};
    lf.state_seen = mem_calloc(a->states, 1);
    lf.rule_seen = mem_calloc(a->rules, 1);
    int status = nullable && reach && lf.state_seen && lf.rule_seen
                     ? 0
                     : SHU_FAIL(b->err, SHU_E_NOMEM, "no memory to compile the grammar");
    if (!status) {
        find_nullable(a, nullable, reach);
        for (uint32_t r = 0; r < a->rules && lf.found == UINT32_MAX; r++)
            if (a->start[r]) left_rule(&lf, r, 0);
    }
    if (!status && lf.found != UINT32_MAX)
        status =
            SHU_FAIL(b->err, SHU_E_UNSUPPORTED,
                     "rule \"%s\" calls itself before it reads anything (left recursion): write it as a repetition",
                     b->rules[lf.found].name);
    mem_free(nullable);
    mem_free(reach);
    mem_free(lf.state_seen);
    mem_free(lf.rule_seen);
    return status;
}

int automaton_build(struct builder *b, struct automaton *out) {
    *out = (struct automaton){0};
    bool *inlined = NULL;
    struct nfa nfa = {.rules = b, .err = b->err};
    struct dfa dfa = {0};
    nfa.needed = mem_calloc(b->count, sizeof *nfa.needed);
    int status = choose_inlined(b, &inlined);
    if (!nfa.needed) status = SHU_E_NOMEM;
    if (status) SHU_FAIL(b->err, status, "no memory to compile the grammar");
    nfa.inlined = inlined;
    if (!status) status = emit_rules(&nfa, b);
    if (!status) status = determinise_rules(&nfa, b, out, &dfa);
    nfa_free(&nfa);
    mem_free(nfa.needed);
    mem_free(inlined);
    out->next = dfa.next;
    out->flags = dfa.flags;
    out->call_at = dfa.call_at;
    out->calls = dfa.calls;
    out->states = dfa.states;
    if (!status) status = trim(out, b->err);
    if (!status) status = refuse_left_recursion(out, b);
    if (status) automaton_free(out);
    return status;
}

void automaton_free(struct automaton *a) {
    mem_free(a->next);
    mem_free(a->flags);
    mem_free(a->call_at);
    mem_free(a->calls);
    mem_free(a->start);
    *a = (struct automaton){0};
}
