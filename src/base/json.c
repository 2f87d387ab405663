/* JSON: jansson under our error convention. */
#include "base/base.h"

#include <string.h>

/* Length of the number-like token at `text`; *integer tells that it is digits and nothing else. */
static size_t number_token(const char *text, size_t bytes, bool *integer) {
    size_t length = 0;
    *integer = true;
    while (length < bytes && text[length] && strchr("0123456789+-.eE", text[length])) {
        if (text[length] < '0' || text[length] > '9') *integer = false;
        length++;
    }
    return length;
}

static bool fits_int64(const char *digits, size_t length) {
    return length < 19 || (length == 19 && memcmp(digits, "9223372036854775807", 19) <= 0);
}

/* Python writes 10^30 for "no limit" (model_max_length in many Hugging Face tokenizer files), an integer that jansson
 * refuses. A ".0" behind what does not fit 64 bits makes it a double. */
static int widen_integers(const char *text, size_t bytes, struct buf *out) {
    bool in_string = false, integer = false;
    int status = SHU_OK;
    for (size_t i = 0; i < bytes && !status;) {
        char c = text[i];
        bool number = !in_string && c >= '0' && c <= '9';
        size_t run = number ? number_token(text + i, bytes - i, &integer) : 1;
        if (in_string && c == '\\' && i + 1 < bytes) run = 2;
        if (c == '"') in_string = !in_string;
        status = buf_append(out, text + i, run);
        if (!status && number && integer && !fits_int64(text + i, run)) status = buf_puts(out, ".0");
        i += run;
    }
    return status;
}

static json_t *load_widened(const char *text, size_t bytes, json_error_t *failure) {
    struct buf wide = {0};
    json_t *tree = NULL;
    if (!widen_integers(text, bytes, &wide)) {
        tree = json_loadb(wide.data, wide.len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, failure);
    }
    buf_free(&wide);
    return tree;
}

int json_parse(const char *text, size_t bytes, const char *name, json_t **out, struct shu_error *err) {
    json_error_t failure = {0};
    *out = NULL;
    if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, bytes -= 3; /* byte order mark */
    if (fault_fires(FAULT_ALLOC)) return SHU_FAIL(err, SHU_E_NOMEM, "%s: not enough memory for its JSON", name);
    json_t *tree = json_loadb(bytes ? text : "", bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &failure);
    if (!tree && json_error_code(&failure) == json_error_numeric_overflow) tree = load_widened(text, bytes, &failure);
    if (tree) return *out = tree, SHU_OK;
    if (json_error_code(&failure) == json_error_out_of_memory) {
        return SHU_FAIL(err, SHU_E_NOMEM, "%s: not enough memory for its JSON", name);
    }
    return SHU_FAIL(err, SHU_E_FORMAT, "%s:%d:%d: not valid JSON: %s", name, failure.line, failure.column,
                    failure.text);
}

int json_read_file(const char *path, size_t max_bytes, json_t **out, struct shu_error *err) {
    struct buf text = {.max = max_bytes < SIZE_MAX ? max_bytes + 1 : max_bytes};
    *out = NULL;
    int status = file_read(path, max_bytes, &text, err);
    if (!status) status = json_parse(text.data, text.len, path, out, err);
    buf_free(&text);
    return status;
}
