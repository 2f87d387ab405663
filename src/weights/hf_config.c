/* config.json to GGUF keys, and Hugging Face tensor names to GGUF names. */
#include "weights/hf.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------ builder */

void meta_put_raw(struct meta_builder *meta, const void *bytes, size_t count) {
    if (!meta->status && count) meta->status = buf_append(meta->out, bytes, count);
}

void meta_put_element(struct meta_builder *meta, const char *text, size_t bytes) {
    uint64_t length = bytes;
    meta_put_raw(meta, &length, sizeof length);
    meta_put_raw(meta, text, bytes);
}

static void put_key(struct meta_builder *meta, const char *key, enum gguf_type type) {
    uint32_t number = type;
    meta_put_element(meta, key, strlen(key));
    meta_put_raw(meta, &number, sizeof number);
    meta->count++;
}

void meta_put_int(struct meta_builder *meta, const char *key, int64_t value) {
    uint32_t number = (uint32_t)value;
    put_key(meta, key, GGUF_U32);
    meta_put_raw(meta, &number, sizeof number);
}

static void meta_put_float(struct meta_builder *meta, const char *key, double value) {
    float number = (float)value;
    put_key(meta, key, GGUF_F32);
    meta_put_raw(meta, &number, sizeof number);
}

void meta_put_bool(struct meta_builder *meta, const char *key, bool value) {
    uint8_t byte = value;
    put_key(meta, key, GGUF_BOOL);
    meta_put_raw(meta, &byte, sizeof byte);
}

void meta_put_string(struct meta_builder *meta, const char *key, const char *text, size_t bytes) {
    put_key(meta, key, GGUF_STRING);
    meta_put_element(meta, text, bytes);
}

void meta_put_array(struct meta_builder *meta, const char *key, enum gguf_type element, uint64_t count) {
    uint32_t number = element;
    put_key(meta, key, GGUF_ARRAY);
    meta_put_raw(meta, &number, sizeof number);
    meta_put_raw(meta, &count, sizeof count);
}

/* -------------------------------------------------------------- JSON helpers */

const char *hf_text(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

int hf_int(const json_t *object, const char *key, int64_t fallback, int64_t low, int64_t high, int64_t *out,
           struct shu_error *err) {
    const json_t *value = json_object_get(object, key);
    bool absent = !value || json_is_null(value);
    *out = fallback;
    if (absent && fallback >= low) return SHU_OK;
    if (absent) return SHU_FAIL(err, SHU_E_FORMAT, "config.json: %s is missing; expected a whole number", key);
    if (!json_is_integer(value) || json_integer_value(value) < low || json_integer_value(value) > high)
        return SHU_FAIL(err, SHU_E_FORMAT, "config.json: %s is not a whole number from %lld to %lld", key,
                        (long long)low, (long long)high);
    *out = json_integer_value(value);
    return SHU_OK;
}

static int hf_float(const json_t *object, const char *key, double fallback, double *out, struct shu_error *err) {
    const json_t *value = json_object_get(object, key);
    *out = fallback;
    if (!value || json_is_null(value)) return SHU_OK;
    if (!json_is_number(value) || !isfinite(json_number_value(value)) || json_number_value(value) <= 0)
        return SHU_FAIL(err, SHU_E_FORMAT, "config.json: %s is not a number above 0", key);
    *out = json_number_value(value);
    return SHU_OK;
}

/* ------------------------------------------------------------------- config */

struct config_reader {
    const json_t *config;
    const struct hf_arch *arch;
    struct meta_builder *meta;
    struct shu_error *err;
    int status;
};

static const char *arch_key(const struct config_reader *reader, const char *tail, char out[96]) {
    snprintf(out, 96, "%s.%s", reader->arch->arch, tail);
    return out;
}

/* Copies one whole number; fallback -1 = required. Returns it. */
static int64_t copy_int(struct config_reader *reader, const char *from, const char *to, int64_t fallback) {
    char key[96];
    int64_t value = 1;
    if (reader->status) return 1;
    reader->status = hf_int(reader->config, from, fallback, 1, INT32_MAX, &value, reader->err);
    if (!reader->status) meta_put_int(reader->meta, arch_key(reader, to, key), value);
    return reader->status ? 1 : value;
}

/* Copies one number; a fallback of 0 = leave the key out. */
static void copy_float(struct config_reader *reader, const json_t *object, const char *from, const char *to,
                       double fallback) {
    char key[96];
    double value = 0;
    if (reader->status) return;
    reader->status = hf_float(object, from, fallback, &value, reader->err);
    if (!reader->status && value > 0) meta_put_float(reader->meta, arch_key(reader, to, key), value);
}

static void refuse(struct config_reader *reader, const char *what, const char *found, const char *expected) {
    char shown[48];
    if (!reader->status)
        reader->status = SHU_FAIL(reader->err, SHU_E_UNSUPPORTED,
                                  "config.json: %s is \"%s\", which is not supported here; expected %s", what,
                                  name_show(found, strlen(found), shown, sizeof shown), expected);
}

/* The rotation settings: "rope_parameters" since transformers 5, before that "rope_scaling" and "rope_theta" beside it.
 */
static const json_t *rope_settings(const json_t *config) {
    const json_t *settings = json_object_get(config, "rope_parameters");
    if (!json_is_object(settings)) settings = json_object_get(config, "rope_scaling");
    const json_t *full = json_object_get(settings, "full_attention"); /* gemma 3: one block per kind of layer */
    return json_is_object(full) ? full : settings;
}

static const char *rope_type(const json_t *config) {
    const json_t *settings = rope_settings(config);
    const char *type = hf_text(settings, "rope_type");
    if (!*type) type = hf_text(settings, "type");
    return *type ? type : "default";
}

static void read_rope(struct config_reader *reader) {
    char key[96];
    const json_t *settings = rope_settings(reader->config), *local, *all;
    const char *type = rope_type(reader->config);
    bool inside = json_object_get(settings, "rope_theta") != NULL;
    copy_float(reader, inside ? settings : reader->config, "rope_theta", "rope.freq_base", 10000);
    if (strcmp(type, "linear") == 0) {
        meta_put_string(reader->meta, arch_key(reader, "rope.scaling.type", key), "linear", 6);
        copy_float(reader, settings, "factor", "rope.scaling.factor", 1);
    } else if (strcmp(type, "default") != 0 && strcmp(type, "llama3") != 0) {
        refuse(reader, "rope_type", type, "default, linear or llama3");
    }
    all = json_object_get(reader->config, "rope_parameters");
    local = json_object_get(all, "sliding_attention");
    if (strcmp(reader->arch->arch, "gemma3") != 0) return;
    if (json_is_object(local))
        copy_float(reader, local, "rope_theta", "rope.freq_base_swa", 10000);
    else
        copy_float(reader, reader->config, "rope_local_base_freq", "rope.freq_base_swa", 10000);
}

int hf_rope_factors(const json_t *config, struct arena *arena, const float **out, int64_t *count,
                    struct shu_error *err) {
    const json_t *settings = rope_settings(config);
    double theta, factor, low, high;
    int64_t context, heads, width, dim;
    *count = 0;
    if (strcmp(rope_type(config), "llama3") != 0) return SHU_OK;
    bool inside = json_object_get(settings, "rope_theta") != NULL;
    int status = hf_float(inside ? settings : config, "rope_theta", 10000, &theta, err);
    if (!status) status = hf_float(settings, "factor", 8, &factor, err);
    if (!status) status = hf_float(settings, "low_freq_factor", 1, &low, err);
    if (!status) status = hf_float(settings, "high_freq_factor", 4, &high, err);
    if (!status) status = hf_int(settings, "original_max_position_embeddings", 8192, 1, INT32_MAX, &context, err);
    if (!status) status = hf_int(config, "num_attention_heads", -1, 1, 65536, &heads, err);
    if (!status) status = hf_int(config, "hidden_size", -1, 1, 1 << 24, &width, err);
    if (!status) status = hf_int(config, "head_dim", width / heads ? width / heads : 1, 1, 65536, &dim, err);
    if (status) return status;
    if (high <= low || dim % 2)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "config.json: llama3 rope needs high_freq_factor above low_freq_factor and an even head_dim");
    float *factors = arena_alloc(arena, (size_t)(dim / 2) * sizeof *factors);
    if (!factors) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for rope factors");
    for (int64_t i = 0; i < dim / 2; i++) {
        /* Wavelengths the old context holds several times stay; longer ones stretch; between, a ramp. */
        double length = 2 * M_PI * pow(theta, (double)(2 * i) / (double)dim);
        double turns = (double)context / length, smooth = (turns - low) / (high - low);
        factors[i] = (float)(turns > high ? 1 : turns < low ? factor : 1 / ((1 - smooth) / factor + smooth));
    }
    *out = factors;
    *count = dim / 2;
    return SHU_OK;
}

/* Gemma 3 names the kind of every layer, or the distance of full ones. */
static void read_pattern(struct config_reader *reader) {
    char key[96];
    int64_t pattern = 6, layer = 0;
    size_t at;
    json_t *kind;
    const json_t *kinds = json_object_get(reader->config, "layer_types");
    if (!json_is_array(kinds)) {
        copy_int(reader, "sliding_window_pattern", "attention.sliding_window_pattern", 6);
        return;
    }
    json_array_foreach(kinds, at, kind)
        if (json_is_string(kind) && strcmp(json_string_value(kind), "full_attention") == 0) {
            pattern = (int64_t)at + 1;
            break;
        }
    json_array_foreach(kinds, at, kind) {
        const char *expected = ++layer % pattern ? "sliding_attention" : "full_attention";
        if (!json_is_string(kind) || strcmp(json_string_value(kind), expected) != 0)
            refuse(reader, "layer_types", "irregular", "one full_attention layer after every n - 1 sliding ones");
    }
    meta_put_int(reader->meta, arch_key(reader, "attention.sliding_window_pattern", key), pattern);
}

static void read_window(struct config_reader *reader) {
    const json_t *window = json_object_get(reader->config, "sliding_window");
    const json_t *use = json_object_get(reader->config, "use_sliding_window");
    if (!json_is_integer(window) || (use && !json_is_true(use))) return;
    if (use) refuse(reader, "use_sliding_window", "true", "false");
    copy_int(reader, "sliding_window", "attention.sliding_window", -1);
    if (strcmp(reader->arch->arch, "gemma3") == 0) read_pattern(reader);
}

static void read_attention(struct config_reader *reader) {
    char key[96];
    int64_t width = copy_int(reader, "hidden_size", "embedding_length", -1);
    int64_t heads = copy_int(reader, "num_attention_heads", "attention.head_count", -1);
    copy_int(reader, "num_key_value_heads", "attention.head_count_kv", heads);
    int64_t dim = copy_int(reader, "head_dim", "attention.key_length", width / heads ? width / heads : 1);
    if (reader->status) return;
    meta_put_int(reader->meta, arch_key(reader, "attention.value_length", key), dim);
    meta_put_int(reader->meta, arch_key(reader, "rope.dimension_count", key), dim);
    if (!reader->arch->gemma) return;
    double scalar = (double)dim;
    reader->status = hf_float(reader->config, "query_pre_attn_scalar", (double)dim, &scalar, reader->err);
    if (scalar != (double)dim) meta_put_float(reader->meta, arch_key(reader, "attention.scale", key), 1 / sqrt(scalar));
}

static void read_activation(struct config_reader *reader) {
    const char *found = hf_text(reader->config, "hidden_activation");
    const char *expected = reader->arch->gemma ? "gelu_pytorch_tanh" : "silu";
    if (!*found) found = hf_text(reader->config, "hidden_act");
    if (*found && strcmp(found, expected) != 0) refuse(reader, "hidden_act", found, expected);
    if (json_is_true(json_object_get(reader->config, "mlp_bias"))) refuse(reader, "mlp_bias", "true", "false");
    bool bias = json_is_true(json_object_get(reader->config, "attention_bias"));
    if (bias && !reader->arch->qkv_bias) refuse(reader, "attention_bias", "true", "false");
}

int hf_config(struct model *model, const json_t *config, const struct hf_arch *arch, struct meta_builder *meta,
              struct shu_error *err) {
    struct config_reader reader = {.config = config, .arch = arch, .meta = meta, .err = err};
    const char *slash = model->path ? strrchr(model->path, '/') : NULL;
    const char *name = slash && slash[1] ? slash + 1 : model->path ? model->path : "model";
    meta_put_string(meta, "general.architecture", arch->arch, strlen(arch->arch));
    meta_put_string(meta, "general.name", name, strlen(name));
    copy_int(&reader, "max_position_embeddings", "context_length", 2048);
    copy_int(&reader, "num_hidden_layers", "block_count", -1);
    copy_int(&reader, "intermediate_size", "feed_forward_length", -1);
    copy_int(&reader, "vocab_size", "vocab_size", -1);
    read_attention(&reader);
    copy_float(&reader, config, "rms_norm_eps", "attention.layer_norm_rms_epsilon", 1e-6);
    read_rope(&reader);
    read_window(&reader);
    read_activation(&reader);
    if (strcmp(arch->arch, "gemma2") == 0) {
        copy_float(&reader, config, "attn_logit_softcapping", "attn_logit_softcapping", 0);
        copy_float(&reader, config, "final_logit_softcapping", "final_logit_softcapping", 0);
    }
    if (arch->halved_rope) meta_put_bool(meta, "shu.rope.neox", true);
    return reader.status;
}

/* ------------------------------------------------------------- tensor names */

struct layer_name {
    const char *from, *to;
    enum { FOR_ALL, FOR_PLAIN, FOR_GEMMA, FOR_HEAD_NORMS, FOR_BIAS } when;
};
static const struct layer_name layer_names[] = {
    {"input_layernorm.weight", "attn_norm.weight", FOR_ALL},
    {"self_attn.q_proj.weight", "attn_q.weight", FOR_ALL},
    {"self_attn.k_proj.weight", "attn_k.weight", FOR_ALL},
    {"self_attn.v_proj.weight", "attn_v.weight", FOR_ALL},
    {"self_attn.o_proj.weight", "attn_output.weight", FOR_ALL},
    {"self_attn.q_proj.bias", "attn_q.bias", FOR_BIAS},
    {"self_attn.k_proj.bias", "attn_k.bias", FOR_BIAS},
    {"self_attn.v_proj.bias", "attn_v.bias", FOR_BIAS},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", FOR_HEAD_NORMS},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", FOR_HEAD_NORMS},
    {"post_attention_layernorm.weight", "ffn_norm.weight", FOR_PLAIN},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", FOR_GEMMA},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight", FOR_GEMMA},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight", FOR_GEMMA},
    {"mlp.gate_proj.weight", "ffn_gate.weight", FOR_ALL},
    {"mlp.up_proj.weight", "ffn_up.weight", FOR_ALL},
    {"mlp.down_proj.weight", "ffn_down.weight", FOR_ALL},
};

static bool applies(const struct hf_arch *arch, const struct layer_name *row) {
    return row->when == FOR_ALL || (row->when == FOR_PLAIN && !arch->gemma) ||
           (row->when == FOR_GEMMA && arch->gemma) || (row->when == FOR_HEAD_NORMS && arch->head_norms) ||
           (row->when == FOR_BIAS && arch->qkv_bias);
}

bool hf_tensor_name(const struct hf_arch *arch, const char *name, char *out, size_t size, bool *skip) {
    static const char prefix[] = "model.layers.";
    const char *fixed = strcmp(name, "model.embed_tokens.weight") == 0 ? "token_embd.weight"
                        : strcmp(name, "model.norm.weight") == 0       ? "output_norm.weight"
                        : strcmp(name, "lm_head.weight") == 0          ? "output.weight"
                                                                       : NULL;
    *skip = false;
    if (fixed) {
        snprintf(out, size, "%s", fixed);
        return true;
    }
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return false;
    const char *number = name + sizeof prefix - 1;
    size_t digits = strspn(number, "0123456789");
    if (digits < 1 || digits > 5 || number[digits] != '.') return false;
    const char *rest = number + digits + 1;
    *skip = strcmp(rest, "self_attn.rotary_emb.inv_freq") == 0; /* computed; old checkpoints store it all the same */
    if (*skip) return true;
    for (size_t i = 0; i < sizeof layer_names / sizeof *layer_names; i++) {
        if (strcmp(rest, layer_names[i].from) != 0 || !applies(arch, &layer_names[i])) continue;
        snprintf(out, size, "blk.%.*s.%s", (int)digits, number, layer_names[i].to);
        return true;
    }
    return false;
}

bool hf_matrix_name(const char *name, char *out, size_t size) {
    if (strcmp(name, "output.weight") == 0) {
        snprintf(out, size, "lm_head.weight");
        return true;
    }
    if (strncmp(name, "blk.", 4) != 0) return false;
    size_t digits = strspn(name + 4, "0123456789");
    if (digits < 1 || digits > 5 || name[4 + digits] != '.') return false;
    for (size_t i = 0; i < sizeof layer_names / sizeof *layer_names; i++) {
        const struct layer_name *row = &layer_names[i];
        if (row->when != FOR_ALL || strstr(row->to, "norm") || strcmp(name + 5 + digits, row->to) != 0) continue;
        snprintf(out, size, "model.layers.%.*s.%s", (int)digits, name + 4, row->from);
        return true;
    }
    return false;
}
