/* Character classes of the pre-tokenizers, decoded on the fly. */
#ifndef UNICODE_CLASS_H
#define UNICODE_CLASS_H

#include "text/unicode_table.h"

enum character_class { CLASS_OTHER, CLASS_LETTER, CLASS_NUMBER, CLASS_SPACE, CLASS_END };

static inline enum character_class unicode_class(uint32_t scalar) {
    uint32_t index = (uint32_t)unicode_stage[scalar >> 7] << 7 | (scalar & 127);
    return (enum character_class)(unicode_classes[index >> 2] >> (2 * (index & 3)) & 3);
}

/* Class and length of the character at p, CLASS_END at the end of the text.
 * Bytes that begin no character are characters of their own (CLASS_OTHER, as
 * U+FFFD). Surrogates pass as one character, as they do in llama.cpp. */
static inline enum character_class class_at(const uint8_t *p, const uint8_t *end, uint32_t *bytes) {
    *bytes = 1;
    if (p >= end) return CLASS_END;
    uint32_t c = *p;
    if (c < 0x80) return unicode_class(c);
    ptrdiff_t left = end - p;
    if (c >= 0xe0 && c < 0xf0) {
        if (left < 3 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80) return CLASS_OTHER;
        uint32_t scalar = (c & 0x0f) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
        if (scalar < 0x800) return CLASS_OTHER;
        *bytes = 3;
        return unicode_class(scalar);
    }
    if (c >= 0xc2 && c < 0xe0) {
        if (left < 2 || (p[1] & 0xc0) != 0x80) return CLASS_OTHER;
        *bytes = 2;
        return unicode_class((c & 0x1f) << 6 | (p[1] & 0x3fu));
    }
    if (c < 0xf0 || c > 0xf4 || left < 4) return CLASS_OTHER;
    if ((p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 || (p[3] & 0xc0) != 0x80) return CLASS_OTHER;
    uint32_t scalar = (c & 0x07) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
    if (scalar < 0x10000 || scalar > 0x10ffff) return CLASS_OTHER;
    *bytes = 4;
    return unicode_class(scalar);
}

#endif
