/* Streaming detokenizer: whole characters only, U+FFFD for what can never be one. */
#include "text/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct vocab *byte_vocab(void) {
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    vocab_merge(vocab, "\xe4", 1, "\xbd", 1);          /* 256: two thirds of 你 */
    vocab_merge(vocab, "\xa0", 1, "\xe5", 1);          /* 257: the rest of 你, the first third of 好 */
    vocab_word(vocab, "<|im_end|>", 0, TOKEN_CONTROL); /* 258 */
    return vocab;
}

static struct tokenizer *build(const struct vocab *vocab) {
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_new(&vocab->spec, &tokenizer, NULL), SHU_OK);
    return tokenizer;
}

/* Pushes ids ending in -1; after each one the text so far must be `steps` joined so far. */
static void stream(const struct tokenizer *tokenizer, const int32_t *ids, const char *const *steps,
                   const char *finish) {
    struct detokenizer state;
    struct buf out = {0}, want = {0};
    detokenizer_init(&state, tokenizer);
    assert_int_equal(buf_puts(&out, "") | buf_puts(&want, ""), SHU_OK);
    for (size_t i = 0; ids[i] >= 0; i++) {
        assert_int_equal(detokenizer_push(&state, ids[i], &out), SHU_OK);
        assert_int_equal(buf_puts(&want, steps[i]), SHU_OK);
        assert_string_equal(out.data, want.data);
    }
    assert_int_equal(detokenizer_finish(&state, &out), SHU_OK);
    assert_int_equal(buf_puts(&want, finish), SHU_OK);
    assert_string_equal(out.data, want.data);
    buf_free(&out);
    buf_free(&want);
}

#define IDS(...)   ((const int32_t[]){__VA_ARGS__, -1})
#define STEPS(...) ((const char *const[]){__VA_ARGS__})

static void test_stream(void **state) {
    (void)state;
    struct vocab *vocab = byte_vocab();
    struct tokenizer *tokenizer = build(vocab);
    stream(tokenizer, IDS(256, 257, 0xa5, 0xbd, '!'), STEPS("", "你", "", "好", "!"), "");
    stream(tokenizer, IDS(256, 258, 'x'), STEPS("", "", "\xef\xbf\xbdx"), ""); /* a control token shows nothing */
    stream(tokenizer, IDS(256), STEPS(""), "\xef\xbf\xbd");
    stream(tokenizer, IDS(0xff, 0x80, 'a'), STEPS("\xef\xbf\xbd", "\xef\xbf\xbd", "a"), "");
    stream(tokenizer, IDS(0xf0, 0x9f, 0x98, 0x80), STEPS("", "", "", "😀"), "");
    stream(tokenizer, IDS(0xf0, 0x9f, 0x98, 'a'),
           STEPS("", "", "",
                 "\xef\xbf\xbd"
                 "a"),
           "");
    stream(tokenizer, IDS(0xf0, 0x9f, 0xe4, 0xbd, 0xa0), STEPS("", "", "\xef\xbf\xbd", "", "你"), "");
    /* E0 80 is no beginning of anything (overlong), nor is ED A0 (a surrogate): each byte alone. */
    stream(tokenizer, IDS(0xe0, 0x80), STEPS("", "\xef\xbf\xbd\xef\xbf\xbd"), "");
    stream(tokenizer, IDS(0xed, 0xa0, 0x80), STEPS("", "\xef\xbf\xbd\xef\xbf\xbd", "\xef\xbf\xbd"), "");
    stream(tokenizer, IDS(100000), STEPS(""), "");
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

static void test_leading_space(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_SPM, PRE_NONE);
    vocab_add_byte_tokens(vocab);
    int32_t bos = vocab_word(vocab, "<s>", 0, TOKEN_CONTROL);
    int32_t hi = vocab_word(vocab, "▁hi", 0, TOKEN_NORMAL);
    vocab->spec.add_space_prefix = true;
    struct tokenizer *tokenizer = build(vocab);
    stream(tokenizer, IDS(bos, hi, hi), STEPS("", "hi", " hi"), "");
    stream(tokenizer, IDS('x', hi, 0xe4, 0xbd, 0xa0), STEPS("x", " hi", "", "", "你"), "");
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* However random bytes are cut into tokens, the stream is valid UTF-8 and holds at most 3 bytes back. */
static void test_random_bytes(void **state) {
    (void)state;
    struct vocab *vocab = byte_vocab();
    struct tokenizer *tokenizer = build(vocab);
    struct rng rng;
    rng_seed(&rng, 5);
    struct detokenizer stream_state;
    struct buf out = {0};
    detokenizer_init(&stream_state, tokenizer);
    for (int i = 0; i < 200000; i++) {
        int32_t id = (int32_t)(rng_next(&rng) % 259);
        if (i % 3) id = "\xe4\xbd\xa0\xf0\x9f\x98\x80\xc3\xa9 a"[rng_next(&rng) % 11] & 0xff;
        assert_int_equal(detokenizer_push(&stream_state, id, &out), SHU_OK);
        assert_in_range(stream_state.held_bytes, 0, 3);
    }
    assert_int_equal(detokenizer_finish(&stream_state, &out), SHU_OK);
    assert_true(out.len > 100000 && utf8_valid(out.data, out.len));
    assert_false(utf8_valid("\xe4\xbd", 2)); /* the check can fail */
    buf_free(&out);
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stream), cmocka_unit_test(test_leading_space),
                                       cmocka_unit_test(test_random_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
