/* Memory: limits, overflow, alignment, and the k-th allocation failing. */
#include "check.h"

static void sizes_of_zero_and_overflow(void **state) {
    (void)state;
    void *a = mem_alloc(0), *b = mem_alloc(0);
    assert_non_null(a);
    assert_non_null(b);
    assert_ptr_not_equal(a, b);
    mem_free(a);
    mem_free(b);
    mem_free(NULL);
    assert_null(mem_calloc(SIZE_MAX / 2, 3));
    assert_null(mem_strndup("x", SIZE_MAX));
    size_t out = 0;
    assert_true(size_mul(SIZE_MAX, 2, &out));
    assert_false(size_mul(6, 7, &out));
    assert_int_equal(out, 42);
    assert_true(size_add(SIZE_MAX, 1, &out));
}

static void strndup_copies_exactly(void **state) {
    (void)state;
    char *copy = mem_strndup("abcdef", 3);
    assert_string_equal(copy, "abc");
    mem_free(copy);
    copy = mem_strndup(NULL, 0);
    assert_string_equal(copy, "");
    mem_free(copy);
}

static void large_blocks_are_zero_and_aligned(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 4097, (2u << 20) - 1, 2u << 20, (2u << 20) + 1, (9u << 20) + 12345};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *block = mem_alloc_large(sizes[i]);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        for (size_t at = 0; at < sizes[i]; at += 61) assert_int_equal(block[at], 0);
        if (sizes[i]) memset(block, 0xa5, sizes[i]);
        mem_free_large(block, sizes[i]);
    }
    mem_free_large(NULL, 5);
    assert_null(mem_alloc_large(SIZE_MAX - 100));
    assert_null(mem_alloc_large(SIZE_MAX));
}

static void arena_aligns_zeroes_and_limits(void **state) {
    (void)state;
    struct arena arena;
    arena_init(&arena, 100000);
    size_t total = 0;
    for (size_t bytes = 0; bytes < 300; bytes++) {
        uint8_t *block = arena_alloc(&arena, bytes);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 16, 0);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(block[i], 0);
        memset(block, 0xff, bytes);
        total += bytes ? (bytes + 15) / 16 * 16 : 16;
        assert_int_equal(arena.used_bytes, total);
    }
    assert_null(arena_alloc(&arena, 100000));
    assert_null(arena_alloc(&arena, SIZE_MAX));
    assert_non_null(arena_alloc(&arena, 100000 - total - 16)); /* a refusal costs nothing */
    arena_free(&arena);
    assert_int_equal(arena.used_bytes, 0);
    char *text = arena_strndup(&arena, "hello world", 5); /* usable again */
    assert_string_equal(text, "hello");
    arena_free(&arena);
}

static void arena_limit_is_exact(void **state) {
    (void)state;
    struct arena arena;
    arena_init(&arena, 64);
    for (int i = 0; i < 4; i++) assert_non_null(arena_alloc(&arena, 16));
    assert_null(arena_alloc(&arena, 1));
    arena_free(&arena);
}

static void buf_stops_at_its_maximum(void **state) {
    (void)state;
    struct buf buf = {.max = 10};
    assert_int_equal(buf_puts(&buf, "12345"), SHU_OK);
    assert_int_equal(buf_puts(&buf, "67890"), SHU_OK);
    assert_int_equal(buf_putc(&buf, 'x'), SHU_E_RANGE);
    assert_int_equal(buf_printf(&buf, "%d", 1), SHU_E_RANGE);
    assert_int_equal(buf_reserve(&buf, SIZE_MAX), SHU_E_RANGE);
    assert_string_equal(buf.data, "1234567890");
    assert_int_equal(buf.len, 10);
    buf_clear(&buf);
    assert_string_equal(buf.data, "");
    assert_int_equal(buf_printf(&buf, "%s-%03d", "ab", 7), SHU_OK);
    assert_string_equal(buf.data, "ab-007");
    buf_free(&buf);
    assert_null(buf.data);
}

static void buf_grows_and_stays_terminated(void **state) {
    (void)state;
    struct buf buf = {0};
    assert_int_equal(buf_append(&buf, NULL, 0), SHU_OK);
    assert_string_equal(buf.data, ""); /* never NULL after a success */
    for (int i = 0; i < 5000; i++) {
        assert_int_equal(buf_printf(&buf, "%d,", i), SHU_OK);
        assert_int_equal(buf.data[buf.len], '\0');
        assert_true(buf.cap > buf.len);
    }
    assert_int_equal(strncmp(buf.data, "0,1,2,3,4,5,6,7,8,9,10,", 23), 0);
    assert_int_equal(strcmp(buf.data + buf.len - 5, "4999,"), 0);
    buf_free(&buf);
}

static int build_something(void) {
    struct buf buf = {0};
    struct arena arena;
    arena_init(&arena, 1 << 20);
    int status = SHU_OK;
    for (int i = 0; i < 100 && !status; i++) status = buf_printf(&buf, "line %d\n", i);
    for (int i = 0; i < 100 && !status; i++) status = arena_alloc(&arena, 1000) ? SHU_OK : SHU_E_NOMEM;
    char *copy = status ? NULL : mem_strdup(buf.data);
    if (!status && !copy) status = SHU_E_NOMEM;
    mem_free(copy);
    arena_free(&arena);
    buf_free(&buf);
    return status;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    long rounds;
    assert_fails_at_each(FAULT_ALLOC, SHU_E_NOMEM, build_something(), rounds);
    assert_in_range(rounds, 6, 100);
}

static void faults_fire_once_and_can_be_named(void **state) {
    (void)state;
    setenv("SHU_FAULT", "alloc:2", 1);
    fault_arm_from_env();
    unsetenv("SHU_FAULT");
    void *first = mem_alloc(8), *second = mem_alloc(8), *third = mem_alloc(8);
    assert_non_null(first);
    assert_null(second);
    assert_non_null(third);
    assert_int_equal(fault_count(FAULT_ALLOC), 3);
    fault_arm(FAULT_ALLOC, 0);
    mem_free(first);
    mem_free(third);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_of_zero_and_overflow),
        cmocka_unit_test(strndup_copies_exactly),
        cmocka_unit_test(large_blocks_are_zero_and_aligned),
        cmocka_unit_test(arena_aligns_zeroes_and_limits),
        cmocka_unit_test(arena_limit_is_exact),
        cmocka_unit_test(buf_stops_at_its_maximum),
        cmocka_unit_test(buf_grows_and_stays_terminated),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(faults_fire_once_and_can_be_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
