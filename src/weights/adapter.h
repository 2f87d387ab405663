/* Low-rank adapters. Part of weights.h; not included alone.
 *
 * Two file forms carry the same thing:
 *   GGUF   as llama.cpp reads with --lora: general.type "adapter", adapter.type "lora", adapter.lora.alpha,
 *          general.architecture of the base; tensors NAME.weight.lora_a [in, rank], NAME.weight.lora_b [rank, out]
 *          (innermost first). The effective scale is alpha / rank.
 *   PEFT   a folder: adapter_config.json, adapter_model.safetensors with
 *          base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight [rank, in] and so on.
 * The base is named by `shu.base.sha256` (GGUF) or "shu_base_sha256" (PEFT config): the fingerprint of
 * adapter_base_fingerprint. An adapter that names another base is refused; one that names none is checked by
 * architecture and shapes.
 */
#ifndef WEIGHTS_ADAPTER_H
#define WEIGHTS_ADAPTER_H

/* One adapted tensor: y += scale * weight * B (A x). */
struct adapter_pair {
    const char *name; /* GGUF name of the adapted matrix, "blk.0.attn_q.weight" */
    int64_t in, out;
    int rank;
    const float *a; /* [rank, in] */
    const float *b; /* [out, rank] */
};
struct adapter;
/* Reads either form, decoded to f32. SHU_E_FORMAT with file and tensor for anything that does not fit. */
int adapter_open(const char *path, struct adapter **out, struct shu_error *err);
void adapter_close(struct adapter *adapter); /* NULL is a no-op */
int adapter_count(const struct adapter *adapter);
const struct adapter_pair *adapter_at(const struct adapter *adapter, int index);
const struct adapter_pair *adapter_find(const struct adapter *adapter, const char *name); /* NULL: not adapted */
float adapter_scale(const struct adapter *adapter); /* alpha / rank, or alpha / sqrt(rank) where PEFT says rsLoRA */
/* Every pair must fit a matrix of the model, and the base must be the one that is named, if one is. */
int adapter_check(const struct adapter *adapter, const struct model *model, struct shu_error *err);

/* SHA-256 over architecture, shapes and samples of the tensors: the same for a file and its renamed copy, another
 * for another quantisation of the same weights. */
int adapter_base_fingerprint(const struct model *model, char out[65], struct shu_error *err);

/* What a finished run writes. rank_stabilised: alpha is stored such that alpha / rank is the true scale in GGUF. */
struct adapter_write {
    const struct model *base;
    const struct adapter_pair *pairs;
    int count;
    double alpha;
    bool rank_stabilised;
    double dropout;
    const char *base_name; /* for people */
};
int adapter_write_gguf(const struct adapter_write *what, const char *path, struct shu_error *err);
int adapter_write_peft(const struct adapter_write *what, const char *folder, struct shu_error *err);

/* base + weight * adapter for every adapter in turn, written as `target` ("F16" | "BF16" | "Q8_0" | "Q4_K_M" | "F32");
 * matrices are decoded, added in f32 and encoded once. */
int model_merge(const struct model *base, const struct adapter *const *adapters, const float *weights, int count,
                const char *out_path, const char *target, struct pool *pool, struct progress *progress,
                struct shu_error *err);

#endif
