/* The shape rules and, at the end, the operation table. */
#include "graph/op.h"

#include <math.h>

/* ------------------------------------------------------------------ helpers */

static const struct graph_node *input_of(const struct graph *graph, const struct graph_node *node, int i) {
    return &graph->nodes[node->input[i]];
}

static void take_shape(struct graph_node *node, const struct graph_node *from, int64_t cols) {
    for (int i = 1; i < 4; i++) node->shape[i] = from->shape[i];
    node->shape[0] = cols;
    node->dtype = DT_F32;
}

static int64_t bound(int64_t dim, int64_t rows, int64_t gathered) {
    return dim == GRAPH_ROWS ? rows : dim == GRAPH_GATHERED ? gathered : dim;
}

int64_t node_rows(const struct graph_node *node, int64_t rows, int64_t gathered) {
    int64_t total = 1;
    for (int i = 1; i < 4; i++)
        if (__builtin_mul_overflow(total, bound(node->shape[i], rows, gathered), &total)) return -1;
    return total;
}

size_t node_row_bytes(const struct graph_node *node) {
    if (node->kind == OP_CONST || node->kind == OP_KV_STORE) return 0;
    if (node->dtype == DT_ACT8) return act8_row_bytes(node->shape[0]);
    return dtype_row_bytes(node->dtype, node->shape[0]);
}

/* Inputs [from, inputs) must be f32. */
static int check_f32(const struct graph *graph, const struct graph_node *node, int from, struct shu_error *err) {
    for (int i = from; i < node->inputs; i++) {
        const struct graph_node *in = input_of(graph, node, i);
        if (in->dtype != DT_F32 || in->kind == OP_KV_STORE)
            return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": input %d must be f32 values, found " NODE_TEXT " of type %s",
                            NODE_ARGS(graph, node), i, NODE_ARGS(graph, in), dtype_table[in->dtype].name);
    }
    return SHU_OK;
}

/* Input i must be a constant of `cols` columns. */
static int check_const(const struct graph *graph, const struct graph_node *node, int i, int64_t cols,
                       struct shu_error *err) {
    const struct graph_node *in = input_of(graph, node, i);
    if (in->kind == OP_CONST && in->shape[0] == cols) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE,
                    NODE_TEXT ": input %d must be a constant of %lld columns, found " NODE_TEXT " of %lld columns",
                    NODE_ARGS(graph, node), i, (long long)cols, NODE_ARGS(graph, in), (long long)in->shape[0]);
}

static int check_ids(const struct graph *graph, const struct graph_node *node, int i, struct shu_error *err) {
    const struct graph_node *in = input_of(graph, node, i);
    if (in->dtype == DT_I32 && in->kind == OP_INPUT && in->shape[0] == 1) return SHU_OK;
    return SHU_FAIL(
        err, SHU_E_USAGE,
        NODE_TEXT ": input %d must be an I32 input of 1 column, found " NODE_TEXT " of type %s, %lld columns",
        NODE_ARGS(graph, node), i, NODE_ARGS(graph, in), dtype_table[in->dtype].name, (long long)in->shape[0]);
}

static int check_cols(const struct graph *graph, const struct graph_node *node, int i, int64_t cols,
                      struct shu_error *err) {
    const struct graph_node *in = input_of(graph, node, i);
    if (in->shape[0] == cols) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": input %d must have %lld columns, found " NODE_TEXT " of %lld",
                    NODE_ARGS(graph, node), i, (long long)cols, NODE_ARGS(graph, in), (long long)in->shape[0]);
}

/* -------------------------------------------------------------- shape rules */

static int shape_embed(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_ids(graph, node, 0, err);
    if (status) return status;
    const struct packed *packed = node->params.weight;
    const struct tensor *plain = node->params.table;
    if ((packed == NULL) == (plain == NULL))
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": needs one table, packed or plain", NODE_ARGS(graph, node));
    int64_t cols = packed ? packed->cols : plain->shape[0];
    if (plain && dtype_row_bytes(plain->dtype, cols) == 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": table rows of %lld columns are no whole blocks of %s",
                        NODE_ARGS(graph, node), (long long)cols, dtype_table[plain->dtype].name);
    take_shape(node, input_of(graph, node, 0), cols);
    return SHU_OK;
}

static int shape_gather(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = input_of(graph, node, 0);
    int status = check_ids(graph, node, 1, err);
    if (status) return status;
    if (x->dtype != DT_F32 || x->kind == OP_KV_STORE)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": input 0 must be f32 values, found " NODE_TEXT,
                        NODE_ARGS(graph, node), NODE_ARGS(graph, x));
    take_shape(node, input_of(graph, node, 1), x->shape[0]);
    return SHU_OK;
}

static int shape_quantize(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    take_shape(node, input_of(graph, node, 0), input_of(graph, node, 0)->shape[0]);
    node->dtype = DT_ACT8;
    return SHU_OK;
}

static int shape_matmul(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct packed *weight = node->params.weight;
    if (weight == NULL || graph->kernels->matmul[weight->dtype] == NULL)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, NODE_TEXT ": no matrix product for weights of type %s",
                        NODE_ARGS(graph, node), weight ? dtype_table[weight->dtype].name : "(no weight given)");
    if (weight->lanes != graph->kernels->lanes)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": weights were packed for %d lanes, the %s kernels need %d",
                        NODE_ARGS(graph, node), weight->lanes, graph->kernels->isa, graph->kernels->lanes);
    bool plain = weight->dtype == DT_F32 || weight->dtype == DT_F16 || weight->dtype == DT_BF16;
    const struct graph_node *x = input_of(graph, node, 0);
    if (x->dtype != (plain ? DT_F32 : DT_ACT8) || x->kind == OP_KV_STORE)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": %s weights take %s rows, found " NODE_TEXT " of type %s",
                        NODE_ARGS(graph, node), dtype_table[weight->dtype].name, plain ? "F32" : "ACT8",
                        NODE_ARGS(graph, x), dtype_table[x->dtype].name);
    int status = check_cols(graph, node, 0, weight->cols, err);
    if (status == SHU_OK && node->inputs == 2) status = check_const(graph, node, 1, weight->rows, err);
    if (status == SHU_OK) take_shape(node, input_of(graph, node, 0), weight->rows);
    return status;
}

/* rms_norm and layer_norm: gain and bias of one group. */
static int shape_norm(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = input_of(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    if (node->kind == OP_LAYER_NORM || node->params.group == 0) node->params.group = x->shape[0];
    int64_t group = node->params.group;
    if (group < 1 || x->shape[0] % group != 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": %lld columns are no multiple of groups of %lld",
                        NODE_ARGS(graph, node), (long long)x->shape[0], (long long)group);
    if (!(node->params.eps >= 0) || !isfinite(node->params.eps))
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": epsilon must be finite and not negative, found %g",
                        NODE_ARGS(graph, node), (double)node->params.eps);
    for (int i = 1; i < node->inputs; i++) {
        status = check_const(graph, node, i, group, err);
        if (status) return status;
    }
    take_shape(node, x, x->shape[0]);
    return SHU_OK;
}

/* Element-wise: all inputs f32 of one shape. */
static int shape_same(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *a = input_of(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    for (int i = 1; i < node->inputs && status == SHU_OK; i++) {
        const struct graph_node *b = input_of(graph, node, i);
        status = check_cols(graph, node, i, a->shape[0], err);
        if (status == SHU_OK && !same_rows(a, b))
            status = SHU_FAIL(err, SHU_E_USAGE,
                              NODE_TEXT ": inputs must have the same rows, found " NODE_TEXT
                                        " of [%lld, %lld, %lld] and " NODE_TEXT " of [%lld, %lld, %lld]",
                              NODE_ARGS(graph, node), NODE_ARGS(graph, a), (long long)a->shape[1],
                              (long long)a->shape[2], (long long)a->shape[3], NODE_ARGS(graph, b),
                              (long long)b->shape[1], (long long)b->shape[2], (long long)b->shape[3]);
    }
    if (status == SHU_OK) take_shape(node, a, a->shape[0]);
    return status;
}

static int shape_rope_table(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    if (params->rot < 2 || params->rot % 2 != 0 || !(params->freq_base > 0) || !isfinite(params->freq_base) ||
        !(params->freq_scale > 0) || !isfinite(params->freq_scale))
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": needs an even number of dimensions and positive base and scale, found %d, %g, %g",
                        NODE_ARGS(graph, node), params->rot, params->freq_base, params->freq_scale);
    node->shape[0] = params->rot;
    node->shape[1] = GRAPH_ROWS;
    node->shape[2] = node->shape[3] = 1;
    node->dtype = DT_F32;
    return SHU_OK;
}

static int shape_rope(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    const struct graph_node *x = input_of(graph, node, 0), *table = input_of(graph, node, 1);
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    if (params->heads < 1 || params->head_dim < 1 || params->rot > params->head_dim)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": cannot rotate %d dimensions of %d heads of %d",
                        NODE_ARGS(graph, node), params->rot, params->heads, params->head_dim);
    status = check_cols(graph, node, 0, (int64_t)params->heads * params->head_dim, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, params->rot, err);
    if (status == SHU_OK && (table->kind != OP_ROPE_TABLE || !same_rows(x, table)))
        status = SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": needs the rope table of the same rows, found " NODE_TEXT,
                          NODE_ARGS(graph, node), NODE_ARGS(graph, table));
    if (status == SHU_OK) take_shape(node, x, x->shape[0]);
    return status;
}

static int shape_kv_store(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *k = input_of(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, k->shape[0], err);
    if (status) return status;
    for (int i = 0; i < 2; i++) {
        const struct graph_node *in = input_of(graph, node, i);
        if (in->shape[1] != GRAPH_ROWS || in->shape[2] != 1 || in->shape[3] != 1)
            return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": keys and values need one row per token, found " NODE_TEXT,
                            NODE_ARGS(graph, node), NODE_ARGS(graph, in));
    }
    if (node->params.layer < 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": layer must not be negative, found %d", NODE_ARGS(graph, node),
                        node->params.layer);
    take_shape(node, k, k->shape[0]);
    graph->uses_kv = true;
    return SHU_OK;
}

static int shape_attention(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    const struct graph_node *q = input_of(graph, node, 0), *stored = input_of(graph, node, 1);
    if (q->dtype != DT_F32 || stored->kind != OP_KV_STORE || stored->params.layer != params->layer)
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": needs f32 queries and the kv_store of layer %d, found " NODE_TEXT
                                  " and " NODE_TEXT,
                        NODE_ARGS(graph, node), params->layer, NODE_ARGS(graph, q), NODE_ARGS(graph, stored));
    if (params->kv_heads < 1 || params->heads < 1 || params->heads % params->kv_heads != 0 || params->head_dim < 1)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": %d query heads of %d cannot share %d key heads",
                        NODE_ARGS(graph, node), params->heads, params->head_dim, params->kv_heads);
    if (params->head_dim > HEAD_DIM_MAX)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, NODE_TEXT ": heads have at most %d dimensions, found %d",
                        NODE_ARGS(graph, node), HEAD_DIM_MAX, params->head_dim);
    if (!isfinite(params->scale) || !(params->softcap >= 0) || params->window < 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": bad scale %g, soft-cap %g or window %d", NODE_ARGS(graph, node),
                        (double)params->scale, (double)params->softcap, params->window);
    int status = check_cols(graph, node, 0, (int64_t)params->heads * params->head_dim, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, (int64_t)params->kv_heads * params->head_dim, err);
    if (status == SHU_OK && !same_rows(q, stored))
        status =
            SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": queries and keys must have the same rows", NODE_ARGS(graph, node));
    if (status == SHU_OK) take_shape(node, q, q->shape[0]);
    return status;
}

/* ---------------------------------------------------------------- the table */

const struct graph_op op_table[OP_KINDS] = {
    [OP_INPUT] = {.name = "input"},
    [OP_CONST] = {.name = "const"},
    [OP_EMBED] = {.name = "embed", .min_inputs = 1, .max_inputs = 1, .shape = shape_embed, .run = {run_embed}},
    [OP_GATHER] = {.name = "gather",
                   .min_inputs = 2,
                   .max_inputs = 2,
                   .mixes_rows = true,
                   .shape = shape_gather,
                   .run = {run_gather}},
    [OP_QUANTIZE] =
        {.name = "quantize", .min_inputs = 1, .max_inputs = 1, .shape = shape_quantize, .run = {run_quantize}},
    [OP_MATMUL] = {.name = "matmul",
                   .min_inputs = 1,
                   .max_inputs = 2,
                   .shape = shape_matmul,
                   .tiles = tiles_matmul,
                   .run = {run_matmul}},
    [OP_RMS_NORM] = {.name = "rms_norm",
                     .min_inputs = 1,
                     .max_inputs = 2,
                     .in_place = 1,
                     .shape = shape_norm,
                     .run = {run_rms_norm}},
    [OP_LAYER_NORM] = {.name = "layer_norm",
                       .min_inputs = 3,
                       .max_inputs = 3,
                       .in_place = 1,
                       .shape = shape_norm,
                       .run = {run_layer_norm}},
    [OP_SOFTMAX] =
        {.name = "softmax", .min_inputs = 1, .max_inputs = 1, .in_place = 1, .shape = shape_same, .run = {run_softmax}},
    [OP_ADD] = {.name = "add", .min_inputs = 2, .max_inputs = 2, .in_place = 3, .shape = shape_same, .run = {run_add}},
    [OP_MUL] = {.name = "mul", .min_inputs = 2, .max_inputs = 2, .in_place = 3, .shape = shape_same, .run = {run_mul}},
    [OP_SCALE] =
        {.name = "scale", .min_inputs = 1, .max_inputs = 1, .in_place = 1, .shape = shape_same, .run = {run_scale}},
    [OP_SOFTCAP] =
        {.name = "softcap", .min_inputs = 1, .max_inputs = 1, .in_place = 1, .shape = shape_same, .run = {run_softcap}},
    [OP_UNARY] =
        {.name = "unary", .min_inputs = 1, .max_inputs = 1, .in_place = 1, .shape = shape_same, .run = {run_unary}},
    [OP_GATED] =
        {.name = "gated", .min_inputs = 2, .max_inputs = 2, .in_place = 3, .shape = shape_same, .run = {run_gated}},
    [OP_ROPE_TABLE] = {.name = "rope_table", .shape = shape_rope_table, .run = {run_rope_table}},
    [OP_ROPE] =
        {.name = "rope", .min_inputs = 2, .max_inputs = 2, .in_place = 1, .shape = shape_rope, .run = {run_rope}},
    [OP_KV_STORE] =
        {.name = "kv_store", .min_inputs = 2, .max_inputs = 2, .shape = shape_kv_store, .run = {run_kv_store}},
    [OP_ATTENTION] = {.name = "attention",
                      .min_inputs = 2,
                      .max_inputs = 2,
                      .shape = shape_attention,
                      .tiles = tiles_attention,
                      .run = {run_attention}},
};

const char *graph_op_name(enum graph_op_kind kind) {
    return (unsigned)kind < OP_KINDS ? op_table[kind].name : "unknown";
}
