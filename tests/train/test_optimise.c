/* Schedules at their corners, clipping and AdamW against a plain reference, the guard. */
#include "train/check.h"
#include "train/optimise.h"

#include <math.h>

#define assert_near(a, b, tol)                                                                                         \
    do {                                                                                                               \
        double a_ = (double)(a), b_ = (double)(b);                                                                     \
        if (!(fabs(a_ - b_) <= (tol))) fail_msg("%s = %.12g, expected %.12g", #a, a_, b_);                             \
    } while (0)

static void schedules_pass_through_their_corners(void **state) {
    (void)state;
    struct recipe recipe;
    recipe_defaults(TRAIN_LORA, &recipe);
    recipe.learning_rate = 1;
    recipe.warmup = 0.1;
    recipe.min_learning_rate = 0.1;
    assert_near(schedule_rate(&recipe, 1, 100), 0.1, 1e-12);
    assert_near(schedule_rate(&recipe, 10, 100), 1, 1e-12);
    assert_near(schedule_rate(&recipe, 11, 100), 1, 1e-12);
    assert_near(schedule_rate(&recipe, 56, 100), 0.55, 1e-12);
    assert_true(schedule_rate(&recipe, 100, 100) > 0.1 && schedule_rate(&recipe, 100, 100) < 0.101);
    recipe.schedule = SCHEDULE_WSD;
    recipe.decay = 0.25;
    assert_near(schedule_rate(&recipe, 11, 100), 1, 1e-12);
    assert_near(schedule_rate(&recipe, 75, 100), 1, 1e-12);
    assert_near(schedule_rate(&recipe, 76, 100), 1, 1e-12);
    assert_near(schedule_rate(&recipe, 82, 100), 0.1 + 0.9 * (1 - sqrt(6.0 / 25)), 1e-12);
    recipe.schedule = SCHEDULE_CONSTANT;
    assert_near(schedule_rate(&recipe, 100, 100), 1, 1e-12);
    recipe.warmup = 0;
    assert_near(schedule_rate(&recipe, 1, 1), 1, 1e-12);
    for (int schedule = SCHEDULE_COSINE; schedule <= SCHEDULE_CONSTANT; schedule++)
        for (int64_t steps = 1; steps < 12; steps++)
            for (int64_t step = 1; step <= steps; step++) {
                recipe.schedule = (enum train_schedule)schedule;
                recipe.warmup = 0.3;
                double rate = schedule_rate(&recipe, step, steps);
                assert_true(rate > 0 && rate <= 1);
            }
}

enum { VALUES = 200000 }; /* several chunks */

struct toy {
    struct learn_parameter parameters[2];
    float *value, *gradient, *m, *v;
    float small[3], small_gradient[3], small_m[3], small_v[3];
};

static void toy_new(struct toy *toy) {
    struct rng rng;
    rng_seed(&rng, 3);
    toy->value = calloc(4 * VALUES, sizeof(float));
    toy->gradient = toy->value + VALUES;
    toy->m = toy->gradient + VALUES;
    toy->v = toy->m + VALUES;
    for (int i = 0; i < VALUES; i++) {
        toy->value[i] = rng_normal(&rng);
        toy->gradient[i] = rng_normal(&rng);
    }
    for (int i = 0; i < 3; i++) {
        toy->small[i] = 1;
        toy->small_gradient[i] = (float)i;
        toy->small_m[i] = toy->small_v[i] = 0;
    }
    toy->parameters[0] = (struct learn_parameter){
        .parameter = {"w", DT_F32, 500, 400, toy->value, toy->gradient}, .decays = true, .m = toy->m, .v = toy->v};
    toy->parameters[1] = (struct learn_parameter){
        .parameter = {"b", DT_F32, 1, 3, toy->small, toy->small_gradient}, .m = toy->small_m, .v = toy->small_v};
}

static void the_norm_is_that_of_all_gradients(void **state) {
    (void)state;
    struct toy toy;
    struct optimiser optimiser;
    struct pool *one = NULL, *three = NULL;
    double sum = 0;
    toy_new(&toy);
    for (int i = 0; i < VALUES; i++) sum += (double)toy.gradient[i] * (double)toy.gradient[i];
    MUST(pool_new(1, &one, &must));
    MUST(pool_new(3, &three, &must));
    MUST(optimiser_new(&kernels_get()->training, one, toy.parameters, 2, &optimiser, &must));
    double norm = optimiser_norm(&optimiser);
    assert_near(norm, sqrt(sum + 5), 1e-3);
    assert_int_equal(optimiser_values(&optimiser), VALUES + 3);
    optimiser.pool = three;
    for (int i = 0; i < 20; i++) assert_true(optimiser_norm(&optimiser) == norm);
    toy.gradient[777] = NAN;
    assert_false(isfinite(optimiser_norm(&optimiser)));
    optimiser_free(&optimiser);
    pool_free(one);
    pool_free(three);
    free(toy.value);
}

static void a_step_is_adamw(void **state) {
    (void)state;
    struct toy toy;
    struct optimiser optimiser;
    struct pool *pool = NULL;
    struct recipe recipe;
    recipe_defaults(TRAIN_FULL, &recipe);
    recipe.weight_decay = 0.1;
    toy_new(&toy);
    MUST(pool_new(2, &pool, &must));
    MUST(optimiser_new(&kernels_get()->training, pool, toy.parameters, 2, &optimiser, &must));
    double w = (double)toy.value[123456], g = 0.5 * (double)toy.gradient[123456], m = 0, v = 0, b = 1, bm = 0, bv = 0;
    for (int t = 1; t <= 3; t++) {
        optimiser_step(&optimiser, &recipe, 0.01, 0.5, t);
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        w = w * (1 - 0.01 * 0.1) - 0.01 * m / (1 - pow(0.9, t)) / (sqrt(v / (1 - pow(0.999, t))) + 1e-8);
        bm = 0.9 * bm + 0.1 * 1;
        bv = 0.999 * bv + 0.001 * 1;
        b -= 0.01 * bm / (1 - pow(0.9, t)) / (sqrt(bv / (1 - pow(0.999, t))) + 1e-8); /* no decay; gradient 2 / 2 */
        assert_near(toy.value[123456], w, 1e-5);
        assert_near(toy.small[2], b, 1e-5);
    }
    assert_near(toy.small[0], 1, 0); /* its gradient is 0 and it does not decay */
    optimiser_free(&optimiser);
    pool_free(pool);
    free(toy.value);
}

static void the_guard_refuses_spikes_and_what_is_not_finite(void **state) {
    (void)state;
    struct guard guard = {0};
    struct rng rng;
    rng_seed(&rng, 1);
    assert_true(guard_accepts(&guard, 6, 1000, 1)); /* the first may be anything */
    guard = (struct guard){0};
    for (int i = 0; i < 200; i++) assert_true(guard_accepts(&guard, 6, 3 + 0.1 * (double)rng_normal(&rng), 1));
    assert_false(guard_accepts(&guard, 6, (double)NAN, 1));
    assert_false(guard_accepts(&guard, 6, 3, (double)INFINITY));
    assert_false(guard_accepts(&guard, 6, 5, 1));
    assert_int_equal(guard.skipped, 3);
    assert_int_equal(guard.streak, 3);
    assert_true(guard_accepts(&guard, 6, 3.1, 1));
    assert_int_equal(guard.streak, 0);
    assert_true(guard_accepts(&guard, 0, 5, 1));   /* spike 0: only what is not finite */
    assert_true(guard_accepts(&guard, 6, 0.5, 1)); /* far below is no spike */
    struct guard flat = {0};
    for (int i = 0; i < 50; i++) assert_true(guard_accepts(&flat, 6, 1, 1));
    assert_true(guard_accepts(&flat, 6, 1.1, 1)); /* no deviation yet does not mean none is allowed */
    assert_false(guard_accepts(&flat, 6, 2, 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules_pass_through_their_corners),
        cmocka_unit_test(the_norm_is_that_of_all_gradients),
        cmocka_unit_test(a_step_is_adamw),
        cmocka_unit_test(the_guard_refuses_spikes_and_what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
