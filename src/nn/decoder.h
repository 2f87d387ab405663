/* Private to room nn: what a loaded decoder holds. */
#ifndef NN_DECODER_H
#define NN_DECODER_H

#include "nn/nn.h"

/* Products that adapters may add to; PRODUCT_OUTPUT belongs to the whole model. */
enum product {
    PRODUCT_Q,
    PRODUCT_K,
    PRODUCT_V,
    PRODUCT_O,
    PRODUCT_GATE,
    PRODUCT_UP,
    PRODUCT_DOWN,
    LAYER_PRODUCTS,
    PRODUCT_OUTPUT = LAYER_PRODUCTS
};

/* y += B (A x): all adapters of one product, side by side along the rank; scales and weights are in b. */
struct low_rank {
    struct packed a, b; /* [rank, in], [out, rank]; a.rows = 0: no adapter here */
};

/* Matrices are packed; a NULL vector is absent. */
struct decoder_layer {
    struct packed q, k, v, o, gate, up, down;
    const float *attention_norm, *q_norm, *k_norm, *post_attention_norm;
    const float *ffn_norm, *post_ffn_norm;
    const float *q_bias, *k_bias, *v_bias, *o_bias;
    const float *gate_bias, *up_bias, *down_bias;
    struct low_rank low[LAYER_PRODUCTS];
};

struct decoder {
    struct decoder_config config;
    struct decoder_layer *layers;
    struct packed output;       /* also the embedding table if tied */
    struct low_rank output_low; /* never of a tied matrix */
    struct tensor embedding;    /* rows in the mapped file; only if not tied */
    const float *output_norm;   /* [C] */
    const float *rope_factors;  /* [rot / 2] or NULL */
    int lanes;                  /* of all packed matrices */
    uint8_t *block;             /* every packed matrix and vector */
    size_t block_bytes;
    uint64_t read_bytes;
    uint8_t *adapter_block;             /* every a and b; NULL without adapters */
    size_t adapter_bytes, adapter_room; /* used; allocated */
};

#endif
