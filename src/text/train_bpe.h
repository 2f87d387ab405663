/* Learning a byte-level BPE vocabulary from text. Part of text.h; not included alone.
 *
 *     vocab_trainer_new -> vocab_trainer_add (any number of texts) -> vocab_trainer_learn
 *         -> vocab_trainer_spec (a vocab_spec for tokenizer_new and model_write_vocab) -> vocab_trainer_free
 *
 * Byte pair encoding (Sennrich, Haddow & Birch 2016) over bytes (Radford et al. 2019): text is cut by the
 * pre-tokenizer, equal pieces are counted once, and the most frequent pair of neighbouring tokens becomes a token until
 * the vocabulary is full; of equally frequent pairs the one with the lower left id, then the lower right id. Bytes are
 * tokens 0…255 in the order of their characters in GPT-2's alphabet, then come the merged ones, then the special
 * ones. The result follows from the texts and the options alone: not from the number of threads, nor from how
 * texts were handed over, as long as no memory limit was reached.
 */
#ifndef TEXT_TRAIN_BPE_H
#define TEXT_TRAIN_BPE_H

struct vocab_trainer_options {
    enum pretokenizer pre;      /* PRE_GPT2 | PRE_LLAMA3 | PRE_QWEN2 */
    int32_t vocab;              /* tokens in all: 256 bytes, merges, special ones; at most 2^21 */
    int64_t min_count;          /* pairs that occur less often are not merged; 0 = 2 */
    size_t max_bytes;           /* of distinct pieces; beyond it the rarest are forgotten. 0 = 64 MiB, at most 2 GiB.
                                 * Memory in all is some 20 times that at worst */
    const char *const *special; /* [special_count] control tokens, e.g. "<|im_end|>" */
    int32_t special_count;
};
struct vocab_trainer_report {
    uint64_t bytes, pieces;       /* of all texts */
    uint64_t distinct, forgotten; /* pieces that are kept; those dropped at the memory limit */
    int32_t tokens, merges;       /* valid after vocab_trainer_learn; tokens may stay below options.vocab */
};

struct vocab_trainer;
/* The pool shares the counting and is borrowed until vocab_trainer_free. SHU_E_USAGE, SHU_E_RANGE name the option. */
int vocab_trainer_new(const struct vocab_trainer_options *options, struct pool *pool, struct vocab_trainer **out,
                      struct shu_error *err);
void vocab_trainer_free(struct vocab_trainer *trainer); /* NULL is a no-op */
/* Counts the pieces of a text of any length; nothing is kept of it. progress (may be NULL) advances by its bytes.
 * SHU_E_CANCELLED on interrupt. */
int vocab_trainer_add(struct vocab_trainer *trainer, const char *text, size_t bytes, struct progress *progress,
                      struct shu_error *err);
/* Merges until the vocabulary is full or no pair is frequent enough. Once. progress advances by merges. SHU_E_USAGE:
 * no text was added, or a special token is also an ordinary one. SHU_E_CANCELLED on interrupt. */
int vocab_trainer_learn(struct vocab_trainer *trainer, struct progress *progress, struct shu_error *err);
/* What was learned; borrowed from the trainer. bos, eos, unk and pad are -1: the caller knows its special tokens. */
void vocab_trainer_spec(const struct vocab_trainer *trainer, struct vocab_spec *out);
void vocab_trainer_report(const struct vocab_trainer *trainer, struct vocab_trainer_report *out);

#endif
