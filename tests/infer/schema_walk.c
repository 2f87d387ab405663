/* Random walks through grammars for schema_validity.py: at each step one of the allowed tokens is drawn.
 *
 *     schema_walk [MODEL]      (without MODEL: the small vocabulary of the unit tests)
 *
 * One JSON object a line on stdin: {"schema": …, "seed": n, "tokens": soft limit} or {"ebnf": "…", …}; one answer a
 * line on stdout: {"text", "finished", "tokens", "compile_us", "step_us", "slowest_us"} or {"error"}. At each step some
 * allowed and some refused tokens are tried on a copy of the state: mask and automaton must agree. */
#include "infer/grammar_vocab.h"
#include "infer/infer.h"
#include "weights/weights.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct walk {
    const struct tokenizer *tokenizer;
    struct rng rng;
    int32_t *allowed;
    size_t allowed_count;
    uint64_t step_ns, slowest_ns;
    int tokens, limit;
    bool disagrees;
};

/* Processor time of this thread: other programs on the machine do not count. */
static uint64_t work_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void list_allowed(struct walk *w, const uint64_t *mask) {
    w->allowed_count = 0;
    for (int32_t id = 0; id < tokenizer_count(w->tokenizer); id++)
        if (mask[id >> 6] >> (id & 63) & 1) w->allowed[w->allowed_count++] = id;
}

/* Drawn uniformly at first; beyond the soft limit, what closes is preferred to what opens. */
static int32_t draw(struct walk *w) {
    int32_t best = w->allowed[rng_next(&w->rng) % w->allowed_count];
    bool hurry = w->tokens > w->limit;
    int best_rank = 100, ties = 0;
    for (size_t i = 0; i < w->allowed_count; i++) {
        int32_t id = w->allowed[i];
        if (tokenizer_is_end(w->tokenizer, id) && (hurry || rng_uniform(&w->rng) < 0.3)) return id;
        if (!hurry) continue;
        struct span piece = tokenizer_piece(w->tokenizer, id, false);
        char c = piece.bytes == 1 ? piece.text[0] : 0;
        int rank = c == '}' || c == ']' || c == '"' ? 1 : c == ':' || c == '0' ? 3 : c ? 4 : 5;
        if (c == '[' || c == '{' || c == ',' || c == '\\' || c == ' ') rank = 50;
        if (rank > best_rank) continue;
        ties = rank == best_rank ? ties + 1 : 1;
        best_rank = rank;
        if (rng_next(&w->rng) % (uint64_t)ties == 0) best = id;
    }
    bool any = hurry && best_rank > 2 && rng_uniform(&w->rng) < 0.5; /* what a pattern waits for may be anything */
    return any ? w->allowed[rng_next(&w->rng) % w->allowed_count] : best;
}

/* The mask must say what the automaton says. */
static void cross_check(struct walk *w, const struct grammar_state *state, struct grammar_state *copy,
                        const uint64_t *mask) {
    for (int i = 0; i < 12; i++) {
        int32_t id = (int32_t)(rng_next(&w->rng) % (uint64_t)tokenizer_count(w->tokenizer));
        if (i < 6 && w->allowed_count) id = w->allowed[rng_next(&w->rng) % w->allowed_count];
        if (grammar_state_copy(copy, state)) continue;
        if (grammar_accept(copy, id) != (mask[id >> 6] >> (id & 63) & 1)) w->disagrees = true;
    }
}

static bool run(struct walk *w, const struct grammar *grammar, struct buf *text, struct shu_error *err) {
    struct grammar_state *state = NULL, *copy = NULL;
    bool finished = false;
    int status = grammar_state_new(grammar, &state, err);
    if (!status) status = grammar_state_new(grammar, &copy, err);
    for (w->tokens = 0; !status && !finished && w->tokens < w->limit + 3000; w->tokens++) {
        uint64_t start = work_ns();
        const uint64_t *mask = grammar_mask(state);
        uint64_t spent = work_ns() - start;
        list_allowed(w, mask);
        if (w->allowed_count == 0) break;
        cross_check(w, state, copy, mask);
        int32_t id = draw(w);
        start = work_ns();
        if (!grammar_accept(state, id)) w->disagrees = true;
        spent += work_ns() - start;
        w->step_ns += spent;
        if (spent > w->slowest_ns) w->slowest_ns = spent;
        finished = tokenizer_is_end(w->tokenizer, id) || (grammar_done(state) && rng_uniform(&w->rng) < 0.5);
        struct span piece = tokenizer_piece(w->tokenizer, id, false);
        if (piece.bytes) (void)buf_append(text, piece.text, piece.bytes);
    }
    grammar_state_free(state);
    grammar_state_free(copy);
    return finished;
}

static json_t *answer(struct walk *w, const json_t *request) {
    struct shu_error err = {0};
    struct grammar *grammar = NULL;
    struct buf text = {0};
    const json_t *ebnf = json_object_get(request, "ebnf");
    rng_seed(&w->rng, (uint64_t)json_integer_value(json_object_get(request, "seed")));
    w->limit = (int)json_integer_value(json_object_get(request, "tokens"));
    w->step_ns = w->slowest_ns = 0;
    w->disagrees = false;
    uint64_t start = work_ns();
    int status =
        ebnf ? grammar_from_ebnf(json_string_value(ebnf), json_string_length(ebnf), w->tokenizer, &grammar, &err)
             : grammar_from_schema(json_object_get(request, "schema"), w->tokenizer, &grammar, &err);
    uint64_t compile_ns = work_ns() - start;
    if (status) return json_pack("{s:s, s:i}", "error", err.message, "code", err.code);
    bool finished = run(w, grammar, &text, &err);
    grammar_free(grammar);
    json_t *reply =
        json_pack("{s:b, s:i, s:I, s:f, s:f, s:b}", "finished", finished, "tokens", w->tokens, "compile_us",
                  (json_int_t)(compile_ns / 1000), "step_us", (double)w->step_ns / 1e3 / (w->tokens ? w->tokens : 1),
                  "slowest_us", (double)w->slowest_ns / 1e3, "disagrees", w->disagrees);
    json_t *out = json_stringn(text.data ? text.data : "", text.len);
    json_object_set_new(reply, "text", out ? out : json_null()); /* null: not UTF-8 */
    buf_free(&text);
    return reply;
}

static int load_tokenizer(const char *path, struct model **model, struct tokenizer **out) {
    struct shu_error err = {0};
    if (!path) {
        *out = grammar_vocab_new();
        return *out == NULL;
    }
    int status = model_open(path, model, &err);
    if (!status) status = model_tokenizer(*model, out, &err);
    if (status) fprintf(stderr, "%s\n", err.message);
    return status;
}

int main(int argc, char **argv) {
    struct model *model = NULL;
    struct tokenizer *tokenizer = NULL;
    if (load_tokenizer(argc > 1 ? argv[1] : NULL, &model, &tokenizer)) return 1;
    struct walk w = {.tokenizer = tokenizer,
                     .allowed = mem_alloc((size_t)tokenizer_count(tokenizer) * sizeof(int32_t))};
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while (w.allowed && (n = getline(&line, &cap, stdin)) > 0) {
        struct shu_error err = {0};
        json_t *request = NULL, *reply;
        if (json_parse(line, (size_t)n, "stdin", &request, &err))
            reply = json_pack("{s:s}", "error", err.message);
        else
            reply = answer(&w, request);
        json_dumpf(reply, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        json_decref(request);
    }
    free(line);
    mem_free(w.allowed);
    tokenizer_free(tokenizer);
    model_close(model);
    return 0;
}
