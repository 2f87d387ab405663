/* op: what the files of room graph share: nodes, the operation table, the plan.
 *
 * An operation is one row of op_table. Its run function computes units [first,
 * last) of a node's output for one backend. A unit is an output row, unless the
 * row of the table has a tile rule: then it is one of the tiles that the rule
 * cut (matmul: panels x tokens; attention: row blocks x heads).
 *
 * Gradients (room train) fill the `gradient` column. A rule emits nodes: given
 * a forward node and the node that holds the gradient of its output, it adds
 * nodes that compute the gradient of each input and returns their ids, -1 for
 * an input that has none (ids, indices). It is called for nodes in reverse
 * order; where a node feeds several others the caller sums with graph_add. As
 * emitted nodes are ordinary nodes, they are shaped, planned, tiled and run as
 * all others, and a forward value that a gradient reads stays alive because
 * liveness sees the reader.
 *
 * A device backend gets its own column in `run` and its own executor over the
 * same plan: one call per node with all units, on a stream, waves as the places
 * where streams may overlap.
 */
#ifndef GRAPH_OP_H
#define GRAPH_OP_H

#include "graph/graph.h"

enum graph_backend { BACKEND_CPU, BACKEND_COUNT };

/* How the tile rule cut a node for the current run. */
struct graph_cut {
    int64_t outer, inner; /* matmul: panels and tokens per tile; attention: rows and heads per tile */
    int64_t outer_count, inner_count;
};

struct graph_node {
    enum graph_op_kind kind;
    enum dtype dtype;
    int inputs;
    bool output;
    node_id input[GRAPH_MAX_INPUTS];
    int64_t shape[4]; /* cols, rows, d2, d3; symbolic as built */
    struct graph_params params;
    char label[32];
    node_id quantized; /* the OP_QUANTIZE node of this one; -1 = none yet */
    /* Valid after graph_plan. */
    uint8_t *data;
    size_t row_bytes;
    node_id next; /* in the same strand; -1 = last */
    /* Valid during graph_run. */
    int64_t rows;
    struct graph_cut cut;
};

/* What a run function is told besides the units. */
struct graph_call {
    const struct graph *graph;
    const struct graph_node *node;
    const struct graph_step *step;
    void *scratch; /* this thread's own */
};

typedef int graph_shape_fn(struct graph *graph, struct graph_node *node, struct shu_error *err);
typedef int64_t graph_tiles_fn(const struct graph *graph, struct graph_node *node, int threads);
typedef void graph_run_fn(const struct graph_call *call, int64_t first, int64_t last);
typedef int graph_gradient_fn(struct graph *graph, node_id node, node_id output_gradient,
                              node_id input_gradients[GRAPH_MAX_INPUTS], struct shu_error *err);

struct graph_op {
    const char *name;
    int min_inputs, max_inputs;
    unsigned in_place;     /* bit i: the output may take the memory of input i */
    bool mixes_rows;       /* row-wise in its output, but reads any row of its inputs */
    graph_shape_fn *shape; /* checks inputs and parameters, sets dtype and shape; NULL: set by the builder */
    graph_tiles_fn *tiles; /* NULL: row-wise, unit = row */
    graph_run_fn *run[BACKEND_COUNT];
    graph_gradient_fn *gradient;
};
extern const struct graph_op op_table[OP_KINDS];

/* True if output rows depend on the same rows of the inputs only. */
static inline bool op_is_row_wise(enum graph_op_kind kind) {
    return op_table[kind].tiles == NULL && op_table[kind].run[BACKEND_CPU] != NULL;
}

/* ------------------------------------------------------------ sizes (op.c) */

/* Rows of both are the same in every run. */
static inline bool same_rows(const struct graph_node *a, const struct graph_node *b) {
    return a->shape[1] == b->shape[1] && a->shape[2] == b->shape[2] && a->shape[3] == b->shape[3];
}
/* Product of shape[1…3] with the symbolic counts bound; -1 on overflow. */
int64_t node_rows(const struct graph_node *node, int64_t rows, int64_t gathered);
/* Bytes of one output row; 0 for nodes without data of their own in the block. */
size_t node_row_bytes(const struct graph_node *node);

/* --------------------------------------------------- CPU column (run_cpu.c) */

int64_t tiles_matmul(const struct graph *graph, struct graph_node *node, int threads);
int64_t tiles_attention(const struct graph *graph, struct graph_node *node, int threads);
void run_embed(const struct graph_call *call, int64_t first, int64_t last);
void run_gather(const struct graph_call *call, int64_t first, int64_t last);
void run_quantize(const struct graph_call *call, int64_t first, int64_t last);
void run_matmul(const struct graph_call *call, int64_t first, int64_t last);
void run_rms_norm(const struct graph_call *call, int64_t first, int64_t last);
void run_layer_norm(const struct graph_call *call, int64_t first, int64_t last);
void run_softmax(const struct graph_call *call, int64_t first, int64_t last);
void run_add(const struct graph_call *call, int64_t first, int64_t last);
void run_mul(const struct graph_call *call, int64_t first, int64_t last);
void run_scale(const struct graph_call *call, int64_t first, int64_t last);
void run_softcap(const struct graph_call *call, int64_t first, int64_t last);
void run_unary(const struct graph_call *call, int64_t first, int64_t last);
void run_gated(const struct graph_call *call, int64_t first, int64_t last);
void run_rope_table(const struct graph_call *call, int64_t first, int64_t last);
void run_rope(const struct graph_call *call, int64_t first, int64_t last);
void run_kv_store(const struct graph_call *call, int64_t first, int64_t last);
void run_attention(const struct graph_call *call, int64_t first, int64_t last);

/* ------------------------------------------------------------ plan (plan.c) */

struct graph_strand {
    node_id first, last; /* linked through node.next / plan_node.next */
    /* Valid during graph_run. */
    int64_t tiles, units_per_tile, units;
};

struct graph_wave {
    int first_strand, strands;
};

/* A span of memory wanted from wave `start` to wave `end`, both included. */
struct plan_span {
    size_t bytes;
    int start, end;
    size_t offset; /* result */
};
/* Gives every span an offset (multiple of 64) such that spans alive in the same
 * wave do not overlap; returns the total. `order` is working memory [count]. */
size_t plan_place(struct plan_span *spans, int count, int *order);

struct plan_node {
    int wave, strand;
    node_id next;     /* in the strand */
    node_id storage;  /* node whose span this one uses: itself, or an input it overwrites; -1 = none */
    int last_use;     /* last wave that reads it; its own if none does */
    size_t row_bytes; /* 0: no span */
};

struct plan {
    struct plan_node *node; /* [graph count] */
    struct plan_span *span; /* [graph count] */
    struct graph_strand *strand;
    struct graph_wave *wave;
    int strands, waves;
    int query_group; /* most query heads of a KV head in any attention; 1 if there is none */
    size_t activation_bytes, scratch_bytes, total_bytes; /* scratch: of one thread */
};
void plan_free(struct plan *plan);

/* ------------------------------------------------------------------- graph */

/* Rows [row0, row1) of one sequence, short enough for one attention tile. */
struct row_block {
    int32_t row0, row1;
};

struct graph {
    const struct kernels *kernels;
    struct graph_node *nodes;
    int count, capacity;
    char label[32];
    int status; /* first builder failure */
    struct shu_error error;
    /* Valid after graph_plan. */
    struct plan plan;
    uint8_t *memory;
    int64_t max_rows, max_gathered;
    int threads;
    bool uses_kv;
    struct row_block *blocks; /* [max_rows] */
    int64_t block_count;      /* of the current run */
    uint64_t *profile_ns;     /* [threads * OP_KINDS] */
    bool profiling;
};

static inline const struct graph_node *node_at(const struct graph *graph, node_id id) {
    return &graph->nodes[id];
}

/* "node 12 (matmul, blk.3)" for error messages. */
#define NODE_TEXT "node %d (%s%s%s)"
#define NODE_ARGS(graph, node)                                                                                         \
    (int)((node) - (graph)->nodes), op_table[(node)->kind].name, (node)->label[0] ? ", " : "", (node)->label

#endif
