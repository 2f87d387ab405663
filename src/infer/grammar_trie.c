/* Grammars: sorted texts as a trie. */
#include "infer/grammar.h"

#include <stdlib.h>
#include <string.h>

static int order(const void *a, const void *b) {
    const struct trie_text *x = a, *y = b;
    uint32_t shorter = x->bytes < y->bytes ? x->bytes : y->bytes;
    int compared = memcmp(x->text, y->text, shorter);
    if (compared) return compared;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static uint32_t common_prefix(const struct trie_text *a, const struct trie_text *b) {
    uint32_t n = 0, shorter = a->bytes < b->bytes ? a->bytes : b->bytes;
    while (n < shorter && a->text[n] == b->text[n]) n++;
    return n;
}

/* Nodes below which nothing more comes get their skip when the path leaves them. */
static void close_path(struct trie *trie, const uint32_t *path, uint32_t from, uint32_t to) {
    for (uint32_t depth = from; depth < to; depth++) trie->nodes[path[depth]].skip = (uint32_t)trie->count;
}

static void fill(struct trie *trie, const struct trie_text *texts, size_t count, uint32_t *path) {
    uint32_t open = 0; /* path[0…open-1] is the current text */
    for (size_t i = 0; i < count; i++) {
        uint32_t shared = i ? common_prefix(&texts[i - 1], &texts[i]) : 0;
        close_path(trie, path, shared, open);
        for (open = shared; open < texts[i].bytes; open++) {
            path[open] = (uint32_t)trie->count;
            trie->nodes[trie->count++] =
                (struct trie_node){.depth = (uint16_t)(open + 1), .byte = (uint8_t)texts[i].text[open]};
        }
        struct trie_node *node = &trie->nodes[path[open - 1]];
        if (node->count++ == 0) node->first = (uint32_t)trie->id_count;
        trie->ids[trie->id_count++] = texts[i].id;
    }
    close_path(trie, path, 0, open);
}

int trie_build(struct trie_text *texts, size_t count, struct trie *out) {
    *out = (struct trie){0};
    size_t nodes = 0;
    uint32_t longest = 0;
    if (count) qsort(texts, count, sizeof *texts, order);
    for (size_t i = 0; i < count; i++) {
        nodes += texts[i].bytes - (i ? common_prefix(&texts[i - 1], &texts[i]) : 0);
        if (texts[i].bytes > longest) longest = texts[i].bytes;
    }
    uint32_t *path = mem_alloc((longest + 1) * sizeof *path);
    out->nodes = mem_alloc((nodes + 1) * sizeof *out->nodes);
    out->ids = mem_alloc((count + 1) * sizeof *out->ids);
    int status = path && out->nodes && out->ids ? 0 : SHU_E_NOMEM;
    if (!status)
        fill(out, texts, count, path);
    else
        trie_free(out);
    mem_free(path);
    return status;
}

void trie_free(struct trie *trie) {
    mem_free(trie->nodes);
    mem_free(trie->ids);
    *trie = (struct trie){0};
}

size_t trie_bytes(const struct trie *trie) {
    return trie->count * sizeof *trie->nodes + trie->id_count * sizeof *trie->ids;
}
