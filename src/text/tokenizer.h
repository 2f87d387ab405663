/* Inside of the tokenizers: what tokenizer.c builds and encode.c, bpe.c, spm.c
 * and unigram.c read.
 *
 * All three models end in "cut the text where no token can reach across, look
 * the cuts up in a small per-thread cache, compute what is not there". The
 * cutting is exact, so the ids are those of the plain algorithm on the whole
 * text: BPE cuts by the pre-tokenizer and then, in runs of non-ASCII letters,
 * at seams; SPM has only seams. A seam is a pair of neighbouring characters
 * that occurs inside no token: no merge can ever bridge it.
 */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "text/text.h"

#include <string.h>

/* ------------------------------------------------- texts and their lookup */

/* Texts of all tokens in one block; token i is at [at[i], at[i+1]). */
struct text_list {
    char *bytes;
    uint32_t *at; /* [count + 1] */
    int32_t count;
};

static inline struct span text_at(const struct text_list *list, int32_t id) {
    return (struct span){list->bytes + list->at[id], list->at[id + 1] - list->at[id]};
}

/* Open addressing from a text of a list to its id. The tag is the upper half
 * of the hash, so that a miss rarely touches the text itself. */
struct text_slot {
    uint32_t tag;
    int32_t id; /* -1 = free */
};
struct text_map {
    const struct text_list *list;
    struct text_slot *slots;
    size_t mask, bytes;
};
int text_map_new(struct text_map *map, const struct text_list *list, struct shu_error *err);
void text_map_free(struct text_map *map);
/* Adds text id of the list unless an equal one is there; returns the id now stored. */
int32_t text_map_add(struct text_map *map, int32_t id);
void text_map_prefetch(const struct text_map *map, int32_t id);                    /* before text_map_add(map, id) */
int32_t text_map_find(const struct text_map *map, const char *text, size_t bytes); /* -1 = none */

/* --------------------------------------------------------- prefix matcher */

/* Token ids sorted by text, so that all texts with a given prefix are neighbours:
 * walking one byte deeper is a binary search in an ever smaller range. */
struct matcher {
    const struct text_list *list;
    int32_t *order;
    uint32_t count;
    uint32_t bucket[257]; /* texts that begin with byte b: order[bucket[b] … bucket[b+1]) */
};
struct match_range {
    uint32_t lo, hi, depth; /* all texts in [lo, hi) share their first `depth` bytes */
};
int matcher_new(struct matcher *matcher, const struct text_list *list, const int32_t *ids, uint32_t count,
                struct shu_error *err);
void matcher_free(struct matcher *matcher);
struct match_range matcher_begin(const struct matcher *matcher, uint8_t first);
void matcher_walk(const struct matcher *matcher, struct match_range *range, uint8_t byte);
/* The token whose text ends exactly here (then stepped over), or -1. */
int32_t matcher_take(const struct matcher *matcher, struct match_range *range);

/* ------------------------------------------------- tokens found in the text */

/* Tokens that are taken out of the text before anything else: user-defined
 * ones always, control and unknown ones when the caller asks. */
struct specials {
    struct matcher matcher;
    uint8_t *contested;   /* [matcher.count] a longer token may begin inside this one and win */
    uint64_t first[2][4]; /* bit b: some token begins with byte b; [parse_special] */
    uint64_t *second[2];  /* [1024] bit (b0 << 8 | b1): some token may begin so */
};
struct special_hit {
    size_t at;
    uint32_t bytes;
    int32_t id;
};
int specials_new(struct tokenizer *tokenizer, struct shu_error *err);
void specials_free(struct specials *specials);
/* The next special at or after `from`: 1 found, 0 none, negative error. Longer
 * tokens win over shorter ones that overlap them, wherever they begin. */
int specials_next(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                  size_t from, bool parse_special, struct special_hit *out);

/* ------------------------------------------------------------------- seams */

/* Bloom filter (one hash) of character pairs that occur inside some token. A
 * false positive only makes a segment longer. Characters are packed bytes. */
struct seams {
    uint64_t *pairs;        /* [1 << (SEAM_BITS - 6)] */
    uint64_t ascii[128][2]; /* exact, for two ASCII characters */
    uint64_t bytes[256][4]; /* BPE: tokens that cut a character; (last byte, first byte) */
};
#define SEAM_BITS 20

static inline uint32_t seam_hash(uint32_t left, uint32_t right) {
    uint64_t x = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    return (uint32_t)((x * 0xbf58476d1ce4e5b9u) >> (64 - SEAM_BITS));
}
static inline bool seam_joined(const struct seams *seams, uint32_t left, uint32_t right) {
    uint32_t hash = seam_hash(left, right);
    return seams->pairs[hash >> 6] >> (hash & 63) & 1;
}
static inline bool seam_joined_ascii(const struct seams *seams, uint8_t left, uint8_t right) {
    return seams->ascii[left][right >> 6] >> (right & 63) & 1;
}
static inline bool seam_joined_bytes(const struct seams *seams, uint8_t left, uint8_t right) {
    return seams->bytes[left][right >> 6] >> (right & 63) & 1;
}
int seams_new(struct seams *seams, struct shu_error *err);
void seams_free(struct seams *seams);
void seams_mark(struct seams *seams, uint32_t left, uint32_t right);

static inline bool is_continuation(uint8_t byte) {
    return (byte & 0xc0) == 0x80;
}
/* Length that a lead byte announces; 1 for ASCII and for bytes that lead nothing. */
static inline uint32_t lead_bytes(uint8_t byte) {
    return byte < 0xc0 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}
/* Bytes of one character as an integer. */
static inline uint32_t pack_character(const uint8_t *p, uint32_t bytes) {
    uint32_t packed = 0;
    memcpy(&packed, p, bytes);
    return packed;
}

/* ------------------------------------------------------------ the tokenizer */

struct bpe_pair {
    uint64_t key; /* (left id << 32 | right id) + 1; 0 = free */
    uint32_t rank;
    int32_t id; /* of the merged token */
};

struct tokenizer {
    enum vocab_model model;
    enum pretokenizer pre;
    int32_t count, bos, eos, unk, pad;
    bool add_bos, add_eos, add_space_prefix, ignore_merges;
    uint8_t *type;           /* [count] enum token_type, end tokens made TOKEN_CONTROL */
    uint8_t *end;            /* [count] 1 = ends a turn */
    struct text_list stored; /* as in the vocabulary */
    struct text_list pieces; /* as decoded */
    struct text_map by_text; /* stored text */
    struct specials specials;
    struct seams seams;   /* BPE, SPM */
    int32_t byte_id[256]; /* -1 = none. BPE: one-byte tokens. SPM: <0xNN> */
    /* BPE */
    struct bpe_pair *pairs;
    size_t pair_mask, pair_bytes;
    struct text_map by_bytes; /* decoded text; ignore_merges only */
    int32_t *char_id;         /* [65536] character of the BMP to the one token it merges to; -1 = it stays in pieces */
    /* SPM */
    uint32_t *priority; /* [count] lower merges first */
    uint32_t longest;   /* bytes of the longest token */
    /* UNIGRAM */
    struct matcher words;
    double *score; /* [count] */
    double unknown_score;
};

/* The alphabet of GPT-2 spells each byte as a printable character: the byte a
 * character stands for, -1 for others; and a whole stored text, decoded into
 * out (at most as long), or -1 if some character is not of the alphabet. */
int alphabet_byte(uint32_t scalar);
int64_t alphabet_decode(struct span stored, char *out);

#define TOKEN_BYTES_MAX 65535             /* one token; a hash of it must stay cheap */
#define TEXT_BYTES_MAX  ((size_t)1 << 30) /* one text, and all tokens together */

int bpe_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err);
int spm_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err);
int unigram_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err);

/* ---------------------------------------------------------- per-thread work */

/* Word cache: two-way sets of one cache line, keyed by the bytes themselves. */
#define WORD_BYTES    16
#define WORD_IDS      3
#define WORD_SET_BITS 15
struct word {
    uint64_t key[2]; /* bytes, zero padded */
    uint8_t bytes;   /* 0 = free; bit 7 set = a segment inside a pre-token */
    uint8_t count;
    int32_t id[WORD_IDS];
};

/* Linked list and heap of the long merges. */
struct merge_item {
    uint64_t key;        /* priority << 32 | index of the left symbol: ties go left */
    uint32_t right, end; /* stale unless the right symbol and its end are still these */
    int32_t id;
};
struct merge_symbol {
    uint32_t at, end;
    uint32_t next; /* UINT32_MAX = last; a merged-away symbol has end = at */
    uint32_t prev; /* UINT32_MAX = first */
    int32_t id;
};
struct lattice_node {
    double score;
    uint32_t from;
    int32_t id;
};

struct tokenizer_work {
    const struct tokenizer *owner;
    struct word *words; /* [2 << WORD_SET_BITS] */
    struct merge_symbol *symbols;
    struct merge_item *heap;
    size_t symbol_cap, heap_cap;
    struct buf text;    /* the text with its space prefix, or normalised */
    struct buf escaped; /* SPM: one segment with its spaces escaped */
    struct lattice_node *lattice;
    size_t lattice_cap;
    struct special_hit *pending; /* of the contested stretch just resolved */
    size_t pending_count, pending_next, pending_cap;
    int32_t *claims; /* scratch of the same */
    size_t claim_cap;
};

/* What an encoder carries. */
struct encoder {
    const struct tokenizer *tokenizer;
    struct tokenizer_work *work;
    struct tokens *out;
    struct shu_error *err;
};
int bpe_encode(struct encoder *encoder, const char *text, size_t bytes);
/* prefix: put a space before the text. */
int spm_encode(struct encoder *encoder, const char *text, size_t bytes, bool prefix);
int unigram_encode(struct encoder *encoder, const char *text, size_t bytes);

/* Room for `extra` more ids. */
int tokens_reserve(struct tokens *tokens, size_t extra);
/* Grows *block to at least `need` items; its content may be lost. */
int scratch_reserve(void **block, size_t *cap, size_t need, size_t item_bytes);

/* ---------------------------------------------------------- pre-tokenizers */

/* End of the pre-token that begins at p (p < end): `end` for PRE_NONE. */
const uint8_t *pretoken_end(enum pretokenizer pre, const uint8_t *p, const uint8_t *end);

#endif
