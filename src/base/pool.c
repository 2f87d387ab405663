/* Thread pool: tiles from an atomic counter, spin then futex.
 *
 * A run publishes its job, then sets `remaining` to the number of tiles. Whoever
 * decrements `remaining` from r > 0 owns tile (tiles - r): as long as that tile is not
 * reported done, the run cannot return and the job's fields cannot change. So
 * nobody waits for a worker that sleeps or has lost its core unless it holds a
 * tile, and a worker that comes late finds either nothing or honest work.
 */
#include "base/base.h"

#include <assert.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POOL_MAX_THREADS 256
/* Between two runs of one decode step lie a few microseconds; between two tokens a few hundred, where sleeping is
 * right. */
#define SPIN_NS 50000u

struct worker {
    struct pool *pool;
    pthread_t handle;
    int index;
};

struct pool {
    /* Written by the caller before `remaining`; read only by owners of a tile. */
    pool_task *task;
    void *context;
    int64_t tiles;
    int threads, started;
    uint64_t spin_ns;
    atomic_bool running; /* catches nested and concurrent runs */
    struct worker workers[POOL_MAX_THREADS];
    /* Each on a cache line of its own: tiles are taken while completions are counted. */
    _Alignas(64) atomic_llong remaining; /* tiles not yet taken; may fall below 0 */
    _Alignas(64) atomic_llong pending;   /* tiles not yet reported done */
    _Alignas(64) atomic_uint epoch;      /* futex word of sleeping workers; +1 per run */
    atomic_uint sleepers;
    atomic_bool stop;
    _Alignas(64) atomic_uint finished; /* futex word of a sleeping caller */
    atomic_bool caller_sleeps;
};

/* -------------------------------------------------------------- waiting */

static void futex_wait(atomic_uint *word, unsigned expected) {
    syscall(SYS_futex, (unsigned *)word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word) {
    syscall(SYS_futex, (unsigned *)word, FUTEX_WAKE_PRIVATE, POOL_MAX_THREADS, NULL, NULL, 0);
}

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spins until `ready` or the time is over. The clock costs as much as some dozen rounds, so it is asked rarely. */
static bool spin_until(struct pool *pool, bool (*ready)(struct pool *)) {
    if (ready(pool)) return true;
    if (pool->spin_ns == 0) return false;
    uint64_t end = clock_ns() + pool->spin_ns;
    do {
        for (int i = 0; i < 32; i++) {
            cpu_relax();
            if (ready(pool)) return true;
        }
    } while (clock_ns() < end);
    return false;
}

static bool work_ready(struct pool *pool) {
    return atomic_load_explicit(&pool->remaining, memory_order_relaxed) > 0 ||
           atomic_load_explicit(&pool->stop, memory_order_relaxed);
}

static bool work_done(struct pool *pool) {
    return atomic_load_explicit(&pool->pending, memory_order_acquire) == 0;
}

/* --------------------------------------------------------------- tiles */

/* Takes tiles until none is left. The tiles are reported together at the end: until then the run cannot
 * finish, so all of them belong to the same job. */
static void take_tiles(struct pool *pool, int thread) {
    long long count = 0;
    while (atomic_load_explicit(&pool->remaining, memory_order_relaxed) > 0) {
        long long left = atomic_fetch_sub_explicit(&pool->remaining, 1, memory_order_acquire);
        if (left <= 0) break;
        pool->task(pool->context, thread, pool->tiles - left);
        count++;
    }
    if (count == 0 || atomic_fetch_sub(&pool->pending, count) != count) return;
    /* Sequentially consistent with wait_done: either we see the sleeper or it sees pending == 0. */
    if (!atomic_load(&pool->caller_sleeps)) return;
    atomic_fetch_add(&pool->finished, 1);
    futex_wake_all(&pool->finished);
}

static void wait_done(struct pool *pool) {
    if (spin_until(pool, work_done)) return;
    atomic_store(&pool->caller_sleeps, true);
    for (;;) {
        unsigned seen = atomic_load(&pool->finished);
        if (atomic_load(&pool->pending) == 0) break;
        futex_wait(&pool->finished, seen);
    }
    atomic_store(&pool->caller_sleeps, false);
}

/* A worker reads the epoch before it looks for work: a run that starts in between changes the epoch, and
 * the futex refuses to sleep on the old one. */
static void sleep_for_work(struct pool *pool) {
    unsigned seen = atomic_load(&pool->epoch);
    if (work_ready(pool)) return;
    atomic_fetch_add(&pool->sleepers, 1);
    futex_wait(&pool->epoch, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *worker_main(void *argument) {
    struct worker *self = argument;
    struct pool *pool = self->pool;
    while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
        if (spin_until(pool, work_ready))
            take_tiles(pool, self->index);
        else
            sleep_for_work(pool);
    }
    return NULL;
}

void pool_run(struct pool *pool, pool_task *task, void *context, int64_t tiles) {
    if (tiles <= 0) return;
    bool nested = atomic_exchange_explicit(&pool->running, true, memory_order_acquire);
    assert(!nested && "one pool_run at a time per pool");
    (void)nested;
    if (pool->threads == 1 || tiles == 1) {
        for (int64_t tile = 0; tile < tiles; tile++) task(context, 0, tile);
    } else {
        pool->task = task;
        pool->context = context;
        pool->tiles = tiles;
        atomic_store_explicit(&pool->pending, tiles, memory_order_relaxed);
        atomic_store_explicit(&pool->remaining, tiles, memory_order_release);
        atomic_fetch_add(&pool->epoch, 1);
        if (atomic_load(&pool->sleepers) > 0) futex_wake_all(&pool->epoch);
        take_tiles(pool, 0);
        wait_done(pool);
    }
    atomic_store_explicit(&pool->running, false, memory_order_release);
}

/* ------------------------------------------------------ birth and death */

/* Workers take no signals: Ctrl-C must interrupt the caller's blocking read, not a worker's sleep. */
static int start_workers(struct pool *pool, struct shu_error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = 0;
    for (int i = 1; i < pool->threads && !failure; i++) {
        struct worker *worker = &pool->workers[i];
        *worker = (struct worker){.pool = pool, .index = i};
        failure = fault_fires(FAULT_ALLOC) ? 11 : pthread_create(&worker->handle, NULL, worker_main, worker);
        if (!failure) pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failure) return SHU_OK;
    return SHU_FAIL(err, SHU_E_NOMEM, "thread %d of %d cannot be started: %s; ask for fewer threads", pool->started + 2,
                    pool->threads, strerror(failure));
}

int pool_new(int threads, struct pool **out, struct shu_error *err) {
    *out = NULL;
    int usable = cpu_usable();
    if (threads == 0) threads = usable < POOL_MAX_THREADS ? usable : POOL_MAX_THREADS;
    if (threads < 1 || threads > POOL_MAX_THREADS) {
        return SHU_FAIL(err, SHU_E_USAGE, "expected 1 to %d threads (0 = one per core), found %d", POOL_MAX_THREADS,
                        threads);
    }
    struct pool *pool = mem_alloc_large(sizeof *pool); /* zeroed and 64-byte aligned */
    if (!pool) return SHU_FAIL(err, SHU_E_NOMEM, "not enough memory for a pool of %d threads", threads);
    pool->threads = threads;
    /* With more threads than cores, spinning takes the core from the one that should work. */
    pool->spin_ns = threads <= usable ? SPIN_NS : 0;
    int status = start_workers(pool, err);
    if (status)
        pool_free(pool);
    else
        *out = pool;
    return status;
}

int pool_threads(const struct pool *pool) {
    return pool->threads;
}

void pool_free(struct pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->epoch, 1);
    futex_wake_all(&pool->epoch);
    for (int i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].handle, NULL);
    mem_free_large(pool, sizeof *pool);
}
