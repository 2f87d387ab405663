/* Fuzzes adapters. The first byte chooses:
 *   'G' the rest is a GGUF file
 *   'P' the rest is adapter_config.json and adapter_model.safetensors, separated by a byte 0xFF (never part of UTF-8)
 * Corpus: tests/weights/corpus/fuzz_adapter. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "weights/lora.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int read_gguf(struct adapter *adapter, const uint8_t *data, size_t size, struct shu_error *err) {
    struct model model = {.path = (char *)(uintptr_t) "fuzz"};
    arena_init(&model.arena, (size_t)1 << 28);
    int rc = gguf_parse(&model, data, size, err);
    if (!rc) rc = lora_read_gguf(adapter, &model, err);
    arena_free(&model.arena);
    return rc;
}

static int read_peft(struct adapter *adapter, const uint8_t *data, size_t size, struct shu_error *err) {
    const uint8_t *stop = size ? memchr(data, 0xFF, size) : NULL;
    size_t config = stop ? (size_t)(stop - data) : size, rest = stop ? size - config - 1 : 0;
    struct span text = {(const char *)data, (uint32_t)config};
    return lora_read_peft(adapter, text, data + size - rest, rest, err);
}

/* Everything that was read is finite, and found by its name. */
static void walk(const struct adapter *adapter) {
    char digest[65];
    for (int i = 0; i < adapter_count(adapter); i++) {
        const struct adapter_pair *pair = adapter_at(adapter, i);
        if (adapter_find(adapter, pair->name) != pair) __builtin_trap();
        for (int64_t k = 0; k < pair->in * pair->rank; k++)
            if (!(pair->a[k] - pair->a[k] == 0)) __builtin_trap();
        for (int64_t k = 0; k < pair->out * pair->rank; k++)
            if (!(pair->b[k] - pair->b[k] == 0)) __builtin_trap();
    }
    adapter_fingerprint(adapter, digest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct shu_error err = {0};
    struct adapter adapter = {0};
    int rc = SHU_OK;
    arena_init(&adapter.arena, (size_t)1 << 28);
    if (size && data[0] == 'G') rc = read_gguf(&adapter, data + 1, size - 1, &err);
    if (size && data[0] == 'P') rc = read_peft(&adapter, data + 1, size - 1, &err);
    if (rc && (err.code != rc || !err.message[0])) __builtin_trap();
    if (!rc) walk(&adapter);
    lora_clear(&adapter);
    return 0;
}
