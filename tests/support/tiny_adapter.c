/* Random low-rank adapters; see tiny_adapter.h. */
#include "support/tiny_adapter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const ends[] = {"attn_q.weight",   "attn_k.weight", "attn_v.weight",   "attn_output.weight",
                                   "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "output.weight"};

static bool is_projection(const char *name) {
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t length = strlen(name), tail = strlen(ends[i]);
        bool whole = i + 1 == sizeof ends / sizeof *ends; /* "attn_output.weight" ends like it */
        if (whole ? strcmp(name, ends[i]) == 0 : length > tail && strcmp(name + length - tail, ends[i]) == 0)
            return true;
    }
    return false;
}

void tiny_adapter_new(const struct model *model, int rank, uint64_t seed, struct tiny_adapter *out) {
    size_t values = 0;
    struct rng rng;
    rng_seed(&rng, seed);
    *out = (struct tiny_adapter){.write = {.base = model, .alpha = rank, .base_name = "tiny base"}};
    for (int64_t i = 0; i < model_tensor_count(model) && out->write.count < TINY_PAIRS; i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        if (!is_projection(tensor->name)) continue;
        out->pairs[out->write.count++] = (struct adapter_pair){
            .name = tensor->name, .in = tensor->view.shape[0], .out = tensor->view.shape[1], .rank = rank};
        values += (size_t)rank * (size_t)(tensor->view.shape[0] + tensor->view.shape[1]);
    }
    float *at = out->block = malloc(values * sizeof *at);
    if (!at) abort();
    for (int i = 0; i < out->write.count; i++) {
        struct adapter_pair *pair = &out->pairs[i];
        int64_t a = pair->in * rank, b = pair->out * rank;
        pair->a = at;
        for (int64_t k = 0; k < a; k++) *at++ = rng_normal(&rng) / sqrtf((float)pair->in);
        pair->b = at;
        for (int64_t k = 0; k < b; k++) *at++ = 0.3F * rng_normal(&rng);
    }
    out->write.pairs = out->pairs;
}

void tiny_adapter_free(struct tiny_adapter *adapter) {
    free(adapter->block);
}
