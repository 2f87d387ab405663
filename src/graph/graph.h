/* graph: networks as data. Build once, plan once, execute many times.
 *
 *     graph_new -> graph_input / graph_weight / graph_<op> … -> graph_output
 *               -> graph_plan (shapes, liveness, memory) -> graph_run … -> graph_free
 *
 * A node is an operation with its output. Nodes are added in execution order,
 * so inputs always come earlier: the node list is a topological order. Each
 * operation is one row of `op_table`: its shape rule, how it is cut into tiles,
 * its kernel per backend, its gradient (issue of room train). New ops (conv1d,
 * conv2d, lstm) are new rows.
 *
 * Shapes are [rows, cols] or [d3, d2, rows, cols] with one symbolic dimension:
 * GRAPH_ROWS stands for "as many token rows as this run has", bound in
 * graph_run, at most the max_rows given to graph_plan. Activations are f32
 * (or ACT8 for quantised operands, inserted by graph_matmul and shared by all
 * products that read the same node). All of them live in one block whose
 * offsets are planned by liveness: nothing is allocated during a run.
 *
 * Execution groups consecutive nodes that do not depend on each other into one
 * wave; the pool takes tiles of the whole wave from one counter.
 */
#ifndef GRAPH_H
#define GRAPH_H

#include "tensor/tensor.h"

#define GRAPH_ROWS ((int64_t)-1)
#define GRAPH_GATHERED ((int64_t)-2) /* rows after OP_GATHER */
#define GRAPH_MAX_INPUTS 6

enum graph_op_kind {
    OP_INPUT,     /* bound per run: tokens (I32), f32 rows */
    OP_CONST,     /* f32 tensor that outlives the graph: norm gains, biases */
    OP_EMBED,     /* (ids) + packed table -> [rows, C] */
    OP_GATHER,    /* (x, row indices I32) -> the named rows of x: only rows that need logits go on */
    OP_QUANTIZE,  /* f32 -> ACT8 */
    OP_MATMUL,    /* (x) + packed weight + optional bias */
    OP_RMS_NORM,
    OP_LAYER_NORM,
    OP_SOFTMAX,
    OP_ADD,
    OP_MUL,
    OP_SCALE,
    OP_SOFTCAP,
    OP_UNARY,
    OP_GATED,     /* f(gate) * up */
    OP_ROPE_TABLE,/* kv step positions -> [rows, rot] cos|sin */
    OP_ROPE,      /* (x, table) */
    OP_KV_STORE,  /* (k, v) -> KV pages */
    OP_ATTENTION, /* (q, kv_store node) -> [rows, heads * D] */
    OP_KINDS
};

/* Static parameters of a node; which fields count is said at each builder. */
struct graph_params {
    const struct packed *weight;
    const float *constant;  /* OP_CONST data, [cols] */
    const float *factors;   /* rope frequency divisors */
    float eps, scale, softcap;
    double freq_base, freq_scale;
    int heads, kv_heads, head_dim, rot, window, layer;
    enum unary_kind unary;
    bool neox;
};

typedef int32_t node_id; /* index into the node list; negative = builder failed, remembered by the graph */

struct graph;

/* Builders return a node or -1; the first failure is kept and reported by
 * graph_plan, so that network code needs no check per line. Weights and
 * constants are borrowed and must outlive the graph. */
int graph_new(const struct kernels *kernels, struct graph **out, struct shu_error *err);
void graph_free(struct graph *graph);

node_id graph_input(struct graph *graph, enum dtype dtype, int64_t rows, int64_t cols, const char *name);
node_id graph_const(struct graph *graph, const float *data, int64_t cols, const char *name);
node_id graph_embed(struct graph *graph, node_id ids, const struct packed *table);
node_id graph_gather(struct graph *graph, node_id x, node_id indices);
node_id graph_matmul(struct graph *graph, node_id x, const struct packed *weight, node_id bias /* -1 = none */);
node_id graph_rms_norm(struct graph *graph, node_id x, node_id gain, float eps, int64_t group /* cols per norm; 0 = all */);
node_id graph_layer_norm(struct graph *graph, node_id x, node_id gain, node_id bias, float eps);
node_id graph_softmax(struct graph *graph, node_id x, float scale);
node_id graph_add(struct graph *graph, node_id a, node_id b);
node_id graph_mul(struct graph *graph, node_id a, node_id b);
node_id graph_scale(struct graph *graph, node_id x, float factor);
node_id graph_softcap(struct graph *graph, node_id x, float cap);
node_id graph_unary(struct graph *graph, node_id x, enum unary_kind kind);
node_id graph_gated(struct graph *graph, node_id gate, node_id up, enum unary_kind kind);
node_id graph_rope_table(struct graph *graph, int rot, double freq_base, double freq_scale, const float *factors);
node_id graph_rope(struct graph *graph, node_id x, node_id table, int heads, int head_dim, int rot, bool neox);
node_id graph_kv_store(struct graph *graph, node_id k, node_id v, int layer);
/* params used: heads, kv_heads, head_dim, layer, scale, softcap, window */
node_id graph_attention(struct graph *graph, node_id q, node_id stored, const struct graph_params *params);

/* Marks a node whose values must survive the run; read with graph_data. */
void graph_output(struct graph *graph, node_id node, const char *name);

/* Checks shapes, lays out memory for up to max_rows rows (GRAPH_ROWS) and
 * max_gathered rows after OP_GATHER, and allocates it with per-thread scratch. */
int graph_plan(struct graph *graph, int64_t max_rows, int64_t max_gathered, int threads, struct shu_error *err);
size_t graph_memory_bytes(const struct graph *graph);

/* One execution. Inputs are written through graph_data before the run; outputs
 * are read through it after. rows and gathered bind the two symbolic counts. */
struct graph_step {
    int64_t rows, gathered;
    const struct kv_step *kv; /* NULL for graphs without attention or rope */
};
int graph_run(struct graph *graph, struct pool *pool, const struct graph_step *step, struct shu_error *err);
void *graph_data(struct graph *graph, node_id node);

/* Per-op time of the runs since the last reset (for `bench speed -v`): fills
 * ns[OP_KINDS]. Collected only while graph_profile(graph, true). */
void graph_profile(struct graph *graph, bool on);
void graph_profile_read(struct graph *graph, uint64_t ns[OP_KINDS]);
const char *graph_op_name(enum graph_op_kind kind);

#endif
