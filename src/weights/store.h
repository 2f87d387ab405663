/* Private to room weights: registry entries and the ways to fetch them. */
#ifndef WEIGHTS_STORE_H
#define WEIGHTS_STORE_H

#include "weights/weights.h"

enum store_kind { STORE_WHEELS, STORE_HTTP, STORE_PATH };

/* One named model. Strings belong to the registry. */
struct store_entry {
    const char *name, *title, *licence;
    enum store_kind kind;
    const char *package, *version, *member; /* STORE_WHEELS; "{n}" in package = part number */
    int parts;                              /* STORE_WHEELS */
    const char *url;                        /* STORE_HTTP */
    const char *path;                       /* STORE_PATH, absolute */
    uint64_t bytes;                         /* of the finished file; 0 = not stated (STORE_PATH) */
    const char *sha256;                     /* lower-case hex; NULL = not stated (STORE_PATH) */
};

struct registry {
    json_t *models; /* name -> checked entry */
};
/* Reads the built-in registry and the user's; the user's entries win. */
int registry_open(struct registry *out, struct shu_error *err);
void registry_close(struct registry *registry);
/* False if there is no such entry. */
bool registry_find(const struct registry *registry, const char *name, struct store_entry *out);
/* Checks and merges one YAML text into an open registry; `file` is for messages. Exposed for tests. */
int registry_add(struct registry *registry, const char *text, size_t bytes, const char *file, struct shu_error *err);

/* A pull in progress: pieces lie in `partial`, the joined file grows in `file`. */
struct pull {
    const struct store_entry *entry;
    const char *partial; /* folder, exists */
    struct atomic_file file;
    struct sha256 hash;
    struct progress progress;
};
/* Appends bytes to the joined file: hash, progress, limit of entry->bytes, interrupt. */
int pull_append(struct pull *pull, const void *bytes, size_t count, struct shu_error *err);
int pull_wheels(struct pull *pull, struct shu_error *err);
int pull_http(struct pull *pull, struct shu_error *err);

#endif
