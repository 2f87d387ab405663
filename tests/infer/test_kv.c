/* Page accounting of the KV cache: sharing, copy-on-write, conservation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "infer/kv.h"

enum { CONTEXT = 300, PAGES = 12, SEQUENCES = 6 };

static void make(struct kv_cache *cache, enum kv_type type) {
    struct kv_geometry geometry = {.type = type,
                                   .layers = 3,
                                   .kv_heads = 2,
                                   .head_dim = 16,
                                   .context = CONTEXT,
                                   .positions = PAGES * KV_PAGE - 5,
                                   .max_sequences = SEQUENCES};
    struct shu_error err = {0};
    assert_int_equal(kv_cache_init(cache, &geometry, &err), SHU_OK);
    assert_int_equal(cache->pages, PAGES);
}

/* Every page is free, or has as many owners as tables that hold it; no page is both or lost. */
static void check_conservation(const struct kv_cache *cache) {
    uint32_t owners[PAGES] = {0};
    for (int s = 0; s < SEQUENCES; s++) {
        const struct kv_sequence *seq = &cache->sequence[s];
        if (!seq->used) continue;
        for (int i = 0; i * KV_PAGE < seq->length; i++) owners[seq->table[i]]++;
    }
    int free_pages = 0;
    for (int p = 0; p < PAGES; p++) {
        assert_int_equal(owners[p], cache->refs[p]);
        free_pages += owners[p] == 0;
    }
    assert_int_equal(free_pages, cache->free_count);
    for (int i = 0; i < cache->free_count; i++) assert_int_equal(cache->refs[cache->free_list[i]], 0);
}

static void append(struct kv_cache *cache, int sequence, int count) {
    int32_t tokens[CONTEXT];
    for (int i = 0; i < count; i++) tokens[i] = i;
    int needed = kv_pages_needed(cache, sequence, count), before = cache->free_count;
    assert_true(count <= kv_room(cache, sequence));
    kv_extend(cache, sequence, tokens, count);
    assert_int_equal(before - cache->free_count, needed);
    check_conservation(cache);
}

static void pages_come_and_go(void **state) {
    (void)state;
    struct kv_cache cache;
    make(&cache, KV_F16);
    int a = kv_sequence_new(&cache);
    append(&cache, a, 1);
    append(&cache, a, KV_PAGE - 1);
    assert_int_equal(cache.free_count, PAGES - 1);
    append(&cache, a, 1);
    assert_int_equal(cache.free_count, PAGES - 2);
    kv_truncate(&cache, a, KV_PAGE);
    assert_int_equal(cache.free_count, PAGES - 1);
    kv_truncate(&cache, a, KV_PAGE - 1);
    assert_int_equal(cache.free_count, PAGES - 1);
    kv_sequence_free(&cache, a);
    assert_int_equal(cache.free_count, PAGES);
    assert_false(kv_valid(&cache, a));
    assert_false(kv_valid(&cache, -1));
    assert_false(kv_valid(&cache, SEQUENCES));
    kv_cache_free(&cache);
}

static void room_is_the_least_of_context_and_pages(void **state) {
    (void)state;
    struct kv_cache cache;
    make(&cache, KV_F16);
    int a = kv_sequence_new(&cache), b = kv_sequence_new(&cache), c = kv_sequence_new(&cache);
    assert_int_equal(kv_room(&cache, a), CONTEXT);
    append(&cache, a, CONTEXT); /* 5 pages */
    assert_int_equal(kv_room(&cache, a), 0);
    append(&cache, b, CONTEXT);
    assert_int_equal(kv_room(&cache, c), 2 * KV_PAGE);
    append(&cache, c, 2 * KV_PAGE);
    assert_int_equal(kv_room(&cache, c), 0);
    kv_truncate(&cache, c, 70);
    assert_int_equal(kv_room(&cache, c), 2 * KV_PAGE - 70);
    int d = kv_sequence_fork(&cache, c); /* the shared last page must be copied, and no page is left */
    assert_int_equal(kv_room(&cache, d), 0);
    assert_int_equal(kv_pages_needed(&cache, d, 1), 1);
    kv_cache_free(&cache);
}

static void fork_copies_only_what_is_written(void **state) {
    (void)state;
    struct kv_cache cache;
    make(&cache, KV_Q8);
    int a = kv_sequence_new(&cache);
    append(&cache, a, KV_PAGE + 10);
    for (int i = 0; i < 2; i++) memset(kv_group(&cache, cache.sequence[a].table[i]), 'a' + i, cache.group_bytes);
    int b = kv_sequence_fork(&cache, a);
    check_conservation(&cache);
    assert_int_equal(cache.free_count, PAGES - 2);
    int32_t shared = cache.sequence[a].table[1];
    append(&cache, b, 1); /* b gets its own copy, with the content; a keeps the page */
    assert_int_equal(cache.sequence[a].table[1], shared);
    assert_int_not_equal(cache.sequence[b].table[1], shared);
    assert_int_equal(cache.sequence[b].table[0], cache.sequence[a].table[0]);
    assert_memory_equal(kv_group(&cache, cache.sequence[b].table[1]), kv_group(&cache, shared), cache.group_bytes);
    int before = cache.free_count;
    append(&cache, a, 1); /* sole owner again: no copy */
    assert_int_equal(cache.free_count, before);
    kv_sequence_free(&cache, a);
    check_conservation(&cache);
    kv_sequence_free(&cache, b);
    assert_int_equal(cache.free_count, PAGES);
    kv_cache_free(&cache);
}

/* A thousand random operations never lose, double or leak a page. */
static void random_operations_conserve_pages(void **state) {
    (void)state;
    struct kv_cache cache;
    struct rng rng;
    make(&cache, KV_F16);
    rng_seed(&rng, 7);
    int forks = 0;
    for (int step = 0; step < 4000; step++) {
        int s = (int)(rng_next(&rng) % SEQUENCES);
        uint64_t what = rng_next(&rng) % 8;
        if (!kv_valid(&cache, s)) {
            kv_sequence_new(&cache);
        } else if (what == 0) {
            kv_sequence_free(&cache, s);
        } else if (what == 1) {
            forks += kv_sequence_fork(&cache, s) >= 0;
        } else if (what == 2) {
            kv_truncate(&cache, s, (int)(rng_next(&rng) % (uint64_t)(cache.sequence[s].length + 1)));
        } else if (kv_room(&cache, s) > 0) {
            int count = 1 + (int)(rng_next(&rng) % (uint64_t)kv_room(&cache, s)) % 50;
            append(&cache, s, count);
        }
        check_conservation(&cache);
    }
    assert_true(forks > 50);
    kv_cache_free(&cache);
}

static void tail_is_cleared_and_nothing_else(void **state) {
    (void)state;
    for (int type = KV_F16; type <= KV_Q8; type++) {
        struct kv_cache cache;
        make(&cache, (enum kv_type)type);
        int a = kv_sequence_new(&cache);
        append(&cache, a, KV_PAGE);
        uint8_t *group = kv_group(&cache, cache.sequence[a].table[0]);
        for (int first = 0; first <= KV_PAGE; first += 7) {
            memset(group, 0x5A, cache.group_bytes);
            kv_clear_tail(&cache, group, first);
            size_t zero = 0, used = (size_t)cache.layers * cache.page_bytes;
            for (size_t i = 0; i < used; i++) zero += group[i] == 0;
            assert_int_equal(zero, used / KV_PAGE * (size_t)(KV_PAGE - first)); /* all parts scale with positions */
        }
        /* position 17 is lane 1 of tile 1: dimension 3 of K, and row 17 of V */
        memset(group, 0x5A, cache.group_bytes);
        kv_clear_tail(&cache, group, 17);
        size_t each = type == KV_F16 ? 2 : 1;
        assert_int_equal(group[((16 + 3) * 16 + 0) * each], 0x5A);
        assert_int_equal(group[((16 + 3) * 16 + 1) * each], 0);
        uint8_t *v = group + KV_PAGE * 16 * each;
        assert_int_equal(v[16 * 16 * each], 0x5A);
        assert_int_equal(v[17 * 16 * each], 0);
        kv_cache_free(&cache);
    }
}

static void absurd_sizes_are_refused(void **state) {
    (void)state;
    struct kv_cache cache;
    struct kv_geometry geometry = {.type = KV_F16,
                                   .layers = 1 << 30,
                                   .kv_heads = 1 << 30,
                                   .head_dim = 1 << 20,
                                   .context = 64,
                                   .positions = 64,
                                   .max_sequences = 1};
    struct shu_error err = {0};
    assert_int_equal(kv_cache_init(&cache, &geometry, &err), SHU_E_RANGE);
    geometry = (struct kv_geometry){.layers = 1,
                                    .kv_heads = 1,
                                    .head_dim = 64,
                                    .context = 64,
                                    .positions = (int64_t)INT32_MAX * KV_PAGE + 1,
                                    .max_sequences = 1};
    assert_int_equal(kv_cache_init(&cache, &geometry, &err), SHU_E_RANGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_come_and_go),
        cmocka_unit_test(room_is_the_least_of_context_and_pages),
        cmocka_unit_test(fork_copies_only_what_is_written),
        cmocka_unit_test(random_operations_conserve_pages),
        cmocka_unit_test(tail_is_cleared_and_nothing_else),
        cmocka_unit_test(absurd_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
