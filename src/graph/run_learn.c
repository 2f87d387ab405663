/* The CPU column of the operations of learning: tile rules and run functions. */
#include "graph/op.h"

#include <string.h>

/* ------------------------------------------------------------ tuning constants
 * Sizes of the work that one thread takes at a time. They change speed only. */

/* A tile of a product has GEMM_COLS columns. Its rows are cut as far as that evens out the threads' work and costs
 * no more than it gains: every part decodes the weights of its columns again, which takes as long as so many rows. */
#define PRODUCT_DECODE_ROWS 24
#define PRODUCT_PARTS_MAX   32
#define PRODUCT_ROWS_STEP   12 /* a multiple of what kernels take at a time */
/* Columns of work that runs over all rows in order. */
#define COLUMN_STEP             64
#define COLUMN_TILES_PER_THREAD 4

/* ------------------------------------------------------------------------ products */

/* Time until all threads are done with `parts` rows of tiles, in tiles of full width. */
static double product_time(int64_t n, int64_t parts, int64_t threads) {
    int64_t full = n / GEMM_COLS * parts, left = full % threads;
    double width = (double)(n % GEMM_COLS) / GEMM_COLS; /* of the last tile of a row */
    double time = (double)(full / threads) + (left > 0);
    if (n % GEMM_COLS == 0) return time;
    /* Threads without a last full tile take narrow ones meanwhile. */
    int64_t fit = left > 0 ? (threads - left) * (GEMM_COLS / (n % GEMM_COLS)) : 0;
    return parts <= fit ? time : time + (double)div_up(parts - fit, threads) * width;
}

static int64_t product_parts(int64_t m, int64_t n, int threads) {
    int64_t best = 1;
    double best_cost = 0;
    for (int64_t parts = 1; parts <= PRODUCT_PARTS_MAX && parts * PRODUCT_DECODE_ROWS <= m; parts++) {
        double cost = product_time(n, parts, threads) * ((double)m / (double)parts + PRODUCT_DECODE_ROWS);
        if (parts > 1 && !(cost < best_cost)) continue;
        best = parts;
        best_cost = cost;
    }
    return best;
}

/* Cuts the product c[m, n]; outer runs over rows, inner over columns. */
static int64_t cut_product(struct graph_node *node, int64_t m, int64_t n, int threads) {
    struct graph_cut *cut = &node->cut;
    cut->outer_count = cut->inner_count = 0;
    if (m == 0) return 0;
    cut->inner = GEMM_COLS;
    cut->outer = div_up(div_up(m, product_parts(m, n, threads)), PRODUCT_ROWS_STEP) * PRODUCT_ROWS_STEP;
    cut->outer_count = div_up(m, cut->outer);
    cut->inner_count = div_up(n, GEMM_COLS);
    return cut->outer_count * cut->inner_count;
}

struct product_tile {
    int64_t m0, m1, n0, n1;
};

/* Tiles that share columns are neighbours: their weights come from the cache the second time. */
static struct product_tile product_tile(const struct graph_cut *cut, int64_t m, int64_t n, int64_t tile) {
    struct product_tile at = {.m0 = tile % cut->outer_count * cut->outer, .n0 = tile / cut->outer_count * cut->inner};
    at.m1 = at.m0 + cut->outer < m ? at.m0 + cut->outer : m;
    at.n1 = at.n0 + cut->inner < n ? at.n0 + cut->inner : n;
    return at;
}

/* linear and linear_back: rows of the first input times a parameter. */
int64_t tiles_rows_by_cols(const struct graph *graph, struct graph_node *node, int threads) {
    return cut_product(node, node_input(graph, node, 0)->rows, node->shape[0], threads);
}

/* a and b of x W^T, or of dy W. */
static struct gemm_args product_args(const struct graph_call *call, bool transposed) {
    const struct graph_node *a = call_input(call, 0);
    const struct graph_parameter *weight = call_input(call, 1)->params.parameter;
    return (struct gemm_args){.m = a->rows,
                              .n = transposed ? weight->rows : weight->cols,
                              .k = transposed ? weight->cols : weight->rows,
                              .a = (const float *)a->data,
                              .a_row = row_step(a),
                              .a_col = 1,
                              .b_dtype = weight->dtype,
                              .b = weight->data,
                              .b_row_bytes = dtype_row_bytes(weight->dtype, weight->cols),
                              .b_transposed = transposed,
                              .alpha = call->node->params.scale,
                              .c = out_row(call, 0),
                              .c_row = row_step(call->node)};
}

/* What the product is added to moves in first, unless it lies there already. */
static void copy_base(const struct graph_call *call, const struct product_tile *at) {
    if (call_input(call, 2)->data == call->node->data) return;
    for (int64_t row = at->m0; row < at->m1; row++)
        memcpy((float *)out_row(call, row) + at->n0, in_row(call, 2, row) + at->n0,
               (size_t)(at->n1 - at->n0) * sizeof(float));
}

static void run_product(const struct graph_call *call, const struct gemm_args *args, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        struct product_tile at = product_tile(&call->node->cut, args->m, args->n, tile);
        if (args->accumulate) copy_base(call, &at);
        call->graph->kernels->training.gemm[call->node->params.precision](args, at.m0, at.m1, at.n0, at.n1,
                                                                          call->scratch);
    }
}

void run_linear(const struct graph_call *call, int64_t first, int64_t last) {
    struct gemm_args args = product_args(call, true);
    bool third = call->node->inputs == 3;
    bool bias = third && op_table[call_input(call, 2)->kind].leaf && call_input(call, 2)->kind != OP_INPUT;
    args.bias = bias ? call_vector(call, 2) : NULL;
    args.accumulate = third && !bias;
    run_product(call, &args, first, last);
}

/* In parts: the rows of this part are written into the gradient of all rows. */
void run_linear_back(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_params *params = &call->node->params;
    struct gemm_args args = product_args(call, false);
    if (params->part_rows > 0 && args.m > 0)
        args.c = out_row(call, params->part * params->part_rows);
    else
        args.accumulate = call->node->inputs == 3;
    run_product(call, &args, first, last);
}

int64_t tiles_weight_gradient(const struct graph *graph, struct graph_node *node, int threads) {
    if (node_input(graph, node, 0)->rows == 0) return 0;
    return cut_product(node, node->shape[1], node->shape[0], threads);
}

void run_weight_gradient(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *dy = call_input(call, 0), *x = call_input(call, 1);
    struct graph_parameter *weight = call_input(call, 2)->params.parameter;
    const struct gemm_args args = {.m = weight->rows,
                                   .n = weight->cols,
                                   .k = dy->rows,
                                   .a = (const float *)dy->data,
                                   .a_row = 1,
                                   .a_col = row_step(dy),
                                   .b_dtype = DT_F32,
                                   .b = x->data,
                                   .b_row_bytes = x->row_bytes,
                                   .alpha = call->node->params.scale,
                                   .accumulate = true,
                                   .c = weight->gradient,
                                   .c_row = weight->cols};
    for (int64_t tile = first; tile < last; tile++) {
        struct product_tile at = product_tile(&call->node->cut, args.m, args.n, tile);
        call->graph->kernels->training.gemm[call->node->params.precision](&args, at.m0, at.m1, at.n0, at.n1,
                                                                          call->scratch);
    }
}

/* ---------------------------------------------------- all rows in order, by columns */

int64_t tiles_columns(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    int64_t cols = node->shape[0], wanted = (int64_t)threads * COLUMN_TILES_PER_THREAD;
    node->cut.inner = div_up(div_up(cols, wanted), COLUMN_STEP) * COLUMN_STEP;
    node->cut.inner_count = div_up(cols, node->cut.inner);
    return node->cut.inner_count;
}

/* Columns [*col0, result) of units [first, last). */
static int64_t column_range(const struct graph_node *node, int64_t first, int64_t last, int64_t *col0) {
    int64_t col1 = last * node->cut.inner;
    *col0 = first * node->cut.inner;
    return col1 < node->shape[0] ? col1 : node->shape[0];
}

static void add_to(float *sum, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] += x[i];
}

/* Rows of several groups of the vector's columns count as that many rows. */
void run_vector_gradient(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *dy = call_input(call, 0);
    float *sum = call_input(call, 1)->params.parameter->gradient;
    int64_t group = call->node->shape[0], groups = dy->shape[0] / group, col0;
    int64_t col1 = column_range(call->node, first, last, &col0);
    if (groups == 1) {
        call->graph->kernels->training.column_sum((const float *)dy->data, row_step(dy), dy->rows, col0, col1, sum);
        return;
    }
    for (int64_t row = 0; row < dy->rows; row++)
        call->graph->kernels->training.column_sum(in_row(call, 0, row), group, groups, col0, col1, sum);
}

void run_embed_gradient(const struct graph_call *call, int64_t first, int64_t last) {
    const int32_t *ids = (const int32_t *)call_input(call, 1)->data;
    const struct graph_parameter *table = call_input(call, 2)->params.parameter;
    int64_t col0, col1 = column_range(call->node, first, last, &col0);
    for (int64_t row = 0; row < call_input(call, 0)->rows; row++)
        add_to(table->gradient + ids[row] * table->cols + col0, in_row(call, 0, row) + col0, col1 - col0);
}

void run_gather_back(const struct graph_call *call, int64_t first, int64_t last) {
    const int32_t *indices = (const int32_t *)call_input(call, 1)->data;
    const struct graph_node *node = call->node;
    bool base = node->inputs == 3;
    int64_t col0, col1 = column_range(node, first, last, &col0);
    size_t bytes = (size_t)(col1 - col0) * sizeof(float);
    for (int64_t row = 0; row < node->rows; row++) {
        float *out = (float *)out_row(call, row) + col0;
        if (!base)
            memset(out, 0, bytes);
        else if (in_row(call, 2, row) + col0 != out)
            memcpy(out, in_row(call, 2, row) + col0, bytes);
    }
    for (int64_t row = 0; row < call_input(call, 0)->rows; row++)
        add_to((float *)out_row(call, indices[row]) + col0, in_row(call, 0, row) + col0, col1 - col0);
}

void run_columns_back(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node;
    for (int64_t row = first; row < last; row++) {
        float *out = out_row(call, row);
        if (node->inputs < 2)
            memset(out, 0, node->row_bytes);
        else if (in_row(call, 1, row) != out)
            memcpy(out, in_row(call, 1, row), node->row_bytes);
        add_to(out + node->params.first, in_row(call, 0, row), call_input(call, 0)->shape[0]);
    }
}

/* ----------------------------------------------------------------------- row by row */

static uint64_t dropout_seed(const struct graph_call *call) {
    return call->step->dropout_seed + call->node->params.salt * 0x9E3779B97F4A7C15U;
}

void run_dropout(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->training.dropout(dropout_seed(call), row, call->node->params.rate, in_row(call, 0, row),
                                               call->node->shape[0], out_row(call, row));
}

/* The gradient of logits takes their place. With a soft-cap the capped ones live in scratch. */
static float cross_entropy_row(const struct graph_call *call, float *logits, int32_t target, float weight) {
    const struct graph_params *params = &call->node->params;
    const struct kernels *kernels = call->graph->kernels;
    int64_t cols = call->node->shape[0];
    if (!(params->softcap > 0)) return kernels->training.cross_entropy(logits, cols, target, weight, params->learn);
    float *capped = call->scratch;
    kernels->softcap(logits, params->softcap, cols, capped);
    float nll = kernels->training.cross_entropy(capped, cols, target, weight, params->learn);
    if (params->learn) kernels->training.softcap_backward(capped, logits, params->softcap, cols, logits);
    return nll;
}

void run_cross_entropy(const struct graph_call *call, int64_t first, int64_t last) {
    const int32_t *targets = (const int32_t *)call_input(call, 1)->data;
    const float *weights = (const float *)call_input(call, 2)->data;
    for (int64_t row = first; row < last; row++) {
        float *logits = out_row(call, row);
        if (logits != in_row(call, 0, row)) memcpy(logits, in_row(call, 0, row), call->node->row_bytes);
        call->node->params.result[row] = cross_entropy_row(call, logits, targets[row], weights[row]);
    }
}

void run_squared_error(const struct graph_call *call, int64_t first, int64_t last) {
    const float *weights = (const float *)call_input(call, 2)->data;
    for (int64_t row = first; row < last; row++) {
        const float *x = in_row(call, 0, row), *target = in_row(call, 1, row);
        float *change = out_row(call, row);
        double sum = 0;
        for (int64_t col = 0; col < call->node->shape[0]; col++) {
            float apart = x[col] - target[col];
            sum += 0.5 * (double)apart * (double)apart;
            change[col] = weights[row] * apart;
        }
        call->node->params.result[row] = (float)sum;
    }
}

typedef void norm_back_fn(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                          float *normed);

static void norm_back(const struct graph_call *call, int64_t first, int64_t last, norm_back_fn *back) {
    const struct graph_params *params = &call->node->params;
    const float *gain = call_vector(call, 2);
    for (int64_t row = first; row < last; row++) {
        const float *dy = in_row(call, 0, row), *x = in_row(call, 1, row);
        float *dx = out_row(call, row);
        for (int64_t col = 0; col < call->node->shape[0]; col += params->group)
            back(dy + col, x + col, gain, params->eps, params->group, dx + col, NULL);
    }
}

void run_rms_norm_back(const struct graph_call *call, int64_t first, int64_t last) {
    norm_back(call, first, last, call->graph->kernels->training.rms_norm_backward);
}

void run_layer_norm_back(const struct graph_call *call, int64_t first, int64_t last) {
    norm_back(call, first, last, call->graph->kernels->training.layer_norm_backward);
}

void run_softmax_back(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->training.softmax_backward(in_row(call, 0, row), in_row(call, 1, row),
                                                        call->node->params.scale, call->node->shape[0],
                                                        out_row(call, row));
}

void run_softcap_back(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->training.softcap_backward(in_row(call, 0, row), in_row(call, 1, row),
                                                        call->node->params.softcap, call->node->shape[0],
                                                        out_row(call, row));
}

void run_unary_back(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->training.unary_backward(call->node->params.unary, in_row(call, 0, row),
                                                      in_row(call, 1, row), call->node->shape[0], out_row(call, row));
}

void run_gated_back(const struct graph_call *call, int64_t first, int64_t last) {
    int64_t cols = call->node->shape[0] / 2;
    for (int64_t row = first; row < last; row++) {
        float *d_gate = out_row(call, row);
        call->graph->kernels->training.gated_backward(call->node->params.unary, in_row(call, 0, row),
                                                      in_row(call, 1, row), in_row(call, 2, row), cols, d_gate,
                                                      d_gate + cols);
    }
}

/* ------------------------------------------------------------------------ attention */

int64_t tiles_sdpa(const struct graph *graph, struct graph_node *node, int threads) {
    (void)threads;
    return graph->unit_count * node->params.kv_heads;
}

/* Queries, keys and values are inputs from `from` on. */
static struct sdpa_args sdpa_args(const struct graph_call *call, int from, const struct graph_node *begin) {
    const struct graph_params *params = &call->node->params;
    const struct graph_node *q = call_input(call, from), *k = call_input(call, from + 1),
                            *v = call_input(call, from + 2);
    return (struct sdpa_args){.rows = begin->rows,
                              .begin = (const int32_t *)begin->data,
                              .heads = params->heads,
                              .kv_heads = params->kv_heads,
                              .head_dim = params->head_dim,
                              .scale = params->scale,
                              .softcap = params->softcap,
                              .window = params->window,
                              .causal = params->causal,
                              .q = (const float *)q->data,
                              .k = (const float *)k->data,
                              .v = (const float *)v->data,
                              .q_row = row_step(q),
                              .k_row = row_step(k),
                              .v_row = row_step(v)};
}

static void sdpa_output(struct sdpa_args *args, const struct graph_node *both) {
    args->out = (float *)both->data;
    args->lse = args->out + (int64_t)args->heads * args->head_dim;
    args->out_row = args->lse_row = row_step(both);
}

typedef void sdpa_fn(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);

/* Units that see most come first, so that threads end together: `late` says whether those are the later rows. */
static void run_units(const struct graph_call *call, const struct sdpa_args *args, sdpa_fn *run, bool late,
                      int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; unit++) {
        int64_t at = unit / args->kv_heads;
        const struct row_block *rows = &call->graph->units[late ? call->graph->unit_count - 1 - at : at];
        run(args, rows->row0, rows->row1, (int)(unit % args->kv_heads), call->scratch);
    }
}

void run_sdpa(const struct graph_call *call, int64_t first, int64_t last) {
    struct sdpa_args args = sdpa_args(call, 0, call_input(call, 3));
    sdpa_output(&args, call->node);
    run_units(call, &args, call->graph->kernels->training.sdpa_forward, true, first, last);
}

static struct sdpa_args sdpa_back_args(const struct graph_call *call) {
    struct sdpa_args args = sdpa_args(call, 1, call_input(call, 5));
    sdpa_output(&args, call_input(call, 4));
    args.d_out = in_row(call, 0, 0);
    args.d_out_row = row_step(call_input(call, 0));
    return args;
}

void run_sdpa_back_q(const struct graph_call *call, int64_t first, int64_t last) {
    struct sdpa_args args = sdpa_back_args(call);
    args.dq = out_row(call, 0);
    args.dq_row = row_step(call->node);
    run_units(call, &args, call->graph->kernels->training.sdpa_backward_q, true, first, last);
}

void run_sdpa_back_kv(const struct graph_call *call, int64_t first, int64_t last) {
    struct sdpa_args args = sdpa_back_args(call);
    args.dk = out_row(call, 0);
    args.dv = args.dk + (int64_t)args.kv_heads * args.head_dim;
    args.dk_row = args.dv_row = row_step(call->node);
    run_units(call, &args, call->graph->kernels->training.sdpa_backward_kv, false, first, last);
}
