/* Private to room nn: what a learner holds. */
#ifndef NN_LEARNER_H
#define NN_LEARNER_H

#include "nn/rules.h"

#define LEARN_TARGETS 7

/* Which matrix a target means; index = bit number in enum decoder_target. */
extern const enum layer_slot target_slots[LEARN_TARGETS];

/* NULL: the network has no such tensor, or it is not adapted. */
struct learn_layer {
    struct graph_parameter *tensor[LAYER_SLOTS];
    struct graph_parameter *a[LEARN_TARGETS], *b[LEARN_TARGETS];
};

struct learner {
    struct decoder_config config;
    struct learn_options options;
    bool fresh; /* a new network: its sizes are its own, not those of the file that its vocabulary comes from */
    struct learn_layer *layers;
    struct graph_parameter *embedding; /* also the output matrix if tied */
    struct graph_parameter *tensor[MODEL_SLOTS];
    struct learn_parameter *learns; /* [learn_count] */
    struct graph_parameter *frozen; /* [frozen_count] */
    int learn_count, frozen_count;
    struct arena names;
    uint8_t *block; /* frozen vectors, values and moments of what learns, then all gradients */
    size_t block_bytes, gradient_offset;
};

#endif
