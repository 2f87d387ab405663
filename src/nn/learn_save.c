/* What a learner knows as a GGUF model. */
#include "nn/learner.h"

#include <string.h>

/* ------------------------------------------------------------- metadata of a new network */

static int set_int(struct gguf_writer *writer, const char *arch, const char *tail, int value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, tail);
    return gguf_writer_set_int(writer, key, (uint32_t)value);
}

static int set_float(struct gguf_writer *writer, const char *arch, const char *tail, double value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, tail);
    return gguf_writer_set_float(writer, key, (float)value);
}

/* The keys that decoder_config_read reads back. */
static int write_config(struct gguf_writer *writer, const struct decoder_config *config) {
    const char *arch = decoder_arch_name(config->arch);
    int status = gguf_writer_set_string(writer, "general.architecture", arch);
    const struct {
        const char *tail;
        int value;
    } sizes[] = {{"block_count", config->layers},
                 {"embedding_length", config->width},
                 {"attention.head_count", config->heads},
                 {"attention.head_count_kv", config->kv_heads},
                 {"attention.key_length", config->head_dim},
                 {"attention.value_length", config->head_dim},
                 {"feed_forward_length", config->ffn},
                 {"context_length", config->context},
                 {"rope.dimension_count", config->rot},
                 {"vocab_size", config->vocab}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && !status; i++)
        status = set_int(writer, arch, sizes[i].tail, sizes[i].value);
    if (!status) status = set_float(writer, arch, "attention.layer_norm_rms_epsilon", (double)config->norm_eps);
    if (!status) status = set_float(writer, arch, "rope.freq_base", config->rope_base);
    return status;
}

/* ------------------------------------------------------------------------------ tensors */

struct save_run {
    const struct learner *learner;
    const struct model *base; /* whose order of rows the tensors have; NULL: that of files */
    struct gguf_writer *writer;
    bool writing; /* else declaring */
    int status;
    struct shu_error *err;
};

static int save_values(const struct save_run *run, const struct graph_parameter *parameter) {
    struct adapter_order order = {0};
    size_t row_bytes = dtype_row_bytes(parameter->dtype, parameter->cols);
    const uint8_t *data = parameter->data;
    int status = SHU_OK;
    if (run->base) order = model_file_order(run->base, parameter->name, parameter->rows);
    if (!order.head) return gguf_writer_data(run->writer, data, row_bytes * (size_t)parameter->rows, run->err);
    for (int64_t row = 0; row < parameter->rows && !status; row++)
        status = gguf_writer_data(run->writer, data + (size_t)adapter_source_row(order, row) * row_bytes, row_bytes,
                                  run->err);
    return status;
}

static void save_one(struct save_run *run, const struct graph_parameter *parameter) {
    if (parameter == NULL || run->status) return;
    int64_t shape[4] = {parameter->cols, parameter->rows, 1, 1};
    if (run->writing)
        run->status = save_values(run, parameter);
    else if (gguf_writer_declare(run->writer, parameter->name, parameter->dtype, parameter->rows > 1 ? 2 : 1, shape))
        run->status = SHU_FAIL(run->err, SHU_E_NOMEM, "no memory for the list of tensors");
}

static int save_all(struct save_run *run) {
    const struct learner *learner = run->learner;
    save_one(run, learner->embedding);
    for (int slot = 0; slot < MODEL_SLOTS; slot++) save_one(run, learner->tensor[slot]);
    for (int layer = 0; layer < learner->config.layers; layer++)
        for (int slot = 0; slot < LAYER_SLOTS; slot++) save_one(run, learner->layers[layer].tensor[slot]);
    return run->status;
}

int learner_save(const struct learner *learner, const struct model *meta, const char *name, const char *path,
                 struct shu_error *err) {
    struct gguf_writer *writer;
    int status = gguf_writer_open(path, &writer, err);
    if (status) return status;
    struct save_run run = {.learner = learner, .base = learner->fresh ? NULL : meta, .writer = writer, .err = err};
    if (gguf_writer_copy_meta(writer, meta) || gguf_writer_set_string(writer, "general.name", name) ||
        (learner->fresh && write_config(writer, &learner->config)))
        status = SHU_FAIL(err, SHU_E_NOMEM, "no memory for the metadata of %s", path);
    if (!status) status = save_all(&run);
    run.writing = true;
    if (!status) status = save_all(&run);
    if (!status) return gguf_writer_commit(writer, err);
    gguf_writer_abort(writer);
    return status;
}
