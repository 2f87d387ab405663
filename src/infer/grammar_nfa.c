/* Grammars: expressions to nondeterministic automata. */
#include "infer/grammar_nfa.h"

#include <string.h>

static int fail_size(struct nfa *nfa) {
    return SHU_FAIL(nfa->err, SHU_E_RANGE,
                    "the grammar is too large (more than %d states): lower its repetitions, maxLength or maxItems",
                    GRAMMAR_MAX_NFA_STATES);
}

static int fail_memory(struct nfa *nfa) {
    return SHU_FAIL(nfa->err, SHU_E_NOMEM, "no memory to compile the grammar");
}

int nfa_state(struct nfa *nfa, uint32_t *out) {
    if (nfa->state_count == GRAMMAR_MAX_NFA_STATES) return fail_size(nfa);
    if (nfa->state_count == nfa->state_cap) {
        uint32_t cap = nfa->state_cap ? nfa->state_cap * 2 : 256;
        uint32_t *head = mem_realloc(nfa->head, cap * sizeof *head);
        if (!head) return fail_memory(nfa);
        nfa->head = head;
        nfa->state_cap = cap;
    }
    *out = nfa->state_count++;
    nfa->head[*out] = 0;
    return 0;
}

void nfa_free(struct nfa *nfa) {
    mem_free(nfa->edges);
    mem_free(nfa->head);
    nfa->edges = NULL;
    nfa->head = NULL;
}

static int add_edge(struct nfa *nfa, uint32_t from, struct nfa_edge edge) {
    if (nfa->edge_count == GRAMMAR_MAX_NFA_EDGES) return fail_size(nfa);
    if (nfa->edge_count == nfa->edge_cap) {
        uint32_t cap = nfa->edge_cap ? nfa->edge_cap * 2 : 512;
        struct nfa_edge *edges = mem_realloc(nfa->edges, cap * sizeof *edges);
        if (!edges) return fail_memory(nfa);
        nfa->edges = edges;
        nfa->edge_cap = cap;
    }
    edge.next = nfa->head[from];
    nfa->edges[nfa->edge_count++] = edge;
    nfa->head[from] = nfa->edge_count;
    return 0;
}

static int add_empty(struct nfa *nfa, uint32_t from, uint32_t to) {
    return add_edge(nfa, from, (struct nfa_edge){.to = to, .kind = NFA_EMPTY});
}

static int add_bytes(struct nfa *nfa, uint32_t from, uint32_t to, uint8_t low, uint8_t high) {
    return add_edge(nfa, from, (struct nfa_edge){.to = to, .kind = NFA_BYTE, .low = low, .high = high});
}

static int emit_literal(struct nfa *nfa, const char *data, size_t bytes, uint32_t from, uint32_t to) {
    if (bytes == 0) return add_empty(nfa, from, to);
    int status = 0;
    for (size_t i = 0; !status && i < bytes; i++) {
        uint32_t next = to;
        if (i + 1 < bytes) status = nfa_state(nfa, &next);
        if (!status) status = add_bytes(nfa, from, next, (uint8_t)data[i], (uint8_t)data[i]);
        from = next;
    }
    return status;
}

/* -------------------------------------------------------------- characters */

/* Byte ranges, position by position, of code points low…high whose encodings have the same length. */
static int emit_utf8_range(struct nfa *nfa, uint32_t low, uint32_t high, uint32_t from, uint32_t to) {
    char first[4], last[4];
    int bytes = utf8_encode(low, first), status = 0;
    (void)utf8_encode(high, last);
    for (int i = 0; !status && i < bytes; i++) {
        uint32_t next = to;
        if (i + 1 < bytes) status = nfa_state(nfa, &next);
        if (!status) status = add_bytes(nfa, from, next, (uint8_t)first[i], (uint8_t)last[i]);
        from = next;
    }
    return status;
}

/* Cuts a range until it is a product of byte ranges: at encoding lengths, then at multiples of 64^k. */
static int emit_range(struct nfa *nfa, uint32_t low, uint32_t high, uint32_t from, uint32_t to) {
    static const uint32_t ends[] = {0x7F, 0x7FF, 0xD7FF, 0xDFFF, 0xFFFF, 0x10FFFF};
    int status = 0;
    while (!status && low <= high) {
        uint32_t end = high;
        for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
            if (low <= ends[i] && ends[i] < end) end = ends[i];
        int tails = low < 0x80 ? 0 : low < 0x800 ? 1 : low < 0x10000 ? 2 : 3;
        for (int k = 1; k <= tails; k++) {
            uint32_t mask = (1u << (6 * k)) - 1;
            if ((low & ~mask) == (end & ~mask)) continue; /* the longer prefix is the same */
            if (low & mask)
                end = low | mask;
            else if ((end & mask) != mask)
                end = (end & ~mask) - 1;
        }
        bool surrogate = low >= 0xD800 && low <= 0xDFFF;
        if (!surrogate) status = emit_utf8_range(nfa, low, end, from, to);
        low = end + 1;
    }
    return status;
}

/* Characters that JSON strings must escape: the one way in which we write each. */
static int emit_escaped(struct nfa *nfa, uint32_t scalar, uint32_t from, uint32_t to) {
    static const char known[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
    char text[8];
    const char *at = scalar ? strchr(known, (int)scalar) : NULL;
    if (at)
        snprintf(text, sizeof text, "\\%c", letters[at - known]);
    else
        snprintf(text, sizeof text, "\\u%04x", scalar);
    return emit_literal(nfa, text, strlen(text), from, to);
}

/* All of U+0000…U+001F at once, in a handful of states: most classes contain them all. */
static int emit_controls(struct nfa *nfa, uint32_t from, uint32_t to) {
    static const char short_forms[] = "bfnrt";
    static const uint8_t low_rows[][2] = {{'0', '7'}, {'b', 'b'}, {'e', 'f'}},
                         high_rows[][2] = {{'0', '9'}, {'a', 'f'}};
    uint32_t escape, row, low, high;
    int status = nfa_state(nfa, &escape);
    if (!status) status = nfa_state(nfa, &row);
    if (!status) status = nfa_state(nfa, &low);
    if (!status) status = nfa_state(nfa, &high);
    if (!status) status = add_bytes(nfa, from, escape, '\\', '\\');
    for (const char *c = short_forms; !status && *c; c++) status = add_bytes(nfa, escape, to, (uint8_t)*c, (uint8_t)*c);
    if (!status) status = emit_literal(nfa, "u00", 3, escape, row);
    if (!status) status = add_bytes(nfa, row, low, '0', '0');
    if (!status) status = add_bytes(nfa, row, high, '1', '1');
    for (size_t i = 0; !status && i < 3; i++) status = add_bytes(nfa, low, to, low_rows[i][0], low_rows[i][1]);
    for (size_t i = 0; !status && i < 2; i++) status = add_bytes(nfa, high, to, high_rows[i][0], high_rows[i][1]);
    return status;
}

static int emit_class(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    int status = 0;
    for (size_t i = 0; !status && i < expr->count; i++) {
        uint32_t low = expr->ranges[i].low, high = expr->ranges[i].high;
        if (expr->json && low == 0 && high >= 0x1F) {
            status = emit_controls(nfa, from, to);
            low = 0x20;
        }
        while (!status && low <= high) {
            bool escape = expr->json && (low < 0x20 || low == '"' || low == '\\');
            uint32_t end = escape ? low : high;
            if (!escape && expr->json && low < '"' && end >= '"')
                end = '"' - 1;
            else if (!escape && expr->json && low < '\\' && end >= '\\')
                end = '\\' - 1;
            status = escape ? emit_escaped(nfa, low, from, to) : emit_range(nfa, low, end, from, to);
            low = end + 1;
        }
    }
    return status;
}

/* -------------------------------------------------------------- structures */

static int emit_seq(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    int status = 0;
    for (size_t i = 0; !status && i < expr->count; i++) {
        uint32_t next = to;
        if (i + 1 < expr->count) status = nfa_state(nfa, &next);
        if (!status) status = nfa_emit(nfa, expr->items[i], from, next);
        from = next;
    }
    return status;
}

static int emit_repeat(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    uint32_t at = from, next;
    int status = 0;
    int64_t turns = expr->max < 0 ? expr->min : expr->max;
    for (int64_t i = 0; !status && i < turns; i++) {
        if (i >= expr->min) status = add_empty(nfa, at, to);
        if (!status) status = nfa_state(nfa, &next);
        if (!status) status = nfa_emit(nfa, expr->body, at, next);
        at = next;
    }
    if (!status && expr->max < 0) { /* a state of its own: `at` may have other ways out */
        status = nfa_state(nfa, &next);
        if (!status) status = add_empty(nfa, at, next);
        at = next;
        if (!status) status = nfa_state(nfa, &next);
        if (!status) status = nfa_emit(nfa, expr->body, at, next);
        if (!status) status = add_empty(nfa, next, at);
    }
    return status ? status : add_empty(nfa, at, to);
}

/* `mark`, at most one space, then on to `to`. */
static int emit_mark(struct nfa *nfa, char mark, uint32_t from, uint32_t to) {
    uint32_t behind;
    int status = nfa_state(nfa, &behind);
    if (!status) status = add_bytes(nfa, from, behind, (uint8_t)mark, (uint8_t)mark);
    if (!status) status = add_bytes(nfa, behind, to, ' ', ' ');
    return status ? status : add_empty(nfa, behind, to);
}

static int emit_member(struct nfa *nfa, const struct expr *key, const struct expr *value, uint32_t from, uint32_t to) {
    uint32_t colon, start;
    int status = nfa_state(nfa, &colon);
    if (!status) status = nfa_state(nfa, &start);
    if (!status) status = nfa_emit(nfa, key, from, colon);
    if (!status) status = emit_mark(nfa, ':', colon, start);
    return status ? status : nfa_emit(nfa, value, start, to);
}

/* fresh: nothing written yet behind "{"; later: a member stands before. Both meet in front of each key. */
static int emit_object(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    uint32_t fresh, later, key, fresh_next, later_next;
    int status = nfa_state(nfa, &fresh);
    if (!status) status = nfa_state(nfa, &later);
    if (!status) status = add_bytes(nfa, from, fresh, '{', '{');
    for (size_t i = 0; !status && i < expr->count; i++) {
        const struct member *member = &expr->members[i];
        status = nfa_state(nfa, &key);
        if (!status) status = nfa_state(nfa, &fresh_next);
        if (!status) status = nfa_state(nfa, &later_next);
        if (!status) status = add_empty(nfa, fresh, key);
        if (!status) status = emit_mark(nfa, ',', later, key);
        if (!status) status = emit_member(nfa, member->key, member->value, key, later_next);
        if (!status && !member->required) status = add_empty(nfa, fresh, fresh_next);
        if (!status && !member->required) status = add_empty(nfa, later, later_next);
        fresh = fresh_next;
        later = later_next;
    }
    if (!status && expr->body) {
        status = nfa_state(nfa, &key);
        if (!status) status = add_empty(nfa, fresh, key);
        if (!status) status = emit_mark(nfa, ',', later, key);
        if (!status) status = emit_member(nfa, expr->key, expr->body, key, later);
    }
    if (!status) status = add_bytes(nfa, fresh, to, '}', '}');
    return status ? status : add_bytes(nfa, later, to, '}', '}');
}

/* One state per number of items so far, until further ones change nothing. */
static int emit_array(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    uint32_t at, start, next;
    int status = nfa_state(nfa, &at);
    if (!status) status = add_bytes(nfa, from, at, '[', '[');
    int64_t limit = expr->body ? expr->max : (int64_t)expr->count;
    if (expr->max >= 0 && (limit < 0 || limit > expr->max)) limit = expr->max;
    int64_t settled = expr->min > (int64_t)expr->count ? expr->min : (int64_t)expr->count;
    if (settled < 1) settled = 1;
    for (int64_t i = 0; !status; i++) {
        if (i >= expr->min) status = add_bytes(nfa, at, to, ']', ']');
        if (status || i == limit) break;
        bool loop = limit < 0 && i == settled;
        start = at;
        if (i > 0) status = nfa_state(nfa, &start);
        if (!status && i > 0) status = emit_mark(nfa, ',', at, start);
        next = at;
        if (!status && !loop) status = nfa_state(nfa, &next);
        const struct expr *item = i < (int64_t)expr->count ? expr->items[i] : expr->body;
        if (!status) status = nfa_emit(nfa, item, start, next);
        if (loop) break;
        at = next;
    }
    return status;
}

static int emit_dfa(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    uint32_t base = nfa->state_count, unused;
    int status = 0;
    for (uint32_t i = 0; !status && i < expr->states; i++) status = nfa_state(nfa, &unused);
    for (size_t i = 0; !status && i < expr->count; i++) {
        const struct dfa_edge *edge = &expr->edges[i];
        status = add_bytes(nfa, base + edge->from, base + edge->to, edge->low, edge->high);
    }
    for (uint32_t i = 0; !status && i < expr->states; i++)
        if (expr->accept[i]) status = add_empty(nfa, base + i, to);
    return status ? status : add_empty(nfa, from, base);
}

static int emit_rule(struct nfa *nfa, int rule, uint32_t from, uint32_t to) {
    if (nfa->inlined && nfa->inlined[rule]) return nfa_emit(nfa, nfa->rules->rules[rule].body, from, to);
    if (nfa->needed) nfa->needed[rule] = true;
    return add_edge(nfa, from, (struct nfa_edge){.to = to, .kind = NFA_CALL, .rule = (uint32_t)rule});
}

int nfa_emit(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to) {
    int status = 0;
    switch (expr->kind) {
    case EXPR_EMPTY:
        return add_empty(nfa, from, to);
    case EXPR_NEVER:
        return 0;
    case EXPR_BYTES:
        return emit_literal(nfa, expr->data, expr->bytes, from, to);
    case EXPR_CLASS:
        return emit_class(nfa, expr, from, to);
    case EXPR_SEQ:
        return emit_seq(nfa, expr, from, to);
    case EXPR_ALT:
        for (size_t i = 0; !status && i < expr->count; i++) status = nfa_emit(nfa, expr->items[i], from, to);
        return status;
    case EXPR_REPEAT:
        return emit_repeat(nfa, expr, from, to);
    case EXPR_RULE:
        return emit_rule(nfa, expr->rule, from, to);
    case EXPR_OBJECT:
        return emit_object(nfa, expr, from, to);
    case EXPR_ARRAY:
        return emit_array(nfa, expr, from, to);
    default:
        return emit_dfa(nfa, expr, from, to);
    }
}

/* ----------------------------------------------------------------- classes */

uint32_t nfa_classes(const struct nfa *nfa, uint8_t class_of[256]) {
    bool starts[257] = {[0] = true};
    for (uint32_t i = 0; i < nfa->edge_count; i++) {
        if (nfa->edges[i].kind != NFA_BYTE) continue;
        starts[nfa->edges[i].low] = true;
        starts[nfa->edges[i].high + 1] = true;
    }
    uint32_t classes = 0;
    for (int byte = 0; byte < 256; byte++) {
        classes += starts[byte];
        class_of[byte] = (uint8_t)(classes - 1);
    }
    return classes;
}
