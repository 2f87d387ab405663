/* Shape rules of the operations of learning. */
#include "graph/op.h"

#include <math.h>

/* ------------------------------------------------------------------ forward */

int shape_parameter(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_parameter *parameter = node->params.parameter;
    if (parameter->data == NULL || parameter->rows < 1 || parameter->cols < 1)
        return SHU_FAIL(err, SHU_E_USAGE, "parameter %s: has no values", parameter->name);
    if (dtype_table[parameter->dtype].to_f32 == NULL || dtype_row_bytes(parameter->dtype, parameter->cols) == 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "parameter %s: rows of %lld columns cannot be read as %s",
                        parameter->name, (long long)parameter->cols, dtype_table[parameter->dtype].name);
    bool plain = parameter->dtype == DT_F32 || (parameter->dtype == DT_BF16 && parameter->rows > 1);
    if (parameter->gradient && !plain)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "parameter %s: matrices learn as F32 or BF16 and vectors as F32, found %s with %lld rows",
                        parameter->name, dtype_table[parameter->dtype].name, (long long)parameter->rows);
    int64_t values;
    if (__builtin_mul_overflow(parameter->rows, parameter->cols, &values) || values > INT64_MAX / 16)
        return SHU_FAIL(err, SHU_E_RANGE, "parameter %s: %lld rows of %lld columns are too many", parameter->name,
                        (long long)parameter->rows, (long long)parameter->cols);
    (void)graph;
    node->dtype = parameter->dtype;
    node->shape[0] = parameter->cols;
    node->shape[1] = parameter->rows;
    node->shape[2] = node->shape[3] = 1;
    return SHU_OK;
}

static int check_parameter(const struct graph *graph, const struct graph_node *node, int i, struct shu_error *err) {
    const struct graph_node *in = node_input(graph, node, i);
    if (in->kind == OP_PARAMETER) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": input %d must be a parameter, found " NODE_TEXT,
                    NODE_ARGS(graph, node), i, NODE_ARGS(graph, in));
}

static int check_factor(const struct graph *graph, const struct graph_node *node, struct shu_error *err) {
    if (isfinite(node->params.scale)) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": the factor must be finite, found %g", NODE_ARGS(graph, node),
                    (double)node->params.scale);
}

/* Input i must be f32 values of the node's own shape. */
static int check_base(const struct graph *graph, const struct graph_node *node, int i, struct shu_error *err) {
    int status = check_f32(graph, node, i, err);
    if (status == SHU_OK) status = check_cols(graph, node, i, node->shape[0], err);
    if (status == SHU_OK) status = check_rows(graph, node, i, node, err);
    return status;
}

int shape_linear(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_parameter(graph, node, 1, err);
    if (status == SHU_OK) status = check_factor(graph, node, err);
    if (status == SHU_OK) status = check_cols(graph, node, 0, node_input(graph, node, 1)->shape[0], err);
    if (status) return status;
    shape_take(node, node_input(graph, node, 0), node_input(graph, node, 1)->shape[1]);
    if (node->inputs < 3) return SHU_OK;
    enum graph_op_kind kind = node_input(graph, node, 2)->kind;
    if (kind == OP_CONST || kind == OP_PARAMETER) return check_vector(graph, node, 2, node->shape[0], err);
    return check_base(graph, node, 2, err);
}

/* Queries, keys and values from input `from` on, then the rows' sequences as the last input. */
static int check_sdpa(const struct graph *graph, const struct graph_node *node, int from, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    if (params->kv_heads < 1 || params->heads < 1 || params->heads % params->kv_heads != 0 || params->head_dim < 1)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": %d query heads of %d cannot share %d key heads",
                        NODE_ARGS(graph, node), params->heads, params->head_dim, params->kv_heads);
    if (params->head_dim > HEAD_DIM_MAX)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, NODE_TEXT ": heads have at most %d dimensions, found %d",
                        NODE_ARGS(graph, node), HEAD_DIM_MAX, params->head_dim);
    if (!isfinite(params->scale) || !(params->softcap >= 0) || params->window < 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": bad scale %g, soft-cap %g or window %d", NODE_ARGS(graph, node),
                        (double)params->scale, (double)params->softcap, params->window);
    int status = check_column(graph, node, node->inputs - 1, DT_I32, err);
    const struct graph_node *begin = node_input(graph, node, node->inputs - 1);
    for (int i = 0; i < 3 && status == SHU_OK; i++) {
        int64_t heads = i == 0 ? params->heads : params->kv_heads;
        status = check_f32(graph, node, from + i, err);
        if (status == SHU_OK) status = check_cols(graph, node, from + i, heads * params->head_dim, err);
        if (status == SHU_OK) status = check_rows(graph, node, from + i, begin, err);
    }
    return status;
}

int shape_sdpa(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_sdpa(graph, node, 0, err);
    if (status) return status;
    const struct graph_params *params = &node->params;
    if (graph->begin >= 0 && graph->begin != node->input[3])
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": all attention of a graph reads the same rows, found " NODE_TEXT " and " NODE_TEXT,
                        NODE_ARGS(graph, node), NODE_ARGS(graph, node_at(graph, graph->begin)),
                        NODE_ARGS(graph, node_input(graph, node, 3)));
    graph->begin = node->input[3];
    shape_take(node, node_input(graph, node, 0), (int64_t)params->heads * params->head_dim + params->heads);
    return SHU_OK;
}

int shape_dropout(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    if (!(node->params.rate >= 0 && node->params.rate < 1))
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": the share of zeros must be in [0, 1), found %g",
                        NODE_ARGS(graph, node), (double)node->params.rate);
    return shape_same(graph, node, err);
}

int shape_columns(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    int64_t first = node->params.first, cols = node->shape[0];
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    if (first < 0 || cols < 1 || first > x->shape[0] || cols > x->shape[0] - first)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": columns %lld to %lld are not within the %lld of " NODE_TEXT,
                        NODE_ARGS(graph, node), (long long)first, (long long)first + cols, (long long)x->shape[0],
                        NODE_ARGS(graph, x));
    shape_take(node, x, cols);
    return SHU_OK;
}

int shape_part(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    if (op_table[x->kind].no_data || x->shape[1] != GRAPH_GATHERED || x->shape[2] != 1 || x->shape[3] != 1)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": only gathered rows are taken in parts, found " NODE_TEXT,
                        NODE_ARGS(graph, node), NODE_ARGS(graph, x));
    shape_take(node, x, x->shape[0]);
    node->dtype = x->dtype;
    node->shape[1] = GRAPH_PART(node->params.part, node->params.part_rows);
    return SHU_OK;
}

/* Rows of values, with a column of weights and the caller's array for the result. */
static int check_loss(const struct graph *graph, const struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_rows(graph, node, 1, x, err);
    if (status == SHU_OK) status = check_column(graph, node, 2, DT_F32, err);
    if (status == SHU_OK) status = check_rows(graph, node, 2, x, err);
    if (status == SHU_OK && node->params.result == NULL)
        status = SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": has no place for the rows' losses", NODE_ARGS(graph, node));
    return status;
}

int shape_cross_entropy(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_loss(graph, node, err);
    if (status == SHU_OK) status = check_column(graph, node, 1, DT_I32, err);
    if (status == SHU_OK && !(node->params.softcap >= 0))
        status = SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": the soft-cap must not be negative, found %g",
                          NODE_ARGS(graph, node), (double)node->params.softcap);
    if (status == SHU_OK) shape_take(node, node_input(graph, node, 0), node_input(graph, node, 0)->shape[0]);
    return status;
}

int shape_squared_error(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_loss(graph, node, err);
    if (status == SHU_OK) status = check_f32(graph, node, 1, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, node_input(graph, node, 0)->shape[0], err);
    if (status == SHU_OK) shape_take(node, node_input(graph, node, 0), node_input(graph, node, 0)->shape[0]);
    return status;
}

/* ----------------------------------------------------------------- backward
 * Only gradient rules add these, so that a breach is a fault of a rule; it is an error all the same. */

int shape_linear_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_parameter(graph, node, 1, err);
    if (status == SHU_OK) status = check_cols(graph, node, 0, node_input(graph, node, 1)->shape[1], err);
    if (status) return status;
    if (node->params.part_rows == 0) shape_take(node, node_input(graph, node, 0), 0);
    node->dtype = DT_F32;
    node->shape[0] = node_input(graph, node, 1)->shape[0];
    return node->inputs == 3 ? check_base(graph, node, 2, err) : SHU_OK;
}

/* Sinks: the parameter that receives is input `i`, after it perhaps the node that came before. */
static int shape_sink(const struct graph *graph, struct graph_node *node, int i, struct shu_error *err) {
    int status = check_parameter(graph, node, i, err);
    if (status) return status;
    const struct graph_parameter *parameter = node_input(graph, node, i)->params.parameter;
    if (parameter->gradient == NULL)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": parameter %s does not learn", NODE_ARGS(graph, node),
                        parameter->name);
    shape_take(node, node_input(graph, node, i), parameter->cols);
    return SHU_OK;
}

int shape_weight_gradient(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = shape_sink(graph, node, 2, err);
    if (status == SHU_OK) status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_f32(graph, node, 1, err);
    if (status == SHU_OK) status = check_cols(graph, node, 0, node->shape[1], err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, node->shape[0], err);
    if (status == SHU_OK) status = check_rows(graph, node, 1, node_input(graph, node, 0), err);
    return status;
}

int shape_vector_gradient(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = shape_sink(graph, node, 1, err);
    if (status == SHU_OK) status = check_f32(graph, node, 0, err);
    if (status == SHU_OK && node_input(graph, node, 0)->shape[0] % node->shape[0] != 0)
        status = check_cols(graph, node, 0, node->shape[0], err);
    return status;
}

int shape_embed_gradient(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = shape_sink(graph, node, 2, err);
    if (status == SHU_OK) status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_cols(graph, node, 0, node->shape[0], err);
    if (status == SHU_OK) status = check_column(graph, node, 1, DT_I32, err);
    if (status == SHU_OK) status = check_rows(graph, node, 1, node_input(graph, node, 0), err);
    return status;
}

/* The rows of x were written by the rule, as x itself need not be alive. */
int shape_gather_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_column(graph, node, 1, DT_I32, err);
    if (status) return status;
    node->dtype = DT_F32;
    node->shape[0] = node_input(graph, node, 0)->shape[0];
    return node->inputs == 3 ? check_base(graph, node, 2, err) : SHU_OK;
}

int shape_columns_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    shape_take(node, node_input(graph, node, 0), node->shape[0]);
    return node->inputs == 2 ? check_base(graph, node, 1, err) : SHU_OK;
}

int shape_norm_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    shape_take(node, node_input(graph, node, 0), node_input(graph, node, 0)->shape[0]);
    status = check_base(graph, node, 1, err);
    if (status == SHU_OK && node->inputs == 3) status = check_vector(graph, node, 2, node->params.group, err);
    return status;
}

int shape_gated_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = shape_same(graph, node, err);
    if (status == SHU_OK) node->shape[0] *= 2;
    return status;
}

int shape_sdpa_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_sdpa(graph, node, 1, err);
    if (status == SHU_OK) status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_cols(graph, node, 0, node_input(graph, node, 1)->shape[0], err);
    if (status == SHU_OK) status = check_rows(graph, node, 0, node_input(graph, node, 1), err);
    if (status) return status;
    const struct graph_node *q = node_input(graph, node, 1), *k = node_input(graph, node, 2);
    shape_take(node, q, node->kind == OP_SDPA_BACK_Q ? q->shape[0] : 2 * k->shape[0]);
    return SHU_OK;
}
