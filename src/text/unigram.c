/* SentencePiece unigram (t5): the segmentation with the highest sum of token
 * scores, by Viterbi over character boundaries (Kudo 2018). Scores are summed
 * in double, as SentencePiece and llama.cpp do. */
#include "text/tokenizer.h"

#include <float.h>

#define UNKNOWN_PENALTY 10.0f

/* ------------------------------------------------------------ construction */

static bool is_word(enum token_type type) {
    return type == TOKEN_NORMAL || type == TOKEN_USER_DEFINED || type == TOKEN_UNUSED;
}

static int unigram_words_new(struct tokenizer *tokenizer, struct shu_error *err) {
    uint32_t count = 0;
    int32_t *ids = mem_alloc((size_t)tokenizer->count * sizeof *ids);
    if (!ids) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %d tokens", (int)tokenizer->count);
    for (int32_t id = 0; id < tokenizer->count; id++)
        if (is_word(tokenizer->type[id]) && text_at(&tokenizer->stored, id).bytes > 0) ids[count++] = id;
    int status = matcher_new(&tokenizer->words, &tokenizer->stored, ids, count, err);
    mem_free(ids);
    return status;
}

int unigram_new(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    float lowest = FLT_MAX;
    if (tokenizer->unk < 0 || !spec->scores)
        return SHU_FAIL(err, SHU_E_FORMAT, "a unigram vocabulary needs scores and an unknown token; found %s",
                        spec->scores ? "no unknown token" : "no scores");
    tokenizer->score = mem_alloc((size_t)spec->count * sizeof *tokenizer->score);
    if (!tokenizer->score) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %d scores", (int)spec->count);
    for (int32_t id = 0; id < spec->count; id++) {
        float score = spec->scores[id];
        if (!(score >= -FLT_MAX && score <= FLT_MAX))
            return SHU_FAIL(err, SHU_E_FORMAT, "the score of token %d is no finite number; the vocabulary is damaged",
                            (int)id);
        if (tokenizer->type[id] == TOKEN_NORMAL && score < lowest) lowest = score;
        tokenizer->score[id] = tokenizer->type[id] == TOKEN_USER_DEFINED ? 0.0 : (double)score;
    }
    tokenizer->unknown_score = (double)(lowest - UNKNOWN_PENALTY);
    return unigram_words_new(tokenizer, err);
}

/* ---------------------------------------------------------------- encoding */

/* Spaces become U+2581, broken bytes U+FFFD; one mark goes before the first character that is no space. */
static int normalise(const struct tokenizer *tokenizer, const char *text, size_t bytes, struct buf *out) {
    static const char mark[] = "\xe2\x96\x81";
    bool prefix = tokenizer->add_space_prefix;
    int status = SHU_OK;
    buf_clear(out);
    for (size_t at = 0; at < bytes && !status;) {
        uint32_t scalar;
        int length = utf8_decode(text + at, bytes - at, &scalar);
        if (text[at] == ' ') {
            status = buf_append(out, mark, 3);
        } else {
            if (prefix) status = buf_append(out, mark, 3);
            prefix = false;
            if (!status)
                status = length ? buf_append(out, text + at, (size_t)length) : buf_append(out, "\xef\xbf\xbd", 3);
        }
        at += length ? (size_t)length : 1;
    }
    return status;
}

static void improve(struct lattice_node *node, double score, size_t from, int32_t id) {
    if (score > node->score) *node = (struct lattice_node){score, (uint32_t)from, id};
}

/* Tries every token that begins at `at`, and the unknown token if none is exactly one character long. */
static void extend(const struct tokenizer *tokenizer, struct lattice_node *lattice, const char *text, size_t bytes,
                   size_t at, size_t character) {
    const struct matcher *words = &tokenizer->words;
    double base = lattice[at].score;
    bool covered = false;
    struct match_range range = matcher_begin(words, (uint8_t)text[at]);
    while (range.lo < range.hi) {
        int32_t id = matcher_take(words, &range);
        if (id >= 0) {
            covered |= range.depth == character;
            improve(&lattice[at + range.depth], base + tokenizer->score[id], at, id);
        }
        if (at + range.depth >= bytes) break;
        matcher_walk(words, &range, (uint8_t)text[at + range.depth]);
    }
    if (!covered) improve(&lattice[at + character], base + tokenizer->unknown_score, at, tokenizer->unk);
}

/* Appends the best path, backwards, then turns it round. Unknown neighbours become one. */
static int push_path(struct encoder *encoder, size_t end) {
    struct tokens *out = encoder->out;
    size_t first = out->count;
    bool unknown = false;
    for (size_t at = end; at > 0; at = encoder->work->lattice[at].from) {
        int32_t id = encoder->work->lattice[at].id;
        if (!(unknown && id == encoder->tokenizer->unk)) {
            int status = tokens_push(out, id);
            if (status) return status;
        }
        unknown = id == encoder->tokenizer->unk;
    }
    for (size_t i = first, j = out->count; i + 1 < j; i++) {
        int32_t id = out->id[--j];
        out->id[j] = out->id[i];
        out->id[i] = id;
    }
    return SHU_OK;
}

int unigram_encode(struct encoder *encoder, const char *text, size_t bytes) {
    struct tokenizer_work *work = encoder->work;
    int status = normalise(encoder->tokenizer, text, bytes, &work->text);
    if (status || work->text.len == 0) return status;
    size_t count = work->text.len;
    void *lattice = work->lattice;
    status = scratch_reserve(&lattice, &work->lattice_cap, count + 1, sizeof *work->lattice);
    work->lattice = lattice;
    if (status) return status;
    for (size_t i = 0; i <= count; i++) work->lattice[i] = (struct lattice_node){i ? -DBL_MAX : 0.0, 0, -1};
    for (size_t at = 0; at < count;) {
        size_t character = lead_bytes((uint8_t)work->text.data[at]);
        if (character > count - at) character = count - at;
        extend(encoder->tokenizer, work->lattice, work->text.data, count, at, character);
        at += character;
    }
    return push_path(encoder, count);
}
