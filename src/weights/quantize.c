/* Writing a model in other number formats: rows are decoded to f32 and encoded
 * again, slab by slab, so that memory does not grow with the model. Models from
 * safetensors folders become proper GGUF on the way (see source_row). */
#include "weights/quantize.h"
#include "weights/lora.h"

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
    struct adapter_order order; /* of the tensor's rows in the file */
    const struct row_change *change;
    bool changed;         /* `change` touches this tensor */
    int64_t first, count; /* rows of the current slab */
    int64_t rows_per_tile;
    float *scratch; /* [threads, cols] */
    uint8_t *out;   /* [slab rows, to_row_bytes] */
};

static void convert_row(const struct conversion *job, int64_t row, float *values, uint8_t *out) {
    const struct tensor *view = &job->tensor->view;
    int64_t source = adapter_source_row(job->order, row);
    const uint8_t *from = (const uint8_t *)view->data + (size_t)source * job->from_row_bytes;
    bool plus_one = job->tensor->norm_plus_one;
    if (view->dtype == job->to && !plus_one && !job->changed) {
        memcpy(out, from, job->to_row_bytes);
        return;
    }
    dtype_table[view->dtype].to_f32(from, values, job->cols);
    if (plus_one)
        for (int64_t i = 0; i < job->cols; i++) values[i] += 1.0f;
    if (job->changed) job->change->add(job->change, job->tensor, source, values);
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

static bool is_changed(const struct row_change *change, const struct model_tensor *tensor) {
    return change && change->touches(change, tensor);
}

static void plan_tensor(const struct model *model, const struct model_tensor *tensor, enum dtype to,
                        const struct row_change *change, struct conversion *job) {
    *job = (struct conversion){.tensor = tensor, .to = to, .change = change, .changed = is_changed(change, tensor)};
    job->cols = tensor->view.shape[0];
    job->rows = tensor_rows(&tensor->view);
    job->order = model_file_order(model, tensor->name, job->rows);
    job->from_row_bytes = dtype_row_bytes(tensor->view.dtype, job->cols);
    job->to_row_bytes = dtype_row_bytes(to, job->cols);
}

static int declare_all(const struct model *model, const struct quantize_target *target, const struct row_change *change,
                       struct gguf_writer *writer, struct shu_error *err) {
    for (int64_t i = 0; i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        enum dtype to = quantize_choose(model, tensor, target->name);
        bool changes = to != tensor->view.dtype || tensor->norm_plus_one || is_changed(change, tensor);
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

int model_convert(const struct model *model, const char *out_path, const char *target_name,
                  const struct row_change *change, struct pool *pool, struct progress *progress,
                  struct shu_error *err) {
    const struct quantize_target *target = quantize_target_find(target_name);
    struct gguf_writer *writer = NULL;
    if (!target)
        return SHU_FAIL(err, SHU_E_USAGE, "unknown type \"%.40s\"; expected F32, F16, BF16, Q8_0 or Q4_K_M",
                        target_name);
    int status = gguf_writer_open(out_path, &writer, err);
    if (status) return status;
    if (progress) progress->total = all_bytes(model);
    status = write_meta(model, target, writer, err);
    if (!status) status = declare_all(model, target, change, writer, err);
    for (int64_t i = 0; !status && i < model_tensor_count(model); i++) {
        struct conversion job;
        const struct model_tensor *tensor = model_tensor_at(model, i);
        plan_tensor(model, tensor, quantize_choose(model, tensor, target_name), change, &job);
        status = convert_tensor(model, &job, writer, pool, progress, err);
    }
    if (!status) return gguf_writer_commit(writer, err);
    gguf_writer_abort(writer);
    return status;
}

int model_quantize(const struct model *model, const char *out_path, const char *target, struct pool *pool,
                   struct progress *progress, struct shu_error *err) {
    return model_convert(model, out_path, target, NULL, pool, progress, err);
}
