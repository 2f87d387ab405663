#include "infer/stop.h"

#include <string.h>

static void drop_released(struct stop_filter *filter) {
    if (!filter->released) return;
    memmove(filter->held.data, filter->held.data + filter->released, filter->held.len - filter->released);
    filter->held.len -= filter->released;
    filter->released = 0;
}

/* Where the first stop string begins in the held text; SIZE_MAX if none is complete. */
static size_t first_match(const struct stop_filter *filter) {
    size_t first = SIZE_MAX;
    for (int i = 0; i < filter->count; i++) {
        const char *at = memmem(filter->held.data, filter->held.len, filter->strings[i], strlen(filter->strings[i]));
        if (at && (size_t)(at - filter->held.data) < first) first = (size_t)(at - filter->held.data);
    }
    return first;
}

/* Bytes at the end that begin some stop string. */
static size_t open_tail(const struct stop_filter *filter) {
    size_t longest = 0;
    for (int i = 0; i < filter->count; i++) {
        size_t length = strlen(filter->strings[i]) - 1;
        if (length > filter->held.len) length = filter->held.len;
        for (; length > longest; length--) {
            if (memcmp(filter->held.data + filter->held.len - length, filter->strings[i], length) == 0) {
                longest = length;
                break;
            }
        }
    }
    return longest;
}

int stop_push(struct stop_filter *filter, const char *text, size_t bytes, bool *stopped) {
    *stopped = false;
    drop_released(filter);
    int status = bytes ? buf_append(&filter->held, text, bytes) : SHU_OK;
    if (status || !filter->held.len) return status;
    size_t match = first_match(filter);
    *stopped = match != SIZE_MAX;
    filter->released = *stopped ? match : filter->held.len - open_tail(filter);
    return SHU_OK;
}

void stop_finish(struct stop_filter *filter) {
    drop_released(filter);
    filter->released = filter->held.len;
}

void stop_free(struct stop_filter *filter) {
    buf_free(&filter->held);
}
