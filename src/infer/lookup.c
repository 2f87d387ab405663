#include "infer/lookup.h"

#include <string.h>

enum {
    CHAIN_MAX = 64, /* earlier occurrences compared per draft */
    MATCH_MAX = 32, /* tokens of context compared: beyond that, the most recent one is as good */
    LENGTH_START = 4
};

static uint32_t hash_pair(const struct lookup *lookup, int32_t a, int32_t b) {
    uint64_t mixed = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(mixed >> (64 - lookup->bits));
}

int lookup_init(struct lookup *lookup, const int32_t *tokens, int capacity, int max_length) {
    memset(lookup, 0, sizeof *lookup);
    lookup->tokens = tokens;
    lookup->capacity = capacity;
    lookup->max_length = max_length;
    lookup->length = max_length < LENGTH_START ? max_length : LENGTH_START;
    for (lookup->bits = 8; lookup->bits < 20 && (1 << lookup->bits) < capacity; lookup->bits++) {
    }
    size_t heads = (size_t)1 << lookup->bits;
    lookup->pair_head = mem_alloc(heads * sizeof *lookup->pair_head);
    lookup->single_head = mem_alloc(heads * sizeof *lookup->single_head);
    lookup->previous = mem_alloc((size_t)capacity * sizeof *lookup->previous);
    if (!lookup->pair_head || !lookup->single_head || !lookup->previous) {
        lookup_free(lookup);
        return SHU_E_NOMEM;
    }
    memset(lookup->pair_head, -1, heads * sizeof *lookup->pair_head);
    memset(lookup->single_head, -1, heads * sizeof *lookup->single_head);
    return SHU_OK;
}

void lookup_free(struct lookup *lookup) {
    mem_free(lookup->pair_head);
    mem_free(lookup->single_head);
    mem_free(lookup->previous);
    memset(lookup, 0, sizeof *lookup);
}

void lookup_extend(struct lookup *lookup, int count) {
    /* A position enters the index when the token at it is known: it is the continuation. */
    for (int at = lookup->count; at < count; at++) {
        lookup->previous[at] = -1;
        if (at >= 1) lookup->single_head[hash_pair(lookup, 0, lookup->tokens[at - 1])] = at;
        if (at < 2) continue;
        int32_t *head = &lookup->pair_head[hash_pair(lookup, lookup->tokens[at - 2], lookup->tokens[at - 1])];
        lookup->previous[at] = *head;
        *head = at;
    }
    if (count > lookup->count) lookup->count = count;
}

/* Tokens before `at` that equal the last indexed ones, at most MATCH_MAX. */
static int match_length(const struct lookup *lookup, int at) {
    int matched = 0;
    while (matched < at && matched < MATCH_MAX &&
           lookup->tokens[at - 1 - matched] == lookup->tokens[lookup->count - 1 - matched])
        matched++;
    return matched;
}

/* Position whose context matches longest, the most recent on a tie; -1 if none matches at all. */
static int find_continuation(const struct lookup *lookup, int *matched) {
    int n = lookup->count, best = -1;
    *matched = 0;
    if (n < 2) return -1;
    int at = lookup->pair_head[hash_pair(lookup, lookup->tokens[n - 2], lookup->tokens[n - 1])];
    for (int step = 0; at >= 0 && step < CHAIN_MAX && *matched < MATCH_MAX; step++, at = lookup->previous[at]) {
        int length = match_length(lookup, at);
        if (length > *matched) {
            *matched = length;
            best = at;
        }
    }
    if (*matched >= 2) return best;
    at = lookup->single_head[hash_pair(lookup, 0, lookup->tokens[n - 1])];
    if (at < 0 || match_length(lookup, at) == 0) return best;
    *matched = 1;
    return at;
}

int lookup_draft(const struct lookup *lookup, int room, int32_t *out) {
    int matched;
    int from = find_continuation(lookup, &matched);
    if (from < 0) return 0;
    int wanted = lookup->length < room ? lookup->length : room;
    int count = 0;
    /* A repetition may run into its own end: "a b a b" goes on with what the draft itself says. */
    for (; count < wanted; count++) {
        int at = from + count;
        out[count] = at < lookup->count ? lookup->tokens[at] : out[at - lookup->count];
    }
    return count;
}

void lookup_learn(struct lookup *lookup, int drafted, int accepted) {
    if (drafted == 0) return;
    if (accepted == drafted && drafted >= lookup->length)
        lookup->length *= 2;
    else if (accepted < drafted)
        lookup->length = accepted + 1;
    if (lookup->length > lookup->max_length) lookup->length = lookup->max_length;
}
