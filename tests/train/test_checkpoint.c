/* Checkpoints: complete, whole or not there, refused where they do not belong. */
#include "train/check.h"
#include "train/checkpoint.h"

#include <sys/stat.h>

static const char identity[] =
    "{\"base\":\"b\",\"data\":\"d\",\"recipe\":{\"rank\":8,\"learning_rate\":0.0002,\"targets\":[\"q\",\"v\"]}}";

struct toy {
    float value[12], m[12], v[12], bias[3], bm[3], bv[3];
    struct learn_parameter parameters[2];
    struct run_state state;
    struct checkpoint content;
};

static void toy_fill(struct toy *toy, float base) {
    memset(toy, 0, sizeof *toy);
    for (int i = 0; i < 12; i++) {
        toy->value[i] = base + (float)i;
        toy->m[i] = base + 0.5f * (float)i;
        toy->v[i] = base + 0.25f * (float)i;
    }
    toy->bias[1] = base;
    toy->parameters[0] =
        (struct learn_parameter){.parameter = {"w", DT_F32, 3, 4, toy->value, NULL}, .m = toy->m, .v = toy->v};
    toy->parameters[1] =
        (struct learn_parameter){.parameter = {"bias", DT_F32, 1, 3, toy->bias, NULL}, .m = toy->bm, .v = toy->bv};
    toy->state = (struct run_state){.step = (int64_t)base, .epoch = 2, .pack = 5, .guard = {.mean = 1.5}, .best = 0.25};
    toy->content = (struct checkpoint){identity, &toy->state, toy->parameters, 2, false};
}

static void folder_new(char path[TINY_PATH_BYTES]) {
    tiny_path(path, ".run");
    assert_int_equal(mkdir(path, 0755), 0);
}

static void folder_remove(const char *path) {
    int64_t steps[16];
    int count = checkpoint_list(path, steps, 16, NULL);
    for (int i = 0; i < count; i++) {
        struct buf name = {0};
        checkpoint_path(path, steps[i], &name);
        unlink(name.data);
        buf_free(&name);
    }
    assert_int_equal(rmdir(path), 0);
}

static void impossible_counts_are_refused(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct toy saved, loaded;
    struct shu_error err = {0};
    tiny_path(path, ".shu");
    for (int i = 0; i < 3; i++) {
        toy_fill(&saved, 7);
        toy_fill(&loaded, 1);
        *(int64_t *[]){&saved.state.epoch, &saved.state.pack, &saved.state.updates}[i] = i < 2 ? -1 : 8;
        MUST(checkpoint_write(&saved.content, path, &must));
        assert_int_equal(checkpoint_read(&loaded.content, path, &err), SHU_E_FORMAT);
        assert_int_equal(loaded.state.step, 1);
    }
    unlink(path);
}

static void what_was_saved_comes_back(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct toy saved, loaded;
    tiny_path(path, ".shu");
    for (int weights_only = 0; weights_only < 2; weights_only++) {
        toy_fill(&saved, 7);
        toy_fill(&loaded, 1);
        saved.content.weights_only = loaded.content.weights_only = weights_only;
        MUST(checkpoint_write(&saved.content, path, &must));
        MUST(checkpoint_read(&loaded.content, path, &must));
        assert_memory_equal(&loaded.state, &saved.state, sizeof saved.state);
        assert_memory_equal(loaded.value, saved.value, sizeof saved.value);
        assert_memory_equal(loaded.bias, saved.bias, sizeof saved.bias);
        assert_true(loaded.m[3] == (weights_only ? 2.5f : 8.5f));
        assert_true(loaded.v[4] == (weights_only ? 2.0f : 8.0f));
        loaded.content.weights_only = !weights_only;
        assert_int_equal(checkpoint_read(&loaded.content, path, NULL), SHU_E_UNSUPPORTED);
    }
    unlink(path);
}

static void damage_is_noticed_and_changes_nothing(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct toy saved, loaded, before;
    struct buf text = {0};
    tiny_path(path, ".shu");
    toy_fill(&saved, 7);
    MUST(checkpoint_write(&saved.content, path, &must));
    MUST(file_read(path, 1 << 20, &text, &must));
    toy_fill(&loaded, 1);
    before = loaded;
    for (size_t i = 0; i < text.len; i += 3) {
        text.data[i] ^= 0x20;
        write_text(path, text.data, text.len);
        assert_int_not_equal(checkpoint_read(&loaded.content, path, NULL), SHU_OK);
        text.data[i] ^= 0x20;
        write_text(path, text.data, i);
        assert_int_not_equal(checkpoint_read(&loaded.content, path, NULL), SHU_OK);
    }
    assert_memory_equal(&loaded, &before, sizeof loaded);
    write_text(path, text.data, text.len);
    MUST(checkpoint_read(&loaded.content, path, &must));
    buf_free(&text);
    unlink(path);
}

static void refused(const char *own, const char *word) {
    char path[TINY_PATH_BYTES];
    struct toy saved, loaded;
    struct shu_error err = {0};
    tiny_path(path, ".shu");
    toy_fill(&saved, 7);
    MUST(checkpoint_write(&saved.content, path, &must));
    toy_fill(&loaded, 1);
    loaded.content.identity = own;
    assert_int_equal(checkpoint_read(&loaded.content, path, &err), SHU_E_UNSUPPORTED);
    assert_contains(err.message, word);
    assert_true(loaded.value[0] == 1);
    unlink(path);
}

static void another_run_is_refused_by_name(void **state) {
    (void)state;
    refused("{\"base\":\"x\",\"data\":\"d\",\"recipe\":{}}", "the base");
    refused("{\"base\":\"b\",\"data\":\"x\",\"recipe\":{}}", "the data");
    refused(
        "{\"base\":\"b\",\"data\":\"d\",\"recipe\":{\"rank\":16,\"learning_rate\":0.0002,\"targets\":[\"q\",\"v\"]}}",
        "rank was 8 when this run began and is now 16");
    refused(
        "{\"base\":\"b\",\"data\":\"d\",\"recipe\":{\"rank\":8,\"learning_rate\":0.0003,\"targets\":[\"q\",\"v\"]}}",
        "learning_rate was 0.0002");
    refused("{\"base\":\"b\",\"data\":\"d\",\"recipe\":{\"rank\":8,\"learning_rate\":0.0002,\"targets\":[\"q\"]}}",
            "targets was [\"q\",\"v\"]");
}

static void other_parameters_are_refused(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct toy saved, loaded;
    tiny_path(path, ".shu");
    toy_fill(&saved, 7);
    MUST(checkpoint_write(&saved.content, path, &must));
    toy_fill(&loaded, 1);
    loaded.parameters[1].parameter.name = "bias2";
    assert_int_equal(checkpoint_read(&loaded.content, path, NULL), SHU_E_UNSUPPORTED);
    toy_fill(&loaded, 1);
    loaded.parameters[0].parameter.rows = 2;
    assert_int_equal(checkpoint_read(&loaded.content, path, NULL), SHU_E_UNSUPPORTED);
    toy_fill(&loaded, 1);
    loaded.content.count = 1;
    assert_int_equal(checkpoint_read(&loaded.content, path, NULL), SHU_E_FORMAT);
    unlink(path);
}

static int save_step(const char *folder, int64_t step, struct shu_error *err) {
    struct toy toy;
    struct buf path = {0};
    toy_fill(&toy, (float)step);
    checkpoint_path(folder, step, &path);
    int status = checkpoint_write(&toy.content, path.data, err);
    if (!status) checkpoint_prune(folder);
    buf_free(&path);
    return status;
}

static void the_last_two_are_kept(void **state) {
    (void)state;
    char folder[TINY_PATH_BYTES], half[2 * TINY_PATH_BYTES];
    int64_t steps[8];
    folder_new(folder);
    snprintf(half, sizeof half, "%s/checkpoint-00000009.shu.tmp.123", folder);
    write_text(half, "half", 4);
    for (int64_t step = 5; step <= 100000005; step = step * 3 + 5) MUST(save_step(folder, step, &must));
    assert_int_equal(checkpoint_list(folder, steps, 8, NULL), 2);
    assert_true(steps[0] > steps[1]);
    assert_false(file_exists(half));
    folder_remove(folder);
}

/* A full disk: each write fails once; what was saved before is still whole. */
static void a_full_disk_harms_nothing_saved(void **state) {
    (void)state;
    char folder[TINY_PATH_BYTES];
    int64_t steps[8];
    int failures = 0;
    folder_new(folder);
    MUST(save_step(folder, 10, &must));
    for (long k = 1; k < 1000; k++) {
        struct shu_error err = {0};
        struct toy loaded;
        struct buf path = {0};
        fault_arm(FAULT_WRITE, k);
        int status = save_step(folder, 20, &err);
        fault_arm(FAULT_WRITE, 0);
        if (!status) break;
        failures++;
        assert_int_equal(status, SHU_E_IO);
        assert_contains(err.message, "earlier ones are unharmed");
        toy_fill(&loaded, 1);
        int count = checkpoint_list(folder, steps, 8, NULL);
        assert_true(count >= 1);
        for (int i = 0; i < count; i++) {
            checkpoint_path(folder, steps[i], &path);
            MUST(checkpoint_read(&loaded.content, path.data, &must));
            assert_int_equal(loaded.state.step, steps[i]);
            if (steps[i] == 20) unlink(path.data); /* whole, only the folder was not synced */
            buf_clear(&path);
        }
        buf_free(&path);
    }
    assert_true(failures > 8);
    folder_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(impossible_counts_are_refused),         cmocka_unit_test(what_was_saved_comes_back),
        cmocka_unit_test(damage_is_noticed_and_changes_nothing), cmocka_unit_test(another_run_is_refused_by_name),
        cmocka_unit_test(other_parameters_are_refused),          cmocka_unit_test(the_last_two_are_kept),
        cmocka_unit_test(a_full_disk_harms_nothing_saved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
