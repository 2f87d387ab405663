/* Packing: whole sequences behind each other. */
#include "train/trainset.h"

#include <string.h>

enum { OPEN_PACKS = 32 };

/* ------------------------------------------------------------------ units */

static int64_t sequence_rows(const struct trainset *set, int64_t sequence) {
    return (int64_t)set->shard.index[sequence].tokens - 1; /* the last token is only a target */
}

static int64_t unit_rows(const struct trainset *set, int64_t unit) {
    int64_t rows = 0;
    for (int i = 0; i < set->unit_sequences; i++) rows += sequence_rows(set, unit + i);
    return rows;
}

static int list_units(struct trainset *set, struct shu_error *err) {
    int64_t all = (int64_t)set->shard.counts.sequences, counts[2] = {0};
    for (int64_t i = 0; i < all; i += set->unit_sequences) counts[set->shard.index[i].flags & SHARD_HELD_OUT]++;
    for (int p = 0; p < 2; p++) {
        struct train_part *part = &set->parts[p];
        part->epoch = -1;
        part->units = mem_calloc((size_t)counts[p], sizeof *part->units);
        part->order = mem_calloc((size_t)counts[p], sizeof *part->order);
        part->starts = mem_calloc((size_t)counts[p] + 1, sizeof *part->starts);
        if (!part->units || !part->order || !part->starts)
            return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %lld sequences", (long long)all);
    }
    for (int64_t i = 0; i < all; i += set->unit_sequences) {
        struct train_part *part = &set->parts[set->shard.index[i].flags & SHARD_HELD_OUT];
        part->units[part->unit_count++] = i;
    }
    return SHU_OK;
}

int trainset_prepare(struct trainset *set, int context, struct shu_error *err) {
    set->unit_sequences = set->shard.pairs ? 2 : 1;
    set->capacity = (int64_t)context * set->unit_sequences;
    size_t rows = (size_t)set->capacity;
    int status = list_units(set, err);
    if (status) return status;
    set->sequence = mem_calloc(rows + 1, sizeof *set->sequence);
    set->tokens = mem_calloc(6 * (rows + 1), sizeof *set->tokens);
    if (!set->sequence || !set->tokens)
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a pack of %zu tokens", rows);
    set->targets = set->tokens + rows + 1;
    set->begin = set->targets + rows + 1;
    set->position = set->begin + rows + 1;
    set->first = set->position + rows + 1;
    set->weight = (float *)(set->first + rows + 1);
    return SHU_OK;
}

void trainset_close(struct trainset *set) {
    if (!set) return;
    for (int p = 0; p < 2; p++) {
        mem_free(set->parts[p].units);
        mem_free(set->parts[p].order);
        mem_free(set->parts[p].starts);
    }
    mem_free(set->sequence);
    mem_free(set->tokens);
    shard_close(&set->shard);
    mem_free(set);
}

int64_t trainset_pack_rows(const struct trainset *set) {
    return set->capacity;
}

/* ---------------------------------------------------------------- packing */

/* Fisher-Yates. */
static void shuffle(int64_t *list, int64_t count, uint64_t seed, int64_t epoch) {
    struct rng rng;
    rng_seed(&rng, seed ^ ((uint64_t)epoch + 1) * 0x9E3779B97F4A7C15u);
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t j = (int64_t)(rng_next(&rng) % (uint64_t)(i + 1)), hold = list[i];
        list[i] = list[j];
        list[j] = hold;
    }
}

struct open_pack {
    int64_t room, last; /* last: unit put in most recently, by its place in the shuffled list; -1 = none */
    int64_t count;
};

/* First-fit. Units of a pack form a chain through `before`; a closed pack is written to `order` in one piece. */
struct packing {
    const struct trainset *set;
    struct train_part *part;
    const int64_t *list; /* shuffled units */
    int64_t *before;     /* [unit_count] */
    struct open_pack open[OPEN_PACKS];
    int open_count;
    int64_t written;
};

static void close_oldest(struct packing *packing) {
    struct open_pack pack = packing->open[0];
    int64_t at = packing->written + pack.count;
    for (int64_t unit = pack.last; unit >= 0; unit = packing->before[unit])
        packing->part->order[--at] = packing->list[unit];
    packing->written += pack.count;
    packing->part->starts[++packing->part->pack_count] = packing->written;
    packing->open_count--;
    memmove(packing->open, packing->open + 1, (size_t)packing->open_count * sizeof *packing->open);
}

static void put_unit(struct packing *packing, int64_t at) {
    int64_t rows = unit_rows(packing->set, packing->list[at]);
    int i = 0;
    while (i < packing->open_count && packing->open[i].room < rows) i++;
    if (i == OPEN_PACKS) {
        close_oldest(packing);
        i = packing->open_count;
    }
    if (i == packing->open_count)
        packing->open[packing->open_count++] = (struct open_pack){.room = packing->set->capacity, .last = -1};
    struct open_pack *pack = &packing->open[i];
    packing->before[at] = pack->last;
    pack->last = at;
    pack->room -= rows;
    pack->count++;
}

static int pack_epoch(struct trainset *set, bool held_out, int64_t epoch, struct shu_error *err) {
    struct train_part *part = &set->parts[held_out];
    if (held_out) epoch = 0;
    if (part->epoch == epoch) return SHU_OK;
    size_t count = (size_t)part->unit_count;
    int64_t *list = mem_calloc(2 * count, sizeof *list);
    if (!list) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for packing %zu sequences", count);
    memcpy(list, part->units, count * sizeof *list);
    if (!held_out) shuffle(list, part->unit_count, set->seed, epoch);
    struct packing packing = {.set = set, .part = part, .list = list, .before = list + count};
    part->pack_count = 0;
    for (int64_t i = 0; i < part->unit_count; i++) put_unit(&packing, i);
    while (packing.open_count) close_oldest(&packing);
    part->epoch = epoch;
    mem_free(list);
    return SHU_OK;
}

int trainset_packs(struct trainset *set, bool held_out, int64_t epoch, int64_t *out, struct shu_error *err) {
    int status = pack_epoch(set, held_out, epoch, err);
    if (!status) *out = set->parts[held_out].pack_count;
    return status;
}

/* --------------------------------------------------------------- handing out */

static int32_t fill_sequence(struct trainset *set, int64_t sequence, int32_t row) {
    const struct shard_sequence *entry = &set->shard.index[sequence];
    const uint32_t *tokens = shard_tokens(&set->shard, sequence);
    int32_t begin = row;
    for (uint32_t t = 0; t + 1 < entry->tokens; t++, row++) {
        bool loss = tokens[t + 1] & SHARD_LOSS;
        set->tokens[row] = (int32_t)(tokens[t] & ~SHARD_LOSS);
        set->targets[row] = loss ? (int32_t)(tokens[t + 1] & ~SHARD_LOSS) : -1;
        set->begin[row] = begin;
        set->position[row] = (int32_t)t;
        set->weight[row] = loss ? entry->weight : 0;
    }
    return row;
}

int trainset_pack(struct trainset *set, bool held_out, int64_t epoch, int64_t index, struct train_pack *out,
                  struct shu_error *err) {
    int status = pack_epoch(set, held_out, epoch, err);
    if (status) return status;
    const struct train_part *part = &set->parts[held_out];
    if (index < 0 || index >= part->pack_count)
        return SHU_FAIL(err, SHU_E_USAGE, "pack %lld of %lld does not exist", (long long)index,
                        (long long)part->pack_count);
    int64_t count = 0;
    int32_t row = 0;
    for (int64_t i = part->starts[index]; i < part->starts[index + 1]; i++)
        for (int s = 0; s < set->unit_sequences; s++) {
            set->sequence[count] = part->order[i] + s;
            set->first[count++] = row;
            row = fill_sequence(set, part->order[i] + s, row);
        }
    set->first[count] = row;
    *out = (struct train_pack){.rows = row,
                               .sequences = count,
                               .tokens = set->tokens,
                               .targets = set->targets,
                               .begin = set->begin,
                               .position = set->position,
                               .weight = set->weight,
                               .sequence = set->sequence,
                               .first = set->first};
    return SHU_OK;
}
