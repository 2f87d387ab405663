/* shu doctor: what this machine offers, and what is missing. */
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cli/bandwidth.h"
#include "cli/cli.h"

struct doctor {
    const struct cli *cli;
    json_t *checks; /* [{check, state, found, hint}] */
    int failed;
};

/* state: "ok", "warn" or "fail". found is printf-style. */
static void note(struct doctor *doctor, const char *state, const char *check, const char *hint, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static void note(struct doctor *doctor, const char *state, const char *check, const char *hint, const char *format,
                 ...) {
    char found[400];
    va_list args;
    va_start(args, format);
    vsnprintf(found, sizeof found, format, args);
    va_end(args);
    doctor->failed += strcmp(state, "fail") == 0;
    json_array_append_new(doctor->checks,
                          json_pack("{s:s,s:s,s:s,s:s}", "check", check, "state", state, "found", found, "hint", hint));
    if (doctor->cli->json) return;
    printf("%-5s %-10s %s\n", state, check, found);
    if (*hint && strcmp(state, "ok") != 0) printf("      %-10s -> %s\n", "", hint);
}

static void check_processor(struct doctor *doctor) {
    const struct cli *cli = doctor->cli;
    const struct kernels *kernels = NULL;
    struct shu_error err = {0};
    if (kernels_select(NULL, &kernels, &err)) {
        note(doctor, "fail", "processor",
             cli_text(cli, "unset SHU_ISA or name a set this machine has", "去掉 SHU_ISA，或写本机有的指令集"), "%s",
             err.message);
        return;
    }
    bool slow = strcmp(kernels->isa, "scalar") == 0;
    note(
        doctor, slow ? "warn" : "ok", "processor",
        cli_text(cli, "a processor with AVX2 or AVX-512 is many times faster", "有 AVX2 或 AVX-512 的处理器会快很多倍"),
        cli_text(cli, "%d usable cores, %s kernels", "%d 个可用核心，%s 内核"), cpu_usable(), kernels->isa);
}

/* Weight bytes that the default model (0.5B, Q4_K_M) reads for one token: what `bench speed` reports. */
#define DEFAULT_MODEL_READ_BYTES 392e6

static void check_memory(struct doctor *doctor) {
    const struct cli *cli = doctor->cli;
    double gib = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / (1 << 30);
    double gb_per_s = 0;
    struct shu_error err = {0};
    if (bandwidth_measure(0, &gb_per_s, &err))
        note(doctor, "warn", "memory", err.message, "%.1f GiB", gib);
    else
        note(doctor, gib < 2 ? "warn" : "ok", "memory",
             cli_text(cli, "the default model wants 1 GiB free", "默认模型需要 1 GiB 空闲内存"),
             cli_text(cli, "%.1f GiB, read at %.1f GB/s (the 0.5B model decodes at most %.0f tokens/s)",
                      "%.1f GiB，读取速度 %.1f GB/s（0.5B 模型每秒最多写 %.0f 个词元）"),
             gib, gb_per_s, gb_per_s * 1e9 / DEFAULT_MODEL_READ_BYTES);
}

static void check_store(struct doctor *doctor) {
    const struct cli *cli = doctor->cli;
    struct buf path = {0};
    struct shu_error err = {0};
    struct statvfs disk;
    json_t *models = NULL, *item;
    size_t i;
    int here = 0;
    int status = path_cache("models", &path, &err);
    if (!status) status = dir_make(path.data, &err);
    if (!status && access(path.data, W_OK) != 0)
        status = SHU_FAIL(&err, SHU_E_IO, "expected to write to %s, but may not", path.data);
    if (status)
        note(doctor, "fail", "cache",
             cli_text(cli, "set XDG_CACHE_HOME to a folder you can write to", "把 XDG_CACHE_HOME 设为可写的文件夹"),
             "%s", err.message);
    else if (statvfs(path.data, &disk) == 0) {
        double free_gib = (double)disk.f_bavail * (double)disk.f_frsize / (1 << 30);
        note(doctor, free_gib < 2 ? "warn" : "ok", "cache",
             cli_text(cli, "pulling a model needs twice its size", "下载模型需要两倍于它的空间"),
             cli_text(cli, "%s, %.1f GiB free", "%s，剩余 %.1f GiB"), path.data, free_gib);
    }
    if (store_list(&models, &err))
        note(doctor, "fail", "models", cli_text(cli, "mend or remove the file", "请修复或删除该文件"), "%s",
             err.message);
    else {
        json_array_foreach(models, i, item) here += json_is_true(json_object_get(item, "pulled"));
        note(doctor, here ? "ok" : "warn", "models", "shu model pull qwen2.5-coder-0.5b-instruct",
             cli_text(cli, "%d of %zu named models here", "%2$zu 个有名字的模型中已下载 %1$d 个"), here,
             json_array_size(models));
    }
    json_decref(models);
    buf_free(&path);
}

static void check_pip(struct doctor *doctor) {
    const struct cli *cli = doctor->cli;
    const char *const argv[] = {"python3", "-m", "pip", "--version", NULL};
    struct child_options options = {.timeout_ms = 20000};
    struct buf text = {0};
    struct shu_error err = {0};
    if (child_run(argv, &options, &text, &err))
        note(doctor, "warn", "pip",
             cli_text(cli, "apt-get install python3-pip; only `model pull` of wheel parts needs it",
                      "apt-get install python3-pip；只有下载 wheel 分片的 `model pull` 需要它"),
             "%s", err.message);
    else
        note(doctor, "ok", "pip", "", "%.*s", (int)strcspn(text.data ? text.data : "", "\n"),
             text.data ? text.data : "");
    buf_free(&text);
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *none = NULL;
    int count = 0;
    int code = options_parse(cli, NULL, 0, argc, argv, &none, 0, &count);
    if (code) return code;
    struct doctor doctor = {.cli = cli, .checks = json_array()};
    check_processor(&doctor);
    check_memory(&doctor);
    check_store(&doctor);
    check_pip(&doctor);
    if (cli->json)
        cli_print_json(
            cli, json_pack("{s:b,s:s,s:O}", "ok", doctor.failed == 0, "version", SHU_VERSION, "checks", doctor.checks));
    json_decref(doctor.checks);
    return doctor.failed ? 1 : 0;
}

const struct verb verb_doctor = {
    .name = "doctor",
    .summary_en = "check this machine",
    .summary_zh = "检查这台机器",
    .help_en =
        "usage: shu doctor [--json]\n\n"
        "Processor and kernels, memory and its speed, disk, models, pip. Exit code 1 if something must be mended.\n\n"
        "example: shu doctor\n",
    .help_zh = "用法：shu doctor [--json]\n\n"
               "检查处理器与内核、内存及其速度、磁盘、模型、pip。有必须修复之处时退出码为 1。\n\n"
               "例：shu doctor\n",
    .run = run,
};
