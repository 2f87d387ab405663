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
/* Reads either form, decoded to f32; a folder without adapter_config.json may hold adapter.gguf. SHU_E_FORMAT with file
 * and tensor for anything that does not fit; SHU_E_UNSUPPORTED for kinds that would be computed wrong (DoRA, biases,
 * embeddings, PEFT initialisations that change the base). */
int adapter_open(const char *path, struct adapter **out, struct shu_error *err);
void adapter_close(struct adapter *adapter); /* NULL is a no-op */
int adapter_count(const struct adapter *adapter);
const struct adapter_pair *adapter_at(const struct adapter *adapter, int index);
const struct adapter_pair *adapter_find(const struct adapter *adapter, const char *name); /* NULL: not adapted */
/* alpha / rank, or alpha / sqrt(rank) where PEFT says rsLoRA. Holds for all pairs: where a file gives some of them
 * another rank or alpha, the difference is in their b. */
float adapter_scale(const struct adapter *adapter);
const char *adapter_path(const struct adapter *adapter);
/* SHA-256 over scale, names, shapes and samples of the pairs. */
void adapter_fingerprint(const struct adapter *adapter, char out[65]);

/* Which row of b belongs to a row of the model's matrix. They are the same, except in q and k of architecture llama
 * when one side is PEFT's or a Hugging Face folder and the other GGUF: rotary pairs stand as halves of a head there,
 * interleaved here. */
struct adapter_order {
    int64_t head;    /* rows of a head; 0 = same order */
    bool interleave; /* the model's rows are interleaved, b's are halves; else the other way round */
};
struct adapter_order adapter_order(const struct adapter *adapter, const struct model *model,
                                   const struct adapter_pair *pair);
static inline int64_t adapter_source_row(struct adapter_order order, int64_t row) {
    if (order.head == 0) return row;
    int64_t local = row % order.head, half = order.head / 2;
    int64_t from = order.interleave ? (local % 2) * half + local / 2 : (local % half) * 2 + local / half;
    return row - local + from;
}

/* The same for a model's own matrix: which of its rows a GGUF file holds at a row. */
struct adapter_order model_file_order(const struct model *model, const char *name, int64_t rows);

/* Every pair must fit a matrix of the model, and the base must be the one that is named, if one is. */
int adapter_check(const struct adapter *adapter, const struct model *model, struct shu_error *err);

/* SHA-256 over architecture, shapes and samples of the tensors: the same for a file and its renamed copy, another
 * for another quantisation of the same weights. SHU_E_FORMAT without general.architecture. */
int adapter_base_fingerprint(const struct model *model, char out[65], struct shu_error *err);

/* What a finished run writes. Pairs have the order of rows that the base has; all share one rank. rank_stabilised:
 * the scale is alpha / sqrt(rank); alpha is stored such that alpha / rank is the true scale in GGUF. */
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
