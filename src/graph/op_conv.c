/* Shape rules of convolution, pooling, batch norm and LSTM. */
#include "graph/op.h"

#include <math.h>

/* Far beyond any real filter; keeps sums of sizes within int64_t. */
#define FILTER_MAX (1 << 20)

static int check_image(const struct graph *graph, const struct graph_node *node, int i, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, i);
    int status = check_f32(graph, node, i, err);
    if (status == SHU_OK && (x->shape[1] < 1 || x->shape[2] < 1))
        status = SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": only the number of images may be symbolic, found " NODE_TEXT,
                          NODE_ARGS(graph, node), NODE_ARGS(graph, x));
    return status;
}

/* ------------------------------------------------------------------- other shapes */

static bool same_count(const struct graph_node *x, const int64_t shape[4]) {
    int64_t from = 1, to = 1, symbol_from = 0, symbol_to = 0;
    for (int i = 0; i < 4; i++) {
        if (x->shape[i] < 0) symbol_from = x->shape[i];
        if (shape[i] < 0) symbol_to = shape[i];
        if (__builtin_mul_overflow(from, x->shape[i] < 0 ? 1 : x->shape[i], &from)) return false;
        if (__builtin_mul_overflow(to, shape[i] < 0 ? 1 : shape[i], &to)) return false;
    }
    return from == to && symbol_from == symbol_to && shape[0] > 0;
}

int shape_reshape(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    int status = check_f32(graph, node, 0, err);
    if (status) return status;
    if (!same_count(x, node->shape) || node_is_strided(graph, node->input[0]))
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": cannot see " NODE_TEXT " of [%lld, %lld, %lld, %lld] as [%lld, %lld, %lld, %lld]",
                        NODE_ARGS(graph, node), NODE_ARGS(graph, x), (long long)x->shape[0], (long long)x->shape[1],
                        (long long)x->shape[2], (long long)x->shape[3], (long long)node->shape[0],
                        (long long)node->shape[1], (long long)node->shape[2], (long long)node->shape[3]);
    node->dtype = DT_F32;
    return SHU_OK;
}

/* Each image as a matrix [channels, places] turned round: the builder says which way. */
int shape_transpose(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    int status = check_image(graph, node, 0, err);
    if (status) return status;
    int64_t places = node->shape[0] * node->shape[1];
    bool back = places == x->shape[1] && x->shape[2] == 1 && node->shape[2] == x->shape[0];
    bool rows = node->shape[0] == x->shape[2] && node->shape[1] == x->shape[0] * x->shape[1] && node->shape[2] == 1;
    if ((!back && !rows) || node->shape[3] != x->shape[3])
        return SHU_FAIL(
            err, SHU_E_USAGE, NODE_TEXT ": cannot turn " NODE_TEXT " of [%lld, %lld, %lld] to [%lld, %lld, %lld]",
            NODE_ARGS(graph, node), NODE_ARGS(graph, x), (long long)x->shape[0], (long long)x->shape[1],
            (long long)x->shape[2], (long long)node->shape[0], (long long)node->shape[1], (long long)node->shape[2]);
    node->dtype = DT_F32;
    return SHU_OK;
}

/* -------------------------------------------------------------------- sliding filters */

static bool within(int value, int low, int high) {
    return value >= low && value <= high;
}

/* Steps that a filter makes over `size` values; below 1: none. */
static int64_t steps_of(int64_t size, int before, int after, int filter, int dilation, int stride) {
    int64_t free = size + before + after - ((int64_t)dilation * (filter - 1) + 1);
    return free < 0 ? 0 : free / stride + 1;
}

/* Fills in defaults and sets width and height of the output. */
static int shape_filter(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    struct graph_filter *f = &node->params.filter;
    const struct graph_node *x = node_input(graph, node, 0);
    int *defaults[] = {&f->stride_x, &f->stride_y, &f->dilation_x, &f->dilation_y, &f->groups};
    for (int i = 0; i < 5; i++)
        if (*defaults[i] == 0) *defaults[i] = 1;
    const int sizes[] = {f->width, f->height, f->stride_x, f->stride_y, f->dilation_x, f->dilation_y, f->groups};
    const int pads[] = {f->left, f->right, f->top, f->bottom};
    bool good = true;
    for (int i = 0; i < 7; i++) good = good && within(sizes[i], 1, FILTER_MAX);
    for (int i = 0; i < 4; i++) good = good && within(pads[i], 0, FILTER_MAX);
    if (!good || x->shape[0] > INT32_MAX || x->shape[1] > INT32_MAX)
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": a filter needs positive sizes and strides up to %d, found %d x %d",
                        NODE_ARGS(graph, node), FILTER_MAX, f->width, f->height);
    node->shape[0] = steps_of(x->shape[0], f->left, f->right, f->width, f->dilation_x, f->stride_x);
    node->shape[1] = steps_of(x->shape[1], f->top, f->bottom, f->height, f->dilation_y, f->stride_y);
    node->shape[3] = x->shape[3];
    node->dtype = DT_F32;
    if (node->shape[0] >= 1 && node->shape[1] >= 1) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": a filter of %d x %d does not fit into " NODE_TEXT " of %lld x %lld",
                    NODE_ARGS(graph, node), f->width, f->height, NODE_ARGS(graph, x), (long long)x->shape[0],
                    (long long)x->shape[1]);
}

static int check_filter_weight(const struct graph *graph, const struct graph_node *node, int i, int64_t channels,
                               int64_t outputs, struct shu_error *err) {
    const struct graph_node *weight = node_input(graph, node, i);
    const struct graph_filter *f = &node->params.filter;
    int64_t taps = (int64_t)f->width * f->height, cols;
    bool fits = channels % f->groups == 0 && outputs % f->groups == 0;
    if (__builtin_mul_overflow(channels / f->groups, taps, &cols)) fits = false;
    if (fits && weight->kind == OP_PARAMETER && weight->dtype == DT_F32 && weight->shape[0] == cols) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE,
                    NODE_TEXT ": %lld channels in %d groups need an F32 parameter of %lld columns, found " NODE_TEXT
                              " of type %s, [%lld, %lld]",
                    NODE_ARGS(graph, node), (long long)channels, f->groups, (long long)cols, NODE_ARGS(graph, weight),
                    dtype_table[weight->dtype].name, (long long)weight->shape[0], (long long)weight->shape[1]);
}

int shape_conv(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0), *weight = node_input(graph, node, 1);
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK) status = shape_filter(graph, node, err);
    if (status == SHU_OK) status = check_filter_weight(graph, node, 1, x->shape[2], weight->shape[1], err);
    node->shape[2] = weight->shape[1];
    if (status == SHU_OK && node->inputs == 3) status = check_vector(graph, node, 2, weight->shape[1], err);
    return status;
}

int shape_pool(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_filter *f = &node->params.filter;
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK) status = shape_filter(graph, node, err);
    node->shape[2] = node_input(graph, node, 0)->shape[2];
    /* Every step then sees some value. */
    bool empty = f->left >= f->width || f->right >= f->width || f->top >= f->height || f->bottom >= f->height;
    if (status == SHU_OK && (f->dilation_x != 1 || f->dilation_y != 1 || f->groups != 1 || empty))
        status = SHU_FAIL(err, SHU_E_USAGE,
                          NODE_TEXT ": pooling takes no dilation or groups, and less padding than its %d x %d",
                          NODE_ARGS(graph, node), f->width, f->height);
    return status;
}

/* --------------------------------------------------------------------- per channel */

static void take_channels(struct graph_node *node, int64_t channels) {
    node->dtype = DT_F32;
    node->shape[0] = 2;
    node->shape[1] = channels;
    node->shape[2] = node->shape[3] = 1;
}

/* Input i: two numbers per channel of `x`. */
static int check_channels(const struct graph *graph, const struct graph_node *node, int i, const struct graph_node *x,
                          struct shu_error *err) {
    int status = check_f32(graph, node, i, err);
    if (status == SHU_OK) status = check_cols(graph, node, i, 2, err);
    if (status == SHU_OK && node_input(graph, node, i)->shape[1] != x->shape[2])
        status = SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": needs numbers of %lld channels, found " NODE_TEXT,
                          NODE_ARGS(graph, node), (long long)x->shape[2], NODE_ARGS(graph, node_input(graph, node, i)));
    return status;
}

int shape_batch_stats(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_params *params = &node->params;
    int status = check_image(graph, node, 0, err);
    if (status) return status;
    if (params->result == NULL || params->result2 == NULL || !(params->eps >= 0) || !isfinite(params->eps) ||
        !(params->rate >= 0 && params->rate <= 1))
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": needs running mean and variance, epsilon of 0 or more and momentum in [0, 1], "
                                  "found %g and %g",
                        NODE_ARGS(graph, node), (double)params->eps, (double)params->rate);
    take_channels(node, node_input(graph, node, 0)->shape[2]);
    return SHU_OK;
}

int shape_batch_norm(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *x = node_input(graph, node, 0);
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK) status = check_channels(graph, node, 1, x, err);
    for (int i = 2; i < node->inputs && status == SHU_OK; i++) status = check_vector(graph, node, i, x->shape[2], err);
    if (status == SHU_OK) shape_take(node, x, x->shape[0]);
    return status;
}

/* dy; x and its statistics, if sums of dy * (x normed) are wanted too. */
int shape_channel_sums(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *dy = node_input(graph, node, 0);
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK && node->inputs == 3) {
        status = check_cols(graph, node, 1, dy->shape[0], err);
        if (status == SHU_OK) status = check_rows(graph, node, 1, dy, err);
        if (status == SHU_OK) status = check_channels(graph, node, 2, dy, err);
    }
    if (status == SHU_OK) take_channels(node, dy->shape[2]);
    return status;
}

int shape_batch_norm_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *dy = node_input(graph, node, 0);
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, dy->shape[0], err);
    if (status == SHU_OK) status = check_rows(graph, node, 1, dy, err);
    for (int i = 2; i < 4 && status == SHU_OK; i++) status = check_channels(graph, node, i, dy, err);
    if (status == SHU_OK) status = check_vector(graph, node, 4, dy->shape[2], err);
    if (status == SHU_OK) shape_take(node, dy, dy->shape[0]);
    return status;
}

/* --------------------------------------------------------------------------- LSTM */

int shape_lstm(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *gates = node_input(graph, node, 0), *weight = node_input(graph, node, 1);
    int status = check_image(graph, node, 0, err);
    if (status) return status;
    int64_t hidden = weight->shape[0];
    if (weight->kind != OP_PARAMETER || hidden > INT32_MAX || weight->shape[1] != 4 * hidden || gates->shape[2] != 1)
        return SHU_FAIL(err, SHU_E_USAGE,
                        NODE_TEXT ": needs a parameter [4 * H, H] and rows of sequences, found " NODE_TEXT
                                  " [%lld, %lld] and " NODE_TEXT,
                        NODE_ARGS(graph, node), NODE_ARGS(graph, weight), (long long)weight->shape[1],
                        (long long)hidden, NODE_ARGS(graph, gates));
    status = check_cols(graph, node, 0, 4 * hidden, err);
    if (status == SHU_OK) shape_take(node, gates, 6 * hidden);
    return status;
}

int shape_lstm_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *dy = node_input(graph, node, 0);
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK) status = check_cols(graph, node, 1, 6 * dy->shape[0], err);
    if (status == SHU_OK) status = check_rows(graph, node, 1, dy, err);
    if (status == SHU_OK) shape_take(node, dy, 5 * dy->shape[0]);
    return status;
}

/* ----------------------------------------------------------------------- gradients */

/* The image was written by the rule: x itself need not be alive. Base, if any, is the last input. */
static int shape_image_back(struct graph *graph, struct graph_node *node, int base, struct shu_error *err) {
    int status = check_image(graph, node, 0, err);
    node->dtype = DT_F32;
    if (status || node->inputs <= base) return status;
    status = check_f32(graph, node, base, err);
    if (status == SHU_OK) status = check_cols(graph, node, base, node->shape[0], err);
    if (status == SHU_OK) status = check_rows(graph, node, base, node, err);
    return status;
}

int shape_conv_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    return shape_image_back(graph, node, 2, err);
}

int shape_max_pool_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    return shape_image_back(graph, node, 2, err);
}

int shape_average_pool_back(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    return shape_image_back(graph, node, 1, err);
}

/* Sinks: input i is the parameter. */
static int shape_into(const struct graph *graph, struct graph_node *node, int i, struct shu_error *err) {
    const struct graph_node *into = node_input(graph, node, i);
    if (into->kind != OP_PARAMETER || into->params.parameter->gradient == NULL)
        return SHU_FAIL(err, SHU_E_USAGE, NODE_TEXT ": " NODE_TEXT " does not learn", NODE_ARGS(graph, node),
                        NODE_ARGS(graph, into));
    shape_take(node, into, into->shape[0]);
    return SHU_OK;
}

int shape_conv_gradient(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    const struct graph_node *dy = node_input(graph, node, 0), *x = node_input(graph, node, 1);
    int status = check_image(graph, node, 0, err);
    if (status == SHU_OK) status = check_image(graph, node, 1, err);
    if (status == SHU_OK) status = check_filter_weight(graph, node, 2, x->shape[2], dy->shape[2], err);
    return status ? status : shape_into(graph, node, 2, err);
}

int shape_channel_gradient(struct graph *graph, struct graph_node *node, struct shu_error *err) {
    int status = shape_into(graph, node, 1, err);
    if (status == SHU_OK) status = check_cols(graph, node, 0, 2, err);
    if (status == SHU_OK && node_input(graph, node, 0)->shape[1] != node->shape[0])
        status = check_cols(graph, node, 1, node_input(graph, node, 0)->shape[1], err);
    return status;
}
