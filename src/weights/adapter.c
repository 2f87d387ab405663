/* Adapters: opening either file form, pairing the halves, and what callers may ask. */
#include <math.h>
#include <string.h>

#include "weights/lora.h"

#define ADAPTER_ARENA_MAX ((size_t)64 << 20)
#define CONFIG_BYTES_MAX  ((size_t)4 << 20)
#define BASE_NAME_BYTES   200

/* ------------------------------------------------------------------- parts */

int lora_part_add(struct adapter *adapter, struct lora_parts *parts, const char *name, size_t name_bytes,
                  const struct lora_part *part, struct shu_error *err) {
    if (parts->count == parts->cap) {
        size_t cap = parts->cap ? parts->cap * 2 : 256;
        void *moved = mem_realloc(parts->item, cap * sizeof *parts->item);
        if (!moved) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the adapter's tensor table");
        parts->item = moved;
        parts->cap = cap;
    }
    parts->item[parts->count] = *part;
    parts->item[parts->count].name = arena_strndup(&adapter->arena, name, name_bytes);
    if (!parts->item[parts->count].name)
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the adapter's tensor table");
    parts->count++;
    return SHU_OK;
}

int lora_keep_text(struct adapter *adapter, const char *text, const char **out, struct shu_error *err) {
    size_t bytes = text ? strlen(text) : 0;
    *out = NULL;
    if (!bytes || bytes > BASE_NAME_BYTES || !utf8_valid(text, bytes)) return SHU_OK;
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) return SHU_OK;
    *out = arena_strndup(&adapter->arena, text, bytes);
    return *out ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for an adapter");
}

bool lora_is_sha256(const char *text) {
    return text && strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

static int compare_parts(const void *a, const void *b) {
    const struct lora_part *left = a, *right = b;
    int order = strcmp(left->name, right->name);
    return order ? order : (int)left->is_b - (int)right->is_b;
}

/* A pair's halves must both be there, once, and share their rank. */
static int check_pair(const struct lora_part *a, const struct lora_part *b, struct shu_error *err) {
    char shown[80];
    name_show(a->name, strlen(a->name), shown, sizeof shown);
    if (!b || a->is_b || !b->is_b || strcmp(a->name, b->name) != 0)
        return SHU_FAIL(err, SHU_E_FORMAT, "\"%s\": expected one lora_a and one lora_b, found %s", shown,
                        b && a->is_b == b->is_b && strcmp(a->name, b->name) == 0 ? "one of them twice"
                                                                                 : "only one of them");
    if (strcmp(a->name, "token_embd.weight") == 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "it adapts the embedding table; supported are the projections of layers and output.weight");
    int64_t rank = a->view.shape[1];
    if (a->view.ndim > 2 || b->view.ndim > 2 || rank != b->view.shape[0])
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "\"%s\": lora_a is [%lld, %lld] and lora_b [%lld, %lld]; expected matrices that share their "
                        "rank, the second number of the one and the first of the other",
                        shown, (long long)a->view.shape[0], (long long)rank, (long long)b->view.shape[0],
                        (long long)b->view.shape[1]);
    if (rank > LORA_RANK_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "\"%s\": rank %lld; at most %d is supported", shown, (long long)rank,
                        LORA_RANK_MAX);
    return SHU_OK;
}

static double part_scale(const struct adapter *adapter, const struct lora_part *a) {
    double rank = (double)a->view.shape[1];
    return isnan(a->alpha) ? 1 : a->alpha / (adapter->rank_stabilised ? sqrt(rank) : rank);
}

/* The scale of largest magnitude serves all; a pair whose own is another gets the quotient into its b. */
static void settle_scale(struct adapter *adapter, const struct lora_parts *parts) {
    double common = 0;
    for (size_t i = 0; i < parts->count; i += 2) {
        double scale = part_scale(adapter, &parts->item[i]);
        if (fabs(scale) > fabs(common)) common = scale;
    }
    adapter->scale = (float)common;
}

static int64_t part_values(const struct lora_part *part) {
    return part->view.shape[0] * part->view.shape[1];
}

/* Decodes a half, multiplied by `factor`; damaged weights must not reach a network silently. */
static int decode_part(const struct lora_part *part, double factor, float *out, struct shu_error *err) {
    char shown[80];
    int64_t count = part_values(part);
    dtype_table[part->view.dtype].to_f32(part->view.data, out, count);
    for (int64_t i = 0; i < count; i++) {
        if (factor != 1) out[i] = (float)(out[i] * factor);
        if (!isfinite(out[i]))
            return SHU_FAIL(err, SHU_E_FORMAT, "\"%s\": lora_%c holds %g at %lld; expected finite numbers",
                            name_show(part->name, strlen(part->name), shown, sizeof shown), part->is_b ? 'b' : 'a',
                            (double)out[i], (long long)i);
    }
    return SHU_OK;
}

static int allocate(struct adapter *adapter, const struct lora_parts *parts, struct shu_error *err) {
    size_t values = 0;
    for (size_t i = 0; i < parts->count; i++)
        if (size_add(values, (size_t)part_values(&parts->item[i]), &values))
            return SHU_FAIL(err, SHU_E_RANGE, "the adapter's tensors exceed the address space");
    adapter->count = (int)(parts->count / 2);
    adapter->pairs = arena_alloc(&adapter->arena, (size_t)adapter->count * sizeof *adapter->pairs);
    if (!adapter->pairs || size_mul(values, sizeof *adapter->block, &adapter->block_bytes) ||
        !(adapter->block = mem_alloc_large(adapter->block_bytes)))
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for an adapter of %zu numbers", values);
    return SHU_OK;
}

int lora_settle(struct adapter *adapter, struct lora_parts *parts, struct shu_error *err) {
    if (parts->count == 0) return SHU_FAIL(err, SHU_E_FORMAT, "the adapter holds no tensors");
    qsort(parts->item, parts->count, sizeof *parts->item, compare_parts);
    for (size_t i = 0; i < parts->count; i += 2) {
        int status = check_pair(&parts->item[i], i + 1 < parts->count ? &parts->item[i + 1] : NULL, err);
        if (status) return status;
    }
    int status = allocate(adapter, parts, err);
    if (status) return status;
    settle_scale(adapter, parts);
    float *at = adapter->block;
    for (size_t i = 0; i < parts->count && !status; i += 2) {
        const struct lora_part *a = &parts->item[i], *b = a + 1;
        double own = part_scale(adapter, a), factor = (float)own == adapter->scale ? 1 : own / (double)adapter->scale;
        adapter->pairs[i / 2] = (struct adapter_pair){.name = a->name,
                                                      .in = a->view.shape[0],
                                                      .out = b->view.shape[1],
                                                      .rank = (int)a->view.shape[1],
                                                      .a = at,
                                                      .b = at + part_values(a)};
        status = decode_part(a, 1, at, err);
        at += part_values(a);
        if (!status) status = decode_part(b, factor, at, err);
        at += part_values(b);
    }
    return status;
}

/* ----------------------------------------------------------- open and close */

static int join(struct buf *out, const char *folder, const char *name, struct shu_error *err) {
    buf_clear(out);
    return buf_printf(out, "%s/%s", folder, name) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
}

static int open_gguf(struct adapter *adapter, const char *path, struct shu_error *err) {
    struct model *file = NULL;
    int status = model_open(path, &file, err);
    if (status) return status;
    status = lora_read_gguf(adapter, file, err);
    model_close(file);
    return status ? error_context(err, status, "%s: ", path) : SHU_OK;
}

static int open_peft(struct adapter *adapter, const char *folder, const char *config_path, struct shu_error *err) {
    struct buf config = {0}, path = {0};
    struct map map = {0};
    int status = file_read(config_path, CONFIG_BYTES_MAX, &config, err);
    if (!status) status = join(&path, folder, "adapter_model.safetensors", err);
    if (!status && !file_exists(path.data))
        status = SHU_FAIL(err, SHU_E_NOTFOUND,
                          "%s: no such file; expected the adapter's weights there (a .bin file is not read: save it "
                          "as safetensors)",
                          path.data);
    if (!status) status = map_open(path.data, &map, err);
    if (!status) {
        struct span text = {config.data ? config.data : "", (uint32_t)config.len};
        status = lora_read_peft(adapter, text, map.data, map.bytes, err);
        if (status) error_context(err, status, "%s: ", folder);
    }
    map_close(&map);
    buf_free(&config);
    buf_free(&path);
    return status;
}

/* A folder is PEFT's, or a run's with adapter.gguf inside. */
static int open_folder(struct adapter *adapter, const char *folder, struct shu_error *err) {
    struct buf path = {0};
    int status = join(&path, folder, "adapter_config.json", err);
    if (!status && file_exists(path.data)) {
        status = open_peft(adapter, folder, path.data, err);
    } else if (!status) {
        status = join(&path, folder, "adapter.gguf", err);
        if (!status && !file_exists(path.data))
            status = SHU_FAIL(err, SHU_E_NOTFOUND,
                              "%s: expected an adapter's folder, found neither adapter_config.json nor adapter.gguf "
                              "inside",
                              folder);
        if (!status) status = open_gguf(adapter, path.data, err);
    }
    buf_free(&path);
    return status;
}

int adapter_open(const char *path, struct adapter **out, struct shu_error *err) {
    struct adapter *adapter = mem_calloc(1, sizeof *adapter);
    if (!adapter || !(adapter->path = mem_strdup(path))) {
        mem_free(adapter);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for an adapter");
    }
    arena_init(&adapter->arena, ADAPTER_ARENA_MAX);
    int status;
    if (path_is_dir(path))
        status = open_folder(adapter, path, err);
    else if (file_exists(path))
        status = open_gguf(adapter, path, err);
    else
        status = SHU_FAIL(err, SHU_E_NOTFOUND,
                          "%s: no such file or folder; expected an adapter: a .gguf file or a PEFT folder", path);
    if (status) {
        adapter_close(adapter);
        return status;
    }
    *out = adapter;
    return SHU_OK;
}

void lora_clear(struct adapter *adapter) {
    if (adapter->block) mem_free_large(adapter->block, adapter->block_bytes);
    adapter->block = NULL;
    arena_free(&adapter->arena);
}

void adapter_close(struct adapter *adapter) {
    if (!adapter) return;
    lora_clear(adapter);
    mem_free(adapter->path);
    mem_free(adapter);
}

/* --------------------------------------------------------------- questions */

int adapter_count(const struct adapter *adapter) {
    return adapter->count;
}
const struct adapter_pair *adapter_at(const struct adapter *adapter, int index) {
    return index < 0 || index >= adapter->count ? NULL : &adapter->pairs[index];
}
float adapter_scale(const struct adapter *adapter) {
    return adapter->scale;
}
const char *adapter_path(const struct adapter *adapter) {
    return adapter->path;
}

const struct adapter_pair *adapter_find(const struct adapter *adapter, const char *name) {
    int low = 0, high = adapter->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(adapter->pairs[middle].name, name);
        if (order == 0) return &adapter->pairs[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
