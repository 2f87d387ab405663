/* Chat templates against jinja2's recorded answers (template_cases.json, made by template_cases.py),
 * limits, error messages and failing allocations. */
#include "text/text.h"

#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

/* Renders with `variables` (NULL = none): the text (caller frees) or NULL with err filled. */
static char *render(const char *source, size_t bytes, const json_t *variables, int64_t time,
                    const struct template_limits *limits, struct shu_error *err) {
    struct template *tpl = NULL;
    struct buf out = {0};
    json_t *none = json_object();
    int status = template_new(source, bytes, &tpl, err);
    if (!status) {
        template_set_time(tpl, time);
        status = template_render(tpl, variables ? variables : none, limits, &out, err);
    }
    char *text = status ? NULL : mem_strndup(out.data ? out.data : "", out.len);
    buf_free(&out);
    template_free(tpl);
    json_decref(none);
    return text;
}

static char *render_text(const char *source, struct shu_error *err) {
    return render(source, strlen(source), NULL, 0, NULL, err);
}

static bool agrees(const json_t *one, const json_t *variables, int64_t time, bool report) {
    struct shu_error err = {0};
    const json_t *source = json_object_get(one, "template"), *expected = json_object_get(one, "text");
    char *text = render(json_string_value(source), json_string_length(source), variables, time, NULL, &err);
    bool same = expected ? text && strcmp(text, json_string_value(expected)) == 0 : text == NULL;
    if (!same && report)
        print_message("%s\n  jinja2: %s\n  shu:    %s\n", json_string_value(source),
                      expected ? json_string_value(expected) : "(error)", text ? text : err.message);
    mem_free(text);
    return same;
}

static void test_jinja2_cases(void **state) {
    (void)state;
    struct shu_error err = {0};
    json_t *file = NULL;
    assert_int_equal(json_read_file(TEST_DATA "/text/template_cases.json", 1 << 20, &file, &err), 0);
    const json_t *cases = json_object_get(file, "cases"), *variables = json_object_get(file, "variables");
    size_t different = 0;
    for (size_t i = 0; i < json_array_size(cases); i++)
        different +=
            !agrees(json_array_get(cases, i), variables, json_integer_value(json_object_get(file, "time")), true);
    assert_true(json_array_size(cases) > 500);
    assert_int_equal(different, 0);
    json_decref(file);
}

/* The comparison above must be able to fail. */
static void test_negative_control(void **state) {
    (void)state;
    json_t *variables = json_object();
    json_t *wrong = json_pack("{s:s, s:s}", "template", "{{ 1 + 1 }}", "text", "3");
    json_t *no_error = json_pack("{s:s, s:b}", "template", "{{ 1 + 1 }}", "error", 1);
    assert_false(agrees(wrong, variables, 0, false));
    assert_false(agrees(no_error, variables, 0, false));
    json_decref(wrong);
    json_decref(no_error);
    json_decref(variables);
}

static void expect_error(const char *source, int code, const char *fragment) {
    struct shu_error err = {0};
    char *text = render_text(source, &err);
    if (text || err.code != code || !strstr(err.message, fragment))
        fail_msg("%s: expected code %d with \"%s\", found %d \"%s\"", source, code, fragment, err.code,
                 text ? text : err.message);
    assert_null(strchr(err.message, '\n'));
}

static void test_messages_name_the_place(void **state) {
    (void)state;
    expect_error("ab\n  {{ 1 + }}", SHU_E_FORMAT, "line 2, column 10: expected an expression, found }}");
    expect_error("{% if x %}", SHU_E_FORMAT, "endif");
    expect_error("{{ 'x }}", SHU_E_FORMAT, "line 1, column 4: string is not closed");
    expect_error("é {{ a.b.c }}", SHU_E_USAGE, "line 1, column 7: \"a\" is undefined");
    expect_error("\n\n{{ x|nope }}", SHU_E_FORMAT, "line 3, column 6: no filter is named \"nope\"");
    expect_error("{{ raise_exception('only users') }}", SHU_E_USAGE, "only users");
    expect_error("{{ [].append(1) }}", SHU_E_USAGE, "sandbox");
    expect_error("{{ 9223372036854775807 + 1 }}", SHU_E_USAGE, "64 bits");
    expect_error("{{ 9223372036854775808 }}", SHU_E_FORMAT, "64 bits");
    expect_error("{{ (1 }}", SHU_E_FORMAT, "line 1, column 7");
}

static void test_limits(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct template_limits steps = {.max_steps = 10000}, output = {.max_output_bytes = 1000};
    const char *loop = "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}";
    assert_null(render(loop, strlen(loop), NULL, 0, &steps, &err));
    assert_int_equal(err.code, SHU_E_RANGE);
    assert_null(render(loop, strlen(loop), NULL, 0, &output, &err));
    assert_int_equal(err.code, SHU_E_RANGE);
    expect_error("{{ 'x' * 999999999 }}", SHU_E_RANGE, "steps");
    expect_error("{{ [0] * 999999999 }}", SHU_E_RANGE, "too long");
    expect_error("{{ [0] * 99999999 }}", SHU_E_NOMEM, "memory");
    expect_error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", SHU_E_RANGE, "nested");
    expect_error(
        "{% set ns = namespace(a=[]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        SHU_E_RANGE, "deep");
    expect_error("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", SHU_E_RANGE, "deep");
    expect_error(
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
        SHU_E_RANGE, "");
    expect_error("{{ '%999999999d' % 1 }}", SHU_E_RANGE, "width");
    expect_error("{{ '{:999999999}'.format(1) }}", SHU_E_RANGE, "width");
    expect_error("{{ range(100001) }}", SHU_E_RANGE, "range");
}

static void test_deep_source(void **state) {
    (void)state;
    struct buf source = {0};
    for (int i = 0; i < 5000; i++) assert_int_equal(buf_puts(&source, "(-"), 0);
    struct shu_error err = {0};
    struct buf text = {0};
    assert_int_equal(buf_printf(&text, "{{ %s }}", source.data), 0);
    assert_null(render(text.data, text.len, NULL, 0, NULL, &err));
    assert_int_equal(err.code, SHU_E_FORMAT);
    buf_clear(&text);
    for (int i = 0; i < 5000; i++) assert_int_equal(buf_puts(&text, "{% if 1 %}"), 0);
    assert_null(render(text.data, text.len, NULL, 0, NULL, &err));
    assert_int_equal(err.code, SHU_E_FORMAT);
    buf_free(&text);
    buf_free(&source);
}

/* A template object can be rendered again and again, and leaves earlier output alone. */
static void test_render_appends(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct template *tpl = NULL;
    const char *source = "<{{ x }}>";
    struct buf out = {0};
    json_t *variables = json_pack("{s:i}", "x", 5);
    assert_int_equal(template_new(source, strlen(source), &tpl, &err), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(template_render(tpl, variables, NULL, &out, &err), 0);
    assert_string_equal(out.data, "<5><5><5>");
    buf_free(&out);
    json_decref(variables);
    template_free(tpl);
    template_free(NULL);
}

#ifdef SHU_FAULTS
/* The k-th allocation fails: a clean error or, once k is beyond the last one, success. */
static void test_failing_allocations(void **state) {
    (void)state;
    const char *source =
        "{% macro f(a) %}{{ a|upper }}{% endmacro %}{% for x in ['a', 'b']|sort %}{{ f(x) ~ x|tojson }}{% endfor %}";
    char *text = NULL;
    for (long k = 1; k < 1000 && !text; k++) {
        struct shu_error err = {0};
        fault_arm(FAULT_ALLOC, k);
        text = render_text(source, &err);
        fault_arm(FAULT_ALLOC, 0);
        if (!text) assert_true(err.code == SHU_E_NOMEM || err.code == 0); /* 0: the test's own copy failed */
    }
    assert_non_null(text);
    assert_string_equal(text, "A\"a\"B\"b\"");
    mem_free(text);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jinja2_cases),
        cmocka_unit_test(test_negative_control),
        cmocka_unit_test(test_messages_name_the_place),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_deep_source),
        cmocka_unit_test(test_render_appends),
#ifdef SHU_FAULTS
        cmocka_unit_test(test_failing_allocations),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
