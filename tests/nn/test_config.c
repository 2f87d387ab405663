/* Metadata and tensors that do not fit are refused with an error that names the key or tensor. */
#include "nn/models.h"

/* Applies edits to a tiny model of `arch` and loads it; the status, and the message in err. */
static int load_edited(const char *arch, const struct edit *edits, int count, struct decoder_config *config,
                       struct shu_error *err) {
    struct tiny_spec spec;
    char plain[TINY_PATH_BYTES], edited[TINY_PATH_BYTES];
    struct pool *pool = NULL;
    struct decoder *decoder = NULL;
    tiny_defaults(arch, &spec);
    tiny_path(plain, ".gguf");
    tiny_path(edited, ".gguf");
    if (tiny_write(plain, &spec, err)) fail_msg("%s", err->message);
    write_edited(plain, edited, edits, count);
    struct model *model = open_model(edited);
    assert_int_equal(pool_new(1, &pool, NULL), SHU_OK);
    int status = decoder_load(model, kernels_get(), pool, &decoder, err);
    if (status == SHU_OK) *config = *decoder_config(decoder);
    decoder_free(decoder);
    pool_free(pool);
    model_close(model);
    unlink(plain);
    unlink(edited);
    return status;
}

/* ------------------------------------------------------------------------ errors */

static const struct {
    const char *arch;
    struct edit edit;
    int status;
    const char *says; /* part of the message */
} bad_models[] = {
    {"qwen2",
     {.kind = EDIT_TEXT, .name = "general.architecture", .text = "mamba"},
     SHU_E_UNSUPPORTED,
     "architecture \"mamba\" is not supported; expected llama"},
    {"qwen2",
     {.kind = EDIT_TEXT, .name = "general.architecture", .text = "llama"},
     SHU_E_FORMAT,
     "llama.block_count: expected one integer, found no such key"},
    {"qwen2",
     {.kind = EDIT_TEXT, .name = "qwen2.block_count", .text = "2"},
     SHU_E_FORMAT,
     "qwen2.block_count: expected one integer, found another kind of value"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.block_count", .value = 0},
     SHU_E_RANGE,
     "qwen2.block_count: expected 1 to 1024, found 0"},
    {"qwen2", {.kind = EDIT_INT, .name = "qwen2.block_count", .value = 4e9}, SHU_E_RANGE, "found 4000000000"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.block_count", .value = 3},
     SHU_E_FORMAT,
     "tensor blk.2.attn_norm.weight is missing: expected [64, 1]"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.block_count", .value = 1},
     SHU_E_UNSUPPORTED,
     "tensor blk.1.attn_norm.weight has no place in a decoder of architecture qwen2 with 1 layers"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.embedding_length", .value = 65},
     SHU_E_FORMAT,
     "tensor token_embd.weight: expected [65, vocabulary], found [64, "},
    {"qwen2", {.kind = EDIT_INT, .name = "qwen2.attention.head_count", .value = 0}, SHU_E_RANGE, "head_count"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.attention.head_count", .value = 8},
     SHU_E_FORMAT,
     "tensor blk.0.attn_q.weight: expected [64, 128], found [64, 64, 1, 1]"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.attention.head_count_kv", .value = 3},
     SHU_E_RANGE,
     "4 query heads cannot share 3 key heads"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.attention.head_count_kv", .value = 4},
     SHU_E_FORMAT,
     "tensor blk.0.attn_k.weight: expected [64, 64], found [64, 32, 1, 1]"},
    {"qwen2",
     {.kind = EDIT_INTS, .name = "qwen2.attention.head_count_kv", .text = "22"},
     SHU_E_UNSUPPORTED,
     "qwen2.attention.head_count_kv: expected one integer, found a value per layer"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.attention.key_length", .value = 257},
     SHU_E_RANGE,
     "qwen2.attention.key_length: expected 2 to 256, found 257"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.attention.value_length", .value = 8},
     SHU_E_UNSUPPORTED,
     "value_length: expected 16 like key_length, found 8"},
    {"qwen2", {.kind = EDIT_INT, .name = "qwen2.feed_forward_length", .value = 0}, SHU_E_RANGE, "feed_forward_length"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.feed_forward_length", .value = 95},
     SHU_E_FORMAT,
     "tensor blk.0.ffn_gate.weight: expected [64, 95], found [64, 96, 1, 1]"},
    {"qwen2", {.kind = EDIT_INT, .name = "qwen2.context_length", .value = 0}, SHU_E_RANGE, "context_length"},
    {"qwen2", {.kind = EDIT_INT, .name = "qwen2.expert_count", .value = 8}, SHU_E_UNSUPPORTED, "mixtures of experts"},
    {"qwen2",
     {.kind = EDIT_FLOAT, .name = "qwen2.attention.layer_norm_rms_epsilon", .value = -1},
     SHU_E_RANGE,
     "layer_norm_rms_epsilon: expected 0 to 1, found -1"},
    {"qwen2",
     {.kind = EDIT_FLOAT, .name = "qwen2.attention.layer_norm_rms_epsilon", .value = NAN},
     SHU_E_RANGE,
     "layer_norm_rms_epsilon: expected 0 to 1, found"},
    {"qwen2",
     {.kind = EDIT_TEXT, .name = "qwen2.attention.layer_norm_rms_epsilon", .text = "x"},
     SHU_E_FORMAT,
     "expected a number, found another kind of value"},
    {"qwen2", {.kind = EDIT_FLOAT, .name = "qwen2.rope.freq_base", .value = 0}, SHU_E_RANGE, "rope.freq_base"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.rope.dimension_count", .value = 17},
     SHU_E_RANGE,
     "rope.dimension_count: expected 2 to 16, found 17"},
    {"qwen2",
     {.kind = EDIT_INT, .name = "qwen2.rope.dimension_count", .value = 7},
     SHU_E_RANGE,
     "even number, found 7"},
    {"qwen2",
     {.kind = EDIT_TEXT, .name = "qwen2.rope.scaling.type", .text = "yarn"},
     SHU_E_UNSUPPORTED,
     "expected linear or none (llama 3 brings rope_freqs.weight), found \"yarn\""},
    {"gemma3",
     {.kind = EDIT_INTS, .name = "gemma3.attention.sliding_window_pattern", .text = "1"},
     SHU_E_FORMAT,
     "sliding_window_pattern: expected a number or 2 flags, found 1 values"},
    {"gemma3",
     {.kind = EDIT_INT, .name = "gemma3.attention.sliding_window", .value = 4e9},
     SHU_E_RANGE,
     "sliding_window"},
    {"qwen2", {.kind = EDIT_DROP, .name = "token_embd.weight"}, SHU_E_FORMAT, "token_embd.weight is missing"},
    {"qwen2", {.kind = EDIT_CUT, .name = "token_embd.weight"}, SHU_E_FORMAT, "tokens, but token_embd.weight has"},
    {"qwen2", {.kind = EDIT_CUT, .name = "output.weight"}, SHU_E_FORMAT, "tensor output.weight: expected [64, "},
    {"qwen2", {.kind = EDIT_DROP, .name = "output_norm.weight"}, SHU_E_FORMAT, "output_norm.weight is missing"},
    {"qwen2", {.kind = EDIT_DROP, .name = "blk.1.attn_k.bias"}, SHU_E_FORMAT, "blk.1.attn_k.bias is missing"},
    {"qwen2", {.kind = EDIT_DROP, .name = "blk.0.attn_q.bias"}, SHU_E_UNSUPPORTED, "blk.0.attn_k.bias has no place"},
    {"qwen2",
     {.kind = EDIT_CUT, .name = "blk.1.ffn_norm.weight"},
     SHU_E_FORMAT,
     "tensor blk.1.ffn_norm.weight: expected [64, 1], found [63, 1, 1, 1]"},
    {"qwen2",
     {.kind = EDIT_CUT, .name = "blk.1.ffn_down.weight"},
     SHU_E_FORMAT,
     "tensor blk.1.ffn_down.weight: expected [96, 64], found [96, 63, 1, 1]"},
    {"qwen2",
     {.kind = EDIT_ADD, .name = "blk.0.attn_q_norm.weight", .value = 16},
     SHU_E_UNSUPPORTED,
     "blk.0.attn_q_norm.weight has no place"},
    {"qwen2", {.kind = EDIT_ADD, .name = "output.bias", .value = 9}, SHU_E_UNSUPPORTED, "output.bias has no place"},
    {"qwen3", {.kind = EDIT_DROP, .name = "blk.0.attn_k_norm.weight"}, SHU_E_FORMAT, "attn_k_norm.weight is missing"},
    {"gemma2",
     {.kind = EDIT_DROP, .name = "blk.0.post_ffw_norm.weight"},
     SHU_E_FORMAT,
     "post_ffw_norm.weight is missing"},
    {"llama",
     {.kind = EDIT_ADD, .name = "rope_freqs.weight", .value = 7},
     SHU_E_FORMAT,
     "tensor rope_freqs.weight: expected [8, 1], found [7, 1, 1, 1]"},
};

static void test_bad_models(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_models / sizeof *bad_models; i++) {
        struct shu_error err = {0};
        struct decoder_config config;
        int status = load_edited(bad_models[i].arch, &bad_models[i].edit, 1, &config, &err);
        if (status != bad_models[i].status || !strstr(err.message, bad_models[i].says))
            fail_msg("case %zu: status %d, says \"%s\", expected %d and \"%s\"", i, status, err.message,
                     bad_models[i].status, bad_models[i].says);
    }
}

/* ------------------------------------------------------------------ configurations */

static struct decoder_config config_of(const char *arch, struct edit a, struct edit b) {
    struct shu_error err = {0};
    struct decoder_config config = {0};
    if (load_edited(arch, (struct edit[]){a, b}, 2, &config, &err)) fail_msg("%s", err.message);
    return config;
}

static const struct edit none;

static void test_defaults(void **state) {
    (void)state;
    struct decoder_config qwen2 = config_of("qwen2", none, none), llama = config_of("llama", none, none);
    assert_true(qwen2.qkv_bias && !qwen2.qk_norm && !qwen2.post_norms && qwen2.rope_neox && !qwen2.tied_output);
    assert_int_equal(qwen2.vocab, tiny_vocab_count());
    assert_true(!llama.rope_neox && !llama.qkv_bias && llama.embed_scale == 1 && llama.attention_scale == 0.25F);
    assert_true(llama.window == 0 && !decoder_layer_slides(&llama, 0) && llama.activation == UNARY_SILU);
    struct decoder_config qwen3 = config_of("qwen3", none, none);
    assert_true(qwen3.qk_norm && !qwen3.qkv_bias && qwen3.rope_neox);
    assert_string_equal(decoder_arch_name(qwen3.arch), "qwen3");
}

static void test_gemma(void **state) {
    (void)state;
    struct edit scale = {.kind = EDIT_FLOAT, .name = "gemma3.rope.scaling.factor", .value = 8};
    struct edit base = {.kind = EDIT_FLOAT, .name = "gemma3.rope.freq_base", .value = 1e6};
    struct decoder_config two = config_of("gemma2", none, none), three = config_of("gemma3", scale, base);
    assert_true(two.tied_output && two.post_norms && !two.qk_norm && two.embed_scale == 8);
    assert_true(two.attention_softcap == 50 && two.logit_softcap == 30 && two.window == 8);
    assert_true(decoder_layer_slides(&two, 0) && !decoder_layer_slides(&two, 1));
    assert_true(two.rope_base_local == two.rope_base && two.rope_scale == 1);
    assert_true(three.qk_norm && three.attention_softcap == 0 && three.logit_softcap == 0);
    assert_true(three.rope_base == 1e6 && three.rope_base_local == 1e4);
    assert_true(three.rope_scale == 0.125 && three.rope_scale_local == 1);
    for (int l = 0; l < 12; l++) assert_int_equal(decoder_layer_slides(&three, l), l % 6 != 5);
}

static void test_windows(void **state) {
    (void)state;
    struct edit window = {.kind = EDIT_INT, .name = "llama.attention.sliding_window", .value = 8};
    struct decoder_config mistral = config_of("llama", window, none);
    assert_true(mistral.window == 8 && decoder_layer_slides(&mistral, 0) && decoder_layer_slides(&mistral, 5));
    struct edit flags = {.kind = EDIT_INTS, .name = "gemma3.attention.sliding_window_pattern", .text = "10"};
    struct decoder_config gemma = config_of("gemma3", flags, none);
    assert_int_equal(gemma.window_pattern, 2);
    flags.text = "11";
    assert_int_equal(config_of("gemma3", flags, none).window_pattern, 0);
    struct edit off = {.kind = EDIT_INT, .name = "gemma3.attention.sliding_window", .value = 0};
    gemma = config_of("gemma3", off, none);
    assert_false(decoder_layer_slides(&gemma, 0));
}

static void test_rope_keys(void **state) {
    (void)state;
    struct edit factor = {.kind = EDIT_FLOAT, .name = "llama.rope.scaling.factor", .value = 4};
    struct edit type = {.kind = EDIT_TEXT, .name = "llama.rope.scaling.type", .text = "none"};
    assert_true(config_of("llama", factor, none).rope_scale == 0.25);
    assert_true(config_of("llama", factor, type).rope_scale == 1);
    struct edit old = {.kind = EDIT_FLOAT, .name = "llama.rope.scale_linear", .value = 2};
    assert_true(config_of("llama", old, none).rope_scale == 0.5);
    struct edit scale = {.kind = EDIT_FLOAT, .name = "llama.attention.scale", .value = 0.5};
    assert_true(config_of("llama", scale, none).attention_scale == 0.5F);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_models), cmocka_unit_test(test_defaults),  cmocka_unit_test(test_gemma),
        cmocka_unit_test(test_windows),    cmocka_unit_test(test_rope_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
