/* Arbitrary vocabularies and arbitrary text: the first bytes choose the kind
 * and the tokens, the rest is the text. Checks what must hold for every
 * vocabulary that is accepted: ids in range, the same ids twice (cold and warm
 * cache), and bytes back unchanged where all bytes have tokens. */
#include "text/vocab.h"

struct input {
    const uint8_t *p, *end;
};

static uint8_t take(struct input *input) {
    return input->p < input->end ? *input->p++ : 0;
}

static struct span take_span(struct input *input, uint32_t max) {
    uint32_t want = take(input) % (max + 1), left = (uint32_t)(input->end - input->p);
    struct span span = {(const char *)input->p, want < left ? want : left};
    input->p += span.bytes;
    return span;
}

static int32_t take_id(struct input *input, int32_t count) {
    return (int32_t)(take(input) % 8 ? -1 : take(input) % (count + 2));
}

/* Plain random tokens: mostly refused, which is a path of its own. */
static void wild_tokens(struct vocab *vocab, struct input *input) {
    for (int n = take(input); n > 0 && vocab->spec.count < VOCAB_MAX - 300; n--) {
        int32_t id = vocab->spec.count++;
        vocab->tokens[id] = take_span(input, 12);
        vocab->types[id] = (int32_t)take(input) % 9 - 1;
        vocab->scores[id] = (float)(int8_t)take(input);
    }
    for (int n = take(input) % 16; n > 0; n--) vocab->merges[vocab->spec.merge_count++] = take_span(input, 12);
}

/* Tokens that make sense, so that encoding is reached. */
static void tame_tokens(struct vocab *vocab, struct input *input) {
    bool bpe = vocab->spec.model == VOCAB_BPE;
    if (bpe)
        vocab_add_bytes(vocab);
    else
        vocab_add_byte_tokens(vocab);
    for (int n = take(input) % 64; n > 0; n--) {
        struct span left = take_span(input, 6), right = take_span(input, 6);
        uint8_t type = take(input);
        if (left.bytes == 0 || right.bytes == 0) continue;
        if (!bpe || type % 4 == 0) {
            int32_t kind = type % 8 ? TOKEN_NORMAL : TOKEN_USER_DEFINED;
            vocab_add(vocab, left.text, left.bytes, (float)(int8_t)type, kind);
            continue;
        }
        char line[64];
        size_t a = vocab_spell_all(left.text, left.bytes, line),
               b = vocab_spell_all(right.text, right.bytes, line + 32);
        if (vocab_find(vocab, (struct span){line, (uint32_t)a}) < 0) continue;
        if (vocab_find(vocab, (struct span){line + 32, (uint32_t)b}) < 0) continue;
        vocab_merge(vocab, left.text, left.bytes, right.text, right.bytes);
    }
}

static void check(bool held) {
    if (!held) abort();
}

static void walk(const struct vocab *vocab, struct tokenizer *tokenizer, const char *text, size_t bytes, bool tame) {
    struct tokenizer_work *work = NULL;
    struct tokens once = {0}, twice = {0};
    struct buf back = {0};
    struct detokenizer stream;
    check(tokenizer_work_new(tokenizer, &work, NULL) == SHU_OK);
    check(tokenizer_encode(tokenizer, work, text, bytes, ENCODE_PARSE_SPECIAL, &once, NULL) == SHU_OK);
    check(tokenizer_encode(tokenizer, work, text, bytes, ENCODE_PARSE_SPECIAL, &twice, NULL) == SHU_OK);
    check(once.count == twice.count);
    for (size_t i = 0; i < once.count; i++)
        check(once.id[i] == twice.id[i] && once.id[i] >= 0 && once.id[i] < vocab->spec.count);
    check(tokenizer_decode(tokenizer, once.id, once.count, true, &back) == SHU_OK);
    if (tame && vocab->spec.model == VOCAB_BPE) check(back.len == bytes && (!bytes || !memcmp(back.data, text, bytes)));
    buf_clear(&back);
    detokenizer_init(&stream, tokenizer);
    for (size_t i = 0; i < once.count; i++) check(detokenizer_push(&stream, once.id[i], &back) == SHU_OK);
    check(detokenizer_finish(&stream, &back) == SHU_OK);
    check(back.len == 0 || utf8_valid(back.data, back.len));
    tokens_free(&once);
    tokens_free(&twice);
    buf_free(&back);
    tokenizer_work_free(work);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, data + size};
    struct tokenizer *tokenizer = NULL;
    struct shu_error err = {0};
    uint8_t kind = take(&input), flags = take(&input);
    struct vocab *vocab = vocab_new((enum vocab_model)(kind % 3), (enum pretokenizer)(kind / 3 % 4));
    bool tame = flags & 1;
    if (tame)
        tame_tokens(vocab, &input);
    else
        wild_tokens(vocab, &input);
    vocab->spec.ignore_merges = flags & 2;
    vocab->spec.add_space_prefix = flags & 4;
    vocab->spec.unk = vocab->spec.model == VOCAB_UNIGRAM && vocab->spec.count ? 0 : take_id(&input, vocab->spec.count);
    vocab->spec.bos = take_id(&input, vocab->spec.count);
    int rc = tokenizer_new(&vocab->spec, &tokenizer, &err);
    check((rc == SHU_OK) == (tokenizer != NULL) && (rc == SHU_OK || err.message[0]));
    if (tokenizer) walk(vocab, tokenizer, (const char *)input.p, (size_t)(input.end - input.p), tame);
    tokenizer_free(tokenizer);
    vocab_free(vocab);
    return 0;
}
