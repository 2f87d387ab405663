/* A small vocabulary for grammar tests: all bytes, some texts of several bytes, one end token. */
#ifndef GRAMMAR_VOCAB_H
#define GRAMMAR_VOCAB_H

#include "text/text.h"

#include <stdio.h>
#include <string.h>

enum { GRAMMAR_VOCAB_MAX = 400 };

/* "▁" stands for a space, as in SentencePiece. NULL on failure. The end token is number 0. */
static inline struct tokenizer *grammar_vocab_new(void) {
    static const char *const texts[] = {
        "{\"",   "\"}",  "\":",    "\",",     "\"]",     "[\"",   "}}",     "]]",   "},",    "],",   "{}",  "[]",
        "\":▁",  "\",▁", "\",▁\"", ",\"",     ":\"",     "\":\"", "\":▁\"", "true", "false", "null", "tru", "name",
        "age",   "id",   "a",      "ab",      "abc",     "12",    "123",    "1,",   "0.",    "5}",   "\"a", "a\"",
        "a\":",  "\\n",  "\\\"",   "\\u",     "▁",       "▁▁",    "中",     "中国", "国\"",  "🙂", "-",   "-1",
        "2024-", "@a",   ".com",   "select▁", "▁where▁", "x\"}",  "}\n",    "\n\n"};
    struct span tokens[GRAMMAR_VOCAB_MAX];
    float scores[GRAMMAR_VOCAB_MAX] = {0};
    int32_t types[GRAMMAR_VOCAB_MAX], count = 0;
    char bytes[256][8];
    struct tokenizer *out = NULL;
    tokens[count] = (struct span){"</s>", 4};
    types[count++] = TOKEN_CONTROL;
    for (int b = 0; b < 256; b++) {
        int n = snprintf(bytes[b], sizeof bytes[b], "<0x%02X>", b);
        tokens[count] = (struct span){bytes[b], (uint32_t)n};
        types[count++] = TOKEN_BYTE;
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        tokens[count] = (struct span){texts[i], (uint32_t)strlen(texts[i])};
        types[count++] = TOKEN_NORMAL;
    }
    struct vocab_spec spec = {.model = VOCAB_SPM,
                              .pre = PRE_NONE,
                              .count = count,
                              .tokens = tokens,
                              .scores = scores,
                              .types = types,
                              .bos = -1,
                              .eos = 0,
                              .unk = -1,
                              .pad = -1};
    struct shu_error err = {0};
    if (tokenizer_new(&spec, &out, &err)) fprintf(stderr, "%s\n", err.message);
    return out;
}

#endif
