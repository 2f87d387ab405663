/* Tokenizers by hand-made vocabularies: construction and its refusals, special
 * tokens, prefixes, decoding, limits, the k-th failing allocation. */
#include "text/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include <cmocka.h>

static struct tokenizer *build(const struct vocab *vocab) {
    struct tokenizer *tokenizer = NULL;
    struct shu_error err = {0};
    int rc = tokenizer_new(&vocab->spec, &tokenizer, &err);
    if (rc) print_error("%s\n", err.message);
    assert_int_equal(rc, SHU_OK);
    return tokenizer;
}

static void encode(const struct tokenizer *tokenizer, const char *text, size_t bytes, int flags, struct tokens *out) {
    struct tokenizer_work *work = NULL;
    assert_int_equal(tokenizer_work_new(tokenizer, &work, NULL), SHU_OK);
    out->count = 0;
    assert_int_equal(tokenizer_encode(tokenizer, work, text, bytes, flags, out, NULL), SHU_OK);
    tokenizer_work_free(work);
}

/* Encodes and compares with ids ending in -1. */
static void expect(const struct tokenizer *tokenizer, const char *text, int flags, const int32_t *want) {
    struct tokens got = {0};
    encode(tokenizer, text, strlen(text), flags, &got);
    size_t count = 0;
    while (want[count] >= 0) count++;
    assert_int_equal(got.count, count);
    for (size_t i = 0; i < count; i++) assert_int_equal(got.id[i], want[i]);
    tokens_free(&got);
}

static void expect_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool special,
                          const char *want) {
    struct buf text = {0};
    assert_int_equal(buf_puts(&text, ""), SHU_OK);
    assert_int_equal(tokenizer_decode(tokenizer, ids, count, special, &text), SHU_OK);
    assert_string_equal(text.data, want);
    buf_free(&text);
}

#define IDS(...) ((const int32_t[]){__VA_ARGS__, -1})

/* ---------------------------------------------------------------- refusals */

static void refuse(const struct vocab_spec *spec, const char *word) {
    struct tokenizer *tokenizer = NULL;
    struct shu_error err = {0};
    assert_int_not_equal(tokenizer_new(spec, &tokenizer, &err), SHU_OK);
    assert_null(tokenizer);
    if (!strstr(err.message, word)) fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static void test_hostile_bpe(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    refuse(&vocab->spec, "empty");
    vocab_word(vocab, "\xe4\xbd\xa0", 0, TOKEN_NORMAL);
    refuse(&vocab->spec, "GPT-2");
    vocab_add_bytes(vocab);
    vocab_merge(vocab, "a", 1, "b", 1);
    tokenizer_free(build(vocab));
    struct span good = vocab->merges[0];
    static const char *const bad_merges[] = {"ab", "a ", " b", "", "a zz", "zz a", "b a"};
    for (size_t i = 0; i < sizeof bad_merges / sizeof *bad_merges; i++) {
        vocab->merges[0] = (struct span){bad_merges[i], (uint32_t)strlen(bad_merges[i])};
        refuse(&vocab->spec, "merge 0");
    }
    vocab->merges[0] = good;
    vocab->tokens[3] = vocab->tokens[7];
    refuse(&vocab->spec, "tokens 3 and 7");
    vocab_free(vocab);
}

static void test_hostile_numbers(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_SPM, PRE_NONE);
    vocab_add_byte_tokens(vocab);
    tokenizer_free(build(vocab));
    int32_t *ids[] = {&vocab->spec.bos, &vocab->spec.eos, &vocab->spec.unk, &vocab->spec.pad};
    for (int i = 0; i < 4; i++) {
        *ids[i] = 256;
        refuse(&vocab->spec, "[-1, 256)");
        *ids[i] = -2;
        refuse(&vocab->spec, "[-1, 256)");
        *ids[i] = -1;
    }
    vocab->spec.add_bos = true;
    refuse(&vocab->spec, "BOS");
    vocab->spec.add_bos = false;
    vocab->spec.add_eos = true;
    refuse(&vocab->spec, "EOS");
    vocab->spec.add_eos = false;
    vocab->scores[9] = (float)strtod("nan", NULL);
    refuse(&vocab->spec, "token 9");
    vocab->scores[9] = 0;
    vocab->tokens[4].bytes = 65536;
    refuse(&vocab->spec, "token 4");
    vocab->tokens[4] = (struct span){NULL, 3};
    refuse(&vocab->spec, "token 4");
    vocab->tokens[4] = (struct span){NULL, 0}; /* empty is let be, but then byte 4 has no token */
    refuse(&vocab->spec, "<0x04>");
    vocab->spec.unk = 1;
    tokenizer_free(build(vocab));
    vocab->spec.model = (enum vocab_model)7;
    refuse(&vocab->spec, "kind 7");
    vocab->spec.model = VOCAB_UNIGRAM;
    vocab->spec.unk = -1;
    refuse(&vocab->spec, "unknown token");
    vocab_free(vocab);
}

static void test_foreign_work(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    struct tokenizer *one = build(vocab), *two = build(vocab);
    struct tokenizer_work *work = NULL;
    struct tokens out = {0};
    struct shu_error err = {0};
    assert_int_equal(tokenizer_work_new(one, &work, NULL), SHU_OK);
    assert_int_equal(tokenizer_encode(two, work, "a", 1, 0, &out, &err), SHU_E_USAGE);
    assert_int_equal(tokenizer_encode(one, work, "a", (size_t)1 << 40, 0, &out, &err), SHU_E_RANGE);
    assert_int_equal(out.count, 0);
    tokenizer_work_free(work);
    tokenizer_work_free(NULL);
    tokenizer_free(one);
    tokenizer_free(two);
    tokenizer_free(NULL);
    vocab_free(vocab);
}

/* -------------------------------------------------------- byte-level BPE */

static void test_bytes_survive(void **state) {
    (void)state;
    static const enum pretokenizer pres[] = {PRE_GPT2, PRE_LLAMA3, PRE_QWEN2, PRE_NONE};
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_GPT2);
    vocab_add_bytes(vocab);
    vocab_merge(vocab, "\xe4", 1, "\xbd", 1);
    vocab_merge(vocab, "\xff", 1, "\x00", 1);
    char text[1024];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)(i < 256 ? i : i * i * 7 + i / 3);
    for (size_t p = 0; p < sizeof pres / sizeof *pres; p++) {
        vocab->spec.pre = pres[p];
        struct tokenizer *tokenizer = build(vocab);
        struct tokens ids = {0};
        struct buf back = {0};
        encode(tokenizer, text, sizeof text, ENCODE_PARSE_SPECIAL, &ids);
        assert_int_equal(tokenizer_decode(tokenizer, ids.id, ids.count, true, &back), SHU_OK);
        assert_int_equal(back.len, sizeof text);
        assert_memory_equal(back.data, text, sizeof text);
        tokens_free(&ids);
        buf_free(&back);
        tokenizer_free(tokenizer);
    }
    vocab_free(vocab);
}

static void test_merges_by_rank(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    vocab_merge(vocab, "b", 1, "c", 1);   /* 256 */
    vocab_merge(vocab, "a", 1, "b", 1);   /* 257 */
    vocab_merge(vocab, "a", 1, "bc", 2);  /* 258 */
    vocab_merge(vocab, "a", 1, "a", 1);   /* 259 */
    vocab_merge(vocab, "ab", 2, "d", 1);  /* 260, abd */
    vocab_merge(vocab, "x", 1, "abd", 3); /* 261, xabd: its merge needs "abd" */
    struct tokenizer *tokenizer = build(vocab);
    expect(tokenizer, "abc", 0, IDS(258)); /* bc first, though ab stands further left */
    expect(tokenizer, "aaa", 0, IDS(259, 'a'));
    expect(tokenizer, "xabd", 0, IDS(261));
    expect(tokenizer, "abcd", 0, IDS(258, 'd'));
    expect(tokenizer, "", ENCODE_ADD_SPECIAL, IDS(-1));
    tokenizer_free(tokenizer);

    vocab_word(vocab, "zab", 0, TOKEN_NORMAL); /* 262: no merge leads to it */
    tokenizer = build(vocab);
    expect(tokenizer, "zab", 0, IDS('z', 257));
    tokenizer_free(tokenizer);
    vocab->spec.ignore_merges = true;
    tokenizer = build(vocab);
    expect(tokenizer, "zab", 0, IDS(262));
    expect(tokenizer, "zab zab", 0, IDS(262, ' ', 'z', 257)); /* " zab" is another word */
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

static void test_missing_bytes(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_word(vocab, "a", 0, TOKEN_NORMAL);
    vocab_word(vocab, "b", 0, TOKEN_NORMAL);
    struct tokenizer *tokenizer = build(vocab);
    expect(tokenizer, "axb", 0, IDS(0, 1)); /* as llama.cpp: what has no token is dropped */
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* A word of n letters takes n log n steps: this would be minutes if it were quadratic. */
static void test_long_words(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    char run[129];
    memset(run, 'a', sizeof run);
    for (size_t n = 1; n <= 64; n *= 2) vocab_merge(vocab, run, n, run, n);
    struct tokenizer *tokenizer = build(vocab);
    size_t bytes = 1 << 20;
    char *text = malloc(bytes);
    memset(text, 'a', bytes);
    struct tokens ids = {0};
    clock_t start = clock(); /* processor time: a busy machine must not fail the test */
    encode(tokenizer, text, bytes, 0, &ids);
    assert_int_equal(ids.count, bytes / 128);
    assert_true(clock() - start < 20 * CLOCKS_PER_SEC);
    free(text);
    tokens_free(&ids);
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* -------------------------------------------------------- special tokens */

static void test_specials(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    vocab_word(vocab, "<|im_start|>", 0, TOKEN_CONTROL); /* 256 */
    vocab_word(vocab, "<|im_end|>", 0, TOKEN_CONTROL);   /* 257 */
    vocab_word(vocab, "<tool>", 0, TOKEN_USER_DEFINED);  /* 258 */
    vocab_word(vocab, "[PAD1]", 0, TOKEN_UNUSED);        /* 259 */
    vocab_word(vocab, "</s>", 0, TOKEN_USER_DEFINED);    /* 260: ends a turn by its spelling */
    vocab->spec.bos = 256;
    vocab->spec.eos = 257;
    vocab->spec.add_bos = vocab->spec.add_eos = true;
    struct tokenizer *tokenizer = build(vocab);
    expect(tokenizer, "a<|im_start|><tool>b", ENCODE_PARSE_SPECIAL, IDS('a', 256, 258, 'b'));
    expect(tokenizer, "<|im_end|>", 0, IDS('<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>'));
    expect(tokenizer, "<tool></s>", 0, IDS(258, '<', '/', 's', '>'));
    expect(tokenizer, "<tool></s>", ENCODE_PARSE_SPECIAL, IDS(258, 260));
    expect(tokenizer, "<tool<tool>", 0, IDS('<', 't', 'o', 'o', 'l', 258));
    expect(tokenizer, "[PAD1]", ENCODE_PARSE_SPECIAL, IDS('[', 'P', 'A', 'D', '1', ']'));
    expect(tokenizer, "", ENCODE_ADD_SPECIAL, IDS(256, 257));
    expect(tokenizer, "x", ENCODE_ADD_SPECIAL, IDS(256, 'x', 257));
    expect_decode(tokenizer, IDS(256, 'h', 258, 259, 257), 5, false, "h<tool>");
    expect_decode(tokenizer, IDS(256, 'h', 258, 259, 257), 5, true, "<|im_start|>h<tool><|im_end|>");
    expect_decode(tokenizer, IDS(1000000, 'h'), 2, true, "h");
    assert_int_equal(tokenizer_find(tokenizer, "<|im_end|>", 10), 257);
    assert_int_equal(tokenizer_find(tokenizer, "<|im_end|", 9), -1);
    assert_int_equal(tokenizer_count(tokenizer), 261);
    assert_int_equal(tokenizer_bos(tokenizer), 256);
    assert_int_equal(tokenizer_eos(tokenizer), 257);
    assert_true(tokenizer_is_end(tokenizer, 257) && tokenizer_is_end(tokenizer, 260));
    assert_false(tokenizer_is_end(tokenizer, 256) || tokenizer_is_end(tokenizer, -1));
    assert_int_equal(tokenizer_type(tokenizer, 258), TOKEN_USER_DEFINED);
    assert_int_equal(tokenizer_type(tokenizer, 260), TOKEN_CONTROL);
    assert_int_equal(tokenizer_piece(tokenizer, -5, true).bytes, 0);
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* Two families give an end spelling another meaning. */
static void test_false_ends(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    int32_t end = vocab_word(vocab, "<|end|>", 0, TOKEN_CONTROL);
    struct tokenizer *tokenizer = build(vocab);
    assert_true(tokenizer_is_end(tokenizer, end));
    tokenizer_free(tokenizer);
    vocab_word(vocab, "<|return|>", 0, TOKEN_CONTROL);
    vocab_word(vocab, "<|call|>", 0, TOKEN_CONTROL);
    tokenizer = build(vocab);
    assert_false(tokenizer_is_end(tokenizer, end));
    assert_int_equal(tokenizer_type(tokenizer, end), TOKEN_USER_DEFINED);
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* Longest first, wherever it begins: llama.cpp's order, not the regular expression's. */
static void test_contested_specials(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_NONE);
    vocab_add_bytes(vocab);
    int32_t ab = vocab_word(vocab, "ab", 0, TOKEN_USER_DEFINED);
    int32_t bcd = vocab_word(vocab, "bcd", 0, TOKEN_USER_DEFINED);
    int32_t defgh = vocab_word(vocab, "defgh", 0, TOKEN_USER_DEFINED);
    int32_t line = vocab_word(vocab, "\n", 0, TOKEN_USER_DEFINED);
    int32_t lines = vocab_word(vocab, "\n\n\n", 0, TOKEN_USER_DEFINED);
    struct tokenizer *tokenizer = build(vocab);
    expect(tokenizer, "abc", 0, IDS(ab, 'c'));
    expect(tokenizer, "abcd", 0, IDS('a', bcd));
    expect(tokenizer, "abcdefgh", 0, IDS(ab, 'c', defgh)); /* defgh beats bcd, which frees ab */
    expect(tokenizer, "abcdabxabcdefghab", 0, IDS('a', bcd, ab, 'x', ab, 'c', defgh, ab));
    expect(tokenizer, "\n\n\n\n\nab", 0, IDS(lines, line, line, ab));
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* ------------------------------------------------------------------- SPM */

static struct vocab *small_spm(void) {
    struct vocab *vocab = vocab_new(VOCAB_SPM, PRE_NONE);
    vocab_word(vocab, "<unk>", 0, TOKEN_UNKNOWN);
    vocab_word(vocab, "<s>", 0, TOKEN_CONTROL);
    vocab_word(vocab, "</s>", 0, TOKEN_CONTROL);
    vocab_add_byte_tokens(vocab); /* 3…258 */
    vocab->spec.unk = 0;
    vocab->spec.bos = 1;
    vocab->spec.eos = 2;
    vocab->spec.add_bos = true;
    vocab->spec.add_space_prefix = true;
    vocab_word(vocab, "▁", -9, TOKEN_NORMAL);       /* 259 */
    vocab_word(vocab, "a", -8, TOKEN_NORMAL);       /* 260 */
    vocab_word(vocab, "b", -7, TOKEN_NORMAL);       /* 261 */
    vocab_word(vocab, "ab", -2, TOKEN_NORMAL);      /* 262 */
    vocab_word(vocab, "ba", -1, TOKEN_NORMAL);      /* 263 */
    vocab_word(vocab, "▁ab", -3, TOKEN_NORMAL);     /* 264 */
    vocab_word(vocab, "▁▁", -4, TOKEN_NORMAL);      /* 265 */
    vocab_word(vocab, "  ", 0, TOKEN_USER_DEFINED); /* 266: plain spaces, as in gemma */
    return vocab;
}

static void test_spm(void **state) {
    (void)state;
    struct vocab *vocab = small_spm();
    struct tokenizer *tokenizer = build(vocab);
    expect(tokenizer, "ab", ENCODE_ADD_SPECIAL, IDS(1, 264));
    expect(tokenizer, "", ENCODE_ADD_SPECIAL, IDS(1));
    expect(tokenizer, "", 0, IDS(-1));
    expect(tokenizer, "aba", 0, IDS(259, 260, 263));                      /* ba (-1) before ab (-2) */
    expect(tokenizer, "ab<s>ab", ENCODE_PARSE_SPECIAL, IDS(264, 1, 264)); /* a prefix after each special */
    expect(tokenizer, "a  b", 0, IDS(259, 260, 266, 259, 261));
    expect(tokenizer, "c", 0, IDS(259, 3 + 'c'));
    expect(tokenizer, "\xe4\xbd\xa0", 0, IDS(259, 3 + 0xe4, 3 + 0xbd, 3 + 0xa0));
    expect(tokenizer, "▁ab", 0, IDS(259, 264)); /* a literal mark is a space */
    /* A broken lead byte takes the next byte into its symbol, the escaped space included; nothing is lost. */
    expect(tokenizer, "\xc3 ab", 0, IDS(259, 3 + 0xc3, 3 + 0xe2, 3 + 0x96, 3 + 0x81, 262));
    expect_decode(tokenizer, IDS(1, 264, 264), 3, false, "ab ab");
    expect_decode(tokenizer, IDS(264, 264), 2, true, "ab ab");
    expect_decode(tokenizer, IDS(3 + 0xe4, 3 + 0xbd, 3 + 0xa0), 3, false, "\xe4\xbd\xa0");
    tokenizer_free(tokenizer);
    vocab->spec.add_space_prefix = false;
    tokenizer = build(vocab);
    expect(tokenizer, "ab ab", 0, IDS(262, 264));
    expect_decode(tokenizer, IDS(264), 1, false, " ab");
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* --------------------------------------------------------------- unigram */

static void test_unigram(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_UNIGRAM, PRE_NONE);
    vocab_word(vocab, "<pad>", 0, TOKEN_CONTROL);
    vocab_word(vocab, "</s>", 0, TOKEN_CONTROL);
    vocab_word(vocab, "<unk>", 0, TOKEN_UNKNOWN);
    vocab_word(vocab, "▁", -2.0f, TOKEN_NORMAL);   /* 3 */
    vocab_word(vocab, "a", -4.0f, TOKEN_NORMAL);   /* 4 */
    vocab_word(vocab, "b", -4.5f, TOKEN_NORMAL);   /* 5 */
    vocab_word(vocab, "ab", -3.0f, TOKEN_NORMAL);  /* 6 */
    vocab_word(vocab, "▁ab", -6.0f, TOKEN_NORMAL); /* 7: worse than ▁ + ab */
    vocab_word(vocab, "ba", -1.0f, TOKEN_NORMAL);  /* 8 */
    vocab->spec.unk = 2;
    vocab->spec.eos = 1;
    vocab->spec.add_eos = true;
    vocab->spec.add_space_prefix = true;
    struct tokenizer *tokenizer = build(vocab);
    expect(tokenizer, "ab", ENCODE_ADD_SPECIAL, IDS(3, 6, 1));
    expect(tokenizer, "aba", 0, IDS(3, 4, 8));     /* a + ba = -5 beats ab + a = -7 */
    expect(tokenizer, "axyb", 0, IDS(3, 4, 2, 5)); /* unknown neighbours are one */
    expect(tokenizer, "a b", 0, IDS(3, 4, 3, 5));
    expect(tokenizer, "", 0, IDS(-1));
    expect_decode(tokenizer, IDS(3, 6, 1), 3, false, "ab");
    tokenizer_free(tokenizer);
    vocab_free(vocab);
}

/* -------------------------------------------------- failing allocations */

static int whole_walk(const struct vocab_spec *spec) {
    struct tokenizer *tokenizer = NULL;
    struct tokenizer_work *work = NULL;
    struct tokens ids = {0};
    struct buf text = {0};
    struct shu_error err = {0};
    char run[200];
    memset(run, 'q', sizeof run);
    int rc = tokenizer_new(spec, &tokenizer, &err);
    if (!rc) rc = tokenizer_work_new(tokenizer, &work, &err);
    if (!rc) rc = tokenizer_encode(tokenizer, work, run, sizeof run, 0, &ids, &err);
    if (!rc) rc = tokenizer_encode(tokenizer, work, "abcdefgh ab", 11, 0, &ids, &err);
    if (!rc) rc = tokenizer_decode(tokenizer, ids.id, ids.count, true, &text);
    if (rc && tokenizer) assert_true(!text.len || rc == SHU_E_NOMEM);
    tokens_free(&ids);
    buf_free(&text);
    tokenizer_work_free(work);
    tokenizer_free(tokenizer);
    return rc;
}

static void fail_each_allocation(const struct vocab_spec *spec) {
    long k = 1;
    for (;; k++) {
        fault_arm(FAULT_ALLOC, k);
        int rc = whole_walk(spec);
        long count = fault_count(FAULT_ALLOC);
        fault_arm(FAULT_ALLOC, 0);
        if (count < k) {
            assert_int_equal(rc, SHU_OK);
            break;
        }
        assert_int_equal(rc, SHU_E_NOMEM);
    }
#ifdef SHU_FAULTS
    assert_true(k > 10);
#endif
}

static void test_failing_allocations(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
    vocab_add_bytes(vocab);
    vocab_merge(vocab, "a", 1, "b", 1);
    vocab_word(vocab, "ef", 0, TOKEN_USER_DEFINED);
    vocab_word(vocab, "fgh", 0, TOKEN_USER_DEFINED);
    vocab->spec.ignore_merges = true;
    fail_each_allocation(&vocab->spec);
    vocab_free(vocab);
    vocab = small_spm();
    fail_each_allocation(&vocab->spec);
    vocab->spec.model = VOCAB_UNIGRAM;
    fail_each_allocation(&vocab->spec);
    vocab_free(vocab);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_bpe),
        cmocka_unit_test(test_hostile_numbers),
        cmocka_unit_test(test_foreign_work),
        cmocka_unit_test(test_bytes_survive),
        cmocka_unit_test(test_merges_by_rank),
        cmocka_unit_test(test_missing_bytes),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_false_ends),
        cmocka_unit_test(test_contested_specials),
        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_unigram),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
