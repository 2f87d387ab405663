/* Which type each tensor gets. The rules, their order and their numbers are
 * those that llama.cpp applies to the targets offered here, so that files of
 * both programs hold the same types; tests compare them tensor by tensor.
 *
 * Two of the rules count tensors of one role in the order of (layer, name),
 * whatever order the file has them in.
 */
#include "weights/quantize.h"

#include <stdlib.h>
#include <string.h>

static const struct quantize_target targets[] = {
    {"F32", DT_F32, 0}, {"F16", DT_F16, 1}, {"BF16", DT_BF16, 32}, {"Q8_0", DT_Q8_0, 7}, {"Q4_K_M", DT_Q4_K, 15},
};

const struct quantize_target *quantize_target_find(const char *name) {
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        if (strcmp(targets[i].name, name) == 0) return &targets[i];
    return NULL;
}

/* ------------------------------------------------------------------- roles */

enum role { ROLE_EMBEDDING, ROLE_OUTPUT, ROLE_VALUE, ROLE_KEY, ROLE_ATTENTION_OUT, ROLE_FFN_DOWN, ROLE_OTHER };

static enum role role_of(const char *name) {
    if (strcmp(name, "output.weight") == 0) return ROLE_OUTPUT;
    if (strcmp(name, "token_embd.weight") == 0 || strcmp(name, "per_layer_token_embd.weight") == 0)
        return ROLE_EMBEDDING;
    /* Fused q+k+v and the latent k+v of MLA count as values: they hold them. */
    if (strstr(name, "attn_qkv.weight") || strstr(name, "attn_kv_b.weight") || strstr(name, "attn_v.weight"))
        return ROLE_VALUE;
    if (strstr(name, "attn_k.weight")) return ROLE_KEY;
    if (strstr(name, "attn_output.weight")) return ROLE_ATTENTION_OUT;
    if (strstr(name, "ffn_down")) return ROLE_FFN_DOWN;
    return ROLE_OTHER;
}

/* Small or delicate matrices that stay as they are: parts of their names. */
static const char *const kept_names[] = {
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
};

static bool is_vector(const struct tensor *view) {
    return view->shape[1] == 1 && view->shape[2] == 1 && view->shape[3] == 1;
}

static bool is_quantizable(const struct model_tensor *tensor) {
    const char *name = tensor->name;
    size_t length = strlen(name);
    if (is_vector(&tensor->view) || tensor->view.dtype == DT_I32) return false;
    if (length < 6 || strcmp(name + length - 6, "weight") != 0) return false;
    if (strcmp(name, "position_embd.weight") == 0 || strcmp(name, "token_types.weight") == 0) return false;
    for (size_t i = 0; i < sizeof kept_names / sizeof *kept_names; i++)
        if (strstr(name, kept_names[i])) return false;
    return true;
}

/* Layer in "blk.N."; -1 for tensors outside the layers. */
static long layer_of(const char *name) {
    if (strncmp(name, "blk.", 4) != 0) return -1;
    return strtol(name + 4, NULL, 10);
}

static bool comes_before(const char *a, const char *b) {
    long left = layer_of(a), right = layer_of(b);
    return left != right ? left < right : strcmp(a, b) < 0;
}

/* How many tensors of a role the model has (*all), and how many come before this one. */
static int64_t role_position(const struct model *model, const struct model_tensor *tensor, enum role role,
                             int64_t *all) {
    int64_t before = 0;
    *all = 0;
    for (uint32_t i = 0; i < model->tensor_count; i++) {
        const struct model_tensor *other = &model->tensors[i];
        if (role_of(other->name) != role) continue;
        ++*all;
        before += is_quantizable(other) && comes_before(other->name, tensor->name);
    }
    return before;
}

/* ------------------------------------------------------------------- rules */

/* What the rules want to know of a model. */
struct traits {
    const char *arch;
    int64_t layers, experts, heads, kv_heads;
};

static int64_t arch_int(const struct model *model, const char *arch, const char *tail, int64_t fallback) {
    char key[160];
    int64_t value = fallback;
    snprintf(key, sizeof key, "%.100s.%s", arch, tail);
    return meta_int(model, key, &value) ? value : fallback;
}

static struct traits traits_of(const struct model *model) {
    struct traits traits = {.arch = ""};
    meta_string(model, "general.architecture", &traits.arch, NULL);
    traits.layers = arch_int(model, traits.arch, "block_count", 0);
    traits.experts = arch_int(model, traits.arch, "expert_count", 0);
    traits.heads = arch_int(model, traits.arch, "attention.head_count", 0);
    traits.kv_heads = arch_int(model, traits.arch, "attention.head_count_kv", traits.heads);
    return traits;
}

/* The first and last eighth of the layers, and every third between. */
static bool deserves_more_bits(int64_t layer, int64_t layers) {
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static enum dtype choose_value(const struct model *model, const struct model_tensor *tensor,
                               const struct traits *traits) {
    int64_t all, layer = role_position(model, tensor, ROLE_VALUE, &all);
    if (traits->experts == 8) return DT_Q8_0;
    if (deserves_more_bits(layer, all)) return DT_Q6_K;
    /* Llama 70B: eight query heads share a value head, so more bits cost next to nothing. */
    bool llama70 = strcmp(traits->arch, "llama") == 0 && traits->layers == 80 && traits->heads != traits->kv_heads;
    return llama70 ? DT_Q5_K : DT_Q4_K;
}

static enum dtype choose_down(const struct model *model, const struct model_tensor *tensor,
                              const struct traits *traits) {
    int64_t all, layer = role_position(model, tensor, ROLE_FFN_DOWN, &all);
    if (traits->experts > 1) layer = layer_of(tensor->name); /* several tensors a layer */
    if (strcmp(traits->arch, "falcon") == 0)
        return layer < traits->layers / 16 ? DT_Q6_K : deserves_more_bits(layer, traits->layers) ? DT_Q5_K : DT_Q4_K;
    return deserves_more_bits(layer, traits->layers) ? DT_Q6_K : DT_Q4_K;
}

static enum dtype choose_output(const struct model_tensor *tensor, const struct traits *traits, enum dtype base) {
    bool odd = tensor->view.shape[0] % dtype_table[base].block != 0;
    return odd || base == DT_Q8_0 || strcmp(traits->arch, "falcon") == 0 ? DT_Q8_0 : DT_Q6_K;
}

static enum dtype choose_mixed(const struct model *model, const struct model_tensor *tensor) {
    struct traits traits = traits_of(model);
    switch (role_of(tensor->name)) {
    case ROLE_VALUE:
        return choose_value(model, tensor, &traits);
    case ROLE_KEY:
        return traits.experts == 8 ? DT_Q8_0 : DT_Q4_K;
    case ROLE_ATTENTION_OUT:
        return traits.experts == 8 && strcmp(traits.arch, "falcon") != 0 ? DT_Q5_K : DT_Q4_K;
    case ROLE_FFN_DOWN:
        return choose_down(model, tensor, &traits);
    default:
        return DT_Q4_K;
    }
}

/* Columns that do not fill super-blocks: the nearest type of 32-column blocks, else F16. */
static enum dtype fall_back(enum dtype dtype, int64_t columns) {
    if (columns % dtype_table[dtype].block == 0) return dtype;
    enum dtype smaller = dtype == DT_Q4_K ? DT_Q5_0 : dtype == DT_Q5_K ? DT_Q5_1 : dtype == DT_Q6_K ? DT_Q8_0 : dtype;
    return columns % dtype_table[smaller].block == 0 ? smaller : DT_F16;
}

enum dtype quantize_choose(const struct model *model, const struct model_tensor *tensor, const char *target_name) {
    const struct quantize_target *target = quantize_target_find(target_name);
    enum dtype own = tensor->view.dtype;
    if (!target) return own;
    if (is_vector(&tensor->view)) return own == DT_F16 || own == DT_BF16 ? DT_F32 : own;
    if (!is_quantizable(tensor)) return own;
    if (dtype_table[target->base].block == 1) return target->base;
    enum role role = role_of(tensor->name);
    bool tied = model_tensor_find(model, "output.weight") == NULL;
    enum dtype dtype = target->base;
    if (role == ROLE_OUTPUT || (tied && role == ROLE_EMBEDDING)) {
        struct traits traits = traits_of(model);
        dtype = choose_output(tensor, &traits, target->base);
    } else if (target->base == DT_Q4_K) {
        dtype = choose_mixed(model, tensor);
    }
    return fall_back(dtype, tensor->view.shape[0]);
}
