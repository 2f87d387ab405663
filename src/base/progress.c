/* Progress of long work on stderr. */
#include "base/base.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TERMINAL_PERIOD_NS 100000000u
#define PLAIN_PERIOD_NS    10000000000u
#define BAR_MAX            40

static void format_amount(char *out, size_t size, double amount, const char *unit) {
    static const char *const scales[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    if (strcmp(unit, "B") != 0) {
        snprintf(out, size, "%.0f %s", amount, unit);
        return;
    }
    int scale = 0;
    while (amount >= 1024 && scale < 4) amount /= 1024, scale++;
    snprintf(out, size, scale ? "%.1f %s" : "%.0f %s", amount, scales[scale]);
}

static void format_rate(char *out, size_t size, double per_second, const char *unit) {
    if (strcmp(unit, "B") == 0 || per_second >= 100) {
        format_amount(out, size, per_second, unit);
    } else {
        snprintf(out, size, "%.1f %s", per_second, unit);
    }
}

static void format_duration(char *out, size_t size, double seconds) {
    uint64_t s = seconds < 0 ? 0 : seconds > 359999 ? 359999 : (uint64_t)(seconds + 0.5);
    if (s >= 3600) {
        snprintf(out, size, "%u:%02u:%02u", (unsigned)(s / 3600), (unsigned)(s / 60 % 60), (unsigned)(s % 60));
    } else {
        snprintf(out, size, "%u:%02u", (unsigned)(s / 60), (unsigned)(s % 60));
    }
}

/* "45%  123.4 MiB of 300.0 MiB  12.3 MiB/s  ETA 0:14" */
static void format_numbers(const struct progress *p, bool last, char *out, size_t size) {
    double seconds = (double)(clock_ns() - p->start_ns) * 1e-9;
    double rate = seconds > 0 ? (double)p->done / seconds : 0;
    char done[48], total[48] = "", per_second[48], percent[16] = "", time_left[32] = "";
    format_amount(done, sizeof done, (double)p->done, p->unit);
    format_rate(per_second, sizeof per_second, rate, p->unit);
    if (p->total > 0) {
        char amount[40], duration[16];
        double share = (double)p->done / (double)p->total;
        snprintf(percent, sizeof percent, "%3.0f%%  ", 100 * (share > 1 ? 1 : share));
        format_amount(amount, sizeof amount, (double)p->total, p->unit);
        snprintf(total, sizeof total, " of %s", amount);
        if (!last && rate > 0 && p->done <= p->total) {
            format_duration(duration, sizeof duration, (double)(p->total - p->done) / rate);
            snprintf(time_left, sizeof time_left, "  ETA %s", duration);
        }
    }
    if (last) {
        char duration[16];
        format_duration(duration, sizeof duration, seconds);
        snprintf(time_left, sizeof time_left, "  in %s", duration);
    }
    snprintf(out, size, "%s%s%s  %s/s%s", percent, done, total, per_second, time_left);
}

/* The bar takes what the line leaves free; none where the total is unknown or the terminal narrow. */
static void format_bar(const struct progress *p, size_t taken, char *out, size_t size) {
    struct winsize window;
    size_t columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col ? window.ws_col : 80;
    size_t width = columns > taken + 6 ? columns - taken - 6 : 0;
    if (width > BAR_MAX) width = BAR_MAX;
    out[0] = '\0';
    if (p->total == 0 || width < 8 || width + 5 > size) return;
    double share = (double)p->done / (double)p->total;
    size_t full = (size_t)((share > 1 ? 1 : share) * (double)width);
    memset(out, ' ', width + 4);
    out[0] = '[';
    memset(out + 1, '#', full);
    memset(out + 1 + full, '.', width - full);
    out[width + 1] = ']';
    out[width + 4] = '\0';
}

static void draw(struct progress *p, bool last) {
    char numbers[256], bar[BAR_MAX + 8];
    format_numbers(p, last, numbers, sizeof numbers);
    if (p->terminal) {
        format_bar(p, strlen(p->label) + strlen(numbers) + 2, bar, sizeof bar);
        fprintf(stderr, "\r%s  %s%s\033[K%s", p->label, bar, numbers, last ? "\n" : "");
    } else {
        fprintf(stderr, "%s: %s\n", p->label, numbers);
    }
    fflush(stderr);
}

void progress_start(struct progress *p, const char *label, const char *unit, uint64_t total, bool quiet) {
    *p = (struct progress){.label = label, .unit = unit, .total = total, .quiet = quiet};
    p->terminal = isatty(STDERR_FILENO) == 1;
    p->start_ns = p->drawn_ns = clock_ns();
}

void progress_update(struct progress *p, uint64_t done) {
    p->done = done;
    if (p->quiet) return;
    uint64_t now = clock_ns();
    if (now - p->drawn_ns < (p->terminal ? TERMINAL_PERIOD_NS : PLAIN_PERIOD_NS)) return;
    p->drawn_ns = now;
    draw(p, false);
}

void progress_finish(struct progress *p) {
    /* Work that was over before the first line stays silent in logs. */
    bool shown = p->terminal || p->drawn_ns != p->start_ns;
    if (!p->quiet && shown) draw(p, true);
    p->quiet = true; /* a second finish draws nothing */
}
