/* stop: stop strings across token boundaries. Private to room infer.
 *
 * Text goes in token by token; what cannot be part of a stop string any more comes
 * out at once. The longest tail that begins a stop string is held back until more
 * text decides.
 */
#ifndef INFER_STOP_H
#define INFER_STOP_H

#include "base/base.h"

struct stop_filter {
    const char *const *strings; /* borrowed */
    int count;
    struct buf held; /* text not released yet; text released by the last call stays in front */
    size_t released; /* bytes at the front of `held` that the last call let go */
};

/* True: a stop string is complete; *released then excludes it and all that follows. The text let
 * go is held.data[0, released), valid until the next call. SHU_E_NOMEM when the buffer cannot grow. */
int stop_push(struct stop_filter *filter, const char *text, size_t bytes, bool *stopped);
/* No more text follows: lets go of all that was held back. */
void stop_finish(struct stop_filter *filter);
void stop_free(struct stop_filter *filter);

#endif
