/* shu run: one prompt, one answer. */
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

struct run_flags {
    const char *prompt, *file, *system, *schema, *ebnf;
    struct option_list stop;
    int64_t max_tokens, speculate, logprobs;
    bool raw, ignore_end;
    struct sampling_flags sampling;
    struct engine_flags engine;
};

struct run_state {
    const struct cli *cli;
    struct buf answer;
    json_t *logprobs; /* NULL unless asked for */
    bool terminal;
    bool failed; /* out of memory (--json), or standard output is closed: cli_finish reports that */
};

static bool on_token(void *context, const struct generated_token *token) {
    struct run_state *state = context;
    if (state->cli->json) {
        if (buf_append(&state->answer, token->text, token->bytes)) state->failed = true;
    } else {
        cli_print_text(token->text, token->bytes, state->terminal);
        if (fflush(stdout)) state->failed = true;
    }
    if (state->logprobs && token->top_count) {
        json_t *top = json_array();
        for (int i = 0; i < token->top_count; i++)
            json_array_append_new(
                top, json_pack("{s:i,s:f}", "id", (int)token->top_ids[i], "logprob", (double)token->top_logprobs[i]));
        json_t *item = json_pack("{s:i,s:f,s:o}", "id", (int)token->id, "logprob", (double)token->logprob, "top", top);
        if (json_array_append_new(state->logprobs, item)) state->failed = true;
    }
    return !state->failed && !interrupt_pending();
}

static int read_prompt(const struct run_flags *flags, struct buf *text, struct shu_error *err) {
    if (flags->file) return file_read(flags->file, (size_t)64 << 20, text, err);
    return buf_puts(text, flags->prompt) ? SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the prompt") : SHU_OK;
}

static int build_prompt(struct engine *engine, const struct run_flags *flags, struct tokens *out,
                        struct shu_error *err) {
    struct buf text = {0};
    json_t *messages = NULL;
    int status = read_prompt(flags, &text, err);
    if (status) goto out;
    if (flags->raw || !engine_chat_template(engine)) {
        status = prompt_from_text(engine, text.data ? text.data : "", text.len, out, err);
        goto out;
    }
    if (!utf8_valid(text.data, text.len)) {
        status =
            SHU_FAIL(err, SHU_E_FORMAT, "expected the prompt in UTF-8, found invalid bytes; --raw passes any bytes");
        goto out;
    }
    messages = json_array();
    if (flags->system)
        json_array_append_new(messages, json_pack("{s:s,s:s}", "role", "system", "content", flags->system));
    json_array_append_new(messages,
                          json_pack("{s:s,s:s%}", "role", "user", "content", text.data ? text.data : "", text.len));
    status = prompt_from_messages(engine, messages, NULL, true, out, err);
out:
    json_decref(messages);
    buf_free(&text);
    return status;
}

static int load_grammar(struct engine *engine, const struct run_flags *flags, struct grammar **out,
                        struct shu_error *err) {
    *out = NULL;
    if (flags->schema) {
        json_t *schema = NULL;
        int status = json_read_file(flags->schema, (size_t)4 << 20, &schema, err);
        if (!status) status = grammar_from_schema(schema, engine_tokenizer(engine), out, err);
        json_decref(schema);
        return status;
    }
    if (!flags->ebnf) return SHU_OK;
    struct buf source = {0};
    int status = file_read(flags->ebnf, (size_t)4 << 20, &source, err);
    if (!status)
        status = grammar_from_ebnf(source.data ? source.data : "", source.len, engine_tokenizer(engine), out, err);
    buf_free(&source);
    return status;
}

static double per_second(int count, uint64_t ns) {
    return ns ? count / ((double)ns * 1e-9) : 0;
}

static int report(const struct cli *cli, struct run_state *state, const struct generate_result *result) {
    double prefill = per_second(result->prompt_tokens - result->prompt_cached, result->prefill_ns);
    double decode = per_second(result->completion_tokens - 1, result->decode_ns);
    if (!cli->json) {
        putchar('\n');
        if (cli->verbose)
            fprintf(stderr, "prompt %d tokens, %.1f tok/s; answer %d tokens, %.1f tok/s; drafts %d of %d kept; %s\n",
                    result->prompt_tokens, prefill, result->completion_tokens, decode, result->draft_accepted,
                    result->draft_tokens, finish_reason_name(result->reason));
        return cli_finish(cli);
    }
    json_t *object = json_pack("{s:s%,s:s,s:{s:i,s:i,s:i},s:{s:f,s:f,s:f},s:{s:i,s:i}}", "answer",
                               state->answer.data ? state->answer.data : "", state->answer.len, "finish_reason",
                               finish_reason_name(result->reason), "tokens", "prompt", result->prompt_tokens, "cached",
                               result->prompt_cached, "completion", result->completion_tokens, "timings_ms",
                               "first_token", (double)result->first_token_ns * 1e-6, "prefill",
                               (double)result->prefill_ns * 1e-6, "decode", (double)result->decode_ns * 1e-6, "drafts",
                               "proposed", result->draft_tokens, "accepted", result->draft_accepted);
    if (object && state->logprobs) json_object_set(object, "logprobs", state->logprobs);
    return cli_print_json(cli, object);
}

/* An answer under a grammar that did not reach its end: valid only by luck, so no success. */
static int check_complete(const struct cli *cli, const struct grammar *grammar, const struct generate_result *result) {
    bool cut = result->reason == FINISH_LENGTH || result->reason == FINISH_CONTEXT || result->reason == FINISH_STOP;
    if (!grammar || !cut) return 0;
    if (!cli->json)
        fprintf(stderr,
                "shu run: expected a complete answer under the grammar, found it cut after %d tokens (%s); %s\n",
                result->completion_tokens, finish_reason_name(result->reason),
                result->reason == FINISH_STOP ? "drop --stop" : "raise -n or --ctx");
    return 1;
}

static int answer(const struct cli *cli, struct engine *engine, const struct run_flags *flags, struct shu_error *err) {
    struct run_state state = {
        .cli = cli, .logprobs = flags->logprobs ? json_array() : NULL, .terminal = isatty(STDOUT_FILENO)};
    struct generate_options options = {.max_tokens = (int)flags->max_tokens,
                                       .stop = flags->stop.item,
                                       .stop_count = flags->stop.count,
                                       .speculate = (int)flags->speculate,
                                       .logprobs = flags->logprobs > 0,
                                       .top_logprobs = (int)flags->logprobs,
                                       .ignore_end = flags->ignore_end};
    sampling_apply(&flags->sampling, &options.sampler);
    struct generate_result result = {0};
    struct grammar *grammar = NULL;
    struct tokens prompt = {0};
    int sequence = -1, code = 0;
    int status = load_grammar(engine, flags, &grammar, err);
    if (!status) status = build_prompt(engine, flags, &prompt, err);
    if (!status) status = sequence_new(engine, &sequence, err);
    options.grammar = grammar;
    if (!status) status = generate(engine, sequence, prompt.id, prompt.count, &options, on_token, &state, &result, err);
    if (!status && state.failed && cli->json) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the answer");
    code = status ? cli_fail(cli, err) : report(cli, &state, &result);
    if (!status && !code) code = check_complete(cli, grammar, &result);
    if (sequence >= 0) sequence_free(engine, sequence);
    grammar_free(grammar);
    tokens_free(&prompt);
    json_decref(state.logprobs);
    buf_free(&state.answer);
    return code ? code : interrupt_pending() ? 1 : 0;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct run_flags flags = {.speculate = GENERATE_SPECULATE, .engine = ENGINE_FLAGS_DEFAULT};
    sampling_defaults(&flags.sampling);
    const struct option options[] = {{"-p", OPT_TEXT, &flags.prompt, 0, 0},
                                     {"--prompt", OPT_TEXT, &flags.prompt, 0, 0},
                                     {"-f", OPT_TEXT, &flags.file, 0, 0},
                                     {"--system", OPT_TEXT, &flags.system, 0, 0},
                                     {"-n", OPT_INT, &flags.max_tokens, 0, 1 << 20},
                                     {"--raw", OPT_FLAG, &flags.raw, 0, 0},
                                     {"--schema", OPT_TEXT, &flags.schema, 0, 0},
                                     {"--grammar", OPT_TEXT, &flags.ebnf, 0, 0},
                                     {"--stop", OPT_LIST, &flags.stop, 0, 0},
                                     {"--speculate", OPT_INT, &flags.speculate, 0, 32},
                                     {"--logprobs", OPT_INT, &flags.logprobs, 0, GENERATE_MAX_TOP},
                                     {"--ignore-end", OPT_FLAG, &flags.ignore_end, 0, 0},
                                     SAMPLING_OPTIONS(flags.sampling),
                                     ENGINE_OPTIONS(flags.engine)};
    const char *model = NULL;
    int count = 0;
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &model, 1, &count);
    if (code) return code;
    if (!count) return cli_usage(cli, "expected a model: shu run MODEL -p \"…\"");
    if (!flags.prompt == !flags.file)
        return cli_usage(cli, "expected one of -p TEXT and -f FILE (- reads standard input)");
    if (flags.system && !utf8_valid(flags.system, strlen(flags.system)))
        return cli_usage(cli, "expected --system in UTF-8, found invalid bytes");
    if (flags.schema && flags.ebnf) return cli_usage(cli, "expected one of --schema and --grammar, found both");
    struct shu_error err = {0};
    struct engine *engine = NULL;
    interrupt_install();
    if (cli_engine_open(model, &flags.engine, NULL, &engine, &err)) return cli_fail(cli, &err);
    code = answer(cli, engine, &flags, &err);
    engine_close(engine);
    return code;
}

const struct verb verb_run = {
    .name = "run",
    .summary_en = "answer one prompt",
    .summary_zh = "回答一个问题",
    .help_en = "usage: shu run MODEL -p TEXT | -f FILE [options]\n\n"
               "MODEL is a store name, a .gguf file or a safetensors folder. A chat model answers through its own\n"
               "template; --raw continues the text instead.\n\n"
               "  -p TEXT, -f FILE        the prompt; -f - reads standard input\n"
               "  --system TEXT           system message\n"
               "  -n N                    at most N tokens (default 0: until the model ends)\n"
               "  --temp T                0 = always the most likely token (default 0.7)\n"
               "  --top-k K --top-p P --min-p P --repeat-penalty R --presence-penalty R --frequency-penalty R\n"
               "  --seed S                same seed, same answer\n"
               "  --schema FILE           the answer is JSON valid under this JSON Schema\n"
               "  --grammar FILE          the answer follows this EBNF grammar\n"
               "  --stop TEXT             ends the answer before TEXT; may be repeated\n"
               "  --speculate N           drafts of up to N tokens looked up in the text so far: same answer, sooner\n"
               "                          (default 16; 0 = off)\n"
               "  --logprobs N            with --json: the N best alternatives of each token\n"
               "  --raw                   no chat template\n"
               "  --ignore-end            go on past the end token\n"
               "  --adapter A[:WEIGHT]    a low-rank adapter beside the model, GGUF or PEFT folder; may be repeated\n"
               "  --threads N --ctx N --kv f16|q8\n\n"
               "example: shu run qwen2.5-coder-0.5b-instruct -p \"Name three rivers in Sichuan.\" --temp 0 -n 64\n",
    .help_zh =
        "用法：shu run 模型 -p 文本 | -f 文件 [选项]\n\n"
        "模型可以是库里的名字、.gguf 文件或 safetensors 文件夹。对话模型用自带的模板回答；--raw 则直接续写。\n\n"
        "  -p 文本, -f 文件        问题；-f - 读标准输入\n"
        "  --system 文本           系统消息\n"
        "  -n N                    最多 N 个词元（默认 0：到模型自己结束）\n"
        "  --temp T                0 = 总取最可能的词元（默认 0.7）\n"
        "  --top-k K --top-p P --min-p P --repeat-penalty R --presence-penalty R --frequency-penalty R\n"
        "  --seed S                种子相同，回答相同\n"
        "  --schema 文件           回答是符合该 JSON Schema 的 JSON\n"
        "  --grammar 文件          回答遵循该 EBNF 文法\n"
        "  --stop 文本             在该文本之前停止；可重复\n"
        "  --speculate N           从已有文本中查找至多 N 个词元的草稿：回答不变，只是更快（默认 16；0 = 关闭）\n"
        "  --logprobs N            配合 --json：每个词元的 N 个最佳候选\n"
        "  --raw                   不用对话模板\n"
        "  --ignore-end            遇到结束词元也继续\n"
        "  --adapter A[:权重]      低秩适配器，GGUF 或 PEFT 文件夹；可重复\n"
        "  --threads N --ctx N --kv f16|q8\n\n"
        "例：shu run qwen2.5-coder-0.5b-instruct -p \"四川有哪三条大河？\" --temp 0 -n 64\n",
    .run = run,
};
