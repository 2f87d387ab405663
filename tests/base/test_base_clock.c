/* Clock, memory figures, progress lines, random numbers. */
#include "check.h"

#include <fcntl.h>
#include <math.h>
#include <time.h>
#include <unistd.h>

static void clock_advances(void **state) {
    (void)state;
    uint64_t start = clock_ns();
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    uint64_t took = clock_ns() - start;
    assert_in_range(took, 5000000, 5000000000);
}

static void resident_memory_follows_use(void **state) {
    (void)state;
    enum { BYTES = 64 << 20 };
    uint64_t before = rss_bytes();
    assert_true(before > 100000);
    uint8_t *block = mem_alloc_large(BYTES);
    memset(block, 1, BYTES);
    assert_true(rss_bytes() >= before + BYTES / 2);
    mem_free_large(block, BYTES);
    assert_true(rss_peak_bytes() >= before + BYTES / 2);
}

/* What `body` writes to stderr, which is a pipe here and so no terminal. */
static void capture_stderr(void (*body)(void), char *text, size_t size) {
    int ends[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    body();
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(ends[1]);
    close(saved);
    ssize_t count = read(ends[0], text, size - 1);
    text[count > 0 ? count : 0] = '\0';
    close(ends[0]);
}

static void slow_work(void) {
    struct progress progress;
    progress_start(&progress, "pull", "B", 300 << 20, false);
    progress_update(&progress, 1 << 20); /* too early for a line */
    progress.start_ns -= 20000000000u;   /* twenty seconds ago */
    progress.drawn_ns = progress.start_ns;
    progress_update(&progress, 100 << 20);
    progress_update(&progress, 200 << 20);
    progress.done = 300 << 20;
    progress_finish(&progress);
    progress_finish(&progress);
}

static void quick_work(void) {
    struct progress progress;
    progress_start(&progress, "pull", "B", 10, false);
    progress_update(&progress, 10);
    progress_finish(&progress);
}

static void quiet_work(void) {
    struct progress progress;
    progress_start(&progress, "pull", "B", 10, true);
    progress.start_ns -= 20000000000u;
    progress_update(&progress, 10);
    progress_finish(&progress);
}

static void terminal_work(void) {
    struct progress progress;
    progress_start(&progress, "load", "tensors", 200, false);
    progress.terminal = true;
    progress.start_ns -= 2000000000u;
    progress.drawn_ns = progress.start_ns;
    progress_update(&progress, 50);
    progress_finish(&progress);
}

static void progress_speaks_when_it_should(void **state) {
    (void)state;
    char text[2000];
    capture_stderr(slow_work, text, sizeof text);
    assert_string_equal(text, "pull:  33%  100.0 MiB of 300.0 MiB  5.0 MiB/s  ETA 0:40\n"
                              "pull: 100%  300.0 MiB of 300.0 MiB  15.0 MiB/s  in 0:20\n");
    capture_stderr(quick_work, text, sizeof text);
    assert_string_equal(text, "");
    capture_stderr(quiet_work, text, sizeof text);
    assert_string_equal(text, "");
    capture_stderr(terminal_work, text, sizeof text);
    assert_contains(text, "\rload  [");
    assert_contains(text, " 25%  50 tensors of 200 tensors  25.0 tensors/s  ETA 0:06\033[K");
    assert_int_equal(text[strlen(text) - 1], '\n');
}

static void random_numbers_are_the_published_ones(void **state) {
    (void)state;
    /* xoshiro256** from state {1, 2, 3, 4}: values of the rand_xoshiro reference test. */
    struct rng rng = {{1, 2, 3, 4}};
    static const uint64_t expected[] = {11520u, 0u, 1509978240u, 1215971899390074240u, 1216172134540287360u};
    for (size_t i = 0; i < 5; i++) assert_true(rng_next(&rng) == expected[i]);
    /* splitmix64 from seed 0 */
    rng_seed(&rng, 0);
    assert_true(rng.state[0] == 0xe220a8397b1dcdafu);
    assert_true(rng.state[1] == 0x6e789e6aa1b965f4u);
}

static void random_numbers_have_their_distribution(void **state) {
    (void)state;
    struct rng rng;
    rng_seed(&rng, 42);
    double sum = 0, low = 1, high = 0, normal = 0, square = 0;
    enum { COUNT = 200000 };
    for (int i = 0; i < COUNT; i++) {
        double u = rng_uniform(&rng), n = rng_normal(&rng);
        sum += u;
        low = fmin(low, u);
        high = fmax(high, u);
        normal += n;
        square += n * n;
        assert_true(isfinite(n));
    }
    assert_true(low >= 0 && high < 1);
    assert_true(fabs(sum / COUNT - 0.5) < 0.005);
    assert_true(fabs(normal / COUNT) < 0.01);
    assert_true(fabs(square / COUNT - 1) < 0.02);
    struct rng other;
    rng_seed(&other, 43);
    rng_seed(&rng, 42);
    assert_true(rng_next(&rng) != rng_next(&other));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clock_advances),
        cmocka_unit_test(resident_memory_follows_use),
        cmocka_unit_test(progress_speaks_when_it_should),
        cmocka_unit_test(random_numbers_are_the_published_ones),
        cmocka_unit_test(random_numbers_have_their_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
