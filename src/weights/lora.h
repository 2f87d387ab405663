/* Private to room weights: how an adapter is read and written.
 *
 * A reader (adapter_gguf.c, adapter_peft.c) collects the halves that its file holds as lora_parts, and
 * lora_settle pairs, checks and decodes them; from there on both file forms are the same thing.
 */
#ifndef WEIGHTS_LORA_H
#define WEIGHTS_LORA_H

#include "weights/hf.h"

#define LORA_RANK_MAX 4096

struct adapter {
    char *path;
    const char *arch;        /* NULL if the file names none */
    const char *base_sha256; /* NULL likewise */
    const char *base_name;   /* for people; NULL likewise */
    bool halved;             /* rotary rows of llama's q and k in Hugging Face's order */
    bool rank_stabilised;
    float scale;
    struct adapter_pair *pairs; /* [count], sorted by name */
    int count;
    float *block; /* all a and b */
    size_t block_bytes;
    struct arena arena; /* names, texts, pairs */
};

/* One half of a pair where it lies in the file. */
struct lora_part {
    const char *name; /* GGUF name of the matrix; in the adapter's arena */
    bool is_b;
    struct tensor view; /* a: [in, rank], b: [rank, out], innermost first */
    double alpha;       /* NaN: the file states none, and the scale is 1 */
};
struct lora_parts {
    struct lora_part *item;
    size_t count, cap;
};
/* name: of the matrix, copied into the adapter's arena. */
int lora_part_add(struct adapter *adapter, struct lora_parts *parts, const char *name, size_t name_bytes,
                  const struct lora_part *part, struct shu_error *err);
/* Pairs, checks and decodes; sorts parts on the way. */
int lora_settle(struct adapter *adapter, struct lora_parts *parts, struct shu_error *err);

/* The two forms, from memory. They fill a zeroed adapter with an initialised arena; on failure nothing but the arena
 * and the block are left to free (lora_clear). */
int lora_read_gguf(struct adapter *adapter, const struct model *file, struct shu_error *err);
int lora_read_peft(struct adapter *adapter, struct span config, const uint8_t *data, size_t bytes,
                   struct shu_error *err);
void lora_clear(struct adapter *adapter);
/* Copies a text of a file if it is printable and not too long; "" and odd texts give NULL. SHU_E_NOMEM. */
int lora_keep_text(struct adapter *adapter, const char *text, const char **out, struct shu_error *err);
bool lora_is_sha256(const char *text);

/* --------------------------------------------------------------- row order */

/* Checks what a caller wants written. */
int adapter_write_check(const struct adapter_write *what, struct shu_error *err);
/* Order in which B's rows, which stand as in the base, must be written. */
struct adapter_order adapter_write_order(const struct adapter_write *what, const struct adapter_pair *pair,
                                         bool halved);
/* Row `row` of B under an order: [rank] values in place. */
static inline const float *lora_b_row(const struct adapter_pair *pair, struct adapter_order order, int64_t row) {
    return pair->b + adapter_source_row(order, row) * pair->rank;
}

/* ---------------------------------------------------- writing safetensors */

/* Tensors are declared, then their bytes given in the same order; the file appears whole or not at all. */
struct safetensors_writer {
    struct atomic_file file;
    json_t *header;
    uint64_t declared_bytes, given_bytes;
    bool streaming;
};
int safetensors_writer_open(const char *path, struct safetensors_writer *out, struct shu_error *err);
/* shape: outermost first. */
int safetensors_writer_declare(struct safetensors_writer *writer, const char *name, enum dtype dtype, int ndim,
                               const int64_t *shape, struct shu_error *err);
int safetensors_writer_data(struct safetensors_writer *writer, const void *bytes, size_t count, struct shu_error *err);
/* Ends the writer: commits if status is SHU_OK and all declared bytes were given, else leaves no file. */
int safetensors_writer_end(struct safetensors_writer *writer, int status, struct shu_error *err);

#endif
