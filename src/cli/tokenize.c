/* shu tokenize: standard input to tokens. */
#include <string.h>

#include "cli/cli.h"

/* One token on a line: id, then its bytes with control characters escaped. */
static void print_token(const struct tokenizer *tokenizer, int32_t id) {
    struct span piece = tokenizer_piece(tokenizer, id, true);
    printf("%6d  ", (int)id);
    for (uint32_t i = 0; i < piece.bytes;) {
        uint32_t scalar;
        int n = utf8_decode(piece.text + i, piece.bytes - i, &scalar);
        unsigned char byte = (unsigned char)piece.text[i];
        if (n == 0 || byte < 0x20 || byte == 0x7f) {
            printf("\\x%02x", byte);
            i++;
        } else {
            fwrite(piece.text + i, 1, (size_t)n, stdout);
            i += (uint32_t)n;
        }
    }
    putchar('\n');
}

static int print_json(const struct cli *cli, const struct tokens *tokens, size_t bytes, uint64_t ns) {
    json_t *ids = json_array();
    for (size_t i = 0; i < tokens->count; i++) json_array_append_new(ids, json_integer(tokens->id[i]));
    return cli_print_json(cli, json_pack("{s:I,s:I,s:f,s:o}", "tokens", (json_int_t)tokens->count, "bytes",
                                         (json_int_t)bytes, "seconds", (double)ns * 1e-9, "ids", ids));
}

static int tokenize(const struct cli *cli, const char *path, bool ids, bool special, bool bos, bool count_only,
                    struct shu_error *err) {
    struct model *model = NULL;
    struct tokenizer *tokenizer = NULL;
    struct tokenizer_work *work = NULL;
    struct buf text = {0};
    struct tokens tokens = {0};
    int flags = (special ? ENCODE_PARSE_SPECIAL : 0) | (bos ? ENCODE_ADD_SPECIAL : 0), code = 0;
    int status = model_open(path, &model, err);
    if (!status) status = model_tokenizer(model, &tokenizer, err);
    if (!status) status = tokenizer_work_new(tokenizer, &work, err);
    if (!status) status = file_read("-", BUF_MAX_DEFAULT, &text, err);
    uint64_t start_ns = clock_ns();
    if (!status) status = tokenizer_encode(tokenizer, work, text.data ? text.data : "", text.len, flags, &tokens, err);
    uint64_t ns = clock_ns() - start_ns;
    if (status)
        code = cli_fail(cli, err);
    else if (cli->json && !count_only)
        code = print_json(cli, &tokens, text.len, ns);
    else if (count_only)
        printf("{\"tokens\":%zu,\"bytes\":%zu,\"seconds\":%.9f}\n", tokens.count, text.len, (double)ns * 1e-9);
    else
        for (size_t i = 0; i < tokens.count && !ferror(stdout); i++)
            if (ids)
                printf("%d\n", (int)tokens.id[i]);
            else
                print_token(tokenizer, tokens.id[i]);
    tokens_free(&tokens);
    buf_free(&text);
    tokenizer_work_free(work);
    tokenizer_free(tokenizer);
    model_close(model);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    bool ids = false, special = false, bos = false, count_only = false;
    const struct option options[] = {{"--ids", OPT_FLAG, &ids, 0, 0},
                                     {"--special", OPT_FLAG, &special, 0, 0},
                                     {"--bos", OPT_FLAG, &bos, 0, 0},
                                     {"--count", OPT_FLAG, &count_only, 0, 0}};
    const char *model = NULL;
    int count = 0;
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &model, 1, &count);
    if (code) return code;
    if (!count) return cli_usage(cli, "expected a model: shu tokenize MODEL < text");
    struct shu_error err = {0};
    return tokenize(cli, model, ids, special, bos, count_only, &err);
}

const struct verb verb_tokenize = {
    .name = "tokenize",
    .summary_en = "cut standard input into tokens",
    .summary_zh = "把标准输入切成词元",
    .help_en = "usage: shu tokenize MODEL [--ids] < text\n\n"
               "  --ids       ids only, one a line\n"
               "  --special   spellings of control tokens (<|im_start|>) become control tokens\n"
               "  --bos       add the tokens that begin (and end) a text, where the vocabulary asks\n"
               "  --count     number of tokens, bytes and seconds only, as JSON\n\n"
               "example: echo \"当归补血汤\" | shu tokenize qwen2.5-coder-0.5b-instruct\n",
    .help_zh = "用法：shu tokenize 模型 [--ids] < 文本\n\n"
               "  --ids       只输出编号，一行一个\n"
               "  --special   把控制词元的写法（<|im_start|>）当作控制词元\n"
               "  --bos       按词表要求加上开头（结尾）词元\n"
               "  --count     只输出词元数、字节数和秒数（JSON）\n\n"
               "例：echo \"当归补血汤\" | shu tokenize qwen2.5-coder-0.5b-instruct\n",
    .run = run,
};
