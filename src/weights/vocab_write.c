/* A vocabulary as a GGUF without tensors. */
#include "weights/model.h"

/* Names that llama.cpp gives the cutting rules, and architectures whose vocabularies use them: a file must name one. */
static const struct {
    enum pretokenizer pre;
    const char *name, *arch;
} rules[] = {{PRE_GPT2, "gpt-2", "gpt2"}, {PRE_LLAMA3, "llama-bpe", "llama"}, {PRE_QWEN2, "qwen2", "qwen2"}};

static int set_id(struct gguf_writer *writer, const char *key, int32_t id) {
    return id < 0 ? SHU_OK : gguf_writer_set_int(writer, key, (uint32_t)id);
}

static int set_vocab(struct gguf_writer *writer, const struct vocab_spec *spec, const char *pre) {
    int status = gguf_writer_set_string(writer, "tokenizer.ggml.model", "gpt2");
    if (!status) status = gguf_writer_set_string(writer, "tokenizer.ggml.pre", pre);
    if (!status) status = gguf_writer_set_strings(writer, "tokenizer.ggml.tokens", spec->tokens, spec->count);
    if (!status && spec->types)
        status = gguf_writer_set_ints(writer, "tokenizer.ggml.token_type", spec->types, spec->count);
    if (!status) status = gguf_writer_set_strings(writer, "tokenizer.ggml.merges", spec->merges, spec->merge_count);
    if (!status) status = set_id(writer, "tokenizer.ggml.bos_token_id", spec->bos);
    if (!status) status = set_id(writer, "tokenizer.ggml.eos_token_id", spec->eos);
    if (!status) status = set_id(writer, "tokenizer.ggml.padding_token_id", spec->pad);
    if (!status) status = gguf_writer_set_bool(writer, "tokenizer.ggml.add_bos_token", spec->add_bos);
    return status;
}

int model_write_vocab(const struct vocab_spec *spec, const char *chat_template, const char *path,
                      struct shu_error *err) {
    struct gguf_writer *writer = NULL;
    size_t rule = 0;
    while (rule < sizeof rules / sizeof *rules && rules[rule].pre != spec->pre) rule++;
    if (rule == sizeof rules / sizeof *rules || spec->model != VOCAB_BPE || spec->merge_count < 1)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "only byte-level BPE vocabularies with merges and a known pre-tokenizer are written");
    int status = gguf_writer_open(path, &writer, err);
    if (status) return status;
    status = gguf_writer_set_string(writer, "general.architecture", rules[rule].arch);
    if (!status) status = gguf_writer_set_string(writer, "general.type", "model");
    if (!status) status = gguf_writer_set_string(writer, "general.name", "vocabulary");
    if (!status) status = set_vocab(writer, spec, rules[rule].name);
    if (!status && chat_template) status = gguf_writer_set_string(writer, "tokenizer.chat_template", chat_template);
    if (!status) return gguf_writer_commit(writer, err);
    gguf_writer_abort(writer);
    return SHU_FAIL(err, status, "out of memory for a vocabulary of %d tokens", (int)spec->count);
}
