/* nn: networks written as graphs.
 *
 * One decoder, described by data:
 *
 *     decoder_load (config from metadata, weights checked and packed)
 *         -> decoder_graph (the forward pass as nodes) -> graph_plan, graph_run …
 *         -> graph_free -> decoder_free -> model_close
 *
 * What distinguishes llama from gemma is a row of the table in nn/config.c, not
 * code. Tensors come under GGUF names from either file format; every one is
 * checked for type and shape, and one that the network has no place for is
 * refused, as ignoring it would compute something else.
 */
#ifndef NN_H
#define NN_H

#include "graph/graph.h"
#include "weights/weights.h"

/* Mistral is llama with a sliding window. */
enum decoder_arch { ARCH_LLAMA, ARCH_QWEN2, ARCH_QWEN3, ARCH_GEMMA2, ARCH_GEMMA3, ARCH_COUNT };

/* Everything that distinguishes one decoder from another. */
struct decoder_config {
    enum decoder_arch arch;
    int layers, width /* C */, heads, kv_heads, head_dim, ffn, vocab;
    int context; /* positions the model was trained for */
    float norm_eps;
    enum unary_kind activation; /* of the gated feed-forward */
    bool qkv_bias;              /* qwen2: biases are in the file */
    bool qk_norm;               /* qwen3, gemma3: RMS norm per head before rotation */
    bool post_norms;            /* gemma: norm after attention and after the feed-forward, before the residual sum */
    bool tied_output;           /* output matrix = embedding table */
    float embed_scale;          /* gemma: sqrt(width); else 1 */
    float attention_scale;      /* multiplies q·k */
    float attention_softcap, logit_softcap; /* gemma2; 0 = none */
    int window;                             /* sliding window in positions, the row itself included; 0 = none */
    int window_pattern;                     /* 0: every layer slides (mistral); n: every n-th layer is full (gemma) */
    int rot;                                /* rotated dimensions per head */
    bool rope_neox;                         /* pairs (i, i + rot/2), else (2i, 2i+1) */
    double rope_base, rope_base_local;      /* local: sliding layers */
    double rope_scale, rope_scale_local;    /* position multiplier, 1 = none (linear scaling) */
};

/* Reads and checks the metadata. SHU_E_UNSUPPORTED: unknown architecture (lists
 * the known ones), experts, YaRN or per-layer head counts. SHU_E_FORMAT: a key
 * is missing or of the wrong kind. SHU_E_RANGE: a size outside its limits, or
 * sizes that do not fit each other. The message names the key. */
int decoder_config_read(const struct model *model, struct decoder_config *out, struct shu_error *err);
/* True if layer l attends through the sliding window. */
bool decoder_layer_slides(const struct decoder_config *config, int layer);
const char *decoder_arch_name(enum decoder_arch arch); /* "qwen2" */

struct decoder;
/* Checks every tensor's shape and packs all matrices with the pool into one
 * block, giving file pages back as it goes: the peak is the packed block and a
 * few dozen MiB. Norms and biases become f32.
 *
 * An embedding table of its own (config.tied_output false) is not packed, as a
 * step reads a few rows of it: the decoder looks them up in the mapped file.
 * So the model must stay open until decoder_free; its other pages are released
 * and cost nothing. SHU_E_FORMAT names a tensor, the shape expected and found. */
int decoder_load(const struct model *model, const struct kernels *kernels, struct pool *pool, struct decoder **out,
                 struct shu_error *err);
void decoder_free(struct decoder *decoder); /* NULL is a no-op */

/* Low-rank adapters (LoRA, Hu et al. 2021) beside the matrices: y = W x + sum over i of weight_i scale_i B_i (A_i x).
 * All adapters of a product stand side by side along the rank in one A and one B, with scale and weight in B, so that
 * any number of them costs two products. They are packed as F16, or as F32 beside F32 matrices and where F16 would
 * lose more than a thousandth. Afterwards the adapters may be closed. A weight of 0 leaves an adapter out. At most
 * once, before decoder_graph. SHU_E_UNSUPPORTED: made for another base, or adapts what is no product of the decoder;
 * SHU_E_RANGE: a weight is not finite, or the ranks of a product exceed 65536 together.
 *
 * Rows of different adapters in one step (a server with one model per sequence) come from the same layout: as ranks
 * stand side by side, a row that wants adapter i alone needs only the columns of A x that are not i's set to zero.
 * That is one OP_MUL between the two products, with an input [ranks, rows] that the engine fills per row (and which
 * may then carry the weights); a row's sum over B gains only exact zeros and stays bit for bit what it is alone. */
int decoder_adapt(struct decoder *decoder, const struct model *model, const struct adapter *const *adapters,
                  const float *weights, int count, const struct kernels *kernels, struct shu_error *err);
const struct decoder_config *decoder_config(const struct decoder *decoder);
uint64_t decoder_weight_bytes(const struct decoder *decoder); /* packed, adapters included */
/* Bytes of weights read for one decoded token, at the file's bit widths: every tensor once (adapters as packed), an
 * embedding table that is only looked up as one row. */
uint64_t decoder_read_bytes(const struct decoder *decoder);

/* The nodes a caller binds or reads. */
struct decoder_nodes {
    node_id tokens; /* I32 [rows] */
    node_id gather; /* I32 [gathered]: rows that need logits */
    node_id hidden; /* f32 [gathered, C], after the final norm */
    node_id logits; /* f32 [gathered, V] */
};
/* Appends the whole forward pass to an empty graph (not yet planned). The graph
 * borrows the decoder's weights. Rows that need no logits leave the network
 * after the last layer's attention: nothing reads them afterwards. Failures of
 * the graph's builders come out of graph_plan; SHU_E_USAGE if the kernels'
 * lanes are not those the weights were packed for. */
int decoder_graph(const struct decoder *decoder, struct graph *graph, struct decoder_nodes *out, struct shu_error *err);

#include "nn/learn.h"

#endif
