#include "infer/engine.h"

static int no_sequence_left(const struct engine *engine, struct shu_error *err) {
    return SHU_FAIL(err, SHU_E_RANGE, "all %d sequences of the engine are in use; free one or open it with more",
                    engine->cache.max_sequences);
}

int sequence_new(struct engine *engine, int *out, struct shu_error *err) {
    int sequence = kv_sequence_new(&engine->cache);
    if (sequence < 0) return no_sequence_left(engine, err);
    *out = sequence;
    return SHU_OK;
}

int sequence_fork(struct engine *engine, int sequence, int *out, struct shu_error *err) {
    int status = engine_check_sequence(engine, sequence, err);
    if (status) return status;
    int copy = kv_sequence_fork(&engine->cache, sequence);
    if (copy < 0) return no_sequence_left(engine, err);
    *out = copy;
    return SHU_OK;
}

void sequence_free(struct engine *engine, int sequence) {
    if (kv_valid(&engine->cache, sequence)) kv_sequence_free(&engine->cache, sequence);
}

int sequence_length(const struct engine *engine, int sequence) {
    return kv_valid(&engine->cache, sequence) ? engine->cache.sequence[sequence].length : 0;
}

const int32_t *sequence_tokens(const struct engine *engine, int sequence) {
    return kv_valid(&engine->cache, sequence) ? engine->cache.sequence[sequence].tokens : NULL;
}

int sequence_truncate(struct engine *engine, int sequence, int length, struct shu_error *err) {
    int status = engine_check_sequence(engine, sequence, err);
    if (status) return status;
    int held = engine->cache.sequence[sequence].length;
    if (length < 0 || length > held)
        return SHU_FAIL(err, SHU_E_RANGE, "sequence %d holds %d tokens and cannot be cut to %d", sequence, held,
                        length);
    kv_truncate(&engine->cache, sequence, length);
    return SHU_OK;
}
