/* The table of tensors: names as in GGUF files, shapes by the decoder's sizes. */
#include "nn/rules.h"

#define LAYER(field) offsetof(struct decoder_layer, field)
const struct tensor_rule layer_rules[LAYER_SLOTS] = {
    [SLOT_ATTENTION_NORM] = {"attn_norm.weight", DIM_WIDTH, DIM_NONE, NEED_ALWAYS, LAYER(attention_norm)},
    [SLOT_Q] = {"attn_q.weight", DIM_WIDTH, DIM_QUERY, NEED_ALWAYS, LAYER(q)},
    [SLOT_K] = {"attn_k.weight", DIM_WIDTH, DIM_KEY, NEED_ALWAYS, LAYER(k)},
    [SLOT_V] = {"attn_v.weight", DIM_WIDTH, DIM_KEY, NEED_ALWAYS, LAYER(v)},
    [SLOT_Q_BIAS] = {"attn_q.bias", DIM_QUERY, DIM_NONE, NEED_QKV_BIAS, LAYER(q_bias)},
    [SLOT_K_BIAS] = {"attn_k.bias", DIM_KEY, DIM_NONE, NEED_QKV_BIAS, LAYER(k_bias)},
    [SLOT_V_BIAS] = {"attn_v.bias", DIM_KEY, DIM_NONE, NEED_QKV_BIAS, LAYER(v_bias)},
    [SLOT_Q_NORM] = {"attn_q_norm.weight", DIM_HEAD, DIM_NONE, NEED_QK_NORM, LAYER(q_norm)},
    [SLOT_K_NORM] = {"attn_k_norm.weight", DIM_HEAD, DIM_NONE, NEED_QK_NORM, LAYER(k_norm)},
    [SLOT_O] = {"attn_output.weight", DIM_QUERY, DIM_WIDTH, NEED_ALWAYS, LAYER(o)},
    [SLOT_O_BIAS] = {"attn_output.bias", DIM_WIDTH, DIM_NONE, NEED_OPTIONAL, LAYER(o_bias)},
    [SLOT_POST_ATTENTION_NORM] = {"post_attention_norm.weight", DIM_WIDTH, DIM_NONE, NEED_POST_NORMS,
                                  LAYER(post_attention_norm)},
    [SLOT_FFN_NORM] = {"ffn_norm.weight", DIM_WIDTH, DIM_NONE, NEED_ALWAYS, LAYER(ffn_norm)},
    [SLOT_GATE] = {"ffn_gate.weight", DIM_WIDTH, DIM_FFN, NEED_ALWAYS, LAYER(gate)},
    [SLOT_UP] = {"ffn_up.weight", DIM_WIDTH, DIM_FFN, NEED_ALWAYS, LAYER(up)},
    [SLOT_DOWN] = {"ffn_down.weight", DIM_FFN, DIM_WIDTH, NEED_ALWAYS, LAYER(down)},
    [SLOT_GATE_BIAS] = {"ffn_gate.bias", DIM_FFN, DIM_NONE, NEED_OPTIONAL, LAYER(gate_bias)},
    [SLOT_UP_BIAS] = {"ffn_up.bias", DIM_FFN, DIM_NONE, NEED_OPTIONAL, LAYER(up_bias)},
    [SLOT_DOWN_BIAS] = {"ffn_down.bias", DIM_WIDTH, DIM_NONE, NEED_OPTIONAL, LAYER(down_bias)},
    [SLOT_POST_FFN_NORM] = {"post_ffw_norm.weight", DIM_WIDTH, DIM_NONE, NEED_POST_NORMS, LAYER(post_ffn_norm)},
};

const struct tensor_rule model_rules[MODEL_SLOTS] = {
    [SLOT_OUTPUT] = {"output.weight", DIM_WIDTH, DIM_VOCAB, NEED_UNTIED, offsetof(struct decoder, output)},
    [SLOT_OUTPUT_NORM] = {"output_norm.weight", DIM_WIDTH, DIM_NONE, NEED_ALWAYS,
                          offsetof(struct decoder, output_norm)},
    [SLOT_ROPE_FACTORS] = {"rope_freqs.weight", DIM_ROT, DIM_NONE, NEED_OPTIONAL,
                           offsetof(struct decoder, rope_factors)},
};

/* As rows in the file; as the packed output matrix of a tied model. */
const struct tensor_rule embedding_rule = {"token_embd.weight", DIM_WIDTH, DIM_VOCAB, NEED_ALWAYS, 0};
const struct tensor_rule tied_rule = {"token_embd.weight", DIM_WIDTH, DIM_VOCAB, NEED_ALWAYS,
                                      offsetof(struct decoder, output)};

int64_t rule_dim(const struct decoder_config *config, enum dim dim) {
    switch (dim) {
    case DIM_WIDTH:
        return config->width;
    case DIM_QUERY:
        return (int64_t)config->heads * config->head_dim;
    case DIM_KEY:
        return (int64_t)config->kv_heads * config->head_dim;
    case DIM_FFN:
        return config->ffn;
    case DIM_HEAD:
        return config->head_dim;
    case DIM_VOCAB:
        return config->vocab;
    case DIM_ROT:
        return config->rot / 2;
    case DIM_NONE:
        break;
    }
    return 1;
}

bool rule_needed(const struct decoder_config *config, enum need need) {
    switch (need) {
    case NEED_QKV_BIAS:
        return config->qkv_bias;
    case NEED_QK_NORM:
        return config->qk_norm;
    case NEED_POST_NORMS:
        return config->post_norms;
    case NEED_UNTIED:
        return !config->tied_output;
    case NEED_OPTIONAL:
        return false;
    case NEED_ALWAYS:
        break;
    }
    return true;
}

bool rule_allowed(const struct decoder_config *config, enum need need) {
    return need == NEED_OPTIONAL || rule_needed(config, need);
}

int rule_check_shape(const struct decoder_config *config, const struct tensor_rule *rule,
                     const struct model_tensor *tensor, struct shu_error *err) {
    const struct tensor *view = &tensor->view;
    int64_t cols = rule_dim(config, rule->cols), rows = rule_dim(config, rule->rows);
    if (view->shape[0] == cols && view->shape[1] == rows && view->shape[2] == 1 && view->shape[3] == 1) return SHU_OK;
    return SHU_FAIL(err, SHU_E_FORMAT, "tensor %.64s: expected [%lld, %lld], found [%lld, %lld, %lld, %lld]",
                    tensor->name, (long long)cols, (long long)rows, (long long)view->shape[0],
                    (long long)view->shape[1], (long long)view->shape[2], (long long)view->shape[3]);
}

void rule_name(const struct tensor_rule *rule, int layer, char out[96]) {
    if (layer < 0)
        snprintf(out, 96, "%s", rule->name);
    else
        snprintf(out, 96, "blk.%d.%s", layer, rule->name);
}
