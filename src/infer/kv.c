#include "infer/kv.h"

#include <string.h>

/* ------------------------------------------------------------------- set-up */

/* Page numbers, tokens and counters come from one block: they live and die together. */
static int numbers_alloc(struct kv_cache *cache) {
    size_t per_sequence, words;
    if (size_add((size_t)cache->context, (size_t)cache->table_max, &per_sequence) ||
        size_mul(per_sequence, (size_t)cache->max_sequences, &words)) {
        return SHU_E_NOMEM;
    }
    cache->numbers = mem_calloc(words, sizeof(int32_t));
    cache->sequence = mem_calloc((size_t)cache->max_sequences, sizeof *cache->sequence);
    cache->tables = mem_calloc((size_t)cache->max_sequences, sizeof *cache->tables);
    cache->free_list = mem_calloc((size_t)cache->pages, sizeof *cache->free_list);
    cache->refs = mem_calloc((size_t)cache->pages, sizeof *cache->refs);
    cache->layer_base = mem_calloc((size_t)cache->layers, sizeof *cache->layer_base);
    if (!cache->numbers || !cache->sequence || !cache->tables || !cache->free_list || !cache->refs ||
        !cache->layer_base) {
        return SHU_E_NOMEM;
    }
    int32_t *next = cache->numbers;
    for (int s = 0; s < cache->max_sequences; s++) {
        cache->sequence[s].tokens = next;
        cache->sequence[s].table = next + cache->context;
        cache->tables[s] = cache->sequence[s].table;
        next += per_sequence;
    }
    return SHU_OK;
}

static int pages_alloc(struct kv_cache *cache, int64_t pages, struct shu_error *err) {
    if (pages > INT32_MAX || size_mul((size_t)pages, cache->group_bytes, &cache->data_bytes)) {
        return SHU_FAIL(err, SHU_E_RANGE, "a KV cache of %lld pages is too large; ask for fewer positions",
                        (long long)pages);
    }
    cache->pages = (int32_t)pages;
    cache->data = mem_alloc_large(cache->data_bytes);
    if (!cache->data || numbers_alloc(cache)) {
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a KV cache of %zu MiB; lower the context or use the q8 cache",
                        cache->data_bytes >> 20);
    }
    for (int l = 0; l < cache->layers; l++) cache->layer_base[l] = cache->data + (size_t)l * cache->page_bytes;
    /* Low pages are handed out first: what is in use stays dense, and resident memory with it. */
    for (int32_t p = 0; p < cache->pages; p++) cache->free_list[p] = cache->pages - 1 - p;
    cache->free_count = cache->pages;
    return SHU_OK;
}

int kv_cache_init(struct kv_cache *cache, const struct kv_geometry *geometry, struct shu_error *err) {
    memset(cache, 0, sizeof *cache);
    cache->type = geometry->type;
    cache->layers = geometry->layers;
    cache->kv_heads = geometry->kv_heads;
    cache->head_dim = geometry->head_dim;
    cache->context = geometry->context;
    cache->max_sequences = geometry->max_sequences;
    cache->table_max = (geometry->context + KV_PAGE - 1) / KV_PAGE;
    size_t head_bytes = kv_page_head_bytes(geometry->type, geometry->head_dim);
    if (size_mul(head_bytes, (size_t)geometry->kv_heads, &cache->page_bytes) ||
        size_mul(cache->page_bytes, (size_t)geometry->layers, &cache->group_bytes) ||
        size_add(cache->group_bytes, 63, &cache->group_bytes)) {
        return SHU_FAIL(err, SHU_E_RANGE, "KV geometry of %d layers, %d heads, %d dimensions is too large",
                        geometry->layers, geometry->kv_heads, geometry->head_dim);
    }
    cache->group_bytes &= ~(size_t)63;
    int status = pages_alloc(cache, (geometry->positions + KV_PAGE - 1) / KV_PAGE, err);
    if (status) kv_cache_free(cache);
    return status;
}

void kv_cache_free(struct kv_cache *cache) {
    mem_free_large(cache->data, cache->data_bytes);
    mem_free(cache->numbers);
    mem_free(cache->sequence);
    mem_free(cache->tables);
    mem_free(cache->free_list);
    mem_free(cache->refs);
    mem_free(cache->layer_base);
    memset(cache, 0, sizeof *cache);
}

/* -------------------------------------------------------------------- pages */

static int32_t page_take(struct kv_cache *cache) {
    int32_t page = cache->free_list[--cache->free_count];
    cache->refs[page] = 1;
    return page;
}

static void page_drop(struct kv_cache *cache, int32_t page) {
    if (--cache->refs[page] == 0) cache->free_list[cache->free_count++] = page;
}

static int pages_for(int positions) {
    return (positions + KV_PAGE - 1) / KV_PAGE;
}

/* True if the next append would write into a page that others also own. */
static bool last_page_shared(const struct kv_cache *cache, const struct kv_sequence *sequence) {
    return sequence->length % KV_PAGE != 0 && cache->refs[sequence->table[sequence->length / KV_PAGE]] > 1;
}

/* ---------------------------------------------------------------- sequences */

bool kv_valid(const struct kv_cache *cache, int sequence) {
    return sequence >= 0 && sequence < cache->max_sequences && cache->sequence[sequence].used;
}

int kv_sequence_new(struct kv_cache *cache) {
    for (int s = 0; s < cache->max_sequences; s++) {
        if (!cache->sequence[s].used) {
            cache->sequence[s].used = true;
            cache->sequence[s].length = 0;
            return s;
        }
    }
    return -1;
}

void kv_sequence_free(struct kv_cache *cache, int sequence) {
    kv_truncate(cache, sequence, 0);
    cache->sequence[sequence].used = false;
}

int kv_sequence_fork(struct kv_cache *cache, int from) {
    int to = kv_sequence_new(cache);
    if (to < 0) return -1;
    const struct kv_sequence *source = &cache->sequence[from];
    struct kv_sequence *copy = &cache->sequence[to];
    copy->length = source->length;
    memcpy(copy->tokens, source->tokens, (size_t)source->length * sizeof *copy->tokens);
    for (int i = 0; i < pages_for(source->length); i++) {
        copy->table[i] = source->table[i];
        cache->refs[copy->table[i]]++;
    }
    return to;
}

void kv_truncate(struct kv_cache *cache, int sequence, int length) {
    struct kv_sequence *seq = &cache->sequence[sequence];
    /* Downwards, so that pages return to the stack in the order in which they were taken. */
    for (int i = pages_for(seq->length) - 1; i >= pages_for(length); i--) page_drop(cache, seq->table[i]);
    seq->length = length;
}

int kv_pages_needed(const struct kv_cache *cache, int sequence, int count) {
    const struct kv_sequence *seq = &cache->sequence[sequence];
    if (count <= 0) return 0;
    return pages_for(seq->length + count) - pages_for(seq->length) + (last_page_shared(cache, seq) ? 1 : 0);
}

int kv_room(const struct kv_cache *cache, int sequence) {
    const struct kv_sequence *seq = &cache->sequence[sequence];
    int64_t in_page = (KV_PAGE - seq->length % KV_PAGE) % KV_PAGE;
    int64_t fresh = cache->free_count;
    if (last_page_shared(cache, seq)) {
        if (fresh == 0) return 0;
        fresh--;
    }
    int64_t by_pages = in_page + fresh * KV_PAGE;
    int64_t by_context = cache->context - seq->length;
    return (int)(by_pages < by_context ? by_pages : by_context);
}

void kv_extend(struct kv_cache *cache, int sequence, const int32_t *tokens, int count) {
    struct kv_sequence *seq = &cache->sequence[sequence];
    if (last_page_shared(cache, seq)) {
        int32_t *slot = &seq->table[seq->length / KV_PAGE];
        int32_t copy = page_take(cache);
        memcpy(kv_group(cache, copy), kv_group(cache, *slot), cache->group_bytes);
        page_drop(cache, *slot);
        *slot = copy;
    }
    for (int i = pages_for(seq->length); i < pages_for(seq->length + count); i++) seq->table[i] = page_take(cache);
    memcpy(seq->tokens + seq->length, tokens, (size_t)count * sizeof *tokens);
    seq->length += count;
}

/* --------------------------------------------------------------- page bytes */

/* One head of one page: K in transposed tiles, V in rows, then (q8) the scales of both. */
static void head_clear_tail(enum kv_type type, int head_dim, uint8_t *head, int first) {
    size_t each = type == KV_F16 ? 2 : 1;
    for (int t = 0; t < KV_PAGE / KV_TILE; t++) {
        int from = first - t * KV_TILE;
        if (from >= KV_TILE) continue;
        if (from < 0) from = 0;
        for (int d = 0; d < head_dim; d++) {
            uint8_t *lane = head + ((size_t)(t * head_dim + d) * KV_TILE + (size_t)from) * each;
            memset(lane, 0, (size_t)(KV_TILE - from) * each);
        }
    }
    uint8_t *v = head + (size_t)KV_PAGE * (size_t)head_dim * each;
    size_t row = (size_t)head_dim * each;
    memset(v + (size_t)first * row, 0, (size_t)(KV_PAGE - first) * row);
    if (type == KV_Q8) {
        uint8_t *scale = v + KV_PAGE * row;
        memset(scale + (size_t)first * sizeof(float), 0, (size_t)(KV_PAGE - first) * sizeof(float));
        scale += KV_PAGE * sizeof(float);
        memset(scale + (size_t)first * sizeof(float), 0, (size_t)(KV_PAGE - first) * sizeof(float));
    }
}

void kv_clear_tail(const struct kv_cache *cache, uint8_t *group, int first) {
    size_t head_bytes = kv_page_head_bytes(cache->type, cache->head_dim);
    for (int l = 0; l < cache->layers; l++) {
        for (int h = 0; h < cache->kv_heads; h++) {
            uint8_t *head = group + (size_t)l * cache->page_bytes + (size_t)h * head_bytes;
            head_clear_tail(cache->type, cache->head_dim, head, first);
        }
    }
}
