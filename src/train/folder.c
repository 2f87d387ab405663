/* The folder of a run: one run at a time, and never over what it reads. */
#include "train/trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* What a run writes there, beside checkpoints. */
static const char *const products[] = {"metrics.jsonl", "data.shard", "data.shard.rejects.jsonl",
                                       "loss.svg",      "README.md",  "adapter.gguf",
                                       "model.gguf",    "best.shu",   "reference.shu"};
#define PRODUCTS (sizeof products / sizeof *products)

static int join(const char *folder, const char *name, struct buf *out, struct shu_error *err) {
    buf_clear(out);
    return buf_printf(out, "%s/%s", folder, name) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory") : SHU_OK;
}

int folder_check_inputs(const char *folder, const char *const *inputs, int count, struct shu_error *err) {
    struct buf path = {0};
    int status = SHU_OK;
    for (size_t p = 0; p < PRODUCTS && !status; p++) {
        status = join(folder, products[p], &path, err);
        for (int i = 0; i < count && !status; i++)
            if (inputs[i] && strcmp(inputs[i], "-") != 0 && file_same(inputs[i], path.data) &&
                strcmp(products[p], "data.shard") != 0)
                status = SHU_FAIL(err, SHU_E_USAGE, "%s would be replaced by what the run writes; take another folder",
                                  inputs[i]);
    }
    buf_free(&path);
    return status;
}

int folder_check_foreign(const char *folder, struct shu_error *err) {
    struct buf path = {0};
    int status = join(folder, "metrics.jsonl", &path, err);
    bool ours = !status && file_exists(path.data);
    for (size_t p = 0; p < PRODUCTS && !status && !ours; p++) {
        if (strncmp(products[p], "data.shard", 10) == 0) continue; /* of a run that ended while it read its data */
        status = join(folder, products[p], &path, err);
        if (!status && file_exists(path.data))
            status = SHU_FAIL(err, SHU_E_USAGE, "%s is there, but no run wrote it; take an empty folder", path.data);
    }
    buf_free(&path);
    return status;
}

int folder_lock(const char *folder, int *fd, struct shu_error *err) {
    *fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be opened: %s", folder, strerror(errno));
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0) return SHU_OK;
    int status =
        errno == EWOULDBLOCK
            ? SHU_FAIL(err, SHU_E_USAGE, "another run is at work in %s; wait for it, or take another folder", folder)
            : SHU_OK; /* a file system without locks: the user's own care */
    if (status) {
        close(*fd);
        *fd = -1;
    }
    return status;
}
