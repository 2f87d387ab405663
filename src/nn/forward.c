/* The forward pass of the decoder as nodes of a graph. */
#include "nn/decoder.h"

/* What all layers share while the graph is written. */
struct writer {
    const struct decoder *decoder;
    struct graph *graph;
    node_id gather;             /* row numbers that need logits */
    node_id table, table_local; /* rotation of full and of sliding layers */
};

/* A constant, or -1 if the model has none there. */
static node_id vector(struct graph *graph, const float *data, int64_t cols, const char *name) {
    return data ? graph_const(graph, data, cols, name) : -1;
}

/* low: adapters of this product, if there are any. */
static node_id product(struct graph *graph, node_id x, const struct packed *weight, const float *bias,
                       const struct low_rank *low) {
    node_id y = graph_matmul(graph, x, weight, vector(graph, bias, weight->rows, "bias"));
    if (low->a.rows == 0) return y;
    return graph_add(graph, y, graph_matmul(graph, graph_matmul(graph, x, &low->a, -1), &low->b, -1));
}

static node_id norm(struct graph *graph, const struct decoder_config *config, node_id x, const float *gain) {
    return graph_rms_norm(graph, x, graph_const(graph, gain, config->width, "gain"), config->norm_eps, 0);
}

static node_id head_norm(struct graph *graph, const struct decoder_config *config, node_id x, const float *gain) {
    if (!config->qk_norm) return x;
    return graph_rms_norm(graph, x, graph_const(graph, gain, config->head_dim, "gain"), config->norm_eps,
                          config->head_dim);
}

/* x: normed rows. Heads side by side: q, k and v are one wave, what follows them is another. */
static node_id attention(const struct writer *writer, int l, node_id x) {
    const struct decoder_config *config = &writer->decoder->config;
    const struct decoder_layer *layer = &writer->decoder->layers[l];
    struct graph *graph = writer->graph;
    bool slides = decoder_layer_slides(config, l);
    node_id table = slides ? writer->table_local : writer->table;
    node_id q = product(graph, x, &layer->q, layer->q_bias, &layer->low[PRODUCT_Q]);
    node_id k = product(graph, x, &layer->k, layer->k_bias, &layer->low[PRODUCT_K]);
    node_id v = product(graph, x, &layer->v, layer->v_bias, &layer->low[PRODUCT_V]);
    q = head_norm(graph, config, q, layer->q_norm);
    k = head_norm(graph, config, k, layer->k_norm);
    q = graph_rope(graph, q, table, config->heads, config->head_dim, config->rot, config->rope_neox);
    k = graph_rope(graph, k, table, config->kv_heads, config->head_dim, config->rot, config->rope_neox);
    struct graph_params params = {.heads = config->heads,
                                  .kv_heads = config->kv_heads,
                                  .head_dim = config->head_dim,
                                  .layer = l,
                                  .scale = config->attention_scale,
                                  .softcap = config->attention_softcap,
                                  .window = slides ? config->window : 0};
    return graph_attention(graph, q, graph_kv_store(graph, k, v, l), &params);
}

static node_id feed_forward(const struct writer *writer, const struct decoder_layer *layer, node_id x) {
    struct graph *graph = writer->graph;
    node_id gate = product(graph, x, &layer->gate, layer->gate_bias, &layer->low[PRODUCT_GATE]);
    node_id up = product(graph, x, &layer->up, layer->up_bias, &layer->low[PRODUCT_UP]);
    node_id gated = graph_gated(graph, gate, up, writer->decoder->config.activation);
    return product(graph, gated, &layer->down, layer->down_bias, &layer->low[PRODUCT_DOWN]);
}

static node_id write_layer(const struct writer *writer, int l, node_id x) {
    const struct decoder_config *config = &writer->decoder->config;
    const struct decoder_layer *layer = &writer->decoder->layers[l];
    struct graph *graph = writer->graph;
    graph_label(graph, "blk.%d", l);
    node_id mixed = attention(writer, l, norm(graph, config, x, layer->attention_norm));
    if (l == config->layers - 1) { /* from here on rows only look at themselves */
        mixed = graph_gather(graph, mixed, writer->gather);
        x = graph_gather(graph, x, writer->gather);
    }
    node_id out = product(graph, mixed, &layer->o, layer->o_bias, &layer->low[PRODUCT_O]);
    if (config->post_norms) out = norm(graph, config, out, layer->post_attention_norm);
    x = graph_add(graph, x, out);
    out = feed_forward(writer, layer, norm(graph, config, x, layer->ffn_norm));
    if (config->post_norms) out = norm(graph, config, out, layer->post_ffn_norm);
    return graph_add(graph, x, out);
}

static node_id embed(const struct writer *writer, node_id tokens) {
    const struct decoder *decoder = writer->decoder;
    node_id x = decoder->config.tied_output ? graph_embed(writer->graph, tokens, &decoder->output)
                                            : graph_embed_plain(writer->graph, tokens, &decoder->embedding);
    return decoder->config.embed_scale == 1 ? x : graph_scale(writer->graph, x, decoder->config.embed_scale);
}

static void write_tables(struct writer *writer) {
    const struct decoder_config *config = &writer->decoder->config;
    const float *factors = writer->decoder->rope_factors;
    writer->table = graph_rope_table(writer->graph, config->rot, config->rope_base, config->rope_scale, factors);
    writer->table_local = writer->table;
    if (config->window > 0 &&
        (config->rope_base_local != config->rope_base || config->rope_scale_local != config->rope_scale))
        writer->table_local =
            graph_rope_table(writer->graph, config->rot, config->rope_base_local, config->rope_scale_local, factors);
}

int decoder_graph(const struct decoder *decoder, struct graph *graph, struct decoder_nodes *out,
                  struct shu_error *err) {
    const struct decoder_config *config = &decoder->config;
    struct writer writer = {.decoder = decoder, .graph = graph};
    if (graph_kernels(graph)->lanes != decoder->lanes)
        return SHU_FAIL(err, SHU_E_USAGE, "weights were packed for %d lanes, the graph's %s kernels need %d",
                        decoder->lanes, graph_kernels(graph)->isa, graph_kernels(graph)->lanes);
    out->tokens = graph_input(graph, DT_I32, GRAPH_ROWS, 1, "tokens");
    out->gather = writer.gather = graph_input(graph, DT_I32, GRAPH_GATHERED, 1, "gather");
    node_id x = embed(&writer, out->tokens);
    write_tables(&writer);
    for (int l = 0; l < config->layers; l++) x = write_layer(&writer, l, x);
    graph_label(graph, "output");
    out->hidden = norm(graph, config, x, decoder->output_norm);
    out->logits = product(graph, out->hidden, &decoder->output, NULL, &decoder->output_low);
    if (config->logit_softcap > 0) out->logits = graph_softcap(graph, out->logits, config->logit_softcap);
    graph_output(graph, out->hidden);
    graph_output(graph, out->logits);
    return SHU_OK;
}
