/* UTF-8 after Unicode 15, table 3-7 (well-formed byte sequences). */
#include "base/base.h"

/* Sequence length that a lead byte announces (0: not a lead byte) and the range its second byte must lie in; the
 * narrow ranges are what excludes overlong forms, surrogates and values above U+10FFFF. */
static int lead(uint8_t byte, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xbf;
    if (byte < 0x80) return 1;
    if (byte < 0xc2) return 0;
    if (byte < 0xe0) return 2;
    if (byte < 0xf0) {
        if (byte == 0xe0) *low = 0xa0;
        if (byte == 0xed) *high = 0x9f;
        return 3;
    }
    if (byte > 0xf4) return 0;
    if (byte == 0xf0) *low = 0x90;
    if (byte == 0xf4) *high = 0x8f;
    return 4;
}

/* How many bytes from the start agree with a well-formed sequence; *need gets its full length (0: bad lead). */
static int matching(const uint8_t *bytes, size_t count, int *need) {
    uint8_t low, high;
    *need = lead(bytes[0], &low, &high);
    if (*need == 0) return 0;
    int have = 1;
    while (have < *need && (size_t)have < count && bytes[have] >= low && bytes[have] <= high) {
        low = 0x80;
        high = 0xbf;
        have++;
    }
    return have;
}

int utf8_decode(const char *text, size_t count, uint32_t *out) {
    const uint8_t *bytes = (const uint8_t *)text;
    if (count == 0) return 0;
    if (bytes[0] < 0x80) return *out = bytes[0], 1;
    int need = 0;
    if (matching(bytes, count, &need) != need || need == 0) return 0;
    uint32_t scalar = bytes[0] & (0x7fu >> need);
    for (int i = 1; i < need; i++) scalar = scalar << 6 | (bytes[i] & 0x3f);
    *out = scalar;
    return need;
}

int utf8_encode(uint32_t scalar, char out[4]) {
    if (scalar < 0x80) return out[0] = (char)scalar, 1;
    if (scalar > 0x10ffff || (scalar >= 0xd800 && scalar <= 0xdfff)) return 0;
    int length = scalar < 0x800 ? 2 : scalar < 0x10000 ? 3 : 4;
    static const uint8_t marks[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (scalar & 0x3f));
        scalar >>= 6;
    }
    out[0] = (char)(marks[length] | scalar);
    return length;
}

bool utf8_valid(const char *bytes, size_t count) {
    for (size_t at = 0; at < count;) {
        uint32_t scalar;
        int length = utf8_decode(bytes + at, count - at, &scalar);
        if (length == 0) return false;
        at += (size_t)length;
    }
    return true;
}

size_t utf8_partial_tail(const char *text, size_t count) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t tail = 1; tail <= 3 && tail <= count; tail++) {
        const uint8_t *start = bytes + count - tail;
        if ((*start & 0xc0) == 0x80) continue; /* a continuation byte: its lead lies further left */
        int need = 0;
        int have = matching(start, tail, &need);
        return need > have && (size_t)have == tail ? tail : 0;
    }
    return 0;
}
