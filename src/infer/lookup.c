#include "infer/lookup.h"

#include <string.h>

enum {
    CHAIN_MAX = 64, /* earlier occurrences compared per draft */
    MATCH_MAX = 32  /* tokens of context compared: beyond that, the most recent one is as good */
};

/* What one more row costs in a decode step, as a part of what a step of one row costs. Measured on
 * two cores: 0.16 (1.5B, Q4_K). In replays with true costs of 0.1 to 0.3, 0.15 was the best or within 5% of
 * it and never lost to no drafts at all (dev/LOG.md, 2026-11-26). */
static const float ROW_COST = 0.15f;

/* Chances before anything was learned, and how fast they follow what happens. */
static const float CHANCE_START[LOOKUP_CLASSES] = {0.3f, 0.45f, 0.6f, 0.8f, 0.9f};
static const float RISE = 0.1f, FALL = 0.25f, FORGET = 0.05f, CHANCE_MIN = 0.05f, CHANCE_MAX = 0.98f;

static uint32_t hash_pair(const struct lookup *lookup, int32_t a, int32_t b) {
    uint64_t mixed = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(mixed >> (64 - lookup->bits));
}

int lookup_init(struct lookup *lookup, const int32_t *tokens, int capacity, int max_length) {
    memset(lookup, 0, sizeof *lookup);
    lookup->tokens = tokens;
    lookup->capacity = capacity;
    lookup->max_length = max_length;
    memcpy(lookup->chance, CHANCE_START, sizeof lookup->chance);
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

static int class_of(int matched) {
    return matched <= 1 ? 0 : matched == 2 ? 1 : matched <= 4 ? 2 : matched <= 8 ? 3 : 4;
}

/* Length that gives the most tokens per cost: a draft of k tokens is expected to yield 1 + p + … + p^k
 * tokens for 1 + k * ROW_COST. */
static int best_length(float chance, int max_length) {
    float best = 1, tokens = 1, all_true = 1;
    int length = 0;
    for (int k = 1; k <= max_length; k++) {
        all_true *= chance;
        tokens += all_true;
        if (tokens <= best * (1 + ROW_COST * (float)k)) break; /* the ratio has one maximum */
        best = tokens / (1 + ROW_COST * (float)k);
        length = k;
    }
    return length;
}

int lookup_draft(struct lookup *lookup, int room, int32_t *out) {
    int matched;
    int from = find_continuation(lookup, &matched);
    if (from < 0) return 0;
    int class = lookup->last_class = class_of(matched);
    int wanted = best_length(lookup->chance[class], lookup->max_length);
    /* A class that has failed is not tried for a while; then its chance has come back. */
    if (wanted == 0) lookup->chance[class] += (CHANCE_START[class] - lookup->chance[class]) * FORGET;
    if (wanted > room) wanted = room;
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
    float *chance = &lookup->chance[lookup->last_class];
    for (int i = 0; i < accepted; i++) *chance += (1 - *chance) * RISE;
    if (accepted < drafted) *chance -= *chance * FALL;
    if (*chance < CHANCE_MIN) *chance = CHANCE_MIN;
    if (*chance > CHANCE_MAX) *chance = CHANCE_MAX;
}
