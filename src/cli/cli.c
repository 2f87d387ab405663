/* What the verbs share: errors, output, option parsing, opening an engine. */
#include "cli/cli.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static void print_error_json(const struct shu_error *err) {
    json_t *object = json_pack("{s:{s:s,s:s,s:s}}", "error", "code", shu_status_name(err->code), "message",
                               err->message, "where", err->where);
    if (object)
        json_dumpf(object, stdout, JSON_COMPACT);
    else
        fputs("{\"error\":{\"code\":\"nomem\",\"message\":\"out of memory\",\"where\":\"\"}}", stdout);
    putchar('\n');
    json_decref(object);
}

int cli_fail(const struct cli *cli, const struct shu_error *err) {
    if (cli->json)
        print_error_json(err);
    else
        fprintf(stderr, "shu%s%s: %s\n", cli->verb ? " " : "", cli->verb ? cli->verb->name : "", err->message);
    if (cli->verbose) fprintf(stderr, "  raised at %s (%s)\n", err->where, shu_status_name(err->code));
    return err->code == SHU_E_USAGE ? 2 : 1;
}

int cli_usage(const struct cli *cli, const char *format, ...) {
    struct shu_error err = {.code = SHU_E_USAGE, .where = "command line"};
    va_list args;
    va_start(args, format);
    vsnprintf(err.message, sizeof err.message, format, args);
    va_end(args);
    cli_fail(cli, &err);
    return 2;
}

int cli_print_json(const struct cli *cli, json_t *object) {
    if (!object) {
        struct shu_error err;
        SHU_FAIL(&err, SHU_E_NOMEM, "out of memory while writing JSON");
        return cli_fail(cli, &err);
    }
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(object);
    return cli_finish(cli);
}

void cli_print_text(const char *text, size_t bytes, bool terminal) {
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        bool c1 = byte == 0xc2 && i + 1 < bytes && (unsigned char)text[i + 1] < 0xa0; /* U+0080…U+009F */
        if (terminal && ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f || c1)) {
            fputs("\xEF\xBF\xBD", stdout);
            i += c1;
        } else
            putchar(byte);
    }
}

int cli_finish(const struct cli *cli) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    fprintf(stderr, "shu%s%s: expected to write standard output, but it was closed or is full (%s)\n",
            cli->verb ? " " : "", cli->verb ? cli->verb->name : "", strerror(errno));
    return 1;
}

void cli_help(const struct cli *cli) {
    printf("shu %s: %s\n\n%s", cli->verb->name, cli_text(cli, cli->verb->summary_en, cli->verb->summary_zh),
           cli_text(cli, cli->verb->help_en, cli->verb->help_zh));
    fputs(cli_text(cli, "\nevery verb: --help --json --lang zh|en -q -v; exit 0 done, 1 failed, 2 wrong usage\n",
                   "\n每个动词都有：--help --json --lang zh|en -q -v；退出码 0 完成，1 失败，2 用法错误\n"),
          stdout);
}

/* ----------------------------------------------------------------- options */

static const struct option *option_find(const struct option *options, int count, const char *name, size_t bytes) {
    for (int i = 0; i < count; i++)
        if (strlen(options[i].name) == bytes && memcmp(options[i].name, name, bytes) == 0) return &options[i];
    return NULL;
}

static int unknown_option(const struct cli *cli, const struct option *options, int count, const char *arg) {
    struct buf known = {.max = 400};
    for (int i = 0; i < count; i++)
        if (buf_printf(&known, "%s%s", i ? " " : "", options[i].name)) break;
    int code = cli_usage(cli, "unknown option \"%s\"; known here: %s (see `shu %s --help`)", arg,
                         known.data ? known.data : "none", cli->verb->name);
    buf_free(&known);
    return code;
}

static int store_number(const struct cli *cli, const struct option *option, const char *value) {
    char *end = NULL;
    errno = 0;
    double number = option->kind == OPT_INT ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (end == value || *end || errno || !(number >= option->min && number <= option->max))
        return cli_usage(cli, "%s takes %s from %.10g to %.10g, found \"%s\"", option->name,
                         option->kind == OPT_INT ? "a whole number" : "a number", option->min, option->max, value);
    if (option->kind == OPT_INT)
        *(int64_t *)option->target = strtoll(value, NULL, 10);
    else
        *(double *)option->target = number;
    return 0;
}

static int store_value(const struct cli *cli, const struct option *option, const char *value) {
    if (option->kind == OPT_INT || option->kind == OPT_FLOAT) return store_number(cli, option, value);
    if (option->kind == OPT_TEXT) {
        *(const char **)option->target = value;
        return 0;
    }
    struct option_list *list = option->target;
    if (list->count == OPT_LIST_MAX)
        return cli_usage(cli, "%s may be given at most %d times", option->name, OPT_LIST_MAX);
    list->item[list->count++] = value;
    return 0;
}

int options_parse(const struct cli *cli, const struct option *options, int option_count, int argc, char **argv,
                  const char **positional, int max_positional, int *count) {
    *count = 0;
    bool only_positional = false;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (!only_positional && strcmp(arg, "--") == 0) {
            only_positional = true;
            continue;
        }
        if (only_positional || arg[0] != '-' || arg[1] == 0) {
            if (*count == max_positional)
                return cli_usage(cli, "expected at most %d argument%s, found one more: \"%s\"", max_positional,
                                 max_positional == 1 ? "" : "s", arg);
            positional[(*count)++] = arg;
            continue;
        }
        const char *equals = arg[1] == '-' ? strchr(arg, '=') : NULL;
        size_t name_bytes = equals ? (size_t)(equals - arg) : strlen(arg);
        const struct option *option = option_find(options, option_count, arg, name_bytes);
        if (!option) return unknown_option(cli, options, option_count, arg);
        if (option->kind == OPT_FLAG) {
            if (equals) return cli_usage(cli, "%s takes no value", option->name);
            *(bool *)option->target = true;
            continue;
        }
        if (!equals && i + 1 == argc) return cli_usage(cli, "%s needs a value", option->name);
        int code = store_value(cli, option, equals ? equals + 1 : argv[++i]);
        if (code) return code;
    }
    return 0;
}

/* ------------------------------------------------- what model verbs share */

int cli_adapter_parse(const char *text, char *path, size_t size, float *weight, struct shu_error *err) {
    const char *colon = file_exists(text) || path_is_dir(text) ? NULL : strrchr(text, ':');
    size_t bytes = colon ? (size_t)(colon - text) : strlen(text);
    double number = 1;
    char *end = NULL;
    if (colon) {
        number = strtod(colon + 1, &end);
        if (end == colon + 1 || *end || !(number >= -100 && number <= 100))
            return SHU_FAIL(err, SHU_E_USAGE,
                            "expected an adapter as PATH or PATH:WEIGHT with a weight from -100 to "
                            "100, found \"%.200s\"",
                            text);
    }
    if (bytes == 0 || bytes >= size)
        return SHU_FAIL(err, SHU_E_USAGE, "expected an adapter as PATH or PATH:WEIGHT, found \"%.200s\"", text);
    memcpy(path, text, bytes);
    path[bytes] = 0;
    *weight = (float)number;
    return SHU_OK;
}

/* Compared as files, not as names: links lead out of folders and into them. */
static bool folder_holds(const char *folder, const char *file, int levels) {
    char path[PATH_MAX];
    bool found = false;
    DIR *dir = opendir(folder);
    if (!dir) return false;
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        int bytes = snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (bytes < 0 || (size_t)bytes >= sizeof path) continue; /* nobody can open it by this name */
        found = file_same(path, file) || (levels > 1 && folder_holds(path, file, levels - 1));
    }
    closedir(dir);
    return found;
}

bool cli_would_replace(const char *input, const char *out) {
    return file_same(input, out) || (file_exists(out) && folder_holds(input, out, 2));
}

bool cli_adapters_hold(const struct option_list *adapters, const char *out) {
    char own[PATH_MAX], twin[PATH_MAX + 32];
    float weight;
    for (int i = 0; i < adapters->count; i++) {
        if (cli_adapter_parse(adapters->item[i], own, sizeof own, &weight, NULL)) continue;
        snprintf(twin, sizeof twin, "%s/../adapter.gguf", own); /* exists for folders only */
        if (cli_would_replace(own, out) || file_same(twin, out)) return true;
    }
    return false;
}

int cli_engine_open(const char *model, const struct engine_flags *flags, const struct engine_options *base,
                    struct engine **out, struct shu_error *err) {
    struct engine_options options = base ? *base : (struct engine_options){0};
    if (flags->threads) options.threads = (int)flags->threads;
    if (flags->context) options.context = (int)flags->context;
    if (strcmp(flags->kv, "q8") == 0)
        options.kv_type = KV_Q8;
    else if (strcmp(flags->kv, "f16") != 0)
        return SHU_FAIL(err, SHU_E_USAGE, "--kv takes f16 or q8, found \"%s\"", flags->kv);
    struct engine_adapter adapters[OPT_LIST_MAX];
    char paths[OPT_LIST_MAX][PATH_MAX];
    for (int i = 0; i < flags->adapters.count; i++) {
        int status = cli_adapter_parse(flags->adapters.item[i], paths[i], sizeof paths[i], &adapters[i].weight, err);
        if (status) return status;
        adapters[i].path = paths[i];
    }
    options.adapters = adapters;
    options.adapter_count = flags->adapters.count;
    return engine_open(model, &options, out, err);
}

void sampling_defaults(struct sampling_flags *flags) {
    struct sampler_options d;
    sampler_defaults(&d);
    *flags = (struct sampling_flags){.temperature = d.temperature,
                                     .top_p = d.top_p,
                                     .min_p = d.min_p,
                                     .repetition = d.repetition,
                                     .presence = d.presence,
                                     .frequency = d.frequency,
                                     .top_k = d.top_k,
                                     .seed = (int64_t)d.seed};
}

void sampling_apply(const struct sampling_flags *flags, struct sampler_options *out) {
    sampler_defaults(out);
    out->temperature = (float)flags->temperature;
    out->top_k = (int)flags->top_k;
    out->top_p = (float)flags->top_p;
    out->min_p = (float)flags->min_p;
    out->repetition = (float)flags->repetition;
    out->presence = (float)flags->presence;
    out->frequency = (float)flags->frequency;
    out->seed = (uint64_t)flags->seed;
}
