/* Building graphs that learn: parameters, their products, losses, segments. */
#include "graph/op.h"

/* Rows of a part and their number stay far from what GRAPH_PART can hold. */
#define PART_ROWS_MAX INT32_MAX
#define PARTS_MAX     (1 << 16)

/* A parameter has one node, so that all its gradients come one after the other. */
node_id graph_parameter(struct graph *graph, struct graph_parameter *parameter) {
    if (graph->status) return -1;
    for (node_id id = 0; id < graph->count; id++)
        if (graph->nodes[id].params.parameter == parameter) return id;
    struct graph_node node = {.kind = OP_PARAMETER, .params = {.parameter = parameter}};
    node_id id = node_add(graph, &node, NULL, 0);
    if (id >= 0) snprintf(graph->nodes[id].label, sizeof node.label, "%s", parameter->name);
    return id;
}

void graph_precision(struct graph *graph, enum gemm_precision precision) {
    graph->precision = precision;
}

node_id graph_linear(struct graph *graph, node_id x, node_id weight, node_id bias, node_id base, float alpha) {
    if (graph->status == SHU_OK && bias != -1 && base != -1)
        return node_refuse(graph,
                           SHU_FAIL(&graph->error, SHU_E_USAGE,
                                    "a product takes a bias or a base, found nodes %d and %d", (int)bias, (int)base));
    struct graph_node node = {.kind = OP_LINEAR, .params = {.scale = alpha, .precision = graph->precision}};
    node_id third = bias != -1 ? bias : base;
    return node_add(graph, &node, (node_id[]){x, weight, third}, third == -1 ? 2 : 3);
}

node_id graph_embed_parameter(struct graph *graph, node_id ids, node_id table) {
    return node_add(graph, &(struct graph_node){.kind = OP_EMBED}, (node_id[]){ids, table}, 2);
}

node_id graph_rope_table_at(struct graph *graph, node_id positions, int rot, double freq_base, double freq_scale,
                            const float *factors) {
    struct graph_node node = {
        .kind = OP_ROPE_TABLE,
        .params = {.rot = rot, .freq_base = freq_base, .freq_scale = freq_scale, .factors = factors}};
    return node_add(graph, &node, &positions, 1);
}

node_id graph_sdpa(struct graph *graph, node_id q, node_id k, node_id v, node_id begin,
                   const struct graph_params *params) {
    struct graph_node node = {.kind = OP_SDPA, .params = *params};
    node_id both = node_add(graph, &node, (node_id[]){q, k, v, begin}, 4);
    return graph_columns(graph, both, 0, (int64_t)params->heads * params->head_dim);
}

node_id graph_dropout(struct graph *graph, node_id x, float p, uint64_t salt) {
    if (p == 0) return x;
    struct graph_node node = {.kind = OP_DROPOUT, .params = {.rate = p, .salt = salt}};
    return node_add(graph, &node, &x, 1);
}

node_id graph_columns(struct graph *graph, node_id x, int64_t first, int64_t cols) {
    struct graph_node node = {.kind = OP_COLUMNS, .shape = {cols}, .params = {.first = first}};
    return node_add(graph, &node, &x, 1);
}

/* -------------------------------------------------------------------- losses */

static node_id part_of(struct graph *graph, node_id x, int64_t part, int64_t part_rows) {
    struct graph_node node = {.kind = OP_PART, .params = {.part = part, .part_rows = part_rows}};
    return node_add(graph, &node, &x, 1);
}

struct loss_parts {
    node_id hidden, weight, targets, weights;
    struct graph_params params; /* of the loss nodes; result: of row 0 */
};

/* One part: its logits, which become their own gradient, and what that gives. *hidden_gradient is the gradient of all
 * gathered rows so far. No part begins before the last one has left memory. */
static node_id loss_part(struct graph *graph, const struct loss_parts *loss, int64_t part, node_id *hidden_gradient) {
    int64_t part_rows = loss->params.part_rows;
    node_id rows = part_of(graph, loss->hidden, part, part_rows);
    node_id targets = part_of(graph, loss->targets, part, part_rows);
    node_id weights = part_of(graph, loss->weights, part, part_rows);
    node_id logits = graph_linear(graph, rows, loss->weight, -1, -1, 1);
    if (logits < 0) return -1;
    graph->nodes[logits].barrier = true;
    struct graph_node node = {.kind = OP_CROSS_ENTROPY, .params = loss->params};
    node.params.result += part * part_rows;
    node_id change = node_add(graph, &node, (node_id[]){logits, targets, weights}, 3);
    if (!loss->params.learn || change < 0) return change;
    if (node_at(graph, loss->weight)->learns)
        gradient_receive(
            graph,
            &(struct graph_node){.kind = OP_WEIGHT_GRADIENT, .params = {.scale = 1, .precision = graph->precision}},
            (node_id[]){change, rows}, 2, loss->weight);
    if (!node_at(graph, loss->hidden)->learns) return graph->count - 1;
    struct graph_node back = {
        .kind = OP_LINEAR_BACK,
        .shape = {0, GRAPH_GATHERED, 1, 1},
        .params = {.scale = 1, .precision = graph->precision, .part = part, .part_rows = part_rows}};
    *hidden_gradient = node_add(graph, &back, (node_id[]){change, loss->weight, *hidden_gradient}, part > 0 ? 3 : 2);
    return *hidden_gradient;
}

node_id graph_cross_entropy(struct graph *graph, node_id hidden, node_id weight, node_id targets, node_id weights,
                            float softcap, int64_t part_rows, int64_t max_gathered, bool learn, float *nll) {
    if (graph->status) return -1;
    if (nll == NULL || part_rows < 1 || part_rows > PART_ROWS_MAX || max_gathered < 1 || max_gathered > INT32_MAX ||
        div_up(max_gathered, part_rows) > PARTS_MAX)
        return node_refuse(
            graph, SHU_FAIL(&graph->error, SHU_E_USAGE,
                            "a loss needs a place for 1 or more rows in at most %d parts, found %lld rows in parts of "
                            "%lld%s",
                            PARTS_MAX, (long long)max_gathered, (long long)part_rows, nll ? "" : " and no place"));
    const struct loss_parts loss = {
        hidden, weight, targets, weights, {.softcap = softcap, .part_rows = part_rows, .result = nll, .learn = learn}};
    node_id last = -1, hidden_gradient = -1;
    for (int64_t part = 0; part < div_up(max_gathered, part_rows); part++) {
        last = loss_part(graph, &loss, part, &hidden_gradient);
        if (last < 0) return -1;
    }
    if (hidden_gradient >= 0) graph->nodes[hidden_gradient].seeds = hidden;
    if (graph->loss_rows == 0 || max_gathered < graph->loss_rows) graph->loss_rows = max_gathered;
    graph->losses += learn;
    return last;
}

node_id graph_squared_error(struct graph *graph, node_id x, node_id targets, node_id weights, float *loss) {
    struct graph_node node = {.kind = OP_SQUARED_ERROR, .params = {.result = loss, .learn = true}};
    node_id id = node_add(graph, &node, (node_id[]){x, targets, weights}, 3);
    if (id < 0) return -1;
    graph->nodes[id].seeds = x;
    graph->losses++;
    return id;
}

/* ------------------------------------------------------------------ segments */

void graph_recompute_begin(struct graph *graph) {
    if (graph->status) return;
    int count = graph->segment_count;
    if (count > 0 && graph->segments[count - 1].last < 0) {
        node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_USAGE, "a segment to recompute is open already at node %d",
                                    (int)graph->segments[count - 1].first));
        return;
    }
    if (count == graph->segment_capacity) {
        int capacity = count ? count * 2 : 16;
        struct graph_segment *segments = mem_realloc(graph->segments, (size_t)capacity * sizeof *segments);
        if (segments == NULL) {
            node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_NOMEM, "no memory for %d segments", capacity));
            return;
        }
        graph->segments = segments;
        graph->segment_capacity = capacity;
    }
    graph->segments[graph->segment_count++] = (struct graph_segment){.first = graph->count, .last = -1};
}

void graph_recompute_end(struct graph *graph) {
    if (graph->status) return;
    int count = graph->segment_count;
    if (count == 0 || graph->segments[count - 1].last >= 0) {
        node_refuse(graph,
                    SHU_FAIL(&graph->error, SHU_E_USAGE, "no segment to recompute is open at node %d", graph->count));
        return;
    }
    graph->segments[count - 1].last = graph->count;
}
