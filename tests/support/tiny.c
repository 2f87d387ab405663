/* Random little models; see tiny.h. */
#include "support/tiny.h"

#include "weights/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char template_chatml[] =
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/* "left right", spaces written as in the GPT-2 byte alphabet (U+0120). */
static const char *const merges[] = {
    "Ġ t", "h e", "Ġ a", "i n", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "Ġ w", "o r", "e n",  "Ġ c",  "i t",
    "e s", "i s", "a n", "Ġ o", "l l", "ä »", "ä ¸",   "æ Ī", "ç ļ", "1 2", "0 0", "Ġ Ġ", "in g", "Ġa n", "Ġan d",
};
static const char *const controls[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

#define MERGES     ((int)(sizeof merges / sizeof *merges))
#define CONTROLS   ((int)(sizeof controls / sizeof *controls))
#define TOKENS     (256 + MERGES + CONTROLS)
#define TOKEN_ROOM 16

int tiny_vocab_count(void) {
    return TOKENS;
}

void tiny_path(char out[TINY_PATH_BYTES], const char *suffix) {
    static int calls;
    const char *folder = getenv("TMPDIR");
    snprintf(out, TINY_PATH_BYTES, "%s/shu-test-%ld-%d%s", folder && *folder ? folder : "/tmp", (long)getpid(), calls++,
             suffix);
}

static bool is_gemma(const struct tiny_spec *spec) {
    return strncmp(spec->arch, "gemma", 5) == 0;
}

void tiny_defaults(const char *arch, struct tiny_spec *out) {
    bool gemma = strncmp(arch, "gemma", 5) == 0;
    *out = (struct tiny_spec){
        .arch = arch,
        .layers = 2,
        .width = 64,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 16,
        .ffn = 96,
        .context = 512,
        .window = gemma ? 8 : 0,
        .tied = gemma,
        .rope_base = 10000.0f,
        .gain = 1.0f,
        .dtype = DT_F32,
        .seed = 1,
    };
}

/* ------------------------------------------------------------- vocabulary */

/* Character that stands for a byte in the GPT-2 alphabet. */
static uint32_t byte_char(int byte) {
    if ((byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE) return (uint32_t)byte;
    int skipped = byte <= 0x20 ? byte : byte <= 0xA0 ? byte - 0x7F + 0x21 : 0x21 + 0x22;
    return 256u + (uint32_t)skipped;
}

static void fill_tokens(char text[TOKENS][TOKEN_ROOM], struct span *spans, int32_t *types) {
    for (int i = 0; i < TOKENS; i++) {
        int bytes;
        if (i < 256) {
            bytes = utf8_encode(byte_char(i), text[i]);
        } else if (i < 256 + MERGES) {
            const char *left = merges[i - 256], *space = strchr(left, ' ');
            bytes = snprintf(text[i], TOKEN_ROOM, "%.*s%s", (int)(space - left), left, space + 1);
        } else {
            bytes = snprintf(text[i], TOKEN_ROOM, "%s", controls[i - 256 - MERGES]);
        }
        spans[i] = (struct span){text[i], (uint32_t)bytes};
        types[i] = i < 256 + MERGES ? TOKEN_NORMAL : TOKEN_CONTROL;
    }
}

static int write_vocab(struct gguf_writer *writer, const struct tiny_spec *spec) {
    static char text[TOKENS][TOKEN_ROOM];
    struct span tokens[TOKENS], pairs[MERGES];
    int32_t types[TOKENS];
    fill_tokens(text, tokens, types);
    for (int i = 0; i < MERGES; i++) pairs[i] = (struct span){merges[i], (uint32_t)strlen(merges[i])};
    const char *pre = strcmp(spec->arch, "llama") == 0 ? "llama-bpe" : "qwen2";
    int rc = gguf_writer_set_string(writer, "tokenizer.ggml.model", "gpt2");
    rc |= gguf_writer_set_string(writer, "tokenizer.ggml.pre", pre);
    rc |= gguf_writer_set_strings(writer, "tokenizer.ggml.tokens", tokens, TOKENS);
    rc |= gguf_writer_set_ints(writer, "tokenizer.ggml.token_type", types, TOKENS);
    rc |= gguf_writer_set_strings(writer, "tokenizer.ggml.merges", pairs, MERGES);
    rc |= gguf_writer_set_int(writer, "tokenizer.ggml.bos_token_id", TOKENS - 3);
    rc |= gguf_writer_set_int(writer, "tokenizer.ggml.eos_token_id", TOKENS - 1);
    rc |= gguf_writer_set_int(writer, "tokenizer.ggml.padding_token_id", TOKENS - 3);
    rc |= gguf_writer_set_bool(writer, "tokenizer.ggml.add_bos_token", false);
    rc |= gguf_writer_set_string(writer, "tokenizer.chat_template", template_chatml);
    return rc ? SHU_E_NOMEM : SHU_OK;
}

/* --------------------------------------------------------------- metadata */

static int set_arch_int(struct gguf_writer *writer, const struct tiny_spec *spec, const char *tail, int value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", spec->arch, tail);
    return gguf_writer_set_int(writer, key, (uint32_t)value);
}

static int set_arch_float(struct gguf_writer *writer, const struct tiny_spec *spec, const char *tail, float value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", spec->arch, tail);
    return gguf_writer_set_float(writer, key, value);
}

static int write_config(struct gguf_writer *writer, const struct tiny_spec *spec) {
    int rc = gguf_writer_set_string(writer, "general.architecture", spec->arch);
    rc |= gguf_writer_set_string(writer, "general.name", "tiny");
    rc |= set_arch_int(writer, spec, "context_length", spec->context);
    rc |= set_arch_int(writer, spec, "embedding_length", spec->width);
    rc |= set_arch_int(writer, spec, "block_count", spec->layers);
    rc |= set_arch_int(writer, spec, "feed_forward_length", spec->ffn);
    rc |= set_arch_int(writer, spec, "attention.head_count", spec->heads);
    rc |= set_arch_int(writer, spec, "attention.head_count_kv", spec->kv_heads);
    rc |= set_arch_int(writer, spec, "attention.key_length", spec->head_dim);
    rc |= set_arch_int(writer, spec, "attention.value_length", spec->head_dim);
    rc |= set_arch_int(writer, spec, "rope.dimension_count", spec->head_dim);
    rc |= set_arch_float(writer, spec, "rope.freq_base", spec->rope_base);
    rc |= set_arch_float(writer, spec, "attention.layer_norm_rms_epsilon", 1e-6f);
    rc |= set_arch_int(writer, spec, "vocab_size", TOKENS);
    if (spec->window) rc |= set_arch_int(writer, spec, "attention.sliding_window", spec->window);
    if (strcmp(spec->arch, "gemma2") == 0) {
        rc |= set_arch_float(writer, spec, "attn_logit_softcapping", 50.0f);
        rc |= set_arch_float(writer, spec, "final_logit_softcapping", 30.0f);
    }
    return rc ? SHU_E_NOMEM : SHU_OK;
}

/* ---------------------------------------------------------------- tensors */

/* One tensor: rows 0 = a vector. Vectors are drawn around `centre`. */
struct tiny_tensor {
    char name[64];
    int64_t cols, rows;
    float centre, spread;
};

typedef int tiny_visit(void *context, const struct tiny_tensor *tensor);

static int visit(tiny_visit *call, void *context, int layer, const char *name, int cols, int rows, float centre,
                 float spread) {
    struct tiny_tensor tensor = {.cols = cols, .rows = rows, .centre = centre, .spread = spread};
    if (layer < 0)
        snprintf(tensor.name, sizeof tensor.name, "%s", name);
    else
        snprintf(tensor.name, sizeof tensor.name, "blk.%d.%s", layer, name);
    return call(context, &tensor);
}

static int visit_layer(const struct tiny_spec *spec, int layer, tiny_visit *call, void *context) {
    int c = spec->width, q = spec->heads * spec->head_dim, kv = spec->kv_heads * spec->head_dim;
    bool bias = strcmp(spec->arch, "qwen2") == 0;
    bool head_norm = strcmp(spec->arch, "qwen3") == 0 || strcmp(spec->arch, "gemma3") == 0;
    float wide = spec->gain / sqrtf((float)c);
    int rc = visit(call, context, layer, "attn_norm.weight", c, 0, 1.0f, 0.2f);
    if (!rc) rc = visit(call, context, layer, "attn_q.weight", c, q, 0, wide);
    if (!rc) rc = visit(call, context, layer, "attn_k.weight", c, kv, 0, wide);
    if (!rc) rc = visit(call, context, layer, "attn_v.weight", c, kv, 0, wide);
    if (!rc && bias) rc = visit(call, context, layer, "attn_q.bias", q, 0, 0, 0.2f);
    if (!rc && bias) rc = visit(call, context, layer, "attn_k.bias", kv, 0, 0, 0.2f);
    if (!rc && bias) rc = visit(call, context, layer, "attn_v.bias", kv, 0, 0, 0.2f);
    if (!rc && head_norm) rc = visit(call, context, layer, "attn_q_norm.weight", spec->head_dim, 0, 1.0f, 0.2f);
    if (!rc && head_norm) rc = visit(call, context, layer, "attn_k_norm.weight", spec->head_dim, 0, 1.0f, 0.2f);
    if (!rc) rc = visit(call, context, layer, "attn_output.weight", q, c, 0, spec->gain / sqrtf((float)q));
    if (!rc && is_gemma(spec)) rc = visit(call, context, layer, "post_attention_norm.weight", c, 0, 1.0f, 0.2f);
    if (!rc) rc = visit(call, context, layer, "ffn_norm.weight", c, 0, 1.0f, 0.2f);
    if (!rc) rc = visit(call, context, layer, "ffn_gate.weight", c, spec->ffn, 0, wide);
    if (!rc) rc = visit(call, context, layer, "ffn_up.weight", c, spec->ffn, 0, wide);
    if (!rc) rc = visit(call, context, layer, "ffn_down.weight", spec->ffn, c, 0, spec->gain / sqrtf((float)spec->ffn));
    if (!rc && is_gemma(spec)) rc = visit(call, context, layer, "post_ffw_norm.weight", c, 0, 1.0f, 0.2f);
    return rc;
}

static int visit_all(const struct tiny_spec *spec, tiny_visit *call, void *context) {
    float wide = spec->gain / sqrtf((float)spec->width);
    int rc = visit(call, context, -1, "token_embd.weight", spec->width, TOKENS, 0, wide);
    for (int layer = 0; !rc && layer < spec->layers; layer++) rc = visit_layer(spec, layer, call, context);
    if (!rc) rc = visit(call, context, -1, "output_norm.weight", spec->width, 0, 1.0f, 0.2f);
    if (!rc && !spec->tied) rc = visit(call, context, -1, "output.weight", spec->width, TOKENS, 0, wide);
    return rc;
}

struct tiny_sink {
    struct gguf_writer *writer;
    enum dtype dtype;
    struct rng rng;
    struct shu_error *err;
};

static enum dtype sink_dtype(const struct tiny_sink *sink, const struct tiny_tensor *tensor) {
    if (!tensor->rows) return DT_F32;
    return dtype_row_bytes(sink->dtype, tensor->cols) ? sink->dtype : DT_F16;
}

static int sink_declare(void *context, const struct tiny_tensor *tensor) {
    struct tiny_sink *sink = context;
    int64_t shape[4] = {tensor->cols, tensor->rows ? tensor->rows : 1, 1, 1};
    return gguf_writer_declare(sink->writer, tensor->name, sink_dtype(sink, tensor), tensor->rows ? 2 : 1, shape);
}

static int sink_data(void *context, const struct tiny_tensor *tensor) {
    struct tiny_sink *sink = context;
    enum dtype dtype = sink_dtype(sink, tensor);
    size_t row_bytes = dtype_row_bytes(dtype, tensor->cols);
    float *row = mem_alloc((size_t)tensor->cols * sizeof *row);
    uint8_t *encoded = mem_alloc(row_bytes);
    int rc = row && encoded ? SHU_OK : SHU_FAIL(sink->err, SHU_E_NOMEM, "out of memory");
    for (int64_t r = 0; !rc && r < (tensor->rows ? tensor->rows : 1); r++) {
        for (int64_t c = 0; c < tensor->cols; c++) row[c] = tensor->centre + tensor->spread * rng_normal(&sink->rng);
        dtype_table[dtype].from_f32(row, NULL, encoded, tensor->cols);
        rc = gguf_writer_data(sink->writer, encoded, row_bytes, sink->err);
    }
    mem_free(row);
    mem_free(encoded);
    return rc;
}

int tiny_write(const char *path, const struct tiny_spec *spec, struct shu_error *err) {
    static const char *const known[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};
    struct tiny_sink sink = {.dtype = spec->dtype, .err = err};
    bool found = false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= strcmp(known[i], spec->arch) == 0;
    if (!dtype_table[spec->dtype].from_f32)
        return SHU_FAIL(err, SHU_E_USAGE, "%s is only read, not written", dtype_table[spec->dtype].name);
    if (!found) return SHU_FAIL(err, SHU_E_USAGE, "no tiny model of architecture \"%s\"", spec->arch);
    rng_seed(&sink.rng, spec->seed);
    int rc = gguf_writer_open(path, &sink.writer, err);
    if (rc) return rc;
    rc = write_config(sink.writer, spec);
    if (!rc) rc = write_vocab(sink.writer, spec);
    if (!rc) rc = visit_all(spec, sink_declare, &sink);
    if (rc) SHU_FAIL(err, rc, "the tiny model's header could not be collected");
    if (!rc) rc = visit_all(spec, sink_data, &sink);
    if (!rc) return gguf_writer_commit(sink.writer, err);
    gguf_writer_abort(sink.writer);
    return rc;
}
