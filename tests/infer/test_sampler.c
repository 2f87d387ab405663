/* The sampler against a naive reference: sort everything, follow the documented chain step by step. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "infer/infer.h"
#include "infer/logits.h"

enum { V = 200 };

static void fill(float *x, int count, uint64_t seed, float spread) {
    struct rng rng;
    rng_seed(&rng, seed);
    for (int i = 0; i < count; i++) x[i] = spread * rng_normal(&rng);
}

static struct sampler *make(const struct sampler_options *options, int vocab) {
    struct sampler *sampler = NULL;
    struct shu_error err = {0};
    assert_int_equal(sampler_new(options, vocab, &sampler, &err), SHU_OK);
    return sampler;
}

static int32_t draw_plain(struct sampler *sampler, const float *x) {
    int32_t id = -7;
    assert_int_equal(sampler_draw(sampler, x, NULL, NULL, 0, &id, NULL, NULL), SHU_OK);
    return id;
}

/* --------------------------------------------------------------- reference */

static const float *sort_key;
static int by_logit(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sort_key[i] != sort_key[j]) return sort_key[i] < sort_key[j] ? 1 : -1;
    return i - j;
}

/* Probability of every token under the chain, computed in the obvious way. */
static void reference(const struct sampler_options *o, const float *x, int vocab, double *p) {
    int32_t *order = malloc((size_t)vocab * sizeof *order);
    for (int i = 0; i < vocab; i++) order[i] = i;
    sort_key = x;
    qsort(order, (size_t)vocab, sizeof *order, by_logit);
    int keep = o->top_k > 0 && o->top_k < vocab ? o->top_k : vocab;
    double total = 0, sum = 0, best = x[order[0]];
    for (int i = 0; i < vocab; i++) p[i] = 0;
    for (int i = 0; i < keep; i++) total += p[order[i]] = exp((x[order[i]] - best) / o->temperature);
    int inside = 0;
    while (inside < keep && (inside == 0 || sum < o->top_p * total)) sum += p[order[inside++]];
    double kept = 0;
    for (int i = 0; i < vocab; i++) {
        int32_t id = order[i];
        if (i >= inside && o->top_p < 1) p[id] = 0;
        if (p[id] < o->min_p) p[id] = 0;
        kept += p[id];
    }
    for (int i = 0; i < vocab; i++) p[i] /= kept;
    free(order);
}

static void check_distribution(const struct sampler_options *options, const float *x, int vocab) {
    enum { DRAWS = 20000 };
    struct sampler *sampler = make(options, vocab);
    double *p = calloc((size_t)vocab, sizeof *p);
    int *seen = calloc((size_t)vocab, sizeof *seen);
    reference(options, x, vocab, p);
    for (int i = 0; i < DRAWS; i++) seen[draw_plain(sampler, x)]++;
    for (int i = 0; i < vocab; i++) {
        if (p[i] == 0) assert_int_equal(seen[i], 0); /* exactly the right set */
        double sigma = sqrt(DRAWS * p[i] * (1 - p[i]));
        assert_true(fabs(seen[i] - DRAWS * p[i]) <= 5.5 * sigma + 1);
    }
    sampler_free(sampler);
    free(p);
    free(seen);
}

static void chain_matches_reference(void **state) {
    (void)state;
    static const struct {
        float temperature;
        int top_k;
        float top_p, min_p;
    } cases[] = {
        {1, 0, 1, 0},        {1, 5, 1, 0},         {1, 1, 1, 0},       {1, 0, 0.5f, 0},   {1, 0, 0.9f, 0},
        {1, 0, 0, 0},        {1, 0, 0.999f, 0},    {1, 0, 1, 0.1f},    {1, 0, 1, 1},      {0.7f, 40, 0.9f, 0},
        {2, 40, 0.9f, .05f}, {1.3f, 0, 0.8f, .2f}, {1, 1000, 0.7f, 0}, {0.01f, 10, 1, 0}, {5, 0, 0.95f, 0},
    };
    float x[V];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (int spread = 1; spread <= 3; spread += 2) {
            struct sampler_options o = {.temperature = cases[c].temperature,
                                        .top_k = cases[c].top_k,
                                        .top_p = cases[c].top_p,
                                        .min_p = cases[c].min_p,
                                        .repetition = 1,
                                        .seed = c};
            fill(x, V, c * 7 + (uint64_t)spread, (float)spread);
            check_distribution(&o, x, V - (int)(c % 4)); /* odd lengths too */
        }
    }
}

/* Four equal halves: p = 0.5 is reached exactly by the second token, which is in; the third is not. */
static void top_p_boundary(void **state) {
    (void)state;
    float x[8] = {0, 0, 0, 0, -INFINITY, -INFINITY, -INFINITY, -INFINITY};
    struct sampler_options o = {.temperature = 1, .top_p = 0.5f, .repetition = 1};
    struct sampler *sampler = make(&o, 8);
    int seen[8] = {0};
    for (int i = 0; i < 400; i++) seen[draw_plain(sampler, x)]++;
    assert_true(seen[0] > 0 && seen[1] > 0);
    assert_int_equal(seen[2] + seen[3] + seen[4], 0); /* ties go to the lower ids */
    sampler_free(sampler);
    o.top_p = 0.51f; /* a hair more, and the third comes in */
    sampler = make(&o, 8);
    for (int i = 0; i < 400; i++) seen[draw_plain(sampler, x)]++;
    assert_true(seen[2] > 0);
    assert_int_equal(seen[3], 0);
    sampler_free(sampler);
}

static void min_p_boundary(void **state) {
    (void)state;
    float x[4] = {0, logf(0.5f), logf(0.24f), -20};
    struct sampler_options o = {.temperature = 1, .top_p = 1, .min_p = 0.25f, .repetition = 1};
    struct sampler *sampler = make(&o, 4);
    int seen[4] = {0};
    for (int i = 0; i < 1000; i++) seen[draw_plain(sampler, x)]++;
    assert_true(seen[0] > 500 && seen[1] > 200);
    assert_int_equal(seen[2] + seen[3], 0);
    sampler_free(sampler);
}

static void greedy_takes_the_lowest_of_equals(void **state) {
    (void)state;
    struct sampler_options o;
    sampler_greedy(&o);
    float x[1003];
    for (int at = 0; at < 1003; at += 17) {
        fill(x, 1003, (uint64_t)at, 1);
        x[at] = x[1002] = 9;
        struct sampler *sampler = make(&o, 1003);
        assert_int_equal(draw_plain(sampler, x), at);
        sampler_free(sampler);
    }
}

static void same_seed_same_tokens(void **state) {
    (void)state;
    struct sampler_options o;
    sampler_defaults(&o);
    o.seed = 42;
    struct sampler *a = make(&o, V), *b = make(&o, V);
    o.seed = 43;
    struct sampler *c = make(&o, V);
    float x[V];
    int differ = 0;
    for (int i = 0; i < 200; i++) {
        fill(x, V, (uint64_t)i, 2);
        int32_t first = draw_plain(a, x);
        assert_int_equal(first, draw_plain(b, x));
        differ += first != draw_plain(c, x);
    }
    assert_true(differ > 20); /* control: another seed gives another text */
    sampler_free(a);
    sampler_free(b);
    sampler_free(c);
}

static void penalties_as_defined(void **state) {
    (void)state;
    float x[6] = {4, 3.5f, -1, 3, 0, 2};
    struct sampler_options o;
    sampler_greedy(&o);
    o.repetition = 2;
    struct sampler *sampler = make(&o, 6);
    int32_t id;
    const int32_t once[] = {0};
    assert_int_equal(sampler_draw(sampler, x, NULL, once, 1, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 1);                            /* 4 / 2 < 3.5 */
    const int32_t often[] = {0, 0, 0, 1, 3, 5, -4, 99}; /* repetition counts once; ids outside are ignored */
    assert_int_equal(sampler_draw(sampler, x, NULL, often, 8, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 0);
    sampler_free(sampler);

    float negative[2] = {-1, -1.5f}; /* multiplied, not divided, when negative */
    sampler = make(&o, 2);
    assert_int_equal(sampler_draw(sampler, negative, NULL, once, 1, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 1);
    sampler_free(sampler);

    sampler_greedy(&o);
    o.frequency = 0.2f; /* 4 - 2 * 0.2 = 3.6 > 3.5, 4 - 3 * 0.2 < 3.5 */
    sampler = make(&o, 6);
    const int32_t thrice[] = {0, 0, 0};
    assert_int_equal(sampler_draw(sampler, x, NULL, thrice, 2, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 0);
    assert_int_equal(sampler_draw(sampler, x, NULL, thrice, 3, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 1);
    sampler_free(sampler);

    sampler_greedy(&o);
    o.presence = 0.6f;
    o.penalty_last = 2;
    sampler = make(&o, 6);
    const int32_t old[] = {0, 5, 5}; /* token 0 lies outside the last two */
    assert_int_equal(sampler_draw(sampler, x, NULL, old, 3, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 0);
    const int32_t recent[] = {5, 0, 0};
    assert_int_equal(sampler_draw(sampler, x, NULL, recent, 3, &id, NULL, NULL), SHU_OK);
    assert_int_equal(id, 1);
    sampler_free(sampler);
}

static void mask_is_obeyed(void **state) {
    (void)state;
    float x[V];
    fill(x, V, 3, 1);
    uint64_t mask[(V + 63) / 64] = {0};
    static const int allowed[] = {0, 63, 64, 130, 199};
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) mask[allowed[i] / 64] |= 1ull << (allowed[i] % 64);
    mask[3] |= 1ull << 60; /* beyond the vocabulary: must not matter */
    struct sampler_options o = {.temperature = 3, .top_p = 1, .repetition = 1};
    struct sampler *sampler = make(&o, V);
    int seen[V] = {0}, inside = 0;
    for (int i = 0; i < 3000; i++) {
        int32_t id;
        assert_int_equal(sampler_draw(sampler, x, mask, NULL, 0, &id, NULL, NULL), SHU_OK);
        seen[id]++;
    }
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
        assert_true(seen[allowed[i]] > 0);
        inside += seen[allowed[i]];
    }
    assert_int_equal(inside, 3000);
    memset(mask, 0, sizeof mask);
    struct shu_error err = {0};
    int32_t id = 5;
    assert_int_equal(sampler_draw(sampler, x, mask, NULL, 0, &id, NULL, &err), SHU_E_NOTFOUND);
    assert_int_equal(id, 5);
    sampler_free(sampler);
}

static void bad_logits_are_errors(void **state) {
    (void)state;
    static const float poison[] = {NAN, INFINITY};
    for (int greedy = 0; greedy < 2; greedy++) {
        for (int top_k = 0; top_k < 2; top_k++) {
            for (int at = 0; at < V; at += 3) {
                struct sampler_options o = {
                    .temperature = greedy ? 0 : 1, .top_k = top_k * 10, .top_p = .9f, .repetition = 1};
                struct sampler *sampler = make(&o, V);
                float x[V];
                fill(x, V, 5, 1);
                x[at] = poison[at % 2];
                int32_t id;
                assert_int_equal(sampler_draw(sampler, x, NULL, NULL, 0, &id, NULL, NULL), SHU_E_RANGE);
                x[at] = -INFINITY; /* legal: a token the model rules out */
                assert_int_equal(sampler_draw(sampler, x, NULL, NULL, 0, &id, NULL, NULL), SHU_OK);
                assert_int_not_equal(id, at);
                sampler_free(sampler);
            }
        }
    }
}

static void bad_options_are_named(void **state) {
    (void)state;
    static const struct {
        struct sampler_options options;
        const char *name;
    } cases[] = {
        {{.temperature = -1, .top_p = 1, .repetition = 1}, "temperature"},
        {{.temperature = NAN, .top_p = 1, .repetition = 1}, "temperature"},
        {{.top_k = -1, .top_p = 1, .repetition = 1}, "top-k"},
        {{.top_p = 1.5f, .repetition = 1}, "top-p"},
        {{.top_p = 1, .min_p = -0.1f, .repetition = 1}, "min-p"},
        {{.top_p = 1, .repetition = 0}, "repetition"},
        {{.top_p = 1, .repetition = 1, .presence = NAN}, "presence"},
        {{.top_p = 1, .repetition = 1, .penalty_last = -1}, "look back"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sampler *sampler = NULL;
        struct shu_error err = {0};
        assert_int_equal(sampler_new(&cases[i].options, V, &sampler, &err), SHU_E_USAGE);
        assert_non_null(strstr(err.message, cases[i].name));
        assert_null(sampler);
    }
}

static void logprobs_match_double(void **state) {
    (void)state;
    enum { BIG = 5003 };
    float *x = malloc(BIG * sizeof *x);
    fill(x, BIG, 11, 4);
    double sum = 0;
    for (int i = 0; i < BIG; i++) sum += exp((double)x[i]);
    int32_t ids[20];
    float logprobs[20];
    top_logprobs(x, BIG, 20, ids, logprobs);
    for (int i = 0; i < 20; i++) {
        assert_true(fabs(logprobs[i] - ((double)x[ids[i]] - log(sum))) < 2e-6);
        assert_true((float)token_logprob(x, BIG, ids[i]) == logprobs[i]);
        int better = 0;
        for (int j = 0; j < BIG; j++) better += x[j] > x[ids[i]] || (x[j] == x[ids[i]] && j < ids[i]);
        assert_int_equal(better, i);
    }
    struct sampler_options o;
    sampler_greedy(&o);
    o.presence = 50; /* the reported probability is the model's, not the penalised one */
    struct sampler *sampler = make(&o, BIG);
    int32_t id;
    float logprob;
    assert_int_equal(sampler_draw(sampler, x, NULL, ids, 1, &id, &logprob, NULL), SHU_OK);
    assert_int_equal(id, ids[1]);
    assert_true(fabsf(logprob - logprobs[1]) < 1e-6f);
    sampler_free(sampler);
    top_logprobs(x, 3, 5, ids, logprobs); /* fewer tokens than asked for */
    assert_int_equal(ids[3], -1);
    assert_int_equal(ids[4], -1);
    free(x);
}

static void weights_are_exact_enough(void **state) {
    (void)state;
    double worst = 0;
    for (int i = 0; i < 87000; i++) {
        float x = -(float)i / 1000, w;
        double sum = logits_weights(&x, 1, 0, 1, &w);
        double error = fabs(w / exp((double)x) - 1);
        worst = error > worst ? error : worst;
        assert_true(sum == (double)w);
    }
    assert_true(worst < 3e-7);
    float zero = 0, w;
    logits_weights(&zero, 1, 0, 1, &w);
    assert_true(w == 1.0f); /* min-p relies on it */
}

#ifdef SHU_FAULTS
static void allocation_failures(void **state) {
    (void)state;
    struct sampler_options o;
    sampler_defaults(&o);
    long k = 0;
    for (int status = SHU_E_NOMEM; status != SHU_OK;) {
        struct sampler *sampler = NULL;
        fault_arm(FAULT_ALLOC, ++k);
        status = sampler_new(&o, V, &sampler, NULL);
        fault_arm(FAULT_ALLOC, 0);
        assert_true(status == SHU_OK || status == SHU_E_NOMEM);
        assert_true((status == SHU_OK) == (sampler != NULL));
        sampler_free(sampler);
    }
    assert_true(k > 3);
    float x[V];
    fill(x, V, 1, 1);
    struct sampler *sampler = make(&o, V);
    fault_arm(FAULT_ALLOC, 1);
    for (int i = 0; i < 100; i++) draw_plain(sampler, x);
    assert_int_equal(fault_count(FAULT_ALLOC), 0); /* a draw allocates nothing */
    fault_arm(FAULT_ALLOC, 0);
    sampler_free(sampler);
}
#endif

/* Not a bar, a number to look at: the largest vocabulary of any model we load. */
static void speed_is_printed(void **state) {
    (void)state;
    enum { BIG = 262144, RUNS = 50 };
    static const struct {
        const char *name;
        struct sampler_options options;
    } cases[] = {
        {"greedy", {.top_p = 1, .repetition = 1}},
        {"top-k 40, top-p 0.9", {.temperature = .7f, .top_k = 40, .top_p = .9f, .repetition = 1}},
        {"top-p 0.9", {.temperature = 1, .top_p = .9f, .repetition = 1}},
        {"peaked, top-p 0.9", {.temperature = .5f, .top_p = .9f, .repetition = 1}},
        {"everything off", {.temperature = 1, .top_p = 1, .repetition = 1}},
    };
    float *x = malloc(BIG * sizeof *x);
    fill(x, BIG, 1, 2);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct sampler *sampler = make(&cases[c].options, BIG);
        draw_plain(sampler, x);
        uint64_t best = UINT64_MAX;
        for (int i = 0; i < RUNS; i++) {
            uint64_t start = clock_ns();
            draw_plain(sampler, x);
            uint64_t took = clock_ns() - start;
            best = took < best ? took : best;
        }
        print_message("V=%d %-20s %.3f ms\n", BIG, cases[c].name, (double)best / 1e6);
        sampler_free(sampler);
    }
    uint64_t start = clock_ns();
    double sum = logits_log_sum(x, BIG);
    print_message("V=%d log-sum %.3f ms (%g)\n", BIG, (double)(clock_ns() - start) / 1e6, sum);
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chain_matches_reference),  cmocka_unit_test(top_p_boundary),
        cmocka_unit_test(min_p_boundary),           cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(same_seed_same_tokens),    cmocka_unit_test(penalties_as_defined),
        cmocka_unit_test(mask_is_obeyed),           cmocka_unit_test(bad_logits_are_errors),
        cmocka_unit_test(bad_options_are_named),    cmocka_unit_test(logprobs_match_double),
        cmocka_unit_test(weights_are_exact_enough),
#ifdef SHU_FAULTS
        cmocka_unit_test(allocation_failures),
#endif
        cmocka_unit_test(speed_is_printed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
