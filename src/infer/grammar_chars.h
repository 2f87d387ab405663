/* Grammars: reading characters, classes and repetitions, shared by patterns and EBNF. */
#ifndef GRAMMAR_CHARS_H
#define GRAMMAR_CHARS_H

#include "infer/grammar.h"

struct reader {
    struct builder *b;
    const char *text;
    size_t bytes, at;
    int depth;
    bool json;         /* classes are written as inside of a JSON string */
    const char *where; /* begins messages */
};
enum { CLASS_MAX_RANGES = 512 };

bool reader_more(const struct reader *r);
bool reader_skip(struct reader *r, char c); /* consumes c if it is next */
int reader_fail(struct reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
int reader_scalar(struct reader *r, uint32_t *out); /* one UTF-8 character */
/* \xHH \uHHHH \UHHHHHHHH behind the letter that was just read: `digits` hexadecimal digits. */
int reader_hex(struct reader *r, int digits, uint32_t *out);
/* Alternatives between '|', each read by `sequence`. */
typedef int reader_sequence(struct reader *r, const struct expr **out);
int reader_choice(struct reader *r, reader_sequence *sequence, const struct expr **out);
/* ? * + {m} {m,} {m,n} at the current place; found = false if there is none. */
int reader_repeat(struct reader *r, bool *found, int64_t *min, int64_t *max);

#endif
