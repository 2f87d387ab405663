/* Fuzzes the grammar compilers: input that begins with "{" or a JSON word is a schema, the rest is EBNF; then some
 * steps of whatever the masks allow, which the automaton must accept. */
#include "infer/grammar_vocab.h"
#include "infer/infer.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk(const struct grammar *grammar, const struct tokenizer *tokenizer, const uint8_t *data, size_t size) {
    struct grammar_state *state = NULL;
    struct shu_error err = {0};
    if (grammar_state_new(grammar, &state, &err)) return;
    for (size_t i = 0; i < 40; i++) {
        const uint64_t *mask = grammar_mask(state);
        int32_t count = tokenizer_count(tokenizer), id = size ? data[i % size] * 7 % count : 0, tried = 0;
        while (tried < count && !(mask[id >> 6] >> (id & 63) & 1)) {
            id = (id + 1) % count;
            tried++;
        }
        if (tried == count) break;
        if (!grammar_accept(state, id)) abort();
    }
    grammar_state_free(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct tokenizer *tokenizer;
    if (!tokenizer) tokenizer = grammar_vocab_new();
    struct grammar *grammar = NULL;
    struct shu_error err = {0};
    json_t *schema = json_loadb((const char *)data, size, JSON_DECODE_ANY, NULL);
    if (size > 4096) return 0;
    int status = schema ? grammar_from_schema(schema, tokenizer, &grammar, &err)
                        : grammar_from_ebnf((const char *)data, size, tokenizer, &grammar, &err);
    if (status == 0) walk(grammar, tokenizer, data, size);
    grammar_free(grammar);
    json_decref(schema);
    return 0;
}
