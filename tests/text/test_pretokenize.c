/* Pre-tokenizers by table. Expected cuts are what Python's `regex` module gives for the three regular
 * expressions (case folding restricted to ASCII); "|" marks a cut. */
#include "text/tokenizer.h"
#include "text/unicode_class.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

struct cut_case {
    enum pretokenizer pre;
    const char *cut; /* the text with "|" at each cut */
};

static const struct cut_case CASES[] = {
    {PRE_QWEN2, "Hello| world|!"},
    {PRE_QWEN2, "it|'s| IT|'S| we|'ll| WE|'Ve|'x"},
    {PRE_QWEN2, "1|2|3| |4"},
    {PRE_QWEN2, "你好|，世界|！\n"},
    {PRE_QWEN2, "你好|，世界"},
    {PRE_QWEN2, "a|  | b|   "},
    {PRE_QWEN2, "a|  \n\n|  | b"},
    {PRE_QWEN2, "x| ===|y"},
    {PRE_QWEN2, "x| ===\r\n|y"},
    {PRE_QWEN2, "(foo|)|\tbar|\n|baz"},
    {PRE_QWEN2, "\r\n|word"},
    {PRE_QWEN2, "\u00a0word|\u3000词|\u3000|\u3000词"},
    {PRE_QWEN2, "é|٣|½"},
    {PRE_QWEN2, "\xff\xfe\xff|z| \xff|z|\n|\xff"},
    {PRE_QWEN2, "'ſ"},
    {PRE_QWEN2, " "},
    {PRE_QWEN2, "'"},
    {PRE_LLAMA3, "123|456|7| |89"},
    {PRE_LLAMA3, "it|'RE|1"},
    {PRE_LLAMA3, "1٣½|4"},
    {PRE_GPT2, "it|'s| it|'|S"},
    {PRE_GPT2, " 123| 456|abc"},
    {PRE_GPT2, "a|\n\n|\n|b| 12| ..|\n"},
    {PRE_GPT2, "你好|，|世界"},
    {PRE_GPT2, "(|foo|)"},
    {PRE_NONE, "it's all one\n"},
};

static void check_case(const struct cut_case *item) {
    char text[256], marked[512];
    size_t bytes = 0, length = 0;
    for (const char *c = item->cut; *c; c++)
        if (*c != '|') text[bytes++] = *c;
    const uint8_t *p = (const uint8_t *)text, *end = p + bytes;
    while (p < end) {
        const uint8_t *next = pretoken_end(item->pre, p, end);
        assert_true(next > p && next <= end);
        if (length) marked[length++] = '|';
        memcpy(marked + length, p, (size_t)(next - p));
        length += (size_t)(next - p);
        p = next;
    }
    marked[length] = '\0';
    assert_string_equal(marked, item->cut);
}

static void test_cuts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) check_case(&CASES[i]);
}

static void test_classes(void **state) {
    (void)state;
    static const struct {
        uint32_t scalar;
        enum character_class class;
    } points[] = {{'a', CLASS_LETTER},    {'0', CLASS_NUMBER},     {'_', CLASS_OTHER},      {' ', CLASS_SPACE},
                  {'\n', CLASS_SPACE},    {0x85, CLASS_SPACE},     {0x1c, CLASS_OTHER},     {0x4e00, CLASS_LETTER},
                  {0x9fff, CLASS_LETTER}, {0x3007, CLASS_NUMBER},  {0x3000, CLASS_SPACE},   {0x200b, CLASS_OTHER},
                  {0x301, CLASS_OTHER},   {0x1f600, CLASS_OTHER},  {0x2ebf0, CLASS_LETTER}, {0x2ee5e, CLASS_OTHER},
                  {0xd800, CLASS_OTHER},  {0x10ffff, CLASS_OTHER}, {0xac00, CLASS_LETTER},  {0x1d7ce, CLASS_NUMBER}};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        assert_int_equal(unicode_class(points[i].scalar), points[i].class);
    uint32_t counts[4] = {0};
    for (uint32_t scalar = 0; scalar < 0x110000; scalar++) counts[unicode_class(scalar)]++;
    assert_string_equal(UNICODE_TABLE_VERSION, "15.1.0");
    assert_int_equal(counts[CLASS_SPACE], 25);
    assert_int_equal(counts[CLASS_NUMBER], 1831); /* Nd 680 + Nl 236 + No 915 */
    assert_int_equal(counts[CLASS_LETTER], 136726);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cuts), cmocka_unit_test(test_classes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
