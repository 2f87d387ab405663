/* State files: bit-identical continuation, and one clear error for everything else. */
#include "infer/tiny_engine.h"

enum { T = 100, MORE = 40, HEADER = 120, DIGEST = 64 };

static struct engine *engine_with(const char *arch, uint64_t seed, const struct engine_options *options) {
    char path[TINY_PATH_BYTES];
    struct tiny_spec spec;
    tiny_defaults(arch, &spec);
    spec.seed = seed;
    spec.dtype = DT_Q8_0;
    tiny_path(path, ".gguf");
    MUST(tiny_write(path, &spec, &must));
    struct engine *engine = tiny_engine(path, options);
    unlink(path);
    return engine;
}

static int sequence_with(struct engine *engine, const int32_t *tokens, int count) {
    int s = tiny_sequence(engine);
    struct step_item item = {s, tokens, count, 0};
    MUST(engine_step(engine, &item, 1, &must));
    return s;
}

static const struct engine_options OPTIONS = {.threads = 2, .context = 256, .kv_positions = 1024, .max_sequences = 4};

static void continuation_is_bit_identical(void **state) {
    (void)state;
    static const char *const archs[] = {"llama", "gemma3"};
    for (int a = 0; a < 4; a++) {
        struct engine_options options = OPTIONS;
        options.kv_type = a / 2 ? KV_Q8 : KV_F16;
        struct engine *one = engine_with(archs[a % 2], 1, &options);
        options.max_sequences = 2;
        options.threads = 1;
        struct engine *two = engine_with(archs[a % 2], 1, &options); /* another engine over the same model */
        int vocab = engine_config(one)->vocab;
        int32_t tokens[T + MORE];
        random_tokens(tokens, T + MORE, vocab, 2);
        char path[TINY_PATH_BYTES], twin[TINY_PATH_BYTES];
        tiny_path(path, ".state");
        tiny_path(twin, ".state");
        int saved = sequence_with(one, tokens, T);
        MUST(sequence_save(one, saved, path, &must));
        int restored = sequence_with(two, tokens + 10, 90); /* what it held before goes */
        MUST(sequence_restore(two, restored, path, &must));
        assert_int_equal(sequence_length(two, restored), T);
        assert_memory_equal(sequence_tokens(two, restored), tokens, T * sizeof *tokens);
        MUST(sequence_save(two, restored, twin, &must)); /* the same state gives the same bytes */
        struct buf first = {0}, second = {0};
        MUST(file_read(path, 1 << 28, &first, &must));
        MUST(file_read(twin, 1 << 28, &second, &must));
        assert_int_equal(first.len, second.len);
        assert_memory_equal(first.data, second.data, first.len);
        for (int i = 0; i < MORE; i++) {
            struct step_item x = {saved, tokens + T + i, 1, 1}, y = {restored, tokens + T + i, 1, 1};
            MUST(engine_step(one, &x, 1, &must));
            MUST(engine_step(two, &y, 1, &must));
            assert_memory_equal(engine_logits(one, 0), engine_logits(two, 0), (size_t)vocab * sizeof(float));
        }
        buf_free(&first);
        buf_free(&second);
        unlink(path);
        unlink(twin);
        engine_close(one);
        engine_close(two);
    }
}

/* Nothing that an earlier owner of a page left behind reaches the file. */
static void files_hold_nothing_of_others(void **state) {
    (void)state;
    struct engine *engine = engine_with("qwen2", 1, &OPTIONS);
    int32_t tokens[T], secret[T];
    random_tokens(tokens, T, engine_config(engine)->vocab, 2);
    random_tokens(secret, T, engine_config(engine)->vocab, 3);
    char clean[TINY_PATH_BYTES], reused[TINY_PATH_BYTES];
    tiny_path(clean, ".state");
    tiny_path(reused, ".state");
    int s = sequence_with(engine, tokens, 70);
    MUST(sequence_save(engine, s, clean, &must));
    sequence_free(engine, s);
    s = sequence_with(engine, secret, T);
    sequence_free(engine, s);
    s = sequence_with(engine, tokens, 70);
    MUST(sequence_save(engine, s, reused, &must));
    struct buf a = {0}, b = {0};
    MUST(file_read(clean, 1 << 28, &a, &must));
    MUST(file_read(reused, 1 << 28, &b, &must));
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    buf_free(&a);
    buf_free(&b);
    unlink(clean);
    unlink(reused);
    engine_close(engine);
}

/* ------------------------------------------------------------- hostile files */

static void write_file(const char *path, const char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* Makes the digest right again, so that what lies behind it is tested too. */
static void reseal(char *data, size_t bytes) {
    struct sha256 hash;
    char hex[65];
    sha256_init(&hash);
    sha256_update(&hash, data, bytes - DIGEST);
    sha256_hex(&hash, hex);
    memcpy(data + bytes - DIGEST, hex, DIGEST);
}

static int try_restore(struct engine *engine, int sequence, const char *path, const char *data, size_t bytes) {
    struct shu_error err = {0};
    write_file(path, data, bytes);
    int status = sequence_restore(engine, sequence, path, &err);
    if (status) {
        assert_int_equal(err.code, status);
        assert_true(err.message[0] != 0);
        assert_int_equal(sequence_length(engine, sequence), 5); /* as it was */
    }
    return status;
}

static void damaged_files_are_refused(void **state) {
    (void)state;
    struct engine *engine = engine_with("qwen2", 1, &OPTIONS);
    int32_t tokens[T];
    random_tokens(tokens, T, engine_config(engine)->vocab, 2);
    char path[TINY_PATH_BYTES];
    tiny_path(path, ".state");
    int source = sequence_with(engine, tokens, T), target = sequence_with(engine, tokens + 3, 5);
    MUST(sequence_save(engine, source, path, &must));
    struct buf good = {0};
    MUST(file_read(path, 1 << 28, &good, &must));
    char *bad = malloc(good.len + 1);
    memcpy(bad, good.data, good.len);
    bad[good.len] = 0;

    for (size_t cut = 0; cut < good.len; cut += cut < 200 ? 9 : 1997)
        assert_int_not_equal(try_restore(engine, target, path, good.data, cut), SHU_OK);
    assert_int_not_equal(try_restore(engine, target, path, bad, good.len + 1), SHU_OK);
    for (size_t at = 0; at < good.len; at += at < 200 ? 5 : 1499) { /* a flipped bit anywhere */
        bad[at] ^= 0x10;
        assert_int_not_equal(try_restore(engine, target, path, bad, good.len), SHU_OK);
        bad[at] ^= 0x10;
    }
    for (size_t at = 0; at < HEADER; at += 2) { /* and in the header under a digest that fits */
        bad[at] ^= 0x20;
        reseal(bad, good.len);
        assert_int_not_equal(try_restore(engine, target, path, bad, good.len), SHU_OK);
        bad[at] ^= 0x20;
    }
    static const int32_t outside[] = {-1, 1 << 30};
    for (int i = 0; i < 2; i++) {
        memcpy(bad + HEADER + 8, &outside[i], 4);
        reseal(bad, good.len);
        assert_int_equal(try_restore(engine, target, path, bad, good.len), SHU_E_FORMAT);
    }
    memcpy(bad, good.data, good.len);
    memset(bad + HEADER + 4 * T, 0xFF, 4000); /* NaN in the cache: numbers, not structure */
    reseal(bad, good.len);
    assert_int_equal(try_restore(engine, target, path, bad, good.len), SHU_OK);
    struct generate_options options;
    struct generate_result result;
    struct shu_error err = {0};
    generate_defaults(&options);
    int status = generate(engine, target, tokens, T, &options, NULL, NULL, &result, &err);
    assert_int_equal(status, SHU_E_RANGE);
    assert_non_null(strstr(err.message, "NaN"));

    sequence_truncate(engine, target, 5, NULL);
    assert_int_equal(try_restore(engine, target, path, good.data, good.len), SHU_OK); /* control: the good one works */
    assert_int_equal(sequence_length(engine, target), T);
    free(bad);
    buf_free(&good);
    unlink(path);
    engine_close(engine);
}

static void foreign_files_are_refused(void **state) {
    (void)state;
    struct engine *engine = engine_with("qwen2", 1, &OPTIONS);
    int32_t tokens[T];
    random_tokens(tokens, T, engine_config(engine)->vocab, 2);
    char path[TINY_PATH_BYTES];
    tiny_path(path, ".state");
    int s = sequence_with(engine, tokens, T);
    MUST(sequence_save(engine, s, path, &must));
    struct engine_options q8 = OPTIONS, small = OPTIONS, full = OPTIONS;
    q8.kv_type = KV_Q8;
    small.context = 64;
    full.kv_positions = 64;
    const struct {
        const char *arch;
        uint64_t seed;
        const struct engine_options *options;
        int code;
        const char *words;
    } cases[] = {
        {"qwen2", 2, &OPTIONS, SHU_E_UNSUPPORTED, "another model"},
        {"llama", 1, &OPTIONS, SHU_E_UNSUPPORTED, "another model"},
        {"qwen2", 1, &q8, SHU_E_UNSUPPORTED, "cache type"},
        {"qwen2", 1, &small, SHU_E_RANGE, "context"},
        {"qwen2", 1, &full, SHU_E_RANGE, "pages"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine *other = engine_with(cases[i].arch, cases[i].seed, cases[i].options);
        int t = tiny_sequence(other);
        struct shu_error err = {0};
        int status = sequence_restore(other, t, path, &err);
        if (status != cases[i].code || !strstr(err.message, cases[i].words)) fail_msg("case %zu: %s", i, err.message);
        assert_int_equal(sequence_length(other, t), 0);
        engine_close(other);
    }
    struct shu_error err = {0};
    assert_int_equal(sequence_restore(engine, 99, path, &err), SHU_E_USAGE);
    assert_int_equal(sequence_save(engine, 99, path, &err), SHU_E_USAGE);
    int empty = tiny_sequence(engine);
    assert_int_equal(sequence_save(engine, empty, path, &err), SHU_E_USAGE);
    unlink(path);
    assert_int_not_equal(sequence_restore(engine, s, path, &err), SHU_OK); /* no such file */
    assert_int_not_equal(sequence_save(engine, s, "/nonexistent/folder/x", &err), SHU_OK);
    engine_close(engine);
}

#ifdef SHU_FAULTS
static void failed_writes_leave_no_half_file(void **state) {
    (void)state;
    struct engine *engine = engine_with("qwen2", 1, &OPTIONS);
    int32_t tokens[T];
    random_tokens(tokens, T, engine_config(engine)->vocab, 2);
    char path[TINY_PATH_BYTES];
    tiny_path(path, ".state");
    int s = sequence_with(engine, tokens, T), failures = 0;
    static const enum fault_kind kinds[] = {FAULT_WRITE, FAULT_ALLOC};
    for (size_t f = 0; f < 2; f++) {
        for (long k = 1;; k++) {
            struct shu_error err = {0};
            fault_arm(kinds[f], k);
            int status = sequence_save(engine, s, path, &err);
            bool fired = fault_count(kinds[f]) >= k;
            fault_arm(kinds[f], 0);
            if (!fired) {
                assert_int_equal(status, SHU_OK);
                unlink(path);
                break;
            }
            assert_int_not_equal(status, SHU_OK);
            /* whole or not at all: a failure after the rename leaves a file that is complete */
            if (file_exists(path)) MUST(sequence_restore(engine, s, path, &must));
            unlink(path);
            failures++;
        }
    }
    assert_true(failures > 3);
    engine_close(engine);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(continuation_is_bit_identical),    cmocka_unit_test(files_hold_nothing_of_others),
        cmocka_unit_test(damaged_files_are_refused),        cmocka_unit_test(foreign_files_are_refused),
#ifdef SHU_FAULTS
        cmocka_unit_test(failed_writes_leave_no_half_file),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
