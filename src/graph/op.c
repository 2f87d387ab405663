/* The shape rules and, at the end, the operation table. */
#include "graph/op.h"

#include <math.h>

/* ------------------------------------------------------------------ helpers */

void shape_take(struct graph_node *node, const struct graph_node *from, int64_t cols) {
    for (int i = 1; i < 4; i++) node->shape[i] = from->shape[i];
    node->shape[0] = cols;
    node->dtype = DT_F32;
}

static int64_t bound(int64_t dim, int64_t rows, int64_t gathered) {
    if (dim >= 0) return dim;
    if (dim == GRAPH_ROWS) return rows;
    if (dim == GRAPH_GATHERED) return gathered;
    int64_t part_rows = -dim & UINT32_MAX, before = ((-dim >> 32) - 1) * part_rows; /* GRAPH_PART */
    return gathered - before > part_rows ? part_rows : gathered > before ? gathered - before : 0;
}

int64_t node_rows(const struct graph_node *node, int64_t rows, int64_t gathered) {
    int64_t total = 1;
    for (int i = 1; i < 4; i++)
        if (__builtin_mul_overflow(total, bound(node->shape[i], rows, gathered), &total)) return -1;
    return total;
}

size_t node_row_bytes(const struct graph_node *node) {
    if (op_table[node->kind].no_data) return 0;
    if (node->dtype == DT_ACT8) return act8_row_bytes(node->shape[0]);
    return dtype_row_bytes(node->dtype, node->shape[0]);
}

int check_f32(const struct graph *graph, const struct graph_node *node, int i, struct shu_error *err) {
    const struct graph_node *in = node_input(graph, node, i);
    if (in->dtype == DT_F32 && !op_table[in->kind].no_data) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": input %d must be f32 values, found " NODE_TEXT " of type %s",
                    NODE_ARGS(graph, node), i, NODE_ARGS(graph, in), dtype_table[in->dtype].name);
}

int check_vector(const struct graph *graph, const struct graph_node *node, int i, int64_t cols, struct shu_error *err) {
    const struct graph_node *in = node_input(graph, node, i);
    bool vector = in->kind == OP_CONST || (in->kind == OP_PARAMETER && in->dtype == DT_F32 && in->shape[1] == 1);
    if (vector && in->shape[0] == cols) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE,
                    NODE_TEXT ": input %d must be a constant of %lld columns, found " NODE_TEXT " of %lld columns",
                    NODE_ARGS(graph, node), i, (long long)cols, NODE_ARGS(graph, in), (long long)in->shape[0]);
}

int check_column(const struct graph *graph, const struct graph_node *node, int i, enum dtype dtype,
                 struct shu_error *err) {
    const struct graph_node *in = node_input(graph, node, i);
    bool given = node_at(graph, node_value(graph, node->input[i]))->kind == OP_INPUT;
    if (in->dtype == dtype && given && in->shape[0] == 1) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE,
                    NODE_TEXT ": input %d must be an %s input of 1 column, found " NODE_TEXT
                              " of type %s, %lld columns",
                    NODE_ARGS(graph, node), i, dtype_table[dtype].name, NODE_ARGS(graph, in),
                    dtype_table[in->dtype].name, (long long)in->shape[0]);
}

int check_cols(const struct graph *graph, const struct graph_node *node, int i, int64_t cols, struct shu_error *err) {
    const struct graph_node *in = node_input(graph, node, i);
    if (in->shape[0] == cols) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": input %d must have %lld columns, found " NODE_TEXT " of %lld",
                    NODE_ARGS(graph, node), i, (long long)cols, NODE_ARGS(graph, in), (long long)in->shape[0]);
}

int check_rows(const struct graph *graph, const struct graph_node *node, int i, const struct graph_node *same,
               struct shu_error *err) {
    const struct graph_node *in = node_input(graph, node, i);
    if (same_rows(in, same)) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE,
                    NODE_TEXT ": inputs must have the same rows, found " NODE_TEXT
                              " of [%lld, %lld, %lld] and " NODE_TEXT " of [%lld, %lld, %lld]",
                    NODE_ARGS(graph, node), NODE_ARGS(graph, same), (long long)same->shape[1],
                    (long long)same->shape[2], (long long)same->shape[3], NODE_ARGS(graph, in), (long long)in->shape[1],
                    (long long)in->shape[2], (long long)in->shape[3]);
}

/* -------------------------------------------------------------- shape rules */

static int shape_embed(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_column(graph, node, 0, DT_I32, err);
    if (status) return status;
    if (node->inputs == 2) {
        const struct graph_node *rows = node_input(graph, node, 1);
        if (rows->kind != OP_PARAMETER)
            return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": the table must be a parameter, found " NODE_TEXT,
                            NODE_ARGS(graph, node), NODE_ARGS(graph, rows));
        shape_take(node, node_input(graph, node, 0), rows->shape[0]);
        return SHU_OK;
    }
    const struct packed *packed = node->params.weight;
    const struct tensor *plain = node->params.table;
    if ((packed == NULL) == (plain == NULL))
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": needs one table, packed or plain", NODE_ARGS(graph, node));
    int64_t cols = packed ? packed->cols : plain->shape[0];
    if (plain && dtype_row_bytes(plain->dtype, cols) == 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": table rows of %lld columns are no whole blocks of %s",
                        NODE_ARGS(graph, node), (long long)cols, dtype_table[plain->dtype].name);
    shape_take(node, node_input(graph, node, 0), cols);
    return SHU_OK;
}

static int shape_gather(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    int status = check_column(graph, node, 1, DT_I32, err);
    if (status) return status;
    status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) shape_take(node, node_input(graph, node, 1), x->shape[0]);
    return status;
}

static int shape_quantize(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    shape_take(node, node_input(graph, node, 0), node_input(graph, node, 0)->shape[0]);
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
    const struct graph_node *x = node_input(graph, node, 0);
    if (x->dtype != (plain ? DT_F32 : DT_ACT8) || op_table[x->kind].no_data)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": %s weights take %s rows, found " NODE_TEXT " of type %s",
                        NODE_ARGS(graph, node), dtype_table[weight->dtype].name, plain ? "F32" : "ACT8",
                        NODE_ARGS(graph, x), dtype_table[x->dtype].name);
    int status = check_cols(graph, node, 0, weight->cols, err);
    if (status == SHU_OK && node->inputs == 2) status = check_vector(graph, node, 1, weight->rows, err);
    if (status == SHU_OK) shape_take(node, node_input(graph, node, 0), weight->rows);
    return status;
}

/* rms_norm and layer_norm: gain and bias of one group. */
static int shape_norm(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
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
        status = check_vector(graph, node, i, group, err);
        if (status) return status;
    }
    shape_take(node, x, x->shape[0]);
    return SHU_OK;
}

int shape_same(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *a = node_input(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    for (int i = 1; i < node->inputs && status == SHU_OK; i++) {
        status = check_f32(graph, node, i, err);
        if (status == SHU_OK) status = check_cols(graph, node, i, a->shape[0], err);
        if (status == SHU_OK) status = check_rows(graph, node, i, a, err);
    }
    if (status == SHU_OK) shape_take(node, a, a->shape[0]);
    return status;
}

static int shape_rope_table(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    if (params->rot < 2 || params->rot % 2 != 0 || !(params->freq_base > 0) || !isfinite(params->freq_base) ||
        !(params->freq_scale > 0) || !isfinite(params->freq_scale))
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": needs an even number of dimensions and positive base and scale, found %d, %g, %g",
                        NODE_ARGS(graph, node), params->rot, params->freq_base, params->freq_scale);
    if (node->inputs == 1) { /* positions are given */
        int status = check_column(graph, node, 0, DT_I32, err);
        if (status == SHU_OK) shape_take(node, node_input(graph, node, 0), params->rot);
        return status;
    }
    graph->uses_kv = true;
    node->shape[0] = params->rot;
    node->shape[1] = GRAPH_ROWS;
    node->shape[2] = node->shape[3] = 1;
    node->dtype = DT_F32;
    return SHU_OK;
}

static int shape_rope(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    const struct graph_node *x = node_input(graph, node, 0), *table = node_input(graph, node, 1);
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
    if (status == SHU_OK) shape_take(node, x, x->shape[0]);
    return status;
}

static int shape_kv_store(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *k = node_input(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    if (status == SHU_OK) status = check_f32(graph, node, 1, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, k->shape[0], err);
    if (status) return status;
    for (int i = 0; i < 2; i++) {
        const struct graph_node *in = node_input(graph, node, i);
        if (in->shape[1] != GRAPH_ROWS || in->shape[2] != 1 || in->shape[3] != 1)
            return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": keys and values need one row per token, found " NODE_TEXT,
                            NODE_ARGS(graph, node), NODE_ARGS(graph, in));
    }
    if (node->params.layer < 0)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": layer must not be negative, found %d", NODE_ARGS(graph, node),
                        node->params.layer);
    shape_take(node, k, k->shape[0]);
    graph->uses_kv = true;
    return SHU_OK;
}

static int shape_attention(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    const struct graph_node *q = node_input(graph, node, 0), *stored = node_input(graph, node, 1);
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
    if (status == SHU_OK) shape_take(node, q, q->shape[0]);
    return status;
}

/* ---------------------------------------------------------------- the table */

/* clang-format off */
const struct graph_op op_table[OP_KINDS] = {
    [OP_INPUT] = {"input", .leaf = true},
    [OP_CONST] = {"const", .leaf = true, .no_data = true},
    [OP_EMBED] = {"embed", 1, 2, .shape = shape_embed, .run = {run_embed}, .gradient = gradient_of_embed},
    [OP_GATHER] = {"gather", 2, 2, .mixes_rows = true, .shape = shape_gather, .run = {run_gather},
                   .gradient = gradient_of_gather},
    [OP_QUANTIZE] = {"quantize", 1, 1, .shape = shape_quantize, .run = {run_quantize}},
    [OP_MATMUL] = {"matmul", 1, 2, .shape = shape_matmul, .tiles = tiles_matmul, .run = {run_matmul}},
    [OP_RMS_NORM] = {"rms_norm", 1, 2, .again = true, .in_place = 1, .shape = shape_norm, .run = {run_rms_norm},
                     .gradient = gradient_of_rms_norm},
    [OP_LAYER_NORM] = {"layer_norm", 1, 3, .again = true, .in_place = 1, .shape = shape_norm, .run = {run_layer_norm},
                       .gradient = gradient_of_layer_norm},
    [OP_SOFTMAX] = {"softmax", 1, 1, .in_place = 1, .shape = shape_same, .run = {run_softmax},
                    .gradient = gradient_of_softmax},
    [OP_ADD] = {"add", 2, 2, .in_place = 3, .shape = shape_same, .run = {run_add}, .gradient = gradient_of_add},
    [OP_MUL] = {"mul", 2, 2, .in_place = 3, .shape = shape_same, .run = {run_mul}, .gradient = gradient_of_mul},
    [OP_SCALE] = {"scale", 1, 1, .in_place = 1, .shape = shape_same, .run = {run_scale},
                  .gradient = gradient_of_scale},
    [OP_SOFTCAP] = {"softcap", 1, 1, .again = true, .in_place = 1, .shape = shape_same, .run = {run_softcap},
                    .gradient = gradient_of_softcap},
    [OP_UNARY] = {"unary", 1, 1, .again = true, .in_place = 1, .shape = shape_same, .run = {run_unary},
                  .gradient = gradient_of_unary},
    [OP_GATED] = {"gated", 2, 2, .again = true, .in_place = 3, .shape = shape_same, .run = {run_gated},
                  .gradient = gradient_of_gated},
    [OP_ROPE_TABLE] = {"rope_table", 0, 1, .shape = shape_rope_table, .run = {run_rope_table}},
    [OP_ROPE] = {"rope", 2, 2, .in_place = 1, .shape = shape_rope, .run = {run_rope}, .gradient = gradient_of_rope},
    [OP_KV_STORE] = {"kv_store", 2, 2, .acts = true, .no_data = true, .shape = shape_kv_store,
                     .run = {run_kv_store}},
    [OP_ATTENTION] = {"attention", 2, 2, .shape = shape_attention, .tiles = tiles_attention,
                      .run = {run_attention}},

    [OP_PARAMETER] = {"parameter", .leaf = true, .no_data = true, .shape = shape_parameter},
    [OP_LINEAR] = {"linear", 2, 3, .in_place = 4, .shape = shape_linear, .tiles = tiles_rows_by_cols,
                   .run = {run_linear}, .gradient = gradient_of_linear},
    [OP_SDPA] = {"sdpa", 4, 4, .notes = true, .shape = shape_sdpa, .tiles = tiles_sdpa, .run = {run_sdpa},
                 .gradient = gradient_of_sdpa},
    [OP_DROPOUT] = {"dropout", 1, 1, .again = true, .in_place = 1, .shape = shape_dropout, .run = {run_dropout},
                    .gradient = gradient_of_dropout},
    [OP_COLUMNS] = {"columns", 1, 1, .view = true, .shape = shape_columns, .gradient = gradient_of_columns},
    [OP_PART] = {"part", 1, 1, .view = true, .shape = shape_part},
    [OP_CROSS_ENTROPY] = {"cross_entropy", 3, 3, .in_place = 1, .acts = true, .shape = shape_cross_entropy,
                          .run = {run_cross_entropy}},
    [OP_SQUARED_ERROR] = {"squared_error", 3, 3, .in_place = 1, .acts = true, .shape = shape_squared_error,
                          .run = {run_squared_error}},

    [OP_LINEAR_BACK] = {"linear_back", 2, 3, .in_place = 4, .shape = shape_linear_back, .tiles = tiles_rows_by_cols,
                        .run = {run_linear_back}},
    [OP_WEIGHT_GRADIENT] = {"weight_gradient", 3, 4, .acts = true, .no_data = true, .shape = shape_weight_gradient,
                            .tiles = tiles_weight_gradient, .run = {run_weight_gradient}},
    [OP_VECTOR_GRADIENT] = {"vector_gradient", 2, 3, .acts = true, .no_data = true, .shape = shape_vector_gradient,
                            .tiles = tiles_columns, .run = {run_vector_gradient}},
    [OP_EMBED_GRADIENT] = {"embed_gradient", 3, 4, .acts = true, .no_data = true, .shape = shape_embed_gradient,
                           .tiles = tiles_columns, .run = {run_embed_gradient}},
    [OP_GATHER_BACK] = {"gather_back", 2, 3, .in_place = 4, .shape = shape_gather_back, .tiles = tiles_columns,
                        .run = {run_gather_back}},
    [OP_COLUMNS_BACK] = {"columns_back", 1, 2, .in_place = 2, .shape = shape_columns_back,
                         .run = {run_columns_back}},
    [OP_RMS_NORM_BACK] = {"rms_norm_back", 2, 3, .in_place = 1, .shape = shape_norm_back,
                          .run = {run_rms_norm_back}},
    [OP_LAYER_NORM_BACK] = {"layer_norm_back", 2, 3, .in_place = 1, .shape = shape_norm_back,
                            .run = {run_layer_norm_back}},
    [OP_SOFTMAX_BACK] = {"softmax_back", 2, 2, .shape = shape_same, .run = {run_softmax_back}},
    [OP_SOFTCAP_BACK] = {"softcap_back", 2, 2, .shape = shape_same, .run = {run_softcap_back}},
    [OP_UNARY_BACK] = {"unary_back", 2, 2, .in_place = 1, .shape = shape_same, .run = {run_unary_back}},
    [OP_GATED_BACK] = {"gated_back", 3, 3, .shape = shape_gated_back, .run = {run_gated_back}},
    [OP_SDPA_BACK_Q] = {"sdpa_back_q", 6, 6, .shape = shape_sdpa_back, .tiles = tiles_sdpa,
                        .run = {run_sdpa_back_q}},
    [OP_SDPA_BACK_KV] = {"sdpa_back_kv", 6, 6, .shape = shape_sdpa_back, .tiles = tiles_sdpa,
                         .run = {run_sdpa_back_kv}},

    [OP_RESHAPE] = {"reshape", 1, 1, .view = true, .shape = shape_reshape, .gradient = gradient_of_reshape},
    [OP_TRANSPOSE] = {"transpose", 1, 1, .mixes_rows = true, .shape = shape_transpose, .run = {run_transpose},
                      .gradient = gradient_of_transpose},
    [OP_CONV] = {"conv", 2, 3, .shape = shape_conv, .tiles = tiles_conv, .run = {run_conv},
                 .gradient = gradient_of_conv},
    [OP_MAX_POOL] = {"max_pool", 1, 1, .mixes_rows = true, .shape = shape_pool, .run = {run_pool},
                     .gradient = gradient_of_max_pool},
    [OP_AVERAGE_POOL] = {"average_pool", 1, 1, .mixes_rows = true, .shape = shape_pool, .run = {run_pool},
                         .gradient = gradient_of_average_pool},
    [OP_BATCH_STATS] = {"batch_stats", 1, 1, .acts = true, .shape = shape_batch_stats, .tiles = tiles_channels,
                        .run = {run_batch_stats}},
    [OP_BATCH_NORM] = {"batch_norm", 4, 4, .again = true, .in_place = 1, .mixes_rows = true,
                       .shape = shape_batch_norm, .run = {run_batch_norm}, .gradient = gradient_of_batch_norm},
    [OP_LSTM] = {"lstm", 2, 2, .notes = true, .shape = shape_lstm, .tiles = tiles_lstm, .run = {run_lstm},
                 .gradient = gradient_of_lstm},
    [OP_CONV_BACK] = {"conv_back", 2, 3, .in_place = 4, .shape = shape_conv_back, .tiles = tiles_conv_back,
                      .run = {run_conv_back}},
    [OP_CONV_GRADIENT] = {"conv_gradient", 3, 4, .acts = true, .no_data = true, .shape = shape_conv_gradient,
                          .tiles = tiles_conv_gradient, .run = {run_conv_gradient}},
    [OP_MAX_POOL_BACK] = {"max_pool_back", 2, 3, .in_place = 4, .shape = shape_max_pool_back, .tiles = tiles_planes,
                          .run = {run_pool_back}},
    [OP_AVERAGE_POOL_BACK] = {"average_pool_back", 1, 2, .in_place = 2, .shape = shape_average_pool_back,
                              .tiles = tiles_planes, .run = {run_pool_back}},
    [OP_CHANNEL_SUMS] = {"channel_sums", 1, 3, .shape = shape_channel_sums, .tiles = tiles_channels,
                         .run = {run_channel_sums}},
    [OP_CHANNEL_GRADIENT] = {"channel_gradient", 2, 3, .acts = true, .no_data = true,
                             .shape = shape_channel_gradient, .tiles = tiles_one, .run = {run_channel_gradient}},
    [OP_BATCH_NORM_BACK] = {"batch_norm_back", 5, 5, .in_place = 1, .mixes_rows = true,
                            .shape = shape_batch_norm_back, .run = {run_batch_norm_back}},
    [OP_LSTM_BACK] = {"lstm_back", 3, 3, .shape = shape_lstm_back, .tiles = tiles_lstm, .run = {run_lstm_back}},
};
/* clang-format on */

const char *graph_op_name(enum graph_op_kind kind) {
    return (unsigned)kind < OP_KINDS ? op_table[kind].name : "unknown";
}
