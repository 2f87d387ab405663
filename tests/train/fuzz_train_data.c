/* Hostile lines of training data: a record and its sequences, or one reason. The first byte chooses the settings. */
#include "train/data.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char chatml[] = "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|e|>\n{% endfor %}"
                             "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}";

/* The 256 bytes in the alphabet of GPT-2 and two control tokens. */
static struct tokenizer *make_tokenizer(void) {
    static char text[256][4];
    struct span tokens[258];
    int32_t types[258];
    struct tokenizer *tokenizer = NULL;
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        tokens[b] = (struct span){text[b], (uint32_t)utf8_encode(printable ? b : next, text[b])};
        types[b] = TOKEN_NORMAL;
        next += !printable;
    }
    tokens[256] = (struct span){"<|s|>", 5};
    tokens[257] = (struct span){"<|e|>", 5};
    types[256] = types[257] = TOKEN_CONTROL;
    struct vocab_spec spec = {.model = VOCAB_BPE,
                              .pre = PRE_GPT2,
                              .count = 258,
                              .tokens = tokens,
                              .types = types,
                              .bos = -1,
                              .eos = 257,
                              .unk = -1,
                              .pad = -1};
    if (tokenizer_new(&spec, &tokenizer, NULL)) abort();
    return tokenizer;
}

static void check(const struct examples *examples, int context, bool preference) {
    size_t from = 0;
    if (preference ? examples->count != 2 : examples->count == 0) abort();
    for (size_t i = 0; i < examples->count; i++) {
        size_t count = examples->ends[i] - from, losses = 0;
        for (size_t t = 0; t < count; t++) {
            if ((examples->tokens[from + t] & ~SHARD_LOSS) >= 258) abort();
            losses += examples->tokens[from + t] >> 31;
        }
        if (count < 2 || count > (size_t)context + 1 || !losses) abort();
        from = examples->ends[i];
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tokenizer *tokenizer;
    static struct tokenizer_work *work;
    static struct template *tpl;
    if (!tokenizer) {
        tokenizer = make_tokenizer();
        if (tokenizer_work_new(tokenizer, &work, NULL) || template_new(chatml, strlen(chatml), &tpl, NULL)) abort();
    }
    if (!size) return 0;
    bool preference = data[0] & 1, chat = data[0] & 2;
    struct encoder_options options = {.tokenizer = tokenizer,
                                      .work = work,
                                      .tpl = chat ? tpl : NULL,
                                      .context = 8 + data[0] / 8,
                                      .all_tokens = data[0] & 4,
                                      .cut = size % 2};
    struct record record;
    struct examples examples = {0};
    struct shu_error err = {0};
    int status = record_read((const char *)data + 1, size - 1, preference, chat, &record, &err);
    if (!status) status = examples_make(&options, &record, preference, &examples, &err);
    if (status ? !err.message[0] || strchr(err.message, '\n') != NULL : false) abort();
    if (!status) check(&examples, options.context, preference);
    record_free(&record);
    examples_free(&examples);
    return 0;
}
