/* Helpers of the graph tests: random data, error measure, a graph run in one call. */
#ifndef TESTS_GRAPH_CHECK_H
#define TESTS_GRAPH_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "graph/graph.h"
#include "support/reference.h"

static inline void fill_normal(struct rng *rng, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = rng_normal(rng);
}

/* Written so that a NaN fails. */
#define assert_nmse(found, wanted, count, bound)                                                                       \
    do {                                                                                                               \
        double nmse_ = nmse((found), (wanted), (count));                                                               \
        if (!(nmse_ <= (bound))) fail_msg("NMSE %g, bound %g", nmse_, (double)(bound));                                \
    } while (0)

static inline struct graph *new_graph(void) {
    struct graph *graph = NULL;
    struct shu_error err = {0};
    if (graph_new(kernels_get(), &graph, &err)) fail_msg("%s", err.message);
    return graph;
}

static inline void plan_graph(struct graph *graph, int64_t rows, int64_t gathered, int threads) {
    struct shu_error err = {0};
    if (graph_plan(graph, rows, gathered, threads, &err)) fail_msg("%s", err.message);
}

static inline struct pool *new_pool(int threads) {
    struct pool *pool = NULL;
    struct shu_error err = {0};
    if (pool_new(threads, &pool, &err)) fail_msg("%s", err.message);
    return pool;
}

static inline void run_graph(struct graph *graph, struct pool *pool, const struct graph_step *step) {
    struct shu_error err = {0};
    if (graph_run(graph, pool, step, &err)) fail_msg("%s", err.message);
}

/* Random matrix packed for the chosen kernels; `plain` receives its decoded values [rows, cols]. */
static inline void random_packed(struct rng *rng, enum dtype dtype, int64_t rows, int64_t cols, struct packed *out,
                                 float *plain) {
    size_t row_bytes = dtype_row_bytes(dtype, cols);
    uint8_t *encoded = mem_alloc(row_bytes * (size_t)rows);
    assert_non_null(encoded);
    fill_normal(rng, plain, rows * cols);
    for (int64_t row = 0; row < rows; row++) {
        dtype_table[dtype].from_f32(plain + row * cols, NULL, encoded + (size_t)row * row_bytes, cols);
        dtype_table[dtype].to_f32(encoded + (size_t)row * row_bytes, plain + row * cols, cols);
    }
    size_t bytes = packed_plan(kernels_get(), dtype, rows, cols, out);
    out->data = mem_alloc_large(bytes);
    assert_non_null(out->data);
    packed_fill(out, encoded, 0, packed_panels(out));
    mem_free(encoded);
}

static inline void free_packed(struct packed *packed) {
    mem_free_large(packed->data, (size_t)packed_panels(packed) * packed->panel_bytes);
}

#endif
