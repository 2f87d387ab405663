/* Graphs that learn. Part of graph.h; not included alone.
 *
 *     graph_new -> graph_parameter … (leaves with gradients) -> forward pass -> graph_cross_entropy …
 *               -> graph_backward (emits the backward pass) -> graph_plan -> graph_run … -> graph_free
 *
 * The backward pass is nodes like all others: shaped, planned, tiled and run with the forward pass, so
 * a forward value that a gradient reads stays alive because liveness sees the reader. Gradients of
 * parameters are not nodes: they are added to the parameter's own f32 buffer, which the caller clears
 * when a step begins; several micro-batches simply add up. What a weight receives comes in a fixed order.
 *
 * Rows are tokens of packed sequences. The caller binds, beside token ids, the position of every row
 * and the first row of its sequence (see graph_sdpa).
 */
#ifndef GRAPH_GRADIENT_H
#define GRAPH_GRADIENT_H

/* A matrix [rows, cols] (rows = outputs) or a vector (rows = 1) that a product or a norm reads in place.
 * Frozen: gradient NULL; any dtype with to_f32, e.g. the rows of a mapped GGUF file. Trainable: dtype F32
 * or BF16 (vectors: F32), gradient [rows * cols] f32. Borrowed by the graph; the caller updates data between runs. */
struct graph_parameter {
    const char *name;
    enum dtype dtype;
    int64_t rows, cols;
    void *data;
    float *gradient;
};
node_id graph_parameter(struct graph *graph, struct graph_parameter *parameter);

/* ------------------------------------------------------------ forward ops of learning */

/* y = alpha * x W^T (+ bias) (+ base): weight and bias are graph_parameter or (bias) OP_CONST nodes; bias and base
 * may be -1, at most one of them is given. base [R, …] has the shape of y, which may take its memory. x f32. */
node_id graph_linear(struct graph *graph, node_id x, node_id weight, node_id bias, node_id base, float alpha);
/* Precision of all products of the graph added from now on. Default GEMM_F32. */
void graph_precision(struct graph *graph, enum gemm_precision precision);
/* ids [1, rows] I32 into a parameter's rows. */
node_id graph_embed_parameter(struct graph *graph, node_id ids, node_id table);
/* As graph_rope_table, but positions come from an I32 input [1, rows] instead of the KV step. */
node_id graph_rope_table_at(struct graph *graph, node_id positions, int rot, double freq_base, double freq_scale,
                            const float *factors);
/* Attention inside packed sequences; begin: I32 input [1, rows], first row of each row's sequence, checked at
 * every run. params used: heads, kv_heads, head_dim, scale, softcap, window, causal. One such input serves
 * all attention of a graph. -> [heads * D, rows], a view of wider rows */
node_id graph_sdpa(struct graph *graph, node_id q, node_id k, node_id v, node_id begin,
                   const struct graph_params *params);
/* x with a share of p zeroed, the rest scaled by 1 / (1 - p); the pattern follows the run's dropout_seed, `salt`
 * and the element's place. p = 0 returns x. */
node_id graph_dropout(struct graph *graph, node_id x, float p, uint64_t salt);
/* Columns [first, first + cols) of x: a view, no copy. Its rows lie as far apart as those of x, also in graph_data. */
node_id graph_columns(struct graph *graph, node_id x, int64_t first, int64_t cols);

/* Loss over the rows of `hidden` ([C, gathered]): logits = hidden W^T (weight: a parameter [V, C]), softcap 0 = none.
 * targets I32 and weights F32 are inputs [1, gathered]; the loss is the sum of weight * negative log-likelihood,
 * and the caller makes it a mean by choosing weights. Rows are taken `part_rows` at a time, so that no more than
 * part_rows * V logits ever exist; there are nodes for max_gathered rows, and graph_plan refuses more. nll
 * [max_gathered] is the caller's and receives every row's unweighted value. With `learn` false only nll is
 * computed. Returns the last node added. */
node_id graph_cross_entropy(struct graph *graph, node_id hidden, node_id weight, node_id targets, node_id weights,
                            float softcap, int64_t part_rows, int64_t max_gathered, bool learn, float *nll);
/* For networks with other heads: half the squared distance of each row to targets (F32 input of x's shape); the loss
 * is the sum of weight * distance, weights: F32 input [1, rows of x]. loss [rows] is the caller's and receives every
 * row's unweighted value. */
node_id graph_squared_error(struct graph *graph, node_id x, node_id targets, node_id weights, float *loss);

/* ------------------------------------------------------------ backward pass */

/* Nodes added between begin and end form a segment whose values are not kept for the backward pass but computed
 * again there from what enters the segment: one decoder layer each. Not nested. */
void graph_recompute_begin(struct graph *graph);
void graph_recompute_end(struct graph *graph);

/* Emits the gradients of all losses for every trainable parameter they depend on. Once per graph; no nodes may be
 * added after it. SHU_E_UNSUPPORTED names an op without a gradient rule that a parameter is reached through. */
int graph_backward(struct graph *graph, struct shu_error *err);
/* The node that holds the gradient of `node` after graph_backward, or -1: for tests. Ask for it to be kept with
 * graph_output before graph_plan; gradients exist only on the way to parameters, so tests of an input's gradient
 * put a parameter there. */
node_id graph_gradient_of(const struct graph *graph, node_id node);

#endif
