/* State files: one sequence's tokens and cache content.
 *
 * All numbers little-endian, no padding:
 *
 *   offset  bytes  what
 *        0      8  "SHUSTATE"
 *        8      4  u32 version, 1
 *       12      4  u32 cache type: 0 f16, 1 q8 (enum kv_type)
 *       16      4  u32 layers
 *       20      4  u32 KV heads
 *       24      4  u32 dimensions per head
 *       28      4  u32 positions per page (KV_PAGE)
 *       32      4  u32 positions per key tile (KV_TILE)
 *       36      4  u32 vocabulary size V
 *       40      8  u64 length T of the sequence in positions, 1 or more
 *       48      8  u64 bytes G of one page of all layers
 *       56     64  model fingerprint, lower-case hex
 *      120    4*T  i32 tokens, each 0…V-1
 *        +    P*G  P = ceil(T / KV_PAGE) pages in order of position, each as struct kv_cache lays out
 *                  a group; positions from T on are zero
 *        +     64  SHA-256 of everything before, lower-case hex
 *
 * The file therefore has exactly 120 + 4T + PG + 64 bytes; anything else is refused before any of
 * it is used. Page contents are numbers, not structure: hostile ones give wrong answers, never wrong accesses. */
#include <string.h>

#include "infer/engine.h"

static const char MAGIC[8] = "SHUSTATE";
enum { VERSION = 1, HEADER_BYTES = 120, DIGEST_BYTES = 64 };

/* ------------------------------------------------------------------ header */

static void put_le(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_le(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

/* The numbers that must be equal here and in the file, in file order from offset 12. */
struct field {
    const char *name;
    uint32_t value;
};
enum { FIELDS = 7 };

static void geometry(const struct engine *engine, struct field out[FIELDS]) {
    const struct kv_cache *cache = &engine->cache;
    const struct field fields[FIELDS] = {{"cache type", (uint32_t)cache->type},
                                         {"layer count", (uint32_t)cache->layers},
                                         {"KV head count", (uint32_t)cache->kv_heads},
                                         {"head size", (uint32_t)cache->head_dim},
                                         {"page size", KV_PAGE},
                                         {"tile size", KV_TILE},
                                         {"vocabulary", (uint32_t)decoder_config(engine->decoder)->vocab}};
    memcpy(out, fields, sizeof fields);
}

static void header_write(const struct engine *engine, int length, uint8_t header[HEADER_BYTES]) {
    struct field fields[FIELDS];
    geometry(engine, fields);
    memcpy(header, MAGIC, sizeof MAGIC);
    put_le(header + 8, VERSION, 4);
    for (int i = 0; i < FIELDS; i++) put_le(header + 12 + 4 * i, fields[i].value, 4);
    put_le(header + 40, (uint64_t)length, 8);
    put_le(header + 48, engine->cache.group_bytes, 8);
    memcpy(header + 56, engine->fingerprint, 64);
}

/* -------------------------------------------------------------------- save */

struct writer {
    struct atomic_file file;
    struct sha256 hash;
};

static int write_hashed(struct writer *writer, const void *bytes, size_t count, struct shu_error *err) {
    sha256_update(&writer->hash, bytes, count);
    return atomic_write(&writer->file, bytes, count, err);
}

/* The last page is copied to `page` and cleared behind the end: neither what others left in
 * it nor luck gets into the file. */
static int write_pages(struct writer *writer, const struct engine *engine, const struct kv_sequence *sequence,
                       uint8_t *page, struct shu_error *err) {
    const struct kv_cache *cache = &engine->cache;
    int status = SHU_OK;
    for (int first = 0; first < sequence->length && !status; first += KV_PAGE) {
        const uint8_t *group = kv_group(cache, sequence->table[first / KV_PAGE]);
        if (sequence->length - first < KV_PAGE) {
            memcpy(page, group, cache->group_bytes);
            kv_clear_tail(cache, page, sequence->length - first);
            group = page;
        }
        status = write_hashed(writer, group, cache->group_bytes, err);
    }
    return status;
}

static int write_tokens(struct writer *writer, const struct kv_sequence *sequence, struct shu_error *err) {
    uint8_t block[4 * 256];
    int status = SHU_OK;
    for (int i = 0; i < sequence->length && !status; i += 256) {
        int count = sequence->length - i < 256 ? sequence->length - i : 256;
        for (int j = 0; j < count; j++) put_le(block + 4 * j, (uint32_t)sequence->tokens[i + j], 4);
        status = write_hashed(writer, block, (size_t)count * 4, err);
    }
    return status;
}

int sequence_save(struct engine *engine, int sequence, const char *path, struct shu_error *err) {
    int status = engine_check_sequence(engine, sequence, err);
    if (status) return status;
    const struct kv_sequence *seq = &engine->cache.sequence[sequence];
    if (seq->length == 0) return SHU_FAIL(err, SHU_E_USAGE, "sequence %d is empty: nothing to save", sequence);
    uint8_t *page = mem_alloc(engine->cache.group_bytes);
    if (!page) return SHU_FAIL(err, SHU_E_NOMEM, "no memory to save a sequence");
    struct writer writer = {.file.fd = -1};
    uint8_t header[HEADER_BYTES];
    char digest[65];
    header_write(engine, seq->length, header);
    sha256_init(&writer.hash);
    status = atomic_open(path, &writer.file, err);
    if (status) goto out;
    status = write_hashed(&writer, header, sizeof header, err);
    if (!status) status = write_tokens(&writer, seq, err);
    if (!status) status = write_pages(&writer, engine, seq, page, err);
    sha256_hex(&writer.hash, digest);
    if (!status) status = atomic_write(&writer.file, digest, DIGEST_BYTES, err);
    status = atomic_end(&writer.file, status, err);
out:
    mem_free(page);
    return status;
}

/* ----------------------------------------------------------------- restore */

static int check_header(const struct engine *engine, const struct map *map, const char *path, struct shu_error *err) {
    const uint8_t *data = map->data;
    if (map->bytes < HEADER_BYTES + DIGEST_BYTES || memcmp(data, MAGIC, sizeof MAGIC) != 0)
        return SHU_FAIL(err, SHU_E_FORMAT, "%s is no saved sequence; expected a file written by sequence_save", path);
    uint32_t version = (uint32_t)get_le(data + 8, 4);
    if (version != VERSION)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: expected state version %d, found %u; save it again", path, VERSION,
                        version);
    struct field fields[FIELDS];
    geometry(engine, fields);
    for (int i = 0; i < FIELDS; i++) {
        uint32_t found = (uint32_t)get_le(data + 12 + 4 * i, 4);
        if (found != fields[i].value)
            return SHU_FAIL(
                err, SHU_E_UNSUPPORTED,
                "%s: %s is %u here, %u in the file; restore it with the model and options it was saved with", path,
                fields[i].name, fields[i].value, found);
    }
    if (get_le(data + 48, 8) != engine->cache.group_bytes)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: pages have %zu bytes here, %llu in the file", path,
                        engine->cache.group_bytes, (unsigned long long)get_le(data + 48, 8));
    if (memcmp(data + 56, engine->fingerprint, 64) != 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s was saved with another model of the same shape (%.12s, here %.12s)",
                        path, (const char *)data + 56, engine->fingerprint);
    return SHU_OK;
}

static int check_size(const struct engine *engine, const struct map *map, const char *path, struct shu_error *err) {
    uint64_t length = get_le(map->data + 40, 8);
    if (length < 1 || length > (uint64_t)engine->cache.context)
        return SHU_FAIL(err, SHU_E_RANGE, "%s holds %llu positions, the context here is 1 to %d", path,
                        (unsigned long long)length, engine->cache.context);
    uint64_t pages = (length + KV_PAGE - 1) / KV_PAGE; /* no overflow: length fits an int, and memory holds the pages */
    uint64_t expected = HEADER_BYTES + 4 * length + pages * engine->cache.group_bytes + DIGEST_BYTES;
    if (map->bytes != expected)
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "%s: expected %llu bytes for %llu positions, found %zu; the file is cut or padded", path,
                        (unsigned long long)expected, (unsigned long long)length, map->bytes);
    return SHU_OK;
}

static int check_content(const struct engine *engine, const struct map *map, const char *path, struct shu_error *err) {
    struct sha256 hash;
    char digest[65];
    sha256_init(&hash);
    sha256_update(&hash, map->data, map->bytes - DIGEST_BYTES);
    sha256_hex(&hash, digest);
    if (memcmp(digest, map->data + map->bytes - DIGEST_BYTES, DIGEST_BYTES) != 0)
        return SHU_FAIL(err, SHU_E_CHECKSUM, "%s: the checksum does not match; the file is damaged", path);
    uint64_t length = get_le(map->data + 40, 8);
    uint32_t vocab = (uint32_t)decoder_config(engine->decoder)->vocab;
    for (uint64_t i = 0; i < length; i++) {
        uint32_t token = (uint32_t)get_le(map->data + HEADER_BYTES + 4 * i, 4);
        if (token >= vocab)
            return SHU_FAIL(err, SHU_E_FORMAT, "%s: token %llu must be below %u, found %u", path, (unsigned long long)i,
                            vocab, token);
    }
    return SHU_OK;
}

/* Pages that freeing the sequence would give back. */
static int pages_own(const struct kv_cache *cache, const struct kv_sequence *sequence) {
    int own = 0;
    for (int i = 0; i * KV_PAGE < sequence->length; i++) own += cache->refs[sequence->table[i]] == 1;
    return own;
}

static int install(struct engine *engine, int sequence, const struct map *map, const char *path,
                   struct shu_error *err) {
    struct kv_cache *cache = &engine->cache;
    struct kv_sequence *seq = &cache->sequence[sequence];
    int length = (int)get_le(map->data + 40, 8), pages = (length + KV_PAGE - 1) / KV_PAGE;
    if (pages > cache->free_count + pages_own(cache, seq))
        return SHU_FAIL(err, SHU_E_RANGE, "%s needs %d pages of the KV cache, %d are free; free a sequence", path,
                        pages, (int)cache->free_count + pages_own(cache, seq));
    kv_truncate(cache, sequence, 0);
    const uint8_t *tokens = map->data + HEADER_BYTES, *content = tokens + (size_t)length * 4;
    for (int i = 0; i < length; i++) {
        int32_t token = (int32_t)get_le(tokens + 4 * (size_t)i, 4);
        kv_extend(cache, sequence, &token, 1);
    }
    for (int i = 0; i < pages; i++)
        memcpy(kv_group(cache, seq->table[i]), content + (size_t)i * cache->group_bytes, cache->group_bytes);
    return SHU_OK;
}

int sequence_restore(struct engine *engine, int sequence, const char *path, struct shu_error *err) {
    struct map map = {0};
    int status = engine_check_sequence(engine, sequence, err);
    if (!status) status = map_open(path, &map, err);
    if (status) return status;
    status = check_header(engine, &map, path, err);
    if (!status) status = check_size(engine, &map, path, err);
    if (!status) status = check_content(engine, &map, path, err);
    if (!status) status = install(engine, sequence, &map, path, err);
    map_close(&map);
    return status;
}
