/* Grammars over a small vocabulary: what texts they admit, masks against the automaton, refusals, limits. */
#include "infer/grammar_vocab.h"
#include "infer/infer.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct tokenizer *tokenizer;

static int set_up(void **state) {
    (void)state;
    tokenizer = grammar_vocab_new();
    return tokenizer == NULL;
}

static int tear_down(void **state) {
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

static struct grammar *from_schema(const char *text, struct shu_error *err) {
    json_t *schema = json_loads(text, JSON_DECODE_ANY, NULL);
    struct grammar *grammar = NULL;
    assert_non_null(schema);
    (void)grammar_from_schema(schema, tokenizer, &grammar, err);
    json_decref(schema);
    return grammar;
}

static struct grammar *from_ebnf(const char *text, struct shu_error *err) {
    struct grammar *grammar = NULL;
    (void)grammar_from_ebnf(text, strlen(text), tokenizer, &grammar, err);
    return grammar;
}

static bool allowed(const uint64_t *mask, int32_t id) {
    return mask[id >> 6] >> (id & 63) & 1;
}

/* Byte tokens follow the end token, number 0. Every token must be accepted exactly where the mask allows it. */
static bool admits(const struct grammar *grammar, const char *text) {
    struct grammar_state *state = NULL, *copy = NULL;
    struct shu_error err = {0};
    bool ok = true;
    assert_int_equal(grammar_state_new(grammar, &state, &err), 0);
    assert_int_equal(grammar_state_new(grammar, &copy, &err), 0);
    for (size_t i = 0; ok && i <= strlen(text); i++) {
        const uint64_t *mask = grammar_mask(state);
        for (int32_t id = 0; id < tokenizer_count(tokenizer); id++) {
            assert_int_equal(grammar_state_copy(copy, state), 0);
            assert_int_equal(grammar_accept(copy, id), allowed(mask, id));
        }
        int32_t token = text[i] ? (int32_t)(unsigned char)text[i] + 1 : 0;
        ok = allowed(mask, token);
        assert_int_equal(grammar_accept(state, token), ok);
    }
    if (ok) assert_true(grammar_done(state));
    grammar_state_free(state);
    grammar_state_free(copy);
    return ok;
}

/* Texts separated by newlines; those behind "!" must be refused. */
static void check_texts(struct grammar *grammar, const struct shu_error *err, const char *source, const char *texts) {
    if (!grammar) fail_msg("%s: %s", source, err->message);
    char *copy = mem_strdup(texts), *rest = copy, *text;
    while ((text = strsep(&rest, "\n"))) {
        bool wanted = *text != '!';
        if (admits(grammar, text + !wanted) != wanted)
            fail_msg("%s: \"%s\" is %s", source, text + !wanted, wanted ? "refused" : "admitted");
    }
    mem_free(copy);
    grammar_free(grammar);
}

static void schema_texts(const char *schema, const char *texts) {
    struct shu_error err = {0};
    check_texts(from_schema(schema, &err), &err, schema, texts);
}

static void ebnf_texts(const char *source, const char *texts) {
    struct shu_error err = {0};
    check_texts(from_ebnf(source, &err), &err, source, texts);
}

static void refuses(const char *schema, int code, const char *fragment) {
    struct shu_error err = {0};
    struct grammar *grammar = from_schema(schema, &err);
    if (grammar || err.code != code || !strstr(err.message, fragment))
        fail_msg("%s: expected code %d with \"%s\", found %d \"%s\"", schema, code, fragment, err.code, err.message);
    assert_null(strchr(err.message, '\n'));
}

static void test_scalars(void **state) {
    (void)state;
    schema_texts("{\"type\":\"boolean\"}", "true\nfalse\n!null\n!tru\n!truefalse\n!");
    schema_texts("{\"type\":[\"null\",\"integer\"]}",
                 "null\n0\n-5\n123456789012345678\n!1234567890123456789\n!01\n!-\n!1.5\n!-0");
    schema_texts("{\"type\":\"number\"}", "0\n-1.5\n1e5\n2.5E-03\n!1.\n!.5\n!1e\n!+1\n!00");
    schema_texts("{\"const\":{\"a\":[1,\"x\\n\"]}}", "{\"a\":[1,\"x\\n\"]}\n!{}");
    schema_texts("{\"enum\":[1,\"1\",null,2.5],\"type\":[\"number\",\"null\"]}", "1\nnull\n2.5\n!\"1\"");
    schema_texts("{\"enum\":[5,10,15],\"maximum\":10}", "5\n10\n!15");
}

static void test_integer_bounds(void **state) {
    (void)state;
    schema_texts("{\"type\":\"integer\",\"minimum\":7,\"maximum\":123}",
                 "7\n9\n10\n99\n100\n123\n!6\n!124\n!07\n!-7\n!1230");
    schema_texts("{\"type\":\"integer\",\"exclusiveMinimum\":-12,\"maximum\":3.5}",
                 "-11\n-1\n0\n3\n!-12\n!4\n!-0\n!-111");
    schema_texts("{\"type\":\"integer\",\"minimum\":-50,\"maximum\":-5}", "-5\n-50\n-10\n!-4\n!-51\n!5\n!0");
    schema_texts("{\"type\":\"integer\",\"multipleOf\":100,\"minimum\":-150,\"maximum\":1200}",
                 "0\n-100\n1200\n900\n!150\n!-200\n!1300\n!50");
    schema_texts("{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":-8,\"maximum\":15}", "-7\n0\n7\n14\n!8\n!-14");
}

static void test_number_bounds(void **state) {
    (void)state;
    schema_texts("{\"type\":\"number\",\"minimum\":1.25,\"maximum\":1.5}",
                 "1.25\n1.250\n1.3\n1.5\n1.50\n1.499999999\n!1.24\n!1.51\n!1.500000001\n!1\n!2\n!1.2");
    schema_texts("{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":2}",
                 "0.1\n1\n1.99\n0.000000001\n!0\n!0.0\n!2\n!2.0\n!-0.1");
    schema_texts("{\"type\":\"number\",\"minimum\":-2.5,\"maximum\":0.5}",
                 "-2.5\n-2.49\n-0.1\n0\n0.5\n!-2.51\n!-3\n!0.51\n!1\n!-0");
    schema_texts("{\"type\":\"number\",\"maximum\":-10}", "-10\n-10.5\n-999\n!-9.9\n!0\n!10");
    schema_texts("{\"type\":\"number\",\"exclusiveMinimum\":9.99}", "10\n9.991\n123.5\n!9.99\n!9.990\n!9");
}

static void test_strings(void **state) {
    (void)state;
    schema_texts("{\"type\":\"string\"}",
                 "\"\"\n\"a中🙂\\n\\\"\"\n\"\\u0001\"\n!\"\\x\"\n!\"a\n!\"\\u0041\"\n!a\n!\"\"\"");
    schema_texts("{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
                 "\"ab\"\n\"中国\"\n\"\\n\\\"🙂\"\n!\"a\"\n!\"abcd\"\n!\"中国中国\"");
    schema_texts("{\"type\":\"string\",\"pattern\":\"^[a-c]{2}\\\\d?$\"}",
                 "\"ab\"\n\"cc7\"\n!\"abd\"\n!\"a\"\n!\"ab77\"");
    schema_texts("{\"type\":\"string\",\"pattern\":\"b\"}", "\"b\"\n\"abc\"\n\"中b\"\n!\"ac\"\n!\"\"");
    schema_texts("{\"type\":\"string\",\"pattern\":\"^a|b$\"}", "\"axx\"\n\"xxb\"\n!\"xax\"");
    schema_texts("{\"type\":\"string\",\"pattern\":\"^(?:x|y)+$\",\"maxLength\":3}",
                 "\"x\"\n\"xyx\"\n!\"xyxy\"\n!\"\"");
    schema_texts("{\"type\":\"string\",\"pattern\":\"^[^\\\"]$\"}", "\"a\"\n\"\\n\"\n\"中\"\n!\"\\\"\"");
    schema_texts("{\"type\":\"string\",\"format\":\"date\"}",
                 "\"2024-02-28\"\n\"1999-12-31\"\n!\"2024-02-30\"\n!\"2024-13-01\"\n!\"24-01-01\"");
    schema_texts("{\"type\":\"string\",\"format\":\"ipv4\"}",
                 "\"1.2.3.4\"\n\"255.255.255.0\"\n!\"256.1.1.1\"\n!\"1.2.3\"");
}

static void test_utf8(void **state) {
    (void)state;
    const char *string = "{\"type\":\"string\"}";
    schema_texts(string, "\"\xC3\xA9\"\n\"\xF0\x9F\x99\x82\"\n!\"\xC3\"\n!\"\x80\"\n!\"\xED\xA0\x80\"\n!\"\xC0\x80\"\n!"
                         "\"\xF4\x90\x80\x80\"\n!\"\xFF\"");
    ebnf_texts("root ::= [\\u4e00-\\u9fff]+", "中国\n!a\n!\xE4\xB8");
    ebnf_texts("root ::= [^a]", "b\n中\n🙂\n!a\n!bb");
}

static void test_objects(void **state) {
    (void)state;
    const char *two = "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"},\"b\":{\"type\":\"null\"}},"
                      "\"required\":[\"b\"]}";
    schema_texts(
        two,
        "{\"a\":null,\"b\":null}\n{\"b\": null}\n{\"a\": null, \"b\": null}\n!{\"a\":null}\n!{\"b\":null,\"a\":null}\n"
        "!{\"b\":null,}\n!{ \"b\":null}\n!{\"b\":  null}\n!{\"b\":null,\"c\":1}\n!{}");
    schema_texts("{\"type\":\"object\",\"properties\":{\"ab\":{\"type\":\"null\"}},\"additionalProperties\":{\"type\":"
                 "\"boolean\"}}",
                 "{}\n{\"ab\":null}\n{\"a\":true}\n{\"abc\":true,\"\":false}\n{\"ab\":null,\"x\":true}\n!{\"ab\":true}"
                 "\n!{\"x\":null}\n"
                 "!{\"x\":true,\"ab\":null}");
    schema_texts("{\"type\":\"object\",\"required\":[\"k\"]}",
                 "{\"k\":[1,{}]}\n{\"k\":1,\"z\":\"y\"}\n!{}\n!{\"z\":1}");
    schema_texts("{\"type\":\"object\",\"additionalProperties\":false}", "{}\n!{\"a\":1}");
}

static void test_arrays(void **state) {
    (void)state;
    schema_texts("{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"minItems\":1,\"maxItems\":3}",
                 "[null]\n[null, null,null]\n![]\n![null,null,null,null]\n![null,]\n![ null]");
    schema_texts("{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3}}",
                 "[]\n[1]\n[1,2]\n[1,2,3,3]\n![2]\n![1,3]\n![1,2,2]");
    schema_texts("{\"type\":\"array\",\"prefixItems\":[{\"const\":1}],\"items\":false}", "[]\n[1]\n![1,1]");
    schema_texts("{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2}", "[1,2]\n[1,2,3,44]\n![1]");
}

static void test_combinations(void **state) {
    (void)state;
    schema_texts("{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"string\",\"maxLength\":1}]}", "null\n\"a\"\n!\"ab\"");
    schema_texts("{\"type\":\"integer\",\"anyOf\":[{\"maximum\":5},{\"minimum\":90,\"maximum\":91}],\"minimum\":3}",
                 "3\n5\n90\n91\n!2\n!6\n!92");
    schema_texts("{\"allOf\":[{\"type\":\"integer\",\"minimum\":3},{\"maximum\":4}]}", "3\n4\n!2\n!5");
    schema_texts("{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}},\"required\":[\"a\"]},"
                 "{\"properties\":{\"b\":{\"type\":\"null\"}}}]}",
                 "{\"a\":null}\n{\"a\":null,\"b\":null}\n!{\"b\":null}");
    schema_texts("{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "\"x\"\nnull\n!1");
    schema_texts("{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/t\"}}}}",
                 "[]\n[[],[[]]]\n![\n![[]\n![1]");
    schema_texts("{\"$ref\":\"#/$defs/n\",\"maximum\":3,\"$defs\":{\"n\":{\"type\":\"integer\",\"minimum\":2}}}",
                 "2\n3\n!1\n!4");
    schema_texts("true", "[1,{\"a\":[null,true]},\"x\"]\n{\"a\": {}}\n0.5\n!{a:1}\n![1 ,2]");
}

static void test_refusals(void **state) {
    (void)state;
    refuses("{\"type\":\"object\",\"properties\":{\"a\":{\"not\":{}}}}", SHU_E_UNSUPPORTED, "#/properties/a/not");
    refuses("{\"properties\":{\"a\":{\"uniqueItems\":true}}}", SHU_E_UNSUPPORTED, "#/properties/a/uniqueItems");
    refuses("{\"patternProperties\":{}}", SHU_E_UNSUPPORTED, "#/patternProperties");
    refuses("{\"propertyNames\":{}}", SHU_E_UNSUPPORTED, "#/propertyNames");
    refuses("{\"type\":\"string\",\"format\":\"uri\"}", SHU_E_UNSUPPORTED, "#/format");
    refuses("{\"type\":\"string\",\"pattern\":\"(?!x)\"}", SHU_E_FORMAT, "#/pattern");
    refuses("{\"type\":\"string\",\"pattern\":\"a\\\\1\"}", SHU_E_FORMAT, "#/pattern");
    refuses("{\"type\":\"text\"}", SHU_E_FORMAT, "#/type");
    refuses("{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"string\",\"maxLength\":2}]}", SHU_E_UNSUPPORTED,
            "#/oneOf/1");
    refuses("{\"$ref\":\"#/nowhere\"}", SHU_E_FORMAT, "#/$ref");
    refuses("{\"$ref\":\"#\"}", SHU_E_FORMAT, "no text can match");
    refuses("{\"type\":\"integer\",\"minimum\":5,\"maximum\":4}", SHU_E_FORMAT, "no text can match");
    refuses("{\"enum\":[]}", SHU_E_FORMAT, "no text can match");
    refuses("{\"type\":\"number\",\"multipleOf\":0.01}", SHU_E_UNSUPPORTED, "#/multipleOf");
    refuses("{\"type\":\"string\",\"minLength\":-1}", SHU_E_FORMAT, "#/minLength");
    refuses("{\"type\":\"string\",\"minLength\":19999,\"pattern\":\"^[a-z]*$\",\"format\":\"email\"}", SHU_E_RANGE,
            "too large");
    refuses("[]", SHU_E_FORMAT, "expected an object");
}

static void test_ebnf(void **state) {
    (void)state;
    ebnf_texts("root ::= \"select \" col (\", \" col)* # comment\ncol ::= [a-z_]{1,3}",
               "select a\nselect abc, d\n!select \n!select abcd\n!select a,b");
    ebnf_texts("root ::= sum\nsum ::= item (\"+\" item)*\nitem ::= [0-9]+ | \"(\" sum \")\"",
               "1\n1+2\n((1)+23)\n!(1\n!1+\n!()");
    ebnf_texts("root ::= 'a'? \"b\"{2} \"c\"{1,2} \"d\"{2,} .", "abbcddd中\nbbccdddx\n!bbcdx\n!bbcccddx");
    ebnf_texts("root ::= \"\\x41\\u4e2d\\n\" | x\nx ::= \"\" | \"q\" x", "qq\n!A");
    static const struct {
        const char *source;
        int code;
        const char *fragment;
    } wrong[] = {
        {"root ::= root \"a\" | \"b\"", SHU_E_UNSUPPORTED, "left recursion"},
        {"root ::= a root\na ::= \"x\"?", SHU_E_FORMAT, "no text can match"},
        {"root ::= a\na ::= b* a \"x\" | \"y\"\nb ::= \"z\"?", SHU_E_UNSUPPORTED, "left recursion"},
        {"root ::= other", SHU_E_FORMAT, "\"other\" is used but not defined"},
        {"root ::= \"a", SHU_E_FORMAT, "line 1, column 12"},
        {"root ::= [b-a]", SHU_E_FORMAT, "range"},
        {"root ::= (\"a\"", SHU_E_FORMAT, "expected )"},
        {"x ::= \"a\"", SHU_E_FORMAT, "\"root\""},
        {"root ::= \"a\"\nroot ::= \"b\"", SHU_E_FORMAT, "twice"},
        {"root ::= \"a\"{99999999}", SHU_E_FORMAT, "repetitions"},
        {"root ::= ((\"a\"{9999}){9999}){9999}", SHU_E_RANGE, "too large"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct shu_error err = {0};
        struct grammar *grammar = from_ebnf(wrong[i].source, &err);
        if (grammar || err.code != wrong[i].code || !strstr(err.message, wrong[i].fragment))
            fail_msg("%s: expected %d \"%s\", found %d \"%s\"", wrong[i].source, wrong[i].code, wrong[i].fragment,
                     err.code, err.message);
    }
}

/* Endless nesting runs into the limit of the stack: then nothing deeper opens, and all can still be closed. */
static void test_depth_limit(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct grammar *grammar = from_schema("true", &err);
    struct grammar_state *walk = NULL;
    assert_int_equal(grammar_state_new(grammar, &walk, &err), 0);
    int depth = 0;
    while (depth < 2000 && grammar_accept(walk, '[' + 1)) depth++;
    assert_true(depth > 100 && depth < 1000);
    for (int i = 0; i < depth; i++) assert_true(grammar_accept(walk, ']' + 1));
    assert_true(grammar_accept(walk, 0));
    grammar_state_free(walk);
    grammar_free(grammar);
}

/* An end token only where the text is complete; nothing but end tokens behind it; reset begins anew. */
static void test_ending(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct grammar *grammar = from_schema("{\"type\":\"integer\",\"maximum\":99,\"minimum\":10}", &err);
    struct grammar_state *walk = NULL;
    assert_int_equal(grammar_state_new(grammar, &walk, &err), 0);
    assert_false(grammar_accept(walk, 0));
    assert_true(grammar_accept(walk, '1' + 1));
    assert_false(allowed(grammar_mask(walk), 0));
    assert_false(grammar_done(walk));
    assert_false(grammar_accept(walk, -1));
    assert_false(grammar_accept(walk, 100000));
    assert_true(grammar_accept(walk, '2' + 1));
    assert_true(grammar_done(walk));
    assert_true(grammar_accept(walk, 0));
    assert_true(allowed(grammar_mask(walk), 0));
    assert_false(allowed(grammar_mask(walk), '1' + 1));
    assert_false(grammar_accept(walk, '1' + 1));
    grammar_state_reset(walk);
    assert_true(grammar_accept(walk, '1' + 1));
    grammar_state_free(walk);
    grammar_free(grammar);
    grammar_free(NULL);
    grammar_state_free(NULL);
}

#ifdef SHU_FAULTS
static void test_failing_allocations(void **state) {
    (void)state;
    struct grammar *grammar = NULL;
    json_t *schema = json_loads(
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"^x+$\",\"maxLength\":3},"
        "\"b\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
        0, NULL);
    for (long k = 1; k < 5000 && !grammar; k++) {
        struct shu_error err = {0};
        fault_arm(FAULT_ALLOC, k);
        int status = grammar_from_schema(schema, tokenizer, &grammar, &err);
        fault_arm(FAULT_ALLOC, 0);
        assert_true(status == 0 || status == SHU_E_NOMEM);
    }
    assert_non_null(grammar);
    for (long k = 1; k < 40; k++) { /* without memory for a mask nothing is allowed; the next try works again */
        struct grammar_state *walk = NULL;
        struct shu_error err = {0};
        assert_int_equal(grammar_state_new(grammar, &walk, &err), 0);
        fault_arm(FAULT_ALLOC, k);
        bool open = allowed(grammar_mask(walk), '{' + 1);
        fault_arm(FAULT_ALLOC, 0);
        assert_true(open || !allowed(grammar_mask(walk), 'x' + 1));
        assert_true(allowed(grammar_mask(walk), '{' + 1));
        grammar_state_free(walk);
    }
    grammar_free(grammar);
    json_decref(schema);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_integer_bounds),
        cmocka_unit_test(test_number_bounds),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_objects),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_ebnf),
        cmocka_unit_test(test_depth_limit),
        cmocka_unit_test(test_ending),
#ifdef SHU_FAULTS
        cmocka_unit_test(test_failing_allocations),
#endif
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
