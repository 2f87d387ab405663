/* Recipes: defaults hold, every key is laid over, and what is wrong is named with its place. */
#include "train/check.h"

static void defaults_pass_their_own_check(void **state) {
    (void)state;
    for (int method = 0; method < TRAIN_METHODS; method++) {
        struct recipe recipe;
        recipe_defaults((enum train_method)method, &recipe);
        MUST(recipe_check(&recipe, &must));
        assert_int_equal(recipe.method, method);
    }
}

static int lay(const char *yaml, struct recipe *recipe, struct shu_error *err) {
    return recipe_read_text(yaml, strlen(yaml), "r.yaml", "", recipe, err);
}

static void keys_are_laid_over_the_defaults(void **state) {
    (void)state;
    struct recipe recipe;
    recipe_defaults(TRAIN_LORA, &recipe);
    MUST(lay("rank: 8\nlearning_rate: 1\ntargets: [q, down]\nschedule: wsd\nrank_stabilised: true\nseed: 7\n", &recipe,
             &must));
    assert_int_equal(recipe.rank, 8);
    assert_true(recipe.learning_rate == 1.0); /* a whole number is a number */
    assert_int_equal(recipe.targets, DECODER_Q | DECODER_DOWN);
    assert_int_equal(recipe.schedule, SCHEDULE_WSD);
    assert_true(recipe.rank_stabilised);
    assert_int_equal(recipe.seed, 7);
    assert_true(recipe.alpha == 32);
    MUST(lay("", &recipe, &must));
    assert_int_equal(recipe.rank, 8);
}

static void a_method_brings_its_defaults(void **state) {
    (void)state;
    struct recipe recipe;
    recipe_defaults(TRAIN_LORA, &recipe);
    MUST(lay("rank: 4\nmethod: scratch\nnetwork: {layers: 3, arch: qwen3, tied_output: false}\n", &recipe, &must));
    assert_int_equal(recipe.method, TRAIN_SCRATCH);
    MUST(lay("batch: 2\n", &recipe, &must));
    assert_int_equal(recipe.micro_batch, 2); /* the default of 4 gives way */
    assert_int_equal(recipe.schedule, SCHEDULE_WSD);
    assert_int_equal(recipe.network.layers, 3);
    assert_int_equal(recipe.network.arch, ARCH_QWEN3);
    assert_false(recipe.network.tied_output);
    assert_int_equal(recipe.network.width, 320);
}

static void a_recipe_may_lie_inside_another_file(void **state) {
    (void)state;
    const char pack[] = "name: x\ntrain:\n  rank: 3\n", wrong[] = "name: x\ntrain:\n  rank: 3\n  ranks: 4\n";
    struct recipe recipe;
    struct shu_error err = {0};
    recipe_defaults(TRAIN_LORA, &recipe);
    MUST(recipe_read_text(pack, strlen(pack), "pack.yaml", "train", &recipe, &must));
    assert_int_equal(recipe.rank, 3);
    assert_int_equal(recipe_read_text(wrong, strlen(wrong), "pack.yaml", "train", &recipe, &err), SHU_E_FORMAT);
    assert_contains(err.message, "pack.yaml:4:");
}

static void wrong(const char *yaml, const char *place, const char *word) {
    struct recipe recipe;
    struct shu_error err = {0};
    recipe_defaults(TRAIN_LORA, &recipe);
    assert_int_equal(lay(yaml, &recipe, &err), SHU_E_FORMAT);
    assert_contains(err.message, place);
    assert_contains(err.message, word);
    assert_null(strchr(err.message, '\n'));
}

static void what_is_wrong_is_named_with_its_place(void **state) {
    (void)state;
    wrong("rank: 8\nrnak: 3\n", "r.yaml:2:", "no such key");
    wrong("rank: sixteen\n", "r.yaml:1:", "whole number");
    wrong("rank: 1.5\n", "r.yaml:1:", "whole number");
    wrong("rank: 0\n", "r.yaml:1:", "from 1 to 1024");
    wrong("alpha: 2\nlearning_rate: -1\n", "r.yaml:2:", "a number from");
    wrong("recompute: 1\n", "r.yaml:1:", "true or false");
    wrong("schedule: linear\n", "r.yaml:1:", "cosine|wsd|constant");
    wrong("targets: [q, z]\n", "r.yaml:1:", "q|k|v|o|gate|up|down|all");
    wrong("targets: []\n", "r.yaml:1:", "a list of");
    wrong("method: sft\n", "r.yaml:1:", "lora|full|scratch|dpo");
    wrong("network: {layers: 2}\n", "r.yaml:1:", "scratch");
    wrong("method: scratch\nnetwork:\n  layers: 0\n", "r.yaml:3:", "from 1 to 1024");
    wrong("method: scratch\nnetwork:\n  depth: 2\n", "r.yaml:3:", "no such key");
    wrong("method: scratch\nnetwork: 3\n", "r.yaml:2:", "keys and values");
    wrong("- rank\n", "r.yaml", "keys and values");
}

static void the_command_line_lays_over_too(void **state) {
    (void)state;
    struct recipe recipe;
    struct shu_error err = {0};
    recipe_defaults(TRAIN_FULL, &recipe);
    MUST(recipe_set(&recipe, "learning_rate", "3e-4", "--learning_rate", &must));
    MUST(recipe_set(&recipe, "steps", "10", "--steps", &must));
    MUST(recipe_set(&recipe, "targets", "[q, v]", "--targets", &must));
    assert_true(recipe.learning_rate == 3e-4);
    assert_int_equal(recipe.steps, 10);
    assert_int_equal(recipe.targets, DECODER_Q | DECODER_V);
    assert_int_equal(recipe_set(&recipe, "steps", "many", "--steps", &err), SHU_E_USAGE);
    assert_contains(err.message, "--steps: expected a whole number");
    assert_int_equal(recipe_set(&recipe, "steps", "[", "--steps", &err), SHU_E_USAGE);
    assert_int_equal(recipe_set(&recipe, "stepz", "1", "--stepz", &err), SHU_E_USAGE);
}

static void clashes(enum train_method method, const char *yaml, const char *word) {
    struct recipe recipe;
    struct shu_error err = {0};
    recipe_defaults(method, &recipe);
    MUST(lay(yaml, &recipe, &must));
    assert_int_equal(recipe_check(&recipe, &err), SHU_E_USAGE);
    assert_contains(err.message, word);
}

static void what_does_not_go_together_is_refused(void **state) {
    (void)state;
    clashes(TRAIN_LORA, "batch: 2\nmicro_batch: 4\n", "micro_batch:");
    clashes(TRAIN_LORA, "epochs: 0\n", "steps:");
    clashes(TRAIN_LORA, "min_learning_rate: 0.1\n", "min_learning_rate:");
    clashes(TRAIN_LORA, "schedule: wsd\nwarmup: 0.5\ndecay: 0.6\n", "warmup:");
    clashes(TRAIN_LORA, "patience: 2\nheld_out: 0\n", "patience:");
    clashes(TRAIN_SCRATCH, "network: {heads: 6, kv_heads: 4}\n", "network.kv_heads:");
    clashes(TRAIN_SCRATCH, "network: {head_dim: 5}\n", "network.head_dim:");
    clashes(TRAIN_SCRATCH, "context: 4096\n", "network.context:");
}

static void json_reads_back_as_the_same_recipe(void **state) {
    (void)state;
    for (int method = 0; method < TRAIN_METHODS; method++) {
        struct recipe recipe, again;
        recipe_defaults((enum train_method)method, &recipe);
        recipe.seed = 99;
        recipe.batch = 3;
        json_t *json = recipe_to_json(&recipe);
        char *text = json_dumps(json, 0); /* JSON is YAML */
        recipe_defaults(TRAIN_LORA, &again);
        MUST(lay(text, &again, &must));
        json_t *second = recipe_to_json(&again);
        assert_true(json_equal(json, second));
        assert_true(json_object_size(json) > 20);
        free(text);
        json_decref(json);
        json_decref(second);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_pass_their_own_check),         cmocka_unit_test(keys_are_laid_over_the_defaults),
        cmocka_unit_test(a_method_brings_its_defaults),          cmocka_unit_test(a_recipe_may_lie_inside_another_file),
        cmocka_unit_test(what_is_wrong_is_named_with_its_place), cmocka_unit_test(the_command_line_lays_over_too),
        cmocka_unit_test(what_does_not_go_together_is_refused),  cmocka_unit_test(json_reads_back_as_the_same_recipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
