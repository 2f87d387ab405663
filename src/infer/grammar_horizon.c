/* Grammars: automaton states that short texts cannot tell apart.
 *
 * A string of at most 200 characters has 200 states, each with a mask of its own; yet to tokens of at most 8 bytes
 * all but the last few look the same. Moore's partition refinement, stopped after k rounds, finds the states that
 * behave alike for all texts of at most k bytes: they share the part of the mask that such tokens make up. */
#include "infer/grammar.h"

#include <string.h>

enum { MAX_STATES = 30000 }; /* beyond, every state stands for itself: the rounds would take too long */

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
}

/* What one round sees of a state: its own class, those of its neighbours, and its calls as they are. */
static uint64_t signature(const struct automaton *a, const uint32_t *class, uint32_t state) {
    uint64_t hash = mix(class[state] + 1, a->flags[state]);
    const uint32_t *next = a->next + (size_t)state * a->classes;
    for (uint32_t i = 0; i < a->classes; i++) hash = mix(hash, class[next[i]]);
    for (uint32_t i = a->call_at[state]; i < a->call_at[state + 1]; i++) {
        hash = mix(hash, a->calls[i].rule + (uint64_t)1);
        hash = mix(hash, a->calls[i].back);
    }
    return hash;
}

struct round {
    uint64_t *hash;  /* open addressing over signatures */
    uint32_t *first; /* [cap] first state with that signature + 1: the name of its class */
    size_t cap;
};

/* New classes, each named by its first state. Returns how many there are. */
static uint32_t refine(const struct automaton *a, struct round *r, const uint32_t *class, uint32_t *out) {
    uint32_t count = 0;
    memset(r->first, 0, r->cap * sizeof *r->first);
    for (uint32_t s = 0; s < a->states; s++) {
        uint64_t hash = signature(a, class, s);
        size_t slot = hash & (r->cap - 1);
        while (r->first[slot] && r->hash[slot] != hash) slot = (slot + 1) & (r->cap - 1);
        if (!r->first[slot]) {
            r->first[slot] = s + 1;
            r->hash[slot] = hash;
            count++;
        }
        out[s] = r->first[slot] - 1;
    }
    return count;
}

int horizon_build(const struct automaton *a, const uint32_t *horizons, int count, uint32_t **out) {
    struct round r = {.cap = 64};
    while (r.cap < (size_t)a->states * 2) r.cap *= 2;
    r.hash = mem_alloc(r.cap * sizeof *r.hash);
    r.first = mem_alloc(r.cap * sizeof *r.first);
    uint32_t *class = mem_calloc(a->states, sizeof *class), *fresh = mem_calloc(a->states, sizeof *fresh);
    int status = r.hash && r.first && class && fresh ? 0 : SHU_E_NOMEM;
    uint32_t rounds = 0, classes = 0;
    bool stable = false;
    for (int h = 0; !status && h < count; h++) {
        out[h] = mem_alloc(a->states * sizeof **out);
        if (!out[h]) status = SHU_E_NOMEM;
        for (; !status && !stable && a->states <= MAX_STATES && rounds <= horizons[h];
             rounds++) { /* round 0: flags only */
            uint32_t now = refine(a, &r, class, fresh), *swap = class;
            class = fresh;
            fresh = swap;
            stable = now == classes;
            classes = now;
        }
        for (uint32_t s = 0; !status && s < a->states; s++) out[h][s] = a->states <= MAX_STATES ? class[s] : s;
    }
    mem_free(r.hash);
    mem_free(r.first);
    mem_free(class);
    mem_free(fresh);
    return status;
}
