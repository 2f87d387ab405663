/* Memory: counted allocation, large blocks, arenas and growable buffers. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* --------------------------------------------------------------- mem_* */

void *mem_alloc(size_t bytes) {
    if (fault_fires(FAULT_ALLOC)) return NULL;
    return malloc(bytes ? bytes : 1);
}

void *mem_calloc(size_t count, size_t bytes_each) {
    size_t bytes = 0;
    if (size_mul(count, bytes_each, &bytes) || fault_fires(FAULT_ALLOC)) return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *mem_realloc(void *old, size_t bytes) {
    if (fault_fires(FAULT_ALLOC)) return NULL;
    return realloc(old, bytes ? bytes : 1);
}

char *mem_strdup(const char *text) {
    return mem_strndup(text, strlen(text));
}

char *mem_strndup(const char *text, size_t bytes) {
    size_t total = 0;
    if (size_add(bytes, 1, &total)) return NULL;
    char *copy = mem_alloc(total);
    if (!copy) return NULL;
    if (bytes) memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    return copy;
}

void mem_free(void *pointer) {
    free(pointer);
}

/* -------------------------------------------------------- large blocks */

#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define LARGE_ALIGN     ((size_t)64)
#define LARGE_HEAP_MAX  ((size_t)1 << 39) /* AddressSanitizer ends the process at 1 TiB instead of returning NULL */

/* Sanitizer builds take every block from the heap, where red zones surround it. */
#if defined(__SANITIZE_ADDRESS__)
#define LARGE_FROM_HEAP true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LARGE_FROM_HEAP true
#endif
#endif
#ifndef LARGE_FROM_HEAP
#define LARGE_FROM_HEAP false
#endif

static bool large_from_heap(size_t bytes) {
    return LARGE_FROM_HEAP || bytes < HUGE_PAGE_BYTES;
}

static void *large_heap(size_t bytes) {
    if (bytes > LARGE_HEAP_MAX) return NULL;
    size_t padded = ((bytes ? bytes : 1) + LARGE_ALIGN - 1) & ~(LARGE_ALIGN - 1);
    void *block = aligned_alloc(LARGE_ALIGN, padded);
    if (block) memset(block, 0, padded);
    return block;
}

/* Maps one huge page too many and gives back what lies outside the aligned block. */
static void *large_map(size_t bytes) {
    size_t total = 0;
    if (size_add(bytes, HUGE_PAGE_BYTES, &total)) return NULL;
    uint8_t *raw = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    size_t head = (HUGE_PAGE_BYTES - (uintptr_t)raw % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    size_t keep = (bytes + 4095) & ~(size_t)4095;
    if (head) munmap(raw, head);
    if (total - head > keep) munmap(raw + head + keep, total - head - keep);
    madvise(raw + head, keep, MADV_HUGEPAGE); /* a wish: kernels without huge pages lose only speed */
    return raw + head;
}

void *mem_alloc_large(size_t bytes) {
    if (fault_fires(FAULT_ALLOC)) return NULL;
    return large_from_heap(bytes) ? large_heap(bytes) : large_map(bytes);
}

void mem_free_large(void *pointer, size_t bytes) {
    if (!pointer) return;
    if (large_from_heap(bytes))
        free(pointer);
    else
        munmap(pointer, bytes);
}

/* --------------------------------------------------------------- arena */

#define CHUNK_MIN_BYTES ((size_t)16 << 10)
#define CHUNK_MAX_BYTES ((size_t)1 << 20)

struct arena_chunk {
    struct arena_chunk *next; /* older */
    size_t used, cap;         /* of bytes[] */
    _Alignas(16) uint8_t bytes[];
};

void arena_init(struct arena *arena, size_t max_bytes) {
    *arena = (struct arena){.max_bytes = max_bytes};
}

/* Chunks double, so that a large arena has few; one that is asked for more gets exactly that. */
static struct arena_chunk *arena_grow(struct arena *arena, size_t need) {
    size_t cap = arena->head ? arena->head->cap * 2 : CHUNK_MIN_BYTES;
    if (cap > CHUNK_MAX_BYTES) cap = CHUNK_MAX_BYTES;
    if (cap < need) cap = need;
    size_t total = 0;
    if (size_add(cap, sizeof(struct arena_chunk), &total)) return NULL;
    struct arena_chunk *chunk = mem_calloc(1, total);
    if (!chunk) return NULL;
    chunk->cap = cap;
    chunk->next = arena->head;
    arena->head = chunk;
    return chunk;
}

void *arena_alloc(struct arena *arena, size_t bytes) {
    size_t need = 0, total = 0;
    if (size_add(bytes ? bytes : 1, 15, &need)) return NULL;
    need &= ~(size_t)15;
    if (size_add(arena->used_bytes, need, &total) || total > arena->max_bytes) return NULL;
    struct arena_chunk *chunk = arena->head;
    if (!chunk || chunk->cap - chunk->used < need) chunk = arena_grow(arena, need);
    if (!chunk) return NULL;
    void *result = chunk->bytes + chunk->used;
    chunk->used += need;
    arena->used_bytes = total;
    return result;
}

char *arena_strndup(struct arena *arena, const char *text, size_t bytes) {
    size_t total = 0;
    if (size_add(bytes, 1, &total)) return NULL;
    char *copy = arena_alloc(arena, total); /* zeroed: already terminated */
    if (copy && bytes) memcpy(copy, text, bytes);
    return copy;
}

void arena_free(struct arena *arena) {
    for (struct arena_chunk *chunk = arena->head; chunk;) {
        struct arena_chunk *next = chunk->next;
        mem_free(chunk);
        chunk = next;
    }
    arena->head = NULL;
    arena->used_bytes = 0;
}

/* ----------------------------------------------------------------- buf */

int buf_reserve(struct buf *buf, size_t extra) {
    size_t max = buf->max ? buf->max : BUF_MAX_DEFAULT;
    size_t need = 0;
    if (size_add(buf->len, extra, &need) || need > max) return SHU_E_RANGE;
    if (need < buf->cap) return SHU_OK; /* cap counts the terminator too */
    size_t cap = buf->cap ? buf->cap : 64;
    while (cap <= need) cap = cap > max / 2 ? max + 1 : cap * 2;
    char *data = mem_realloc(buf->data, cap);
    if (!data) return SHU_E_NOMEM;
    data[buf->len] = '\0';
    buf->data = data;
    buf->cap = cap;
    return SHU_OK;
}

int buf_append(struct buf *buf, const void *bytes, size_t count) {
    int status = buf_reserve(buf, count);
    if (status) return status;
    if (count) memcpy(buf->data + buf->len, bytes, count);
    buf->len += count;
    buf->data[buf->len] = '\0';
    return SHU_OK;
}

int buf_puts(struct buf *buf, const char *text) {
    return buf_append(buf, text, strlen(text));
}
int buf_putc(struct buf *buf, char c) {
    return buf_append(buf, &c, 1);
}

int buf_printf(struct buf *buf, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int need = vsnprintf(NULL, 0, format, args);
    int status = need < 0 ? SHU_E_RANGE : buf_reserve(buf, (size_t)need);
    if (!status) {
        vsnprintf(buf->data + buf->len, (size_t)need + 1, format, again);
        buf->len += (size_t)need;
    }
    va_end(again);
    va_end(args);
    return status;
}

void buf_clear(struct buf *buf) {
    buf->len = 0;
    if (buf->data) buf->data[0] = '\0';
}

void buf_free(struct buf *buf) {
    mem_free(buf->data);
    buf->data = NULL;
    buf->len = buf->cap = 0;
}
