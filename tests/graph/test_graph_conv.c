/* Convolution, pooling, batch norm, LSTM: gradients against central differences, values and gradients against
 * PyTorch (golden/conv.json, written by conv_golden.py), what is refused. */
#include "graph/gradient_check.h"

static const int64_t image_counts[] = {1, 2, 5};

#define FOR_IMAGES(n) for (size_t n = 0; n < sizeof image_counts / sizeof *image_counts; n++)

/* ------------------------------------------------------------------------ networks */

/* [w, h, c, rows] that learns. */
static node_id world_image(struct world *world, int64_t w, int64_t h, int64_t c) {
    return graph_reshape(world->graph, world_value(world, w * h * c), (int64_t[4]){w, h, c, GRAPH_ROWS});
}

/* One row per image again. */
static node_id flat(struct world *world, node_id x) {
    const int64_t *shape = node_at(world->graph, x)->shape;
    return graph_reshape(world->graph, x, (int64_t[4]){shape[0] * shape[1] * shape[2], GRAPH_ROWS, 1, 1});
}

struct conv {
    int64_t w, h, c, outputs;
    struct graph_filter filter;
    bool bias, frozen;
};

static node_id build_conv(struct world *world, const void *what) {
    const struct conv *conv = what;
    const struct graph_filter *f = &conv->filter;
    int64_t cols = conv->c / (f->groups ? f->groups : 1) * f->width * f->height;
    node_id x = world_image(world, conv->w, conv->h, conv->c);
    node_id weight = world_parameter(world, DT_F32, conv->outputs, cols, !conv->frozen);
    node_id bias = conv->bias ? world_parameter(world, DT_F32, 1, conv->outputs, !conv->frozen) : -1;
    node_id y = graph_conv(world->graph, x, weight, bias, f);
    return flat(world, graph_scale(world->graph, y, 1 / sqrtf((float)cols)));
}

static void test_conv(void **state) {
    (void)state;
    static const struct conv cases[] = {
        {11, 1, 3, 4, {.width = 3, .height = 1}, true, false},
        {40, 1, 2, 5, {.width = 7, .height = 1, .stride_x = 4, .left = 3, .right = 2}, true, false},
        {9, 7, 2, 3, {.width = 3, .height = 3, .left = 1, .right = 1, .top = 1, .bottom = 1}, true, false},
        {9, 8, 4, 6, {.width = 2, .height = 3, .stride_x = 2, .stride_y = 3, .groups = 2, .top = 2}, false, false},
        {13, 9, 3, 3, {.width = 3, .height = 2, .dilation_x = 3, .dilation_y = 4, .groups = 3, .left = 5}, true, false},
        {20, 19, 1, 2, {.width = 1, .height = 1}, true, true},              /* more places than a chunk */
        {6, 1, 100, 3, {.width = 3, .height = 1, .left = 1}, false, false}, /* more taps than a chunk */
        {300, 1, 1, 2, {.width = 270, .height = 1, .right = 9}, true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_IMAGES(n) check_gradients(build_conv, &cases[i], image_counts[n], 0, "conv");
}

struct pool_case {
    bool max;
    int64_t w, h, c;
    struct graph_filter filter;
};

/* Values so far apart that steps do not change which one is the largest. */
static void spread_values(struct graph_parameter *parameter) {
    int64_t count = parameter->rows * parameter->cols;
    for (int64_t i = 0; i < count; i++)
        ((float *)parameter->data)[i] = (float)(i * 37 % 101) * 0.2F - 10 + (float)i * 0.0007F;
}

static node_id build_pool(struct world *world, const void *what) {
    const struct pool_case *pool = what;
    node_id x = world_image(world, pool->w, pool->h, pool->c);
    if (pool->max) spread_values(&world->parameters[0]);
    node_id y =
        pool->max ? graph_max_pool(world->graph, x, &pool->filter) : graph_average_pool(world->graph, x, &pool->filter);
    /* x is read a second time: what both send back adds up. */
    node_id z = graph_average_pool(world->graph, graph_scale(world->graph, x, 0.5F), &pool->filter);
    return flat(world, graph_add(world->graph, y, z));
}

static void test_pools(void **state) {
    (void)state;
    static const struct pool_case cases[] = {
        {true, 11, 1, 2, {.width = 2, .height = 1, .stride_x = 2}},
        {true, 9, 7, 2, {.width = 3, .height = 2, .stride_x = 2, .stride_y = 1, .left = 1, .right = 2, .top = 1}},
        {false, 9, 7, 2, {.width = 3, .height = 2, .stride_x = 2, .stride_y = 1, .left = 1, .right = 2, .top = 1}},
        {false, 6, 5, 3, {.width = 6, .height = 5}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_IMAGES(n) check_gradients(build_pool, &cases[i], image_counts[n], 0, cases[i].max ? "max" : "average");
}

struct batch {
    int64_t w, h, c;
    bool training, learns;
};

static float running_mean[8], running_variance[8];

static node_id build_batch_norm(struct world *world, const void *what) {
    const struct batch *batch = what;
    for (int i = 0; i < 8; i++) running_mean[i] = 0.3F * (float)i, running_variance[i] = 0.5F + 0.2F * (float)i;
    node_id x = world_image(world, batch->w, batch->h, batch->c);
    node_id gain = world_parameter(world, DT_F32, 1, batch->c, batch->learns);
    node_id bias = world_parameter(world, DT_F32, 1, batch->c, batch->learns);
    node_id y = graph_batch_norm(world->graph, graph_scale(world->graph, x, 2), gain, bias, running_mean,
                                 running_variance, 1e-3F, 0.1F, batch->training);
    return flat(world, graph_unary(world->graph, y, UNARY_SILU));
}

static void test_batch_norm(void **state) {
    (void)state;
    static const struct batch cases[] = {
        {7, 3, 4, true, true}, {7, 3, 4, false, true}, {19, 1, 2, true, false}, {19, 1, 2, false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        FOR_IMAGES(n) check_gradients(build_batch_norm, &cases[i], image_counts[n], 0, "batch_norm");
}

struct lstm {
    int64_t steps, in, hidden;
    enum dtype dtype;
    bool reverse, learns;
};

static node_id build_lstm(struct world *world, const void *what) {
    const struct lstm *lstm = what;
    struct graph *graph = world->graph;
    node_id x = graph_reshape(graph, world_value(world, lstm->in * lstm->steps),
                              (int64_t[4]){lstm->in, lstm->steps, 1, GRAPH_ROWS});
    node_id inputs = world_parameter(world, DT_F32, 4 * lstm->hidden, lstm->in, true);
    node_id bias = world_parameter(world, DT_F32, 1, 4 * lstm->hidden, true);
    node_id gates = graph_linear(graph, graph_scale(graph, x, 0.5F), inputs, bias, -1, 1);
    node_id weight = world_parameter(world, lstm->dtype, 4 * lstm->hidden, lstm->hidden, lstm->learns);
    node_id h = graph_lstm(graph, gates, weight, lstm->reverse);
    return flat(world, graph_scale(graph, h, 2));
}

static void test_lstm(void **state) {
    (void)state;
    static const struct lstm cases[] = {{1, 3, 5, DT_F32, false, true},
                                        {6, 3, 5, DT_F32, false, true},
                                        {6, 2, 3, DT_F32, true, true},
                                        {4, 3, 5, DT_BF16, true, true},
                                        {3, 2, 32, DT_Q8_0, false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FOR_IMAGES(n) check_gradients(build_lstm, &cases[i], image_counts[n], 0, "lstm");
        check_gradients(build_lstm, &cases[i], 23, 0, "lstm"); /* more than one unit per thread */
    }
}

/* A small picker: convolutions and batch norm, rows, both directions of an LSTM, attention, and back to a waveform. */
static node_id build_picker(struct world *world, const void *what) {
    enum { SAMPLES = 24, CHANNELS = 3, WIDTH = 4, HIDDEN = 3, PLACES = 12 };
    struct graph *graph = world->graph;
    (void)what;
    for (int i = 0; i < 8; i++) running_mean[i] = 0, running_variance[i] = 1;
    node_id x = world_image(world, SAMPLES, 1, CHANNELS);
    const struct graph_filter filter = {.width = 5, .height = 1, .stride_x = 2, .left = 2, .right = 1};
    node_id weight = world_parameter(world, DT_F32, WIDTH, CHANNELS * 5, true);
    x = graph_conv(graph, graph_scale(graph, x, 0.3F), weight, -1, &filter); /* the norm takes a bias away */
    node_id gain = world_parameter(world, DT_F32, 1, WIDTH, true),
            bias = world_parameter(world, DT_F32, 1, WIDTH, true);
    x = graph_batch_norm(graph, x, gain, bias, running_mean, running_variance, 0.5F, 0.1F, true);
    x = graph_to_rows(graph, graph_unary(graph, x, UNARY_GELU_TANH));
    node_id both = -1;
    for (int reverse = 0; reverse < 2; reverse++) {
        node_id gates = graph_linear(graph, x, world_parameter(world, DT_F32, 4 * HIDDEN, WIDTH, true), -1, -1, 0.5F);
        node_id h = graph_lstm(graph, gates, world_parameter(world, DT_F32, 4 * HIDDEN, HIDDEN, true), reverse);
        both = graph_linear(graph, h, world_parameter(world, DT_F32, WIDTH, HIDDEN, true), -1, both, 1);
    }
    x = graph_layer_norm(graph, graph_add(graph, both, x), -1, -1, 0.2F);
    return flat(world, graph_from_rows(graph, x, PLACES, 1));
}

static void test_picker(void **state) {
    (void)state;
    FOR_IMAGES(n) check_gradients(build_picker, NULL, image_counts[n], 0, "picker");
}

static node_id build_turned(struct world *world, const void *what) {
    (void)what;
    node_id x = world_image(world, 5, 3, 4), rows = graph_to_rows(world->graph, x);
    node_id back = graph_from_rows(world->graph, graph_mul(world->graph, rows, rows), 5, 3);
    return flat(world, graph_add(world->graph, back, graph_from_rows(world->graph, rows, 5, 3)));
}

static void test_turned(void **state) {
    (void)state;
    FOR_IMAGES(n) check_gradients(build_turned, NULL, image_counts[n], 0, "transpose");
    struct world world;
    struct pool *pool = new_pool(2);
    world_open(&world, build_turned, NULL, 2, 0, AS_BUILT);
    world_run(&world, pool);
    const float *table = world.parameters[0].data, *out = graph_data(world.graph, world.out);
    for (int row = 0; row < 2; row++)
        for (int i = 0; i < 60; i++) {
            float x = table[(1 - row) * 60 + i];
            assert_true(fabsf(out[row * 60 + i] - (x * x + x)) <= 1e-5F);
        }
    world_close(&world);
    pool_free(pool);
}

/* ------------------------------------------------------------------------- PyTorch */

/* One case of golden/conv.json: a network of one operation, the loss is half the squared distance to targets. */
struct golden {
    json_t *json;
    struct graph *graph;
    struct graph_parameter parameters[4];
    int count;
    float *mean, *variance;
};

static double number(const struct golden *golden, const char *key) {
    return json_number_value(json_object_get(golden->json, key));
}

static float *numbers(const struct golden *golden, const char *key) {
    const json_t *array = json_object_get(golden->json, key);
    float *out = test_alloc((json_array_size(array) + 1) * sizeof *out);
    assert_non_null(array);
    for (size_t i = 0; i < json_array_size(array); i++) out[i] = (float)json_number_value(json_array_get(array, i));
    return out;
}

static node_id golden_parameter(struct golden *golden, const char *key, int64_t rows) {
    struct graph_parameter *parameter = &golden->parameters[golden->count++];
    int64_t count = (int64_t)json_array_size(json_object_get(golden->json, key));
    *parameter = (struct graph_parameter){key, DT_F32, rows, count / rows, numbers(golden, key), NULL};
    parameter->gradient = test_alloc((size_t)count * sizeof(float));
    return graph_parameter(golden->graph, parameter);
}

static struct graph_filter golden_filter(const struct golden *golden) {
    int x = (int)number(golden, "pad_x"), y = (int)number(golden, "pad_y");
    return (struct graph_filter){.width = (int)number(golden, "kernel_x"),
                                 .height = (int)number(golden, "kernel_y"),
                                 .stride_x = (int)number(golden, "stride_x"),
                                 .stride_y = (int)number(golden, "stride_y"),
                                 .dilation_x = (int)number(golden, "dilation_x"),
                                 .dilation_y = (int)number(golden, "dilation_y"),
                                 .left = x,
                                 .right = x,
                                 .top = y,
                                 .bottom = y,
                                 .groups = (int)number(golden, "groups")};
}

/* x [values of an image, images] -> the output, a row per image. */
static node_id golden_network(struct golden *golden, node_id x) {
    struct graph *graph = golden->graph;
    const char *kind = json_string_value(json_object_get(golden->json, "kind"));
    int64_t w = (int64_t)number(golden, "w"), h = (int64_t)number(golden, "h"), c = (int64_t)number(golden, "c");
    const struct graph_filter filter = golden_filter(golden);
    if (strcmp(kind, "lstm") == 0) {
        int64_t hidden = (int64_t)number(golden, "hidden");
        x = graph_reshape(graph, x, (int64_t[4]){c, w, 1, GRAPH_ROWS});
        node_id inputs = golden_parameter(golden, "weight_ih", 4 * hidden);
        node_id gates = graph_linear(graph, x, inputs, golden_parameter(golden, "bias", 1), -1, 1);
        node_id weight = golden_parameter(golden, "weight_hh", 4 * hidden);
        x = graph_scale(graph, graph_lstm(graph, gates, weight, number(golden, "reverse") != 0), 1);
        return graph_reshape(graph, x, (int64_t[4]){hidden * w, GRAPH_ROWS, 1, 1});
    }
    x = graph_reshape(graph, x, (int64_t[4]){w, h, c, GRAPH_ROWS});
    if (strcmp(kind, "conv") == 0) {
        node_id weight = golden_parameter(golden, "weight", (int64_t)number(golden, "outputs"));
        x = graph_conv(graph, x, weight, golden_parameter(golden, "bias", 1), &filter);
    } else if (strcmp(kind, "batch_norm") == 0) {
        node_id gain = golden_parameter(golden, "gain", 1), bias = golden_parameter(golden, "bias", 1);
        golden->mean = numbers(golden, "mean");
        golden->variance = numbers(golden, "variance");
        x = graph_batch_norm(graph, x, gain, bias, golden->mean, golden->variance, (float)number(golden, "eps"),
                             (float)number(golden, "momentum"), number(golden, "training") != 0);
    } else {
        x = strcmp(kind, "max_pool") == 0 ? graph_max_pool(graph, x, &filter) : graph_average_pool(graph, x, &filter);
    }
    const int64_t *shape = node_at(graph, x)->shape;
    return graph_reshape(graph, x, (int64_t[4]){shape[0] * shape[1] * shape[2], GRAPH_ROWS, 1, 1});
}

static double compare_golden(const struct golden *golden, const char *key, const float *found) {
    const json_t *array = json_object_get(golden->json, key);
    size_t count = json_array_size(array);
    double *wanted = test_alloc(count * sizeof *wanted);
    assert_non_null(array);
    for (size_t i = 0; i < count; i++) wanted[i] = json_number_value(json_array_get(array, i));
    double error = nmse(found, wanted, (int64_t)count);
    mem_free(wanted);
    return error;
}

#define GOLDEN_BOUND 1e-11

static void assert_golden(const struct golden *golden, const char *key, const float *found) {
    double error = compare_golden(golden, key, found);
    if (!(error <= GOLDEN_BOUND))
        fail_msg("%s, %s: NMSE %g", json_string_value(json_object_get(golden->json, "name")), key, error);
}

static void check_golden(json_t *json) {
    struct golden golden = {.json = json, .graph = new_graph()};
    int64_t images = (int64_t)number(&golden, "images");
    int64_t cols = (int64_t)json_array_size(json_object_get(json, "x")) / images;
    node_id ids = graph_input(golden.graph, DT_I32, GRAPH_ROWS, 1, "ids");
    node_id x = graph_embed_parameter(golden.graph, ids, golden_parameter(&golden, "x", images));
    node_id out = golden_network(&golden, x);
    node_id targets = graph_input(golden.graph, DT_F32, GRAPH_ROWS, node_at(golden.graph, out)->shape[0], "targets");
    node_id weights = graph_input(golden.graph, DT_F32, GRAPH_ROWS, 1, "weights");
    float losses[16];
    assert_true(images <= 16 && cols > 0);
    graph_squared_error(golden.graph, out, targets, weights, losses);
    graph_output(golden.graph, out);
    assert_int_equal(graph_backward(golden.graph, NULL), SHU_OK);
    plan_graph(golden.graph, images, 0, 2);
    for (int i = 0; i < images; i++) {
        ((int32_t *)graph_data(golden.graph, ids))[i] = i;
        ((float *)graph_data(golden.graph, weights))[i] = 1;
    }
    float *wanted = numbers(&golden, "targets");
    memcpy(graph_data(golden.graph, targets), wanted,
           json_array_size(json_object_get(json, "targets")) * sizeof *wanted);
    mem_free(wanted);
    struct pool *pool = new_pool(2);
    run_graph(golden.graph, pool, &(struct graph_step){.rows = images});
    assert_golden(&golden, "y", graph_data(golden.graph, out));
    for (int i = 0; i < golden.count; i++) {
        char key[64];
        snprintf(key, sizeof key, "d_%s", golden.parameters[i].name);
        assert_golden(&golden, key, golden.parameters[i].gradient);
    }
    if (golden.mean) {
        assert_golden(&golden, "mean_after", golden.mean);
        assert_golden(&golden, "variance_after", golden.variance);
    }
    for (int64_t i = 0; i < images * cols; i++)
        golden.parameters[0].gradient[i] *= 1.0001F; /* the comparison sees that */
    assert_false(compare_golden(&golden, "d_x", golden.parameters[0].gradient) <= GOLDEN_BOUND);
    pool_free(pool);
    graph_free(golden.graph);
    for (int i = 0; i < golden.count; i++) {
        mem_free(golden.parameters[i].data);
        mem_free(golden.parameters[i].gradient);
    }
    mem_free(golden.mean);
    mem_free(golden.variance);
}

static void test_pytorch(void **state) {
    (void)state;
    json_t *all = NULL;
    struct shu_error err = {0};
    if (json_read_file(TEST_DATA "/graph/golden/conv.json", 1 << 20, &all, &err)) fail_msg("%s", err.message);
    const json_t *cases = json_object_get(all, "cases");
    assert_true(json_array_size(cases) >= 10);
    for (size_t i = 0; i < json_array_size(cases); i++) check_golden(json_array_get(cases, i));
    json_decref(all);
}

/* -------------------------------------------------------------------------- misuse */

static float values[256];
static struct graph_parameter filter_weight = {"filter", DT_F32, 4, 6, values, values};
static struct graph_parameter half_weight = {"half", DT_BF16, 4, 6, values, values};
static struct graph_parameter recurrent = {"recurrent", DT_F32, 12, 3, values, values};

static node_id image_of(struct graph *graph, int64_t w, int64_t h, int64_t c) {
    return graph_input_shaped(graph, DT_F32, (int64_t[4]){w, h, c, GRAPH_ROWS}, "x");
}
static void bad_columns(struct graph *graph) {
    node_id x = image_of(graph, 9, 1, 3);
    graph_conv(graph, x, graph_parameter(graph, &filter_weight), -1, &(struct graph_filter){.width = 3, .height = 1});
}
static void bad_type(struct graph *graph) {
    node_id x = image_of(graph, 9, 1, 2);
    graph_conv(graph, x, graph_parameter(graph, &half_weight), -1, &(struct graph_filter){.width = 3, .height = 1});
}
static void bad_groups(struct graph *graph) {
    node_id x = image_of(graph, 9, 1, 6);
    graph_conv(graph, x, graph_parameter(graph, &filter_weight), -1,
               &(struct graph_filter){.width = 3, .height = 1, .groups = 3});
}
static void bad_size(struct graph *graph) {
    node_id x = image_of(graph, 2, 1, 2);
    graph_conv(graph, x, graph_parameter(graph, &filter_weight), -1, &(struct graph_filter){.width = 3, .height = 1});
}
static void bad_stride(struct graph *graph) {
    graph_max_pool(graph, image_of(graph, 9, 1, 2), &(struct graph_filter){.width = 2, .height = 1, .stride_x = -1});
}
static void bad_padding(struct graph *graph) {
    graph_max_pool(graph, image_of(graph, 9, 1, 2), &(struct graph_filter){.width = 2, .height = 1, .left = 2});
}
static void bad_symbol(struct graph *graph) {
    node_id x = graph_input_shaped(graph, DT_F32, (int64_t[4]){9, GRAPH_ROWS, 1, 1}, "x");
    graph_max_pool(graph, x, &(struct graph_filter){.width = 2, .height = 1});
}
static void bad_shape(struct graph *graph) {
    graph_reshape(graph, image_of(graph, 9, 1, 2), (int64_t[4]){9, GRAPH_ROWS, 1, 1});
}
static void bad_strided(struct graph *graph) {
    node_id x = graph_columns(graph, image_of(graph, 9, 1, 2), 0, 8);
    graph_reshape(graph, x, (int64_t[4]){16, GRAPH_ROWS, 1, 1});
}
static void bad_turn(struct graph *graph) {
    graph_from_rows(graph, image_of(graph, 4, 9, 1), 2, 4);
}
static void bad_image(struct graph *graph) {
    graph_from_rows(graph, image_of(graph, 4, 9, 1), 0, 4);
}
static void bad_momentum(struct graph *graph) {
    node_id x = image_of(graph, 9, 1, 2), gain = graph_const(graph, values, 2, "gain");
    graph_batch_norm(graph, x, gain, gain, values, values, 1e-5F, 1.5F, true);
}
static void bad_gates(struct graph *graph) {
    node_id weight = graph_parameter(graph, &recurrent);
    graph_lstm(graph, image_of(graph, 11, 5, 1), weight, false);
}
static void bad_input(struct graph *graph) {
    graph_input_shaped(graph, DT_F32, (int64_t[4]){9, 1, 0, 1}, "x");
}

static const struct {
    void (*build)(struct graph *graph);
    const char *says;
} bad_networks[] = {
    {bad_columns, "3 channels in 1 groups need an F32 parameter of 9 columns"},
    {bad_type, "need an F32 parameter of 6 columns, found node 1 (parameter, half) of type BF16, [6, 4]"},
    {bad_groups, "6 channels in 3 groups need an F32 parameter of 6 columns"},
    {bad_size, "a filter of 3 x 1 does not fit into node 0 (input, x) of 2 x 1"},
    {bad_stride, "a filter needs positive sizes and strides"},
    {bad_padding, "less padding than its 2 x 1"},
    {bad_symbol, "only the number of images may be symbolic"},
    {bad_shape, "cannot see node 0 (input, x) of [9, 1, 2, -1] as [9, -1, 1, 1]"},
    {bad_strided, "cannot see node 1 (columns)"},
    {bad_turn, "cannot turn node 0 (input, x) of [4, 9, 1] to [2, 4, 4]"},
    {bad_image, "an image of 0 x 4 has no values"},
    {bad_momentum, "momentum in [0, 1], found 1e-05 and 1.5"},
    {bad_gates, "input 0 must have 12 columns, found node 1 (input, x) of 11"},
    {bad_input, "input x: has a size of 0"},
};

static void test_bad_networks(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_networks / sizeof *bad_networks; i++) {
        struct graph *graph = new_graph();
        struct shu_error err = {0};
        bad_networks[i].build(graph);
        assert_int_not_equal(graph_plan(graph, 8, 8, 1, &err), SHU_OK);
        if (!strstr(err.message, bad_networks[i].says))
            fail_msg("case %zu says \"%s\", expected \"%s\"", i, err.message, bad_networks[i].says);
        graph_free(graph);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv),    cmocka_unit_test(test_pools),        cmocka_unit_test(test_batch_norm),
        cmocka_unit_test(test_lstm),    cmocka_unit_test(test_picker),       cmocka_unit_test(test_turned),
        cmocka_unit_test(test_pytorch), cmocka_unit_test(test_bad_networks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
