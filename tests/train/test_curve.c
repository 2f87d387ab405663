/* The loss curve: a whole picture of any data, of bounded size, without numbers that are none. */
#include "train/check.h"
#include "train/trainer.h"

#include <math.h>

static char *draw(const struct metrics_point *points, int64_t count, const char *title) {
    struct buf out = {0};
    assert_int_equal(curve_svg(points, count, title, &out), SHU_OK);
    char *copy = strdup(out.data);
    buf_free(&out);
    assert_int_equal(strncmp(copy, "<svg ", 5), 0);
    assert_string_equal(copy + strlen(copy) - 7, "</svg>\n");
    assert_null(strstr(copy, "nan"));
    assert_null(strstr(copy, "inf"));
    return copy;
}

static void any_data_gives_a_picture(void **state) {
    (void)state;
    const struct metrics_point one = {.step = 1, .loss = 2, .held_out = (double)NAN};
    const struct metrics_point odd[] = {{.step = 0, .loss = (double)NAN, .held_out = 3},
                                        {.step = 1, .loss = (double)INFINITY, .held_out = (double)NAN},
                                        {.step = 2, .loss = 1e30, .held_out = -5},
                                        {.step = 3, .loss = 0, .held_out = (double)NAN}};
    const struct metrics_point flat[] = {{.step = 1, .loss = 0, .held_out = 0}, {.step = 2, .loss = 0, .held_out = 0}};
    free(draw(NULL, 0, ""));
    free(draw(&one, 1, "one"));
    free(draw(odd, 4, "odd"));
    free(draw(flat, 2, "flat"));
}

static void titles_are_text(void **state) {
    (void)state;
    char *picture = draw(NULL, 0, "<script> & 川贝\n");
    assert_contains(picture, "&lt;script> &amp; 川贝 ");
    free(picture);
}

static void long_runs_stay_small(void **state) {
    (void)state;
    int64_t count = 200000;
    struct metrics_point *points = calloc((size_t)count, sizeof *points);
    for (int64_t i = 0; i < count; i++)
        points[i] = (struct metrics_point){.step = i, .loss = 5.0 / (1 + (double)i), .held_out = (double)NAN};
    char *picture = draw(points, count, "long");
    assert_true(strlen(picture) < 40000);
    assert_null(strstr(picture, "held out"));
    free(picture);
    free(points);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_data_gives_a_picture),
        cmocka_unit_test(titles_are_text),
        cmocka_unit_test(long_runs_stay_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
