/* lookup: drafts by prompt lookup. Private to room infer.
 *
 * Answers quote their sources, and code and JSON repeat themselves: when the
 * last tokens have occurred before, what followed them then is a good guess at
 * what follows now (prompt-lookup decoding, Saxena 2023; LLMA, Yang et al.
 * 2023). The index is that of LZ77: the last occurrence of every pair of
 * tokens by hash, and for every position the previous one with the same hash.
 * Memory is fixed: 4 bytes per position and one table.
 *
 * How long a draft should be depends on how far it can be trusted. The longer
 * the stretch of context that matched, the likelier it goes on: the chance that
 * the next token comes true is learned per class of match length, and the draft
 * ends where one more token would cost more than it is expected to save.
 *
 * Drafts are only guesses: a wrong one costs time, never a wrong token.
 */
#ifndef INFER_LOOKUP_H
#define INFER_LOOKUP_H

#include "base/base.h"

enum { LOOKUP_CLASSES = 5 }; /* matches of 1, 2, 3-4, 5-8 and more tokens */

struct lookup {
    const int32_t *tokens; /* borrowed, grows under the index; never moves */
    int count;             /* tokens indexed so far */
    int capacity;          /* tokens at most */
    int32_t *pair_head;    /* [1 << bits] position after the last pair with this hash, -1 none */
    int32_t *single_head;  /* [1 << bits] position after the last token with this hash */
    int32_t *previous;     /* [capacity] chain of pair_head */
    int bits;
    int max_length;
    float chance[LOOKUP_CLASSES]; /* that the next token of a draft comes true */
    int last_class;               /* of the last draft */
};

/* capacity: tokens at most; max_length: draft length at most (1 or more). SHU_E_NOMEM. */
int lookup_init(struct lookup *lookup, const int32_t *tokens, int capacity, int max_length);
void lookup_free(struct lookup *lookup);
/* Makes tokens [0, count) known. Positions already indexed are not visited again. */
void lookup_extend(struct lookup *lookup, int count);
/* Writes a guess at the tokens that follow all indexed ones, at most `room`, and returns how many: 0 if
 * nothing similar occurred, or nothing that is worth a try. */
int lookup_draft(struct lookup *lookup, int room, int32_t *out);
/* Tells what became of the last draft: of `drafted` tokens, `accepted` came true. */
void lookup_learn(struct lookup *lookup, int drafted, int accepted);

#endif
