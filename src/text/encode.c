/* Text to tokens: special tokens are taken out, what lies between goes to the
 * vocabulary's model. */
#include "text/tokenizer.h"

/* ------------------------------------------------------------- token lists */

int tokens_reserve(struct tokens *tokens, size_t extra) {
    size_t need;
    if (extra <= tokens->cap - tokens->count) return SHU_OK;
    if (size_add(tokens->count, extra, &need) || need > SIZE_MAX / 4 / sizeof *tokens->id) return SHU_E_NOMEM;
    size_t cap = tokens->cap + tokens->cap / 2;
    if (cap < need) cap = need;
    if (cap < 64) cap = 64;
    int32_t *grown = mem_realloc(tokens->id, cap * sizeof *grown);
    if (!grown) return SHU_E_NOMEM;
    tokens->id = grown;
    tokens->cap = cap;
    return SHU_OK;
}

int tokens_push(struct tokens *tokens, int32_t id) {
    int status = tokens_reserve(tokens, 1);
    if (!status) tokens->id[tokens->count++] = id;
    return status;
}

void tokens_free(struct tokens *tokens) {
    mem_free(tokens->id);
    *tokens = (struct tokens){0};
}

/* -------------------------------------------------------- per-thread work */

int scratch_reserve(void **block, size_t *cap, size_t need, size_t item_bytes) {
    size_t bytes;
    if (need <= *cap) return SHU_OK;
    if (size_mul(need, item_bytes, &bytes)) return SHU_E_NOMEM;
    void *fresh = mem_alloc(bytes);
    if (!fresh) return SHU_E_NOMEM;
    mem_free(*block);
    *block = fresh;
    *cap = need;
    return SHU_OK;
}

#define WORK_WORD_BYTES ((sizeof(struct word) * 2) << WORD_SET_BITS)

int tokenizer_work_new(const struct tokenizer *tokenizer, struct tokenizer_work **out, struct shu_error *err) {
    struct tokenizer_work *work = mem_calloc(1, sizeof *work);
    if (work) work->words = mem_alloc_large(WORK_WORD_BYTES);
    if (!work || !work->words) {
        mem_free(work);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a tokenizer's working space");
    }
    work->owner = tokenizer;
    work->text.max = work->escaped.max = 4 * TEXT_BYTES_MAX;
    *out = work;
    return SHU_OK;
}

void tokenizer_work_free(struct tokenizer_work *work) {
    if (!work) return;
    mem_free_large(work->words, WORK_WORD_BYTES);
    mem_free(work->symbols);
    mem_free(work->heap);
    mem_free(work->lattice);
    mem_free(work->pending);
    mem_free(work->claims);
    buf_free(&work->text);
    buf_free(&work->escaped);
    mem_free(work);
}

/* ---------------------------------------------------------------- encoding */

static int encode_plain(struct encoder *encoder, const char *text, size_t bytes, bool after_special) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    switch (tokenizer->model) {
    case VOCAB_BPE:
        return bpe_encode(encoder, text, bytes);
    case VOCAB_SPM:
        return spm_encode(encoder, text, bytes, tokenizer->add_space_prefix && after_special);
    case VOCAB_UNIGRAM:
        break;
    }
    return unigram_encode(encoder, text, bytes);
}

static int encode_text(struct encoder *encoder, const char *text, size_t bytes, bool parse_special) {
    struct tokenizer_work *work = encoder->work;
    bool after_special = true; /* the start of the text counts as one: it gets the space prefix */
    size_t from = 0;
    work->pending_count = work->pending_next = 0;
    while (from < bytes) {
        struct special_hit hit;
        int found = specials_next(encoder->tokenizer, work, text, bytes, from, parse_special, &hit);
        if (found < 0) return found;
        size_t to = found ? hit.at : bytes;
        int status = to > from ? encode_plain(encoder, text + from, to - from, after_special) : SHU_OK;
        if (!status && found) status = tokens_push(encoder->out, hit.id);
        if (status) return status;
        after_special = found;
        from = found ? to + hit.bytes : bytes;
    }
    return SHU_OK;
}

int tokenizer_encode(const struct tokenizer *tokenizer, struct tokenizer_work *work, const char *text, size_t bytes,
                     int flags, struct tokens *out, struct shu_error *err) {
    if (work->owner != tokenizer)
        return SHU_FAIL(err, SHU_E_USAGE, "this working space was made for another tokenizer");
    if (bytes > TEXT_BYTES_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "a text of %zu bytes is too long to tokenize at once; the limit is %zu",
                        bytes, TEXT_BYTES_MAX);
    struct encoder encoder = {tokenizer, work, out, err};
    bool special = flags & ENCODE_ADD_SPECIAL;
    int status = special && tokenizer->add_bos ? tokens_push(out, tokenizer->bos) : SHU_OK;
    if (!status) status = encode_text(&encoder, text, bytes, flags & ENCODE_PARSE_SPECIAL);
    if (!status && special && tokenizer->add_eos) status = tokens_push(out, tokenizer->eos);
    return status ? SHU_FAIL(err, status, "out of memory for the tokens of a text of %zu bytes", bytes) : SHU_OK;
}
