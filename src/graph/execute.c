/* Execution on the CPU: bind the counts, cut into tiles, run wave after wave. */
#include "graph/op.h"

#include <string.h>

/* ------------------------------------------------------------ tuning constants */

/* Row-wise work: elements that one thread takes at a time, and the amount below
 * which a wave is not worth waking anybody for. */
#define ROW_TILE_ELEMENTS 8192
#define INLINE_ELEMENTS   16384
/* Queries (rows x heads of one KV head) per attention tile: as many as the kernels hold at once. Twice that
 * fetches fewer keys again but makes longer tiles for a thread to end on; no difference showed above the noise. */
#define ATTENTION_BLOCK_QUERIES 48
#define ATTENTION_BLOCK_ROWS    48

/* --------------------------------------------------------------------- checks */

static int check_step(const struct graph *graph, const struct pool *pool, const struct graph_step *step,
                      struct shu_error *err) {
    if (graph->memory == NULL) return SHU_FAIL(err, SHU_E_USAGE, "the graph was not planned; call graph_plan first");
    if (step->rows < 1 || step->rows > graph->max_rows || step->gathered < 0 || step->gathered > graph->max_gathered)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "the graph was planned for 1 to %lld rows and %lld gathered, found %lld and %lld",
                        (long long)graph->max_rows, (long long)graph->max_gathered, (long long)step->rows,
                        (long long)step->gathered);
    if (pool_threads(pool) > graph->threads)
        return SHU_FAIL(err, SHU_E_USAGE, "the graph was planned for %d threads, the pool has %d", graph->threads,
                        pool_threads(pool));
    if (graph->uses_kv && (step->kv == NULL || step->kv->rows != step->rows))
        return SHU_FAIL(err, SHU_E_USAGE, "the graph needs a KV step of %lld rows, found %lld", (long long)step->rows,
                        step->kv ? (long long)step->kv->rows : 0LL);
    return SHU_OK;
}

/* Ids and row numbers are data of a run: one out of range would read foreign memory. */
static int check_indices(const struct graph *graph, const struct graph_node *node, const struct graph_node *ids,
                         int64_t limit, struct shu_error *err) {
    const int32_t *values = (const int32_t *)ids->data;
    for (int64_t i = 0; i < ids->rows; i++)
        if (values[i] < 0 || values[i] >= limit)
            return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": index %lld must be in [0, %lld), found %d",
                            NODE_ARGS(graph, node), (long long)i, (long long)limit, (int)values[i]);
    return SHU_OK;
}

/* Packed sequences: every row names the first row of its sequence. */
static int check_sequences(const struct graph *graph, const struct graph_node *node, struct shu_error *err) {
    const struct graph_node *begin = node_input(graph, node, 3);
    const int32_t *first = (const int32_t *)begin->data;
    for (int64_t row = 0; row < begin->rows; row++)
        if (first[row] != row && (row == 0 || first[row] != first[row - 1]))
            return SHU_FAIL(
                err, SHU_E_USAGE,
                NODE_TEXT ": row %lld must begin a sequence (%lld) or go on with that of row %lld, found %d",
                NODE_ARGS(graph, node), (long long)row, (long long)row, (long long)row - 1, (int)first[row]);
    return SHU_OK;
}

static int check_node(const struct graph *graph, const struct graph_node *node, const struct graph_step *step,
                      struct shu_error *err) {
    const struct graph_params *params = &node->params;
    if (node->kind == OP_EMBED) {
        int64_t limit = node->inputs == 2 ? node_input(graph, node, 1)->shape[1]
                        : params->table   ? tensor_rows(params->table)
                                          : params->weight->rows;
        return check_indices(graph, node, node_at(graph, node->input[0]), limit, err);
    }
    if (node->kind == OP_GATHER)
        return check_indices(graph, node, node_at(graph, node->input[1]), node_at(graph, node->input[0])->rows, err);
    if (node->kind == OP_CROSS_ENTROPY)
        return check_indices(graph, node, node_at(graph, node->input[1]), node->shape[0], err);
    if (node->kind == OP_SDPA) return check_sequences(graph, node, err);
    if (node->kind == OP_ATTENTION &&
        (step->kv->kv_heads != params->kv_heads || step->kv->head_dim != params->head_dim))
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": needs KV pages of %d heads of %d, found %d of %d",
                        NODE_ARGS(graph, node), params->kv_heads, params->head_dim, step->kv->kv_heads,
                        step->kv->head_dim);
    return SHU_OK;
}

/* -------------------------------------------------------------------- binding */

static int bind_nodes(struct graph *graph, const struct graph_step *step, struct shu_error *err) {
    for (int id = 0; id < graph->count; id++)
        graph->nodes[id].rows = node_rows(&graph->nodes[id], step->rows, step->gathered);
    int status = SHU_OK;
    for (int id = 0; id < graph->count && status == SHU_OK; id++)
        status = check_node(graph, &graph->nodes[id], step, err);
    return status;
}

/* Cuts the rows of a step into blocks that stay inside one sequence. */
static void bind_blocks(struct graph *graph, const struct graph_step *step) {
    graph->block_count = 0;
    if (!graph->uses_kv) return;
    const struct kv_row *rows = step->kv->row;
    int64_t most = ATTENTION_BLOCK_QUERIES / graph->plan.query_group;
    most = most > ATTENTION_BLOCK_ROWS ? ATTENTION_BLOCK_ROWS : most < 1 ? 1 : most;
    for (int64_t row = 0; row < step->rows;) {
        int64_t end = row + 1;
        while (end < step->rows && end - row < most && rows[end].sequence == rows[row].sequence) end++;
        graph->blocks[graph->block_count++] = (struct row_block){(int32_t)row, (int32_t)end};
        row = end;
    }
}

/* The same for attention of packed sequences. */
static void bind_units(struct graph *graph) {
    graph->unit_count = 0;
    if (graph->begin < 0) return;
    const struct graph_node *begin = node_at(graph, graph->begin);
    const int32_t *first = (const int32_t *)begin->data;
    for (int64_t row = 0; row < begin->rows;) {
        int64_t end = row + 1;
        while (end < begin->rows && end - row < SDPA_ROWS && first[end] == first[row]) end++;
        graph->units[graph->unit_count++] = (struct row_block){(int32_t)row, (int32_t)end};
        row = end;
    }
}

/* ------------------------------------------------------------------------ runs */

struct wave_run {
    struct graph *graph;
    const struct graph_wave *wave;
    const struct graph_step *step;
};

static void run_node(const struct graph_call *call, int thread, int64_t first, int64_t last) {
    const struct graph *graph = call->graph;
    graph_run_fn *run = op_table[call->node->kind].run[BACKEND_CPU];
    if (!graph->profiling) {
        run(call, first, last);
        return;
    }
    uint64_t start = clock_ns();
    run(call, first, last);
    graph->profile_ns[thread * OP_KINDS + (int)call->node->kind] += clock_ns() - start;
}

static void run_strand_tile(const struct wave_run *run, const struct graph_strand *strand, int thread, int64_t tile) {
    struct graph *graph = run->graph;
    int64_t first = tile * strand->units_per_tile, last = first + strand->units_per_tile;
    if (last > strand->units) last = strand->units;
    struct graph_call call = {.graph = graph, .step = run->step};
    call.scratch = graph->memory + graph->plan.activation_bytes + graph->plan.scratch_bytes * (size_t)thread;
    for (node_id id = strand->first; id >= 0; id = graph->nodes[id].next) {
        call.node = &graph->nodes[id];
        run_node(&call, thread, first, last);
    }
}

static void run_tile(void *context, int thread, int64_t tile) {
    const struct wave_run *run = context;
    const struct graph_strand *strand = &run->graph->plan.strand[run->wave->first_strand];
    while (tile >= strand->tiles) tile -= (strand++)->tiles;
    run_strand_tile(run, strand, thread, tile);
}

/* Units and tiles of a strand in this run; returns its work in elements, or -1
 * if it has a tile rule of its own and is always worth sharing. */
static int64_t cut_strand(struct graph *graph, struct graph_strand *strand, int threads) {
    struct graph_node *head = &graph->nodes[strand->first];
    const struct graph_op *op = &op_table[head->kind];
    if (op->tiles) {
        strand->units = strand->tiles = op->tiles(graph, head, threads);
        strand->units_per_tile = 1;
        return -1;
    }
    int64_t cols = 0;
    for (node_id id = strand->first; id >= 0; id = graph->nodes[id].next) cols += graph->nodes[id].shape[0];
    strand->units = head->rows;
    strand->units_per_tile = ROW_TILE_ELEMENTS / cols > 1 ? ROW_TILE_ELEMENTS / cols : 1;
    strand->tiles = (strand->units + strand->units_per_tile - 1) / strand->units_per_tile;
    return strand->units * cols;
}

static void run_wave(const struct wave_run *run, struct pool *pool) {
    int64_t tiles = 0, elements = 0;
    bool small = true;
    for (int i = 0; i < run->wave->strands; i++) {
        struct graph_strand *strand = &run->graph->plan.strand[run->wave->first_strand + i];
        int64_t work = cut_strand(run->graph, strand, pool_threads(pool));
        tiles += strand->tiles;
        if (work < 0)
            small = false;
        else
            elements += work;
    }
    if (tiles > 1 && !(small && elements <= INLINE_ELEMENTS)) {
        pool_run(pool, run_tile, (void *)run, tiles);
        return;
    }
    for (int64_t tile = 0; tile < tiles; tile++) run_tile((void *)run, 0, tile);
}

int graph_run(struct graph *graph, struct pool *pool, const struct graph_step *step, struct shu_error *err) {
    int status = check_step(graph, pool, step, err);
    if (status == SHU_OK) status = bind_nodes(graph, step, err);
    if (status) return status;
    bind_blocks(graph, step);
    bind_units(graph);
    struct wave_run run = {.graph = graph, .step = step};
    for (int i = 0; i < graph->plan.waves; i++) {
        run.wave = &graph->plan.wave[i];
        run_wave(&run, pool);
    }
    return SHU_OK;
}

/* --------------------------------------------------------------------- profile */

void graph_profile(struct graph *graph, bool on) {
    graph->profiling = on && graph->profile_ns != NULL;
    if (graph->profiling) memset(graph->profile_ns, 0, (size_t)graph->threads * OP_KINDS * sizeof *graph->profile_ns);
}

void graph_profile_read(const struct graph *graph, uint64_t ns[OP_KINDS]) {
    memset(ns, 0, OP_KINDS * sizeof *ns);
    if (graph->profile_ns == NULL) return;
    for (int thread = 0; thread < graph->threads; thread++)
        for (int kind = 0; kind < OP_KINDS; kind++) ns[kind] += graph->profile_ns[thread * OP_KINDS + kind];
}
