/* Shards: written while the data streams by, mapped and looked at whole before use. */
#include "train/shard.h"

#include <math.h>
#include <string.h>

enum { HEADER_BYTES = 16, FOOTER_BYTES = 256, INDEX_BYTES = 48, VERSION = 1, FLAG_PAIRS = 1 };
enum { F_INDEX = 8, F_COUNTS = 16, F_VOCAB = 64, F_CONTEXT = 68, F_KEY = 96, F_TOKENIZER = 128, F_CHECKSUM = 248 };
static const char MAGIC[] = "SHUSHARD", MAGIC_END[] = "SHUINDEX";

_Static_assert(sizeof(struct shard_sequence) == INDEX_BYTES, "the index is read in place");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are read in place");

/* ---------------------------------------------------------------- writing */

static int put(struct shard_writer *writer, const void *bytes, size_t count, struct shu_error *err) {
    checksum_update(&writer->checksum, bytes, count);
    writer->at += count;
    return atomic_write(&writer->file, bytes, count, err);
}

int shard_writer_open(const char *path, bool pairs, struct shard_writer *out, struct shu_error *err) {
    uint8_t header[HEADER_BYTES] = {0};
    uint32_t version = VERSION, flags = pairs ? FLAG_PAIRS : 0;
    *out = (struct shard_writer){0};
    checksum_init(&out->checksum);
    memcpy(header, MAGIC, 8);
    memcpy(header + 8, &version, 4);
    memcpy(header + 12, &flags, 4);
    int status = atomic_open(path, &out->file, err);
    if (status) return status;
    status = put(out, header, sizeof header, err);
    if (status) shard_writer_abort(out);
    return status;
}

void shard_writer_abort(struct shard_writer *writer) {
    atomic_abort(&writer->file);
    mem_free(writer->index);
    buf_free(&writer->hold);
    writer->index = NULL;
}

static int index_push(struct shard_writer *writer, const struct shard_sequence *sequence, struct shu_error *err) {
    if (writer->counts.sequences == writer->index_cap) {
        size_t cap = writer->index_cap ? 2 * writer->index_cap : 1024, bytes;
        struct shard_sequence *grown = size_mul(cap, sizeof *grown, &bytes) ? NULL : mem_realloc(writer->index, bytes);
        if (!grown) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the index of %zu sequences", cap);
        writer->index = grown;
        writer->index_cap = cap;
    }
    writer->index[writer->counts.sequences++] = *sequence;
    return SHU_OK;
}

static int hold_passages(struct shard_writer *writer, const struct span *passages, size_t count,
                         struct shu_error *err) {
    static const char zeros[4];
    int status = SHU_OK;
    buf_clear(&writer->hold);
    for (size_t i = 0; i < count && !status; i++) {
        if (passages[i].bytes > SHARD_PASSAGE_BYTES_MAX)
            return SHU_FAIL(err, SHU_E_RANGE, "a passage id of %u bytes is longer than %u", passages[i].bytes,
                            SHARD_PASSAGE_BYTES_MAX);
        status = buf_append(&writer->hold, &passages[i].bytes, sizeof passages[i].bytes);
        if (!status && passages[i].bytes) status = buf_append(&writer->hold, passages[i].text, passages[i].bytes);
        if (!status && writer->hold.len % 4) status = buf_append(&writer->hold, zeros, 4 - writer->hold.len % 4);
    }
    return status ? SHU_FAIL(err, status, "out of memory for %zu passage ids", count) : SHU_OK;
}

int shard_write(struct shard_writer *writer, struct shard_sequence *sequence, const uint32_t *tokens, size_t count,
                const struct span *passages, size_t passage_count, struct shu_error *err) {
    int status = hold_passages(writer, passages, passage_count, err);
    if (status) return status;
    sequence->offset = writer->at;
    sequence->tokens = (uint32_t)count;
    sequence->passages = (uint32_t)passage_count;
    sequence->passage_bytes = (uint32_t)writer->hold.len;
    sequence->zero = 0;
    status = index_push(writer, sequence, err);
    if (!status) status = put(writer, tokens, count * sizeof *tokens, err);
    if (!status && writer->hold.len) status = put(writer, writer->hold.data, writer->hold.len, err);
    writer->counts.tokens += count;
    for (size_t i = 0; i < count; i++) writer->counts.loss_tokens += tokens[i] >> 31;
    return status;
}

static void hex_to_bytes(const char *hex, uint8_t *out) {
    for (int i = 0; i < 64; i++) {
        int digit = hex[i] >= 'a' ? hex[i] - 'a' + 10 : hex[i] - '0';
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | digit : digit << 4);
    }
}

static void bytes_to_hex(const uint8_t *bytes, char out[65]) {
    for (int i = 0; i < 32; i++) snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

int shard_writer_commit(struct shard_writer *writer, uint32_t vocab, uint32_t context, const char *key,
                        const char *tokenizer, struct shu_error *err) {
    static const uint8_t zeros[8];
    uint8_t footer[FOOTER_BYTES] = {0};
    int status = writer->at % 8 ? put(writer, zeros, 8 - writer->at % 8, err) : SHU_OK;
    memcpy(footer, MAGIC_END, 8);
    memcpy(footer + F_INDEX, &writer->at, 8);
    memcpy(footer + F_COUNTS, &writer->counts, sizeof writer->counts);
    memcpy(footer + F_VOCAB, &vocab, 4);
    memcpy(footer + F_CONTEXT, &context, 4);
    hex_to_bytes(key, footer + F_KEY);
    hex_to_bytes(tokenizer, footer + F_TOKENIZER);
    if (!status && writer->counts.sequences)
        status = put(writer, writer->index, (size_t)writer->counts.sequences * INDEX_BYTES, err);
    if (!status) status = put(writer, footer, F_CHECKSUM, err);
    uint64_t sum = checksum_finish(&writer->checksum);
    if (!status) status = put(writer, &sum, sizeof sum, err);
    status = atomic_end(&writer->file, status, err);
    mem_free(writer->index);
    buf_free(&writer->hold);
    return status;
}

/* ---------------------------------------------------------------- reading */

static int damaged(const char *name, struct shu_error *err, const char *what) {
    return SHU_FAIL(err, SHU_E_FORMAT, "%s: not a whole shard: %s; delete it and train from the text again", name,
                    what);
}

static uint64_t read64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t read32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int parse_frame(struct shard *shard, const char *name, struct shu_error *err) {
    const uint8_t *data = shard->map.data;
    size_t bytes = shard->map.bytes;
    if (bytes < HEADER_BYTES + FOOTER_BYTES || memcmp(data, MAGIC, 8) != 0) return damaged(name, err, "no header");
    if (read32(data + 8) != VERSION)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: expected a shard of version %d, found %u", name, VERSION,
                        read32(data + 8));
    const uint8_t *footer = data + bytes - FOOTER_BYTES;
    uint64_t at = read64(footer + F_INDEX), room = bytes - FOOTER_BYTES;
    if (bytes % 8 != 0 || memcmp(footer, MAGIC_END, 8) != 0) return damaged(name, err, "its end is missing");
    if (read64(footer + F_CHECKSUM) != checksum_of(data, bytes - 8))
        return SHU_FAIL(err, SHU_E_CHECKSUM,
                        "%s: the shard's checksum does not match; delete it and train from the text", name);
    memcpy(&shard->counts, footer + F_COUNTS, sizeof shard->counts);
    if (at < HEADER_BYTES || at > room || at % 8 != 0 || (room - at) % INDEX_BYTES != 0 ||
        (room - at) / INDEX_BYTES != shard->counts.sequences)
        return damaged(name, err, "its index lies outside");
    shard->index = (const void *)(data + at);
    shard->pairs = read32(data + 12) & FLAG_PAIRS;
    shard->vocab = read32(footer + F_VOCAB);
    shard->context = read32(footer + F_CONTEXT);
    bytes_to_hex(footer + F_KEY, shard->key);
    bytes_to_hex(footer + F_TOKENIZER, shard->tokenizer);
    return SHU_OK;
}

static bool passages_fit(const uint8_t *at, uint32_t bytes, uint32_t count) {
    const uint8_t *end = at + bytes;
    for (; count; count--) {
        if (end - at < 4) return false;
        uint64_t padded = ((uint64_t)read32(at) + 3) / 4 * 4;
        if (read32(at) > SHARD_PASSAGE_BYTES_MAX || padded > (uint64_t)(end - at - 4)) return false;
        at += 4 + padded;
    }
    return at == end;
}

/* One sequence, which must begin at *at; moves *at behind it. */
static int check_sequence(const struct shard *shard, const char *name, uint64_t i, uint64_t *at,
                          struct shard_counts *sum, struct shu_error *err) {
    const struct shard_sequence *sequence = &shard->index[i];
    uint64_t limit = (uint64_t)((const uint8_t *)shard->index - shard->map.data);
    uint64_t bytes = (uint64_t)sequence->tokens * 4 + sequence->passage_bytes;
    if (sequence->offset != *at || bytes > limit - *at || sequence->tokens < 2)
        return damaged(name, err, "a sequence lies outside");
    const uint8_t *data = shard->map.data + *at;
    uint32_t losses = 0; /* of tokens that are predicted: the first is not */
    for (uint32_t t = 0; t < sequence->tokens; t++) {
        uint32_t token = read32(data + (size_t)t * 4);
        if ((token & ~SHARD_LOSS) >= shard->vocab)
            return SHU_FAIL(err, SHU_E_FORMAT,
                            "%s: sequence %llu (line %llu of its data): token %u is beyond the "
                            "vocabulary of %u",
                            name, (unsigned long long)i + 1, (unsigned long long)sequence->line, token & ~SHARD_LOSS,
                            shard->vocab);
        sum->loss_tokens += token >> 31;
        losses += t > 0 && token & SHARD_LOSS;
    }
    if (!losses) return damaged(name, err, "a sequence without a loss");
    if (!(sequence->weight > 0 && (double)sequence->weight <= SHARD_WEIGHT_MAX))
        return damaged(name, err, "a weight is no weight");
    if (!passages_fit(data + (size_t)sequence->tokens * 4, sequence->passage_bytes, sequence->passages))
        return damaged(name, err, "passage ids do not fit");
    sum->tokens += sequence->tokens;
    *at += bytes;
    return SHU_OK;
}

static bool pairs_whole(const struct shard *shard) {
    if (shard->counts.sequences % 2 != 0) return false;
    for (uint64_t i = 0; i < shard->counts.sequences; i += 2) {
        uint32_t chosen = shard->index[i].flags, rejected = shard->index[i + 1].flags;
        if (chosen & SHARD_REJECTED || rejected != (chosen | SHARD_REJECTED)) return false;
    }
    return true;
}

int shard_parse(const uint8_t *data, size_t bytes, const char *name, struct shard *out, struct shu_error *err) {
    *out = (struct shard){.map = {data, bytes}};
    int status = parse_frame(out, name, err);
    uint64_t at = HEADER_BYTES;
    struct shard_counts sum = {0};
    for (uint64_t i = 0; i < out->counts.sequences && !status; i++)
        status = check_sequence(out, name, i, &at, &sum, err);
    if (status) return status;
    if ((at + 7) / 8 * 8 != (uint64_t)((const uint8_t *)out->index - data)) return damaged(name, err, "a gap");
    if (sum.tokens != out->counts.tokens || sum.loss_tokens != out->counts.loss_tokens)
        return damaged(name, err, "its counts do not match");
    if (out->pairs && !pairs_whole(out)) return damaged(name, err, "half a pair");
    return SHU_OK;
}

int shard_open(const char *path, struct shard *out, struct shu_error *err) {
    struct map map;
    *out = (struct shard){0};
    int status = map_open(path, &map, err);
    if (status) return status;
    status = shard_parse(map.data, map.bytes, path, out, err);
    if (status) {
        map_close(&map);
        *out = (struct shard){0};
    }
    return status;
}

void shard_close(struct shard *shard) {
    map_close(&shard->map);
}

const uint32_t *shard_tokens(const struct shard *shard, int64_t sequence) {
    return (const void *)(shard->map.data + shard->index[sequence].offset);
}

struct span shard_passage(const struct shard *shard, int64_t sequence, int index) {
    const struct shard_sequence *entry = &shard->index[sequence];
    const uint8_t *at = shard->map.data + entry->offset + (size_t)entry->tokens * 4;
    if (index < 0 || (uint32_t)index >= entry->passages) return (struct span){"", 0};
    for (; index; index--) at += 4 + (read32(at) + 3) / 4 * 4;
    return (struct span){(const char *)at + 4, read32(at)};
}
