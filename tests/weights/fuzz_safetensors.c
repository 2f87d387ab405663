/* Fuzzes what a Hugging Face folder is made of. The first byte chooses:
 *   'S' the rest is a safetensors file
 *   'F' the rest is config.json, tokenizer.json, tokenizer_config.json and a
 *       chat template, separated by bytes 0xFF (never part of UTF-8)
 * Corpus: tests/weights/corpus/fuzz_safetensors. */
#include "weights/hf.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The bytes lie in the file, the name is one that the tables know or refuse. */
static int look(void *context, const struct safetensor *tensor, struct shu_error *err) {
    static const struct hf_arch all = {"x", "x", .gemma = true, .head_norms = true, .qkv_bias = true};
    char name[64];
    bool skip;
    volatile unsigned *sum = context;
    (void)err;
    if (tensor->bytes) *sum += tensor->data[0] + tensor->data[tensor->bytes - 1];
    *sum += hf_tensor_name(&all, tensor->name, name, sizeof name, &skip);
    return SHU_OK;
}

static struct span next_text(const uint8_t **at, const uint8_t *end) {
    const uint8_t *stop = memchr(*at, 0xFF, (size_t)(end - *at));
    if (!stop) stop = end;
    struct span text = {(const char *)*at, (uint32_t)(stop - *at)};
    *at = stop < end ? stop + 1 : end;
    return text;
}

static int open_folder(const uint8_t *data, size_t size, struct shu_error *err) {
    const uint8_t *end = data + size;
    struct model model = {.path = (char *)(uintptr_t) "fuzz"};
    struct hf_texts texts;
    struct hf_facts facts;
    struct tokenizer *tokenizer = NULL;
    texts.config = next_text(&data, end);
    texts.tokenizer = next_text(&data, end);
    texts.tokenizer_config = next_text(&data, end);
    texts.chat_template = next_text(&data, end);
    arena_init(&model.arena, (size_t)1 << 28);
    int rc = hf_translate(&model, &texts, &facts, err);
    if (!rc && model_tokenizer(&model, &tokenizer, NULL) == SHU_OK) tokenizer_free(tokenizer);
    arena_free(&model.arena);
    buf_free(&model.translated);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct shu_error err = {0};
    volatile unsigned sum = 0;
    int rc = SHU_OK;
    if (size && data[0] == 'S') rc = safetensors_parse(data + 1, size - 1, look, (void *)(uintptr_t)&sum, &err);
    if (size && data[0] == 'F') rc = open_folder(data + 1, size - 1, &err);
    if (rc && (err.code != rc || !err.message[0])) __builtin_trap();
    return 0;
}
