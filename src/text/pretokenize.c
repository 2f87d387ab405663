/* Pre-tokenizers as state machines over bytes. Each finds the end of the
 * pre-token that a left-to-right regular expression would match at p:
 *
 *   gpt-2   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
 *           |\s*[\r\n]+|\s+(?!\S)|\s+
 *   qwen2   as llama3 with \p{N} in place of \p{N}{1,3}
 *
 * Case is folded for ASCII only: U+017F is no "s" here, as in llama.cpp. */
#include "text/tokenizer.h"
#include "text/unicode_class.h"

static bool is_newline(const uint8_t *p, const uint8_t *end) {
    return p < end && (*p == '\r' || *p == '\n');
}

/* End of the run of one class that begins at p. */
static inline const uint8_t *run_end(const uint8_t *p, const uint8_t *end, enum character_class class) {
    uint32_t bytes;
    while (class_at(p, end, &bytes) == class) p += bytes;
    return p;
}

/* Bytes of an English contraction at p ("'s", "'ll"), 0 if none. */
static uint32_t contraction(const uint8_t *p, const uint8_t *end, bool fold) {
    if (end - p < 2) return 0;
    uint8_t mask = fold ? 0x20 : 0;
    uint8_t a = p[1] | mask;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (end - p < 3) return 0;
    uint8_t b = p[2] | mask;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* White space: up to and with the last line end if `lines` and there is one; otherwise all of it, less the
 * last character when something follows (that one belongs to what follows). */
static const uint8_t *space_end(const uint8_t *p, const uint8_t *end, bool lines) {
    const uint8_t *last = p, *after_line = NULL;
    uint32_t bytes, count = 0;
    while (class_at(p, end, &bytes) == CLASS_SPACE) {
        last = p;
        if (*p == '\r' || *p == '\n') after_line = p + 1;
        p += bytes;
        count++;
    }
    if (lines && after_line) return after_line;
    return count > 1 && p < end ? last : p;
}

static const uint8_t *gpt2_end(const uint8_t *p, const uint8_t *end) {
    uint32_t bytes;
    if (*p == '\'') {
        uint32_t n = contraction(p, end, false);
        if (n) return p + n;
    }
    const uint8_t *q = p + (*p == ' ');
    enum character_class class = class_at(q, end, &bytes);
    if (class != CLASS_SPACE && class != CLASS_END) return run_end(q + bytes, end, class);
    return space_end(p, end, false);
}

static inline const uint8_t *qwen2_end(const uint8_t *p, const uint8_t *end, int digits) {
    uint32_t bytes, next_bytes;
    enum character_class class = class_at(p, end, &bytes);
    if (class == CLASS_LETTER) return run_end(p + bytes, end, CLASS_LETTER);
    if (class == CLASS_NUMBER) {
        const uint8_t *q = p + bytes;
        while (--digits > 0 && class_at(q, end, &bytes) == CLASS_NUMBER) q += bytes;
        return q;
    }
    if (*p == '\'') {
        uint32_t n = contraction(p, end, true);
        if (n) return p + n;
    }
    enum character_class next = class_at(p + bytes, end, &next_bytes);
    if (next == CLASS_LETTER && !is_newline(p, end)) return run_end(p + bytes + next_bytes, end, CLASS_LETTER);
    if (class == CLASS_OTHER || (*p == ' ' && next == CLASS_OTHER)) {
        p = run_end(p + bytes, end, CLASS_OTHER);
        while (is_newline(p, end)) p++;
        return p;
    }
    return space_end(p, end, true);
}

const uint8_t *pretoken_end(enum pretokenizer pre, const uint8_t *p, const uint8_t *end) {
    switch (pre) {
    case PRE_GPT2:
        return gpt2_end(p, end);
    case PRE_LLAMA3:
        return qwen2_end(p, end, 3);
    case PRE_QWEN2:
        return qwen2_end(p, end, 1);
    case PRE_NONE:
        break;
    }
    return end;
}
