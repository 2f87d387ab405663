/* The fuzzers' seeds carry their verdict in their names: y_ is read, n_ is
 * refused with an error, i_ may go either way; none may crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "weights/lora.h"

static int read_gguf(const uint8_t *data, size_t bytes, struct shu_error *err) {
    struct model model = {.path = (char *)(uintptr_t) "seed"};
    struct tokenizer *tokenizer = NULL;
    arena_init(&model.arena, 1 << 26);
    int rc = gguf_parse(&model, data, bytes, err);
    if (!rc && meta_has(&model, "tokenizer.ggml.model")) {
        rc = model_tokenizer(&model, &tokenizer, err);
        tokenizer_free(tokenizer);
    }
    arena_free(&model.arena);
    return rc;
}

static int ignore(void *context, const struct safetensor *tensor, struct shu_error *err) {
    (void)context, (void)tensor, (void)err;
    return SHU_OK;
}

static int read_folder(const uint8_t *data, size_t bytes, struct shu_error *err) {
    struct model model = {.path = (char *)(uintptr_t) "seed"};
    struct hf_facts facts;
    struct span text[4] = {{"", 0}, {"", 0}, {"", 0}, {"", 0}};
    const uint8_t *at = data, *end = data + bytes;
    for (int i = 0; i < 4 && at < end; i++) {
        const uint8_t *stop = memchr(at, 0xFF, (size_t)(end - at));
        if (!stop) stop = end;
        text[i] = (struct span){(const char *)at, (uint32_t)(stop - at)};
        at = stop + 1;
    }
    struct hf_texts texts = {text[0], text[1], text[2], text[3]};
    arena_init(&model.arena, 1 << 26);
    int rc = hf_translate(&model, &texts, &facts, err);
    arena_free(&model.arena);
    buf_free(&model.translated);
    return rc;
}

static int read_safetensors(const uint8_t *data, size_t bytes, struct shu_error *err) {
    if (data[0] == 'F') return read_folder(data + 1, bytes - 1, err);
    return safetensors_parse(data + 1, bytes - 1, ignore, NULL, err);
}

static int read_adapter(const uint8_t *data, size_t bytes, struct shu_error *err) {
    struct adapter adapter = {0};
    struct model model = {.path = (char *)(uintptr_t) "seed"};
    const uint8_t *stop = memchr(data, 0xFF, bytes), *end = data + bytes;
    int rc;
    arena_init(&adapter.arena, 1 << 26);
    arena_init(&model.arena, 1 << 26);
    if (data[0] == 'G') {
        rc = gguf_parse(&model, data + 1, bytes - 1, err);
        if (!rc) rc = lora_read_gguf(&adapter, &model, err);
    } else {
        assert_non_null(stop);
        struct span config = {(const char *)data + 1, (uint32_t)(stop - data - 1)};
        rc = lora_read_peft(&adapter, config, stop + 1, (size_t)(end - stop - 1), err);
    }
    arena_free(&model.arena);
    lora_clear(&adapter);
    return rc;
}

static void check_folder(const char *name, int (*read)(const uint8_t *, size_t, struct shu_error *)) {
    char path[1024];
    struct dirent *item;
    int seen[2] = {0, 0};
    snprintf(path, sizeof path, "%s/weights/corpus/%s", TEST_DATA, name);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((item = readdir(dir)) != NULL) {
        struct buf text = {0};
        struct shu_error err = {0};
        if (item->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/weights/corpus/%s/%s", TEST_DATA, name, item->d_name);
        assert_int_equal(file_read(path, 1 << 20, &text, &err), 0);
        uint8_t *exact = malloc(text.len);
        memcpy(exact, text.data, text.len);
        int rc = read(exact, text.len, &err);
        free(exact);
        if (item->d_name[0] == 'y' && rc) fail_msg("%s: %s", item->d_name, err.message);
        if (item->d_name[0] == 'n' && !rc) fail_msg("%s was accepted", item->d_name);
        seen[item->d_name[0] == 'n']++;
        buf_free(&text);
    }
    closedir(dir);
    assert_true(seen[0] > 2 && seen[1] > 2);
}

static void test_gguf_seeds(void **state) {
    (void)state;
    check_folder("fuzz_gguf", read_gguf);
}

static void test_safetensors_seeds(void **state) {
    (void)state;
    check_folder("fuzz_safetensors", read_safetensors);
}

static void test_adapter_seeds(void **state) {
    (void)state;
    check_folder("fuzz_adapter", read_adapter);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gguf_seeds), cmocka_unit_test(test_safetensors_seeds),
                                       cmocka_unit_test(test_adapter_seeds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
