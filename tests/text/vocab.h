/* Vocabularies made by hand or by chance for the tokenizer tests. */
#ifndef TEST_VOCAB_H
#define TEST_VOCAB_H

#include "text/text.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB_MAX 2048

struct vocab {
    struct vocab_spec spec;
    struct span tokens[VOCAB_MAX], merges[VOCAB_MAX];
    float scores[VOCAB_MAX];
    int32_t types[VOCAB_MAX];
    char *owned[2 * VOCAB_MAX];
    int owned_count;
};

static inline struct vocab *vocab_new(enum vocab_model model, enum pretokenizer pre) {
    struct vocab *vocab = calloc(1, sizeof *vocab);
    vocab->spec = (struct vocab_spec){.model = model,
                                      .pre = pre,
                                      .tokens = vocab->tokens,
                                      .merges = vocab->merges,
                                      .scores = vocab->scores,
                                      .types = vocab->types,
                                      .bos = -1,
                                      .eos = -1,
                                      .unk = -1,
                                      .pad = -1};
    return vocab;
}

static inline void vocab_free(struct vocab *vocab) {
    for (int i = 0; i < vocab->owned_count; i++) free(vocab->owned[i]);
    free(vocab);
}

static inline struct span vocab_copy(struct vocab *vocab, const char *text, size_t bytes) {
    char *copy = malloc(bytes + 1);
    memcpy(copy, text, bytes);
    vocab->owned[vocab->owned_count++] = copy;
    return (struct span){copy, (uint32_t)bytes};
}

static inline int32_t vocab_find(const struct vocab *vocab, struct span text) {
    for (int32_t id = 0; id < vocab->spec.count; id++)
        if (vocab->tokens[id].bytes == text.bytes && memcmp(vocab->tokens[id].text, text.text, text.bytes) == 0)
            return id;
    return -1;
}

/* Appends a token unless there is an equal one; returns its id. */
static inline int32_t vocab_add(struct vocab *vocab, const char *text, size_t bytes, float score, int32_t type) {
    int32_t there = vocab_find(vocab, (struct span){text, (uint32_t)bytes});
    if (there >= 0) return there;
    assert(vocab->spec.count < VOCAB_MAX);
    int32_t id = vocab->spec.count++;
    vocab->tokens[id] = vocab_copy(vocab, text, bytes);
    vocab->scores[id] = score;
    vocab->types[id] = type;
    return id;
}

static inline int32_t vocab_word(struct vocab *vocab, const char *text, float score, int32_t type) {
    return vocab_add(vocab, text, strlen(text), score, type);
}

/* The character that spells a byte in the alphabet of GPT-2, by its definition: printable bytes stand for
 * themselves, the others follow from U+0100 in order. */
static inline int vocab_spell(uint8_t byte, char out[4]) {
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; b++) {
        int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte) return utf8_encode(printable ? b : next, out);
        next += !printable;
    }
    return 0;
}

static inline size_t vocab_spell_all(const char *bytes, size_t count, char *out) {
    size_t length = 0;
    for (size_t i = 0; i < count; i++) length += (size_t)vocab_spell((uint8_t)bytes[i], out + length);
    return length;
}

/* The 256 single bytes: ids 0…255 of a byte-level vocabulary. */
static inline void vocab_add_bytes(struct vocab *vocab) {
    for (int b = 0; b < 256; b++) {
        char text[4];
        int length = vocab_spell((uint8_t)b, text);
        vocab_add(vocab, text, (size_t)length, 0, TOKEN_NORMAL);
    }
}

/* Merge of two plain byte strings; adds the joined token. */
static inline void vocab_merge(struct vocab *vocab, const char *left, size_t left_bytes, const char *right,
                               size_t right_bytes) {
    char line[1024];
    size_t a = vocab_spell_all(left, left_bytes, line);
    line[a] = ' ';
    size_t b = vocab_spell_all(right, right_bytes, line + a + 1);
    assert(vocab->spec.merge_count < VOCAB_MAX);
    vocab->merges[vocab->spec.merge_count++] = vocab_copy(vocab, line, a + 1 + b);
    memmove(line + a, line + a + 1, b);
    vocab_add(vocab, line, a + b, 0, TOKEN_NORMAL);
}

/* <0x00>…<0xFF> */
static inline void vocab_add_byte_tokens(struct vocab *vocab) {
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        vocab_word(vocab, text, 0, TOKEN_BYTE);
    }
}

#endif
