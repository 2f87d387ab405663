/* base: what every other room stands on.
 *
 * Errors are raised through SHU_FAIL, the one place (and breakpoint) where a
 * failure is recorded. Memory comes from mem_* so that tests can fail the k-th
 * allocation; files are read through map_open or file_read and written through
 * atomic_file so that nobody ever sees half a file. Threads exist only inside a
 * `struct pool`. Nothing here keeps hidden global state except the fault
 * counters (test builds) and the interrupt flag.
 */
#ifndef BASE_H
#define BASE_H

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "shu/error.h"

/* ------------------------------------------------------------------ errors */

/* Records code, printf-style message and source position in `err` (may be
 * NULL) and yields `code`, so that `return SHU_FAIL(err, SHU_E_IO, "…")` works. */
#define SHU_FAIL(err, code, ...) error_raise((err), (code), __FILE__, __LINE__, __VA_ARGS__)

int error_raise(struct shu_error *err, int code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Prefixes an already recorded message with printf-style context ("in FILE: ").
 * Returns err->code, or `code` if err is NULL. */
int error_context(struct shu_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ------------------------------------------------------------------ memory */

/* Like malloc/calloc/realloc/free, but countable and failable by fault_arm.
 * Aligned for any scalar type (16 bytes). NULL on failure; a size of 0 yields a
 * unique pointer. mem_free(NULL) is a no-op. */
void *mem_alloc(size_t bytes);
void *mem_calloc(size_t count, size_t bytes_each); /* zeroed; NULL on overflow */
void *mem_realloc(void *old, size_t bytes);
char *mem_strdup(const char *text);
char *mem_strndup(const char *text, size_t bytes); /* copies exactly bytes, adds NUL */
void mem_free(void *pointer);

/* Large long-lived block: 64-byte aligned, transparent huge pages requested
 * from 2 MiB up, zero filled. Release with mem_free_large and the same size. */
void *mem_alloc_large(size_t bytes);
void mem_free_large(void *pointer, size_t bytes);

/* Multiplication and addition that report overflow: true means overflow. */
static inline bool size_mul(size_t a, size_t b, size_t *out) {
    return __builtin_mul_overflow(a, b, out);
}
static inline bool size_add(size_t a, size_t b, size_t *out) {
    return __builtin_add_overflow(a, b, out);
}

/* Arena: many small allocations, one release. Not thread-safe. */
struct arena {
    struct arena_chunk *head; /* newest chunk */
    size_t used_bytes;        /* handed out so far */
    size_t max_bytes;         /* refuses beyond this */
};
void arena_init(struct arena *arena, size_t max_bytes);
void *arena_alloc(struct arena *arena, size_t bytes); /* 16-byte aligned, zeroed; NULL at the limit */
char *arena_strndup(struct arena *arena, const char *text, size_t bytes);
void arena_free(struct arena *arena); /* frees everything; the arena may be used again */

/* Growable byte buffer, always NUL-terminated once non-empty, with a maximum.
 * A zeroed struct with `max` set is a valid empty buffer. */
struct buf {
    char *data;
    size_t len, cap;
    size_t max; /* 0 means BUF_MAX_DEFAULT */
};
#define BUF_MAX_DEFAULT ((size_t)1 << 30)
int buf_append(struct buf *buf, const void *bytes, size_t count); /* SHU_E_NOMEM, SHU_E_RANGE at max */
int buf_puts(struct buf *buf, const char *text);
int buf_putc(struct buf *buf, char c);
int buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
int buf_reserve(struct buf *buf, size_t extra);
void buf_clear(struct buf *buf); /* keeps the memory */
void buf_free(struct buf *buf);

/* ---------------------------------------------------------- fault injection */

/* In builds with SHU_FAULTS, the k-th operation of a kind (1-based, counted
 * from fault_arm) fails once; 0 disarms. fault_count tells how many operations
 * of that kind ran since arming. In other builds these are no-ops. Also armed
 * from the environment by fault_arm_from_env: SHU_FAULT=alloc:17 | read:3 | write:2. */
enum fault_kind { FAULT_ALLOC, FAULT_READ, FAULT_WRITE, FAULT_KINDS };
void fault_arm(enum fault_kind kind, long kth);
long fault_count(enum fault_kind kind);
void fault_arm_from_env(void);
bool fault_fires(enum fault_kind kind); /* called by mem_*, file and map functions */

/* ------------------------------------------------------------------- files */

/* Read-only mapping of a whole regular file. Empty files map to bytes = 0. */
struct map {
    const uint8_t *data;
    size_t bytes;
};
int map_open(const char *path, struct map *out, struct shu_error *err);
void map_close(struct map *map);
/* Tells the kernel that the range is no longer needed: its pages leave the
 * resident set and are re-read from the file on the next touch. */
void map_release(const struct map *map, size_t offset, size_t bytes);

/* Whole file into `out` (appended). SHU_E_RANGE if larger than max_bytes. "-" reads stdin. */
int file_read(const char *path, size_t max_bytes, struct buf *out, struct shu_error *err);
bool file_exists(const char *path);
bool file_same(const char *a, const char *b); /* both exist and are one file, links followed */
bool path_is_dir(const char *path);
int dir_make(const char *path, struct shu_error *err); /* mkdir -p, mode 0755 */

/* A file that appears whole or not at all: written to "PATH.tmp.PID", then
 * fsync, rename, fsync of the folder. abort (or a crash) leaves the old file.
 * Devices, pipes and folders are refused with SHU_E_USAGE: a rename would
 * replace them; a link stays, and what it points to is replaced. A file that
 * is replaced hands its access rights on. After a failed open the struct is closed and needs no abort. */
struct atomic_file {
    int fd;     /* -1 when closed */
    char *path; /* final name */
    char *temp; /* name while writing */
    uint64_t written_bytes;
};
int atomic_open(const char *path, struct atomic_file *out, struct shu_error *err);
int atomic_write(struct atomic_file *file, const void *bytes, size_t count, struct shu_error *err);
int atomic_commit(struct atomic_file *file, struct shu_error *err); /* closes; on failure also removes the temp */
void atomic_abort(struct atomic_file *file);                        /* no-op after commit */
/* The end of most writers: commits if all went well (status SHU_OK), else aborts and returns status. */
int atomic_end(struct atomic_file *file, int status, struct shu_error *err);

/* XDG folders, "" never: "$XDG_CACHE_HOME/shu/…" or "$HOME/.cache/shu/…".
 * `tail` may be NULL. Appended to `out`. SHU_E_NOTFOUND if neither variable is set. */
int path_cache(const char *tail, struct buf *out, struct shu_error *err);
int path_config(const char *tail, struct buf *out, struct shu_error *err);

/* SHA-256 (FIPS 180-4) as lower-case hex. */
struct sha256 {
    _Alignas(16) unsigned char state[128];
};
void sha256_init(struct sha256 *hash);
void sha256_update(struct sha256 *hash, const void *bytes, size_t count);
void sha256_hex(struct sha256 *hash, char out[65]); /* finishes the hash */

/* ----------------------------------------------------------------- threads */

/* Fixed team of threads. pool_run hands out tiles 0…tiles-1 from an atomic
 * counter to all threads, the caller included (thread 0), and returns when all
 * are done. Workers spin for some microseconds before they sleep on a futex,
 * so that consecutive runs cost well under a microsecond each. One pool_run at
 * a time per pool. Which thread takes which tile is luck: a tile's result must
 * not depend on it. */
struct pool;
typedef void pool_task(void *context, int thread, int64_t tile);
int pool_new(int threads, struct pool **out, struct shu_error *err); /* 1…256; 0 = one per usable core */
void pool_run(struct pool *pool, pool_task *task, void *context, int64_t tiles);
int pool_threads(const struct pool *pool);
void pool_free(struct pool *pool);
int cpu_usable(void); /* cores this process may run on (affinity and cgroup quota) */

/* ------------------------------------------------------- clock and progress */

uint64_t clock_ns(void);       /* monotonic */
uint64_t rss_bytes(void);      /* resident set now */
uint64_t rss_peak_bytes(void); /* high-water mark of this process */

/* Progress of long work, to stderr: one redrawn line with bar, rate and ETA on
 * a terminal; a plain line every 10 seconds elsewhere; nothing when quiet. */
struct progress {
    const char *label;
    const char *unit; /* "B" prints KiB/MiB/GiB; otherwise a count with this unit */
    uint64_t total;   /* 0 = unknown */
    uint64_t done;
    uint64_t start_ns, drawn_ns;
    bool quiet, terminal;
};
void progress_start(struct progress *progress, const char *label, const char *unit, uint64_t total, bool quiet);
void progress_update(struct progress *progress, uint64_t done); /* cheap; draws at most 10 times a second */
void progress_finish(struct progress *progress);

/* SIGINT (and SIGTERM) set a flag instead of killing the process; blocked reads
 * return EINTR. A second signal before interrupt_clear kills as usual. */
void interrupt_install(void);
bool interrupt_pending(void);
void interrupt_clear(void);

/* -------------------------------------------------------------------- text */

/* Decodes one scalar value from bytes [0, count): returns the bytes consumed
 * (1…4), or 0 if the sequence is invalid or cut short (Unicode 15, table 3-7:
 * no overlong forms, no surrogates, nothing above U+10FFFF). */
int utf8_decode(const char *bytes, size_t count, uint32_t *out);
int utf8_encode(uint32_t scalar, char out[4]); /* bytes written; 0 if not a scalar value */
bool utf8_valid(const char *bytes, size_t count);
/* Bytes at the end of [0, count) that begin a sequence which more input could complete (0…3). */
size_t utf8_partial_tail(const char *bytes, size_t count);

/* -------------------------------------------------------- JSON and YAML */

/* jansson with our error convention: names file, line and column. The caller
 * owns the result (json_decref). Duplicate keys are refused; depth is limited.
 * Any top-level value, a byte order mark is skipped, and integers beyond 64 bits
 * (Python writes them) become reals. */
int json_parse(const char *text, size_t bytes, const char *name, json_t **out, struct shu_error *err);
int json_read_file(const char *path, size_t max_bytes, json_t **out, struct shu_error *err);
/* One YAML 1.2 document, core schema, to a jansson tree; keys are always text, empty text is null.
 * Refused: anchors, aliases, tags, duplicate and complex keys, .inf and .nan, integers beyond 64
 * bits, more than 64 MiB, 100 levels or 4 million values. */
int yaml_parse(const char *text, size_t bytes, const char *name, json_t **out, struct shu_error *err);
/* "name:line:column" of the value at a JSON-pointer-like path ("sources/0/id") in the same
 * text, for error messages about well-formed but wrong content. A path that does not exist
 * gives its deepest ancestor that does; text that does not parse gives "name". */
int yaml_where(const char *text, size_t bytes, const char *name, const char *path, struct buf *out);

/* ---------------------------------------------------------- child processes */

/* Runs argv (NULL-terminated, found through PATH) and waits. stdin is
 * /dev/null; stdout and stderr are captured up to max_output_bytes each.
 * The child is killed with its whole group on time-out, interrupt or too much
 * output, and dies with us. SHU_E_CHILD with the last line of its stderr when it fails,
 * SHU_E_NOTFOUND when there is no such program, SHU_E_CANCELLED on interrupt. options
 * and out_text (stdout, appended on success) may be NULL. */
struct child_options {
    const char *work_dir;      /* NULL = inherit */
    uint64_t timeout_ms;       /* 0 = none */
    uint64_t max_memory_bytes; /* RLIMIT_AS; 0 = inherit */
    size_t max_output_bytes;   /* 0 = 1 MiB */
};
int child_run(const char *const argv[], const struct child_options *options, struct buf *out_text,
              struct shu_error *err);

/* -------------------------------------------------------------- random bits */

/* xoshiro256** (Blackman & Vigna, 2018) seeded by splitmix64: same seed, same
 * numbers, on every machine. */
struct rng {
    uint64_t state[4];
};
void rng_seed(struct rng *rng, uint64_t seed);
uint64_t rng_next(struct rng *rng);
double rng_uniform(struct rng *rng); /* [0, 1), 53 bits */
float rng_normal(struct rng *rng);   /* Box-Muller, mean 0, variance 1 */

#endif
