/* Helpers of the tests of room infer: engines over tiny random models. */
#ifndef TESTS_INFER_TINY_ENGINE_H
#define TESTS_INFER_TINY_ENGINE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "infer/infer.h"
#include "support/tiny.h"

/* Sanitizers keep memory of their own and back large blocks at once: resident memory then says nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* Fails the test with the error's own words. The call reports into `must`. */
#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        struct shu_error must = {0};                                                                                   \
        if (call) fail_msg("%s: %s (%s)", #call, must.message, must.where);                                            \
    } while (0)

static inline void tiny_model(char path[TINY_PATH_BYTES], const char *arch, enum dtype dtype, int width) {
    struct tiny_spec spec;
    tiny_defaults(arch, &spec);
    spec.dtype = dtype;
    if (width) {
        spec.width = spec.ffn = width;
        spec.head_dim = width / spec.heads; /* every matrix fills its blocks */
    }
    tiny_path(path, ".gguf");
    MUST(tiny_write(path, &spec, &must));
}

static inline struct engine *tiny_engine(const char *path, const struct engine_options *options) {
    struct engine *engine = NULL;
    MUST(engine_open(path, options, &engine, &must));
    return engine;
}

static inline int tiny_sequence(struct engine *engine) {
    int sequence = -1;
    MUST(sequence_new(engine, &sequence, &must));
    return sequence;
}

static inline void random_tokens(int32_t *out, int count, int vocab, uint64_t seed) {
    struct rng rng;
    rng_seed(&rng, seed);
    for (int i = 0; i < count; i++) out[i] = (int32_t)(rng_next(&rng) % (uint64_t)vocab);
}

#endif
