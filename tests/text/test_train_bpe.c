/* Learning BPE: the same merges as counting everything anew after each merge, and as Hugging Face's tokenizers; nothing
 * depends on threads or on how texts are handed over. */
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        struct shu_error must = {0};                                                                                   \
        if (call) fail_msg("%s: %s (%s)", #call, must.message, must.where);                                            \
    } while (0)

static struct vocab_trainer *trainer_of(const struct vocab_trainer_options *options, struct pool *pool) {
    struct vocab_trainer *trainer = NULL;
    MUST(vocab_trainer_new(options, pool, &trainer, &must));
    return trainer;
}

static struct pool *pool_of(int threads) {
    struct pool *pool = NULL;
    MUST(pool_new(threads, &pool, &must));
    return pool;
}

/* ------------------------------------------------------- the plain algorithm */

enum { NAIVE_WORDS = 4096, NAIVE_VOCAB = 600 };

/* Words as tokens, counted pair by pair from the beginning after every merge. */
struct naive {
    int32_t *token[NAIVE_WORDS];
    int length[NAIVE_WORDS];
    int words;
    char text[NAIVE_VOCAB][512];
    int bytes[NAIVE_VOCAB], count;
    int32_t merge[NAIVE_VOCAB][2];
    int merges;
    int64_t pair[NAIVE_VOCAB][NAIVE_VOCAB];
};

static void naive_begin(struct naive *n, enum pretokenizer pre, const char *text, size_t bytes) {
    int32_t id_of[256] = {0};
    memset(n, 0, sizeof *n);
    for (uint32_t scalar = 0; scalar < 512; scalar++) {
        int byte = alphabet_byte(scalar);
        if (byte < 0) continue;
        id_of[byte] = n->count;
        n->text[n->count][0] = (char)byte;
        n->bytes[n->count++] = 1;
    }
    const uint8_t *p = (const uint8_t *)text, *end = p + bytes;
    for (const uint8_t *next; p < end; p = next) {
        next = pretoken_end(pre, p, end);
        assert_true(n->words < NAIVE_WORDS);
        n->length[n->words] = (int)(next - p);
        n->token[n->words] = malloc((size_t)(next - p) * sizeof(int32_t));
        for (int i = 0; i < next - p; i++) n->token[n->words][i] = id_of[p[i]];
        n->words++;
    }
}

static int32_t naive_token(struct naive *n, int32_t left, int32_t right) {
    int bytes = n->bytes[left] + n->bytes[right];
    assert_true(bytes < 512);
    memcpy(n->text[n->count], n->text[left], (size_t)n->bytes[left]);
    memcpy(n->text[n->count] + n->bytes[left], n->text[right], (size_t)n->bytes[right]);
    for (int32_t i = 0; i < n->count; i++) /* never: see train_bpe.c */
        assert_false(n->bytes[i] == bytes && memcmp(n->text[i], n->text[n->count], (size_t)bytes) == 0);
    n->bytes[n->count] = bytes;
    return n->count++;
}

static void naive_learn(struct naive *n, int vocab, int64_t min_count) {
    while (n->count < vocab) {
        int32_t left = -1, right = -1;
        memset(n->pair, 0, sizeof n->pair);
        for (int w = 0; w < n->words; w++)
            for (int i = 0; i + 1 < n->length[w]; i++) n->pair[n->token[w][i]][n->token[w][i + 1]]++;
        for (int32_t a = 0; a < n->count; a++)
            for (int32_t b = 0; b < n->count; b++)
                if (n->pair[a][b] >= min_count && (left < 0 || n->pair[a][b] > n->pair[left][right])) {
                    left = a;
                    right = b;
                }
        if (left < 0) return;
        int32_t to = naive_token(n, left, right);
        n->merge[n->merges][0] = left;
        n->merge[n->merges++][1] = right;
        for (int w = 0; w < n->words; w++) {
            int kept = 0;
            for (int i = 0; i < n->length[w]; i++) {
                bool here = i + 1 < n->length[w] && n->token[w][i] == left && n->token[w][i + 1] == right;
                n->token[w][kept++] = here ? to : n->token[w][i];
                i += here;
            }
            n->length[w] = kept;
        }
    }
}

static void naive_end(struct naive *n) {
    for (int w = 0; w < n->words; w++) free(n->token[w]);
}

/* Texts of a few letters make long runs and pairs of equal count. */
static size_t random_text(char *out, size_t room, uint64_t seed) {
    static const char *const alphabets[] = {"ab", "aab ", "abc \n", "ab'sd 12", "\xe4\xb8\x80\xe4\xb8\x83 "};
    struct rng rng;
    rng_seed(&rng, seed);
    const char *letters = alphabets[seed % 5];
    size_t count = strlen(letters), bytes = 1 + rng_next(&rng) % (room - 1);
    for (size_t i = 0; i < bytes; i++) out[i] = letters[rng_next(&rng) % count];
    return bytes;
}

static void assert_same_merges(const struct naive *n, const struct vocab_trainer *trainer, uint64_t seed) {
    struct vocab_spec spec;
    vocab_trainer_spec(trainer, &spec);
    if (spec.merge_count != n->merges || spec.count != n->count)
        fail_msg("seed %d: %d merges and %d tokens, expected %d and %d", (int)seed, (int)spec.merge_count,
                 (int)spec.count, n->merges, n->count);
    for (int i = 0; i < n->merges; i++) {
        const char *space = memchr(spec.merges[i].text, ' ', spec.merges[i].bytes);
        char left[512], right[512];
        int64_t a = alphabet_decode((struct span){spec.merges[i].text, (uint32_t)(space - spec.merges[i].text)}, left);
        int64_t b = alphabet_decode(
            (struct span){space + 1, spec.merges[i].bytes - 1 - (uint32_t)(space - spec.merges[i].text)}, right);
        int32_t l = n->merge[i][0], r = n->merge[i][1];
        if (a != n->bytes[l] || b != n->bytes[r] || memcmp(left, n->text[l], (size_t)a) != 0 ||
            memcmp(right, n->text[r], (size_t)b) != 0)
            fail_msg("seed %d: merge %d is \"%.*s\"", (int)seed, i, (int)spec.merges[i].bytes, spec.merges[i].text);
    }
}

static void test_same_as_the_plain_algorithm(void **state) {
    (void)state;
    struct naive *n = malloc(sizeof *n);
    struct pool *pool = pool_of(2);
    char text[3000];
    for (uint64_t seed = 0; seed < 120; seed++) {
        size_t bytes = random_text(text, sizeof text, seed);
        struct vocab_trainer_options options = {.pre = (enum pretokenizer)(seed % 3),
                                                .vocab = 256 + (int32_t)(1 + seed * 7 % 90),
                                                .min_count = 1 + (int64_t)(seed % 4)};
        struct vocab_trainer *trainer = trainer_of(&options, pool);
        MUST(vocab_trainer_add(trainer, text, bytes, NULL, &must));
        MUST(vocab_trainer_learn(trainer, NULL, &must));
        naive_begin(n, options.pre, text, bytes);
        naive_learn(n, options.vocab, options.min_count);
        assert_same_merges(n, trainer, seed);
        naive_end(n);
        vocab_trainer_free(trainer);
    }
    free(n);
    pool_free(pool);
}

/* --------------------------------------------------------------- Hugging Face */

/* Some kilobytes of two languages, made of words so that the script and this test need no file. */
static void golden_text(struct buf *out) {
    static const char *const words[] = {"the",  "cat",    "sat",      "on",    "mat",     "model",  "modelling",
                                        "2024", "1989",   "it's",     "we'll", "they're", "特征",   "向量",
                                        "向前", "数据库", "数据结构", "，",    "。",      "你好吗", "你们好",
                                        "!?",   "...",    "\n",       "\n\n",  "  ",      "\t",     "naïve"};
    uint64_t state = 1;
    for (int i = 0; i < 6000; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        unsigned pick = (unsigned)(state >> 33) % (sizeof words / sizeof *words);
        assert_int_equal(buf_puts(out, words[pick]), 0);
        if ((state >> 60) % 2) assert_int_equal(buf_putc(out, ' '), 0);
    }
}

/* SHA-256 of all merges, one a line, as tokenizers 0.23 learns them; from golden/train_bpe.py. */
static void test_same_as_hugging_face(void **state) {
    (void)state;
    static const struct {
        enum pretokenizer pre;
        int32_t vocab;
        const char *digest;
    } cases[] = {
        {PRE_QWEN2, 500, "27eba61e3f5a737d892880e257f2033645e6c30aa5d13f53d478c12a179b1924"},
        {PRE_GPT2, 450, "1a175aea61daebc4e23ee84a67fbb69c947f5fe0b867b741be6f47a37d79aa7c"},
        {PRE_LLAMA3, 400, "0f1250686f26cdb606fd2e0559d5126847004b76a144bd38f9c23c86e4f1037f"},
    };
    struct pool *pool = pool_of(1);
    struct buf text = {0};
    golden_text(&text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct vocab_trainer_options options = {.pre = cases[i].pre, .vocab = cases[i].vocab, .min_count = 1};
        struct vocab_trainer *trainer = trainer_of(&options, pool);
        struct vocab_spec spec;
        struct sha256 hash;
        char digest[65];
        MUST(vocab_trainer_add(trainer, text.data, text.len, NULL, &must));
        MUST(vocab_trainer_learn(trainer, NULL, &must));
        vocab_trainer_spec(trainer, &spec);
        sha256_init(&hash);
        for (int32_t m = 0; m < spec.merge_count; m++) {
            sha256_update(&hash, spec.merges[m].text, spec.merges[m].bytes);
            sha256_update(&hash, "\n", 1);
        }
        sha256_hex(&hash, digest);
        assert_string_equal(digest, cases[i].digest);
        vocab_trainer_free(trainer);
    }
    buf_free(&text);
    pool_free(pool);
}

/* ---------------------------------------------------------------- determinism */

static void learn_hash(struct vocab_trainer *trainer, char digest[65]) {
    struct vocab_spec spec;
    struct sha256 hash;
    MUST(vocab_trainer_learn(trainer, NULL, &must));
    vocab_trainer_spec(trainer, &spec);
    sha256_init(&hash);
    for (int32_t i = 0; i < spec.count; i++) sha256_update(&hash, spec.tokens[i].text, spec.tokens[i].bytes);
    for (int32_t i = 0; i < spec.merge_count; i++) sha256_update(&hash, spec.merges[i].text, spec.merges[i].bytes);
    sha256_hex(&hash, digest);
}

/* More text than a tile, so that threads share it; 1 and 4 threads, one text and two, even under the memory limit. */
static void test_threads_and_portions_change_nothing(void **state) {
    (void)state;
    struct buf text = {0};
    struct rng rng;
    rng_seed(&rng, 3);
    for (int i = 0; i < 200000; i++) {
        char word[16];
        int n = 0, letters = 1 + (int)(rng_next(&rng) % 7);
        for (; n < letters; n++) word[n] = (char)('a' + rng_next(&rng) % 3 + rng_next(&rng) % 3);
        word[n++] = " \n"[rng_next(&rng) % 9 == 0];
        assert_int_equal(buf_append(&text, word, (size_t)n), 0);
    }
    size_t half = text.len / 2;
    while (text.data[half] != ' ' || text.data[half - 1] == '\n') half++; /* where every pre-tokenizer cuts */
    for (int limit = 0; limit < 2; limit++) {
        char first[65] = "";
        for (int way = 0; way < 4; way++) {
            struct vocab_trainer_options options = {.pre = PRE_QWEN2, .vocab = 700, .max_bytes = limit ? 20000 : 0};
            struct vocab_trainer_report report;
            struct pool *pool = pool_of(way % 2 ? 4 : 1);
            struct vocab_trainer *trainer = trainer_of(&options, pool);
            char digest[65];
            if (way < 2 || limit) {
                MUST(vocab_trainer_add(trainer, text.data, text.len, NULL, &must));
            } else {
                MUST(vocab_trainer_add(trainer, text.data, half, NULL, &must));
                MUST(vocab_trainer_add(trainer, text.data + half, text.len - half, NULL, &must));
            }
            learn_hash(trainer, digest);
            vocab_trainer_report(trainer, &report);
            assert_int_equal(report.bytes, text.len);
            assert_int_equal(report.tokens, 700);
            if (limit)
                assert_true(report.forgotten > 100);
            else
                assert_int_equal(report.forgotten, 0);
            if (!*first) memcpy(first, digest, sizeof first);
            assert_string_equal(first, digest);
            vocab_trainer_free(trainer);
            pool_free(pool);
        }
    }
    buf_free(&text);
}

/* ------------------------------------------------------------------- the rest */

static void test_specials_and_the_tokenizer(void **state) {
    (void)state;
    static const char *const special[] = {"<|endoftext|>", "<|im_end|>"};
    static const char text[] = "the cat the cat the cat 数据 数据 \xff\xfe";
    struct vocab_trainer_options options = {.pre = PRE_QWEN2, .vocab = 270, .special = special, .special_count = 2};
    struct pool *pool = pool_of(1);
    struct vocab_trainer *trainer = trainer_of(&options, pool);
    struct tokenizer *tokenizer = NULL;
    struct tokenizer_work *work = NULL;
    struct tokens tokens = {0};
    struct buf back = {0};
    struct vocab_spec spec;
    MUST(vocab_trainer_add(trainer, text, sizeof text - 1, NULL, &must));
    MUST(vocab_trainer_learn(trainer, NULL, &must));
    vocab_trainer_spec(trainer, &spec);
    assert_true(spec.count <= 270 && spec.count > 262);
    assert_int_equal(spec.types[spec.count - 1], TOKEN_CONTROL);
    assert_int_equal(spec.types[spec.count - 3], TOKEN_NORMAL);
    MUST(tokenizer_new(&spec, &tokenizer, &must));
    vocab_trainer_free(trainer); /* the tokenizer stands on its own */
    MUST(tokenizer_work_new(tokenizer, &work, &must));
    MUST(tokenizer_encode(tokenizer, work, text, sizeof text - 1, 0, &tokens, &must));
    assert_true(tokens.count < sizeof text / 2);
    assert_int_equal(tokenizer_decode(tokenizer, tokens.id, tokens.count, false, &back), 0);
    assert_int_equal(back.len, sizeof text - 1);
    assert_memory_equal(back.data, text, back.len);
    assert_int_equal(tokenizer_find(tokenizer, "<|im_end|>", 10), tokenizer_count(tokenizer) - 1);
    tokens_free(&tokens);
    buf_free(&back);
    tokenizer_work_free(work);
    tokenizer_free(tokenizer);
    pool_free(pool);
}

static void expect_refused(const struct vocab_trainer_options *options, struct pool *pool, int code,
                           const char *words) {
    struct shu_error err = {0};
    struct vocab_trainer *trainer = NULL;
    int rc = vocab_trainer_new(options, pool, &trainer, &err);
    if (!rc) {
        MUST(vocab_trainer_add(trainer, "aa aa aa", 8, NULL, &must));
        rc = vocab_trainer_learn(trainer, NULL, &err);
        vocab_trainer_free(trainer);
    }
    if (rc != code) fail_msg("expected status %d, found %d: %s", code, rc, err.message);
    if (!strstr(err.message, words)) fail_msg("\"%s\" does not mention \"%s\"", err.message, words);
}

/* Most tables stay empty, and what there is goes: only bytes are left. */
static void test_everything_forgotten(void **state) {
    (void)state;
    struct vocab_trainer_options options = {.pre = PRE_QWEN2, .vocab = 300, .max_bytes = 1};
    struct vocab_trainer_report report;
    struct pool *pool = pool_of(1);
    struct vocab_trainer *trainer = trainer_of(&options, pool);
    MUST(vocab_trainer_add(trainer, "abc abc xyz", 11, NULL, &must));
    MUST(vocab_trainer_learn(trainer, NULL, &must));
    vocab_trainer_report(trainer, &report);
    assert_int_equal(report.pieces, 3);
    assert_int_equal(report.forgotten, 3);
    assert_int_equal(report.tokens, 256);
    vocab_trainer_free(trainer);
    pool_free(pool);
}

static void test_refusals(void **state) {
    (void)state;
    static const char *const plain[] = {"aa"}, *const empty[] = {""}, *const same[] = {"<x>", "<x>"};
    struct pool *pool = pool_of(1);
    expect_refused(&(struct vocab_trainer_options){.pre = PRE_NONE, .vocab = 300}, pool, SHU_E_USAGE, "pre-tokenizer");
    expect_refused(&(struct vocab_trainer_options){.pre = PRE_GPT2, .vocab = 255}, pool, SHU_E_RANGE, "256");
    expect_refused(&(struct vocab_trainer_options){.pre = PRE_GPT2, .vocab = 1 << 22}, pool, SHU_E_RANGE, "at most");
    expect_refused(&(struct vocab_trainer_options){.pre = PRE_GPT2, .vocab = 300, .special = plain, .special_count = 1},
                   pool, SHU_E_USAGE, "\"aa\"");
    expect_refused(&(struct vocab_trainer_options){.pre = PRE_GPT2, .vocab = 300, .special = empty, .special_count = 1},
                   pool, SHU_E_USAGE, "empty");
    expect_refused(&(struct vocab_trainer_options){.pre = PRE_GPT2, .vocab = 300, .special = same, .special_count = 2},
                   pool, SHU_E_USAGE, "twice");
    struct vocab_trainer_options good = {.pre = PRE_GPT2, .vocab = 300};
    struct vocab_trainer *trainer = trainer_of(&good, pool);
    struct shu_error err = {0};
    assert_int_equal(vocab_trainer_learn(trainer, NULL, &err), SHU_E_USAGE);
    assert_non_null(strstr(err.message, "no text"));
    MUST(vocab_trainer_add(trainer, "ab ab", 5, NULL, &must));
    MUST(vocab_trainer_learn(trainer, NULL, &must));
    assert_int_equal(vocab_trainer_learn(trainer, NULL, &err), SHU_E_USAGE);
    assert_int_equal(vocab_trainer_add(trainer, "a", 1, NULL, &err), SHU_E_USAGE);
    vocab_trainer_free(trainer);
    pool_free(pool);
}

/* One piece longer than what is kept whole, and a text without any place to cut. */
static void test_long_pieces(void **state) {
    (void)state;
    struct pool *pool = pool_of(2);
    size_t bytes = 1 << 20;
    char *text = malloc(bytes);
    for (int kind = 0; kind < 2; kind++) {
        memset(text, kind ? '-' : 'x', bytes);
        struct vocab_trainer_options options = {.pre = PRE_QWEN2, .vocab = 262};
        struct vocab_trainer *trainer = trainer_of(&options, pool);
        struct vocab_trainer_report report;
        MUST(vocab_trainer_add(trainer, text, bytes, NULL, &must));
        MUST(vocab_trainer_learn(trainer, NULL, &must));
        vocab_trainer_report(trainer, &report);
        assert_int_equal(report.bytes, bytes);
        assert_int_equal(report.merges, 6); /* x x, xx xx, … */
        vocab_trainer_free(trainer);
    }
    free(text);
    pool_free(pool);
}

static void test_faults(void **state) {
    (void)state;
    char text[2000];
    size_t bytes = random_text(text, sizeof text, 2);
    struct vocab_trainer_options options = {.pre = PRE_QWEN2, .vocab = 300};
    struct pool *pool = pool_of(1);
    long operations = 1;
    for (long k = 0; k <= operations; k++) {
        struct shu_error err = {0};
        struct vocab_trainer *trainer = NULL;
        fault_arm(FAULT_ALLOC, k ? k : 1000000);
        int rc = vocab_trainer_new(&options, pool, &trainer, &err);
        if (!rc) rc = vocab_trainer_add(trainer, text, bytes, NULL, &err);
        if (!rc) rc = vocab_trainer_learn(trainer, NULL, &err);
        if (!k) operations = fault_count(FAULT_ALLOC);
        fault_arm(FAULT_ALLOC, 0);
        vocab_trainer_free(trainer);
        if (k) assert_int_equal(rc, SHU_E_NOMEM);
        if (k) assert_int_equal(err.code, SHU_E_NOMEM);
        if (!k) assert_int_equal(rc, 0);
    }
    pool_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_the_plain_algorithm),
        cmocka_unit_test(test_same_as_hugging_face),
        cmocka_unit_test(test_threads_and_portions_change_nothing),
        cmocka_unit_test(test_specials_and_the_tokenizer),
        cmocka_unit_test(test_everything_forgotten),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_long_pieces),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
