/* What every test of room train includes: cmocka with its prerequisites, and files in a scratch folder. */
#ifndef TRAIN_CHECK_H
#define TRAIN_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/tiny.h"
#include "train/train.h"

/* Fails the test with the error's own words. The call reports into `must`. */
#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        struct shu_error must = {0};                                                                                   \
        if (call) fail_msg("%s: %s (%s)", #call, must.message, must.where);                                            \
    } while (0)

#define assert_contains(text, part)                                                                                    \
    do {                                                                                                               \
        if (!strstr((text), (part))) fail_msg("'%s' does not contain '%s'", (text), (part));                           \
    } while (0)

static inline void write_text(const char *path, const char *text, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static inline char *read_text(const char *path) {
    struct buf text = {0};
    MUST(file_read(path, (size_t)1 << 28, &text, &must));
    char *copy = strdup(text.data ? text.data : "");
    buf_free(&text);
    return copy;
}

#endif
