/* Adapters: both file forms carry the same numbers, the order of rotary rows included; a wrong base or an odd file is
 * refused in one line; merged weights are W + w s B A. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/tiny.h"
#include "support/tiny_adapter.h"
#include "support/tiny_hf.h"
#include "weights/lora.h"

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        struct shu_error must = {0};                                                                                   \
        if (call) fail_msg("%s: %s (%s)", #call, must.message, must.where);                                            \
    } while (0)

static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};

/* A tiny base as GGUF and as folder, an adapter, and paths for its files. */
struct fixture {
    char gguf[TINY_PATH_BYTES], folder[TINY_PATH_BYTES], lora[TINY_PATH_BYTES], peft[TINY_PATH_BYTES];
    char out[TINY_PATH_BYTES];
    struct model *model, *hf;
    struct tiny_adapter made;
};

static void fixture_open(struct fixture *f, const char *arch, uint64_t seed) {
    struct tiny_spec spec;
    tiny_defaults(arch, &spec);
    spec.seed = seed;
    tiny_path(f->gguf, ".gguf");
    tiny_path(f->folder, ".hf");
    tiny_path(f->lora, ".lora.gguf");
    tiny_path(f->peft, ".peft");
    tiny_path(f->out, ".out.gguf");
    f->model = f->hf = NULL;
    MUST(tiny_write(f->gguf, &spec, &must));
    MUST(model_open(f->gguf, &f->model, &must));
    MUST(tiny_export_hf(f->model, f->folder, 1, DT_F32, &must));
    MUST(model_open(f->folder, &f->hf, &must));
    tiny_adapter_new(f->model, 5, seed + 100, &f->made);
}

static void remove_folder(const char *folder) {
    char path[TINY_PATH_BYTES + 64];
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors", "adapter.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void fixture_close(struct fixture *f) {
    tiny_adapter_free(&f->made);
    model_close(f->model);
    model_close(f->hf);
    unlink(f->gguf);
    unlink(f->lora);
    unlink(f->out);
    tiny_remove_hf(f->folder);
    remove_folder(f->peft);
}

static struct adapter *open_adapter(const char *path) {
    struct adapter *adapter = NULL;
    MUST(adapter_open(path, &adapter, &must));
    return adapter;
}

static void assert_refused(int rc, const struct shu_error *err, int code, const char *words) {
    if (rc != code) fail_msg("expected status %d, found %d: %s", code, rc, err->message);
    assert_int_equal(err->code, rc);
    assert_null(strchr(err->message, '\n'));
    if (!strstr(err->message, words)) fail_msg("\"%s\" does not mention \"%s\"", err->message, words);
}

/* ------------------------------------------------------------- round trips */

/* Rows of b in the order of the fixture's GGUF base. */
static void assert_same_pairs(const struct fixture *f, const struct adapter *adapter) {
    assert_int_equal(adapter_count(adapter), f->made.write.count);
    for (int i = 0; i < f->made.write.count; i++) {
        const struct adapter_pair *made = &f->made.pairs[i], *pair = adapter_find(adapter, made->name);
        if (!pair) fail_msg("%s is missing", made->name);
        assert_int_equal(pair->in, made->in);
        assert_int_equal(pair->out, made->out);
        assert_int_equal(pair->rank, made->rank);
        assert_memory_equal(pair->a, made->a, (size_t)(pair->in * pair->rank) * sizeof *pair->a);
        struct adapter_order order = adapter_order(adapter, f->model, pair);
        for (int64_t row = 0; row < pair->out; row++)
            assert_memory_equal(pair->b + adapter_source_row(order, row) * pair->rank, made->b + row * pair->rank,
                                (size_t)pair->rank * sizeof *pair->b);
    }
}

static void test_round_trips(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        struct fixture f;
        fixture_open(&f, archs[i], 1);
        f.made.write.alpha = 10;
        MUST(adapter_write_gguf(&f.made.write, f.lora, &must));
        MUST(adapter_write_peft(&f.made.write, f.peft, &must));
        const char *paths[] = {f.lora, f.peft};
        for (int form = 0; form < 2; form++) {
            struct adapter *adapter = open_adapter(paths[form]);
            assert_true(adapter_scale(adapter) == 2.0F);
            assert_string_equal(adapter_path(adapter), paths[form]);
            assert_null(adapter_find(adapter, "blk.0.attn_norm.weight"));
            MUST(adapter_check(adapter, f.model, &must));
            assert_same_pairs(&f, adapter);
            adapter_close(adapter);
        }
        fixture_close(&f);
    }
}

/* In the file itself: PEFT's rows of llama's q are halves, those of other matrices and architectures as in GGUF. */
static void test_peft_rows_stand_in_halves(void **state) {
    (void)state;
    for (int llama = 0; llama < 2; llama++) {
        struct fixture f;
        fixture_open(&f, llama ? "llama" : "qwen2", 1);
        MUST(adapter_write_peft(&f.made.write, f.peft, &must));
        struct adapter *adapter = open_adapter(f.peft);
        const struct adapter_pair *q = adapter_find(adapter, "blk.0.attn_q.weight"), *made = NULL;
        for (int i = 0; i < f.made.write.count; i++)
            if (strcmp(f.made.pairs[i].name, q->name) == 0) made = &f.made.pairs[i];
        /* head_dim 16: interleaved row 3 is the second of pair 1, thus row 8 + 1 of the halves */
        int file_row = llama ? 16 + 8 + 1 : 16 + 3;
        assert_memory_equal(q->b + file_row * q->rank, made->b + (16 + 3) * q->rank, (size_t)q->rank * sizeof *q->b);
        assert_true(memcmp(q->b + (llama ? 16 + 3 : 16 + 9) * q->rank, made->b + (16 + 3) * q->rank,
                           (size_t)q->rank * sizeof *q->b) != 0);
        adapter_close(adapter);
        fixture_close(&f);
    }
}

static void test_rank_stabilised(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "qwen2", 1);
    f.made.write.alpha = 3;
    f.made.write.rank_stabilised = true;
    MUST(adapter_write_gguf(&f.made.write, f.lora, &must));
    MUST(adapter_write_peft(&f.made.write, f.peft, &must));
    struct adapter *gguf = open_adapter(f.lora), *peft = open_adapter(f.peft);
    assert_true(fabs((double)adapter_scale(gguf) - 3 / sqrt(5)) < 1e-6);
    assert_true(fabs((double)adapter_scale(peft) - 3 / sqrt(5)) < 1e-6);
    adapter_close(gguf);
    adapter_close(peft);
    fixture_close(&f);
}

/* A run's folder holds adapter.gguf. */
static void test_folder_of_a_run(void **state) {
    (void)state;
    struct fixture f;
    struct shu_error err = {0};
    struct adapter *adapter = NULL;
    char path[TINY_PATH_BYTES + 64];
    fixture_open(&f, "qwen2", 1);
    MUST(dir_make(f.peft, &must));
    assert_refused(adapter_open(f.peft, &adapter, &err), &err, SHU_E_NOTFOUND, "adapter_config.json");
    snprintf(path, sizeof path, "%s/adapter.gguf", f.peft);
    MUST(adapter_write_gguf(&f.made.write, path, &must));
    adapter = open_adapter(f.peft);
    assert_same_pairs(&f, adapter);
    adapter_close(adapter);
    fixture_close(&f);
}

/* -------------------------------------------------------------------- bases */

static void test_wrong_base_is_refused_naming_both(void **state) {
    (void)state;
    struct fixture f, other, foreign;
    struct shu_error err = {0};
    fixture_open(&f, "qwen2", 1);
    fixture_open(&other, "qwen2", 2);
    fixture_open(&foreign, "qwen3", 1);
    MUST(adapter_write_gguf(&f.made.write, f.lora, &must));
    MUST(adapter_write_peft(&f.made.write, f.peft, &must));
    const char *paths[] = {f.lora, f.peft};
    for (int form = 0; form < 2; form++) {
        struct adapter *adapter = open_adapter(paths[form]);
        MUST(adapter_check(adapter, f.model, &must));
        int rc = adapter_check(adapter, other.model, &err);
        assert_refused(rc, &err, SHU_E_UNSUPPORTED, "tiny base");
        assert_refused(rc, &err, SHU_E_UNSUPPORTED, other.gguf);
        assert_refused(rc, &err, SHU_E_UNSUPPORTED, paths[form]);
        rc = adapter_check(adapter, foreign.model, &err); /* same shapes, another architecture */
        assert_refused(rc, &err, SHU_E_UNSUPPORTED, foreign.gguf);
        adapter_close(adapter);
    }
    fixture_close(&f);
    fixture_close(&other);
    fixture_close(&foreign);
}

static void test_fingerprint(void **state) {
    (void)state;
    struct fixture f;
    char one[65], two[65];
    struct model *copy = NULL;
    struct pool *pool = NULL;
    fixture_open(&f, "qwen2", 1);
    MUST(adapter_base_fingerprint(f.model, one, &must));
    MUST(pool_new(1, &pool, &must));
    MUST(model_quantize(f.model, f.out, "F32", pool, NULL, &must));
    MUST(model_open(f.out, &copy, &must));
    MUST(adapter_base_fingerprint(copy, two, &must));
    assert_string_equal(one, two);
    model_close(copy);
    MUST(model_quantize(f.model, f.out, "F16", pool, NULL, &must));
    MUST(model_open(f.out, &copy, &must));
    MUST(adapter_base_fingerprint(copy, two, &must));
    assert_string_not_equal(one, two);
    model_close(copy);
    pool_free(pool);
    fixture_close(&f);
}

/* ------------------------------------------------------------------ hostile */

static const char good_config[] = "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4}";

/* A safetensors file with one pair [3 -> 4] of rank 2 under the given module name. */
static void peft_file(struct buf *out, const char *module, const char *tail_a, const char *tail_b, float value) {
    char header[512];
    int n = snprintf(header, sizeof header,
                     "{\"%s%s\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                     "\"%s%s\":{\"dtype\":\"F32\",\"shape\":[4,2],\"data_offsets\":[24,56]}}",
                     module, tail_a, module, tail_b);
    uint64_t bytes = (uint64_t)n;
    float data[14];
    for (int i = 0; i < 14; i++) data[i] = value;
    buf_clear(out);
    assert_int_equal(buf_append(out, &bytes, sizeof bytes), 0);
    assert_int_equal(buf_append(out, header, bytes), 0);
    assert_int_equal(buf_append(out, data, sizeof data), 0);
}

/* Reads from exactly sized memory, so that AddressSanitizer sees the first byte too many. */
static int read_peft(const char *config, const struct buf *file, struct adapter *adapter, struct shu_error *err) {
    uint8_t *exact = malloc(file->len + 1);
    struct span text = {config, (uint32_t)strlen(config)};
    *adapter = (struct adapter){0};
    arena_init(&adapter->arena, 1 << 20);
    if (file->len) memcpy(exact, file->data, file->len);
    int rc = lora_read_peft(adapter, text, exact, file->len, err);
    free(exact);
    return rc;
}

#define Q "base_model.model.model.layers.0.self_attn.q_proj"
#define A ".lora_A.weight"
#define B ".lora_B.weight"

static void test_peft_configurations(void **state) {
    (void)state;
    static const struct {
        const char *config, *words; /* NULL: read */
        double scale;
    } cases[] = {
        {good_config, NULL, 2},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"use_rslora\": true}", NULL, 2.8284271},
        {"{\"peft_type\": \"LORA\", \"r\": 8, \"lora_alpha\": 4, \"rank_pattern\": {\"q_proj\": 2}}", NULL, 2},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"alpha_pattern\": {\"0.self_attn.q_proj\": 7}}", NULL,
         3.5},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"alpha_pattern\": {\"proj\": 7}}", NULL, 2},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"modules_to_save\": null, \"bias\": \"none\"}", NULL,
         2},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"alpha_pattern\": {\".*q\": 7}}", "regular", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 4}", "rank 2", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 0, \"lora_alpha\": 4}", "adapter_config.json: r ", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 1e99, \"lora_alpha\": 4}", "adapter_config.json: r ", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2}", "lora_alpha", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": \"4\"}", "lora_alpha", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1e300}", "lora_alpha", 0},
        {"{\"peft_type\": \"IA3\", \"r\": 2, \"lora_alpha\": 4}", "IA3", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"use_dora\": true}", "use_dora", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"bias\": \"all\"}", "bias", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"modules_to_save\": [\"lm_head\"]}",
         "modules_to_save", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"init_lora_weights\": \"pissa_niter_4\"}", "pissa",
         0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"shu_base_sha256\": \"12\"}", "SHA-256", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"use_rslora\": null, \"shu_base_sha256\": null, "
         "\"layers_to_transform\": null}",
         NULL, 2},
        {"{\"peft_type\": \"LORA\", \"lora_alpha\": 4}", "adapter_config.json: r ", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2.5, \"lora_alpha\": 4}", "adapter_config.json: r ", 0},
        {"{\"peft_type\": \"LORA\", \"r\": true, \"lora_alpha\": 4}", "adapter_config.json: r ", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 0}", "adapter_config.json: lora_alpha", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": -4}", "adapter_config.json: lora_alpha", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"use_rslora\": \"true\"}",
         "adapter_config.json: use_rslora", 0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"use_rslora\": 1}", "adapter_config.json: use_rslora",
         0},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"shu_base_sha256\": 12}",
         "adapter_config.json: shu_base_sha256", 0},
        {"[]", "object", 0},
        {"{", "JSON", 0},
    };
    struct buf file = {0};
    peft_file(&file, Q, A, B, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shu_error err = {0};
        struct adapter adapter;
        int rc = read_peft(cases[i].config, &file, &adapter, &err);
        if (cases[i].words) {
            assert_refused(rc, &err, rc ? rc : SHU_E_FORMAT, cases[i].words);
        } else {
            if (rc) fail_msg("%s: %s", cases[i].config, err.message);
            assert_true(fabs((double)adapter.scale - cases[i].scale) < 1e-6);
        }
        lora_clear(&adapter);
    }
    buf_free(&file);
}

static void test_peft_tensors(void **state) {
    (void)state;
    static const struct {
        const char *module, *a, *b, *words;
        float value;
    } cases[] = {
        {Q, A, A "x", "lora_A", 1},
        {Q, A, ".lora_B.bias", "lora_B", 1},
        {Q, A, ".lora_magnitude_vector", "magnitude", 1},
        {"base_model.model.model.layers.0.input_layernorm", A, B, "layernorm", 1},
        {"base_model.model.model.layers.0.self_attn.qkv_proj", A, B, "qkv_proj", 1},
        {"base_model.model.model.embed_tokens", A, B, "embed", 1},
        {"model.layers.0.self_attn.q_proj", A, B, "q_proj", 1},
        {"base_model.model.model.layers.999999.self_attn.q_proj", A, B, "999999", 1},
        {Q, B, A, "rank", 1}, /* exchanged: the ranks are 3 and 4 */
        {Q, A, B, "finite", INFINITY},
    };
    struct buf file = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shu_error err = {0};
        struct adapter adapter;
        peft_file(&file, cases[i].module, cases[i].a, cases[i].b, cases[i].value);
        int rc = read_peft(good_config, &file, &adapter, &err);
        assert_refused(rc, &err, rc ? rc : SHU_E_FORMAT, cases[i].words);
        lora_clear(&adapter);
    }
    buf_free(&file);
}

/* Every prefix of a PEFT file is refused with one line. */
static void test_peft_cut_short(void **state) {
    (void)state;
    struct buf file = {0};
    peft_file(&file, Q, A, B, 1);
    for (size_t bytes = 0; bytes < file.len; bytes++) {
        struct shu_error err = {0};
        struct adapter adapter;
        struct buf cut = file;
        cut.len = bytes;
        int rc = read_peft(good_config, &cut, &adapter, &err);
        assert_int_not_equal(rc, 0);
        assert_int_equal(rc, err.code);
        assert_null(strchr(err.message, '\n'));
        lora_clear(&adapter);
    }
    buf_free(&file);
}

/* A GGUF adapter made by hand: two tensors and some keys that can be wrong. */
struct gguf_case {
    const char *type, *kind, *arch, *digest, *a_name, *b_name;
    float alpha;
    int64_t a_shape[2], b_shape[2];
    float value;
    const char *words; /* NULL: read */
    double scale;
};

static void write_case(const struct gguf_case *c, const char *path) {
    struct gguf_writer *writer = NULL;
    float data[64];
    MUST(gguf_writer_open(path, &writer, &must));
    if (c->type) assert_int_equal(gguf_writer_set_string(writer, "general.type", c->type), 0);
    if (c->kind) assert_int_equal(gguf_writer_set_string(writer, "adapter.type", c->kind), 0);
    if (c->arch) assert_int_equal(gguf_writer_set_string(writer, "general.architecture", c->arch), 0);
    if (c->digest) assert_int_equal(gguf_writer_set_string(writer, "shu.base.sha256", c->digest), 0);
    if (c->alpha != 0) assert_int_equal(gguf_writer_set_float(writer, "adapter.lora.alpha", c->alpha), 0);
    int64_t a[4] = {c->a_shape[0], c->a_shape[1], 1, 1}, b[4] = {c->b_shape[0], c->b_shape[1], 1, 1};
    if (c->a_name) assert_int_equal(gguf_writer_declare(writer, c->a_name, DT_F32, 2, a), 0);
    if (c->b_name) assert_int_equal(gguf_writer_declare(writer, c->b_name, DT_F32, 2, b), 0);
    for (int i = 0; i < 64; i++) data[i] = c->value;
    if (c->a_name) MUST(gguf_writer_data(writer, data, (size_t)(a[0] * a[1]) * sizeof *data, &must));
    if (c->b_name) MUST(gguf_writer_data(writer, data, (size_t)(b[0] * b[1]) * sizeof *data, &must));
    MUST(gguf_writer_commit(writer, &must));
}

#define GOOD_KEYS   .type = "adapter", .kind = "lora", .arch = "qwen2"
#define GOOD_SHAPES .a_shape = {3, 2}, .b_shape = {2, 4}
#define QA          "blk.0.attn_q.weight.lora_a"
#define QB          "blk.0.attn_q.weight.lora_b"

static void test_gguf_cases(void **state) {
    (void)state;
    static const struct gguf_case cases[] = {
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .b_name = QB, .alpha = 8, .scale = 4},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .b_name = QB, .scale = 1}, /* no alpha */
        {GOOD_SHAPES, .kind = "lora", .arch = "qwen2", .a_name = QA, .b_name = QB, .words = "general.type"},
        {GOOD_SHAPES, .type = "model", .kind = "lora", .arch = "qwen2", .a_name = QA, .b_name = QB, .words = "model"},
        {GOOD_SHAPES, .type = "adapter", .kind = "cvec", .arch = "qwen2", .a_name = QA, .b_name = QB, .words = "cvec"},
        {GOOD_SHAPES, .type = "adapter", .kind = "lora", .a_name = QA, .b_name = QB, .words = "general.architecture"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .b_name = QB, .digest = "xyz", .words = "shu.base.sha256"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .b_name = QB, .alpha = INFINITY, .words = "alpha"},
        {GOOD_KEYS, .words = "no tensors"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .words = "only one"},
        {GOOD_KEYS, GOOD_SHAPES, .b_name = QB, .words = "only one"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .b_name = "blk.1.attn_q.weight.lora_b", .words = "only one"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = "blk.0.attn_norm.weight", .b_name = QB, .words = "attn_norm"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = ".lora_a", .b_name = QB, .words = ".lora_a"},
        {GOOD_KEYS, .a_shape = {3, 2}, .b_shape = {3, 4}, .a_name = QA, .b_name = QB, .words = "rank"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = "token_embd.weight.lora_a", .b_name = "token_embd.weight.lora_b",
         .words = "embedding"},
        {GOOD_KEYS, GOOD_SHAPES, .a_name = QA, .b_name = QB, .value = NAN, .words = "finite"},
    };
    char path[TINY_PATH_BYTES];
    tiny_path(path, ".lora.gguf");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shu_error err = {0};
        struct adapter *adapter = NULL;
        write_case(&cases[i], path);
        int rc = adapter_open(path, &adapter, &err);
        if (cases[i].words) {
            assert_refused(rc, &err, rc ? rc : SHU_E_FORMAT, cases[i].words);
            assert_refused(rc, &err, rc, path);
            assert_null(adapter);
        } else {
            if (rc) fail_msg("case %zu: %s", i, err.message);
            assert_true(fabs((double)adapter_scale(adapter) - cases[i].scale) < 1e-6);
            adapter_close(adapter);
        }
    }
    unlink(path);
}

/* Pairs of other rank share one scale; the rest is in their b. */
static void test_mixed_ranks(void **state) {
    (void)state;
    struct buf file = {0};
    struct adapter adapter;
    float a[6], b[8], wide_a[12], wide_b[16];
    char header[1024];
    struct shu_error err = {0};
    int n = snprintf(header, sizeof header,
                     "{\"%s\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                     "\"%s\":{\"dtype\":\"F32\",\"shape\":[4,2],\"data_offsets\":[24,56]},"
                     "\"%s\":{\"dtype\":\"F32\",\"shape\":[4,3],\"data_offsets\":[56,104]},"
                     "\"%s\":{\"dtype\":\"F32\",\"shape\":[4,4],\"data_offsets\":[104,168]}}",
                     Q A, Q B, "base_model.model.model.layers.0.mlp.up_proj" A,
                     "base_model.model.model.layers.0.mlp.up_proj" B);
    uint64_t bytes = (uint64_t)n;
    for (int i = 0; i < 6; i++) a[i] = 1;
    for (int i = 0; i < 8; i++) b[i] = 2;
    for (int i = 0; i < 12; i++) wide_a[i] = 3;
    for (int i = 0; i < 16; i++) wide_b[i] = 4;
    assert_int_equal(buf_append(&file, &bytes, sizeof bytes) | buf_append(&file, header, bytes) |
                         buf_append(&file, a, sizeof a) | buf_append(&file, b, sizeof b) |
                         buf_append(&file, wide_a, sizeof wide_a) | buf_append(&file, wide_b, sizeof wide_b),
                     0);
    int rc = read_peft("{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"rank_pattern\": {\"up_proj\": 4}}",
                       &file, &adapter, &err);
    if (rc) fail_msg("%s", err.message);
    assert_true(adapter.scale == 2.0F); /* 4 / 2 */
    assert_true(adapter_find(&adapter, "blk.0.attn_q.weight")->b[0] == 2.0F);
    assert_true(adapter_find(&adapter, "blk.0.ffn_up.weight")->b[0] == 2.0F); /* 4 * (4 / 4) / 2 */
    assert_true(adapter_find(&adapter, "blk.0.ffn_up.weight")->a[0] == 3.0F);
    lora_clear(&adapter);
    buf_free(&file);
}

/* ------------------------------------------------------------------- merging */

static void merge(const struct model *base, const char *const *paths, const float *weights, int count, const char *out,
                  const char *target) {
    struct adapter *adapters[4];
    struct pool *pool = NULL;
    for (int i = 0; i < count; i++) adapters[i] = open_adapter(paths[i]);
    MUST(pool_new(2, &pool, &must));
    MUST(model_merge(base, (const struct adapter *const *)adapters, weights, count, out, target, pool, NULL, &must));
    for (int i = 0; i < count; i++) adapter_close(adapters[i]);
    pool_free(pool);
}

/* W + sum of w s B A in double, for one value. */
static double expected(const struct fixture *f, const struct fixture *second, const float *weights, const char *name,
                       int64_t row, int64_t col) {
    const struct model_tensor *tensor = model_tensor_find(f->model, name);
    double sum = ((const float *)tensor->view.data)[row * tensor->view.shape[0] + col];
    const struct tiny_adapter *made[] = {&f->made, &second->made};
    for (int i = 0; i < 2; i++)
        for (int p = 0; p < made[i]->write.count; p++) {
            const struct adapter_pair *pair = &made[i]->pairs[p];
            if (strcmp(pair->name, name) != 0) continue;
            double scale = made[i]->write.alpha / pair->rank * (double)weights[i];
            for (int k = 0; k < pair->rank; k++)
                sum += scale * (double)pair->b[row * pair->rank + k] * (double)pair->a[k * pair->in + col];
        }
    return sum;
}

static void test_merge_adds(void **state) {
    (void)state;
    for (size_t a = 0; a < sizeof archs / sizeof *archs; a++) {
        struct fixture f, second;
        static const float weights[] = {1, -0.5F};
        struct model *merged = NULL;
        fixture_open(&f, archs[a], 1);
        fixture_open(&second, archs[a], 1); /* the same base, other numbers */
        tiny_adapter_free(&second.made);
        tiny_adapter_new(second.model, 3, 77, &second.made);
        f.made.write.alpha = 15;
        MUST(adapter_write_peft(&f.made.write, f.peft, &must));
        MUST(adapter_write_gguf(&second.made.write, second.lora, &must));
        merge(f.model, (const char *const[]){f.peft, second.lora}, weights, 2, f.out, "F32");
        MUST(model_open(f.out, &merged, &must));
        assert_int_equal(model_tensor_count(merged), model_tensor_count(f.model));
        for (int64_t i = 0; i < model_tensor_count(merged); i++) {
            const struct model_tensor *tensor = model_tensor_at(merged, i);
            assert_int_equal(tensor->view.dtype, DT_F32);
            for (int64_t row = 0; row < tensor_rows(&tensor->view); row += 7)
                for (int64_t col = 0; col < tensor->view.shape[0]; col += 5) {
                    double want = expected(&f, &second, weights, tensor->name, row, col);
                    double found = ((const float *)tensor->view.data)[row * tensor->view.shape[0] + col];
                    if (!(fabs(found - want) <= 1e-6 * (1 + fabs(want))))
                        fail_msg("%s %s[%d][%d]: %g, expected %g", archs[a], tensor->name, (int)row, (int)col, found,
                                 want);
                }
        }
        model_close(merged);
        fixture_close(&f);
        fixture_close(&second);
    }
}

/* Folder and GGUF of one model, PEFT and GGUF form of one adapter: one merged file. The folder's rows come from
 * another implementation of the exchange (tiny_hf), so an order that is wrong twice over would show. */
static void test_merge_is_the_same_from_all_forms(void **state) {
    (void)state;
    for (size_t a = 0; a < 2; a++) {
        struct fixture f;
        static const float one[] = {1};
        struct buf first = {0}, again = {0};
        char nameless[TINY_PATH_BYTES + 64];
        fixture_open(&f, archs[a], 1);
        MUST(adapter_write_gguf(&f.made.write, f.lora, &must));
        MUST(adapter_write_peft(&f.made.write, f.peft, &must));
        /* The folder is another file than the GGUF: let the adapter name no base. */
        snprintf(nameless, sizeof nameless, "%s/adapter_config.json", f.peft);
        struct atomic_file file;
        static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 5, \"lora_alpha\": 5}";
        MUST(atomic_open(nameless, &file, &must));
        MUST(atomic_write(&file, config, sizeof config - 1, &must));
        MUST(atomic_commit(&file, &must));
        struct model *merged[2] = {NULL, NULL};
        merge(f.model, (const char *const[]){f.lora}, one, 1, f.out, "F32");
        MUST(file_read(f.out, 1 << 28, &first, &must));
        merge(f.model, (const char *const[]){f.peft}, one, 1, f.out, "F32");
        MUST(file_read(f.out, 1 << 28, &again, &must));
        assert_int_equal(first.len, again.len);
        assert_memory_equal(first.data, again.data, first.len);
        MUST(model_open(f.out, &merged[0], &must));
        merge(f.hf, (const char *const[]){f.peft}, one, 1, f.lora, "F32");
        MUST(model_open(f.lora, &merged[1], &must));
        for (int64_t i = 0; i < model_tensor_count(merged[0]); i++) {
            const struct model_tensor *tensor = model_tensor_at(merged[0], i);
            const struct model_tensor *same = model_tensor_find(merged[1], tensor->name);
            if (!same || memcmp(same->view.data, tensor->view.data, tensor_bytes(&tensor->view)) != 0)
                fail_msg("%s: %s differs", archs[a], tensor->name);
        }
        model_close(merged[0]);
        model_close(merged[1]);
        buf_free(&first);
        buf_free(&again);
        fixture_close(&f);
    }
}

static void test_merge_types_and_refusals(void **state) {
    (void)state;
    struct fixture f, other;
    static const float one[] = {1}, zero[] = {0}, nan[] = {NAN};
    static const char *const targets[] = {"F16", "BF16", "Q8_0", "Q4_K_M"};
    struct shu_error err = {0};
    struct model *merged = NULL;
    struct pool *pool = NULL;
    fixture_open(&f, "qwen2", 1);
    fixture_open(&other, "qwen2", 2);
    MUST(pool_new(1, &pool, &must));
    MUST(adapter_write_gguf(&f.made.write, f.lora, &must));
    const char *paths[] = {f.lora};
    for (size_t i = 0; i < 4; i++) {
        merge(f.model, paths, one, 1, f.out, targets[i]);
        MUST(model_open(f.out, &merged, &must));
        const struct model_tensor *tensor = model_tensor_find(merged, "blk.1.attn_q.weight");
        assert_int_equal(tensor->view.dtype,
                         quantize_choose(f.model, model_tensor_find(f.model, tensor->name), targets[i]));
        model_close(merged);
    }
    merge(f.model, paths, zero, 1, f.out, "F32"); /* weight 0: the base itself */
    MUST(model_open(f.out, &merged, &must));
    for (int64_t i = 0; i < model_tensor_count(merged); i++)
        assert_memory_equal(model_tensor_at(merged, i)->view.data, model_tensor_at(f.model, i)->view.data,
                            tensor_bytes(&model_tensor_at(merged, i)->view));
    model_close(merged);
    unlink(f.out);
    struct adapter *adapter = open_adapter(f.lora);
    const struct adapter *list[] = {adapter};
    assert_refused(model_merge(other.model, list, one, 1, f.out, "F32", pool, NULL, &err), &err, SHU_E_UNSUPPORTED,
                   "tiny base");
    assert_refused(model_merge(f.model, list, nan, 1, f.out, "F32", pool, NULL, &err), &err, SHU_E_USAGE, "finite");
    assert_refused(model_merge(f.model, list, one, 1, f.out, "Q3_K", pool, NULL, &err), &err, SHU_E_USAGE, "Q3_K");
    assert_false(file_exists(f.out));
    adapter_close(adapter);
    pool_free(pool);
    fixture_close(&f);
    fixture_close(&other);
}

static void test_writers_refuse(void **state) {
    (void)state;
    struct fixture f;
    struct shu_error err = {0};
    fixture_open(&f, "qwen2", 1);
    f.made.pairs[1].rank = 4;
    assert_refused(adapter_write_gguf(&f.made.write, f.lora, &err), &err, SHU_E_USAGE, "rank");
    f.made.pairs[1].rank = 5;
    f.made.pairs[1].out--;
    assert_refused(adapter_write_peft(&f.made.write, f.peft, &err), &err, SHU_E_USAGE, "fits no matrix");
    f.made.pairs[1].out++;
    f.made.write.count = 0;
    assert_refused(adapter_write_gguf(&f.made.write, f.lora, &err), &err, SHU_E_USAGE, "without pairs");
    assert_false(file_exists(f.lora));
    fixture_close(&f);
}

/* -------------------------------------------------------------------- faults */

static void open_faults(const char *path) {
    for (int kind = FAULT_ALLOC; kind <= FAULT_READ; kind++) {
        fault_arm((enum fault_kind)kind, 1000000);
        adapter_close(open_adapter(path));
        long operations = fault_count((enum fault_kind)kind);
#ifdef SHU_FAULTS
        assert_true(operations > 0);
#endif
        for (long k = 1; k <= operations; k++) {
            struct shu_error err = {0};
            struct adapter *adapter = NULL;
            fault_arm((enum fault_kind)kind, k);
            int rc = adapter_open(path, &adapter, &err);
            fault_arm((enum fault_kind)kind, 0);
            assert_int_not_equal(rc, 0);
            assert_int_equal(rc, err.code);
            assert_null(adapter);
        }
    }
}

/* A failed write leaves no file, or (the folder's flush after the rename) a whole one. */
static void write_faults(const struct fixture *f, bool peft) {
    const char *path = peft ? f->peft : f->lora;
    int (*write)(const struct adapter_write *, const char *, struct shu_error *) =
        peft ? adapter_write_peft : adapter_write_gguf;
    for (int kind = FAULT_ALLOC; kind <= FAULT_WRITE; kind += FAULT_WRITE - FAULT_ALLOC) {
        fault_arm((enum fault_kind)kind, 1000000);
        MUST(write(&f->made.write, path, &must));
        long operations = fault_count((enum fault_kind)kind);
        for (long k = 1; k <= operations; k += k < 60 ? 1 : 13) {
            struct shu_error err = {0};
            unlink(f->lora);
            remove_folder(f->peft);
            fault_arm((enum fault_kind)kind, k);
            int rc = write(&f->made.write, path, &err);
            fault_arm((enum fault_kind)kind, 0);
            if (rc) assert_int_equal(rc, err.code);
            char config[TINY_PATH_BYTES + 64];
            snprintf(config, sizeof config, "%s/adapter_config.json", f->peft);
            if (file_exists(peft ? config : path)) adapter_close(open_adapter(path));
        }
        unlink(f->lora);
        remove_folder(f->peft);
    }
}

static void test_faults(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, "llama", 1);
    MUST(adapter_write_gguf(&f.made.write, f.lora, &must));
    MUST(adapter_write_peft(&f.made.write, f.peft, &must));
    open_faults(f.lora);
    open_faults(f.peft);
    write_faults(&f, false);
    write_faults(&f, true);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_peft_rows_stand_in_halves),
        cmocka_unit_test(test_rank_stabilised),
        cmocka_unit_test(test_folder_of_a_run),
        cmocka_unit_test(test_wrong_base_is_refused_naming_both),
        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_peft_configurations),
        cmocka_unit_test(test_peft_tensors),
        cmocka_unit_test(test_peft_cut_short),
        cmocka_unit_test(test_gguf_cases),
        cmocka_unit_test(test_mixed_ranks),
        cmocka_unit_test(test_merge_adds),
        cmocka_unit_test(test_merge_is_the_same_from_all_forms),
        cmocka_unit_test(test_merge_types_and_refusals),
        cmocka_unit_test(test_writers_refuse),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
