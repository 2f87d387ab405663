/* An adapter and its base: fingerprints, the check that they belong together, and the order of rows. */
#include <string.h>

#include "weights/lora.h"

#define SAMPLE_BYTES 64 /* hashed at three places of every tensor */

/* ------------------------------------------------------------ fingerprints */

static void hash_sample(struct sha256 *hash, const void *data, size_t bytes) {
    const uint8_t *at = data;
    size_t take = bytes < SAMPLE_BYTES ? bytes : SAMPLE_BYTES;
    sha256_update(hash, at, take);
    sha256_update(hash, at + (bytes - take) / 2, take);
    sha256_update(hash, at + bytes - take, take);
}

/* Whole files would take over a second to hash; training changes every value of a matrix, so samples tell. */
int adapter_base_fingerprint(const struct model *model, char out[65], struct shu_error *err) {
    const char *arch;
    struct sha256 hash;
    char line[160];
    if (!meta_string(model, "general.architecture", &arch, NULL))
        return SHU_FAIL(err, SHU_E_FORMAT, "%s: key general.architecture is missing; use a complete model file",
                        model_path(model));
    sha256_init(&hash);
    sha256_update(&hash, arch, strlen(arch) + 1);
    for (int64_t i = 0; i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        const struct tensor *view = &tensor->view;
        sha256_update(&hash, tensor->name, strlen(tensor->name) + 1);
        int n = snprintf(line, sizeof line, "%s %lld %lld %lld %lld\n", dtype_table[view->dtype].name,
                         (long long)view->shape[0], (long long)view->shape[1], (long long)view->shape[2],
                         (long long)view->shape[3]);
        sha256_update(&hash, line, (size_t)n);
        hash_sample(&hash, view->data, tensor_bytes(view));
    }
    sha256_hex(&hash, out);
    return SHU_OK;
}

void adapter_fingerprint(const struct adapter *adapter, char out[65]) {
    struct sha256 hash;
    char line[64];
    sha256_init(&hash);
    int n = snprintf(line, sizeof line, "%a %d\n", (double)adapter->scale, adapter->halved);
    sha256_update(&hash, line, (size_t)n);
    for (int i = 0; i < adapter->count; i++) {
        const struct adapter_pair *pair = &adapter->pairs[i];
        sha256_update(&hash, pair->name, strlen(pair->name) + 1);
        n = snprintf(line, sizeof line, "%lld %lld %d\n", (long long)pair->in, (long long)pair->out, pair->rank);
        sha256_update(&hash, line, (size_t)n);
        hash_sample(&hash, pair->a, (size_t)pair->in * (size_t)pair->rank * sizeof *pair->a);
        hash_sample(&hash, pair->b, (size_t)pair->out * (size_t)pair->rank * sizeof *pair->b);
    }
    sha256_hex(&hash, out);
}

/* ------------------------------------------------------------------- check */

static int check_shape(const struct adapter *adapter, const struct adapter_pair *pair, const struct model *model,
                       struct shu_error *err) {
    char shown[80];
    const struct model_tensor *tensor = model_tensor_find(model, pair->name);
    name_show(pair->name, strlen(pair->name), shown, sizeof shown);
    if (!tensor)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "adapter %.120s changes \"%s\", which %.120s does not have; it was made for another model",
                        adapter->path, shown, model_path(model));
    const int64_t *shape = tensor->view.shape;
    if (shape[0] == pair->in && shape[1] == pair->out && shape[2] == 1 && shape[3] == 1) return SHU_OK;
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "adapter %.120s changes \"%s\" as a matrix [%lld, %lld], in %.120s it is [%lld, %lld]; it was made "
                    "for another model",
                    adapter->path, shown, (long long)pair->in, (long long)pair->out, model_path(model),
                    (long long)shape[0], (long long)shape[1]);
}

int adapter_check(const struct adapter *adapter, const struct model *model, struct shu_error *err) {
    const char *arch = "";
    char own[65];
    meta_string(model, "general.architecture", &arch, NULL);
    if (adapter->arch && strcmp(adapter->arch, arch) != 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "adapter %.120s was made for architecture %.32s, %.120s has %.32s; use its own base",
                        adapter->path, adapter->arch, model_path(model), arch);
    for (int i = 0; i < adapter->count; i++) {
        int status = check_shape(adapter, &adapter->pairs[i], model, err);
        if (status) return status;
    }
    if (!adapter->base_sha256) return SHU_OK;
    int status = adapter_base_fingerprint(model, own, err);
    if (status || strcmp(own, adapter->base_sha256) == 0) return status;
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "adapter %.120s was trained on %.100s (%.12s…), not on %.120s (%.12s…); use that very file as the "
                    "base",
                    adapter->path, adapter->base_name ? adapter->base_name : "another model", adapter->base_sha256,
                    model_path(model), own);
}

/* --------------------------------------------------------------- row order */

/* Do the model's own rows stand in halves? */
static bool rotary_halved(const struct model *model) {
    bool halved = false;
    return meta_bool(model, "shu.rope.neox", &halved) && halved;
}

/* GGUF interleaves the rotary pairs of llama's q and k (rows 2i and 2i + 1 of a head), Hugging Face keeps them as two
 * halves (rows i and half + i). Rows of one head of such a matrix; 0: rows of this matrix have one order only. */
static int64_t rotary_head(const struct model *model, const char *name, int64_t rows) {
    const char *arch = "";
    int64_t heads = 0;
    meta_string(model, "general.architecture", &arch, NULL);
    if (strcmp(arch, "llama") != 0) return 0;
    bool query = strstr(name, "attn_q.weight") != NULL;
    if (!query && !strstr(name, "attn_k.weight")) return 0;
    meta_int(model, "llama.attention.head_count", &heads);
    if (!query) meta_int(model, "llama.attention.head_count_kv", &heads); /* as many as query heads if not stated */
    return heads > 0 && heads <= rows && rows % (2 * heads) == 0 ? rows / heads : 0;
}

static struct adapter_order order_between(const struct model *model, const char *name, int64_t rows, bool from_halved,
                                          bool to_halved) {
    if (from_halved == to_halved) return (struct adapter_order){0};
    return (struct adapter_order){.head = rotary_head(model, name, rows), .interleave = !to_halved};
}

struct adapter_order adapter_order(const struct adapter *adapter, const struct model *model,
                                   const struct adapter_pair *pair) {
    return order_between(model, pair->name, pair->out, adapter->halved, rotary_halved(model));
}

struct adapter_order model_file_order(const struct model *model, const char *name, int64_t rows) {
    return order_between(model, name, rows, rotary_halved(model), false);
}

struct adapter_order adapter_write_order(const struct adapter_write *what, const struct adapter_pair *pair,
                                         bool halved) {
    return order_between(what->base, pair->name, pair->out, rotary_halved(what->base), halved);
}

int adapter_write_check(const struct adapter_write *what, struct shu_error *err) {
    if (what->count < 1) return SHU_FAIL(err, SHU_E_USAGE, "an adapter without pairs cannot be written");
    for (int i = 0; i < what->count; i++) {
        const struct adapter_pair *pair = &what->pairs[i];
        const struct model_tensor *tensor = model_tensor_find(what->base, pair->name);
        if (pair->rank < 1 || pair->rank > LORA_RANK_MAX || pair->rank != what->pairs[0].rank)
            return SHU_FAIL(err, SHU_E_USAGE, "pair \"%.80s\" has rank %d; all of an adapter share one, 1 to %d",
                            pair->name, pair->rank, LORA_RANK_MAX);
        if (!tensor || tensor->view.shape[0] != pair->in || tensor->view.shape[1] != pair->out)
            return SHU_FAIL(err, SHU_E_USAGE, "pair \"%.80s\" [%lld, %lld] fits no matrix of the base", pair->name,
                            (long long)pair->in, (long long)pair->out);
    }
    return SHU_OK;
}
