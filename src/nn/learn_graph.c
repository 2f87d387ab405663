/* The forward pass and the loss of a decoder that learns. Beside forward.c: products read plain rows or values that
 * change, attention looks at packed sequences instead of a cache, and adapters stand beside the products. */
#include "nn/learner.h"

struct learn_writer {
    const struct learner *learner;
    struct graph *graph;
    const struct learner_nodes *nodes;
    node_id table, table_local; /* rotation of full and of sliding layers */
    bool adapted, learn;
};

static node_id vector(const struct learn_writer *writer, struct graph_parameter *parameter) {
    return parameter ? graph_parameter(writer->graph, parameter) : -1;
}

/* y = W x (+ bias) (+ scale * B A dropout(x)). */
static node_id product(const struct learn_writer *writer, int l, int target, enum layer_slot bias, node_id x) {
    const struct learn_layer *layer = &writer->learner->layers[l];
    const struct learn_options *options = &writer->learner->options;
    struct graph *graph = writer->graph;
    node_id weight = graph_parameter(graph, layer->tensor[target_slots[target]]);
    node_id y = graph_linear(graph, x, weight, vector(writer, layer->tensor[bias]), -1, 1);
    if (!writer->adapted || layer->a[target] == NULL) return y;
    float dropout = writer->learn ? options->dropout : 0; /* an evaluation sees the whole adapter */
    node_id dropped = graph_dropout(graph, x, dropout, (uint64_t)(l * LEARN_TARGETS + target));
    node_id low = graph_linear(graph, dropped, graph_parameter(graph, layer->a[target]), -1, -1, 1);
    return graph_linear(graph, low, graph_parameter(graph, layer->b[target]), -1, y, options->scale);
}

static node_id norm(const struct learn_writer *writer, node_id x, struct graph_parameter *gain, int64_t group) {
    if (gain == NULL) return x;
    return graph_rms_norm(writer->graph, x, graph_parameter(writer->graph, gain), writer->learner->config.norm_eps,
                          group);
}

static node_id attention(const struct learn_writer *writer, int l, node_id x) {
    const struct decoder_config *config = &writer->learner->config;
    const struct learn_layer *layer = &writer->learner->layers[l];
    struct graph *graph = writer->graph;
    bool slides = decoder_layer_slides(config, l);
    node_id table = slides ? writer->table_local : writer->table;
    node_id q = product(writer, l, 0, SLOT_Q_BIAS, x);
    node_id k = product(writer, l, 1, SLOT_K_BIAS, x);
    node_id v = product(writer, l, 2, SLOT_V_BIAS, x);
    q = norm(writer, q, layer->tensor[SLOT_Q_NORM], config->head_dim);
    k = norm(writer, k, layer->tensor[SLOT_K_NORM], config->head_dim);
    q = graph_rope(graph, q, table, config->heads, config->head_dim, config->rot, config->rope_neox);
    k = graph_rope(graph, k, table, config->kv_heads, config->head_dim, config->rot, config->rope_neox);
    struct graph_params params = {.heads = config->heads,
                                  .kv_heads = config->kv_heads,
                                  .head_dim = config->head_dim,
                                  .scale = config->attention_scale,
                                  .softcap = config->attention_softcap,
                                  .window = slides ? config->window : 0,
                                  .causal = true};
    return graph_sdpa(graph, q, k, v, writer->nodes->begin, &params);
}

static node_id feed_forward(const struct learn_writer *writer, int l, node_id x) {
    node_id gate = product(writer, l, 4, SLOT_GATE_BIAS, x);
    node_id up = product(writer, l, 5, SLOT_UP_BIAS, x);
    node_id gated = graph_gated(writer->graph, gate, up, writer->learner->config.activation);
    return product(writer, l, 6, SLOT_DOWN_BIAS, gated);
}

static node_id write_layer(const struct learn_writer *writer, int l, node_id x) {
    const struct learn_layer *layer = &writer->learner->layers[l];
    struct graph *graph = writer->graph;
    graph_label(graph, "blk.%d", l);
    if (writer->learner->options.recompute) graph_recompute_begin(graph);
    node_id mixed = attention(writer, l, norm(writer, x, layer->tensor[SLOT_ATTENTION_NORM], 0));
    if (l == writer->learner->config.layers - 1) { /* from here on rows only look at themselves */
        mixed = graph_gather(graph, mixed, writer->nodes->gather);
        x = graph_gather(graph, x, writer->nodes->gather);
    }
    node_id out = product(writer, l, 3, SLOT_O_BIAS, mixed);
    x = graph_add(graph, x, norm(writer, out, layer->tensor[SLOT_POST_ATTENTION_NORM], 0));
    out = feed_forward(writer, l, norm(writer, x, layer->tensor[SLOT_FFN_NORM], 0));
    x = graph_add(graph, x, norm(writer, out, layer->tensor[SLOT_POST_FFN_NORM], 0));
    if (writer->learner->options.recompute) graph_recompute_end(graph);
    return x;
}

static void write_tables(struct learn_writer *writer) {
    const struct decoder_config *config = &writer->learner->config;
    const struct graph_parameter *divisors = writer->learner->tensor[SLOT_ROPE_FACTORS];
    const float *factors = divisors ? divisors->data : NULL;
    writer->table = graph_rope_table_at(writer->graph, writer->nodes->positions, config->rot, config->rope_base,
                                        config->rope_scale, factors);
    writer->table_local = writer->table;
    if (config->window > 0 &&
        (config->rope_base_local != config->rope_base || config->rope_scale_local != config->rope_scale))
        writer->table_local = graph_rope_table_at(writer->graph, writer->nodes->positions, config->rot,
                                                  config->rope_base_local, config->rope_scale_local, factors);
}

static void write_inputs(struct graph *graph, struct learner_nodes *out) {
    out->tokens = graph_input(graph, DT_I32, GRAPH_ROWS, 1, "tokens");
    out->positions = graph_input(graph, DT_I32, GRAPH_ROWS, 1, "positions");
    out->begin = graph_input(graph, DT_I32, GRAPH_ROWS, 1, "begin");
    out->gather = graph_input(graph, DT_I32, GRAPH_GATHERED, 1, "gather");
    out->targets = graph_input(graph, DT_I32, GRAPH_GATHERED, 1, "targets");
    out->weights = graph_input(graph, DT_F32, GRAPH_GATHERED, 1, "weights");
}

int learner_graph(struct learner *learner, struct graph *graph, bool adapted, bool learn, int64_t part_rows,
                  int64_t max_gathered, float *nll, struct learner_nodes *out, struct shu_error *err) {
    const struct decoder_config *config = &learner->config;
    struct learn_writer writer = {.learner = learner, .graph = graph, .nodes = out, .adapted = adapted, .learn = learn};
    if (part_rows < 1 || max_gathered < 1)
        return SHU_FAIL(err, SHU_E_USAGE, "a loss needs rows, found %lld of at most %lld", (long long)part_rows,
                        (long long)max_gathered);
    graph_precision(graph, learner->options.precision);
    write_inputs(graph, out);
    node_id table = graph_parameter(graph, learner->embedding);
    node_id x = graph_embed_parameter(graph, out->tokens, table);
    if (config->embed_scale != 1) x = graph_scale(graph, x, config->embed_scale);
    write_tables(&writer);
    for (int l = 0; l < config->layers; l++) x = write_layer(&writer, l, x);
    graph_label(graph, "output");
    x = norm(&writer, x, learner->tensor[SLOT_OUTPUT_NORM], 0);
    node_id head = learner->tensor[SLOT_OUTPUT] ? graph_parameter(graph, learner->tensor[SLOT_OUTPUT]) : table;
    out->loss = graph_cross_entropy(graph, x, head, out->targets, out->weights, config->logit_softcap, part_rows,
                                    max_gathered, learn, nll);
    return SHU_OK;
}
