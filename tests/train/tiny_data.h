/* Training sets over the vocabulary of a tiny model. */
#ifndef TESTS_TRAIN_TINY_DATA_H
#define TESTS_TRAIN_TINY_DATA_H

#include "train/check.h"

struct tiny_data {
    struct tokenizer *tokenizer;
    char template_text[1024];
    char data[TINY_PATH_BYTES], shard[TINY_PATH_BYTES];
    struct trainset_options options;
    struct trainset *set;
    struct trainset_report report;
};

static inline void tiny_data_new(struct tiny_data *tiny, const char *suffix) {
    char path[TINY_PATH_BYTES];
    struct tiny_spec spec;
    struct model *model = NULL;
    memset(tiny, 0, sizeof *tiny);
    tiny_defaults("qwen2", &spec);
    spec.layers = 1;
    tiny_path(path, ".gguf");
    MUST(tiny_write(path, &spec, &must));
    MUST(model_open(path, &model, &must));
    MUST(model_tokenizer(model, &tiny->tokenizer, &must));
    snprintf(tiny->template_text, sizeof tiny->template_text, "%s", model_chat_template(model));
    model_close(model);
    unlink(path);
    tiny_path(tiny->data, suffix);
    tiny_path(tiny->shard, ".shard");
    tiny->options =
        (struct trainset_options){.context = 64, .seed = 1, .template_text = tiny->template_text, .quiet = true};
}

static inline int tiny_data_open(struct tiny_data *tiny, const char *text, struct shu_error *err) {
    trainset_close(tiny->set);
    tiny->set = NULL;
    if (text) write_text(tiny->data, text, strlen(text));
    return trainset_open(tiny->data, tiny->shard, tiny->tokenizer, &tiny->options, &tiny->set, &tiny->report, err);
}

static inline void tiny_data_free(struct tiny_data *tiny) {
    char rejects[TINY_PATH_BYTES + 16];
    trainset_close(tiny->set);
    tokenizer_free(tiny->tokenizer);
    snprintf(rejects, sizeof rejects, "%s.rejects.jsonl", tiny->shard);
    unlink(rejects);
    unlink(tiny->data);
    unlink(tiny->shard);
}

#endif
