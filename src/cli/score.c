#include "cli/score.h"

#include <string.h>

int score_read(struct engine *engine, const char *path, struct tokens *out, struct shu_error *err) {
    struct buf text = {0};
    int status = file_read(path, (size_t)256 << 20, &text, err);
    if (!status)
        status = tokenizer_encode(engine_tokenizer(engine), engine_tokenizer_work(engine), text.data ? text.data : "",
                                  text.len, ENCODE_ADD_SPECIAL, out, err);
    if (!status && out->count < 2)
        status = SHU_FAIL(err, SHU_E_RANGE, "expected a text of at least 2 tokens, found %zu in %s", out->count, path);
    buf_free(&text);
    return status;
}

/* One window in steps as large as the engine takes: unscored rows first, then those with logits. */
static int score_window(struct engine *engine, int sequence, const int32_t *window, int count, int first_scored,
                        score_rows *rows, void *context, struct shu_error *err) {
    for (int at = 0; at < count;) {
        bool scored = at >= first_scored;
        int most = scored ? engine_max_logits(engine) : engine_max_rows(engine);
        int limit = scored ? count : first_scored;
        int n = limit - at < most ? limit - at : most;
        const struct step_item item = {sequence, window + at, n, scored ? n : 0};
        int status = engine_step(engine, &item, 1, err);
        if (!status && scored) status = rows(context, window, at, n, engine_logits(engine, 0), err);
        if (!status && interrupt_pending()) status = SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was written");
        if (status) return status;
        at += n;
    }
    return SHU_OK;
}

int score_text(struct engine *engine, const struct tokens *tokens, const struct score_options *options,
               struct progress *progress, score_rows *rows, void *context, struct shu_error *err) {
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    /* A vocabulary that begins texts with BOS shows it as the first token of the text. */
    bool bos = tokenizer_bos(tokenizer) >= 0 && tokens->id[0] == tokenizer_bos(tokenizer);
    int32_t *window = mem_alloc((size_t)options->window * sizeof *window);
    if (!window) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for a window of %d tokens", options->window);
    int status = SHU_OK;
    for (size_t at = 0; at < tokens->count && !status; at += (size_t)options->window) {
        size_t left = tokens->count - at;
        int count = left < (size_t)options->window ? (int)left : options->window;
        if (count < options->window && !options->partial) break;
        memcpy(window, tokens->id + at, (size_t)count * sizeof *window);
        if (bos) window[0] = tokenizer_bos(tokenizer);
        int sequence = -1;
        status = sequence_new(engine, &sequence, err);
        if (!status) status = score_window(engine, sequence, window, count, options->first_scored, rows, context, err);
        if (sequence >= 0) sequence_free(engine, sequence);
        progress_update(progress, at + (size_t)count);
    }
    mem_free(window);
    return status;
}
