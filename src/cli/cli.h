/* cli: the program's verbs, one file each.
 *
 * main() finds the verb in `verb_table`, strips the options every verb knows
 * (--help --json --lang -q -v) and calls it. Verbs describe their own options
 * in a table that `options_parse` reads, so that an unknown flag, a missing
 * value or a number out of range is reported the same way everywhere.
 * Exit codes: 0 done, 1 failed, 2 the command line was wrong.
 */
#ifndef CLI_H
#define CLI_H

#include "infer/infer.h"

struct cli {
    const struct verb *verb;
    bool json, quiet, verbose;
    bool chinese; /* --lang zh, or LANG=zh… */
};

struct verb {
    const char *name;
    const char *summary_en, *summary_zh;                /* one line */
    const char *help_en, *help_zh;                      /* usage, options, one example */
    int (*run)(struct cli *cli, int argc, char **argv); /* arguments after the verb; returns the exit code */
};
extern const struct verb *const verb_table[]; /* NULL-terminated */

/* Text in the user's language. Both may be printf formats, and are checked as such. */
__attribute__((format_arg(2), format_arg(3))) static inline const char *
cli_text(const struct cli *cli, const char *english, const char *chinese) {
    return cli->chinese ? chinese : english;
}

/* Prints the error (JSON on stdout with --json, else one line on stderr) and
 * returns the exit code it calls for: 2 for SHU_E_USAGE, else 1. */
int cli_fail(const struct cli *cli, const struct shu_error *err);
/* The same for a mistake on the command line: printf-style, always exit code 2. */
int cli_usage(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints a JSON object on one line, releases it, and returns 0 (1 if stdout is closed). */
int cli_print_json(const struct cli *cli, json_t *object);
/* A model's text to stdout. On a terminal, control characters other than line feed and tab become U+FFFD: a model
 * is not trusted to move the cursor. */
void cli_print_text(const char *text, size_t bytes, bool terminal);
/* Flushes stdout; a closed pipe or full disk becomes exit code 1 with one line. */
int cli_finish(const struct cli *cli);
void cli_help(const struct cli *cli); /* of cli->verb */

/* ----------------------------------------------------------------- options */

enum option_kind { OPT_FLAG, OPT_INT, OPT_FLOAT, OPT_TEXT, OPT_LIST };

#define OPT_LIST_MAX 16
struct option_list {
    const char *item[OPT_LIST_MAX]; /* [count], in the order given */
    int count;
};

struct option {
    const char *name; /* "--threads" or "-n" */
    enum option_kind kind;
    void *target;    /* bool *, int64_t *, double *, const char **, struct option_list * */
    double min, max; /* OPT_INT and OPT_FLOAT: inclusive range */
};

/* Fills targets; everything that is no option goes to positional[0…*count).
 * "--" ends the options. Prints its own message; 0 or exit code 2. */
int options_parse(const struct cli *cli, const struct option *options, int option_count, int argc, char **argv,
                  const char **positional, int max_positional, int *count);

/* ------------------------------------------------- what model verbs share */

/* Options of every verb that opens an engine. */
struct engine_flags {
    int64_t threads, context;
    const char *kv;              /* "f16" | "q8" */
    struct option_list adapters; /* PATH or PATH:WEIGHT */
};
#define ENGINE_FLAGS_DEFAULT                                                                                           \
    { .threads = 0, .context = 0, .kv = "f16" }
#define ENGINE_OPTIONS(flags)                                                                                          \
    {"--threads", OPT_INT, &(flags).threads, 1, 256}, {"--ctx", OPT_INT, &(flags).context, 8, 1 << 20},                \
        {"--kv", OPT_TEXT, &(flags).kv, 0, 0}, {                                                                       \
        "--adapter", OPT_LIST, &(flags).adapters, 0, 0                                                                 \
    }
/* Opens the engine with the flags laid over `base`; prints nothing. */
int cli_engine_open(const char *model, const struct engine_flags *flags, const struct engine_options *base,
                    struct engine **out, struct shu_error *err);

/* "PATH" or "PATH:WEIGHT": what exists under the whole text is a path. Copies the path into `path` (size bytes).
 * SHU_E_USAGE for a weight that is no number from -100 to 100. */
int cli_adapter_parse(const char *text, char *path, size_t size, float *weight, struct shu_error *err);
/* Is `out` the file `input`, or a file in the folder that `input` is (one level of folders in it included)? */
bool cli_would_replace(const char *input, const char *out);
/* The same for any of the adapters; of a run's folder adapter/, the run's adapter.gguf beside it counts too. */
bool cli_adapters_hold(const struct option_list *adapters, const char *out);

/* Sampling options of run and chat. */
struct sampling_flags {
    double temperature, top_p, min_p, repetition, presence, frequency;
    int64_t top_k, seed;
};
#define SAMPLING_OPTIONS(flags)                                                                                        \
    {"--temp", OPT_FLOAT, &(flags).temperature, 0, 10}, {"--top-k", OPT_INT, &(flags).top_k, 0, 1 << 20},              \
        {"--top-p", OPT_FLOAT, &(flags).top_p, 0, 1}, {"--min-p", OPT_FLOAT, &(flags).min_p, 0, 1},                    \
        {"--repeat-penalty", OPT_FLOAT, &(flags).repetition, 0.1, 10},                                                 \
        {"--presence-penalty", OPT_FLOAT, &(flags).presence, -10, 10},                                                 \
        {"--frequency-penalty", OPT_FLOAT, &(flags).frequency, -10, 10}, {                                             \
        "--seed", OPT_INT, &(flags).seed, 0, 9007199254740991.0                                                        \
    }
void sampling_defaults(struct sampling_flags *flags);
void sampling_apply(const struct sampling_flags *flags, struct sampler_options *out);

extern const struct verb verb_model, verb_run, verb_chat, verb_tokenize, verb_logits, verb_perplexity, verb_bench,
    verb_doctor, verb_tokenizer, verb_train;

#endif
