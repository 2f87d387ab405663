/* Building a tokenizer: copies and checks the vocabulary, spells out what each
 * token decodes to, decides which tokens are special and which end a turn. */
#include "text/tokenizer.h"

/* --------------------------------------------------------- GPT-2 alphabet */

int alphabet_byte(uint32_t scalar) {
    if ((scalar >= 0x21 && scalar <= 0x7e) || (scalar >= 0xa1 && scalar <= 0xac) || (scalar >= 0xae && scalar <= 0xff))
        return (int)scalar;
    if (scalar < 0x100 || scalar > 0x143) return -1;
    uint32_t n = scalar - 0x100; /* the n-th byte that is not printable */
    if (n < 0x21) return (int)n;
    if (n < 0x21 + 0x22) return (int)(n - 0x21 + 0x7f);
    return 0xad;
}

int64_t alphabet_decode(struct span stored, char *out) {
    int64_t count = 0;
    for (uint32_t at = 0; at < stored.bytes;) {
        uint8_t byte = (uint8_t)stored.text[at];
        uint32_t scalar = byte;
        int length = byte < 0x80 ? 1 : utf8_decode(stored.text + at, stored.bytes - at, &scalar);
        int value = length ? alphabet_byte(scalar) : -1;
        if (value < 0) return -1;
        out[count++] = (char)value;
        at += (uint32_t)length;
    }
    return count;
}

/* ---------------------------------------------------------------- checking */

static bool id_ok(int32_t id, int32_t count) {
    return id >= -1 && id < count;
}

static int check_spec(const struct vocab_spec *spec, struct shu_error *err) {
    if (spec->model != VOCAB_BPE && spec->model != VOCAB_SPM && spec->model != VOCAB_UNIGRAM)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "vocabulary kind %d is not known; expected BPE, SPM or UNIGRAM",
                        (int)spec->model);
    if ((unsigned)spec->pre > PRE_NONE)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "pre-tokenizer %d is not known", (int)spec->pre);
    if (spec->count < 1 || !spec->tokens)
        return SHU_FAIL(err, SHU_E_FORMAT, "the vocabulary is empty; expected at least one token");
    if (spec->merge_count < 0 || (spec->merge_count > 0 && !spec->merges))
        return SHU_FAIL(err, SHU_E_FORMAT, "the vocabulary has %d merges but no list of them", (int)spec->merge_count);
    if (!id_ok(spec->bos, spec->count) || !id_ok(spec->eos, spec->count) || !id_ok(spec->unk, spec->count) ||
        !id_ok(spec->pad, spec->count))
        return SHU_FAIL(err, SHU_E_FORMAT,
                        "special token ids must lie in [-1, %d); found bos %d, eos %d, unk %d, pad %d",
                        (int)spec->count, (int)spec->bos, (int)spec->eos, (int)spec->unk, (int)spec->pad);
    if ((spec->add_bos && spec->bos < 0) || (spec->add_eos && spec->eos < 0))
        return SHU_FAIL(err, SHU_E_FORMAT, "the vocabulary asks for a %s token before or after each text but has none",
                        spec->add_bos && spec->bos < 0 ? "BOS" : "EOS");
    return SHU_OK;
}

/* ------------------------------------------------------------------ texts */

static int text_list_new(struct text_list *list, int32_t count, size_t bytes, struct shu_error *err) {
    list->count = count;
    list->bytes = mem_alloc(bytes);
    list->at = mem_alloc(((size_t)count + 1) * sizeof *list->at);
    if (!list->bytes || !list->at) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %d tokens", (int)count);
    list->at[0] = 0;
    return SHU_OK;
}

static void text_list_free(struct text_list *list) {
    mem_free(list->bytes);
    mem_free(list->at);
}

static int copy_texts(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    size_t total = 0;
    for (int32_t id = 0; id < spec->count; id++) {
        if (spec->tokens[id].bytes > TOKEN_BYTES_MAX || (spec->tokens[id].bytes && !spec->tokens[id].text))
            return SHU_FAIL(err, SHU_E_FORMAT, "token %d has %u bytes; expected at most %d", (int)id,
                            (unsigned)spec->tokens[id].bytes, TOKEN_BYTES_MAX);
        total += spec->tokens[id].bytes;
    }
    if (total > TEXT_BYTES_MAX)
        return SHU_FAIL(err, SHU_E_RANGE, "the tokens hold %zu bytes; the limit is %zu", total, TEXT_BYTES_MAX);
    struct text_list *stored = &tokenizer->stored;
    int status = text_list_new(stored, spec->count, total, err);
    for (int32_t id = 0; !status && id < spec->count; id++) {
        struct span text = spec->tokens[id];
        if (text.bytes) memcpy(stored->bytes + stored->at[id], text.text, text.bytes);
        stored->at[id + 1] = stored->at[id] + text.bytes;
    }
    return status;
}

#define INDEX_AHEAD 12 /* slots are fetched this many tokens early: a large index misses the cache at each one */

/* Two tokens of one text could not both be found again. Empty tokens (padding in some files) are let be: nothing
 * encodes to them. */
static int index_texts(struct tokenizer *tokenizer, struct shu_error *err) {
    int status = text_map_new(&tokenizer->by_text, &tokenizer->stored, err);
    for (int32_t id = 0; !status && id < tokenizer->count; id++) {
        if (id + INDEX_AHEAD < tokenizer->count) text_map_prefetch(&tokenizer->by_text, id + INDEX_AHEAD);
        if (text_at(&tokenizer->stored, id).bytes == 0) continue;
        int32_t there = text_map_add(&tokenizer->by_text, id);
        if (there != id)
            status = SHU_FAIL(err, SHU_E_FORMAT, "tokens %d and %d of the vocabulary have the same text", (int)there,
                              (int)id);
    }
    return status;
}

/* --------------------------------------------------- types and turn ends */

/* Tokens that end a turn, by their text; the same list as llama.cpp's, so that both stop at the same place. The
 * spelling decides even where the vocabulary says "normal" or "user-defined": such a token becomes a control token. */
static const char *const END_TEXTS[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>",
                                        "<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>",
                                        "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
                                        "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
                                        /* code models: padding, next repository, next file */
                                        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>",
                                        "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"};
/* Control tokens by spelling that end nothing. */
static const char *const CONTROL_TEXTS[] = {
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>",  "<SUF>", "▁<SUF>", "<|code_suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>",   "<MID>", "▁<MID>", "<|code_middle|>"};
/* Channel marks of one family: always shown, always parsed. */
static const char *const SHOWN_TEXTS[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};

static int32_t find_text(const struct tokenizer *tokenizer, const char *text) {
    return text_map_find(&tokenizer->by_text, text, strlen(text));
}

static void set_type(struct tokenizer *tokenizer, const char *text, enum token_type type, bool end) {
    int32_t id = find_text(tokenizer, text);
    if (id < 0) return;
    tokenizer->type[id] = (uint8_t)type;
    tokenizer->end[id] = end;
}

static bool is_end_text(const struct tokenizer *tokenizer, const char *text) {
    int32_t id = find_text(tokenizer, text);
    return id >= 0 && tokenizer->end[id];
}

/* Two families use an "end" spelling for something else; llama.cpp knows them by their other tokens. */
static void undo_false_ends(struct tokenizer *tokenizer) {
    bool call = is_end_text(tokenizer, "<|call|>") || is_end_text(tokenizer, "<|calls|>");
    if (call && (is_end_text(tokenizer, "<|return|>") || is_end_text(tokenizer, "<|flush|>")))
        set_type(tokenizer, "<|end|>", TOKEN_USER_DEFINED, false);
    if (is_end_text(tokenizer, "<|tool_response>") || is_end_text(tokenizer, "<|plamo:eos|>"))
        set_type(tokenizer, "</s>", TOKEN_NORMAL, false);
}

static int assign_types(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    tokenizer->type = mem_alloc((size_t)spec->count);
    tokenizer->end = mem_calloc((size_t)spec->count, 1);
    if (!tokenizer->type || !tokenizer->end)
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the types of %d tokens", (int)spec->count);
    for (int32_t id = 0; id < spec->count; id++) {
        int32_t type = spec->types ? spec->types[id] : TOKEN_NORMAL;
        bool known = type >= TOKEN_NORMAL && type <= TOKEN_BYTE;
        tokenizer->type[id] = (uint8_t)(known ? type : TOKEN_UNUSED); /* 0 in some files: never shown either */
    }
    for (size_t i = 0; i < sizeof CONTROL_TEXTS / sizeof *CONTROL_TEXTS; i++)
        set_type(tokenizer, CONTROL_TEXTS[i], TOKEN_CONTROL, false);
    for (size_t i = 0; i < sizeof END_TEXTS / sizeof *END_TEXTS; i++)
        set_type(tokenizer, END_TEXTS[i], TOKEN_CONTROL, true);
    for (size_t i = 0; i < sizeof SHOWN_TEXTS / sizeof *SHOWN_TEXTS; i++)
        set_type(tokenizer, SHOWN_TEXTS[i], TOKEN_USER_DEFINED, false);
    if (spec->eos >= 0) tokenizer->end[spec->eos] = 1;
    undo_false_ends(tokenizer);
    return SHU_OK;
}

/* ----------------------------------------------------------------- pieces */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0xNN>" to its byte; -1 for other spellings. */
static int byte_of(struct span text) {
    if (text.bytes != 6 || memcmp(text.text, "<0x", 3) != 0 || text.text[5] != '>') return -1;
    int high = hex_digit(text.text[3]), low = hex_digit(text.text[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static uint32_t unescape_spaces(struct span text, char *out) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < text.bytes; i++) {
        if (text.bytes - i >= 3 && memcmp(text.text + i, "\xe2\x96\x81", 3) == 0) {
            out[count++] = ' ';
            i += 2;
        } else {
            out[count++] = text.text[i];
        }
    }
    return count;
}

/* What a token decodes to, never longer than its text. A byte-level token with characters outside the alphabet
 * (damaged, or added by hand) decodes to its own text. */
static uint32_t write_piece(const struct tokenizer *tokenizer, int32_t id, char *out) {
    struct span text = text_at(&tokenizer->stored, id);
    int byte;
    int64_t decoded;
    switch (tokenizer->type[id]) {
    case TOKEN_UNUSED:
        return 0;
    case TOKEN_BYTE:
        byte = byte_of(text);
        if (byte < 0) break;
        *out = (char)byte;
        return 1;
    case TOKEN_NORMAL:
        if (tokenizer->model != VOCAB_BPE) return unescape_spaces(text, out);
        decoded = alphabet_decode(text, out);
        if (decoded >= 0) return (uint32_t)decoded;
        break;
    default:
        break;
    }
    if (text.bytes) memcpy(out, text.text, text.bytes);
    return text.bytes;
}

static int build_pieces(struct tokenizer *tokenizer, struct shu_error *err) {
    struct text_list *pieces = &tokenizer->pieces;
    int status = text_list_new(pieces, tokenizer->count, tokenizer->stored.at[tokenizer->count], err);
    for (int32_t id = 0; !status && id < tokenizer->count; id++)
        pieces->at[id + 1] = pieces->at[id] + write_piece(tokenizer, id, pieces->bytes + pieces->at[id]);
    return status;
}

/* ------------------------------------------------------------------- public */

static int build_model(struct tokenizer *tokenizer, const struct vocab_spec *spec, struct shu_error *err) {
    switch (spec->model) {
    case VOCAB_BPE:
        return bpe_new(tokenizer, spec, err);
    case VOCAB_SPM:
        return spm_new(tokenizer, spec, err);
    case VOCAB_UNIGRAM:
        break;
    }
    return unigram_new(tokenizer, spec, err);
}

int tokenizer_new(const struct vocab_spec *spec, struct tokenizer **out, struct shu_error *err) {
    int status = check_spec(spec, err);
    if (status) return status;
    struct tokenizer *tokenizer = mem_calloc(1, sizeof *tokenizer);
    if (!tokenizer) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a tokenizer");
    tokenizer->model = spec->model;
    tokenizer->pre = spec->pre;
    tokenizer->count = spec->count;
    tokenizer->bos = spec->bos;
    tokenizer->eos = spec->eos;
    tokenizer->unk = spec->unk;
    tokenizer->pad = spec->pad;
    tokenizer->add_bos = spec->add_bos;
    tokenizer->add_eos = spec->add_eos;
    tokenizer->add_space_prefix = spec->add_space_prefix && spec->model != VOCAB_BPE;
    tokenizer->ignore_merges = spec->ignore_merges;
    if (!status) status = copy_texts(tokenizer, spec, err);
    if (!status) status = index_texts(tokenizer, err);
    if (!status) status = assign_types(tokenizer, spec, err);
    if (!status) status = build_pieces(tokenizer, err);
    if (!status) status = specials_new(tokenizer, err);
    if (!status) status = build_model(tokenizer, spec, err);
    if (status) {
        tokenizer_free(tokenizer);
        return status;
    }
    *out = tokenizer;
    return SHU_OK;
}

void tokenizer_free(struct tokenizer *tokenizer) {
    if (!tokenizer) return;
    if (tokenizer->pairs) mem_free_large(tokenizer->pairs, tokenizer->pair_bytes);
    text_map_free(&tokenizer->by_bytes);
    text_map_free(&tokenizer->by_text);
    specials_free(&tokenizer->specials);
    seams_free(&tokenizer->seams);
    matcher_free(&tokenizer->words);
    mem_free(tokenizer->char_id);
    mem_free(tokenizer->priority);
    mem_free(tokenizer->score);
    mem_free(tokenizer->type);
    mem_free(tokenizer->end);
    text_list_free(&tokenizer->stored);
    text_list_free(&tokenizer->pieces);
    mem_free(tokenizer);
}

static bool in_range(const struct tokenizer *tokenizer, int32_t id) {
    return id >= 0 && id < tokenizer->count;
}

struct span tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, bool with_special) {
    if (!in_range(tokenizer, id)) return (struct span){"", 0};
    bool hidden = tokenizer->type[id] == TOKEN_CONTROL || tokenizer->type[id] == TOKEN_UNKNOWN;
    if (hidden && !with_special) return (struct span){"", 0};
    return text_at(&tokenizer->pieces, id);
}

int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, bool with_special,
                     struct buf *out) {
    bool strip = tokenizer->add_space_prefix;
    for (size_t i = 0; i < count; i++) {
        struct span piece = tokenizer_piece(tokenizer, ids[i], with_special);
        bool text = in_range(tokenizer, ids[i]) && tokenizer->type[ids[i]] != TOKEN_CONTROL;
        if (strip && text && piece.bytes && piece.text[0] == ' ') {
            piece.text++;
            piece.bytes--;
        }
        if (text) strip = false;
        int status = piece.bytes ? buf_append(out, piece.text, piece.bytes) : SHU_OK;
        if (status) return status;
    }
    return SHU_OK;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text, size_t bytes) {
    return text_map_find(&tokenizer->by_text, text, bytes);
}

int32_t tokenizer_count(const struct tokenizer *tokenizer) {
    return tokenizer->count;
}
int32_t tokenizer_bos(const struct tokenizer *tokenizer) {
    return tokenizer->bos;
}
int32_t tokenizer_eos(const struct tokenizer *tokenizer) {
    return tokenizer->eos;
}

bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id) {
    return in_range(tokenizer, id) && tokenizer->end[id];
}

enum token_type tokenizer_type(const struct tokenizer *tokenizer, int32_t id) {
    return in_range(tokenizer, id) ? (enum token_type)tokenizer->type[id] : TOKEN_UNUSED;
}
