/* shu bench speed: how fast a model reads and writes here, and what bounds it. */
#include <stdlib.h>
#include <string.h>

#include "cli/bandwidth.h"
#include "cli/cli.h"

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

static int run(struct cli *cli, int argc, char **argv) {
    if (argc && strcmp(argv[0], "speed") == 0) return bench_speed(cli, argc - 1, argv + 1);
    return cli_usage(cli, "expected: shu bench speed -m MODEL, found \"%s\"", argc ? argv[0] : "");
}

const struct verb verb_bench = {
    .name = "bench",
    .summary_en = "measure speed, memory and the bound",
    .summary_zh = "测量速度、内存与上限",
    .help_en = "usage: shu bench speed -m MODEL [options]\n\n"
               "  --prefill N     tokens read at once (default 512)\n"
               "  --decode N      tokens written one by one (default 64)\n"
               "  --depth N       context before decoding (default 0)\n"
               "  --runs N        the median of N runs is reported (default 3)\n"
               "  --threads N --ctx N --kv f16|q8;  -v adds the time per operation\n\n"
               "The bound is memory speed (best of five reads of 1 GiB) over the bytes read per token.\n\n"
               "example: shu bench speed -m qwen2.5-coder-0.5b-instruct --threads 2 --json\n",
    .help_zh = "用法：shu bench speed -m 模型 [选项]\n\n"
               "  --prefill N     一次读入的词元数（默认 512）\n"
               "  --decode N      逐个写出的词元数（默认 64）\n"
               "  --depth N       写出之前的上下文长度（默认 0）\n"
               "  --runs N        报告 N 次的中位数（默认 3）\n"
               "  --threads N --ctx N --kv f16|q8；-v 另列每种运算的时间\n\n"
               "上限 = 内存速度（五次读取 1 GiB 的最好值）除以每个词元读取的字节数。\n\n"
               "例：shu bench speed -m qwen2.5-coder-0.5b-instruct --threads 2 --json\n",
    .run = run,
};
