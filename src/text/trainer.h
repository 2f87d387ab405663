/* Inside of the vocabulary trainer: pieces of text and their counts (train_words.c), and what is learned from them
 * (train_bpe.c). */
#ifndef TEXT_TRAINER_H
#define TEXT_TRAINER_H

#include "text/tokenizer.h"

#define PIECE_BYTES_MAX 4096 /* longer pre-tokens are cut: no token of use is that long */
#define WORD_SHARDS     16   /* parts of a table that threads fill and join independently */

/* Distinct pieces and how often they occur. */
struct word_entry {
    uint64_t hash, count;
    uint32_t at, bytes; /* in the table's text */
};
struct word_table {
    struct word_entry *entries;
    uint32_t *slots; /* entry + 1; 0 = free */
    char *text;
    size_t count, cap, mask, text_bytes, text_cap;
};
struct word_set {
    struct word_table shard[WORD_SHARDS];
    uint64_t pieces;
    bool failed; /* out of memory */
};

/* Merging works on all distinct pieces behind each other, one slot a byte; see train_bpe.c. */
struct vocab_trainer {
    struct vocab_trainer_options options;
    struct pool *pool;
    struct word_set words;
    struct word_set *part; /* [threads]: of the round that runs */
    struct vocab_trainer_report report;
    struct text_list bytes; /* tokens as bytes; count grows, room for options.vocab */
    size_t bytes_cap;
    int32_t (*merges)[2]; /* [merge_count] ids of left and right; merge i made token 256 + i */
    int32_t merge_count;
    struct buf spelled; /* tokens and merges in GPT-2's alphabet */
    struct span *tokens, *merge_texts;
    int32_t *types;
};

/* Counts a text into trainer->words. */
int words_add(struct vocab_trainer *trainer, const char *text, size_t bytes, struct progress *progress,
              struct shu_error *err);
void words_free(struct word_set *set);
size_t words_bytes(const struct word_set *set);

#endif
