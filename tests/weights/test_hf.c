/* Hugging Face folders: the same network as its GGUF, whatever the files and
 * types; hostile or strange folders give one error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/tiny.h"
#include "support/tiny_hf.h"
#include "weights/hf.h"

static const char *const archs[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};

struct pair {
    char gguf[TINY_PATH_BYTES], folder[TINY_PATH_BYTES], again[TINY_PATH_BYTES];
    struct model *original, *hf;
};

static void pair_open(struct pair *pair, const char *arch, int shards, enum dtype dtype) {
    struct shu_error err = {0};
    struct tiny_spec spec;
    tiny_defaults(arch, &spec);
    tiny_path(pair->gguf, ".gguf");
    tiny_path(pair->folder, ".hf");
    tiny_path(pair->again, ".again.gguf");
    pair->original = pair->hf = NULL;
    if (tiny_write(pair->gguf, &spec, &err) || model_open(pair->gguf, &pair->original, &err) ||
        tiny_export_hf(pair->original, pair->folder, shards, dtype, &err) || model_open(pair->folder, &pair->hf, &err))
        fail_msg("%s", err.message);
}

static void pair_close(struct pair *pair) {
    model_close(pair->original);
    model_close(pair->hf);
    unlink(pair->gguf);
    unlink(pair->again);
    tiny_remove_hf(pair->folder);
}

/* The same bytes, or within one rounding of the folder's type. */
static void assert_same_values(const struct model_tensor *a, const struct model_tensor *b, enum dtype dtype) {
    int64_t count = a->view.shape[0] * tensor_rows(&a->view);
    const float *left = a->view.data, *right = b->view.data;
    double scale = dtype == DT_F32 ? 2e-7 : dtype == DT_F16 ? 1.0 / 1024 : 1.0 / 128;
    assert_int_equal(b->view.dtype, DT_F32);
    assert_memory_equal(a->view.shape, b->view.shape, sizeof a->view.shape);
    for (int64_t i = 0; i < count; i++) {
        /* Gemma's norms lose up to a bit in w - 1 + 1. */
        double bound = scale * (fabs((double)left[i]) + 1);
        if (!(fabs((double)left[i] - (double)right[i]) <= bound))
            fail_msg("%s[%lld]: %g against %g", a->name, (long long)i, (double)left[i], (double)right[i]);
    }
}

/* folder -> GGUF of F32: names, shapes, values and the order of rows are those of the first GGUF. */
static void check_round_trip(const char *arch, int shards, enum dtype dtype) {
    struct pair pair;
    struct shu_error err = {0};
    struct pool *pool = NULL;
    struct model *again = NULL;
    pair_open(&pair, arch, shards, dtype);
    assert_int_equal(model_format(pair.hf), MODEL_SAFETENSORS);
    assert_int_equal(model_tensor_count(pair.hf), model_tensor_count(pair.original));
    assert_int_equal(pool_new(2, &pool, &err), 0);
    if (model_quantize(pair.hf, pair.again, "F32", pool, NULL, &err) || model_open(pair.again, &again, &err))
        fail_msg("%s", err.message);
    assert_false(meta_has(again, "shu.rope.neox"));
    for (int64_t i = 0; i < model_tensor_count(pair.original); i++) {
        const struct model_tensor *tensor = model_tensor_at(pair.original, i);
        const struct model_tensor *same = model_tensor_find(again, tensor->name);
        if (!same) fail_msg("%s is missing", tensor->name);
        assert_same_values(tensor, same, dtype);
    }
    model_close(again);
    pool_free(pool);
    pair_close(&pair);
}

static void test_round_trips(void **state) {
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        check_round_trip(archs[i], 1, DT_F32);
        check_round_trip(archs[i], 3, DT_BF16);
    }
    check_round_trip("qwen2", 2, DT_F16);
}

static bool same_strings(const struct model *a, const struct model *b, const char *key) {
    int64_t count = meta_array_count(a, key);
    if (count < 0 || count != meta_array_count(b, key)) return false;
    struct span *left = calloc((size_t)count, sizeof *left), *right = calloc((size_t)count, sizeof *right);
    bool same = meta_array_spans(a, key, left, count) && meta_array_spans(b, key, right, count);
    for (int64_t i = 0; same && i < count; i++)
        same = left[i].bytes == right[i].bytes && memcmp(left[i].text, right[i].text, left[i].bytes) == 0;
    free(left);
    free(right);
    return same;
}

/* Every number that the GGUF states, the folder's translation states too. */
static void test_metadata(void **state) {
    (void)state;
    static const char *const integers[] = {"context_length",       "embedding_length",        "block_count",
                                           "feed_forward_length",  "attention.head_count",    "attention.head_count_kv",
                                           "attention.key_length", "attention.value_length",  "rope.dimension_count",
                                           "vocab_size",           "attention.sliding_window"};
    static const char *const floats[] = {"rope.freq_base", "attention.layer_norm_rms_epsilon", "attn_logit_softcapping",
                                         "final_logit_softcapping"};
    for (size_t a = 0; a < 5; a++) {
        struct pair pair;
        char key[96];
        pair_open(&pair, archs[a], 1, DT_F32);
        for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
            int64_t left = -1, right = -1;
            snprintf(key, sizeof key, "%s.%s", archs[a], integers[i]);
            assert_int_equal(meta_int(pair.original, key, &left), meta_int(pair.hf, key, &right));
            assert_int_equal(left, right);
        }
        for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
            double left = -1, right = -1;
            snprintf(key, sizeof key, "%s.%s", archs[a], floats[i]);
            assert_int_equal(meta_float(pair.original, key, &left), meta_float(pair.hf, key, &right));
            assert_true(fabs(left - right) <= 1e-9 * fabs(left));
        }
        assert_true(same_strings(pair.original, pair.hf, "tokenizer.ggml.tokens"));
        assert_true(same_strings(pair.original, pair.hf, "tokenizer.ggml.merges"));
        assert_string_equal(model_chat_template(pair.original), model_chat_template(pair.hf));
        bool neox = false;
        assert_int_equal(meta_bool(pair.hf, "shu.rope.neox", &neox) && neox, strcmp(archs[a], "llama") == 0);
        bool gemma = strncmp(archs[a], "gemma", 5) == 0;
        assert_int_equal(model_tensor_find(pair.hf, "output_norm.weight")->norm_plus_one, gemma);
        assert_false(model_tensor_find(pair.hf, "token_embd.weight")->norm_plus_one);
        pair_close(&pair);
    }
}

static void test_tokenizers_agree(void **state) {
    (void)state;
    static const char text[] = "The cat's 12 hats \xE4\xBB\x80\xE4\xB9\x88?  <|im_start|>\n\tx\xFF";
    for (size_t a = 0; a < 2; a++) {
        struct pair pair;
        struct shu_error err = {0};
        struct tokenizer *tokenizer[2] = {NULL, NULL};
        struct tokens tokens[2] = {{0}, {0}};
        pair_open(&pair, archs[a], 1, DT_F32);
        for (int i = 0; i < 2; i++) {
            struct tokenizer_work *work = NULL;
            if (model_tokenizer(i ? pair.hf : pair.original, &tokenizer[i], &err) ||
                tokenizer_work_new(tokenizer[i], &work, &err) ||
                tokenizer_encode(tokenizer[i], work, text, sizeof text - 1, ENCODE_ADD_SPECIAL | ENCODE_PARSE_SPECIAL,
                                 &tokens[i], &err))
                fail_msg("%s", err.message);
            tokenizer_work_free(work);
        }
        assert_true(tokens[0].count > 10);
        assert_int_equal(tokens[0].count, tokens[1].count);
        assert_memory_equal(tokens[0].id, tokens[1].id, tokens[0].count * sizeof *tokens[0].id);
        assert_int_equal(tokenizer_eos(tokenizer[0]), tokenizer_eos(tokenizer[1]));
        for (int i = 0; i < 2; i++) {
            tokens_free(&tokens[i]);
            tokenizer_free(tokenizer[i]);
        }
        pair_close(&pair);
    }
}

/* -------------------------------------------------------------- translation */

static int translate(const char *config, const char *tokenizer, struct model *model, struct shu_error *err) {
    struct hf_texts texts = {
        {config, (uint32_t)strlen(config)}, {tokenizer, (uint32_t)strlen(tokenizer)}, {"", 0}, {"", 0}};
    struct hf_facts facts;
    *model = (struct model){0};
    arena_init(&model->arena, 1 << 26);
    return hf_translate(model, &texts, &facts, err);
}

static void translated_free(struct model *model) {
    arena_free(&model->arena);
    buf_free(&model->translated);
}

#define CONFIG_COMMON                                                                                                  \
    "\"hidden_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"intermediate_size\": 96, "           \
    "\"vocab_size\": 300"

/* Llama 3.1's published setting; expected numbers from the formula in transformers' modeling_rope_utils, in numpy. */
static void test_llama3_rope(void **state) {
    (void)state;
    struct model model;
    struct shu_error err = {0};
    int rc = translate(
        "{\"model_type\": \"llama\", \"hidden_size\": 4096, \"num_hidden_layers\": 2, \"num_attention_heads\": 32,"
        " \"intermediate_size\": 96, \"vocab_size\": 300, \"rope_theta\": 500000.0, \"rope_scaling\": {"
        "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
        "\"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}}",
        "", &model, &err);
    if (rc) fail_msg("%s", err.message);
    assert_int_equal(model.tensor_count, 1);
    assert_string_equal(model.tensors[0].name, "rope_freqs.weight");
    assert_int_equal(model.tensors[0].view.shape[0], 64);
    const float *factors = model.tensors[0].view.data;
    static const struct {
        int at;
        double value;
    } expected[] = {{0, 1.0}, {28, 1.0}, {29, 1.20748387}, {30, 1.55341463}, {34, 5.25732659}, {35, 8.0}, {63, 8.0}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (fabs((double)factors[expected[i].at] - expected[i].value) > 1e-5)
            fail_msg("factor %d is %.8f", expected[i].at, (double)factors[expected[i].at]);
    translated_free(&model);
}

static void test_configs(void **state) {
    (void)state;
    static const struct {
        const char *config, *words; /* NULL = accepted */
    } cases[] = {
        {"{\"model_type\": \"qwen2\", " CONFIG_COMMON "}", NULL},
        {"{\"model_type\": \"mistral\", \"sliding_window\": 4096, " CONFIG_COMMON "}", NULL},
        {"{\"model_type\": \"qwen2\", \"use_sliding_window\": false, \"sliding_window\": 9, " CONFIG_COMMON "}", NULL},
        {"{\"model_type\": \"gemma3_text\", \"sliding_window\": 512, \"layer_types\": [\"sliding_attention\", "
         "\"full_attention\"], " CONFIG_COMMON "}",
         NULL},
        {"{\"model_type\": \"gemma3_text\", \"sliding_window\": 512, \"layer_types\": [\"sliding_attention\", "
         "\"full_attention\", \"full_attention\"], " CONFIG_COMMON "}",
         "layer_types"},
        {"{\"model_type\": \"qwen2\", \"use_sliding_window\": true, \"sliding_window\": 9, " CONFIG_COMMON "}",
         "use_sliding_window"},
        {"{\"model_type\": \"qwen2\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}, " CONFIG_COMMON "}",
         "yarn"},
        {"{\"model_type\": \"qwen2\", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}, " CONFIG_COMMON "}",
         NULL},
        {"{\"model_type\": \"qwen2\", \"rope_scaling\": {\"type\": \"linear\", \"factor\": -4}, " CONFIG_COMMON "}",
         "factor"},
        {"{\"model_type\": \"bert\", " CONFIG_COMMON "}", "bert"},
        {"{" CONFIG_COMMON "}", "model_type"},
        {"{\"model_type\": \"llama\", \"hidden_act\": \"relu\", " CONFIG_COMMON "}", "relu"},
        {"{\"model_type\": \"llama\", \"attention_bias\": true, " CONFIG_COMMON "}", "attention_bias"},
        {"{\"model_type\": \"llama\", \"hidden_size\": 64}", "num_hidden_layers"},
        {"{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"intermediate_size\": 9, \"vocab_size\": 9, "
         "\"hidden_size\": 1e3}",
         "hidden_size"},
        {"{\"model_type\": \"llama\", \"num_hidden_layers\": -1}", "num_hidden_layers"},
        {"[]", "object"},
        {"{\"a\": 1, \"a\": 2}", "config.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model model;
        struct shu_error err = {0};
        int rc = translate(cases[i].config, "", &model, &err);
        if (!cases[i].words && rc) fail_msg("case %zu: %s", i, err.message);
        if (cases[i].words && !rc) fail_msg("case %zu was accepted", i);
        if (cases[i].words && !strstr(err.message, cases[i].words)) fail_msg("case %zu: %s", i, err.message);
        translated_free(&model);
    }
}

#define BPE_HEAD                                                                                                       \
    "{\"added_tokens\": [{\"id\": 7, \"content\": \"<s>\", \"special\": true}, {\"id\": 8, \"content\": "              \
    "\"\xE2\x96\x81\xE2\x96\x81\", \"special\": false}],"
#define BPE_MODEL                                                                                                      \
    "\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"unk_token\": \"<unk>\", \"vocab\": {\"<unk>\": 0, "     \
    "\"<0x0A>\": 1, \"a\": 2, \"b\": 3, \"ab\": 4, \"aba\": 5}, \"merges\": [\"a b\", \"ab a\"]}}"
#define BYTE_SPLIT(regex)                                                                                              \
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "  \
    "\"" regex "\"}, \"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\", \"use_regex\": false}]},"

static void test_tokenizers(void **state) {
    (void)state;
    static const char config[] = "{\"model_type\": \"llama\", " CONFIG_COMMON ", \"bos_token_id\": 7}";
    static const struct {
        const char *tokenizer, *words;
    } cases[] = {
        {BPE_HEAD "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": "
                  "\"\xE2\x96\x81\"}, {\"type\": "
                  "\"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xE2\x96\x81\"}]}," BPE_MODEL,
         NULL},
        {BPE_HEAD "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"prepend_scheme\": \"first\"}," BPE_MODEL, NULL},
        {BPE_HEAD "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}," BPE_MODEL, NULL},
        {BPE_HEAD "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true}," BPE_MODEL,
         "add_prefix_space"},
        {BPE_HEAD BYTE_SPLIT("\\\\p{N}{1,7}") BPE_MODEL, "\\p{N}{1,7}"},
        {BPE_HEAD "\"pre_tokenizer\": {\"type\": \"Digits\"}," BPE_MODEL, "Digits"},
        {BPE_HEAD "\"normalizer\": {\"type\": \"Lowercase\"}," BPE_MODEL, "Lowercase"},
        {"{\"model\": {\"type\": \"WordPiece\"}}", "WordPiece"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]}}", "byte_fallback"},
        {"{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 0}, \"merges\": []}}", "merges"},
        {"{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": [\"a "
         "b\"]}}",
         "share"},
        {"{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 300}, \"merges\": [\"a b\"]}}",
         "vocab_size"},
        {"{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": -1}, \"merges\": [\"a b\"]}}",
         "vocab_size"},
        {"{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 1}, \"merges\": [\"ab\"]}}",
         "pair"},
        {"{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 1}, \"merges\": [7]}}", "pair"},
        {"{\"model\": {\"type\": \"Unigram\", \"unk_id\": 0, \"vocab\": [[\"<unk>\", 0], [\"a\", -1.5]]}}", NULL},
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"<unk>\"]]}}", "pair"},
        {"{}", "model type"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model model;
        struct shu_error err = {0};
        int rc = translate(config, cases[i].tokenizer, &model, &err);
        if (!cases[i].words && rc) fail_msg("case %zu: %s", i, err.message);
        if (cases[i].words && !rc) fail_msg("case %zu was accepted", i);
        if (cases[i].words && !strstr(err.message, cases[i].words)) fail_msg("case %zu: %s", i, err.message);
        translated_free(&model);
    }
    /* The details of the first: scores from merge ranks, types by name, spaces of user-defined tokens. */
    struct model model;
    int32_t types[300];
    float scores[300];
    struct span tokens[300];
    bool prefix = false;
    int64_t bos = -1;
    assert_int_equal(translate(config, cases[0].tokenizer, &model, NULL), 0);
    assert_true(meta_array_ints(&model, "tokenizer.ggml.token_type", types, 300));
    assert_true(meta_array_floats(&model, "tokenizer.ggml.scores", scores, 300));
    assert_true(meta_array_spans(&model, "tokenizer.ggml.tokens", tokens, 300));
    assert_true(meta_bool(&model, "tokenizer.ggml.add_space_prefix", &prefix) && prefix);
    assert_true(meta_int(&model, "tokenizer.ggml.bos_token_id", &bos) && bos == 7);
    assert_int_equal(types[0], TOKEN_UNKNOWN);
    assert_int_equal(types[1], TOKEN_BYTE);
    assert_int_equal(types[4], TOKEN_NORMAL);
    assert_int_equal(types[7], TOKEN_CONTROL);
    assert_int_equal(types[8], TOKEN_USER_DEFINED);
    assert_int_equal(types[9], TOKEN_UNUSED);
    assert_true(scores[4] == 0.0f && scores[5] == -1.0f && scores[2] < -1e6f);
    assert_int_equal(tokens[8].bytes, 2);
    assert_memory_equal(tokens[8].text, "  ", 2);
    translated_free(&model);
}

/* ------------------------------------------------------------------- hostile */

static int count_tensors(void *context, const struct safetensor *tensor, struct shu_error *err) {
    (void)tensor, (void)err;
    ++*(int *)context;
    return SHU_OK;
}

static int parse_safetensors(const char *header, uint64_t stated, size_t data, int *count, struct shu_error *err) {
    size_t length = strlen(header), all = 8 + length + data;
    uint8_t *exact = calloc(1, all);
    assert_non_null(exact);
    memcpy(exact, &stated, 8);
    memcpy(exact + 8, header, length);
    *count = 0;
    int rc = safetensors_parse(exact, all, count_tensors, count, err);
    free(exact);
    return rc;
}

static void test_safetensors(void **state) {
    (void)state;
    static const struct {
        const char *header, *words;
    } cases[] = {
        {"{\"__metadata__\": {\"format\": \"pt\"}, \"a\": {\"dtype\": \"F32\", \"shape\": [2, 4], \"data_offsets\": "
         "[0, 32]}}",
         NULL},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2, 4], \"data_offsets\": [0, 64]}}", "elements"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2, 40], \"data_offsets\": [0, 320]}}", "outside"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [16, 8]}}", "outside"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [-8, 0]}}", "outside"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]}}", "shape"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, 8]}}", "shape"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1,1,1,1,2], \"data_offsets\": [0, 8]}}", "shape"},
        {"{\"a\": {\"dtype\": \"F99\", \"shape\": [2], \"data_offsets\": [0, 8]}}", "F99"},
        {"{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 8]}}", "shape"},
        {"{\"a\": 3}", "shape"},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0]}}", "outside"},
        {"[1]", "object"},
        {"{\"a\": ", "header"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct shu_error err = {0};
        int count, rc = parse_safetensors(cases[i].header, strlen(cases[i].header), 64, &count, &err);
        if (!cases[i].words && rc) fail_msg("case %zu: %s", i, err.message);
        if (!cases[i].words) assert_int_equal(count, 1);
        if (cases[i].words && !rc) fail_msg("case %zu was accepted", i);
        if (cases[i].words && !strstr(err.message, cases[i].words)) fail_msg("case %zu: %s", i, err.message);
    }
    static const uint64_t huge[] = {UINT64_MAX, UINT64_C(1) << 40, 1000, UINT64_MAX - 7};
    for (size_t i = 0; i < 4; i++) {
        int count;
        assert_int_equal(parse_safetensors("{}", huge[i], 8, &count, NULL), SHU_E_FORMAT);
    }
}

static void write_text(const char *folder, const char *name, const char *text) {
    char path[TINY_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void expect_folder_refused(const char *folder, const char *words) {
    struct shu_error err = {0};
    struct model *model = NULL;
    int rc = model_open(folder, &model, &err);
    if (!rc) fail_msg("accepted, though it should complain of %s", words);
    assert_null(model);
    if (!strstr(err.message, words)) fail_msg("\"%s\" does not mention \"%s\"", err.message, words);
}

static void test_bad_folders(void **state) {
    (void)state;
    struct pair pair;
    char shard[TINY_PATH_BYTES + 64];
    pair_open(&pair, "qwen2", 2, DT_F32);
    snprintf(shard, sizeof shard, "%s/model-00002-of-00002.safetensors", pair.folder);
    struct buf kept = {0};
    assert_int_equal(file_read(shard, 1 << 24, &kept, NULL), 0);
    assert_int_equal(truncate(shard, (off_t)kept.len - 5), 0);
    expect_folder_refused(pair.folder, "model-00002-of-00002");
    unlink(shard);
    expect_folder_refused(pair.folder, "no such file");
    write_text(pair.folder, "model.safetensors.index.json", "{\"weight_map\": {\"a\": \"../../etc/passwd\"}}");
    expect_folder_refused(pair.folder, "plain name");
    write_text(pair.folder, "model.safetensors.index.json", "{\"weight_map\": 7}");
    expect_folder_refused(pair.folder, "weight_map");
    write_text(pair.folder, "model.safetensors.index.json",
               "{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}");
    write_text(pair.folder, "config.json", "{\"model_type\": \"llama\", " CONFIG_COMMON "}");
    expect_folder_refused(pair.folder, "no place in a llama"); /* biases */
    write_text(pair.folder, "config.json", "");
    expect_folder_refused(pair.folder, "config.json");
    buf_free(&kept);
    pair_close(&pair);
}

static void test_faults(void **state) {
    (void)state;
    struct pair pair;
    pair_open(&pair, "llama", 2, DT_BF16);
    for (int kind = FAULT_ALLOC; kind <= FAULT_READ; kind++) {
        struct model *model = NULL;
        fault_arm((enum fault_kind)kind, 1000000);
        assert_int_equal(model_open(pair.folder, &model, NULL), 0);
        model_close(model);
        long operations = fault_count((enum fault_kind)kind);
        for (long k = 1; k <= operations; k++) {
            struct shu_error err = {0};
            model = NULL;
            fault_arm((enum fault_kind)kind, k);
            int rc = model_open(pair.folder, &model, &err);
            fault_arm((enum fault_kind)kind, 0);
            assert_int_not_equal(rc, 0);
            assert_int_equal(rc, err.code);
            assert_null(model);
        }
    }
    pair_close(&pair);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips), cmocka_unit_test(test_metadata),    cmocka_unit_test(test_tokenizers_agree),
        cmocka_unit_test(test_llama3_rope), cmocka_unit_test(test_configs),     cmocka_unit_test(test_tokenizers),
        cmocka_unit_test(test_safetensors), cmocka_unit_test(test_bad_folders), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
