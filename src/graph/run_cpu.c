/* The CPU column of the operation table: tile rules and run functions. */
#include "graph/op.h"

#include <string.h>

/* ------------------------------------------------------------ tuning constants
 * Sizes of the work that one thread takes at a time. They change speed only. */

/* One token: weight bytes per tile. Every tile is a stream that the prefetcher must
 * find anew (16 KiB cost a fifth of the speed); large ones end a wave unevenly. */
#define DECODE_TILE_BYTES       ((int64_t)128 << 10)
#define DECODE_TILES_PER_THREAD 4
/* Many tokens: a group of panels that stays in half an L2 of 512 KiB while the
 * token tiles pass over it, and tokens whose activations fit the other half. */
#define PREFILL_PANEL_BYTES      ((int64_t)128 << 10)
#define PREFILL_TOKEN_BYTES      ((int64_t)192 << 10)
#define PREFILL_TOKENS_MIN       32
#define PREFILL_TILES_PER_THREAD 4
/* From this many tokens on a product counts as prefill. */
#define PREFILL_FROM 16

/* ------------------------------------------------------------------ tile rules */

int64_t tiles_matmul(const struct graph *graph, struct graph_node *node, int threads) {
    const struct packed *weight = node->params.weight;
    int64_t panels = packed_panels(weight), panel_bytes = (int64_t)weight->panel_bytes;
    struct graph_cut *cut = &node->cut;
    cut->outer_count = cut->inner_count = 0;
    if (node->rows == 0) return 0;
    if (node->rows < PREFILL_FROM) {
        int64_t by_bytes = DECODE_TILE_BYTES / (panel_bytes > 0 ? panel_bytes : 1);
        int64_t by_threads = panels / ((int64_t)threads * DECODE_TILES_PER_THREAD);
        cut->outer = clamp(by_bytes < by_threads ? by_bytes : by_threads, 1, panels);
        cut->inner = node->rows;
    } else {
        int64_t x_bytes = (int64_t)graph->nodes[node->input[0]].row_bytes;
        int64_t tokens = clamp(PREFILL_TOKEN_BYTES / x_bytes, PREFILL_TOKENS_MIN, node->rows);
        cut->inner = even_part(node->rows, tokens < node->rows ? tokens : node->rows);
        int64_t token_tiles = div_up(node->rows, cut->inner);
        int64_t wanted = div_up((int64_t)threads * PREFILL_TILES_PER_THREAD, token_tiles);
        int64_t group = clamp(PREFILL_PANEL_BYTES / (panel_bytes > 0 ? panel_bytes : 1), 1, panels);
        int64_t by_threads = clamp(panels / wanted, 1, panels);
        cut->outer = group < by_threads ? group : by_threads;
    }
    cut->outer = even_part(panels, cut->outer);
    cut->outer_count = div_up(panels, cut->outer);
    cut->inner_count = div_up(node->rows, cut->inner);
    return cut->outer_count * cut->inner_count;
}

/* Blocks of rows times KV heads; query heads of one KV head are parted only
 * when that leaves threads without work, as each part reads the keys again. */
int64_t tiles_attention(const struct graph *graph, struct graph_node *node, int threads) {
    const struct graph_params *params = &node->params;
    int64_t tiles = graph->block_count * params->kv_heads;
    int64_t group = params->heads / params->kv_heads;
    struct graph_cut *cut = &node->cut;
    cut->inner = group;
    if (tiles > 0 && tiles < threads) cut->inner = even_part(group, clamp(group * tiles / threads, 1, group));
    cut->inner_count = div_up(group, cut->inner) * params->kv_heads;
    cut->outer = 1;
    cut->outer_count = graph->block_count;
    return cut->outer_count * cut->inner_count;
}

const float *call_vector(const struct graph_call *call, int i) {
    if (i >= call->node->inputs) return NULL;
    const struct graph_node *in = call_input(call, i);
    return in->kind == OP_CONST ? in->params.constant : in->params.parameter->data;
}

/* --------------------------------------------------------------- run functions */

void run_embed(const struct graph_call *call, int64_t first, int64_t last) {
    const int32_t *ids = (const int32_t *)call_input(call, 0)->data;
    const struct tensor *table = call->node->params.table;
    const struct graph_parameter *parameter = call->node->inputs == 2 ? call_input(call, 1)->params.parameter : NULL;
    const void *data = parameter ? parameter->data : table ? table->data : NULL;
    enum dtype dtype = parameter ? parameter->dtype : table ? table->dtype : DT_F32;
    int64_t cols = call->node->shape[0];
    size_t bytes = dtype_row_bytes(dtype, cols);
    for (int64_t row = first; row < last; row++) {
        if (data)
            dtype_table[dtype].to_f32((const uint8_t *)data + (size_t)ids[row] * bytes, out_row(call, row), cols);
        else
            packed_row(call->node->params.weight, ids[row], out_row(call, row));
    }
}

void run_gather(const struct graph_call *call, int64_t first, int64_t last) {
    const int32_t *indices = (const int32_t *)call_input(call, 1)->data;
    for (int64_t row = first; row < last; row++)
        memcpy(out_row(call, row), in_row(call, 0, indices[row]), call->node->row_bytes);
}

void run_quantize(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->act8_quantize(in_row(call, 0, row), call->node->shape[0], out_row(call, row));
}

void run_matmul(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node, *x = call_input(call, 0);
    const struct packed *weight = node->params.weight;
    const struct graph_cut *cut = &node->cut;
    const struct matmul_args args = {.weight = weight,
                                     .x = x->data,
                                     .x_row_bytes = x->row_bytes,
                                     .bias = call_vector(call, 1),
                                     .out = (float *)node->data,
                                     .out_stride = node->shape[0]};
    int64_t panels = packed_panels(weight);
    for (int64_t tile = first; tile < last; tile++) {
        int64_t panel0 = tile / cut->inner_count * cut->outer, t0 = tile % cut->inner_count * cut->inner;
        int64_t panel1 = panel0 + cut->outer < panels ? panel0 + cut->outer : panels;
        int64_t t1 = t0 + cut->inner < node->rows ? t0 + cut->inner : node->rows;
        call->graph->kernels->matmul[weight->dtype](&args, panel0, panel1, t0, t1);
    }
}

void run_rms_norm(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_params *params = &call->node->params;
    const float *gain = call_vector(call, 1);
    for (int64_t row = first; row < last; row++) {
        const float *x = in_row(call, 0, row);
        float *y = out_row(call, row);
        for (int64_t col = 0; col < call->node->shape[0]; col += params->group)
            call->graph->kernels->rms_norm(x + col, gain, params->eps, params->group, y + col);
    }
}

void run_layer_norm(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->layer_norm(in_row(call, 0, row), call_vector(call, 1), call_vector(call, 2),
                                         call->node->params.eps, call->node->shape[0], out_row(call, row));
}

void run_softmax(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->softmax(in_row(call, 0, row), call->node->params.scale, call->node->shape[0],
                                      out_row(call, row));
}

/* Kernels of one exact operation per element take all rows of a tile at once, where these are contiguous. Others
 * go row by row: a vector body and its tail may round differently, so an element's place in the vector must
 * depend on its column only. */
static int64_t rows_at_once(const struct graph_call *call, int64_t first, int64_t last) {
    for (int i = 0; i < call->node->inputs; i++)
        if (call_input(call, i)->row_bytes != call->node->row_bytes) return 1;
    return last - first;
}

void run_add(const struct graph_call *call, int64_t first, int64_t last) {
    int64_t rows = rows_at_once(call, first, last);
    for (int64_t row = first; row < last; row += rows)
        call->graph->kernels->add(in_row(call, 0, row), in_row(call, 1, row), rows * call->node->shape[0],
                                  out_row(call, row));
}

void run_mul(const struct graph_call *call, int64_t first, int64_t last) {
    int64_t rows = rows_at_once(call, first, last);
    for (int64_t row = first; row < last; row += rows)
        call->graph->kernels->mul(in_row(call, 0, row), in_row(call, 1, row), rows * call->node->shape[0],
                                  out_row(call, row));
}

void run_scale(const struct graph_call *call, int64_t first, int64_t last) {
    int64_t rows = rows_at_once(call, first, last);
    for (int64_t row = first; row < last; row += rows)
        call->graph->kernels->scale(in_row(call, 0, row), call->node->params.scale, rows * call->node->shape[0],
                                    out_row(call, row));
}

void run_softcap(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->softcap(in_row(call, 0, row), call->node->params.softcap, call->node->shape[0],
                                      out_row(call, row));
}

void run_unary(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->unary(call->node->params.unary, in_row(call, 0, row), call->node->shape[0],
                                    out_row(call, row));
}

void run_gated(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->gated(call->node->params.unary, in_row(call, 0, row), in_row(call, 1, row),
                                    call->node->shape[0], out_row(call, row));
}

void run_rope_table(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_params *params = &call->node->params;
    const int32_t *given = call->node->inputs == 1 ? (const int32_t *)call_input(call, 0)->data : NULL;
    for (int64_t row = first; row < last; row++) {
        float *out = out_row(call, row);
        rope_table(given ? given[row] : call->step->kv->row[row].position, params->rot, params->freq_base,
                   params->freq_scale, params->factors, out);
        for (int i = params->rot / 2; params->inverse && i < params->rot; i++) out[i] = -out[i];
    }
}

void run_rope(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_params *params = &call->node->params;
    for (int64_t row = first; row < last; row++) {
        const float *x = in_row(call, 0, row);
        float *y = out_row(call, row);
        if (y != x) memcpy(y, x, call->node->row_bytes);
        call->graph->kernels->rope(y, params->heads, params->head_dim, params->rot, params->neox, in_row(call, 1, row));
    }
}

void run_kv_store(const struct graph_call *call, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        call->graph->kernels->kv_store(call->step->kv, call->node->params.layer, row, in_row(call, 0, row),
                                       in_row(call, 1, row));
}

void run_attention(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node;
    const struct graph_params *params = &node->params;
    const struct attention_args args = {.step = call->step->kv,
                                        .layer = params->layer,
                                        .heads = params->heads,
                                        .scale = params->scale,
                                        .softcap = params->softcap,
                                        .window = params->window,
                                        .q = in_row(call, 0, 0),
                                        .q_stride = row_step(call_input(call, 0)),
                                        .out = out_row(call, 0),
                                        .out_stride = node->shape[0]};
    int group = params->heads / params->kv_heads, parts = (int)(node->cut.inner_count / params->kv_heads);
    for (int64_t tile = first; tile < last; tile++) {
        /* Later rows see more keys: they go first, so that threads end together. */
        int64_t at = node->cut.outer_count - 1 - tile / node->cut.inner_count;
        const struct row_block *block = &call->graph->blocks[at];
        int part = (int)(tile % node->cut.inner_count), kv_head = part / parts;
        int head0 = kv_head * group + part % parts * (int)node->cut.inner;
        int head1 = head0 + (int)node->cut.inner;
        if (head1 > (kv_head + 1) * group) head1 = (kv_head + 1) * group;
        call->graph->kernels->attention(&args, block->row0, block->row1, head0, head1, call->scratch);
    }
}
