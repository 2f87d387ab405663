/* Grammars: expressions and rules under construction. */
#include "infer/grammar.h"

#include <stdlib.h>
#include <string.h>

void builder_init(struct builder *b, struct shu_error *err) {
    *b = (struct builder){.err = err};
    arena_init(&b->arena, GRAMMAR_MAX_ARENA_BYTES);
}

void builder_free(struct builder *b) {
    mem_free(b->rules);
    arena_free(&b->arena);
    *b = (struct builder){0};
}

int builder_no_memory(struct builder *b) {
    return SHU_FAIL(b->err, SHU_E_NOMEM, "the grammar needs more than %zu MiB to compile: make it smaller",
                    b->arena.max_bytes >> 20);
}

int builder_rule(struct builder *b, const char *name, int *out) {
    if (b->count == GRAMMAR_MAX_RULES)
        return SHU_FAIL(b->err, SHU_E_RANGE, "the grammar has more than %d rules", GRAMMAR_MAX_RULES);
    if (b->count == b->cap) {
        size_t cap = b->cap ? b->cap * 2 : 16;
        struct rule *rules = mem_realloc(b->rules, cap * sizeof *rules);
        if (!rules) return builder_no_memory(b);
        b->rules = rules;
        b->cap = cap;
    }
    const char *copy = arena_strndup(&b->arena, name, strlen(name));
    if (!copy) return builder_no_memory(b);
    *out = (int)b->count;
    b->rules[b->count++] = (struct rule){.name = copy};
    return 0;
}

struct expr *expr_new(struct builder *b, enum expr_kind kind) {
    struct expr *expr = arena_alloc(&b->arena, sizeof *expr);
    if (!expr) {
        builder_no_memory(b);
        return NULL;
    }
    expr->kind = kind;
    return expr;
}

const struct expr *expr_simple(struct builder *b, enum expr_kind kind) {
    return expr_new(b, kind);
}

const struct expr *expr_bytes(struct builder *b, const char *data, size_t bytes) {
    struct expr *expr = expr_new(b, EXPR_BYTES);
    if (!expr) return NULL;
    expr->data = arena_strndup(&b->arena, data, bytes);
    expr->bytes = bytes;
    if (!expr->data) builder_no_memory(b);
    return expr->data ? expr : NULL;
}

const struct expr *expr_text(struct builder *b, const char *text) {
    return expr_bytes(b, text, strlen(text));
}

static int by_low(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* Sorts and joins [0, count), then complements if asked; returns the new count (at most count + 1). */
static size_t normalise(struct range *ranges, size_t count, bool negate) {
    size_t n = 0;
    if (count) qsort(ranges, count, sizeof *ranges, by_low);
    for (size_t i = 0; i < count; i++) {
        if (n && ranges[i].low <= ranges[n - 1].high + 1) {
            if (ranges[i].high > ranges[n - 1].high) ranges[n - 1].high = ranges[i].high;
        } else {
            ranges[n++] = ranges[i];
        }
    }
    if (!negate) return n;
    uint32_t low = 0;
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        struct range taken = ranges[i];
        if (taken.low > low) ranges[out++] = (struct range){low, taken.low - 1};
        low = taken.high + 1;
    }
    if (low <= 0x10FFFF) ranges[out++] = (struct range){low, 0x10FFFF};
    return out;
}

const struct expr *expr_class(struct builder *b, const struct range *ranges, size_t count, bool negate, bool json) {
    struct expr *expr = expr_new(b, EXPR_CLASS);
    struct range *copy = arena_alloc(&b->arena, (count + 1) * sizeof *copy);
    if (!expr || !copy) {
        builder_no_memory(b);
        return NULL;
    }
    if (count) memcpy(copy, ranges, count * sizeof *copy);
    expr->count = normalise(copy, count, negate);
    expr->ranges = copy;
    expr->json = json;
    return expr;
}

int expr_push(struct builder *b, struct expr_items *list, const struct expr *item) {
    if (!item) return SHU_E_NOMEM;
    if (list->count == list->cap) {
        size_t cap = list->cap ? list->cap * 2 : 4;
        const struct expr **items = arena_alloc(&b->arena, cap * sizeof *items);
        if (!items) return builder_no_memory(b);
        if (list->count) memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->cap = cap;
    }
    list->items[list->count++] = item;
    return 0;
}

const struct expr *expr_list(struct builder *b, enum expr_kind kind, const struct expr *const *items, size_t count) {
    if (count == 1) return items[0];
    if (count == 0) return expr_simple(b, kind == EXPR_SEQ ? EXPR_EMPTY : EXPR_NEVER);
    struct expr_items copy = {0};
    struct expr *expr = expr_new(b, kind);
    for (size_t i = 0; i < count; i++)
        if (expr_push(b, &copy, items[i])) return NULL;
    if (!expr) return NULL;
    expr->items = copy.items;
    expr->count = count;
    return expr;
}

const struct expr *expr_pair(struct builder *b, enum expr_kind kind, const struct expr *first,
                             const struct expr *second) {
    const struct expr *items[2] = {first, second};
    return first && second ? expr_list(b, kind, items, 2) : NULL;
}

const struct expr *expr_repeat(struct builder *b, const struct expr *body, int64_t min, int64_t max) {
    if (!body) return NULL;
    struct expr *expr = expr_new(b, EXPR_REPEAT);
    if (!expr) return NULL;
    expr->body = body;
    expr->min = min;
    expr->max = max;
    return expr;
}

const struct expr *expr_rule(struct builder *b, int rule) {
    struct expr *expr = expr_new(b, EXPR_RULE);
    if (expr) expr->rule = rule;
    return expr;
}
