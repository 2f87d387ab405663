/* Instruction sets owe each other equal bits: whole steps of tiny random models on scalar, AVX2 and AVX-512 kernels
 * (emulated where the processor lacks them), every logit of every row. */
#include "infer/tiny_engine.h"

enum { T = 70, PREFILL = 61 }; /* over a cache page, with a tile of rows and single ones */

static const char *const sets[] = {"scalar", "avx2", "avx512"};
#define SETS (sizeof sets / sizeof *sets)

struct subject {
    const char *arch;
    enum dtype dtype;
    int width; /* 0 = tiny default */
    enum kv_type kv;
};

/* Logits [T, V] of a prompt in one step and of the rest token by token; the caller frees. */
static float *logits_of(const char *path, const struct subject *subject, const char *isa, const int32_t *tokens,
                        int *vocab) {
    struct engine_options options = {.threads = 2,
                                     .context = 128,
                                     .kv_positions = 128,
                                     .kv_type = subject->kv,
                                     .max_sequences = 1,
                                     .max_rows = T,
                                     .max_logits = T,
                                     .isa = isa};
    struct engine *engine = tiny_engine(path, &options);
    size_t width = (size_t)(*vocab = engine_config(engine)->vocab);
    float *all = malloc((size_t)T * width * sizeof *all);
    int sequence = tiny_sequence(engine);
    for (int at = 0; at < T;) {
        int count = at == 0 ? PREFILL : 1;
        struct step_item item = {sequence, tokens + at, count, count};
        MUST(engine_step(engine, &item, 1, &must));
        for (int i = 0; i < count; i++, at++)
            memcpy(all + (size_t)at * width, engine_logits(engine, i), width * sizeof *all);
    }
    engine_close(engine);
    return all;
}

static void same_on_all_sets(const struct subject *subject) {
    char path[TINY_PATH_BYTES];
    int32_t tokens[T];
    int vocab = 0;
    float *first = NULL;
    tiny_model(path, subject->arch, subject->dtype, subject->width);
    random_tokens(tokens, T, tiny_vocab_count(), 9);
    for (size_t i = 0; i < SETS; i++) {
        const struct kernels *kernels;
        if (kernels_select(sets[i], &kernels, NULL)) continue; /* not on this machine */
        float *logits = logits_of(path, subject, sets[i], tokens, &vocab);
        if (!first) {
            first = logits;
            continue;
        }
        size_t count = (size_t)T * (size_t)vocab, at = 0;
        while (at < count && memcmp(&first[at], &logits[at], sizeof *first) == 0) at++;
        if (at < count)
            fail_msg("%s %s kv %d, %s: position %zu, token %zu: %a, scalar %a", subject->arch,
                     dtype_table[subject->dtype].name, subject->kv, sets[i], at / (size_t)vocab, at % (size_t)vocab,
                     (double)logits[at], (double)first[at]);
        free(logits);
    }
    free(first);
    unlink(path);
}

static void every_architecture(void **state) {
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++) {
        same_on_all_sets(&(struct subject){archs[a], DT_F32, 0, KV_F16});
        same_on_all_sets(&(struct subject){archs[a], DT_Q8_0, 0, KV_Q8});
    }
}

static void every_written_type(void **state) {
    (void)state;
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_Q4_0, DT_Q5_0, DT_Q5_1, DT_Q8_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        same_on_all_sets(&(struct subject){"qwen2", dtypes[d], 256, KV_F16});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture),
        cmocka_unit_test(every_written_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
