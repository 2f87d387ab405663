/* Counting the pieces of a text: rounds of some MiB, cut where every pre-tokenizer cuts, spread over the threads; each
 * thread counts into tables of its own, which are joined shard by shard. Sums do not depend on who counted what. */
#include "text/trainer.h"
#include "text/unicode_class.h"

#define ROUND_BYTES ((size_t)32 << 20)
#define TILE_BYTES  ((size_t)256 << 10)

/* ------------------------------------------------------------------ tables */

static uint64_t mix(uint64_t x) {
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

static uint64_t hash_piece(const char *text, size_t bytes) {
    uint64_t hash = bytes, word;
    for (; bytes >= 8; text += 8, bytes -= 8) {
        memcpy(&word, text, sizeof word);
        hash = mix(hash ^ word);
    }
    word = 0;
    memcpy(&word, text, bytes);
    return mix(mix(hash ^ word) + 0x632be59bd9b4e019u);
}

static void table_free(struct word_table *table) {
    mem_free(table->entries);
    mem_free(table->slots);
    mem_free(table->text);
    *table = (struct word_table){0};
}

static void table_clear(struct word_table *table) {
    if (table->slots) memset(table->slots, 0, (table->mask + 1) * sizeof *table->slots);
    table->count = table->text_bytes = 0;
}

void words_free(struct word_set *set) {
    for (int i = 0; i < WORD_SHARDS; i++) table_free(&set->shard[i]);
}

size_t words_bytes(const struct word_set *set) {
    size_t sum = 0;
    for (int i = 0; i < WORD_SHARDS; i++) sum += set->shard[i].text_bytes;
    return sum;
}

/* Files all entries into slots of at least twice their number. */
static bool table_index(struct word_table *table, size_t slots) {
    uint32_t *fresh = mem_calloc(slots, sizeof *fresh);
    if (!fresh) return false;
    mem_free(table->slots);
    table->slots = fresh;
    table->mask = slots - 1;
    for (size_t i = 0; i < table->count; i++) {
        size_t at = table->entries[i].hash & table->mask;
        while (fresh[at]) at = (at + 1) & table->mask;
        fresh[at] = (uint32_t)i + 1;
    }
    return true;
}

static bool table_grow(struct word_table *table, size_t bytes) {
    if (table->count == table->cap) {
        size_t cap = table->cap ? table->cap * 2 : 512;
        void *moved = cap < UINT32_MAX ? mem_realloc(table->entries, cap * sizeof *table->entries) : NULL;
        if (!moved) return false;
        table->entries = moved;
        if (!table_index(table, cap * 2)) return false;
        table->cap = cap;
    }
    if (bytes > table->text_cap - table->text_bytes) {
        size_t cap = (table->text_cap + bytes) * 2;
        void *moved = cap < UINT32_MAX ? mem_realloc(table->text, cap) : NULL;
        if (!moved) return false;
        table->text = moved;
        table->text_cap = cap;
    }
    return true;
}

static bool table_add(struct word_table *table, const char *text, uint32_t bytes, uint64_t hash, uint64_t count) {
    if (table->slots) {
        for (size_t at = hash & table->mask; table->slots[at]; at = (at + 1) & table->mask) {
            struct word_entry *entry = &table->entries[table->slots[at] - 1];
            if (entry->hash != hash || entry->bytes != bytes || memcmp(table->text + entry->at, text, bytes) != 0)
                continue;
            entry->count += count;
            return true;
        }
    }
    if (!table_grow(table, bytes)) return false;
    size_t at = hash & table->mask;
    while (table->slots[at]) at = (at + 1) & table->mask;
    table->entries[table->count++] = (struct word_entry){hash, count, (uint32_t)table->text_bytes, bytes};
    table->slots[at] = (uint32_t)table->count;
    memcpy(table->text + table->text_bytes, text, bytes);
    table->text_bytes += bytes;
    return true;
}

/* -------------------------------------------------------------------- cuts */

/* The first place at or after p where all pre-tokenizers cut, whatever stands before and behind: a letter or number is
 * followed by neither. None of their alternatives goes on there. */
static const uint8_t *safe_cut(const uint8_t *start, const uint8_t *p, const uint8_t *end) {
    if (p <= start) return start;
    while (p < end && is_continuation(*p)) p++;
    enum character_class before = CLASS_SPACE;
    while (p < end) {
        uint32_t bytes;
        enum character_class class = class_at(p, end, &bytes);
        bool word = class == CLASS_LETTER || class == CLASS_NUMBER;
        if (!word && (before == CLASS_LETTER || before == CLASS_NUMBER)) return p;
        before = class;
        p += bytes;
    }
    return end;
}

/* ---------------------------------------------------------------- counting */

/* One stretch of text that all threads share. */
struct round {
    struct vocab_trainer *trainer;
    const uint8_t *start, *stop, *end; /* stop: of this round, a safe cut; end: of the whole text */
};

static void count_pieces(struct word_set *set, enum pretokenizer pre, const uint8_t *p, const uint8_t *stop,
                         const uint8_t *end) {
    while (p < stop) {
        const uint8_t *next = pretoken_end(pre, p, end);
        set->pieces++;
        while (p < next) {
            uint32_t bytes = next - p > PIECE_BYTES_MAX ? PIECE_BYTES_MAX : (uint32_t)(next - p);
            uint64_t hash = hash_piece((const char *)p, bytes);
            struct word_table *table = &set->shard[hash >> 60];
            if (!table_add(table, (const char *)p, bytes, hash, 1)) set->failed = true;
            p += bytes;
        }
    }
}
_Static_assert(WORD_SHARDS == 16, "count_pieces takes four bits of the hash");

static void count_tile(void *context, int thread, int64_t tile) {
    const struct round *round = context;
    struct word_set *set = &round->trainer->part[thread];
    const uint8_t *from = safe_cut(round->start, round->start + (size_t)tile * TILE_BYTES, round->stop);
    const uint8_t *to = round->stop;
    if ((size_t)(round->stop - round->start) > ((size_t)tile + 1) * TILE_BYTES)
        to = safe_cut(round->start, round->start + ((size_t)tile + 1) * TILE_BYTES, round->stop);
    if (!set->failed) count_pieces(set, round->trainer->options.pre, from, to, round->end);
}

/* One shard of all threads' tables into the trainer's. */
static void join_tile(void *context, int thread, int64_t tile) {
    const struct round *round = context;
    struct vocab_trainer *trainer = round->trainer;
    (void)thread;
    for (int t = 0; t < pool_threads(trainer->pool); t++) {
        struct word_table *from = &trainer->part[t].shard[tile], *to = &trainer->words.shard[tile];
        for (size_t i = 0; i < from->count; i++) {
            const struct word_entry *entry = &from->entries[i];
            if (table_add(to, from->text + entry->at, entry->bytes, entry->hash, entry->count)) continue;
            __atomic_store_n(&trainer->words.failed, true, __ATOMIC_RELAXED);
            break;
        }
        table_clear(from);
    }
}

/* --------------------------------------------------------------- forgetting */

struct pruning {
    struct vocab_trainer *trainer;
    uint64_t least; /* rarer ones go */
    uint64_t gone[WORD_SHARDS];
};

static void prune_tile(void *context, int thread, int64_t tile) {
    struct pruning *pruning = context;
    struct word_table *table = &pruning->trainer->words.shard[tile];
    size_t kept = 0, text = 0;
    (void)thread;
    if (!table->slots) return; /* no piece has fallen here */
    for (size_t i = 0; i < table->count; i++) {
        struct word_entry entry = table->entries[i];
        if (entry.count < pruning->least) {
            pruning->gone[tile]++;
            continue;
        }
        memmove(table->text + text, table->text + entry.at, entry.bytes); /* entries ascend in the text */
        entry.at = (uint32_t)text;
        text += entry.bytes;
        table->entries[kept++] = entry;
    }
    table->count = kept;
    table->text_bytes = text;
    memset(table->slots, 0, (table->mask + 1) * sizeof *table->slots);
    for (size_t i = 0; i < kept; i++) {
        size_t at = table->entries[i].hash & table->mask;
        while (table->slots[at]) at = (at + 1) & table->mask;
        table->slots[at] = (uint32_t)i + 1;
    }
}

/* Over the limit, pieces that occurred once are forgotten, then those that occurred seldom, until half is free. Decided
 * between rounds only, on sums: no thread has a say in it. */
static void forget_rare(struct vocab_trainer *trainer) {
    if (words_bytes(&trainer->words) <= trainer->options.max_bytes) return;
    struct pruning pruning = {.trainer = trainer, .least = 2};
    for (; words_bytes(&trainer->words) > trainer->options.max_bytes / 2; pruning.least += (pruning.least + 1) / 2)
        pool_run(trainer->pool, prune_tile, &pruning, WORD_SHARDS);
    for (int i = 0; i < WORD_SHARDS; i++) trainer->report.forgotten += pruning.gone[i];
}

/* ------------------------------------------------------------------- rounds */

static int run_round(struct round *round, struct shu_error *err) {
    struct vocab_trainer *trainer = round->trainer;
    size_t bytes = (size_t)(round->stop - round->start);
    pool_run(trainer->pool, count_tile, round, (int64_t)((bytes + TILE_BYTES - 1) / TILE_BYTES));
    pool_run(trainer->pool, join_tile, round, WORD_SHARDS);
    bool failed = trainer->words.failed;
    for (int t = 0; t < pool_threads(trainer->pool); t++) {
        failed |= trainer->part[t].failed;
        trainer->report.pieces += trainer->part[t].pieces;
        trainer->part[t].pieces = 0;
    }
    trainer->report.bytes += bytes;
    if (failed) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the pieces of the text; give a lower limit");
    forget_rare(trainer);
    return SHU_OK;
}

int words_add(struct vocab_trainer *trainer, const char *text, size_t bytes, struct progress *progress,
              struct shu_error *err) {
    struct round round = {.trainer = trainer, .start = (const uint8_t *)text, .end = (const uint8_t *)text + bytes};
    int status = SHU_OK;
    while (round.start < round.end && !status) {
        size_t left = (size_t)(round.end - round.start);
        round.stop = left > ROUND_BYTES ? safe_cut(round.start, round.start + ROUND_BYTES, round.end) : round.end;
        status = run_round(&round, err);
        if (progress) progress_update(progress, progress->done + (uint64_t)(round.stop - round.start));
        if (!status && interrupt_pending()) status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was written");
        round.start = round.stop;
    }
    return status;
}
