/* Attention over packed sequences for AVX2: FlashAttention-2 (Dao 2023) with the microkernel of the products.
 *
 * A unit is up to SDPA_ROWS rows of one sequence and the heads of one KV head, so that a block of keys and values is
 * packed once for all of them. What a row may not see gets the weight 0: adding it to a sum changes no bit, and so
 * neither the rows of a unit nor what lies beyond a row's own keys matters. Blocks start at multiples of SDPA_BLOCK
 * of the sequence (sdpa.h). */
#include "tensor/simd_avx2.h"

#include <math.h>

#include "tensor/math_simd.h"
#include "tensor/sdpa.h"
#include "tensor/training_tables.h"

#define MICRO_ROWS 6
#include "tensor/micro_simd.h"
#include "tensor/pack_avx2.h"

/* One unit of work. */
struct unit {
    const struct sdpa_args *args;
    struct sdpa_range sequence;
    int64_t row0;
    int rows, group, head0, kv_head, dim;
    struct sdpa_scratch scratch;
};

/* A block of rows of the sequence: keys, or in backward_kv queries. */
struct block {
    int64_t first;
    int rows;
};

static struct unit unit_open(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *memory) {
    struct unit unit = {.args = args, .sequence = sdpa_sequence(args, row0), .row0 = row0, .rows = (int)(row1 - row0)};
    unit.group = args->heads / args->kv_heads;
    unit.head0 = kv_head * unit.group;
    unit.kv_head = kv_head;
    unit.dim = args->head_dim;
    sdpa_scratch_plan(memory, args->head_dim, unit.group, &unit.scratch);
    return unit;
}

/* Where a head of a row begins in a matrix whose rows are `stride` apart. */
static int64_t place(int64_t stride, int64_t row, int head, int dim) {
    return row * stride + (int64_t)head * dim;
}

/* ----------------------------------------------------------------- products */

/* Rows of `from` become rows of the panels: [rows][16] for every 16 of dim. */
static void pack_rows(const float *from, int64_t stride, int rows, int dim, float *to) {
    for (int row = 0; row < rows; row++)
        pack_row(from + row * stride, dim, to + row * MICRO_WIDTH, MICRO_WIDTH, SDPA_BLOCK * MICRO_WIDTH);
}

/* Rows of `from` become columns: [dim][16] for every 16 rows; columns beyond the rows are zero. */
static void pack_turned(const float *from, int64_t stride, int rows, int dim, float *to) {
    int padded = (dim + 7) / 8 * 8;
    for (int row = 0; row < (rows + MICRO_WIDTH - 1) / MICRO_WIDTH * MICRO_WIDTH; row += 8) {
        float *panel = to + row / MICRO_WIDTH * padded * MICRO_WIDTH + row % MICRO_WIDTH;
        if (row + 8 <= rows && padded == dim) {
            pack_columns(from + row * stride, stride, dim, panel, MICRO_WIDTH);
            continue;
        }
        for (int d = 0; d < dim; d += 8) { /* an edge */
            float part[8][8] = {{0}};
            for (int i = 0; i < 8 && row + i < rows; i++)
                _mm256_storeu_ps(part[i], pack_load(from + (row + i) * stride + d, dim - d));
            transpose8(part[0], 8, panel + d * MICRO_WIDTH, MICRO_WIDTH);
        }
    }
}

static void strip_rows(const struct strip *strip, int64_t rows, const float *a, int64_t a_row) {
    STRIP_ROWS(a_row, 1, MICRO_ROWS * a_row)
}

/* a[k][m]: the transpose of a tile of weights. */
static void strip_columns(const struct strip *strip, int64_t rows, const float *a) {
    STRIP_ROWS(1, SDPA_BLOCK, MICRO_ROWS)
}

/* A tile of rows against keys. Row i sees no key j > i - lag, so nothing is computed there: a third of the work of a
 * short sequence lies beyond the diagonal. */
struct tile {
    int rows, keys, lag;
};

static int clamp(int x, int most) {
    return x < 0 ? 0 : x > most ? most : x;
}

/* score [rows, keys] = x (rows of dim values) times turned panels. Beyond the diagonal it keeps what it held. */
static void scores(struct tile tile, const float *x, int64_t x_row, const float *panels, int dim, float *score) {
    int padded = (dim + 7) / 8 * 8;
    for (int col = 0; col < tile.keys; col += MICRO_WIDTH, panels += padded * MICRO_WIDTH) {
        int from = clamp(col + tile.lag, tile.rows);
        struct strip strip = {.b = panels, .depth = dim, .cols = MICRO_WIDTH, .start = true, .alpha = 1};
        strip.c = score + from * SDPA_BLOCK + col, strip.c_row = SDPA_BLOCK;
        strip_rows(&strip, tile.rows - from, x + from * x_row, x_row);
    }
}

/* Rows of the result whose sums begin or end together at the diagonal. */
#define STEP (2 * MICRO_ROWS)

/* to [rows, dim] += weight [rows, keys] times panels of the keys' values. */
static void add_weighted(struct tile tile, const float *weight, const float *panels, int dim, float *to,
                         int64_t to_row) {
    for (int col = 0; col < dim; col += MICRO_WIDTH, panels += SDPA_BLOCK * MICRO_WIDTH) {
        struct strip strip = {.b = panels, .cols = clamp(dim - col, MICRO_WIDTH), .alpha = 1, .c_row = to_row};
        for (int row = 0; row < tile.rows; row += STEP) {
            int rows = clamp(tile.rows - row, STEP);
            strip.depth = clamp(row + rows - tile.lag, tile.keys);
            strip.c = to + row * to_row + col;
            strip_rows(&strip, rows, weight + row * SDPA_BLOCK, SDPA_BLOCK);
        }
    }
}

/* to [keys, dim] += weight [rows, keys], turned, times panels of the rows' values. */
static void add_turned(struct tile tile, const float *weight, const float *panels, int dim, float *to, int64_t to_row) {
    for (int col = 0; col < dim; col += MICRO_WIDTH, panels += SDPA_BLOCK * MICRO_WIDTH) {
        struct strip strip = {.cols = clamp(dim - col, MICRO_WIDTH), .alpha = 1, .c_row = to_row};
        for (int key = 0; key < tile.keys; key += STEP) {
            int from = clamp(key + tile.lag, tile.rows);
            strip.depth = tile.rows - from;
            strip.b = panels + from * MICRO_WIDTH;
            strip.c = to + key * to_row + col;
            strip_columns(&strip, clamp(tile.keys - key, STEP), weight + from * SDPA_BLOCK + key);
        }
    }
}

static void rows_scale(float *x, int count, float factor) {
    vec by = v_set1(factor);
    int i = 0;
    for (; i + SIMD_LANES <= count; i += SIMD_LANES) v_store(x + i, v_mul(v_load(x + i), by));
    if (i < count) v_store_part(x + i, count - i, v_mul(v_load_part(x + i, count - i), by));
}

static void rows_clear(float *base, int64_t stride, int rows, int dim) {
    for (int row = 0; row < rows; row++, base += stride)
        for (int d = 0; d < dim; d++) base[d] = 0;
}

static float row_dot(const float *a, const float *b, int count) {
    vec sum = v_set1(0.0f);
    int i = 0;
    for (; i + SIMD_LANES <= count; i += SIMD_LANES) sum = v_fma(v_load(a + i), v_load(b + i), sum);
    if (i < count) sum = v_fma(v_load_part(a + i, count - i), v_load_part(b + i, count - i), sum);
    return v_sum(sum);
}

/* ------------------------------------------------------------------- forward */

/* Part [first, last) of a block that a row sees. */
struct seen {
    int first, last;
};

static struct seen seen_in(struct sdpa_range keys, struct block block) {
    struct seen seen = {0, block.rows};
    if (keys.first > block.first)
        seen.first = keys.first - block.first < block.rows ? (int)(keys.first - block.first) : block.rows;
    if (keys.last < block.first + block.rows) seen.last = keys.last > block.first ? (int)(keys.last - block.first) : 0;
    return seen;
}

SIMD_INLINE int lane_of(int position, int at) {
    int lane = position - at;
    return lane < 0 ? 0 : lane > SIMD_LANES ? SIMD_LANES : lane;
}

/* Lanes of a vector at column `at` that are seen, else `other`. */
SIMD_INLINE vec keep_seen(struct seen seen, int at, vec value, vec other) {
    if (seen.first <= at && seen.last >= at + SIMD_LANES) return value;
    int first = lane_of(seen.first, at), last = lane_of(seen.last, at);
    return first < last ? v_select_range(first, last, value, other) : other;
}

/* Products to scores: scaled and capped. *slope: derivative of the cap. */
SIMD_INLINE vec score_of(const struct sdpa_args *args, vec product, vec *slope) {
    vec s = v_mul(product, v_set1(args->scale)), one = v_set1(1.0f);
    *slope = one;
    if (args->softcap > 0) {
        vec t = v_tanh(v_div(s, v_set1(args->softcap)));
        *slope = v_fnma(t, t, one);
        s = v_mul(t, v_set1(args->softcap));
    }
    return s;
}

/* One row of products becomes weights relative to the running maximum; returns what earlier sums must be multiplied
 * with. A NaN is dropped by the maximum and enters through the weights. */
static float row_softmax(const struct sdpa_args *args, struct seen seen, int cols, float *p, float *max, float *sum) {
    vec low = v_set1(-INFINITY), top = low, zero = v_set1(0.0f), slope, part = zero;
    int at = 0;
    for (; at < cols; at += SIMD_LANES) {
        vec s = keep_seen(seen, at, score_of(args, v_load(p + at), &slope), low);
        top = v_max(s, top);
        v_store(p + at, s);
    }
    float old = *max, new_max = v_max_lane(top);
    if (!(new_max > old)) new_max = old;
    vec shift = v_set1(new_max);
    for (at = 0; at < cols; at += SIMD_LANES) {
        vec e = keep_seen(seen, at, v_exp_weight(v_sub(v_load(p + at), shift)), zero);
        part = v_add(part, e);
        v_store(p + at, e);
    }
    float shrink = 1;
    if (new_max > old) {
        float lanes[SIMD_LANES];
        v_store(lanes, v_exp_weight(v_set1(old - new_max)));
        shrink = lanes[0];
    }
    *max = new_max;
    *sum = *sum * shrink + v_sum(part);
    return shrink;
}

static struct tile tile_of(const struct unit *unit, struct block rows, struct block keys) {
    return (struct tile){rows.rows, keys.rows, unit->args->causal ? (int)(keys.first - rows.first) : -SDPA_BLOCK};
}

static void block_forward(const struct unit *unit, struct block keys, int index) {
    const struct sdpa_args *args = unit->args;
    const struct sdpa_scratch *scratch = &unit->scratch;
    struct tile tile = tile_of(unit, (struct block){unit->row0, unit->rows}, keys);
    int head = unit->head0 + index, dim = unit->dim, cols = (keys.rows + MICRO_WIDTH - 1) / MICRO_WIDTH * MICRO_WIDTH;
    scores(tile, args->q + place(args->q_row, unit->row0, head, dim), args->q_row, scratch->panels[0], dim,
           scratch->score);
    for (int row = 0; row < unit->rows; row++) {
        struct seen seen = seen_in(sdpa_keys(args, unit->sequence, unit->row0 + row), keys);
        float *p = scratch->score + row * SDPA_BLOCK;
        int state = index * SDPA_ROWS + row;
        if (seen.first >= seen.last) {
            for (int i = 0; i < cols; i++) p[i] = 0;
            continue;
        }
        float shrink = row_softmax(args, seen, cols, p, scratch->max + state, scratch->sum + state);
        if (shrink != 1) rows_scale(args->out + place(args->out_row, unit->row0 + row, head, dim), dim, shrink);
    }
    add_weighted(tile, scratch->score, scratch->panels[1], dim, args->out + place(args->out_row, unit->row0, head, dim),
                 args->out_row);
}

/* Block of the sequence's rows that starts at `start`, cut to `range`. */
static struct block block_at(int64_t start, struct sdpa_range range) {
    int64_t last = start + SDPA_BLOCK < range.last ? start + SDPA_BLOCK : range.last;
    return (struct block){start, (int)(last - start)};
}

/* Keys that any row of the unit sees. */
static struct sdpa_range unit_keys(const struct unit *unit) {
    struct sdpa_range keys = sdpa_keys(unit->args, unit->sequence, unit->row0);
    keys.last = sdpa_keys(unit->args, unit->sequence, unit->row0 + unit->rows - 1).last;
    return keys;
}

static void head_finish(const struct unit *unit, int index) {
    const struct sdpa_args *args = unit->args;
    int head = unit->head0 + index;
    for (int row = 0; row < unit->rows; row++) {
        float sum = unit->scratch.sum[index * SDPA_ROWS + row], max = unit->scratch.max[index * SDPA_ROWS + row];
        rows_scale(args->out + place(args->out_row, unit->row0 + row, head, unit->dim), unit->dim, 1 / sum);
        args->lse[(unit->row0 + row) * args->lse_row + head] = max + logf(sum);
    }
}

void sdpa_forward_avx2(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *memory) {
    struct unit unit = unit_open(args, row0, row1, kv_head, memory);
    struct sdpa_range keys = unit_keys(&unit);
    for (int i = 0; i < unit.group; i++)
        rows_clear(args->out + place(args->out_row, row0, unit.head0 + i, unit.dim), args->out_row, unit.rows,
                   unit.dim);
    for (int i = 0; i < unit.group * SDPA_ROWS; i++) unit.scratch.max[i] = -INFINITY, unit.scratch.sum[i] = 0;
    for (int64_t at = sdpa_block_start(unit.sequence, keys.first); at < keys.last; at += SDPA_BLOCK) {
        struct block block = block_at(at, keys);
        pack_turned(args->k + place(args->k_row, at, kv_head, unit.dim), args->k_row, block.rows, unit.dim,
                    unit.scratch.panels[0]);
        pack_rows(args->v + place(args->v_row, at, kv_head, unit.dim), args->v_row, block.rows, unit.dim,
                  unit.scratch.panels[1]);
        for (int i = 0; i < unit.group; i++) block_forward(&unit, block, i);
    }
    for (int i = 0; i < unit.group; i++) head_finish(&unit, i);
}

/* ------------------------------------------------------------ backward pass */

/* One row: products q k become weights, products d_out v become gradients of the (unscaled) products. */
static void row_backward(const struct sdpa_args *args, struct seen seen, int cols, float lse, float delta, float *p,
                         float *d) {
    vec shift = v_set1(lse), mean = v_set1(delta), zero = v_set1(0.0f), scale = v_set1(args->scale), slope;
    for (int at = 0; at < cols; at += SIMD_LANES) {
        vec s = score_of(args, v_load(p + at), &slope);
        vec weight = keep_seen(seen, at, v_exp_weight(v_sub(s, shift)), zero);
        vec gradient = v_mul(v_mul(weight, v_sub(v_load(d + at), mean)), v_mul(slope, scale));
        v_store(p + at, weight);
        v_store(d + at, keep_seen(seen, at, gradient, zero));
    }
}

/* Rows against keys: weights in score, gradients in d_score. Panels 0 and 1 hold the keys and values, turned. */
static struct tile tile_backward(const struct unit *unit, struct block rows, struct block keys, int head) {
    const struct sdpa_args *args = unit->args;
    const struct sdpa_scratch *scratch = &unit->scratch;
    struct tile tile = tile_of(unit, rows, keys);
    int dim = unit->dim, cols = (keys.rows + MICRO_WIDTH - 1) / MICRO_WIDTH * MICRO_WIDTH;
    const float *d_out = args->d_out + place(args->d_out_row, rows.first, head, dim);
    scores(tile, args->q + place(args->q_row, rows.first, head, dim), args->q_row, scratch->panels[0], dim,
           scratch->score);
    scores(tile, d_out, args->d_out_row, scratch->panels[1], dim, scratch->d_score);
    for (int i = 0; i < rows.rows; i++) {
        int64_t row = rows.first + i;
        struct seen seen = seen_in(sdpa_keys(args, unit->sequence, row), keys);
        float delta = row_dot(d_out + i * args->d_out_row, args->out + place(args->out_row, row, head, dim), dim);
        row_backward(args, seen, cols, args->lse[row * args->lse_row + head], delta, scratch->score + i * SDPA_BLOCK,
                     scratch->d_score + i * SDPA_BLOCK);
    }
    return tile;
}

static void pack_keys_values(const struct unit *unit, struct block keys) {
    const struct sdpa_args *args = unit->args;
    pack_turned(args->k + place(args->k_row, keys.first, unit->kv_head, unit->dim), args->k_row, keys.rows, unit->dim,
                unit->scratch.panels[0]);
    pack_turned(args->v + place(args->v_row, keys.first, unit->kv_head, unit->dim), args->v_row, keys.rows, unit->dim,
                unit->scratch.panels[1]);
}

void sdpa_backward_q_avx2(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *memory) {
    struct unit unit = unit_open(args, row0, row1, kv_head, memory);
    struct sdpa_range keys = unit_keys(&unit);
    int dim = unit.dim;
    for (int i = 0; i < unit.group; i++)
        rows_clear(args->dq + place(args->dq_row, row0, unit.head0 + i, dim), args->dq_row, unit.rows, dim);
    for (int64_t at = sdpa_block_start(unit.sequence, keys.first); at < keys.last; at += SDPA_BLOCK) {
        struct block block = block_at(at, keys);
        pack_keys_values(&unit, block);
        pack_rows(args->k + place(args->k_row, at, kv_head, dim), args->k_row, block.rows, dim, unit.scratch.panels[2]);
        for (int head = unit.head0; head < unit.head0 + unit.group; head++) {
            struct tile tile = tile_backward(&unit, (struct block){row0, unit.rows}, block, head);
            add_weighted(tile, unit.scratch.d_score, unit.scratch.panels[2], dim,
                         args->dq + place(args->dq_row, row0, head, dim), args->dq_row);
        }
    }
}

void sdpa_backward_kv_avx2(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *memory) {
    struct unit unit = unit_open(args, row0, row1, kv_head, memory);
    struct block keys = {row0, unit.rows};
    struct sdpa_range rows = sdpa_queries(args, unit.sequence, row0);
    int dim = unit.dim;
    float *dk = args->dk + place(args->dk_row, row0, kv_head, dim);
    float *dv = args->dv + place(args->dv_row, row0, kv_head, dim), **panels = unit.scratch.panels;
    rows.last = sdpa_queries(args, unit.sequence, row1 - 1).last;
    rows_clear(dk, args->dk_row, unit.rows, dim);
    rows_clear(dv, args->dv_row, unit.rows, dim);
    pack_keys_values(&unit, keys);
    for (int64_t at = sdpa_block_start(unit.sequence, rows.first); at < rows.last; at += SDPA_BLOCK) {
        struct block block = block_at(at, rows);
        for (int head = unit.head0; head < unit.head0 + unit.group; head++) {
            struct tile tile = tile_backward(&unit, block, keys, head);
            pack_rows(args->d_out + place(args->d_out_row, at, head, dim), args->d_out_row, block.rows, dim, panels[2]);
            pack_rows(args->q + place(args->q_row, at, head, dim), args->q_row, block.rows, dim, panels[3]);
            add_turned(tile, unit.scratch.score, panels[2], dim, dv, args->dv_row);
            add_turned(tile, unit.scratch.d_score, panels[3], dim, dk, args->dk_row);
        }
    }
}
