/* Attention and the KV store: against a double reference for every instruction set, and the fixed-order
 * rule as equality of bits: however rows and heads are cut and whatever the instruction set, a query's result is the
 * same. */
#include "check.h"

#include <float.h>

#define SEQUENCES 2
#define LAYERS    2

/* A cache with scattered pages, and the vectors that went into it. */
struct world {
    struct kv_step step;
    int heads, length, pages_each;
    struct kv_row *rows;
    int32_t *tables[SEQUENCES];
    uint8_t *layers[LAYERS];
    float *k, *v, *q; /* [length, heads * D] of sequence 1 */
    struct rng rng;
};

static float *random_floats(struct rng *rng, int64_t count, float size) {
    float *x = malloc((size_t)count * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) x[i] = size * rng_normal(rng);
    return x;
}

/* Pages are dealt out in random order to both sequences, and filled with NaN bytes first: what a
 * query must not see must not matter even then. */
static void world_new(struct world *w, enum kv_type type, int kv_heads, int group, int dim, int length) {
    memset(w, 0, sizeof *w);
    rng_seed(&w->rng, (uint64_t)(length * 1000 + dim * 10 + group));
    w->heads = kv_heads * group, w->length = length;
    w->pages_each = (length + KV_PAGE - 1) / KV_PAGE;
    int pages = w->pages_each * SEQUENCES;
    int32_t *deck = malloc((size_t)pages * sizeof *deck);
    for (int i = 0; i < pages; i++) deck[i] = i;
    for (int i = pages - 1; i > 0; i--) {
        int j = (int)(rng_next(&w->rng) % (uint64_t)(i + 1));
        int32_t swap = deck[i];
        deck[i] = deck[j], deck[j] = swap;
    }
    for (int s = 0; s < SEQUENCES; s++) {
        w->tables[s] = malloc((size_t)w->pages_each * sizeof(int32_t));
        memcpy(w->tables[s], deck + s * w->pages_each, (size_t)w->pages_each * sizeof(int32_t));
    }
    free(deck);
    w->step = (struct kv_step){.type = type, .kv_heads = kv_heads, .head_dim = dim, .rows = length};
    w->step.page_bytes = (size_t)kv_heads * kv_page_head_bytes(type, dim);
    for (int l = 0; l < LAYERS; l++) {
        size_t bytes = w->step.page_bytes * (size_t)pages;
        w->layers[l] = aligned_alloc(64, (bytes + 63) / 64 * 64);
        memset(w->layers[l], 0xFF, bytes);
    }
    w->rows = malloc((size_t)length * sizeof *w->rows);
    for (int i = 0; i < length; i++) w->rows[i] = (struct kv_row){1, i};
    w->step.row = w->rows;
    w->step.tables = (const int32_t *const *)w->tables;
    w->step.layer_base = w->layers;
    w->k = random_floats(&w->rng, (int64_t)length * kv_heads * dim, 1.0f);
    w->v = random_floats(&w->rng, (int64_t)length * kv_heads * dim, 1.0f);
    w->q = random_floats(&w->rng, (int64_t)length * w->heads * dim, 2.0f);
}

static void world_free(struct world *w) {
    for (int s = 0; s < SEQUENCES; s++) free(w->tables[s]);
    for (int l = 0; l < LAYERS; l++) free(w->layers[l]);
    free(w->rows), free(w->k), free(w->v), free(w->q);
}

static void world_store(struct world *w, const struct kernels *kernels, int64_t row0, int64_t row1) {
    int64_t width = (int64_t)w->step.kv_heads * w->step.head_dim;
    for (int64_t row = row0; row < row1; row++)
        kernels->kv_store(&w->step, 1, row, w->k + row * width, w->v + row * width);
}

static struct attention_args world_args(const struct world *w, int window, float softcap, float *out) {
    int64_t width = (int64_t)w->heads * w->step.head_dim;
    return (struct attention_args){.step = &w->step,
                                   .layer = 1,
                                   .heads = w->heads,
                                   .scale = 1.0f / sqrtf((float)w->step.head_dim),
                                   .softcap = softcap,
                                   .window = window,
                                   .q = w->q,
                                   .q_stride = width,
                                   .out = out,
                                   .out_stride = width};
}

/* Rows [row0, row1) in chunks, heads of each group in parts of at most `part`. */
static void attend(const struct kernels *kernels, const struct attention_args *args, int64_t row0, int64_t row1,
                   int64_t chunk, int part) {
    void *scratch = aligned_alloc(64, (attention_scratch_bytes(args->step->head_dim) + 63) / 64 * 64);
    int group = args->heads / args->step->kv_heads;
    memset(scratch, 0xFF, attention_scratch_bytes(args->step->head_dim));
    for (int64_t row = row0; row < row1; row += chunk) {
        int64_t end = row + chunk < row1 ? row + chunk : row1;
        for (int kv_head = 0; kv_head < args->step->kv_heads; kv_head++) {
            for (int at = 0; at < group; at += part) {
                int first = kv_head * group + at;
                int last = at + part < group ? first + part : (kv_head + 1) * group;
                kernels->attention(args, row, end, first, last, scratch);
            }
        }
    }
    free(scratch);
}

/* What the cache keeps of one vector. */
static void stored_value(enum kv_type type, const float *x, int dim, double *out) {
    float max = 0;
    for (int d = 0; d < dim; d++) max = fmaxf(max, fabsf(x[d]));
    float scale = max / 127.0f;
    for (int d = 0; d < dim; d++) {
        if (type == KV_F16)
            out[d] = (double)f16_to_f32(f32_to_f16(x[d]));
        else
            out[d] = (double)scale * (double)nearbyintf(x[d] / scale);
    }
}

static void reference_row(const struct world *w, const struct attention_args *args, int64_t row, int head,
                          double *out) {
    int dim = w->step.head_dim, kv_head = head / (w->heads / w->step.kv_heads);
    int64_t width = (int64_t)w->step.kv_heads * dim, start = 0;
    double *weight = malloc((size_t)(row + 1) * sizeof *weight), kept[256], max = -INFINITY, sum = 0;
    if (args->window > 0 && row >= args->window) start = row - args->window + 1;
    for (int64_t at = start; at <= row; at++) {
        stored_value(w->step.type, w->k + at * width + kv_head * dim, dim, kept);
        double dot = 0;
        for (int d = 0; d < dim; d++) dot += kept[d] * (double)args->q[row * args->q_stride + head * dim + d];
        dot *= (double)args->scale;
        if (args->softcap > 0) dot = (double)args->softcap * tanh(dot / (double)args->softcap);
        weight[at] = dot;
        max = fmax(max, dot);
    }
    for (int d = 0; d < dim; d++) out[d] = 0;
    for (int64_t at = start; at <= row; at++) {
        double p = exp(weight[at] - max);
        sum += p;
        stored_value(w->step.type, w->v + at * width + kv_head * dim, dim, kept);
        for (int d = 0; d < dim; d++) out[d] += p * kept[d];
    }
    for (int d = 0; d < dim; d++) out[d] /= sum;
    free(weight);
}

static double world_error(const struct world *w, const struct attention_args *args, int64_t row) {
    int dim = w->step.head_dim;
    double *want = malloc((size_t)(w->heads * dim) * sizeof *want);
    for (int head = 0; head < w->heads; head++) reference_row(w, args, row, head, want + head * dim);
    double error = nmse(args->out + row * args->out_stride, want, w->heads * dim);
    free(want);
    return error;
}

/* ------------------------------------------------------------------- cases */

struct shape {
    int kv_heads, group, dim, length, window;
    float softcap;
};

static const struct shape shapes[] = {
    {2, 7, 64, 200, 0, 0},   {1, 4, 256, 130, 0, 0}, {2, 6, 128, 97, 0, 0},    {3, 1, 64, 150, 0, 0},
    {1, 4, 256, 200, 33, 0}, {2, 3, 80, 129, 1, 0},  {1, 2, 8, 65, 64, 5.0f},  {2, 8, 96, 140, 70, 30.0f},
    {1, 5, 72, 63, 0, 2.0f}, {2, 7, 64, 1061, 0, 0}, {1, 3, 64, 1030, 500, 0}, {1, 16, 40, 17, 0, 0},
};

/* Scalar and emulated kernels, and all of them under a sanitizer: the short shapes are enough. */
static bool is_slow(int isa) {
#ifdef SHU_SANITIZED
    return isa >= 0;
#else
    return isa != 1;
#endif
}

/* One shape on one set; `bits` holds what the first set made of it. */
static void check_shape(const struct kernels *kernels, bool first, size_t number, enum kv_type type, float *bits) {
    const struct shape *shape = &shapes[number];
    struct world w;
    world_new(&w, type, shape->kv_heads, shape->group, shape->dim, shape->length);
    world_store(&w, kernels, 0, w.length);
    int64_t elements = (int64_t)w.length * w.heads * shape->dim;
    struct guarded out = guarded_new((size_t)elements * sizeof(float));
    struct attention_args args = world_args(&w, shape->window, shape->softcap, out.data);
    attend(kernels, &args, 0, w.length, 64, 16);
    assert_true(guarded_intact(&out));
    for (int64_t row = 0; row < w.length; row += row < 70 || row > w.length - 3 ? 1 : 37) {
        double error = world_error(&w, &args, row);
        if (!(error <= 2e-11))
            fail_msg("%s shape %zu type %d row %lld: nmse %g", kernels->isa, number, type, (long long)row, error);
    }
    if (first) memcpy(bits, out.data, out.bytes);
    int64_t at = bits_differ(bits, out.data, elements);
    if (at >= 0)
        fail_msg("%s shape %zu type %d: element %lld has other bits", kernels->isa, number, type, (long long)at);
    guarded_free(&out);
    world_free(&w);
}

static void test_matches_double_reference(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct shape *shape = &shapes[i];
        float *bits = malloc((size_t)(shape->length * shape->kv_heads * shape->group * shape->dim) * sizeof *bits);
        for (int type = KV_F16; type <= KV_Q8; type++) {
            bool first = true;
            for (int isa = 0; isa < count; isa++) {
                if (is_slow(isa) && shape->length > 300) continue;
                check_shape(tables[isa], first, i, (enum kv_type)type, bits);
                first = false;
            }
        }
        free(bits);
    }
}

/* Decode, prefill in chunks of any size, heads in parts: the same bits. Rows are stored only as far as the
 * chunk needs, so a later key cannot leak into an earlier row either. */
static void test_cuts_change_nothing(void **state) {
    (void)state;
    static const struct {
        int64_t chunk;
        int part;
    } cuts[] = {{1, 16}, {1, 1}, {1, 3}, {7, 2}, {16, 16}, {64, 5}, {100, 16}, {512, 16}};
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int isa = 0; isa < count; isa++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            for (int type = KV_F16; type <= KV_Q8; type++) {
                const struct shape *shape = &shapes[i];
                if (is_slow(isa) && shape->length > 130) continue;
                size_t bytes = (size_t)shape->length * (size_t)(shape->kv_heads * shape->group * shape->dim) * 4;
                float *first = malloc(bytes), *again = malloc(bytes);
                for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
                    struct world w;
                    world_new(&w, type, shape->kv_heads, shape->group, shape->dim, shape->length);
                    struct attention_args args = world_args(&w, shape->window, shape->softcap, c ? again : first);
                    for (int64_t row = 0; row < w.length; row += cuts[c].chunk) {
                        int64_t end = row + cuts[c].chunk < w.length ? row + cuts[c].chunk : w.length;
                        world_store(&w, tables[isa], row, end);
                        attend(tables[isa], &args, row, end, cuts[c].chunk, cuts[c].part);
                    }
                    if (c && memcmp(first, again, bytes) != 0)
                        fail_msg("%s shape %zu type %d: cut %zu changes bits", tables[isa]->isa, i, type, c);
                    world_free(&w);
                }
                free(first), free(again);
            }
        }
    }
}

/* Every length from 1 to 200: the last row against the reference. */
static void test_every_length(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int isa = 0; isa < count; isa++) {
        struct world w;
        world_new(&w, KV_F16, 1, 7, 64, 200);
        float *out = malloc((size_t)w.length * (size_t)w.heads * 64 * sizeof *out);
        struct attention_args args = world_args(&w, 0, 0, out);
        for (int64_t row = 0; row < w.length; row++) {
            world_store(&w, tables[isa], row, row + 1);
            attend(tables[isa], &args, row, row + 1, 1, 16);
            assert_true(world_error(&w, &args, row) <= 2e-11);
        }
        free(out);
        world_free(&w);
    }
}

/* The checks above must be able to fail: one key changed in its last stored bit shows in both. */
static void test_negative_control(void **state) {
    (void)state;
    const struct kernels *kernels;
    assert_int_equal(kernels_select(NULL, &kernels, NULL), SHU_OK);
    struct world w;
    world_new(&w, KV_F16, 1, 2, 64, 100);
    size_t bytes = (size_t)w.length * (size_t)w.heads * 64 * sizeof(float);
    float *before = malloc(bytes), *after = malloc(bytes);
    world_store(&w, kernels, 0, w.length);
    struct attention_args args = world_args(&w, 0, 0, before);
    attend(kernels, &args, 0, w.length, 64, 16);
    w.k[50 * 64 + 3] += 0.25f;
    world_store(&w, kernels, 50, 51);
    w.k[50 * 64 + 3] -= 0.25f; /* the reference does not know of it */
    args.out = after;
    attend(kernels, &args, 0, w.length, 64, 16);
    assert_memory_equal(before, after, (size_t)50 * (size_t)w.heads * 64 * sizeof(float)); /* rows before it */
    assert_memory_not_equal(before, after, bytes);
    assert_false(world_error(&w, &args, 60) <= 2e-11);
    free(before), free(after);
    world_free(&w);
}

/* A window equal to the length is no window; NaN in a visible value spreads, in a hidden one does not. */
static void test_window_and_nan(void **state) {
    (void)state;
    static float first[2][90 * 3 * 64];
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int isa = 0; isa < count; isa++) {
        for (int type = KV_F16; type <= KV_Q8; type++) {
            struct world w;
            world_new(&w, type, 1, 3, 64, 90);
            size_t bytes = (size_t)w.length * (size_t)w.heads * 64 * sizeof(float);
            float *full = malloc(bytes), *windowed = malloc(bytes);
            w.v[20 * 64 + 7] = NAN;
            w.k[30 * 64 + 9] = INFINITY;
            world_store(&w, tables[isa], 0, w.length);
            struct attention_args args = world_args(&w, 0, 0, full);
            attend(tables[isa], &args, 0, w.length, 32, 16);
            args = world_args(&w, w.length, 0, windowed);
            attend(tables[isa], &args, 0, w.length, 32, 16);
            assert_memory_equal(full, windowed, bytes);
            assert_true(isfinite(full[19 * w.heads * 64 + 7]));
            assert_true(isnan(full[20 * w.heads * 64 + 7]));
            if (isa == 0) memcpy(first[type], full, bytes);
            assert_int_equal(bits_differ(first[type], full, w.length * w.heads * 64), -1);
            args = world_args(&w, 10, 0, windowed);
            attend(tables[isa], &args, 0, w.length, 32, 16);
            assert_true(isnan(windowed[29 * w.heads * 64 + 7]) && isnan(windowed[39 * w.heads * 64 + 7]));
            for (int i = 0; i < w.heads * 64; i++) assert_true(isfinite(windowed[40 * w.heads * 64 + i]));
            free(full), free(windowed);
            world_free(&w);
        }
    }
}

/* Instruction sets write the same cache. */
static void test_store_agrees(void **state) {
    (void)state;
    const struct kernels *tables[3];
    int count = isa_tables(tables);
    for (int type = KV_F16; type <= KV_Q8; type++) {
        for (int isa = 1; isa < count; isa++) {
            struct world a, b;
            world_new(&a, type, 2, 1, 88, 70);
            world_new(&b, type, 2, 1, 88, 70);
            for (int d = 0; d < 2 * 88; d++) a.k[5 * 2 * 88 + d] = b.k[5 * 2 * 88 + d] = 0; /* a vector of zeros */
            world_store(&a, tables[0], 0, a.length);
            world_store(&b, tables[isa], 0, b.length);
            assert_memory_equal(a.layers[1], b.layers[1], a.step.page_bytes * 2 * (size_t)a.pages_each);
            assert_memory_equal(a.layers[0], b.layers[0], a.step.page_bytes * 2 * (size_t)a.pages_each); /* untouched */
            world_free(&a), world_free(&b);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matches_double_reference),
        cmocka_unit_test(test_cuts_change_nothing),
        cmocka_unit_test(test_every_length),
        cmocka_unit_test(test_negative_control),
        cmocka_unit_test(test_window_and_nan),
        cmocka_unit_test(test_store_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
