/* shu model: pull, list, info, quantize. */
#include <stdlib.h>
#include <limits.h>
#include <string.h>

#include "cli/cli.h"

/* -------------------------------------------------------------- pull, list */

static int model_pull(struct cli *cli, int argc, char **argv) {
    const char *name = NULL;
    int count = 0;
    int code = options_parse(cli, NULL, 0, argc, argv, &name, 1, &count);
    if (code) return code;
    if (!count) return cli_usage(cli, "expected a name: shu model pull NAME; `shu model list` shows them");
    struct shu_error err = {0};
    struct buf path = {0};
    interrupt_install();
    int status = store_pull(name, cli->quiet || cli->json, &path, &err);
    if (status)
        code = cli_fail(cli, &err);
    else if (cli->json)
        code = cli_print_json(cli, json_pack("{s:s,s:s}", "name", name, "path", path.data));
    else if (!cli->quiet)
        printf(cli_text(cli, "%s is in %s\n", "%s 已存放于 %s\n"), name, path.data);
    buf_free(&path);
    return code;
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static int model_list(struct cli *cli, int argc, char **argv) {
    const char *none = NULL;
    int count = 0;
    int code = options_parse(cli, NULL, 0, argc, argv, &none, 0, &count);
    if (code) return code;
    struct shu_error err = {0};
    json_t *models = NULL, *item;
    if (store_list(&models, &err)) return cli_fail(cli, &err);
    if (cli->json) return cli_print_json(cli, json_pack("{s:o}", "models", models));
    size_t i;
    json_array_foreach(models, i, item) {
        double mib = (double)json_integer_value(json_object_get(item, "bytes")) / (1 << 20);
        bool here = json_is_true(json_object_get(item, "pulled"));
        printf("%-30s %7.0f MiB  %-10s  %s (%s)\n", text_of(item, "name"), mib,
               here ? cli_text(cli, "here", "已下载") : cli_text(cli, "not pulled", "未下载"), text_of(item, "title"),
               text_of(item, "licence"));
    }
    json_decref(models);
    return 0;
}

/* -------------------------------------------------------------------- info */

static json_t *tensor_json(const struct model_tensor *tensor) {
    json_t *shape = json_array();
    for (int i = 0; i < tensor->view.ndim; i++) json_array_append_new(shape, json_integer(tensor->view.shape[i]));
    return json_pack("{s:s,s:s,s:o}", "name", tensor->name, "type", dtype_table[tensor->view.dtype].name, "shape",
                     shape);
}

/* "Q5_0 132, F32 121": how many tensors and bytes each type has. */
static void print_types(const struct model *model) {
    int64_t count[DT_COUNT] = {0};
    double bytes[DT_COUNT] = {0};
    for (int64_t i = 0; i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        count[tensor->view.dtype]++;
        bytes[tensor->view.dtype] += (double)tensor_bytes(&tensor->view);
    }
    for (int t = 0; t < DT_COUNT; t++)
        if (count[t])
            printf("  %-5s %4lld tensors %9.1f MiB\n", dtype_table[t].name, (long long)count[t], bytes[t] / (1 << 20));
}

static void print_info(const struct cli *cli, const struct model *model, json_t *meta) {
    const char *key;
    json_t *value;
    printf("%s  (%s, %.1f MiB)\n", model_path(model), model_format(model) == MODEL_GGUF ? "GGUF" : "safetensors",
           (double)model_file_bytes(model) / (1 << 20));
    json_object_foreach(meta, key, value) {
        char *text = json_dumps(value, JSON_ENCODE_ANY);
        printf("  %-44s %.100s%s\n", key, text ? text : "?", text && strlen(text) > 100 ? "…" : "");
        free(text); /* jansson's own allocator */
    }
    print_types(model);
    for (int64_t i = 0; cli->verbose && i < model_tensor_count(model); i++) {
        const struct model_tensor *tensor = model_tensor_at(model, i);
        printf("  %-32s %-5s", tensor->name, dtype_table[tensor->view.dtype].name);
        for (int d = 0; d < tensor->view.ndim; d++) printf("%s%lld", d ? " x " : " ", (long long)tensor->view.shape[d]);
        putchar('\n');
    }
}

static int model_info(struct cli *cli, int argc, char **argv) {
    const char *path = NULL;
    int count = 0;
    int code = options_parse(cli, NULL, 0, argc, argv, &path, 1, &count);
    if (code) return code;
    if (!count) return cli_usage(cli, "expected a model: shu model info MODEL");
    struct shu_error err = {0};
    struct model *model = NULL;
    if (model_open(path, &model, &err)) return cli_fail(cli, &err);
    json_t *meta = meta_json(model, 8);
    if (cli->json) {
        json_t *tensors = json_array();
        for (int64_t i = 0; i < model_tensor_count(model); i++)
            json_array_append_new(tensors, tensor_json(model_tensor_at(model, i)));
        code =
            cli_print_json(cli, json_pack("{s:s,s:s,s:I,s:O?,s:o}", "path", model_path(model), "format",
                                          model_format(model) == MODEL_GGUF ? "gguf" : "safetensors", "bytes",
                                          (json_int_t)model_file_bytes(model), "metadata", meta, "tensors", tensors));
    } else if (meta)
        print_info(cli, model, meta);
    json_decref(meta);
    model_close(model);
    return code;
}

/* ---------------------------------------------------------------- quantize */

static int model_quantize_verb(struct cli *cli, int argc, char **argv) {
    const char *args[3] = {NULL};
    int64_t threads = 0;
    const struct option options[] = {{"--threads", OPT_INT, &threads, 1, 256}};
    int count = 0;
    int code = options_parse(cli, options, 1, argc, argv, args, 3, &count);
    if (code) return code;
    if (count != 3) return cli_usage(cli, "expected: shu model quantize IN OUT.gguf F32|F16|BF16|Q8_0|Q4_K_M");
    if (cli_would_replace(args[0], args[1]))
        return cli_usage(cli, "OUT.gguf would replace IN itself or a file in it: %s", args[1]);
    struct shu_error err = {0};
    struct model *model = NULL;
    struct pool *pool = NULL;
    struct progress progress = {0};
    interrupt_install();
    int status = model_open(args[0], &model, &err);
    if (!status) status = pool_new((int)threads, &pool, &err);
    if (!status) {
        progress_start(&progress, "quantize", "B", 0, cli->quiet || cli->json);
        status = model_quantize(model, args[1], args[2], pool, &progress, &err);
        progress_finish(&progress);
    }
    if (status)
        code = cli_fail(cli, &err);
    else if (cli->json)
        code = cli_print_json(cli, json_pack("{s:s,s:s}", "path", args[1], "type", args[2]));
    else if (!cli->quiet)
        printf(cli_text(cli, "wrote %s as %s\n", "已写出 %s（%s）\n"), args[1], args[2]);
    pool_free(pool);
    model_close(model);
    return code;
}

/* ------------------------------------------------------------------- merge */

struct merging {
    const char *base, *out, *type;
    struct option_list names; /* ADAPTER or ADAPTER:WEIGHT */
    struct adapter *adapters[OPT_LIST_MAX];
    float weights[OPT_LIST_MAX];
    int opened;
};

static int merge_open(struct merging *merging, struct shu_error *err) {
    for (int i = 0; i < merging->names.count; i++) {
        char path[PATH_MAX];
        int status = cli_adapter_parse(merging->names.item[i], path, sizeof path, &merging->weights[i], err);
        if (!status) status = adapter_open(path, &merging->adapters[i], err);
        if (status) return status;
        merging->opened++;
    }
    return SHU_OK;
}

static int merge_run(const struct cli *cli, struct merging *merging, int threads, struct shu_error *err) {
    struct model *model = NULL;
    struct pool *pool = NULL;
    struct progress progress = {0};
    int status = merge_open(merging, err);
    if (!status) status = model_open(merging->base, &model, err);
    if (!status) status = pool_new(threads, &pool, err);
    if (!status) {
        progress_start(&progress, "merge", "B", 0, cli->quiet || cli->json);
        status = model_merge(model, (const struct adapter *const *)merging->adapters, merging->weights, merging->opened,
                             merging->out, merging->type, pool, &progress, err);
        progress_finish(&progress);
    }
    for (int i = 0; i < merging->opened; i++) adapter_close(merging->adapters[i]);
    pool_free(pool);
    model_close(model);
    return status;
}

static int model_merge_verb(struct cli *cli, int argc, char **argv) {
    const char *args[OPT_LIST_MAX + 2] = {NULL};
    struct merging merging = {.type = "F16"};
    int64_t threads = 0;
    const struct option options[] = {{"--type", OPT_TEXT, &merging.type, 0, 0},
                                     {"--threads", OPT_INT, &threads, 1, 256}};
    int count = 0;
    int code = options_parse(cli, options, 2, argc, argv, args, OPT_LIST_MAX + 2, &count);
    if (code) return code;
    if (count < 3) return cli_usage(cli, "expected: shu model merge BASE ADAPTER[:WEIGHT]… OUT.gguf [--type F16]");
    merging.base = args[0];
    merging.out = args[count - 1];
    for (int i = 1; i < count - 1; i++) merging.names.item[merging.names.count++] = args[i];
    if (cli_would_replace(merging.base, merging.out) || cli_adapters_hold(&merging.names, merging.out))
        return cli_usage(cli, "OUT.gguf would replace the base, an adapter or a file in one of them: %s", merging.out);
    struct shu_error err = {0};
    interrupt_install();
    if (merge_run(cli, &merging, (int)threads, &err)) return cli_fail(cli, &err);
    if (cli->json)
        return cli_print_json(
            cli, json_pack("{s:s,s:s,s:i}", "path", merging.out, "type", merging.type, "adapters", merging.opened));
    if (!cli->quiet) printf(cli_text(cli, "wrote %s as %s\n", "已写出 %s（%s）\n"), merging.out, merging.type);
    return 0;
}

static int run(struct cli *cli, int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(struct cli *, int, char **);
    } forms[] = {{"pull", model_pull},
                 {"list", model_list},
                 {"info", model_info},
                 {"quantize", model_quantize_verb},
                 {"merge", model_merge_verb}};
    for (size_t i = 0; argc && i < sizeof forms / sizeof *forms; i++)
        if (strcmp(argv[0], forms[i].name) == 0) return forms[i].run(cli, argc - 1, argv + 1);
    return cli_usage(cli, "expected: shu model pull|list|info|quantize|merge …, found \"%s\"", argc ? argv[0] : "");
}

const struct verb verb_model = {
    .name = "model",
    .summary_en = "fetch, list, inspect, quantise and merge models",
    .summary_zh = "下载、列出、查看、量化和合并模型",
    .help_en = "usage: shu model pull NAME          fetch a named model, verified, resumable\n"
               "       shu model list               named models, and which are here\n"
               "       shu model info MODEL         metadata and tensor types (-v: every tensor)\n"
               "       shu model quantize IN OUT.gguf F32|F16|BF16|Q8_0|Q4_K_M [--threads N]\n"
               "       shu model merge BASE ADAPTER[:WEIGHT]… OUT.gguf [--type F16] [--threads N]\n"
               "                                    base and low-rank adapters as one model\n\n"
               "More names: models.yaml in $XDG_CONFIG_HOME/shu, same form as the built-in share/models.yaml.\n\n"
               "example: shu model pull qwen2.5-coder-0.5b-instruct\n",
    .help_zh = "用法：shu model pull 名字           下载并校验，可续传\n"
               "      shu model list                列出有名字的模型\n"
               "      shu model info 模型           元数据与张量类型（-v：每个张量）\n"
               "      shu model quantize 输入 输出.gguf F32|F16|BF16|Q8_0|Q4_K_M [--threads N]\n"
               "      shu model merge 底座 适配器[:权重]… 输出.gguf [--type F16] [--threads N]\n"
               "                                    把底座和低秩适配器合成一个模型\n\n"
               "更多名字：$XDG_CONFIG_HOME/shu 下的 models.yaml，格式同内置的 share/models.yaml。\n\n"
               "例：shu model pull qwen2.5-coder-0.5b-instruct\n",
    .run = run,
};
