/* JSON and YAML bridges: values, refusals, and errors that name the place. */
#include "check.h"

static json_t *json_of(const char *text) {
    json_t *tree = NULL;
    struct shu_error err = {0};
    assert_ok(json_parse(text, strlen(text), "t.json", &tree, &err), err);
    return tree;
}

static json_t *yaml_of(const char *text) {
    json_t *tree = NULL;
    struct shu_error err = {0};
    assert_ok(yaml_parse(text, strlen(text), "t.yaml", &tree, &err), err);
    return tree;
}

/* Both texts mean the same tree. */
static void assert_same(const char *yaml, const char *json) {
    json_t *a = yaml_of(yaml), *b = json_of(json);
    char *dump = json_dumps(a, JSON_ENCODE_ANY);
    if (!json_equal(a, b)) fail_msg("%s became %s", yaml, dump);
    free(dump);
    json_decref(a);
    json_decref(b);
}

static void json_reads_any_value(void **state) {
    (void)state;
    json_t *tree = json_of("\xef\xbb\xbf{\"a\": [1, 2.5, \"\\u4f60\", null, true]}");
    assert_string_equal(json_string_value(json_array_get(json_object_get(tree, "a"), 2)), "\xe4\xbd\xa0");
    json_decref(tree);
    tree = json_of("true");
    assert_true(json_is_true(tree));
    json_decref(tree);
}

static void json_errors_name_the_place(void **state) {
    (void)state;
    static const struct {
        const char *text, *message;
    } table[] = {
        {"", "t.json:1:0"},       {"{\"a\": 1,\n \"a\": 2}", "t.json:2:"}, {"[1, 2", "t.json:1:"},
        {"[1] x", "t.json:1:"},   {"{\"a\"\n\n:: 1}", "t.json:3:"},        {"[\"\xff\"]", "t.json:1:"},
        {"[1e999]", "t.json:1:"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_t *tree = NULL;
        struct shu_error err = {0};
        assert_int_equal(json_parse(table[i].text, strlen(table[i].text), "t.json", &tree, &err), SHU_E_FORMAT);
        assert_null(tree);
        assert_contains(err.message, table[i].message);
    }
}

static void json_depth_is_limited(void **state) {
    (void)state;
    enum { DEPTH = 100000 };
    char *text = mem_alloc(DEPTH);
    json_t *tree = NULL;
    memset(text, '[', DEPTH);
    assert_int_equal(json_parse(text, DEPTH, "deep", &tree, NULL), SHU_E_FORMAT);
    mem_free(text);
}

/* tokenizer_config.json of many models: "model_max_length": 1000000000000000019884624838656 */
static void json_integers_beyond_64_bits_become_reals(void **state) {
    (void)state;
    json_t *tree = json_of("{\"n\": 1000000000000000019884624838656, \"m\": -99999999999999999999, \"k\": 12, "
                           "\"max\": 9223372036854775807, \"text\": \"\\\"99999999999999999999\", "
                           "\"real\": 1.99999999999999999999, \"e\": 1e99}");
    assert_true(json_real_value(json_object_get(tree, "n")) == 1e30);
    assert_true(json_real_value(json_object_get(tree, "m")) == -1e20);
    assert_int_equal(json_integer_value(json_object_get(tree, "k")), 12);
    assert_true(json_integer_value(json_object_get(tree, "max")) == INT64_MAX);
    assert_string_equal(json_string_value(json_object_get(tree, "text")), "\"99999999999999999999");
    assert_true(json_real_value(json_object_get(tree, "real")) == 2.0);
    assert_true(json_real_value(json_object_get(tree, "e")) == 1e99);
    json_decref(tree);
}

static void json_files(void **state) {
    (void)state;
    char path[] = "/tmp/shu-test-XXXXXX";
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");
    fputs("{\"x\": 1}", file);
    fclose(file);
    json_t *tree = NULL;
    struct shu_error err = {0};
    assert_ok(json_read_file(path, 8, &tree, &err), err);
    assert_int_equal(json_integer_value(json_object_get(tree, "x")), 1);
    json_decref(tree);
    assert_int_equal(json_read_file(path, 7, &tree, &err), SHU_E_RANGE);
    assert_null(tree);
    long rounds;
    assert_fails_at_each(FAULT_ALLOC, SHU_E_NOMEM, json_read_file(path, 8, &tree, &err), rounds);
    assert_true(rounds >= 2);
    json_decref(tree);
    remove(path);
    assert_int_equal(json_read_file(path, 7, &tree, &err), SHU_E_NOTFOUND);
}

static void yaml_core_schema(void **state) {
    (void)state;
    assert_same("", "null");
    assert_same("# only a comment\n", "null");
    assert_same("a: 1\nb: [x, 'y', \"z\\u4f60\"]\n", "{\"a\": 1, \"b\": [\"x\", \"y\", \"z\xe4\xbd\xa0\"]}");
    assert_same("[null, ~, Null, NULL, nUll]", "[null, null, null, null, \"nUll\"]");
    assert_same("[true, True, FALSE, tRue, yes, 'true']", "[true, true, false, \"tRue\", \"yes\", \"true\"]");
    assert_same("[0, -7, +7, 007, 0x1F, 0o17, 0x, 0xg, -0x1]", "[0, -7, 7, 7, 31, 15, \"0x\", \"0xg\", \"-0x1\"]");
    assert_same("[1.5, .5, 5., -1e3, 1e-2, '1.5']", "[1.5, 0.5, 5.0, -1000.0, 0.01, \"1.5\"]");
    assert_same("[1.2.3, 1e, e1, ., +, 1_000, 0.9.0a]",
                "[\"1.2.3\", \"1e\", \"e1\", \".\", \"+\", \"1_000\", \"0.9.0a\"]");
    assert_same("a: |\n  one\n  two\nb: >\n  one\n  two\n", "{\"a\": \"one\\ntwo\\n\", \"b\": \"one two\\n\"}");
    assert_same("1: x\ntrue: y\n", "{\"1\": \"x\", \"true\": \"y\"}");
    assert_same("- {id: a, from: pypi:herbiv==0.1a8}\n-\n  - {}\n  - []\n",
                "[{\"id\": \"a\", \"from\": \"pypi:herbiv==0.1a8\"}, [{}, []]]");
    assert_same("--- 5\n...\n", "5");
    assert_same("e: \"\"\nf:\n", "{\"e\": \"\", \"f\": null}");
}

static void yaml_errors_name_the_place(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int status;
        const char *place, *reason;
    } table[] = {
        {"a: 1\nb: 2\na: 3\n", SHU_E_FORMAT, "t.yaml:3:1", "twice"},
        {"a: &x 1\n", SHU_E_UNSUPPORTED, "t.yaml:1:", "anchor"},
        {"a: 1\nb: *x\n", SHU_E_UNSUPPORTED, "t.yaml:2:", "alias"},
        {"a:\n  - !!str 5\n", SHU_E_UNSUPPORTED, "t.yaml:2:", "tag"},
        {"a: !local {}\n", SHU_E_UNSUPPORTED, "t.yaml:1:", "tag"},
        {"a: &x [1]\n", SHU_E_UNSUPPORTED, "t.yaml:1:", "anchor"},
        {"? [a, b]\n: 1\n", SHU_E_UNSUPPORTED, "t.yaml:1:", "list"},
        {"? {a: b}\n: 1\n", SHU_E_UNSUPPORTED, "t.yaml:1:", "mapping"},
        {": 1\n", SHU_E_FORMAT, "t.yaml:1:", "nothing"},
        {"a: [1, 2\n", SHU_E_FORMAT, "t.yaml:", "not valid YAML"},
        {"a: 'x\n", SHU_E_FORMAT, "t.yaml:", "not valid YAML"},
        {"a: 1\n b: 2\n", SHU_E_FORMAT, "t.yaml:1:", "not valid YAML"},
        {"a: 1\n\tb: 2\n", SHU_E_FORMAT, "t.yaml:", "not valid YAML"},
        {"a: 99999999999999999999\n", SHU_E_RANGE, "t.yaml:1:4", "64 bits"},
        {"a: 1e999\n", SHU_E_RANGE, "t.yaml:1:4", "too large"},
        {"a: .inf\n", SHU_E_UNSUPPORTED, "t.yaml:1:4", "finite"},
        {"a: -.INF\n", SHU_E_UNSUPPORTED, "t.yaml:1:4", "finite"},
        {"a: .nan\n", SHU_E_UNSUPPORTED, "t.yaml:1:4", "finite"},
        {"--- 1\n--- 2\n", SHU_E_UNSUPPORTED, "t.yaml:", "one document"},
        {"a: 1\nb: \xff\n", SHU_E_FORMAT, "t.yaml:2", "0xff"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_t *tree = NULL;
        struct shu_error err = {0};
        int status = yaml_parse(table[i].text, strlen(table[i].text), "t.yaml", &tree, &err);
        if (status != table[i].status) fail_msg("%s gave %d: %s", table[i].text, status, err.message);
        assert_null(tree);
        assert_contains(err.message, table[i].place);
        assert_contains(err.message, table[i].reason);
    }
    json_t *tree = NULL;
    assert_int_equal(yaml_parse("a: \0b", 5, "t.yaml", &tree, NULL), SHU_E_FORMAT);
}

static void yaml_depth_is_limited(void **state) {
    (void)state;
    char text[2000];
    json_t *tree = NULL;
    memset(text, '[', 1000);
    memset(text + 1000, ']', 1000);
    int status = yaml_parse(text, sizeof text, "deep", &tree, NULL);
    assert_true(status == SHU_E_RANGE || status == SHU_E_FORMAT); /* our limit, or libfyaml's own */
    status = yaml_parse(text + 960, 80, "shallow", &tree, NULL);
    assert_int_equal(status, SHU_OK);
    json_decref(tree);
    struct buf block = {0};
    for (int i = 0; i < 150; i++) {
        for (int j = 0; j < i; j++) buf_putc(&block, ' ');
        buf_puts(&block, "a:\n");
    }
    status = yaml_parse(block.data, block.len, "deep", &tree, NULL);
    assert_true(status == SHU_E_RANGE || status == SHU_E_FORMAT);
    buf_free(&block);
}

static void assert_where(const char *text, const char *path, const char *expected) {
    struct buf out = {0};
    assert_int_equal(yaml_where(text, strlen(text), "p.yaml", path, &out), SHU_OK);
    assert_string_equal(out.data, expected);
    buf_free(&out);
}

static void yaml_where_finds_values(void **state) {
    (void)state;
    const char *text = "name: x\nsources:\n  - id: a\n    from: b\n  - id: cc\n    idx: 5\ndeep: {k: [1, 22]}\n";
    assert_where(text, "name", "p.yaml:1:7");
    assert_where(text, "sources/0/id", "p.yaml:3:9");
    assert_where(text, "sources/1/id", "p.yaml:5:9");
    assert_where(text, "sources/1/idx", "p.yaml:6:10");
    assert_where(text, "deep/k/1", "p.yaml:7:15");
    assert_where(text, "sources/1/nothing", "p.yaml:5:5"); /* the deepest that exists */
    assert_where(text, "nothing", "p.yaml:1:1");
    assert_where(text, "sources/10", "p.yaml:3:3");
    assert_where("&a [1", "0", "p.yaml");
}

static void yaml_large_inputs(void **state) {
    (void)state;
    struct buf text = {0};
    for (int i = 0; i < 20000; i++) buf_printf(&text, "key%d: {a: %d, b: [x, y]}\n", i, i);
    json_t *tree = NULL;
    struct shu_error err = {0};
    assert_ok(yaml_parse(text.data, text.len, "large", &tree, &err), err);
    assert_int_equal(json_object_size(tree), 20000);
    json_decref(tree);
    buf_free(&text);
}

static int parse_and_drop(const char *text) {
    json_t *tree = NULL;
    int status = yaml_parse(text, strlen(text), "t.yaml", &tree, NULL);
    json_decref(tree);
    return status;
}

static void yaml_allocations_may_fail(void **state) {
    (void)state;
    long rounds;
    assert_fails_at_each(FAULT_ALLOC, SHU_E_NOMEM, parse_and_drop("a: [1, x, {b: c, d: 2.5}]\ne: 'f'\n"), rounds);
    assert_true(rounds >= 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_reads_any_value),
        cmocka_unit_test(json_errors_name_the_place),
        cmocka_unit_test(json_depth_is_limited),
        cmocka_unit_test(json_integers_beyond_64_bits_become_reals),
        cmocka_unit_test(json_files),
        cmocka_unit_test(yaml_core_schema),
        cmocka_unit_test(yaml_errors_name_the_place),
        cmocka_unit_test(yaml_depth_is_limited),
        cmocka_unit_test(yaml_where_finds_values),
        cmocka_unit_test(yaml_large_inputs),
        cmocka_unit_test(yaml_allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
