/* Files that appear whole or not at all: temp file, fsync, rename, fsync of the folder. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool injected(void) {
    if (!fault_fires(FAULT_WRITE)) return false;
    errno = EIO;
    return true;
}

static void atomic_forget(struct atomic_file *file) {
    mem_free(file->path);
    mem_free(file->temp);
    *file = (struct atomic_file){.fd = -1};
}

/* A rename would replace /dev/null or a FIFO by a plain file; nobody who names one wants that. */
static int refuse_special(const char *path, struct shu_error *err) {
    struct stat info;
    if (strncmp(path, "/dev/", 5) == 0 || strncmp(path, "/proc/", 6) == 0) /* /dev/stdout may lead to a plain file */
        return SHU_FAIL(err, SHU_E_USAGE, "%s: expected a regular file or a new name to write to, found a device",
                        path);
    if (stat(path, &info) || S_ISREG(info.st_mode)) return SHU_OK;
    return SHU_FAIL(err, SHU_E_USAGE, "%s: expected a regular file or a new name to write to, found a %s", path,
                    S_ISDIR(info.st_mode) ? "folder" : "device, pipe or socket");
}

/* The plain name may be taken by another thread, or by a dead process that had our number: count on. */
static int open_temp(struct atomic_file *file, struct shu_error *err) {
    struct buf name = {0};
    int status = SHU_OK;
    for (int attempt = 0; attempt < 100; attempt++) {
        buf_clear(&name);
        status = buf_printf(&name, "%s.tmp.%ld", file->path, (long)getpid());
        if (!status && attempt) status = buf_printf(&name, ".%d", attempt);
        if (status) break;
        if (!injected()) file->fd = open(name.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->fd >= 0 || errno != EEXIST) break;
    }
    if (status) {
        buf_free(&name);
        return SHU_FAIL(err, status, "%s: not enough memory to write it", file->path);
    }
    file->temp = name.data;
    if (file->fd < 0) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be created: %s", file->temp, strerror(errno));
    return SHU_OK;
}

int atomic_open(const char *path, struct atomic_file *out, struct shu_error *err) {
    *out = (struct atomic_file){.fd = -1};
    char target[PATH_MAX];
    struct stat info;
    /* A link stays a link: what it points to is replaced. */
    int status = refuse_special(path, err);
    if (!status && lstat(path, &info) == 0 && S_ISLNK(info.st_mode) && realpath(path, target)) path = target;
    if (!status) status = refuse_special(path, err);
    if (status) return status;
    out->path = mem_strdup(path);
    status = out->path ? open_temp(out, err) : SHU_FAIL(err, SHU_E_NOMEM, "%s: not enough memory to write it", path);
    /* Nobody may read the new file who could not read the old one. */
    if (!status && stat(path, &info) == 0 && fchmod(out->fd, info.st_mode & 07777) != 0)
        status =
            SHU_FAIL(err, SHU_E_IO, "%s: cannot take the access rights of the old file: %s", path, strerror(errno));
    if (status && out->fd >= 0)
        atomic_abort(out);
    else if (status)
        atomic_forget(out);
    return status;
}

int atomic_write(struct atomic_file *file, const void *bytes, size_t count, struct shu_error *err) {
    const uint8_t *at = bytes;
    while (count > 0) {
        ssize_t put = injected() ? -1 : write(file->fd, at, count);
        if (put < 0 && errno == EINTR && !interrupt_pending()) continue;
        if (put < 0 && errno == EINTR) return SHU_FAIL(err, SHU_E_CANCELLED, "%s: writing was interrupted", file->path);
        if (put < 0) {
            const char *hint = errno == ENOSPC || errno == EDQUOT ? "; free some space and try again" : "";
            return SHU_FAIL(err, SHU_E_IO, "%s: cannot be written after %llu bytes: %s%s", file->path,
                            (unsigned long long)file->written_bytes, strerror(errno), hint);
        }
        at += put;
        count -= (size_t)put;
        file->written_bytes += (uint64_t)put;
    }
    return SHU_OK;
}

/* The rename itself must reach the disk. Some file systems refuse fsync on folders (EINVAL): nothing is lost there. */
static int sync_folder(char *path) {
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0'; /* for a moment, the path of its folder */
    const char *folder = !slash ? "." : slash == path ? "/" : path;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (slash) *slash = '/';
    if (fd < 0) return errno == EACCES ? 0 : -1; /* writable but unreadable folders exist */
    int result = fsync(fd) && errno != EINVAL ? -1 : 0;
    close(fd);
    return result;
}

int atomic_commit(struct atomic_file *file, struct shu_error *err) {
    const char *step = "flushed";
    int fd = file->fd;
    bool failed = injected() || fsync(fd);
    file->fd = -1;
    if (close(fd) && !failed) failed = true;
    if (!failed) {
        step = "renamed into place";
        failed = injected() || rename(file->temp, file->path);
    }
    /* From here on the new file stands; only its survival of a power cut is in doubt. */
    if (!failed) {
        step = "flushed in its folder";
        failed = injected() || sync_folder(file->path);
    }
    int status = SHU_OK;
    if (failed) status = SHU_FAIL(err, SHU_E_IO, "%s: cannot be %s: %s", file->path, step, strerror(errno));
    if (failed) unlink(file->temp);
    atomic_forget(file);
    return status;
}

void atomic_abort(struct atomic_file *file) {
    if (file->fd < 0) return;
    close(file->fd);
    unlink(file->temp);
    atomic_forget(file);
}

int atomic_end(struct atomic_file *file, int status, struct shu_error *err) {
    if (!status) return atomic_commit(file, err);
    atomic_abort(file);
    return status;
}
