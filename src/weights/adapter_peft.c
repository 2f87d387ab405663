/* Adapters as PEFT folders: adapter_config.json and adapter_model.safetensors, as the Python library PEFT writes and
 * loads them. */
#include <string.h>

#include "weights/lora.h"

static const char name_prefix[] = "base_model.model.";
static const char name_a[] = ".lora_A.weight", name_b[] = ".lora_B.weight";

/* ---------------------------------------------------------- configuration */

/* Switches of PEFT that change what is computed. Null, false and empty values are as good as absent. (Which layers are
 * adapted, "layers_to_transform", the tensors tell themselves.) */
static const char *const refused_keys[] = {
    "use_dora",          "fan_in_fan_out", "modules_to_save",   "layer_replication",       "alora_invocation_tokens",
    "target_parameters", "use_qalora",     "lora_bias",         "trainable_token_indices", "use_bdlora",
    "kasa_config",       "arrow_config",   "monteclora_config",
};
/* Initialisations that move the base's own weights: the adapter alone does not fit the original base. */
static const char *const refused_starts[] = {"pissa", "olora", "corda", "loftq", "lora_ga"};

static bool is_set(const json_t *value) {
    if (!value || json_is_null(value) || json_is_false(value)) return false;
    if (json_is_array(value)) return json_array_size(value) > 0;
    if (json_is_object(value)) return json_object_size(value) > 0;
    return true;
}

static int check_kind(const json_t *config, struct shu_error *err) {
    const char *type = hf_text(config, "peft_type"), *bias = hf_text(config, "bias");
    const char *start = hf_text(config, "init_lora_weights");
    char shown[48];
    if (strcmp(type, "LORA") != 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "adapter_config.json: peft_type is \"%s\"; expected LORA",
                        name_show(type, strlen(type), shown, sizeof shown));
    if (*bias && strcmp(bias, "none") != 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "adapter_config.json: bias is \"%s\"; expected none",
                        name_show(bias, strlen(bias), shown, sizeof shown));
    for (size_t i = 0; i < sizeof refused_keys / sizeof *refused_keys; i++)
        if (is_set(json_object_get(config, refused_keys[i])))
            return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                            "adapter_config.json: %s is set; ignoring it would give wrong answers", refused_keys[i]);
    for (size_t i = 0; i < sizeof refused_starts / sizeof *refused_starts; i++)
        if (strncmp(start, refused_starts[i], strlen(refused_starts[i])) == 0)
            return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                            "adapter_config.json: init_lora_weights \"%s\" changes the base itself; let PEFT convert "
                            "the adapter to plain LoRA when it saves it",
                            name_show(start, strlen(start), shown, sizeof shown));
    return SHU_OK;
}

static int read_rank(const json_t *config, int64_t *out, struct shu_error *err) {
    *out = json_integer_value(json_object_get(config, "r")); /* 0 for anything else */
    if (*out < 1 || *out > LORA_RANK_MAX)
        return SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: r is missing or no whole number from 1 to %d",
                        LORA_RANK_MAX);
    return SHU_OK;
}

static int read_alpha(const json_t *value, const char *key, double *out, struct shu_error *err) {
    *out = json_number_value(value);
    if (!json_is_number(value) || !(*out > 0 && *out <= 1e9))
        return SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: %.60s is missing or no number above 0, up to 1e9",
                        key);
    return SHU_OK;
}

/* PEFT takes pattern keys as regular expressions for the end of a module's name; plain names are all that is common. */
static int check_patterns(const json_t *config, const char *key, struct shu_error *err) {
    const char *pattern;
    json_t *value, *patterns = json_object_get(config, key);
    char shown[80];
    double number;
    if (!is_set(patterns)) return SHU_OK;
    if (!json_is_object(patterns)) return SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: %s is no object", key);
    json_object_foreach(patterns, pattern, value) {
        name_show(pattern, strlen(pattern), shown, sizeof shown);
        if (!*pattern ||
            strspn(pattern, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") != strlen(pattern))
            return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                            "adapter_config.json: %s \"%s\" is a regular expression; expected the end of a name", key,
                            shown);
        int status = read_alpha(value, shown, &number, err);
        if (status) return status;
    }
    return SHU_OK;
}

/* The first pattern that is the module's name or its end at a dot. */
static const json_t *pattern_of(const json_t *patterns, const char *module, size_t bytes) {
    const char *pattern;
    json_t *value;
    if (!json_is_object(patterns)) return NULL;
    json_object_foreach((json_t *)(uintptr_t)patterns, pattern, value) {
        size_t length = strlen(pattern);
        if (length > bytes || memcmp(module + bytes - length, pattern, length) != 0) continue;
        if (length == bytes || module[bytes - length - 1] == '.') return value;
    }
    return NULL;
}

static int read_facts(struct adapter *adapter, const json_t *config, struct shu_error *err) {
    const json_t *stabilised = json_object_get(config, "use_rslora");
    const json_t *fingerprint = json_object_get(config, "shu_base_sha256");
    const char *digest = hf_text(config, "shu_base_sha256");
    if (stabilised && !json_is_null(stabilised) && !json_is_boolean(stabilised))
        return SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: use_rslora is neither true nor false");
    if (fingerprint && !json_is_null(fingerprint) && !json_is_string(fingerprint))
        return SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: shu_base_sha256 is no text");
    adapter->halved = true;
    adapter->rank_stabilised = json_is_true(stabilised);
    int status = lora_keep_text(adapter, hf_text(config, "base_model_name_or_path"), &adapter->base_name, err);
    if (!status) status = lora_keep_text(adapter, digest, &adapter->base_sha256, err);
    if (!status && *digest && !lora_is_sha256(digest))
        status = SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: shu_base_sha256 is no SHA-256 in hexadecimal");
    return status;
}

/* ------------------------------------------------------------------ reading */

struct peft_reader {
    struct adapter *adapter;
    struct lora_parts parts;
    const json_t *ranks, *alphas; /* patterns */
    int64_t rank;
    double alpha;
};

/* The GGUF name of the matrix that a tensor is half of, and the module's name in between. */
static bool parse_name(const char *name, char *out, size_t size, const char **module, size_t *module_bytes,
                       bool *is_b) {
    static const struct hf_arch any = {.model_type = ""}; /* matrices have the same names in all of them */
    char weight[256];
    bool skip;
    size_t bytes = strlen(name), prefix = sizeof name_prefix - 1, tail = sizeof name_a - 1;
    if (bytes < prefix + tail || memcmp(name, name_prefix, prefix) != 0) return false;
    *is_b = strcmp(name + bytes - tail, name_b) == 0;
    if (!*is_b && strcmp(name + bytes - tail, name_a) != 0) return false;
    *module = name + prefix;
    *module_bytes = bytes - prefix - tail;
    if (*module_bytes > 200) return false;
    snprintf(weight, sizeof weight, "%.*s.weight", (int)*module_bytes, *module);
    return hf_tensor_name(&any, weight, out, size, &skip) && !skip && strstr(out, "norm") == NULL;
}

/* With lm_head among the targets, PEFT saves the frozen matrix too. */
static bool is_base_copy(const char *name) {
    static const char tail[] = ".base_layer.weight";
    size_t bytes = strlen(name), length = sizeof tail - 1;
    return bytes > length && strcmp(name + bytes - length, tail) == 0;
}

static int visit(void *context, const struct safetensor *from, struct shu_error *err) {
    struct peft_reader *reader = context;
    char name[96], shown[120];
    const char *module;
    size_t module_bytes;
    struct lora_part part = {.alpha = reader->alpha};
    name_show(from->name, strlen(from->name), shown, sizeof shown);
    if (is_base_copy(from->name)) return SHU_OK;
    if (!parse_name(from->name, name, sizeof name, &module, &module_bytes, &part.is_b))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "tensor \"%s\" is no lora_A or lora_B of a projection of a decoder; ignoring it would give "
                        "wrong answers",
                        shown);
    int dtype = dtype_from_name(from->dtype);
    if (dtype != DT_F32 && dtype != DT_F16 && dtype != DT_BF16)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tensor \"%s\" is stored as %s; expected F32, F16 or BF16", shown,
                        from->dtype);
    if (from->ndim != 2 || !from->bytes)
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" is no matrix with content", shown);
    const json_t *own_rank = pattern_of(reader->ranks, module, module_bytes);
    const json_t *own_alpha = pattern_of(reader->alphas, module, module_bytes);
    int64_t rank = own_rank ? (int64_t)json_number_value(own_rank) : reader->rank;
    int64_t found = from->shape[part.is_b ? 1 : 0];
    if (rank != found)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "tensor \"%s\" has rank %lld, adapter_config.json says %lld; they belong "
                        "to two adapters",
                        shown, (long long)found, (long long)rank);
    if (own_alpha) part.alpha = json_number_value(own_alpha);
    part.view = (struct tensor){
        .dtype = (enum dtype)dtype, .ndim = 2, .shape = {from->shape[1], from->shape[0], 1, 1}, .data = from->data};
    return lora_part_add(reader->adapter, &reader->parts, name, strlen(name), &part, err);
}

int lora_read_peft(struct adapter *adapter, struct span text, const uint8_t *data, size_t bytes,
                   struct shu_error *err) {
    struct peft_reader reader = {.adapter = adapter};
    json_t *config = NULL;
    int status = json_parse(text.text, text.bytes, "adapter_config.json", &config, err);
    if (!status && !json_is_object(config))
        status = SHU_FAIL(err, SHU_E_FORMAT, "adapter_config.json: expected a JSON object");
    if (!status) status = check_kind(config, err);
    if (!status) status = read_rank(config, &reader.rank, err);
    if (!status) status = read_alpha(json_object_get(config, "lora_alpha"), "lora_alpha", &reader.alpha, err);
    if (!status) status = check_patterns(config, "rank_pattern", err);
    if (!status) status = check_patterns(config, "alpha_pattern", err);
    if (!status) status = read_facts(adapter, config, err);
    if (!status) {
        reader.ranks = json_object_get(config, "rank_pattern");
        reader.alphas = json_object_get(config, "alpha_pattern");
        status = safetensors_parse(data, bytes, visit, &reader, err);
    }
    if (!status) status = lora_settle(adapter, &reader.parts, err);
    mem_free(reader.parts.item);
    json_decref(config);
    return status;
}

/* ------------------------------------------------------------------ writing */

/* "model.layers.0.self_attn.q_proj" of a matrix; SHU_E_USAGE if Hugging Face has no name for it. */
static int module_name(const struct adapter_pair *pair, char *out, size_t size, struct shu_error *err) {
    if (!hf_matrix_name(pair->name, out, size))
        return SHU_FAIL(err, SHU_E_USAGE, "\"%.80s\" has no name in Hugging Face's models", pair->name);
    out[strlen(out) - strlen(".weight")] = 0;
    return SHU_OK;
}

static int declare(struct safetensors_writer *writer, const struct adapter_pair *pair, struct shu_error *err) {
    char module[160], name[256];
    int64_t a[2] = {pair->rank, pair->in}, b[2] = {pair->out, pair->rank};
    int status = module_name(pair, module, sizeof module, err);
    if (status) return status;
    snprintf(name, sizeof name, "%s%s%s", name_prefix, module, name_a);
    status = safetensors_writer_declare(writer, name, DT_F32, 2, a, err);
    if (status) return status;
    snprintf(name, sizeof name, "%s%s%s", name_prefix, module, name_b);
    return safetensors_writer_declare(writer, name, DT_F32, 2, b, err);
}

static int write_pair(struct safetensors_writer *writer, const struct adapter_write *what,
                      const struct adapter_pair *pair, struct shu_error *err) {
    struct adapter_order order = adapter_write_order(what, pair, true);
    int status = safetensors_writer_data(writer, pair->a, (size_t)pair->in * (size_t)pair->rank * sizeof *pair->a, err);
    for (int64_t row = 0; row < pair->out && !status; row++)
        status =
            safetensors_writer_data(writer, lora_b_row(pair, order, row), (size_t)pair->rank * sizeof *pair->b, err);
    return status;
}

static int write_weights(const struct adapter_write *what, const char *path, struct shu_error *err) {
    struct safetensors_writer writer;
    int status = safetensors_writer_open(path, &writer, err);
    if (status) return status;
    for (int i = 0; i < what->count && !status; i++) status = declare(&writer, &what->pairs[i], err);
    for (int i = 0; i < what->count && !status; i++) status = write_pair(&writer, what, &what->pairs[i], err);
    return safetensors_writer_end(&writer, status, err);
}

/* ["q_proj", …]: the last part of every module's name, once each. */
static int target_modules(const struct adapter_write *what, json_t *out, struct shu_error *err) {
    for (int i = 0; i < what->count; i++) {
        char module[160];
        size_t at;
        json_t *item;
        bool known = false;
        int status = module_name(&what->pairs[i], module, sizeof module, err);
        if (status) return status;
        const char *dot = strrchr(module, '.'), *last = dot ? dot + 1 : module;
        json_array_foreach(out, at, item) known |= strcmp(json_string_value(item), last) == 0;
        if (!known && json_array_append_new(out, json_string(last)))
            return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the adapter's configuration");
    }
    return SHU_OK;
}

static int write_config(const struct adapter_write *what, const char *path, struct shu_error *err) {
    char digest[65];
    struct atomic_file file;
    json_t *targets = json_array();
    int status = target_modules(what, targets, err);
    if (!status) status = adapter_base_fingerprint(what->base, digest, err);
    if (status) {
        json_decref(targets);
        return status;
    }
    const char *name = what->base_name && utf8_valid(what->base_name, strlen(what->base_name)) ? what->base_name : "";
    json_t *config =
        json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:b, s:o, s:s, s:b, s:b, s:b, s:s}", "peft_type", "LORA", "task_type",
                  "CAUSAL_LM", "base_model_name_or_path", name, "r", what->pairs[0].rank, "lora_alpha", what->alpha,
                  "lora_dropout", what->dropout, "use_rslora", what->rank_stabilised, "target_modules", targets, "bias",
                  "none", "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "shu_base_sha256", digest);
    char *text = config ? json_dumps(config, JSON_INDENT(2)) : NULL;
    json_decref(config);
    if (!text) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the adapter's configuration");
    status = atomic_open(path, &file, err);
    if (!status) {
        status = atomic_write(&file, text, strlen(text), err);
        if (!status) status = atomic_write(&file, "\n", 1, err);
        status = atomic_end(&file, status, err);
    }
    free(text); /* jansson's */
    return status;
}

/* Weights first: a folder whose configuration is there is complete. */
int adapter_write_peft(const struct adapter_write *what, const char *folder, struct shu_error *err) {
    struct buf path = {0};
    int status = adapter_write_check(what, err);
    if (!status) status = dir_make(folder, err);
    if (!status && buf_printf(&path, "%s/adapter_model.safetensors", folder))
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) status = write_weights(what, path.data, err);
    buf_clear(&path);
    if (!status && buf_printf(&path, "%s/adapter_config.json", folder))
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) status = write_config(what, path.data, err);
    buf_free(&path);
    return status;
}
