/* The loop around the engine: the same text with and without speculation, prefix reuse, stop strings, reasons to
 * finish. */
#include <math.h>
#include <signal.h>

#include "infer/tiny_engine.h"

enum { PROMPT = 60, ANSWER = 120 };

struct answer {
    int32_t ids[512];
    float logprobs[512];
    int count, calls;
    struct buf text;
    int cancel_after; /* 0 = never */
    struct generate_result result;
    int32_t top_ids[512][GENERATE_MAX_TOP];
    float top[512][GENERATE_MAX_TOP];
};

static bool collect(void *context, const struct generated_token *token) {
    struct answer *answer = context;
    answer->calls++;
    if (token->id >= 0) {
        answer->ids[answer->count] = token->id;
        answer->logprobs[answer->count] = token->logprob;
        for (int i = 0; i < token->top_count; i++) {
            answer->top_ids[answer->count][i] = token->top_ids[i];
            answer->top[answer->count][i] = token->top_logprobs[i];
        }
        answer->count++;
    }
    assert_int_equal(buf_append(&answer->text, token->text, token->bytes), SHU_OK);
    return answer->cancel_after == 0 || answer->count < answer->cancel_after;
}

static void ask(struct engine *engine, int sequence, const int32_t *prompt, size_t count,
                const struct generate_options *options, struct answer *out) {
    int cancel_after = out->cancel_after;
    struct buf text = out->text;
    buf_clear(&text);
    memset(out, 0, sizeof *out);
    out->text = text;
    out->cancel_after = cancel_after;
    MUST(generate(engine, sequence, prompt, count, options, collect, out, &out->result, &must));
    assert_int_equal(out->result.completion_tokens, out->count);
}

static void same_answer(const struct answer *a, const struct answer *b) {
    assert_int_equal(a->count, b->count);
    for (int i = 0; i < a->count; i++) {
        if (a->ids[i] != b->ids[i]) fail_msg("token %d: %d and %d", i, (int)a->ids[i], (int)b->ids[i]);
        assert_true(a->logprobs[i] == b->logprobs[i]);
    }
    assert_int_equal(a->text.len, b->text.len);
    if (a->text.len) assert_memory_equal(a->text.data, b->text.data, a->text.len);
    assert_int_equal(a->result.reason, b->result.reason);
}

static struct engine *engine_for(const char *arch, enum dtype dtype, int context, int max_rows) {
    char path[TINY_PATH_BYTES];
    tiny_model(path, arch, dtype, 0);
    struct engine_options options = {
        .threads = 2, .context = context, .kv_positions = 3 * context, .max_sequences = 3, .max_rows = max_rows};
    struct engine *engine = tiny_engine(path, &options);
    unlink(path);
    return engine;
}

/* A prompt that repeats itself, so that drafts are found. */
static void repeating_prompt(int32_t *out, int vocab) {
    random_tokens(out, PROMPT, vocab - 3, 9);
    for (int i = 20; i < PROMPT; i++) out[i] = out[i - 20];
}

/* ------------------------------------------------------------- speculation */

static void speculation_changes_nothing(void **state) {
    (void)state;
    static const struct sampler_options samplers[] = {
        {.top_p = 1, .repetition = 1},
        {.top_p = 1, .repetition = 1.3f, .presence = .1f, .frequency = .1f},
        {.temperature = .3f, .top_k = 3, .top_p = 1, .repetition = 1, .seed = 4},
        {.temperature = 1, .top_p = .9f, .min_p = .01f, .repetition = 1.1f, .seed = 5},
    };
    static const char *const archs[] = {"llama", "qwen2", "gemma3"};
    int drafted = 0, accepted = 0;
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++) {
        struct engine *engine = engine_for(archs[a], DT_Q8_0, 256, 64);
        int32_t prompt[PROMPT];
        repeating_prompt(prompt, engine_config(engine)->vocab);
        for (size_t s = 0; s < sizeof samplers / sizeof *samplers; s++) {
            static struct answer plain, with;
            struct generate_options options = {
                .max_tokens = ANSWER, .sampler = samplers[s], .ignore_end = true, .logprobs = true};
            int one = tiny_sequence(engine), two = tiny_sequence(engine);
            ask(engine, one, prompt, PROMPT, &options, &plain);
            assert_int_equal(plain.count, ANSWER);
            assert_int_equal(plain.result.reason, FINISH_LENGTH);
            assert_int_equal(plain.result.draft_tokens, 0);
            for (int length = 1; length <= 16; length += 5) {
                options.speculate = length;
                sequence_free(engine, two);
                two = tiny_sequence(engine);
                ask(engine, two, prompt, PROMPT, &options, &with);
                same_answer(&plain, &with);
                drafted += with.result.draft_tokens;
                accepted += with.result.draft_accepted;
                /* nothing of a rejected draft stays behind */
                assert_int_equal(sequence_length(engine, two), sequence_length(engine, one));
                assert_memory_equal(sequence_tokens(engine, two), sequence_tokens(engine, one),
                                    (size_t)sequence_length(engine, one) * sizeof(int32_t));
            }
            sequence_free(engine, one);
            sequence_free(engine, two);
            buf_free(&plain.text);
            buf_free(&with.text);
            memset(&plain, 0, sizeof plain);
            memset(&with, 0, sizeof with);
        }
        engine_close(engine);
    }
    print_message("drafted %d, accepted %d\n", drafted, accepted);
    assert_true(accepted > 100 && accepted < drafted); /* control: both outcomes occurred */
}

/* ------------------------------------------------------------------- prefix */

static void held_prefix_is_reused(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen2", DT_Q8_0, 256, 16); /* four chunks of prompt */
    int32_t prompt[PROMPT + 30];
    random_tokens(prompt, PROMPT + 30, engine_config(engine)->vocab - 3, 3);
    struct generate_options options;
    static struct answer first, again, fresh;
    generate_defaults(&options);
    options.max_tokens = 20;
    options.ignore_end = options.logprobs = true;
    int s = tiny_sequence(engine);
    ask(engine, s, prompt, PROMPT, &options, &first);
    assert_int_equal(first.result.prompt_cached, 0);
    assert_int_equal(first.result.prompt_tokens, PROMPT);
    assert_int_equal(sequence_length(engine, s), PROMPT + 19); /* the last token was never fed */
    assert_memory_equal(sequence_tokens(engine, s) + PROMPT, first.ids, 19 * sizeof(int32_t));
    ask(engine, s, prompt, PROMPT, &options, &again); /* the very same prompt: all but its last token */
    assert_int_equal(again.result.prompt_cached, PROMPT - 1);
    same_answer(&first, &again);
    ask(engine, s, prompt, PROMPT + 30, &options, &again); /* goes on differently behind the prompt */
    assert_int_equal(again.result.prompt_cached, PROMPT);
    int f = tiny_sequence(engine);
    ask(engine, f, prompt, PROMPT + 30, &options, &fresh);
    same_answer(&again, &fresh);
    prompt[7] ^= 1;
    ask(engine, s, prompt, PROMPT, &options, &again);
    assert_int_equal(again.result.prompt_cached, 7);
    sequence_free(engine, f);
    f = tiny_sequence(engine);
    ask(engine, f, prompt, PROMPT, &options, &fresh);
    same_answer(&again, &fresh);
    buf_free(&first.text);
    buf_free(&again.text);
    buf_free(&fresh.text);
    engine_close(engine);
}

/* --------------------------------------------------------------- stop strings */

/* Every substring of a known answer in turn as stop string: the text ends right before its first occurrence. */
static void stop_strings_cut_the_text(void **state) {
    (void)state;
    struct engine *engine = engine_for("llama", DT_F32, 256, 64);
    int32_t prompt[PROMPT];
    repeating_prompt(prompt, engine_config(engine)->vocab);
    struct generate_options options;
    static struct answer plain, cut;
    generate_defaults(&options);
    options.sampler = (struct sampler_options){.temperature = 2, .top_p = 1, .repetition = 1, .seed = 3};
    options.max_tokens = 60;
    options.ignore_end = true;
    int s = tiny_sequence(engine);
    ask(engine, s, prompt, PROMPT, &options, &plain);
    assert_true(plain.text.len > 40);
    for (size_t at = 0; at + 8 < plain.text.len; at += 3) {
        for (size_t length = 1; length <= 7; length += 3) {
            char stop[8] = {0};
            memcpy(stop, plain.text.data + at, length);
            if (strlen(stop) != length) continue; /* the answer may hold NUL bytes */
            const char *stops[] = {"never in the text", stop};
            options.stop = stops;
            options.stop_count = 2;
            options.speculate = (int)(at % 2) * 8;
            ask(engine, s, prompt, PROMPT, &options, &cut);
            const char *found = memmem(plain.text.data, plain.text.len, stop, length);
            assert_int_equal(cut.result.reason, FINISH_STOP);
            assert_int_equal(cut.text.len, found - plain.text.data);
            if (cut.text.len) assert_memory_equal(cut.text.data, plain.text.data, cut.text.len);
        }
    }
    const char *half[] = {"@@@@@@@@", "\x01never"};
    options.stop = half;
    options.speculate = 0;
    ask(engine, s, prompt, PROMPT, &options, &cut); /* held-back text comes out at the end */
    assert_int_equal(cut.text.len, plain.text.len);
    assert_memory_equal(cut.text.data, plain.text.data, cut.text.len);
    buf_free(&plain.text);
    buf_free(&cut.text);
    engine_close(engine);
}

/* -------------------------------------------------------------------- endings */

static void every_reason_to_finish(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen2", DT_F32, 100, 64);
    int vocab = engine_config(engine)->vocab;
    int32_t prompt[PROMPT];
    repeating_prompt(prompt, vocab);
    struct generate_options options;
    static struct answer answer;
    generate_defaults(&options);
    int s = tiny_sequence(engine);

    options.ignore_end = true;
    for (int speculate = 0; speculate <= 8; speculate += 8) {
        options.speculate = speculate;
        ask(engine, s, prompt, PROMPT, &options, &answer);
        assert_int_equal(answer.result.reason, FINISH_CONTEXT);
        assert_int_equal(answer.count, 100 - PROMPT + 1); /* the token drawn from the last position counts */
        assert_int_equal(sequence_length(engine, s), 100);
    }
    options.speculate = 0;
    options.max_tokens = 1;
    ask(engine, s, prompt, PROMPT, &options, &answer);
    assert_int_equal(answer.result.reason, FINISH_LENGTH);
    assert_int_equal(answer.count, 1);

    options.max_tokens = 30;
    answer.cancel_after = 5;
    ask(engine, s, prompt, PROMPT, &options, &answer);
    assert_int_equal(answer.result.reason, FINISH_CANCELLED);
    assert_int_equal(answer.count, 5);
    assert_int_equal(answer.calls, 5); /* not called again */
    answer.cancel_after = 0;

    interrupt_install();
    raise(SIGINT); /* pending before the first step */
    ask(engine, s, prompt, PROMPT, &options, &answer);
    interrupt_clear();
    assert_int_equal(answer.result.reason, FINISH_CANCELLED);
    assert_int_equal(answer.count, 0);

    /* End tokens: at temperature 100 all tokens are about equally likely, and 3 of some 290 end the answer. */
    options.ignore_end = false;
    options.max_tokens = 0;
    int ended = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        options.sampler = (struct sampler_options){.temperature = 100, .top_p = 1, .repetition = 1, .seed = seed};
        ask(engine, s, prompt, PROMPT, &options, &answer);
        for (int i = 0; i < answer.count; i++) assert_false(tokenizer_is_end(engine_tokenizer(engine), answer.ids[i]));
        if (answer.result.reason == FINISH_END) {
            ended++;
            assert_int_equal(sequence_length(engine, s), PROMPT + answer.count); /* the whole answer was fed */
        }
    }
    assert_true(ended > 3);
    assert_string_equal(finish_reason_name(FINISH_END), "stop");
    assert_string_equal(finish_reason_name(FINISH_CONTEXT), "length");
    assert_string_equal(finish_reason_name(FINISH_CANCELLED), "cancelled");
    buf_free(&answer.text);
    memset(&answer, 0, sizeof answer);
    engine_close(engine);
}

static void log_probabilities_are_the_models(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen3", DT_F32, 256, 80);
    int vocab = engine_config(engine)->vocab;
    int32_t prompt[PROMPT + 30];
    repeating_prompt(prompt, vocab);
    struct generate_options options;
    static struct answer answer;
    generate_defaults(&options);
    options.max_tokens = 10;
    options.ignore_end = true;
    options.top_logprobs = 4;
    options.speculate = 4;
    int s = tiny_sequence(engine), check = tiny_sequence(engine);
    ask(engine, s, prompt, PROMPT, &options, &answer);
    memcpy(prompt + PROMPT, answer.ids, 10 * sizeof *prompt);
    struct step_item item = {check, prompt, PROMPT + 9, 10};
    MUST(engine_step(engine, &item, 1, &must));
    for (int i = 0; i < 10; i++) {
        const float *logits = engine_logits(engine, i);
        double sum = 0;
        for (int v = 0; v < vocab; v++) sum += exp((double)logits[v]);
        assert_int_equal(answer.top_ids[i][0], answer.ids[i]); /* greedy */
        for (int k = 0; k < 4; k++) {
            double want = (double)logits[answer.top_ids[i][k]] - log(sum);
            assert_true(fabs((double)answer.top[i][k] - want) < 1e-5);
            assert_true(k == 0 || answer.top[i][k] <= answer.top[i][k - 1]);
        }
        assert_true(fabsf(answer.logprobs[i] - answer.top[i][0]) < 1e-6f);
    }
    buf_free(&answer.text);
    engine_close(engine);
}

/* ------------------------------------------------------------------- grammar */

static bool is_record(const char *text, size_t bytes) {
    size_t at = 0;
    if (bytes == 0 || text[at++] != '{') return false;
    size_t letters = at;
    while (at < bytes && text[at] >= 'a' && text[at] <= 'f') at++;
    if (at == letters || at - letters > 12 || at == bytes || text[at++] != ':') return false;
    size_t digits = at;
    while (at < bytes && text[at] >= '0' && text[at] <= '9') at++;
    return at > digits && at + 1 == bytes && text[at] == '}';
}

/* A random model under a grammar writes only what the grammar allows, and the same with and without drafts. */
static void grammars_hold_with_and_without_drafts(void **state) {
    (void)state;
    static const char SOURCE[] = "root ::= \"{\" [a-f]{1,12} \":\" [0-9]{1,20} \"}\"";
    struct engine *engine = engine_for("qwen2", DT_Q8_0, 256, 64);
    struct grammar *grammar = NULL;
    MUST(grammar_from_ebnf(SOURCE, sizeof SOURCE - 1, engine_tokenizer(engine), &grammar, &must));
    /* A prompt that holds such records gives drafts that the grammar partly refuses. */
    static const char TEXT[] = "{abcdef:0123456789} {aab:00000000} {f:1} {abcdef:0123456789";
    struct tokens prompt = {0};
    MUST(tokenizer_encode(engine_tokenizer(engine), engine_tokenizer_work(engine), TEXT, sizeof TEXT - 1, 0, &prompt,
                          &must));
    struct generate_options options;
    static struct answer plain, with;
    generate_defaults(&options);
    options.grammar = grammar;
    int s = tiny_sequence(engine), drafted = 0, accepted = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        options.sampler = (struct sampler_options){
            .temperature = seed % 4 ? 0.5f : 0, .top_p = 1, .repetition = seed % 2 ? 1 : 1.2f, .seed = seed};
        options.speculate = 0;
        ask(engine, s, prompt.id, prompt.count, &options, &plain);
        if (!is_record(plain.text.data, plain.text.len))
            fail_msg("seed %d: \"%.*s\"", (int)seed, (int)plain.text.len, plain.text.data);
        assert_true(plain.result.reason == FINISH_GRAMMAR || plain.result.reason == FINISH_END);
        options.speculate = 8;
        ask(engine, s, prompt.id, prompt.count, &options, &with);
        same_answer(&plain, &with);
        drafted += with.result.draft_tokens;
        accepted += with.result.draft_accepted;
    }
    print_message("under a grammar: drafted %d, accepted %d\n", drafted, accepted);
    assert_true(accepted > 0);
    tokens_free(&prompt);
    buf_free(&plain.text);
    buf_free(&with.text);
    memset(&plain, 0, sizeof plain);
    memset(&with, 0, sizeof with);
    grammar_free(grammar);
    engine_close(engine);
}

static void bad_requests_are_refused(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen2", DT_F32, 64, 64);
    int32_t prompt[65] = {0};
    int32_t outside[] = {1, 1 << 24};
    const char *empty[] = {""};
    struct generate_options plain, negative, far, many, no_stop, hot;
    generate_defaults(&plain);
    negative = far = many = no_stop = hot = plain;
    negative.max_tokens = -1;
    far.speculate = 100000;
    many.top_logprobs = 21;
    no_stop.stop = empty;
    no_stop.stop_count = 1;
    hot.sampler.temperature = -2;
    int s = tiny_sequence(engine);
    const struct {
        const int32_t *prompt;
        size_t count;
        const struct generate_options *options;
        int sequence, code;
        const char *words;
    } cases[] = {
        {prompt, 0, &plain, s, SHU_E_USAGE, "no tokens"},
        {prompt, 65, &plain, s, SHU_E_RANGE, "the context holds 64"},
        {outside, 2, &plain, s, SHU_E_USAGE, "prompt token 1"},
        {prompt, 1, &negative, s, SHU_E_USAGE, "max_tokens"},
        {prompt, 1, &far, s, SHU_E_USAGE, "speculate"},
        {prompt, 1, &many, s, SHU_E_USAGE, "top_logprobs"},
        {prompt, 1, &no_stop, s, SHU_E_USAGE, "stop string 1 is empty"},
        {prompt, 1, &hot, s, SHU_E_USAGE, "temperature"},
        {prompt, 1, &plain, 7, SHU_E_USAGE, "sequence 7"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct generate_result result;
        struct shu_error err = {0};
        int status = generate(engine, cases[i].sequence, cases[i].prompt, cases[i].count, cases[i].options, NULL, NULL,
                              &result, &err);
        if (status != cases[i].code || !strstr(err.message, cases[i].words))
            fail_msg("case %zu: %d %s", i, status, err.message);
    }
    engine_close(engine);
}

/* ------------------------------------------------------- many answers at once */

/* Two answers advanced by one engine_step each time: the same as one after the other. */
static void answers_share_steps(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen2", DT_Q8_0, 256, 40);
    int vocab = engine_config(engine)->vocab;
    int32_t prompt[2][PROMPT];
    static struct answer alone[2], together[2];
    struct generate_options options;
    generate_defaults(&options);
    options.max_tokens = 50;
    options.ignore_end = options.logprobs = true;
    options.speculate = 6;
    repeating_prompt(prompt[0], vocab);
    random_tokens(prompt[1], PROMPT, vocab - 3, 8);
    struct generation *generation[2];
    for (int i = 0; i < 2; i++) {
        int s = tiny_sequence(engine);
        ask(engine, s, prompt[i], PROMPT, &options, &alone[i]);
        sequence_free(engine, s);
    }
    for (int i = 0; i < 2; i++)
        MUST(generation_new(engine, tiny_sequence(engine), prompt[i], PROMPT, &options, collect, &together[i],
                            &generation[i], &must));
    while (!generation_done(generation[0]) || !generation_done(generation[1])) {
        struct step_item items[2];
        struct generation *owner[2];
        int count = 0, row = 0;
        for (int i = 0; i < 2; i++)
            if (generation_next(generation[i], 20, 20, &items[count])) owner[count++] = generation[i];
        MUST(engine_step(engine, items, count, &must));
        for (int i = 0; i < count; i++) {
            MUST(generation_take(owner[i], row, &must));
            row += items[i].logits;
        }
    }
    for (int i = 0; i < 2; i++) {
        generation_result(generation[i], &together[i].result);
        same_answer(&alone[i], &together[i]);
        generation_free(generation[i]);
        buf_free(&alone[i].text);
        buf_free(&together[i].text);
    }
    engine_close(engine);
}

#ifdef SHU_FAULTS
static void an_answer_allocates_only_at_its_start(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen2", DT_Q8_0, 256, 64);
    int32_t prompt[PROMPT];
    repeating_prompt(prompt, engine_config(engine)->vocab);
    struct generate_options options;
    struct generation *generation;
    struct step_item item;
    generate_defaults(&options);
    options.sampler = (struct sampler_options){.temperature = 1, .top_p = .9f, .repetition = 1.1f};
    options.max_tokens = 100;
    options.top_logprobs = 5;
    options.speculate = 8;
    options.ignore_end = true;
    MUST(generation_new(engine, tiny_sequence(engine), prompt, PROMPT, &options, NULL, NULL, &generation, &must));
    fault_arm(FAULT_ALLOC, 1 << 30);
    while (generation_next(generation, 64, 64, &item)) {
        MUST(engine_step(engine, &item, 1, &must));
        MUST(generation_take(generation, 0, &must));
    }
    assert_int_equal(fault_count(FAULT_ALLOC), 0);
    fault_arm(FAULT_ALLOC, 0);
    generation_free(generation);
    engine_close(engine);
}

static void every_failed_allocation_is_a_clean_error(void **state) {
    (void)state;
    struct engine *engine = engine_for("qwen2", DT_F32, 128, 64);
    int32_t prompt[PROMPT];
    repeating_prompt(prompt, engine_config(engine)->vocab);
    struct generate_options options;
    generate_defaults(&options);
    options.max_tokens = 8;
    options.speculate = 4;
    options.ignore_end = true;
    int s = tiny_sequence(engine), failures = 0;
    for (long k = 1;; k++) {
        struct generate_result result;
        struct shu_error err = {0};
        fault_arm(FAULT_ALLOC, k);
        int status = generate(engine, s, prompt, PROMPT, &options, NULL, NULL, &result, &err);
        bool fired = fault_count(FAULT_ALLOC) >= k;
        fault_arm(FAULT_ALLOC, 0);
        assert_int_equal(status, fired ? SHU_E_NOMEM : SHU_OK);
        if (!fired) break;
        assert_true(err.message[0] != 0);
        failures++;
    }
    assert_true(failures > 8);
    engine_close(engine);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(speculation_changes_nothing),
        cmocka_unit_test(held_prefix_is_reused),
        cmocka_unit_test(stop_strings_cut_the_text),
        cmocka_unit_test(every_reason_to_finish),
        cmocka_unit_test(log_probabilities_are_the_models),
        cmocka_unit_test(grammars_hold_with_and_without_drafts),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(answers_share_steps),
#ifdef SHU_FAULTS
        cmocka_unit_test(an_answer_allocates_only_at_its_start),
        cmocka_unit_test(every_failed_allocation_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
