/* The backward pass: a walk from the losses towards the parameters that emits nodes. */
#include "graph/op.h"

#include <string.h>

/* ------------------------------------------------------------------ recomputing */

/* Adds a forward node a second time, reading `inputs`. */
static node_id add_again(struct graph *graph, node_id id, const node_id inputs[GRAPH_MAX_INPUTS], bool barrier) {
    struct graph_node copy = *node_at(graph, id);
    copy.barrier = barrier;
    node_id again = node_add(graph, &copy, inputs, copy.inputs);
    if (again >= 0) graph->again[id] = again;
    return again;
}

/* Adds the nodes of a segment a second time, in their order; the first starts a wave, as otherwise they would run
 * before the gradients of later segments have left memory. What nobody reads again, the plan leaves out. */
static void emit_segment(struct graph *graph, const struct graph_segment *segment) {
    bool barrier = true;
    for (node_id id = segment->first; id < segment->last; id++) {
        const struct graph_node *node = node_at(graph, id);
        const struct graph_op *op = &op_table[node->kind];
        if (op->leaf || op->acts) continue;
        node_id inputs[GRAPH_MAX_INPUTS];
        for (int i = 0; i < node->inputs; i++) {
            inputs[i] = node->input[i];
            if (graph->again[inputs[i]] >= 0) inputs[i] = graph->again[inputs[i]];
        }
        memcpy(graph->label, node->label, sizeof graph->label);
        if (add_again(graph, id, inputs, barrier && !op->view) < 0) return;
        barrier = barrier && op->view;
    }
}

/* Activations and norms are quickly made once more from what their own gradients read anyway, so that only that is
 * kept: of a feed-forward layer gate and up, but not their product. */
node_id gradient_value(struct graph *graph, node_id id) {
    if (graph->again[id] >= 0) return graph->again[id];
    const struct graph_node node = *node_at(graph, id);
    if (!op_table[node.kind].again || !node_at(graph, node.input[0])->learns) return id;
    node_id inputs[GRAPH_MAX_INPUTS];
    for (int i = 0; i < node.inputs; i++) inputs[i] = gradient_value(graph, node.input[i]);
    return add_again(graph, id, inputs, false);
}

/* ------------------------------------------------------------- used by the rules */

bool gradient_wanted(const struct graph *graph, node_id node) {
    return node_at(graph, node)->learns;
}

node_id gradient_so_far(const struct graph *graph, node_id node) {
    return graph->gradients[node];
}

void gradient_set(struct graph *graph, node_id node, node_id gradient) {
    graph->gradients[node] = gradient;
}

void gradient_add(struct graph *graph, node_id node, node_id gradient) {
    node_id before = graph->gradients[node];
    graph->gradients[node] = before < 0 ? gradient : graph_add(graph, before, gradient);
}

node_id gradient_receive(struct graph *graph, struct graph_node *template, const node_id *inputs, int count,
                         node_id parameter) {
    node_id all[GRAPH_MAX_INPUTS];
    memcpy(all, inputs, (size_t)count * sizeof *inputs);
    all[count++] = parameter;
    node_id before = node_at(graph, parameter)->received;
    if (before >= 0) all[count++] = before;
    node_id id = node_add(graph, template, all, count);
    if (id >= 0) graph->nodes[parameter].received = id;
    return id;
}

/* --------------------------------------------------------------------- the walk */

static void seed_gradient(struct graph *graph, node_id id) {
    node_id of = node_at(graph, id)->seeds;
    if (of >= 0 && gradient_wanted(graph, of)) gradient_add(graph, of, id);
}

/* Failures are kept by the graph, like those of builders. */
static void emit_gradient(struct graph *graph, node_id id) {
    const struct graph_node *node = node_at(graph, id);
    graph_gradient_fn *rule = op_table[node->kind].gradient;
    bool reached = false;
    for (int i = 0; i < node->inputs; i++) reached = reached || node_at(graph, node->input[i])->learns;
    if (graph->gradients[id] < 0 || !reached || graph->status) return;
    if (rule == NULL) {
        node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_UNSUPPORTED,
                                    NODE_TEXT ": this operation has no gradient, yet parameters lie behind it",
                                    NODE_ARGS(graph, node)));
        return;
    }
    memcpy(graph->label, node->label, sizeof graph->label);
    rule(graph, id, graph->gradients[id]);
}

static void walk(struct graph *graph) {
    int segment = graph->segment_count - 1;
    bool emitted = false;
    for (node_id id = graph->forward_count - 1; id >= 0 && graph->status == SHU_OK; id--) {
        while (segment >= 0 && id < graph->segments[segment].first) {
            segment--;
            emitted = false;
        }
        bool inside = segment >= 0 && id < graph->segments[segment].last;
        seed_gradient(graph, id);
        if (inside && !emitted && graph->gradients[id] >= 0) {
            emit_segment(graph, &graph->segments[segment]);
            emitted = true;
        }
        emit_gradient(graph, id);
    }
}

static int backward_begin(struct graph *graph) {
    struct shu_error *err = &graph->error;
    if (graph->losses == 0) return SHU_FAIL(err, SHU_E_USAGE, "the graph has no loss to learn from");
    if (graph->segment_count > 0 && graph->segments[graph->segment_count - 1].last < 0)
        return SHU_FAIL(err, SHU_E_USAGE, "a segment to recompute is still open; call graph_recompute_end");
    graph->forward_count = graph->count;
    graph->gradients = mem_alloc((size_t)graph->count * sizeof *graph->gradients);
    graph->again = mem_alloc((size_t)graph->count * sizeof *graph->again);
    if (graph->gradients == NULL || graph->again == NULL)
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for %d gradients", graph->count);
    for (int id = 0; id < graph->count; id++) graph->gradients[id] = graph->again[id] = -1;
    return SHU_OK;
}

int graph_backward(struct graph *graph, struct shu_error *err) {
    if (graph->forward_count > 0) return SHU_FAIL(err, SHU_E_USAGE, "the backward pass was added already");
    if (graph->memory) return SHU_FAIL(err, SHU_E_USAGE, "the graph is planned already; add the backward pass before");
    if (graph->status == SHU_OK) {
        int status = backward_begin(graph);
        if (status) node_refuse(graph, status);
    }
    graph->emitting = true;
    walk(graph);
    graph->emitting = false;
    if (graph->status && err) *err = graph->error;
    return graph->status;
}

node_id graph_gradient_of(const struct graph *graph, node_id node) {
    return graph->gradients && node >= 0 && node < graph->forward_count ? graph->gradients[node] : -1;
}
