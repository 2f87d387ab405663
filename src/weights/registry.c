/* The registry of named models: share/models.yaml, compiled in, and the user's own file. */
#include "weights/store.h"

#include <string.h>

#define REGISTRY_BYTES_MAX ((size_t)1 << 20)
#define STORE_PARTS_MAX    1000

extern const char registry_builtin[];
extern const size_t registry_builtin_bytes;

/* Characters that may stand in a name which becomes a file name or an argument: no slash, no leading dash or dot. */
static bool plain_name(const char *text, const char *more) {
    if (!*text || strlen(text) > 100 || strchr("-.", *text)) return false;
    for (; *text; text++) {
        bool letter =
            (*text >= 'a' && *text <= 'z') || (*text >= 'A' && *text <= 'Z') || (*text >= '0' && *text <= '9');
        if (!letter && !strchr(more, *text)) return false;
    }
    return true;
}

static bool hex_digest(const char *text) {
    return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

/* ---------------------------------------------------------------- checking */

/* What is being checked, for error messages. */
struct check {
    const char *text, *file, *model;
    size_t bytes;
    struct shu_error *err;
};

static int check_fail(const struct check *check, const char *key, const char *expected) {
    struct buf path = {0}, where = {0};
    int status = SHU_E_FORMAT;
    if (buf_printf(&path, "models/%s%s%s", check->model, *key ? "/" : "", key) == SHU_OK &&
        yaml_where(check->text, check->bytes, check->file, path.data, &where) == SHU_OK)
        status = SHU_FAIL(check->err, status, "%s: model \"%s\": %s%sexpected %s", where.data, check->model, key,
                          *key ? ": " : "", expected);
    else
        status = SHU_FAIL(check->err, SHU_E_NOMEM, "out of memory");
    buf_free(&path);
    buf_free(&where);
    return status;
}

static const char *entry_text(const json_t *entry, const char *key) {
    const char *text = json_string_value(json_object_get(entry, key));
    return text ? text : "";
}

static int check_keys(const struct check *check, json_t *entry) {
    static const char *const known[] = {"title",  "licence", "kind", "package", "version", "parts",
                                        "member", "url",     "path", "bytes",   "sha256"};
    const char *key;
    json_t *value;
    json_object_foreach(entry, key, value) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= strcmp(known[i], key) == 0;
        if (!found)
            return check_fail(
                check, key,
                "no such key; known are title licence kind package version parts member url path bytes sha256");
        bool number = strcmp(key, "bytes") == 0 || strcmp(key, "parts") == 0;
        if (number ? !json_is_integer(value) : !json_is_string(value))
            return check_fail(check, key, number ? "a whole number" : "a string (put it in quotes)");
    }
    return SHU_OK;
}

static int check_wheels(const struct check *check, const json_t *entry) {
    json_int_t parts = json_integer_value(json_object_get(entry, "parts"));
    const char *package = entry_text(entry, "package");
    if (!plain_name(package, "._-{}"))
        return check_fail(check, "package", "a package name, {n} standing for the part number");
    if (!plain_name(entry_text(entry, "version"), "._-+!")) return check_fail(check, "version", "a version like 1.0.0");
    if (parts < 1 || parts > STORE_PARTS_MAX) return check_fail(check, "parts", "a number from 1 to 1000");
    if (parts > 1 && !strstr(package, "{n}")) return check_fail(check, "package", "{n}, since there are several parts");
    if (!*entry_text(entry, "member")) return check_fail(check, "member", "a pattern of the file inside the wheel");
    return SHU_OK;
}

static int check_entry(const struct check *check, json_t *entry) {
    if (!plain_name(check->model, "._-"))
        return check_fail(check, "", "a name of letters, digits, dots, dashes and underscores");
    if (!json_is_object(entry)) return check_fail(check, "", "keys and values");
    int status = check_keys(check, entry);
    if (status) return status;
    const char *kind = entry_text(entry, "kind"), *url = entry_text(entry, "url");
    bool path = strcmp(kind, "path") == 0;
    json_t *bytes = json_object_get(entry, "bytes"), *digest = json_object_get(entry, "sha256");
    if ((bytes || !path) && json_integer_value(bytes) < 1)
        return check_fail(check, "bytes", "the size of the finished file");
    if ((digest || !path) && !hex_digest(entry_text(entry, "sha256")))
        return check_fail(check, "sha256", "64 lower-case hexadecimal digits");
    if (path) return *entry_text(entry, "path") == '/' ? SHU_OK : check_fail(check, "path", "an absolute path");
    if (strcmp(kind, "wheels") == 0) return check_wheels(check, entry);
    if (strcmp(kind, "http") != 0) return check_fail(check, "kind", "wheels, http or path");
    if (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)
        return check_fail(check, "url", "an address that begins with http:// or https://");
    return SHU_OK;
}

int registry_add(struct registry *registry, const char *text, size_t bytes, const char *file, struct shu_error *err) {
    json_t *root = NULL, *entry;
    struct check check = {.text = text, .bytes = bytes, .file = file, .err = err};
    int status = yaml_parse(text, bytes, file, &root, err);
    if (status) return status;
    json_t *models = json_object_get(root, "models");
    if (!json_is_object(models) || json_object_size(root) != 1)
        status = SHU_FAIL(err, SHU_E_FORMAT, "%s: expected one top-level key, models, with names below it", file);
    if (!status)
        json_object_foreach(models, check.model, entry) {
            status = check_entry(&check, entry);
            if (status) break;
        }
    if (!status && json_object_update(registry->models, models)) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    json_decref(root);
    return status;
}

/* ------------------------------------------------------------ open and find */

int registry_open(struct registry *out, struct shu_error *err) {
    struct buf path = {0}, text = {0};
    out->models = json_object();
    int status = out->models ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) status = registry_add(out, registry_builtin, registry_builtin_bytes, "models.yaml", err);
    /* Without HOME there is no user registry; that is no reason to fail. */
    if (!status && path_config("models.yaml", &path, NULL) == SHU_OK && file_exists(path.data)) {
        status = file_read(path.data, REGISTRY_BYTES_MAX, &text, err);
        if (!status) status = registry_add(out, text.data ? text.data : "", text.len, path.data, err);
    }
    buf_free(&path);
    buf_free(&text);
    if (status) registry_close(out);
    return status;
}

void registry_close(struct registry *registry) {
    json_decref(registry->models);
    registry->models = NULL;
}

bool registry_find(const struct registry *registry, const char *name, struct store_entry *out) {
    const char *key;
    json_t *entry, *found = NULL;
    json_object_foreach(registry->models, key, entry)
        if (strcmp(key, name) == 0) {
            found = entry;
            break;
        }
    if (!found) return false;
    const char *kind = entry_text(found, "kind");
    *out = (struct store_entry){
        .name = key,
        .title = entry_text(found, "title"),
        .licence = entry_text(found, "licence"),
        .kind = strcmp(kind, "wheels") == 0 ? STORE_WHEELS
                : strcmp(kind, "http") == 0 ? STORE_HTTP
                                            : STORE_PATH,
        .package = entry_text(found, "package"),
        .version = entry_text(found, "version"),
        .member = entry_text(found, "member"),
        .parts = (int)json_integer_value(json_object_get(found, "parts")),
        .url = entry_text(found, "url"),
        .path = entry_text(found, "path"),
        .bytes = (uint64_t)json_integer_value(json_object_get(found, "bytes")),
        .sha256 = json_string_value(json_object_get(found, "sha256")),
    };
    return true;
}
