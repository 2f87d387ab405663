/* Building: one function per operation, each adding one node. */
#include "graph/op.h"

#include <string.h>

/* More nodes than any network here needs; keeps ids and sums far from overflow. */
#define GRAPH_MAX_NODES (1 << 20)

int graph_new(const struct kernels *kernels, struct graph **out, struct shu_error *err) {
    struct graph *graph = mem_calloc(1, sizeof *graph);
    if (graph == NULL) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a graph");
    graph->kernels = kernels;
    graph->begin = -1;
    *out = graph;
    return SHU_OK;
}

void graph_free(struct graph *graph) {
    if (graph == NULL) return;
    if (graph->memory) mem_free_large(graph->memory, graph->plan.total_bytes);
    plan_free(&graph->plan);
    mem_free(graph->blocks);
    mem_free(graph->units);
    mem_free(graph->profile_ns);
    mem_free(graph->segments);
    mem_free(graph->gradients);
    mem_free(graph->again);
    mem_free(graph->nodes);
    mem_free(graph);
}

const struct kernels *graph_kernels(const struct graph *graph) {
    return graph->kernels;
}

void graph_label(struct graph *graph, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(graph->label, sizeof graph->label, format, args);
    va_end(args);
}

/* A builder failed: later nodes are refused, the first reason is kept. */
node_id node_refuse(struct graph *graph, int status) {
    if (graph->status == SHU_OK) graph->status = status;
    return -1;
}

static int nodes_reserve(struct graph *graph) {
    if (graph->memory)
        return SHU_FAIL(&graph->error, SHU_E_USAGE, "a planned graph takes no more nodes; build a new one");
    if (graph->forward_count > 0 && !graph->emitting)
        return SHU_FAIL(&graph->error, SHU_E_USAGE, "the backward pass is complete; add nodes before graph_backward");
    if (graph->count >= GRAPH_MAX_NODES)
        return SHU_FAIL(&graph->error, SHU_E_RANGE, "a graph holds at most %d nodes", GRAPH_MAX_NODES);
    if (graph->count < graph->capacity) return SHU_OK;
    int capacity = graph->capacity ? graph->capacity * 2 : 64;
    struct graph_node *nodes = mem_realloc(graph->nodes, (size_t)capacity * sizeof *nodes);
    if (nodes == NULL) return SHU_FAIL(&graph->error, SHU_E_NOMEM, "no memory for %d graph nodes", capacity);
    graph->nodes = nodes;
    graph->capacity = capacity;
    return SHU_OK;
}

static int check_inputs(struct graph *graph, const struct graph_node *node) {
    const struct graph_op *op = &op_table[node->kind];
    if (node->inputs < op->min_inputs || node->inputs > op->max_inputs)
        return SHU_FAIL(&graph->error, SHU_E_USAGE, NODE_TEXT ": takes %d to %d inputs, found %d",
                        NODE_ARGS(graph, node), op->min_inputs, op->max_inputs, node->inputs);
    for (int i = 0; i < node->inputs; i++)
        if (node->input[i] < 0 || node->input[i] >= graph->count)
            return SHU_FAIL(&graph->error, SHU_E_USAGE, NODE_TEXT ": input %d is no earlier node",
                            NODE_ARGS(graph, node), i);
    return SHU_OK;
}

node_id node_add(struct graph *graph, const struct graph_node *template, const node_id *inputs, int count) {
    if (graph->status) return -1;
    int status = nodes_reserve(graph);
    if (status) return node_refuse(graph, status);
    struct graph_node *node = &graph->nodes[graph->count];
    *node = *template;
    memcpy(node->label, graph->label, sizeof node->label);
    node->output = false;
    node->quantized = node->inverse = node->received = node->seeds = node->next = -1;
    node->emitted = graph->emitting;
    node->inputs = count;
    for (int i = 0; i < count; i++) node->input[i] = inputs[i];
    status = check_inputs(graph, node);
    node->learns = node->params.parameter && node->params.parameter->gradient;
    for (int i = 0; i < count && status == SHU_OK; i++) node->learns |= node_at(graph, inputs[i])->learns;
    if (status == SHU_OK && op_table[node->kind].shape) status = op_table[node->kind].shape(graph, node, &graph->error);
    if (status) return node_refuse(graph, status);
    return graph->count++;
}

static node_id node_add_1(struct graph *graph, enum graph_op_kind kind, node_id x, struct graph_params params) {
    struct graph_node node = {.kind = kind, .params = params};
    return node_add(graph, &node, &x, 1);
}

static node_id node_add_2(struct graph *graph, enum graph_op_kind kind, node_id a, node_id b,
                          struct graph_params params) {
    struct graph_node node = {.kind = kind, .params = params};
    return node_add(graph, &node, (node_id[]){a, b}, 2);
}

/* -------------------------------------------------------------------- leaves */

static bool valid_dim(int64_t dim) {
    return dim > 0 || dim == GRAPH_ROWS || dim == GRAPH_GATHERED;
}

node_id graph_input(struct graph *graph, enum dtype dtype, int64_t rows, int64_t cols, const char *name) {
    if (graph->status) return -1;
    if (cols < 1 || !valid_dim(rows) || (dtype != DT_F32 && dtype != DT_I32))
        return node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_USAGE,
                                           "input %s: must be F32 or I32 with positive sizes, found %s [%lld, %lld]",
                                           name, dtype_table[dtype].name, (long long)rows, (long long)cols));
    struct graph_node node = {.kind = OP_INPUT, .dtype = dtype, .shape = {cols, rows, 1, 1}};
    node_id id = node_add(graph, &node, NULL, 0);
    if (id >= 0) snprintf(graph->nodes[id].label, sizeof node.label, "%s", name);
    return id;
}

node_id graph_const(struct graph *graph, const float *data, int64_t cols, const char *name) {
    if (graph->status) return -1;
    if (data == NULL || cols < 1)
        return node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_USAGE, "constant %s: has no values", name));
    struct graph_node node = {
        .kind = OP_CONST, .dtype = DT_F32, .shape = {cols, 1, 1, 1}, .params = {.constant = data}};
    node_id id = node_add(graph, &node, NULL, 0);
    if (id >= 0) snprintf(graph->nodes[id].label, sizeof node.label, "%s", name);
    return id;
}

/* ---------------------------------------------------------------- operations */

node_id graph_embed(struct graph *graph, node_id ids, const struct packed *table) {
    return node_add_1(graph, OP_EMBED, ids, (struct graph_params){.weight = table});
}

node_id graph_embed_plain(struct graph *graph, node_id ids, const struct tensor *table) {
    return node_add_1(graph, OP_EMBED, ids, (struct graph_params){.table = table});
}

node_id graph_gather(struct graph *graph, node_id x, node_id indices) {
    return node_add_2(graph, OP_GATHER, x, indices, (struct graph_params){0});
}

/* Products with quantised weights that read the same node share its quantised form. */
static node_id quantized_of(struct graph *graph, node_id x) {
    if (graph->status || x < 0 || x >= graph->count) return x;
    if (graph->nodes[x].quantized < 0) {
        node_id id = node_add_1(graph, OP_QUANTIZE, x, (struct graph_params){0});
        if (id < 0) return -1;
        graph->nodes[x].quantized = id;
    }
    return graph->nodes[x].quantized;
}

node_id graph_matmul(struct graph *graph, node_id x, const struct packed *weight, node_id bias) {
    bool plain = weight && (weight->dtype == DT_F32 || weight->dtype == DT_F16 || weight->dtype == DT_BF16);
    if (weight && !plain) x = quantized_of(graph, x);
    struct graph_node node = {.kind = OP_MATMUL, .params = {.weight = weight}};
    return node_add(graph, &node, (node_id[]){x, bias}, bias == -1 ? 1 : 2);
}

node_id graph_rms_norm(struct graph *graph, node_id x, node_id gain, float eps, int64_t group) {
    struct graph_node node = {.kind = OP_RMS_NORM, .params = {.eps = eps, .group = group}};
    return node_add(graph, &node, (node_id[]){x, gain}, gain == -1 ? 1 : 2);
}

node_id graph_layer_norm(struct graph *graph, node_id x, node_id gain, node_id bias, float eps) {
    struct graph_node node = {.kind = OP_LAYER_NORM, .params = {.eps = eps}};
    int count = gain == -1 ? 1 : bias == -1 ? 2 : 3;
    return node_add(graph, &node, (node_id[]){x, gain, bias}, count);
}

node_id graph_softmax(struct graph *graph, node_id x, float scale) {
    return node_add_1(graph, OP_SOFTMAX, x, (struct graph_params){.scale = scale});
}

node_id graph_add(struct graph *graph, node_id a, node_id b) {
    return node_add_2(graph, OP_ADD, a, b, (struct graph_params){0});
}

node_id graph_mul(struct graph *graph, node_id a, node_id b) {
    return node_add_2(graph, OP_MUL, a, b, (struct graph_params){0});
}

node_id graph_scale(struct graph *graph, node_id x, float factor) {
    return node_add_1(graph, OP_SCALE, x, (struct graph_params){.scale = factor});
}

node_id graph_softcap(struct graph *graph, node_id x, float cap) {
    return node_add_1(graph, OP_SOFTCAP, x, (struct graph_params){.softcap = cap});
}

node_id graph_unary(struct graph *graph, node_id x, enum unary_kind kind) {
    return node_add_1(graph, OP_UNARY, x, (struct graph_params){.unary = kind});
}

node_id graph_gated(struct graph *graph, node_id gate, node_id up, enum unary_kind kind) {
    return node_add_2(graph, OP_GATED, gate, up, (struct graph_params){.unary = kind});
}

node_id graph_rope_table(struct graph *graph, int rot, double freq_base, double freq_scale, const float *factors) {
    struct graph_node node = {
        .kind = OP_ROPE_TABLE,
        .params = {.rot = rot, .freq_base = freq_base, .freq_scale = freq_scale, .factors = factors}};
    return node_add(graph, &node, NULL, 0);
}

node_id graph_rope(struct graph *graph, node_id x, node_id table, int heads, int head_dim, int rot, bool neox) {
    return node_add_2(graph, OP_ROPE, x, table,
                      (struct graph_params){.heads = heads, .head_dim = head_dim, .rot = rot, .neox = neox});
}

node_id graph_kv_store(struct graph *graph, node_id k, node_id v, int layer) {
    return node_add_2(graph, OP_KV_STORE, k, v, (struct graph_params){.layer = layer});
}

node_id graph_attention(struct graph *graph, node_id q, node_id stored, const struct graph_params *params) {
    return node_add_2(graph, OP_ATTENTION, q, stored, *params);
}

void graph_output(struct graph *graph, node_id node) {
    if (node < 0 || node >= graph->count) {
        if (graph->status == SHU_OK)
            node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_USAGE, "graph output %d is no node", (int)node));
        return;
    }
    graph->nodes[node].output = true;
}
