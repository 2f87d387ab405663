/* Tokenizers against plain restatements of their definitions, on random
 * vocabularies and random texts: no segment, cache, heap or matcher may change
 * an id. Alphabets are tiny, so that tokens overlap in every way; tokens cut
 * characters in half, texts are often broken UTF-8. */
#include "text/tokenizer.h"
#include "text/vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define TEXT_MAX 400

/* Characters (and halves of characters) that texts and tokens are made of. */
static const char *const ATOMS[] = {"a",
                                    "b",
                                    "c",
                                    " ",
                                    "\xe4\xbd\xa0",
                                    "\xe5\xa5\xbd",
                                    "\xe4\xb8\xad",
                                    "é",
                                    "\n",
                                    "\xe4",
                                    "\xbd",
                                    "\xa0",
                                    "😀",
                                    "▁",
                                    "\t",
                                    "'s",
                                    "1",
                                    "\xf0",
                                    "\xe4\xbd",
                                    "-"};

static uint32_t below(struct rng *rng, uint32_t limit) {
    return (uint32_t)(rng_next(rng) >> 33) % limit;
}

static size_t random_text(struct rng *rng, char *out, size_t max, uint32_t atoms) {
    size_t bytes = 0, want = 1 + below(rng, (uint32_t)max - 8);
    while (bytes < want) {
        const char *atom = ATOMS[below(rng, atoms)];
        memcpy(out + bytes, atom, strlen(atom));
        bytes += strlen(atom);
    }
    return bytes;
}

static void compare(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                    int flags, const struct tokens *want) {
    struct tokens got = {0};
    assert_int_equal(tokenizer_encode(tokenizer, work, text, bytes, flags, &got, NULL), SHU_OK);
    bool same =
        got.count == want->count && (got.count == 0 || memcmp(got.id, want->id, got.count * sizeof *got.id) == 0);
    if (!same) {
        for (size_t i = 0; i < bytes; i++) print_error("%02x ", (uint8_t)text[i]);
        for (size_t i = 0; i < got.count; i++) print_error("\ngot %d", (int)got.id[i]);
        for (size_t i = 0; i < want->count; i++) print_error("\nwant %d", (int)want->id[i]);
        fail_msg("ids differ");
    }
    tokens_free(&got);
}

/* ------------------------------------------------- the definitions, plainly */

struct parts {
    struct span part[TEXT_MAX * 3 + 8];
    size_t count;
};

static void join(struct parts *parts, size_t i) {
    parts->part[i].bytes += parts->part[i + 1].bytes;
    memmove(&parts->part[i + 1], &parts->part[i + 2], (parts->count - i - 2) * sizeof *parts->part);
    parts->count--;
}

/* Rank of the merge of two byte strings, or -1. */
static int rank_of(const struct vocab *vocab, struct span left, struct span right) {
    char line[TEXT_MAX * 8];
    size_t bytes = vocab_spell_all(left.text, left.bytes, line);
    line[bytes++] = ' ';
    bytes += vocab_spell_all(right.text, right.bytes, line + bytes);
    for (int i = 0; i < vocab->spec.merge_count; i++)
        if (vocab->merges[i].bytes == bytes && memcmp(vocab->merges[i].text, line, bytes) == 0) return i;
    return -1;
}

static void plain_bpe_word(const struct vocab *vocab, const char *text, size_t bytes, struct tokens *out) {
    struct parts parts = {.count = bytes};
    for (size_t i = 0; i < bytes; i++) parts.part[i] = (struct span){text + i, 1};
    for (;;) {
        int best = -1;
        size_t where = 0;
        for (size_t i = 0; i + 1 < parts.count; i++) {
            int rank = rank_of(vocab, parts.part[i], parts.part[i + 1]);
            if (rank < 0 || (best >= 0 && rank >= best)) continue;
            best = rank;
            where = i;
        }
        if (best < 0) break;
        join(&parts, where);
    }
    for (size_t i = 0; i < parts.count; i++) {
        char spelt[TEXT_MAX * 2];
        size_t n = vocab_spell_all(parts.part[i].text, parts.part[i].bytes, spelt);
        int32_t id = vocab_find(vocab, (struct span){spelt, (uint32_t)n});
        assert_int_equal(tokens_push(out, id), SHU_OK);
    }
}

static void plain_bpe(const struct vocab *vocab, const char *text, size_t bytes, struct tokens *out) {
    const uint8_t *p = (const uint8_t *)text, *end = p + bytes;
    while (p < end) {
        const uint8_t *next = pretoken_end(vocab->spec.pre, p, end);
        char spelt[TEXT_MAX * 2];
        size_t n = vocab_spell_all((const char *)p, (size_t)(next - p), spelt);
        int32_t whole = vocab->spec.ignore_merges ? vocab_find(vocab, (struct span){spelt, (uint32_t)n}) : -1;
        if (whole >= 0)
            assert_int_equal(tokens_push(out, whole), SHU_OK);
        else
            plain_bpe_word(vocab, (const char *)p, (size_t)(next - p), out);
        p = next;
    }
}

static void plain_spm(const struct vocab *vocab, const char *raw, size_t raw_bytes, struct tokens *out) {
    char text[TEXT_MAX * 3 + 8];
    size_t bytes = 0;
    for (size_t i = 0; i < raw_bytes; i++) {
        if (raw[i] == ' ')
            memcpy(text + bytes, "\xe2\x96\x81", 3), bytes += 3;
        else
            text[bytes++] = raw[i];
    }
    struct parts parts = {.count = 0};
    for (size_t at = 0; at < bytes;) {
        uint8_t lead = (uint8_t)text[at];
        size_t n = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        if (n > bytes - at) n = bytes - at;
        parts.part[parts.count++] = (struct span){text + at, (uint32_t)n};
        at += n;
    }
    for (;;) {
        int32_t best = -1;
        size_t where = 0;
        for (size_t i = 0; i + 1 < parts.count; i++) {
            struct span both = {parts.part[i].text, parts.part[i].bytes + parts.part[i + 1].bytes};
            int32_t id = vocab_find(vocab, both);
            if (id < 0 || (best >= 0 && vocab->scores[id] <= vocab->scores[best])) continue;
            best = id;
            where = i;
        }
        if (best < 0) break;
        join(&parts, where);
    }
    for (size_t i = 0; i < parts.count; i++) {
        int32_t id = vocab_find(vocab, parts.part[i]);
        if (id >= 0) {
            assert_int_equal(tokens_push(out, id), SHU_OK);
            continue;
        }
        for (uint32_t b = 0; b < parts.part[i].bytes; b++)
            assert_int_equal(tokens_push(out, (uint8_t)parts.part[i].text[b]), SHU_OK);
    }
}

/* Longest special tokens first, each from left to right, in what is still free. */
static void plain_specials(const struct vocab *vocab, const char *text, size_t bytes, struct tokens *out) {
    int32_t owner[TEXT_MAX];
    for (size_t i = 0; i < bytes; i++) owner[i] = -1;
    for (uint32_t length = TEXT_MAX; length > 0; length--)
        for (int32_t id = 0; id < vocab->spec.count; id++) {
            struct span token = vocab->tokens[id];
            if (vocab->types[id] != TOKEN_USER_DEFINED || token.bytes != length) continue;
            for (size_t at = 0; at + length <= bytes;) {
                bool here = memcmp(text + at, token.text, length) == 0;
                for (uint32_t i = 0; here && i < length; i++) here = owner[at + i] < 0;
                for (uint32_t i = 0; here && i < length; i++) owner[at + i] = id;
                at += here ? length : 1;
            }
        }
    for (size_t at = 0; at < bytes;) {
        if (owner[at] >= 0) {
            assert_int_equal(tokens_push(out, owner[at]), SHU_OK);
            at += vocab->tokens[owner[at]].bytes;
            continue;
        }
        size_t from = at;
        while (at < bytes && owner[at] < 0) at++;
        if (vocab->spec.model == VOCAB_BPE)
            plain_bpe(vocab, text + from, at - from, out);
        else
            plain_spm(vocab, text + from, at - from, out);
    }
}

/* ------------------------------------------------------ random vocabularies */

static void random_merges(struct vocab *vocab, struct rng *rng, int count, uint32_t atoms) {
    vocab_add_bytes(vocab);
    /* plain[i]: bytes of token i */
    static struct span plain[VOCAB_MAX];
    char bytes[VOCAB_MAX][2];
    int tokens = 256;
    for (int i = 0; i < 256; i++) {
        bytes[i][0] = (char)i;
        plain[i] = (struct span){bytes[i], 1};
    }
    for (int tries = 0; tries < 20 * count && vocab->spec.merge_count < count; tries++) {
        char text[64];
        struct span side[2];
        for (int s = 0; s < 2; s++) {
            if (tokens > 256 && below(rng, 2)) {
                side[s] = plain[256 + below(rng, (uint32_t)(tokens - 256))];
                continue;
            }
            const char *atom = ATOMS[below(rng, atoms)];
            side[s] = plain[(uint8_t)atom[below(rng, (uint32_t)strlen(atom))]];
        }
        if (side[0].bytes + side[1].bytes > 12 || rank_of(vocab, side[0], side[1]) >= 0) continue;
        memcpy(text, side[0].text, side[0].bytes);
        memcpy(text + side[0].bytes, side[1].text, side[1].bytes);
        vocab_merge(vocab, side[0].text, side[0].bytes, side[1].text, side[1].bytes);
        plain[tokens++] = vocab_copy(vocab, text, side[0].bytes + side[1].bytes);
    }
}

/* Makes every character of the atoms a token, as trained vocabularies have them, so that merging by characters runs. */
static void merge_characters(struct vocab *vocab, uint32_t atoms) {
    for (uint32_t i = 0; i < atoms; i++) {
        size_t n = strlen(ATOMS[i]);
        for (size_t have = 1; have < n; have++)
            if (rank_of(vocab, (struct span){ATOMS[i], (uint32_t)have}, (struct span){ATOMS[i] + have, 1}) < 0)
                vocab_merge(vocab, ATOMS[i], have, ATOMS[i] + have, 1);
    }
}

static void check_vocab(const struct vocab *vocab, struct rng *rng, uint32_t atoms, int texts) {
    struct tokenizer *tokenizer = NULL;
    struct tokenizer_work *work = NULL;
    struct shu_error err = {0};
    char text[TEXT_MAX];
    if (tokenizer_new(&vocab->spec, &tokenizer, &err)) fail_msg("%s", err.message);
    assert_int_equal(tokenizer_work_new(tokenizer, &work, NULL), SHU_OK);
    for (int i = 0; i < texts; i++) {
        struct tokens want = {0};
        size_t bytes = random_text(rng, text, i % 8 ? 60 : TEXT_MAX, atoms);
        plain_specials(vocab, text, bytes, &want);
        compare(tokenizer, work, text, bytes, 0, &want);
        tokens_free(&want);
    }
    tokenizer_work_free(work);
    tokenizer_free(tokenizer);
}

static void test_random_bpe(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 20261126);
    for (int round = 0; round < 100; round++) {
        uint32_t atoms = round % 3 ? sizeof ATOMS / sizeof *ATOMS : 9;
        struct vocab *vocab = vocab_new(VOCAB_BPE, (enum pretokenizer)(round % 4));
        random_merges(vocab, &rng, (int)below(&rng, 6), atoms); /* a few may tear characters apart before they form */
        if (round % 2) merge_characters(vocab, 9);
        random_merges(vocab, &rng, 10 + (int)below(&rng, 50), atoms);
        if (round % 5 == 0) vocab->spec.ignore_merges = true;
        check_vocab(vocab, &rng, atoms, 40);
        vocab_free(vocab);
    }
}

static void test_random_spm(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 20261127);
    for (int round = 0; round < 100; round++) {
        uint32_t atoms = round % 3 ? sizeof ATOMS / sizeof *ATOMS : 9;
        struct vocab *vocab = vocab_new(VOCAB_SPM, PRE_NONE);
        vocab_add_byte_tokens(vocab);
        int words = 5 + (int)below(&rng, 80);
        for (int i = 0; i < words; i++) {
            char word[64];
            size_t bytes = 0;
            for (uint32_t n = 1 + below(&rng, 4); n > 0; n--) {
                const char *atom = ATOMS[below(&rng, atoms)];
                if (*atom == ' ') atom = "▁";
                memcpy(word + bytes, atom, strlen(atom));
                bytes += strlen(atom);
            }
            vocab_add(vocab, word, bytes, (float)below(&rng, 12) - 6, TOKEN_NORMAL); /* scores tie often */
        }
        check_vocab(vocab, &rng, atoms, 40);
        vocab_free(vocab);
    }
}

static void test_random_specials(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 20261128);
    for (int round = 0; round < 200; round++) {
        struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_QWEN2);
        vocab_add_bytes(vocab);
        uint32_t used[16] = {0}; /* one token of each length: llama.cpp leaves the order of equals open */
        for (uint32_t n = 1 + below(&rng, 8); n > 0; n--) {
            char word[64];
            uint32_t bytes = 0, atoms = 2 + below(&rng, 6);
            while (bytes < atoms) word[bytes++] = "abc<"[below(&rng, round % 2 ? 2 : 4)];
            if (used[bytes]++ == 0) vocab_add(vocab, word, bytes, 0, TOKEN_USER_DEFINED);
        }
        check_vocab(vocab, &rng, 3, 40);
        vocab_free(vocab);
    }
}

/* ------------------------------------------------------------------ unigram */

/* Best segmentation by trying every token at every place, from the back. */
static double best_sum(const struct vocab *vocab, const char *text, size_t bytes) {
    double best[TEXT_MAX + 1];
    for (size_t end = 0; end <= bytes; end++) {
        best[end] = end ? -1e300 : 0;
        for (int32_t id = 0; id < vocab->spec.count; id++) {
            struct span token = vocab->tokens[id];
            if (vocab->types[id] != TOKEN_NORMAL || token.bytes > end) continue;
            if (memcmp(text + end - token.bytes, token.text, token.bytes) != 0) continue;
            double sum = best[end - token.bytes] + (double)vocab->scores[id];
            if (sum > best[end]) best[end] = sum;
        }
    }
    return best[bytes];
}

static void test_random_unigram(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 20261129);
    for (int round = 0; round < 60; round++) {
        struct vocab *vocab = vocab_new(VOCAB_UNIGRAM, PRE_NONE);
        vocab->spec.unk = vocab_word(vocab, "<unk>", 0, TOKEN_UNKNOWN);
        for (char c = 'a'; c <= 'c'; c++) vocab_add(vocab, &c, 1, -3 - (float)rng_uniform(&rng), TOKEN_NORMAL);
        for (int i = 0; i < 20; i++) {
            char word[8];
            uint32_t n = 2 + below(&rng, 5);
            for (uint32_t k = 0; k < n; k++) word[k] = (char)('a' + below(&rng, 3));
            vocab_add(vocab, word, n, -3 - 4 * (float)rng_uniform(&rng), TOKEN_NORMAL);
        }
        struct tokenizer *tokenizer = NULL;
        struct tokenizer_work *work = NULL;
        assert_int_equal(tokenizer_new(&vocab->spec, &tokenizer, NULL), SHU_OK);
        assert_int_equal(tokenizer_work_new(tokenizer, &work, NULL), SHU_OK);
        for (int i = 0; i < 20; i++) {
            char text[TEXT_MAX];
            size_t bytes = random_text(&rng, text, 80, 3);
            struct tokens ids = {0};
            struct buf back = {0};
            double sum = 0;
            assert_int_equal(tokenizer_encode(tokenizer, work, text, bytes, 0, &ids, NULL), SHU_OK);
            for (size_t k = 0; k < ids.count; k++) sum += (double)vocab->scores[ids.id[k]];
            assert_true(sum - best_sum(vocab, text, bytes) > -1e-9);
            assert_int_equal(tokenizer_decode(tokenizer, ids.id, ids.count, true, &back), SHU_OK);
            assert_int_equal(back.len, bytes);
            assert_memory_equal(back.data, text, bytes);
            tokens_free(&ids);
            buf_free(&back);
        }
        tokenizer_work_free(work);
        tokenizer_free(tokenizer);
        vocab_free(vocab);
    }
}

/* The comparison itself must be able to fail: another order of merges gives other ids somewhere. */
static void test_negative_control(void **state) {
    (void)state;
    struct vocab *vocab = vocab_new(VOCAB_BPE, PRE_NONE);
    vocab_add_bytes(vocab);
    vocab_merge(vocab, "a", 1, "b", 1);
    vocab_merge(vocab, "b", 1, "c", 1);
    struct tokens before = {0}, after = {0};
    plain_bpe(vocab, "abc", 3, &before);
    struct span first = vocab->merges[0];
    vocab->merges[0] = vocab->merges[1];
    vocab->merges[1] = first;
    plain_bpe(vocab, "abc", 3, &after);
    assert_int_not_equal(before.id[0], after.id[0]);
    tokens_free(&before);
    tokens_free(&after);
    vocab_free(vocab);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_bpe),       cmocka_unit_test(test_random_spm),
        cmocka_unit_test(test_random_specials),  cmocka_unit_test(test_random_unigram),
        cmocka_unit_test(test_negative_control),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
