/* Text to sequences: where the loss lies, what is refused and why, what a shard keeps. */
#include "train/shard.h"
#include "train/tiny_data.h"

/* The rows of one sequence as text; tokens with a loss stand in brackets: "user: hi\n[there]". */
static char *shown(struct tiny_data *tiny, int64_t sequence) {
    struct train_pack pack;
    struct buf out = {0};
    int64_t packs;
    MUST(trainset_packs(tiny->set, false, 0, &packs, &must));
    for (int64_t p = 0; p < packs; p++) {
        MUST(trainset_pack(tiny->set, false, 0, p, &pack, &must));
        for (int64_t s = 0; s < pack.sequences; s++) {
            if (pack.sequence[s] != sequence) continue;
            bool open = false;
            tokenizer_decode(tiny->tokenizer, &pack.tokens[pack.first[s]], 1, true, &out);
            for (int32_t r = pack.first[s]; r < pack.first[s + 1]; r++) {
                bool loss = pack.targets[r] >= 0;
                assert_true(loss == (pack.weight[r] > 0));
                assert_int_equal(pack.begin[r], pack.first[s]);
                assert_int_equal(pack.position[r], r - pack.first[s]);
                if (loss != open) buf_putc(&out, loss ? '[' : ']');
                open = loss;
                int32_t next = loss ? pack.targets[r] : pack.tokens[r + 1];
                if (loss && r + 1 < pack.first[s + 1]) assert_int_equal(next, pack.tokens[r + 1]);
                tokenizer_decode(tiny->tokenizer, &next, 1, true, &out);
            }
            if (open) buf_putc(&out, ']');
        }
    }
    char *copy = strdup(out.data ? out.data : "");
    buf_free(&out);
    return copy;
}

static void expect(struct tiny_data *tiny, const char *line, const char *expected) {
    MUST(tiny_data_open(tiny, line, &must));
    assert_int_equal(tiny->report.sequences, 1);
    char *text = shown(tiny, 0);
    assert_string_equal(text, expected);
    free(text);
}

#define USER "<|im_start|>user\n"
#define BOT  "<|im_start|>assistant\n"
#define END  "<|im_end|>"

static void the_loss_lies_on_what_the_assistant_says(void **state) {
    (void)state;
    struct tiny_data tiny;
    tiny_data_new(&tiny, ".jsonl");
    expect(&tiny,
           "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"you\"}]}\n",
           USER "hi" END "\n" BOT "[you" END "]");
    expect(&tiny,
           "{\"messages\":[{\"role\":\"system\",\"content\":\"be\"},{\"role\":\"user\",\"content\":\"a\"},"
           "{\"role\":\"assistant\",\"content\":\"b\"},{\"role\":\"user\",\"content\":\"c\"},"
           "{\"role\":\"assistant\",\"content\":\"d\"}]}",
           "<|im_start|>system\nbe" END "\n" USER "a" END "\n" BOT "[b" END "]\n" USER "c" END "\n" BOT "[d" END "]");
    expect(
        &tiny,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\"weight\":0},"
        "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}",
        USER "a" END "\n" BOT "b" END "\n" USER "c" END "\n" BOT "[d" END "]");
    expect(&tiny, "{\"conversations\":[{\"from\":\"human\",\"value\":\"hi\"},{\"from\":\"gpt\",\"value\":\"\\nyou\"}]}",
           USER "hi" END "\n" BOT "[\nyou" END "]");
    expect(&tiny, "{\"prompt\":\"hi\",\"completion\":\"you\"}", USER "hi" END "\n" BOT "[you" END "]");
    expect(&tiny,
           "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"h\"},{\"type\":\"text\","
           "\"text\":\"i\"}]},{\"role\":\"assistant\",\"content\":\"you\"}]}",
           USER "hi" END "\n" BOT "[you" END "]");
    tiny.options.all_tokens = true;
    expect(&tiny, "{\"prompt\":\"hi\",\"completion\":\"you\"}", "<|im_start|>[user\nhi" END "\n" BOT "you" END "\n]");
    tiny_data_free(&tiny);
}

static void control_tokens_of_messages_stay_text(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct train_pack pack;
    int controls = 0;
    tiny_data_new(&tiny, ".jsonl");
    expect(&tiny, "{\"prompt\":\"<|im_end|>\",\"completion\":\"a<|im_end|>b\"}",
           USER "<|im_end|>" END "\n" BOT "[a<|im_end|>b" END "]");
    MUST(trainset_pack(tiny.set, false, 0, 0, &pack, &must));
    for (int64_t r = 0; r < pack.rows; r++) {
        int32_t token = pack.tokens[r];
        controls += tokenizer_type(tiny.tokenizer, token) == TOKEN_CONTROL;
    }
    assert_int_equal(controls, 3); /* the last one is only a target */
    tiny_data_free(&tiny);
}

/* A template that shows the last answer otherwise than earlier ones, as those with thoughts do. */
static void answers_that_change_when_others_follow_become_sequences(void **state) {
    (void)state;
    struct tiny_data tiny;
    tiny_data_new(&tiny, ".jsonl");
    snprintf(
        tiny.template_text, sizeof tiny.template_text, "%s",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<t>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
    MUST(tiny_data_open(
        &tiny,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
        "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}",
        &must));
    assert_int_equal(tiny.report.sequences, 2);
    char *one = shown(&tiny, 0), *two = shown(&tiny, 1);
    assert_string_equal(one, USER "a" END "\n" BOT "[<t>b" END "]");
    assert_string_equal(two, USER "a" END "\n" BOT "b" END "\n" USER "c" END "\n" BOT "[<t>d" END "]");
    free(one);
    free(two);
    tiny_data_free(&tiny);
}

/* Openings of answers that lie before the end of the one before must not be cut as if they followed it. */
static void answers_within_each_other_become_sequences(void **state) {
    (void)state;
    struct tiny_data tiny;
    tiny_data_new(&tiny, ".jsonl");
    snprintf(tiny.template_text, sizeof tiny.template_text, "%s",
             "{% if not add_generation_prompt %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}");
    MUST(tiny_data_open(
        &tiny,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
        "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}",
        &must));
    assert_int_equal(tiny.report.sequences, 2);
    char *one = shown(&tiny, 0), *two = shown(&tiny, 1);
    assert_string_equal(one, "a[b]");
    assert_string_equal(two, "a[bcd]");
    free(one);
    free(two);
    tiny_data_free(&tiny);
}

static void without_a_template_words_are_joined(void **state) {
    (void)state;
    struct tiny_data tiny;
    tiny_data_new(&tiny, ".jsonl");
    tiny.options.template_text = NULL;
    expect(&tiny, "{\"prompt\":\"the \",\"completion\":\"end\"}", "the [end" END "]");
    expect(&tiny, "{\"text\":\"Hugo\"}", "H[ugo" END "]");
    tiny_data_free(&tiny);
}

static void plain_text_is_parted_at_blank_lines_and_split(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct train_pack pack;
    int64_t packs, losses = 0;
    tiny_data_new(&tiny, ".txt");
    MUST(tiny_data_open(&tiny, "\n\nOne\ntwo\n\n \t\n\nThree\n", &must));
    assert_int_equal(tiny.report.lines, 2);
    char *one = shown(&tiny, 0), *two = shown(&tiny, 1);
    assert_string_equal(one, "O[ne\ntwo" END "]");
    assert_string_equal(two, "T[hree" END "]");
    assert_int_equal(trainset_line(tiny.set, 0), 3);
    assert_int_equal(trainset_line(tiny.set, 1), 8);
    free(one);
    free(two);
    char text[301];
    for (int i = 0; i < 300; i++) text[i] = (char)('A' + i % 26);
    text[300] = 0;
    tiny.options.context = 50;
    MUST(tiny_data_open(&tiny, text, &must));
    assert_int_equal(tiny.report.cut, 1);
    MUST(trainset_packs(tiny.set, false, 0, &packs, &must));
    for (int64_t p = 0; p < packs; p++) {
        MUST(trainset_pack(tiny.set, false, 0, p, &pack, &must));
        assert_true(pack.rows <= 50);
        for (int64_t r = 0; r < pack.rows; r++) losses += pack.targets[r] >= 0;
    }
    assert_int_equal(losses, 300); /* every token but the first, the end included, exactly once */
    assert_int_equal(tiny.report.loss_tokens, 300);
    tiny_data_free(&tiny);
}

static void passages_and_weights_stay_with_their_sequence(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct train_pack pack;
    tiny_data_new(&tiny, ".jsonl");
    MUST(tiny_data_open(&tiny,
                        "{\"text\":\"abc\",\"passages\":[\"p1\",\"另一段\"],\"weight\":0.5}\n"
                        "{\"id\":\"x\",\"text\":\"xyz\",\"passages\":[],\"origin\":\"user\"}\n",
                        &must));
    assert_int_equal(trainset_passage_count(tiny.set, 0), 2);
    assert_int_equal(trainset_passage_count(tiny.set, 1), 0);
    struct span id = trainset_passage(tiny.set, 0, 1);
    assert_int_equal(id.bytes, strlen("另一段"));
    assert_memory_equal(id.text, "另一段", id.bytes);
    MUST(trainset_pack(tiny.set, false, 0, 0, &pack, &must));
    assert_int_equal(pack.sequences, 2);
    for (int64_t s = 0; s < 2; s++) assert_true(pack.weight[pack.first[s]] == (pack.sequence[s] == 0 ? 0.5f : 1.0f));
    tiny_data_free(&tiny);
}

static void pairs_lie_side_by_side(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct train_pack pack;
    tiny_data_new(&tiny, ".jsonl");
    tiny.options.preference = true;
    MUST(tiny_data_open(
        &tiny,
        "{\"prompt\":\"hi\",\"chosen\":\"good\",\"rejected\":\"bad\"}\n"
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"}],\"chosen\":[{\"role\":\"assistant\","
        "\"content\":\"b\"}],\"rejected\":[{\"role\":\"assistant\",\"content\":\"c\"}]}\n"
        "{\"chosen\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"q\"}],"
        "\"rejected\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"r\"}]}\n"
        "{\"prompt\":\"hi\",\"chosen\":\"same\",\"rejected\":\"same\"}\n",
        &must));
    assert_int_equal(tiny.report.sequences, 6);
    assert_int_equal(tiny.report.rejected, 1);
    static const char *const expected[6] = {
        USER "hi" END "\n" BOT "[good" END "]", USER "hi" END "\n" BOT "[bad" END "]",
        USER "a" END "\n" BOT "[b" END "]",     USER "a" END "\n" BOT "[c" END "]",
        USER "a" END "\n" BOT "[q" END "]",     USER "a" END "\n" BOT "[r" END "]"};
    for (int i = 0; i < 6; i++) {
        char *text = shown(&tiny, i);
        assert_string_equal(text, expected[i]);
        free(text);
    }
    MUST(trainset_pack(tiny.set, false, 0, 0, &pack, &must));
    for (int64_t s = 0; s < pack.sequences; s += 2) {
        assert_int_equal(pack.sequence[s] % 2, 0);
        assert_int_equal(pack.sequence[s + 1], pack.sequence[s] + 1);
    }
    tiny_data_free(&tiny);
}

/* --------------------------------------------------------------- bad data */

static void refused(const char *line, const char *reason) {
    struct tiny_data tiny;
    struct buf text = {0};
    char rejects[TINY_PATH_BYTES + 16];
    tiny_data_new(&tiny, ".jsonl");
    tiny.options.context = 32;
    MUST(buf_printf(&text, "{\"text\":\"fine\"}\n%s\n{\"text\":\"fine too\"}\n", line) ? SHU_FAIL(&must, -1, "memory")
                                                                                       : 0);
    MUST(tiny_data_open(&tiny, text.data, &must));
    assert_int_equal(tiny.report.lines, 3);
    assert_int_equal(tiny.report.rejected, 1);
    assert_int_equal(tiny.report.sequences, 2);
    snprintf(rejects, sizeof rejects, "%s.rejects.jsonl", tiny.shard);
    char *found = read_text(rejects);
    assert_contains(found, "{\"line\":2,\"reason\":\"");
    assert_contains(found, reason);
    free(found);
    buf_free(&text);
    tiny_data_free(&tiny);
}

static void bad_lines_are_named_and_the_rest_is_used(void **state) {
    (void)state;
    refused("{\"text\": \"a\"", "not valid JSON");
    refused("[1, 2]", "expected an object");
    refused("{}", "\\\"messages\\\"");
    refused("{\"messages\": []}", "list of messages");
    refused("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "no assistant turn");
    refused("{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}", "robot");
    refused("{\"messages\": [{\"role\": \"user\"}]}", "content as text");
    refused("{\"messages\": [\"a\"]}", "message 1");
    refused("{\"conversations\": [{\"from\": \"alien\", \"value\": \"a\"}]}", "alien");
    refused("{\"conversations\": [{\"from\": \"gpt\"}]}", "turn 1");
    refused("{\"prompt\": 1, \"completion\": \"a\"}", "prompt");
    refused("{\"text\": \"a\", \"weight\": 0}", "weight");
    refused("{\"text\": \"a\", \"weight\": \"x\"}", "weight");
    refused("{\"text\": \"a\", \"weight\": 1e-60}", "weight"); /* 0 as the float that a shard keeps */
    refused("{\"text\": \"a\", \"passages\": \"p\"}", "passages");
    refused("{\"text\": \"a\", \"passages\": [1]}", "passages");
    refused("{\"text\": \"\"}", "fewer than two tokens");
    refused("{\"prompt\": \"x\", \"chosen\": \"a\", \"rejected\": \"b\"}", "--method dpo");
    refused("{\"prompt\": \"hi\", \"completion\": \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}",
            "the context is 32");
    refused("{\"text\": \"\xff\"}", "not valid JSON");
}

static void a_passage_id_that_is_too_long_costs_its_line_only(void **state) {
    (void)state;
    char line[SHARD_PASSAGE_BYTES_MAX + 64];
    for (int over = 0; over < 2; over++) {
        struct tiny_data tiny;
        tiny_data_new(&tiny, ".jsonl");
        snprintf(line, sizeof line, "{\"text\":\"abc\",\"passages\":[\"%0*d\"]}\n{\"text\":\"fine\"}\n",
                 (int)SHARD_PASSAGE_BYTES_MAX + over, 0);
        MUST(tiny_data_open(&tiny, line, &must));
        assert_int_equal(tiny.report.rejected, over);
        assert_int_equal(tiny.report.sequences, 2 - over);
        tiny_data_free(&tiny);
    }
}

static void long_conversations_are_cut_on_request(void **state) {
    (void)state;
    struct tiny_data tiny;
    tiny_data_new(&tiny, ".jsonl");
    tiny.options.context = 32;
    tiny.options.cut = true;
    MUST(tiny_data_open(&tiny, "{\"prompt\":\"hi\",\"completion\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}\n",
                        &must));
    assert_int_equal(tiny.report.cut, 1);
    assert_int_equal(tiny.report.tokens, 33);
    tiny_data_free(&tiny);
}

static void nothing_left_is_an_error_that_says_why(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct shu_error err = {0};
    char rejects[TINY_PATH_BYTES + 16];
    tiny_data_new(&tiny, ".jsonl");
    assert_int_equal(tiny_data_open(&tiny, "", &err), SHU_E_FORMAT);
    assert_contains(err.message, "empty file");
    assert_int_equal(tiny_data_open(&tiny, " \n\n", &err), SHU_E_FORMAT);
    assert_contains(err.message, "empty file");
    assert_int_equal(tiny_data_open(&tiny, "[\n  {\"text\": \"a\"}, {\"text\": \"b\"}\n]\n", &err), SHU_E_FORMAT);
    assert_contains(err.message, "found a list");
    assert_int_equal(tiny_data_open(&tiny, "\n{\"text\"\n[]\n", &err), SHU_E_FORMAT);
    assert_contains(err.message, ".jsonl:2: not valid JSON");
    assert_contains(err.message, "none of the 2 lines");
    assert_false(file_exists(tiny.shard));
    snprintf(rejects, sizeof rejects, "%s.rejects.jsonl", tiny.shard);
    assert_true(file_exists(rejects));
    unlink(tiny.data);
    assert_int_equal(tiny_data_open(&tiny, NULL, &err), SHU_E_NOTFOUND);
    tiny_data_free(&tiny);
}

/* ---------------------------------------------------------------- reuse */

static void a_shard_is_made_again_only_when_something_changed(void **state) {
    (void)state;
    struct tiny_data tiny;
    char key[65];
    tiny_data_new(&tiny, ".jsonl");
    MUST(tiny_data_open(&tiny, "{\"text\":\"abc\"}\nrubbish\n", &must));
    assert_false(tiny.report.reused);
    snprintf(key, sizeof key, "%s", trainset_key(tiny.set));
    MUST(tiny_data_open(&tiny, NULL, &must));
    assert_true(tiny.report.reused);
    assert_int_equal(tiny.report.rejected, 1);
    assert_string_equal(trainset_key(tiny.set), key);
    tiny.options.context = 63;
    MUST(tiny_data_open(&tiny, NULL, &must));
    assert_false(tiny.report.reused);
    MUST(tiny_data_open(&tiny, "{\"text\":\"abd\"}\n", &must));
    assert_false(tiny.report.reused);
    assert_string_not_equal(trainset_key(tiny.set), key);
    strncat(tiny.template_text, " ", 2);
    MUST(tiny_data_open(&tiny, NULL, &must));
    assert_false(tiny.report.reused);
    tiny_data_free(&tiny);
}

static void a_shard_serves_as_data(void **state) {
    (void)state;
    struct tiny_data tiny, other;
    struct shu_error err = {0};
    tiny_data_new(&tiny, ".jsonl");
    tiny_data_new(&other, ".shard");
    MUST(tiny_data_open(&tiny, "{\"text\":\"abcdefghijklmnop\"}\n", &must));
    unlink(other.data);
    assert_int_equal(link(tiny.shard, other.data), 0);
    MUST(tiny_data_open(&other, NULL, &must));
    assert_string_equal(trainset_key(other.set), trainset_key(tiny.set));
    other.options.context = 8;
    assert_int_equal(tiny_data_open(&other, NULL, &err), SHU_E_RANGE);
    assert_contains(err.message, "set context: 64");
    other.options.context = 64;
    other.options.preference = true;
    assert_int_equal(tiny_data_open(&other, NULL, &err), SHU_E_UNSUPPORTED);
    tiny_data_free(&other);
    tiny_data_free(&tiny);
}

/* A shard with the key that is wanted, one sequence of `count` times the same id, and more tokens than there are. */
static void forge_shard(const char *path, uint32_t id, size_t count, uint32_t more) {
    struct shard shard;
    struct shard_writer writer;
    struct shard_sequence sequence = {.line = 1, .weight = 1};
    uint32_t *tokens = malloc(count * sizeof *tokens);
    for (size_t i = 0; i < count; i++) tokens[i] = id | SHARD_LOSS;
    MUST(shard_open(path, &shard, &must));
    MUST(shard_writer_open(path, false, &writer, &must));
    MUST(shard_write(&writer, &sequence, tokens, count, NULL, 0, &must));
    MUST(shard_writer_commit(&writer, shard.vocab + more, 64, shard.key, shard.tokenizer, &must));
    shard_close(&shard);
    free(tokens);
}

/* Packs have room for sequences of the context, the network rows for its own vocabulary. */
static void a_shard_that_only_claims_to_fit_is_not_used(void **state) {
    (void)state;
    struct tiny_data tiny, other;
    struct shu_error err = {0};
    tiny_data_new(&tiny, ".jsonl");
    tiny_data_new(&other, ".shard");
    uint32_t vocab = (uint32_t)tokenizer_count(tiny.tokenizer);
    const struct {
        uint32_t id;
        size_t count;
        uint32_t more;
        bool fits;
        int code; /* as data of its own */
    } forged[] = {{1, 65, 0, true, SHU_OK}, {1, 5000, 0, false, SHU_E_RANGE}, {vocab, 65, 1, false, SHU_E_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++) {
        MUST(tiny_data_open(&tiny, "{\"text\":\"abc\"}\n", &must));
        forge_shard(tiny.shard, forged[i].id, forged[i].count, forged[i].more);
        unlink(other.data);
        assert_int_equal(link(tiny.shard, other.data), 0);
        assert_int_equal(tiny_data_open(&other, NULL, &err), forged[i].code);
        MUST(tiny_data_open(&tiny, NULL, &must));
        assert_true(tiny.report.reused == forged[i].fits);
        unlink(tiny.shard);
    }
    tiny_data_free(&other);
    tiny_data_free(&tiny);
}

static void failing_writes_and_memory_leave_no_half_shard(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct shu_error err = {0};
    int failures = 0;
    tiny_data_new(&tiny, ".jsonl");
    write_text(tiny.data, "{\"text\":\"abc\"}\nrubbish\n", 23);
    for (long k = 1; k < 10000; k++) {
        fault_arm(FAULT_WRITE, k);
        int status = tiny_data_open(&tiny, NULL, &err);
        fault_arm(FAULT_WRITE, 0);
        if (!status) break;
        failures++;
        assert_int_equal(status, SHU_E_IO);
        if (!file_exists(tiny.shard)) continue;
        MUST(tiny_data_open(&tiny, NULL, &must)); /* the folder could not be synced: the file is whole */
        assert_true(tiny.report.reused);
        unlink(tiny.shard);
    }
    assert_true(failures >= 5);
    failures = 0;
    for (long k = 1; k < 10000; k++) {
        unlink(tiny.shard);
        fault_arm(FAULT_ALLOC, k);
        int status = tiny_data_open(&tiny, NULL, &err);
        fault_arm(FAULT_ALLOC, 0);
        if (!status) break;
        failures++;
        if (status != SHU_E_NOMEM) fail_msg("allocation %ld: %d %s", k, status, err.message);
    }
    assert_true(failures >= 10);
    tiny_data_free(&tiny);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_loss_lies_on_what_the_assistant_says),
        cmocka_unit_test(control_tokens_of_messages_stay_text),
        cmocka_unit_test(answers_that_change_when_others_follow_become_sequences),
        cmocka_unit_test(answers_within_each_other_become_sequences),
        cmocka_unit_test(without_a_template_words_are_joined),
        cmocka_unit_test(plain_text_is_parted_at_blank_lines_and_split),
        cmocka_unit_test(passages_and_weights_stay_with_their_sequence),
        cmocka_unit_test(pairs_lie_side_by_side),
        cmocka_unit_test(bad_lines_are_named_and_the_rest_is_used),
        cmocka_unit_test(a_passage_id_that_is_too_long_costs_its_line_only),
        cmocka_unit_test(long_conversations_are_cut_on_request),
        cmocka_unit_test(nothing_left_is_an_error_that_says_why),
        cmocka_unit_test(a_shard_is_made_again_only_when_something_changed),
        cmocka_unit_test(a_shard_serves_as_data),
        cmocka_unit_test(a_shard_that_only_claims_to_fit_is_not_used),
        cmocka_unit_test(failing_writes_and_memory_leave_no_half_shard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
