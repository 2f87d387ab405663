/* Streaming writer of GGUF version 3. The layout is at the top of gguf.c. */
#include "weights/model.h"

#include <string.h>

/* One pair, ready to be written: head (type, then length or element type and count) and value bytes. */
struct writer_pair {
    char *key;
    uint8_t head[16];
    size_t head_bytes;
    const uint8_t *value; /* own, or in the map of a copied model */
    size_t value_bytes;
    void *own; /* NULL if value is borrowed */
};

struct writer_tensor {
    char *name;
    enum dtype dtype;
    int ndim;
    int64_t shape[4];
    size_t bytes;
};

struct gguf_writer {
    struct atomic_file file;
    struct writer_pair *pairs;
    size_t pair_count, pair_cap;
    struct writer_tensor *tensors;
    size_t tensor_count, tensor_cap;
    bool streaming;   /* the header has been written */
    size_t alignment; /* valid once streaming */
    size_t current;   /* tensor whose bytes come next */
    size_t given;     /* bytes of it already written */
};

int gguf_writer_open(const char *path, struct gguf_writer **out, struct shu_error *err) {
    struct gguf_writer *writer = mem_calloc(1, sizeof *writer);
    if (!writer) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    int status = atomic_open(path, &writer->file, err);
    if (status) {
        mem_free(writer);
        return status;
    }
    *out = writer;
    return SHU_OK;
}

static void writer_free(struct gguf_writer *writer) {
    for (size_t i = 0; i < writer->pair_count; i++) {
        mem_free(writer->pairs[i].key);
        mem_free(writer->pairs[i].own);
    }
    for (size_t i = 0; i < writer->tensor_count; i++) mem_free(writer->tensors[i].name);
    mem_free(writer->pairs);
    mem_free(writer->tensors);
    mem_free(writer);
}

void gguf_writer_abort(struct gguf_writer *writer) {
    if (!writer) return;
    atomic_abort(&writer->file);
    writer_free(writer);
}

/* --------------------------------------------------------------- metadata */

/* Makes room for one more element of `each` bytes. */
static int grow(void **array, size_t *cap, size_t count, size_t each) {
    if (count < *cap) return SHU_OK;
    size_t larger = *cap ? *cap * 2 : 64;
    void *moved = mem_realloc(*array, larger * each);
    if (!moved) return SHU_E_NOMEM;
    *array = moved;
    *cap = larger;
    return SHU_OK;
}

/* The pair of a key, emptied, or a new one. NULL with *status set on failure. */
static struct writer_pair *pair_slot(struct gguf_writer *writer, const char *key, int *status) {
    *status = SHU_E_USAGE;
    if (writer->streaming || !*key || strlen(key) > GGUF_KEY_BYTES_MAX) return NULL;
    for (size_t i = 0; i < writer->pair_count; i++) {
        struct writer_pair *pair = &writer->pairs[i];
        if (strcmp(pair->key, key) != 0) continue;
        mem_free(pair->own);
        pair->own = NULL;
        pair->value_bytes = pair->head_bytes = 0;
        *status = SHU_OK;
        return pair;
    }
    *status = SHU_E_NOMEM;
    if (grow((void **)&writer->pairs, &writer->pair_cap, writer->pair_count, sizeof *writer->pairs)) return NULL;
    struct writer_pair *pair = &writer->pairs[writer->pair_count];
    *pair = (struct writer_pair){.key = mem_strdup(key)};
    if (!pair->key) return NULL;
    writer->pair_count++;
    *status = SHU_OK;
    return pair;
}

static void head_add(struct writer_pair *pair, const void *bytes, size_t count) {
    memcpy(pair->head + pair->head_bytes, bytes, count);
    pair->head_bytes += count;
}

/* type u32; strings add their length, arrays element type and count. */
static void head_set(struct writer_pair *pair, enum gguf_type type, enum gguf_type element, uint64_t count) {
    uint32_t number = type, inner = element;
    head_add(pair, &number, sizeof number);
    if (type == GGUF_ARRAY) head_add(pair, &inner, sizeof inner);
    if (type == GGUF_ARRAY || type == GGUF_STRING) head_add(pair, &count, sizeof count);
}

static int set_value(struct gguf_writer *writer, const char *key, enum gguf_type type, enum gguf_type element,
                     uint64_t count, const void *value, size_t bytes) {
    int status;
    void *own = mem_alloc(bytes + 1);
    if (!own) return SHU_E_NOMEM;
    struct writer_pair *pair = pair_slot(writer, key, &status);
    if (!pair) {
        mem_free(own);
        return status;
    }
    head_set(pair, type, element, count);
    if (bytes) memcpy(own, value, bytes);
    pair->own = own;
    pair->value = own;
    pair->value_bytes = bytes;
    return SHU_OK;
}

int gguf_writer_set_int(struct gguf_writer *writer, const char *key, uint32_t value) {
    return set_value(writer, key, GGUF_U32, GGUF_U8, 0, &value, sizeof value);
}

int gguf_writer_set_float(struct gguf_writer *writer, const char *key, float value) {
    return set_value(writer, key, GGUF_F32, GGUF_U8, 0, &value, sizeof value);
}

int gguf_writer_set_bool(struct gguf_writer *writer, const char *key, bool value) {
    uint8_t byte = value;
    return set_value(writer, key, GGUF_BOOL, GGUF_U8, 0, &byte, sizeof byte);
}

int gguf_writer_set_string(struct gguf_writer *writer, const char *key, const char *value) {
    return set_value(writer, key, GGUF_STRING, GGUF_U8, strlen(value), value, strlen(value));
}

int gguf_writer_set_ints(struct gguf_writer *writer, const char *key, const int32_t *values, int64_t count) {
    return set_value(writer, key, GGUF_ARRAY, GGUF_I32, (uint64_t)count, values, (size_t)count * sizeof *values);
}

int gguf_writer_set_floats(struct gguf_writer *writer, const char *key, const float *values, int64_t count) {
    return set_value(writer, key, GGUF_ARRAY, GGUF_F32, (uint64_t)count, values, (size_t)count * sizeof *values);
}

int gguf_writer_set_strings(struct gguf_writer *writer, const char *key, const struct span *values, int64_t count) {
    struct buf encoded = {0};
    int status = SHU_OK;
    for (int64_t i = 0; !status && i < count; i++) {
        uint64_t bytes = values[i].bytes;
        status = buf_append(&encoded, &bytes, sizeof bytes);
        if (!status) status = buf_append(&encoded, values[i].text, bytes);
    }
    if (!status) status = set_value(writer, key, GGUF_ARRAY, GGUF_STRING, (uint64_t)count, encoded.data, encoded.len);
    buf_free(&encoded);
    return status;
}

int gguf_writer_copy_meta(struct gguf_writer *writer, const struct model *model) {
    for (uint32_t i = 0; i < model->pair_count; i++) {
        const struct meta_pair *from = &model->pairs[i];
        int status;
        if (strncmp(from->key, "shu.", 4) == 0 || strncmp(from->key, "split.", 6) == 0) continue;
        struct writer_pair *pair = pair_slot(writer, from->key, &status);
        if (!pair) return status;
        head_set(pair, from->type, from->element, from->type == GGUF_STRING ? from->value_bytes : from->count);
        pair->value = from->value;
        pair->value_bytes = from->value_bytes;
    }
    return SHU_OK;
}

/* ---------------------------------------------------------------- tensors */

int gguf_writer_declare(struct gguf_writer *writer, const char *name, enum dtype dtype, int ndim,
                        const int64_t shape[4]) {
    size_t bytes = dtype_row_bytes(dtype, shape[0]);
    if (writer->streaming || !*name || strlen(name) > GGUF_NAME_BYTES_MAX || ndim < 1 || ndim > 4 || !bytes ||
        dtype_table[dtype].ggml_type < 0)
        return SHU_E_USAGE;
    for (int i = 1; i < ndim; i++)
        if (shape[i] < 1 || size_mul(bytes, (size_t)shape[i], &bytes)) return SHU_E_USAGE;
    for (size_t i = 0; i < writer->tensor_count; i++)
        if (strcmp(writer->tensors[i].name, name) == 0) return SHU_E_USAGE;
    if (grow((void **)&writer->tensors, &writer->tensor_cap, writer->tensor_count, sizeof *writer->tensors))
        return SHU_E_NOMEM;
    struct writer_tensor *tensor = &writer->tensors[writer->tensor_count];
    *tensor = (struct writer_tensor){.name = mem_strdup(name), .dtype = dtype, .ndim = ndim, .bytes = bytes};
    if (!tensor->name) return SHU_E_NOMEM;
    for (int i = 0; i < ndim; i++) tensor->shape[i] = shape[i];
    writer->tensor_count++;
    return SHU_OK;
}

static int write_string(struct gguf_writer *writer, const char *text, struct shu_error *err) {
    uint64_t bytes = strlen(text);
    int status = atomic_write(&writer->file, &bytes, sizeof bytes, err);
    return status ? status : atomic_write(&writer->file, text, bytes, err);
}

static int write_pad(struct gguf_writer *writer, struct shu_error *err) {
    static const uint8_t zeros[512] = {0};
    size_t over = writer->file.written_bytes % writer->alignment, left = over ? writer->alignment - over : 0;
    int status = SHU_OK;
    while (!status && left) {
        size_t count = left < sizeof zeros ? left : sizeof zeros;
        status = atomic_write(&writer->file, zeros, count, err);
        left -= count;
    }
    return status;
}

static int write_pairs(struct gguf_writer *writer, struct shu_error *err) {
    int status = SHU_OK;
    for (size_t i = 0; !status && i < writer->pair_count; i++) {
        const struct writer_pair *pair = &writer->pairs[i];
        status = write_string(writer, pair->key, err);
        if (!status) status = atomic_write(&writer->file, pair->head, pair->head_bytes, err);
        if (!status) status = atomic_write(&writer->file, pair->value, pair->value_bytes, err);
    }
    return status;
}

static int write_table(struct gguf_writer *writer, struct shu_error *err) {
    uint64_t offset = 0;
    int status = SHU_OK;
    for (size_t i = 0; !status && i < writer->tensor_count; i++) {
        const struct writer_tensor *tensor = &writer->tensors[i];
        uint32_t ndim = (uint32_t)tensor->ndim, type = (uint32_t)dtype_table[tensor->dtype].ggml_type;
        status = write_string(writer, tensor->name, err);
        if (!status) status = atomic_write(&writer->file, &ndim, sizeof ndim, err);
        if (!status) status = atomic_write(&writer->file, tensor->shape, ndim * sizeof *tensor->shape, err);
        if (!status) status = atomic_write(&writer->file, &type, sizeof type, err);
        if (!status) status = atomic_write(&writer->file, &offset, sizeof offset, err);
        offset += (tensor->bytes + writer->alignment - 1) / writer->alignment * writer->alignment;
    }
    return status;
}

/* The file's alignment: what a copied model asked for, else the default. */
static size_t writer_alignment(const struct gguf_writer *writer) {
    for (size_t i = 0; i < writer->pair_count; i++) {
        const struct writer_pair *pair = &writer->pairs[i];
        uint32_t value;
        if (strcmp(pair->key, "general.alignment") != 0 || pair->value_bytes != sizeof value) continue;
        memcpy(&value, pair->value, sizeof value);
        if (value >= 8 && value <= GGUF_ALIGNMENT_MAX && !(value & (value - 1))) return value;
    }
    return GGUF_ALIGNMENT_DEFAULT;
}

static int write_header(struct gguf_writer *writer, struct shu_error *err) {
    const uint32_t version = GGUF_VERSION;
    const uint64_t counts[2] = {writer->tensor_count, writer->pair_count};
    writer->streaming = true;
    writer->alignment = writer_alignment(writer);
    int status = atomic_write(&writer->file, GGUF_MAGIC, 4, err);
    if (!status) status = atomic_write(&writer->file, &version, sizeof version, err);
    if (!status) status = atomic_write(&writer->file, counts, sizeof counts, err);
    if (!status) status = write_pairs(writer, err);
    if (!status) status = write_table(writer, err);
    if (!status) status = write_pad(writer, err);
    return status;
}

int gguf_writer_data(struct gguf_writer *writer, const void *bytes, size_t count, struct shu_error *err) {
    int status = writer->streaming ? SHU_OK : write_header(writer, err);
    if (status) return status;
    if (writer->current >= writer->tensor_count || count > writer->tensors[writer->current].bytes - writer->given)
        return SHU_FAIL(err, SHU_E_USAGE, "%zu bytes run past the end of the declared tensors or of tensor %zu", count,
                        writer->current);
    status = atomic_write(&writer->file, bytes, count, err);
    if (status) return status;
    writer->given += count;
    if (writer->given < writer->tensors[writer->current].bytes) return SHU_OK;
    writer->current++;
    writer->given = 0;
    return write_pad(writer, err);
}

int gguf_writer_commit(struct gguf_writer *writer, struct shu_error *err) {
    int status = writer->streaming ? SHU_OK : write_header(writer, err);
    if (!status && writer->current < writer->tensor_count)
        status =
            SHU_FAIL(err, SHU_E_USAGE, "tensor \"%s\" lacks %zu of its bytes", writer->tensors[writer->current].name,
                     writer->tensors[writer->current].bytes - writer->given);
    if (status) {
        gguf_writer_abort(writer);
        return status;
    }
    status = atomic_commit(&writer->file, err);
    writer_free(writer);
    return status;
}
