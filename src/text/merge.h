/* The merge loop of BPE and of SentencePiece-BPE: join the neighbours with the
 * lowest priority number, leftmost first among equals, until none can be joined.
 *
 * Included by bpe.c and spm.c, which define MERGE_LOOKUP: what two neighbours
 * become. Short inputs (nearly all: a word, a few Chinese characters) live in
 * small arrays that are scanned for the minimum; long ones in a linked list
 * with a heap, n log n, so that a megabyte of one letter is no attack. */
#ifndef MERGE_H
#define MERGE_H

#include "text/tokenizer.h"

#define MERGE_NEVER UINT32_MAX
#define MERGE_SHORT 48

struct merged {
    uint32_t priority; /* MERGE_NEVER = these two do not join */
    int32_t id;
};
struct neighbours {
    const char *text;
    uint32_t at, middle, end; /* left is [at, middle), right is [middle, end) */
    int32_t left, right;      /* ids; -1 = not a token (yet) */
};
static inline struct merged MERGE_LOOKUP(const struct tokenizer *tokenizer, const struct neighbours *pair);

/* ids[count] and at[count + 1] are rewritten in place; returns the new count. */
static inline uint32_t merge_short(const struct tokenizer *tokenizer, const char *text, int32_t *ids, uint32_t *at,
                                   uint32_t count) {
    struct merged join[MERGE_SHORT];
    for (uint32_t i = 0; i + 1 < count; i++)
        join[i] = MERGE_LOOKUP(tokenizer, &(struct neighbours){text, at[i], at[i + 1], at[i + 2], ids[i], ids[i + 1]});
    while (count > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < count; i++)
            if (join[i].priority < join[best].priority) best = i;
        if (join[best].priority == MERGE_NEVER) break;
        ids[best] = join[best].id;
        count--;
        memmove(&ids[best + 1], &ids[best + 2], (count - best - 1) * sizeof *ids);
        memmove(&at[best + 1], &at[best + 2], (count - best) * sizeof *at);
        memmove(&join[best], &join[best + 1], (count - best - 1) * sizeof *join);
        if (best > 0)
            join[best - 1] = MERGE_LOOKUP(
                tokenizer, &(struct neighbours){text, at[best - 1], at[best], at[best + 1], ids[best - 1], ids[best]});
        if (best + 1 < count)
            join[best] = MERGE_LOOKUP(
                tokenizer, &(struct neighbours){text, at[best], at[best + 1], at[best + 2], ids[best], ids[best + 1]});
    }
    return count;
}

/* --------------------------------------------------------------- long inputs */

static void heap_sift_down(struct merge_item *heap, size_t count, size_t i) {
    struct merge_item moved = heap[i];
    for (size_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && heap[child + 1].key < heap[child].key) child++;
        if (heap[child].key >= moved.key) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static void heap_sift_up(struct merge_item *heap, size_t i) {
    struct merge_item moved = heap[i];
    for (; i > 0 && heap[(i - 1) / 2].key > moved.key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = moved;
}

/* Appends what symbol `left` and its successor become, if anything, without ordering the heap. */
static bool heap_append(const struct tokenizer *tokenizer, const char *text, const struct merge_symbol *symbols,
                        uint32_t left, struct merge_item *heap, size_t *count) {
    uint32_t right = symbols[left].next;
    if (right == UINT32_MAX) return false;
    struct merged join =
        MERGE_LOOKUP(tokenizer, &(struct neighbours){text, symbols[left].at, symbols[right].at, symbols[right].end,
                                                     symbols[left].id, symbols[right].id});
    if (join.priority == MERGE_NEVER) return false;
    heap[(*count)++] = (struct merge_item){(uint64_t)join.priority << 32 | left, right, symbols[right].end, join.id};
    return true;
}

/* Merges work->symbols[0 … count) in place; follow `next` from symbol 0. work->heap has room for 3 * count:
 * every merge takes one item and adds at most two. */
static void merge_long(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text,
                       uint32_t count) {
    struct merge_symbol *symbols = work->symbols;
    struct merge_item *heap = work->heap;
    size_t items = 0;
    for (uint32_t i = 0; i + 1 < count; i++) heap_append(tokenizer, text, symbols, i, heap, &items);
    for (size_t i = items / 2; i-- > 0;) heap_sift_down(heap, items, i);
    while (items > 0) {
        struct merge_item top = heap[0];
        heap[0] = heap[--items];
        if (items) heap_sift_down(heap, items, 0);
        struct merge_symbol *left = &symbols[(uint32_t)top.key], *right = &symbols[top.right];
        if (left->end == left->at || left->next != top.right || right->end != top.end) continue;
        left->id = top.id;
        left->end = right->end;
        left->next = right->next;
        right->end = right->at;
        if (left->next != UINT32_MAX) symbols[left->next].prev = (uint32_t)top.key;
        if (left->prev != UINT32_MAX && heap_append(tokenizer, text, symbols, left->prev, heap, &items))
            heap_sift_up(heap, items - 1);
        if (heap_append(tokenizer, text, symbols, (uint32_t)top.key, heap, &items)) heap_sift_up(heap, items - 1);
    }
}

static int merge_reserve(struct tokenizer_work *work, size_t count) {
    void *symbols = work->symbols, *heap = work->heap;
    int status = scratch_reserve(&symbols, &work->symbol_cap, count, sizeof *work->symbols);
    if (!status) status = scratch_reserve(&heap, &work->heap_cap, 3 * count, sizeof *work->heap);
    work->symbols = symbols;
    work->heap = heap;
    return status;
}

#endif
