/* Private to room train: shards, tokenised data as one mapped file.
 *
 * All numbers little-endian.
 *
 *     offset  bytes
 *          0      8  magic "SHUSHARD"
 *          8      4  version, 1
 *         12      4  flags: 1 = preference pairs
 *         16         sequences, one directly behind the other:
 *                        u32 [tokens]: id; bit 31 = predicting this token counts in the loss
 *                        per passage: u32 bytes, the bytes of its id, zeros up to a multiple of 4
 *                    zeros up to a multiple of 8
 *                    index, 48 bytes per sequence:
 *                        u64 offset of its tokens; u64 line; u64 hash of its document
 *                        u32 tokens; u32 passages; u32 bytes of its passages, padding included; f32 weight
 *                        u32 flags: 1 = held out, 2 = the rejected answer of a pair; u32 zero
 *   size - 256    256  footer:
 *                        0  magic "SHUINDEX"        8  u64 offset of the index
 *                       16  u64 sequences          24  u64 tokens           32  u64 loss tokens
 *                       40  u64 lines              48  u64 rejected         56  u64 cut
 *                       64  u32 vocabulary         68  u32 context          72  zeros
 *                       96  key: SHA-256, 32 bytes, of data, tokenizer, template and settings
 *                      128  the tokenizer's SHA-256, 32 bytes
 *                      160  zeros
 *                      248  u64 XXH64 of all bytes before it
 *
 * The footer stands at the end because the file is written in one go while the data streams by. A shard is hostile
 * until shard_open has looked at every byte of it; then everything inside may be assumed: offsets contiguous, ids below
 * the vocabulary, weights finite and positive, a loss in every sequence, pairs complete.
 */
#ifndef TRAIN_SHARD_H
#define TRAIN_SHARD_H

#include "train/checksum.h"
#include "train/train.h"

enum { SHARD_HELD_OUT = 1, SHARD_REJECTED = 2 };
#define SHARD_LOSS              0x80000000u
#define SHARD_WEIGHT_MAX        1e6
#define SHARD_PASSAGE_BYTES_MAX 4096u

struct shard_sequence {
    uint64_t offset, line, document;
    uint32_t tokens, passages, passage_bytes;
    float weight;
    uint32_t flags, zero;
};

struct shard_counts {
    uint64_t sequences, tokens, loss_tokens, lines, rejected, cut;
};

/* ---------------------------------------------------------------- writing */

struct shard_writer {
    struct atomic_file file;
    struct checksum checksum;
    struct shard_sequence *index; /* [counts.sequences] */
    size_t index_cap;
    struct shard_counts counts;
    uint64_t at; /* bytes written */
    struct buf hold;
};
int shard_writer_open(const char *path, bool pairs, struct shard_writer *out, struct shu_error *err);
/* tokens: ids with SHARD_LOSS. The caller fills line, document, weight and flags of `sequence`. */
int shard_write(struct shard_writer *writer, struct shard_sequence *sequence, const uint32_t *tokens, size_t count,
                const struct span *passages, size_t passage_count, struct shu_error *err);
/* Ends the file; key and tokenizer are 64 hexadecimal digits. Frees the writer, also on failure. */
int shard_writer_commit(struct shard_writer *writer, uint32_t vocab, uint32_t context, const char *key,
                        const char *tokenizer, struct shu_error *err);
void shard_writer_abort(struct shard_writer *writer); /* frees the writer; no file */

/* ---------------------------------------------------------------- reading */

struct shard {
    struct map map;
    const struct shard_sequence *index; /* [counts.sequences], in the map */
    struct shard_counts counts;
    bool pairs;
    uint32_t vocab, context;
    char key[65], tokenizer[65];
};
/* Maps and checks everything. SHU_E_FORMAT and SHU_E_CHECKSUM name what is wrong. */
int shard_open(const char *path, struct shard *out, struct shu_error *err);
/* The same on bytes in memory, which the shard borrows: for the fuzzer. */
int shard_parse(const uint8_t *data, size_t bytes, const char *name, struct shard *out, struct shu_error *err);
void shard_close(struct shard *shard);
/* [tokens] of a sequence, ids with SHARD_LOSS. */
const uint32_t *shard_tokens(const struct shard *shard, int64_t sequence);
struct span shard_passage(const struct shard *shard, int64_t sequence, int index);

#endif
