/* Micro-benchmark of packed weights and matrix products, beside the machine's read bandwidth.
 *
 *   kernels [--threads N] [--isa NAME] [TYPE…]        e.g. kernels --threads 2 q5_0 q8_0
 *
 * Per type, on matrices of 896 columns (2048 for super-blocks) and about 192 MB, far beyond the caches: packing speed,
 * then products with 1…8 rows of activations as GB/s of weights read (best run) and as a share of what a plain
 * read reaches just before and after (median), and with 512 rows as GMAC/s on a 4864-row matrix (best run). */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "tensor/tensor.h"

#define BIG_BYTES  ((size_t)256 << 20)
#define READ_BYTES ((size_t)128 << 20)
#define PREFILL    512

struct job {
    const struct kernels *kernels;
    struct packed *packed;
    const uint8_t *plain;
    struct matmul_args args;
    int64_t tokens, panels, panel_tile, token_tile;
};

static void die(const char *message) {
    fprintf(stderr, "kernels: %s\n", message);
    exit(1);
}

static void *must_alloc(size_t bytes) {
    void *memory = mem_alloc_large(bytes);
    if (!memory) die("out of memory");
    return memory;
}

/* ------------------------------------------------------------ bandwidth */

#define READ_TILE ((size_t)4 << 20)

static void read_tile(void *context, int thread, int64_t tile) {
    (void)thread;
    typedef uint64_t v2 __attribute__((vector_size(16), aligned(16)));
    const v2 *at = (const v2 *)(const void *)((uint8_t *)context + (size_t)tile * READ_TILE);
    v2 even = {0}, odd = {0};
    for (size_t i = 0; i < READ_TILE / sizeof(v2); i += 2) {
        even += at[i];
        odd += at[i + 1];
    }
    even += odd;
    __asm__ volatile("" ::"r"(even[0] + even[1]));
}

/* One pass over `memory`, GB/s. */
static double read_gb_per_s(struct pool *pool, uint8_t *memory) {
    uint64_t start = clock_ns();
    pool_run(pool, read_tile, memory, (int64_t)(READ_BYTES / READ_TILE));
    return (double)READ_BYTES / (double)(clock_ns() - start);
}

/* ------------------------------------------------------------- products */

static void product_tile(void *context, int thread, int64_t tile) {
    (void)thread;
    const struct job *job = context;
    int64_t across = (job->panels + job->panel_tile - 1) / job->panel_tile;
    int64_t panel = tile % across * job->panel_tile, token = tile / across * job->token_tile;
    int64_t panel_end = panel + job->panel_tile, token_end = token + job->token_tile;
    job->kernels->matmul[job->packed->dtype](&job->args, panel, panel_end < job->panels ? panel_end : job->panels,
                                             token, token_end < job->tokens ? token_end : job->tokens);
}

static void pack_tile(void *context, int thread, int64_t tile) {
    (void)thread;
    struct job *job = context;
    int64_t first = tile * 16, last = first + 16;
    packed_fill(job->packed, job->plain, first, last < job->panels ? last : job->panels);
}

static double one_run_s(struct pool *pool, struct job *job, int64_t tokens) {
    job->tokens = tokens;
    job->token_tile = tokens <= 8 ? tokens : 64;
    job->panel_tile = 32;
    int64_t across = (job->panels + job->panel_tile - 1) / job->panel_tile;
    uint64_t start = clock_ns();
    pool_run(pool, product_tile, job, across * ((tokens + job->token_tile - 1) / job->token_tile));
    return (double)(clock_ns() - start) * 1e-9;
}

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#define ROUNDS 9

/* Weight bytes per second over read bytes per second: median of pairs measured back to back, for machines whose
 * bandwidth changes from second to second. *best is the fastest run in GB/s. */
static double share_of_read(struct pool *pool, struct job *job, int64_t tokens, size_t bytes, uint8_t *memory,
                            double *best) {
    double ratio[ROUNDS];
    *best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double read = read_gb_per_s(pool, memory), rate = (double)bytes / one_run_s(pool, job, tokens) * 1e-9;
        double again = read_gb_per_s(pool, memory);
        ratio[round] = rate / (read > again ? read : again);
        if (rate > *best) *best = rate;
    }
    qsort(ratio, ROUNDS, sizeof *ratio, compare_double);
    return ratio[ROUNDS / 2];
}

/* Random bits with every 16-bit word kept small enough to be a sane half. */
static void noise(uint8_t *bytes, size_t count) {
    struct rng rng;
    rng_seed(&rng, 1);
    for (size_t i = 0; i + 8 <= count; i += 8) {
        uint64_t word = rng_next(&rng) & UINT64_C(0x2fff2fff2fff2fff);
        memcpy(bytes + i, &word, 8);
    }
}

static void type_run(struct pool *pool, const struct kernels *kernels, enum dtype dtype, int64_t rows, bool prefill,
                     uint8_t *memory) {
    int64_t cols = dtype_table[dtype].block == 256 ? 2048 : 896;
    size_t row_bytes = dtype_row_bytes(dtype, cols);
    if (rows == 0) rows = (int64_t)(BIG_BYTES / row_bytes);
    struct packed packed;
    size_t packed_bytes = packed_plan(kernels, dtype, rows, cols, &packed), plain_bytes = (size_t)rows * row_bytes;
    uint8_t *plain = must_alloc(plain_bytes);
    noise(plain, plain_bytes);
    packed.data = must_alloc(packed_bytes);
    memset(packed.data, 0, packed_bytes);
    bool quantised = dtype_table[dtype].block > 1;
    size_t x_row_bytes = quantised ? act8_row_bytes(cols) : (size_t)cols * sizeof(float);
    size_t x_bytes = PREFILL * x_row_bytes, out_bytes = (size_t)(prefill ? PREFILL : 8) * (size_t)rows * sizeof(float);
    uint8_t *x = must_alloc(x_bytes);
    float *values = must_alloc((size_t)cols * sizeof(float));
    struct rng rng;
    rng_seed(&rng, 2);
    for (int t = 0; t < PREFILL; t++) {
        for (int64_t c = 0; c < cols; c++) values[c] = rng_normal(&rng);
        if (quantised)
            kernels->act8_quantize(values, cols, x + (size_t)t * x_row_bytes);
        else
            memcpy(x + (size_t)t * x_row_bytes, values, (size_t)cols * sizeof(float));
    }
    float *out = must_alloc(out_bytes);
    struct job job = {kernels, &packed, plain, {&packed, x, x_row_bytes, NULL, out, rows}, 0, packed_panels(&packed),
                      32,      1};
    uint64_t start = clock_ns();
    pool_run(pool, pack_tile, &job, (job.panels + 15) / 16);
    double pack = (double)plain_bytes / (double)(clock_ns() - start);
    if (prefill) {
        double macs = (double)rows * (double)cols * PREFILL, best = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            double seconds = one_run_s(pool, &job, PREFILL);
            if (seconds < best) best = seconds;
        }
        printf("  prefill %6.1f GMAC/s\n", macs / best * 1e-9);
    } else {
        static const int counts[] = {1, 2, 3, 4, 6, 8};
        printf("%-5s pack %5.1f GB/s, decode GB/s (of read)", dtype_table[dtype].name, pack);
        for (int i = 0; i < 6; i++) {
            double best, share = share_of_read(pool, &job, counts[i], packed_bytes, memory, &best);
            printf("  %d: %4.1f (%3.0f%%)", counts[i], best, 100 * share);
        }
    }
    fflush(stdout);
    mem_free_large(out, out_bytes);
    mem_free_large(values, (size_t)cols * sizeof(float));
    mem_free_large(x, x_bytes);
    mem_free_large(packed.data, packed_bytes);
    mem_free_large(plain, plain_bytes);
}

int main(int argc, char **argv) {
    int threads = 2;
    const char *isa = NULL;
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (strcmp(argv[at], "--threads") == 0)
            threads = (int)strtol(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--isa") == 0)
            isa = argv[at + 1];
        else
            die("usage: kernels [--threads N] [--isa NAME] [TYPE…]");
    }
    struct shu_error err = {0};
    struct pool *pool;
    const struct kernels *kernels;
    if (kernels_select(isa, &kernels, &err) || pool_new(threads, &pool, &err)) die(err.message);
    uint8_t *memory = must_alloc(READ_BYTES);
    memset(memory, 1, READ_BYTES);
    printf("%s, %d threads\n", kernels->isa, threads);
    for (int dtype = 0; dtype < DT_COUNT; dtype++) {
        bool wanted = at >= argc;
        for (int i = at; i < argc; i++) wanted = wanted || dtype_from_name(argv[i]) == dtype;
        if (!wanted || !kernels->matmul[dtype]) continue;
        type_run(pool, kernels, (enum dtype)dtype, 0, false, memory);
        type_run(pool, kernels, (enum dtype)dtype, 4864, true, memory);
    }
    mem_free_large(memory, READ_BYTES);
    pool_free(pool);
    return 0;
}
