/* Writing a model in other number formats: rows are decoded to f32 and encoded
 * again, slab by slab, so that memory does not grow with the model. Models from
 * safetensors folders become proper GGUF on the way (see source_row). */
#include "weights/quantize.h"

#include <string.h>

#define QUANTIZATION_VERSION 2
#define SLAB_VALUES          ((int64_t)4 << 20) /* values in one slab: 16 MiB as f32 */
#define TILE_VALUES          16384              /* values one thread encodes at a time */

/* One tensor on its way. */
struct conversion {
    const struct model_tensor *tensor;
    enum dtype to;
    int64_t cols, rows;
    size_t from_row_bytes, to_row_bytes;
    int64_t rotated_head; /* rows of a head whose halves must be interleaved; 0 = order stays */
    int64_t first, count; /* rows of the current slab */
    int64_t rows_per_tile;
    float *scratch; /* [threads, cols] */
    uint8_t *out;   /* [slab rows, to_row_bytes] */
};

/* Hugging Face keeps the rotary pairs of llama as two halves of a head, GGUF
 * interleaves them: row 2i + j of a head comes from row j * half + i. */
static int64_t source_row(const struct conversion *job, int64_t row) {
    if (!job->rotated_head) return row;
    int64_t local = row % job->rotated_head, half = job->rotated_head / 2;
    return row - local + (local % 2) * half + local / 2;
}

static void convert_row(const struct conversion *job, int64_t row, float *values, uint8_t *out) {
    const struct tensor *view = &job->tensor->view;
    const uint8_t *from = (const uint8_t *)view->data + (size_t)source_row(job, row) * job->from_row_bytes;
    bool plus_one = job->tensor->norm_plus_one;
    if (view->dtype == job->to && !plus_one) {
        memcpy(out, from, job->to_row_bytes);
        return;
    }
    dtype_table[view->dtype].to_f32(from, values, job->cols);
    if (plus_one)
        for (int64_t i = 0; i < job->cols; i++) values[i] += 1.0f;
    dtype_table[job->to].from_f32(values, NULL, out, job->cols);
}

static void convert_tile(void *context, int thread, int64_t tile) {
    const struct conversion *job = context;
    float *values = job->scratch + (size_t)thread * (size_t)job->cols;
    int64_t first = tile * job->rows_per_tile, last = first + job->rows_per_tile;
    if (last > job->count) last = job->count;
    for (int64_t row = first; row < last; row++)
        convert_row(job, job->first + row, values, job->out + (size_t)row * job->to_row_bytes);
}

static int convert_tensor(const struct model *model, struct conversion *job, struct gguf_writer *writer,
                          struct pool *pool, struct progress *progress, struct shu_error *err) {
    int64_t slab = SLAB_VALUES / job->cols > 0 ? SLAB_VALUES / job->cols : 1;
    if (slab > job->rows) slab = job->rows;
    job->rows_per_tile = TILE_VALUES / job->cols > 0 ? TILE_VALUES / job->cols : 1;
    job->scratch = mem_alloc((size_t)pool_threads(pool) * (size_t)job->cols * sizeof *job->scratch);
    job->out = mem_alloc((size_t)slab * job->to_row_bytes);
    uint64_t before = progress ? progress->done : 0;
    int status =
        job->scratch && job->out ? SHU_OK : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for \"%s\"", job->tensor->name);
    for (job->first = 0; !status && job->first < job->rows; job->first += slab) {
        job->count = job->rows - job->first < slab ? job->rows - job->first : slab;
        pool_run(pool, convert_tile, job, (job->count + job->rows_per_tile - 1) / job->rows_per_tile);
        status = gguf_writer_data(writer, job->out, (size_t)job->count * job->to_row_bytes, err);
        if (progress) progress_update(progress, before + (uint64_t)(job->first + job->count) * job->from_row_bytes);
        if (!status && interrupt_pending()) status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was written");
    }
    mem_free(job->scratch);
    mem_free(job->out);
    model_tensor_release(model, job->tensor);
    return status;
}

/* Rows of one head, for matrices whose halves must be interleaved; else 0. */
static int64_t rotated_head(const struct model *model, const struct model_tensor *tensor) {
    bool neox = false;
    const char *arch = "";
    int64_t heads = 0, rows = tensor_rows(&tensor->view);
    if (!meta_bool(model, "shu.rope.neox", &neox) || !neox) return 0;
    meta_string(model, "general.architecture", &arch, NULL);
    if (strcmp(arch, "llama") != 0) return 0;
    if (strstr(tensor->name, "attn_q.weight"))
        meta_int(model, "llama.attention.head_count", &heads);
    else if (strstr(tensor->name, "attn_k.weight"))
        meta_int(model, "llama.attention.head_count_kv", &heads);
    return heads > 0 && rows % (2 * heads) == 0 ? rows / heads : 0;
}

static void plan_tensor(const struct model *model, const struct model_tensor *tensor, enum dtype to,
                        struct conversion *job) {
    *job = (struct conversion){.tensor = tensor, .to = to, .rotated_head = rotated_head(model, tensor)};
    job->cols = tensor->view.shape[0];
    job->rows = tensor_rows(&tensor->view);
    job->from_row_bytes = dtype_row_bytes(tensor->view.dtype, job->cols);
    job->to_row_bytes = dtype_row_bytes(to, job->cols);
}

static int declare_all(const struct model *model, const struct quantize_target *target, struct gguf_writer *writer,
                       struct shu_error *err) {
    for (int64_t i = 0; i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        enum dtype to = quantize_choose(model, tensor, target->name);
        bool changes = to != tensor->view.dtype || tensor->norm_plus_one;
        if (changes && !dtype_table[to].from_f32)
            return SHU_FAIL(err, SHU_E_UNSUPPORTED, "tensor \"%s\" would become %s, which is only read here",
                            tensor->name, dtype_table[to].name);
        int status = gguf_writer_declare(writer, tensor->name, to, tensor->view.ndim, tensor->view.shape);
        if (status)
            return SHU_FAIL(err, status, "tensor \"%s\" cannot be declared as %s", tensor->name, dtype_table[to].name);
    }
    return SHU_OK;
}

static int write_meta(const struct model *model, const struct quantize_target *target, struct gguf_writer *writer,
                      struct shu_error *err) {
    int status = gguf_writer_copy_meta(writer, model);
    if (!status) status = gguf_writer_set_int(writer, "general.quantization_version", QUANTIZATION_VERSION);
    if (!status) status = gguf_writer_set_int(writer, "general.file_type", target->file_type);
    return status ? SHU_FAIL(err, status, "out of memory for metadata") : SHU_OK;
}

static uint64_t all_bytes(const struct model *model) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < model_tensor_count(model); i++) sum += tensor_bytes(&model_tensor_at(model, i)->view);
    return sum;
}

int model_quantize(const struct model *model, const char *out_path, const char *target_name, struct pool *pool,
                   struct progress *progress, struct shu_error *err) {
    const struct quantize_target *target = quantize_target_find(target_name);
    struct gguf_writer *writer = NULL;
    if (!target)
        return SHU_FAIL(err, SHU_E_USAGE, "unknown type \"%.40s\"; expected F32, F16, BF16, Q8_0 or Q4_K_M",
                        target_name);
    int status = gguf_writer_open(out_path, &writer, err);
    if (status) return status;
    if (progress) progress->total = all_bytes(model);
    status = write_meta(model, target, writer, err);
    if (!status) status = declare_all(model, target, writer, err);
    for (int64_t i = 0; !status && i < model_tensor_count(model); i++) {
        struct conversion job;
        const struct model_tensor *tensor = model_tensor_at(model, i);
        plan_tensor(model, tensor, quantize_choose(model, tensor, target_name), &job);
        status = convert_tensor(model, &job, writer, pool, progress, err);
    }
    if (!status) return gguf_writer_commit(writer, err);
    gguf_writer_abort(writer);
    return status;
}
