/* Reader of GGUF versions 2 and 3 (their little-endian layouts are the same).
 *
 *   "GGUF"  u32 version  u64 tensors  u64 pairs
 *   pairs   × { string key, u32 type, value }
 *   tensors × { string name, u32 ndim, u64 shape[ndim], u32 type, u64 offset }
 *   padding to general.alignment (default 32), then the data; offsets count from here
 *   string = u64 bytes + bytes (no NUL)
 *   array value = u32 element type, u64 count, elements
 *
 * Every count is compared with the bytes that are left before anything is
 * allocated for it, so that memory stays within a small multiple of the file.
 */
#include "weights/model.h"

#include <string.h>

struct reader {
    const uint8_t *start, *at, *end;
};

#define PAIR_BYTES_MIN   (8 + 1 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 1 + 4 + 8 + 4 + 8)

size_t gguf_scalar_bytes(enum gguf_type type) {
    static const uint8_t bytes[GGUF_TYPES] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };
    return (unsigned)type < GGUF_TYPES ? bytes[type] : 0;
}

const char *gguf_type_name(enum gguf_type type) {
    static const char *const name[GGUF_TYPES] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                 "bool", "string", "array", "u64", "i64", "f64"};
    return (unsigned)type < GGUF_TYPES ? name[type] : "unknown";
}

static bool read_bytes(struct reader *reader, void *out, size_t count) {
    if ((size_t)(reader->end - reader->at) < count) return false;
    memcpy(out, reader->at, count);
    reader->at += count;
    return true;
}

/* A length-prefixed string, in place. */
static bool read_string(struct reader *reader, const char **out, uint64_t *bytes) {
    if (!read_bytes(reader, bytes, sizeof *bytes)) return false;
    if (*bytes > (uint64_t)(reader->end - reader->at)) return false;
    *out = (const char *)reader->at;
    reader->at += *bytes;
    return true;
}

static int fail_short(const struct reader *reader, struct shu_error *err, const char *what) {
    return SHU_FAIL(err, SHU_E_FORMAT,
                    "the file ends (or a length runs past its end) inside %s at byte %zu of %zu; it is cut short or "
                    "damaged, fetch it again",
                    what, (size_t)(reader->at - reader->start), (size_t)(reader->end - reader->start));
}

/* --------------------------------------------------------------- metadata */

/* Steps over the elements of a string array. */
static bool skip_strings(struct reader *reader, uint64_t count) {
    if (count > (uint64_t)(reader->end - reader->at) / sizeof(uint64_t)) return false;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bytes;
        if (!read_bytes(reader, &bytes, sizeof bytes)) return false;
        if (bytes > (uint64_t)(reader->end - reader->at) || bytes > GGUF_STRING_BYTES_MAX) return false;
        reader->at += bytes;
    }
    return true;
}

static bool bools_valid(const uint8_t *at, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (at[i] > 1) return false;
    return true;
}

static int parse_array(struct reader *reader, struct meta_pair *pair, const char *shown, struct shu_error *err) {
    uint32_t element;
    if (!read_bytes(reader, &element, sizeof element) || !read_bytes(reader, &pair->count, sizeof pair->count))
        return fail_short(reader, err, shown);
    pair->element = (enum gguf_type)element;
    pair->value = reader->at;
    if (element == GGUF_ARRAY)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "key \"%s\" holds arrays of arrays; expected a flat array", shown);
    if (element == GGUF_STRING) {
        if (!skip_strings(reader, pair->count)) return fail_short(reader, err, shown);
        return SHU_OK;
    }
    size_t each = gguf_scalar_bytes(pair->element);
    if (!each)
        return SHU_FAIL(err, SHU_E_FORMAT, "key \"%s\" is an array of unknown type %u; expected 0…12", shown, element);
    if (pair->count > (uint64_t)(reader->end - reader->at) / each) return fail_short(reader, err, shown);
    reader->at += pair->count * each;
    if (element == GGUF_BOOL && !bools_valid(pair->value, pair->count))
        return SHU_FAIL(err, SHU_E_FORMAT, "key \"%s\" holds a bool that is neither 0 nor 1; the file is damaged",
                        shown);
    return SHU_OK;
}

static int parse_string(struct reader *reader, struct arena *arena, struct meta_pair *pair, const char *shown,
                        struct shu_error *err) {
    const char *text;
    uint64_t bytes;
    if (!read_string(reader, &text, &bytes)) return fail_short(reader, err, shown);
    if (bytes > GGUF_STRING_BYTES_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "key \"%s\" is a string of %llu bytes; the limit is %zu", shown,
                        (unsigned long long)bytes, GGUF_STRING_BYTES_MAX);
    pair->value = (const uint8_t *)text;
    pair->text = arena_strndup(arena, text, bytes);
    return pair->text ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for key \"%s\"", shown);
}

static int parse_value(struct reader *reader, struct arena *arena, struct meta_pair *pair, struct shu_error *err) {
    char shown[80];
    uint32_t type;
    name_show(pair->key, strlen(pair->key), shown, sizeof shown);
    if (!read_bytes(reader, &type, sizeof type)) return fail_short(reader, err, shown);
    pair->type = (enum gguf_type)type;
    int status = SHU_OK;
    if (type == GGUF_STRING) {
        status = parse_string(reader, arena, pair, shown, err);
    } else if (type == GGUF_ARRAY) {
        status = parse_array(reader, pair, shown, err);
    } else {
        size_t bytes = gguf_scalar_bytes(pair->type);
        if (!bytes)
            return SHU_FAIL(err, SHU_E_FORMAT, "key \"%s\" has unknown value type %u; expected 0…12", shown, type);
        if ((size_t)(reader->end - reader->at) < bytes) return fail_short(reader, err, shown);
        pair->value = reader->at;
        reader->at += bytes;
        if (type == GGUF_BOOL && !bools_valid(pair->value, 1))
            return SHU_FAIL(err, SHU_E_FORMAT, "key \"%s\" holds a bool that is neither 0 nor 1; the file is damaged",
                            shown);
    }
    if (!status) pair->value_bytes = (size_t)(reader->at - pair->value);
    return status;
}

static int parse_pair(struct model *model, struct reader *reader, struct shu_error *err) {
    char shown[80];
    const char *key;
    uint64_t bytes;
    struct meta_pair *pair = &model->pairs[model->pair_count];
    if (!read_string(reader, &key, &bytes)) return fail_short(reader, err, "a metadata key");
    if (bytes == 0 || bytes > GGUF_KEY_BYTES_MAX || memchr(key, 0, bytes))
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "metadata key %u is %llu bytes long or holds a NUL; expected 1…%d bytes without",
                        model->pair_count, (unsigned long long)bytes, GGUF_KEY_BYTES_MAX);
    pair->key = arena_strndup(&model->arena, key, bytes);
    if (!pair->key) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for metadata");
    if (model_pair(model, pair->key))
        return SHU_FAIL(err, SHU_E_FORMAT, "key \"%s\" occurs twice; expected unique keys",
                        name_show(key, bytes, shown, sizeof shown));
    int status = parse_value(reader, &model->arena, pair, err);
    if (status) return status;
    name_index_add(&model->pair_index, pair->key, model->pair_count++);
    return SHU_OK;
}

static int parse_pairs(struct model *model, struct reader *reader, uint64_t count, struct shu_error *err) {
    if (count > (uint64_t)(reader->end - reader->at) / PAIR_BYTES_MIN || count > GGUF_PAIRS_MAX)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "%llu metadata pairs do not fit a file of %zu bytes (limit %d); it is damaged",
                        (unsigned long long)count, (size_t)(reader->end - reader->start), GGUF_PAIRS_MAX);
    model->pairs = arena_alloc(&model->arena, (count + 1) * sizeof *model->pairs);
    if (!model->pairs || name_index_init(&model->pair_index, &model->arena, count))
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for metadata");
    for (uint64_t i = 0; i < count; i++) {
        int status = parse_pair(model, reader, err);
        if (status) return status;
    }
    return SHU_OK;
}

int gguf_parse_pairs(struct model *model, const uint8_t *data, size_t bytes, uint64_t count, size_t *used,
                     struct shu_error *err) {
    struct reader reader = {data, data, data + bytes};
    int status = parse_pairs(model, &reader, count, err);
    *used = (size_t)(reader.at - data);
    return status;
}

/* ---------------------------------------------------------------- tensors */

/* Dimensions of one tensor. Their product must fit int64, so that later sums of elements may assume it. */
static int parse_shape(struct reader *reader, struct tensor *view, const char *shown, struct shu_error *err) {
    uint32_t ndim;
    if (!read_bytes(reader, &ndim, sizeof ndim)) return fail_short(reader, err, "the tensor table");
    if (ndim < 1 || ndim > 4)
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" has %u dimensions; expected 1…4", shown, ndim);
    int64_t product = 1;
    view->ndim = (int)ndim;
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t dim = 1;
        if (i < ndim && !read_bytes(reader, &dim, sizeof dim)) return fail_short(reader, err, "the tensor table");
        if (dim < 1 || dim > INT64_MAX || __builtin_mul_overflow(product, (int64_t)dim, &product))
            return SHU_FAIL(err, SHU_E_FORMAT,
                            "tensor \"%s\" has dimension %llu, empty or beyond any file; it is damaged", shown,
                            (unsigned long long)dim);
        view->shape[i] = (int64_t)dim;
    }
    return SHU_OK;
}

static int parse_tensor_type(struct reader *reader, struct tensor *view, const char *shown, struct shu_error *err) {
    uint32_t type;
    if (!read_bytes(reader, &type, sizeof type)) return fail_short(reader, err, "the tensor table");
    int dtype = dtype_from_ggml(type);
    if (dtype < 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "tensor \"%s\" is stored as GGML type %u, which is not read here; expected F32, F16, BF16, "
                        "Q4_0…Q8_0 or Q2_K…Q6_K (convert the model to Q4_K_M or Q8_0)",
                        shown, type);
    view->dtype = (enum dtype)dtype;
    return SHU_OK;
}

/* Bytes of the tensor, or an error if its columns do not fill blocks or the size overflows. */
static int tensor_size(const struct tensor *view, const char *shown, size_t *out, struct shu_error *err) {
    size_t row = dtype_row_bytes(view->dtype, view->shape[0]);
    if (!row)
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" has %lld columns; %s needs a multiple of %d", shown,
                        (long long)view->shape[0], dtype_table[view->dtype].name, dtype_table[view->dtype].block);
    int64_t rows = view->shape[1] * view->shape[2] * view->shape[3];
    if (size_mul(row, (size_t)rows, out))
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" is larger than any file; it is damaged", shown);
    return SHU_OK;
}

/* Reads one table entry; view.data holds the offset until the start of the data is known. */
static int parse_tensor(struct model *model, struct reader *reader, uint64_t *offset, struct shu_error *err) {
    char shown[80];
    const char *name;
    uint64_t bytes;
    struct model_tensor *tensor = &model->tensors[model->tensor_count];
    if (!read_string(reader, &name, &bytes)) return fail_short(reader, err, "the tensor table");
    if (bytes == 0 || bytes > GGUF_NAME_BYTES_MAX || memchr(name, 0, bytes))
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "the name of tensor %u is %llu bytes long or holds a NUL; expected 1…%d bytes without",
                        model->tensor_count, (unsigned long long)bytes, GGUF_NAME_BYTES_MAX);
    name_show(name, bytes, shown, sizeof shown);
    tensor->name = arena_strndup(&model->arena, name, bytes);
    if (!tensor->name) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tensor table");
    int status = parse_shape(reader, &tensor->view, shown, err);
    if (!status) status = parse_tensor_type(reader, &tensor->view, shown, err);
    if (status) return status;
    if (!read_bytes(reader, offset, sizeof *offset)) return fail_short(reader, err, "the tensor table");
    model->tensor_count++;
    return SHU_OK;
}

static int place_tensor(struct model_tensor *tensor, uint64_t offset, size_t alignment, const struct reader *data,
                        struct shu_error *err) {
    char shown[80];
    size_t bytes = 0, room = (size_t)(data->end - data->at);
    name_show(tensor->name, strlen(tensor->name), shown, sizeof shown);
    int status = tensor_size(&tensor->view, shown, &bytes, err);
    if (status) return status;
    if (offset % alignment)
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" starts at offset %llu; expected a multiple of %zu", shown,
                        (unsigned long long)offset, alignment);
    if (offset > room || bytes > room - offset)
        return SHU_FAIL(
            err, SHU_E_FORMAT,
            "tensor \"%s\" needs bytes %llu…+%zu of the data, the file holds %zu; it is cut short, fetch it again",
            shown, (unsigned long long)offset, bytes, room);
    tensor->view.data = data->at + offset;
    return SHU_OK;
}

static int read_alignment(const struct model *model, size_t *out, struct shu_error *err) {
    int64_t alignment = GGUF_ALIGNMENT_DEFAULT;
    if (meta_has(model, "general.alignment") && !meta_int(model, "general.alignment", &alignment))
        return SHU_FAIL(err, SHU_E_FORMAT, "general.alignment is no integer; expected a power of two");
    if (alignment < 8 || alignment > GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return SHU_FAIL(err, SHU_E_FORMAT, "general.alignment is %lld; expected a power of two from 8 to %u",
                        (long long)alignment, GGUF_ALIGNMENT_MAX);
    *out = (size_t)alignment;
    return SHU_OK;
}

static int parse_tensors(struct model *model, struct reader *reader, uint64_t count, struct shu_error *err) {
    if (count > (uint64_t)(reader->end - reader->at) / TENSOR_BYTES_MIN || count > GGUF_TENSORS_MAX)
        return SHU_FAIL(err, SHU_E_FORMAT, "%llu tensors do not fit a file of %zu bytes (limit %d); it is damaged",
                        (unsigned long long)count, (size_t)(reader->end - reader->start), GGUF_TENSORS_MAX);
    size_t alignment = GGUF_ALIGNMENT_DEFAULT;
    int status = read_alignment(model, &alignment, err);
    if (status) return status;
    uint64_t *offsets = mem_alloc((count + 1) * sizeof *offsets);
    model->tensors = arena_alloc(&model->arena, (count + 1) * sizeof *model->tensors);
    if (!offsets || !model->tensors) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tensor table");
    for (uint64_t i = 0; !status && i < count; i++) status = parse_tensor(model, reader, &offsets[i], err);
    if (!status && count) {
        size_t head = (size_t)(reader->at - reader->start), pad = (alignment - head % alignment) % alignment;
        size_t left = (size_t)(reader->end - reader->at);
        struct reader data = {reader->start, reader->at + (pad < left ? pad : left), reader->end};
        for (uint64_t i = 0; !status && i < count; i++)
            status = place_tensor(&model->tensors[i], offsets[i], alignment, &data, err);
    }
    mem_free(offsets);
    return status;
}

/* A model cut into several files names its parts in the metadata. */
static int check_split(const struct model *model, struct shu_error *err) {
    int64_t parts, part = 0;
    if (!meta_int(model, "split.count", &parts) || parts <= 1) return SHU_OK;
    meta_int(model, "split.no", &part);
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "this is part %lld of %lld of a split model; join the parts first (llama-gguf-split --merge)",
                    (long long)part + 1, (long long)parts);
}

int gguf_parse(struct model *model, const uint8_t *data, size_t bytes, struct shu_error *err) {
    struct reader reader = {data, data, data + bytes};
    char magic[4];
    uint32_t version;
    uint64_t tensors, pairs;
    if (!read_bytes(&reader, magic, sizeof magic) || memcmp(magic, GGUF_MAGIC, sizeof magic) != 0)
        return SHU_FAIL(err, SHU_E_FORMAT, "not a GGUF file: expected it to begin with \"GGUF\"");
    if (!read_bytes(&reader, &version, sizeof version)) return fail_short(&reader, err, "the header");
    if (version != 2 && version != 3)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "GGUF version is %u; expected 2 or 3, little-endian (convert the model again)", version);
    if (!read_bytes(&reader, &tensors, sizeof tensors) || !read_bytes(&reader, &pairs, sizeof pairs))
        return fail_short(&reader, err, "the header");
    int status = parse_pairs(model, &reader, pairs, err);
    if (!status) status = check_split(model, err);
    if (!status) status = parse_tensors(model, &reader, tensors, err);
    if (!status) status = model_index_tensors(model, err);
    return status;
}
