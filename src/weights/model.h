/* Private to room weights: what an open model is made of.
 *
 * Both file kinds end in the same struct. A GGUF is parsed where it lies in its
 * map. A safetensors folder is first translated into GGUF metadata bytes (in
 * `translated`), which then go through the same parser, so that every rule
 * about metadata exists once.
 */
#ifndef WEIGHTS_MODEL_H
#define WEIGHTS_MODEL_H

#include "weights/weights.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF and safetensors are read in place: little-endian only");

/* Value types of GGUF metadata, numbers as in the file. */
enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};

#define GGUF_MAGIC             "GGUF"
#define GGUF_VERSION           3
#define GGUF_ALIGNMENT_DEFAULT 32
#define GGUF_ALIGNMENT_MAX     (1u << 20)
#define GGUF_KEY_BYTES_MAX     65535
#define GGUF_NAME_BYTES_MAX    255
#define GGUF_STRING_BYTES_MAX  ((size_t)64 << 20)
#define GGUF_PAIRS_MAX         65536
#define GGUF_TENSORS_MAX       (1 << 20)

/* One key and where its value lies. Points into the map, which must outlive it. */
struct meta_pair {
    const char *key;      /* NUL-terminated copy */
    const char *text;     /* GGUF_STRING: NUL-terminated copy; else NULL */
    const uint8_t *value; /* scalar, string bytes, or first array element (for strings: its length field) */
    size_t value_bytes;
    uint64_t count; /* GGUF_ARRAY: elements */
    enum gguf_type type;
    enum gguf_type element; /* GGUF_ARRAY */
};

/* Open-addressing index from a name to its position in an array; built once. */
struct name_index {
    uint32_t *slot; /* position + 1; 0 = free */
    uint32_t mask;
};

struct model {
    enum model_format format;
    char *path;
    struct map *maps; /* GGUF: one; safetensors: one a shard */
    int map_count;
    uint64_t file_bytes;
    struct arena arena; /* everything below that is not in a map */
    struct meta_pair *pairs;
    uint32_t pair_count;
    struct name_index pair_index;
    struct model_tensor *tensors;
    uint32_t tensor_count;
    struct name_index tensor_index;
    struct buf translated; /* safetensors: metadata in GGUF encoding */
};

/* Bytes of one scalar of a type; 0 for strings, arrays and unknown numbers. */
size_t gguf_scalar_bytes(enum gguf_type type);
const char *gguf_type_name(enum gguf_type type);

/* Room for `count` names at no more than half load. SHU_E_NOMEM. */
int name_index_init(struct name_index *index, struct arena *arena, uint64_t count);
void name_index_add(struct name_index *index, const char *name, uint32_t position);

/* Copies at most size-1 bytes of a foreign name for a message; what is no printable ASCII becomes '?'. */
const char *name_show(const char *name, size_t bytes, char *out, size_t size);

/* Parses a whole GGUF (header, metadata, tensor table) that lies in memory.
 * Fills pairs and tensors of a zeroed model; nothing is freed on failure (the
 * arena belongs to the caller). */
int gguf_parse(struct model *model, const uint8_t *data, size_t bytes, struct shu_error *err);
/* Parses `count` metadata pairs at the start of [data, data + bytes); *used = bytes consumed. */
int gguf_parse_pairs(struct model *model, const uint8_t *data, size_t bytes, uint64_t count, size_t *used,
                     struct shu_error *err);
/* Checks names for duplicates and data for overlap, and builds the tensor index. */
int model_index_tensors(struct model *model, struct shu_error *err);
const struct meta_pair *model_pair(const struct model *model, const char *key); /* NULL if missing */

/* Opens a safetensors folder into a zeroed model whose path is set. */
int hf_open(struct model *model, struct shu_error *err);

#endif
