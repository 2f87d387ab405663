/* The CPU column of the LSTM. A unit takes some sequences through all their rows; what one step gives the next is
 * one product over these sequences. */
#include "graph/op.h"

#include <math.h>
#include <string.h>

#define SEQUENCES_MAX 16 /* of a unit: enough for the weights of a step to be worth reading */

size_t lstm_scratch_bytes(int64_t hidden) {
    return (gemm_scratch_bytes() + 63) / 64 * 64 + (size_t)SEQUENCES_MAX * 2 * (size_t)hidden * sizeof(float);
}

int64_t tiles_lstm(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    int64_t sequences = node->rows / node->shape[1];
    if (sequences == 0) return 0;
    node->cut.inner = even_part(sequences, clamp(div_up(sequences, threads), 1, SEQUENCES_MAX));
    return div_up(sequences, node->cut.inner);
}

/* Sequences [first, first + count), in steps of time in the order of the run. */
struct run {
    const struct graph_call *call;
    int64_t first, count, steps, hidden;
    bool reverse;
};

static struct run run_of(const struct graph_call *call, int64_t unit, int64_t hidden) {
    const struct graph_node *node = call->node;
    int64_t first = unit * node->cut.inner, sequences = node->rows / node->shape[1];
    int64_t count = first + node->cut.inner < sequences ? node->cut.inner : sequences - first;
    return (struct run){call, first, count, node->shape[1], hidden, node->params.inverse};
}

/* Row of a sequence at step `step`. */
static int64_t row_at(const struct run *run, int64_t sequence, int64_t step) {
    return (run->first + sequence) * run->steps + (run->reverse ? run->steps - 1 - step : step);
}

/* a times W_hh (turned or not), for all sequences of the unit. */
static void step_product(const struct run *run, const struct graph_parameter *weight, const float *a, int64_t a_row,
                         bool turned, float *c, int64_t c_row) {
    const struct gemm_args args = {.m = run->count,
                                   .n = turned ? weight->rows : weight->cols,
                                   .k = turned ? weight->cols : weight->rows,
                                   .a = a,
                                   .a_row = a_row,
                                   .a_col = 1,
                                   .b_dtype = weight->dtype,
                                   .b = weight->data,
                                   .b_row_bytes = dtype_row_bytes(weight->dtype, weight->cols),
                                   .b_transposed = turned,
                                   .alpha = 1,
                                   .accumulate = true,
                                   .c = c,
                                   .c_row = c_row};
    const struct graph_call *call = run->call;
    for (int64_t n = 0; n < args.n; n += GEMM_COLS)
        call->graph->kernels->training.gemm[call->node->params.precision](
            &args, 0, args.m, n, n + GEMM_COLS < args.n ? n + GEMM_COLS : args.n, call->scratch);
}

/* ------------------------------------------------------------------------- forward
 * A row of the output: hidden state, cell, gates i, f, g, o after their functions. */

static void cell_forward(const struct graph_call *call, int64_t hidden, float *row, const float *cell_before) {
    const struct kernels *kernels = call->graph->kernels;
    float *h = row, *cell = row + hidden, *i = row + 2 * hidden, *f = i + hidden, *g = f + hidden, *o = g + hidden;
    kernels->unary(UNARY_SIGMOID, i, hidden, i);
    kernels->unary(UNARY_SIGMOID, f, hidden, f);
    kernels->unary(UNARY_TANH, g, hidden, g);
    kernels->unary(UNARY_SIGMOID, o, hidden, o);
    for (int64_t k = 0; k < hidden; k++) cell[k] = (cell_before ? f[k] * cell_before[k] : 0) + i[k] * g[k];
    kernels->unary(UNARY_TANH, cell, hidden, h);
    kernels->mul(h, o, hidden, h);
}

static void unit_forward(const struct run *run) {
    const struct graph_call *call = run->call;
    const struct graph_parameter *weight = call_input(call, 1)->params.parameter;
    int64_t hidden = run->hidden, apart = run->steps * row_step(call->node);
    for (int64_t step = 0; step < run->steps; step++) {
        float *first = out_row(call, row_at(run, 0, step));
        const float *before = step > 0 ? out_row(call, row_at(run, 0, step - 1)) : NULL;
        for (int64_t s = 0; s < run->count; s++)
            memcpy(first + s * apart + 2 * hidden, in_row(call, 0, row_at(run, s, step)),
                   (size_t)(4 * hidden) * sizeof(float));
        if (before) step_product(run, weight, before, apart, true, first + 2 * hidden, apart);
        for (int64_t s = 0; s < run->count; s++)
            cell_forward(call, hidden, first + s * apart, before ? before + s * apart + hidden : NULL);
    }
}

void run_lstm(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; unit++) {
        struct run run = run_of(call, unit, call->node->shape[0] / 6);
        unit_forward(&run);
    }
}

/* ------------------------------------------------------------------------ backward
 * A row of the output: gradients of the gates before their functions, the hidden state of the step before. */

/* dh: of this step's hidden state. d_cell: of its cell, from later steps; becomes that of the step before. */
static void cell_backward(int64_t hidden, const float *row, const float *before, const float *dh, float *d_cell,
                          float *out) {
    const float *cell = row + hidden, *i = row + 2 * hidden, *f = i + hidden, *g = f + hidden, *o = g + hidden;
    for (int64_t k = 0; k < hidden; k++) {
        float bent = tanhf(cell[k]), change = d_cell[k] + dh[k] * o[k] * (1 - bent * bent);
        out[k] = change * g[k] * i[k] * (1 - i[k]);
        out[hidden + k] = before ? change * before[hidden + k] * f[k] * (1 - f[k]) : 0;
        out[2 * hidden + k] = change * i[k] * (1 - g[k] * g[k]);
        out[3 * hidden + k] = dh[k] * bent * o[k] * (1 - o[k]);
        out[4 * hidden + k] = before ? before[k] : 0;
        d_cell[k] = change * f[k];
    }
}

static void unit_backward(const struct run *run) {
    const struct graph_call *call = run->call;
    const struct graph_parameter *weight = call_input(call, 2)->params.parameter;
    int64_t hidden = run->hidden;
    float *dh = (float *)((uint8_t *)call->scratch + (gemm_scratch_bytes() + 63) / 64 * 64);
    float *d_cell = dh + SEQUENCES_MAX * hidden;
    memset(d_cell, 0, (size_t)(run->count * hidden) * sizeof(float));
    for (int64_t step = run->steps - 1; step >= 0; step--) {
        for (int64_t s = 0; s < run->count; s++)
            memcpy(dh + s * hidden, in_row(call, 0, row_at(run, s, step)), (size_t)hidden * sizeof(float));
        if (step + 1 < run->steps)
            step_product(run, weight, out_row(call, row_at(run, 0, step + 1)), run->steps * row_step(call->node), false,
                         dh, hidden);
        for (int64_t s = 0; s < run->count; s++)
            cell_backward(hidden, in_row(call, 1, row_at(run, s, step)),
                          step > 0 ? in_row(call, 1, row_at(run, s, step - 1)) : NULL, dh + s * hidden,
                          d_cell + s * hidden, out_row(call, row_at(run, s, step)));
    }
}

void run_lstm_back(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; unit++) {
        struct run run = run_of(call, unit, call->node->shape[0] / 5);
        unit_backward(&run);
    }
}
