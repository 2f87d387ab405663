/* Checkpoints. */
#include "train/checkpoint.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/checksum.h"

enum { VERSION = 1, FLAG_WEIGHTS_ONLY = 1, HEADER_BYTES = 288, STATE_AT = 32, STATE_BYTES = 256, ENTRY_BYTES = 24 };
static const char MAGIC[] = "SHUTRAIN";
#define IDENTITY_BYTES_MAX ((size_t)1 << 20)

_Static_assert(sizeof(struct run_state) <= STATE_BYTES, "the state has its place in the header");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checkpoints are written as they lie in memory");

static size_t parameter_bytes(const struct graph_parameter *parameter) {
    return dtype_row_bytes(parameter->dtype, parameter->cols) * (size_t)parameter->rows;
}

/* ---------------------------------------------------------------- writing */

struct writer {
    struct atomic_file file;
    struct checksum sum;
    struct shu_error *err;
};

static int put(struct writer *writer, const void *bytes, size_t count, size_t align) {
    static const uint8_t zeros[64];
    size_t gap = (align - count % align) % align;
    checksum_update(&writer->sum, bytes, count);
    checksum_update(&writer->sum, zeros, gap);
    int status = atomic_write(&writer->file, bytes, count, writer->err);
    if (!status && gap) status = atomic_write(&writer->file, zeros, gap, writer->err);
    return status;
}

static int put_entry(struct writer *writer, const struct graph_parameter *parameter) {
    uint8_t entry[ENTRY_BYTES];
    uint32_t dtype = parameter->dtype, name = (uint32_t)strlen(parameter->name);
    memcpy(entry, &dtype, 4);
    memcpy(entry + 4, &name, 4);
    memcpy(entry + 8, &parameter->rows, 8);
    memcpy(entry + 16, &parameter->cols, 8);
    int status = put(writer, entry, sizeof entry, 8);
    return status ? status : put(writer, parameter->name, name, 8);
}

static int put_head(struct writer *writer, const struct checkpoint *content) {
    uint8_t header[HEADER_BYTES] = {0};
    uint32_t version = VERSION, flags = content->weights_only ? FLAG_WEIGHTS_ONLY : 0;
    uint64_t identity = strlen(content->identity), count = (uint64_t)content->count;
    memcpy(header, MAGIC, 8);
    memcpy(header + 8, &version, 4);
    memcpy(header + 12, &flags, 4);
    memcpy(header + 16, &identity, 8);
    memcpy(header + 24, &count, 8);
    memcpy(header + STATE_AT, content->state, sizeof *content->state);
    int status = put(writer, header, sizeof header, 1);
    if (!status) status = put(writer, content->identity, identity, 8);
    for (int i = 0; i < content->count && !status; i++) status = put_entry(writer, &content->parameters[i].parameter);
    return status;
}

static int put_all(struct writer *writer, const struct checkpoint *content) {
    static const uint8_t zeros[64];
    int status = put_head(writer, content);
    size_t gap = (64 - writer->file.written_bytes % 64) % 64;
    if (!status && gap) status = put(writer, zeros, gap, 1);
    for (int i = 0; i < content->count && !status; i++) {
        const struct learn_parameter *at = &content->parameters[i];
        size_t bytes = parameter_bytes(&at->parameter);
        status = put(writer, at->parameter.data, bytes, 64);
        if (!status && !content->weights_only) status = put(writer, at->m, bytes, 64);
        if (!status && !content->weights_only) status = put(writer, at->v, bytes, 64);
    }
    uint64_t sum = checksum_finish(&writer->sum);
    return status ? status : atomic_write(&writer->file, &sum, sizeof sum, writer->err);
}

int checkpoint_write(const struct checkpoint *content, const char *path, struct shu_error *err) {
    struct writer writer = {.err = err};
    checksum_init(&writer.sum);
    int status = atomic_open(path, &writer.file, err);
    if (!status) status = atomic_end(&writer.file, put_all(&writer, content), err);
    return status ? error_context(err, status, "checkpoint (earlier ones are unharmed): ") : SHU_OK;
}

/* --------------------------------------------------------------- identity */

static int differs(const char *path, const char *key, const json_t *saved, const json_t *now, struct shu_error *err) {
    char *old = saved ? json_dumps(saved, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    char *new = now ? json_dumps(now, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    int status = SHU_FAIL(err, SHU_E_UNSUPPORTED,
                          "%s: %s was %.80s when this run began and is now %.80s; put it back to resume, or start in "
                          "another folder",
                          path, key, old ? old : "not set", new ? new : "not set");
    free(old);
    free(new);
    return status;
}

static int compare_identity(const char *path, const json_t *saved, const json_t *now, struct shu_error *err) {
    static const char *const what[][2] = {{"base", "the base"}, {"data", "the data (or how it is read)"}};
    const char *key;
    json_t *value;
    for (size_t i = 0; i < 2; i++)
        if (!json_equal(json_object_get(saved, what[i][0]), json_object_get(now, what[i][0])))
            return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                            "%s: %s is not that of this run; resume with it, or start in another folder", path,
                            what[i][1]);
    json_t *old = json_object_get(saved, "recipe"), *new = json_object_get(now, "recipe");
    json_object_foreach(new, key, value) {
        if (!json_equal(json_object_get(old, key), value))
            return differs(path, key, json_object_get(old, key), value, err);
    }
    json_object_foreach(old, key, value) {
        if (!json_object_get(new, key)) return differs(path, key, value, NULL, err);
    }
    return SHU_OK;
}

static int check_identity(const char *path, const char *text, size_t bytes, const char *own, struct shu_error *err) {
    json_t *saved = NULL, *now = NULL;
    int status = json_parse(text, bytes, path, &saved, err);
    if (!status) status = json_parse(own, strlen(own), "identity", &now, err);
    if (!status && !json_is_object(saved)) status = SHU_FAIL(err, SHU_E_FORMAT, "%s: not a checkpoint", path);
    if (!status) status = compare_identity(path, saved, now, err);
    json_decref(saved);
    json_decref(now);
    return status;
}

/* ---------------------------------------------------------------- reading */

static int damaged(const char *path, struct shu_error *err) {
    return SHU_FAIL(err, SHU_E_FORMAT, "%s: not a whole checkpoint; delete it, an earlier one may be there", path);
}

static uint64_t read64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Walks over a file; every step is checked against its end. */
struct reader {
    const uint8_t *data;
    size_t at, end;
};

static const uint8_t *get(struct reader *reader, size_t bytes, size_t align) {
    const uint8_t *from = reader->data + reader->at;
    size_t padded = (bytes + align - 1) / align * align;
    if (bytes > reader->end - reader->at || padded > reader->end - reader->at) return NULL;
    reader->at += padded;
    return from;
}

static int check_entries(struct reader *reader, const struct checkpoint *content, const char *path,
                         struct shu_error *err) {
    for (int i = 0; i < content->count; i++) {
        const struct graph_parameter *parameter = &content->parameters[i].parameter;
        size_t name = strlen(parameter->name);
        uint32_t dtype = parameter->dtype, bytes = (uint32_t)name;
        const uint8_t *entry = get(reader, ENTRY_BYTES, 8), *text = entry ? get(reader, name, 8) : NULL;
        if (!text) return damaged(path, err);
        if (memcmp(entry, &dtype, 4) != 0 || memcmp(entry + 4, &bytes, 4) != 0 ||
            memcmp(entry + 8, &parameter->rows, 8) != 0 || memcmp(entry + 16, &parameter->cols, 8) != 0 ||
            memcmp(text, parameter->name, name) != 0)
            return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: expected %s [%lld, %lld] as parameter %d, found another", path,
                            parameter->name, (long long)parameter->rows, (long long)parameter->cols, i + 1);
    }
    return get(reader, (64 - reader->at % 64) % 64, 1) ? SHU_OK : damaged(path, err);
}

/* Checks that all blocks are there; with `copy`, takes them over. */
static bool take_blocks(struct reader *reader, const struct checkpoint *content, bool copy) {
    for (int i = 0; i < content->count; i++) {
        const struct learn_parameter *at = &content->parameters[i];
        size_t bytes = parameter_bytes(&at->parameter);
        void *blocks[] = {at->parameter.data, at->m, at->v};
        for (int b = 0; b < (content->weights_only ? 1 : 3); b++) {
            const uint8_t *from = get(reader, bytes, 64);
            if (!from) return false;
            if (copy) memcpy(blocks[b], from, bytes);
        }
    }
    return reader->at == reader->end;
}

/* A checksum proves nothing about who wrote it: counts that would be used as such must be ones. */
static bool plausible(const uint8_t *at) {
    struct run_state state;
    memcpy(&state, at, sizeof state);
    const int64_t counts[] = {state.step,          state.updates,     state.epoch,     state.pack,
                              state.tokens,        state.guard.seen,  state.best_step, state.without_gain,
                              state.guard.skipped, state.guard.streak};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i] < 0 || counts[i] > (int64_t)1 << 48) return false;
    return state.updates <= state.step;
}

int checkpoint_parse(const struct checkpoint *content, const uint8_t *data, size_t bytes, const char *path,
                     struct shu_error *err) {
    struct reader reader = {.data = data};
    if (bytes < HEADER_BYTES + 8 || memcmp(data, MAGIC, 8) != 0) return damaged(path, err);
    reader.end = bytes - 8;
    if (read64(data + reader.end) != checksum_of(data, reader.end))
        return SHU_FAIL(err, SHU_E_CHECKSUM,
                        "%s: the checkpoint's checksum does not match; delete it, an earlier one "
                        "may be there",
                        path);
    uint32_t head[2] = {VERSION, content->weights_only ? FLAG_WEIGHTS_ONLY : 0};
    if (memcmp(data + 8, head, sizeof head) != 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: a checkpoint of another version of shu", path);
    size_t identity = read64(data + 16);
    get(&reader, HEADER_BYTES, 1);
    const uint8_t *text = identity <= IDENTITY_BYTES_MAX ? get(&reader, identity, 8) : NULL;
    if (!text) return damaged(path, err);
    int status = check_identity(path, (const char *)text, identity, content->identity, err);
    if (status) return status;
    if (read64(data + 24) != (uint64_t)content->count || !plausible(data + STATE_AT)) return damaged(path, err);
    if ((status = check_entries(&reader, content, path, err)) != 0) return status;
    struct reader blocks = reader;
    if (!take_blocks(&blocks, content, false)) return damaged(path, err);
    take_blocks(&reader, content, true);
    memcpy(content->state, data + STATE_AT, sizeof *content->state);
    return SHU_OK;
}

int checkpoint_read(const struct checkpoint *content, const char *path, struct shu_error *err) {
    struct map map;
    int status = map_open(path, &map, err);
    if (status) return status;
    status = checkpoint_parse(content, map.data, map.bytes, path, err);
    map_close(&map);
    return status;
}

/* ---------------------------------------------------------------- folders */

int checkpoint_path(const char *folder, int64_t step, struct buf *out) {
    return buf_printf(out, "%s/checkpoint-%08lld.shu", folder, (long long)step);
}

/* Step of "checkpoint-STEP.shu", or -1. */
static int64_t step_of(const char *name) {
    static const char head[] = "checkpoint-";
    char *end;
    if (strncmp(name, head, sizeof head - 1) != 0) return -1;
    const char *digits = name + sizeof head - 1;
    if (*digits < '0' || *digits > '9') return -1;
    long long step = strtoll(digits, &end, 10);
    return strcmp(end, ".shu") == 0 ? step : -1;
}

/* Keeps `steps` sorted, newest first. */
static void insert(int64_t *steps, int *count, int room, int64_t step) {
    int at = *count < room ? (*count)++ : room;
    while (at > 0 && steps[at - 1] < step) {
        if (at < room) steps[at] = steps[at - 1];
        at--;
    }
    if (at < room) steps[at] = step;
}

int checkpoint_list(const char *folder, int64_t *steps, int room, struct shu_error *err) {
    DIR *dir = opendir(folder);
    if (!dir) return SHU_FAIL(err, SHU_E_IO, "%s: expected a folder that can be read", folder), -1;
    int all = 0, count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        int64_t step = step_of(entry->d_name);
        if (step < 0) continue;
        insert(steps, &count, room, step);
        all++;
    }
    closedir(dir);
    return all;
}

void checkpoint_prune(const char *folder) {
    int64_t newest[CHECKPOINTS_KEPT] = {0};
    int count = checkpoint_list(folder, newest, CHECKPOINTS_KEPT, NULL);
    DIR *dir = opendir(folder);
    struct buf path = {0};
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        const char *name = entry->d_name;
        int64_t step = step_of(name);
        bool old = step >= 0 && count > CHECKPOINTS_KEPT && step < newest[CHECKPOINTS_KEPT - 1];
        bool half = strncmp(name, "checkpoint-", 11) == 0 && strstr(name, ".shu.tmp.");
        buf_clear(&path);
        if ((old || half) && !buf_printf(&path, "%s/%s", folder, name)) unlink(path.data);
    }
    if (dir) closedir(dir);
    buf_free(&path);
}
