/* shu logits: the raw scores of every position of a text, for parity checks. */
#include "cli/score.h"

struct logits_out {
    struct atomic_file file;
    int vocab;
    uint64_t rows;
};

static int write_rows(void *context, const int32_t *window, int first, int rows, const float *logits,
                      struct shu_error *err) {
    (void)window;
    (void)first;
    struct logits_out *out = context;
    out->rows += (uint64_t)rows;
    return atomic_write(&out->file, logits, (size_t)rows * (size_t)out->vocab * sizeof *logits, err);
}

static int logits_to_file(const struct cli *cli, struct engine *engine, const char *in, const char *path,
                          struct shu_error *err) {
    struct tokens tokens = {0};
    struct logits_out out = {.vocab = engine_config(engine)->vocab};
    struct score_options options = {.window = engine_context(engine), .partial = true};
    struct progress progress;
    int status = score_read(engine, in, &tokens, err);
    if (!status) status = atomic_open(path, &out.file, err);
    if (status) goto out;
    progress_start(&progress, "logits", "tok", tokens.count, cli->quiet);
    status = score_text(engine, &tokens, &options, &progress, write_rows, &out, err);
    progress_finish(&progress);
    status = atomic_end(&out.file, status, err);
out:
    tokens_free(&tokens);
    if (status) return cli_fail(cli, err);
    if (cli->json)
        return cli_print_json(cli, json_pack("{s:I,s:i,s:i,s:s}", "tokens", (json_int_t)out.rows, "vocab", out.vocab,
                                             "window", options.window, "out", path));
    if (!cli->quiet) printf("%llu x %d f32 -> %s\n", (unsigned long long)out.rows, out.vocab, path);
    return 0;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct engine_flags flags = ENGINE_FLAGS_DEFAULT;
    const char *model = NULL, *in = NULL, *path = NULL;
    const struct option options[] = {
        {"--file", OPT_TEXT, &in, 0, 0}, {"--out", OPT_TEXT, &path, 0, 0}, ENGINE_OPTIONS(flags)};
    int count = 0;
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &model, 1, &count);
    if (code) return code;
    if (in && path && cli_would_replace(in, path))
        return cli_usage(cli, "--out would replace the text itself: %s", path);
    if (model && path && cli_would_replace(model, path))
        return cli_usage(cli, "--out would replace the model itself or a file in it: %s", path);
    if (path && cli_adapters_hold(&flags.adapters, path))
        return cli_usage(cli, "--out would replace an adapter or a file in it: %s", path);
    if (!count || !in || !path) return cli_usage(cli, "expected: shu logits MODEL --file TEXT --out OUT.f32");
    struct shu_error err = {0};
    struct engine *engine = NULL;
    interrupt_install();
    if (cli_engine_open(model, &flags, NULL, &engine, &err)) return cli_fail(cli, &err);
    code = logits_to_file(cli, engine, in, path, &err);
    engine_close(engine);
    return code;
}

const struct verb verb_logits = {
    .name = "logits",
    .summary_en = "write the scores of every position of a text",
    .summary_zh = "写出文本每个位置的分数",
    .help_en =
        "usage: shu logits MODEL --file TEXT --out OUT.f32 [--adapter A[:WEIGHT] --ctx N --threads N --kv f16|q8]\n\n"
        "OUT is [T, V] little-endian f32: row t scores the token after position t. Texts longer than --ctx\n"
        "positions are cut into windows that start from nothing, as `perplexity` does.\n\n"
        "example: shu logits qwen2.5-coder-0.5b-instruct --file notes.txt --out notes.f32 --ctx 512\n",
    .help_zh =
        "用法：shu logits 模型 --file 文本 --out 输出.f32 [--adapter A[:权重] --ctx N --threads N --kv f16|q8]\n\n"
        "输出为小端 f32 的 [T, V]：第 t 行是位置 t 之后词元的分数。长于 --ctx 的文本按窗口切开，\n"
        "每个窗口从空白开始，与 perplexity 相同。\n\n"
        "例：shu logits qwen2.5-coder-0.5b-instruct --file notes.txt --out notes.f32 --ctx 512\n",
    .run = run,
};
