/* shu chat: a conversation on the terminal. */
#include <editline/readline.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

struct chat {
    const struct cli *cli;
    struct engine *engine;
    struct generate_options options;
    int sequence;
    json_t *messages;
    bool terminal;
    struct buf reply;
};

/* ------------------------------------------------------------ conversation */

static void chat_reset(struct chat *chat) {
    json_t *first = json_array_get(chat->messages, 0);
    bool system = first && strcmp(json_string_value(json_object_get(first, "role")), "system") == 0;
    json_t *kept = json_array();
    if (system) json_array_append(kept, first);
    json_decref(chat->messages);
    chat->messages = kept;
}

static void chat_add(struct chat *chat, const char *role, const char *text, size_t bytes) {
    json_array_append_new(chat->messages, json_pack("{s:s,s:s%}", "role", role, "content", text, bytes));
}

static void chat_set_system(struct chat *chat, const char *text) {
    json_array_clear(chat->messages);
    if (*text) chat_add(chat, "system", text, strlen(text));
}

static bool on_token(void *context, const struct generated_token *token) {
    struct chat *chat = context;
    cli_print_text(token->text, token->bytes, chat->terminal);
    fflush(stdout);
    return buf_append(&chat->reply, token->text, token->bytes) == SHU_OK && !interrupt_pending();
}

static void print_rates(const struct chat *chat, const struct generate_result *result) {
    if (chat->cli->quiet) return;
    double seconds = (double)result->decode_ns * 1e-9;
    const char *dim = chat->terminal ? "\033[2m" : "", *plain = chat->terminal ? "\033[0m" : "";
    printf(cli_text(chat->cli, "%s[%d tokens, %.1f tokens/s, first after %.2f s%s]%s\n",
                    "%s[%d 个词元，每秒 %.1f 个，首个用时 %.2f 秒%s]%s\n"),
           dim, result->completion_tokens, seconds > 0 ? (result->completion_tokens - 1) / seconds : 0,
           (double)result->first_token_ns * 1e-9,
           result->reason == FINISH_CANCELLED ? cli_text(chat->cli, ", stopped", "，已停止")
           : result->reason == FINISH_CONTEXT ? cli_text(chat->cli, ", context full: /reset", "，上下文已满：/reset")
                                              : "",
           plain);
}

/* One user turn. On failure the turn is taken back, so that the talk can go on. */
static int chat_turn(struct chat *chat, const char *text, struct shu_error *err) {
    struct tokens prompt = {0};
    struct generate_result result = {0};
    chat_add(chat, "user", text, strlen(text));
    buf_clear(&chat->reply);
    interrupt_clear();
    int status = prompt_from_messages(chat->engine, chat->messages, NULL, true, &prompt, err);
    if (!status)
        status = generate(chat->engine, chat->sequence, prompt.id, prompt.count, &chat->options, on_token, chat,
                          &result, err);
    tokens_free(&prompt);
    if (status) {
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
        return status;
    }
    putchar('\n');
    print_rates(chat, &result);
    chat_add(chat, "assistant", chat->reply.data ? chat->reply.data : "", chat->reply.len);
    return SHU_OK;
}

/* ---------------------------------------------------------------- commands */

static int chat_save(struct chat *chat, const char *path, struct shu_error *err) {
    if (!*path) return SHU_FAIL(err, SHU_E_USAGE, "expected a file: /save talk.json");
    char *text = json_dumps(chat->messages, JSON_INDENT(2));
    if (!text) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory while saving the conversation");
    struct atomic_file file;
    int status = atomic_open(path, &file, err);
    if (!status) {
        status = atomic_write(&file, text, strlen(text), err);
        if (!status) status = atomic_write(&file, "\n", 1, err);
        status = atomic_end(&file, status, err);
    }
    free(text); /* jansson's own allocator */
    if (!status) printf(cli_text(chat->cli, "saved to %s\n", "已保存到 %s\n"), path);
    return status;
}

static void chat_help(const struct chat *chat) {
    fputs(cli_text(chat->cli,
                   "/system TEXT  start over with this system message\n"
                   "/reset        forget the conversation\n"
                   "/save FILE    write the conversation as JSON\n"
                   "/quit         leave (also Ctrl-D); Ctrl-C stops an answer\n",
                   "/system 文本  以此系统消息重新开始\n"
                   "/reset        忘掉对话\n"
                   "/save 文件    把对话存为 JSON\n"
                   "/quit         离开（或 Ctrl-D）；Ctrl-C 停止回答\n"),
          stdout);
}

static const char *argument_of(const char *line, const char *command) {
    size_t n = strlen(command);
    if (strncmp(line, command, n) != 0 || (line[n] && line[n] != ' ')) return NULL;
    line += n;
    return line + strspn(line, " ");
}

/* Returns false to leave. */
static bool chat_line(struct chat *chat, const char *line) {
    struct shu_error err = {0};
    const char *argument;
    int status = SHU_OK;
    if (!*line) return true;
    if (argument_of(line, "/quit") || argument_of(line, "/exit")) return false;
    if (argument_of(line, "/help"))
        chat_help(chat);
    else if (argument_of(line, "/reset"))
        chat_reset(chat);
    else if ((argument = argument_of(line, "/system")))
        chat_set_system(chat, argument);
    else if ((argument = argument_of(line, "/save")))
        status = chat_save(chat, argument, &err);
    else if (*line == '/')
        status = SHU_FAIL(&err, SHU_E_USAGE, "unknown command \"%.80s\"; /help lists them", line);
    else if (!utf8_valid(line, strlen(line)))
        status =
            SHU_FAIL(&err, SHU_E_FORMAT, "expected UTF-8 text, found invalid bytes; check the terminal's encoding");
    else
        status = chat_turn(chat, line, &err);
    if (status)
        fprintf(stderr, "shu chat: %s%s\n", err.message,
                status == SHU_E_RANGE ? cli_text(chat->cli, " (/reset starts over)", "（/reset 重新开始）") : "");
    return true;
}

/* ------------------------------------------------------------------- input */

/* Next line in memory of malloc; NULL at the end of input. */
static char *chat_read(const struct chat *chat) {
    if (chat->terminal) {
        char *line = readline("> ");
        if (line && *line) add_history(line);
        return line;
    }
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes = getline(&line, &room, stdin);
    if (bytes < 0) {
        free(line);
        return NULL;
    }
    if (bytes && line[bytes - 1] == '\n') line[bytes - 1] = 0;
    return line;
}

static int history_path(struct buf *path) {
    struct buf folder = {0};
    int status = path_cache(NULL, &folder, NULL);
    if (!status) status = dir_make(folder.data, NULL);
    buf_free(&folder);
    return status ? status : path_cache("chat_history", path, NULL);
}

static void chat_loop(struct chat *chat) {
    struct buf history = {0};
    bool keep = chat->terminal && history_path(&history) == SHU_OK;
    if (keep) read_history(history.data);
    for (;;) {
        char *line = chat_read(chat);
        if (!line && chat->terminal && interrupt_pending()) { /* Ctrl-C at the prompt: a fresh line, not the end */
            interrupt_clear();
            putchar('\n');
            continue;
        }
        bool go_on = line && chat_line(chat, line);
        free(line);
        if (!go_on || feof(stdin) || ferror(stdout)) break;
    }
    if (keep) write_history(history.data);
    buf_free(&history);
}

static int run(struct cli *cli, int argc, char **argv) {
    struct sampling_flags sampling;
    struct engine_flags engine_flags = ENGINE_FLAGS_DEFAULT;
    const char *system = NULL, *model = NULL;
    int64_t max_tokens = 0;
    int count = 0;
    sampling_defaults(&sampling);
    const struct option options[] = {{"--system", OPT_TEXT, &system, 0, 0},
                                     {"-n", OPT_INT, &max_tokens, 0, 1 << 20},
                                     SAMPLING_OPTIONS(sampling),
                                     ENGINE_OPTIONS(engine_flags)};
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &model, 1, &count);
    if (code) return code;
    if (!count) return cli_usage(cli, "expected a model: shu chat MODEL");
    if (system && !utf8_valid(system, strlen(system)))
        return cli_usage(cli, "expected --system in UTF-8, found invalid bytes");
    if (cli->json) return cli_usage(cli, "chat has no --json; use `shu run --json`");

    struct shu_error err = {0};
    struct chat chat = {.cli = cli, .sequence = -1, .terminal = isatty(0) && isatty(1)};
    chat.options = (struct generate_options){.max_tokens = (int)max_tokens, .speculate = GENERATE_SPECULATE};
    sampling_apply(&sampling, &chat.options.sampler);
    interrupt_install();
    int status = cli_engine_open(model, &engine_flags, NULL, &chat.engine, &err);
    if (!status && !engine_chat_template(chat.engine))
        status = SHU_FAIL(&err, SHU_E_UNSUPPORTED,
                          "expected a chat model, found \"%s\" without a chat template; use shu run --raw", model);
    if (!status) status = sequence_new(chat.engine, &chat.sequence, &err);
    if (!status) {
        chat.messages = json_array();
        if (system) chat_set_system(&chat, system);
        if (chat.terminal && !cli->quiet)
            printf(cli_text(cli, "%s is ready. /help shows the commands.\n", "%s 已就绪。/help 列出命令。\n"), model);
        chat_loop(&chat);
    }
    code = status ? cli_fail(cli, &err) : 0;
    json_decref(chat.messages);
    buf_free(&chat.reply);
    if (chat.sequence >= 0) sequence_free(chat.engine, chat.sequence);
    engine_close(chat.engine);
    return code;
}

const struct verb verb_chat = {
    .name = "chat",
    .summary_en = "talk with a model on the terminal",
    .summary_zh = "在终端里与模型对话",
    .help_en = "usage: shu chat MODEL [options]\n\n"
               "  --system TEXT     system message to begin with\n"
               "  -n N              at most N tokens per answer\n"
               "  --temp T --top-k K --top-p P --min-p P --repeat-penalty R --presence-penalty R\n"
               "  --frequency-penalty R --seed S\n"
               "  --adapter A[:WEIGHT]  a low-rank adapter beside the model, GGUF or PEFT folder; may be repeated\n"
               "  --threads N --ctx N --kv f16|q8\n\n"
               "inside: /help /reset /system TEXT /save FILE /quit; Ctrl-C stops the answer, not the program\n\n"
               "example: shu chat qwen2.5-coder-0.5b-instruct --system \"Answer in one sentence.\"\n",
    .help_zh = "用法：shu chat 模型 [选项]\n\n"
               "  --system 文本     开始时的系统消息\n"
               "  -n N              每次回答最多 N 个词元\n"
               "  --temp T --top-k K --top-p P --min-p P --repeat-penalty R --presence-penalty R\n"
               "  --frequency-penalty R --seed S\n"
               "  --adapter A[:权重]  低秩适配器，GGUF 或 PEFT 文件夹；可重复\n"
               "  --threads N --ctx N --kv f16|q8\n\n"
               "对话中：/help /reset /system 文本 /save 文件 /quit；Ctrl-C 停止回答而不退出\n\n"
               "例：shu chat qwen2.5-coder-0.5b-instruct --system \"用一句话回答。\"\n",
    .run = run,
};
