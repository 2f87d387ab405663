/* One row is one row: whatever else a step holds, however a prompt is cut, on how many threads it runs,
 * a sequence's logits are the same bits. On tiny random models of every architecture. */
#include "infer/tiny_engine.h"

enum { T = 140 }; /* over two cache pages and over every window of the tiny models */

struct subject {
    const char *arch;
    enum dtype dtype;
    int width; /* 0 = tiny default */
    enum kv_type kv;
    const char *isa;
};

struct bench {
    char path[TINY_PATH_BYTES];
    struct subject subject;
    int vocab;
    int32_t tokens[T];
    float *truth; /* [T, V]: one step, one thread, alone */
};

static struct engine *open_for(const struct bench *bench, int threads, int sequences) {
    struct engine_options options = {.threads = threads,
                                     .context = 256,
                                     .kv_positions = 256 * sequences,
                                     .kv_type = bench->subject.kv,
                                     .max_sequences = sequences,
                                     .max_rows = 512,
                                     .max_logits = 256,
                                     .isa = bench->subject.isa};
    return tiny_engine(bench->path, &options);
}

static void check_row(const struct bench *bench, struct engine *engine, int row, int position, const char *how) {
    const float *got = engine_logits(engine, row), *want = bench->truth + (size_t)position * (size_t)bench->vocab;
    assert_non_null(got);
    if (memcmp(got, want, (size_t)bench->vocab * sizeof *got) == 0) return;
    int at = 0;
    while (memcmp(&got[at], &want[at], sizeof *got) == 0) at++;
    fail_msg("%s %s kv %d %s: %s: position %d, token %d: %.9g instead of %.9g", bench->subject.arch,
             dtype_table[bench->subject.dtype].name, bench->subject.kv,
             bench->subject.isa ? bench->subject.isa : "best", how, position, at, (double)got[at], (double)want[at]);
}

static void bench_open(struct bench *bench, const struct subject *subject) {
    bench->subject = *subject;
    tiny_model(bench->path, subject->arch, subject->dtype, subject->width);
    struct engine *engine = open_for(bench, 1, 1);
    bench->vocab = engine_config(engine)->vocab;
    bench->truth = malloc((size_t)T * (size_t)bench->vocab * sizeof *bench->truth);
    random_tokens(bench->tokens, T, bench->vocab, 5);
    int s = tiny_sequence(engine);
    struct step_item item = {s, bench->tokens, T, T};
    MUST(engine_step(engine, &item, 1, &must));
    int distinct = 0;
    for (int t = 0; t < T; t++) {
        float *row = bench->truth + (size_t)t * (size_t)bench->vocab;
        memcpy(row, engine_logits(engine, t), (size_t)bench->vocab * sizeof *row);
        for (int v = 0; v < bench->vocab; v++) assert_true(row[v] - row[v] == 0); /* finite */
        distinct += t > 0 && memcmp(row, row - bench->vocab, (size_t)bench->vocab * sizeof *row) != 0;
    }
    assert_int_equal(distinct, T - 1); /* control: rows differ, so equality means something */
    engine_close(engine);
}

static void bench_close(struct bench *bench) {
    unlink(bench->path);
    free(bench->truth);
}

/* Feeds the tokens in pieces of random length and compares every logits row. */
static void in_pieces(const struct bench *bench, int threads, int longest, uint64_t seed, const char *how) {
    struct engine *engine = open_for(bench, threads, 1);
    struct rng rng;
    rng_seed(&rng, seed);
    int s = tiny_sequence(engine);
    for (int at = 0; at < T;) {
        int count = 1 + (int)(rng_next(&rng) % (uint64_t)longest);
        if (count > T - at) count = T - at;
        int logits = (int)(rng_next(&rng) % (uint64_t)(count + 1));
        struct step_item item = {s, bench->tokens + at, count, logits};
        MUST(engine_step(engine, &item, 1, &must));
        at += count;
        for (int i = 0; i < logits; i++) check_row(bench, engine, i, at - logits + i, how);
        assert_null(engine_logits(engine, logits));
    }
    assert_int_equal(sequence_length(engine, s), T);
    assert_memory_equal(sequence_tokens(engine, s), bench->tokens, sizeof bench->tokens);
    engine_close(engine);
}

/* Eight sequences of different content and pace; the one under test is fed in pieces among them. */
static void in_a_batch(const struct bench *bench, int threads) {
    enum { OTHERS = 8 };
    struct engine *engine = open_for(bench, threads, OTHERS);
    struct rng rng;
    rng_seed(&rng, 11);
    int32_t noise[OTHERS][T];
    int id[OTHERS], fed[OTHERS] = {0};
    for (int s = 0; s < OTHERS; s++) {
        id[s] = tiny_sequence(engine);
        random_tokens(noise[s], T, bench->vocab, 100 + (uint64_t)s);
    }
    const int subject = 3;
    while (fed[subject] < T) {
        struct step_item items[OTHERS];
        int count = 0, logits = 0, first = 0, mine = -1, turn = fed[subject];
        for (int k = 0; k < OTHERS; k++) {
            int s = (k + turn) % OTHERS; /* other neighbours, another place each time */
            int length = 1 + (int)(rng_next(&rng) % 9);
            if (length > T - fed[s]) length = T - fed[s];
            if (length == 0) continue;
            if (s == subject) mine = count, first = logits;
            items[count] =
                (struct step_item){id[s], (s == subject ? bench->tokens : noise[s]) + fed[s], length, length};
            logits += length;
            fed[s] += length;
            count++;
        }
        MUST(engine_step(engine, items, count, &must));
        for (int i = 0; i < items[mine].count; i++)
            check_row(bench, engine, first + i, fed[subject] - items[mine].count + i, "in a batch of 8");
    }
    engine_close(engine);
}

static void step_one(const struct bench *bench, struct engine *engine, int sequence, int at, const char *how) {
    struct step_item item = {sequence, bench->tokens + at, 1, 1};
    MUST(engine_step(engine, &item, 1, &must));
    check_row(bench, engine, 0, at, how);
}

/* Fork in the middle of a page; the twin goes astray in the shared page; both come back to the text. */
static void after_fork_and_truncate(const struct bench *bench, int threads) {
    struct engine *engine = open_for(bench, threads, 2);
    int a = tiny_sequence(engine), b;
    int32_t wrong[40];
    random_tokens(wrong, 40, bench->vocab, 77);
    struct step_item item = {a, bench->tokens, 90, 0};
    MUST(engine_step(engine, &item, 1, &must));
    MUST(sequence_fork(engine, a, &b, &must));
    assert_int_equal(sequence_length(engine, b), 90);
    struct step_item astray = {b, wrong, 40, 1};
    MUST(engine_step(engine, &astray, 1, &must));
    for (int at = 90; at < 100; at++) step_one(bench, engine, a, at, "parent of a fork");
    MUST(sequence_truncate(engine, b, 85, &must));
    for (int at = 85; at < T; at++) step_one(bench, engine, b, at, "truncated fork");
    sequence_free(engine, b);
    for (int at = 100; at < T; at++) step_one(bench, engine, a, at, "survivor of a fork");
    engine_close(engine);
}

/* quick: the cuts and neighbours that would show a dependence first. */
static void subject_is_one_row(const struct subject *subject, bool quick) {
    struct bench bench;
    bench_open(&bench, subject);
    in_pieces(&bench, 2, 9, 3, "in small pieces, 2 threads");
    in_a_batch(&bench, 2);
    if (!quick) {
        in_pieces(&bench, 1, 1, 2, "one by one, 1 thread");
        in_pieces(&bench, 2, 1, 2, "one by one, 2 threads");
        in_pieces(&bench, 3, 40, 4, "in pieces, 3 threads");
        in_a_batch(&bench, 1);
        after_fork_and_truncate(&bench, 2);
    }
    bench_close(&bench);
}

static void every_architecture(void **state) {
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++) {
        for (int kv = KV_F16; kv <= KV_Q8; kv++) {
            subject_is_one_row(&(struct subject){archs[a], DT_F32, 0, (enum kv_type)kv, NULL}, kv == KV_Q8);
            subject_is_one_row(&(struct subject){archs[a], DT_Q8_0, 0, (enum kv_type)kv, NULL}, kv == KV_F16);
        }
    }
}

static void every_written_type(void **state) {
    (void)state;
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_Q4_0, DT_Q5_0, DT_Q4_K, DT_Q5_K, DT_Q6_K};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        subject_is_one_row(&(struct subject){"qwen2", dtypes[d], 256, KV_F16, NULL}, true);
}

static void every_instruction_set(void **state) {
    (void)state;
    static const char *const sets[] = {"scalar", "avx2", "avx512"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        const struct kernels *kernels;
        if (kernels_select(sets[i], &kernels, NULL)) continue; /* not on this machine */
        subject_is_one_row(&(struct subject){"qwen2", DT_Q8_0, 0, KV_F16, sets[i]}, true);
        subject_is_one_row(&(struct subject){"gemma3", DT_Q4_0, 0, KV_Q8, sets[i]}, true);
    }
}

/* ------------------------------------------------------------------ refusals */

static void expect(int got, int want, const struct shu_error *err, const char *words) {
    if (got != want || !strstr(err->message, words))
        fail_msg("expected code %d with \"%s\", found %d: %s", want, words, got, err->message);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    tiny_model(path, "qwen2", DT_F32, 0);
    static const struct {
        struct engine_options options;
        int code;
        const char *words;
    } cases[] = {
        {{.context = 100000}, SHU_E_RANGE, "trained for 1 to 512"},
        {{.context = -1}, SHU_E_RANGE, "context"},
        {{.max_rows = -1}, SHU_E_RANGE, "max_rows"},
        {{.max_rows = 1 << 30}, SHU_E_RANGE, "max_rows"},
        {{.max_logits = -3}, SHU_E_RANGE, "max_logits"},
        {{.max_sequences = 1 << 20}, SHU_E_RANGE, "max_sequences"},
        {{.kv_positions = -1}, SHU_E_RANGE, "kv_positions"},
        {{.kv_type = (enum kv_type)7}, SHU_E_USAGE, "f16 or q8"},
        {{.isa = "mmx"}, SHU_E_USAGE, "mmx"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine *engine = NULL;
        struct shu_error err = {0};
        expect(engine_open(path, &cases[i].options, &engine, &err), cases[i].code, &err, cases[i].words);
        assert_null(engine);
    }
    unlink(path);
    struct engine *engine = NULL;
    struct shu_error err = {0};
    assert_int_not_equal(engine_open(path, NULL, &engine, &err), SHU_OK);
    assert_non_null(err.message[0] ? err.message : NULL);
}

static void bad_steps_change_nothing(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    tiny_model(path, "qwen2", DT_F32, 0);
    struct engine_options options = {
        .threads = 1, .context = 100, .kv_positions = 192, .max_sequences = 3, .max_rows = 90, .max_logits = 4};
    struct engine *engine = tiny_engine(path, &options);
    int a = tiny_sequence(engine), b = tiny_sequence(engine), c = tiny_sequence(engine), d;
    int32_t tokens[200] = {0};
    int32_t bad[] = {0, 1 << 20}, negative[] = {-1};
    struct step_item fill = {a, tokens, 80, 1};
    MUST(engine_step(engine, &fill, 1, &must));
    struct shu_error err = {0};
    const struct {
        struct step_item items[2];
        int count, code;
        const char *words;
    } cases[] = {
        {{{a, bad, 2, 1}}, 1, SHU_E_USAGE, "token 1"},
        {{{a, negative, 1, 1}}, 1, SHU_E_USAGE, "token 0"},
        {{{9, tokens, 1, 1}}, 1, SHU_E_USAGE, "sequence 9"},
        {{{-1, tokens, 1, 1}}, 1, SHU_E_USAGE, "sequence -1"},
        {{{a, tokens, 0, 0}}, 1, SHU_E_USAGE, "1 or more tokens"},
        {{{a, tokens, 1, 2}}, 1, SHU_E_USAGE, "logits"},
        {{{a, tokens, 1, 1}, {a, tokens, 1, 1}}, 2, SHU_E_USAGE, "twice"},
        {{{a, tokens, 21, 0}}, 1, SHU_E_RANGE, "context of 100"},
        {{{b, tokens, 91, 0}}, 1, SHU_E_RANGE, "1 to 90 rows"},
        {{{b, tokens, 45, 0}, {c, tokens, 46, 0}}, 2, SHU_E_RANGE, "rows"},
        {{{b, tokens, 5, 5}}, 1, SHU_E_RANGE, "logits"},
        {{{b, tokens, 65, 0}}, 1, SHU_E_RANGE, "cache is full"},
        {{{b, tokens, 10, 0}, {c, bad, 2, 0}}, 2, SHU_E_USAGE, "token 1"},
        {{{0}}, 0, SHU_E_RANGE, "rows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        expect(engine_step(engine, cases[i].items, cases[i].count, &err), cases[i].code, &err, cases[i].words);
        assert_int_equal(sequence_length(engine, a), 80);
        assert_int_equal(sequence_length(engine, b), 0);
        assert_int_equal(sequence_length(engine, c), 0);
        assert_int_equal(engine_room(engine, b), 64);
        assert_null(engine_logits(engine, 0));
    }
    assert_int_equal(sequence_new(engine, &d, &err), SHU_E_RANGE);
    assert_int_equal(sequence_fork(engine, a, &d, &err), SHU_E_RANGE);
    assert_int_equal(sequence_truncate(engine, a, 81, &err), SHU_E_RANGE);
    assert_int_equal(sequence_truncate(engine, a, -1, &err), SHU_E_RANGE);
    sequence_free(engine, b);
    assert_int_equal(sequence_truncate(engine, b, 0, &err), SHU_E_USAGE);
    assert_int_equal(sequence_fork(engine, b, &d, &err), SHU_E_USAGE);
    assert_null(sequence_tokens(engine, b));
    sequence_free(engine, 55);
    MUST(sequence_new(engine, &d, &must));
    assert_int_equal(d, b); /* numbers are reused */
    engine_close(engine);
    engine_close(NULL);
    unlink(path);
}

/* A cache of hundreds of megabytes costs memory only where positions are used. */
static void the_cache_becomes_resident_with_use(void **state) {
    (void)state;
    if (SANITIZED) skip();
    char path[TINY_PATH_BYTES];
    tiny_model(path, "qwen2", DT_F32, 0);
    struct engine_options options = {.threads = 1, .kv_positions = 4 << 20, .max_sequences = 2};
    uint64_t before = rss_bytes();
    struct engine *engine = tiny_engine(path, &options);
    struct engine_stats stats;
    engine_stats(engine, &stats);
    assert_true(stats.kv_bytes > (uint64_t)500 << 20);
    int32_t tokens[500];
    random_tokens(tokens, 500, engine_config(engine)->vocab, 1);
    struct step_item item = {tiny_sequence(engine), tokens, 500, 1};
    MUST(engine_step(engine, &item, 1, &must));
    uint64_t grown = rss_bytes() - before;
    print_message("cache %llu MB, resident memory grew by %llu MB\n", (unsigned long long)stats.kv_bytes >> 20,
                  (unsigned long long)grown >> 20);
    assert_true(grown < (uint64_t)100 << 20);
    engine_close(engine);
    unlink(path);
}

#ifdef SHU_FAULTS
static void a_step_allocates_nothing(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    tiny_model(path, "gemma3", DT_Q8_0, 0);
    struct engine_options options = {.threads = 2, .context = 256, .kv_positions = 1024, .max_sequences = 2};
    struct engine *engine = tiny_engine(path, &options);
    int a = tiny_sequence(engine), b;
    int32_t tokens[100];
    random_tokens(tokens, 100, engine_config(engine)->vocab, 1);
    fault_arm(FAULT_ALLOC, 1 << 30);
    struct step_item prefill = {a, tokens, 100, 1};
    MUST(engine_step(engine, &prefill, 1, &must));
    MUST(sequence_fork(engine, a, &b, &must)); /* the copy of a page included */
    for (int i = 0; i < 50; i++) {
        struct step_item items[] = {{a, tokens + i, 1, 1}, {b, tokens + i, 2, 2}};
        MUST(engine_step(engine, items, 2, &must));
    }
    assert_int_equal(fault_count(FAULT_ALLOC), 0);
    fault_arm(FAULT_ALLOC, 0);
    engine_close(engine);
    unlink(path);
}

/* The k-th allocation fails, for every k that opening reaches; the leak check of the sanitizer build
 * watches that nothing stays behind. Reads likewise. */
static void every_failed_allocation_is_a_clean_error(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    tiny_model(path, "qwen2", DT_Q8_0, 0);
    static const enum fault_kind kinds[] = {FAULT_ALLOC, FAULT_READ};
    for (size_t f = 0; f < sizeof kinds / sizeof *kinds; f++) {
        int failures = 0;
        for (long k = 1;; k++) {
            struct engine_options options = {.threads = 2, .context = 64};
            struct engine *engine = NULL;
            struct shu_error err = {0};
            fault_arm(kinds[f], k);
            int status = engine_open(path, &options, &engine, &err);
            bool fired = fault_count(kinds[f]) >= k;
            fault_arm(kinds[f], 0);
            if (status) {
                assert_true(fired);
                assert_null(engine);
                assert_int_equal(err.code, status);
                assert_true(err.message[0] != 0);
                failures++;
            }
            engine_close(engine);
            if (!fired) break;
        }
        print_message("kind %d: %d failures, all clean\n", (int)kinds[f], failures);
        assert_true(kinds[f] != FAULT_ALLOC || failures > 20);
    }
    unlink(path);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture),       cmocka_unit_test(every_written_type),
        cmocka_unit_test(every_instruction_set),    cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(bad_steps_change_nothing), cmocka_unit_test(the_cache_becomes_resident_with_use),
#ifdef SHU_FAULTS
        cmocka_unit_test(a_step_allocates_nothing), cmocka_unit_test(every_failed_allocation_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
