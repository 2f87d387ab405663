/* Building convolution, pooling, batch norm and LSTM, and their gradient rules. */
#include "graph/op.h"

node_id graph_input_shaped(struct graph *graph, enum dtype dtype, const int64_t shape[4], const char *name) {
    node_id id = graph_input(graph, dtype, shape[1], shape[0], name);
    for (int i = 2; i < 4 && id >= 0; i++) {
        bool good = shape[i] > 0 || shape[i] == GRAPH_ROWS || shape[i] == GRAPH_GATHERED;
        if (!good)
            return node_refuse(
                graph, SHU_FAIL(&graph->error, SHU_E_USAGE, "input %s: has a size of %lld", name, (long long)shape[i]));
        graph->nodes[id].shape[i] = shape[i];
    }
    return id;
}

static node_id add_shaped(struct graph *graph, enum graph_op_kind kind, node_id x, const int64_t shape[4]) {
    struct graph_node node = {.kind = kind, .shape = {shape[0], shape[1], shape[2], shape[3]}};
    return node_add(graph, &node, &x, 1);
}

node_id graph_reshape(struct graph *graph, node_id x, const int64_t shape[4]) {
    return add_shaped(graph, OP_RESHAPE, x, shape);
}

node_id graph_to_rows(struct graph *graph, node_id x) {
    if (graph->status || x < 0 || x >= graph->count) return add_shaped(graph, OP_TRANSPOSE, x, (int64_t[4]){0});
    const int64_t *shape = node_at(graph, x)->shape;
    return add_shaped(graph, OP_TRANSPOSE, x, (int64_t[4]){shape[2], shape[0] * shape[1], 1, shape[3]});
}

node_id graph_from_rows(struct graph *graph, node_id x, int64_t width, int64_t height) {
    if (graph->status || x < 0 || x >= graph->count) return add_shaped(graph, OP_TRANSPOSE, x, (int64_t[4]){0});
    const int64_t *shape = node_at(graph, x)->shape;
    if (width < 1 || height < 1 || width > INT32_MAX || height > INT32_MAX)
        return node_refuse(graph, SHU_FAIL(&graph->error, SHU_E_USAGE, "an image of %lld x %lld has no values",
                                           (long long)width, (long long)height));
    return add_shaped(graph, OP_TRANSPOSE, x, (int64_t[4]){width, height, shape[0], shape[3]});
}

node_id graph_conv(struct graph *graph, node_id x, node_id weight, node_id bias, const struct graph_filter *filter) {
    struct graph_node node = {.kind = OP_CONV, .params = {.filter = *filter, .precision = graph->precision}};
    return node_add(graph, &node, (node_id[]){x, weight, bias}, bias == -1 ? 2 : 3);
}

node_id graph_max_pool(struct graph *graph, node_id x, const struct graph_filter *filter) {
    return node_add(graph, &(struct graph_node){.kind = OP_MAX_POOL, .params = {.filter = *filter}}, &x, 1);
}

node_id graph_average_pool(struct graph *graph, node_id x, const struct graph_filter *filter) {
    return node_add(graph, &(struct graph_node){.kind = OP_AVERAGE_POOL, .params = {.filter = *filter}}, &x, 1);
}

node_id graph_batch_norm(struct graph *graph, node_id x, node_id gain, node_id bias, float *running_mean,
                         float *running_variance, float eps, float momentum, bool training) {
    struct graph_params params = {
        .result = running_mean, .result2 = running_variance, .eps = eps, .rate = momentum, .learn = training};
    node_id stats = node_add(graph, &(struct graph_node){.kind = OP_BATCH_STATS, .params = params}, &x, 1);
    return node_add(graph, &(struct graph_node){.kind = OP_BATCH_NORM, .params = {.learn = training}},
                    (node_id[]){x, stats, gain, bias}, 4);
}

node_id graph_lstm(struct graph *graph, node_id gates, node_id weight, bool reverse) {
    struct graph_params params = {.inverse = reverse, .precision = graph->precision};
    node_id all =
        node_add(graph, &(struct graph_node){.kind = OP_LSTM, .params = params}, (node_id[]){gates, weight}, 2);
    return all < 0 ? -1 : graph_columns(graph, all, 0, node_at(graph, weight)->shape[0]);
}

/* ------------------------------------------------------------------ gradient rules */

/* Rows behind each other, as products over whole images read them. */
static node_id unstrided(struct graph *graph, node_id id) {
    return node_is_strided(graph, id) ? graph_scale(graph, id, 1) : id;
}

void gradient_of_reshape(struct graph *graph, node_id id, node_id dy) {
    node_id x = node_at(graph, id)->input[0];
    int64_t shape[4];
    for (int i = 0; i < 4; i++) shape[i] = node_at(graph, x)->shape[i];
    gradient_add(graph, x, graph_reshape(graph, unstrided(graph, dy), shape));
}

void gradient_of_transpose(struct graph *graph, node_id id, node_id dy) {
    node_id x = node_at(graph, id)->input[0];
    int64_t shape[4];
    for (int i = 0; i < 4; i++) shape[i] = node_at(graph, x)->shape[i];
    gradient_add(graph, x, add_shaped(graph, OP_TRANSPOSE, dy, shape));
}

/* A node with the shape of x that adds to what x has received: inputs [0, count), then that. */
static void image_back(struct graph *graph, enum graph_op_kind kind, struct graph_params params, node_id x,
                       node_id *inputs, int count) {
    struct graph_node back = {.kind = kind, .params = params};
    for (int i = 0; i < 4; i++) back.shape[i] = node_at(graph, x)->shape[i];
    inputs[count] = gradient_so_far(graph, x);
    gradient_set(graph, x, node_add(graph, &back, inputs, inputs[count] < 0 ? count : count + 1));
}

/* Sums per channel of dy (column 0) or dy * normed (column 1) go into a vector. */
static void receive_sums(struct graph *graph, node_id sums, int64_t column, node_id vector) {
    if (!gradient_wanted(graph, vector)) return;
    gradient_receive(graph, &(struct graph_node){.kind = OP_CHANNEL_GRADIENT, .params = {.first = column}}, &sums, 1,
                     vector);
}

void gradient_of_conv(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = *node_at(graph, id);
    node_id x = node.input[0], weight = node.input[1];
    dy = unstrided(graph, dy);
    if (node.inputs == 3 && gradient_wanted(graph, node.input[2]))
        receive_sums(graph, node_add(graph, &(struct graph_node){.kind = OP_CHANNEL_SUMS}, &dy, 1), 0, node.input[2]);
    if (gradient_wanted(graph, weight))
        gradient_receive(graph, &(struct graph_node){.kind = OP_CONV_GRADIENT, .params = node.params},
                         (node_id[]){dy, gradient_value(graph, x)}, 2, weight);
    if (gradient_wanted(graph, x)) image_back(graph, OP_CONV_BACK, node.params, x, (node_id[3]){dy, weight, -1}, 2);
}

void gradient_of_max_pool(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = *node_at(graph, id);
    node_id values[3] = {dy, gradient_value(graph, node.input[0]), -1};
    image_back(graph, OP_MAX_POOL_BACK, node.params, node.input[0], values, 2);
}

void gradient_of_average_pool(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = *node_at(graph, id);
    image_back(graph, OP_AVERAGE_POOL_BACK, node.params, node.input[0], (node_id[2]){dy, -1}, 1);
}

/* The statistics are no value of their own here: that they depend on x is part of dx. */
void gradient_of_batch_norm(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = *node_at(graph, id);
    node_id x = gradient_value(graph, node.input[0]), stats = node.input[1];
    node_id sums = node_add(graph, &(struct graph_node){.kind = OP_CHANNEL_SUMS}, (node_id[]){dy, x, stats}, 3);
    receive_sums(graph, sums, 1, node.input[2]);
    receive_sums(graph, sums, 0, node.input[3]);
    if (!gradient_wanted(graph, node.input[0])) return;
    gradient_add(graph, node.input[0],
                 node_add(graph, &(struct graph_node){.kind = OP_BATCH_NORM_BACK, .params = node.params},
                          (node_id[]){dy, x, stats, sums, node.input[2]}, 5));
}

void gradient_of_lstm(struct graph *graph, node_id id, node_id dy) {
    const struct graph_node node = *node_at(graph, id);
    int64_t hidden = node.shape[0] / 6;
    node_id both = node_add(graph, &(struct graph_node){.kind = OP_LSTM_BACK, .params = node.params},
                            (node_id[]){dy, gradient_value(graph, id), node.input[1]}, 3);
    node_id gates = graph_columns(graph, both, 0, 4 * hidden), before = graph_columns(graph, both, 4 * hidden, hidden);
    struct graph_params params = {.scale = 1, .precision = node.params.precision};
    if (gradient_wanted(graph, node.input[1]))
        gradient_receive(graph, &(struct graph_node){.kind = OP_WEIGHT_GRADIENT, .params = params},
                         (node_id[]){gates, before}, 2, node.input[1]);
    if (gradient_wanted(graph, node.input[0])) gradient_add(graph, node.input[0], gates);
}
