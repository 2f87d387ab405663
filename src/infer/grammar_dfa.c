/* Grammars: subset construction, intersection, and the final automaton. */
#include "infer/grammar_nfa.h"

#include <string.h>

/* ------------------------------------------------------------ growing tables */

static void dfa_free(struct dfa *dfa) {
    mem_free(dfa->next);
    mem_free(dfa->flags);
    mem_free(dfa->call_at);
    mem_free(dfa->calls);
    *dfa = (struct dfa){0};
}

static int fail_memory(struct dfa *dfa) {
    return SHU_FAIL(dfa->err, SHU_E_NOMEM, "no memory to compile the grammar");
}

static int grow_states(struct dfa *dfa) {
    uint32_t cap = dfa->state_cap ? dfa->state_cap * 2 : 64;
    if (cap > GRAMMAR_MAX_STATES) cap = GRAMMAR_MAX_STATES;
    size_t cells = (size_t)cap * dfa->classes;
    if (dfa->states == cap || cells * sizeof *dfa->next > GRAMMAR_MAX_TABLE_BYTES)
        return SHU_FAIL(dfa->err, SHU_E_RANGE,
                        "the grammar is too large (%u automaton states): lower its repetitions, maxLength or maxItems",
                        dfa->states);
    uint32_t *next = mem_realloc(dfa->next, cells * sizeof *next);
    if (next) dfa->next = next;
    uint8_t *flags = mem_realloc(dfa->flags, cap);
    if (flags) dfa->flags = flags;
    uint32_t *call_at = mem_realloc(dfa->call_at, ((size_t)cap + 1) * sizeof *call_at);
    if (call_at) dfa->call_at = call_at;
    if (!next || !flags || !call_at) return fail_memory(dfa);
    dfa->state_cap = cap;
    return 0;
}

static int dfa_state(struct dfa *dfa, uint32_t *out) {
    if (dfa->states == dfa->state_cap) {
        int status = grow_states(dfa);
        if (status) return status;
    }
    *out = dfa->states++;
    memset(dfa->next + (size_t)*out * dfa->classes, 0, dfa->classes * sizeof *dfa->next);
    dfa->flags[*out] = 0;
    dfa->call_at[*out] = dfa->call_at[*out + 1] = dfa->call_count;
    return 0;
}

int dfa_init(struct dfa *dfa, uint32_t classes, struct shu_error *err) {
    uint32_t dead;
    *dfa = (struct dfa){.classes = classes, .err = err};
    return dfa_state(dfa, &dead);
}

static int push_call(struct dfa *dfa, uint32_t rule, uint32_t back) {
    if (dfa->call_count == dfa->call_cap) {
        uint32_t cap = dfa->call_cap ? dfa->call_cap * 2 : 64;
        struct call_edge *calls = mem_realloc(dfa->calls, cap * sizeof *calls);
        if (!calls) return fail_memory(dfa);
        dfa->calls = calls;
        dfa->call_cap = cap;
    }
    dfa->calls[dfa->call_count++] = (struct call_edge){rule, back};
    return 0;
}

/* ------------------------------------------------------- subset construction */

struct subsets {
    struct dfa *dfa;
    const struct nfa *nfa;
    uint32_t final, base; /* base: first DFA state of this construction */
    uint32_t *pool;       /* NFA states of each subset, one after the other */
    size_t pool_used, pool_cap;
    size_t *at; /* [subset] start in pool */
    size_t at_cap;
    uint32_t *hash; /* subset + 1 */
    size_t hash_cap;
    uint32_t *mark; /* [NFA states] epoch of the last visit */
    uint32_t *stack, *set;
    uint32_t epoch, set_count;
};

static void subsets_free(struct subsets *ss) {
    mem_free(ss->pool);
    mem_free(ss->at);
    mem_free(ss->hash);
    mem_free(ss->mark);
    mem_free(ss->stack);
    mem_free(ss->set);
}

static bool matters(const struct subsets *ss, uint32_t state) {
    if (state == ss->final) return true;
    for (uint32_t e = ss->nfa->head[state]; e; e = ss->nfa->edges[e - 1].next)
        if (ss->nfa->edges[e - 1].kind != NFA_EMPTY) return true;
    return false;
}

/* Adds a state and all that empty edges reach; keeps only those with real edges or the final one. */
static void add_closure(struct subsets *ss, uint32_t state) {
    uint32_t depth = 0;
    if (ss->mark[state] == ss->epoch) return;
    ss->mark[state] = ss->epoch;
    ss->stack[depth++] = state;
    while (depth) {
        state = ss->stack[--depth];
        if (matters(ss, state)) ss->set[ss->set_count++] = state;
        for (uint32_t e = ss->nfa->head[state]; e; e = ss->nfa->edges[e - 1].next) {
            const struct nfa_edge *edge = &ss->nfa->edges[e - 1];
            if (edge->kind != NFA_EMPTY || ss->mark[edge->to] == ss->epoch) continue;
            ss->mark[edge->to] = ss->epoch;
            ss->stack[depth++] = edge->to;
        }
    }
}

static void sort_set(uint32_t *items, uint32_t count) {
    for (uint32_t gap = count / 2; gap; gap /= 2)
        for (uint32_t i = gap; i < count; i++)
            for (uint32_t j = i; j >= gap && items[j - gap] > items[j]; j -= gap) {
                uint32_t swap = items[j];
                items[j] = items[j - gap];
                items[j - gap] = swap;
            }
}

static uint64_t hash_set(const uint32_t *items, size_t count) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < count; i++) hash = (hash ^ items[i]) * 1099511628211u;
    return hash ^ hash >> 29;
}

static size_t subset_size(const struct subsets *ss, uint32_t subset) {
    return ss->at[subset + 1] - ss->at[subset];
}

static int grow_subsets(struct subsets *ss, uint32_t count) {
    if (count + 2 > ss->at_cap) {
        size_t cap = ss->at_cap ? ss->at_cap * 2 : 64;
        size_t *at = mem_realloc(ss->at, cap * sizeof *at);
        if (!at) return fail_memory(ss->dfa);
        ss->at = at;
        ss->at_cap = cap;
    }
    if (ss->pool_used + ss->set_count > ss->pool_cap) {
        size_t cap = ss->pool_cap ? ss->pool_cap * 2 : 1024;
        while (cap < ss->pool_used + ss->set_count) cap *= 2;
        if (cap * sizeof *ss->pool > GRAMMAR_MAX_TABLE_BYTES)
            return SHU_FAIL(ss->dfa->err, SHU_E_RANGE,
                            "the grammar is too ambiguous to compile: simplify its repetitions");
        uint32_t *pool = mem_realloc(ss->pool, cap * sizeof *pool);
        if (!pool) return fail_memory(ss->dfa);
        ss->pool = pool;
        ss->pool_cap = cap;
    }
    if ((size_t)count * 2 < ss->hash_cap) return 0;
    size_t cap = ss->hash_cap ? ss->hash_cap * 2 : 128;
    uint32_t *hash = mem_calloc(cap, sizeof *hash);
    if (!hash) return fail_memory(ss->dfa);
    for (uint32_t i = 0; i < count; i++) {
        size_t slot = hash_set(ss->pool + ss->at[i], subset_size(ss, i)) & (cap - 1);
        while (hash[slot]) slot = (slot + 1) & (cap - 1);
        hash[slot] = i + 1;
    }
    mem_free(ss->hash);
    ss->hash = hash;
    ss->hash_cap = cap;
    return 0;
}

/* The DFA state of ss->set, made if it is new. The empty set is the dead state. */
static int intern_set(struct subsets *ss, uint32_t *out) {
    uint32_t count = ss->dfa->states - ss->base;
    *out = STATE_DEAD;
    if (ss->set_count == 0) return 0;
    sort_set(ss->set, ss->set_count);
    int status = grow_subsets(ss, count);
    if (status) return status;
    size_t slot = hash_set(ss->set, ss->set_count) & (ss->hash_cap - 1);
    for (; ss->hash[slot]; slot = (slot + 1) & (ss->hash_cap - 1)) {
        uint32_t subset = ss->hash[slot] - 1;
        if (subset_size(ss, subset) != ss->set_count ||
            memcmp(ss->pool + ss->at[subset], ss->set, ss->set_count * sizeof *ss->set) != 0)
            continue;
        *out = ss->base + subset;
        return 0;
    }
    status = dfa_state(ss->dfa, out);
    if (status) return status;
    memcpy(ss->pool + ss->pool_used, ss->set, ss->set_count * sizeof *ss->set);
    ss->at[count] = ss->pool_used;
    ss->pool_used += ss->set_count;
    ss->at[count + 1] = ss->pool_used;
    ss->hash[slot] = count + 1;
    return 0;
}

static void begin_set(struct subsets *ss) {
    ss->epoch++;
    ss->set_count = 0;
}

static int byte_edges(struct subsets *ss, uint32_t subset, const uint8_t *representative) {
    int status = 0;
    for (uint32_t class = 0; !status && class < ss->dfa->classes; class ++) {
        uint32_t target;
        begin_set(ss);
        for (size_t i = ss->at[subset]; i < ss->at[subset + 1]; i++)
            for (uint32_t e = ss->nfa->head[ss->pool[i]]; e; e = ss->nfa->edges[e - 1].next) {
                const struct nfa_edge *edge = &ss->nfa->edges[e - 1];
                if (edge->kind == NFA_BYTE && edge->low <= representative[class] && representative[class] <= edge->high)
                    add_closure(ss, edge->to);
            }
        status = intern_set(ss, &target);
        if (!status) ss->dfa->next[(size_t)(ss->base + subset) * ss->dfa->classes + class] = target;
    }
    return status;
}

/* One call edge for each rule that the subset calls, back to everything that may follow it. */
static int call_edges(struct subsets *ss, uint32_t subset) {
    uint32_t last = 0; /* rules in ascending order; last + 1 is the next one looked for */
    bool more = true;
    int status = 0;
    while (!status && more) {
        uint32_t rule = UINT32_MAX, target;
        for (size_t i = ss->at[subset]; i < ss->at[subset + 1]; i++)
            for (uint32_t e = ss->nfa->head[ss->pool[i]]; e; e = ss->nfa->edges[e - 1].next) {
                const struct nfa_edge *edge = &ss->nfa->edges[e - 1];
                if (edge->kind == NFA_CALL && edge->rule + 1 > last && edge->rule < rule) rule = edge->rule;
            }
        more = rule != UINT32_MAX;
        if (!more) break;
        begin_set(ss);
        for (size_t i = ss->at[subset]; i < ss->at[subset + 1]; i++)
            for (uint32_t e = ss->nfa->head[ss->pool[i]]; e; e = ss->nfa->edges[e - 1].next) {
                const struct nfa_edge *edge = &ss->nfa->edges[e - 1];
                if (edge->kind == NFA_CALL && edge->rule == rule) add_closure(ss, edge->to);
            }
        status = intern_set(ss, &target);
        if (!status) status = push_call(ss->dfa, rule, target);
        last = rule + 1;
    }
    return status;
}

static bool has_final(const struct subsets *ss, uint32_t subset) {
    for (size_t i = ss->at[subset]; i < ss->at[subset + 1]; i++)
        if (ss->pool[i] == ss->final) return true;
    return false;
}

int dfa_determinise(struct dfa *dfa, const struct nfa *nfa, const uint8_t class_of[256], uint32_t start, uint32_t final,
                    uint32_t *out_start) {
    struct subsets ss = {.dfa = dfa, .nfa = nfa, .final = final, .base = dfa->states};
    uint8_t representative[256];
    for (int byte = 255; byte >= 0; byte--) representative[class_of[byte]] = (uint8_t)byte;
    ss.mark = mem_calloc(nfa->state_count, sizeof *ss.mark);
    ss.stack = mem_alloc(((size_t)nfa->state_count + 1) * sizeof *ss.stack);
    ss.set = mem_alloc(((size_t)nfa->state_count + 1) * sizeof *ss.set);
    int status = ss.mark && ss.stack && ss.set ? 0 : fail_memory(dfa);
    if (!status) {
        begin_set(&ss);
        add_closure(&ss, start);
        status = intern_set(&ss, out_start);
    }
    for (uint32_t subset = 0; !status && ss.base + subset < dfa->states; subset++) {
        if (has_final(&ss, subset)) dfa->flags[ss.base + subset] |= STATE_ACCEPT;
        status = byte_edges(&ss, subset, representative);
        dfa->call_at[ss.base + subset] = dfa->call_count;
        if (!status) status = call_edges(&ss, subset);
        dfa->call_at[ss.base + subset + 1] = dfa->call_count;
    }
    subsets_free(&ss);
    return status;
}

/* ------------------------------------------------------------- intersection */

struct product {
    const struct dfa *a, *b;
    uint32_t *pairs; /* [count][2] */
    uint32_t count, cap;
    uint32_t *hash;
    size_t hash_cap;
    struct shu_error *err;
};

static uint64_t hash_pair(uint32_t a, uint32_t b) {
    uint64_t hash = ((uint64_t)a << 32 | b) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 31;
}

static int product_grow(struct product *p) {
    uint32_t cap = p->cap ? p->cap * 2 : 256;
    if (cap > 2 * GRAMMAR_MAX_STATES)
        return SHU_FAIL(p->err, SHU_E_RANGE, "pattern, format and length together are too large: more than %d states",
                        GRAMMAR_MAX_STATES);
    uint32_t *pairs = mem_realloc(p->pairs, (size_t)cap * 2 * sizeof *pairs);
    if (pairs) p->pairs = pairs;
    uint32_t *hash = mem_calloc((size_t)cap * 2, sizeof *hash);
    if (!pairs || !hash) {
        mem_free(hash);
        return SHU_FAIL(p->err, SHU_E_NOMEM, "no memory to compile the grammar");
    }
    for (uint32_t i = 0; i < p->count; i++) {
        size_t slot = hash_pair(pairs[2 * i], pairs[2 * i + 1]) & (cap * 2 - 1);
        while (hash[slot]) slot = (slot + 1) & (cap * 2 - 1);
        hash[slot] = i + 1;
    }
    mem_free(p->hash);
    p->hash = hash;
    p->hash_cap = (size_t)cap * 2;
    p->cap = cap;
    return 0;
}

static int product_state(struct product *p, uint32_t a, uint32_t b, uint32_t *out) {
    if (p->count == p->cap) {
        int status = product_grow(p);
        if (status) return status;
    }
    size_t slot = hash_pair(a, b) & (p->hash_cap - 1);
    for (; p->hash[slot]; slot = (slot + 1) & (p->hash_cap - 1)) {
        *out = p->hash[slot] - 1;
        if (p->pairs[2 * *out] == a && p->pairs[2 * *out + 1] == b) return 0;
    }
    *out = p->count++;
    p->pairs[2 * *out] = a;
    p->pairs[2 * *out + 1] = b;
    p->hash[slot] = *out + 1;
    return 0;
}

/* Replaces a by a ∩ b; starts are states 1. */
static int intersect_into(struct dfa *a, const struct dfa *b) {
    struct product p = {.a = a, .b = b, .err = a->err};
    struct dfa out;
    uint32_t state;
    int status = dfa_init(&out, a->classes, a->err);
    if (!status) status = product_state(&p, 1, 1, &state);
    for (uint32_t i = 0; !status && i < p.count; i++) {
        uint32_t x = p.pairs[2 * i], y = p.pairs[2 * i + 1];
        status = dfa_state(&out, &state);
        if (!status && (a->flags[x] & b->flags[y] & STATE_ACCEPT)) out.flags[state] = STATE_ACCEPT;
        for (uint32_t class = 0; !status && class < a->classes; class ++) {
            uint32_t tx = a->next[(size_t)x * a->classes + class], ty = b->next[(size_t)y * b->classes + class], target;
            if (tx == STATE_DEAD || ty == STATE_DEAD) continue;
            status = product_state(&p, tx, ty, &target);
            if (!status) out.next[(size_t)state * out.classes + class] = target + 1;
        }
    }
    mem_free(p.pairs);
    mem_free(p.hash);
    if (status) {
        dfa_free(&out);
        return status;
    }
    dfa_free(a);
    *a = out;
    return 0;
}

/* Marks the states from which an accepting one is reached. */
static bool *live_states(const struct dfa *dfa) {
    bool *live = mem_calloc(dfa->states, sizeof *live);
    bool changed = live != NULL;
    while (changed) {
        changed = false;
        for (uint32_t s = dfa->states; s-- > 1;) {
            bool now = live[s] || (dfa->flags[s] & STATE_ACCEPT);
            for (uint32_t class = 0; !now && class < dfa->classes; class ++)
                now = live[dfa->next[(size_t)s * dfa->classes + class]];
            changed |= now != live[s];
            live[s] = now;
        }
    }
    return live;
}

static int push_edge(struct builder *b, struct expr *expr, struct dfa_edge **edges, size_t *cap, struct dfa_edge edge) {
    if (expr->count == *cap) {
        *cap = *cap ? *cap * 2 : 64;
        struct dfa_edge *grown = arena_alloc(&b->arena, *cap * sizeof *grown);
        if (!grown) return builder_no_memory(b);
        if (expr->count) memcpy(grown, *edges, expr->count * sizeof *grown);
        *edges = grown;
    }
    (*edges)[expr->count++] = edge;
    return 0;
}

/* Live part of a DFA (start 1) as an expression. */
static int expr_from_dfa(struct builder *b, const struct dfa *dfa, const uint8_t class_of[256],
                         const struct expr **out) {
    bool *live = live_states(dfa);
    if (!live) return builder_no_memory(b);
    struct expr *expr = expr_new(b, live[1] ? EXPR_DFA : EXPR_NEVER);
    bool *accept = arena_alloc(&b->arena, dfa->states * sizeof *accept);
    struct dfa_edge *edges = NULL;
    size_t cap = 0;
    int status = expr && accept ? 0 : builder_no_memory(b);
    for (uint32_t s = 1; !status && live[1] && s < dfa->states; s++) {
        accept[s - 1] = dfa->flags[s] & STATE_ACCEPT;
        for (int low = 0, high; !status && live[s] && low < 256; low = high) {
            uint32_t to = dfa->next[(size_t)s * dfa->classes + class_of[low]];
            for (high = low + 1; high < 256 && dfa->next[(size_t)s * dfa->classes + class_of[high]] == to;) high++;
            if (live[to])
                status = push_edge(b, expr, &edges, &cap,
                                   (struct dfa_edge){s - 1, to - 1, (uint8_t)low, (uint8_t)(high - 1)});
        }
    }
    if (!status) {
        expr->edges = edges;
        expr->accept = accept;
        expr->states = dfa->states - 1;
        *out = expr;
    }
    mem_free(live);
    return status;
}

int expr_intersect(struct builder *b, const struct expr *const *items, size_t count, const struct expr **out) {
    struct nfa nfa = {.rules = b, .err = b->err};
    struct dfa all = {0}, one = {0};
    uint8_t class_of[256];
    uint32_t ends[2], start, classes, first = 0;
    int status = 0;
    for (size_t i = 0; !status && i < count; i++) { /* ends are made in pairs: 0,1 … but bodies add more between */
        status = nfa_state(&nfa, &ends[0]);
        if (!status) status = nfa_state(&nfa, &ends[1]);
    }
    for (size_t i = 0; !status && i < count; i++)
        status = nfa_emit(&nfa, items[i], (uint32_t)(2 * i), (uint32_t)(2 * i + 1));
    classes = nfa_classes(&nfa, class_of);
    for (size_t i = 0; !status && i < count; i++) {
        struct dfa *into = i ? &one : &all;
        status = dfa_init(into, classes, b->err);
        if (!status) status = dfa_determinise(into, &nfa, class_of, (uint32_t)(2 * i), (uint32_t)(2 * i + 1), &start);
        if (!status && start == STATE_DEAD)
            status = dfa_state(into, &first); /* matches nothing: a start without edges */
        if (!status && i) status = intersect_into(&all, &one);
        dfa_free(&one);
    }
    if (!status) status = expr_from_dfa(b, &all, class_of, out);
    dfa_free(&all);
    nfa_free(&nfa);
    return status;
}
