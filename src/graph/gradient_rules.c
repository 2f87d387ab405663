/* The gradient column of the operation table: which nodes compute the gradients of a node's inputs. */
#include "graph/op.h"

/* A copy: emitting nodes moves the node list. */
static struct graph_node node_of(const struct graph *graph, node_id id) {
    return *node_at(graph, id);
}

static node_id emit(struct graph *graph, enum graph_op_kind kind, struct graph_params params, const node_id *inputs,
                    int count) {
    return node_add(graph, &(struct graph_node){.kind = kind, .params = params}, inputs, count);
}

/* Adds emit(dy, forward value of `value`) to the gradient of `to`. */
static void add_pointwise(struct graph *graph, enum graph_op_kind kind, struct graph_params params, node_id dy,
                          node_id value, node_id to) {
    if (!gradient_wanted(graph, to)) return;
    gradient_add(graph, to, emit(graph, kind, params, (node_id[]){dy, gradient_value(graph, value)}, 2));
}

/* ------------------------------------------------------------ element by element */

void gradient_of_add(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    for (int i = 0; i < 2; i++)
        if (gradient_wanted(graph, node.input[i])) gradient_add(graph, node.input[i], dy);
}

void gradient_of_mul(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    for (int i = 0; i < 2; i++) add_pointwise(graph, OP_MUL, node.params, dy, node.input[1 - i], node.input[i]);
}

void gradient_of_scale(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    gradient_add(graph, node.input[0], graph_scale(graph, dy, node.params.scale));
}

void gradient_of_softcap(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    add_pointwise(graph, OP_SOFTCAP_BACK, node.params, dy, node.input[0], node.input[0]);
}

void gradient_of_unary(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    add_pointwise(graph, OP_UNARY_BACK, node.params, dy, node.input[0], node.input[0]);
}

void gradient_of_softmax(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    add_pointwise(graph, OP_SOFTMAX_BACK, node.params, dy, id, node.input[0]);
}

void gradient_of_gated(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    node_id gate = gradient_value(graph, node.input[0]), values[3] = {dy, gate, gradient_value(graph, node.input[1])};
    node_id both = emit(graph, OP_GATED_BACK, node.params, values, 3);
    for (int i = 0; i < 2; i++)
        if (gradient_wanted(graph, node.input[i]))
            gradient_add(graph, node.input[i], graph_columns(graph, both, i * node.shape[0], node.shape[0]));
}

/* The mask follows from seed, salt and place, so the same operation gives it again. */
void gradient_of_dropout(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    gradient_add(graph, node.input[0], emit(graph, OP_DROPOUT, node.params, &dy, 1));
}

/* ------------------------------------------------------------------------- norms */

/* Gain and bias of a norm: column sums of dy * (x normed) and of dy. */
static void norm_vectors(struct graph *graph, const struct graph_node *node, node_id dy) {
    if (node->inputs > 1 && gradient_wanted(graph, node->input[1])) {
        node_id x = gradient_value(graph, node->input[0]);
        node_id normed = emit(graph, node->kind, node->params, &x, 1), product = graph_mul(graph, normed, dy);
        gradient_receive(graph, &(struct graph_node){.kind = OP_VECTOR_GRADIENT}, &product, 1, node->input[1]);
    }
    if (node->inputs > 2 && gradient_wanted(graph, node->input[2]))
        gradient_receive(graph, &(struct graph_node){.kind = OP_VECTOR_GRADIENT}, &dy, 1, node->input[2]);
}

static void gradient_of_norm(struct graph *graph, node_id id, node_id dy, enum graph_op_kind back) {
    const struct graph_node node = node_of(graph, id);
    norm_vectors(graph, &node, dy);
    if (!gradient_wanted(graph, node.input[0])) return;
    node_id values[3] = {dy, gradient_value(graph, node.input[0]), node.inputs > 1 ? node.input[1] : -1};
    gradient_add(graph, node.input[0], emit(graph, back, node.params, values, node.inputs > 1 ? 3 : 2));
}

void gradient_of_rms_norm(struct graph *graph, node_id id, node_id dy) {
    gradient_of_norm(graph, id, dy, OP_RMS_NORM_BACK);
}

void gradient_of_layer_norm(struct graph *graph, node_id id, node_id dy) {
    gradient_of_norm(graph, id, dy, OP_LAYER_NORM_BACK);
}

/* ------------------------------------------------------------------ rows and columns */

void gradient_of_embed(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    gradient_receive(graph, &(struct graph_node){.kind = OP_EMBED_GRADIENT}, (node_id[]){dy, node.input[0]}, 2,
                     node.input[1]);
}

void gradient_of_gather(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id), x = node_of(graph, node.input[0]);
    node_id before = gradient_so_far(graph, node.input[0]);
    struct graph_node back = {.kind = OP_GATHER_BACK, .shape = {0, x.shape[1], x.shape[2], x.shape[3]}};
    gradient_set(graph, node.input[0],
                 node_add(graph, &back, (node_id[]){dy, node.input[1], before}, before < 0 ? 2 : 3));
}

/* The value of an operation with notes: no gradient reaches these. */
void gradient_of_columns(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id), x = node_of(graph, node.input[0]);
    if (op_table[x.kind].notes) {
        gradient_add(graph, node.input[0], dy);
        return;
    }
    node_id before = gradient_so_far(graph, node.input[0]);
    struct graph_node back = {.kind = OP_COLUMNS_BACK, .shape = {x.shape[0]}, .params = node.params};
    gradient_set(graph, node.input[0], node_add(graph, &back, (node_id[]){dy, before}, before < 0 ? 1 : 2));
}

/* --------------------------------------------------------------- products, attention */

void gradient_of_linear(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    node_id x = node.input[0], weight = node.input[1];
    if (node.inputs == 3 && gradient_wanted(graph, node.input[2])) {
        if (node_at(graph, node.input[2])->kind == OP_PARAMETER)
            gradient_receive(graph, &(struct graph_node){.kind = OP_VECTOR_GRADIENT}, &dy, 1, node.input[2]);
        else
            gradient_add(graph, node.input[2], dy);
    }
    if (gradient_wanted(graph, weight))
        gradient_receive(graph, &(struct graph_node){.kind = OP_WEIGHT_GRADIENT, .params = node.params},
                         (node_id[]){dy, gradient_value(graph, x)}, 2, weight);
    if (!gradient_wanted(graph, x)) return;
    node_id before = gradient_so_far(graph, x);
    gradient_set(graph, x,
                 emit(graph, OP_LINEAR_BACK, node.params, (node_id[]){dy, weight, before}, before < 0 ? 2 : 3));
}

/* Turning back: the same angles, their sines negated. One such table serves all rotations of a table. */
static node_id inverse_of(struct graph *graph, node_id table) {
    if (node_at(graph, table)->inverse < 0) {
        struct graph_node inverse = node_of(graph, table);
        inverse.params.inverse = !inverse.params.inverse;
        node_id id = node_add(graph, &inverse, &inverse.input[0], inverse.inputs);
        if (id < 0) return -1;
        graph->nodes[table].inverse = id;
    }
    return node_at(graph, table)->inverse;
}

void gradient_of_rope(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    node_id table = inverse_of(graph, gradient_value(graph, node.input[1]));
    gradient_add(graph, node.input[0], emit(graph, OP_ROPE, node.params, (node_id[]){dy, table}, 2));
}

void gradient_of_sdpa(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = node_of(graph, id);
    node_id values[6] = {[0] = dy, [5] = node.input[3]};
    for (int i = 0; i < 3; i++) values[1 + i] = gradient_value(graph, node.input[i]);
    values[4] = gradient_value(graph, id);
    if (gradient_wanted(graph, node.input[0]))
        gradient_add(graph, node.input[0], emit(graph, OP_SDPA_BACK_Q, node.params, values, 6));
    if (!gradient_wanted(graph, node.input[1]) && !gradient_wanted(graph, node.input[2])) return;
    node_id both = emit(graph, OP_SDPA_BACK_KV, node.params, values, 6);
    int64_t cols = (int64_t)node.params.kv_heads * node.params.head_dim;
    for (int i = 0; i < 2; i++)
        if (gradient_wanted(graph, node.input[1 + i]))
            gradient_add(graph, node.input[1 + i], graph_columns(graph, both, i * cols, cols));
}
