/* Thread pool: every tile once, results visible, no lost wake-up, late workers harmless. */
#include "check.h"

#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TILES = 4096 };

struct job {
    int threads;
    atomic_int hits[MAX_TILES];
    int64_t value[MAX_TILES]; /* plain memory: the pool must order it (TSan looks) */
    int64_t factor;
};

static void mark(void *context, int thread, int64_t tile) {
    struct job *job = context;
    assert_in_range(thread, 0, job->threads - 1);
    atomic_fetch_add_explicit(&job->hits[tile], 1, memory_order_relaxed);
    job->value[tile] = tile * job->factor;
}

static void run_and_check(struct pool *pool, struct job *job, int64_t tiles, int64_t factor) {
    job->factor = factor;
    for (int64_t i = 0; i < tiles; i++) atomic_store_explicit(&job->hits[i], 0, memory_order_relaxed);
    pool_run(pool, mark, job, tiles);
    for (int64_t i = 0; i < tiles; i++) {
        if (atomic_load_explicit(&job->hits[i], memory_order_relaxed) != 1) fail_msg("tile %d ran not once", (int)i);
        if (job->value[i] != i * factor) fail_msg("tile %d: result not visible", (int)i);
    }
}

static void every_tile_runs_once(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 3, 8, 17};
    static const int64_t tiles[] = {0, 1, 2, 3, 7, 64, 1000, MAX_TILES};
    struct job *job = mem_calloc(1, sizeof *job);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        struct pool *pool = NULL;
        struct shu_error err = {0};
        assert_ok(pool_new(counts[c], &pool, &err), err);
        assert_int_equal(pool_threads(pool), counts[c]);
        job->threads = counts[c];
        for (size_t t = 0; t < sizeof tiles / sizeof *tiles; t++) run_and_check(pool, job, tiles[t], (int64_t)t + 1);
        pool_free(pool);
    }
    mem_free(job);
}

/* Short runs back to back, with pauses now and then so that workers fall asleep in between: the traffic of decoding. */
static void many_short_runs(void **state) {
    (void)state;
    struct job *job = mem_calloc(1, sizeof *job);
    static const int counts[] = {2, 5};
    for (size_t c = 0; c < 2; c++) {
        struct pool *pool = NULL;
        assert_int_equal(pool_new(counts[c], &pool, NULL), SHU_OK);
        job->threads = counts[c];
        struct rng rng;
        rng_seed(&rng, 7);
        for (int run = 0; run < 3000; run++) {
            run_and_check(pool, job, (int64_t)(rng_next(&rng) % 12), run);
            if (run % 200 == 0) nanosleep(&(struct timespec){.tv_nsec = 300000}, NULL);
        }
        pool_free(pool);
    }
    mem_free(job);
}

static void uneven(void *context, int thread, int64_t tile) {
    struct job *job = context;
    (void)thread;
    if (tile % 7 == 0) nanosleep(&(struct timespec){.tv_nsec = 400000}, NULL); /* longer than anybody spins */
    job->value[tile] = tile + job->factor;
}

static void caller_sleeps_while_workers_work(void **state) {
    (void)state;
    struct job *job = mem_calloc(1, sizeof *job);
    struct pool *pool = NULL;
    assert_int_equal(pool_new(2, &pool, NULL), SHU_OK);
    for (int run = 0; run < 60; run++) {
        job->factor = run;
        pool_run(pool, uneven, job, 15);
        for (int64_t i = 0; i < 15; i++) assert_int_equal(job->value[i], i + run);
    }
    pool_free(pool);
    mem_free(job);
}

static void add_tile(void *context, int thread, int64_t tile) {
    double *parts = context;
    (void)thread;
    double sum = 0;
    for (int i = 1; i <= 100; i++) sum += 1.0 / (double)(tile * 100 + i);
    parts[tile] = sum;
}

/* One partial result per tile, added in tile order: bit-identical whatever the number of threads. */
static void reductions_do_not_depend_on_threads(void **state) {
    (void)state;
    double expected = 0;
    for (int threads = 1; threads <= 6; threads++) {
        double parts[200], sum = 0;
        struct pool *pool = NULL;
        assert_int_equal(pool_new(threads, &pool, NULL), SHU_OK);
        pool_run(pool, add_tile, parts, 200);
        for (int i = 0; i < 200; i++) sum += parts[i];
        if (threads == 1) expected = sum;
        assert_memory_equal(&sum, &expected, sizeof sum);
        pool_free(pool);
    }
}

static void bad_counts_and_failures_are_errors(void **state) {
    (void)state;
    struct pool *pool = NULL;
    struct shu_error err = {0};
    assert_int_equal(pool_new(-1, &pool, &err), SHU_E_USAGE);
    assert_contains(err.message, "found -1");
    assert_int_equal(pool_new(257, &pool, &err), SHU_E_USAGE);
    assert_null(pool);
    pool_free(NULL);
    assert_int_equal(pool_new(0, &pool, &err), SHU_OK);
    assert_int_equal(pool_threads(pool), cpu_usable());
    pool_free(pool);
    long rounds;
    assert_fails_at_each(FAULT_ALLOC, SHU_E_NOMEM, pool_new(4, &pool, &err), rounds);
    assert_int_equal(rounds, 4); /* the pool and three threads */
    pool_free(pool);
}

static void idle(void *context, int thread, int64_t tile) {
    (void)context, (void)thread, (void)tile;
}

/* Not a benchmark: only that a run costs microseconds and not a scheduler's time slice. */
static void a_run_is_cheap(void **state) {
    (void)state;
    struct pool *pool = NULL;
    assert_int_equal(pool_new(2, &pool, NULL), SHU_OK);
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < 20; round++) {
        uint64_t start = clock_ns();
        for (int run = 0; run < 100; run++) pool_run(pool, idle, NULL, 2);
        uint64_t each = (clock_ns() - start) / 100;
        if (each < best) best = each;
    }
    print_message("an empty run of 2 tiles on 2 threads: %u ns\n", (unsigned)best);
    assert_true(best < 200000);
    pool_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tile_runs_once),
        cmocka_unit_test(many_short_runs),
        cmocka_unit_test(caller_sleeps_while_workers_work),
        cmocka_unit_test(reductions_do_not_depend_on_threads),
        cmocka_unit_test(bad_counts_and_failures_are_errors),
        cmocka_unit_test(a_run_is_cheap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
