/* The packs a training run sees, for the same run in another program (vs_curve.py, vs_scratch.py).
 *
 *   packs MODEL DATA CONTEXT SEED HELD_OUT EPOCHS OUT [--all-tokens]
 *
 * Writes OUT.train and OUT.held, int32 little-endian, per pack: rows, then tokens, targets (-1: no loss), begin and
 * position of every row. MODEL gives tokenizer and template. */
#include <stdlib.h>
#include <string.h>

#include "train/train.h"

static void check(int status, const struct shu_error *err) {
    if (status == SHU_OK) return;
    fprintf(stderr, "packs: %s\n", err->message);
    exit(1);
}

static void write_pack(struct atomic_file *file, const struct train_pack *pack) {
    struct shu_error err;
    int32_t rows = (int32_t)pack->rows;
    const int32_t *columns[] = {pack->tokens, pack->targets, pack->begin, pack->position};
    check(atomic_write(file, &rows, sizeof rows, &err), &err);
    for (int i = 0; i < 4; i++)
        check(atomic_write(file, columns[i], (size_t)pack->rows * sizeof **columns, &err), &err);
}

static void write_part(struct trainset *set, bool held_out, int64_t epochs, const char *out) {
    struct shu_error err;
    struct atomic_file file;
    struct buf path = {0};
    buf_printf(&path, "%s.%s", out, held_out ? "held" : "train");
    check(atomic_open(path.data, &file, &err), &err);
    for (int64_t epoch = 0; epoch < epochs; epoch++) {
        int64_t packs;
        check(trainset_packs(set, held_out, epoch, &packs, &err), &err);
        for (int64_t i = 0; i < packs; i++) {
            struct train_pack pack;
            check(trainset_pack(set, held_out, epoch, i, &pack, &err), &err);
            write_pack(&file, &pack);
        }
    }
    check(atomic_commit(&file, &err), &err);
    buf_free(&path);
}

int main(int argc, char **argv) {
    struct shu_error err;
    if (argc < 8) {
        fprintf(stderr, "usage: packs MODEL DATA CONTEXT SEED HELD_OUT EPOCHS OUT [--all-tokens]\n");
        return 2;
    }
    struct model *model;
    struct tokenizer *tokenizer;
    struct trainset *set;
    struct trainset_report report;
    struct buf shard = {0};
    check(model_open(argv[1], &model, &err), &err);
    check(model_tokenizer(model, &tokenizer, &err), &err);
    struct trainset_options options = {.context = (int)strtol(argv[3], NULL, 10),
                                       .seed = strtoull(argv[4], NULL, 10),
                                       .held_out = strtod(argv[5], NULL),
                                       .template_text = model_chat_template(model),
                                       .all_tokens = argc > 8,
                                       .quiet = true};
    buf_printf(&shard, "%s.shard", argv[7]);
    check(trainset_open(argv[2], shard.data, tokenizer, &options, &set, &report, &err), &err);
    write_part(set, false, strtol(argv[6], NULL, 10), argv[7]);
    write_part(set, true, 1, argv[7]);
    printf("{\"sequences\": %lld, \"tokens\": %lld, \"loss_tokens\": %lld, \"rejected\": %lld}\n",
           (long long)report.sequences, (long long)report.tokens, (long long)report.loss_tokens,
           (long long)report.rejected);
    trainset_close(set);
    tokenizer_free(tokenizer);
    model_close(model);
    buf_free(&shard);
    return 0;
}
