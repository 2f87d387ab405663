/* Adapters as GGUF, the form of llama.cpp's --lora. Keys and shapes are listed in adapter.h. */
#include <math.h>
#include <string.h>

#include "weights/lora.h"

/* ----------------------------------------------------------------- reading */

static bool ends_with(const char *name, size_t bytes, const char *tail) {
    size_t length = strlen(tail);
    return bytes > length && memcmp(name + bytes - length, tail, length) == 0;
}

static int expect_text(const struct model *file, const char *key, const char *wanted, struct shu_error *err) {
    const char *found = "nothing";
    char shown[48];
    meta_string(file, key, &found, NULL);
    if (strcmp(found, wanted) == 0) return SHU_OK;
    return SHU_FAIL(err, SHU_E_FORMAT, "expected an adapter with %s \"%s\", found \"%s\"", key, wanted,
                    name_show(found, strlen(found), shown, sizeof shown));
}

static int read_part(struct adapter *adapter, struct lora_parts *parts, const struct model_tensor *tensor, double alpha,
                     struct shu_error *err) {
    char shown[80];
    size_t bytes = strlen(tensor->name), tail = sizeof ".lora_a" - 1;
    bool is_a = ends_with(tensor->name, bytes, ".lora_a"), is_b = ends_with(tensor->name, bytes, ".lora_b");
    name_show(tensor->name, bytes, shown, sizeof shown);
    if ((!is_a && !is_b) || !ends_with(tensor->name, bytes - tail, ".weight"))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "tensor \"%s\" is no half of a low-rank pair (NAME.weight.lora_a, NAME.weight.lora_b); "
                        "ignoring it would give wrong answers",
                        shown);
    if (!dtype_table[tensor->view.dtype].to_f32)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tensor \"%s\" is stored as %s, which holds no weights", shown,
                        dtype_table[tensor->view.dtype].name);
    if (tensor->view.shape[2] != 1 || tensor->view.shape[3] != 1)
        return SHU_FAIL(err, SHU_E_FORMAT, "tensor \"%s\" is no matrix", shown);
    struct lora_part part = {.is_b = is_b, .view = tensor->view, .alpha = alpha};
    return lora_part_add(adapter, parts, tensor->name, bytes - tail, &part, err);
}

static int read_facts(struct adapter *adapter, const struct model *file, double *alpha, struct shu_error *err) {
    const char *text = NULL;
    int status = expect_text(file, "general.type", "adapter", err);
    if (!status) status = expect_text(file, "adapter.type", "lora", err);
    if (status) return status;
    if (meta_has(file, "adapter.alora.invocation_tokens"))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "the adapter wakes up at a token sequence (aLoRA); expected one that "
                        "always applies");
    if (!meta_float(file, "adapter.lora.alpha", alpha)) *alpha = 0;
    if (!isfinite(*alpha) || fabs(*alpha) > 1e9)
        return SHU_FAIL(err, SHU_E_FORMAT, "adapter.lora.alpha is %g; expected a number of moderate size", *alpha);
    if (*alpha == 0) *alpha = NAN; /* as in llama.cpp: none stated, scale 1 */
    meta_string(file, "general.architecture", &text, NULL);
    if (!text) return SHU_FAIL(err, SHU_E_FORMAT, "key general.architecture is missing; expected that of the base");
    status = lora_keep_text(adapter, text, &adapter->arch, err);
    text = NULL;
    meta_string(file, "general.base_model.0.name", &text, NULL);
    if (!status) status = lora_keep_text(adapter, text, &adapter->base_name, err);
    text = NULL;
    if (status || !meta_string(file, "shu.base.sha256", &text, NULL)) return status;
    if (!lora_is_sha256(text))
        return SHU_FAIL(err, SHU_E_FORMAT, "shu.base.sha256 is no SHA-256 in hexadecimal; the file is damaged");
    return lora_keep_text(adapter, text, &adapter->base_sha256, err);
}

int lora_read_gguf(struct adapter *adapter, const struct model *file, struct shu_error *err) {
    struct lora_parts parts = {0};
    double alpha = 0;
    int status = read_facts(adapter, file, &alpha, err);
    for (int64_t i = 0; !status && i < model_tensor_count(file); i++)
        status = read_part(adapter, &parts, model_tensor_at(file, i), alpha, err);
    if (!status) status = lora_settle(adapter, &parts, err);
    mem_free(parts.item);
    return status;
}

/* ----------------------------------------------------------------- writing */

static int write_meta(struct gguf_writer *writer, const struct adapter_write *what, struct shu_error *err) {
    char digest[65];
    const char *arch = "", *name = what->base_name && *what->base_name ? what->base_name : "base";
    double rank = what->pairs[0].rank, alpha = what->rank_stabilised ? what->alpha * sqrt(rank) : what->alpha;
    int status = adapter_base_fingerprint(what->base, digest, err);
    if (status) return status;
    meta_string(what->base, "general.architecture", &arch, NULL);
    status = gguf_writer_set_string(writer, "general.architecture", arch);
    if (!status) status = gguf_writer_set_string(writer, "general.type", "adapter");
    if (!status) status = gguf_writer_set_string(writer, "general.name", "adapter");
    if (!status) status = gguf_writer_set_int(writer, "general.base_model.count", 1);
    if (!status) status = gguf_writer_set_string(writer, "general.base_model.0.name", name);
    if (!status) status = gguf_writer_set_int(writer, "general.file_type", 0);
    if (!status) status = gguf_writer_set_string(writer, "adapter.type", "lora");
    if (!status) status = gguf_writer_set_float(writer, "adapter.lora.alpha", (float)alpha);
    if (!status) status = gguf_writer_set_string(writer, "shu.base.sha256", digest);
    return status ? SHU_FAIL(err, status, "out of memory for metadata") : SHU_OK;
}

static int declare(struct gguf_writer *writer, const struct adapter_pair *pair, bool is_b, struct shu_error *err) {
    char name[GGUF_NAME_BYTES_MAX + 1];
    int64_t shape[4] = {is_b ? pair->rank : pair->in, is_b ? pair->out : pair->rank, 1, 1};
    int length = snprintf(name, sizeof name, "%s.lora_%c", pair->name, is_b ? 'b' : 'a');
    int status = length < (int)sizeof name ? gguf_writer_declare(writer, name, DT_F32, 2, shape) : SHU_E_USAGE;
    return status ? SHU_FAIL(err, status, "tensor \"%.80s\" cannot be declared", name) : SHU_OK;
}

static int write_pair(struct gguf_writer *writer, const struct adapter_write *what, const struct adapter_pair *pair,
                      struct shu_error *err) {
    struct adapter_order order = adapter_write_order(what, pair, false);
    int status = gguf_writer_data(writer, pair->a, (size_t)pair->in * (size_t)pair->rank * sizeof *pair->a, err);
    for (int64_t row = 0; row < pair->out && !status; row++)
        status = gguf_writer_data(writer, lora_b_row(pair, order, row), (size_t)pair->rank * sizeof *pair->b, err);
    return status;
}

int adapter_write_gguf(const struct adapter_write *what, const char *path, struct shu_error *err) {
    struct gguf_writer *writer = NULL;
    int status = adapter_write_check(what, err);
    if (!status) status = gguf_writer_open(path, &writer, err);
    if (status) return status;
    status = write_meta(writer, what, err);
    for (int i = 0; i < what->count && !status; i++) {
        status = declare(writer, &what->pairs[i], false, err);
        if (!status) status = declare(writer, &what->pairs[i], true, err);
    }
    for (int i = 0; i < what->count && !status; i++) status = write_pair(writer, what, &what->pairs[i], err);
    if (!status) return gguf_writer_commit(writer, err);
    gguf_writer_abort(writer);
    return status;
}
