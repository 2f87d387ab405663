/* engine: what the files of room infer know about an engine. Private. */
#ifndef INFER_ENGINE_H
#define INFER_ENGINE_H

#include "infer/infer.h"
#include "infer/kv.h"

struct engine {
    struct pool *pool;
    struct model *model; /* stays open: the decoder may look embeddings up in its map */
    struct decoder *decoder;
    struct tokenizer *tokenizer;
    struct tokenizer_work *work;
    char fingerprint[65]; /* hex digest of what makes cache content of two models interchangeable */
    struct graph *graph;
    struct decoder_nodes nodes;
    struct kv_cache cache;
    struct kv_row *row; /* [max_rows] */
    struct kv_step step;
    uint32_t *stamp; /* [max_sequences] number of the last step that held the sequence */
    uint32_t step_number;
    int max_rows, max_logits;
    int logits_rows; /* of the last step */
    uint64_t load_ns;
};

/* SHU_E_USAGE unless the sequence is in use. */
int engine_check_sequence(const struct engine *engine, int sequence, struct shu_error *err);

#endif
