/* Learning merges. All distinct pieces stand behind each other in one array of slots, one slot a byte, and tokens are
 * ranges of slots that grow:
 *
 *     first slot   id of the token
 *     last slot    id | SLOT_LAST, if the token is longer than one slot
 *     between      SLOT_DEAD
 *
 * A SLOT_END stands before, between and behind the pieces. So the neighbours of a token are found without links, and
 * an old list of places tells by itself which of them still hold: the slot has the left id and the one behind has the
 * right id. A pair keeps one list of places, ascending.
 *
 * No text becomes a token in two ways: what was merged inside a token is what would have been merged if it stood alone,
 * since a merge across its borders would have prevented it, and pairs of equal tokens are taken from the left. So all
 * occurrences of a new pair are known when the merge that made its token is done; lists are written once, and pairs
 * that are too rare then stay so. Counts are exact at any time; the heap learns of a lower count when the pair comes
 * up.
 */
#include "text/trainer.h"

#define VOCAB_MAX       (1 << 21)
#define SLOT_LAST       0x80000000u
#define SLOT_END        0x7ffffffeu
#define SLOT_DEAD       0x7fffffffu
#define MAX_BYTES       ((size_t)64 << 20)
#define MAX_BYTES_LIMIT ((size_t)2 << 30)
#define POOL_CHUNK      ((size_t)1 << 18) /* places in a chunk of short lists */
#define LONG_LIST       ((size_t)1 << 14) /* lists of more places are allocated apart, and freed when used up */

/* ---------------------------------------------------------------- the parts */

struct pair {
    uint32_t left, right;
    int64_t count;
    uint32_t *places; /* [place_count]; first slot of the left token, perhaps outdated */
    uint32_t place_count;
};
struct heap_item {
    int64_t count;
    uint32_t left, right, pair;
};
struct record { /* a neighbour of a merged token */
    uint32_t id, place;
};
/* What one side of the merges of a step came to, by neighbour. */
struct side {
    int64_t *count;    /* [vocab] */
    uint32_t *places;  /* [vocab] how many */
    uint32_t **list;   /* [vocab] where the next place goes; NULL: too rare */
    uint32_t *touched; /* [vocab] ids with a count */
    uint32_t touched_count;
    struct record *records; /* [record_cap] */
    uint32_t record_count;
};
struct chunk {
    struct chunk *next;
    size_t used;
    uint32_t place[];
};

struct merger {
    struct vocab_trainer *trainer;
    uint32_t *slots, *weights; /* [slot_count]; weight: count of the piece, at most 2^32 - 1 */
    size_t slot_count;
    uint32_t *length; /* [vocab] bytes of a token */
    struct pair *pairs;
    size_t pair_count, pair_cap;
    uint32_t *index; /* pair + 1; 0 = free */
    size_t index_mask;
    struct heap_item *heap;
    size_t heap_count, heap_cap;
    struct side left, right;
    size_t record_cap;
    struct chunk *chunks;
    int64_t min_count;
};

/* -------------------------------------------------------------------- pairs */

static size_t pair_home(const struct merger *m, uint32_t left, uint32_t right) {
    uint64_t x = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (x ^ x >> 29) * 0xbf58476d1ce4e5b9u >> 20 & m->index_mask;
}

static struct pair *pair_find(const struct merger *m, uint32_t left, uint32_t right) {
    for (size_t at = pair_home(m, left, right); m->index[at]; at = (at + 1) & m->index_mask) {
        struct pair *pair = &m->pairs[m->index[at] - 1];
        if (pair->left == left && pair->right == right) return pair;
    }
    return NULL;
}

static void index_put(struct merger *m, size_t i) {
    size_t at = pair_home(m, m->pairs[i].left, m->pairs[i].right);
    while (m->index[at]) at = (at + 1) & m->index_mask;
    m->index[at] = (uint32_t)i + 1;
}

static bool pairs_grow(struct merger *m) {
    if (m->pair_count < m->pair_cap) return true;
    size_t cap = m->pair_cap ? m->pair_cap * 2 : 1 << 16;
    struct pair *pairs = cap < UINT32_MAX ? mem_realloc(m->pairs, cap * sizeof *pairs) : NULL;
    if (!pairs) return false;
    m->pairs = pairs;
    uint32_t *index = mem_calloc(cap * 2, sizeof *index);
    if (!index) return false;
    m->pair_cap = cap;
    mem_free(m->index);
    m->index = index;
    m->index_mask = cap * 2 - 1;
    for (size_t i = 0; i < m->pair_count; i++) index_put(m, i);
    return true;
}

/* A pair that is not there yet. NULL without memory. */
static struct pair *pair_new(struct merger *m, uint32_t left, uint32_t right) {
    if (!pairs_grow(m)) return NULL;
    m->pairs[m->pair_count] = (struct pair){.left = left, .right = right};
    index_put(m, m->pair_count);
    return &m->pairs[m->pair_count++];
}

/* --------------------------------------------------------------------- heap */

/* More frequent first, then the lower left id, then the lower right id. */
static bool comes_first(const struct heap_item *a, const struct heap_item *b) {
    if (a->count != b->count) return a->count > b->count;
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static bool heap_push(struct merger *m, const struct pair *pair) {
    if (m->heap_count == m->heap_cap) {
        size_t cap = m->heap_cap ? m->heap_cap * 2 : 1 << 12;
        void *moved = mem_realloc(m->heap, cap * sizeof *m->heap);
        if (!moved) return false;
        m->heap = moved;
        m->heap_cap = cap;
    }
    struct heap_item item = {pair->count, pair->left, pair->right, (uint32_t)(pair - m->pairs)};
    size_t at = m->heap_count++;
    for (; at > 0 && comes_first(&item, &m->heap[(at - 1) / 2]); at = (at - 1) / 2) m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = item;
    return true;
}

static struct heap_item heap_pop(struct merger *m) {
    struct heap_item top = m->heap[0], last = m->heap[--m->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= m->heap_count) break;
        if (child + 1 < m->heap_count && comes_first(&m->heap[child + 1], &m->heap[child])) child++;
        if (!comes_first(&m->heap[child], &last)) break;
        m->heap[at] = m->heap[child];
        at = child;
    }
    m->heap[at] = last;
    return top;
}

/* ------------------------------------------------------------------- places */

static uint32_t *places_new(struct merger *m, size_t count) {
    if (count > LONG_LIST) return mem_alloc(count * sizeof(uint32_t));
    if (!m->chunks || m->chunks->used + count > POOL_CHUNK) {
        struct chunk *chunk = mem_alloc(sizeof *chunk + POOL_CHUNK * sizeof *chunk->place);
        if (!chunk) return NULL;
        chunk->next = m->chunks;
        chunk->used = 0;
        m->chunks = chunk;
    }
    uint32_t *places = m->chunks->place + m->chunks->used;
    m->chunks->used += count;
    return places;
}

static void places_drop(struct pair *pair) {
    if (pair->place_count > LONG_LIST) mem_free(pair->places);
    pair->places = NULL;
    pair->place_count = 0;
}

/* -------------------------------------------------------------------- sides */

static void side_add(struct side *side, uint32_t id, uint32_t place, int64_t weight) {
    if (side->places[id]++ == 0) side->touched[side->touched_count++] = id;
    side->count[id] += weight;
    side->records[side->record_count++] = (struct record){id, place};
}

/* The new pairs (neighbour, token) or (token, neighbour), with counts and lists from a side's records. */
static bool side_settle(struct merger *m, struct side *side, uint32_t token, bool is_left) {
    for (uint32_t i = 0; i < side->touched_count; i++) {
        uint32_t id = side->touched[i];
        side->list[id] = NULL;
        if (side->count[id] < m->min_count) continue;
        struct pair *pair = is_left ? pair_new(m, id, token) : pair_new(m, token, id);
        uint32_t *places = pair ? places_new(m, side->places[id]) : NULL;
        if (!places) return false;
        pair->count = side->count[id];
        pair->places = side->list[id] = places;
        pair->place_count = side->places[id];
    }
    for (uint32_t i = 0; i < side->record_count; i++) {
        struct record record = side->records[i];
        if (side->list[record.id]) *side->list[record.id]++ = record.place;
    }
    return true;
}

static void side_clear(struct side *side) {
    for (uint32_t i = 0; i < side->touched_count; i++) {
        side->count[side->touched[i]] = 0;
        side->places[side->touched[i]] = 0;
    }
    side->touched_count = side->record_count = 0;
}

static bool side_new(struct side *side, size_t vocab) {
    side->count = mem_calloc(vocab, sizeof *side->count);
    side->places = mem_calloc(vocab, sizeof *side->places);
    side->list = mem_calloc(vocab, sizeof *side->list);
    side->touched = mem_calloc(vocab, sizeof *side->touched);
    return side->count && side->places && side->list && side->touched;
}

static void side_free(struct side *side) {
    mem_free(side->count);
    mem_free(side->places);
    mem_free(side->list);
    mem_free(side->touched);
    mem_free(side->records);
}

static bool records_reserve(struct merger *m, size_t count) {
    if (count <= m->record_cap) return true;
    mem_free(m->left.records);
    mem_free(m->right.records);
    m->left.records = mem_alloc(count * sizeof *m->left.records);
    m->right.records = mem_alloc(count * sizeof *m->right.records);
    m->record_cap = m->left.records && m->right.records ? count : 0;
    return m->record_cap > 0;
}

/* ------------------------------------------------------------------- merging */

/* The token before slot p; false at the beginning of a piece. */
static bool token_before(const struct merger *m, uint32_t p, uint32_t *id, uint32_t *place) {
    uint32_t slot = m->slots[p - 1];
    if (slot == SLOT_END) return false;
    *id = slot & ~SLOT_LAST;
    *place = slot & SLOT_LAST ? p - m->length[*id] : p - 1;
    return true;
}

/* Tokens at p and q become one of id `to`. */
static void join_slots(struct merger *m, uint32_t p, uint32_t q, uint32_t end, uint32_t to) {
    if (q - p > 1) m->slots[q - 1] = SLOT_DEAD;
    m->slots[q] = SLOT_DEAD;
    m->slots[end - 1] = to | SLOT_LAST;
    m->slots[p] = to;
}

/* Replaces all occurrences of the pair and records what stands beside them. */
static void replace_all(struct merger *m, const struct pair *pair, uint32_t to) {
    uint32_t left = pair->left, right = pair->right;
    for (uint32_t i = 0; i < pair->place_count; i++) {
        uint32_t p = pair->places[i], q = p + m->length[left], end = q + m->length[right], id, place;
        if (m->slots[p] != left || m->slots[q] != right) continue;
        uint32_t weight = m->weights[p], next = m->slots[end];
        join_slots(m, p, q, end, to);
        if (token_before(m, p, &id, &place)) side_add(&m->left, id, place, weight);
        if (next != SLOT_END) side_add(&m->right, next, p, weight);
    }
}

/* Occurrences that the merges took from the old pairs (neighbour, left) and (right, neighbour). */
static void subtract(struct merger *m, uint32_t left, uint32_t right) {
    for (uint32_t i = 0; i < m->left.touched_count; i++) {
        struct pair *pair = pair_find(m, m->left.touched[i], left);
        if (pair) pair->count -= m->left.count[m->left.touched[i]];
    }
    for (uint32_t i = 0; i < m->right.touched_count; i++) {
        struct pair *pair = pair_find(m, right, m->right.touched[i]);
        if (pair) pair->count -= m->right.count[m->right.touched[i]];
    }
}

static bool queue_side(struct merger *m, const struct side *side, uint32_t token, bool is_left) {
    for (uint32_t i = 0; i < side->touched_count; i++) {
        uint32_t id = side->touched[i];
        if (!side->list[id]) continue;
        const struct pair *pair = is_left ? pair_find(m, id, token) : pair_find(m, token, id);
        if (pair->count >= m->min_count && !heap_push(m, pair)) return false;
    }
    return true;
}

static bool merge(struct merger *m, size_t at, uint32_t to) {
    uint32_t left = m->pairs[at].left, right = m->pairs[at].right;
    if (!records_reserve(m, m->pairs[at].place_count)) return false;
    replace_all(m, &m->pairs[at], to);
    bool ok = side_settle(m, &m->left, to, true) && side_settle(m, &m->right, to, false);
    subtract(m, left, right);
    ok = ok && queue_side(m, &m->left, to, true) && queue_side(m, &m->right, to, false);
    side_clear(&m->left);
    side_clear(&m->right);
    m->pairs[at].count = 0;
    places_drop(&m->pairs[at]);
    return ok;
}

/* ------------------------------------------------------------------ beginning */

static uint32_t weight_of(uint64_t count) {
    return count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
}

/* Pieces of one byte have no pairs. */
static bool lay_out(struct merger *m, const uint32_t byte_id[256]) {
    const struct word_set *words = &m->trainer->words;
    size_t slots = 1;
    for (int s = 0; s < WORD_SHARDS; s++)
        for (size_t i = 0; i < words->shard[s].count; i++)
            if (words->shard[s].entries[i].bytes > 1) slots += words->shard[s].entries[i].bytes + 1;
    if (slots >= UINT32_MAX) return false;
    m->slot_count = slots;
    m->slots = mem_alloc(slots * sizeof *m->slots);
    m->weights = mem_alloc(slots * sizeof *m->weights);
    if (!m->slots || !m->weights) return false;
    uint32_t *slot = m->slots, *weight = m->weights;
    *slot++ = SLOT_END;
    *weight++ = 0;
    for (int s = 0; s < WORD_SHARDS; s++)
        for (size_t i = 0; i < words->shard[s].count; i++) {
            const struct word_entry *entry = &words->shard[s].entries[i];
            const uint8_t *text = (const uint8_t *)words->shard[s].text + entry->at;
            for (uint32_t k = 0; k < entry->bytes && entry->bytes > 1; k++) {
                *slot++ = byte_id[text[k]];
                *weight++ = weight_of(entry->count);
            }
            if (entry->bytes < 2) continue;
            *slot++ = SLOT_END;
            *weight++ = 0;
        }
    return true;
}

/* Pairs of bytes, counted in a table of all 65,536. */
static bool first_pairs(struct merger *m) {
    int64_t *count = mem_calloc(65536, sizeof *count);
    uint32_t *places = mem_calloc(65536, sizeof *places);
    uint32_t **list = mem_calloc(65536, sizeof *list);
    bool ok = count && places && list;
    for (size_t p = 1; ok && p < m->slot_count; p++) {
        if (m->slots[p - 1] == SLOT_END || m->slots[p] == SLOT_END) continue;
        uint32_t key = m->slots[p - 1] << 8 | m->slots[p];
        count[key] += m->weights[p];
        places[key]++;
    }
    for (uint32_t key = 0; ok && key < 65536; key++) {
        if (count[key] < m->min_count || count[key] == 0) continue;
        struct pair *pair = pair_new(m, key >> 8, key & 255);
        ok = pair && (list[key] = places_new(m, places[key]));
        if (!ok) break;
        pair->count = count[key];
        pair->places = list[key];
        pair->place_count = places[key];
        ok = heap_push(m, pair);
    }
    for (size_t p = 1; ok && p < m->slot_count; p++) {
        if (m->slots[p - 1] == SLOT_END || m->slots[p] == SLOT_END) continue;
        uint32_t key = m->slots[p - 1] << 8 | m->slots[p];
        if (list[key]) *list[key]++ = (uint32_t)p - 1;
    }
    mem_free(count);
    mem_free(places);
    mem_free(list);
    return ok;
}

/* Bytes as tokens, in the order of their characters in GPT-2's alphabet. */
static void byte_tokens(struct vocab_trainer *trainer, uint32_t byte_id[256]) {
    for (uint32_t scalar = 0; scalar < 512; scalar++) {
        int byte = alphabet_byte(scalar);
        if (byte < 0) continue;
        struct text_list *list = &trainer->bytes;
        byte_id[byte] = (uint32_t)list->count;
        list->bytes[list->at[list->count]] = (char)byte;
        list->at[list->count + 1] = list->at[list->count] + 1;
        list->count++;
    }
}

static bool merger_new(struct merger *m) {
    struct vocab_trainer *trainer = m->trainer;
    size_t vocab = (size_t)trainer->options.vocab + 1;
    uint32_t byte_id[256];
    trainer->bytes_cap = vocab * 8 + PIECE_BYTES_MAX;
    trainer->bytes.bytes = mem_alloc(trainer->bytes_cap);
    trainer->bytes.at = mem_calloc(vocab + 1, sizeof *trainer->bytes.at);
    m->length = mem_calloc(vocab, sizeof *m->length);
    trainer->merges = mem_alloc(vocab * sizeof *trainer->merges);
    if (!trainer->bytes.bytes || !trainer->bytes.at || !m->length || !trainer->merges || !side_new(&m->left, vocab) ||
        !side_new(&m->right, vocab))
        return false;
    byte_tokens(trainer, byte_id);
    for (int i = 0; i < 256; i++) m->length[i] = 1;
    return lay_out(m, byte_id) && first_pairs(m);
}

static void merger_free(struct merger *m) {
    for (size_t i = 0; i < m->pair_count; i++) places_drop(&m->pairs[i]);
    while (m->chunks) {
        struct chunk *next = m->chunks->next;
        mem_free(m->chunks);
        m->chunks = next;
    }
    mem_free(m->slots);
    mem_free(m->weights);
    mem_free(m->length);
    mem_free(m->pairs);
    mem_free(m->index);
    mem_free(m->heap);
    side_free(&m->left);
    side_free(&m->right);
}

/* ------------------------------------------------------------------- learning */

/* Appends the token that a pair becomes. False without memory. */
static bool token_new(struct merger *m, const struct pair *pair) {
    struct vocab_trainer *trainer = m->trainer;
    struct text_list *list = &trainer->bytes;
    uint32_t at = list->at[list->count], bytes = m->length[pair->left] + m->length[pair->right];
    if (bytes > trainer->bytes_cap - at) {
        size_t cap = (trainer->bytes_cap + bytes) * 2;
        char *moved = cap < UINT32_MAX ? mem_realloc(list->bytes, cap) : NULL;
        if (!moved) return false;
        list->bytes = moved;
        trainer->bytes_cap = cap;
    }
    memcpy(list->bytes + at, list->bytes + list->at[pair->left], m->length[pair->left]);
    memcpy(list->bytes + at + m->length[pair->left], list->bytes + list->at[pair->right], m->length[pair->right]);
    trainer->merges[trainer->merge_count][0] = (int32_t)pair->left;
    trainer->merges[trainer->merge_count++][1] = (int32_t)pair->right;
    m->length[list->count++] = bytes;
    list->at[list->count] = at + bytes;
    return true;
}

/* SHU_E_NOMEM or SHU_E_CANCELLED. */
static int merge_until_full(struct merger *m, int32_t wanted, struct progress *progress) {
    struct vocab_trainer *trainer = m->trainer;
    while (trainer->bytes.count < wanted && m->heap_count) {
        struct heap_item top = heap_pop(m);
        struct pair *pair = &m->pairs[top.pair];
        if (pair->count != top.count) { /* has become rarer since */
            if (pair->count >= m->min_count && !heap_push(m, pair)) return SHU_E_NOMEM;
            continue;
        }
        if (!token_new(m, pair) || !merge(m, top.pair, (uint32_t)trainer->bytes.count - 1)) return SHU_E_NOMEM;
        if (progress) progress_update(progress, (uint64_t)trainer->merge_count);
        if (interrupt_pending()) return SHU_E_CANCELLED;
    }
    return SHU_OK;
}

/* -------------------------------------------------------------------- spelling */

static int spell(struct buf *out, struct span bytes, char alphabet[256][4], const uint8_t *widths) {
    int status = SHU_OK;
    for (uint32_t i = 0; i < bytes.bytes && !status; i++) {
        uint8_t byte = (uint8_t)bytes.text[i];
        status = buf_append(out, alphabet[byte], widths[byte]);
    }
    return status;
}

/* Spans are set when the buffer no longer moves; until then `text` is NULL and `bytes` is right. */
static void place_spans(struct span *spans, int32_t count, const char **at) {
    for (int32_t i = 0; i < count; i++) {
        spans[i].text = *at;
        *at += spans[i].bytes;
    }
}

static int spell_all(struct vocab_trainer *trainer) {
    char alphabet[256][4];
    uint8_t widths[256];
    const struct text_list *list = &trainer->bytes;
    int32_t learned = list->count, all = learned + trainer->options.special_count;
    for (uint32_t scalar = 0; scalar < 512; scalar++) {
        int byte = alphabet_byte(scalar);
        if (byte >= 0) widths[byte] = (uint8_t)utf8_encode(scalar, alphabet[byte]);
    }
    trainer->tokens = mem_calloc((size_t)all, sizeof *trainer->tokens);
    trainer->types = mem_calloc((size_t)all, sizeof *trainer->types);
    trainer->merge_texts = mem_calloc((size_t)trainer->merge_count + 1, sizeof *trainer->merge_texts);
    if (!trainer->tokens || !trainer->types || !trainer->merge_texts) return SHU_E_NOMEM;
    int status = SHU_OK;
    for (int32_t i = 0; i < all && !status; i++) {
        size_t before = trainer->spelled.len;
        if (i < learned)
            status = spell(&trainer->spelled, text_at(list, i), alphabet, widths);
        else
            status = buf_puts(&trainer->spelled, trainer->options.special[i - learned]);
        trainer->tokens[i].bytes = (uint32_t)(trainer->spelled.len - before);
        trainer->types[i] = i < learned ? TOKEN_NORMAL : TOKEN_CONTROL;
    }
    for (int32_t i = 0; i < trainer->merge_count && !status; i++) {
        size_t before = trainer->spelled.len;
        status = spell(&trainer->spelled, text_at(list, trainer->merges[i][0]), alphabet, widths);
        if (!status) status = buf_putc(&trainer->spelled, ' ');
        if (!status) status = spell(&trainer->spelled, text_at(list, trainer->merges[i][1]), alphabet, widths);
        trainer->merge_texts[i].bytes = (uint32_t)(trainer->spelled.len - before);
    }
    const char *at = trainer->spelled.data;
    place_spans(trainer->tokens, all, &at);
    place_spans(trainer->merge_texts, trainer->merge_count, &at);
    return status;
}

/* An ordinary token that is spelled like a special one would make two tokens of one text. */
static int check_special(const struct vocab_trainer *trainer, struct shu_error *err) {
    int32_t all = trainer->bytes.count + trainer->options.special_count;
    for (int32_t s = trainer->bytes.count; s < all; s++)
        for (int32_t i = 0; i < s; i++)
            if (trainer->tokens[i].bytes == trainer->tokens[s].bytes &&
                memcmp(trainer->tokens[i].text, trainer->tokens[s].text, trainer->tokens[s].bytes) == 0)
                return SHU_FAIL(err, SHU_E_USAGE,
                                "the special token \"%.60s\" is given twice or is also an ordinary piece of text; give "
                                "it another spelling",
                                trainer->options.special[s - trainer->bytes.count]);
    return SHU_OK;
}

/* ------------------------------------------------------------------- the face */

static int check_options(struct vocab_trainer_options *o, struct shu_error *err) {
    if (o->pre != PRE_GPT2 && o->pre != PRE_LLAMA3 && o->pre != PRE_QWEN2)
        return SHU_FAIL(err, SHU_E_USAGE, "pre-tokenizer %d cuts no words; expected that of GPT-2, llama 3 or qwen2",
                        (int)o->pre);
    if (o->special_count < 0 || o->special_count > 1024)
        return SHU_FAIL(err, SHU_E_RANGE, "0 to 1024 special tokens, found %d", (int)o->special_count);
    if (o->vocab < 256 + o->special_count || o->vocab > VOCAB_MAX)
        return SHU_FAIL(err, SHU_E_RANGE,
                        "a vocabulary has %d tokens at least (256 bytes and %d special ones) and %d at most, found %d",
                        256 + (int)o->special_count, (int)o->special_count, VOCAB_MAX, (int)o->vocab);
    if (o->min_count < 0 || o->max_bytes > MAX_BYTES_LIMIT)
        return SHU_FAIL(err, SHU_E_RANGE, "a least count of %lld or a limit of %zu bytes is out of range",
                        (long long)o->min_count, o->max_bytes);
    for (int32_t i = 0; i < o->special_count; i++)
        if (!*o->special[i] || strlen(o->special[i]) > 256 || !utf8_valid(o->special[i], strlen(o->special[i])))
            return SHU_FAIL(err, SHU_E_USAGE, "special token %d is empty, too long or no UTF-8", (int)i);
    if (!o->min_count) o->min_count = 2;
    if (!o->max_bytes) o->max_bytes = MAX_BYTES;
    return SHU_OK;
}

int vocab_trainer_new(const struct vocab_trainer_options *options, struct pool *pool, struct vocab_trainer **out,
                      struct shu_error *err) {
    struct vocab_trainer_options settled = *options;
    int status = check_options(&settled, err);
    if (status) return status;
    struct vocab_trainer *trainer = mem_calloc(1, sizeof *trainer);
    if (trainer) trainer->part = mem_calloc((size_t)pool_threads(pool), sizeof *trainer->part);
    if (!trainer || !trainer->part) {
        mem_free(trainer);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a vocabulary trainer");
    }
    trainer->options = settled;
    trainer->pool = pool;
    *out = trainer;
    return SHU_OK;
}

void vocab_trainer_free(struct vocab_trainer *trainer) {
    if (!trainer) return;
    words_free(&trainer->words);
    for (int t = 0; t < pool_threads(trainer->pool); t++) words_free(&trainer->part[t]);
    mem_free(trainer->part);
    mem_free(trainer->bytes.bytes);
    mem_free(trainer->bytes.at);
    mem_free(trainer->merges);
    mem_free(trainer->tokens);
    mem_free(trainer->types);
    mem_free(trainer->merge_texts);
    buf_free(&trainer->spelled);
    mem_free(trainer);
}

int vocab_trainer_add(struct vocab_trainer *trainer, const char *text, size_t bytes, struct progress *progress,
                      struct shu_error *err) {
    if (trainer->tokens) return SHU_FAIL(err, SHU_E_USAGE, "the vocabulary has been learned; no text can be added");
    return words_add(trainer, text, bytes, progress, err);
}

int vocab_trainer_learn(struct vocab_trainer *trainer, struct progress *progress, struct shu_error *err) {
    struct merger merger = {.trainer = trainer, .min_count = trainer->options.min_count};
    if (trainer->tokens || !trainer->report.pieces)
        return SHU_FAIL(err, SHU_E_USAGE, "a vocabulary is learned once, from text that has been added; found %s",
                        trainer->tokens ? "it learned already" : "no text");
    for (int i = 0; i < WORD_SHARDS; i++) trainer->report.distinct += trainer->words.shard[i].count;
    int status = merger_new(&merger) ? SHU_OK : SHU_E_NOMEM;
    if (!status) status = merge_until_full(&merger, trainer->options.vocab - trainer->options.special_count, progress);
    merger_free(&merger);
    if (!status) status = spell_all(trainer);
    if (status == SHU_E_CANCELLED) return SHU_FAIL(err, status, "interrupted; nothing was written");
    if (status)
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a vocabulary of %d tokens from %llu pieces",
                        (int)trainer->options.vocab, (unsigned long long)trainer->report.distinct);
    trainer->report.tokens = trainer->bytes.count + trainer->options.special_count;
    trainer->report.merges = trainer->merge_count;
    return check_special(trainer, err);
}

void vocab_trainer_spec(const struct vocab_trainer *trainer, struct vocab_spec *out) {
    *out = (struct vocab_spec){.model = VOCAB_BPE,
                               .pre = trainer->options.pre,
                               .count = trainer->report.tokens,
                               .tokens = trainer->tokens,
                               .types = trainer->types,
                               .merges = trainer->merge_texts,
                               .merge_count = trainer->merge_count,
                               .bos = -1,
                               .eos = -1,
                               .unk = -1,
                               .pad = -1};
}

void vocab_trainer_report(const struct vocab_trainer *trainer, struct vocab_trainer_report *out) {
    *out = trainer->report;
}
