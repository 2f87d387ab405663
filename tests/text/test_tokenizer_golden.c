/* Small vocabularies with the ids that llama.cpp gives; golden/make_golden.py made them. */
#include "text/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static int32_t number(const json_t *golden, const char *key) {
    return (int32_t)json_integer_value(json_object_get(golden, key));
}

static struct vocab *read_vocab(const json_t *golden) {
    const char *kind = json_string_value(json_object_get(golden, "model"));
    const char *pre = json_string_value(json_object_get(golden, "pre"));
    enum vocab_model model = !strcmp(kind, "gpt2") ? VOCAB_BPE : !strcmp(kind, "llama") ? VOCAB_SPM : VOCAB_UNIGRAM;
    enum pretokenizer cut = !strcmp(pre, "qwen2")       ? PRE_QWEN2
                            : !strcmp(pre, "llama-bpe") ? PRE_LLAMA3
                            : !strcmp(pre, "gpt-2")     ? PRE_GPT2
                                                        : PRE_NONE;
    struct vocab *vocab = vocab_new(model, cut);
    const json_t *tokens = json_object_get(golden, "tokens"), *types = json_object_get(golden, "types");
    const json_t *scores = json_object_get(golden, "scores"), *merges = json_object_get(golden, "merges");
    for (size_t i = 0; i < json_array_size(tokens); i++)
        vocab_word(vocab, json_string_value(json_array_get(tokens, i)),
                   (float)json_number_value(json_array_get(scores, i)),
                   (int32_t)json_integer_value(json_array_get(types, i)));
    assert_int_equal(vocab->spec.count, json_array_size(tokens));
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *line = json_string_value(json_array_get(merges, i));
        vocab->merges[vocab->spec.merge_count++] = vocab_copy(vocab, line, strlen(line));
    }
    vocab->spec.bos = number(golden, "bos");
    vocab->spec.eos = number(golden, "eos");
    vocab->spec.unk = number(golden, "unk");
    vocab->spec.add_space_prefix = json_is_true(json_object_get(golden, "add_space_prefix"));
    vocab->spec.ignore_merges = json_is_true(json_object_get(golden, "ignore_merges"));
    return vocab;
}

static size_t wrong_ids(const json_t *want, const struct tokens *got) {
    size_t wrong = json_array_size(want) != got->count;
    for (size_t i = 0; i < got->count && i < json_array_size(want); i++)
        wrong += json_integer_value(json_array_get(want, i)) != got->id[i];
    return wrong;
}

static void check_case(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *name,
                       const json_t *item) {
    const char *text = json_string_value(json_object_get(item, "text"));
    json_t *ids = json_object_get(item, "ids");
    int flags = json_is_true(json_object_get(item, "special")) ? ENCODE_PARSE_SPECIAL : 0;
    struct tokens got = {0};
    assert_int_equal(tokenizer_encode(tokenizer, work, text, strlen(text), flags, &got, NULL), SHU_OK);
    if (wrong_ids(ids, &got)) {
        char *want = json_dumps(ids, JSON_COMPACT);
        for (size_t i = 0; i < got.count; i++) print_error("%d ", (int)got.id[i]);
        fail_msg("%s: \"%s\": expected %s", name, text, want);
    }
    json_array_insert_new(ids, 0, json_integer(-7)); /* the comparison can fail */
    assert_true(wrong_ids(ids, &got) > 0);
    tokens_free(&got);
}

static void test_golden(void **state) {
    (void)state;
    static const char *const names[] = {"bpe_qwen2", "bpe_llama3", "bpe_gpt2", "spm_prefix", "spm_plain", "unigram"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[512];
        json_t *golden = NULL;
        struct shu_error err = {0};
        snprintf(path, sizeof path, "%s/text/golden/%s.json", TEST_DATA, names[i]);
        if (json_read_file(path, 1 << 20, &golden, &err)) fail_msg("%s", err.message);
        struct vocab *vocab = read_vocab(golden);
        struct tokenizer *tokenizer = NULL;
        struct tokenizer_work *work = NULL;
        if (tokenizer_new(&vocab->spec, &tokenizer, &err)) fail_msg("%s: %s", names[i], err.message);
        assert_int_equal(tokenizer_work_new(tokenizer, &work, NULL), SHU_OK);
        const json_t *cases = json_object_get(golden, "cases");
        assert_true(json_array_size(cases) > 20);
        for (size_t k = 0; k < json_array_size(cases); k++)
            check_case(tokenizer, work, names[i], json_array_get(cases, k));
        tokenizer_work_free(work);
        tokenizer_free(tokenizer);
        vocab_free(vocab);
        json_decref(golden);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
