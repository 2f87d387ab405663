/* Prompt lookup against a naive search, and the stop filter against a naive one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "infer/lookup.h"
#include "infer/stop.h"

/* ------------------------------------------------------------------ lookup */

/* Longest context (at most 32 tokens), most recent on a tie; contexts of one token only count at their last occurrence.
 */
static int naive(const int32_t *tokens, int count, int *matched) {
    int best = -1;
    *matched = 0;
    for (int at = count - 1; at >= 1; at--) {
        int length = 0;
        while (length < at && length < 32 && tokens[at - 1 - length] == tokens[count - 1 - length]) length++;
        if (length > *matched) {
            *matched = length;
            best = at;
        }
    }
    return best;
}

static void always_draft(struct lookup *lookup) {
    for (int i = 0; i < LOOKUP_CLASSES; i++) lookup->chance[i] = 1;
}

static void finds_what_a_full_search_finds(void **state) {
    (void)state;
    enum { COUNT = 600 };
    int32_t tokens[COUNT], out[8];
    struct rng rng;
    int found = 0;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct lookup lookup;
        rng_seed(&rng, seed);
        assert_int_equal(lookup_init(&lookup, tokens, COUNT, 8), SHU_OK);
        always_draft(&lookup);
        for (int n = 1; n <= COUNT; n++) {
            /* copies of earlier stretches with some noise: few of the 64 candidates of a chain are needed */
            bool copy = n > 40 && rng_next(&rng) % 16 != 0;
            tokens[n - 1] = copy ? tokens[n - 38] : (int32_t)(rng_next(&rng) % 3000);
            lookup_extend(&lookup, n);
            int matched, from = naive(tokens, n, &matched);
            int got = lookup_draft(&lookup, 8, out);
            if (matched == 0) assert_int_equal(got, 0);
            if (matched < 2) continue; /* single tokens may have lost their place to another with the same hash */
            assert_int_equal(got, 8);
            found++;
            for (int i = 0; i < 8 && from + i < n; i++) assert_int_equal(out[i], tokens[from + i]);
        }
        lookup_free(&lookup);
    }
    assert_true(found > 4000);
}

static void runs_into_its_own_end(void **state) {
    (void)state;
    const int32_t tokens[] = {9, 1, 2, 1, 2};
    int32_t out[7];
    struct lookup lookup;
    assert_int_equal(lookup_init(&lookup, tokens, 5, 7), SHU_OK);
    always_draft(&lookup);
    lookup_extend(&lookup, 5);
    assert_int_equal(lookup_draft(&lookup, 7, out), 7);
    for (int i = 0; i < 7; i++) assert_int_equal(out[i], 1 + i % 2);
    assert_int_equal(lookup_draft(&lookup, 3, out), 3); /* never more than there is room for */
    lookup_free(&lookup);
}

/* Success makes drafts longer up to the limit; failure makes them shorter, then stops them, and after a
 * while they are tried again. */
static void length_follows_success(void **state) {
    (void)state;
    int32_t tokens[64], out[12];
    struct lookup lookup;
    for (int i = 0; i < 64; i++) tokens[i] = i % 20; /* a match of over 8 tokens */
    assert_int_equal(lookup_init(&lookup, tokens, 64, 12), SHU_OK);
    lookup_extend(&lookup, 64);
    int start = lookup_draft(&lookup, 12, out), previous = start;
    assert_true(start >= 4 && start < 12);
    for (int i = 0; i < 40; i++) {
        lookup_learn(&lookup, previous, previous);
        int now = lookup_draft(&lookup, 12, out);
        assert_true(now >= previous);
        previous = now;
    }
    assert_int_equal(previous, 12);
    int failures = 0;
    for (; lookup_draft(&lookup, 12, out) > 0; failures++) lookup_learn(&lookup, 1, 0);
    assert_true(failures > 1 && failures < 20);
    int pause = 1;
    while (lookup_draft(&lookup, 12, out) == 0 && pause < 1000) pause++;
    assert_true(pause < 100);
    lookup_free(&lookup);
}

#ifdef SHU_FAULTS
static void lookup_allocation_failures(void **state) {
    (void)state;
    const int32_t tokens[] = {1};
    for (long k = 1; k <= 3; k++) {
        struct lookup lookup;
        fault_arm(FAULT_ALLOC, k);
        assert_int_equal(lookup_init(&lookup, tokens, 1, 1), SHU_E_NOMEM);
        fault_arm(FAULT_ALLOC, 0);
    }
}
#endif

/* -------------------------------------------------------------------- stop */

static const char *const STOPS[] = {"</s>", "\n\n", "ab", "aab", "stop", "\xe3\x80\x82\xe3\x80\x82"};
enum { STOP_COUNT = sizeof STOPS / sizeof *STOPS };

/* Feeds text in the given pieces; returns whether it stopped, out gets what was let go. */
static bool feed(const char *text, struct rng *rng, struct buf *out) {
    struct stop_filter filter = {.strings = STOPS, .count = STOP_COUNT};
    bool stopped = false;
    buf_clear(out);
    for (size_t at = 0, length = strlen(text); at < length && !stopped;) {
        size_t piece = 1 + rng_next(rng) % 4;
        if (piece > length - at) piece = length - at;
        assert_int_equal(stop_push(&filter, text + at, piece, &stopped), SHU_OK);
        buf_append(out, filter.held.data, filter.released);
        at += piece;
    }
    if (!stopped) {
        stop_finish(&filter);
        buf_append(out, filter.held.data, filter.released);
    }
    stop_free(&filter);
    return stopped;
}

/* However the text is cut, what comes out is the text up to the stop string that is complete first. */
static void stops_wherever_tokens_are_cut(void **state) {
    (void)state;
    struct rng rng;
    struct buf out = {0};
    rng_seed(&rng, 3);
    int stops = 0;
    for (int round = 0; round < 20000; round++) {
        char text[40];
        size_t length = rng_next(&rng) % 30;
        for (size_t i = 0; i < length; i++) text[i] = "aab</s>\nstop\xe3\x80\x82"[rng_next(&rng) % 15];
        text[length] = 0;
        size_t first_end = SIZE_MAX, begin = 0; /* the match whose end comes first; then the earliest begin */
        for (int s = 0; s < STOP_COUNT; s++) {
            const char *at = strstr(text, STOPS[s]);
            if (at && (size_t)(at - text) + strlen(STOPS[s]) < first_end)
                first_end = (size_t)(at - text) + strlen(STOPS[s]);
        }
        bool stopped = feed(text, &rng, &out);
        assert_int_equal(stopped, first_end != SIZE_MAX);
        stops += stopped;
        if (!stopped) {
            assert_int_equal(out.len, length);
        } else {
            /* pieces may end behind first_end, and an earlier begin then wins: it never lies behind first_end */
            begin = out.len;
            assert_true(begin < first_end);
            bool starts_here = false;
            for (int s = 0; s < STOP_COUNT; s++) starts_here |= strncmp(text + begin, STOPS[s], strlen(STOPS[s])) == 0;
            assert_true(starts_here);
        }
        assert_memory_equal(out.len ? out.data : "", text, out.len);
    }
    assert_true(stops > 2000 && stops < 19000);
    buf_free(&out);
}

static void holds_back_no_more_than_needed(void **state) {
    (void)state;
    struct stop_filter filter = {.strings = STOPS, .count = STOP_COUNT};
    bool stopped;
    assert_int_equal(stop_push(&filter, "hello st", 8, &stopped), SHU_OK);
    assert_false(stopped);
    assert_int_equal(filter.released, 6); /* "st" may become "stop" */
    assert_int_equal(stop_push(&filter, "r", 1, &stopped), SHU_OK);
    assert_int_equal(filter.released, 3);
    assert_memory_equal(filter.held.data, "str", 3);
    assert_int_equal(stop_push(&filter, "aa", 2, &stopped), SHU_OK);
    assert_int_equal(filter.released, 0);
    assert_int_equal(stop_push(&filter, "b", 1, &stopped), SHU_OK);
    assert_true(stopped);
    assert_int_equal(filter.released, 0); /* "aab" begins before "ab" */
    stop_free(&filter);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_a_full_search_finds), cmocka_unit_test(runs_into_its_own_end),
        cmocka_unit_test(length_follows_success),
#ifdef SHU_FAULTS
        cmocka_unit_test(lookup_allocation_failures),
#endif
        cmocka_unit_test(stops_wherever_tokens_are_cut),  cmocka_unit_test(holds_back_no_more_than_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
