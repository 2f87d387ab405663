/* shu train: a model learns from data. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "train/train.h"

struct train_flags {
    const char *base, *tokenizer, *data, *out, *config, *method;
    bool resume, plan;
    int64_t threads;
    double probe_seconds;
};

/* Options that set a key of the recipe; their values are read as the recipe's would be. */
enum { AT_BATCH, AT_MICRO_BATCH }; /* those that are asked for by place */
static const char *const recipe_options[][2] = {
    [AT_BATCH] = {"--batch", "batch"},
    [AT_MICRO_BATCH] = {"--micro-batch", "micro_batch"},
    {"--steps", "steps"},
    {"--epochs", "epochs"},
    {"--context", "context"},
    {"--rank", "rank"},
    {"--alpha", "alpha"},
    {"--dropout", "dropout"},
    {"--targets", "targets"},
    {"--lr", "learning_rate"},
    {"--schedule", "schedule"},
    {"--warmup", "warmup"},
    {"--weight-decay", "weight_decay"},
    {"--precision", "precision"},
    {"--state-type", "state_type"},
    {"--held-out", "held_out"},
    {"--eval-every", "eval_every"},
    {"--checkpoint-every", "checkpoint_every"},
    {"--patience", "patience"},
    {"--seed", "seed"},
    {"--watts", "watts"},
    {"--price", "price_per_kwh"},
};
#define RECIPE_OPTIONS (sizeof recipe_options / sizeof *recipe_options)
/* Those that need no value. */
static const char *const recipe_switches[][2] = {
    {"--rslora", "rank_stabilised"}, {"--recompute", "recompute"}, {"--all-tokens", "all_tokens"}, {"--cut", "cut"}};
#define RECIPE_SWITCHES (sizeof recipe_switches / sizeof *recipe_switches)

struct overrides {
    const char *value[RECIPE_OPTIONS]; /* NULL: not given */
    bool on[RECIPE_SWITCHES];
};

/* --------------------------------------------------------------- the recipe */

static int lay_over(const struct overrides *overrides, struct recipe *recipe, struct shu_error *err) {
    int status = SHU_OK;
    for (size_t i = 0; i < RECIPE_OPTIONS && !status; i++)
        if (overrides->value[i])
            status = recipe_set(recipe, recipe_options[i][1], overrides->value[i], recipe_options[i][0], err);
    for (size_t i = 0; i < RECIPE_SWITCHES && !status; i++)
        if (overrides->on[i]) status = recipe_set(recipe, recipe_switches[i][1], "true", recipe_switches[i][0], err);
    /* A smaller batch need not say so twice. */
    if (!status && overrides->value[AT_BATCH] && !overrides->value[AT_MICRO_BATCH] &&
        recipe->micro_batch > recipe->batch)
        recipe->micro_batch = recipe->batch;
    return status;
}

static int make_recipe(const struct train_flags *flags, const struct overrides *overrides, struct recipe *recipe,
                       struct shu_error *err) {
    enum train_method method = TRAIN_LORA;
    if (flags->method && !train_method_find(flags->method, &method))
        return SHU_FAIL(err, SHU_E_USAGE, "--method takes lora, full, scratch or dpo, found \"%s\"", flags->method);
    recipe_defaults(method, recipe);
    int status = flags->config ? recipe_read(flags->config, recipe, err) : SHU_OK;
    if (!status && flags->method && recipe->method != method)
        return SHU_FAIL(err, SHU_E_USAGE, "--method %s, but %s says method: %s", flags->method, flags->config,
                        train_method_name(recipe->method));
    if (!status) status = lay_over(overrides, recipe, err);
    return status ? status : recipe_check(recipe, err);
}

/* ------------------------------------------------------------------- output */

static void report_data(const struct cli *cli, const struct train_flags *flags, const struct trainer *trainer) {
    const struct trainset_report *report = trainer_data(trainer);
    if (cli->quiet) return;
    fprintf(stderr,
            cli_text(cli, "data: %lld lines, %lld sequences (%lld held out), %lld tokens, %lld with a loss\n",
                     "数据：%lld 行，%lld 个序列（留出 %lld 个），%lld 个词元，其中 %lld 个计入损失\n"),
            (long long)report->lines, (long long)report->sequences, (long long)report->held_out,
            (long long)report->tokens, (long long)report->loss_tokens);
    if (report->rejected)
        fprintf(stderr,
                cli_text(cli, "data: %lld lines rejected; each with its reason in %s/data.shard.rejects.jsonl\n",
                         "数据：%lld 行未被采用，原因逐行写在 %s/data.shard.rejects.jsonl\n"),
                (long long)report->rejected, flags->out);
    if (report->cut)
        fprintf(stderr,
                cli_text(cli, "data: %lld documents longer than the context were split or cut\n",
                         "数据：%lld 篇长于上下文，已切分或截断\n"),
                (long long)report->cut);
    if (trainer_at(trainer) > 0)
        fprintf(stderr, cli_text(cli, "resuming after step %lld of %lld\n", "从第 %lld 步之后继续（共 %lld 步）\n"),
                (long long)trainer_at(trainer), (long long)trainer_steps(trainer));
}

static json_t *data_json(const struct trainer *trainer) {
    const struct trainset_report *report = trainer_data(trainer);
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "lines", (json_int_t)report->lines, "sequences",
                     (json_int_t)report->sequences, "held_out", (json_int_t)report->held_out, "tokens",
                     (json_int_t)report->tokens, "loss_tokens", (json_int_t)report->loss_tokens, "rejected",
                     (json_int_t)report->rejected, "cut", (json_int_t)report->cut);
}

static json_t *number_or_null(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static void say_evaluation(const struct cli *cli, const struct train_metrics *metrics, bool pairs) {
    bool terminal = isatty(STDERR_FILENO) == 1; /* there, the progress line is overwritten */
    if (cli->quiet || isnan(metrics->held_out_loss)) return;
    if (terminal) fputs("\r\033[K", stderr);
    fprintf(stderr, cli_text(cli, "step %lld: loss %.4f, held out %.4f", "第 %lld 步：损失 %.4f，留出 %.4f"),
            (long long)metrics->step, metrics->loss, metrics->held_out_loss);
    if (pairs)
        fprintf(stderr, cli_text(cli, ", margin %.4f, %.1f%% right", "，差值 %.4f，%.1f%% 正确"),
                metrics->held_out_margin, 100 * metrics->held_out_accuracy);
    fputs("\n", stderr);
}

static int report_end(const struct cli *cli, const struct train_flags *flags, const struct recipe *recipe,
                      const struct trainer *trainer, const struct train_metrics *last) {
    bool adapter = recipe->method == TRAIN_LORA || recipe->method == TRAIN_DPO;
    char product[1024];
    snprintf(product, sizeof product, "%s/%s", flags->out, adapter ? "adapter.gguf" : "model.gguf");
    if (cli->json)
        return cli_print_json(
            cli, json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:o,s:o,s:o,s:f,s:I,s:o,s:o}", "out", flags->out, "product",
                           product, "method", train_method_name(recipe->method), "steps",
                           (json_int_t)trainer_at(trainer), "steps_planned", (json_int_t)trainer_steps(trainer),
                           "parameters", (json_int_t)trainer_parameters(trainer), "loss", number_or_null(last->loss),
                           "held_out_loss", number_or_null(last->held_out_loss), "held_out_accuracy",
                           recipe->method == TRAIN_DPO ? number_or_null(last->held_out_accuracy) : json_null(),
                           "train_tok_per_s", last->tokens_per_second, "peak_rss_bytes", (json_int_t)rss_peak_bytes(),
                           "data", data_json(trainer), "recipe", recipe_to_json(recipe)));
    printf("%s\n", product);
    if (cli->quiet) return 0;
    if (adapter)
        fprintf(
            stderr,
            cli_text(cli, "try it: shu run %s --adapter %s -p \"…\"\n", "试一试：shu run %s --adapter %s -p \"…\"\n"),
            flags->base, product);
    else
        fprintf(stderr, cli_text(cli, "try it: shu run %s%s -p \"…\"\n", "试一试：shu run %s%s -p \"…\"\n"), product,
                recipe->method == TRAIN_SCRATCH ? " --raw" : "");
    return 0;
}

static int report_plan(const struct cli *cli, const struct train_plan *plan, const struct recipe *recipe,
                       const struct trainer *trainer) {
    if (cli->json)
        return cli_print_json(
            cli, json_pack("{s:I,s:I,s:I,s:f,s:f,s:I,s:f,s:f,s:f,s:o}", "tokens", (json_int_t)plan->tokens, "steps",
                           (json_int_t)plan->steps, "parameters", (json_int_t)plan->parameters, "seconds",
                           plan->seconds, "train_tok_per_s", plan->tokens_per_second, "peak_rss_bytes",
                           (json_int_t)plan->peak_bytes, "kwh_estimated", plan->kwh_estimated, "money_estimated",
                           plan->money_estimated, "watts_assumed", recipe->watts, "data", data_json(trainer)));
    printf(
        cli_text(cli, "%lld steps, %lld tokens, %lld numbers learn\n", "%lld 步，%lld 个词元，%lld 个参数参与学习\n"),
        (long long)plan->steps, (long long)plan->tokens, (long long)plan->parameters);
    printf(cli_text(cli, "time    about %.0f min %02.0f s at %.1f tokens/s (measured)\n",
                    "时间    约 %.0f 分 %02.0f 秒，每秒 %.1f 个词元（实测）\n"),
           floor(plan->seconds / 60), fmod(plan->seconds, 60), plan->tokens_per_second);
    printf(cli_text(cli, "memory  %.2f GiB at most (measured)\n", "内存    至多 %.2f GiB（实测）\n"),
           (double)plan->peak_bytes / (1 << 30));
    printf(
        cli_text(cli, "energy  %.3f kWh (estimate: %.0f W assumed)\n", "电量    %.3f 千瓦时（估计：按 %.0f 瓦计）\n"),
        plan->kwh_estimated, recipe->watts);
    if (recipe->price_per_kwh > 0)
        printf(cli_text(cli, "cost    %.2f (estimate: %g per kWh)\n", "费用    %.2f（估计：每千瓦时 %g）\n"),
               plan->money_estimated, recipe->price_per_kwh);
    return 0;
}

/* --------------------------------------------------------------------- runs */

/* Ctrl-C: what is done is saved, and how to go on is said. */
static int interrupted(const struct train_flags *flags, struct trainer *trainer, struct shu_error *err) {
    int status = trainer_checkpoint(trainer, err);
    if (status) return status;
    return SHU_FAIL(
        err, SHU_E_CANCELLED,
        "interrupted after step %lld of %lld; the run is saved in %s, go on with the same command and --resume",
        (long long)trainer_at(trainer), (long long)trainer_steps(trainer), flags->out);
}

static int run_all(const struct cli *cli, const struct train_flags *flags, const struct recipe *recipe,
                   struct trainer *trainer, struct train_metrics *last, struct shu_error *err) {
    struct train_metrics metrics;
    int status = SHU_OK;
    for (bool done = trainer_done(trainer); !done && !status;) {
        status = trainer_step(trainer, &metrics, &done, err);
        if (status) break;
        double held_out = last->held_out_loss, accuracy = last->held_out_accuracy;
        *last = metrics;
        if (isnan(metrics.held_out_loss)) last->held_out_loss = held_out, last->held_out_accuracy = accuracy;
        say_evaluation(cli, &metrics, recipe->method == TRAIN_DPO);
        if (!done && interrupt_pending()) status = interrupted(flags, trainer, err);
    }
    return status ? status : trainer_finish(trainer, err);
}

static int train(const struct cli *cli, const struct train_flags *flags, const struct recipe *recipe) {
    const struct trainer_options options = {.base = flags->base,
                                            .config = flags->config,
                                            .tokenizer = flags->tokenizer,
                                            .data = flags->data,
                                            .out_dir = flags->out,
                                            .resume = flags->resume,
                                            .quiet = cli->quiet,
                                            .probe = flags->plan,
                                            .threads = (int)flags->threads};
    struct shu_error err = {0};
    struct trainer *trainer = NULL;
    struct train_plan plan;
    struct train_metrics last = {.loss = (double)NAN, .held_out_loss = (double)NAN};
    int status = trainer_open(recipe, &options, &trainer, &err), code = 1;
    if (!status) report_data(cli, flags, trainer);
    if (!status && flags->plan) status = trainer_plan(trainer, flags->probe_seconds, &plan, &err);
    if (!status && !flags->plan) status = run_all(cli, flags, recipe, trainer, &last, &err);
    if (status)
        code = cli_fail(cli, &err);
    else
        code = flags->plan ? report_plan(cli, &plan, recipe, trainer) : report_end(cli, flags, recipe, trainer, &last);
    trainer_close(trainer);
    return code;
}

/* ---------------------------------------------------------- the command line */

static int check_flags(const struct cli *cli, const struct train_flags *flags, const struct recipe *recipe) {
    bool scratch = recipe->method == TRAIN_SCRATCH;
    if (!flags->data || !flags->out)
        return cli_usage(cli, "expected: shu train --base MODEL --data FILE --method lora --out FOLDER");
    if (scratch && flags->base) return cli_usage(cli, "--method scratch has no base; it takes --tokenizer FILE");
    if (scratch && !flags->tokenizer)
        return cli_usage(cli, "--method scratch needs --tokenizer FILE (shu tokenizer train makes one)");
    if (!scratch && !flags->base)
        return cli_usage(cli, "--method %s needs --base MODEL", train_method_name(recipe->method));
    if (!scratch && flags->tokenizer) return cli_usage(cli, "--tokenizer is for --method scratch; a base has its own");
    return 0;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct train_flags flags = {.probe_seconds = 30};
    struct overrides overrides = {.value = {NULL}};
    const struct option fixed[] = {
        {"--base", OPT_TEXT, &flags.base, 0, 0},        {"--tokenizer", OPT_TEXT, &flags.tokenizer, 0, 0},
        {"--data", OPT_TEXT, &flags.data, 0, 0},        {"--out", OPT_TEXT, &flags.out, 0, 0},
        {"--config", OPT_TEXT, &flags.config, 0, 0},    {"--method", OPT_TEXT, &flags.method, 0, 0},
        {"--resume", OPT_FLAG, &flags.resume, 0, 0},    {"--plan", OPT_FLAG, &flags.plan, 0, 0},
        {"--threads", OPT_INT, &flags.threads, 1, 256}, {"--probe", OPT_FLOAT, &flags.probe_seconds, 0.01, 3600},
    };
    enum { FIXED = sizeof fixed / sizeof *fixed, ALL = FIXED + RECIPE_OPTIONS + RECIPE_SWITCHES };
    struct option options[ALL];
    memcpy(options, fixed, sizeof fixed);
    for (size_t i = 0; i < RECIPE_OPTIONS; i++)
        options[FIXED + i] = (struct option){recipe_options[i][0], OPT_TEXT, &overrides.value[i], 0, 0};
    for (size_t i = 0; i < RECIPE_SWITCHES; i++)
        options[FIXED + RECIPE_OPTIONS + i] = (struct option){recipe_switches[i][0], OPT_FLAG, &overrides.on[i], 0, 0};
    const char *none = NULL;
    int count = 0, code = options_parse(cli, options, ALL, argc, argv, &none, 0, &count);
    if (code) return code;
    struct recipe recipe;
    struct shu_error err = {0};
    if (make_recipe(&flags, &overrides, &recipe, &err)) return cli_fail(cli, &err);
    if ((code = check_flags(cli, &flags, &recipe)) != 0) return code;
    interrupt_install();
    return train(cli, &flags, &recipe);
}

const struct verb verb_train = {
    .name = "train",
    .summary_en = "a model learns from data: LoRA, full, from scratch, preferences",
    .summary_zh = "让模型从数据中学习：LoRA、全参数、从零训练、偏好",
    .help_en =
        "usage: shu train --base MODEL --data FILE --method lora|full|dpo --out FOLDER [options]\n"
        "       shu train --tokenizer FILE --data FILE --method scratch --out FOLDER [options]\n\n"
        "FILE holds JSON lines (messages, conversations, prompt and completion, text; for dpo prompt, chosen and\n"
        "rejected) or plain text. Lines that cannot be used are counted and listed with their reason. FOLDER receives\n"
        "checkpoints, metrics.jsonl, and at the end adapter.gguf and adapter/ (PEFT) or model.gguf, loss.svg and a\n"
        "model card. docs/train.md describes every key of a recipe.\n\n"
        "  --plan                  tokens, time, memory, energy and cost from a probe of --probe seconds (30)\n"
        "  --resume                go on after the last checkpoint; Ctrl-C and kill lose nothing before it\n"
        "  --config FILE           a recipe in YAML; options below are laid over it\n"
        "  --steps N --epochs E    length of the run\n"
        "  --batch N --context N   packs of a step, tokens of a pack; --micro-batch N of them at once\n"
        "  --lr R --schedule cosine|wsd|constant --warmup SHARE --weight-decay R\n"
        "  --rank N --alpha A --dropout P --targets all|[q,v] --rslora\n"
        "  --precision f32|bf16 --state-type f32|bf16 --recompute\n"
        "  --all-tokens            loss on prompts too;  --cut  long conversations are cut, not refused\n"
        "  --held-out SHARE --eval-every N --patience N --checkpoint-every N --seed N --threads N\n"
        "  --watts W --price P     assumed for the estimate of --plan\n\n"
        "example: shu train --base qwen2.5-coder-0.5b-instruct --data train.jsonl --method lora --out out/herbs\n",
    .help_zh =
        "用法：shu train --base 模型 --data 文件 --method lora|full|dpo --out 文件夹 [选项]\n"
        "      shu train --tokenizer 文件 --data 文件 --method scratch --out 文件夹 [选项]\n\n"
        "数据是 JSON 行（messages、conversations、prompt 加 completion、text；dpo 用 prompt、chosen、rejected）或\n"
        "纯文本。不能用的行会计数，并逐行写明原因。文件夹里会有检查点、metrics.jsonl，最后是 adapter.gguf 和\n"
        "adapter/（PEFT）或 model.gguf，以及 loss.svg 和模型卡。配方的每个键见 docs/train.md。\n\n"
        "  --plan                  先试跑 --probe 秒（30），给出词元数、时间、内存、电量和费用\n"
        "  --resume                从最后的检查点继续；Ctrl-C 或断电不会丢失检查点之前的内容\n"
        "  --config 文件           YAML 配方；下面的选项优先\n"
        "  --steps N --epochs E    训练多长\n"
        "  --batch N --context N   每步的包数、每包的词元数；--micro-batch N 为同时计算的包数\n"
        "  --lr R --schedule cosine|wsd|constant --warmup 份额 --weight-decay R\n"
        "  --rank N --alpha A --dropout P --targets all|[q,v] --rslora\n"
        "  --precision f32|bf16 --state-type f32|bf16 --recompute\n"
        "  --all-tokens            提问部分也计损失；--cut 过长的对话截断而不拒绝\n"
        "  --held-out 份额 --eval-every N --patience N --checkpoint-every N --seed N --threads N\n"
        "  --watts W --price P     --plan 估计电量和费用时的假设\n\n"
        "例：shu train --base qwen2.5-coder-0.5b-instruct --data train.jsonl --method lora --out out/herbs\n",
    .run = run,
};
