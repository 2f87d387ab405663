/* The decoder as it learns. Part of nn.h; not included alone.
 *
 *     learner_open (a model's tensors as frozen parameters, what learns beside or among them)
 *         -> learner_graph (forward pass and losses; graph_backward is the caller's) -> … -> learner_close
 *
 * The base is not packed: products read the mapped file's rows at their own bit width, in both directions,
 * so a frozen Q4_K_M base costs its file size. Low-rank adapters (LoRA, Hu et al. 2021) add
 * scale * B (A x) to a product: A [rank, in] starts uniform in +-1 / sqrt(in), B [out, rank] at zero.
 * Full training copies every tensor to f32 or bf16 (vectors always f32).
 */
#ifndef NN_LEARN_H
#define NN_LEARN_H

/* Projections of a layer. */
enum decoder_target {
    DECODER_Q = 1,
    DECODER_K = 2,
    DECODER_V = 4,
    DECODER_O = 8,
    DECODER_GATE = 16,
    DECODER_UP = 32,
    DECODER_DOWN = 64,
    DECODER_ALL = 127
};

struct learn_options {
    bool full;              /* every tensor learns; else adapters on `targets` */
    enum dtype weight_type; /* full only: F32 or BF16 */
    unsigned targets;       /* enum decoder_target, or-ed */
    int rank;
    float scale;   /* alpha / rank, or alpha / sqrt(rank) */
    float dropout; /* of the adapters' input */
    enum gemm_precision precision;
    bool recompute;
    uint64_t seed; /* of initial values */
};

/* One thing that learns. */
struct learn_parameter {
    struct graph_parameter parameter; /* name: GGUF name; adapters end in ".lora_a" or ".lora_b" */
    bool decays;                      /* weight decay applies: matrices, not norms and biases */
    void *m, *v;                      /* the optimiser's moments, of the parameter's dtype */
};

struct learner;
/* From a model; it stays open until learner_close. */
int learner_open(const struct model *model, const struct learn_options *options, struct learner **out,
                 struct shu_error *err);
/* A new network with random values (normal, deviation 0.02, residual products divided by sqrt(2 layers)); full only. */
int learner_new(const struct decoder_config *config, const struct learn_options *options, struct learner **out,
                struct shu_error *err);
void learner_close(struct learner *learner); /* NULL is a no-op */
const struct decoder_config *learner_config(const struct learner *learner);
/* Everything that learns, in a fixed order. *count of them; owned by the learner. Gradients and moments lie in
 * blocks of the learner; checkpoints save data, m and v of all of them. */
struct learn_parameter *learner_parameters(struct learner *learner, int *count);
/* Clears every gradient; `pool` shares the work. */
void learner_clear_gradients(struct learner *learner, struct pool *pool);

/* The adapters as files hold them: fills out [7 * layers] and returns how many; values are the learner's own. */
int learner_pairs(const struct learner *learner, struct adapter_pair *out);
/* Full training: a GGUF of all tensors in the type they learn in, vectors F32. Metadata (tokenizer, template) comes
 * from `meta`: the base, or a vocabulary file, to which the network's sizes are added. `name` becomes general.name. */
int learner_save(const struct learner *learner, const struct model *meta, const char *name, const char *path,
                 struct shu_error *err);

struct learner_nodes {
    node_id tokens, positions, begin; /* I32 [rows] */
    node_id gather, targets;          /* I32 [gathered]: rows with a loss, their next tokens */
    node_id weights;                  /* F32 [gathered] */
    node_id loss;                     /* last node of the loss */
};
/* Appends forward pass and loss to an empty graph. `adapted` false leaves the adapters out (the reference of DPO).
 * nll [max_gathered] receives the rows' losses; the graph is planned for at most max_gathered rows with a loss,
 * part_rows of them at a time. learn false: no gradient of the logits (evaluation). */
int learner_graph(struct learner *learner, struct graph *graph, bool adapted, bool learn, int64_t part_rows,
                  int64_t max_gathered, float *nll, struct learner_nodes *out, struct shu_error *err);

#endif
