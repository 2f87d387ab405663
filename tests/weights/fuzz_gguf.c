/* Fuzzes the GGUF reader and everything that trusts it: every value, every
 * tensor's bytes, the tokenizer. Corpus: tests/weights/corpus/fuzz_gguf. */
#include "weights/model.h"

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads the first and last byte of every tensor: the map must hold them. */
static unsigned touch_tensors(const struct model *model) {
    unsigned sum = 0;
    for (int64_t i = 0; i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        const uint8_t *at = tensor->view.data;
        sum += at[0] + at[tensor_bytes(&tensor->view) - 1];
        if (model_tensor_find(model, tensor->name) != tensor) __builtin_trap();
        sum += quantize_choose(model, tensor, "Q4_K_M");
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model model = {.path = (char *)(uintptr_t) "fuzz"};
    struct shu_error err = {0};
    struct tokenizer *tokenizer = NULL;
    arena_init(&model.arena, (size_t)1 << 28);
    int rc = gguf_parse(&model, data, size, &err);
    if (rc && (err.code != rc || !err.message[0])) __builtin_trap(); /* an error without a message */
    if (!rc) {
        volatile unsigned sink = touch_tensors(&model);
        (void)sink;
        json_decref(meta_json(&model, 16));
        if (model_tokenizer(&model, &tokenizer, &err) == SHU_OK) tokenizer_free(tokenizer);
    }
    arena_free(&model.arena);
    return 0;
}
