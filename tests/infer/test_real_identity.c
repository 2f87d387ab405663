/* The fixed-order rule and the memory bar on a real model, when it lies in the cache:
 *     shu model pull qwen2.5-coder-0.5b-instruct
 * The tiny models of test_engine.c cover every architecture; this covers real sizes: several tiles per
 * matrix, many pages, and weights whose rounding is not that of random numbers. */
#include "infer/tiny_engine.h"

enum { ANSWER = 24, ROWS = 40, OTHERS = 8 };

static const char TEXT[] =
    "<|im_start|>user\n下面是一段说明。The function below adds two numbers and returns the sum: int add(int a, int b) "
    "{ return a + b; } 请逐字重复这段说明，不要改动。<|im_end|>\n<|im_start|>assistant\n";

static char real_path[512];

static bool model_present(void) {
    struct buf path = {0};
    bool present = !path_cache("models/qwen2.5-coder-0.5b-instruct.gguf", &path, NULL) && file_exists(path.data) &&
                   path.len < sizeof real_path;
    if (present) memcpy(real_path, path.data, path.len + 1);
    buf_free(&path);
    return present;
}

static struct engine *open_real(int threads, enum kv_type kv, int sequences) {
    struct engine_options options = {.threads = threads,
                                     .context = 512,
                                     .kv_positions = 512 * sequences,
                                     .kv_type = kv,
                                     .max_sequences = sequences,
                                     .max_rows = 256};
    return tiny_engine(real_path, &options);
}

/* First, while the process is small. A step of 512 rows touches all activations; the cache is charged in full. */
static void peak_memory(void **state) {
    (void)state;
    struct engine_options options = {.threads = 2, .context = 4096};
    struct engine *engine = tiny_engine(real_path, &options);
    int32_t tokens[512];
    random_tokens(tokens, 512, 150000, 1);
    struct step_item item = {tiny_sequence(engine), tokens, 512, 1};
    MUST(engine_step(engine, &item, 1, &must));
    struct engine_stats stats;
    engine_stats(engine, &stats);
    struct map file;
    MUST(map_open(real_path, &file, &must));
    uint64_t bar = file.bytes / 10 * 12 + stats.kv_bytes, peak = rss_peak_bytes();
    print_message("peak %.0f MB (bar %.0f): file %.0f, packed %.0f, KV %.0f, activations %.0f; loaded in %.2f s\n",
                  (double)peak / 1e6, (double)bar / 1e6, (double)file.bytes / 1e6, (double)stats.weight_bytes / 1e6,
                  (double)stats.kv_bytes / 1e6, (double)stats.activation_bytes / 1e6, (double)stats.load_ns / 1e9);
    map_close(&file);
    engine_close(engine);
    if (!SANITIZED) assert_true(peak <= bar);
}

struct truth {
    struct tokens text; /* prompt and greedy answer */
    int prompt;
    float *logits; /* [ROWS, V] of the last ROWS positions */
};

static void compare(const struct truth *truth, struct engine *engine, int row, int want, const char *how) {
    size_t vocab = (size_t)engine_config(engine)->vocab;
    const float *got = engine_logits(engine, row);
    if (memcmp(got, truth->logits + (size_t)want * vocab, vocab * sizeof *got) != 0)
        fail_msg("%s: logits %d from the end differ", how, ROWS - want);
}

static bool collect(void *context, const struct generated_token *token) {
    struct truth *truth = context;
    if (token->id < 0) return true;
    return tokens_push(&truth->text, token->id) == SHU_OK;
}

static void answer(struct engine *engine, struct truth *truth, int speculate, struct generate_result *result) {
    struct generate_options options;
    generate_defaults(&options);
    options.max_tokens = ANSWER;
    options.ignore_end = true;
    options.speculate = speculate;
    int s = tiny_sequence(engine);
    MUST(generate(engine, s, truth->text.id, truth->text.count, &options, collect, truth, result, &must));
    sequence_free(engine, s);
}

static void make_truth(enum kv_type kv, struct truth *truth) {
    struct engine *engine = open_real(1, kv, 1);
    struct generate_result result;
    memset(truth, 0, sizeof *truth);
    MUST(tokenizer_encode(engine_tokenizer(engine), engine_tokenizer_work(engine), TEXT, strlen(TEXT),
                          ENCODE_PARSE_SPECIAL, &truth->text, &must));
    truth->prompt = (int)truth->text.count;
    answer(engine, truth, 0, &result);
    size_t row = (size_t)engine_config(engine)->vocab * sizeof(float);
    truth->logits = malloc(ROWS * row);
    struct step_item item = {tiny_sequence(engine), truth->text.id, (int)truth->text.count, ROWS};
    MUST(engine_step(engine, &item, 1, &must));
    for (int i = 0; i < ROWS; i++) memcpy((char *)truth->logits + (size_t)i * row, engine_logits(engine, i), row);
    engine_close(engine);
}

static void cut_in_pieces(const struct truth *truth, struct engine *engine, int piece, const char *how) {
    int count = (int)truth->text.count, s = tiny_sequence(engine);
    struct step_item head = {s, truth->text.id, count - ROWS, 0};
    MUST(engine_step(engine, &head, 1, &must));
    for (int at = count - ROWS; at < count; at += piece) {
        int length = at + piece > count ? count - at : piece;
        struct step_item item = {s, truth->text.id + at, length, length};
        MUST(engine_step(engine, &item, 1, &must));
        for (int i = 0; i < length; i++) compare(truth, engine, i, at + i - (count - ROWS), how);
    }
    sequence_free(engine, s);
}

static void in_a_batch(const struct truth *truth, struct engine *engine) {
    int count = (int)truth->text.count, id[OTHERS];
    int32_t noise[OTHERS][ROWS];
    for (int s = 0; s < OTHERS; s++) {
        id[s] = tiny_sequence(engine);
        random_tokens(noise[s], ROWS, 150000, (uint64_t)s);
    }
    const int mine = 5;
    struct step_item head = {id[mine], truth->text.id, count - ROWS, 0};
    MUST(engine_step(engine, &head, 1, &must));
    for (int at = 0; at < ROWS; at += 5) { /* the others bring 1 to 8 rows each */
        struct step_item items[OTHERS];
        int first = 0;
        for (int s = 0; s < OTHERS; s++) {
            int length = s == mine ? 5 : at == 0 ? 1 + s : 1;
            const int32_t *from = s == mine ? truth->text.id + count - ROWS + at : noise[s];
            items[s] = (struct step_item){id[s], from, length, length};
            if (s < mine) first += length;
        }
        MUST(engine_step(engine, items, OTHERS, &must));
        for (int i = 0; i < 5; i++) compare(truth, engine, first + i, at + i, "in a batch of 8");
    }
    for (int s = 0; s < OTHERS; s++) sequence_free(engine, id[s]);
}

static void speculated(const struct truth *truth, struct engine *engine) {
    struct truth copy = {0};
    struct generate_result result;
    for (int i = 0; i < truth->prompt; i++) assert_int_equal(tokens_push(&copy.text, truth->text.id[i]), SHU_OK);
    answer(engine, &copy, 8, &result);
    print_message("drafted %d, accepted %d of %d\n", result.draft_tokens, result.draft_accepted, ANSWER);
    assert_int_equal(copy.text.count, truth->text.count);
    assert_memory_equal(copy.text.id, truth->text.id, copy.text.count * sizeof *copy.text.id);
    assert_true(result.draft_accepted > 0);
    tokens_free(&copy.text);
}

static void one_row_is_one_row(void **state) {
    (void)state;
    for (int kv = KV_F16; kv <= KV_Q8; kv++) {
        struct truth truth;
        make_truth((enum kv_type)kv, &truth);
        struct engine *engine = open_real(2, (enum kv_type)kv, OTHERS);
        cut_in_pieces(&truth, engine, 1, "one by one");
        cut_in_pieces(&truth, engine, 7, "in sevens");
        cut_in_pieces(&truth, engine, ROWS, "whole");
        in_a_batch(&truth, engine);
        speculated(&truth, engine);
        engine_close(engine);
        tokens_free(&truth.text);
        free(truth.logits);
    }
}

int main(void) {
    if (!model_present()) return 77; /* ctest lists it as skipped */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peak_memory),
        cmocka_unit_test(one_row_is_one_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
