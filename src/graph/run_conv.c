/* The CPU column of convolution, pooling and batch norm.
 *
 * A convolution is a product of its weights [outputs, C * taps] with a matrix whose columns are the places of the
 * output and whose rows are the values that one tap sees there (im2col). That matrix is never whole: a thread makes
 * CHUNK x CHUNK of it in its scratch. Sums run over taps, places and images in ascending order, whatever the cut. */
#include "graph/op.h"

#include <math.h>
#include <string.h>

#define CHUNK GEMM_COLS /* columns and rows of the matrix at a time; GEMM_DEPTH is the same */
_Static_assert(GEMM_COLS == GEMM_DEPTH, "a chunk is one pass of a product");

/* Outputs that one tile of a weight gradient takes at least. */
#define GRADIENT_ROWS 16

size_t conv_scratch_bytes(void) {
    return (gemm_scratch_bytes() + 63) / 64 * 64 + (size_t)CHUNK * CHUNK * sizeof(float);
}

static float *chunk_of(const struct graph_call *call) {
    return (float *)((uint8_t *)call->scratch + (gemm_scratch_bytes() + 63) / 64 * 64);
}

/* ------------------------------------------------------------------------ geometry */

/* Channels [c0, …) of an image, and what slides over it. */
struct view {
    const struct graph_filter *filter;
    int64_t width, height, out_width, places, taps;
    int64_t row; /* floats from an image row to the next */
};

static struct view view_of(const struct graph_node *x, const struct graph_node *y, const struct graph_filter *filter) {
    return (struct view){.filter = filter,
                         .width = x->shape[0],
                         .height = x->shape[1],
                         .out_width = y->shape[0],
                         .places = y->shape[0] * y->shape[1],
                         .taps = (int64_t)filter->width * filter->height,
                         .row = row_step(x)};
}

static int64_t images_of(const struct graph_node *x) {
    return x->rows / (x->shape[1] * x->shape[2]);
}

/* One tap over places [p0, p1): calls visit with runs of places in one row of the output. `from` is where the first
 * one looks in the image, or NULL if the row lies in the padding; places [good0, good1) of the run are in the image. */
struct tap_run {
    int64_t offset; /* of the first place's value in its channel; may lie outside, see good0 */
    int64_t count, good0, good1, place;
};

static struct tap_run tap_run(const struct view *view, int64_t tap, int64_t place, int64_t end) {
    const struct graph_filter *f = view->filter;
    int64_t oy = place / view->out_width, ox = place % view->out_width;
    int64_t count = view->out_width - ox < end - place ? view->out_width - ox : end - place;
    int64_t y = oy * f->stride_y - f->top + tap / f->width * f->dilation_y;
    int64_t x = ox * f->stride_x - f->left + tap % f->width * f->dilation_x;
    struct tap_run run = {.offset = y * view->row + x, .count = count, .place = place};
    if (y < 0 || y >= view->height) return run; /* nothing good */
    run.good0 = x >= 0 ? 0 : clamp(div_up(-x, f->stride_x), 0, count);
    run.good1 = x >= view->width ? 0 : clamp(div_up(view->width - x, f->stride_x), run.good0, count);
    if (run.good1 <= run.good0) run.good0 = run.good1 = 0;
    return run;
}

/* Rows [k0, k1) (channel and tap) and places [p0, p1) of the matrix; rows are CHUNK apart. */
static void gather_chunk(const struct view *view, const float *image, int64_t k0, int64_t k1, int64_t p0, int64_t p1,
                         float *out) {
    int64_t stride = view->filter->stride_x;
    for (int64_t k = k0; k < k1; k++, out += CHUNK) {
        const float *channel = image + k / view->taps * view->height * view->row;
        for (int64_t p = p0; p < p1;) {
            struct tap_run run = tap_run(view, k % view->taps, p, p1);
            float *to = out + (p - p0);
            for (int64_t i = 0; i < run.good0; i++) to[i] = 0;
            for (int64_t i = run.good0; i < run.good1; i++) to[i] = channel[run.offset + i * stride];
            for (int64_t i = run.good1; i < run.count; i++) to[i] = 0;
            p += run.count;
        }
    }
}

/* The other way: adds the matrix into the image. */
static void scatter_chunk(const struct view *view, float *image, int64_t k0, int64_t k1, int64_t p0, int64_t p1,
                          const float *in) {
    int64_t stride = view->filter->stride_x;
    for (int64_t k = k0; k < k1; k++, in += CHUNK) {
        float *channel = image + k / view->taps * view->height * view->row;
        for (int64_t p = p0; p < p1;) {
            struct tap_run run = tap_run(view, k % view->taps, p, p1);
            const float *from = in + (p - p0);
            for (int64_t i = run.good0; i < run.good1; i++) channel[run.offset + i * stride] += from[i];
            p += run.count;
        }
    }
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static const float *image_at(const struct graph_node *x, int64_t image, int64_t channel) {
    int64_t row = (image * x->shape[2] + channel) * x->shape[1];
    return (const float *)(x->data + (size_t)row * x->row_bytes);
}

static void product(const struct graph_call *call, const struct gemm_args *args) {
    for (int64_t n = 0; n < args->n; n += GEMM_COLS)
        call->graph->kernels->training.gemm[call->node->params.precision](
            args, 0, args->m, n, smaller(n + GEMM_COLS, args->n), call->scratch);
}

/* --------------------------------------------------------------------- convolution */

/* A unit: CHUNK places of one group of one image. */
int64_t tiles_conv(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    (void)threads;
    node->cut.inner_count = div_up(node->shape[0] * node->shape[1], CHUNK);
    return images_of(node) * node->params.filter.groups * node->cut.inner_count;
}

static void conv_unit(const struct graph_call *call, int64_t image, int64_t group, int64_t p0) {
    const struct graph_node *node = call->node, *x = call_input(call, 0);
    const struct graph_parameter *weight = call_input(call, 1)->params.parameter;
    struct view view = view_of(x, node, &node->params.filter);
    int64_t outputs = weight->rows / view.filter->groups, channels = x->shape[2] / view.filter->groups;
    int64_t p1 = smaller(p0 + CHUNK, view.places), first = group * outputs;
    const float *from = image_at(x, image, group * channels), *bias = call_vector(call, 2);
    float *out = (float *)image_at(node, image, first) + p0, *chunk = chunk_of(call);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t p = 0; p < p1 - p0; p++) out[o * view.places + p] = bias ? bias[first + o] : 0;
    for (int64_t k = 0; k < weight->cols; k += CHUNK) {
        int64_t end = smaller(k + CHUNK, weight->cols);
        gather_chunk(&view, from, k, end, p0, p1, chunk);
        product(call, &(struct gemm_args){.m = outputs,
                                          .n = p1 - p0,
                                          .k = end - k,
                                          .a = (const float *)weight->data + first * weight->cols + k,
                                          .a_row = weight->cols,
                                          .a_col = 1,
                                          .b = chunk,
                                          .b_row_bytes = CHUNK * sizeof(float),
                                          .alpha = 1,
                                          .accumulate = true,
                                          .c = out,
                                          .c_row = view.places});
    }
}

void run_conv(const struct graph_call *call, int64_t first, int64_t last) {
    int64_t chunks = call->node->cut.inner_count, groups = call->node->params.filter.groups;
    for (int64_t unit = first; unit < last; unit++)
        conv_unit(call, unit / chunks / groups, unit / chunks % groups, unit % chunks * CHUNK);
}

/* Channels of a group that a unit of conv_back owns: their taps fill a chunk. */
static int64_t owned_channels(const struct graph_filter *filter) {
    int64_t taps = (int64_t)filter->width * filter->height;
    return taps < CHUNK ? CHUNK / taps : 1;
}

int64_t tiles_conv_back(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    (void)threads;
    const struct graph_filter *filter = &node->params.filter;
    node->cut.inner_count = div_up(node->shape[2] / filter->groups, owned_channels(filter));
    return images_of(node) * filter->groups * node->cut.inner_count;
}

/* What the image has received already, or zeros. */
static void start_image(const struct graph_call *call, int base, int64_t first_row, int64_t rows) {
    const struct graph_node *node = call->node;
    for (int64_t row = first_row; row < first_row + rows; row++) {
        float *out = out_row(call, row);
        if (node->inputs <= base)
            memset(out, 0, node->row_bytes);
        else if (in_row(call, base, row) != out)
            memcpy(out, in_row(call, base, row), node->row_bytes);
    }
}

/* dx of channels [c0, c1) of a group: W^T dy, chunk by chunk, added where the taps looked. */
static void conv_back_unit(const struct graph_call *call, int64_t image, int64_t group, int64_t c0, int64_t c1) {
    const struct graph_node *node = call->node, *dy = call_input(call, 0);
    const struct graph_parameter *weight = call_input(call, 1)->params.parameter;
    struct view view = view_of(node, dy, &node->params.filter);
    int64_t outputs = weight->rows / view.filter->groups, channels = node->shape[2] / view.filter->groups;
    const float *from = image_at(dy, image, group * outputs);
    float *into = (float *)image_at(node, image, group * channels), *chunk = chunk_of(call);
    start_image(call, 2, (image * node->shape[2] + group * channels + c0) * node->shape[1], (c1 - c0) * node->shape[1]);
    for (int64_t p = 0; p < view.places; p += CHUNK) {
        int64_t p_end = smaller(p + CHUNK, view.places);
        for (int64_t k = c0 * view.taps; k < c1 * view.taps; k += CHUNK) {
            int64_t k_end = smaller(k + CHUNK, c1 * view.taps);
            product(call, &(struct gemm_args){.m = k_end - k,
                                              .n = p_end - p,
                                              .k = outputs,
                                              .a = (const float *)weight->data + group * outputs * weight->cols + k,
                                              .a_row = 1,
                                              .a_col = weight->cols,
                                              .b = from + p,
                                              .b_row_bytes = (size_t)view.places * sizeof(float),
                                              .alpha = 1,
                                              .c = chunk,
                                              .c_row = CHUNK});
            scatter_chunk(&view, into, k, k_end, p, p_end, chunk);
        }
    }
}

void run_conv_back(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_filter *filter = &call->node->params.filter;
    int64_t parts = call->node->cut.inner_count, owned = owned_channels(filter);
    int64_t channels = call->node->shape[2] / filter->groups;
    for (int64_t unit = first; unit < last; unit++) {
        int64_t c0 = unit % parts * owned;
        conv_back_unit(call, unit / parts / filter->groups, unit / parts % filter->groups, c0,
                       smaller(c0 + owned, channels));
    }
}

/* A unit: some outputs and a chunk of columns of the weights of one group. */
int64_t tiles_conv_gradient(const struct graph *graph, struct graph_node *node, int threads) {
    if (node_input(graph, node, 0)->rows == 0) return 0;
    int64_t groups = node->params.filter.groups, outputs = node->shape[1] / groups;
    int64_t chunks = div_up(node->shape[0], CHUNK);
    int64_t parts = clamp(div_up((int64_t)threads * 2, chunks * groups), 1, div_up(outputs, GRADIENT_ROWS));
    node->cut.outer = div_up(outputs, parts);
    node->cut.outer_count = div_up(outputs, node->cut.outer);
    node->cut.inner_count = chunks;
    return groups * node->cut.outer_count * chunks;
}

static void conv_gradient_unit(const struct graph_call *call, int64_t group, int64_t o0, int64_t o1, int64_t k0) {
    const struct graph_node *dy = call_input(call, 0), *x = call_input(call, 1);
    struct graph_parameter *weight = call_input(call, 2)->params.parameter;
    struct view view = view_of(x, dy, &call->node->params.filter);
    int64_t outputs = weight->rows / view.filter->groups, channels = x->shape[2] / view.filter->groups;
    int64_t k1 = smaller(k0 + CHUNK, weight->cols);
    float *chunk = chunk_of(call);
    for (int64_t image = 0; image < images_of(x); image++) {
        for (int64_t p = 0; p < view.places; p += CHUNK) {
            int64_t end = smaller(p + CHUNK, view.places);
            gather_chunk(&view, image_at(x, image, group * channels), k0, k1, p, end, chunk);
            product(call, &(struct gemm_args){.m = o1 - o0,
                                              .n = k1 - k0,
                                              .k = end - p,
                                              .a = image_at(dy, image, group * outputs + o0) + p,
                                              .a_row = view.places,
                                              .a_col = 1,
                                              .b = chunk,
                                              .b_row_bytes = CHUNK * sizeof(float),
                                              .b_transposed = true,
                                              .alpha = 1,
                                              .accumulate = true,
                                              .c = weight->gradient + (group * outputs + o0) * weight->cols + k0,
                                              .c_row = weight->cols});
        }
    }
}

void run_conv_gradient(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_cut *cut = &call->node->cut;
    int64_t outputs = call->node->shape[1] / call->node->params.filter.groups;
    for (int64_t unit = first; unit < last; unit++) {
        int64_t part = unit / cut->inner_count, o0 = part % cut->outer_count * cut->outer;
        conv_gradient_unit(call, part / cut->outer_count, o0, smaller(o0 + cut->outer, outputs),
                           unit % cut->inner_count * CHUNK);
    }
}

/* ------------------------------------------------------------------------- pooling */

struct span {
    int64_t first, last;
};

/* Values [first, last) of a line of `size` that step `at` sees. */
static struct span seen(int64_t at, int stride, int before, int filter, int64_t size) {
    int64_t first = at * stride - before, last = first + filter;
    return (struct span){first > 0 ? first : 0, last < size ? last : size};
}

/* Images and channels alike are planes: a row of the output belongs to one. */
static const float *plane_at(const struct graph_node *x, int64_t plane) {
    return (const float *)(x->data + (size_t)(plane * x->shape[1]) * x->row_bytes);
}

/* Where the largest value of a window stands, the first one of equals; NaN counts as the largest. */
static int64_t largest(const float *plane, int64_t step, struct span ys, struct span xs) {
    int64_t best = ys.first * step + xs.first;
    for (int64_t y = ys.first; y < ys.last; y++)
        for (int64_t x = xs.first; x < xs.last; x++)
            if (plane[y * step + x] > plane[best] || (isnan(plane[y * step + x]) && !isnan(plane[best])))
                best = y * step + x;
    return best;
}

static float average(const float *plane, int64_t step, struct span ys, struct span xs) {
    double sum = 0;
    for (int64_t y = ys.first; y < ys.last; y++)
        for (int64_t x = xs.first; x < xs.last; x++) sum += plane[y * step + x];
    return (float)(sum / (double)((ys.last - ys.first) * (xs.last - xs.first)));
}

void run_pool(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node, *in = call_input(call, 0);
    const struct graph_filter *f = &node->params.filter;
    for (int64_t row = first; row < last; row++) {
        const float *plane = plane_at(in, row / node->shape[1]);
        struct span ys = seen(row % node->shape[1], f->stride_y, f->top, f->height, in->shape[1]);
        float *out = out_row(call, row);
        for (int64_t x = 0; x < node->shape[0]; x++) {
            struct span xs = seen(x, f->stride_x, f->left, f->width, in->shape[0]);
            out[x] = node->kind == OP_MAX_POOL ? plane[largest(plane, row_step(in), ys, xs)]
                                               : average(plane, row_step(in), ys, xs);
        }
    }
}

int64_t tiles_planes(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    (void)threads;
    return node->rows / node->shape[1];
}

static void spread(float *plane, int64_t step, struct span ys, struct span xs, float dy) {
    float share = dy / (float)((ys.last - ys.first) * (xs.last - xs.first));
    for (int64_t y = ys.first; y < ys.last; y++)
        for (int64_t x = xs.first; x < xs.last; x++) plane[y * step + x] += share;
}

/* Whole planes, as windows overlap. The image of max_pool says where its largest values stood. */
void run_pool_back(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node, *dy = call_input(call, 0);
    const struct graph_filter *f = &node->params.filter;
    bool max = node->kind == OP_MAX_POOL_BACK;
    for (int64_t plane = first; plane < last; plane++) {
        start_image(call, max ? 2 : 1, plane * node->shape[1], node->shape[1]);
        const float *image = max ? plane_at(call_input(call, 1), plane) : NULL;
        float *into = (float *)plane_at(node, plane);
        for (int64_t y = 0; y < dy->shape[1]; y++) {
            const float *change = in_row(call, 0, plane * dy->shape[1] + y);
            struct span ys = seen(y, f->stride_y, f->top, f->height, node->shape[1]);
            for (int64_t x = 0; x < dy->shape[0]; x++) {
                struct span xs = seen(x, f->stride_x, f->left, f->width, node->shape[0]);
                if (!max) {
                    spread(into, row_step(node), ys, xs, change[x]);
                    continue;
                }
                int64_t at = largest(image, row_step(call_input(call, 1)), ys, xs);
                into[at / row_step(call_input(call, 1)) * row_step(node) + at % row_step(call_input(call, 1))] +=
                    change[x];
            }
        }
    }
}

/* ---------------------------------------------------------------------- per channel */

int64_t tiles_channels(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    (void)threads;
    return node->shape[1];
}

/* Row `i` of all rows of a channel, over the images. */
static int64_t channel_row(const struct graph_node *x, int64_t channel, int64_t i) {
    return (i / x->shape[1] * x->shape[2] + channel) * x->shape[1] + i % x->shape[1];
}

static void batch_moments(const struct graph_call *call, int64_t channel, double *mean, double *variance) {
    const struct graph_node *x = call_input(call, 0);
    int64_t rows = images_of(x) * x->shape[1];
    double count = (double)(rows * x->shape[0]), sum = 0, square = 0;
    for (int64_t i = 0; i < rows; i++) {
        const float *row = in_row(call, 0, channel_row(x, channel, i));
        for (int64_t k = 0; k < x->shape[0]; k++) sum += row[k];
    }
    *mean = count > 0 ? sum / count : 0;
    for (int64_t i = 0; i < rows; i++) {
        const float *row = in_row(call, 0, channel_row(x, channel, i));
        for (int64_t k = 0; k < x->shape[0]; k++) square += (row[k] - *mean) * (row[k] - *mean);
    }
    *variance = count > 0 ? square / count : 0;
}

static void move_towards(float *running, double value, float share) {
    *running = (float)((1 - (double)share) * (double)*running + (double)share * value);
}

/* Mean and 1 / deviation of every channel. */
void run_batch_stats(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_params *params = &call->node->params;
    const struct graph_node *x = call_input(call, 0);
    double count = (double)(x->rows / x->shape[2] * x->shape[0]);
    for (int64_t channel = first; channel < last; channel++) {
        double mean = params->result[channel], variance = params->result2[channel];
        if (params->learn) batch_moments(call, channel, &mean, &variance);
        float *out = out_row(call, channel);
        out[0] = (float)mean;
        out[1] = (float)(1 / sqrt(variance + (double)params->eps));
        if (!params->learn || count < 1) continue;
        move_towards(&params->result[channel], mean, params->rate);
        move_towards(&params->result2[channel], count > 1 ? variance * count / (count - 1) : variance, params->rate);
    }
}

static int64_t channel_of(const struct graph_node *node, int64_t row) {
    return row / node->shape[1] % node->shape[2];
}

void run_batch_norm(const struct graph_call *call, int64_t first, int64_t last) {
    const float *gain = call_vector(call, 2), *bias = call_vector(call, 3);
    for (int64_t row = first; row < last; row++) {
        int64_t channel = channel_of(call->node, row);
        const float *x = in_row(call, 0, row), *stats = in_row(call, 1, channel);
        float *y = out_row(call, row), factor = stats[1] * gain[channel];
        for (int64_t i = 0; i < call->node->shape[0]; i++) y[i] = (x[i] - stats[0]) * factor + bias[channel];
    }
}

/* Sums of dy and of dy * (x normed). */
void run_channel_sums(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *dy = call_input(call, 0);
    int64_t rows = images_of(dy) * dy->shape[1];
    for (int64_t channel = first; channel < last; channel++) {
        const float *stats = call->node->inputs == 3 ? in_row(call, 2, channel) : NULL;
        double sum = 0, product_sum = 0;
        for (int64_t i = 0; i < rows; i++) {
            int64_t row = channel_row(dy, channel, i);
            const float *change = in_row(call, 0, row), *x = stats ? in_row(call, 1, row) : NULL;
            for (int64_t k = 0; k < dy->shape[0]; k++) sum += change[k];
            for (int64_t k = 0; x && k < dy->shape[0]; k++)
                product_sum += (double)change[k] * ((double)x[k] - (double)stats[0]) * (double)stats[1];
        }
        float *out = out_row(call, channel);
        out[0] = (float)sum;
        out[1] = (float)product_sum;
    }
}

void run_channel_gradient(const struct graph_call *call, int64_t first, int64_t last) {
    float *gradient = call_input(call, 1)->params.parameter->gradient;
    for (int64_t channel = 0; channel < call->node->shape[0] && first < last; channel++)
        gradient[channel] += in_row(call, 0, channel)[call->node->params.first];
}

int64_t tiles_one(const struct graph *graph, struct graph_node *node, int threads) {
    (void)graph;
    (void)node;
    (void)threads;
    return 1;
}

/* dx = gain / deviation * (dy - mean of dy - normed * mean of dy * normed); with running statistics, which do not
 * depend on x, only the first term. */
void run_batch_norm_back(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node;
    const float *gain = call_vector(call, 4);
    bool training = node->params.learn;
    float count = (float)(node->rows / node->shape[2] * node->shape[0]);
    for (int64_t row = first; row < last; row++) {
        int64_t channel = channel_of(node, row);
        const float *dy = in_row(call, 0, row), *x = in_row(call, 1, row);
        const float *stats = in_row(call, 2, channel), *sums = in_row(call, 3, channel);
        float *dx = out_row(call, row), factor = gain[channel] * stats[1];
        float mean = training ? sums[0] / count : 0, slope = training ? sums[1] / count : 0;
        for (int64_t i = 0; i < node->shape[0]; i++)
            dx[i] = factor * (dy[i] - mean - (x[i] - stats[0]) * stats[1] * slope);
    }
}

/* ---------------------------------------------------------------------- turned round */

/* Output rows: of images turned to rows, places; of rows turned to images, lines of a channel. */
void run_transpose(const struct graph_call *call, int64_t first, int64_t last) {
    const struct graph_node *node = call->node, *in = call_input(call, 0);
    bool to_rows =
        node->shape[2] == 1 && node->shape[0] == in->shape[2] && node->shape[1] == in->shape[0] * in->shape[1];
    int64_t in_rows = in->shape[1] * in->shape[2], out_rows = node->shape[1] * node->shape[2];
    for (int64_t row = first; row < last; row++) {
        int64_t image = row / out_rows, at = row % out_rows;
        float *out = out_row(call, row);
        for (int64_t i = 0; i < node->shape[0]; i++) {
            if (to_rows) /* channel i at place `at` */
                out[i] = in_row(call, 0, image * in_rows + i * in->shape[1] + at / in->shape[0])[at % in->shape[0]];
            else /* place (at % height, i) of channel at / height */
                out[i] =
                    in_row(call, 0, image * in_rows + at % node->shape[1] * node->shape[0] + i)[at / node->shape[1]];
        }
    }
}
