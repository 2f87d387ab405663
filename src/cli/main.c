/* The program: finds the verb and the options that every verb knows. */
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

const struct verb *const verb_table[] = {&verb_run,    &verb_chat,       &verb_train, &verb_model,     &verb_tokenize,
                                         &verb_logits, &verb_perplexity, &verb_bench, &verb_tokenizer, &verb_doctor,
                                         NULL};

static const struct verb *verb_find(const char *name) {
    for (int i = 0; verb_table[i]; i++)
        if (strcmp(verb_table[i]->name, name) == 0) return verb_table[i];
    return NULL;
}

static void print_overview(const struct cli *cli, FILE *out) {
    fputs(cli_text(cli, "shu: turns an organisation's own knowledge into a specialist model, on its own machines\n\n",
                   "shu（蜀）：在自己的机器上，把自己的知识变成行业垂直大模型\n\n"),
          out);
    fputs(cli_text(cli, "usage: shu VERB [options]\n\n", "用法：shu 动词 [选项]\n\n"), out);
    for (int i = 0; verb_table[i]; i++)
        fprintf(out, "  %-12s %s\n", verb_table[i]->name,
                cli_text(cli, verb_table[i]->summary_en, verb_table[i]->summary_zh));
    fputs(cli_text(cli,
                   "\nevery verb: --help  --json  --lang zh|en  -q (quiet)  -v (verbose)\n"
                   "start here: shu model pull qwen2.5-coder-0.5b-instruct && shu chat qwen2.5-coder-0.5b-instruct\n",
                   "\n每个动词都有：--help  --json  --lang zh|en  -q（安静）  -v（详细）\n"
                   "从这里开始：shu model pull qwen2.5-coder-0.5b-instruct && shu chat qwen2.5-coder-0.5b-instruct\n"),
          out);
}

static bool locale_is_chinese(void) {
    const char *names[] = {"LC_ALL", "LC_MESSAGES", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return strncmp(value, "zh", 2) == 0;
    }
    return false;
}

/* Takes the common options out of argv; returns the remaining count, or -1
 * after a message. What follows "--" is left alone. */
static int strip_common(struct cli *cli, int argc, char **argv, bool *help) {
    int kept = 0;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "--") == 0) {
            while (i < argc) argv[kept++] = argv[i++];
            break;
        }
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0)
            *help = true;
        else if (strcmp(arg, "--json") == 0)
            cli->json = true;
        else if (strcmp(arg, "-q") == 0)
            cli->quiet = true;
        else if (strcmp(arg, "-v") == 0)
            cli->verbose = true;
        else if (strcmp(arg, "--lang") == 0) {
            const char *lang = i + 1 < argc ? argv[++i] : "";
            if (strcmp(lang, "zh") != 0 && strcmp(lang, "en") != 0) {
                cli_usage(cli, "--lang takes zh or en, found \"%s\"", lang);
                return -1;
            }
            cli->chinese = strcmp(lang, "zh") == 0;
        } else
            argv[kept++] = argv[i];
    }
    return kept;
}

int main(int argc, char **argv) {
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file-size limit is reported like a full disk */
    fault_arm_from_env();
    struct cli cli = {.chinese = locale_is_chinese()};
    bool help = false;
    int count = strip_common(&cli, argc - 1, argv + 1, &help);
    if (count < 0) return 2;
    char **args = argv + 1;
    if (count == 0 || strcmp(args[0], "help") == 0) {
        if (count > 1 && (cli.verb = verb_find(args[1])) != NULL) {
            cli_help(&cli);
            return cli_finish(&cli);
        }
        print_overview(&cli, help || count ? stdout : stderr);
        return help || count ? cli_finish(&cli) : 2;
    }
    if (strcmp(args[0], "--version") == 0) {
        puts("shu " SHU_VERSION);
        return cli_finish(&cli);
    }
    cli.verb = verb_find(args[0]);
    if (!cli.verb) return cli_usage(&cli, "unknown verb \"%s\"; `shu --help` lists them", args[0]);
    if (help) {
        cli_help(&cli);
        return cli_finish(&cli);
    }
    int code = cli.verb->run(&cli, count - 1, args + 1);
    return code ? code : cli_finish(&cli);
}
