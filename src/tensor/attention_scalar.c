/* Reference attention and KV store. */
#include <float.h>
#include <math.h>

#include "tensor/attention.h"
#include "tensor/ops.h"

/* ------------------------------------------------------------------- store */

/* Scale of one int8 vector; NaN and infinity give a NaN scale so that they spread. */
static float q8_scale(const float *x, int count) {
    float max = 0, poison = 0;
    for (int i = 0; i < count; i++) {
        poison += x[i] * 0.0f; /* NaN if any element is not finite */
        max = fmaxf(max, fabsf(x[i]));
    }
    return max / 127.0f + poison;
}

static int8_t q8_round(float x, float scale) {
    return scale > 0 ? (int8_t)fmaxf(-127.0f, fminf(127.0f, nearbyintf(x / scale))) : 0;
}

static void store_f16(const struct kv_head *page, int dim, int at, const float *k, const float *v) {
    uint16_t *k_out = (uint16_t *)(void *)page->k, *v_out = (uint16_t *)(void *)page->v;
    for (int d = 0; d < dim; d++) {
        k_out[kv_k_index(dim, d, at)] = f32_to_f16(k[d]);
        v_out[at * dim + d] = f32_to_f16(v[d]);
    }
}

static void store_q8(const struct kv_head *page, int dim, int at, const float *k, const float *v) {
    float k_scale = page->k_scale[at] = q8_scale(k, dim);
    float v_scale = page->v_scale[at] = q8_scale(v, dim);
    for (int d = 0; d < dim; d++) {
        page->k[kv_k_index(dim, d, at)] = (uint8_t)q8_round(k[d], k_scale);
        page->v[at * dim + d] = (uint8_t)q8_round(v[d], v_scale);
    }
}

static void kv_store(const struct kv_step *step, int layer, int64_t row, const float *k, const float *v) {
    int position = step->row[row].position, dim = step->head_dim;
    for (int head = 0; head < step->kv_heads; head++, k += dim, v += dim) {
        struct kv_head page = kv_head_at(step, layer, step->row[row].sequence, position / KV_PAGE, head);
        if (step->type == KV_F16)
            store_f16(&page, dim, position % KV_PAGE, k, v);
        else
            store_q8(&page, dim, position % KV_PAGE, k, v);
    }
}

/* --------------------------------------------------------------- attention */

static float load_element(const struct kv_step *step, const uint8_t *data, size_t index) {
    if (step->type == KV_F16) return f16_to_f32(((const uint16_t *)(const void *)data)[index]);
    return (float)((const int8_t *)data)[index];
}

static float score(const struct attention_args *args, const struct kv_head *page, const float *q, int at) {
    int dim = args->step->head_dim;
    float sum = 0;
    for (int d = 0; d < dim; d++) sum += q[d] * load_element(args->step, page->k, kv_k_index(dim, d, at));
    if (page->k_scale) sum *= page->k_scale[at];
    sum *= args->scale;
    return args->softcap > 0 ? args->softcap * tanhf(sum / args->softcap) : sum;
}

/* Running state of one query: maximum, sum of weights; the weighted sum of values is in out. */
struct softmax_state {
    float max, sum;
};

static void page_step(const struct attention_args *args, const struct kv_head *page, const float *q, int first,
                      int last, struct softmax_state *state, float *out) {
    int dim = args->step->head_dim;
    float p[KV_PAGE], max = state->max, sum = 0;
    for (int at = first; at < last; at++) {
        p[at] = score(args, page, q, at);
        max = p[at] > max ? p[at] : max;
    }
    float decay = expf(state->max - max);
    for (int d = 0; d < dim; d++) out[d] *= decay;
    for (int at = first; at < last; at++) {
        float weight = expf(p[at] - max);
        sum += weight;
        if (page->v_scale) weight *= page->v_scale[at];
        for (int d = 0; d < dim; d++) out[d] += weight * load_element(args->step, page->v, (size_t)(at * dim + d));
    }
    state->max = max;
    state->sum = state->sum * decay + sum;
}

static void attend(const struct attention_args *args, int64_t row, int head) {
    const struct kv_step *step = args->step;
    int dim = step->head_dim, kv_head = head / (args->heads / step->kv_heads);
    int32_t position = step->row[row].position, start = window_start(args, position);
    const float *q = args->q + row * args->q_stride + (int64_t)head * dim;
    float *out = args->out + row * args->out_stride + (int64_t)head * dim;
    struct softmax_state state = {-FLT_MAX, 0}; /* finite: inf - inf never arises from the start value */
    for (int d = 0; d < dim; d++) out[d] = 0;
    for (int32_t page = start / KV_PAGE; page <= position / KV_PAGE; page++) {
        int32_t base = page * KV_PAGE;
        struct kv_head at = kv_head_at(step, args->layer, step->row[row].sequence, page, kv_head);
        int first = start > base ? start - base : 0;
        int last = position - base < KV_PAGE ? position - base + 1 : KV_PAGE;
        page_step(args, &at, q, first, last, &state, out);
    }
    for (int d = 0; d < dim; d++) out[d] /= state.sum;
}

static void attention(const struct attention_args *args, int64_t row0, int64_t row1, int head0, int head1,
                      void *scratch) {
    (void)scratch;
    for (int64_t row = row0; row < row1; row++)
        for (int head = head0; head < head1; head++) attend(args, row, head);
}

const struct attention_table attention_scalar = {kv_store, attention};
