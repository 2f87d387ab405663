/* Shared by the tests of room tensor: instruction sets to try, comparison, guarded buffers. */
#ifndef TESTS_TENSOR_CHECK_H
#define TESTS_TENSOR_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/reference.h"
#include "tensor/tensor.h"

/* Tables of every instruction set this machine (or its emulation) offers; returns how many. */
static inline int isa_tables(const struct kernels *out[3]) {
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    int count = 0;
    for (size_t i = 0; i < 3; i++)
        if (kernels_select(names[i], &out[count], NULL) == SHU_OK) count++;
    return count;
}

/* Instruction sets owe each other equal bits. Where a value is NaN both must be; its sign and payload are the
 * processor's own affair. Returns the first index that differs, or -1. */
static inline int64_t bits_differ(const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return i;
    return -1;
}

/* Memory whose surroundings are checked: a kernel must not write outside [0, bytes). */
#define GUARD_BYTES 128
#define GUARD_VALUE 0xA5
struct guarded {
    uint8_t *base;
    void *data; /* offset by 4 bytes from any vector alignment */
    size_t bytes;
};

static inline struct guarded guarded_new(size_t bytes) {
    struct guarded guarded = {malloc(bytes + 2 * GUARD_BYTES + 4), NULL, bytes};
    assert_non_null(guarded.base);
    memset(guarded.base, GUARD_VALUE, bytes + 2 * GUARD_BYTES + 4);
    guarded.data = guarded.base + GUARD_BYTES + 4;
    return guarded;
}

static inline bool guarded_intact(const struct guarded *guarded) {
    const uint8_t *end = (const uint8_t *)guarded->data + guarded->bytes;
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (guarded->base[i] != GUARD_VALUE || end[i] != GUARD_VALUE) return false;
    return true;
}

static inline void guarded_free(struct guarded *guarded) {
    free(guarded->base);
}

#endif
