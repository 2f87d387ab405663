/* Data files, mapped and read once from front to back. */
#include "train/data.h"

#include <string.h>

#define RELEASE_BYTES ((size_t)64 << 20) /* pages this far behind are given back */

static bool blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r\n\f\v", text[i]) || !text[i]) return false;
    return true;
}

static bool name_ends(const char *name, const char *tail) {
    size_t a = strlen(name), b = strlen(tail);
    return a >= b && strcmp(name + a - b, tail) == 0;
}

/* A JSON list of objects, texts or lists, whatever the file is called. */
static bool is_list(const char *text, size_t bytes) {
    size_t next = 1;
    if (text[0] != '[') return false;
    while (next < bytes && blank(text + next, 1)) next++;
    return next < bytes && strchr("{[\"]", text[next]) != NULL && text[next] != '\0';
}

int source_open(const char *path, struct source *out, struct shu_error *err) {
    *out = (struct source){.next_line = 1};
    int status = map_open(path, &out->map, err);
    if (status) return status;
    const char *text = (const char *)out->map.data;
    size_t bytes = out->map.bytes, first = 0;
    if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) out->at = first = 3;
    while (first < bytes && blank(text + first, 1)) first++;
    if (first == bytes) {
        source_close(out);
        return SHU_FAIL(err, SHU_E_FORMAT, "%s: expected training data, found an empty file", path);
    }
    if (is_list(text + first, bytes - first)) {
        source_close(out);
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "%s: expected one JSON object a line, found a list; write each element on a line of its own",
                        path);
    }
    out->kind = text[first] == '{' || name_ends(path, ".jsonl")  ? SOURCE_JSONL
                : bytes >= 8 && memcmp(text, "SHUSHARD", 8) == 0 ? SOURCE_SHARD
                                                                 : SOURCE_TEXT;
    return SHU_OK;
}

void source_close(struct source *source) {
    map_close(&source->map);
}

static void release_behind(struct source *source) {
    if (source->at - source->released < 2 * RELEASE_BYTES) return;
    map_release(&source->map, source->released, source->at - RELEASE_BYTES - source->released);
    source->released = source->at - RELEASE_BYTES;
}

/* The line at `at` without its end; moves on behind it. */
static size_t take_line(struct source *source, const char **text) {
    const char *start = (const char *)source->map.data + source->at;
    size_t left = source->map.bytes - source->at;
    const char *end = memchr(start, '\n', left);
    size_t bytes = end ? (size_t)(end - start) : left;
    source->at += bytes + (end != NULL);
    source->next_line++;
    *text = start;
    return bytes;
}

bool source_next(struct source *source, const char **text, size_t *bytes) {
    bool found = false;
    release_behind(source);
    while (source->at < source->map.bytes) {
        const char *line;
        size_t length = take_line(source, &line);
        if (blank(line, length)) {
            if (found) break;
            continue;
        }
        if (!found) {
            source->line = source->next_line - 1;
            *text = line;
        }
        found = true;
        *bytes = (size_t)(line - *text) + length;
        if (source->kind == SOURCE_JSONL) break;
    }
    return found;
}

int source_hash(struct source *source, char out[65], struct shu_error *err) {
    struct sha256 hash;
    sha256_init(&hash);
    for (size_t at = 0; at < source->map.bytes; at += RELEASE_BYTES) {
        size_t left = source->map.bytes - at, slice = left < RELEASE_BYTES ? left : RELEASE_BYTES;
        sha256_update(&hash, source->map.data + at, slice);
        map_release(&source->map, at, slice);
        if (interrupt_pending()) return SHU_FAIL(err, SHU_E_CANCELLED, "interrupted while reading the data");
    }
    sha256_hex(&hash, out);
    return SHU_OK;
}
