/* graph: networks as data. Build once, plan once, execute many times.
 *
 *     graph_new -> graph_input / graph_const / graph_<op> … -> graph_output
 *               -> graph_plan (waves, liveness, memory) -> graph_run … -> graph_free
 *
 * A node is an operation with its output. Nodes are added in execution order,
 * so inputs always come earlier: the node list is a topological order. Each
 * operation is one row of `op_table` (graph/op.h): its shape rule, how it is
 * cut into tiles, its run function per backend, its gradient rule.
 *
 * A shape is [cols, rows, d2, d3], innermost first. One of the outer three may
 * be symbolic: GRAPH_ROWS stands for "as many token rows as this run has",
 * GRAPH_GATHERED for "as many as OP_GATHER picks"; both are bound in graph_run
 * and at most what graph_plan was told. Activations are f32 (or ACT8 for
 * quantised operands, inserted by graph_matmul and shared by all products that
 * read the same node). All of them live in one block whose offsets are planned
 * by liveness: nothing is allocated during a run.
 *
 * Execution runs waves, one parallel region each. A wave holds strands that do
 * not depend on each other (q, k, v products side by side). A strand is one
 * node, or a chain of row-wise nodes (add, norm, quantise) that a thread takes
 * through a few rows at a time while they are in its cache. Neither changes a
 * number: every op gives the same row whatever rows run beside it.
 *
 * A graph belongs to one thread at a time; graph_run uses the pool inside.
 */
#ifndef GRAPH_H
#define GRAPH_H

#include "tensor/tensor.h"

#define GRAPH_ROWS       ((int64_t)-1)
#define GRAPH_GATHERED   ((int64_t)-2) /* rows after OP_GATHER */
#define GRAPH_MAX_INPUTS 6
/* Node shapes only: part `part` of `rows` gathered rows each, the last one cut (graph_cross_entropy). */
#define GRAPH_PART(part, rows) (-((((int64_t)(part) + 1) << 32) | (int64_t)(rows)))

enum graph_op_kind {
    OP_INPUT,    /* bound per run: tokens (I32), f32 rows */
    OP_CONST,    /* f32 tensor that outlives the graph: norm gains, biases */
    OP_EMBED,    /* (ids) + table, packed or plain -> [rows, C] */
    OP_GATHER,   /* (x, row indices I32) -> the named rows of x: only rows that need logits go on */
    OP_QUANTIZE, /* f32 -> ACT8 */
    OP_MATMUL,   /* (x) + packed weight + optional bias */
    OP_RMS_NORM,
    OP_LAYER_NORM,
    OP_SOFTMAX,
    OP_ADD,
    OP_MUL,
    OP_SCALE,
    OP_SOFTCAP,
    OP_UNARY,
    OP_GATED,      /* f(gate) * up */
    OP_ROPE_TABLE, /* kv step positions -> [rows, rot] cos|sin */
    OP_ROPE,       /* (x, table) */
    OP_KV_STORE,   /* (k, v) -> KV pages; its node orders attention after it and holds no data */
    OP_ATTENTION,  /* (q, kv_store node) -> [rows, heads * D] */

    /* Learning, forward: gradient.h. */
    OP_PARAMETER,     /* leaf: rows that products, norms and look-ups read in place */
    OP_LINEAR,        /* (x, parameter, bias or base) */
    OP_SDPA,          /* (q, k, v, begin) -> [rows, heads * D | heads]: output and log-sum-exp side by side */
    OP_DROPOUT,       /* its own gradient: the same mask again */
    OP_COLUMNS,       /* view of some columns */
    OP_PART,          /* view of the rows of one part of the gathered rows */
    OP_CROSS_ENTROPY, /* (logits, targets, weights) -> gradient of the logits */
    OP_SQUARED_ERROR, /* (x, targets, weights) -> gradient of x */

    /* Learning, backward; dy is the gradient of the forward node's output. */
    OP_LINEAR_BACK,     /* (dy, parameter, base) -> dx */
    OP_WEIGHT_GRADIENT, /* (dy, x, parameter): dy^T x is added to the parameter's gradient; holds no data */
    OP_VECTOR_GRADIENT, /* (dy, parameter): column sums, likewise */
    OP_EMBED_GRADIENT,  /* (dy, ids, parameter): row by row, likewise */
    OP_GATHER_BACK,     /* (dy, row indices, base) -> dx, zero where no row was picked */
    OP_COLUMNS_BACK,    /* (dy, base) -> dx, zero in the other columns */
    OP_RMS_NORM_BACK,   /* (dy, x, gain) */
    OP_LAYER_NORM_BACK, /* (dy, x, gain) */
    OP_SOFTMAX_BACK,    /* (dy, y) */
    OP_SOFTCAP_BACK,    /* (dy, x) */
    OP_UNARY_BACK,      /* (dy, x) */
    OP_GATED_BACK,      /* (dy, gate, up) -> d_gate | d_up side by side */
    OP_SDPA_BACK_Q,     /* (dy, q, k, v, OP_SDPA node, begin) -> dq */
    OP_SDPA_BACK_KV,    /* likewise -> dk | dv side by side */

    /* Images and waveforms: conv.h. */
    OP_RESHAPE, /* view */
    OP_TRANSPOSE,
    OP_CONV, /* (x, parameter, bias) */
    OP_MAX_POOL,
    OP_AVERAGE_POOL,
    OP_BATCH_STATS,       /* (x) -> [2, C] mean and 1 / deviation; moves the running ones */
    OP_BATCH_NORM,        /* (x, stats, gain, bias) */
    OP_LSTM,              /* (gates, parameter) -> hidden state | cell | gates side by side */
    OP_CONV_BACK,         /* (dy, parameter, base) -> dx */
    OP_CONV_GRADIENT,     /* (dy, x, parameter): added to its gradient; holds no data */
    OP_MAX_POOL_BACK,     /* (dy, x, base) */
    OP_AVERAGE_POOL_BACK, /* (dy, base) */
    OP_CHANNEL_SUMS,      /* (dy, x, stats) -> [2, C] sums of dy and of dy * (x normed) */
    OP_CHANNEL_GRADIENT,  /* (sums, parameter): one of both is added to its gradient; holds no data */
    OP_BATCH_NORM_BACK,   /* (dy, x, stats, sums, gain) */
    OP_LSTM_BACK,         /* (dy, OP_LSTM node, parameter) -> d_gates | hidden state before, side by side */
    OP_KINDS
};

/* What slides over an image. left…bottom: rows and columns of zeros around it (pooling: of nothing). */
struct graph_filter {
    int width, height;
    int stride_x, stride_y;     /* 0 = 1 */
    int dilation_x, dilation_y; /* 0 = 1; convolution only */
    int left, right, top, bottom;
    int groups; /* 0 = 1; convolution only */
};

/* Static parameters of a node; which fields count is said at each builder. */
struct graph_params {
    const struct packed *weight;
    const struct tensor *table; /* OP_EMBED from plain rows */
    const float *constant;      /* OP_CONST data, [cols] */
    const float *factors;       /* [rot / 2] rope frequency divisors, or NULL */
    float eps, scale, softcap;
    double freq_base, freq_scale;
    int64_t group; /* OP_RMS_NORM: columns per norm */
    int heads, kv_heads, head_dim, rot, window, layer;
    enum unary_kind unary;
    bool neox;

    struct graph_parameter *parameter;
    enum gemm_precision precision;
    float rate;        /* OP_DROPOUT: share of zeros */
    uint64_t salt;     /* OP_DROPOUT */
    int64_t first;     /* OP_COLUMNS, OP_COLUMNS_BACK: column of the whole */
    int64_t part;      /* losses and views in parts: which one; 0-based */
    int64_t part_rows; /* 0 = not in parts */
    float *result;     /* losses: value of every row; OP_BATCH_STATS: running mean */
    float *result2;    /* OP_BATCH_STATS: running variance */
    struct graph_filter filter;
    bool causal, inverse, learn;
};

typedef int32_t node_id; /* index into the node list; negative = builder failed, remembered by the graph */

struct graph;

/* Builders return a node or -1; the first failure (a shape that does not fit,
 * out of memory) is kept with the node's description and reported by
 * graph_plan, so that network code needs no check per line. Weights, tables and
 * constants are borrowed and must outlive the graph. Names are copied. */
int graph_new(const struct kernels *kernels, struct graph **out, struct shu_error *err);
void graph_free(struct graph *graph); /* NULL is a no-op */
const struct kernels *graph_kernels(const struct graph *graph);
/* printf-style label ("blk.3") for the nodes added from now on; shown in errors. Cut at 31 bytes. */
void graph_label(struct graph *graph, const char *format, ...) __attribute__((format(printf, 2, 3)));

node_id graph_input(struct graph *graph, enum dtype dtype, int64_t rows, int64_t cols, const char *name);
node_id graph_const(struct graph *graph, const float *data, int64_t cols, const char *name);
/* ids [1, rows] I32, each in [0, table rows): checked at every run. */
node_id graph_embed(struct graph *graph, node_id ids, const struct packed *table);
node_id graph_embed_plain(struct graph *graph, node_id ids, const struct tensor *table);
/* indices [1, n] I32 -> [x.cols, n]; each in [0, rows of x): checked at every run. */
node_id graph_gather(struct graph *graph, node_id x, node_id indices);
/* x [C, …] times weight [R, C] -> [R, …]. Quantised weights read x as ACT8: an
 * OP_QUANTIZE node is added once per x. bias: an OP_CONST node of R columns, or -1. */
node_id graph_matmul(struct graph *graph, node_id x, const struct packed *weight, node_id bias);
/* One norm per `group` columns (0 = all of them); gain is an OP_CONST of that many columns, or -1. */
node_id graph_rms_norm(struct graph *graph, node_id x, node_id gain, float eps, int64_t group);
/* gain and bias: OP_CONST of all columns; bias, or both, may be -1. */
node_id graph_layer_norm(struct graph *graph, node_id x, node_id gain, node_id bias, float eps);
node_id graph_softmax(struct graph *graph, node_id x, float scale);
node_id graph_add(struct graph *graph, node_id a, node_id b);
node_id graph_mul(struct graph *graph, node_id a, node_id b);
node_id graph_scale(struct graph *graph, node_id x, float factor);
node_id graph_softcap(struct graph *graph, node_id x, float cap);
node_id graph_unary(struct graph *graph, node_id x, enum unary_kind kind);
node_id graph_gated(struct graph *graph, node_id gate, node_id up, enum unary_kind kind);
/* [rot, GRAPH_ROWS] cos and sin of every row's position: rope_table() of room tensor. */
node_id graph_rope_table(struct graph *graph, int rot, double freq_base, double freq_scale, const float *factors);
node_id graph_rope(struct graph *graph, node_id x, node_id table, int heads, int head_dim, int rot, bool neox);
node_id graph_kv_store(struct graph *graph, node_id k, node_id v, int layer);
/* params used: heads, kv_heads, head_dim, layer, scale, softcap, window */
node_id graph_attention(struct graph *graph, node_id q, node_id stored, const struct graph_params *params);

/* Marks a node whose values must survive the run; read with graph_data. */
void graph_output(struct graph *graph, node_id node);

/* Bytes that graph_plan would allocate; a pure function of its arguments.
 * Reports a builder's failure, and SHU_E_RANGE for sizes beyond the address space. */
int graph_plan_bytes(const struct graph *graph, int64_t max_rows, int64_t max_gathered, int threads, size_t *out,
                     struct shu_error *err);
/* Cuts the graph into waves, lays out memory for up to max_rows rows (GRAPH_ROWS)
 * and max_gathered rows after OP_GATHER, and allocates it with scratch for
 * `threads` threads. Once per graph. */
int graph_plan(struct graph *graph, int64_t max_rows, int64_t max_gathered, int threads, struct shu_error *err);
size_t graph_memory_bytes(const struct graph *graph); /* 0 before graph_plan */

/* One execution. Inputs are written through graph_data before the run; outputs
 * are read through it after. rows and gathered bind the two symbolic counts
 * (gathered may be 0: nothing needs logits). */
struct graph_step {
    int64_t rows, gathered;
    const struct kv_step *kv; /* NULL for graphs without graph_attention and graph_rope_table */
    uint64_t dropout_seed;    /* graphs with graph_dropout only */
};
/* SHU_E_USAGE: not planned, counts beyond the plan, more pool threads than planned,
 * a KV step of another geometry, an id or index out of range. Nothing ran then. */
int graph_run(struct graph *graph, struct pool *pool, const struct graph_step *step, struct shu_error *err);
/* [rows, cols] of an input or output, row-major; NULL before graph_plan. Inputs keep
 * their values over runs. */
void *graph_data(struct graph *graph, node_id node);

/* Time per op, summed over threads, of the runs since graph_profile (for `bench
 * speed -v`). Collected only while on; switching on clears. */
void graph_profile(struct graph *graph, bool on);
void graph_profile_read(const struct graph *graph, uint64_t ns[OP_KINDS]);
const char *graph_op_name(enum graph_op_kind kind);

#include "graph/conv.h"
#include "graph/gradient.h"

#endif
