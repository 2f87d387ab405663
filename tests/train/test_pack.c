/* Packs: every sequence once an epoch, in an order that follows from seed and epoch alone. */
#include "train/tiny_data.h"

enum { DOCUMENTS = 300 };

static void write_documents(struct tiny_data *tiny, bool pairs) {
    struct buf text = {0};
    struct rng rng;
    rng_seed(&rng, 5);
    for (int i = 0; i < DOCUMENTS; i++) {
        char word[64] = {0};
        size_t length = 2 + (size_t)(rng_next(&rng) % 50);
        for (size_t c = 0; c < length; c++) word[c] = (char)('A' + rng_next(&rng) % 26);
        if (pairs)
            buf_printf(&text, "{\"prompt\":\"q\",\"chosen\":\"%s\",\"rejected\":\"B %d\"}\n", word, i);
        else
            buf_printf(&text, "{\"text\":\"%s %d\"}\n", word, i);
    }
    write_text(tiny->data, text.data, text.len);
    buf_free(&text);
}

/* Order of all sequences of an epoch as one hash; counts each in seen[]. */
static uint64_t walk(struct tiny_data *tiny, bool held_out, int64_t epoch, int *seen, double *fill) {
    int64_t packs, rows = 0;
    uint64_t hash = 1;
    MUST(trainset_packs(tiny->set, held_out, epoch, &packs, &must));
    for (int64_t p = 0; p < packs; p++) {
        struct train_pack pack;
        MUST(trainset_pack(tiny->set, held_out, epoch, p, &pack, &must));
        assert_true(pack.rows > 0 && pack.rows <= trainset_pack_rows(tiny->set));
        rows += pack.rows;
        for (int64_t s = 0; s < pack.sequences; s++) {
            seen[pack.sequence[s]]++;
            hash = hash * 31 + (uint64_t)pack.sequence[s];
        }
        hash = hash * 31 + 999983;
    }
    if (fill) *fill = (double)rows / (double)(packs * trainset_pack_rows(tiny->set));
    return hash;
}

static void every_sequence_comes_once_an_epoch(void **state) {
    (void)state;
    struct tiny_data tiny;
    double fill;
    uint64_t hash[3];
    tiny_data_new(&tiny, ".jsonl");
    write_documents(&tiny, false);
    MUST(tiny_data_open(&tiny, NULL, &must));
    for (int epoch = 0; epoch < 3; epoch++) {
        int seen[DOCUMENTS] = {0};
        hash[epoch] = walk(&tiny, false, epoch, seen, &fill);
        for (int i = 0; i < DOCUMENTS; i++) assert_int_equal(seen[i], 1);
        assert_true(fill > 0.9);
    }
    assert_true(hash[0] != hash[1] && hash[1] != hash[2]);
    tiny_data_free(&tiny);
}

static void order_follows_from_seed_and_epoch_alone(void **state) {
    (void)state;
    struct tiny_data tiny;
    int seen[DOCUMENTS] = {0};
    tiny_data_new(&tiny, ".jsonl");
    write_documents(&tiny, false);
    MUST(tiny_data_open(&tiny, NULL, &must));
    walk(&tiny, false, 0, seen, NULL);
    uint64_t third = walk(&tiny, false, 2, seen, NULL);
    MUST(tiny_data_open(&tiny, NULL, &must));
    assert_true(walk(&tiny, false, 2, seen, NULL) == third); /* without epochs 0 and 1 before it */
    tiny.options.seed = 2;
    MUST(tiny_data_open(&tiny, NULL, &must));
    assert_true(tiny.report.reused); /* the seed orders, it does not tokenise */
    assert_true(walk(&tiny, false, 2, seen, NULL) != third);
    tiny_data_free(&tiny);
}

static void a_share_of_documents_is_held_out(void **state) {
    (void)state;
    struct tiny_data tiny;
    int seen[DOCUMENTS] = {0}, held[DOCUMENTS] = {0};
    tiny_data_new(&tiny, ".jsonl");
    write_documents(&tiny, false);
    tiny.options.held_out = 0.2;
    MUST(tiny_data_open(&tiny, NULL, &must));
    walk(&tiny, false, 0, seen, NULL);
    uint64_t order = walk(&tiny, true, 0, held, NULL);
    for (int i = 0; i < DOCUMENTS; i++) assert_int_equal(seen[i] + held[i], 1);
    assert_in_range(tiny.report.held_out, 35, 85);
    assert_true(walk(&tiny, true, 7, held, NULL) == order); /* evaluations compare */
    tiny_data_free(&tiny);
}

/* Copies of a document, and all that one passage taught, lie on one side. */
static void copies_stay_on_one_side(void **state) {
    (void)state;
    struct tiny_data tiny;
    struct buf text = {0};
    int held[40] = {0};
    tiny_data_new(&tiny, ".jsonl");
    for (int i = 0; i < 20; i++) buf_printf(&text, "{\"text\":\"DOC %d\",\"id\":\"%d\"}\n", i % 5, i);
    for (int i = 0; i < 20; i++) buf_printf(&text, "{\"text\":\"Q %d\",\"passages\":[\"p%d\",\"x%d\"]}\n", i, i % 5, i);
    tiny.options.held_out = 0.5;
    MUST(tiny_data_open(&tiny, text.data, &must));
    walk(&tiny, true, 0, held, NULL);
    for (int i = 0; i < 40; i++) assert_int_equal(held[i], held[i / 20 * 20 + i % 5]);
    assert_in_range(tiny.report.held_out, 1, 39);
    tiny.options.held_out = 0.9;
    struct shu_error err = {0};
    assert_int_equal(tiny_data_open(&tiny, "{\"text\":\"A\"}\n", &err), SHU_E_FORMAT);
    assert_contains(err.message, "every sequence is held out");
    buf_free(&text);
    tiny_data_free(&tiny);
}

static void pairs_are_never_parted(void **state) {
    (void)state;
    struct tiny_data tiny;
    int seen[2 * DOCUMENTS] = {0};
    struct train_pack pack;
    int64_t packs;
    tiny_data_new(&tiny, ".jsonl");
    write_documents(&tiny, true);
    tiny.options.preference = true;
    tiny.options.context = 80;
    MUST(tiny_data_open(&tiny, NULL, &must));
    assert_int_equal(trainset_pack_rows(tiny.set), 160);
    walk(&tiny, false, 0, seen, NULL);
    for (int i = 0; i < 2 * DOCUMENTS; i++) assert_int_equal(seen[i], 1);
    MUST(trainset_packs(tiny.set, false, 0, &packs, &must));
    for (int64_t p = 0; p < packs; p++) {
        MUST(trainset_pack(tiny.set, false, 0, p, &pack, &must));
        assert_int_equal(pack.sequences % 2, 0);
    }
    tiny_data_free(&tiny);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_sequence_comes_once_an_epoch),
        cmocka_unit_test(order_follows_from_seed_and_epoch_alone),
        cmocka_unit_test(a_share_of_documents_is_held_out),
        cmocka_unit_test(copies_stay_on_one_side),
        cmocka_unit_test(pairs_are_never_parted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
