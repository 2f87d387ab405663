/* shu tokenizer: a vocabulary from text. */
#include <glob.h>
#include <string.h>

#include "cli/cli.h"

#define SPECIAL_ROOM 64
#define FILES_MAX    4096
#define TEXT_BYTES   ((size_t)16 << 20) /* of JSON lines, handed over at once */
#define VOCAB_MIN    259                /* bytes and chat_special */

static const char *const chat_special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
static const char chat_template[] =
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

struct train_flags {
    struct option_list globs, special;
    const char *out, *pre;
    const char **more; /* files that the shell made of a pattern */
    int more_count;
    int64_t vocab, min_count, memory, threads;
};

/* ------------------------------------------------------------------- reading */

static bool is_text_key(const char *key) {
    static const char *const keys[] = {"text", "content", "value", "prompt", "completion", "chosen", "rejected"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0) return true;
    return false;
}

/* Strings of a training record, each as a text of its own. */
static int collect_texts(const json_t *value, bool wanted, struct buf *out) {
    const char *key;
    json_t *item;
    size_t at;
    int status = SHU_OK;
    if (json_is_string(value) && wanted) {
        status = buf_append(out, json_string_value(value), json_string_length(value));
        if (!status) status = buf_putc(out, '\n');
    }
    json_object_foreach((json_t *)(uintptr_t)value, key, item)
        if (!status) status = collect_texts(item, is_text_key(key), out);
    json_array_foreach(value, at, item)
        if (!status) status = collect_texts(item, wanted, out);
    return status;
}

static bool ends_in(const char *path, const char *tail) {
    size_t bytes = strlen(path), length = strlen(tail);
    return bytes >= length && strcmp(path + bytes - length, tail) == 0;
}

static bool is_blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r') return false;
    return true;
}

static int add_lines(struct vocab_trainer *trainer, const char *path, const struct map *map, struct progress *progress,
                     struct shu_error *err) {
    struct buf text = {0};
    const char *at = (const char *)map->data, *end = at + map->bytes;
    int status = SHU_OK;
    for (int64_t line = 1; at < end && !status; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        json_t *record = NULL;
        size_t bytes = (size_t)((stop ? stop : end) - at);
        if (!is_blank(at, bytes)) status = json_parse(at, bytes, path, &record, err);
        if (status) error_context(err, status, "line %lld of ", (long long)line);
        if (!status && record && collect_texts(record, false, &text))
            status = SHU_FAIL(err, SHU_E_NOMEM, "%s:%lld: out of memory for the text", path, (long long)line);
        json_decref(record);
        at = stop ? stop + 1 : end;
        if (!status && text.len && (text.len > TEXT_BYTES || at >= end)) {
            status = vocab_trainer_add(trainer, text.data, text.len, NULL, err);
            buf_clear(&text);
        }
        progress_update(progress, progress->done + bytes + (stop != NULL));
    }
    buf_free(&text);
    return status;
}

static int add_file(struct vocab_trainer *trainer, const char *path, struct progress *progress, struct shu_error *err) {
    struct map map;
    int status = map_open(path, &map, err);
    if (status) return status;
    if (ends_in(path, ".jsonl"))
        status = add_lines(trainer, path, &map, progress, err);
    else
        status = vocab_trainer_add(trainer, (const char *)map.data, map.bytes, progress, err);
    map_close(&map);
    return status;
}

/* When OUT is forgotten, the last text stands in its place: nothing but another GGUF is replaced. */
static int check_out(const char *path, struct shu_error *err) {
    struct map map;
    if (!ends_in(path, ".gguf"))
        return SHU_FAIL(err, SHU_E_USAGE,
                        "expected OUT.gguf as the last argument, found \"%.200s\"; what stands before it are texts",
                        path);
    if (!file_exists(path)) return SHU_OK;
    int status = map_open(path, &map, err);
    if (status) return status;
    if (map.bytes < 4 || memcmp(map.data, "GGUF", 4) != 0)
        status = SHU_FAIL(err, SHU_E_USAGE, "OUT.gguf would replace a file that is no GGUF: %s", path);
    map_close(&map);
    return status;
}

/* Every pattern must match something: a misspelt one is no empty corpus. */
static int find_files(const struct train_flags *flags, glob_t *found, struct shu_error *err) {
    int status = SHU_OK;
    for (int i = 0; i < flags->globs.count + flags->more_count && !status; i++) {
        const char *pattern = i < flags->globs.count ? flags->globs.item[i] : flags->more[i - flags->globs.count];
        int rc = glob(pattern, (i ? GLOB_APPEND : 0) | GLOB_TILDE | GLOB_BRACE, NULL, found);
        if (rc == GLOB_NOMATCH)
            status = SHU_FAIL(err, SHU_E_NOTFOUND, "%s: no file of that name or pattern", pattern);
        else if (rc)
            status = SHU_FAIL(err, SHU_E_IO, "%s: the pattern cannot be searched", pattern);
    }
    for (size_t i = 0; i < found->gl_pathc && !status; i++)
        if (cli_would_replace(found->gl_pathv[i], flags->out))
            status = SHU_FAIL(err, SHU_E_USAGE, "OUT.gguf would replace one of the texts: %s", flags->out);
    return status;
}

static uint64_t bytes_of(const glob_t *found) {
    uint64_t sum = 0;
    for (size_t i = 0; i < found->gl_pathc; i++) {
        struct map map;
        if (map_open(found->gl_pathv[i], &map, NULL)) continue; /* reported when it is read */
        sum += map.bytes;
        map_close(&map);
    }
    return sum;
}

/* ------------------------------------------------------------------- learning */

static int read_all(const struct cli *cli, struct vocab_trainer *trainer, const glob_t *found, struct shu_error *err) {
    struct progress progress;
    int status = SHU_OK;
    progress_start(&progress, "count", "B", bytes_of(found), cli->quiet || cli->json);
    for (size_t i = 0; i < found->gl_pathc && !status; i++)
        status = add_file(trainer, found->gl_pathv[i], &progress, err);
    progress_finish(&progress);
    if (status) return status;
    struct vocab_trainer_report report;
    vocab_trainer_report(trainer, &report);
    if (!report.pieces)
        status = SHU_FAIL(err, SHU_E_FORMAT, "%s%s: expected text, found none", found->gl_pathv[0],
                          found->gl_pathc > 1 ? " and the other files" : "");
    return status;
}

static int learn(const struct cli *cli, struct vocab_trainer *trainer, const struct train_flags *flags,
                 struct shu_error *err) {
    struct progress progress;
    struct vocab_trainer_report report;
    int own = VOCAB_MIN + flags->special.count;
    progress_start(&progress, "merge", "merges", (uint64_t)flags->vocab - 256, cli->quiet || cli->json);
    int status = vocab_trainer_learn(trainer, &progress, err);
    progress_finish(&progress);
    if (status) return status;
    vocab_trainer_report(trainer, &report);
    if (report.merges) return SHU_OK;
    if (flags->vocab == own)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "no merges were learned: --vocab %d has room for the bytes and special tokens only; give more",
                        own);
    return SHU_FAIL(err, SHU_E_FORMAT,
                    "no merges were learned: no two bytes of a word occur side by side %lld times in the texts; give "
                    "more text or a lower --min-count",
                    (long long)flags->min_count);
}

static int write_vocab(const struct vocab_trainer *trainer, const char *path, struct shu_error *err) {
    struct vocab_spec spec;
    struct tokenizer *tokenizer = NULL;
    vocab_trainer_spec(trainer, &spec);
    int status = tokenizer_new(&spec, &tokenizer, err); /* what is written can be read */
    if (status) return status;
    spec.bos = spec.pad = tokenizer_find(tokenizer, chat_special[0], strlen(chat_special[0]));
    spec.eos = tokenizer_find(tokenizer, chat_special[2], strlen(chat_special[2]));
    tokenizer_free(tokenizer);
    return model_write_vocab(&spec, chat_template, path, err);
}

static int train_run(const struct cli *cli, const struct train_flags *flags, struct vocab_trainer_report *report,
                     struct shu_error *err) {
    static const struct {
        const char *name;
        enum pretokenizer pre;
    } rules[] = {{"qwen2", PRE_QWEN2}, {"gpt-2", PRE_GPT2}, {"llama-bpe", PRE_LLAMA3}};
    const char *special[SPECIAL_ROOM];
    struct vocab_trainer_options options = {.pre = PRE_NONE,
                                            .vocab = (int32_t)flags->vocab,
                                            .min_count = flags->min_count,
                                            .max_bytes = ((size_t)flags->memory << 20) / 20,
                                            .special = special};
    struct vocab_trainer *trainer = NULL;
    struct pool *pool = NULL;
    glob_t found = {0};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (strcmp(rules[i].name, flags->pre) == 0) options.pre = rules[i].pre;
    if (options.pre == PRE_NONE)
        return SHU_FAIL(err, SHU_E_USAGE, "--pre takes qwen2, gpt-2 or llama-bpe, found \"%.40s\"", flags->pre);
    for (size_t i = 0; i < sizeof chat_special / sizeof *chat_special; i++)
        special[options.special_count++] = chat_special[i];
    for (int i = 0; i < flags->special.count; i++) special[options.special_count++] = flags->special.item[i];
    int status = check_out(flags->out, err);
    if (!status) status = find_files(flags, &found, err);
    if (!status) status = pool_new((int)flags->threads, &pool, err);
    if (!status) status = vocab_trainer_new(&options, pool, &trainer, err);
    if (!status) status = read_all(cli, trainer, &found, err);
    if (!status) status = learn(cli, trainer, flags, err);
    if (!status) status = write_vocab(trainer, flags->out, err);
    if (!status) vocab_trainer_report(trainer, report);
    vocab_trainer_free(trainer);
    pool_free(pool);
    globfree(&found);
    return status;
}

static int train(struct cli *cli, int argc, char **argv) {
    struct train_flags flags = {.pre = "qwen2", .min_count = 2, .memory = 2048};
    const struct option options[] = {{"--files", OPT_LIST, &flags.globs, 0, 0},
                                     {"--vocab", OPT_INT, &flags.vocab, VOCAB_MIN, 1 << 21},
                                     {"--pre", OPT_TEXT, &flags.pre, 0, 0},
                                     {"--special", OPT_LIST, &flags.special, 0, 0},
                                     {"--min-count", OPT_INT, &flags.min_count, 1, 1e9},
                                     {"--memory", OPT_INT, &flags.memory, 64, 32768},
                                     {"--threads", OPT_INT, &flags.threads, 1, 256}};
    const char **args = mem_calloc(FILES_MAX, sizeof *args);
    int count = 0;
    struct shu_error err = {0};
    struct vocab_trainer_report report = {0};
    if (!args) return SHU_FAIL(&err, SHU_E_NOMEM, "out of memory"), cli_fail(cli, &err);
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, args, FILES_MAX, &count);
    if (!code && (!count || !flags.globs.count || !flags.vocab))
        code = cli_usage(cli, "expected: shu tokenizer train --files GLOB… --vocab N OUT.gguf");
    flags.out = count ? args[count - 1] : NULL; /* what stands before it came out of the shell's own globbing */
    flags.more = args;
    flags.more_count = count ? count - 1 : 0;
    interrupt_install();
    uint64_t start = clock_ns();
    if (!code && train_run(cli, &flags, &report, &err)) code = cli_fail(cli, &err);
    double seconds = (double)(clock_ns() - start) * 1e-9;
    if (!code && cli->json)
        code = cli_print_json(cli, json_pack("{s:s,s:i,s:i,s:I,s:I,s:I,s:I,s:f}", "path", flags.out, "tokens",
                                             (int)report.tokens, "merges", (int)report.merges, "bytes",
                                             (json_int_t)report.bytes, "pieces", (json_int_t)report.pieces, "distinct",
                                             (json_int_t)report.distinct, "forgotten", (json_int_t)report.forgotten,
                                             "seconds", seconds));
    else if (!code && !cli->quiet)
        printf(cli_text(cli, "wrote %s: %d tokens from %llu bytes in %.1f s\n",
                        "已写出 %s：%d 个词元，来自 %llu 字节，用时 %.1f 秒\n"),
               flags.out, (int)report.tokens, (unsigned long long)report.bytes, seconds);
    if (!code && report.tokens < flags.vocab && !cli->quiet && !cli->json)
        fprintf(stderr, "shu tokenizer: the text has pairs for %d tokens only, not for %lld\n", (int)report.tokens,
                (long long)flags.vocab);
    mem_free(args);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    if (argc && strcmp(argv[0], "train") == 0) return train(cli, argc - 1, argv + 1);
    return cli_usage(cli, "expected: shu tokenizer train …, found \"%s\"", argc ? argv[0] : "");
}

const struct verb verb_tokenizer = {
    .name = "tokenizer",
    .summary_en = "learn a vocabulary from text",
    .summary_zh = "从文本学习词表",
    .help_en =
        "usage: shu tokenizer train --files GLOB [--files …] --vocab N [TEXT…] OUT.gguf [options]\n\n"
        "Byte-level BPE: N tokens, of which 256 are bytes and three mark turns and texts (<|endoftext|>,\n"
        "<|im_start|>, <|im_end|>). Files are plain text; of .jsonl files the texts of records and messages are\n"
        "taken. OUT is a GGUF of the vocabulary alone, with a chat template; arguments before it are texts too, so\n"
        "that a pattern may stand without quotes. The same texts give the same vocabulary, whatever the threads.\n\n"
        "  --pre qwen2|gpt-2|llama-bpe  how text is cut into words (default qwen2: digits stand alone)\n"
        "  --special TEXT               one more control token; may be repeated\n"
        "  --min-count N                pairs that occur less often are not merged (default 2)\n"
        "  --memory MIB                 beyond it the rarest words are forgotten (default 2048)\n"
        "  --threads N\n\n"
        "example: shu tokenizer train --files 'texts/*.txt' --vocab 16000 words.gguf\n",
    .help_zh = "用法：shu tokenizer train --files 通配符 [--files …] --vocab N [文本…] 输出.gguf [选项]\n\n"
               "字节级 BPE：共 N 个词元，其中 256 个是字节，三个标记轮次与文本（<|endoftext|>、<|im_start|>、\n"
               "<|im_end|>）。文件为纯文本；.jsonl 文件取记录与消息中的文本。输出是只含词表（带对话模板）的 GGUF；\n"
               "写在它前面的参数也是文本，所以通配符可以不加引号。\n"
               "文本相同，词表就相同，与线程数无关。\n\n"
               "  --pre qwen2|gpt-2|llama-bpe  如何切词（默认 qwen2：数字逐个切开）\n"
               "  --special 文本               再加一个控制词元；可重复\n"
               "  --min-count N                出现次数更少的组合不合并（默认 2）\n"
               "  --memory MIB                 超过此内存则忘掉最少见的词（默认 2048）\n"
               "  --threads N\n\n"
               "例：shu tokenizer train --files 'texts/*.txt' --vocab 16000 words.gguf\n",
    .run = run,
};
