/* Attention over the vocabulary of simd_*.h; included once by each of
 * attention_scalar.c, attention_avx2.c and attention_avx512.c, which set
 * MICRO_QUERIES and MICRO_VECTORS.
 *
 * Queries (rows x heads of one KV head) go in blocks of QUERY_BLOCK. Per page,
 * 16 positions of K at a time become f32 once and serve all queries of the
 * block; likewise V. Both products are the same register kernel, a sequence of
 * rank-one updates: scores[q][16 positions] over dimensions, and
 * out[q][dimensions] over positions. Every output element is one chain of
 * multiply-adds in ascending order, so how queries are blocked cannot show. */
#include "tensor/attention.h"
#include "tensor/math_simd.h"
#include "tensor/ops.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define TILE_VECTORS (KV_TILE / SIMD_LANES)

/* ---------------------------------------------------------- register kernel */

/* The accumulators stay in registers only if these short loops vanish; gcc -O2 needs to be told. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* What to fetch while a register kernel runs: one address per k. Pages are scattered, which the hardware
 * prefetcher cannot foresee, and fetching a tile in one burst fills the miss buffers and stalls. */
struct ahead {
    const uint8_t *at;
    int64_t step; /* bytes; 0 = nothing new */
};

/* c[q][v] (+)= sum over k < depth of a[q * a_stride + k] * b[k * b_stride + v], q < queries, v < vectors * lanes. */
SIMD_INLINE void micro(int queries, int vectors, bool add_to, struct ahead ahead, const float *a, int64_t a_stride,
                       const float *b, int64_t b_stride, int64_t depth, float *c, int64_t c_stride) {
    vec acc[MICRO_QUERIES][MICRO_VECTORS];
    UNROLL
    for (int q = 0; q < queries; q++) UNROLL
    for (int v = 0; v < vectors; v++) acc[q][v] = add_to ? v_load(c + q * c_stride + v * SIMD_LANES) : v_set1(0.0f);
    for (int64_t k = 0; k < depth; k++, b += b_stride) {
        vec row[MICRO_VECTORS];
        __builtin_prefetch(ahead.at);
        ahead.at += ahead.step;
        UNROLL
        for (int v = 0; v < vectors; v++) row[v] = v_load(b + v * SIMD_LANES);
        UNROLL
        for (int q = 0; q < queries; q++) {
            vec factor = v_set1(a[q * a_stride + k]);
            UNROLL
            for (int v = 0; v < vectors; v++) acc[q][v] = v_fma(factor, row[v], acc[q][v]);
        }
    }
    UNROLL
    for (int q = 0; q < queries; q++) UNROLL
    for (int v = 0; v < vectors; v++) v_store(c + q * c_stride + v * SIMD_LANES, acc[q][v]);
}

/* One compiled kernel per number of queries. */
#define MICRO_CASE(n, ...)                                                                                             \
    case n:                                                                                                            \
        micro(n, __VA_ARGS__);                                                                                         \
        break;

/* scores of 16 positions: p[q][0…15] = q · K tile */
static void score_tile(int queries, struct ahead ahead, const float *q, const float *tile, int dim, float *p) {
    for (int v = 0; v < TILE_VECTORS;
         v += MICRO_VECTORS, tile += MICRO_VECTORS * SIMD_LANES, p += MICRO_VECTORS * SIMD_LANES) {
        switch (queries) { MICRO_EACH(MICRO_VECTORS, false, ahead, q, QUERY_STRIDE, tile, KV_TILE, dim, p, KV_PAGE) }
    }
}

/* out[q] += p[q][first…last) * V tile rows, dimensions rounded up to whole registers (the tail falls
 * into padding of out and reads at most 15 floats past a tile row). */
static void value_tile(int queries, struct ahead ahead, const float *p, const float *tile, int dim, int depth,
                       float *out) {
    for (int d = 0; d < dim; d += MICRO_VECTORS * SIMD_LANES, ahead.at += depth * ahead.step) {
        switch (queries) {
            MICRO_EACH(MICRO_VECTORS, true, ahead, p, KV_PAGE, tile + d, dim, depth, out + d, QUERY_STRIDE)
        }
    }
}

/* ---------------------------------------------------------------- one block */

struct query {
    int32_t start, position; /* visible: [start, position] */
    int first, last;         /* of these, positions in the current page */
    float max, sum;          /* online softmax */
};

/* Queries [from, to) that share a register kernel in the current page, and the positions [low, high)
 * of the page that all of them see. */
struct group {
    int from, to, low, high;
};

struct block {
    const struct attention_args *args;
    struct attention_scratch *scratch;
    int count, groups;
    int first, last; /* positions of the current page that any query sees */
    struct query query[QUERY_BLOCK];
    struct group group[QUERY_BLOCK / MICRO_QUERIES + 2];
};

/* 16 positions as f32. */
SIMD_INLINE void tile_load(enum kv_type type, const uint8_t *from, int count, float *tile) {
    if (type == KV_F16) {
        for (int i = 0; i < count; i += SIMD_LANES)
            v_store(tile + i, v_load_f16((const uint16_t *)(const void *)from + i));
    } else {
        for (int i = 0; i < count; i += SIMD_LANES) v_store(tile + i, v_load_i8((const int8_t *)from + i));
    }
}

static void page_scores(struct block *block, const struct kv_head *page, const struct kv_head *next) {
    const struct kv_step *step = block->args->step;
    struct attention_scratch *s = block->scratch;
    int tile_elements = KV_TILE * step->head_dim;
    size_t tile_bytes = (size_t)tile_elements * (step->type == KV_F16 ? 2 : 1);
    for (int tile = block->first / KV_TILE; tile * KV_TILE < block->last; tile++) {
        size_t offset = (size_t)tile * tile_bytes;
        tile_load(step->type, page->k + offset, tile_elements, s->tile);
        struct ahead ahead = {next->k + offset, (int64_t)tile_bytes / step->head_dim}; /* the first group fetches all */
        for (int g = 0; g < block->groups; g++) {
            int from = block->group[g].from, n = block->group[g].to - from;
            score_tile(n, ahead, s->q[from], s->tile, step->head_dim, s->p[from] + tile * KV_TILE);
            ahead.step = 0;
        }
    }
}

/* The tiles of 16 positions that a query sees any of; of the others not even the scores were computed. */
SIMD_INLINE int tiles_first(const struct query *query) {
    return query->first / KV_TILE * KV_TILE;
}
SIMD_INLINE int tiles_last(const struct query *query) {
    return (query->last + KV_TILE - 1) / KV_TILE * KV_TILE;
}

SIMD_INLINE int clip_lanes(int lanes) {
    return lanes < 0 ? 0 : lanes < SIMD_LANES ? lanes : SIMD_LANES;
}

/* Raw dot products of one query become scores, hidden ones -inf; returns the new running maximum. */
SIMD_INLINE float query_scores(const struct attention_args *args, const struct kv_head *page, const struct query *query,
                               float *p) {
    vec by = v_set1(args->scale), cap = v_set1(args->softcap), top = v_set1(query->max);
    bool whole = query->first == 0 && query->last == KV_PAGE;
    for (int i = tiles_first(query), last = tiles_last(query); i < last; i += SIMD_LANES) {
        vec a = v_load(p + i);
        if (page->k_scale) a = v_mul(a, v_load(page->k_scale + i));
        a = v_mul(a, by);
        if (args->softcap > 0) a = v_mul(cap, v_tanh(v_div(a, cap)));
        if (!whole) {
            a = v_select_range(clip_lanes(query->first - i), clip_lanes(query->last - i), a, v_set1(-INFINITY));
        }
        top = v_max(a, top); /* a NaN is dropped here and enters through its weight */
        v_store(p + i, a);
    }
    return v_max_lane(top);
}

/* Scores become weights relative to the new maximum; brings max, sum and out up to date. */
SIMD_INLINE void query_weights(const struct kv_head *page, struct query *query, float max, float decay, int dim,
                               float *p, float *out) {
    vec shift = v_set1(max), sum[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < TILE_VECTORS; v++) sum[v] = v_set1(0.0f);
    for (int tile = tiles_first(query); tile < tiles_last(query); tile += KV_TILE) {
        UNROLL
        for (int v = 0; v < TILE_VECTORS; v++) {
            int i = tile + v * SIMD_LANES;
            vec weight = v_exp_weight(v_sub(v_load(p + i), shift));
            sum[v] = v_add(sum[v], weight); /* hidden lanes: e^-inf = 0 */
            if (page->v_scale) weight = v_mul(weight, v_load(page->v_scale + i));
            v_store(p + i, weight);
        }
    }
    query->sum = query->sum * decay + v_sum_all(sum, TILE_VECTORS);
    query->max = max;
    if (decay == 1.0f) return;
    for (int d = 0; d < dim; d += SIMD_LANES) v_store(out + d, v_mul(v_load(out + d), v_set1(decay)));
}

/* As many queries at a time as a register has lanes: their decays cost one exponential. */
static void page_weights(struct block *block, const struct kv_head *page, int from, int to) {
    struct attention_scratch *s = block->scratch;
    for (; from < to; from += SIMD_LANES) {
        int n = to - from < SIMD_LANES ? to - from : SIMD_LANES;
        float before[SIMD_LANES] = {0}, max[SIMD_LANES] = {0}, decay[SIMD_LANES];
        for (int i = 0; i < n; i++) {
            before[i] = block->query[from + i].max;
            max[i] = query_scores(block->args, page, &block->query[from + i], s->p[from + i]);
        }
        v_store(decay, v_exp_weight(v_sub(v_load(before), v_load(max))));
        for (int i = 0; i < n; i++)
            query_weights(page, &block->query[from + i], max[i], decay[i], block->args->step->head_dim, s->p[from + i],
                          s->out[from + i]);
    }
}

/* Positions [low, high) of the tile at `base`, clipped to what query n sees, for that query alone. */
static void single_values(struct block *block, int n, int base, int low, int high) {
    const struct query *query = &block->query[n];
    struct attention_scratch *s = block->scratch;
    int dim = block->args->step->head_dim;
    if (query->first > low) low = query->first;
    if (query->last < high) high = query->last;
    struct ahead nothing = {(const uint8_t *)s->tile, 0};
    if (low < high) value_tile(1, nothing, s->p[n] + low, s->tile + (low - base) * dim, dim, high - low, s->out[n]);
}

/* Values of the tile at `base` for one group: the stretch that all its queries see together, what each
 * sees before and after it on its own. Positions stay ascending for each query. */
static void group_values(struct block *block, int base, const struct group *group, struct ahead ahead) {
    struct attention_scratch *s = block->scratch;
    int dim = block->args->step->head_dim, end = base + KV_TILE;
    int low = group->low > base ? group->low : base, high = group->high < end ? group->high : end;
    if (low >= high) low = high = end; /* nothing in common: each alone */
    if (low > base)
        for (int n = group->from; n < group->to; n++) single_values(block, n, base, base, low);
    if (low < high)
        value_tile(group->to - group->from, ahead, s->p[group->from] + low, s->tile + (low - base) * dim, dim,
                   high - low, s->out[group->from]);
    if (high < end)
        for (int n = group->from; n < group->to; n++) single_values(block, n, base, high, end);
}

static void page_values(struct block *block, const struct kv_head *page, const struct kv_head *next) {
    const struct kv_step *step = block->args->step;
    int tile_elements = KV_TILE * step->head_dim;
    size_t tile_bytes = (size_t)tile_elements * (step->type == KV_F16 ? 2 : 1);
    for (int tile = block->first / KV_TILE; tile * KV_TILE < block->last; tile++) {
        size_t offset = (size_t)tile * tile_bytes;
        tile_load(step->type, page->v + offset, tile_elements, block->scratch->tile);
        struct ahead ahead = {next->v + offset, (int64_t)tile_bytes / step->head_dim};
        for (int g = 0; g < block->groups; g++) {
            group_values(block, tile * KV_TILE, &block->group[g], ahead);
            ahead.step = 0;
        }
    }
}

/* Positions of a page that a query sees; false if none. */
SIMD_INLINE bool query_clip(struct query *query, int32_t base) {
    if (query->position < base || query->start >= base + KV_PAGE) return false;
    query->first = query->start > base ? query->start - base : 0;
    query->last = query->position - base < KV_PAGE ? query->position - base + 1 : KV_PAGE;
    return true;
}

/* Cuts the queries [from, to) that see the page into even groups. */
static void block_group(struct block *block, int from, int to) {
    int left = to - from;
    block->groups = (left + MICRO_QUERIES - 1) / MICRO_QUERIES;
    block->first = KV_PAGE, block->last = 0;
    for (int g = 0; g < block->groups; g++) {
        int size = (to - from + block->groups - g - 1) / (block->groups - g);
        struct group group = {from, from + size, 0, KV_PAGE};
        for (; from < group.to; from++) {
            const struct query *query = &block->query[from];
            if (query->first > group.low) group.low = query->first;
            if (query->last < group.high) group.high = query->last;
            if (query->first < block->first) block->first = query->first;
            if (query->last > block->last) block->last = query->last;
        }
        block->group[g] = group;
    }
}

static void block_page(struct block *block, const struct kv_head *page, const struct kv_head *next, int32_t base) {
    int from = 0, to = block->count; /* queries ascend, so those that see the page are consecutive */
    while (from < to && !query_clip(&block->query[from], base)) from++;
    while (to > from && !query_clip(&block->query[to - 1], base)) to--;
    if (from == to) return;
    for (int n = from; n < to; n++) query_clip(&block->query[n], base);
    block_group(block, from, to);
    page_scores(block, page, next);
    page_weights(block, page, from, to);
    page_values(block, page, next);
}

/* ------------------------------------------------------------------- driver */

static void block_begin(struct block *block, int64_t row0, int head0, int heads, int64_t from) {
    const struct attention_args *args = block->args;
    struct attention_scratch *s = block->scratch;
    int dim = args->step->head_dim;
    for (int n = 0; n < block->count; n++) {
        int64_t row = row0 + (from + n) / heads;
        int head = head0 + (int)((from + n) % heads);
        int32_t position = args->step->row[row].position;
        block->query[n] = (struct query){window_start(args, position), position, 0, 0, -FLT_MAX, 0.0f};
        memcpy(s->q[n], args->q + row * args->q_stride + (int64_t)head * dim, (size_t)dim * sizeof(float));
        memset(s->out[n], 0, sizeof s->out[n]);
    }
}

static void block_end(const struct block *block, int64_t row0, int head0, int heads, int64_t from) {
    const struct attention_args *args = block->args;
    int dim = args->step->head_dim;
    for (int n = 0; n < block->count; n++) {
        int64_t row = row0 + (from + n) / heads;
        int head = head0 + (int)((from + n) % heads);
        float *out = args->out + row * args->out_stride + (int64_t)head * dim;
        vec inverse = v_set1(1.0f / block->query[n].sum);
        const float *sum = block->scratch->out[n];
        int d = 0;
        for (; d + SIMD_LANES <= dim; d += SIMD_LANES) v_store(out + d, v_mul(v_load(sum + d), inverse));
        if (d < dim) v_store_part(out + d, dim - d, v_mul(v_load(sum + d), inverse));
    }
}

static void attention(const struct attention_args *args, int64_t row0, int64_t row1, int head0, int head1,
                      void *scratch) {
    const struct kv_step *step = args->step;
    int heads = head1 - head0, kv_head = head0 / (args->heads / step->kv_heads);
    int sequence = step->row[row0].sequence;
    struct block block = {.args = args, .scratch = scratch};
    int64_t total = (row1 - row0) * heads;
    for (int64_t from = 0; from < total; from += QUERY_BLOCK) {
        block.count = total - from < QUERY_BLOCK ? (int)(total - from) : QUERY_BLOCK;
        block_begin(&block, row0, head0, heads, from);
        int32_t page = block.query[0].start / KV_PAGE, last = block.query[block.count - 1].position / KV_PAGE;
        struct kv_head at = kv_head_at(step, args->layer, sequence, page, kv_head);
        for (; page <= last; page++) {
            struct kv_head next = at;
            if (page < last) next = kv_head_at(step, args->layer, sequence, page + 1, kv_head);
            block_page(&block, &at, &next, page * KV_PAGE);
            at = next;
        }
        block_end(&block, row0, head0, heads, from);
    }
}

/* -------------------------------------------------------------------- store */

/* v_round(x / scale) of one vector as int8; the scale is NaN if x is not finite. */
static float q8_vector(const float *x, int dim, int8_t *q) {
    vec max = v_set1(0.0f), poison = v_set1(0.0f);
    float whole[HEAD_DIM_MAX];
    for (int d = 0; d < dim; d += SIMD_LANES) {
        vec a = dim - d < SIMD_LANES ? v_load_part(x + d, dim - d) : v_load(x + d);
        max = v_max(v_abs(a), max);
        poison = v_fma(a, v_set1(0.0f), poison); /* NaN if any element is not finite */
    }
    float scale = v_max_lane(max) / 127.0f + v_sum(poison);
    vec divisor = v_set1(scale);
    for (int d = 0; d < dim; d += SIMD_LANES) {
        vec a = dim - d < SIMD_LANES ? v_load_part(x + d, dim - d) : v_load(x + d);
        v_store(whole + d, v_round(v_div(a, divisor)));
    }
    for (int d = 0; d < dim; d++) q[d] = scale > 0 ? (int8_t)whole[d] : 0;
    return scale;
}

static void f16_vector(const float *x, int dim, uint16_t *half) {
    int d = 0;
    for (; d + 8 <= dim; d += 8) f16_store8(half + d, x + d);
    for (; d < dim; d++) half[d] = f32_to_f16(x[d]);
}

static void kv_store(const struct kv_step *step, int layer, int64_t row, const float *k, const float *v) {
    int position = step->row[row].position, dim = step->head_dim, at = position % KV_PAGE;
    for (int head = 0; head < step->kv_heads; head++, k += dim, v += dim) {
        struct kv_head page = kv_head_at(step, layer, step->row[row].sequence, position / KV_PAGE, head);
        if (step->type == KV_F16) {
            uint16_t half[HEAD_DIM_MAX], *k_out = (uint16_t *)(void *)page.k;
            f16_vector(k, dim, half);
            for (int d = 0; d < dim; d++) k_out[kv_k_index(dim, d, at)] = half[d];
            f16_vector(v, dim, (uint16_t *)(void *)page.v + at * dim);
        } else {
            int8_t q[HEAD_DIM_MAX];
            page.k_scale[at] = q8_vector(k, dim, q);
            for (int d = 0; d < dim; d++) page.k[kv_k_index(dim, d, at)] = (uint8_t)q[d];
            page.v_scale[at] = q8_vector(v, dim, (int8_t *)page.v + at * dim);
        }
    }
}
