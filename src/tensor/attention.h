/* Private to room tensor: geometry of KV pages and of attention's scratch.
 *
 * One query (row, head) is reduced page by page in ascending absolute position:
 *     m' = max(m, scores of the page)     c = exp(m - m')
 *     p  = exp(score - m')                l = l * c + sum(p)
 *     out = out * c, then out += p[pos] * V[pos] for pos ascending
 * (online softmax: Milakov & Gimelshein 2018). Pages that hold no visible
 * position are skipped; in a page only the visible positions [first, last)
 * enter the maximum, the sum and the products, so what a page holds outside of
 * them (later rows of the same step, or nothing yet) cannot touch a single bit. */
#ifndef TENSOR_ATTENTION_H
#define TENSOR_ATTENTION_H

#include "tensor/tensor.h"

/* Queries (rows x heads of one KV head) that share one conversion of a page to f32. */
#define QUERY_BLOCK  48
#define QUERY_STRIDE (HEAD_DIM_MAX + 16) /* no power of two: rows spread over the cache sets */

/* Working memory of one thread; all parts f32. */
struct attention_scratch {
    _Alignas(64) float q[QUERY_BLOCK][QUERY_STRIDE];
    _Alignas(64) float out[QUERY_BLOCK][QUERY_STRIDE];    /* weighted sums of values so far */
    _Alignas(64) float p[QUERY_BLOCK][KV_PAGE];           /* scores, then weights, of one page */
    _Alignas(64) float tile[KV_TILE * HEAD_DIM_MAX + 16]; /* 16 positions of K or V as f32; spare for whole registers */
};

/* Where one head of one page keeps its parts. */
struct kv_head {
    uint8_t *k, *v;           /* f16 or int8, see tensor.h */
    float *k_scale, *v_scale; /* [KV_PAGE], KV_Q8 only */
};

static inline struct kv_head kv_head_at(const struct kv_step *step, int layer, int sequence, int page, int kv_head) {
    size_t element = step->type == KV_F16 ? 2 : 1;
    size_t plane = (size_t)KV_PAGE * (size_t)step->head_dim * element;
    uint8_t *base = step->layer_base[layer] + (size_t)step->tables[sequence][page] * step->page_bytes +
                    (size_t)kv_head * kv_page_head_bytes(step->type, step->head_dim);
    struct kv_head head = {base, base + plane, NULL, NULL};
    if (step->type == KV_Q8) {
        head.k_scale = (float *)(void *)(base + 2 * plane);
        head.v_scale = head.k_scale + KV_PAGE;
    }
    return head;
}

/* Index of (dimension d, position `at` of the page) in the transposed key tiles. */
static inline size_t kv_k_index(int head_dim, int d, int at) {
    return ((size_t)(at / KV_TILE) * (size_t)head_dim + (size_t)d) * KV_TILE + (size_t)(at % KV_TILE);
}

/* First position that a row at `position` sees. */
static inline int32_t window_start(const struct attention_args *args, int32_t position) {
    if (args->window <= 0 || position < args->window) return 0;
    return position - args->window + 1;
}

#endif
