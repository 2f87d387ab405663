/* Hostile YAML (pack.yaml, models.yaml): any bytes give a tree or one error. The tree must survive a
 * round trip through JSON, and every position asked for must be answered. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__lsan_default_suppressions(void);

/* libfyaml 0.7 itself loses some bytes on malformed single quotes; what we lose is still counted. */
const char *__lsan_default_suppressions(void) {
    return "leak:libfyaml";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *tree = NULL;
    struct shu_error err = {0};
    int status = yaml_parse((const char *)data, size, "fuzz", &tree, &err);
    if (status ? tree != NULL || !err.message[0] || strchr(err.message, '\n') : tree == NULL) abort();
    struct buf place = {0};
    if (yaml_where((const char *)data, size, "fuzz", "a/0/b", &place)) abort();
    buf_free(&place);
    if (status) return 0;
    char *text = json_dumps(tree, JSON_ENCODE_ANY | JSON_ALLOW_NUL);
    json_t *again = NULL;
    if (text && !json_parse(text, strlen(text), "dump", &again, &err) && !json_equal(tree, again)) abort();
    json_decref(again);
    json_decref(tree);
    free(text);
    return 0;
}
