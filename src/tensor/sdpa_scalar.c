/* Attention over packed sequences in plain C: one query and head at a time forward, one key backward. */
#include <math.h>

#include "tensor/sdpa.h"
#include "tensor/training_tables.h"

static float dot(const float *a, const float *b, int count) {
    float sum = 0;
    for (int i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

static void add_scaled(float *to, float factor, const float *from, int count) {
    for (int i = 0; i < count; i++) to[i] += factor * from[i];
}

static float capped(const struct sdpa_args *args, float score) {
    return args->softcap > 0 ? args->softcap * tanhf(score / args->softcap) : score;
}

static void head_forward(const struct sdpa_args *args, int64_t row, struct sdpa_range keys, int head, int kv_head) {
    int dim = args->head_dim;
    const float *q = args->q + row * args->q_row + head * dim;
    float *out = args->out + row * args->out_row + head * dim;
    float max = -INFINITY, sum = 0, score[SDPA_BLOCK];
    for (int d = 0; d < dim; d++) out[d] = 0;
    struct sdpa_range sequence = sdpa_sequence(args, row);
    for (int64_t start = sdpa_block_start(sequence, keys.first); start < keys.last; start += SDPA_BLOCK) {
        int64_t first = start < keys.first ? keys.first : start;
        int64_t last = start + SDPA_BLOCK < keys.last ? start + SDPA_BLOCK : keys.last;
        float top = max;
        for (int64_t key = first; key < last; key++) {
            float s = capped(args, args->scale * dot(q, args->k + key * args->k_row + kv_head * dim, dim));
            if (s > top) top = s;
            score[key - first] = s;
        }
        float shrink = top > max ? expf(max - top) : 1;
        sum *= shrink;
        for (int d = 0; d < dim; d++) out[d] *= shrink;
        for (int64_t key = first; key < last; key++) {
            float p = expf(score[key - first] - top);
            sum += p;
            add_scaled(out, p, args->v + key * args->v_row + kv_head * dim, dim);
        }
        max = top;
    }
    for (int d = 0; d < dim; d++) out[d] /= sum;
    args->lse[row * args->lse_row + head] = max + logf(sum);
}

void sdpa_forward_scalar(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch) {
    (void)scratch;
    int group = args->heads / args->kv_heads;
    struct sdpa_range sequence = sdpa_sequence(args, row0);
    for (int64_t row = row0; row < row1; row++)
        for (int i = 0; i < group; i++)
            head_forward(args, row, sdpa_keys(args, sequence, row), kv_head * group + i, kv_head);
}

/* ------------------------------------------------------------ backward pass */

/* One pair of query and key: its weight, and the gradient of scale * q k before the cap, times scale. */
struct pair {
    float weight, d_score;
};

static struct pair pair_backward(const struct sdpa_args *args, int64_t row, int64_t key, int head, int kv_head) {
    int dim = args->head_dim;
    const float *q = args->q + row * args->q_row + head * dim, *k = args->k + key * args->k_row + kv_head * dim;
    const float *v = args->v + key * args->v_row + kv_head * dim, *out = args->out + row * args->out_row + head * dim;
    const float *d_out = args->d_out + row * args->d_out_row + head * dim;
    float s = capped(args, args->scale * dot(q, k, dim));
    float p = expf(s - args->lse[row * args->lse_row + head]);
    float d = p * (dot(d_out, v, dim) - dot(d_out, out, dim));
    if (args->softcap > 0) d *= 1 - (s / args->softcap) * (s / args->softcap);
    return (struct pair){p, d * args->scale};
}

void sdpa_backward_q_scalar(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch) {
    (void)scratch;
    int group = args->heads / args->kv_heads, dim = args->head_dim;
    struct sdpa_range sequence = sdpa_sequence(args, row0);
    for (int64_t row = row0; row < row1; row++) {
        struct sdpa_range keys = sdpa_keys(args, sequence, row);
        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            float *dq = args->dq + row * args->dq_row + head * dim;
            for (int d = 0; d < dim; d++) dq[d] = 0;
            for (int64_t key = keys.first; key < keys.last; key++) {
                float d_score = pair_backward(args, row, key, head, kv_head).d_score;
                add_scaled(dq, d_score, args->k + key * args->k_row + kv_head * dim, dim);
            }
        }
    }
}

void sdpa_backward_kv_scalar(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch) {
    (void)scratch;
    int group = args->heads / args->kv_heads, dim = args->head_dim;
    struct sdpa_range sequence = sdpa_sequence(args, row0);
    for (int64_t key = row0; key < row1; key++) {
        float *dk = args->dk + key * args->dk_row + kv_head * dim, *dv = args->dv + key * args->dv_row + kv_head * dim;
        struct sdpa_range rows = sdpa_queries(args, sequence, key);
        for (int d = 0; d < dim; d++) dk[d] = dv[d] = 0;
        for (int64_t row = rows.first; row < rows.last; row++) {
            for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
                struct pair pair = pair_backward(args, row, key, head, kv_head);
                add_scaled(dk, pair.d_score, args->q + row * args->q_row + head * dim, dim);
                add_scaled(dv, pair.weight, args->d_out + row * args->d_out_row + head * dim, dim);
            }
        }
    }
}
