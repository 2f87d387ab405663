/* op: what the files of room graph share: nodes, the operation table, the plan.
 *
 * An operation is one row of op_table. Its run function computes units [first,
 * last) of a node's output for one backend. A unit is an output row, unless the
 * row of the table has a tile rule: then it is one of the tiles that the rule
 * cut (matmul: panels x tokens; attention: row blocks x heads).
 *
 * The `gradient` column holds rules that emit nodes: given a forward node and
 * the node that holds the gradient of its output, a rule adds nodes that
 * compute the gradient of each input, on top of what that input has received
 * already (gradient_so_far), so that products accumulate in place. Rules are
 * called for nodes in reverse order. As emitted nodes are ordinary nodes, they
 * are shaped, planned, tiled and run as all others, and a forward value that a
 * gradient reads stays alive because liveness sees the reader.
 *
 * A view (OP_COLUMNS, OP_PART) is a node without memory and without a run
 * function: it points into the rows of its input, and keeps their distance.
 * So run functions step through their inputs by the input's row_bytes.
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
    node_id inverse;   /* OP_ROPE_TABLE: the table that turns back; -1 = none yet */
    node_id received;  /* OP_PARAMETER: last node that adds to its gradient; -1 = none yet */
    node_id seeds;     /* of a loss: the node whose gradient this one holds; -1 = none */
    bool learns;       /* depends on a trainable parameter */
    bool barrier;      /* starts a new wave: what came before has left memory */
    bool emitted;      /* by graph_backward: left out where nobody reads it */
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
typedef void graph_gradient_fn(struct graph *graph, node_id node, node_id output_gradient);

struct graph_op {
    const char *name;
    int min_inputs, max_inputs;
    unsigned in_place;     /* bit i: the output may take the memory of input i */
    bool mixes_rows;       /* row-wise in its output, but reads any row of its inputs */
    bool leaf, view;       /* neither runs */
    bool notes;            /* its value is its first columns, seen through a view; the rest is for its own gradient */
    bool again;            /* cheaper to compute a second time than to keep: its own gradient reads its inputs anyway */
    bool acts;             /* runs for what it does elsewhere, whether its output is read or not */
    bool no_data;          /* has no output of its own; others name it to run after it, or to read what it borrows */
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

/* ----------------------------------------------------------- builders (build.c) */

/* Appends a copy of `template` that reads inputs [0, count), shaped by its rule; -1 if refused. */
node_id node_add(struct graph *graph, const struct graph_node *template, const node_id *inputs, int count);
/* Keeps the first failure; returns -1. */
node_id node_refuse(struct graph *graph, int status);

/* ----------------------------------------------------- shape rules (op.c, op_learn.c) */

/* Rows of `from`, `cols` f32 columns. */
void shape_take(struct graph_node *node, const struct graph_node *from, int64_t cols);
/* Input i must be f32 values; have so many columns; have the rows of `same`. */
int check_f32(const struct graph *graph, const struct graph_node *node, int i, struct shu_error *err);
int check_cols(const struct graph *graph, const struct graph_node *node, int i, int64_t cols, struct shu_error *err);
int check_rows(const struct graph *graph, const struct graph_node *node, int i, const struct graph_node *same,
               struct shu_error *err);
/* A constant, or an f32 parameter of one row, of `cols` columns. */
int check_vector(const struct graph *graph, const struct graph_node *node, int i, int64_t cols, struct shu_error *err);
/* A graph input of one column, or a view of it. */
int check_column(const struct graph *graph, const struct graph_node *node, int i, enum dtype dtype,
                 struct shu_error *err);
/* All inputs f32 of one shape. */
graph_shape_fn shape_same;
graph_shape_fn shape_parameter, shape_linear, shape_sdpa, shape_dropout, shape_columns, shape_part, shape_cross_entropy,
    shape_squared_error;
graph_shape_fn shape_linear_back, shape_weight_gradient, shape_vector_gradient, shape_embed_gradient, shape_gather_back,
    shape_columns_back, shape_norm_back, shape_gated_back, shape_sdpa_back;
graph_shape_fn shape_reshape, shape_transpose, shape_conv, shape_pool, shape_batch_stats, shape_batch_norm, shape_lstm,
    shape_conv_back, shape_conv_gradient, shape_max_pool_back, shape_average_pool_back, shape_channel_sums,
    shape_channel_gradient, shape_batch_norm_back, shape_lstm_back;

/* ------------------------------------------------------------ sizes (op.c) */

/* Rows of both are the same in every run. */
static inline bool same_rows(const struct graph_node *a, const struct graph_node *b) {
    return a->shape[1] == b->shape[1] && a->shape[2] == b->shape[2] && a->shape[3] == b->shape[3];
}
/* Product of shape[1…3] with the symbolic counts bound; -1 on overflow. */
int64_t node_rows(const struct graph_node *node, int64_t rows, int64_t gathered);
/* Bytes of one output row; 0 for nodes without data of their own in the block. */
size_t node_row_bytes(const struct graph_node *node);

/* --------------------------------------------- gradients (gradient.c, gradient_rules.c) */

/* For rules. The forward value of a node, as the backward pass reads it: computed again, if it was in a segment or
 * costs little. */
node_id gradient_value(struct graph *graph, node_id node);
/* Whether the gradient of a node leads to a parameter. */
bool gradient_wanted(const struct graph *graph, node_id node);
/* What a node has received up to now (-1 = nothing); all of it anew; more of it. */
node_id gradient_so_far(const struct graph *graph, node_id node);
void gradient_set(struct graph *graph, node_id node, node_id gradient);
void gradient_add(struct graph *graph, node_id node, node_id gradient);
/* Adds a node that adds to the gradient of parameter node `parameter`, its last input, after all that did so before. */
node_id gradient_receive(struct graph *graph, struct graph_node *template, const node_id *inputs, int count,
                         node_id parameter);

graph_gradient_fn gradient_of_embed, gradient_of_gather, gradient_of_rms_norm, gradient_of_layer_norm,
    gradient_of_softmax, gradient_of_add, gradient_of_mul, gradient_of_scale, gradient_of_softcap, gradient_of_unary,
    gradient_of_gated, gradient_of_rope, gradient_of_linear, gradient_of_sdpa, gradient_of_dropout, gradient_of_columns,
    gradient_of_reshape, gradient_of_transpose, gradient_of_conv, gradient_of_max_pool, gradient_of_average_pool,
    gradient_of_batch_norm, gradient_of_lstm;

/* ------------------------------------------------ CPU column (run_cpu.c, run_learn.c) */

static inline int64_t div_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}
/* Evens out: the smallest part size that needs no more parts than `part` does. */
static inline int64_t even_part(int64_t total, int64_t part) {
    return div_up(total, div_up(total, part));
}

graph_tiles_fn tiles_matmul, tiles_attention;
graph_run_fn run_embed, run_gather, run_quantize, run_matmul, run_rms_norm, run_layer_norm, run_softmax, run_add,
    run_mul, run_scale, run_softcap, run_unary, run_gated, run_rope_table, run_rope, run_kv_store, run_attention;

graph_tiles_fn tiles_rows_by_cols, tiles_weight_gradient, tiles_sdpa, tiles_columns;
graph_run_fn run_linear, run_sdpa, run_dropout, run_cross_entropy, run_squared_error, run_linear_back,
    run_weight_gradient, run_vector_gradient, run_embed_gradient, run_gather_back, run_columns_back, run_rms_norm_back,
    run_layer_norm_back, run_softmax_back, run_softcap_back, run_unary_back, run_gated_back, run_sdpa_back_q,
    run_sdpa_back_kv;

graph_tiles_fn tiles_conv, tiles_conv_back, tiles_conv_gradient, tiles_planes, tiles_channels, tiles_one, tiles_lstm;
graph_run_fn run_transpose, run_conv, run_pool, run_batch_stats, run_batch_norm, run_lstm, run_conv_back,
    run_conv_gradient, run_pool_back, run_channel_sums, run_channel_gradient, run_batch_norm_back, run_lstm_back;
/* Scratch of one thread. */
size_t conv_scratch_bytes(void);
size_t lstm_scratch_bytes(int64_t hidden);

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
    node_id next;              /* in the strand */
    node_id storage;           /* node whose span this one uses: itself, or an input it overwrites; -1 = none */
    node_id value;             /* itself; of a view, the node whose memory it shows */
    int last_use;              /* last wave that reads it, also through views; its own if none does */
    size_t row_bytes;          /* 0: no span */
    bool dead;                 /* emitted, and nobody reads it: does not run */
    bool kept;                 /* read after the run, perhaps through a view */
    int first_reader, readers; /* in plan.reader: nodes that read it, also through views, ascending */
};

struct plan {
    struct plan_node *node; /* [graph count] */
    struct plan_span *span; /* [graph count] */
    node_id *reader;        /* of all nodes */
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

/* Forward nodes [first, last) whose values are computed again for the backward pass. */
struct graph_segment {
    node_id first, last; /* last -1 while open */
};

struct graph {
    const struct kernels *kernels;
    struct graph_node *nodes;
    int count, capacity;
    char label[32];
    int status; /* first builder failure */
    struct shu_error error;
    enum gemm_precision precision; /* of products added from now on */
    struct graph_segment *segments;
    int segment_count, segment_capacity;
    int losses;
    int64_t loss_rows; /* fewest rows that a loss in parts has nodes for; 0 = no such loss */
    node_id begin;     /* first rows of sequences, of all OP_SDPA; -1 = none */
    /* Valid from graph_backward on. */
    int forward_count;
    node_id *gradients, *again; /* [forward_count] gradient of a node, its second computation; -1 = none */
    bool emitting;
    /* Valid after graph_plan. */
    struct plan plan;
    uint8_t *memory;
    int64_t max_rows, max_gathered;
    int threads;
    bool uses_kv;
    struct row_block *blocks; /* [max_rows] */
    int64_t block_count;      /* of the current run */
    struct row_block *units;  /* the same for OP_SDPA, from `begin` */
    int64_t unit_count;
    uint64_t *profile_ns; /* [threads * OP_KINDS] */
    bool profiling;
};

static inline const struct graph_node *node_at(const struct graph *graph, node_id id) {
    return &graph->nodes[id];
}
static inline const struct graph_node *node_input(const struct graph *graph, const struct graph_node *node, int i) {
    return &graph->nodes[node->input[i]];
}
/* Behind views: the node that owns what a node shows. */
static inline node_id node_value(const struct graph *graph, node_id id) {
    while (op_table[graph->nodes[id].kind].view) id = graph->nodes[id].input[0];
    return id;
}

/* Rows do not lie behind each other: a view of some columns. */
static inline bool node_is_strided(const struct graph *graph, node_id id) {
    for (; op_table[graph->nodes[id].kind].view; id = graph->nodes[id].input[0])
        if (graph->nodes[id].kind == OP_COLUMNS) return true;
    return false;
}

/* For run functions: inputs, and rows of inputs and of the output. */
static inline const struct graph_node *call_input(const struct graph_call *call, int i) {
    return &call->graph->nodes[call->node->input[i]];
}
static inline const float *in_row(const struct graph_call *call, int i, int64_t row) {
    const struct graph_node *in = call_input(call, i);
    return (const float *)(in->data + (size_t)row * in->row_bytes);
}
static inline void *out_row(const struct graph_call *call, int64_t row) {
    return call->node->data + (size_t)row * call->node->row_bytes;
}
/* Floats from a row to the next. */
static inline int64_t row_step(const struct graph_node *node) {
    return (int64_t)(node->row_bytes / sizeof(float));
}
/* Values of a constant or of a vector that learns; NULL if the node has no such input. */
const float *call_vector(const struct graph_call *call, int i);

/* "node 12 (matmul, blk.3)" for error messages. */
#define NODE_TEXT "node %d (%s%s%s)"
#define NODE_ARGS(graph, node)                                                                                         \
    (int)((node) - (graph)->nodes), op_table[(node)->kind].name, (node)->label[0] ? ", " : "", (node)->label

#endif
