/* Error messages and UTF-8. */
#include "check.h"

/* --------------------------------------------------------------- errors */

static void errors_record_code_message_place(void **state) {
    (void)state;
    struct shu_error err = {0};
    assert_int_equal(SHU_FAIL(&err, SHU_E_RANGE, "found %d", 7), SHU_E_RANGE);
    assert_int_equal(err.code, SHU_E_RANGE);
    assert_string_equal(err.message, "found 7");
    assert_contains(err.where, "test_base_text.c:");
    assert_int_equal(error_raise(&err, SHU_E_IO, "/any/src/base/src/base/file.c", 12, "x"), SHU_E_IO);
    assert_string_equal(err.where, "base/file.c:12");
    assert_int_equal(error_context(&err, 0, "in %s: ", "m.gguf"), SHU_E_IO);
    assert_string_equal(err.message, "in m.gguf: x");
    assert_int_equal(SHU_FAIL(NULL, SHU_E_IO, "x"), SHU_E_IO);
    assert_int_equal(error_context(NULL, SHU_E_IO, "x"), SHU_E_IO);
    assert_string_equal(shu_status_name(SHU_E_CHECKSUM), "checksum");
    assert_string_equal(shu_status_name(-99), "unknown");
}

static void errors_are_one_printable_line(void **state) {
    (void)state;
    struct shu_error err = {0};
    SHU_FAIL(&err, SHU_E_FORMAT, "name '%s'", "a\nb\x1b[31m\x7f\xc2\x9bz\xff\xe4\xbd");
    assert_string_equal(err.message, "name 'a b [31m   z??\?'");
    assert_true(utf8_valid(err.message, strlen(err.message)));
    SHU_FAIL(&err, SHU_E_FORMAT, "again: %s", err.message); /* its own message as argument */
    assert_string_equal(err.message, "again: name 'a b [31m   z??\?'");
    char lengthy[2000];
    for (size_t offset = 0; offset < 3; offset++) { /* the cut falls inside a character */
        memset(lengthy, 'x', offset);
        for (size_t i = offset; i + 3 < sizeof lengthy; i += 3) memcpy(lengthy + i, "\xe4\xbd\xa0", 4);
        SHU_FAIL(&err, SHU_E_FORMAT, "%s", lengthy);
        assert_true(utf8_valid(err.message, strlen(err.message)));
        assert_true(strlen(err.message) >= sizeof err.message - 4);
        error_context(&err, 0, "ab");
        assert_true(utf8_valid(err.message, strlen(err.message)));
    }
}

/* ---------------------------------------------------------------- UTF-8 */

static void utf8_rejects_what_the_standard_rejects(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t count;
        int length; /* expected from utf8_decode */
        uint32_t scalar;
    } table[] = {
        {"", 0, 0, 0},
        {"\0", 1, 1, 0},
        {"a", 1, 1, 'a'},
        {"\x7f", 1, 1, 0x7f},
        {"\x80", 1, 0, 0},             /* lone continuation */
        {"\xc0\x80", 2, 0, 0},         /* overlong NUL */
        {"\xc1\xbf", 2, 0, 0},         /* overlong U+007F */
        {"\xc2\x80", 2, 2, 0x80},      /* lowest of two bytes */
        {"\xdf\xbf", 2, 2, 0x7ff},     /* highest of two bytes */
        {"\xc2", 1, 0, 0},             /* cut short */
        {"\xc2\x41", 2, 0, 0},         /* wrong second byte */
        {"\xe0\x9f\xbf", 3, 0, 0},     /* overlong U+07FF */
        {"\xe0\xa0\x80", 3, 3, 0x800}, /* lowest of three bytes */
        {"\xe4\xbd\xa0", 3, 3, 0x4f60},
        {"\xed\x9f\xbf", 3, 3, 0xd7ff},
        {"\xed\xa0\x80", 3, 0, 0}, /* first surrogate */
        {"\xed\xbf\xbf", 3, 0, 0}, /* last surrogate */
        {"\xee\x80\x80", 3, 3, 0xe000},
        {"\xef\xbf\xbf", 3, 3, 0xffff},
        {"\xef\xbf", 2, 0, 0},
        {"\xf0\x8f\xbf\xbf", 4, 0, 0}, /* overlong U+FFFF */
        {"\xf0\x90\x80\x80", 4, 4, 0x10000},
        {"\xf0\x9f\x98\x80", 4, 4, 0x1f600},
        {"\xf4\x8f\xbf\xbf", 4, 4, 0x10ffff},
        {"\xf4\x90\x80\x80", 4, 0, 0}, /* above U+10FFFF */
        {"\xf5\x80\x80\x80", 4, 0, 0},
        {"\xff", 1, 0, 0},
        {"\xf0\x9f\x98", 3, 0, 0},
        {"\xf0\x9f\x98\x41", 4, 0, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        uint32_t scalar = 0;
        assert_int_equal(utf8_decode(table[i].bytes, table[i].count, &scalar), table[i].length);
        if (table[i].length) assert_int_equal(scalar, table[i].scalar);
        assert_int_equal(utf8_valid(table[i].bytes, table[i].count), table[i].length > 0 || table[i].count == 0);
    }
}

static void utf8_round_trips_every_scalar(void **state) {
    (void)state;
    for (uint32_t scalar = 0; scalar <= 0x110010; scalar++) {
        char bytes[4];
        uint32_t back = 0;
        int length = utf8_encode(scalar, bytes);
        bool legal = scalar <= 0x10ffff && (scalar < 0xd800 || scalar > 0xdfff);
        if ((length > 0) != legal) fail_msg("U+%04X: length %d", (unsigned)scalar, length);
        if (!legal) continue;
        if (utf8_decode(bytes, (size_t)length, &back) != length || back != scalar) fail_msg("U+%04X", (unsigned)scalar);
        if (length > 1 && utf8_partial_tail(bytes, (size_t)length - 1) != (size_t)length - 1) {
            fail_msg("U+%04X cut short", (unsigned)scalar);
        }
    }
}

static void utf8_partial_tails(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t tail;
    } table[] = {
        {"", 0},
        {"abc", 0},
        {"abc\xe4", 1},
        {"abc\xe4\xbd", 2},
        {"abc\xe4\xbd\xa0", 0},
        {"\xf0\x9f\x98", 3},
        {"\xf0\x9f\x98\x80", 0},
        {"\xf0\x8f", 0},         /* overlong: nothing can complete it */
        {"\xed\xa0", 0},         /* surrogate: nothing can complete it */
        {"\xf4\x90", 0},         /* above U+10FFFF */
        {"\xc0", 0},             /* never a lead byte */
        {"\x80\x80\x80", 0},     /* no lead in reach */
        {"\xe4\xbd\xa0\xe4", 1}, /* whole character, then a start */
        {"\xff", 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(utf8_partial_tail(table[i].bytes, strlen(table[i].bytes)), table[i].tail);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_record_code_message_place),
        cmocka_unit_test(errors_are_one_printable_line),
        cmocka_unit_test(utf8_rejects_what_the_standard_rejects),
        cmocka_unit_test(utf8_round_trips_every_scalar),
        cmocka_unit_test(utf8_partial_tails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
