/* Opening, closing, and everything callers may ask about an open model. */
#include "weights/model.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

/* Metadata and names live here. A file of 20 GB has some 10 MB of it; the limit only stops nonsense. */
#define MODEL_ARENA_MAX ((size_t)2 << 30)

/* ------------------------------------------------------------- name index */

static uint64_t name_hash(const char *name) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a: names are short */
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash ^ (hash >> 29);
}

int name_index_init(struct name_index *index, struct arena *arena, uint64_t count) {
    uint64_t size = 8;
    while (size < count * 2) size *= 2;
    if (size > UINT32_MAX) return SHU_E_NOMEM;
    index->slot = arena_alloc(arena, size * sizeof *index->slot);
    if (!index->slot) return SHU_E_NOMEM;
    index->mask = (uint32_t)size - 1;
    return SHU_OK;
}

/* Position stored for a name, or -1. name_at(context, position) yields stored names. */
static int64_t name_index_find(const struct name_index *index, const char *name,
                               const char *(*name_at)(const void *context, uint32_t position), const void *context) {
    if (!index->slot) return -1;
    uint32_t at = (uint32_t)name_hash(name) & index->mask;
    for (; index->slot[at]; at = (at + 1) & index->mask) {
        uint32_t position = index->slot[at] - 1;
        if (strcmp(name_at(context, position), name) == 0) return position;
    }
    return -1;
}

void name_index_add(struct name_index *index, const char *name, uint32_t position) {
    uint32_t at = (uint32_t)name_hash(name) & index->mask;
    while (index->slot[at]) at = (at + 1) & index->mask;
    index->slot[at] = position + 1;
}

const char *name_show(const char *name, size_t bytes, char *out, size_t size) {
    size_t count = bytes < size - 1 ? bytes : size - 1;
    for (size_t i = 0; i < count; i++) out[i] = name[i] >= 0x20 && name[i] < 0x7f ? name[i] : '?';
    out[count] = 0;
    return out;
}

/* ---------------------------------------------------------- open and close */

static int model_open_gguf(struct model *model, struct shu_error *err) {
    model->maps = mem_calloc(1, sizeof *model->maps);
    if (!model->maps) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    int status = map_open(model->path, &model->maps[0], err);
    if (status) return status;
    model->map_count = 1;
    model->file_bytes = model->maps[0].bytes;
    status = gguf_parse(model, model->maps[0].data, model->maps[0].bytes, err);
    return status ? error_context(err, status, "%s: ", model->path) : SHU_OK;
}

/* A path if there is a file or folder of that name, else a model of the store. */
static int model_resolve(const char *path, struct buf *out, struct shu_error *err) {
    if (!*path) return SHU_FAIL(err, SHU_E_USAGE, "expected a model (path or name of the store), found an empty name");
    if (file_exists(path) || path_is_dir(path)) {
        if (buf_puts(out, path)) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
        return SHU_OK;
    }
    if (strchr(path, '/') || strstr(path, ".gguf"))
        return SHU_FAIL(err, SHU_E_NOTFOUND,
                        "%s: no such file or folder; expected a .gguf file, a folder with config.json, or a name from "
                        "`shu model list`",
                        path);
    return store_path(path, out, err);
}

int model_open(const char *path, struct model **out, struct shu_error *err) {
    struct buf resolved = {0};
    struct model *model = NULL;
    int status = model_resolve(path, &resolved, err);
    if (status) goto out;
    model = mem_calloc(1, sizeof *model);
    if (!model || !(model->path = mem_strdup(resolved.data))) {
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
        goto out;
    }
    arena_init(&model->arena, MODEL_ARENA_MAX);
    model->format = path_is_dir(model->path) ? MODEL_SAFETENSORS : MODEL_GGUF;
    status = model->format == MODEL_GGUF ? model_open_gguf(model, err) : hf_open(model, err);
out:
    buf_free(&resolved);
    if (status) {
        model_close(model);
        return status;
    }
    *out = model;
    return SHU_OK;
}

void model_close(struct model *model) {
    if (!model) return;
    for (int i = 0; i < model->map_count; i++) map_close(&model->maps[i]);
    mem_free(model->maps);
    mem_free(model->path);
    buf_free(&model->translated);
    arena_free(&model->arena);
    mem_free(model);
}

enum model_format model_format(const struct model *model) {
    return model->format;
}
const char *model_path(const struct model *model) {
    return model->path;
}
uint64_t model_file_bytes(const struct model *model) {
    return model->file_bytes;
}

/* ---------------------------------------------------------------- metadata */

static const char *pair_name(const void *context, uint32_t position) {
    return ((const struct model *)context)->pairs[position].key;
}

const struct meta_pair *model_pair(const struct model *model, const char *key) {
    int64_t at = name_index_find(&model->pair_index, key, pair_name, model);
    return at < 0 ? NULL : &model->pairs[at];
}

/* One integer or bool of a type at unaligned bytes. False if it is neither, or exceeds int64. */
static bool scalar_int(enum gguf_type type, const uint8_t *at, int64_t *out) {
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } value;
    size_t bytes = gguf_scalar_bytes(type);
    if (!bytes) return false;
    memcpy(&value, at, bytes);
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        *out = value.u8;
        return true;
    case GGUF_I8:
        *out = value.i8;
        return true;
    case GGUF_U16:
        *out = value.u16;
        return true;
    case GGUF_I16:
        *out = value.i16;
        return true;
    case GGUF_U32:
        *out = value.u32;
        return true;
    case GGUF_I32:
        *out = value.i32;
        return true;
    case GGUF_I64:
        *out = value.i64;
        return true;
    case GGUF_U64:
        if (value.u64 > INT64_MAX) return false;
        *out = (int64_t)value.u64;
        return true;
    default:
        return false;
    }
}

static bool scalar_float(enum gguf_type type, const uint8_t *at, double *out) {
    int64_t integer;
    float f32;
    if (type == GGUF_F64) {
        memcpy(out, at, sizeof *out);
    } else if (type == GGUF_F32) {
        memcpy(&f32, at, sizeof f32);
        *out = (double)f32;
    } else {
        if (!scalar_int(type, at, &integer)) return false;
        *out = (double)integer;
    }
    return true;
}

bool meta_has(const struct model *model, const char *key) {
    return model_pair(model, key) != NULL;
}

bool meta_int(const struct model *model, const char *key, int64_t *out) {
    const struct meta_pair *pair = model_pair(model, key);
    return pair && scalar_int(pair->type, pair->value, out);
}

bool meta_float(const struct model *model, const char *key, double *out) {
    const struct meta_pair *pair = model_pair(model, key);
    return pair && scalar_float(pair->type, pair->value, out);
}

bool meta_bool(const struct model *model, const char *key, bool *out) {
    int64_t value;
    if (!meta_int(model, key, &value)) return false;
    *out = value != 0;
    return true;
}

bool meta_string(const struct model *model, const char *key, const char **out, size_t *bytes) {
    const struct meta_pair *pair = model_pair(model, key);
    if (!pair || pair->type != GGUF_STRING) return false;
    *out = pair->text;
    if (bytes) *bytes = pair->value_bytes;
    return true;
}

int64_t meta_array_count(const struct model *model, const char *key) {
    const struct meta_pair *pair = model_pair(model, key);
    return pair && pair->type == GGUF_ARRAY ? (int64_t)pair->count : -1;
}

/* The pair if it is an array of at least count elements. */
static const struct meta_pair *array_pair(const struct model *model, const char *key, int64_t count) {
    const struct meta_pair *pair = model_pair(model, key);
    if (!pair || pair->type != GGUF_ARRAY || count < 0 || (uint64_t)count > pair->count) return NULL;
    return pair;
}

bool meta_array_floats(const struct model *model, const char *key, float *out, int64_t count) {
    const struct meta_pair *pair = array_pair(model, key, count);
    size_t step = pair ? gguf_scalar_bytes(pair->element) : 0;
    if (!step) return false;
    if (pair->element == GGUF_F32) {
        if (count) memcpy(out, pair->value, (size_t)count * sizeof *out);
        return true;
    }
    for (int64_t i = 0; i < count; i++) {
        double value;
        if (!scalar_float(pair->element, pair->value + (size_t)i * step, &value)) return false;
        out[i] = (float)value;
    }
    return true;
}

bool meta_array_ints(const struct model *model, const char *key, int32_t *out, int64_t count) {
    const struct meta_pair *pair = array_pair(model, key, count);
    size_t step = pair ? gguf_scalar_bytes(pair->element) : 0;
    if (!step) return false;
    if (pair->element == GGUF_I32) {
        if (count) memcpy(out, pair->value, (size_t)count * sizeof *out);
        return true;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t value;
        if (!scalar_int(pair->element, pair->value + (size_t)i * step, &value)) return false;
        if (value < INT32_MIN || value > INT32_MAX) return false;
        out[i] = (int32_t)value;
    }
    return true;
}

bool meta_array_spans(const struct model *model, const char *key, struct span *out, int64_t count) {
    const struct meta_pair *pair = array_pair(model, key, count);
    if (!pair || pair->element != GGUF_STRING) return false;
    const uint8_t *at = pair->value; /* the parser has walked these lengths already */
    for (int64_t i = 0; i < count; i++) {
        uint64_t bytes;
        memcpy(&bytes, at, sizeof bytes);
        out[i] = (struct span){(const char *)at + sizeof bytes, (uint32_t)bytes};
        at += sizeof bytes + bytes;
    }
    return true;
}

/* Invalid UTF-8 cannot stand in JSON: such strings are shown with '?'. */
static json_t *json_text(const char *text, size_t bytes) {
    json_t *value = json_stringn(text, bytes);
    if (value) return value;
    char shown[256];
    return json_string(name_show(text, bytes, shown, sizeof shown));
}

static json_t *json_scalar(enum gguf_type type, const uint8_t *at) {
    int64_t integer;
    double number;
    if (type == GGUF_BOOL) return json_boolean(*at);
    if (scalar_int(type, at, &integer)) return json_integer(integer);
    if (!scalar_float(type, at, &number)) number = 18446744073709551615.0; /* u64 beyond int64: only its size matters */
    return isfinite(number) ? json_real(number) : json_null();
}

static json_t *json_array_of(const struct meta_pair *pair, int64_t max_items) {
    if (pair->count > (uint64_t)max_items)
        return json_pack("{s:s, s:I}", "array_of", gguf_type_name(pair->element), "count", (json_int_t)pair->count);
    json_t *array = json_array();
    const uint8_t *at = pair->value;
    for (uint64_t i = 0; array && i < pair->count; i++) {
        uint64_t bytes = gguf_scalar_bytes(pair->element);
        json_t *item;
        if (pair->element == GGUF_STRING) {
            memcpy(&bytes, at, sizeof bytes);
            at += sizeof bytes;
            item = json_text((const char *)at, bytes);
        } else {
            item = json_scalar(pair->element, at);
        }
        at += bytes;
        if (json_array_append_new(array, item)) {
            json_decref(array);
            array = NULL;
        }
    }
    return array;
}

json_t *meta_json(const struct model *model, int64_t max_items) {
    json_t *object = json_object();
    for (uint32_t i = 0; object && i < model->pair_count; i++) {
        const struct meta_pair *pair = &model->pairs[i];
        char shown[128];
        json_t *value = pair->type == GGUF_STRING  ? json_text(pair->text, pair->value_bytes)
                        : pair->type == GGUF_ARRAY ? json_array_of(pair, max_items < 0 ? 0 : max_items)
                                                   : json_scalar(pair->type, pair->value);
        const char *key = utf8_valid(pair->key, strlen(pair->key))
                              ? pair->key
                              : name_show(pair->key, strlen(pair->key), shown, sizeof shown);
        if (json_object_set_new(object, key, value)) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

/* ----------------------------------------------------------------- tensors */

static const char *tensor_name(const void *context, uint32_t position) {
    return ((const struct model *)context)->tensors[position].name;
}

int64_t model_tensor_count(const struct model *model) {
    return model->tensor_count;
}

const struct model_tensor *model_tensor_at(const struct model *model, int64_t index) {
    return index < 0 || index >= (int64_t)model->tensor_count ? NULL : &model->tensors[index];
}

const struct model_tensor *model_tensor_find(const struct model *model, const char *name) {
    int64_t at = name_index_find(&model->tensor_index, name, tensor_name, model);
    return at < 0 ? NULL : &model->tensors[at];
}

void model_tensor_release(const struct model *model, const struct model_tensor *tensor) {
    const uint8_t *data = tensor->view.data;
    for (int i = 0; i < model->map_count; i++) {
        const struct map *map = &model->maps[i];
        if (data >= map->data && data < map->data + map->bytes) {
            map_release(map, (size_t)(data - map->data), tensor_bytes(&tensor->view));
            return;
        }
    }
}

static int compare_data(const void *a, const void *b) {
    const struct model_tensor *left = *(const struct model_tensor *const *)a;
    const struct model_tensor *right = *(const struct model_tensor *const *)b;
    return ((uintptr_t)left->view.data > (uintptr_t)right->view.data) -
           ((uintptr_t)left->view.data < (uintptr_t)right->view.data);
}

static int check_overlap(const struct model *model, struct shu_error *err) {
    char one[80], two[80];
    const struct model_tensor **order = mem_alloc(((size_t)model->tensor_count + 1) * sizeof *order);
    if (!order) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < model->tensor_count; i++) order[i] = &model->tensors[i];
    qsort(order, model->tensor_count, sizeof *order, compare_data);
    int status = SHU_OK;
    for (uint32_t i = 1; !status && i < model->tensor_count; i++) {
        const struct model_tensor *before = order[i - 1], *after = order[i];
        const uint8_t *end = (const uint8_t *)before->view.data + tensor_bytes(&before->view);
        if (end > (const uint8_t *)after->view.data)
            status = SHU_FAIL(err, SHU_E_FORMAT, "tensors \"%s\" and \"%s\" overlap in the file; it is damaged",
                              name_show(before->name, strlen(before->name), one, sizeof one),
                              name_show(after->name, strlen(after->name), two, sizeof two));
    }
    mem_free(order);
    return status;
}

int model_index_tensors(struct model *model, struct shu_error *err) {
    char shown[80];
    if (name_index_init(&model->tensor_index, &model->arena, model->tensor_count))
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < model->tensor_count; i++) {
        const char *name = model->tensors[i].name;
        if (name_index_find(&model->tensor_index, name, tensor_name, model) >= 0)
            return SHU_FAIL(err, SHU_E_FORMAT, "two tensors are named \"%s\"; expected unique names",
                            name_show(name, strlen(name), shown, sizeof shown));
        name_index_add(&model->tensor_index, name, i);
    }
    return check_overlap(model, err);
}
