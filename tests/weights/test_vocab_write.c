/* A vocabulary as a file of its own: what was learned comes back as a tokenizer, whatever fails on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "support/tiny.h"
#include "weights/weights.h"

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        struct shu_error must = {0};                                                                                   \
        if (call) fail_msg("%s: %s (%s)", #call, must.message, must.where);                                            \
    } while (0)

static const char text[] = "the cat sat on the mat, the cat's 12 mats; 数据库与数据结构\n";
static const char *const special[] = {"<|endoftext|>", "<|im_end|>"};

static struct vocab_trainer *learned(enum pretokenizer pre, struct pool *pool, struct vocab_spec *spec) {
    struct vocab_trainer_options options = {.pre = pre, .vocab = 300, .special = special, .special_count = 2};
    struct vocab_trainer *trainer = NULL;
    MUST(vocab_trainer_new(&options, pool, &trainer, &must));
    for (int i = 0; i < 3; i++) MUST(vocab_trainer_add(trainer, text, sizeof text - 1, NULL, &must));
    MUST(vocab_trainer_learn(trainer, NULL, &must));
    vocab_trainer_spec(trainer, spec);
    spec->bos = spec->pad = spec->count - 2;
    spec->eos = spec->count - 1;
    return trainer;
}

static void encode(const struct tokenizer *tokenizer, struct tokens *out) {
    struct tokenizer_work *work = NULL;
    MUST(tokenizer_work_new(tokenizer, &work, &must));
    MUST(tokenizer_encode(tokenizer, work, text, sizeof text - 1, ENCODE_PARSE_SPECIAL, out, &must));
    tokenizer_work_free(work);
}

static void test_round_trip(void **state) {
    (void)state;
    static const enum pretokenizer rules[] = {PRE_GPT2, PRE_LLAMA3, PRE_QWEN2};
    char path[TINY_PATH_BYTES];
    struct pool *pool = NULL;
    MUST(pool_new(1, &pool, &must));
    tiny_path(path, ".vocab.gguf");
    for (int i = 0; i < 3; i++) {
        struct vocab_spec spec;
        struct model *model = NULL;
        struct tokenizer *before = NULL, *after = NULL;
        struct tokens one = {0}, two = {0};
        struct vocab_trainer *trainer = learned(rules[i], pool, &spec);
        MUST(tokenizer_new(&spec, &before, &must));
        MUST(model_write_vocab(&spec, "{{ messages }}", path, &must));
        MUST(model_open(path, &model, &must));
        assert_int_equal(model_tensor_count(model), 0);
        assert_string_equal(model_chat_template(model), "{{ messages }}");
        MUST(model_tokenizer(model, &after, &must));
        assert_int_equal(tokenizer_count(after), spec.count);
        assert_int_equal(tokenizer_eos(after), spec.eos);
        assert_int_equal(tokenizer_bos(after), spec.bos);
        assert_true(tokenizer_is_end(after, spec.eos));
        encode(before, &one);
        encode(after, &two);
        assert_true(one.count < sizeof text / 2);
        assert_int_equal(one.count, two.count);
        assert_memory_equal(one.id, two.id, one.count * sizeof *one.id);
        tokens_free(&one);
        tokens_free(&two);
        tokenizer_free(before);
        tokenizer_free(after);
        model_close(model);
        vocab_trainer_free(trainer);
    }
    unlink(path);
    pool_free(pool);
}

static void test_refusals_and_faults(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct pool *pool = NULL;
    struct vocab_spec spec;
    struct shu_error err = {0};
    MUST(pool_new(1, &pool, &must));
    tiny_path(path, ".vocab.gguf");
    struct vocab_trainer *trainer = learned(PRE_QWEN2, pool, &spec);
    struct vocab_spec odd = spec;
    odd.pre = PRE_NONE;
    assert_int_equal(model_write_vocab(&odd, NULL, path, &err), SHU_E_USAGE);
    odd = spec;
    odd.model = VOCAB_SPM;
    assert_int_equal(model_write_vocab(&odd, NULL, path, &err), SHU_E_USAGE);
    for (int kind = FAULT_ALLOC; kind <= FAULT_WRITE; kind += FAULT_WRITE - FAULT_ALLOC) {
        fault_arm((enum fault_kind)kind, 1000000);
        MUST(model_write_vocab(&spec, NULL, path, &must));
        long operations = fault_count((enum fault_kind)kind);
        unlink(path);
        for (long k = 1; k <= operations; k++) {
            fault_arm((enum fault_kind)kind, k);
            int rc = model_write_vocab(&spec, NULL, path, &err);
            fault_arm((enum fault_kind)kind, 0);
            if (rc) assert_int_equal(rc, err.code);
            if (!file_exists(path)) continue; /* a flush of the folder may fail after the rename */
            struct model *model = NULL;
            MUST(model_open(path, &model, &must));
            model_close(model);
            unlink(path);
        }
    }
    vocab_trainer_free(trainer);
    pool_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_refusals_and_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
