/* Planning: which nodes run together, how long each value lives, where it lies. */
#include "graph/op.h"

#include <string.h>

/* -------------------------------------------------------- waves and strands */

static bool is_leaf(const struct graph_node *node) {
    return op_table[node->kind].leaf;
}

/* What runs at all: no leaves, no views, nothing that the backward pass made in vain. */
static bool runs(const struct graph *graph, const struct plan *plan, node_id id) {
    return op_table[node_at(graph, id)->kind].run[BACKEND_CPU] != NULL && !plan->node[id].dead;
}

/* Finds what views show, and nodes of the backward pass that nobody reads. */
static void plan_reads(const struct graph *graph, struct plan *plan) {
    for (int id = graph->count - 1; id >= 0; id--) {
        const struct graph_node *node = node_at(graph, id);
        struct plan_node *at = &plan->node[id];
        at->value = node_value(graph, id);
        if (node->output) plan->node[at->value].kept = true;
        at->dead = node->emitted && !at->kept && at->readers == 0 && !op_table[node->kind].acts;
        if (!runs(graph, plan, id)) continue;
        for (int i = 0; i < node->inputs; i++) plan->node[node_value(graph, node->input[i])].readers++;
    }
}

/* Lists every value's readers in ascending order. */
static void plan_readers(const struct graph *graph, struct plan *plan) {
    int total = 0;
    for (int id = 0; id < graph->count; id++) {
        plan->node[id].first_reader = total;
        total += plan->node[id].readers;
        plan->node[id].readers = 0;
    }
    for (int id = 0; id < graph->count; id++) {
        const struct graph_node *node = node_at(graph, id);
        if (!runs(graph, plan, id)) continue;
        for (int i = 0; i < node->inputs; i++) {
            struct plan_node *in = &plan->node[plan->node[node->input[i]].value];
            plan->reader[in->first_reader + in->readers++] = id;
        }
    }
}

/* True if row i of a view is not row i of what it shows. */
static bool shifts_rows(const struct graph *graph, node_id in) {
    for (; op_table[node_at(graph, in)->kind].view; in = node_at(graph, in)->input[0])
        if (node_at(graph, in)->kind != OP_COLUMNS) return true;
    return false;
}

enum { JOIN_NEW_STRAND = -1, JOIN_NEW_WAVE = -2 };

/* Where node `id` may run, given the wave being filled: in one of its strands,
 * in a new strand beside them, or only after the wave. */
static int find_strand(const struct graph *graph, const struct plan *plan, int id, int wave) {
    const struct graph_node *node = node_at(graph, id);
    int strand = JOIN_NEW_STRAND;
    for (int i = 0; i < node->inputs; i++) {
        node_id in = plan->node[node->input[i]].value;
        if (is_leaf(node_at(graph, in)) || plan->node[in].wave != wave) continue;
        if (strand != JOIN_NEW_STRAND && strand != plan->node[in].strand) return JOIN_NEW_WAVE;
        if (shifts_rows(graph, node->input[i])) return JOIN_NEW_WAVE;
        strand = plan->node[in].strand;
    }
    if (strand == JOIN_NEW_STRAND) return strand;
    /* A chain goes row by row: every link must be row-wise over the same rows. */
    const struct graph_node *head = node_at(graph, plan->strand[strand].first);
    const struct graph_op *op = &op_table[node->kind];
    bool chains = op_is_row_wise(node->kind) && !op->mixes_rows && op_is_row_wise(head->kind) && same_rows(node, head);
    return chains ? strand : JOIN_NEW_WAVE;
}

static void plan_waves(const struct graph *graph, struct plan *plan) {
    bool barrier = true; /* one before a node that does not run counts for the next that does */
    for (int id = 0; id < graph->count; id++) {
        struct plan_node *at = &plan->node[id];
        at->strand = at->next = at->storage = -1;
        barrier = barrier || node_at(graph, id)->barrier;
        if (!runs(graph, plan, id)) continue;
        int strand = barrier ? JOIN_NEW_WAVE : find_strand(graph, plan, id, plan->waves - 1);
        barrier = false;
        if (strand == JOIN_NEW_WAVE) plan->wave[plan->waves++] = (struct graph_wave){.first_strand = plan->strands};
        if (strand < 0) {
            strand = plan->strands++;
            plan->wave[plan->waves - 1].strands++;
            plan->strand[strand] = (struct graph_strand){.first = id, .last = id};
        } else {
            plan->node[plan->strand[strand].last].next = id;
            plan->strand[strand].last = id;
        }
        at->wave = plan->waves - 1;
        at->strand = strand;
    }
}

/* ----------------------------------------------------------------- liveness */

static void plan_last_use(const struct graph *graph, struct plan *plan) {
    for (int id = 0; id < graph->count; id++) {
        struct plan_node *at = &plan->node[id];
        at->last_use = at->wave;
        /* Inputs keep their values over runs; outputs are read after them. */
        if (at->kept || node_at(graph, id)->kind == OP_INPUT) at->last_use = plan->waves > 0 ? plan->waves - 1 : 0;
        for (int i = 0; i < at->readers; i++) {
            int wave = plan->node[plan->reader[at->first_reader + i]].wave;
            if (at->last_use < wave) at->last_use = wave;
        }
    }
}

/* True if nobody reads `in` after or beside node `id`: all its other readers ran
 * in earlier waves or stand earlier in the same strand. */
static bool dies_at(const struct graph *graph, const struct plan *plan, node_id in, node_id id) {
    const struct plan_node *at = &plan->node[id], *value = &plan->node[in];
    if (value->kept || is_leaf(node_at(graph, in)) || value->last_use > at->wave) return false;
    for (int i = value->readers - 1; i >= 0; i--) {
        node_id other = plan->reader[value->first_reader + i];
        const struct plan_node *reader = &plan->node[other];
        if (other == id) continue;
        if (reader->wave < at->wave) return true;
        if (reader->strand != at->strand || other > id) return false;
        if (op_table[node_at(graph, other)->kind].mixes_rows) return false;
    }
    return true;
}

/* True if node `id` may write over input i while it reads its inputs: no other input shows the same memory, but the
 * very same rows where both may be overwritten (x * x). */
static bool reads_once(const struct graph *graph, const struct plan *plan, node_id id, int i) {
    const struct graph_node *node = node_at(graph, id);
    for (int j = 0; j < node->inputs; j++) {
        if (j == i || plan->node[node->input[j]].value != plan->node[node->input[i]].value) continue;
        if (node->input[j] != node->input[i] || !(op_table[node->kind].in_place >> j & 1)) return false;
    }
    return true;
}

/* The value whose memory node `id` may overwrite with its own; itself if none. */
static node_id find_storage(const struct graph *graph, const struct plan *plan, node_id id) {
    const struct graph_node *node = node_at(graph, id);
    /* The gradient of rows in parts: every part writes its rows of one value. */
    if (node->params.part > 0 && node->kind == OP_LINEAR_BACK) return plan->node[node->input[2]].storage;
    for (int i = 0; i < node->inputs; i++) {
        node_id in = node->input[i];
        if (!(op_table[node->kind].in_place >> i & 1) || plan->node[in].value != in) continue;
        if (plan->node[in].row_bytes == plan->node[id].row_bytes && node->dtype == node_at(graph, in)->dtype &&
            same_rows(node, node_at(graph, in)) && reads_once(graph, plan, id, i) && dies_at(graph, plan, in, id))
            return plan->node[in].storage;
    }
    return id;
}

static int plan_spans(const struct graph *graph, struct plan *plan, int64_t max_rows, int64_t max_gathered,
                      struct shu_error *err) {
    for (node_id id = 0; id < graph->count; id++) {
        const struct graph_node *node = node_at(graph, id);
        struct plan_node *at = &plan->node[id];
        struct plan_span *own = &plan->span[id];
        bool shown = at->value != id;
        at->row_bytes = shown && node->kind != OP_RESHAPE ? plan->node[node->input[0]].row_bytes : node_row_bytes(node);
        int64_t rows = node_rows(node, max_rows, max_gathered);
        *own = (struct plan_span){.start = at->wave, .end = at->last_use};
        if (rows < 0 || size_mul((size_t)rows, at->row_bytes, &own->bytes) || own->bytes > SIZE_MAX / 4)
            return SHU_FAIL(err, SHU_E_RANGE, NODE_TEXT ": %lld rows of %zu bytes are too large",
                            NODE_ARGS(graph, node), (long long)rows, at->row_bytes);
        if (at->row_bytes == 0 || shown || at->dead) {
            own->bytes = 0;
            continue;
        }
        at->storage = find_storage(graph, plan, id);
        struct plan_span *span = &plan->span[at->storage];
        if (span->end < at->last_use) span->end = at->last_use;
        if (at->storage != id) own->bytes = 0;
    }
    return SHU_OK;
}

/* ---------------------------------------------------------------- placement */

static bool alive_together(const struct plan_span *a, const struct plan_span *b) {
    return a->start <= b->end && b->start <= a->end;
}

/* Best fit among the gaps left by placed spans that live at the same time.
 * placed[0…count) is sorted by offset. */
static size_t find_offset(const struct plan_span *spans, const int *placed, int count, const struct plan_span *want,
                          size_t bytes) {
    size_t cursor = 0, best = SIZE_MAX, best_gap = SIZE_MAX;
    for (int i = 0; i < count; i++) {
        const struct plan_span *other = &spans[placed[i]];
        if (!alive_together(want, other)) continue;
        if (other->offset > cursor && other->offset - cursor >= bytes && other->offset - cursor < best_gap) {
            best = cursor;
            best_gap = other->offset - cursor;
        }
        size_t end = other->offset + (other->bytes + 63) / 64 * 64;
        if (end > cursor) cursor = end;
    }
    return best != SIZE_MAX ? best : cursor;
}

size_t plan_place(struct plan_span *spans, int count, int *order) {
    int wanted = 0;
    for (int i = 0; i < count; i++) { /* insertion sort, largest first: few hundred nodes, stable */
        spans[i].offset = 0;
        if (spans[i].bytes == 0) continue;
        int at = wanted++;
        for (; at > 0 && spans[order[at - 1]].bytes < spans[i].bytes; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    size_t total = 0;
    for (int i = 0; i < wanted; i++) { /* order[0…i) becomes the placed spans by offset */
        int span = order[i];
        size_t bytes = (spans[span].bytes + 63) / 64 * 64;
        spans[span].offset = find_offset(spans, order, i, &spans[span], bytes);
        if (spans[span].offset + bytes > total) total = spans[span].offset + bytes;
        int at = i;
        for (; at > 0 && spans[order[at - 1]].offset > spans[span].offset; at--) order[at] = order[at - 1];
        order[at] = span;
    }
    return total;
}

/* ------------------------------------------------------------------- the plan */

/* Bytes of working memory that one thread needs for a node. */
static size_t scratch_of(const struct graph_node *node) {
    const struct graph_params *params = &node->params;
    switch (node->kind) {
    case OP_ATTENTION:
        return attention_scratch_bytes(params->head_dim);
    case OP_SDPA:
    case OP_SDPA_BACK_Q:
    case OP_SDPA_BACK_KV:
        return sdpa_scratch_bytes(params->head_dim, params->heads / params->kv_heads);
    case OP_LINEAR:
    case OP_LINEAR_BACK:
    case OP_WEIGHT_GRADIENT:
        return gemm_scratch_bytes();
    case OP_CONV:
    case OP_CONV_BACK:
    case OP_CONV_GRADIENT:
        return conv_scratch_bytes();
    case OP_LSTM:
        return lstm_scratch_bytes(node->shape[0] / 6);
    case OP_LSTM_BACK:
        return lstm_scratch_bytes(node->shape[0] / 5);
    case OP_CROSS_ENTROPY:
        return params->softcap > 0 ? (size_t)node->shape[0] * sizeof(float) : 0;
    default:
        return 0;
    }
}

static void plan_scratch(const struct graph *graph, struct plan *plan) {
    plan->query_group = 1;
    for (int id = 0; id < graph->count; id++) {
        const struct graph_node *node = node_at(graph, id);
        size_t need = (scratch_of(node) + 63) / 64 * 64;
        if (need > plan->scratch_bytes) plan->scratch_bytes = need;
        if (node->kind != OP_ATTENTION) continue;
        int group = node->params.heads / node->params.kv_heads;
        if (group > plan->query_group) plan->query_group = group;
    }
}

static int plan_memory(const struct graph *graph, struct plan *plan, int threads, struct shu_error *err) {
    int *order = mem_calloc((size_t)graph->count + 1, sizeof *order);
    if (order == NULL) return SHU_FAIL(err, SHU_E_NOMEM, "no memory to plan %d graph nodes", graph->count);
    size_t sum = 0;
    int status = SHU_OK;
    for (int id = 0; id < graph->count && status == SHU_OK; id++)
        if (size_add(sum, plan->span[id].bytes + 64, &sum) || sum > SIZE_MAX / 4)
            status =
                SHU_FAIL(err, SHU_E_RANGE, "the values of a graph of %d nodes are too large together", graph->count);
    if (status == SHU_OK) {
        plan->activation_bytes = plan_place(plan->span, graph->count, order);
        plan_scratch(graph, plan);
        plan->total_bytes = plan->activation_bytes + plan->scratch_bytes * (size_t)threads;
        if (plan->total_bytes == 0) plan->total_bytes = 64;
    }
    mem_free(order);
    return status;
}

static int plan_make(const struct graph *graph, int64_t max_rows, int64_t max_gathered, int threads, struct plan *out,
                     struct shu_error *err) {
    *out = (struct plan){0};
    if (graph->status) {
        if (err) *err = graph->error;
        return graph->status;
    }
    if (max_rows < 1 || max_rows > INT32_MAX || max_gathered < 0 || max_gathered > INT32_MAX || threads < 1)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "a plan needs 1 or more rows and threads, found %lld, %lld gathered, %d threads",
                        (long long)max_rows, (long long)max_gathered, threads);
    if (graph->loss_rows > 0 && max_gathered > graph->loss_rows)
        return SHU_FAIL(err, SHU_E_USAGE, "the loss was built for at most %lld gathered rows, found %lld",
                        (long long)graph->loss_rows, (long long)max_gathered);
    size_t count = (size_t)graph->count + 1;
    out->node = mem_calloc(count, sizeof *out->node);
    out->span = mem_calloc(count, sizeof *out->span);
    out->reader = mem_calloc(count * GRAPH_MAX_INPUTS, sizeof *out->reader);
    out->strand = mem_calloc(count, sizeof *out->strand);
    out->wave = mem_calloc(count, sizeof *out->wave);
    int status = SHU_OK;
    if (out->node == NULL || out->span == NULL || out->reader == NULL || out->strand == NULL || out->wave == NULL)
        status = SHU_FAIL(err, SHU_E_NOMEM, "no memory to plan %d graph nodes", graph->count);
    if (status == SHU_OK) {
        plan_reads(graph, out);
        plan_readers(graph, out);
        plan_waves(graph, out);
        plan_last_use(graph, out);
        status = plan_spans(graph, out, max_rows, max_gathered, err);
    }
    if (status == SHU_OK) status = plan_memory(graph, out, threads, err);
    if (status) plan_free(out);
    return status;
}

void plan_free(struct plan *plan) {
    mem_free(plan->node);
    mem_free(plan->span);
    mem_free(plan->reader);
    mem_free(plan->strand);
    mem_free(plan->wave);
    *plan = (struct plan){0};
}

int graph_plan_bytes(const struct graph *graph, int64_t max_rows, int64_t max_gathered, int threads, size_t *out,
                     struct shu_error *err) {
    struct plan plan;
    int status = plan_make(graph, max_rows, max_gathered, threads, &plan, err);
    if (status) return status;
    *out = plan.total_bytes;
    plan_free(&plan);
    return SHU_OK;
}

/* Where a view begins in the rows of its input. */
static uint8_t *view_data(const struct graph *graph, const struct graph_node *node) {
    const struct graph_node *in = node_input(graph, node, 0);
    if (node->kind == OP_COLUMNS) return in->data + (size_t)node->params.first * sizeof(float);
    if (node->kind == OP_RESHAPE) return in->data;
    int64_t before = node->params.part * node->params.part_rows; /* the last parts may be empty */
    return in->data + (size_t)(before < graph->max_gathered ? before : graph->max_gathered) * in->row_bytes;
}

static void plan_bind(struct graph *graph) {
    for (int id = 0; id < graph->count; id++) {
        struct graph_node *node = &graph->nodes[id];
        const struct plan_node *at = &graph->plan.node[id];
        node->row_bytes = at->row_bytes;
        node->next = at->next;
        if (at->storage >= 0) node->data = graph->memory + graph->plan.span[at->storage].offset;
        if (at->value != id && node_input(graph, node, 0)->data) node->data = view_data(graph, node);
    }
}

/* Memory of a planned graph, all of it cleared by the caller's failure path. */
static int plan_allocate(struct graph *graph, struct shu_error *err) {
    int64_t spans =
        graph->begin < 0 ? 0 : node_rows(node_at(graph, graph->begin), graph->max_rows, graph->max_gathered);
    graph->blocks = mem_calloc((size_t)graph->max_rows, sizeof *graph->blocks);
    graph->units = mem_calloc((size_t)spans + 1, sizeof *graph->units);
    graph->profile_ns = mem_calloc((size_t)graph->threads * OP_KINDS, sizeof *graph->profile_ns);
    graph->memory = mem_alloc_large(graph->plan.total_bytes);
    if (graph->blocks && graph->units && graph->profile_ns && graph->memory) return SHU_OK;
    if (graph->memory) mem_free_large(graph->memory, graph->plan.total_bytes);
    mem_free(graph->blocks);
    mem_free(graph->units);
    mem_free(graph->profile_ns);
    graph->memory = NULL;
    graph->blocks = graph->units = NULL;
    graph->profile_ns = NULL;
    return SHU_FAIL(err, SHU_E_NOMEM, "no memory for %zu bytes of activations; take fewer rows per step",
                    graph->plan.total_bytes);
}

int graph_plan(struct graph *graph, int64_t max_rows, int64_t max_gathered, int threads, struct shu_error *err) {
    if (graph->memory) return SHU_FAIL(err, SHU_E_USAGE, "the graph is planned already; build a new one");
    int status = plan_make(graph, max_rows, max_gathered, threads, &graph->plan, err);
    if (status) return status;
    graph->max_rows = max_rows;
    graph->max_gathered = max_gathered;
    graph->threads = threads;
    status = plan_allocate(graph, err);
    if (status)
        plan_free(&graph->plan);
    else
        plan_bind(graph);
    return status;
}

size_t graph_memory_bytes(const struct graph *graph) {
    return graph->memory ? graph->plan.total_bytes : 0;
}

void *graph_data(struct graph *graph, node_id node) {
    if (graph->memory == NULL || node < 0 || node >= graph->count) return NULL;
    return graph->nodes[node].data;
}
