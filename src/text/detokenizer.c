/* Streaming detokenizer: tokens may end inside a character; what comes out
 * never does. Broken sequences become U+FFFD, one for each maximal subpart
 * (Unicode 15, section 3.9), as in Python's errors="replace". */
#include "text/tokenizer.h"

static const char REPLACEMENT[] = "\xef\xbf\xbd";

void detokenizer_init(struct detokenizer *state, const struct tokenizer *tokenizer) {
    *state = (struct detokenizer){.tokenizer = tokenizer};
}

/* Takes one byte. state->held is always a proper beginning of some character, so at most 3 bytes. */
static int take_byte(struct detokenizer *state, char byte, struct buf *out) {
    uint32_t scalar;
    state->held[state->held_bytes++] = byte;
    size_t count = (size_t)state->held_bytes;
    if (utf8_decode(state->held, count, &scalar) > 0) {
        state->held_bytes = 0;
        return buf_append(out, state->held, count);
    }
    if (utf8_partial_tail(state->held, count) == count) return SHU_OK;
    int status = buf_append(out, REPLACEMENT, 3);
    state->held_bytes = 0;
    if (status || count == 1) return status;
    return take_byte(state, byte, out); /* the byte that broke the sequence may begin another: one level deep */
}

int detokenizer_push(struct detokenizer *state, int32_t id, struct buf *out) {
    struct span piece = tokenizer_piece(state->tokenizer, id, false);
    uint32_t at = 0;
    int status = SHU_OK;
    if (!state->started && tokenizer_type(state->tokenizer, id) != TOKEN_CONTROL) {
        state->started = true;
        if (state->tokenizer->add_space_prefix && piece.bytes && piece.text[0] == ' ') at = 1;
    }
    if (state->held_bytes == 0 && piece.bytes > at && utf8_valid(piece.text + at, piece.bytes - at))
        return buf_append(out, piece.text + at, piece.bytes - at);
    for (; at < piece.bytes && !status; at++) status = take_byte(state, piece.text[at], out);
    return status;
}

int detokenizer_finish(struct detokenizer *state, struct buf *out) {
    int status = state->held_bytes ? buf_append(out, REPLACEMENT, 3) : SHU_OK;
    state->held_bytes = 0;
    state->started = false;
    return status;
}
