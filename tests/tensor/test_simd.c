/* The vocabulary of the scalar kernels, piece by piece against the C library: what the other sets have as instructions
 * is put together there, and must be the same bits. */
#include "check.h"

#include "tensor/simd_scalar.h"

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Any bits; or few mantissa bits, so that sums end halfway between two floats; or of moderate size. */
static float any_float(struct rng *rng) {
    uint32_t bits = (uint32_t)rng_next(rng);
    switch (rng_next(rng) % 4) {
    case 0:
        return float_of(bits);
    case 1:
        return float_of((bits & 0x80000fffu) | (100 + (uint32_t)(rng_next(rng) % 40)) << 23);
    case 2:
        return float_of(bits & 0xfffff000u);
    default:
        return float_of((bits & 0x807fffffu) | (115 + (uint32_t)(rng_next(rng) % 24)) << 23);
    }
}

/* c near -a * b, and far below or above it. */
static float near_product(struct rng *rng, float a, float b) {
    float product = a * b;
    switch (rng_next(rng) % 4) {
    case 0:
        return float_of(bits_of(-product) + (uint32_t)(rng_next(rng) % 3) - 1);
    case 1:
        return ldexpf(rng_next(rng) % 2 ? -product : product, (int)(rng_next(rng) % 60) - 30);
    default:
        return any_float(rng);
    }
}

/* a * b lies a hair below half a unit of c: in double the sum ends halfway between two floats, and rounds the wrong
 * way from there. */
static void almost_halfway(struct rng *rng, float *a, float *b, float *c) {
    float step = ldexpf((float)(1 + rng_next(rng) % 7), -23);
    int size = (int)(rng_next(rng) % 100) - 80;
    *a = ldexpf(1 + step, size);
    *b = rng_next(rng) % 2 ? step - 1 : 1 - step;
    *c = ldexpf((float)((1 << 23) + (int)(rng_next(rng) % (1 << 23))), size + 1);
}

static void test_fma_rounds_once(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 1);
    int64_t twice = 0;
    for (int round = 0; round < 300000; round++) {
        float a[4], b[4], c[4], want[4], got[4];
        for (int i = 0; i < 4; i++) {
            a[i] = any_float(&rng), b[i] = any_float(&rng), c[i] = near_product(&rng, a[i], b[i]);
            if (i == 3) almost_halfway(&rng, &a[i], &b[i], &c[i]);
            want[i] = fmaf(a[i], b[i], c[i]);
            float through_double = (float)((double)a[i] * (double)b[i] + (double)c[i]);
            twice += bits_differ(&through_double, &want[i], 1) == 0;
        }
        v_store(got, v_fma(v_load(a), v_load(b), v_load(c)));
        int64_t at = bits_differ(got, want, 4);
        if (at >= 0)
            fail_msg("%a * %a + %a: %a instead of %a", (double)a[at], (double)b[at], (double)c[at], (double)got[at],
                     (double)want[at]);
        for (int i = 0; i < 4; i++) want[i] = fmaf(-a[i], b[i], c[i]);
        v_store(got, v_fnma(v_load(a), v_load(b), v_load(c)));
        assert_int_equal(bits_differ(got, want, 4), -1);
    }
    assert_true(twice > 10000); /* control: rounding in double first shows on these numbers */
}

/* A chain as kernels write it: compilers must not carry unrounded values from one link to the next. */
__attribute__((noinline)) static vec chain(vec x) {
    vec p = v_fma(v_set1(0.00138146f), x, v_set1(0.00836872f));
    p = v_fma(p, x, v_set1(0.04166839f));
    p = v_fma(p, x, v_set1(0.49999993f));
    return v_fma(v_mul(p, x), x, x);
}

static void test_fma_chain(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 2);
    for (int round = 0; round < 300000; round++) {
        float x[4], got[4], want[4];
        for (int i = 0; i < 4; i++) {
            x[i] = 0.3f * rng_normal(&rng);
            float p = fmaf(0.00138146f, x[i], 0.00836872f);
            p = fmaf(p, x[i], 0.04166839f);
            p = fmaf(p, x[i], 0.49999993f);
            want[i] = fmaf(p * x[i], x[i], x[i]);
        }
        v_store(got, chain(v_load(x)));
        assert_int_equal(bits_differ(got, want, 4), -1);
    }
}

static void test_round_and_ldexp(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 3);
    for (int round = 0; round < 100000; round++) {
        float x[4], n[4], got[4], want[4];
        for (int i = 0; i < 4; i++) {
            x[i] = any_float(&rng);
            if (i == 0) x[i] = (float)((int)(rng_next(&rng) % 2001) - 1000) * 0.5f; /* halfway */
            want[i] = nearbyintf(x[i]);
        }
        v_store(got, v_round(v_load(x)));
        assert_int_equal(bits_differ(got, want, 4), -1);
        for (int i = 0; i < 4; i++) {
            x[i] = 0.7f + 0.7f * (float)rng_uniform(&rng); /* what is left of an exponential */
            n[i] = (float)((int)(rng_next(&rng) % 280) - 151);
            want[i] = ldexpf(x[i], (int)n[i]);
        }
        v_store(got, v_ldexp(v_load(x), v_load(n)));
        assert_int_equal(bits_differ(got, want, 4), -1);
    }
}

static void test_every_half(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits += 4) {
        uint16_t in[4];
        float got[4], half[4], brain[4];
        for (uint32_t i = 0; i < 4; i++) {
            in[i] = (uint16_t)(bits + i);
            half[i] = f16_to_f32(in[i]);
            brain[i] = bf16_to_f32(in[i]);
        }
        v_store(got, v_load_f16(in));
        assert_int_equal(bits_differ(got, half, 4), -1);
        v_store(got, v_load_bf16(in));
        assert_int_equal(bits_differ(got, brain, 4), -1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fma_rounds_once),
        cmocka_unit_test(test_fma_chain),
        cmocka_unit_test(test_round_and_ldexp),
        cmocka_unit_test(test_every_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
