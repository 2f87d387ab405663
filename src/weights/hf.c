/* Opening a Hugging Face folder: texts, shards, tensors. */
#include "weights/hf.h"

#include <string.h>

#define CONFIG_BYTES_MAX    ((size_t)4 << 20)
#define TOKENIZER_BYTES_MAX ((size_t)256 << 20)
#define INDEX_BYTES_MAX     ((size_t)64 << 20)
#define SHARDS_MAX          4096

static const struct hf_arch archs[] = {
    {"llama", "llama", .halved_rope = true}, {"mistral", "llama", .halved_rope = true},
    {"qwen2", "qwen2", .qkv_bias = true},    {"qwen3", "qwen3", .head_norms = true},
    {"gemma2", "gemma2", .gemma = true},     {"gemma3_text", "gemma3", .gemma = true, .head_norms = true},
};

static const struct hf_arch *arch_find(const char *model_type) {
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (strcmp(archs[i].model_type, model_type) == 0) return &archs[i];
    return NULL;
}

/* ------------------------------------------------------------------- texts */

struct hf_files {
    struct buf config, tokenizer, tokenizer_config, chat_template;
};

static void files_free(struct hf_files *files) {
    buf_free(&files->config);
    buf_free(&files->tokenizer);
    buf_free(&files->tokenizer_config);
    buf_free(&files->chat_template);
}

static int folder_file(const char *folder, const char *name, struct buf *out, struct shu_error *err) {
    buf_clear(out);
    return buf_printf(out, "%s/%s", folder, name) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
}

static int read_text(const char *folder, const char *name, size_t max_bytes, bool required, struct buf *out,
                     struct shu_error *err) {
    struct buf path = {0};
    int status = folder_file(folder, name, &path, err);
    if (!status && (required || file_exists(path.data))) status = file_read(path.data, max_bytes, out, err);
    buf_free(&path);
    return status;
}

static int read_texts(const char *folder, struct hf_files *files, struct shu_error *err) {
    int status = read_text(folder, "config.json", CONFIG_BYTES_MAX, true, &files->config, err);
    if (!status) status = read_text(folder, "tokenizer.json", TOKENIZER_BYTES_MAX, false, &files->tokenizer, err);
    if (!status)
        status = read_text(folder, "tokenizer_config.json", CONFIG_BYTES_MAX, false, &files->tokenizer_config, err);
    if (!status) status = read_text(folder, "chat_template.jinja", CONFIG_BYTES_MAX, false, &files->chat_template, err);
    return status;
}

/* --------------------------------------------------------------- translate */

static int parse_text(struct span text, const char *name, json_t **out, struct shu_error *err) {
    if (!text.bytes) return SHU_OK;
    int status = json_parse(text.text, text.bytes, name, out, err);
    if (!status && !json_is_object(*out)) status = SHU_FAIL(err, SHU_E_FORMAT, "%s: expected a JSON object", name);
    return status;
}

/* The template of a conversation: a file of its own, a string, or a list of named ones. */
static void put_template(const json_t *settings, struct span file, struct meta_builder *meta) {
    const json_t *value = json_object_get(settings, "chat_template");
    size_t at;
    json_t *item;
    if (file.bytes) {
        meta_put_string(meta, "tokenizer.chat_template", file.text, file.bytes);
        return;
    }
    json_array_foreach(value, at, item)
        if (strcmp(hf_text(item, "name"), "default") == 0) {
            value = json_object_get(item, "template");
            break;
        }
    if (json_is_string(value))
        meta_put_string(meta, "tokenizer.chat_template", json_string_value(value), json_string_length(value));
}

/* The tensor of frequency divisors that GGUF expects of llama 3; lives in the arena. */
static int add_rope_factors(struct model *model, const json_t *config, struct shu_error *err) {
    const float *factors = NULL;
    int64_t count;
    int status = hf_rope_factors(config, &model->arena, &factors, &count, err);
    if (status || !count) return status;
    model->tensors = arena_alloc(&model->arena, sizeof *model->tensors);
    if (!model->tensors) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    model->tensors[model->tensor_count++] = (struct model_tensor){
        .name = "rope_freqs.weight", .view = {.dtype = DT_F32, .ndim = 1, .shape = {count, 1, 1, 1}, .data = factors}};
    return SHU_OK;
}

static int translate(struct model *model, const json_t *config, const json_t *tokenizer, const json_t *settings,
                     struct span chat_template, const struct hf_arch *arch, struct shu_error *err) {
    struct meta_builder meta = {.out = &model->translated};
    size_t used;
    int status = hf_config(model, config, arch, &meta, err);
    if (!status && tokenizer) status = hf_tokenizer(tokenizer, settings, config, &meta, err);
    if (status) return status;
    put_template(settings, chat_template, &meta);
    if (meta.status) return SHU_FAIL(err, meta.status, "out of memory for metadata");
    status =
        gguf_parse_pairs(model, (const uint8_t *)model->translated.data, model->translated.len, meta.count, &used, err);
    return status ? status : add_rope_factors(model, config, err);
}

static int find_facts(const json_t *config, struct hf_facts *out, struct shu_error *err) {
    char shown[48];
    const char *type = hf_text(config, "model_type");
    const json_t *tied = json_object_get(config, "tie_word_embeddings");
    out->arch = arch_find(type);
    if (!out->arch)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "config.json: model_type \"%s\" is not supported; expected llama, mistral, qwen2, qwen3, "
                        "gemma2 or gemma3_text",
                        name_show(type, strlen(type), shown, sizeof shown));
    out->tied = json_is_boolean(tied) ? json_is_true(tied) : out->arch->gemma; /* transformers' defaults */
    return SHU_OK;
}

int hf_translate(struct model *model, const struct hf_texts *texts, struct hf_facts *out, struct shu_error *err) {
    json_t *config = NULL, *tokenizer = NULL, *settings = NULL;
    int status = texts->config.bytes ? SHU_OK : SHU_FAIL(err, SHU_E_FORMAT, "config.json is empty");
    if (!status) status = parse_text(texts->config, "config.json", &config, err);
    if (!status) status = parse_text(texts->tokenizer, "tokenizer.json", &tokenizer, err);
    if (!status) status = parse_text(texts->tokenizer_config, "tokenizer_config.json", &settings, err);
    if (!status) status = find_facts(config, out, err);
    if (!status) status = translate(model, config, tokenizer, settings, texts->chat_template, out->arch, err);
    json_decref(config);
    json_decref(tokenizer);
    json_decref(settings);
    return status;
}

/* ------------------------------------------------------------------ tensors */

/* Collects the tensors of all shards. */
struct collector {
    struct model *model;
    struct hf_facts facts;
    struct model_tensor *tensors; /* growing; moved to the arena at the end */
    size_t count, cap;
};

/* Shape innermost first, and the data type; scalars and empty tensors are no weights. */
static int view_of(const struct safetensor *from, struct tensor *view, struct shu_error *err) {
    char shown[80];
    int dtype = dtype_from_name(from->dtype);
    name_show(from->name, strlen(from->name), shown, sizeof shown);
    if (dtype != DT_F32 && dtype != DT_F16 && dtype != DT_BF16)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tensor \"%s\" is stored as %s; expected F32, F16 or BF16", shown,
                        from->dtype);
    if (from->ndim < 1 || !from->bytes)
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" is empty or a single number; expected a vector or matrix",
                        shown);
    *view = (struct tensor){.dtype = (enum dtype)dtype, .ndim = from->ndim, .shape = {1, 1, 1, 1}, .data = from->data};
    for (int i = 0; i < from->ndim; i++) view->shape[i] = from->shape[from->ndim - 1 - i];
    return SHU_OK;
}

static int collect(void *context, const struct safetensor *from, struct shu_error *err) {
    struct collector *collector = context;
    struct arena *arena = &collector->model->arena;
    char name[96], shown[96];
    bool skip;
    if (!hf_tensor_name(collector->facts.arch, from->name, name, sizeof name, &skip))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tensor \"%s\" has no place in a %s model",
                        name_show(from->name, strlen(from->name), shown, sizeof shown),
                        collector->facts.arch->model_type);
    /* A tied model may store its output matrix all the same: it is the embedding table again. */
    if (skip || (collector->facts.tied && strcmp(name, "output.weight") == 0)) return SHU_OK;
    if (collector->count == collector->cap) {
        size_t cap = collector->cap ? collector->cap * 2 : 256;
        void *moved = mem_realloc(collector->tensors, cap * sizeof *collector->tensors);
        if (!moved) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tensor table");
        collector->tensors = moved;
        collector->cap = cap;
    }
    struct model_tensor *tensor = &collector->tensors[collector->count];
    int status = view_of(from, &tensor->view, err);
    if (status) return status;
    tensor->name = arena_strndup(arena, name, strlen(name));
    if (!tensor->name) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tensor table");
    tensor->norm_plus_one = collector->facts.arch->gemma && strstr(name, "norm.weight");
    collector->count++;
    return SHU_OK;
}

static int open_shard(struct collector *collector, const char *name, struct shu_error *err) {
    struct model *model = collector->model;
    struct buf path = {0};
    struct map *map = &model->maps[model->map_count];
    int status = folder_file(model->path, name, &path, err);
    if (!status) status = map_open(path.data, map, err);
    if (!status) {
        model->map_count++;
        model->file_bytes += map->bytes;
        status = safetensors_parse(map->data, map->bytes, collect, collector, err);
        if (status) error_context(err, status, "%s: ", name);
    }
    buf_free(&path);
    return status;
}

/* A shard must be a plain file of the folder itself. */
static bool shard_name_sound(const char *name) {
    size_t length = strlen(name);
    return length > 12 && length < 200 && strcmp(name + length - 12, ".safetensors") == 0 && !strchr(name, '/') &&
           *name != '.';
}

/* The distinct file names of the index, as keys of an object. */
static int shard_names(const char *path, json_t *names, struct shu_error *err) {
    json_t *index = NULL, *file;
    const char *tensor;
    int status = json_read_file(path, INDEX_BYTES_MAX, &index, err);
    if (status) return status;
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) status = SHU_FAIL(err, SHU_E_FORMAT, "%s: expected an object \"weight_map\"", path);
    if (!status)
        json_object_foreach((json_t *)(uintptr_t)map, tensor, file) {
            const char *name = json_is_string(file) ? json_string_value(file) : "";
            if (!shard_name_sound(name))
                status = SHU_FAIL(err, SHU_E_FORMAT, "%s: a shard has no plain name ending in .safetensors", path);
            else if (!json_object_get(names, name) && json_object_set_new(names, name, json_true()))
                status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
            if (status) break;
        }
    if (!status && json_object_size(names) > SHARDS_MAX)
        status = SHU_FAIL(err, SHU_E_RANGE, "%s: more than %d shards", path, SHARDS_MAX);
    json_decref(index);
    return status;
}

static int open_shards(struct collector *collector, struct shu_error *err) {
    struct model *model = collector->model;
    struct buf path = {0};
    const char *name;
    json_t *value, *names = json_object();
    int status = names ? folder_file(model->path, "model.safetensors.index.json", &path, err)
                       : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status && file_exists(path.data))
        status = shard_names(path.data, names, err);
    else if (!status && json_object_set_new(names, "model.safetensors", json_true()))
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) {
        model->maps = mem_calloc(json_object_size(names) + 1, sizeof *model->maps);
        if (!model->maps) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    }
    if (!status)
        json_object_foreach(names, name, value) {
            status = open_shard(collector, name, err);
            if (status) break;
        }
    json_decref(names);
    buf_free(&path);
    return status;
}

/* Tables of the translation come first, those of the shards after them. */
static int settle_tensors(struct collector *collector, struct shu_error *err) {
    struct model *model = collector->model;
    size_t own = model->tensor_count, all = own + collector->count;
    if (all > GGUF_TENSORS_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "%zu tensors; the limit is %d", all, GGUF_TENSORS_MAX);
    struct model_tensor *tensors = arena_alloc(&model->arena, (all + 1) * sizeof *tensors);
    if (!tensors) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tensor table");
    for (size_t i = 0; i < all; i++) tensors[i] = i < own ? model->tensors[i] : collector->tensors[i - own];
    model->tensors = tensors;
    model->tensor_count = (uint32_t)all;
    return model_index_tensors(model, err);
}

static struct span span_of(const struct buf *buf) {
    return (struct span){buf->data ? buf->data : "", (uint32_t)buf->len};
}

int hf_open(struct model *model, struct shu_error *err) {
    struct hf_files files = {0};
    struct collector collector = {.model = model};
    int status = read_texts(model->path, &files, err);
    if (!status) {
        struct hf_texts texts = {span_of(&files.config), span_of(&files.tokenizer), span_of(&files.tokenizer_config),
                                 span_of(&files.chat_template)};
        status = hf_translate(model, &texts, &collector.facts, err);
    }
    if (!status) status = open_shards(&collector, err);
    if (!status) status = settle_tensors(&collector, err);
    if (status && err && !strstr(err->message, model->path)) error_context(err, status, "%s: ", model->path);
    mem_free(collector.tensors);
    files_free(&files);
    return status;
}
