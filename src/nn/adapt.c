/* Adapters of a loaded decoder: joined along the rank, scaled, and packed beside the matrices they add to. */
#include <math.h>
#include <string.h>

#include "nn/decoder.h"

enum { RANK_SUM_MAX = 65536, NAME_BYTES = 64 };

static const char *const product_names[LAYER_PRODUCTS] = {
    [PRODUCT_Q] = "attn_q",      [PRODUCT_K] = "attn_k",  [PRODUCT_V] = "attn_v",      [PRODUCT_O] = "attn_output",
    [PRODUCT_GATE] = "ffn_gate", [PRODUCT_UP] = "ffn_up", [PRODUCT_DOWN] = "ffn_down",
};

/* What is wanted, and one product's joined matrices while they are made. */
struct adapting {
    const struct model *model;
    const struct adapter *const *adapters;
    const float *weights;
    int count;
    const struct kernels *kernels;
    float *a, *b;     /* of the largest product */
    uint16_t *halves; /* the larger of both, as F16 */
};

static void product_name(int layer, int product, char out[NAME_BYTES]) {
    if (product == PRODUCT_OUTPUT)
        snprintf(out, NAME_BYTES, "output.weight");
    else
        snprintf(out, NAME_BYTES, "blk.%d.%s.weight", layer, product_names[product]);
}

static const struct packed *matrix_of(const struct decoder *decoder, int layer, int product) {
    const struct decoder_layer *l = &decoder->layers[layer];
    const struct packed *const matrices[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &decoder->output};
    return matrices[product];
}

static struct low_rank *low_of(struct decoder *decoder, int layer, int product) {
    return product == PRODUCT_OUTPUT ? &decoder->output_low : &decoder->layers[layer].low[product];
}

/* Every product once: products of layers, then the output matrix unless it is the embedding table too. */
typedef int visit_product(struct decoder *decoder, int layer, int product, void *context, struct shu_error *err);
static int visit_all(struct decoder *decoder, visit_product *visit, void *context, struct shu_error *err) {
    int status = SHU_OK;
    for (int layer = 0; layer < decoder->config.layers; layer++)
        for (int product = 0; product < LAYER_PRODUCTS && !status; product++)
            status = visit(decoder, layer, product, context, err);
    if (!status && !decoder->config.tied_output) status = visit(decoder, 0, PRODUCT_OUTPUT, context, err);
    return status;
}

/* The pair of adapter i for a product; NULL: none, or weighted 0. */
static const struct adapter_pair *pair_of(const struct adapting *job, int i, const char *name) {
    return job->weights[i] != 0 ? adapter_find(job->adapters[i], name) : NULL;
}

static int64_t rank_sum(const struct adapting *job, const char *name) {
    int64_t sum = 0;
    for (int i = 0; i < job->count; i++) {
        const struct adapter_pair *pair = pair_of(job, i, name);
        if (pair) sum += pair->rank;
    }
    return sum;
}

/* ------------------------------------------------------------------- checks */

static int check_weights(const struct adapting *job, struct shu_error *err) {
    for (int i = 0; i < job->count; i++)
        if (!isfinite(job->weights[i]))
            return SHU_FAIL(err, SHU_E_RANGE, "the weight of adapter %.200s is %g; expected a finite number",
                            adapter_path(job->adapters[i]), (double)job->weights[i]);
    return SHU_OK;
}

struct counting {
    const struct adapter *adapter;
    int found;
};

static int count_pair(struct decoder *decoder, int layer, int product, void *context, struct shu_error *err) {
    struct counting *counting = context;
    char name[NAME_BYTES];
    (void)decoder, (void)err;
    product_name(layer, product, name);
    counting->found += adapter_find(counting->adapter, name) != NULL;
    return SHU_OK;
}

/* A pair that has no product here, although a tensor of that name and shape is in the model. */
static int check_places(struct decoder *decoder, const struct adapter *adapter, struct shu_error *err) {
    struct counting counting = {.adapter = adapter};
    visit_all(decoder, count_pair, &counting, err);
    if (counting.found == adapter_count(adapter)) return SHU_OK;
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "adapter %.200s adapts %d matrices, of which %d are projections of this decoder; ignoring the "
                    "others would give wrong answers",
                    adapter_path(adapter), adapter_count(adapter), counting.found);
}

/* ------------------------------------------------------------------ joining */

/* A's of all adapters below each other, B's side by side with scale and weight. */
static void join(const struct adapting *job, const char *name, int64_t in, int64_t out, int64_t ranks) {
    int64_t before = 0;
    for (int i = 0; i < job->count; i++) {
        const struct adapter_pair *pair = pair_of(job, i, name);
        if (!pair) continue;
        struct adapter_order order = adapter_order(job->adapters[i], job->model, pair);
        float factor = job->weights[i] * adapter_scale(job->adapters[i]);
        memcpy(job->a + before * in, pair->a, (size_t)(in * pair->rank) * sizeof *job->a);
        for (int64_t row = 0; row < out; row++) {
            const float *from = pair->b + adapter_source_row(order, row) * pair->rank;
            float *to = job->b + row * ranks + before;
            for (int k = 0; k < pair->rank; k++) to[k] = factor * from[k];
        }
        before += pair->rank;
    }
}

/* F16 keeps a matrix to a thousandth of its norm unless values leave its range. */
static bool fits_f16(const float *values, int64_t count) {
    double all = 0, lost = 0;
    for (int64_t i = 0; i < count; i++) {
        double value = values[i], error = value - (double)f16_to_f32(f32_to_f16(values[i]));
        all += value * value;
        lost += error * error;
    }
    return lost <= all * 1e-6; /* false for NaN: infinity - infinity */
}

static void pack(const struct adapting *job, struct packed *packed, const float *values) {
    const void *rows = values;
    int64_t count = packed->rows * packed->cols;
    if (packed->dtype == DT_F16) {
        for (int64_t i = 0; i < count; i++) job->halves[i] = f32_to_f16(values[i]);
        rows = job->halves;
    }
    packed_fill(packed, rows, 0, packed_panels(packed));
}

/* ----------------------------------------------------------------- planning */

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

struct planning {
    struct adapting *job;
    int64_t a_values, b_values; /* of the largest */
    size_t bytes;               /* of all, if all were F32 */
};

static int plan_product(struct decoder *decoder, int layer, int product, void *context, struct shu_error *err) {
    struct planning *plan = context;
    char name[NAME_BYTES];
    const struct packed *matrix = matrix_of(decoder, layer, product);
    struct packed a, b;
    product_name(layer, product, name);
    int64_t ranks = rank_sum(plan->job, name);
    if (ranks == 0) return SHU_OK;
    if (ranks > RANK_SUM_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "%s: the adapters' ranks sum up to %lld; at most %d are supported", name,
                        (long long)ranks, RANK_SUM_MAX);
    plan->a_values = larger(plan->a_values, ranks * matrix->cols);
    plan->b_values = larger(plan->b_values, ranks * matrix->rows);
    size_t a_bytes = packed_plan(plan->job->kernels, DT_F32, ranks, matrix->cols, &a);
    size_t b_bytes = packed_plan(plan->job->kernels, DT_F32, matrix->rows, ranks, &b);
    if (size_add(plan->bytes, a_bytes, &plan->bytes) || size_add(plan->bytes, b_bytes, &plan->bytes) ||
        size_add(plan->bytes, 128, &plan->bytes))
        return SHU_FAIL(err, SHU_E_RANGE, "the adapters exceed the address space");
    return SHU_OK;
}

/* Packs one matrix behind what is already in the block. */
static void place(struct decoder *decoder, const struct adapting *job, struct packed *packed, bool wide,
                  const float *values, int64_t rows, int64_t cols) {
    enum dtype dtype = wide || !fits_f16(values, rows * cols) ? DT_F32 : DT_F16;
    size_t bytes = packed_plan(job->kernels, dtype, rows, cols, packed);
    packed->data = decoder->adapter_block + decoder->adapter_bytes;
    pack(job, packed, values);
    decoder->adapter_bytes += (bytes + 63) / 64 * 64;
    decoder->read_bytes += bytes;
}

static int adapt_product(struct decoder *decoder, int layer, int product, void *context, struct shu_error *err) {
    const struct adapting *job = context;
    char name[NAME_BYTES];
    const struct packed *matrix = matrix_of(decoder, layer, product);
    struct low_rank *low = low_of(decoder, layer, product);
    (void)err;
    product_name(layer, product, name);
    int64_t ranks = rank_sum(job, name);
    if (ranks == 0) return SHU_OK;
    join(job, name, matrix->cols, matrix->rows, ranks);
    bool wide = matrix->dtype == DT_F32;
    place(decoder, job, &low->a, wide, job->a, ranks, matrix->cols);
    place(decoder, job, &low->b, wide, job->b, matrix->rows, ranks);
    return SHU_OK;
}

int decoder_adapt(struct decoder *decoder, const struct model *model, const struct adapter *const *adapters,
                  const float *weights, int count, const struct kernels *kernels, struct shu_error *err) {
    struct adapting job = {
        .model = model, .adapters = adapters, .weights = weights, .count = count, .kernels = kernels};
    struct planning plan = {.job = &job};
    if (decoder->adapter_block || kernels->lanes != decoder->lanes)
        return SHU_FAIL(err, SHU_E_USAGE, "a decoder takes adapters once, with the kernels it was packed for");
    int status = check_weights(&job, err);
    for (int i = 0; i < count && !status; i++) {
        status = adapter_check(adapters[i], model, err);
        if (!status) status = check_places(decoder, adapters[i], err);
    }
    if (!status) status = visit_all(decoder, plan_product, &plan, err);
    if (status || plan.bytes == 0) return status;
    int64_t most = larger(plan.a_values, plan.b_values);
    job.a = mem_alloc((size_t)plan.a_values * sizeof *job.a);
    job.b = mem_alloc((size_t)plan.b_values * sizeof *job.b);
    job.halves = mem_alloc((size_t)most * sizeof *job.halves);
    decoder->adapter_block = mem_alloc_large(plan.bytes);
    decoder->adapter_room = plan.bytes;
    if (job.a && job.b && job.halves && decoder->adapter_block)
        status = visit_all(decoder, adapt_product, &job, err);
    else
        status = SHU_FAIL(err, SHU_E_NOMEM, "no memory for %zu MiB of adapters", plan.bytes >> 20);
    mem_free(job.a);
    mem_free(job.b);
    mem_free(job.halves);
    return status;
}
