#include <string.h>

#include "infer/engine.h"
#include "infer/lookup.h"
#include "infer/stop.h"

/* One answer in the making. Between steps the sequence holds history[0, history_count - 1]: the
 * last token of the history has been drawn but not fed. */
struct generation {
    struct engine *engine;
    int sequence;
    struct generate_options options;
    generate_callback *callback;
    void *context;

    struct sampler *sampler;
    struct grammar_state *grammar;       /* NULL without a grammar */
    struct grammar_state *draft_grammar; /* runs ahead to keep drafts within the grammar */
    struct lookup lookup;                /* zeroed when speculation is off */
    struct detokenizer detokenizer;
    struct buf text; /* what the detokenizer made of the current token */
    struct stop_filter stop;

    int vocab;        /* tokens that have a text: rows of the output matrix beyond them are padding */
    int32_t *history; /* [context + 1] prompt and answer */
    int history_count, prompt_count;
    int32_t *feed;     /* [speculate + 1] the token to feed and its draft */
    int fed;           /* rows of the current step */
    bool done, silent; /* silent: the callback cancelled and is not called again */
    uint64_t start_ns, prefilled_ns;
    struct generate_result result;
    int32_t top_ids[GENERATE_MAX_TOP];
    float top_logprobs[GENERATE_MAX_TOP];
};

const char *finish_reason_name(enum finish_reason reason) {
    switch (reason) {
    case FINISH_END:
    case FINISH_STOP:
    case FINISH_GRAMMAR:
        return "stop";
    case FINISH_LENGTH:
    case FINISH_CONTEXT:
        return "length";
    case FINISH_CANCELLED:
        return "cancelled";
    }
    return "unknown";
}

void generate_defaults(struct generate_options *options) {
    *options = (struct generate_options){0};
    sampler_greedy(&options->sampler);
}

/* ------------------------------------------------------------------- set-up */

static int options_check(const struct generate_options *o, struct shu_error *err) {
    if (o->max_tokens < 0)
        return SHU_FAIL(err, SHU_E_USAGE, "max_tokens must be 0 (no limit) or more, found %d", o->max_tokens);
    if (o->speculate < 0 || o->speculate > 1024)
        return SHU_FAIL(err, SHU_E_USAGE, "speculate must be 0 (off) to 1024 tokens, found %d", o->speculate);
    if (o->top_logprobs < 0 || o->top_logprobs > GENERATE_MAX_TOP)
        return SHU_FAIL(err, SHU_E_USAGE, "top_logprobs must be 0 to %d, found %d", GENERATE_MAX_TOP, o->top_logprobs);
    if (o->stop_count < 0 || o->stop_count > GENERATE_MAX_STOP)
        return SHU_FAIL(err, SHU_E_USAGE, "expected at most %d stop strings, found %d", GENERATE_MAX_STOP,
                        o->stop_count);
    for (int i = 0; i < o->stop_count; i++) {
        if (!o->stop[i] || !o->stop[i][0])
            return SHU_FAIL(err, SHU_E_USAGE, "stop string %d is empty; remove it", i + 1);
    }
    return SHU_OK;
}

static int prompt_check(const struct engine *engine, const int32_t *prompt, size_t count, struct shu_error *err) {
    int vocab = engine_config(engine)->vocab, context = engine_context(engine);
    if (count == 0) return SHU_FAIL(err, SHU_E_USAGE, "the prompt has no tokens; an answer needs at least one");
    if (count > (size_t)context)
        return SHU_FAIL(err, SHU_E_RANGE,
                        "the prompt has %zu tokens, the context holds %d; shorten it or raise the context", count,
                        context);
    for (size_t i = 0; i < count; i++) {
        if (prompt[i] < 0 || prompt[i] >= vocab)
            return SHU_FAIL(err, SHU_E_USAGE, "prompt token %zu must be 0 to %d, found %d", i, vocab - 1,
                            (int)prompt[i]);
    }
    return SHU_OK;
}

/* Keeps what the sequence already holds of the prompt. The last prompt token always runs: its logits are needed. */
static int reuse_prefix(struct generation *g, struct shu_error *err) {
    const int32_t *held = sequence_tokens(g->engine, g->sequence);
    int length = sequence_length(g->engine, g->sequence), same = 0;
    while (same < length && same < g->prompt_count - 1 && held[same] == g->history[same]) same++;
    g->result.prompt_cached = same;
    int status = sequence_truncate(g->engine, g->sequence, same, err);
    if (!status && engine_room(g->engine, g->sequence) < g->prompt_count - same)
        status =
            SHU_FAIL(err, SHU_E_RANGE,
                     "the prompt needs %d more positions, the KV cache has %d free for it; free a sequence or open "
                     "the engine with more kv_positions",
                     g->prompt_count - same, engine_room(g->engine, g->sequence));
    return status;
}

static int speculation_init(struct generation *g) {
    if (g->options.speculate == 0) return SHU_OK;
    int status = lookup_init(&g->lookup, g->history, engine_context(g->engine) + 1, g->options.speculate);
    if (!status && g->grammar) status = grammar_state_new(g->options.grammar, &g->draft_grammar, NULL);
    return status;
}

/* All memory an answer needs: later steps only reuse it. */
static int generation_alloc(struct generation *g, const int32_t *prompt, struct shu_error *err) {
    const struct generate_options *o = &g->options;
    int status = sampler_new(&o->sampler, g->vocab, &g->sampler, err);
    if (!status && o->grammar) status = grammar_state_new(o->grammar, &g->grammar, err);
    if (status) return status;
    g->history = mem_alloc(((size_t)engine_context(g->engine) + 1) * sizeof *g->history);
    g->feed = mem_alloc(((size_t)o->speculate + 1) * sizeof *g->feed);
    if (!g->history || !g->feed || speculation_init(g) || buf_reserve(&g->text, 1024) ||
        buf_reserve(&g->stop.held, 4096))
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for an answer of up to %d tokens", engine_context(g->engine));
    memcpy(g->history, prompt, (size_t)g->prompt_count * sizeof *prompt);
    g->history_count = g->prompt_count;
    g->stop.strings = o->stop;
    g->stop.count = o->stop_count;
    detokenizer_init(&g->detokenizer, engine_tokenizer(g->engine));
    return SHU_OK;
}

int generation_new(struct engine *engine, int sequence, const int32_t *prompt, size_t prompt_count,
                   const struct generate_options *options, generate_callback *callback, void *context,
                   struct generation **out, struct shu_error *err) {
    int status = engine_check_sequence(engine, sequence, err);
    if (!status) status = options_check(options, err);
    if (!status) status = prompt_check(engine, prompt, prompt_count, err);
    if (status) return status;
    struct generation *g = mem_calloc(1, sizeof *g);
    if (!g) return SHU_FAIL(err, SHU_E_NOMEM, "no memory for an answer");
    g->engine = engine;
    g->sequence = sequence;
    g->options = *options;
    g->vocab = tokenizer_count(engine_tokenizer(engine));
    g->callback = callback;
    g->context = context;
    g->prompt_count = g->result.prompt_tokens = (int)prompt_count;
    g->start_ns = clock_ns();
    status = generation_alloc(g, prompt, err);
    if (!status) status = reuse_prefix(g, err);
    if (status) {
        generation_free(g);
        return status;
    }
    *out = g;
    return SHU_OK;
}

void generation_free(struct generation *g) {
    if (!g) return;
    sampler_free(g->sampler);
    grammar_state_free(g->grammar);
    grammar_state_free(g->draft_grammar);
    lookup_free(&g->lookup);
    buf_free(&g->text);
    stop_free(&g->stop);
    mem_free(g->history);
    mem_free(g->feed);
    mem_free(g);
}

bool generation_done(const struct generation *g) {
    return g->done;
}

void generation_result(const struct generation *g, struct generate_result *out) {
    *out = g->result;
}

/* ------------------------------------------------------------------- finish */

static void report(struct generation *g, int32_t id, float logprob, bool with_top) {
    struct generated_token token = {.id = id,
                                    .logprob = logprob,
                                    .text = g->stop.released ? g->stop.held.data : "",
                                    .bytes = g->stop.released,
                                    .top_count = with_top ? g->options.top_logprobs : 0,
                                    .top_ids = g->top_ids,
                                    .top_logprobs = g->top_logprobs};
    if (g->callback && !g->silent && !g->callback(g->context, &token)) g->silent = true;
}

/* Ends the answer. Text held back as the possible start of a stop string or of a character is the
 * caller's after all, unless a stop string has ended the answer. */
static int finish(struct generation *g, enum finish_reason reason) {
    int status = SHU_OK;
    g->done = true;
    g->result.reason = reason;
    if (reason != FINISH_STOP) {
        bool stopped;
        buf_clear(&g->text);
        status = detokenizer_finish(&g->detokenizer, &g->text);
        if (!status) status = stop_push(&g->stop, g->text.data, g->text.len, &stopped);
        if (!status && g->stop.released) report(g, -1, 0, false);
        stop_finish(&g->stop);
        if (!status && g->stop.released) report(g, -1, 0, false);
    }
    uint64_t now = clock_ns();
    if (g->prefilled_ns)
        g->result.decode_ns = now - g->prefilled_ns;
    else
        g->result.prefill_ns = now - g->start_ns;
    return status;
}

void generation_cancel(struct generation *g) {
    if (!g->done) finish(g, FINISH_CANCELLED);
}

/* --------------------------------------------------------------------- next */

/* Cuts a draft where the grammar would refuse it: rows that cannot be accepted are not run. */
static int draft_within_grammar(struct generation *g, const int32_t *draft, int count) {
    if (!g->draft_grammar) return count;
    if (grammar_state_copy(g->draft_grammar, g->grammar)) return 0;
    int kept = 0;
    while (kept < count && grammar_accept(g->draft_grammar, draft[kept])) kept++;
    return kept;
}

/* Fills feed[1…] with a guess at the next tokens, at most `room`. Returns how many. */
static int draft(struct generation *g, int room) {
    if (g->options.speculate == 0) return 0;
    lookup_extend(&g->lookup, g->history_count);
    if (g->options.max_tokens > 0) {
        int left = g->options.max_tokens - g->result.completion_tokens - 1;
        room = left < room ? left : room;
    }
    if (room <= 0) return 0;
    int count = lookup_draft(&g->lookup, room, g->feed + 1);
    return draft_within_grammar(g, g->feed + 1, count);
}

static int least(int a, int b) {
    return a < b ? a : b;
}

bool generation_next(struct generation *g, int max_rows, int max_logits, struct step_item *out) {
    if (g->done) return false;
    int length = sequence_length(g->engine, g->sequence);
    if (length < g->prompt_count) {
        int count = least(max_rows, g->prompt_count - length);
        *out = (struct step_item){.sequence = g->sequence,
                                  .tokens = g->history + length,
                                  .count = count,
                                  .logits = length + count == g->prompt_count};
        g->fed = 1;
        return true;
    }
    int room = engine_room(g->engine, g->sequence);
    if (room < 1) {
        finish(g, FINISH_CONTEXT);
        return false;
    }
    g->feed[0] = g->history[g->history_count - 1];
    g->fed = 1 + draft(g, least(room, least(max_rows, max_logits)) - 1);
    *out = (struct step_item){.sequence = g->sequence, .tokens = g->feed, .count = g->fed, .logits = g->fed};
    return true;
}

/* --------------------------------------------------------------------- take */

/* Adds a drawn token to the answer, reports it, and finds out whether it was the last. */
static int answer_token(struct generation *g, int32_t id, float logprob, struct shu_error *err) {
    if (!g->options.ignore_end && tokenizer_is_end(engine_tokenizer(g->engine), id)) return finish(g, FINISH_END);
    if (g->grammar && !grammar_accept(g->grammar, id))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "the grammar's mask and its automaton disagree on token %d", (int)id);
    g->history[g->history_count++] = id;
    g->result.completion_tokens++;
    bool stopped = false;
    buf_clear(&g->text);
    int status = detokenizer_push(&g->detokenizer, id, &g->text);
    if (!status) status = stop_push(&g->stop, g->text.data, g->text.len, &stopped);
    if (status) return SHU_FAIL(err, status, "no memory for the text of an answer");
    if (!g->result.first_token_ns) g->result.first_token_ns = clock_ns() - g->start_ns;
    report(g, id, logprob, true);
    if (stopped) return finish(g, FINISH_STOP);
    if (g->silent) return finish(g, FINISH_CANCELLED);
    if (g->grammar && grammar_done(g->grammar)) return finish(g, FINISH_GRAMMAR);
    if (g->result.completion_tokens == g->options.max_tokens) return finish(g, FINISH_LENGTH);
    return SHU_OK;
}

static int draw(struct generation *g, const float *logits, int32_t *id, float *logprob, struct shu_error *err) {
    const struct generate_options *o = &g->options;
    bool wanted = o->logprobs || o->top_logprobs > 0;
    const uint64_t *mask = g->grammar ? grammar_mask(g->grammar) : NULL;
    *logprob = 0;
    int status =
        sampler_draw(g->sampler, logits, mask, g->history, (size_t)g->history_count, id, wanted ? logprob : NULL, err);
    if (!status && o->top_logprobs > 0) top_logprobs(logits, g->vocab, o->top_logprobs, g->top_ids, g->top_logprobs);
    return status;
}

/* Every row's logits are bit for bit those of a step without draft, as long as the tokens before it
 * are those of the answer: so each token is drawn as if alone (grammar, penalties and random numbers
 * in turn), and the first that differs from the draft ends the use of its rows. */
int generation_take(struct generation *g, int first_row, struct shu_error *err) {
    if (g->done || sequence_length(g->engine, g->sequence) < g->prompt_count) return SHU_OK;
    if (!g->prefilled_ns) {
        g->prefilled_ns = clock_ns();
        g->result.prefill_ns = g->prefilled_ns - g->start_ns;
    }
    int before = sequence_length(g->engine, g->sequence) - g->fed, used = 0, status;
    bool agrees;
    do {
        int32_t id;
        float logprob;
        status = draw(g, engine_logits(g->engine, first_row + used), &id, &logprob, err);
        if (!status) status = answer_token(g, id, logprob, err);
        used++;
        agrees = used < g->fed && g->feed[used] == id;
    } while (!status && !g->done && agrees);
    g->result.draft_tokens += g->fed - 1;
    g->result.draft_accepted += used - 1;
    if (!g->done) lookup_learn(&g->lookup, g->fed - 1, used - 1);
    int cut = sequence_truncate(g->engine, g->sequence, before + used, err);
    return status ? status : cut;
}

/* ----------------------------------------------------------------- the loop */

int generate(struct engine *engine, int sequence, const int32_t *prompt, size_t prompt_count,
             const struct generate_options *options, generate_callback *callback, void *context,
             struct generate_result *out, struct shu_error *err) {
    struct generation *g;
    struct step_item item;
    int status = generation_new(engine, sequence, prompt, prompt_count, options, callback, context, &g, err);
    if (status) return status;
    while (!status && generation_next(g, engine->max_rows, engine->max_logits, &item)) {
        if (interrupt_pending()) {
            generation_cancel(g);
            break;
        }
        status = engine_step(engine, &item, 1, err);
        if (!status) status = generation_take(g, 0, err);
    }
    generation_result(g, out);
    generation_free(g);
    return status;
}
