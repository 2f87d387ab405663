/* Shards: what was written is read; nothing damaged or hostile gets through. */
#include "train/check.h"
#include "train/shard.h"

static const char digest[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/* Two sequences, one of them with passages. */
static char *make_shard(char path[TINY_PATH_BYTES], bool pairs, size_t *bytes) {
    struct shard_writer writer;
    const uint32_t one[] = {1, 2 | SHARD_LOSS, 3 | SHARD_LOSS}, two[] = {4, 5 | SHARD_LOSS};
    const struct span passages[] = {{"p", 1}, {"passage", 7}, {"", 0}};
    struct shard_sequence first = {.line = 1, .document = 11, .weight = 1},
                          second = {.line = 2, .document = 12, .weight = 2.5f, .flags = pairs ? SHARD_REJECTED : 1};
    tiny_path(path, ".shard");
    MUST(shard_writer_open(path, pairs, &writer, &must));
    MUST(shard_write(&writer, &first, one, 3, passages, 3, &must));
    MUST(shard_write(&writer, &second, two, 2, NULL, 0, &must));
    writer.counts.lines = 3;
    writer.counts.rejected = 1;
    MUST(shard_writer_commit(&writer, 10, 64, digest, digest, &must));
    struct buf text = {0};
    MUST(file_read(path, 1 << 20, &text, &must));
    *bytes = text.len;
    char *copy = malloc(text.len);
    memcpy(copy, text.data, text.len);
    buf_free(&text);
    return copy;
}

static void what_was_written_is_read(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct shard shard;
    size_t bytes;
    free(make_shard(path, false, &bytes));
    MUST(shard_open(path, &shard, &must));
    assert_int_equal(shard.counts.sequences, 2);
    assert_int_equal(shard.counts.tokens, 5);
    assert_int_equal(shard.counts.loss_tokens, 3);
    assert_int_equal(shard.counts.lines, 3);
    assert_int_equal(shard.context, 64);
    assert_string_equal(shard.key, digest);
    assert_string_equal(shard.tokenizer, digest);
    assert_int_equal(shard_tokens(&shard, 0)[1], 2 | SHARD_LOSS);
    assert_int_equal(shard_tokens(&shard, 1)[0], 4);
    assert_true(shard.index[1].weight == 2.5f);
    assert_int_equal(shard.index[1].flags, SHARD_HELD_OUT);
    assert_int_equal(shard_passage(&shard, 0, 0).bytes, 1);
    assert_memory_equal(shard_passage(&shard, 0, 1).text, "passage", 7);
    assert_int_equal(shard_passage(&shard, 0, 2).bytes, 0);
    assert_int_equal(shard_passage(&shard, 0, 3).bytes, 0);
    shard_close(&shard);
    unlink(path);
}

static void every_changed_byte_is_noticed(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    struct shard shard;
    size_t bytes;
    char *data = make_shard(path, false, &bytes);
    for (size_t i = 0; i < bytes; i++) {
        struct shu_error err = {0};
        data[i] ^= 0x41;
        assert_int_not_equal(shard_parse((uint8_t *)data, bytes, "x", &shard, &err), SHU_OK);
        assert_contains(err.message, "x: ");
        data[i] ^= 0x41;
    }
    for (size_t cut = 0; cut < bytes; cut++)
        assert_int_not_equal(shard_parse((uint8_t *)data, cut, "x", &shard, NULL), SHU_OK);
    assert_int_equal(shard_parse((uint8_t *)data, bytes, "x", &shard, NULL), SHU_OK);
    free(data);
    unlink(path);
}

/* Changes bytes and puts the checksum right: only the checks behind it can object. */
static int parse_forged(const char *data, size_t bytes, size_t at, uint32_t value, struct shu_error *err) {
    struct shard shard;
    char *copy = malloc(bytes);
    memcpy(copy, data, bytes);
    memcpy(copy + at, &value, sizeof value);
    uint64_t sum = checksum_of(copy, bytes - 8);
    memcpy(copy + bytes - 8, &sum, sizeof sum);
    int status = shard_parse((uint8_t *)copy, bytes, "x", &shard, err);
    free(copy);
    return status;
}

static void forged_content_is_refused(void **state) {
    (void)state;
    char path[TINY_PATH_BYTES];
    size_t bytes;
    struct shu_error err = {0};
    char *data = make_shard(path, false, &bytes);
    size_t footer = bytes - 256, index = footer - 96;
    assert_int_equal(parse_forged(data, bytes, 16, 1, &err), SHU_OK); /* as it was: the forger works */
    assert_int_equal(parse_forged(data, bytes, 16, 10, &err), SHU_E_FORMAT);
    assert_contains(err.message, "sequence 1 (line 1 of its data): token 10 is beyond the vocabulary of 10");
    assert_int_equal(parse_forged(data, bytes, 8, 2, &err), SHU_E_UNSUPPORTED);
    static const struct {
        int from_index;
        size_t at;
        uint32_t value;
    } forged[] = {
        {1, 0, 20},          {1, 24, 0},         {1, 24, 1},          {1, 24, 0x40000000}, {1, 28, 4},
        {1, 28, 2},          {1, 32, 20},        {1, 32, 0xfffffff0}, {1, 36, 0},          {1, 36, 0x7fc00000},
        {1, 36, 0xbf800000}, {1, 48, 16},        {0, 8, 0},           {0, 8, 0xffffffff},  {0, 16, 3},
        {0, 16, 1},          {0, 20, 0x8000000}, {0, 24, 6},          {0, 32, 2},
    };
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++)
        if (parse_forged(data, bytes, (forged[i].from_index ? index : footer) + forged[i].at, forged[i].value, &err) !=
            SHU_E_FORMAT)
            fail_msg("forgery %zu was accepted", i);
    uint64_t second;
    memcpy(&second, data + index + 48, sizeof second);
    assert_int_equal(parse_forged(data, bytes, (size_t)second + 4, 5, &err), SHU_E_FORMAT);
    assert_contains(err.message, "a sequence without a loss");
    free(data);
    unlink(path);
    data = make_shard(path, true, &bytes);
    assert_int_equal(parse_forged(data, bytes, index + 48 + 40, SHARD_REJECTED, &err), SHU_OK);
    assert_int_equal(parse_forged(data, bytes, index + 48 + 40, 0, &err), SHU_E_FORMAT);
    assert_int_equal(parse_forged(data, bytes, index + 40, SHARD_HELD_OUT, &err), SHU_E_FORMAT);
    free(data);
    unlink(path);
}

/* Published values of XXH64 with seed 0. */
static void the_checksum_is_xxh64(void **state) {
    (void)state;
    const char text[] = "Nobody inspects the spammish repetition";
    assert_true(checksum_of("", 0) == 0xef46db3751d8e999u);
    assert_true(checksum_of("abc", 3) == 0x44bc2cf5ad770999u);
    assert_true(checksum_of(text, strlen(text)) == 0xfbcea83c8a378bf1u);
    char long_text[1000];
    for (size_t i = 0; i < sizeof long_text; i++) long_text[i] = (char)(i * 7);
    for (size_t slice = 1; slice < 100; slice++) {
        struct checksum sum;
        checksum_init(&sum);
        for (size_t at = 0; at < sizeof long_text; at += slice)
            checksum_update(&sum, long_text + at, sizeof long_text - at < slice ? sizeof long_text - at : slice);
        assert_true(checksum_finish(&sum) == checksum_of(long_text, sizeof long_text));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(every_changed_byte_is_noticed),
        cmocka_unit_test(forged_content_is_refused),
        cmocka_unit_test(the_checksum_is_xxh64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
