/* shu perplexity: exp of the mean negative log-likelihood per token, over
 * non-overlapping windows whose second half is scored (what llama-perplexity
 * reports, so that the two compare). */
#include <math.h>

#include "cli/score.h"

struct score_sum {
    double nll;
    int64_t scored;
    int window, vocab;
};

static int add_rows(void *context, const int32_t *window, int first, int rows, const float *logits,
                    struct shu_error *err) {
    struct score_sum *sum = context;
    for (int r = 0; r < rows && first + r + 1 < sum->window; r++) {
        double value = token_logprob(logits + (size_t)r * (size_t)sum->vocab, sum->vocab, window[first + r + 1]);
        if (!isfinite(value))
            return SHU_FAIL(err, SHU_E_FORMAT, "expected finite scores, found %g at position %d: damaged weights?",
                            value, first + r);
        sum->nll -= value;
        sum->scored++;
    }
    return SHU_OK;
}

static int measure(const struct cli *cli, struct engine *engine, const char *path, int window, struct shu_error *err) {
    struct tokens tokens = {0};
    struct score_sum sum = {.window = window, .vocab = engine_config(engine)->vocab};
    struct score_options options = {.window = window, .first_scored = window / 2};
    struct progress progress;
    int status = score_read(engine, path, &tokens, err);
    if (!status && tokens.count < (size_t)window)
        status = SHU_FAIL(err, SHU_E_RANGE,
                          "expected at least one window of %d tokens, found %zu in %s; give a smaller --ctx", window,
                          tokens.count, path);
    if (!status) {
        progress_start(&progress, "perplexity", "tok", tokens.count, cli->quiet);
        status = score_text(engine, &tokens, &options, &progress, add_rows, &sum, err);
        progress_finish(&progress);
    }
    tokens_free(&tokens);
    if (status) return cli_fail(cli, err);
    double perplexity = exp(sum.nll / (double)sum.scored);
    if (cli->json)
        return cli_print_json(
            cli, json_pack("{s:f,s:I,s:i}", "perplexity", perplexity, "tokens", (json_int_t)sum.scored, "ctx", window));
    printf(cli_text(cli, "perplexity %.4f over %lld tokens (windows of %d, second half scored)\n",
                    "困惑度 %.4f，共 %lld 个词元（窗口 %d，只计后一半）\n"),
           perplexity, (long long)sum.scored, window);
    return 0;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct engine_flags flags = ENGINE_FLAGS_DEFAULT;
    flags.context = 512;
    const char *model = NULL, *path = NULL;
    const struct option options[] = {{"--file", OPT_TEXT, &path, 0, 0}, ENGINE_OPTIONS(flags)};
    int count = 0;
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &model, 1, &count);
    if (code) return code;
    if (!count || !path) return cli_usage(cli, "expected: shu perplexity MODEL --file TEXT [--ctx N]");
    struct shu_error err = {0};
    struct engine *engine = NULL;
    interrupt_install();
    if (cli_engine_open(model, &flags, NULL, &engine, &err)) return cli_fail(cli, &err);
    code = measure(cli, engine, path, (int)flags.context, &err);
    engine_close(engine);
    return code;
}

const struct verb verb_perplexity = {
    .name = "perplexity",
    .summary_en = "how well a model predicts a text",
    .summary_zh = "模型对文本的困惑度",
    .help_en = "usage: shu perplexity MODEL --file TEXT [--adapter A[:WEIGHT] --ctx N --threads N --kv f16|q8]\n\n"
               "Cuts the text into windows of --ctx tokens (default 512) and scores the second half of each.\n\n"
               "example: shu perplexity qwen2.5-coder-0.5b-instruct --file book.txt\n",
    .help_zh = "用法：shu perplexity 模型 --file 文本 [--adapter A[:权重] --ctx N --threads N --kv f16|q8]\n\n"
               "把文本切成 --ctx 个词元的窗口（默认 512），对每个窗口的后一半计分。\n\n"
               "例：shu perplexity qwen2.5-coder-0.5b-instruct --file book.txt\n",
    .run = run,
};
