/* nn: networks written as graphs.
 *
 * One decoder, described by data. `decoder_config_read` turns a model's
 * metadata into a `struct decoder_config` through a table with one row per
 * architecture; `decoder_load` packs the weights (releasing file pages as it
 * goes); `decoder_graph` writes the network into a graph.
 */
#ifndef NN_H
#define NN_H

#include "graph/graph.h"
#include "weights/weights.h"

enum decoder_arch { ARCH_LLAMA, ARCH_QWEN2, ARCH_QWEN3, ARCH_GEMMA2, ARCH_GEMMA3, ARCH_COUNT };

/* Everything that distinguishes one decoder from another. */
struct decoder_config {
    enum decoder_arch arch;
    int layers, width /* C */, heads, kv_heads, head_dim, ffn, vocab;
    int context;             /* positions the model was trained for */
    float norm_eps;
    enum unary_kind activation; /* of the gated feed-forward */
    bool qkv_bias;           /* qwen2 */
    bool qk_norm;            /* qwen3, gemma3: RMS norm per head before rotation */
    bool post_norms;         /* gemma: norm after attention and after the feed-forward, before the residual sum */
    bool tied_output;        /* output matrix = embedding table */
    float embed_scale;       /* gemma: sqrt(width); else 1 */
    float attention_scale;   /* multiplies q·k */
    float attention_softcap, logit_softcap; /* gemma2; 0 = none */
    int window;              /* sliding window in positions; 0 = none */
    int window_pattern;      /* 0: every layer slides (mistral); n: every n-th layer is full (gemma) */
    int rot;                 /* rotated dimensions per head */
    bool rope_neox;
    double rope_base, rope_base_local; /* local: sliding layers of gemma3 */
    double rope_scale;       /* position multiplier, 1 = none (linear scaling) */
};
/* SHU_E_UNSUPPORTED names the architecture and lists the known ones. */
int decoder_config_read(const struct model *model, struct decoder_config *out, struct shu_error *err);
/* True if layer l attends through the sliding window. */
bool decoder_layer_slides(const struct decoder_config *config, int layer);

struct decoder;
/* Packs all weights with the pool; model may be closed afterwards. */
int decoder_load(const struct model *model, const struct kernels *kernels, struct pool *pool, struct decoder **out,
                 struct shu_error *err);
void decoder_free(struct decoder *decoder);
const struct decoder_config *decoder_config(const struct decoder *decoder);
uint64_t decoder_weight_bytes(const struct decoder *decoder);
/* Bytes of weights read for one decoded token: every matrix once, the embedding table as one row. */
uint64_t decoder_read_bytes(const struct decoder *decoder);

/* The nodes a caller binds or reads. */
struct decoder_nodes {
    node_id tokens;  /* I32 [rows] */
    node_id gather;  /* I32 [gathered]: rows that need logits */
    node_id hidden;  /* f32 [gathered, C], after the final norm */
    node_id logits;  /* f32 [gathered, V] */
};
/* Appends the whole forward pass to an empty graph (not yet planned). */
int decoder_graph(const struct decoder *decoder, struct graph *graph, struct decoder_nodes *out, struct shu_error *err);

#endif
