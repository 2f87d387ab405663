/* The word cache: bytes of a short word to its few token ids. */
#ifndef WORDS_H
#define WORDS_H

#include "text/tokenizer.h"

struct word_key {
    uint64_t key[2];
    uint8_t bytes; /* with the segment bit */
};

/* Bytes 1…16 of p, zero padded; `room` bytes may be read from p. */
static inline struct word_key word_key_of(const uint8_t *p, uint32_t bytes, size_t room, bool segment) {
    static const uint64_t mask[9] = {
        0, 0xff, 0xffff, 0xffffff, 0xffffffff, 0xffffffffff, 0xffffffffffff, 0xffffffffffffff, UINT64_MAX};
    struct word_key word = {{0, 0}, (uint8_t)(bytes | (segment ? 0x80 : 0))};
    if (room >= WORD_BYTES) {
        memcpy(word.key, p, WORD_BYTES);
        word.key[0] &= mask[bytes < 8 ? bytes : 8];
        word.key[1] &= mask[bytes > 8 ? bytes - 8 : 0];
    } else {
        memcpy(word.key, p, bytes);
    }
    return word;
}

static inline struct word *word_set(const struct tokenizer_work *work, const struct word_key *word) {
    uint64_t hash = (word->key[0] ^ word->bytes) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 32 ^ word->key[1]) * 0xd6e8feb86659fd93u;
    return &work->words[hash >> (64 - WORD_SET_BITS) << 1];
}

static inline bool word_equal(const struct word *entry, const struct word_key *word) {
    return entry->key[0] == word->key[0] && entry->key[1] == word->key[1] && entry->bytes == word->bytes;
}

/* Appends the ids of a cached word to out, which has room for WORD_IDS more. */
static inline bool word_lookup(const struct word *set, const struct word_key *word, struct tokens *out) {
    const struct word *entry = set;
    if (!word_equal(entry, word)) {
        entry++;
        if (!word_equal(entry, word)) return false;
    }
    memcpy(out->id + out->count, entry->id, sizeof entry->id);
    out->count += entry->count;
    return true;
}

/* Remembers ids[count]; the older of the two in the set makes room. */
static inline void word_remember(struct word *set, const struct word_key *word, const int32_t *ids, size_t count) {
    if (count > WORD_IDS) return;
    set[1] = set[0];
    set[0] = (struct word){{word->key[0], word->key[1]}, word->bytes, (uint8_t)count, {0}};
    memcpy(set[0].id, ids, count * sizeof *ids);
}

#endif
