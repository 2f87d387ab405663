/* Private to room nn: which tensors a decoder has, under which names and with which shapes. */
#ifndef NN_RULES_H
#define NN_RULES_H

#include "nn/decoder.h"

enum dim { DIM_NONE, DIM_WIDTH, DIM_QUERY, DIM_KEY, DIM_FFN, DIM_HEAD, DIM_VOCAB, DIM_ROT };

enum need { NEED_ALWAYS, NEED_OPTIONAL, NEED_QKV_BIAS, NEED_QK_NORM, NEED_POST_NORMS, NEED_UNTIED };

/* A place in the decoder for one tensor: a matrix has rows, a vector has none. */
struct tensor_rule {
    const char *name; /* of a layer's tensors: after "blk.N." */
    enum dim cols, rows;
    enum need need;
    size_t offset; /* of the struct packed or const float * in decoder_layer or decoder */
};

/* Tensors of a layer: indices of layer_rules. */
enum layer_slot {
    SLOT_ATTENTION_NORM,
    SLOT_Q,
    SLOT_K,
    SLOT_V,
    SLOT_Q_BIAS,
    SLOT_K_BIAS,
    SLOT_V_BIAS,
    SLOT_Q_NORM,
    SLOT_K_NORM,
    SLOT_O,
    SLOT_O_BIAS,
    SLOT_POST_ATTENTION_NORM,
    SLOT_FFN_NORM,
    SLOT_GATE,
    SLOT_UP,
    SLOT_DOWN,
    SLOT_GATE_BIAS,
    SLOT_UP_BIAS,
    SLOT_DOWN_BIAS,
    SLOT_POST_FFN_NORM,
    LAYER_SLOTS
};
extern const struct tensor_rule layer_rules[LAYER_SLOTS];

/* Tensors of the whole model. The embedding table stands apart: it is also the output matrix of tied models. */
enum model_slot { SLOT_OUTPUT, SLOT_OUTPUT_NORM, SLOT_ROPE_FACTORS, MODEL_SLOTS };
extern const struct tensor_rule model_rules[MODEL_SLOTS];
extern const struct tensor_rule embedding_rule, tied_rule;

int64_t rule_dim(const struct decoder_config *config, enum dim dim); /* DIM_NONE: 1 */
bool rule_needed(const struct decoder_config *config, enum need need);
/* A tensor that has no business in a network is as wrong as a missing one. */
bool rule_allowed(const struct decoder_config *config, enum need need);
/* Compares a tensor's shape with its rule; the message names what was expected and found. */
int rule_check_shape(const struct decoder_config *config, const struct tensor_rule *rule,
                     const struct model_tensor *tensor, struct shu_error *err);
/* "blk.3.attn_q.weight"; layer < 0: a tensor of the whole model. */
void rule_name(const struct tensor_rule *rule, int layer, char out[96]);

#endif
