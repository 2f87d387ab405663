/* Grammars: nondeterministic automata, between expressions and the final tables. */
#ifndef GRAMMAR_NFA_H
#define GRAMMAR_NFA_H

#include "infer/grammar.h"

enum nfa_kind { NFA_EMPTY, NFA_BYTE, NFA_CALL };
struct nfa_edge {
    uint32_t to, next; /* next edge of the same state + 1 */
    uint32_t rule;     /* NFA_CALL */
    uint8_t kind, low, high;
};
struct nfa {
    struct nfa_edge *edges;
    uint32_t *head; /* [state_count] first edge + 1 */
    uint32_t edge_count, edge_cap, state_count, state_cap;
    const struct builder *rules;
    const bool *inlined; /* [rules] */
    bool *needed;        /* [rules] set for each rule that is called */
    struct shu_error *err;
};
int nfa_state(struct nfa *nfa, uint32_t *out);
int nfa_emit(struct nfa *nfa, const struct expr *expr, uint32_t from, uint32_t to);
void nfa_free(struct nfa *nfa);

/* Byte classes that no edge of the automaton tells apart. */
uint32_t nfa_classes(const struct nfa *nfa, uint8_t class_of[256]);

/* Deterministic states, appended. State 0 must already be there (dead). */
struct dfa {
    uint32_t *next; /* [states][classes] */
    uint8_t *flags;
    uint32_t *call_at; /* [states + 1] */
    struct call_edge *calls;
    uint32_t states, state_cap, call_count, call_cap, classes;
    struct shu_error *err;
};
int dfa_init(struct dfa *dfa, uint32_t classes, struct shu_error *err);
/* Subset construction from `start`; `final` is the accepting NFA state. */
int dfa_determinise(struct dfa *dfa, const struct nfa *nfa, const uint8_t class_of[256], uint32_t start, uint32_t final,
                    uint32_t *out_start);

#endif
