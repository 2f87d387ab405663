/* Tokens that are taken out of the text before it is cut further.
 *
 * llama.cpp takes the longest token first, everywhere in the text, then the
 * next shorter one from what is left. A left-to-right scan for the longest
 * token at each place gives the same unless a token that begins inside a match
 * and reaches beyond it is at least as long. Such tokens are marked at load
 * ("contested"; public vocabularies have none) and their stretch of text is
 * resolved by the longest-first rule itself. */
#include "text/tokenizer.h"

#include <stdlib.h>

#define CONTEST_SCAN 64 /* rivals looked at before a token is called contested */

static bool is_special(enum token_type type) {
    return type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED || type == TOKEN_UNKNOWN;
}

static bool taken(const struct tokenizer *tokenizer, int32_t id, bool parse_special) {
    return parse_special || tokenizer->type[id] == TOKEN_USER_DEFINED;
}

/* --------------------------------------------------------------- building */

/* The one byte a text consists of, or -1. */
static int run_byte(struct span text) {
    for (uint32_t i = 1; i < text.bytes; i++)
        if (text.text[i] != text.text[0]) return -1;
    return (uint8_t)text.text[0];
}

/* A rival begins inside `text` and reaches beyond it. Runs of one byte are no rivals of each other: where the
 * longer one fits, it also fits where the shorter one begins. */
static bool is_rival(const struct matcher *matcher, uint32_t index, struct span text) {
    struct span rival = text_at(matcher->list, matcher->order[index]);
    if (rival.bytes < text.bytes) return false;
    int byte = run_byte(text);
    return byte < 0 || byte != run_byte(rival);
}

static bool is_contested(const struct matcher *matcher, struct span text) {
    for (uint32_t start = 1; start < text.bytes; start++) {
        struct match_range range = matcher_begin(matcher, (uint8_t)text.text[start]);
        for (uint32_t i = start + 1; i < text.bytes && range.lo < range.hi; i++)
            matcher_walk(matcher, &range, (uint8_t)text.text[i]);
        matcher_take(matcher, &range); /* ends with `text`: does not reach beyond */
        if (range.hi - range.lo > CONTEST_SCAN) return true;
        for (uint32_t i = range.lo; i < range.hi; i++)
            if (is_rival(matcher, i, text)) return true;
    }
    return false;
}

static void mark_prefix(struct specials *specials, int mode, struct span text) {
    uint8_t a = (uint8_t)text.text[0];
    specials->first[mode][a >> 6] |= (uint64_t)1 << (a & 63);
    uint64_t *row = &specials->second[mode][a * 4u];
    if (text.bytes == 1) {
        memset(row, 0xff, 4 * sizeof *row);
        return;
    }
    uint8_t b = (uint8_t)text.text[1];
    row[b >> 6] |= (uint64_t)1 << (b & 63);
}

int specials_new(struct tokenizer *tokenizer, struct shu_error *err) {
    struct specials *specials = &tokenizer->specials;
    uint32_t count = 0;
    int status = SHU_OK;
    int32_t *ids = mem_alloc((size_t)tokenizer->count * sizeof *ids);
    for (int mode = 0; mode < 2; mode++) specials->second[mode] = mem_calloc(1024, sizeof(uint64_t));
    if (!ids || !specials->second[0] || !specials->second[1]) {
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for special tokens");
        goto out;
    }
    for (int32_t id = 0; id < tokenizer->count; id++) {
        struct span text = text_at(&tokenizer->stored, id);
        if (!is_special(tokenizer->type[id]) || text.bytes == 0) continue;
        ids[count++] = id;
        mark_prefix(specials, 1, text);
        if (taken(tokenizer, id, false)) mark_prefix(specials, 0, text);
    }
    if ((status = matcher_new(&specials->matcher, &tokenizer->stored, ids, count, err)) != 0) goto out;
    specials->contested = mem_calloc(count, 1);
    if (!specials->contested) {
        status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for special tokens");
        goto out;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct span text = text_at(&tokenizer->stored, specials->matcher.order[i]);
        specials->contested[i] = is_contested(&specials->matcher, text);
    }
out:
    mem_free(ids);
    return status;
}

void specials_free(struct specials *specials) {
    matcher_free(&specials->matcher);
    mem_free(specials->contested);
    mem_free(specials->second[0]);
    mem_free(specials->second[1]);
}

/* --------------------------------------------------------------- searching */

/* Longest special at `at`; *index is its place in the matcher. Returns its bytes, 0 if none. With `seen`, every
 * special that fits here gets its flag. */
static uint32_t match_at(const struct tokenizer *tokenizer, const char *text, size_t bytes, size_t at,
                         bool parse_special, uint32_t *index, int32_t *seen) {
    const struct matcher *matcher = &tokenizer->specials.matcher;
    struct match_range range = matcher_begin(matcher, (uint8_t)text[at]);
    uint32_t best = 0;
    while (range.lo < range.hi) {
        uint32_t here = range.lo;
        int32_t id = matcher_take(matcher, &range);
        if (id >= 0 && taken(tokenizer, id, parse_special)) {
            best = range.depth;
            *index = here;
            if (seen) seen[here] = 1;
        }
        if (at + range.depth >= bytes) break;
        matcher_walk(matcher, &range, (uint8_t)text[at + range.depth]);
    }
    return best;
}

/* First place at or after `at` where a special may begin. */
static size_t skip_plain(const struct specials *specials, const char *text, size_t bytes, size_t at, int mode) {
    const uint64_t *first = specials->first[mode], *second = specials->second[mode];
    for (; at < bytes; at++) {
        uint8_t a = (uint8_t)text[at];
        if (!(first[a >> 6] >> (a & 63) & 1)) continue;
        uint8_t b = at + 1 < bytes ? (uint8_t)text[at + 1] : 0;
        if (at + 1 == bytes || second[a * 4u + (b >> 6)] >> (b & 63) & 1) break;
    }
    return at;
}

/* ------------------------------------------------- contested stretches */

static int push_hit(struct tokenizer_work *work, struct special_hit hit) {
    if (work->pending_count == work->pending_cap) {
        size_t cap = work->pending_cap ? 2 * work->pending_cap : 16;
        struct special_hit *grown = mem_realloc(work->pending, cap * sizeof *grown);
        if (!grown) return SHU_E_NOMEM;
        work->pending = grown;
        work->pending_cap = cap;
    }
    work->pending[work->pending_count++] = hit;
    return SHU_OK;
}

/* Claims the free occurrences of one token, left to right. */
static void claim_token(const struct matcher *matcher, const char *text, size_t from, size_t to, uint32_t index,
                        int32_t *claims) {
    struct span token = text_at(matcher->list, matcher->order[index]);
    for (size_t at = from; at + token.bytes <= to;) {
        bool free = memcmp(text + at, token.text, token.bytes) == 0;
        for (uint32_t i = 0; free && i < token.bytes; i++) free = claims[at - from + i] < 0;
        for (uint32_t i = 0; free && i < token.bytes; i++) claims[at - from + i] = (int32_t)index;
        at += free ? token.bytes : 1;
    }
}

struct contender {
    uint32_t bytes, index;
    int32_t id;
};

static int compare_contenders(const void *a, const void *b) {
    const struct contender *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Lists the tokens flagged in seen, longest first; returns how many. */
static uint32_t list_contenders(const struct matcher *matcher, const int32_t *seen, struct contender *out) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < matcher->count; i++) {
        if (!seen[i]) continue;
        int32_t id = matcher->order[i];
        out[count++] = (struct contender){text_at(matcher->list, id).bytes, i, id};
    }
    qsort(out, count, sizeof *out, compare_contenders);
    return count;
}

/* Resolves the connected stretch of overlapping matches that begins at `from` into work->pending. */
static int resolve_stretch(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text,
                           size_t bytes, size_t from, bool parse_special) {
    const struct matcher *matcher = &tokenizer->specials.matcher;
    int status = SHU_E_NOMEM;
    struct contender *list = mem_alloc((size_t)matcher->count * sizeof *list);
    int32_t *seen = mem_calloc(matcher->count, sizeof *seen);
    if (!list || !seen) goto out;
    size_t to = from + 1;
    for (size_t at = from; at < to; at++) {
        uint32_t index, best = match_at(tokenizer, text, bytes, at, parse_special, &index, seen);
        if (at + best > to) to = at + best;
    }
    void *claims = work->claims;
    if (scratch_reserve(&claims, &work->claim_cap, to - from, sizeof *work->claims)) goto out;
    work->claims = claims;
    memset(work->claims, 0xff, (to - from) * sizeof *work->claims);
    uint32_t count = list_contenders(matcher, seen, list);
    for (uint32_t i = 0; i < count; i++) claim_token(matcher, text, from, to, list[i].index, work->claims);
    work->pending_count = work->pending_next = 0;
    for (size_t at = from; at < to;) {
        int32_t index = work->claims[at - from];
        int32_t id = index < 0 ? -1 : matcher->order[index];
        uint32_t length = index < 0 ? 1 : text_at(matcher->list, id).bytes;
        if (index >= 0 && push_hit(work, (struct special_hit){at, length, id})) goto out;
        at += length;
    }
    status = SHU_OK;
out:
    mem_free(list);
    mem_free(seen);
    return status;
}

int specials_next(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                  size_t from, bool parse_special, struct special_hit *out) {
    const struct specials *specials = &tokenizer->specials;
    while (work->pending_next == work->pending_count) {
        uint32_t index = 0, best = 0;
        for (;; from++) {
            from = skip_plain(specials, text, bytes, from, parse_special);
            if (from >= bytes) return 0;
            best = match_at(tokenizer, text, bytes, from, parse_special, &index, NULL);
            if (best) break;
        }
        if (!specials->contested[index]) {
            *out = (struct special_hit){from, best, specials->matcher.order[index]};
            return 1;
        }
        int status = resolve_stretch(tokenizer, work, text, bytes, from, parse_special);
        if (status) return status;
    }
    *out = work->pending[work->pending_next++];
    return 1;
}
