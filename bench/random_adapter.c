/* random_adapter MODEL RANK SEED OUT.gguf OUT_FOLDER: a low-rank adapter with random A and B for every projection of a
 * model's layers, as GGUF and as PEFT folder; what bench/adapters.sh compares with. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/weights.h"

static bool is_projection(const char *name) {
    static const char *const ends[] = {"attn_q.weight",   "attn_k.weight", "attn_v.weight",  "attn_output.weight",
                                       "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"};
    size_t length = strlen(name);
    for (size_t i = 0; strncmp(name, "blk.", 4) == 0 && i < sizeof ends / sizeof *ends; i++)
        if (length > strlen(ends[i]) && strcmp(name + length - strlen(ends[i]), ends[i]) == 0) return true;
    return false;
}

static float *normal(struct rng *rng, int64_t count, float deviation) {
    float *out = malloc((size_t)count * sizeof *out);
    for (int64_t i = 0; out && i < count; i++) out[i] = deviation * rng_normal(rng);
    return out;
}

int main(int argc, char **argv) {
    struct shu_error err = {0};
    struct model *model = NULL;
    if (argc != 6) return fputs("usage: random_adapter MODEL RANK SEED OUT.gguf OUT_FOLDER\n", stderr), 2;
    if (model_open(argv[1], &model, &err)) return fprintf(stderr, "%s\n", err.message), 1;
    int rank = (int)strtol(argv[2], NULL, 10), count = 0;
    struct rng rng;
    rng_seed(&rng, strtoull(argv[3], NULL, 10));
    struct adapter_pair *pairs = calloc((size_t)model_tensor_count(model), sizeof *pairs);
    for (int64_t i = 0; pairs && i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        if (!is_projection(tensor->name)) continue;
        struct adapter_pair pair = {
            .name = tensor->name, .in = tensor->view.shape[0], .out = tensor->view.shape[1], .rank = rank};
        pair.a = normal(&rng, pair.in * rank, 1 / sqrtf((float)pair.in));
        pair.b = normal(&rng, pair.out * rank, 0.02F);
        if (pair.a && pair.b) pairs[count++] = pair;
    }
    struct adapter_write what = {
        .base = model, .pairs = pairs, .count = count, .alpha = 2 * rank, .base_name = "bench base"};
    int status = adapter_write_gguf(&what, argv[4], &err);
    if (!status) status = adapter_write_peft(&what, argv[5], &err);
    if (status) fprintf(stderr, "%s\n", err.message);
    model_close(model);
    return status ? 1 : 0;
}
