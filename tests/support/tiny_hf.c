/* A tiny GGUF as a Hugging Face folder; see tiny_hf.h. */
#include "support/tiny_hf.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_ROOM 512

struct exporter {
    const struct model *model;
    const char *arch;
    bool gemma, llama;
    int64_t heads, kv_heads;
    enum dtype dtype;
};

static int64_t arch_int(const struct exporter *exporter, const char *tail) {
    char key[96];
    int64_t value = 0;
    snprintf(key, sizeof key, "%s.%s", exporter->arch, tail);
    meta_int(exporter->model, key, &value);
    return value;
}

static double arch_float(const struct exporter *exporter, const char *tail) {
    char key[96];
    double value = 0;
    snprintf(key, sizeof key, "%s.%s", exporter->arch, tail);
    meta_float(exporter->model, key, &value);
    return value;
}

static int write_json(const char *folder, const char *name, json_t *json, struct shu_error *err) {
    char path[PATH_ROOM];
    struct atomic_file file;
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!text) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    int rc = atomic_open(path, &file, err);
    if (!rc) {
        rc = atomic_write(&file, text, strlen(text), err);
        if (rc)
            atomic_abort(&file);
        else
            rc = atomic_commit(&file, err);
    }
    free(text);
    return rc;
}

/* ------------------------------------------------------------------- config */

static int write_config(const struct exporter *exporter, const char *folder, struct shu_error *err) {
    const char *type = exporter->gemma && strcmp(exporter->arch, "gemma3") == 0 ? "gemma3_text" : exporter->arch;
    bool tied = model_tensor_find(exporter->model, "output.weight") == NULL;
    json_t *config =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:b, s:s}", "model_type", type,
                  "hidden_size", (json_int_t)arch_int(exporter, "embedding_length"), "num_hidden_layers",
                  (json_int_t)arch_int(exporter, "block_count"), "num_attention_heads", (json_int_t)exporter->heads,
                  "num_key_value_heads", (json_int_t)exporter->kv_heads, "head_dim",
                  (json_int_t)arch_int(exporter, "attention.key_length"), "intermediate_size",
                  (json_int_t)arch_int(exporter, "feed_forward_length"), "vocab_size",
                  (json_int_t)arch_int(exporter, "vocab_size"), "max_position_embeddings",
                  (json_int_t)arch_int(exporter, "context_length"), "rms_norm_eps",
                  arch_float(exporter, "attention.layer_norm_rms_epsilon"), "rope_theta",
                  arch_float(exporter, "rope.freq_base"), "tie_word_embeddings", tied,
                  exporter->gemma ? "hidden_activation" : "hidden_act", exporter->gemma ? "gelu_pytorch_tanh" : "silu");
    int64_t window = arch_int(exporter, "attention.sliding_window");
    if (window) json_object_set_new(config, "sliding_window", json_integer(window));
    if (strcmp(exporter->arch, "gemma2") == 0) {
        json_object_set_new(config, "attn_logit_softcapping",
                            json_real(arch_float(exporter, "attn_logit_softcapping")));
        json_object_set_new(config, "final_logit_softcapping",
                            json_real(arch_float(exporter, "final_logit_softcapping")));
    }
    return write_json(folder, "config.json", config, err);
}

static const char qwen2_regex[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char llama3_regex[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+"
    "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static int write_tokenizer(const struct exporter *exporter, const char *folder, struct shu_error *err) {
    const struct model *model = exporter->model;
    int64_t count = meta_array_count(model, "tokenizer.ggml.tokens");
    int64_t merge_count = meta_array_count(model, "tokenizer.ggml.merges");
    struct span *tokens = mem_calloc((size_t)(count + merge_count), sizeof *tokens);
    int32_t *types = mem_calloc((size_t)count, sizeof *types);
    json_t *vocab = json_object(), *added = json_array(), *merges = json_array();
    meta_array_spans(model, "tokenizer.ggml.tokens", tokens, count);
    meta_array_spans(model, "tokenizer.ggml.merges", tokens + count, merge_count);
    meta_array_ints(model, "tokenizer.ggml.token_type", types, count);
    for (int64_t i = 0; i < count; i++) {
        json_t *text = json_stringn(tokens[i].text, tokens[i].bytes);
        if (types[i] == TOKEN_NORMAL)
            json_object_set_new(vocab, json_string_value(text), json_integer(i));
        else
            json_array_append_new(added,
                                  json_pack("{s:I, s:O, s:b}", "id", (json_int_t)i, "content", text, "special", 1));
        json_decref(text);
    }
    for (int64_t i = 0; i < merge_count; i++) { /* both ways of writing a merge */
        const char *space = memchr(tokens[count + i].text, ' ', tokens[count + i].bytes);
        size_t left = (size_t)(space - tokens[count + i].text), right = tokens[count + i].bytes - left - 1;
        json_array_append_new(merges,
                              i % 2 ? json_stringn(tokens[count + i].text, tokens[count + i].bytes)
                                    : json_pack("[s#, s#]", tokens[count + i].text, (int)left, space + 1, (int)right));
    }
    mem_free(tokens);
    mem_free(types);
    json_t *split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                              exporter->llama ? llama3_regex : qwen2_regex, "behavior", "Isolated", "invert", 0);
    json_t *bytes = json_pack("{s:s, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 0);
    json_t *root =
        json_pack("{s:o, s:{s:s}, s:{s:s, s:[o, o]}, s:{s:s, s:b, s:o, s:o}}", "added_tokens", added, "normalizer",
                  "type", "NFC", "pre_tokenizer", "type", "Sequence", "pretokenizers", split, bytes, "model", "type",
                  "BPE", "ignore_merges", exporter->llama, "vocab", vocab, "merges", merges);
    int rc = write_json(folder, "tokenizer.json", root, err);
    if (rc) return rc;
    return write_json(folder, "tokenizer_config.json",
                      json_pack("{s:{s:s}, s:s, s:s, s:b, s:s}", "bos_token", "content", "<|endoftext|>", "eos_token",
                                "<|im_end|>", "pad_token", "<|endoftext|>", "add_bos_token", 0, "chat_template",
                                model_chat_template(model)),
                      err);
}

/* ------------------------------------------------------------------ tensors */

static void hf_name(const struct exporter *exporter, const char *name, char out[128]) {
    static const char *const rows[][2] = {
        {"attn_norm.weight", "input_layernorm.weight"},
        {"attn_q_norm.weight", "self_attn.q_norm.weight"},
        {"attn_k_norm.weight", "self_attn.k_norm.weight"},
        {"attn_q.", "self_attn.q_proj."},
        {"attn_k.", "self_attn.k_proj."},
        {"attn_v.", "self_attn.v_proj."},
        {"attn_output.", "self_attn.o_proj."},
        {"ffn_gate.", "mlp.gate_proj."},
        {"ffn_up.", "mlp.up_proj."},
        {"ffn_down.", "mlp.down_proj."},
        {"post_attention_norm.weight", "post_attention_layernorm.weight"},
        {"post_ffw_norm.weight", "post_feedforward_layernorm.weight"},
    };
    int layer = 0, used = 0;
    if (strcmp(name, "token_embd.weight") == 0) name = "model.embed_tokens.weight";
    if (strcmp(name, "output_norm.weight") == 0) name = "model.norm.weight";
    if (strcmp(name, "output.weight") == 0) name = "lm_head.weight";
    snprintf(out, 128, "%s", name);
    if (sscanf(name, "blk.%d.%n", &layer, &used) != 1) return;
    const char *rest = name + used;
    if (strcmp(rest, "ffn_norm.weight") == 0)
        snprintf(out, 128, "model.layers.%d.%s_layernorm.weight", layer,
                 exporter->gemma ? "pre_feedforward" : "post_attention");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strncmp(rest, rows[i][0], strlen(rows[i][0])) == 0)
            snprintf(out, 128, "model.layers.%d.%s%s", layer, rows[i][1], rest + strlen(rows[i][0]));
}

static json_t *tensor_header(const struct exporter *exporter, const struct model_tensor *tensor, size_t *offset) {
    json_t *shape = json_array();
    for (int i = tensor->view.ndim - 1; i >= 0; i--) json_array_append_new(shape, json_integer(tensor->view.shape[i]));
    size_t bytes = dtype_row_bytes(exporter->dtype, tensor->view.shape[0]) * (size_t)tensor_rows(&tensor->view);
    json_t *header = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_table[exporter->dtype].name, "shape", shape,
                               "data_offsets", (json_int_t)*offset, (json_int_t)(*offset + bytes));
    *offset += bytes;
    return header;
}

/* Undoes what GGUF does to rows: llama's pairs go back to halves. */
static int64_t gguf_row(const struct exporter *exporter, const struct model_tensor *tensor, int64_t row) {
    int64_t heads = strstr(tensor->name, "attn_q.weight")   ? exporter->heads
                    : strstr(tensor->name, "attn_k.weight") ? exporter->kv_heads
                                                            : 0;
    if (!exporter->llama || !heads) return row;
    int64_t dim = tensor_rows(&tensor->view) / heads, local = row % dim;
    return row - local + 2 * (local % (dim / 2)) + local / (dim / 2);
}

static int write_tensor(const struct exporter *exporter, const struct model_tensor *tensor, struct atomic_file *file,
                        struct shu_error *err) {
    int64_t cols = tensor->view.shape[0], rows = tensor_rows(&tensor->view);
    float *values = mem_alloc((size_t)cols * sizeof *values);
    uint8_t *encoded = mem_alloc((size_t)cols * sizeof *values);
    bool minus_one = exporter->gemma && strstr(tensor->name, "norm.weight");
    int rc = values && encoded ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    for (int64_t row = 0; !rc && row < rows; row++) {
        const float *from = (const float *)tensor->view.data + gguf_row(exporter, tensor, row) * cols;
        for (int64_t c = 0; c < cols; c++) values[c] = minus_one ? from[c] - 1.0f : from[c];
        dtype_table[exporter->dtype].from_f32(values, NULL, encoded, cols);
        rc = atomic_write(file, encoded, dtype_row_bytes(exporter->dtype, cols), err);
    }
    mem_free(values);
    mem_free(encoded);
    return rc;
}

static int write_shard(const struct exporter *exporter, const char *path, int shard, int shards,
                       struct shu_error *err) {
    struct atomic_file file;
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    size_t offset = 0;
    for (int64_t i = shard; i < model_tensor_count(exporter->model); i += shards) {
        const struct model_tensor *tensor = model_tensor_at(exporter->model, i);
        char name[128];
        hf_name(exporter, tensor->name, name);
        json_object_set_new(header, name, tensor_header(exporter, tensor, &offset));
    }
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    uint64_t bytes = strlen(text);
    int rc = atomic_open(path, &file, err);
    if (rc) {
        free(text);
        return rc;
    }
    rc = atomic_write(&file, &bytes, sizeof bytes, err);
    if (!rc) rc = atomic_write(&file, text, bytes, err);
    free(text);
    for (int64_t i = shard; !rc && i < model_tensor_count(exporter->model); i += shards)
        rc = write_tensor(exporter, model_tensor_at(exporter->model, i), &file, err);
    if (!rc) return atomic_commit(&file, err);
    atomic_abort(&file);
    return rc;
}

static void shard_name(int shard, int shards, char out[64]) {
    if (shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, shards);
}

static int write_index(const struct exporter *exporter, const char *folder, int shards, struct shu_error *err) {
    json_t *map = json_object();
    for (int64_t i = 0; i < model_tensor_count(exporter->model); i++) {
        char name[128], file[64];
        hf_name(exporter, model_tensor_at(exporter->model, i)->name, name);
        shard_name((int)(i % shards), shards, file);
        json_object_set_new(map, name, json_string(file));
    }
    return write_json(folder, "model.safetensors.index.json",
                      json_pack("{s:{s:i}, s:o}", "metadata", "total_size", 0, "weight_map", map), err);
}

int tiny_export_hf(const struct model *model, const char *folder, int shards, enum dtype dtype, struct shu_error *err) {
    struct exporter exporter = {.model = model, .dtype = dtype};
    int rc = dir_make(folder, err);
    if (rc) return rc;
    meta_string(model, "general.architecture", &exporter.arch, NULL);
    exporter.gemma = strncmp(exporter.arch, "gemma", 5) == 0;
    exporter.llama = strcmp(exporter.arch, "llama") == 0;
    exporter.heads = arch_int(&exporter, "attention.head_count");
    exporter.kv_heads = arch_int(&exporter, "attention.head_count_kv");
    rc = write_config(&exporter, folder, err);
    if (!rc) rc = write_tokenizer(&exporter, folder, err);
    if (!rc && shards > 1) rc = write_index(&exporter, folder, shards, err);
    for (int shard = 0; !rc && shard < shards; shard++) {
        char path[PATH_ROOM], name[64];
        shard_name(shard, shards, name);
        snprintf(path, sizeof path, "%s/%s", folder, name);
        rc = write_shard(&exporter, path, shard, shards, err);
    }
    return rc;
}

void tiny_remove_hf(const char *folder) {
    DIR *dir = opendir(folder);
    struct dirent *item;
    while (dir && (item = readdir(dir)) != NULL)
        if (item->d_name[0] != '.') unlinkat(dirfd(dir), item->d_name, 0);
    if (dir) closedir(dir);
    rmdir(folder);
}
