/* Whole runs on tiny models: what is learned, and that nothing depends on micro-batches, ranks, or interruptions. */
#include "train/tiny_run.h"

#include <math.h>
#include <pthread.h>

#include "infer/infer.h"
#include "support/tiny_hf.h"
#include "train/trainer.h"

/* ----------------------------------------------------------------- learning */

enum { FACTS = 32 };

static void fact(int i, char question[32], char answer[32]) {
    static const char *const herbs[] = {"ren", "huang", "ling", "gui", "shao", "zhu", "fu", "ma"};
    snprintf(question, 32, "What does %s %d treat?", herbs[i % 8], i / 8);
    snprintf(answer, 32, "%c%d-%s 川贝%d", 'A' + i % 26, i * 37 % 100, herbs[(i * 5 + 3) % 8], i % 7);
}

/* Learning by heart takes minutes under a sanitizer, and what it shows are numbers; the other tests take every path. */
#ifdef SHU_SANITIZED
static const bool slow_here = true;
#else
static const bool slow_here = false;
#endif

static void write_facts(struct tiny_run *run) {
    struct buf text = {0};
    for (int i = 0; i < FACTS; i++) {
        char question[32], answer[32];
        fact(i, question, answer);
        buf_printf(
            &text,
            "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"},{\"role\":\"assistant\",\"content\":\"%s\"}]}\n",
            question, answer);
    }
    write_text(run->data, text.data, text.len);
    buf_free(&text);
}

struct answer {
    char text[128];
    size_t bytes;
};

static bool take_text(void *context, const struct generated_token *token) {
    struct answer *answer = context;
    for (size_t i = 0; i < token->bytes && answer->bytes + 1 < sizeof answer->text; i++)
        answer->text[answer->bytes++] = token->text[i];
    answer->text[answer->bytes] = 0;
    return true;
}

/* Answers that the model gives word for word. */
static int known_facts(struct engine *engine) {
    int known = 0;
    for (int i = 0; i < FACTS; i++) {
        char question[32], expected[32];
        struct answer answer = {.bytes = 0};
        struct tokens prompt = {0};
        struct generate_options options;
        struct generate_result result;
        int sequence = -1;
        fact(i, question, expected);
        json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", question);
        MUST(prompt_from_messages(engine, messages, NULL, true, &prompt, &must));
        generate_defaults(&options);
        options.max_tokens = 40;
        MUST(sequence_new(engine, &sequence, &must));
        MUST(generate(engine, sequence, prompt.id, prompt.count, &options, take_text, &answer, &result, &must));
        sequence_free(engine, sequence);
        known += strcmp(answer.text, expected) == 0 && result.reason == FINISH_END;
        tokens_free(&prompt);
        json_decref(messages);
    }
    return known;
}

static int known_with(const char *model, const char *adapter) {
    struct engine *engine = NULL;
    const struct engine_adapter beside = {adapter, 1};
    const struct engine_options options = {.threads = 2, .adapters = &beside, .adapter_count = adapter ? 1 : 0};
    MUST(engine_open(model, &options, &engine, &must));
    int known = known_facts(engine);
    engine_close(engine);
    return known;
}

static void facts_are_learned_word_for_word(void **state) {
    (void)state;
    if (slow_here) skip();
    struct tiny_run run;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    struct tiny_spec spec;
    tiny_defaults("qwen2", &spec);
    spec.gain = 2; /* a frozen output matrix of normed rows bounds how sure an answer can be */
    MUST(tiny_write(run.model, &spec, &must));
    run.recipe.steps = 300;
    run.recipe.rank = 16;
    run.recipe.alpha = 32;
    run.recipe.micro_batch = 4;
    run.recipe.learning_rate = 5e-3;
    run.recipe.schedule = SCHEDULE_COSINE;
    run.recipe.checkpoint_every = 0;
    assert_int_equal(known_with(run.model, NULL), 0);
    struct train_metrics last = tiny_run_all(&run);
    if (!(last.loss < 0.02)) fail_msg("loss %g", last.loss);
    assert_int_equal(known_with(run.model, tiny_run_file(&run, "adapter.gguf")), FACTS);
    assert_int_equal(known_with(run.model, tiny_run_file(&run, "adapter")), FACTS);
    tiny_run_free(&run);
}

static void full_training_learns_them_too(void **state) {
    (void)state;
    if (slow_here) skip();
    static const enum dtype types[] = {DT_F32, DT_BF16};
    for (int i = 0; i < 2; i++) {
        struct tiny_run run;
        tiny_run_new(&run, TRAIN_FULL, "llama");
        write_facts(&run);
        run.recipe.steps = 120;
        run.recipe.context = 128;
        run.recipe.learning_rate = 3e-3;
        run.recipe.state_type = types[i];
        tiny_run_all(&run);
        assert_in_range(known_with(tiny_run_file(&run, "model.gguf"), NULL), FACTS - (types[i] == DT_BF16), FACTS);
        tiny_run_free(&run);
    }
}

/* Folders keep llama's rotary rows in halves; what full training leaves is a file, with the order of files. */
static void a_folder_becomes_a_file_with_its_order_of_rows(void **state) {
    (void)state;
    struct tiny_run run;
    struct model *before = NULL, *after = NULL;
    char folder[TINY_PATH_BYTES];
    tiny_run_new(&run, TRAIN_FULL, "llama");
    write_facts(&run);
    run.recipe.steps = 1;
    run.recipe.learning_rate = 1e-9;
    run.recipe.state_type = DT_F32;
    tiny_path(folder, ".hf");
    MUST(model_open(run.model, &before, &must));
    MUST(tiny_export_hf(before, folder, 1, DT_F32, &must));
    char gguf[TINY_PATH_BYTES];
    memcpy(gguf, run.model, sizeof gguf);
    memcpy(run.model, folder, sizeof folder);
    tiny_run_all(&run);
    MUST(model_open(tiny_run_file(&run, "model.gguf"), &after, &must));
    assert_int_equal(model_tensor_count(after), model_tensor_count(before));
    for (int64_t i = 0; i < model_tensor_count(before); i++) {
        const struct tensor *was = &model_tensor_at(before, i)->view;
        const struct model_tensor *found = model_tensor_find(after, model_tensor_at(before, i)->name);
        assert_non_null(found);
        const float *x = was->data, *y = found->view.data;
        for (int64_t k = 0; k < was->shape[0] * was->shape[1]; k++)
            if (!(fabsf(x[k] - y[k]) <= 1e-6f)) fail_msg("%s: value %lld", found->name, (long long)k);
    }
    model_close(after);
    model_close(before);
    tiny_remove_hf(folder);
    memcpy(run.model, gguf, sizeof gguf);
    tiny_run_free(&run);
}

static void a_new_network_learns_text(void **state) {
    (void)state;
    struct tiny_run run;
    struct buf text = {0};
    struct train_metrics first, last;
    tiny_run_new(&run, TRAIN_SCRATCH, "qwen3"); /* its vocabulary; its sizes are others than the new network's */
    for (int i = 0; i < 200; i++) buf_printf(&text, "the herb of line %d is in the book and is not.\n\n", i);
    write_text(run.data, text.data, text.len);
    buf_free(&text);
    run.recipe.network = (struct decoder_config){.arch = ARCH_QWEN3,
                                                 .layers = 2,
                                                 .width = 64,
                                                 .heads = 4,
                                                 .kv_heads = 2,
                                                 .head_dim = 16,
                                                 .ffn = 80,
                                                 .context = 256,
                                                 .norm_eps = 1e-5f,
                                                 .rope_base = 10000,
                                                 .tied_output = true};
    run.recipe.steps = 40;
    run.recipe.batch = 4;
    run.recipe.context = 64;
    run.recipe.held_out = 0.1;
    run.recipe.learning_rate = 5e-3;
    tiny_run_some(&run, false, 1, &first);
    tiny_run_clear(&run);
    last = tiny_run_all(&run);
    assert_true(first.loss > 5); /* about ln of the vocabulary */
    assert_true(last.loss < 1.5 && last.held_out_loss < 1.5);
    struct model *model = NULL;
    struct decoder_config config;
    MUST(model_open(tiny_run_file(&run, "model.gguf"), &model, &must));
    MUST(decoder_config_read(model, &config, &must));
    assert_int_equal(config.arch, ARCH_QWEN3);
    assert_int_equal(config.ffn, 80);
    assert_int_equal(config.context, 256);
    model_close(model);
    char *metrics = read_text(tiny_run_file(&run, "metrics.jsonl"));
    assert_contains(metrics, "held_out_bits_per_byte");
    free(metrics);
    tiny_run_free(&run);
}

/* Among pairs that all follow one rule, those held out must come to follow it too. */
static void preferences_reach_held_out_pairs(void **state) {
    (void)state;
    struct tiny_run run;
    struct buf text = {0};
    struct train_metrics last;
    tiny_run_new(&run, TRAIN_DPO, "qwen2");
    for (int i = 0; i < 120; i++)
        buf_printf(&text, "{\"prompt\":\"Say %d\",\"chosen\":\"%d yes\",\"rejected\":\"%d no\"}\n", i, i * 7 % 10,
                   i * 3 % 10);
    write_text(run.data, text.data, text.len);
    buf_free(&text);
    run.recipe.steps = 30;
    run.recipe.context = 64;
    run.recipe.batch = 8;
    run.recipe.micro_batch = 4;
    run.recipe.held_out = 0.25;
    run.recipe.eval_every = 10;
    run.recipe.learning_rate = 2e-3;
    last = tiny_run_all(&run);
    assert_true(last.loss < 0.3);
    assert_true(last.accuracy > 0.95);
    assert_true(last.held_out_margin > 0.5);
    assert_true(last.held_out_accuracy > 0.9);
    char *metrics = read_text(tiny_run_file(&run, "metrics.jsonl"));
    assert_contains(metrics,
                    "{\"step\":0,\"held_out_loss\":0.693147181,\"held_out_margin\":0"); /* ln 2: nothing learned yet */
    free(metrics);
    tiny_run_free(&run);
}

/* ------------------------------------------------------------- independence */

static void micro_batches_change_nothing_but_rounding(void **state) {
    (void)state;
    double loss[3][6], norm[3][6];
    for (int k = 0; k < 3; k++) {
        struct tiny_run run;
        struct train_metrics metrics;
        static const int micro[] = {1, 3, 8};
        tiny_run_new(&run, TRAIN_LORA, "gemma3");
        write_facts(&run);
        run.recipe.micro_batch = micro[k];
        run.recipe.steps = 6;
        run.recipe.learning_rate = 5e-3;
        run.recipe.precision = GEMM_F32;
        for (int step = 0; step < 6; step++) {
            tiny_run_some(&run, step > 0, 1, &metrics);
            loss[k][step] = metrics.loss;
            norm[k][step] = metrics.gradient_norm;
        }
        tiny_run_free(&run);
    }
    for (int k = 1; k < 3; k++)
        for (int step = 0; step < 6; step++) {
            assert_true(fabs(loss[k][step] - loss[0][step]) < 2e-5 * loss[0][step]);
            assert_true(fabs(norm[k][step] - norm[0][step]) < 1e-3 * norm[0][step]);
        }
    assert_true(loss[0][5] != loss[0][0]);
}

/* Weights of records scale their share of the loss: weight 3 is the same as thrice the line (in one step). */
static void a_weight_counts_like_copies(void **state) {
    (void)state;
    static const char *const data[2] = {
        "{\"text\":\"ABCDEF\",\"weight\":3}\n{\"text\":\"UVWXYZ0123\"}\n",
        "{\"text\":\"ABCDEF\"}\n{\"text\":\"ABCDEF\"}\n{\"text\":\"ABCDEF\"}\n{\"text\":\"UVWXYZ0123\"}\n"};
    double loss[2];
    for (int k = 0; k < 2; k++) {
        struct tiny_run run;
        struct train_metrics metrics;
        tiny_run_new(&run, TRAIN_LORA, "qwen2");
        write_text(run.data, data[k], strlen(data[k]));
        run.recipe.batch = 1;
        run.recipe.micro_batch = 1;
        tiny_run_some(&run, false, 1, &metrics);
        loss[k] = metrics.loss;
        tiny_run_free(&run);
    }
    assert_true(fabs(loss[0] - loss[1]) < 1e-5 * loss[0]);
}

static void a_resumed_run_writes_the_same(void **state) {
    (void)state;
    static const enum train_method methods[] = {TRAIN_LORA, TRAIN_FULL, TRAIN_DPO};
    for (int k = 0; k < 3; k++) {
        struct tiny_run whole, parts;
        struct train_metrics metrics;
        struct tiny_run *runs[] = {&whole, &parts};
        for (int r = 0; r < 2; r++) {
            tiny_run_new(runs[r], methods[k], "qwen2");
            tiny_run_write_pairs_or_text(runs[r]);
            runs[r]->recipe.steps = 14;
            runs[r]->recipe.batch = 3;
            runs[r]->recipe.micro_batch = 2;
            runs[r]->recipe.dropout = methods[k] == TRAIN_LORA ? 0.1 : 0;
            runs[r]->recipe.state_type = DT_BF16;
            runs[r]->recipe.held_out = 0.2;
            runs[r]->recipe.eval_every = 4;
            runs[r]->recipe.checkpoint_every = 3;
        }
        tiny_run_all(&whole);
        tiny_run_some(&parts, false, 5, &metrics); /* left without a word: steps 4 and 5 are lost */
        tiny_run_some(&parts, true, 5, &metrics);
        assert_int_equal(metrics.step, 8);
        parts.threads = 1;
        tiny_run_rest(&parts);
        tiny_run_assert_same(&whole, &parts);
        tiny_run_free(&whole);
        tiny_run_free(&parts);
    }
}

/* Two ranks in two threads; sums are taken where both meet. */
struct meeting {
    pthread_barrier_t barrier;
    const struct train_span *spans[2];
    int calls;
};
struct rank {
    struct meeting *meeting;
    struct tiny_run *run;
    int rank;
    struct train_metrics metrics[4];
};

static int meet(void *context, const struct train_span *spans, int count, struct shu_error *err) {
    struct rank *rank = context;
    struct meeting *meeting = rank->meeting;
    (void)err;
    meeting->spans[rank->rank] = spans;
    pthread_barrier_wait(&meeting->barrier);
    if (rank->rank == 0) {
        meeting->calls++;
        for (int s = 0; s < count; s++)
            for (int64_t i = 0; i < spans[s].count; i++) {
                const struct train_span *a = &meeting->spans[0][s], *b = &meeting->spans[1][s];
                if (a->values)
                    a->values[i] = b->values[i] = a->values[i] + b->values[i];
                else
                    a->doubles[i] = b->doubles[i] = a->doubles[i] + b->doubles[i];
            }
    }
    pthread_barrier_wait(&meeting->barrier);
    return SHU_OK;
}

static void *run_rank(void *context) {
    struct rank *rank = context;
    const struct train_reduce reduce = {.rank = rank->rank, .ranks = 2, .sum = meet, .context = rank};
    struct trainer_options options = tiny_run_options(rank->run, false);
    struct trainer *trainer = NULL;
    bool done = false;
    options.reduce = &reduce;
    MUST(trainer_open(&rank->run->recipe, &options, &trainer, &must));
    for (int step = 0; step < 4; step++) MUST(trainer_step(trainer, &rank->metrics[step], &done, &must));
    trainer_close(trainer);
    return NULL;
}

static void two_ranks_do_what_one_does(void **state) {
    (void)state;
    struct tiny_run one, two[2];
    struct meeting meeting = {.calls = 0};
    struct rank ranks[2];
    pthread_t threads[2];
    pthread_barrier_init(&meeting.barrier, NULL, 2);
    tiny_run_new(&one, TRAIN_LORA, "qwen2");
    write_facts(&one);
    one.recipe.steps = 10;
    one.recipe.batch = 5;
    for (int r = 0; r < 2; r++) {
        tiny_run_new(&two[r], TRAIN_LORA, "qwen2");
        write_facts(&two[r]);
        two[r].recipe = one.recipe;
        ranks[r] = (struct rank){.meeting = &meeting, .run = &two[r], .rank = r};
        assert_int_equal(pthread_create(&threads[r], NULL, run_rank, &ranks[r]), 0);
    }
    for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
    for (int step = 0; step < 4; step++) {
        struct train_metrics metrics;
        tiny_run_some(&one, step > 0, 1, &metrics);
        assert_true(ranks[0].metrics[step].loss == ranks[1].metrics[step].loss);
        assert_true(fabs(ranks[0].metrics[step].loss - metrics.loss) < 1e-5 * metrics.loss);
        assert_int_equal(ranks[0].metrics[step].tokens, metrics.tokens);
    }
    assert_int_equal(meeting.calls, 8);
    pthread_barrier_destroy(&meeting.barrier);
    tiny_run_free(&one);
    for (int r = 0; r < 2; r++) tiny_run_free(&two[r]);
}

/* Dropout is for learning: an evaluation sees the whole adapter. */
static void evaluations_drop_nothing(void **state) {
    (void)state;
    struct tiny_run run;
    struct trainer *trainers[2] = {NULL, NULL};
    struct train_metrics metrics;
    struct sums sums[2];
    bool done;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    run.recipe.held_out = 0.3;
    for (int k = 0; k < 2; k++) {
        char out[TINY_PATH_BYTES + 16];
        run.recipe.dropout = k ? 0.5 : 0;
        snprintf(out, sizeof out, "%s%d", run.out, k);
        struct trainer_options options = tiny_run_options(&run, false);
        options.out_dir = out;
        MUST(trainer_open(&run.recipe, &options, &trainers[k], &must));
        for (int step = 0; step < 3; step++) MUST(trainer_step(trainers[k], &metrics, &done, &must));
        if (k == 1) /* the same values in both */
            for (int i = 0; i < trainers[0]->optimiser.count; i++) {
                struct graph_parameter *from = &trainers[0]->optimiser.parameters[i].parameter;
                memcpy(trainers[1]->optimiser.parameters[i].parameter.data, from->data,
                       (size_t)(from->rows * from->cols) * sizeof(float));
            }
        tiny_remove(out);
    }
    for (int k = 0; k < 2; k++) MUST(evaluate(trainers[k], &sums[k], &must));
    assert_true(sums[0].loss == sums[1].loss);
    for (int k = 0; k < 2; k++) trainer_close(trainers[k]);
    tiny_run_free(&run);
}

/* ------------------------------------------------------------------ guards */

static void early_stopping_keeps_the_best(void **state) {
    (void)state;
    struct tiny_run run;
    struct train_metrics metrics;
    struct trainer *trainer = NULL;
    double best = INFINITY;
    int64_t best_step = 0;
    bool done = false;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    run.recipe.steps = 400;
    run.recipe.held_out = 0.3;
    run.recipe.eval_every = 5;
    run.recipe.patience = 3;
    run.recipe.learning_rate = 1e-2;
    struct trainer_options options = tiny_run_options(&run, false);
    MUST(trainer_open(&run.recipe, &options, &trainer, &must));
    while (!done) {
        MUST(trainer_step(trainer, &metrics, &done, &must));
        if (!(metrics.held_out_loss < best)) continue;
        best = metrics.held_out_loss;
        best_step = metrics.step;
    }
    assert_true(metrics.step < 400);
    assert_int_equal(metrics.step, best_step + 15);
    MUST(trainer_finish(trainer, &must));
    trainer_close(trainer);
    char *card = read_text(tiny_run_file(&run, "README.md")), expected[64];
    snprintf(expected, sizeof expected, "the weights are those of step %lld", (long long)best_step);
    assert_contains(card, expected);
    free(card);
    tiny_run_free(&run);
}

/* With patience the best weights are kept, also where it never ran out; the card says whose they are. */
static void patience_that_lasts_keeps_the_best_too(void **state) {
    (void)state;
    struct tiny_run run;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    run.recipe.steps = 4;
    run.recipe.held_out = 0.3;
    run.recipe.eval_every = 2;
    run.recipe.patience = 100;
    tiny_run_all(&run);
    char *card = read_text(tiny_run_file(&run, "README.md"));
    assert_contains(card, "; the weights are those of step ");
    assert_null(strstr(card, "stopped early"));
    free(card);
    tiny_run_free(&run);
}

static float *parameter_data(struct trainer *trainer, const char *name) {
    for (int i = 0; i < trainer->optimiser.count; i++)
        if (strcmp(trainer->optimiser.parameters[i].parameter.name, name) == 0)
            return trainer->optimiser.parameters[i].parameter.data;
    fail_msg("no parameter %s", name);
    return NULL;
}

/* A value that is no number makes every loss no number: no step changes anything, and the run ends with a reason. */
static void a_run_that_diverges_ends_with_a_reason(void **state) {
    (void)state;
    struct tiny_run run;
    struct train_metrics metrics;
    struct trainer *trainer = NULL;
    struct shu_error err = {0};
    bool done = false;
    int status = SHU_OK, skipped = 0;
    tiny_run_new(&run, TRAIN_FULL, "qwen2");
    write_facts(&run);
    run.recipe.steps = 50;
    run.recipe.state_type = DT_F32;
    struct trainer_options options = tiny_run_options(&run, false);
    MUST(trainer_open(&run.recipe, &options, &trainer, &must));
    for (int i = 0; i < 3; i++) MUST(trainer_step(trainer, &metrics, &done, &must));
    assert_false(metrics.skipped);
    float *values = parameter_data(trainer, "output_norm.weight"), second = values[1];
    values[0] = NAN;
    while (!status && !done) {
        status = trainer_step(trainer, &metrics, &done, &err);
        skipped += metrics.skipped;
    }
    assert_int_equal(status, SHU_E_RANGE);
    assert_contains(err.message, "refused; lower learning_rate");
    assert_int_equal(skipped, 10);
    assert_true(values[1] == second);
    trainer_close(trainer);
    char *text = read_text(tiny_run_file(&run, "metrics.jsonl"));
    assert_contains(text, "{\"step\":4,\"loss\":null,");
    assert_contains(text, "\"skipped\":true");
    free(text);
    tiny_run_free(&run);
}

/* ----------------------------------------------------------------- refusals */

static void refuses(struct tiny_run *run, bool resume, int code, const char *word) {
    struct trainer *trainer = NULL;
    struct shu_error err = {0};
    struct trainer_options options = tiny_run_options(run, resume);
    int status = trainer_open(&run->recipe, &options, &trainer, &err);
    if (status != code) fail_msg("expected %d (%s), found %d: %s", code, word, status, err.message);
    assert_contains(err.message, word);
    assert_null(strchr(err.message, '\n'));
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    struct tiny_run run;
    struct train_metrics metrics;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    run.recipe.checkpoint_every = 1;
    run.recipe.context = 1024;
    refuses(&run, false, SHU_E_RANGE, "context: the base was trained for at most 512");
    run.recipe.context = 128;
    tiny_run_some(&run, false, 3, &metrics);
    refuses(&run, false, SHU_E_USAGE, "has reached step 3; add --resume");
    run.recipe.rank = 8;
    refuses(&run, true, SHU_E_UNSUPPORTED, "rank was 4 when this run began and is now 8");
    run.recipe.rank = 4;
    write_text(run.data, "{\"text\":\"other\"}\n{\"text\":\"words\"}\n", 35);
    refuses(&run, true, SHU_E_UNSUPPORTED, "the data (or how it is read) is not that of this run");
    write_facts(&run);
    tiny_run_other_base(&run);
    refuses(&run, true, SHU_E_UNSUPPORTED, "the base is not that of this run");
    tiny_run_free(&run);
}

/* The data of a run that has begun is not replaced by a refused one, nor by a plan; a folder has one run at a time, and
 * nothing that a run reads is written over. */
static void a_folder_is_guarded(void **state) {
    (void)state;
    struct tiny_run run;
    struct train_metrics metrics;
    struct shu_error err = {0};
    struct trainer *first = NULL;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    tiny_run_some(&run, false, 2, &metrics);
    char *shard = read_text(tiny_run_file(&run, "data.shard"));
    write_text(run.data, "{\"text\":\"other\"}\n{\"text\":\"words\"}\n", 35);
    refuses(&run, true, SHU_E_UNSUPPORTED, "the data (or how it is read) is not that of this run");
    struct trainer_options options = tiny_run_options(&run, false);
    options.probe = true;
    MUST(trainer_open(&run.recipe, &options, &first, &must));
    refuses(&run, true, SHU_E_USAGE, "another run is at work in");
    trainer_close(first);
    char *after = read_text(tiny_run_file(&run, "data.shard"));
    assert_string_equal(shard, after);
    assert_false(file_exists(tiny_run_file(&run, "plan.shard")));
    options = tiny_run_options(&run, true);
    options.base = tiny_run_file(&run, "model.gguf");
    write_text(options.base, "GGUF", 4);
    assert_int_equal(trainer_open(&run.recipe, &options, &first, &err), SHU_E_USAGE);
    assert_contains(err.message, "would be replaced by what the run writes");
    free(shard);
    free(after);
    tiny_run_free(&run);
}

static void a_damaged_checkpoint_leads_to_the_one_before(void **state) {
    (void)state;
    struct tiny_run run;
    struct train_metrics metrics;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    run.recipe.checkpoint_every = 2;
    tiny_run_some(&run, false, 4, &metrics);
    write_text(tiny_run_file(&run, "checkpoint-00000004.shu"), "SHUTRAIN", 8);
    tiny_run_some(&run, true, 1, &metrics);
    assert_int_equal(metrics.step, 3);
    write_text(tiny_run_file(&run, "checkpoint-00000002.shu"), "SHUTRAIN", 8);
    refuses(&run, true, SHU_E_FORMAT, "checkpoint-00000004.shu: not a whole checkpoint");
    tiny_run_free(&run);
}

/* Each write of a run fails once: metrics, checkpoint or products. The run says so, and goes on from what it saved. */
static void a_full_disk_costs_only_the_steps_since(void **state) {
    (void)state;
    struct tiny_run whole;
    tiny_run_new(&whole, TRAIN_LORA, "qwen2");
    write_facts(&whole);
    whole.recipe.steps = 4;
    whole.recipe.checkpoint_every = 2;
    tiny_run_all(&whole);
    int failures = 0;
    for (long k = 1;; k += k < 20 ? 3 : 97) {
        struct tiny_run run;
        struct shu_error err = {0};
        tiny_run_new(&run, TRAIN_LORA, "qwen2");
        write_facts(&run);
        run.recipe = whole.recipe;
        fault_arm(FAULT_WRITE, k);
        int status = tiny_run_try(&run, &err);
        fault_arm(FAULT_WRITE, 0);
        if (status) {
            failures++;
            assert_int_equal(status, SHU_E_IO);
            tiny_run_rest(&run);
        }
        tiny_run_assert_same(&whole, &run);
        tiny_run_free(&run);
        if (!status) break;
    }
    assert_true(failures >= 8);
    tiny_run_free(&whole);
}

/* -------------------------------------------------------------------- plan */

static void a_plan_leaves_no_run(void **state) {
    (void)state;
    struct tiny_run run;
    struct trainer *trainer = NULL;
    struct train_plan plan;
    tiny_run_new(&run, TRAIN_LORA, "qwen2");
    write_facts(&run);
    run.recipe.steps = 100;
    run.recipe.price_per_kwh = 2;
    struct trainer_options options = tiny_run_options(&run, false);
    options.probe = true;
    MUST(trainer_open(&run.recipe, &options, &trainer, &must));
    MUST(trainer_plan(trainer, 0.3, &plan, &must));
    trainer_close(trainer);
    assert_int_equal(plan.steps, 100);
    assert_true(plan.tokens > 100 * 100 && plan.tokens < 100 * 8 * 128);
    assert_true(plan.seconds > 0 && plan.tokens_per_second > 0 && plan.peak_bytes > 0 && plan.parameters > 0);
    assert_true(fabs(plan.kwh_estimated - plan.seconds * 65 / 3.6e6) < 1e-9);
    assert_true(fabs(plan.money_estimated - 2 * plan.kwh_estimated) < 1e-12);
    assert_false(file_exists(tiny_run_file(&run, "metrics.jsonl")));
    assert_false(file_exists(tiny_run_file(&run, "checkpoint-00000001.shu")));
    tiny_run_free(&run);
}

/* The reference of DPO takes a pass over all data: a plan reckons with it and does not wait for it. */
static void a_plan_of_preferences_computes_no_reference(void **state) {
    (void)state;
    struct tiny_run run;
    struct trainer *trainer = NULL;
    struct train_plan plan;
    tiny_run_new(&run, TRAIN_DPO, "qwen2");
    tiny_run_write_pairs_or_text(&run);
    run.recipe.steps = 1;
    struct trainer_options options = tiny_run_options(&run, false);
    options.probe = true;
    MUST(trainer_open(&run.recipe, &options, &trainer, &must));
    MUST(trainer_plan(trainer, 0.1, &plan, &must));
    double rows = 0;
    for (int64_t i = 0; i < trainset_sequences(trainer->set); i++)
        rows += (double)trainer->set->shard.index[i].tokens - 1;
    trainer_close(trainer);
    assert_true(fabs(plan.seconds * plan.tokens_per_second - (double)plan.tokens - rows / 3) < 2);
    assert_false(file_exists(tiny_run_file(&run, "reference.shu")));
    tiny_run_free(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_are_learned_word_for_word),
        cmocka_unit_test(full_training_learns_them_too),
        cmocka_unit_test(a_folder_becomes_a_file_with_its_order_of_rows),
        cmocka_unit_test(a_new_network_learns_text),
        cmocka_unit_test(preferences_reach_held_out_pairs),
        cmocka_unit_test(micro_batches_change_nothing_but_rounding),
        cmocka_unit_test(a_weight_counts_like_copies),
        cmocka_unit_test(a_resumed_run_writes_the_same),
        cmocka_unit_test(two_ranks_do_what_one_does),
        cmocka_unit_test(evaluations_drop_nothing),
        cmocka_unit_test(early_stopping_keeps_the_best),
        cmocka_unit_test(patience_that_lasts_keeps_the_best_too),
        cmocka_unit_test(a_run_that_diverges_ends_with_a_reason),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(a_folder_is_guarded),
        cmocka_unit_test(a_damaged_checkpoint_leads_to_the_one_before),
        cmocka_unit_test(a_full_disk_costs_only_the_steps_since),
        cmocka_unit_test(a_plan_leaves_no_run),
        cmocka_unit_test(a_plan_of_preferences_computes_no_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
