/* Grammars at run time: positions, stacks, masks; the public functions. */
#include "infer/grammar.h"

#include <pthread.h>
#include <string.h>

enum {
    STACK_EMPTY = 0,   /* the end of the text is below */
    STACK_UNKNOWN = 1, /* while masks are made: whatever called this rule */
    STACK_FIRST = 2,
    MASK_SLOTS = 64,      /* finished masks of recent positions */
    TOKEN_MAX_BYTES = 512 /* longer tokens are never allowed under a grammar */
};

struct item {
    uint32_t state, stack;
};
struct position {
    struct item items[GRAMMAR_MAX_ITEMS];
    uint32_t count;
    bool complete; /* the text may end here */
    bool below;    /* an automaton with an unknown stack has ended */
};

/* Tokens are walked in bands of length, so that states which look alike up to that length share the band's mask. */
enum { BANDS = 4 };
static const uint32_t band_bytes[BANDS] = {8, 16, 32, TOKEN_MAX_BYTES};

struct stack_node {
    uint32_t back, parent; /* automaton state to go on in; stack below */
    uint32_t depth;
};

/* What an automaton state allows, whatever the stack: tokens that stay inside of its rule, and what is left of
 * those that leave it. */
struct state_mask {
    uint64_t *bits; /* NULL when few tokens are allowed: then ids */
    int32_t *ids;
    uint32_t id_count;
    struct trie rest;
    size_t bytes;
};

struct mask_slot {
    uint64_t *bits;
    struct item *key;
    uint32_t key_count;
    bool complete;
    uint64_t hash, used;
};

struct shared { /* everything that changes, under one lock */
    pthread_mutex_t lock;
    struct stack_node *stacks;
    uint32_t stack_count, stack_cap;
    uint32_t *stack_hash; /* number + 1 */
    size_t stack_hash_cap;
    struct state_mask **masks; /* [BANDS][states], NULL = not made yet */
    size_t mask_bytes;
    struct mask_slot slots[MASK_SLOTS];
    uint64_t clock;
    int states_alive;
    bool failed; /* an allocation failed while a mask was made */
};

struct grammar {
    struct automaton automaton;
    struct trie tokens[BANDS];
    uint32_t *alike[BANDS]; /* [states] the state whose mask is used; NULL in the last band: every state its own */
    const struct tokenizer *tokenizer;
    int32_t vocab;
    size_t words; /* uint64_t words of a mask */
    int32_t *ends;
    size_t end_count;
    uint32_t longest; /* bytes of the longest token */
    struct shared *shared;
};

struct grammar_state {
    const struct grammar *grammar;
    struct position position;
    bool ended;
    uint64_t *mask;
};

/* -------------------------------------------------------------------- stacks */

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t hash = (a * 0x9E3779B97F4A7C15u) ^ (b + 0x7F4A7C15u) * 0xBF58476D1CE4E5B9u;
    return hash ^ hash >> 31;
}

static bool grow_stacks(struct shared *sh) {
    uint32_t cap = sh->stack_cap ? sh->stack_cap * 2 : 256;
    if (cap > GRAMMAR_MAX_STACKS) return false;
    struct stack_node *stacks = mem_realloc(sh->stacks, cap * sizeof *stacks);
    if (stacks) sh->stacks = stacks;
    uint32_t *hash = mem_calloc((size_t)cap * 2, sizeof *hash);
    if (!stacks || !hash) {
        mem_free(hash);
        sh->failed = true;
        return false;
    }
    for (uint32_t i = STACK_FIRST; i < sh->stack_count; i++) {
        size_t slot = mix(stacks[i].back, stacks[i].parent) & ((size_t)cap * 2 - 1);
        while (hash[slot]) slot = (slot + 1) & ((size_t)cap * 2 - 1);
        hash[slot] = i + 1;
    }
    mem_free(sh->stack_hash);
    sh->stack_hash = hash;
    sh->stack_hash_cap = (size_t)cap * 2;
    sh->stack_cap = cap;
    return true;
}

/* Equal stacks have equal numbers. False at a limit: the way is then not taken. */
static bool push_stack(struct shared *sh, uint32_t back, uint32_t parent, uint32_t *out) {
    size_t slot = mix(back, parent) & (sh->stack_hash_cap - 1);
    for (; sh->stack_hash[slot]; slot = (slot + 1) & (sh->stack_hash_cap - 1)) {
        *out = sh->stack_hash[slot] - 1;
        if (sh->stacks[*out].back == back && sh->stacks[*out].parent == parent) return true;
    }
    uint32_t depth = sh->stacks[parent].depth + 1;
    if (depth > GRAMMAR_MAX_DEPTH) return false;
    if (sh->stack_count == sh->stack_cap) {
        if (!grow_stacks(sh)) return false;
        slot = mix(back, parent) & (sh->stack_hash_cap - 1);
        while (sh->stack_hash[slot]) slot = (slot + 1) & (sh->stack_hash_cap - 1);
    }
    *out = sh->stack_count++;
    sh->stacks[*out] = (struct stack_node){back, parent, depth};
    sh->stack_hash[slot] = *out + 1;
    return true;
}

/* ----------------------------------------------------------------- positions */

/* Adds an automaton state and everything reached without reading: called rules, and callers of ended ones. */
static void add_item(const struct grammar *g, struct position *p, uint32_t state, uint32_t stack) {
    const struct automaton *a = &g->automaton;
    for (uint32_t i = 0; i < p->count; i++)
        if (p->items[i].state == state && p->items[i].stack == stack) return;
    if (p->count == GRAMMAR_MAX_ITEMS) return;
    p->items[p->count++] = (struct item){state, stack};
    if (a->flags[state] & STATE_ACCEPT) {
        if (stack == STACK_EMPTY)
            p->complete = true;
        else if (stack == STACK_UNKNOWN)
            p->below = true;
        else {
            struct stack_node node = g->shared->stacks[stack];
            add_item(g, p, node.back, node.parent);
        }
    }
    for (uint32_t i = a->call_at[state]; i < a->call_at[state + 1]; i++) {
        uint32_t back = a->calls[i].back, inner = stack;
        if (back == STATE_DEAD) continue;
        if (!(a->flags[back] & STATE_TAIL) && !push_stack(g->shared, back, stack, &inner)) continue;
        add_item(g, p, a->start[a->calls[i].rule], inner);
    }
}

static void clear(struct position *p) {
    p->count = 0;
    p->complete = p->below = false;
}

/* The position behind one more byte. */
static void advance(const struct grammar *g, const struct position *from, uint8_t byte, struct position *to) {
    const struct automaton *a = &g->automaton;
    uint32_t class = a->class_of[byte];
    clear(to);
    for (uint32_t i = 0; i < from->count; i++) {
        uint32_t next = a->next[(size_t)from->items[i].state * a->classes + class];
        if (next == STATE_DEAD) continue;
        if ((a->flags[next] & STATE_PLAIN) && to->count == 0)
            to->items[to->count++] = (struct item){next, from->items[i].stack}; /* the common case */
        else
            add_item(g, to, next, from->items[i].stack);
    }
}

/* --------------------------------------------------------------------- masks */

static void set_bit(uint64_t *bits, int32_t id) {
    bits[id >> 6] |= (uint64_t)1 << (id & 63);
}

/* Remainders of tokens that leave the rule: gathered by the walk below. */
struct leavers {
    struct trie_text *texts;
    size_t count, cap;
    char *path; /* [longest] bytes from the root to the current node */
    bool failed;
};

static void push_leaver(struct leavers *lv, const char *text, uint32_t bytes, int32_t id) {
    if (lv->count == lv->cap) {
        size_t cap = lv->cap ? lv->cap * 2 : 1024;
        struct trie_text *texts = mem_realloc(lv->texts, cap * sizeof *texts);
        if (!texts) {
            lv->failed = true;
            return;
        }
        lv->texts = texts;
        lv->cap = cap;
    }
    lv->texts[lv->count++] = (struct trie_text){text, bytes, id};
}

/* All tokens strictly below `node`, as what follows its depth. */
static void collect_below(const struct grammar *g, const struct trie *trie, size_t node, struct leavers *lv) {
    uint32_t depth = trie->nodes[node].depth;
    for (size_t i = node + 1; i < trie->nodes[node].skip && !lv->failed; i++) {
        const struct trie_node *below = &trie->nodes[i];
        for (uint32_t k = 0; k < below->count && !lv->failed; k++) {
            int32_t id = trie->ids[below->first + k];
            struct span piece = tokenizer_piece(g->tokenizer, id, false);
            push_leaver(lv, piece.text + depth, piece.bytes - depth, id);
        }
    }
}

/* One level of a walk. Nearly always a single plain automaton state on the stack that the walk began with: then
 * `plain` is that state and the position is not filled in. */
struct level {
    uint32_t plain; /* STATE_DEAD: see position */
    struct position position;
};

static void start_level(const struct grammar *g, struct level *level) {
    const struct position *p = &level->position;
    bool single = p->count == 1 && !p->complete && !p->below;
    level->plain = single && (g->automaton.flags[p->items[0].state] & STATE_PLAIN) ? p->items[0].state : STATE_DEAD;
}

/* The slow path: true if the byte is possible. */
static bool advance_level(const struct grammar *g, struct level *from, uint8_t byte, uint32_t stack, struct level *to) {
    if (from->plain != STATE_DEAD) {
        clear(&from->position);
        from->position.items[from->position.count++] = (struct item){from->plain, stack};
    }
    advance(g, &from->position, byte, &to->position);
    to->plain = STATE_DEAD;
    return to->position.count > 0;
}

/* Walks a trie from levels[0].position and sets the bits of the texts it allows. With `lv`, texts that leave an
 * unknown stack are gathered. levels: [longest + 1]. */
static void walk(const struct grammar *g, const struct trie *trie, struct level *levels, uint64_t *bits,
                 struct leavers *lv) {
    const uint32_t *next = g->automaton.next, classes = g->automaton.classes;
    const uint8_t *class_of = g->automaton.class_of, *flags = g->automaton.flags;
    start_level(g, &levels[0]);
    uint32_t stack = levels[0].position.count ? levels[0].position.items[0].stack : STACK_EMPTY;
    for (size_t i = 0; i < trie->count;) {
        const struct trie_node *node = &trie->nodes[i];
        struct level *from = &levels[node->depth - 1], *to = &levels[node->depth];
        bool possible = false;
        if (from->plain != STATE_DEAD) {
            uint32_t state = next[(size_t)from->plain * classes + class_of[node->byte]];
            possible = (flags[state] & STATE_PLAIN) != 0;
            if (possible)
                to->plain = state;
            else if (state != STATE_DEAD)
                possible = advance_level(g, from, node->byte, stack, to);
        } else {
            possible = advance_level(g, from, node->byte, stack, to);
        }
        if (!possible) {
            i = node->skip;
            continue;
        }
        for (uint32_t k = 0; k < node->count; k++) set_bit(bits, trie->ids[node->first + k]);
        if (lv && to->plain == STATE_DEAD && to->position.below) collect_below(g, trie, i, lv);
        i++;
    }
}

static void mask_free(struct state_mask *mask) {
    if (!mask) return;
    mem_free(mask->bits);
    mem_free(mask->ids);
    trie_free(&mask->rest);
    mem_free(mask);
}

static void drop_masks(const struct grammar *g) {
    for (size_t i = 0; i < (size_t)BANDS * g->automaton.states; i++) {
        mask_free(g->shared->masks[i]);
        g->shared->masks[i] = NULL;
    }
    g->shared->mask_bytes = 0;
}

/* Few tokens are kept as a list, many as bits. */
static bool compress(const struct grammar *g, struct state_mask *mask) {
    uint32_t count = 0;
    for (size_t i = 0; i < g->words; i++) count += (uint32_t)__builtin_popcountll(mask->bits[i]);
    mask->bytes = sizeof *mask + g->words * sizeof *mask->bits + trie_bytes(&mask->rest);
    if (count * sizeof *mask->ids >= g->words * sizeof *mask->bits / 4) return true;
    mask->ids = mem_alloc((count + 1) * sizeof *mask->ids);
    if (!mask->ids) return false;
    for (size_t i = 0; i < g->words; i++)
        for (uint64_t word = mask->bits[i]; word; word &= word - 1)
            mask->ids[mask->id_count++] = (int32_t)(i * 64 + (size_t)__builtin_ctzll(word));
    mem_free(mask->bits);
    mask->bits = NULL;
    mask->bytes = sizeof *mask + count * sizeof *mask->ids + trie_bytes(&mask->rest);
    return true;
}

static struct state_mask *make_mask(const struct grammar *g, int band, uint32_t state, struct level *levels) {
    struct state_mask *mask = mem_calloc(1, sizeof *mask);
    struct leavers lv = {0};
    if (mask) mask->bits = mem_calloc(g->words, sizeof *mask->bits);
    bool ok = mask && mask->bits;
    if (ok) {
        clear(&levels[0].position);
        levels[0].position.items[levels[0].position.count++] =
            (struct item){state, STACK_UNKNOWN}; /* its callees are items of their own */
        walk(g, &g->tokens[band], levels, mask->bits, &lv);
        ok = !lv.failed && trie_build(lv.texts, lv.count, &mask->rest) == 0 && compress(g, mask);
    }
    mem_free(lv.texts);
    if (ok) return mask;
    mask_free(mask);
    g->shared->failed = true;
    return NULL;
}

static const struct state_mask *state_mask(const struct grammar *g, int band, uint32_t state, struct level *levels) {
    struct shared *sh = g->shared;
    if (g->alike[band]) state = g->alike[band][state];
    struct state_mask **slot = &sh->masks[(size_t)band * g->automaton.states + state];
    if (*slot) return *slot;
    if (sh->mask_bytes > GRAMMAR_MAX_MASK_BYTES) drop_masks(g);
    *slot = make_mask(g, band, state, levels);
    if (*slot) sh->mask_bytes += (*slot)->bytes;
    return *slot;
}

/* Tokens that leave the rule of an item and go on in its callers. */
static void walk_rest(const struct grammar *g, const struct state_mask *mask, uint32_t stack, struct level *levels,
                      uint64_t *bits) {
    if (mask->rest.count == 0 || stack < STACK_FIRST) return;
    clear(&levels[0].position);
    struct stack_node node = g->shared->stacks[stack];
    add_item(g, &levels[0].position, node.back, node.parent);
    walk(g, &mask->rest, levels, bits, NULL);
}

static void fill_mask(const struct grammar *g, const struct position *p, struct level *levels, uint64_t *bits) {
    memset(bits, 0, g->words * sizeof *bits);
    for (uint32_t i = 0; i < p->count; i++) {
        if (!(g->automaton.flags[p->items[i].state] & STATE_BYTES)) continue;
        for (int band = 0; band < BANDS; band++) {
            const struct state_mask *mask = state_mask(g, band, p->items[i].state, levels);
            if (!mask) return;
            for (size_t k = 0; mask->bits && k < g->words; k++) bits[k] |= mask->bits[k];
            for (uint32_t k = 0; k < mask->id_count; k++) set_bit(bits, mask->ids[k]);
            walk_rest(g, mask, p->items[i].stack, levels, bits);
        }
    }
    for (size_t i = 0; p->complete && i < g->end_count; i++) set_bit(bits, g->ends[i]);
}

static uint64_t hash_position(const struct position *p) {
    uint64_t hash = p->count * 2 + p->complete;
    for (uint32_t i = 0; i < p->count; i++) hash = mix(hash, mix(p->items[i].state, p->items[i].stack));
    return hash;
}

static bool same_position(const struct mask_slot *slot, const struct position *p, uint64_t hash) {
    return slot->key && slot->hash == hash && slot->key_count == p->count && slot->complete == p->complete &&
           memcmp(slot->key, p->items, p->count * sizeof *p->items) == 0;
}

/* Remembers the mask of a position in place of the longest unused one. Failing to is no harm. */
static void remember(const struct grammar *g, const struct position *p, uint64_t hash, const uint64_t *bits) {
    struct shared *sh = g->shared;
    struct mask_slot *slot = &sh->slots[0];
    for (int i = 1; i < MASK_SLOTS; i++)
        if (sh->slots[i].used < slot->used) slot = &sh->slots[i];
    struct item *key = mem_realloc(slot->key, (p->count + 1) * sizeof *key);
    if (!slot->bits) slot->bits = mem_alloc(g->words * sizeof *slot->bits);
    if (key) slot->key = key;
    if (!key || !slot->bits) {
        slot->key_count = UINT32_MAX; /* matches no position */
        return;
    }
    memcpy(slot->key, p->items, p->count * sizeof *p->items);
    memcpy(slot->bits, bits, g->words * sizeof *bits);
    slot->key_count = p->count;
    slot->complete = p->complete;
    slot->hash = hash;
    slot->used = ++sh->clock;
}

static void make_position_mask(const struct grammar *g, const struct position *p, uint64_t *bits) {
    struct shared *sh = g->shared;
    uint64_t hash = hash_position(p);
    for (int i = 0; i < MASK_SLOTS; i++) {
        if (!same_position(&sh->slots[i], p, hash)) continue;
        sh->slots[i].used = ++sh->clock;
        memcpy(bits, sh->slots[i].bits, g->words * sizeof *bits);
        return;
    }
    struct level *levels = mem_alloc(((size_t)g->longest + 1) * sizeof *levels);
    sh->failed = levels == NULL;
    if (levels) fill_mask(g, p, levels, bits);
    mem_free(levels);
    if (sh->failed)
        memset(bits, 0, g->words * sizeof *bits); /* no memory: nothing is allowed, the caller stops */
    else
        remember(g, p, hash, bits);
}

/* ------------------------------------------------------------------- compile */

static bool usable(const struct tokenizer *tokenizer, int32_t id, struct span piece) {
    enum token_type type = tokenizer_type(tokenizer, id);
    return piece.bytes > 0 && piece.bytes <= TOKEN_MAX_BYTES && type != TOKEN_CONTROL && type != TOKEN_UNKNOWN &&
           type != TOKEN_UNUSED && !tokenizer_is_end(tokenizer, id);
}

/* The tokens of one band as a trie. */
static int load_band(struct grammar *g, int band, struct trie_text *texts) {
    size_t count = 0;
    for (int32_t id = 0; id < g->vocab; id++) {
        struct span piece = tokenizer_piece(g->tokenizer, id, false);
        bool inside = piece.bytes <= band_bytes[band] && (band == 0 || piece.bytes > band_bytes[band - 1]);
        if (!inside || !usable(g->tokenizer, id, piece)) continue;
        texts[count++] = (struct trie_text){piece.text, piece.bytes, id};
        if (piece.bytes > g->longest) g->longest = piece.bytes;
    }
    return trie_build(texts, count, &g->tokens[band]);
}

static int load_tokens(struct grammar *g, struct shu_error *err) {
    struct trie_text *texts = mem_alloc(((size_t)g->vocab + 1) * sizeof *texts);
    g->ends = mem_alloc(((size_t)g->vocab + 1) * sizeof *g->ends);
    int status = texts && g->ends ? 0 : SHU_E_NOMEM;
    for (int32_t id = 0; !status && id < g->vocab; id++)
        if (tokenizer_is_end(g->tokenizer, id)) g->ends[g->end_count++] = id;
    for (int band = 0; !status && band < BANDS; band++) status = load_band(g, band, texts);
    if (!status) status = horizon_build(&g->automaton, band_bytes, BANDS - 1, g->alike);
    mem_free(texts);
    return status ? SHU_FAIL(err, status, "no memory to index %d tokens for a grammar", (int)g->vocab) : 0;
}

static int make_shared(struct grammar *g, struct shu_error *err) {
    struct shared *sh = mem_calloc(1, sizeof *sh);
    if (!sh) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a grammar");
    pthread_mutex_init(&sh->lock, NULL);
    g->shared = sh;
    sh->stack_count = STACK_FIRST;
    sh->masks = mem_calloc((size_t)BANDS * g->automaton.states, sizeof *sh->masks);
    if (!sh->masks || !grow_stacks(sh)) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a grammar");
    sh->stacks[STACK_EMPTY] = sh->stacks[STACK_UNKNOWN] = (struct stack_node){0};
    return 0;
}

static int finish_grammar(struct builder *b, const struct tokenizer *tokenizer, struct grammar **out) {
    struct grammar *g = mem_calloc(1, sizeof *g);
    if (!g) return SHU_FAIL(b->err, SHU_E_NOMEM, "no memory for a grammar");
    g->tokenizer = tokenizer;
    g->vocab = tokenizer_count(tokenizer);
    g->words = ((size_t)g->vocab + 63) / 64;
    int status = automaton_build(b, &g->automaton);
    if (!status) status = load_tokens(g, b->err);
    if (!status) status = make_shared(g, b->err);
    if (status)
        grammar_free(g);
    else
        *out = g;
    return status;
}

int grammar_from_schema(const json_t *schema, const struct tokenizer *tokenizer, struct grammar **out,
                        struct shu_error *err) {
    struct builder b;
    builder_init(&b, err);
    int status = schema_build(&b, schema);
    if (!status) status = finish_grammar(&b, tokenizer, out);
    builder_free(&b);
    return status;
}

int grammar_from_ebnf(const char *source, size_t bytes, const struct tokenizer *tokenizer, struct grammar **out,
                      struct shu_error *err) {
    struct builder b;
    builder_init(&b, err);
    int status = ebnf_build(&b, source, bytes);
    if (!status) status = finish_grammar(&b, tokenizer, out);
    builder_free(&b);
    return status;
}

static void shared_free(const struct grammar *g, struct shared *sh) {
    if (!sh) return;
    if (sh->masks) drop_masks(g);
    for (int i = 0; i < MASK_SLOTS; i++) {
        mem_free(sh->slots[i].bits);
        mem_free(sh->slots[i].key);
    }
    pthread_mutex_destroy(&sh->lock);
    mem_free(sh->masks);
    mem_free(sh->stacks);
    mem_free(sh->stack_hash);
    mem_free(sh);
}

void grammar_free(struct grammar *g) {
    if (!g) return;
    shared_free(g, g->shared);
    automaton_free(&g->automaton);
    for (int band = 0; band < BANDS; band++) {
        trie_free(&g->tokens[band]);
        mem_free(g->alike[band]);
    }
    mem_free(g->ends);
    mem_free(g);
}

/* -------------------------------------------------------------------- states */

/* With no other text in progress, remembered stacks and masks of positions may go once they are many. */
static void forget_stacks(struct shared *sh) {
    if (sh->stack_count < GRAMMAR_MAX_STACKS / 2) return;
    memset(sh->stack_hash, 0, sh->stack_hash_cap * sizeof *sh->stack_hash);
    sh->stack_count = STACK_FIRST;
    for (int i = 0; i < MASK_SLOTS; i++) sh->slots[i].key_count = UINT32_MAX;
}

void grammar_state_reset(struct grammar_state *state) {
    const struct grammar *g = state->grammar;
    pthread_mutex_lock(&g->shared->lock);
    if (g->shared->states_alive == 1) forget_stacks(g->shared);
    clear(&state->position);
    state->ended = false;
    add_item(g, &state->position, g->automaton.start[0], STACK_EMPTY);
    pthread_mutex_unlock(&g->shared->lock);
}

int grammar_state_new(const struct grammar *grammar, struct grammar_state **out, struct shu_error *err) {
    struct grammar_state *state = mem_calloc(1, sizeof *state);
    if (state) state->mask = mem_calloc(grammar->words + 1, sizeof *state->mask);
    if (!state || !state->mask) {
        mem_free(state);
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for the state of a grammar");
    }
    state->grammar = grammar;
    pthread_mutex_lock(&grammar->shared->lock);
    grammar->shared->states_alive++;
    pthread_mutex_unlock(&grammar->shared->lock);
    grammar_state_reset(state);
    *out = state;
    return 0;
}

void grammar_state_free(struct grammar_state *state) {
    if (!state) return;
    pthread_mutex_lock(&state->grammar->shared->lock);
    state->grammar->shared->states_alive--;
    pthread_mutex_unlock(&state->grammar->shared->lock);
    mem_free(state->mask);
    mem_free(state);
}

const uint64_t *grammar_mask(struct grammar_state *state) {
    const struct grammar *g = state->grammar;
    if (state->ended) {
        memset(state->mask, 0, g->words * sizeof *state->mask);
        for (size_t i = 0; i < g->end_count; i++) set_bit(state->mask, g->ends[i]);
        return state->mask;
    }
    pthread_mutex_lock(&g->shared->lock);
    make_position_mask(g, &state->position, state->mask);
    pthread_mutex_unlock(&g->shared->lock);
    return state->mask;
}

bool grammar_accept(struct grammar_state *state, int32_t token) {
    const struct grammar *g = state->grammar;
    if (token < 0 || token >= g->vocab) return false;
    if (tokenizer_is_end(g->tokenizer, token)) {
        bool may_end = state->ended || state->position.complete;
        state->ended |= may_end;
        return may_end;
    }
    struct span piece = tokenizer_piece(g->tokenizer, token, false);
    if (state->ended || !usable(g->tokenizer, token, piece)) return false;
    struct position two[2];
    const struct position *at = &state->position;
    pthread_mutex_lock(&g->shared->lock);
    for (uint32_t i = 0; i < piece.bytes && at->count; i++) {
        advance(g, at, (uint8_t)piece.text[i], &two[i & 1]);
        at = &two[i & 1];
    }
    pthread_mutex_unlock(&g->shared->lock);
    if (at->count == 0) return false;
    state->position = *at;
    return true;
}

bool grammar_done(const struct grammar_state *state) {
    if (state->ended) return true;
    if (!state->position.complete) return false;
    for (uint32_t i = 0; i < state->position.count; i++)
        if (state->grammar->automaton.flags[state->position.items[i].state] & STATE_BYTES) return false;
    return true;
}

int grammar_state_copy(struct grammar_state *to, const struct grammar_state *from) {
    if (to->grammar != from->grammar) return SHU_E_USAGE;
    to->position = from->position;
    to->ended = from->ended;
    return 0;
}
