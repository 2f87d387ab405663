/* Checks gradients against central differences: a network is built from parameters, its output is projected on
 * random targets (half the squared distance, summed in double precision), and every value of every parameter
 * is moved a little in both directions. */
#ifndef TESTS_GRAPH_GRADIENT_CHECK_H
#define TESTS_GRAPH_GRADIENT_CHECK_H

#include "graph/check.h"

#include "graph/op.h"

enum { WORLD_PARAMETERS = 48, WORLD_INPUTS = 8, WORLD_THREADS = 3 };

struct world_input {
    node_id id;
    int64_t count;
    void *data; /* 4 bytes each */
};

struct world {
    struct rng rng;
    struct graph *graph;
    int64_t rows, gathered;
    uint64_t dropout_seed;
    struct graph_parameter parameters[WORLD_PARAMETERS];
    int parameter_count;
    struct world_input inputs[WORLD_INPUTS];
    int input_count;
    node_id out;          /* what is projected; -1: the network ends in a cross-entropy */
    int targets, weights; /* inputs */
    float *loss;          /* of every row */
    struct {              /* a cross-entropy */
        node_id hidden;
        const struct graph_parameter *weight;
        double softcap;
    } entropy;
    bool away_from_zero; /* values at least 0.2 from 0, for functions with a corner there */
};

/* A network: builds the graph and returns the node to project on targets, or -1 if it adds its own loss. */
typedef node_id world_build(struct world *world, const void *what);

/* ------------------------------------------------------------------ for builders */

static inline void *test_alloc(size_t bytes) {
    void *memory = mem_calloc(1, bytes + 64);
    assert_non_null(memory);
    return memory;
}

/* Steps of values: all types that learn can take them exactly near the values that fill_parameter gives. */
#define STEP 0.03125

static inline void fill_parameter(struct world *world, struct graph_parameter *parameter) {
    for (int64_t row = 0; row < parameter->rows; row++) {
        size_t row_bytes = dtype_row_bytes(parameter->dtype, parameter->cols);
        float *values = test_alloc((size_t)parameter->cols * sizeof *values);
        fill_normal(&world->rng, values, parameter->cols);
        for (int64_t i = 0; i < parameter->cols; i++) {
            if (world->away_from_zero) values[i] += values[i] < 0 ? -0.2F : 0.2F;
            if (parameter->gradient && parameter->dtype == DT_BF16)
                values[i] = (float)(rint((double)values[i] * 0.5 / STEP) * STEP);
            if (values[i] > 2.5F || values[i] < -2.5F) values[i] = 1;
        }
        dtype_table[parameter->dtype].from_f32(values, NULL, (uint8_t *)parameter->data + (size_t)row * row_bytes,
                                               parameter->cols);
        mem_free(values);
    }
}

static inline node_id world_parameter(struct world *world, enum dtype dtype, int64_t rows, int64_t cols, bool learns) {
    assert_true(world->parameter_count < WORLD_PARAMETERS);
    struct graph_parameter *parameter = &world->parameters[world->parameter_count++];
    *parameter = (struct graph_parameter){.name = "parameter", .dtype = dtype, .rows = rows, .cols = cols};
    parameter->data = test_alloc(dtype_row_bytes(dtype, cols) * (size_t)rows);
    if (learns) parameter->gradient = test_alloc((size_t)(rows * cols) * sizeof(float));
    fill_parameter(world, parameter);
    return graph_parameter(world->graph, parameter);
}

static inline node_id world_input(struct world *world, enum dtype dtype, int64_t symbol, int64_t cols, void *data) {
    assert_true(world->input_count < WORLD_INPUTS);
    int64_t rows = symbol == GRAPH_ROWS ? world->rows : symbol == GRAPH_GATHERED ? world->gathered : symbol;
    node_id id = graph_input(world->graph, dtype, symbol, cols, "input");
    world->inputs[world->input_count++] = (struct world_input){id, rows * cols, data};
    return id;
}

/* Whole numbers in [0, below): all of them in a mixed order, where there are enough rows. */
static inline node_id world_ids(struct world *world, int64_t symbol, int64_t below) {
    int64_t rows = symbol == GRAPH_ROWS ? world->rows : world->gathered;
    int32_t *ids = test_alloc((size_t)rows * sizeof *ids);
    for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)((i * 7 + 3) % below);
    return world_input(world, DT_I32, symbol, 1, ids);
}

/* f32 rows that learn, one of its own for every row of the step. */
static inline node_id world_value(struct world *world, int64_t cols) {
    node_id table = world_parameter(world, DT_F32, world->rows, cols, true);
    int32_t *ids = test_alloc((size_t)world->rows * sizeof *ids);
    for (int64_t i = 0; i < world->rows; i++) ids[i] = (int32_t)(world->rows - 1 - i);
    return graph_embed_parameter(world->graph, world_input(world, DT_I32, GRAPH_ROWS, 1, ids), table);
}

/* Sequences of `length` rows, the last one cut. */
static inline node_id world_begin(struct world *world, int64_t length) {
    int32_t *begin = test_alloc((size_t)world->rows * sizeof *begin);
    for (int64_t i = 0; i < world->rows; i++) begin[i] = (int32_t)(i / length * length);
    return world_input(world, DT_I32, GRAPH_ROWS, 1, begin);
}

static inline float *normal_values(struct world *world, int64_t count) {
    float *values = test_alloc((size_t)count * sizeof *values);
    fill_normal(&world->rng, values, count);
    return values;
}

/* ------------------------------------------------------------------ open, run, close */

static inline void world_project(struct world *world) {
    const struct graph_node *out = node_at(world->graph, world->out);
    int64_t symbol = out->shape[1], cols = out->shape[0];
    int64_t rows = node_rows(out, world->rows, world->gathered);
    float *weights = normal_values(world, rows), *targets = normal_values(world, rows * cols);
    for (int64_t i = 0; i < rows; i++) weights[i] = 0.5F + fabsf(weights[i]);
    world->targets = world->input_count;
    node_id target_node = world_input(world, DT_F32, symbol, cols, targets);
    world->weights = world->input_count;
    node_id weight_node = world_input(world, DT_F32, symbol, 1, weights);
    graph_squared_error(world->graph, world->out, target_node, weight_node, world->loss);
    graph_output(world->graph, world->out);
}

enum world_manner { AS_BUILT, RECOMPUTED, ALL_KEPT }; /* ALL_KEPT: every node is an output, nothing shares memory */

static inline void world_open(struct world *world, world_build *build, const void *what, int64_t rows, int64_t gathered,
                              enum world_manner manner) {
    bool recompute = manner == RECOMPUTED;
    *world = (struct world){.graph = new_graph(), .rows = rows, .gathered = gathered, .dropout_seed = 77};
    rng_seed(&world->rng, (uint64_t)(rows * 131 + gathered));
    world->loss = test_alloc((size_t)(rows + gathered) * sizeof *world->loss);
    if (recompute) graph_recompute_begin(world->graph);
    world->out = build(world, what);
    if (recompute) graph_recompute_end(world->graph);
    if (world->out >= 0) world_project(world);
    struct shu_error err = {0};
    if (graph_backward(world->graph, &err)) fail_msg("%s", err.message);
    for (int id = 0; manner == ALL_KEPT && id < world->graph->count; id++) graph_output(world->graph, id);
    plan_graph(world->graph, rows, gathered, WORLD_THREADS);
    for (int i = 0; i < world->input_count; i++)
        memcpy(graph_data(world->graph, world->inputs[i].id), world->inputs[i].data,
               (size_t)world->inputs[i].count * 4);
}

static inline void world_close(struct world *world) {
    graph_free(world->graph);
    for (int i = 0; i < world->parameter_count; i++) {
        mem_free(world->parameters[i].data);
        mem_free(world->parameters[i].gradient);
    }
    for (int i = 0; i < world->input_count; i++) mem_free(world->inputs[i].data);
    mem_free(world->loss);
}

static inline void world_run(struct world *world, struct pool *pool) {
    run_graph(
        world->graph, pool,
        &(struct graph_step){.rows = world->rows, .gathered = world->gathered, .dropout_seed = world->dropout_seed});
}

static inline void clear_gradients(struct world *world) {
    for (int i = 0; i < world->parameter_count; i++) {
        struct graph_parameter *parameter = &world->parameters[i];
        if (parameter->gradient)
            memset(parameter->gradient, 0, (size_t)(parameter->rows * parameter->cols) * sizeof(float));
    }
}

/* Negative log-likelihood of a row's target in double precision, from the hidden state on. */
static inline double entropy_of(struct world *world, int64_t row) {
    const struct graph_parameter *weight = world->entropy.weight;
    const float *hidden = (const float *)graph_data(world->graph, world->entropy.hidden) + row * weight->cols;
    int32_t target = ((const int32_t *)world->inputs[world->targets].data)[row];
    float decoded[256];
    assert_true(weight->cols <= 256);
    double sum = 0, wanted = 0;
    for (int64_t v = 0; v < weight->rows; v++) {
        size_t bytes = dtype_row_bytes(weight->dtype, weight->cols);
        dtype_table[weight->dtype].to_f32((const uint8_t *)weight->data + (size_t)v * bytes, decoded, weight->cols);
        double logit = 0, cap = world->entropy.softcap;
        for (int64_t i = 0; i < weight->cols; i++) logit += (double)decoded[i] * (double)hidden[i];
        if (cap > 0) logit = cap * tanh(logit / cap);
        sum += exp(logit);
        if (v == target) wanted = logit;
    }
    return log(sum) - wanted;
}

/* The loss of the last run. */
static inline double world_loss(struct world *world) {
    double sum = 0;
    for (int64_t row = 0; world->out < 0 && row < world->gathered; row++) {
        double nll = entropy_of(world, row);
        if (!(fabs(nll - (double)world->loss[row]) <= 1e-5 * (1 + nll)))
            fail_msg("row %d: loss %g, expected %g", (int)row, (double)world->loss[row], nll);
        sum += (double)((const float *)world->inputs[world->weights].data)[row] * nll;
    }
    if (world->out < 0) return sum;
    const struct graph_node *out = node_at(world->graph, world->out);
    const float *targets = world->inputs[world->targets].data, *weights = world->inputs[world->weights].data;
    for (int64_t row = 0; row < out->rows; row++) {
        const float *y = (const float *)(out->data + (size_t)row * out->row_bytes);
        double distance = 0;
        for (int64_t col = 0; col < out->shape[0]; col++) {
            double apart = (double)y[col] - (double)targets[row * out->shape[0] + col];
            distance += 0.5 * apart * apart;
        }
        if (!(fabs(distance - (double)world->loss[row]) <= 1e-5 * (1 + distance)))
            fail_msg("row %d: loss %g, expected %g", (int)row, (double)world->loss[row], distance);
        sum += (double)weights[row] * distance;
    }
    return sum;
}

/* ---------------------------------------------------------------------- the check */

static inline float parameter_get(const struct graph_parameter *parameter, int64_t i) {
    return parameter->dtype == DT_BF16 ? bf16_to_f32(((uint16_t *)parameter->data)[i]) : ((float *)parameter->data)[i];
}

static inline void parameter_set(struct graph_parameter *parameter, int64_t i, float value) {
    if (parameter->dtype == DT_BF16)
        ((uint16_t *)parameter->data)[i] = f32_to_bf16(value);
    else
        ((float *)parameter->data)[i] = value;
}

/* Fourth order: steps of one and two. */
static inline double difference(struct world *world, struct pool *pool, struct graph_parameter *parameter, int64_t i) {
    static const double factors[4] = {-8, 8, 1, -1};
    static const float steps[4] = {-1, 1, -2, 2};
    float value = parameter_get(parameter, i);
    double sum = 0;
    for (int k = 0; k < 4; k++) {
        parameter_set(parameter, i, value + steps[k] * (float)STEP);
        world_run(world, pool);
        sum += factors[k] * world_loss(world);
    }
    parameter_set(parameter, i, value);
    return sum / (12 * STEP);
}

/* Squared distance that rounding alone makes between a gradient and differences: 48 values of 1.4e-5. */
#define GRADIENT_NOISE 1e-8

/* Squared distance of a gradient from differences, relative to their energy; at most 48 values of a parameter. */
static inline double parameter_error(struct world *world, struct pool *pool, struct graph_parameter *parameter,
                                     const float *gradient) {
    int64_t count = parameter->rows * parameter->cols, stride = count / 48 + 1;
    double error = 0, energy = 0;
    for (int64_t i = 0; i < count; i += stride) {
        double wanted = difference(world, pool, parameter, i), apart = (double)gradient[i] - wanted;
        error += apart * apart;
        energy += wanted * wanted;
    }
    return error <= GRADIENT_NOISE ? 0 : error / energy;
}

/* The largest error among all parameters that learn. tamper: the first one's gradient is made wrong by so much. */
static inline double world_error(struct world *world, struct pool *pool, float tamper) {
    float *saved[WORLD_PARAMETERS] = {0};
    clear_gradients(world);
    world_run(world, pool);
    for (int i = 0; i < world->parameter_count; i++) {
        const struct graph_parameter *parameter = &world->parameters[i];
        if (parameter->gradient == NULL) continue;
        size_t bytes = (size_t)(parameter->rows * parameter->cols) * sizeof(float);
        saved[i] = test_alloc(bytes);
        memcpy(saved[i], parameter->gradient, bytes);
    }
    if (tamper != 0)
        for (int64_t i = 0; i < world->parameters[0].rows * world->parameters[0].cols; i++) saved[0][i] *= 1 + tamper;
    double worst = 0;
    for (int i = 0; i < world->parameter_count; i++) {
        if (saved[i] == NULL) continue;
        double error = parameter_error(world, pool, &world->parameters[i], saved[i]);
        if (!(error <= worst) && !isnan(worst)) worst = error;
        mem_free(saved[i]);
    }
    return worst;
}

/* All gradients of both worlds are the same bits after one run each. */
static inline void assert_same_gradients(struct world *a, struct pool *pool_a, struct world *b, struct pool *pool_b) {
    clear_gradients(a);
    world_run(a, pool_a);
    size_t total = 0;
    float *saved[WORLD_PARAMETERS] = {0};
    for (int i = 0; i < a->parameter_count; i++) {
        if (a->parameters[i].gradient == NULL) continue;
        total = (size_t)(a->parameters[i].rows * a->parameters[i].cols) * sizeof(float);
        saved[i] = test_alloc(total);
        memcpy(saved[i], a->parameters[i].gradient, total);
    }
    clear_gradients(b);
    world_run(b, pool_b);
    for (int i = 0; i < b->parameter_count; i++) {
        if (saved[i] == NULL) continue;
        assert_memory_equal(saved[i], b->parameters[i].gradient,
                            (size_t)(b->parameters[i].rows * b->parameters[i].cols) * sizeof(float));
        mem_free(saved[i]);
    }
}

#define GRADIENT_BOUND 3e-7

/* A network's gradients: right, the same with 1, 2 and 3 threads, the same when everything is computed twice, and when
 * no value shares memory with another. */
static inline void check_gradients(world_build *build, const void *what, int64_t rows, int64_t gathered,
                                   const char *name) {
    struct world world, again;
    struct pool *pools[3] = {new_pool(1), new_pool(2), new_pool(3)};
    world_open(&world, build, what, rows, gathered, AS_BUILT);
    double error = world_error(&world, pools[0], 0);
    if (!(error <= GRADIENT_BOUND))
        fail_msg("%s, %d rows, %d gathered: error %g", name, (int)rows, (int)gathered, error);
    for (enum world_manner manner = AS_BUILT; manner <= ALL_KEPT; manner++) {
        if (manner == RECOMPUTED && world.out < 0) continue; /* a loss is in no segment */
        world_open(&again, build, what, rows, gathered, manner);
        for (int i = 0; i < 3; i++) assert_same_gradients(&world, pools[0], &again, pools[i]);
        world_close(&again);
    }
    for (int i = 0; i < 3; i++) pool_free(pools[i]);
    world_close(&world);
}

#endif
