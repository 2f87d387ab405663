/* Texts to ids, and texts by prefix. */
#include "text/tokenizer.h"

#include <stdlib.h>

/* ---------------------------------------------------------------- text_map */

static uint64_t load64(const char *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static uint64_t hash_mix(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

static uint64_t hash_text(const char *text, size_t bytes) {
    uint64_t hash = bytes;
    for (; bytes >= 8; text += 8, bytes -= 8) hash = hash_mix(hash ^ load64(text));
    uint64_t tail = 0;
    for (size_t i = 0; i < bytes; i++) tail |= (uint64_t)(uint8_t)text[i] << (8 * i);
    return hash_mix(hash_mix(hash ^ tail) + 0x632be59bd9b4e019u);
}

int text_map_new(struct text_map *map, const struct text_list *list, struct shu_error *err) {
    size_t slots = 16;
    while (slots < 2 * (size_t)list->count) slots *= 2;
    map->list = list;
    map->mask = slots - 1;
    map->bytes = slots * sizeof *map->slots;
    map->slots = mem_alloc_large(map->bytes);
    if (!map->slots) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for an index of %d tokens", (int)list->count);
    memset(map->slots, 0xff, map->bytes);
    return SHU_OK;
}

void text_map_free(struct text_map *map) {
    if (map->slots) mem_free_large(map->slots, map->bytes);
    map->slots = NULL;
}

/* Slot of an equal text, or the free slot where it belongs. */
static struct text_slot *map_slot(const struct text_map *map, const char *text, size_t bytes, uint32_t *tag) {
    uint64_t hash = hash_text(text, bytes);
    *tag = (uint32_t)(hash >> 32);
    for (size_t i = hash & map->mask;; i = (i + 1) & map->mask) {
        struct text_slot *slot = &map->slots[i];
        if (slot->id < 0) return slot;
        if (slot->tag != *tag) continue;
        struct span there = text_at(map->list, slot->id);
        if (there.bytes == bytes && memcmp(there.text, text, bytes) == 0) return slot;
    }
}

int32_t text_map_add(struct text_map *map, int32_t id) {
    struct span text = text_at(map->list, id);
    uint32_t tag;
    struct text_slot *slot = map_slot(map, text.text, text.bytes, &tag);
    if (slot->id < 0) *slot = (struct text_slot){tag, id};
    return slot->id;
}

void text_map_prefetch(const struct text_map *map, int32_t id) {
    struct span text = text_at(map->list, id);
    __builtin_prefetch(&map->slots[hash_text(text.text, text.bytes) & map->mask], 1);
}

int32_t text_map_find(const struct text_map *map, const char *text, size_t bytes) {
    uint32_t tag;
    return map_slot(map, text, bytes, &tag)->id;
}

/* ----------------------------------------------------------------- matcher */

struct sort_item {
    struct span text;
    int32_t id;
};

static int compare_items(const void *a, const void *b) {
    const struct sort_item *x = a, *y = b;
    size_t common = x->text.bytes < y->text.bytes ? x->text.bytes : y->text.bytes;
    int order = memcmp(x->text.text, y->text.text, common);
    if (order) return order;
    return (x->text.bytes > y->text.bytes) - (x->text.bytes < y->text.bytes);
}

/* Empty texts must have been left out by the caller. */
int matcher_new(struct matcher *matcher, const struct text_list *list, const int32_t *ids, uint32_t count,
                struct shu_error *err) {
    struct sort_item *items = mem_alloc((size_t)count * sizeof *items);
    matcher->order = mem_alloc((size_t)count * sizeof *matcher->order);
    if (!items || !matcher->order) {
        mem_free(items);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a matcher of %u tokens", (unsigned)count);
    }
    for (uint32_t i = 0; i < count; i++) items[i] = (struct sort_item){text_at(list, ids[i]), ids[i]};
    qsort(items, count, sizeof *items, compare_items);
    matcher->list = list;
    matcher->count = count;
    uint32_t next = 0;
    for (uint32_t i = 0; i < count; i++) {
        matcher->order[i] = items[i].id;
        for (uint8_t first = (uint8_t)items[i].text.text[0]; next <= first; next++) matcher->bucket[next] = i;
    }
    for (; next <= 256; next++) matcher->bucket[next] = count;
    mem_free(items);
    return SHU_OK;
}

void matcher_free(struct matcher *matcher) {
    mem_free(matcher->order);
    matcher->order = NULL;
}

struct match_range matcher_begin(const struct matcher *matcher, uint8_t first) {
    return (struct match_range){matcher->bucket[first], matcher->bucket[first + 1], 1};
}

/* First text in the range whose byte at `depth` is at least `byte`; all are longer than depth. */
static uint32_t lower_bound(const struct matcher *matcher, const struct match_range *range, unsigned byte) {
    uint32_t lo = range->lo, hi = range->hi;
    while (lo < hi) {
        uint32_t middle = lo + (hi - lo) / 2;
        const uint8_t *text = (const uint8_t *)text_at(matcher->list, matcher->order[middle]).text;
        if (text[range->depth] < byte)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

void matcher_walk(const struct matcher *matcher, struct match_range *range, uint8_t byte) {
    matcher_take(matcher, range); /* a text that ends here has no byte at this depth */
    uint32_t lo = lower_bound(matcher, range, byte);
    range->hi = lower_bound(matcher, range, byte + 1u);
    range->lo = lo;
    range->depth++;
}

int32_t matcher_take(const struct matcher *matcher, struct match_range *range) {
    if (range->lo == range->hi) return -1;
    int32_t id = matcher->order[range->lo];
    if (text_at(matcher->list, id).bytes != range->depth) return -1;
    range->lo++;
    return id;
}
