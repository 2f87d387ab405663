/* Metadata to decoder_config: one table row per architecture. */
#include "nn/nn.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------ architectures */

struct arch_rule {
    const char *name; /* general.architecture */
    enum unary_kind activation;
    bool qk_norm, post_norms;
    bool scaled_embedding;   /* times sqrt(width) */
    bool neox;               /* order of rotated pairs in GGUF files */
    bool local_follows_rope; /* sliding layers take base and scale of the full ones unless a key says otherwise */
    int window;              /* if the key is missing */
    int window_pattern;      /* likewise */
    int query_by_width;      /* models of so many layers scale queries by width / heads instead of head_dim; 0 = none */
    float attention_softcap, logit_softcap; /* likewise */
};

/* Facts: the models' published reference code, and what llama.cpp does with the same keys. The 27B models of
 * gemma are recognised by their layer counts, as no key tells. */
static const struct arch_rule arch_rules[ARCH_COUNT] = {
    [ARCH_LLAMA] = {.name = "llama", .activation = UNARY_SILU, .local_follows_rope = true},
    [ARCH_QWEN2] = {.name = "qwen2", .activation = UNARY_SILU, .neox = true, .local_follows_rope = true},
    [ARCH_QWEN3] =
        {.name = "qwen3", .activation = UNARY_SILU, .qk_norm = true, .neox = true, .local_follows_rope = true},
    [ARCH_GEMMA2] = {.name = "gemma2",
                     .activation = UNARY_GELU_TANH,
                     .post_norms = true,
                     .scaled_embedding = true,
                     .neox = true,
                     .local_follows_rope = true,
                     .window = 4096,
                     .window_pattern = 2,
                     .query_by_width = 46,
                     .attention_softcap = 50,
                     .logit_softcap = 30},
    [ARCH_GEMMA3] = {.name = "gemma3",
                     .activation = UNARY_GELU_TANH,
                     .qk_norm = true,
                     .post_norms = true,
                     .scaled_embedding = true,
                     .neox = true,
                     .window_pattern = 6,
                     .query_by_width = 62},
};

/* Base of sliding layers where the architecture has its own and no key names it. */
#define ROPE_BASE_LOCAL 10000.0

const char *decoder_arch_name(enum decoder_arch arch) {
    return (unsigned)arch < ARCH_COUNT ? arch_rules[arch].name : "unknown";
}

static int find_arch(const struct model *model, enum decoder_arch *out, struct shu_error *err) {
    const char *name;
    size_t bytes;
    if (!meta_string(model, "general.architecture", &name, &bytes))
        return SHU_FAIL(err, SHU_E_FORMAT, "general.architecture: expected a string, found none; not a model file?");
    for (int i = 0; i < ARCH_COUNT; i++) {
        if (strcmp(arch_rules[i].name, name) != 0) continue;
        *out = (enum decoder_arch)i;
        return SHU_OK;
    }
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "architecture \"%.40s\" is not supported; expected llama (and mistral), qwen2, qwen3, gemma2 or "
                    "gemma3",
                    name);
}

/* ----------------------------------------------------------------- key readers */

/* Reads "{arch}.{tail}" keys; the first failure stays, later reads do nothing. */
struct reader {
    const struct model *model;
    const char *arch;
    struct shu_error *err;
    int status;
};

#define KEY_BYTES 96

static const char *full_key(const struct reader *reader, const char *tail, char out[KEY_BYTES]) {
    snprintf(out, KEY_BYTES, "%s.%s", reader->arch, tail);
    return out;
}

static bool has_key(const struct reader *reader, const char *tail) {
    char key[KEY_BYTES];
    return meta_has(reader->model, full_key(reader, tail, key));
}

/* An integer in [low, high]; if the key is missing, `absent`, or an error if absent is INT64_MIN. */
#define REQUIRED INT64_MIN
static int64_t read_int(struct reader *reader, const char *tail, int64_t low, int64_t high, int64_t absent) {
    char key[KEY_BYTES];
    int64_t value = absent;
    if (reader->status) return 0;
    full_key(reader, tail, key);
    if (!meta_has(reader->model, key) && absent != REQUIRED) return absent;
    if (!meta_int(reader->model, key, &value)) {
        bool array = meta_array_count(reader->model, key) >= 0;
        reader->status =
            SHU_FAIL(reader->err, array ? SHU_E_UNSUPPORTED : SHU_E_FORMAT, "%s: expected one integer, found %s", key,
                     array                          ? "a value per layer, which is not supported"
                     : meta_has(reader->model, key) ? "another kind of value"
                                                    : "no such key");
        return 0;
    }
    if (value < low || value > high) {
        reader->status = SHU_FAIL(reader->err, SHU_E_RANGE, "%s: expected %lld to %lld, found %lld", key,
                                  (long long)low, (long long)high, (long long)value);
        return 0;
    }
    return value;
}

/* A finite number in [low, high]; NAN as `absent` makes the key required. */
static double read_float(struct reader *reader, const char *tail, double low, double high, double absent) {
    char key[KEY_BYTES];
    double value = absent;
    if (reader->status) return 0;
    full_key(reader, tail, key);
    if (!meta_has(reader->model, key) && !isnan(absent)) return absent;
    if (!meta_float(reader->model, key, &value)) {
        reader->status = SHU_FAIL(reader->err, SHU_E_FORMAT, "%s: expected a number, found %s", key,
                                  meta_has(reader->model, key) ? "another kind of value" : "no such key");
        return 0;
    }
    if (!(value >= low && value <= high)) {
        reader->status = SHU_FAIL(reader->err, SHU_E_RANGE, "%s: expected %g to %g, found %g", key, low, high, value);
        return 0;
    }
    return value;
}

/* ------------------------------------------------------------------- sections */

static void read_sizes(struct reader *reader, struct decoder_config *config) {
    config->layers = (int)read_int(reader, "block_count", 1, 1024, REQUIRED);
    config->width = (int)read_int(reader, "embedding_length", 1, 1 << 17, REQUIRED);
    config->heads = (int)read_int(reader, "attention.head_count", 1, 1024, REQUIRED);
    config->kv_heads = (int)read_int(reader, "attention.head_count_kv", 1, 1024, config->heads);
    config->ffn = (int)read_int(reader, "feed_forward_length", 1, 1 << 20, REQUIRED);
    config->context = (int)read_int(reader, "context_length", 1, 1 << 30, REQUIRED);
    config->norm_eps = (float)read_float(reader, "attention.layer_norm_rms_epsilon", 0, 1, NAN);
    if (read_int(reader, "expert_count", 0, INT64_MAX, 0) != 0 && !reader->status)
        reader->status =
            SHU_FAIL(reader->err, SHU_E_UNSUPPORTED,
                     "%s.expert_count: mixtures of experts are not supported; use a dense model", reader->arch);
}

static void read_head_dim(struct reader *reader, struct decoder_config *config) {
    if (reader->status) return;
    if (config->heads % config->kv_heads != 0) {
        reader->status =
            SHU_FAIL(reader->err, SHU_E_RANGE, "%s.attention.head_count_kv: %d query heads cannot share %d key heads",
                     reader->arch, config->heads, config->kv_heads);
        return;
    }
    bool given = has_key(reader, "attention.key_length");
    int64_t absent = config->width % config->heads == 0 ? config->width / config->heads : REQUIRED;
    config->head_dim = (int)read_int(reader, "attention.key_length", 2, HEAD_DIM_MAX, absent);
    int64_t value_dim = read_int(reader, "attention.value_length", 1, INT32_MAX, config->head_dim);
    if (reader->status) return;
    if (!given && (config->head_dim < 2 || config->head_dim > HEAD_DIM_MAX))
        reader->status = SHU_FAIL(reader->err, SHU_E_RANGE, "%s.embedding_length: heads of %d / %d = %d exceed 2 to %d",
                                  reader->arch, config->width, config->heads, config->head_dim, HEAD_DIM_MAX);
    else if (value_dim != config->head_dim)
        reader->status = SHU_FAIL(reader->err, SHU_E_UNSUPPORTED,
                                  "%s.attention.value_length: expected %d like key_length, found %lld", reader->arch,
                                  config->head_dim, (long long)value_dim);
}

static void read_rope(struct reader *reader, struct decoder_config *config, const struct arch_rule *rule) {
    char key[KEY_BYTES];
    const char *type = "linear";
    size_t bytes;
    if (reader->status) return;
    meta_string(reader->model, full_key(reader, "rope.scaling.type", key), &type, &bytes);
    if (strcmp(type, "linear") != 0 && strcmp(type, "none") != 0) {
        reader->status =
            SHU_FAIL(reader->err, SHU_E_UNSUPPORTED,
                     "%s: expected linear or none (llama 3 brings rope_freqs.weight), found \"%.40s\"", key, type);
        return;
    }
    config->rot = (int)read_int(reader, "rope.dimension_count", 2, config->head_dim, config->head_dim);
    if (!reader->status && config->rot % 2 != 0)
        reader->status =
            SHU_FAIL(reader->err, SHU_E_RANGE, "%s.rope.dimension_count: expected an even number, found %d",
                     reader->arch, config->rot);
    /* GGUF files of llama interleave the halves that Hugging Face folders keep apart; room weights tells. */
    config->rope_neox = rule->neox;
    meta_bool(reader->model, "shu.rope.neox", &config->rope_neox);
    config->rope_base = read_float(reader, "rope.freq_base", 1, 1e12, 10000);
    double factor = read_float(reader, "rope.scale_linear", 0, 1e6, 0);
    factor = read_float(reader, "rope.scaling.factor", 0, 1e6, factor);
    config->rope_scale = factor > 0 && strcmp(type, "none") != 0 ? 1 / factor : 1;
    config->rope_scale_local = rule->local_follows_rope ? config->rope_scale : 1;
    config->rope_base_local = read_float(reader, "rope.freq_base_swa", 1, 1e12,
                                         rule->local_follows_rope ? config->rope_base : ROPE_BASE_LOCAL);
}

/* The pattern is a number, or one flag per layer; flags must repeat as a number would say. */
static int read_pattern(struct reader *reader, const struct decoder_config *config, int absent) {
    char key[KEY_BYTES];
    int32_t flags[1024];
    if (reader->status) return 0;
    full_key(reader, "attention.sliding_window_pattern", key);
    int64_t count = meta_array_count(reader->model, key);
    if (count < 0) return (int)read_int(reader, "attention.sliding_window_pattern", 0, 1024, absent);
    if (count < config->layers || count > 1024 || !meta_array_ints(reader->model, key, flags, count)) {
        reader->status = SHU_FAIL(reader->err, SHU_E_FORMAT, "%s: expected a number or %d flags, found %lld values",
                                  key, config->layers, (long long)count);
        return 0;
    }
    int first_full = 0;
    while (first_full < config->layers && flags[first_full]) first_full++;
    int pattern = first_full == config->layers ? 0 : first_full + 1;
    for (int layer = 0; layer < config->layers && !reader->status; layer++)
        if ((flags[layer] != 0) != (pattern == 0 || layer % pattern != pattern - 1))
            reader->status =
                SHU_FAIL(reader->err, SHU_E_UNSUPPORTED,
                         "%s: expected every n-th layer to be full, found layer %d out of step", key, layer);
    return pattern;
}

static void read_attention(struct reader *reader, struct decoder_config *config, const struct arch_rule *rule) {
    config->window = (int)read_int(reader, "attention.sliding_window", 0, 1 << 30, rule->window);
    config->window_pattern = read_pattern(reader, config, rule->window_pattern);
    config->attention_softcap =
        (float)read_float(reader, "attn_logit_softcapping", 0, 1e6, (double)rule->attention_softcap);
    config->logit_softcap = (float)read_float(reader, "final_logit_softcapping", 0, 1e6, (double)rule->logit_softcap);
    if (reader->status) return;
    int per_head = rule->query_by_width == config->layers ? config->width / config->heads : config->head_dim;
    float absent = 1 / sqrtf((float)per_head);
    config->attention_scale = (float)read_float(reader, "attention.scale", 0, 1e6, (double)absent);
    if (config->attention_scale == 0) config->attention_scale = absent; /* 0 in a file means "not set" */
}

/* The embedding table says how many tokens there are; the vocabulary may be smaller (padding), not larger. */
static void read_vocab(struct reader *reader, struct decoder_config *config) {
    if (reader->status) return;
    const struct model_tensor *table = model_tensor_find(reader->model, "token_embd.weight");
    int64_t tokens = meta_array_count(reader->model, "tokenizer.ggml.tokens");
    if (table == NULL) {
        reader->status =
            SHU_FAIL(reader->err, SHU_E_FORMAT, "tensor token_embd.weight is missing; not a language model?");
    } else if (table->view.shape[0] != config->width || table->view.shape[1] < 1 || table->view.shape[1] > 1 << 24 ||
               table->view.shape[2] != 1 || table->view.shape[3] != 1) {
        reader->status = SHU_FAIL(reader->err, SHU_E_FORMAT,
                                  "tensor token_embd.weight: expected [%d, vocabulary], found [%lld, %lld, %lld, %lld]",
                                  config->width, (long long)table->view.shape[0], (long long)table->view.shape[1],
                                  (long long)table->view.shape[2], (long long)table->view.shape[3]);
    } else if (tokens > table->view.shape[1]) {
        reader->status = SHU_FAIL(reader->err, SHU_E_FORMAT,
                                  "tokenizer.ggml.tokens: %lld tokens, but token_embd.weight has %lld rows",
                                  (long long)tokens, (long long)table->view.shape[1]);
    } else {
        config->vocab = (int)table->view.shape[1];
    }
}

int decoder_config_read(const struct model *model, struct decoder_config *out, struct shu_error *err) {
    struct decoder_config config = {0};
    int status = find_arch(model, &config.arch, err);
    if (status) return status;
    const struct arch_rule *rule = &arch_rules[config.arch];
    struct reader reader = {.model = model, .arch = rule->name, .err = err};
    read_sizes(&reader, &config);
    read_head_dim(&reader, &config);
    read_rope(&reader, &config, rule);
    read_attention(&reader, &config, rule);
    read_vocab(&reader, &config);
    if (reader.status) return reader.status;
    config.activation = rule->activation;
    config.qk_norm = rule->qk_norm;
    config.post_norms = rule->post_norms;
    config.embed_scale = rule->scaled_embedding ? sqrtf((float)config.width) : 1;
    config.qkv_bias = model_tensor_find(model, "blk.0.attn_q.bias") != NULL;
    config.tied_output = model_tensor_find(model, "output.weight") == NULL;
    *out = config;
    return SHU_OK;
}

bool decoder_layer_slides(const struct decoder_config *config, int layer) {
    if (config->window == 0) return false;
    return config->window_pattern == 0 || layer % config->window_pattern != config->window_pattern - 1;
}
