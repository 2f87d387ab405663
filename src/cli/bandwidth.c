/* How fast this machine reads memory: the bound of decoding. */
#include <stdlib.h>

#include "cli/bandwidth.h"

enum { TILE_BYTES = 4 << 20 };

typedef uint64_t wide __attribute__((vector_size(32)));

struct sweep {
    const wide *data;
    uint64_t *sink; /* [tiles]: keeps the sums alive */
};

static void sweep_tile(void *context, int thread, int64_t tile) {
    (void)thread;
    const struct sweep *sweep = context;
    const wide *at = sweep->data + (size_t)tile * (TILE_BYTES / sizeof(wide));
    wide a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i < TILE_BYTES / sizeof(wide); i += 4) {
        a += at[i];
        b += at[i + 1];
        c += at[i + 2];
        d += at[i + 3];
    }
    a = (a + b) + (c + d);
    sweep->sink[tile] = a[0] + a[1] + a[2] + a[3];
}

int bandwidth_measure(int threads, double *gb_per_s, struct shu_error *err) {
    const size_t bytes = (size_t)1 << 30;
    const int64_t tiles = (int64_t)(bytes / TILE_BYTES);
    struct pool *pool = NULL;
    uint64_t *sink = mem_calloc((size_t)tiles, sizeof *sink);
    char *block = mem_alloc_large(bytes);
    uint64_t best_ns = UINT64_MAX;
    int status = sink && block ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "expected 1 GiB of memory to measure its speed");
    if (!status) status = pool_new(threads, &pool, err);
    if (status) goto out;
    for (size_t i = 0; i < bytes; i += 4096) block[i] = 1; /* real pages, not the shared zero page */
    struct sweep sweep = {(const wide *)(const void *)block, sink};
    for (int round = 0; round < 5; round++) {
        uint64_t start_ns = clock_ns();
        pool_run(pool, sweep_tile, &sweep, tiles);
        uint64_t ns = clock_ns() - start_ns;
        best_ns = ns < best_ns ? ns : best_ns;
    }
    *gb_per_s = (double)bytes / (double)best_ns;
out:
    pool_free(pool);
    mem_free_large(block, bytes);
    mem_free(sink);
    return status;
}
