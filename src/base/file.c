/* Files: mappings, whole-file reads, folders and the XDG paths. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_failed(const char *path, struct shu_error *err) {
    if (errno == ENOENT) return SHU_FAIL(err, SHU_E_NOTFOUND, "%s: no such file; check the path", path);
    return SHU_FAIL(err, SHU_E_IO, "%s: cannot be opened for reading: %s", path, strerror(errno));
}

/* ----------------------------------------------------------------- map */

static int map_descriptor(int fd, const char *path, struct map *out, struct shu_error *err) {
    struct stat info;
    if (fault_fires(FAULT_READ)) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be read: injected fault", path);
    if (fstat(fd, &info)) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be examined: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) {
        return SHU_FAIL(err, SHU_E_IO, "%s: expected a regular file, found a %s", path,
                        S_ISDIR(info.st_mode) ? "folder" : "device, pipe or socket");
    }
    out->bytes = (size_t)info.st_size;
    if (out->bytes == 0) return SHU_OK;
    void *data = mmap(NULL, out->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        out->bytes = 0;
        return SHU_FAIL(err, SHU_E_NOMEM, "%s: %zu bytes cannot be mapped: %s", path, (size_t)info.st_size,
                        strerror(errno));
    }
    out->data = data;
    return SHU_OK;
}

int map_open(const char *path, struct map *out, struct shu_error *err) {
    *out = (struct map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a FIFO must be refused, not waited for */
    if (fd < 0) return open_failed(path, err);
    int status = map_descriptor(fd, path, out, err);
    close(fd);
    return status;
}

void map_close(struct map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (struct map){0};
}

void map_release(const struct map *map, size_t offset, size_t bytes) {
    if (!map->data || offset >= map->bytes) return;
    if (bytes > map->bytes - offset) bytes = map->bytes - offset;
    /* Rounded outward: a neighbour that shares a page faults it back in from the page cache. */
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t start = offset / page * page;
    madvise((void *)(uintptr_t)(map->data + start), offset + bytes - start, MADV_DONTNEED);
}

/* ---------------------------------------------------------- whole file */

static int too_large(const char *name, size_t max_bytes, struct shu_error *err) {
    return SHU_FAIL(err, SHU_E_RANGE, "%s: expected at most %zu bytes, found more", name, max_bytes);
}

static int read_chunk(int fd, const char *name, char *into, size_t room, size_t *got, struct shu_error *err) {
    for (;;) {
        errno = EIO;
        ssize_t count = fault_fires(FAULT_READ) ? -1 : read(fd, into, room);
        if (count >= 0) return *got = (size_t)count, SHU_OK;
        if (errno != EINTR) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be read: %s", name, strerror(errno));
        if (interrupt_pending()) return SHU_FAIL(err, SHU_E_CANCELLED, "%s: reading was interrupted", name);
    }
}

/* Nothing more may come: one byte beyond the limit is the difference between a file that fits and one that does not. */
static int expect_end(int fd, const char *name, size_t limit, struct shu_error *err) {
    char extra;
    size_t got = 0;
    int status = read_chunk(fd, name, &extra, 1, &got, err);
    return status || got == 0 ? status : too_large(name, limit, err);
}

static int read_all(int fd, const char *name, size_t max_bytes, struct buf *out, struct shu_error *err) {
    struct stat info;
    size_t chunk = (size_t)64 << 10, got = 0;
    size_t own = (out->max ? out->max : BUF_MAX_DEFAULT) - out->len; /* what the buffer itself still takes */
    size_t limit = max_bytes < own ? max_bytes : own, room = limit;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
        if ((uint64_t)info.st_size > limit) return too_large(name, limit, err);
        chunk = (size_t)info.st_size + 1; /* one more, so that the end shows without a second allocation */
    }
    while (room > 0) {
        size_t want = chunk < room ? chunk : room;
        int status = buf_reserve(out, want);
        if (status) return SHU_FAIL(err, status, "%s: not enough memory for its content", name);
        status = read_chunk(fd, name, out->data + out->len, want, &got, err);
        if (status || got == 0) return status;
        out->len += got;
        out->data[out->len] = '\0';
        room -= got;
    }
    return expect_end(fd, name, limit, err);
}

int file_read(const char *path, size_t max_bytes, struct buf *out, struct shu_error *err) {
    if (strcmp(path, "-") == 0) return read_all(STDIN_FILENO, "standard input", max_bytes, out, err);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return open_failed(path, err);
    int status = read_all(fd, path, max_bytes, out, err);
    close(fd);
    return status;
}

/* ------------------------------------------------------------- folders */

bool file_same(const char *a, const char *b) {
    struct stat one, two;
    return stat(a, &one) == 0 && stat(b, &two) == 0 && one.st_dev == two.st_dev && one.st_ino == two.st_ino;
}

bool file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}

bool path_is_dir(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static int dir_make_one(const char *path, struct shu_error *err) {
    if (mkdir(path, 0755) == 0 || path_is_dir(path)) return SHU_OK;
    if (errno == EEXIST) return SHU_FAIL(err, SHU_E_IO, "%s: expected a folder, found a file of that name", path);
    return SHU_FAIL(err, SHU_E_IO, "%s: folder cannot be made: %s", path, strerror(errno));
}

int dir_make(const char *path, struct shu_error *err) {
    char *copy = mem_strdup(path);
    if (!copy) return SHU_FAIL(err, SHU_E_NOMEM, "%s: not enough memory to make the folder", path);
    int status = SHU_OK;
    for (char *slash = strchr(copy + (*copy == '/'), '/'); slash && !status; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        status = dir_make_one(copy, err);
        *slash = '/';
    }
    if (!status) status = dir_make_one(copy, err);
    mem_free(copy);
    return status;
}

/* ------------------------------------------------------------ XDG paths */

static int path_xdg(const char *variable, const char *below_home, const char *tail, struct buf *out,
                    struct shu_error *err) {
    const char *base = getenv(variable), *home = getenv("HOME");
    bool use_base = base && base[0] == '/'; /* the XDG specification: relative values are ignored */
    if (!use_base && (!home || !home[0])) {
        return SHU_FAIL(err, SHU_E_NOTFOUND, "neither %s nor HOME is set; set one to an absolute path", variable);
    }
    const char *slash = tail && tail[0] ? "/" : "";
    int status = use_base ? buf_printf(out, "%s/shu%s%s", base, slash, tail ? tail : "")
                          : buf_printf(out, "%s/%s/shu%s%s", home, below_home, slash, tail ? tail : "");
    if (status) return SHU_FAIL(err, status, "not enough memory for a path below %s", use_base ? base : home);
    return SHU_OK;
}

int path_cache(const char *tail, struct buf *out, struct shu_error *err) {
    return path_xdg("XDG_CACHE_HOME", ".cache", tail, out, err);
}

int path_config(const char *tail, struct buf *out, struct shu_error *err) {
    return path_xdg("XDG_CONFIG_HOME", ".config", tail, out, err);
}
