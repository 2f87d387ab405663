/* kv: the paged KV cache. Private to room infer.
 *
 * One block of memory holds `pages` page groups. A group is the same page of
 * all layers, side by side:
 *
 *     group p:  [layer 0 page][layer 1 page] … [layer L-1 page]
 *
 * so that a page in use costs resident memory only for itself (huge pages
 * included), and copying or saving a page is one contiguous run of bytes. For the kernels a
 * layer is an array of pages with the group as its stride (kv_step.page_bytes).
 *
 * A sequence owns a table of page numbers and its list of tokens. Pages are
 * reference counted; a page with more than one owner is read-only, and an owner
 * that must write into it takes a copy first (kv_extend).
 */
#ifndef INFER_KV_H
#define INFER_KV_H

#include "tensor/tensor.h"

struct kv_sequence {
    int32_t *tokens; /* [context] */
    int32_t *table;  /* [table_max] page numbers by position / KV_PAGE */
    int length;      /* positions in use */
    bool used;
};

struct kv_cache {
    enum kv_type type;
    int layers, kv_heads, head_dim, context;
    size_t page_bytes;  /* of one page of one layer */
    size_t group_bytes; /* layers * page_bytes, rounded up to 64 */
    size_t data_bytes;
    uint8_t *data;        /* pages * group_bytes */
    uint8_t **layer_base; /* [layers] */
    int32_t pages;
    int32_t *free_list; /* [pages] stack: the top is handed out next */
    int32_t free_count;
    uint32_t *refs; /* [pages] owners */
    int max_sequences, table_max;
    struct kv_sequence *sequence; /* [max_sequences] */
    const int32_t **tables;       /* [max_sequences] for kv_step */
    void *numbers;                /* the memory behind all tokens and tables */
};

struct kv_geometry {
    enum kv_type type;
    int layers, kv_heads, head_dim;
    int context;       /* positions per sequence at most */
    int64_t positions; /* positions in all; rounded up to whole pages */
    int max_sequences;
};
int kv_cache_init(struct kv_cache *cache, const struct kv_geometry *geometry, struct shu_error *err);
void kv_cache_free(struct kv_cache *cache); /* zeroed or initialised */

bool kv_valid(const struct kv_cache *cache, int sequence); /* in range and in use */
int kv_sequence_new(struct kv_cache *cache);               /* -1: none left */
void kv_sequence_free(struct kv_cache *cache, int sequence);
/* Shares all pages of `from`. -1: no sequence left. */
int kv_sequence_fork(struct kv_cache *cache, int from);
void kv_truncate(struct kv_cache *cache, int sequence, int length); /* length <= current */

/* Pages that appending `count` tokens takes from the free list, the copy of a shared last page included. */
int kv_pages_needed(const struct kv_cache *cache, int sequence, int count);
/* Tokens that fit now: the least of context and free pages. */
int kv_room(const struct kv_cache *cache, int sequence);
/* Appends tokens and gives the sequence pages of its own for them. The caller has checked
 * kv_pages_needed against free_count, and the context. */
void kv_extend(struct kv_cache *cache, int sequence, const int32_t *tokens, int count);

static inline uint8_t *kv_group(const struct kv_cache *cache, int32_t page) {
    return cache->data + (size_t)page * cache->group_bytes;
}
/* Zeroes all positions from `first` on of a page group held at `group`: what earlier owners left there. */
void kv_clear_tail(const struct kv_cache *cache, uint8_t *group, int first);

#endif
