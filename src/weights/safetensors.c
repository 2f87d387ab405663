/* The safetensors container. Its header is JSON, so names and numbers are
 * jansson's business; what is left is to distrust them. */
#include "weights/hf.h"

#include <string.h>

#define HEADER_BYTES_MAX ((uint64_t)100 << 20) /* the limit of the reference implementation */

struct element {
    const char *name;
    int bytes;
};
static const struct element elements[] = {
    {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},     {"I32", 4},     {"I16", 2},  {"I8", 1},
    {"U8", 1},  {"U16", 2}, {"U32", 4}, {"U64", 8},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"BOOL", 1},
};

static int element_bytes(const char *dtype) {
    for (size_t i = 0; i < sizeof elements / sizeof *elements; i++)
        if (strcmp(elements[i].name, dtype) == 0) return elements[i].bytes;
    return 0;
}

/* Product of the shape in elements; false if a dimension is negative or the product overflows. */
static bool shape_count(const json_t *shape, int64_t *out) {
    size_t at;
    json_t *dim;
    int64_t product = 1;
    json_array_foreach(shape, at, dim) {
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) return false;
        if (__builtin_mul_overflow(product, (int64_t)json_integer_value(dim), &product)) return false;
    }
    *out = product;
    return true;
}

static int read_shape(const json_t *value, const char *shown, struct safetensor *tensor, int64_t *count,
                      struct shu_error *err) {
    const json_t *shape = json_object_get(value, "shape");
    if (!json_is_array(shape) || json_array_size(shape) > 4 || !shape_count(shape, count))
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" has no sound shape; expected up to 4 whole numbers", shown);
    tensor->ndim = (int)json_array_size(shape);
    for (int i = 0; i < tensor->ndim; i++) tensor->shape[i] = json_integer_value(json_array_get(shape, (size_t)i));
    return SHU_OK;
}

static int read_entry(const char *name, const json_t *value, const uint8_t *data, size_t room,
                      struct safetensor *tensor, struct shu_error *err) {
    char shown[80];
    int64_t count = 0;
    name_show(name, strlen(name), shown, sizeof shown);
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    *tensor = (struct safetensor){.name = name, .dtype = hf_text(value, "dtype")};
    int status = read_shape(value, shown, tensor, &count, err);
    if (status) return status;
    size_t each = (size_t)element_bytes(tensor->dtype);
    if (!each)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "tensor \"%s\" has element type \"%.20s\", which safetensors does not know", shown,
                        tensor->dtype);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin) ||
        (uint64_t)json_integer_value(end) > room)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "tensor \"%s\" lies outside the %zu data bytes of its file; it is cut short or damaged", shown,
                        room);
    tensor->bytes = (size_t)(json_integer_value(end) - json_integer_value(begin));
    if (tensor->bytes % each || (uint64_t)count != tensor->bytes / each)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "tensor \"%s\" has %lld elements of %zu bytes in %zu bytes; the header is damaged", shown,
                        (long long)count, each, tensor->bytes);
    tensor->data = data + json_integer_value(begin);
    return SHU_OK;
}

int safetensors_parse(const uint8_t *data, size_t bytes, safetensors_visit *visit, void *context,
                      struct shu_error *err) {
    uint64_t header;
    const char *name;
    json_t *root = NULL, *value;
    if (bytes < sizeof header)
        return SHU_FAIL(err, SHU_E_FORMAT, "no safetensors file: it is only %zu bytes long", bytes);
    memcpy(&header, data, sizeof header);
    if (header > HEADER_BYTES_MAX || header > bytes - sizeof header)
        return SHU_FAIL(err, SHU_E_FORMAT, "no safetensors file, or cut short: a header of %llu bytes in a file of %zu",
                        (unsigned long long)header, bytes);
    int status = json_parse((const char *)data + sizeof header, header, "header", &root, err);
    if (status) return status;
    if (!json_is_object(root)) status = SHU_FAIL(err, SHU_E_FORMAT, "the safetensors header is no JSON object");
    if (!status)
        json_object_foreach(root, name, value) {
            struct safetensor tensor;
            if (strcmp(name, "__metadata__") == 0) continue;
            status =
                read_entry(name, value, data + sizeof header + header, bytes - sizeof header - header, &tensor, err);
            if (!status) status = visit(context, &tensor, err);
            if (status) break;
        }
    json_decref(root);
    return status;
}
