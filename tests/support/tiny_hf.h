/* tiny_hf: a tiny model (see tiny.h) once more, as a Hugging Face folder.
 *
 *     tiny_write(path, &spec, &err);            // spec.dtype = DT_F32
 *     model_open(path, &model, &err);
 *     tiny_export_hf(model, folder, 2, DT_F32, &err);
 *     model_open(folder, &same, &err);          // the same network
 *
 * Writes config.json, tokenizer.json, tokenizer_config.json and model.safetensors
 * (or `shards` files and their index) the way transformers does: its names, its
 * shapes, llama's rotary rows in halves, gemma's norms minus one.
 */
#ifndef TESTS_SUPPORT_TINY_HF_H
#define TESTS_SUPPORT_TINY_HF_H

#include "weights/weights.h"

/* The folder is made if it is not there. dtype: F32, F16 or BF16 of all tensors. */
int tiny_export_hf(const struct model *model, const char *folder, int shards, enum dtype dtype, struct shu_error *err);
/* Removes the files that tiny_export_hf wrote, and the folder. */
void tiny_remove_hf(const char *folder);

#endif
