/* GGUF: what is written comes back; what is malformed gives one error and no
 * access outside the bytes (each parse gets an exactly sized block, so that
 * AddressSanitizer sees the first byte too many). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/tiny.h"
#include "weights/model.h"

/* ---------------------------------------------------------------- helpers */

static int parse_copy(const uint8_t *data, size_t bytes, struct shu_error *err, int64_t *tensors) {
    struct model model = {0};
    uint8_t *exact = malloc(bytes ? bytes : 1);
    assert_non_null(exact);
    if (bytes) memcpy(exact, data, bytes);
    arena_init(&model.arena, (size_t)1 << 26);
    int rc = gguf_parse(&model, exact, bytes, err);
    if (!rc) {
        json_t *json = meta_json(&model, 4); /* walks every value */
        assert_non_null(json);
        json_decref(json);
        for (uint32_t i = 0; i < model.tensor_count; i++) {
            const uint8_t *at = model.tensors[i].view.data;
            size_t size = tensor_bytes(&model.tensors[i].view);
            assert_true(at >= exact && at + size <= exact + bytes);
        }
        if (tensors) *tensors = model.tensor_count;
    }
    arena_free(&model.arena);
    free(exact);
    return rc;
}

static void assert_one_clean_error(int rc, const struct shu_error *err) {
    assert_int_equal(rc, err->code);
    assert_true(strlen(err->message) > 10);
    assert_null(strchr(err->message, '\n'));
}

/* A GGUF put together by hand, so that each rule can be broken alone. */
static void put(struct buf *buf, const void *bytes, size_t count) {
    assert_int_equal(buf_append(buf, bytes, count), 0);
}
static void put_u32(struct buf *buf, uint32_t value) {
    put(buf, &value, sizeof value);
}
static void put_u64(struct buf *buf, uint64_t value) {
    put(buf, &value, sizeof value);
}
static void put_string(struct buf *buf, const char *text) {
    put_u64(buf, strlen(text));
    put(buf, text, strlen(text));
}
static void put_header(struct buf *buf, uint32_t version, uint64_t tensors, uint64_t pairs) {
    put(buf, "GGUF", 4);
    put_u32(buf, version);
    put_u64(buf, tensors);
    put_u64(buf, pairs);
}
static void put_tensor(struct buf *buf, const char *name, uint64_t columns, uint32_t type, uint64_t offset) {
    put_string(buf, name);
    put_u32(buf, 1);
    put_u64(buf, columns);
    put_u32(buf, type);
    put_u64(buf, offset);
}
static void put_data(struct buf *buf, size_t bytes) {
    while (buf->len % 32) put(buf, "", 1);
    for (size_t i = 0; i < bytes; i++) put(buf, "\x3c", 1);
}

static void expect_refused(struct buf *buf, int code, const char *words) {
    struct shu_error err = {0};
    int rc = parse_copy((const uint8_t *)buf->data, buf->len, &err, NULL);
    assert_int_equal(rc, code);
    assert_one_clean_error(rc, &err);
    if (!strstr(err.message, words)) fail_msg("\"%s\" does not mention \"%s\"", err.message, words);
    buf_free(buf);
}

static void expect_read(struct buf *buf, int64_t tensors) {
    struct shu_error err = {0};
    int64_t found = -1;
    int rc = parse_copy((const uint8_t *)buf->data, buf->len, &err, &found);
    if (rc) fail_msg("%s", err.message);
    assert_int_equal(found, tensors);
    buf_free(buf);
}

static void tiny_bytes(struct buf *out) {
    char path[TINY_PATH_BYTES];
    struct shu_error err = {0};
    struct tiny_spec spec;
    tiny_defaults("qwen2", &spec);
    spec.layers = 1;
    spec.width = 32;
    spec.ffn = 32;
    spec.heads = spec.kv_heads = 1;
    spec.head_dim = 32;
    spec.dtype = DT_F16;
    spec.tied = true;
    tiny_path(path, ".gguf");
    if (tiny_write(path, &spec, &err) || file_read(path, 1 << 20, out, &err)) fail_msg("%s", err.message);
    unlink(path);
}

/* ------------------------------------------------------------- round trip */

static void test_round_trip(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct shu_error err = {0};
    struct gguf_writer *writer = NULL;
    struct model *model = NULL;
    const int64_t shape[4] = {3, 2, 1, 1}, vector[4] = {5, 1, 1, 1};
    const float values[6] = {1, 2, 3, 4, 5, 6};
    const int32_t ints[3] = {-7, 0, 9};
    const struct span words[2] = {{"a", 1}, {"b\0c", 3}};
    tiny_path(path, ".gguf");
    assert_int_equal(gguf_writer_open(path, &writer, &err), 0);
    assert_int_equal(gguf_writer_set_int(writer, "n", 1), 0);
    assert_int_equal(gguf_writer_set_int(writer, "n", 4000000000u), 0); /* replaces */
    assert_int_equal(gguf_writer_set_float(writer, "f", 0.5f), 0);
    assert_int_equal(gguf_writer_set_bool(writer, "b", true), 0);
    assert_int_equal(gguf_writer_set_string(writer, "s", "\xE8\x9C\x80"), 0);
    assert_int_equal(gguf_writer_set_ints(writer, "ints", ints, 3), 0);
    assert_int_equal(gguf_writer_set_floats(writer, "floats", values, 6), 0);
    assert_int_equal(gguf_writer_set_strings(writer, "words", words, 2), 0);
    assert_int_equal(gguf_writer_declare(writer, "x", DT_F32, 2, shape), 0);
    assert_int_equal(gguf_writer_declare(writer, "x", DT_F32, 2, shape), SHU_E_USAGE);
    assert_int_equal(gguf_writer_declare(writer, "y", DT_F32, 1, vector), 0);
    assert_int_equal(gguf_writer_declare(writer, "odd", DT_Q4_0, 1, vector), SHU_E_USAGE);
    assert_int_equal(gguf_writer_data(writer, values, 8, &err), 0);
    assert_int_equal(gguf_writer_data(writer, values + 2, 16, &err), 0);
    assert_int_equal(gguf_writer_data(writer, values, 24, &err), SHU_E_USAGE); /* y holds 20 */
    assert_int_equal(gguf_writer_set_int(writer, "late", 1), SHU_E_USAGE);
    assert_int_equal(gguf_writer_data(writer, values, 20, &err), 0);
    if (gguf_writer_commit(writer, &err)) fail_msg("%s", err.message);

    if (model_open(path, &model, &err)) fail_msg("%s", err.message);
    int64_t n = 0;
    double f = 0;
    bool b = false;
    const char *s = NULL;
    size_t bytes = 0;
    float floats[6];
    int32_t back[3];
    struct span spans[2];
    assert_true(meta_int(model, "n", &n) && n == 4000000000);
    assert_true(meta_float(model, "f", &f) && f == 0.5);
    assert_true(meta_bool(model, "b", &b) && b);
    assert_true(meta_string(model, "s", &s, &bytes) && bytes == 3 && strcmp(s, "\xE8\x9C\x80") == 0);
    assert_false(meta_int(model, "s", &n) || meta_int(model, "missing", &n) || meta_string(model, "n", &s, NULL));
    assert_int_equal(meta_array_count(model, "words"), 2);
    assert_int_equal(meta_array_count(model, "n"), -1);
    assert_true(meta_array_ints(model, "ints", back, 3));
    assert_memory_equal(back, ints, sizeof ints);
    assert_true(meta_array_floats(model, "floats", floats, 6));
    assert_memory_equal(floats, values, sizeof values);
    assert_true(meta_array_floats(model, "ints", floats, 3) && floats[0] == -7.0f);
    assert_false(meta_array_ints(model, "ints", back, 4) || meta_array_ints(model, "floats", back, 3));
    assert_true(meta_array_spans(model, "words", spans, 2));
    assert_int_equal(spans[1].bytes, 3);
    assert_memory_equal(spans[1].text, "b\0c", 3);
    assert_int_equal(model_tensor_count(model), 2);
    const struct model_tensor *x = model_tensor_find(model, "x"), *y = model_tensor_find(model, "y");
    assert_non_null(x);
    assert_non_null(y);
    assert_null(model_tensor_find(model, "z"));
    assert_int_equal(x->view.shape[0], 3);
    assert_int_equal(x->view.shape[1], 2);
    assert_memory_equal(x->view.data, values, sizeof values);
    model_tensor_release(model, x);
    assert_memory_equal(x->view.data, values, sizeof values); /* comes back from the file */
    assert_memory_equal(y->view.data, values, 20);
    model_close(model);
    unlink(path);
}

static void test_incomplete_writer_leaves_nothing(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct shu_error err = {0};
    struct gguf_writer *writer = NULL;
    const int64_t shape[4] = {4, 1, 1, 1};
    tiny_path(path, ".gguf");
    assert_int_equal(gguf_writer_open(path, &writer, &err), 0);
    assert_int_equal(gguf_writer_declare(writer, "x", DT_F32, 1, shape), 0);
    assert_int_equal(gguf_writer_commit(writer, &err), SHU_E_USAGE);
    assert_false(file_exists(path));
    assert_int_equal(gguf_writer_open(path, &writer, &err), 0);
    gguf_writer_abort(writer);
    assert_false(file_exists(path));
    gguf_writer_abort(NULL);
}

/* Every scalar type, as stored by any program, through every getter. */
static void test_scalar_types(void **state) {
    (void)state;
    static const struct {
        uint32_t type;
        const char *bytes;
        size_t count;
        bool is_int;
        int64_t integer;
    } cases[] = {
        {0, "\xff", 1, true, 255},
        {1, "\xff", 1, true, -1},
        {2, "\xff\xff", 2, true, 65535},
        {3, "\xfe\xff", 2, true, -2},
        {4, "\xff\xff\xff\xff", 4, true, 4294967295},
        {5, "\xfd\xff\xff\xff", 4, true, -3},
        {7, "\x01", 1, true, 1},
        {10, "\x05\0\0\0\0\0\0\0", 8, true, 5},
        {10, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, false, 0}, /* exceeds int64 */
        {11, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, true, -1},
        {6, "\0\0\x80\x3f", 4, false, 0},
        {12, "\0\0\0\0\0\0\xf0\x3f", 8, false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf buf = {0};
        struct model model = {0};
        int64_t integer = 77;
        double number = 0;
        put_header(&buf, 3, 0, 1);
        put_string(&buf, "k");
        put_u32(&buf, cases[i].type);
        put(&buf, cases[i].bytes, cases[i].count);
        arena_init(&model.arena, 1 << 20);
        assert_int_equal(gguf_parse(&model, (const uint8_t *)buf.data, buf.len, NULL), 0);
        assert_int_equal(meta_int(&model, "k", &integer), cases[i].is_int);
        assert_int_equal(integer, cases[i].is_int ? cases[i].integer : 77);
        if (cases[i].type == 6 || cases[i].type == 12) assert_true(meta_float(&model, "k", &number) && number == 1.0);
        arena_free(&model.arena);
        buf_free(&buf);
    }
}

/* ---------------------------------------------------------------- hostile */

static void test_headers(void **state) {
    (void)state;
    struct buf buf = {0};
    put(&buf, "GGML", 4);
    expect_refused(&buf, SHU_E_FORMAT, "not a GGUF");
    put_header(&buf, 1, 0, 0);
    expect_refused(&buf, SHU_E_UNSUPPORTED, "version is 1");
    put_header(&buf, 0x03000000, 0, 0);
    expect_refused(&buf, SHU_E_UNSUPPORTED, "little-endian");
    put_header(&buf, 2, 0, 0);
    expect_read(&buf, 0);
    put_header(&buf, 3, 0, UINT64_MAX);
    expect_refused(&buf, SHU_E_FORMAT, "metadata pairs");
    put_header(&buf, 3, UINT64_MAX / 8, 0);
    expect_refused(&buf, SHU_E_FORMAT, "tensors do not fit");
}

static void test_metadata_rules(void **state) {
    (void)state;
    struct buf buf = {0};
    put_header(&buf, 3, 0, 2); /* duplicate key */
    for (int i = 0; i < 2; i++) {
        put_string(&buf, "twice");
        put_u32(&buf, 4);
        put_u32(&buf, 1);
    }
    expect_refused(&buf, SHU_E_FORMAT, "twice");
    put_header(&buf, 3, 0, 1); /* unknown value type */
    put_string(&buf, "key");
    put_u32(&buf, 13);
    put_u64(&buf, 0);
    expect_refused(&buf, SHU_E_FORMAT, "unknown value type 13");
    put_header(&buf, 3, 0, 1); /* array of arrays */
    put_string(&buf, "nest");
    put_u32(&buf, 9);
    put_u32(&buf, 9);
    put_u64(&buf, 1);
    expect_refused(&buf, SHU_E_UNSUPPORTED, "nest");
    put_header(&buf, 3, 0, 1); /* count * size overflows */
    put_string(&buf, "wide");
    put_u32(&buf, 9);
    put_u32(&buf, 10);
    put_u64(&buf, (UINT64_MAX / 8) + 2);
    put_u64(&buf, 0);
    expect_refused(&buf, SHU_E_FORMAT, "wide");
    put_header(&buf, 3, 0, 1); /* a bool of 2 */
    put_string(&buf, "bool");
    put_u32(&buf, 7);
    put(&buf, "\2", 1);
    expect_refused(&buf, SHU_E_FORMAT, "neither 0 nor 1");
    put_header(&buf, 3, 0, 1); /* key with a NUL */
    put_u64(&buf, 3);
    put(&buf, "a\0b", 3);
    put_u32(&buf, 4);
    put_u32(&buf, 4);
    expect_refused(&buf, SHU_E_FORMAT, "NUL");
    put_header(&buf, 3, 1, 1); /* alignment 24 */
    put_string(&buf, "general.alignment");
    put_u32(&buf, 4);
    put_u32(&buf, 24);
    put_tensor(&buf, "t", 8, 0, 0);
    expect_refused(&buf, SHU_E_FORMAT, "alignment is 24");
    put_header(&buf, 3, 0, 1); /* part of a split model */
    put_string(&buf, "split.count");
    put_u32(&buf, 2);
    put(&buf, "\3\0", 2);
    expect_refused(&buf, SHU_E_UNSUPPORTED, "of 3");
}

static void test_tensor_rules(void **state) {
    (void)state;
    struct buf buf = {0};
    put_header(&buf, 3, 2, 0); /* the sound case first: the rules below each break it */
    put_tensor(&buf, "a", 8, 0, 0);
    put_tensor(&buf, "b", 32, 2, 32);
    put_data(&buf, 32 + 18);
    expect_read(&buf, 2);
    put_header(&buf, 3, 2, 0);
    put_tensor(&buf, "same", 8, 0, 0);
    put_tensor(&buf, "same", 8, 0, 32);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "\"same\"");
    put_header(&buf, 3, 2, 0);
    put_tensor(&buf, "long", 16, 0, 0);
    put_tensor(&buf, "over", 8, 0, 32);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "overlap");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "askew", 8, 0, 4);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "askew");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "outside", 8, 0, 64);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "outside");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "wrap", 8, 0, UINT64_MAX - 31);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "wrap");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "strange", 8, 199, 0);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_UNSUPPORTED, "strange");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "ragged", 33, 2, 0);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "multiple of 32");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "none", 0, 0, 0);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "none");
    put_header(&buf, 3, 1, 0);
    put_tensor(&buf, "huge", INT64_MAX, 0, 0);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "huge");
    put_header(&buf, 3, 1, 0); /* 2^32 * 2^32 elements */
    put_string(&buf, "square");
    put_u32(&buf, 2);
    put_u64(&buf, UINT64_C(1) << 32);
    put_u64(&buf, UINT64_C(1) << 32);
    put_u32(&buf, 0);
    put_u64(&buf, 0);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "square");
    put_header(&buf, 3, 1, 0);
    put_string(&buf, "deep");
    put_u32(&buf, 5);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_FORMAT, "5 dimensions");
    put_header(&buf, 3, 1, 0); /* control bytes of a name stay out of the message */
    put_tensor(&buf, "\x1b[31m\n", 8, 199, 0);
    put_data(&buf, 64);
    expect_refused(&buf, SHU_E_UNSUPPORTED, "?[31m?");
}

/* Each cut is an error, except inside the padding after the last tensor. */
static void test_cut_at_every_length(void **state) {
    (void)state;
    struct buf whole = {0};
    int64_t tensors = 0;
    tiny_bytes(&whole);
    assert_int_equal(parse_copy((const uint8_t *)whole.data, whole.len, NULL, &tensors), 0);
    assert_true(tensors > 10);
    size_t accepted = 0;
    for (size_t length = 0; length < whole.len; length++) {
        struct shu_error err = {0};
        int rc = parse_copy((const uint8_t *)whole.data, length, &err, NULL);
        if (rc) {
            assert_int_equal(rc, SHU_E_FORMAT);
            assert_one_clean_error(rc, &err);
        } else {
            accepted++;
        }
    }
    assert_true(accepted < 32);
    buf_free(&whole);
}

/* Every byte of header and tables in turn becomes 0xFF, and every eight bytes a huge size. */
static void test_every_byte_damaged(void **state) {
    (void)state;
    struct buf whole = {0};
    size_t refused = 0;
    tiny_bytes(&whole);
    size_t head = whole.len < 9000 ? whole.len : 9000;
    for (size_t at = 0; at + 8 <= head; at++) {
        for (int kind = 0; kind < 3; kind++) {
            static const uint64_t huge[3] = {UINT64_MAX, UINT64_C(1) << 40, UINT64_C(0x8000000000000000)};
            struct shu_error err = {0};
            char kept[8];
            memcpy(kept, whole.data + at, 8);
            memcpy(whole.data + at, &huge[kind], kind == 0 ? 1 : 8);
            int rc = parse_copy((const uint8_t *)whole.data, whole.len, &err, NULL);
            if (rc) assert_one_clean_error(rc, &err);
            refused += rc != 0;
            memcpy(whole.data + at, kept, 8);
        }
    }
    assert_true(refused > head / 2);
    assert_int_equal(parse_copy((const uint8_t *)whole.data, whole.len, NULL, NULL), 0);
    buf_free(&whole);
}

/* ----------------------------------------------------------------- faults */

static void test_open_survives_faults(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct tiny_spec spec;
    struct model *model = NULL;
    tiny_defaults("llama", &spec);
    tiny_path(path, ".gguf");
    assert_int_equal(tiny_write(path, &spec, NULL), 0);
    for (int kind = FAULT_ALLOC; kind <= FAULT_READ; kind++) {
        fault_arm((enum fault_kind)kind, 1000000);
        assert_int_equal(model_open(path, &model, NULL), 0);
        model_close(model);
        long operations = fault_count((enum fault_kind)kind);
#ifdef SHU_FAULTS
        assert_true(operations > 0);
#endif
        for (long k = 1; k <= operations; k++) {
            struct shu_error err = {0};
            model = NULL;
            fault_arm((enum fault_kind)kind, k);
            int rc = model_open(path, &model, &err);
            fault_arm((enum fault_kind)kind, 0);
            assert_int_not_equal(rc, 0);
            assert_one_clean_error(rc, &err);
            assert_null(model);
        }
    }
    unlink(path);
}

static void test_tokenizer_survives_faults(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct tiny_spec spec;
    struct model *model = NULL;
    struct tokenizer *tokenizer = NULL;
    tiny_defaults("qwen2", &spec);
    tiny_path(path, ".gguf");
    assert_int_equal(tiny_write(path, &spec, NULL), 0);
    assert_int_equal(model_open(path, &model, NULL), 0);
    fault_arm(FAULT_ALLOC, 1000000);
    assert_int_equal(model_tokenizer(model, &tokenizer, NULL), 0);
    assert_int_equal(tokenizer_count(tokenizer), tiny_vocab_count());
    tokenizer_free(tokenizer);
    long operations = fault_count(FAULT_ALLOC);
    for (long k = 1; k <= operations; k++) {
        struct shu_error err = {0};
        fault_arm(FAULT_ALLOC, k);
        int rc = model_tokenizer(model, &tokenizer, &err);
        fault_arm(FAULT_ALLOC, 0);
        assert_int_equal(rc, SHU_E_NOMEM);
        assert_one_clean_error(rc, &err);
    }
    model_close(model);
    unlink(path);
}

static void test_write_survives_faults(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct tiny_spec spec;
    tiny_defaults("gemma3", &spec);
    tiny_path(path, ".gguf");
    for (int kind = FAULT_ALLOC; kind <= FAULT_WRITE; kind += FAULT_WRITE - FAULT_ALLOC) {
        fault_arm((enum fault_kind)kind, 1000000);
        assert_int_equal(tiny_write(path, &spec, NULL), 0);
        long operations = fault_count((enum fault_kind)kind);
        unlink(path);
        for (long k = 1; k <= operations; k += k < 100 ? 1 : 17) {
            struct shu_error err = {0};
            fault_arm((enum fault_kind)kind, k);
            int rc = tiny_write(path, &spec, &err);
            fault_arm((enum fault_kind)kind, 0);
            if (!rc || !file_exists(path)) continue; /* a flush of the folder may fail after the rename */
            struct model *model = NULL;
            assert_int_equal(model_open(path, &model, NULL), 0);
            model_close(model);
            unlink(path);
        }
    }
    unlink(path);
}

static void test_missing(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct model *model = NULL;
    assert_int_equal(model_open("/nonexistent/model.gguf", &model, &err), SHU_E_NOTFOUND);
    assert_non_null(strstr(err.message, "/nonexistent/model.gguf"));
    assert_int_equal(model_open("", &model, &err), SHU_E_USAGE);
    assert_int_equal(model_open("no-such-model-name", &model, &err), SHU_E_NOTFOUND);
    assert_int_equal(model_open("/dev/null", &model, &err), SHU_E_IO);
    model_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_incomplete_writer_leaves_nothing),
        cmocka_unit_test(test_scalar_types),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_metadata_rules),
        cmocka_unit_test(test_tensor_rules),
        cmocka_unit_test(test_cut_at_every_length),
        cmocka_unit_test(test_every_byte_damaged),
        cmocka_unit_test(test_open_survives_faults),
        cmocka_unit_test(test_tokenizer_survives_faults),
        cmocka_unit_test(test_write_survives_faults),
        cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
