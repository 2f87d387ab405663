/* SentencePiece-BPE (llama, gemma): the neighbours whose joined text is the
 * best-scored token merge first, over the whole text; what is no token in the
 * end falls back to bytes.
 *
 * Spaces are U+2581 in the vocabulary. The text is scanned as it is, with a
 * space and a literal U+2581 as the same character, and only segments that the
 * cache does not hold are rewritten. */
#define MERGE_LOOKUP spm_lookup
#include "text/merge.h"
#include "text/words.h"

static const char SPACE_MARK[3] = {(char)0xe2, (char)0x96, (char)0x81};

static bool is_space_mark(const uint8_t *p, uint32_t bytes) {
    return bytes == 3 && memcmp(p, SPACE_MARK, 3) == 0;
}

static inline struct merged spm_lookup(const struct tokenizer *tokenizer, const struct neighbours *pair) {
    uint32_t bytes = pair->end - pair->at;
    if (bytes > tokenizer->longest) return (struct merged){MERGE_NEVER, -1};
    int32_t id = text_map_find(&tokenizer->by_text, pair->text + pair->at, bytes);
    return (struct merged){id < 0 ? MERGE_NEVER : tokenizer->priority[id], id};
}

/* ------------------------------------------------------------ construction */

/* Floats ordered as integers, best score lowest. Never MERGE_NEVER, which only a NaN would give. */
static uint32_t priority_of(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 counts as 0 */
    memcpy(&bits, &score, sizeof bits);
    return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}

/* Marks the neighbours inside a token. A token with a plain space matches nothing: texts have none left. */
static void mark_token(struct seams *seams, const uint8_t *text, uint32_t bytes) {
    uint32_t left = 0;
    if (bytes == 0 || memchr(text, ' ', bytes)) return;
    for (uint32_t at = 0, length; at < bytes; at += length) {
        length = lead_bytes(text[at]);
        if (length > bytes - at) length = bytes - at;
        uint32_t right = is_space_mark(text + at, length) ? ' ' : pack_character(text + at, length);
        if (at > 0) seams_mark(seams, left, right);
        left = right;
    }
}

static void find_byte_tokens(struct tokenizer *tokenizer) {
    static const char hex[] = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; byte++) {
        char name[6] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'}, plain = (char)byte;
        int32_t id = text_map_find(&tokenizer->by_text, name, sizeof name);
        if (id < 0) id = text_map_find(&tokenizer->by_text, &plain, 1);
        tokenizer->byte_id[byte] = id < 0 ? tokenizer->unk : id;
    }
}

int spm_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    find_byte_tokens(tokenizer);
    for (int byte = 0; byte < 256; byte++)
        if (tokenizer->byte_id[byte] < 0)
            return SHU_FAIL(err, SHU_E_FORMAT,
                            "the vocabulary has neither an unknown token nor a token <0x%02X> for that byte", byte);
    tokenizer->priority = mem_alloc((size_t)spec->count * sizeof *tokenizer->priority);
    if (!tokenizer->priority) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %d scores", (int)spec->count);
    int status = seams_new(&tokenizer->seams, err);
    if (status) return status;
    for (int32_t id = 0; id < spec->count; id++) {
        float score = spec->scores ? spec->scores[id] : 0.0f;
        if (score != score)
            return SHU_FAIL(err, SHU_E_FORMAT, "the score of token %d is not a number; the vocabulary is damaged",
                            (int)id);
        tokenizer->priority[id] = priority_of(score);
        struct span text = text_at(&tokenizer->stored, id);
        if (text.bytes > tokenizer->longest) tokenizer->longest = text.bytes;
        mark_token(&tokenizer->seams, (const uint8_t *)text.text, text.bytes);
    }
    return SHU_OK;
}

/* ---------------------------------------------------------------- encoding */

/* Ids of one symbol: its merged token, the token of its text, or its bytes. */
static int push_symbol(struct encoder *encoder, const char *text, uint32_t bytes, int32_t id) {
    struct tokens *out = encoder->out;
    int status = tokens_reserve(out, bytes);
    if (status) return status;
    if (id < 0) id = text_map_find(&encoder->tokenizer->by_text, text, bytes);
    if (id >= 0) {
        out->id[out->count++] = id;
        return SHU_OK;
    }
    for (uint32_t i = 0; i < bytes; i++) out->id[out->count++] = encoder->tokenizer->byte_id[(uint8_t)text[i]];
    return SHU_OK;
}

/* Length of the symbol at text[at], as its first byte says, cut at the end. */
static uint32_t symbol_bytes(const char *text, uint32_t at, uint32_t bytes) {
    uint32_t length = lead_bytes((uint8_t)text[at]);
    return length < bytes - at ? length : bytes - at;
}

static int spm_merge_long(struct encoder *encoder, const char *text, uint32_t bytes) {
    struct tokenizer_work *work = encoder->work;
    uint32_t count = 0;
    int status = merge_reserve(work, bytes);
    if (status) return status;
    for (uint32_t at = 0; at < bytes; count++) {
        uint32_t length = symbol_bytes(text, at, bytes);
        work->symbols[count] = (struct merge_symbol){at, at + length, count + 1, count - 1, -1};
        at += length;
    }
    work->symbols[count - 1].next = UINT32_MAX; /* and symbols[0].prev is UINT32_MAX: 0 - 1 */
    merge_long(encoder->tokenizer, work, text, count);
    for (uint32_t i = 0; !status && i != UINT32_MAX; i = work->symbols[i].next) {
        const struct merge_symbol *symbol = &work->symbols[i];
        status = push_symbol(encoder, text + symbol->at, symbol->end - symbol->at, symbol->id);
    }
    return status;
}

/* Escaped text, bytes > 0. */
static int spm_merge(struct encoder *encoder, const char *text, uint32_t bytes) {
    int32_t ids[MERGE_SHORT];
    uint32_t at[MERGE_SHORT + 1], count = 0;
    int status = SHU_OK;
    at[0] = 0;
    while (at[count] < bytes) {
        if (count == MERGE_SHORT) return spm_merge_long(encoder, text, bytes);
        ids[count] = -1;
        at[count + 1] = at[count] + symbol_bytes(text, at[count], bytes);
        count++;
    }
    count = merge_short(encoder->tokenizer, text, ids, at, count);
    for (uint32_t i = 0; !status && i < count; i++)
        status = push_symbol(encoder, text + at[i], at[i + 1] - at[i], ids[i]);
    return status;
}

static size_t escape_spaces(const uint8_t *p, size_t bytes, char *out) {
    char *to = out;
    for (size_t i = 0; i < bytes; i++) {
        if (p[i] != ' ') {
            *to++ = (char)p[i];
            continue;
        }
        memcpy(to, SPACE_MARK, 3);
        to += 3;
    }
    return (size_t)(to - out);
}

static int spm_long_segment(struct encoder *encoder, const uint8_t *p, size_t bytes) {
    struct buf *escaped = &encoder->work->escaped;
    buf_clear(escaped);
    int status = buf_reserve(escaped, 3 * bytes);
    if (status) return status;
    return spm_merge(encoder, escaped->data, (uint32_t)escape_spaces(p, bytes, escaped->data));
}

static int spm_segment(struct encoder *encoder, const uint8_t *p, size_t bytes, size_t room) {
    char escaped[3 * WORD_BYTES];
    if (bytes > WORD_BYTES) return spm_long_segment(encoder, p, bytes);
    int status = tokens_reserve(encoder->out, WORD_IDS);
    if (status) return status;
    struct word_key key = word_key_of(p, (uint32_t)bytes, room, false);
    struct word *set = word_set(encoder->work, &key);
    if (word_lookup(set, &key, encoder->out)) return SHU_OK;
    size_t before = encoder->out->count;
    status = spm_merge(encoder, escaped, (uint32_t)escape_spaces(p, bytes, escaped));
    if (!status) word_remember(set, &key, encoder->out->id + before, encoder->out->count - before);
    return status;
}

/* Packed bytes of the character at p and its length; *bytes = 0 where a lead byte is not followed by its
 * continuation bytes, or where the text ends. */
static inline uint32_t character_at(const uint8_t *p, const uint8_t *end, uint32_t *bytes) {
    uint32_t need = lead_bytes(*p);
    *bytes = need;
    if (need == 1) return *p;
    bool whole = (size_t)(end - p) >= need;
    for (uint32_t i = 1; whole && i < need; i++) whole = is_continuation(p[i]);
    if (!whole) return *bytes = 0;
    return is_space_mark(p, need) ? ' ' : pack_character(p, need);
}

/* Cuts at seams as long as the text is well formed. In what follows a broken
 * character, symbols no longer begin where characters do: one segment. */
static int spm_seams(struct encoder *encoder, const uint8_t *p, const uint8_t *end) {
    const struct seams *seams = &encoder->tokenizer->seams;
    const uint8_t *start = p;
    uint32_t bytes, left = 0;
    int status = SHU_OK;
    for (; p < end && !status; p += bytes) {
        uint32_t right = character_at(p, end, &bytes);
        if (bytes == 0) break;
        bool joined = (left | right) < 128 ? seam_joined_ascii(seams, (uint8_t)left, (uint8_t)right)
                                           : seam_joined(seams, left, right);
        if (!joined && p > start) {
            status = spm_segment(encoder, start, (size_t)(p - start), (size_t)(end - start));
            start = p;
        }
        left = right;
    }
    return status ? status : spm_segment(encoder, start, (size_t)(end - start), (size_t)(end - start));
}

int spm_encode(struct encoder *encoder, const char *text, size_t bytes, bool prefix) {
    if (prefix) {
        struct buf *copy = &encoder->work->text;
        buf_clear(copy);
        int status = buf_putc(copy, ' ');
        if (!status) status = buf_append(copy, text, bytes);
        if (status) return status;
        text = copy->data;
        bytes = copy->len;
    }
    return spm_seams(encoder, (const uint8_t *)text, (const uint8_t *)text + bytes);
}
