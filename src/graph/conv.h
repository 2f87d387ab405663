/* Waveforms and images: convolution, pooling, batch norm, LSTM. Part of graph.h; not included alone.
 *
 * An image batch is [W, H, C, N]: rows of W values, H rows of a channel, C channels of an image, N images (as
 * PyTorch's NCHW; a waveform has H = 1). N may be symbolic. All operations have gradients; the weights of a
 * convolution are F32 parameters, those of an LSTM any that graph_parameter takes.
 */
#ifndef GRAPH_CONV_H
#define GRAPH_CONV_H

node_id graph_input_shaped(struct graph *graph, enum dtype dtype, const int64_t shape[4], const char *name);
/* The same values in the same order as [shape[0] … shape[3]]: a view. A symbolic size stays as it is. */
node_id graph_reshape(struct graph *graph, node_id x, const int64_t shape[4]);
/* [W, H, C, N] -> [C, W * H, 1, N]: a row per place, as products and sequences want it, and back. */
node_id graph_to_rows(struct graph *graph, node_id x);
node_id graph_from_rows(struct graph *graph, node_id x, int64_t width, int64_t height);

/* weight: a parameter [outputs, C / groups * height * width], columns as in PyTorch: channel, row, column.
 * bias: a vector of `outputs` or -1. */
node_id graph_conv(struct graph *graph, node_id x, node_id weight, node_id bias, const struct graph_filter *filter);
/* The largest value; the average of the values (of the image only, without the padding). */
node_id graph_max_pool(struct graph *graph, node_id x, const struct graph_filter *filter);
node_id graph_average_pool(struct graph *graph, node_id x, const struct graph_filter *filter);

/* y = (x - mean) / sqrt(variance + eps) * gain + bias per channel (Ioffe & Szegedy 2015); gain and bias: vectors of
 * C. Training: of the batch, and every run moves the caller's running_mean and running_variance [C] a share of
 * `momentum` towards it (variance of n - 1, as PyTorch). Else: the running ones. */
node_id graph_batch_norm(struct graph *graph, node_id x, node_id gain, node_id bias, float *running_mean,
                         float *running_variance, float eps, float momentum, bool training);

/* One direction of an LSTM (Hochreiter & Schmidhuber 1997) over N sequences of T rows. gates [4 * H, T, 1, N]: what
 * the inputs give, graph_linear(x, W_ih, bias); weight: W_hh, a parameter [4 * H, H]; gates in the order i, f, g, o.
 * Starts from zeros; `reverse` runs from the last row to the first. -> [H, T, 1, N], a view of wider rows. */
node_id graph_lstm(struct graph *graph, node_id gates, node_id weight, bool reverse);

#endif
