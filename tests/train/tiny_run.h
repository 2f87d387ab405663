/* Training runs on tiny models, each in a folder of its own. */
#ifndef TESTS_TRAIN_TINY_RUN_H
#define TESTS_TRAIN_TINY_RUN_H

#include "train/check.h"

#include <dirent.h>
#include <sys/stat.h>

struct tiny_run {
    struct recipe recipe;
    char model[TINY_PATH_BYTES], data[TINY_PATH_BYTES], out[TINY_PATH_BYTES];
    char file[2 * TINY_PATH_BYTES];
    const char *arch;
    int threads;
};

/* Small enough for a test: context 128, batch 8, micro-batch 2, rank 4, constant rate, nothing held out. */
static inline void tiny_run_new(struct tiny_run *run, enum train_method method, const char *arch) {
    struct tiny_spec spec;
    memset(run, 0, sizeof *run);
    run->arch = arch;
    run->threads = 2;
    tiny_path(run->model, ".gguf");
    tiny_path(run->data, ".jsonl");
    tiny_path(run->out, ".run");
    if (method == TRAIN_SCRATCH) memcpy(strrchr(run->data, '.'), ".txt", 5);
    tiny_defaults(arch, &spec);
    MUST(tiny_write(run->model, &spec, &must));
    recipe_defaults(method, &run->recipe);
    run->recipe.context = 128;
    run->recipe.micro_batch = 2;
    run->recipe.batch = 8;
    run->recipe.rank = 4;
    run->recipe.alpha = 8;
    run->recipe.learning_rate = 2e-3;
    run->recipe.warmup = 0;
    run->recipe.schedule = SCHEDULE_CONSTANT;
    run->recipe.held_out = 0;
    run->recipe.steps = 20;
    run->recipe.eval_every = 0;
    run->recipe.checkpoint_every = 1;
}

static inline void tiny_run_other_base(struct tiny_run *run) {
    struct tiny_spec spec;
    tiny_defaults(run->arch, &spec);
    spec.seed = 77;
    MUST(tiny_write(run->model, &spec, &must));
}

/* Valid until the next call. */
static inline const char *tiny_run_file(struct tiny_run *run, const char *name) {
    snprintf(run->file, sizeof run->file, "%s/%s", run->out, name);
    return run->file;
}

static inline void tiny_remove(const char *path) {
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        struct buf inside = {0};
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        buf_printf(&inside, "%s/%s", path, entry->d_name);
        if (path_is_dir(inside.data))
            tiny_remove(inside.data);
        else
            unlink(inside.data);
        buf_free(&inside);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

static inline void tiny_run_clear(struct tiny_run *run) {
    tiny_remove(run->out);
}

static inline void tiny_run_free(struct tiny_run *run) {
    tiny_run_clear(run);
    unlink(run->model);
    unlink(run->data);
}

static inline struct trainer_options tiny_run_options(struct tiny_run *run, bool resume) {
    bool scratch = run->recipe.method == TRAIN_SCRATCH;
    return (struct trainer_options){.base = scratch ? NULL : run->model,
                                    .tokenizer = scratch ? run->model : NULL,
                                    .data = run->data,
                                    .out_dir = run->out,
                                    .resume = resume,
                                    .quiet = true,
                                    .threads = run->threads};
}

/* At most `steps` steps (0: all) and, at the end of the run, what it leaves. */
static inline int tiny_run_drive(struct tiny_run *run, bool resume, int64_t steps, struct train_metrics *out,
                                 struct shu_error *err) {
    struct trainer_options options = tiny_run_options(run, resume);
    struct trainer *trainer = NULL;
    int status = trainer_open(&run->recipe, &options, &trainer, err);
    bool done = !status && trainer_done(trainer);
    for (int64_t i = 0; !status && !done && (steps == 0 || i < steps); i++)
        status = trainer_step(trainer, out, &done, err);
    if (!status && done) status = trainer_finish(trainer, err);
    trainer_close(trainer);
    return status;
}

static inline void tiny_run_some(struct tiny_run *run, bool resume, int64_t steps, struct train_metrics *out) {
    MUST(tiny_run_drive(run, resume, steps, out, &must));
}

static inline struct train_metrics tiny_run_all(struct tiny_run *run) {
    struct train_metrics metrics;
    MUST(tiny_run_drive(run, false, 0, &metrics, &must));
    return metrics;
}

static inline int tiny_run_try(struct tiny_run *run, struct shu_error *err) {
    struct train_metrics metrics;
    return tiny_run_drive(run, false, 0, &metrics, err);
}

static inline void tiny_run_rest(struct tiny_run *run) {
    struct train_metrics metrics;
    MUST(tiny_run_drive(run, true, 0, &metrics, &must));
}

static inline void tiny_run_write_pairs_or_text(struct tiny_run *run) {
    struct buf text = {0};
    for (int i = 0; i < 40; i++) {
        if (run->recipe.method == TRAIN_DPO)
            buf_printf(&text, "{\"prompt\":\"Say %d\",\"chosen\":\"%d yes\",\"rejected\":\"%d no\"}\n", i, i % 7,
                       i % 5);
        else
            buf_printf(&text, "{\"prompt\":\"Say %d\",\"completion\":\"well, %d and %d\"}\n", i, i * i, i % 5);
    }
    write_text(run->data, text.data, text.len);
    buf_free(&text);
}

/* metrics.jsonl without what depends on the clock. */
static inline char *tiny_run_metrics(struct tiny_run *run) {
    char *text = read_text(tiny_run_file(run, "metrics.jsonl")), *to = text;
    for (const char *from = text; *from;) {
        static const char head[] = ",\"tokens_per_second\":";
        if (strncmp(from, head, sizeof head - 1) == 0) from = strchr(from, '}');
        *to++ = *from++;
    }
    *to = 0;
    return text;
}

static inline void tiny_run_assert_same(struct tiny_run *a, struct tiny_run *b) {
    const char *product = a->recipe.method == TRAIN_FULL ? "model.gguf" : "adapter.gguf";
    char *one = tiny_run_metrics(a), *two = tiny_run_metrics(b);
    struct buf x = {0}, y = {0};
    assert_string_equal(one, two);
    MUST(file_read(tiny_run_file(a, product), 1 << 26, &x, &must));
    MUST(file_read(tiny_run_file(b, product), 1 << 26, &y, &must));
    assert_int_equal(x.len, y.len);
    if (a->recipe.method == TRAIN_FULL) /* the name of the folder stands in its metadata */
        assert_memory_equal(x.data + x.len / 2, y.data + y.len / 2, x.len - x.len / 2);
    free(one);
    free(two);
    buf_free(&x);
    buf_free(&y);
}

#endif
