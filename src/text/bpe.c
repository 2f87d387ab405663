/* Byte-level BPE: ranked merges inside each pre-token. */
#define MERGE_LOOKUP bpe_lookup
#include "text/merge.h"
#include "text/words.h"

/* ------------------------------------------------------------- merge table */

static size_t pair_home(const struct tokenizer *tokenizer, uint64_t key) {
    return (key * 0x9e3779b97f4a7c15u ^ key >> 29) * 0xbf58476d1ce4e5b9u >> 20 & tokenizer->pair_mask;
}

static uint64_t pair_key(int32_t left, int32_t right) {
    return ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
}

static inline struct bpe_pair *pair_find(const struct tokenizer *tokenizer, uint64_t key) {
    size_t i = pair_home(tokenizer, key);
    while (tokenizer->pairs[i].key != key && tokenizer->pairs[i].key) i = (i + 1) & tokenizer->pair_mask;
    return &tokenizer->pairs[i];
}

/* Bytes without a token have id -1; no merge names them. */
static inline struct merged bpe_lookup(const struct tokenizer *tokenizer, const struct neighbours *pair) {
    const struct bpe_pair *found = pair_find(tokenizer, pair_key(pair->left, pair->right));
    return (struct merged){found->key ? found->rank : MERGE_NEVER, found->id};
}

/* Merges mostly come in the order of the tokens they make: the token after the last one is tried first, which spares
 * a third of the look-ups of a load. */
static int32_t find_next(const struct tokenizer *tokenizer, const char *text, size_t bytes, int32_t guess) {
    if (guess < tokenizer->count) {
        struct span there = text_at(&tokenizer->stored, guess);
        if (there.bytes == bytes && memcmp(there.text, text, bytes) == 0) return guess;
    }
    return text_map_find(&tokenizer->by_text, text, bytes);
}

/* One line of the merge list, "left right": the ids of both and of what they become. */
static int parse_merge(const struct tokenizer *tokenizer, const struct vocab_spec *spec, int32_t rank, char *scratch,
                       size_t scratch_bytes, int32_t guess, int32_t ids[3], struct shu_error *err) {
    struct span merge = spec->merges[rank];
    const char *space = merge.bytes > 2 ? memchr(merge.text + 1, ' ', merge.bytes - 1) : NULL;
    if (!space || space + 1 == merge.text + merge.bytes)
        return SHU_FAIL(err, SHU_E_FORMAT, "merge %d of the vocabulary is no pair \"left right\" of tokens", (int)rank);
    size_t left = (size_t)(space - merge.text), right = merge.bytes - left - 1;
    ids[0] = ids[1] = ids[2] = -1;
    if (left + right <= scratch_bytes) {
        memcpy(scratch, merge.text, left);
        memcpy(scratch + left, space + 1, right);
        ids[0] = text_map_find(&tokenizer->by_text, scratch, left);
        ids[1] = text_map_find(&tokenizer->by_text, space + 1, right);
        ids[2] = find_next(tokenizer, scratch, left + right, guess);
    }
    if (ids[0] >= 0 && ids[1] >= 0 && ids[2] >= 0) return SHU_OK;
    return SHU_FAIL(
        err, SHU_E_FORMAT,
        "merge %d of the vocabulary names a token that the vocabulary lacks: expected all of left, right and "
        "joined among its %d tokens",
        (int)rank, (int)tokenizer->count);
}

/* ------------------------------------------------------------------- seams */

/* Scalar of the character at p and its length; 0 and one byte where no character is well formed. Surrogates and
 * values above U+10FFFF may pass: all that matters is that each byte sequence has its own number. */
static inline uint32_t character_at(const uint8_t *p, const uint8_t *end, uint32_t *bytes) {
    static const uint8_t first_bits[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t need = lead_bytes(*p), scalar = *p & first_bits[need];
    *bytes = 1;
    if (need == 1) return is_continuation(*p) ? 0 : *p;
    if ((size_t)(end - p) < need) return 0;
    for (uint32_t i = 1; i < need; i++) {
        if (!is_continuation(p[i])) return 0;
        scalar = scalar << 6 | (p[i] & 0x3f);
    }
    if (scalar < least[need]) return 0;
    *bytes = need;
    return scalar;
}

/* Marks what a token holds side by side; see seams in tokenizer.h. Two ASCII
 * neighbours are left out: pre-tokens are never cut between them. */
static void mark_token(struct seams *seams, const uint8_t *text, uint32_t bytes) {
    for (uint32_t k = 1; k < bytes; k++) {
        if (is_continuation(text[k]) || (text[k] | text[k - 1]) < 0x80) continue;
        uint32_t start = k - 1, end = k + 1, left_bytes, right_bytes;
        while (start > 0 && is_continuation(text[start])) start--;
        while (end < bytes && is_continuation(text[end])) end++;
        uint32_t left = character_at(text + start, text + k, &left_bytes);
        uint32_t right = character_at(text + k, text + end, &right_bytes);
        if (left && right && left_bytes == k - start && right_bytes == end - k)
            seams_mark(seams, left, right);
        else
            seams->bytes[text[k - 1]][text[k] >> 6] |= (uint64_t)1 << (text[k] & 63);
    }
}

/* ------------------------------------------------------------ construction */

static int bpe_merges_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    size_t slots = 16, longest = 0;
    while (slots < (size_t)spec->merge_count + (size_t)spec->merge_count / 2) slots *= 2;
    tokenizer->pair_mask = slots - 1;
    tokenizer->pair_bytes = slots * sizeof *tokenizer->pairs;
    tokenizer->pairs = mem_alloc_large(tokenizer->pair_bytes);
    for (int32_t id = 0; id < tokenizer->count; id++)
        if (text_at(&tokenizer->stored, id).bytes > longest) longest = text_at(&tokenizer->stored, id).bytes;
    char *scratch = mem_alloc(longest);
    int32_t last = -1;
    int status = SHU_OK;
    if (!tokenizer->pairs || !scratch) {
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %d merges", (int)spec->merge_count);
        goto out;
    }
    for (int32_t rank = 0; rank < spec->merge_count; rank++) {
        int32_t ids[3] = {-1, -1, -1};
        if ((status = parse_merge(tokenizer, spec, rank, scratch, longest, last + 1, ids, err)) != 0) goto out;
        last = ids[2];
        struct bpe_pair *pair = pair_find(tokenizer, pair_key(ids[0], ids[1]));
        if (pair->key) continue; /* said twice: the better rank stands */
        *pair = (struct bpe_pair){pair_key(ids[0], ids[1]), (uint32_t)rank, ids[2]};
        int64_t bytes = alphabet_decode(text_at(&tokenizer->stored, ids[2]), scratch);
        if (bytes > 0) mark_token(&tokenizer->seams, (const uint8_t *)scratch, (uint32_t)bytes);
    }
out:
    mem_free(scratch);
    return status;
}

/* The characters of the BMP that their bytes always merge to; see bpe_seams. */
static int bpe_characters_new(struct tokenizer *tokenizer, struct shu_error *err) {
    tokenizer->char_id = mem_alloc(0x10000 * sizeof *tokenizer->char_id);
    if (!tokenizer->char_id) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tokenizer's characters");
    for (uint32_t scalar = 0; scalar < 0x10000; scalar++)
        tokenizer->char_id[scalar] = scalar < 0x80 ? tokenizer->byte_id[scalar] : -1;
    for (int32_t id = 0; id < tokenizer->count; id++) {
        struct span stored = text_at(&tokenizer->stored, id);
        char decoded[6];
        int32_t ids[3];
        uint32_t at[4] = {0, 1, 2, 3}, bytes;
        int64_t count = stored.bytes <= sizeof decoded ? alphabet_decode(stored, decoded) : -1;
        if (count != 2 && count != 3) continue;
        const uint8_t *p = (const uint8_t *)decoded;
        uint32_t scalar = character_at(p, p + count, &bytes);
        if (scalar == 0 || bytes != count) continue;
        for (uint32_t i = 0; i < bytes; i++) ids[i] = tokenizer->byte_id[p[i]];
        if (merge_short(tokenizer, decoded, ids, at, bytes) == 1) tokenizer->char_id[scalar] = ids[0];
    }
    return SHU_OK;
}

/* Whole pre-tokens that are tokens as they stand (ignore_merges). Special
 * tokens take part under their plain spelling, after the normal ones. */
static int bpe_whole_words_new(struct tokenizer *tokenizer, struct shu_error *err) {
    int status = text_map_new(&tokenizer->by_bytes, &tokenizer->pieces, err);
    if (status) return status;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t id = 0; id < tokenizer->count; id++) {
            bool normal = tokenizer->type[id] == TOKEN_NORMAL;
            if (normal == (pass == 0) && text_at(&tokenizer->pieces, id).bytes > 0)
                text_map_add(&tokenizer->by_bytes, id);
        }
    return SHU_OK;
}

int bpe_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    int32_t known = 0;
    for (int i = 0; i < 256; i++) tokenizer->byte_id[i] = -1;
    for (uint32_t scalar = 0; scalar < 512; scalar++) {
        char text[4];
        int byte = alphabet_byte(scalar);
        if (byte < 0) continue;
        tokenizer->byte_id[byte] = text_map_find(&tokenizer->by_text, text, (size_t)utf8_encode(scalar, text));
        known += tokenizer->byte_id[byte] >= 0;
    }
    if (known == 0)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "the vocabulary holds no single bytes in the alphabet of GPT-2; it is no "
                        "byte-level BPE vocabulary");
    int status = seams_new(&tokenizer->seams, err);
    if (!status) status = bpe_merges_new(tokenizer, spec, err);
    if (!status) status = bpe_characters_new(tokenizer, err);
    if (!status && tokenizer->ignore_merges) status = bpe_whole_words_new(tokenizer, err);
    return status;
}

/* ---------------------------------------------------------------- encoding */

/* Bytes without a token are dropped, as llama.cpp does. */
static int push_ids(struct encoder *encoder, const int32_t *ids, uint32_t count) {
    struct tokens *out = encoder->out;
    int status = tokens_reserve(out, count);
    if (status) return status;
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= 0) out->id[out->count++] = ids[i];
    return SHU_OK;
}

static int bpe_merge_long(struct encoder *encoder, const uint8_t *p, uint32_t bytes) {
    struct tokenizer_work *work = encoder->work;
    int status = merge_reserve(work, bytes);
    for (uint32_t i = 0; !status && i < bytes; i++)
        work->symbols[i] = (struct merge_symbol){i, i + 1, i + 1 < bytes ? i + 1 : UINT32_MAX, i ? i - 1 : UINT32_MAX,
                                                 encoder->tokenizer->byte_id[p[i]]};
    if (status) return status;
    merge_long(encoder->tokenizer, work, (const char *)p, bytes);
    for (uint32_t i = 0; !status && i != UINT32_MAX; i = work->symbols[i].next)
        status = push_ids(encoder, &work->symbols[i].id, 1);
    return status;
}

static int bpe_merge(struct encoder *encoder, const uint8_t *p, uint32_t bytes) {
    if (bytes > MERGE_SHORT) return bpe_merge_long(encoder, p, bytes);
    int32_t ids[MERGE_SHORT];
    uint32_t at[MERGE_SHORT + 1];
    for (uint32_t i = 0; i < bytes; i++) {
        ids[i] = encoder->tokenizer->byte_id[p[i]];
        at[i] = i;
    }
    at[bytes] = bytes;
    return push_ids(encoder, ids, merge_short(encoder->tokenizer, (const char *)p, ids, at, bytes));
}

/* A stretch of text that merges to the same ids wherever it stands. */
struct segment {
    const uint8_t *start;
    uint32_t count;               /* characters so far */
    bool by_bytes;                /* merge its bytes, not its characters */
    int32_t ids[MERGE_SHORT];     /* of its characters */
    uint32_t at[MERGE_SHORT + 1]; /* where they begin, from start */
};

static int segment_merge(struct encoder *encoder, struct segment *segment, uint32_t bytes) {
    if (segment->by_bytes) return bpe_merge(encoder, segment->start, bytes);
    if (segment->count == 1) return push_ids(encoder, segment->ids, 1);
    if (segment->count == 2) {
        const struct bpe_pair *pair = pair_find(encoder->tokenizer, pair_key(segment->ids[0], segment->ids[1]));
        return pair->key ? push_ids(encoder, &pair->id, 1) : push_ids(encoder, segment->ids, 2);
    }
    uint32_t count =
        merge_short(encoder->tokenizer, (const char *)segment->start, segment->ids, segment->at, segment->count);
    return push_ids(encoder, segment->ids, count);
}

/* Emits the segment that ends at `end`; the text goes on to `stop`. One or two characters are quicker merged than
 * looked up. */
static int segment_close(struct encoder *encoder, struct segment *segment, const uint8_t *end, const uint8_t *stop) {
    uint32_t bytes = (uint32_t)(end - segment->start);
    segment->at[segment->count] = bytes;
    if ((segment->count <= 2 && !segment->by_bytes) || bytes > WORD_BYTES)
        return segment_merge(encoder, segment, bytes);
    int status = tokens_reserve(encoder->out, WORD_IDS);
    if (status) return status;
    struct word_key key = word_key_of(segment->start, bytes, (size_t)(stop - segment->start), true);
    struct word *set = word_set(encoder->work, &key);
    if (word_lookup(set, &key, encoder->out)) return SHU_OK;
    size_t before = encoder->out->count;
    status = segment_merge(encoder, segment, bytes);
    if (!status) word_remember(set, &key, encoder->out->id + before, encoder->out->count - before);
    return status;
}

/* Cuts a pre-token at seams; most Chinese falls apart into stretches of one to three characters.
 *
 * Within a segment merging starts from characters instead of bytes. That is the same: no token spans a part of a
 * character and its neighbour here (`bytes` of the seams says so for each boundary inside), so a character's bytes
 * merge among themselves first, to the same token everywhere. Where a boundary is not so clean, or a character is
 * no single token, the segment goes by bytes. */
static int bpe_seams(struct encoder *encoder, const uint8_t *p, const uint8_t *end, const uint8_t *stop) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    const struct seams *seams = &tokenizer->seams;
    struct segment segment;
    segment.start = p;
    segment.count = 0;
    segment.by_bytes = false;
    uint32_t bytes, left = 0;
    for (; p < end; p += bytes) {
        uint32_t right = character_at(p, end, &bytes);
        int32_t id = right && right < 0x10000 ? tokenizer->char_id[right] : -1;
        if (p > segment.start) {
            bool ragged = !left || !right || seam_joined_bytes(seams, p[-1], p[0]);
            if (!ragged && (left | right) >= 0x80 && !seam_joined(seams, left, right)) {
                int status = segment_close(encoder, &segment, p, stop);
                if (status) return status;
                segment.start = p;
                segment.count = 0;
                segment.by_bytes = false;
            }
            segment.by_bytes |= ragged;
        }
        segment.by_bytes |= id < 0 || segment.count == MERGE_SHORT;
        if (!segment.by_bytes) {
            segment.ids[segment.count] = id;
            segment.at[segment.count++] = (uint32_t)(p - segment.start);
        }
        left = right;
    }
    return segment_close(encoder, &segment, end, stop);
}

static bool is_ascii(const uint8_t *p, uint32_t bytes) {
    uint8_t all = 0;
    for (uint32_t i = 0; i < bytes; i++) all |= p[i];
    return all < 0x80;
}

/* A pre-token that the cache does not hold. */
static int bpe_word(struct encoder *encoder, const uint8_t *p, uint32_t bytes, const uint8_t *stop) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    if (tokenizer->ignore_merges) {
        int32_t id = text_map_find(&tokenizer->by_bytes, (const char *)p, bytes);
        if (id >= 0) return push_ids(encoder, &id, 1);
    }
    if (is_ascii(p, bytes)) return bpe_merge(encoder, p, bytes);
    return bpe_seams(encoder, p, p + bytes, stop);
}

int bpe_encode(struct encoder *encoder, const char *text, size_t count) {
    const uint8_t *p = (const uint8_t *)text, *end = p + count;
    enum pretokenizer pre = encoder->tokenizer->pre;
    int status = SHU_OK;
    for (const uint8_t *next; p < end && !status; p = next) {
        next = pretoken_end(pre, p, end);
        uint32_t bytes = (uint32_t)(next - p);
        if (bytes > WORD_BYTES) {
            status = bpe_word(encoder, p, bytes, end);
            continue;
        }
        if ((status = tokens_reserve(encoder->out, WORD_IDS)) != 0) break;
        struct word_key key = word_key_of(p, bytes, (size_t)(end - p), false);
        struct word *set = word_set(encoder->work, &key);
        if (word_lookup(set, &key, encoder->out)) continue;
        size_t before = encoder->out->count;
        status = bpe_word(encoder, p, bytes, end);
        if (!status) word_remember(set, &key, encoder->out->id + before, encoder->out->count - before);
    }
    return status;
}
