/* The embedder's face, used as a stranger would: only shu/shu.h, and a tiny model. */
#include "shu/shu.h"

#include "infer/tiny_engine.h"

static bool append(void *context, const char *text, size_t bytes) {
    return buf_append(context, text, bytes) == SHU_OK;
}

static struct shu_engine *open_tiny(const struct shu_engine_options *options) {
    char path[TINY_PATH_BYTES];
    struct shu_engine *engine = NULL;
    tiny_model(path, "qwen2", DT_Q8_0, 0);
    MUST(shu_engine_open(path, options, &engine, &must));
    unlink(path);
    return engine;
}

static const char MESSAGES[] = "[{\"role\":\"user\",\"content\":\"the rain in the east\"}]";

static void an_answer_arrives(void **state) {
    (void)state;
    struct shu_engine *engine = open_tiny(NULL);
    struct shu_generate_options options = {.max_tokens = 30, .temperature = 1, .seed = 5};
    struct shu_generate_result result, again;
    struct buf text = {0}, twin = {0};
    assert_int_equal(shu_engine_context(engine), 512);
    MUST(shu_chat(engine, MESSAGES, &options, append, &text, &result, &must));
    assert_true(result.completion_tokens > 0 && text.len > 0);
    assert_true(utf8_valid(text.data, text.len));
    MUST(shu_chat(engine, MESSAGES, &options, append, &twin, &again, &must));
    assert_int_equal(again.cached_tokens, again.prompt_tokens - 1);
    assert_string_equal(text.data, twin.data);
    assert_string_equal(result.finish_reason, again.finish_reason);
    buf_clear(&text);
    MUST(shu_generate(engine, "the ", 4, NULL, append, &text, NULL, &must));
    MUST(shu_generate(engine, "the ", 4, &options, NULL, NULL, &result, &must));
    buf_free(&text);
    buf_free(&twin);
    shu_engine_close(engine);
    shu_engine_close(NULL);
}

static void tokens_are_counted_first(void **state) {
    (void)state;
    struct shu_engine *engine = open_tiny(&(struct shu_engine_options){.threads = 1, .context = 64, .small_kv = true});
    size_t count = 0, full;
    MUST(shu_tokenize(engine, "in the rain", 11, NULL, 0, &full, &must));
    assert_true(full > 3 && full <= 11);
    int32_t ids[16] = {-1, -1, -1, -1};
    MUST(shu_tokenize(engine, "in the rain", 11, ids, 2, &count, &must));
    assert_int_equal(count, full);
    assert_true(ids[0] >= 0 && ids[1] >= 0);
    assert_int_equal(ids[2], -1);
    shu_engine_close(engine);
}

static void refusals_say_why(void **state) {
    (void)state;
    struct shu_engine *engine = NULL;
    struct shu_error err = {0};
    assert_int_not_equal(shu_engine_open("/no/such/model.gguf", NULL, &engine, &err), SHU_OK);
    assert_null(engine);
    assert_true(err.message[0] != 0);
    engine = open_tiny(NULL);
    assert_int_equal(shu_chat(engine, "{\"role\":1}", NULL, NULL, NULL, NULL, &err), SHU_E_USAGE);
    assert_int_equal(shu_chat(engine, "[", NULL, NULL, NULL, NULL, &err), SHU_E_FORMAT);
    struct shu_generate_options hot = {.temperature = -1};
    assert_int_equal(shu_generate(engine, "a", 1, &hot, NULL, NULL, NULL, &err), SHU_E_USAGE);
    struct shu_generate_options bad_schema = {.schema = "{"};
    assert_int_equal(shu_generate(engine, "a", 1, &bad_schema, NULL, NULL, NULL, &err), SHU_E_FORMAT);
    assert_int_equal(shu_generate(engine, "", 0, NULL, NULL, NULL, NULL, &err), SHU_E_USAGE);
    shu_engine_close(engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_arrives),
        cmocka_unit_test(tokens_are_counted_first),
        cmocka_unit_test(refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
