/* shu bench: how fast a model reads, writes and learns here, and what bounds it. */
#include <stdlib.h>
#include <string.h>

#include "cli/bandwidth.h"
#include "cli/cli.h"
#include "train/train.h"

enum { MAX_RUNS = 99 };

struct speed {
    int64_t prefill, decode, depth, runs;
    double prefill_rate[MAX_RUNS], decode_rate[MAX_RUNS]; /* tokens per second */
    double load_s, read_gb_per_s, bound;
    uint64_t rss_bytes, read_bytes;
};

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return count ? values[count / 2] : 0;
}

/* Feeds `count` arbitrary tokens in the largest steps there are; logits for the last row only. */
static int feed(struct engine *engine, int sequence, int64_t count, struct rng *rng, struct shu_error *err) {
    int32_t tokens[1024];
    const int most = engine_max_rows(engine) < 1024 ? engine_max_rows(engine) : 1024;
    int vocab = engine_config(engine)->vocab;
    while (count) {
        int n = count < most ? (int)count : most;
        for (int i = 0; i < n; i++) tokens[i] = (int32_t)(rng_next(rng) % (uint64_t)vocab);
        count -= n;
        const struct step_item item = {sequence, tokens, n, count == 0};
        int status = engine_step(engine, &item, 1, err);
        if (status) return status;
        if (interrupt_pending()) return SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was measured");
    }
    return SHU_OK;
}

static int time_prefill(struct engine *engine, struct speed *speed, int run, struct rng *rng, struct shu_error *err) {
    int sequence = -1;
    int status = sequence_new(engine, &sequence, err);
    if (status) return status;
    uint64_t start_ns = clock_ns();
    status = feed(engine, sequence, speed->prefill, rng, err);
    speed->prefill_rate[run] = (double)speed->prefill / ((double)(clock_ns() - start_ns) * 1e-9);
    sequence_free(engine, sequence);
    return status;
}

/* The context before the timed part (depth tokens) is fed once and cut back to for each run. */
static int time_decode(struct engine *engine, struct speed *speed, int sequence, int run, struct rng *rng,
                       struct shu_error *err) {
    int vocab = engine_config(engine)->vocab;
    uint64_t start_ns = clock_ns();
    for (int64_t i = 0; i < speed->decode; i++) {
        int32_t token = (int32_t)(rng_next(rng) % (uint64_t)vocab);
        const struct step_item item = {sequence, &token, 1, 1};
        int status = engine_step(engine, &item, 1, err);
        if (status) return status;
        if (interrupt_pending()) return SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; nothing was measured");
    }
    speed->decode_rate[run] = (double)speed->decode / ((double)(clock_ns() - start_ns) * 1e-9);
    return sequence_truncate(engine, sequence, (int)speed->depth, err);
}

static int measure(struct engine *engine, struct speed *speed, struct shu_error *err) {
    struct rng rng;
    int sequence = -1;
    rng_seed(&rng, 1);
    int status = SHU_OK;
    for (int run = 0; speed->prefill && run < speed->runs && !status; run++)
        status = time_prefill(engine, speed, run, &rng, err);
    if (!status) status = sequence_new(engine, &sequence, err);
    if (!status) status = feed(engine, sequence, speed->depth, &rng, err);
    for (int run = 0; speed->decode && run < speed->runs && !status; run++)
        status = time_decode(engine, speed, sequence, run, &rng, err);
    if (sequence >= 0) sequence_free(engine, sequence);
    struct engine_stats stats;
    engine_stats(engine, &stats);
    speed->load_s = (double)stats.load_ns * 1e-9;
    speed->read_bytes = stats.read_bytes_per_token;
    speed->rss_bytes = rss_peak_bytes();
    return status;
}

static int report(const struct cli *cli, const struct engine *engine, struct speed *speed) {
    double prefill = median(speed->prefill_rate, speed->prefill ? speed->runs : 0);
    double decode = median(speed->decode_rate, speed->decode ? speed->runs : 0);
    if (cli->json)
        return cli_print_json(cli, json_pack("{s:f,s:f,s:f,s:I,s:f,s:f,s:I,s:i,s:I,s:I,s:I,s:I}", "prefill_tok_per_s",
                                             prefill, "decode_tok_per_s", decode, "load_s", speed->load_s, "rss_bytes",
                                             (json_int_t)speed->rss_bytes, "read_gb_per_s", speed->read_gb_per_s,
                                             "bound_tok_per_s", speed->bound, "read_bytes_per_token",
                                             (json_int_t)speed->read_bytes, "threads", engine_threads(engine),
                                             "prefill", (json_int_t)speed->prefill, "decode", (json_int_t)speed->decode,
                                             "depth", (json_int_t)speed->depth, "runs", (json_int_t)speed->runs));
    printf(cli_text(cli, "prefill %lld tokens       %9.1f tok/s\n", "读入 %lld 个词元        每秒 %9.1f 个\n"),
           (long long)speed->prefill, prefill);
    printf(cli_text(cli, "decode %lld after %lld    %9.1f tok/s  (%.0f%% of the bound)\n",
                    "写出 %lld 个（之前 %lld 个） 每秒 %9.1f 个（上限的 %.0f%%）\n"),
           (long long)speed->decode, (long long)speed->depth, decode,
           speed->bound > 0 ? 100 * decode / speed->bound : 0);
    printf(cli_text(cli, "memory read              %9.1f GB/s   bound %.1f tok/s at %.0f MB per token\n",
                    "内存读取 %9.1f GB/s，上限每秒 %.1f 个词元（每个读 %.0f MB）\n"),
           speed->read_gb_per_s, speed->bound, (double)speed->read_bytes * 1e-6);
    printf(cli_text(cli, "load %.2f s, peak memory %.0f MiB, %d threads, median of %lld\n",
                    "加载 %.2f 秒，内存峰值 %.0f MiB，%d 个线程，%lld 次的中位数\n"),
           speed->load_s, (double)speed->rss_bytes / (1 << 20), engine_threads(engine), (long long)speed->runs);
    return 0;
}

static void print_profile(struct engine *engine) {
    uint64_t ns[OP_KINDS], total = 0;
    engine_profile_read(engine, ns);
    for (int op = 0; op < OP_KINDS; op++) total += ns[op];
    for (int op = 0; op < OP_KINDS; op++)
        if (ns[op])
            fprintf(stderr, "  %-12s %9.1f ms %5.1f%%\n", graph_op_name((enum graph_op_kind)op), (double)ns[op] * 1e-6,
                    100.0 * (double)ns[op] / (double)total);
}

static int bench_speed(struct cli *cli, int argc, char **argv) {
    struct engine_flags flags = ENGINE_FLAGS_DEFAULT;
    struct speed speed = {.prefill = 512, .decode = 64, .runs = 3};
    const char *model = NULL, *none = NULL;
    const struct option options[] = {{"-m", OPT_TEXT, &model, 0, 0},
                                     {"--prefill", OPT_INT, &speed.prefill, 0, 1 << 20},
                                     {"--decode", OPT_INT, &speed.decode, 0, 1 << 20},
                                     {"--depth", OPT_INT, &speed.depth, 0, 1 << 20},
                                     {"--runs", OPT_INT, &speed.runs, 1, MAX_RUNS},
                                     ENGINE_OPTIONS(flags)};
    int count = 0;
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &none, 0, &count);
    if (code) return code;
    if (!model) return cli_usage(cli, "expected a model: shu bench speed -m MODEL");
    struct shu_error err = {0};
    struct engine *engine = NULL;
    int64_t positions = speed.depth + speed.decode > speed.prefill ? speed.depth + speed.decode : speed.prefill;
    if (!flags.context) flags.context = positions < 8 ? 8 : positions;
    interrupt_install();
    int status = cli_engine_open(model, &flags,
                                 &(struct engine_options){.kv_positions = 2 * flags.context + 128, .max_sequences = 2},
                                 &engine, &err);
    if (!status) engine_profile(engine, cli->verbose);
    if (!status) status = measure(engine, &speed, &err);
    if (!status) status = bandwidth_measure(engine_threads(engine), &speed.read_gb_per_s, &err);
    if (!status) speed.bound = speed.read_gb_per_s * 1e9 / (double)speed.read_bytes;
    code = status ? cli_fail(cli, &err) : report(cli, engine, &speed);
    if (!status && cli->verbose) print_profile(engine);
    engine_close(engine);
    return code;
}

/* -------------------------------------------------------------------- training */

static int report_training(const struct cli *cli, const struct train_bench *result) {
    if (cli->json)
        return cli_print_json(cli, json_pack("{s:f,s:I,s:f}", "train_tok_per_s", result->tokens_per_second,
                                             "peak_rss_bytes", (json_int_t)result->peak_bytes, "loss", result->loss));
    printf(cli_text(cli, "training %9.1f tok/s, peak memory %.2f GiB, loss %.3f\n",
                    "训练：每秒 %.1f 个词元，内存峰值 %.2f GiB，损失 %.3f\n"),
           result->tokens_per_second, (double)result->peak_bytes / (1 << 30), result->loss);
    return 0;
}

static int bench_train(struct cli *cli, int argc, char **argv) {
    struct train_bench_options bench = {.loss_share = 1};
    const char *method = "lora", *precision = "bf16", *state = "bf16", *none = NULL;
    int64_t batch = 4, context = 256, steps = 3, threads = 0, rank = 16;
    bool recompute = false;
    const struct option options[] = {{"-m", OPT_TEXT, &bench.model, 0, 0},
                                     {"--method", OPT_TEXT, &method, 0, 0},
                                     {"--batch", OPT_INT, &batch, 1, 1024},
                                     {"--context", OPT_INT, &context, 2, 1 << 17},
                                     {"--steps", OPT_INT, &steps, 1, TRAIN_BENCH_STEPS},
                                     {"--rank", OPT_INT, &rank, 1, 1024},
                                     {"--loss-share", OPT_FLOAT, &bench.loss_share, 0, 1},
                                     {"--precision", OPT_TEXT, &precision, 0, 0},
                                     {"--state", OPT_TEXT, &state, 0, 0},
                                     {"--recompute", OPT_FLAG, &recompute, 0, 0},
                                     {"--threads", OPT_INT, &threads, 1, 256}};
    struct shu_error err = {0};
    struct train_bench result;
    enum train_method kind;
    int count = 0;
    int code = options_parse(cli, options, sizeof options / sizeof *options, argc, argv, &none, 0, &count);
    if (code) return code;
    if (!bench.model) return cli_usage(cli, "expected a model: shu bench train -m MODEL");
    if (!train_method_find(method, &kind))
        return cli_usage(cli, "--method: expected lora or full, found \"%s\"", method);
    recipe_defaults(kind, &bench.recipe);
    bench.recipe.batch = (int)batch;
    bench.recipe.context = (int)context;
    bench.recipe.rank = (int)rank;
    bench.recipe.recompute = recompute;
    bench.steps = (int)steps;
    bench.threads = (int)threads;
    interrupt_install();
    int status = recipe_set(&bench.recipe, "precision", precision, "--precision", &err);
    if (!status && kind == TRAIN_FULL) status = recipe_set(&bench.recipe, "state_type", state, "--state", &err);
    if (!status) status = train_bench(&bench, &result, &err);
    return status ? cli_fail(cli, &err) : report_training(cli, &result);
}

static int run(struct cli *cli, int argc, char **argv) {
    if (argc && strcmp(argv[0], "speed") == 0) return bench_speed(cli, argc - 1, argv + 1);
    if (argc && strcmp(argv[0], "train") == 0) return bench_train(cli, argc - 1, argv + 1);
    return cli_usage(cli, "expected: shu bench speed|train -m MODEL, found \"%s\"", argc ? argv[0] : "");
}

const struct verb verb_bench = {
    .name = "bench",
    .summary_en = "measure the speed of reading, writing and learning, and the bound",
    .summary_zh = "测量读写与训练的速度、内存与上限",
    .help_en = "usage: shu bench speed -m MODEL [options]\n"
               "       shu bench train -m MODEL [options]\n\n"
               "speed:\n"
               "  --prefill N     tokens read at once (default 512)\n"
               "  --decode N      tokens written one by one (default 64)\n"
               "  --depth N       context before decoding (default 0)\n"
               "  --runs N        the median of N runs is reported (default 3)\n"
               "  --adapter A[:WEIGHT] --threads N --ctx N --kv f16|q8;  -v adds the time per operation\n\n"
               "The bound is memory speed (best of five reads of 1 GiB) over the bytes read per token.\n\n"
               "train: steps on random tokens, optimiser included\n"
               "  --method lora|full --batch N --context N (default 4 x 256) --steps N --rank N\n"
               "  --loss-share X  share of each sequence with a loss (default 1)\n"
               "  --precision bf16|f32 --state bf16|f32 --recompute --threads N\n\n"
               "example: shu bench speed -m qwen2.5-coder-0.5b-instruct --threads 2 --json\n",
    .help_zh = "用法：shu bench speed -m 模型 [选项]\n"
               "      shu bench train -m 模型 [选项]\n\n"
               "speed：\n"
               "  --prefill N     一次读入的词元数（默认 512）\n"
               "  --decode N      逐个写出的词元数（默认 64）\n"
               "  --depth N       写出之前的上下文长度（默认 0）\n"
               "  --runs N        报告 N 次的中位数（默认 3）\n"
               "  --adapter A[:权重] --threads N --ctx N --kv f16|q8；-v 另列每种运算的时间\n\n"
               "上限 = 内存速度（五次读取 1 GiB 的最好值）除以每个词元读取的字节数。\n\n"
               "train：随机词元上的训练步，含优化器\n"
               "  --method lora|full --batch N --context N（默认 4 x 256）--steps N --rank N\n"
               "  --loss-share X  每个序列中计入损失的比例（默认 1）\n"
               "  --precision bf16|f32 --state bf16|f32 --recompute --threads N\n\n"
               "例：shu bench speed -m qwen2.5-coder-0.5b-instruct --threads 2 --json\n",
    .run = run,
};
