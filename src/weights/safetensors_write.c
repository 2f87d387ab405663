/* Writer of safetensors: u64 header bytes, JSON header padded with spaces to 8 bytes, data without holes. */
#include <string.h>

#include "weights/lora.h"

int safetensors_writer_open(const char *path, struct safetensors_writer *out, struct shu_error *err) {
    *out = (struct safetensors_writer){.file = {.fd = -1}};
    out->header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt"); /* what transformers looks for */
    if (!out->header) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a header");
    int status = atomic_open(path, &out->file, err);
    if (status) json_decref(out->header);
    return status;
}

static const char *dtype_name(enum dtype dtype) {
    return dtype == DT_F32 ? "F32" : dtype == DT_F16 ? "F16" : dtype == DT_BF16 ? "BF16" : NULL;
}

int safetensors_writer_declare(struct safetensors_writer *writer, const char *name, enum dtype dtype, int ndim,
                               const int64_t *shape, struct shu_error *err) {
    const char *type = dtype_name(dtype);
    size_t bytes = type ? (size_t)dtype_table[dtype].block_bytes : 0;
    if (!type || writer->streaming || json_object_get(writer->header, name))
        return SHU_FAIL(err, SHU_E_USAGE, "tensor \"%.80s\" cannot be declared: another name, F32, F16 or BF16", name);
    json_t *dims = json_array();
    for (int i = 0; i < ndim; i++) {
        json_array_append_new(dims, json_integer(shape[i]));
        if (shape[i] < 1 || size_mul(bytes, (size_t)shape[i], &bytes) || bytes > INT64_MAX - writer->declared_bytes) {
            json_decref(dims);
            return SHU_FAIL(err, SHU_E_USAGE, "tensor \"%.80s\" has a dimension below 1 or too many bytes", name);
        }
    }
    uint64_t begin = writer->declared_bytes;
    writer->declared_bytes += bytes;
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", dims, "data_offsets", (json_int_t)begin,
                              (json_int_t)writer->declared_bytes);
    if (json_object_set_new(writer->header, name, entry))
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a header");
    return SHU_OK;
}

static int write_header(struct safetensors_writer *writer, struct shu_error *err) {
    writer->streaming = true;
    size_t length = json_dumpb(writer->header, NULL, 0, JSON_COMPACT), padded = (length + 7) / 8 * 8;
    char *text = mem_alloc(padded + 1);
    if (!text || !length) {
        mem_free(text);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a header");
    }
    memset(text, ' ', padded);
    json_dumpb(writer->header, text, length, JSON_COMPACT);
    uint64_t count = padded;
    int status = atomic_write(&writer->file, &count, sizeof count, err);
    if (!status) status = atomic_write(&writer->file, text, padded, err);
    mem_free(text);
    return status;
}

int safetensors_writer_data(struct safetensors_writer *writer, const void *bytes, size_t count, struct shu_error *err) {
    int status = writer->streaming ? SHU_OK : write_header(writer, err);
    if (status) return status;
    if (count > writer->declared_bytes - writer->given_bytes)
        return SHU_FAIL(err, SHU_E_USAGE, "%zu bytes run past the end of the declared tensors", count);
    writer->given_bytes += count;
    return atomic_write(&writer->file, bytes, count, err);
}

int safetensors_writer_end(struct safetensors_writer *writer, int status, struct shu_error *err) {
    if (!status && !writer->streaming) status = write_header(writer, err);
    if (!status && writer->given_bytes != writer->declared_bytes)
        status = SHU_FAIL(err, SHU_E_USAGE, "%llu of the declared bytes are missing",
                          (unsigned long long)(writer->declared_bytes - writer->given_bytes));
    json_decref(writer->header);
    return atomic_end(&writer->file, status, err);
}
