/* Private to room weights: Hugging Face folders, translated into GGUF terms.
 *
 * A folder holds config.json, tokenizer.json, perhaps tokenizer_config.json and
 * chat_template.jinja, and weights in model.safetensors or in shards that
 * model.safetensors.index.json lists. Its JSON becomes a block of GGUF metadata
 * (`model->translated`), its tensor names become GGUF names.
 */
#ifndef WEIGHTS_HF_H
#define WEIGHTS_HF_H

#include "weights/model.h"

/* Texts of a folder's files; missing ones are empty. */
struct hf_texts {
    struct span config, tokenizer, tokenizer_config, chat_template;
};

/* Collects metadata pairs in GGUF encoding. The first failure stays in status. */
struct meta_builder {
    struct buf *out;
    uint64_t count;
    int status;
};
void meta_put_int(struct meta_builder *meta, const char *key, int64_t value); /* u32 */
void meta_put_bool(struct meta_builder *meta, const char *key, bool value);
void meta_put_string(struct meta_builder *meta, const char *key, const char *text, size_t bytes);
/* Begins an array; the caller appends count elements with meta_put_raw or meta_put_element. */
void meta_put_array(struct meta_builder *meta, const char *key, enum gguf_type element, uint64_t count);
void meta_put_element(struct meta_builder *meta, const char *text, size_t bytes); /* of a string array */
void meta_put_raw(struct meta_builder *meta, const void *bytes, size_t count);

/* One row of the table of architectures. */
struct hf_arch {
    const char *model_type; /* in config.json */
    const char *arch;       /* in GGUF */
    bool gemma;             /* four norms a layer, stored as w - 1; GELU; tied */
    bool head_norms;        /* q_norm, k_norm */
    bool qkv_bias;
    bool halved_rope; /* GGUF interleaves rotary pairs, the folder keeps halves: shu.rope.neox */
};

/* What the tensors of a folder must be read by. */
struct hf_facts {
    const struct hf_arch *arch;
    bool tied; /* output matrix = embedding table */
};

/* Translates the JSON into model->translated and parses it. The tensors come
 * later. This is what the fuzzer calls. */
int hf_translate(struct model *model, const struct hf_texts *texts, struct hf_facts *out, struct shu_error *err);
/* Parts of it. */
int hf_config(struct model *model, const json_t *config, const struct hf_arch *arch, struct meta_builder *meta,
              struct shu_error *err);
int hf_tokenizer(const json_t *tokenizer, const json_t *settings, const json_t *config, struct meta_builder *meta,
                 struct shu_error *err);
/* Frequency divisors of llama 3's long context [head_dim / 2], or *count = 0 if the config asks for none. */
int hf_rope_factors(const json_t *config, struct arena *arena, const float **out, int64_t *count,
                    struct shu_error *err);
/* GGUF name of a tensor. False if the architecture has no such tensor; *skip: known, but not needed. */
bool hf_tensor_name(const struct hf_arch *arch, const char *name, char *out, size_t size, bool *skip);
/* The way back for matrices of layers and output.weight, which have the same names in all architectures. */
bool hf_matrix_name(const char *name, char *out, size_t size);

/* JSON helpers: an absent or null member gives the fallback, another kind of value fails. */
int hf_int(const json_t *object, const char *key, int64_t fallback, int64_t low, int64_t high, int64_t *out,
           struct shu_error *err);
const char *hf_text(const json_t *object, const char *key); /* "" if absent or no string */

/* One tensor of a safetensors file. */
struct safetensor {
    const char *name, *dtype; /* dtype as in the file: "BF16" */
    int ndim;
    int64_t shape[4]; /* as in the file: outermost first; [ndim] valid */
    const uint8_t *data;
    size_t bytes;
};
typedef int safetensors_visit(void *context, const struct safetensor *tensor, struct shu_error *err);
/* Checks a whole file in memory and calls visit for each tensor until one returns non-zero.
 *   u64 header bytes, JSON header { name: { dtype, shape, data_offsets: [begin, end] } }, data */
int safetensors_parse(const uint8_t *data, size_t bytes, safetensors_visit *visit, void *context,
                      struct shu_error *err);

#endif
