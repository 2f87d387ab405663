/* Private to room nn: what a loaded decoder holds. */
#ifndef NN_DECODER_H
#define NN_DECODER_H

#include "nn/nn.h"

/* Matrices are packed; a NULL vector is absent. */
struct decoder_layer {
    struct packed q, k, v, o, gate, up, down;
    const float *attention_norm, *q_norm, *k_norm, *post_attention_norm;
    const float *ffn_norm, *post_ffn_norm;
    const float *q_bias, *k_bias, *v_bias, *o_bias;
    const float *gate_bias, *up_bias, *down_bias;
};

struct decoder {
    struct decoder_config config;
    struct decoder_layer *layers;
    struct packed output;      /* also the embedding table if tied */
    struct tensor embedding;   /* rows in the mapped file; only if not tied */
    const float *output_norm;  /* [C] */
    const float *rope_factors; /* [rot / 2] or NULL */
    int lanes;                 /* of all packed matrices */
    uint8_t *block;            /* every packed matrix and vector */
    size_t block_bytes;
    uint64_t read_bytes;
};

#endif
