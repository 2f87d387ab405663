/* metrics.jsonl: one line a step. Every key but tokens_per_second, seconds and peak_bytes follows from the recipe and
 * the data alone, so that a resumed run writes the lines an undisturbed one would have written. */
#include "train/trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static int metrics_path(const char *folder, struct buf *out, struct shu_error *err) {
    int status = buf_printf(out, "%s/metrics.jsonl", folder);
    return status ? SHU_FAIL(err, status, "out of memory") : SHU_OK;
}

/* Calls `each` for every whole line that is a JSON object with a step; stops where it returns false. */
typedef bool metrics_visit(void *context, json_t *line, size_t end);
static int visit_lines(const char *path, metrics_visit *each, void *context, struct shu_error *err) {
    struct map map;
    int status = map_open(path, &map, err);
    if (status) return status;
    for (size_t at = 0; at < map.bytes;) {
        const char *start = (const char *)map.data + at, *end = memchr(start, '\n', map.bytes - at);
        json_t *line = NULL;
        if (!end) break;
        at += (size_t)(end - start) + 1;
        bool go_on = !json_parse(start, (size_t)(end - start), path, &line, NULL) &&
                     json_is_integer(json_object_get(line, "step")) && each(context, line, at);
        json_decref(line);
        if (!go_on) break;
    }
    map_close(&map);
    return SHU_OK;
}

/* ---------------------------------------------------------------- writing */

struct cut {
    int64_t step;
    size_t end;
};

static bool keep_line(void *context, json_t *line, size_t end) {
    struct cut *cut = context;
    if (json_integer_value(json_object_get(line, "step")) > cut->step) return false;
    cut->end = end;
    return true;
}

int metrics_open(struct trainer *trainer, struct shu_error *err) {
    struct buf path = {0};
    struct cut cut = {.step = trainer->state.step > 0 ? trainer->state.step : -1};
    int status = metrics_path(trainer->out_dir, &path, err);
    if (!status && file_exists(path.data)) status = visit_lines(path.data, keep_line, &cut, err);
    if (!status) {
        trainer->metrics_fd = open(path.data, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (trainer->metrics_fd < 0 || ftruncate(trainer->metrics_fd, (off_t)cut.end) != 0)
            status = SHU_FAIL(err, SHU_E_IO, "%s: cannot be written: %s", path.data, strerror(errno));
    }
    buf_free(&path);
    return status;
}

void metrics_close(struct trainer *trainer) {
    if (trainer->metrics_fd >= 0) close(trainer->metrics_fd);
    trainer->metrics_fd = -1;
}

int metrics_sync(struct trainer *trainer, struct shu_error *err) {
    if (trainer->metrics_fd < 0 || fsync(trainer->metrics_fd) == 0) return SHU_OK;
    return SHU_FAIL(err, SHU_E_IO, "%s/metrics.jsonl: cannot be written: %s", trainer->out_dir, strerror(errno));
}

static int put_line(struct trainer *trainer, const struct buf *line, struct shu_error *err) {
    ssize_t put = -1;
    errno = EIO;
    for (size_t at = 0; at < line->len; at += (size_t)put) {
        put = fault_fires(FAULT_WRITE) ? -1 : write(trainer->metrics_fd, line->data + at, line->len - at);
        if (put < 0 && errno == EINTR) put = 0;
        if (put < 0)
            return SHU_FAIL(err, SHU_E_IO, "%s/metrics.jsonl: cannot be written: %s; the last checkpoint is unharmed",
                            trainer->out_dir, strerror(errno));
    }
    return SHU_OK;
}

/* ,"key":value; null for what is no finite number. */
static int put_number(struct buf *line, const char *key, double value) {
    if (!isfinite(value)) return buf_printf(line, ",\"%s\":null", key);
    return buf_printf(line, ",\"%s\":%.9g", key, value);
}

static double bits_per_byte(const struct sums *sums) {
    return sums->bytes > 0 ? sums->nats / log(2) / sums->bytes : (double)NAN;
}

static int format_line(const struct trainer *trainer, const struct train_metrics *metrics, const struct sums *sums,
                       const struct sums *held_out, struct buf *line) {
    bool pairs = trainer->recipe.method == TRAIN_DPO;
    int status = buf_printf(line, "{\"step\":%lld", (long long)metrics->step);
    if (!status && sums) {
        status = put_number(line, "loss", metrics->loss);
        if (!status && pairs) status = put_number(line, "margin", metrics->margin);
        if (!status && pairs) status = put_number(line, "accuracy", metrics->accuracy);
        if (!status) status = put_number(line, "learning_rate", metrics->learning_rate);
        if (!status) status = put_number(line, "gradient_norm", metrics->gradient_norm);
        if (!status)
            status = buf_printf(line, ",\"tokens\":%lld,\"loss_tokens\":%lld", (long long)sums->rows,
                                (long long)sums->loss_rows);
        if (!status && metrics->skipped) status = buf_puts(line, ",\"skipped\":true");
    }
    if (!status && held_out->weight > 0) {
        status = put_number(line, "held_out_loss", held_out->loss);
        if (!status && pairs) status = put_number(line, "held_out_margin", held_out->margin);
        if (!status && pairs) status = put_number(line, "held_out_accuracy", held_out->accuracy);
        if (!status && !pairs) status = put_number(line, "held_out_bits_per_byte", bits_per_byte(held_out));
    }
    if (!status && sums)
        status = buf_printf(line, ",\"tokens_per_second\":%.5g,\"seconds\":%.4g,\"peak_bytes\":%llu",
                            metrics->tokens_per_second, metrics->seconds, (unsigned long long)metrics->peak_bytes);
    return status ? status : buf_puts(line, "}\n");
}

int metrics_write(struct trainer *trainer, const struct train_metrics *metrics, const struct sums *sums,
                  const struct sums *held_out, struct shu_error *err) {
    struct buf line = {0};
    if (trainer->metrics_fd < 0) return SHU_OK;
    int status = format_line(trainer, metrics, sums, held_out, &line);
    status = status ? SHU_FAIL(err, status, "out of memory") : put_line(trainer, &line, err);
    buf_free(&line);
    return status;
}

/* ---------------------------------------------------------------- reading */

struct points {
    struct metrics_point *list;
    int64_t count, cap;
    bool failed;
};

static double number(json_t *line, const char *key) {
    const json_t *value = json_object_get(line, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

static bool add_point(void *context, json_t *line, size_t end) {
    struct points *points = context;
    (void)end;
    if (points->count == points->cap) {
        points->cap = points->cap ? 2 * points->cap : 256;
        struct metrics_point *grown = mem_realloc(points->list, (size_t)points->cap * sizeof *grown);
        points->failed = !grown;
        if (!grown) return false;
        points->list = grown;
    }
    points->list[points->count++] = (struct metrics_point){.step = json_integer_value(json_object_get(line, "step")),
                                                           .loss = number(line, "loss"),
                                                           .held_out = number(line, "held_out_loss"),
                                                           .bits_per_byte = number(line, "held_out_bits_per_byte"),
                                                           .margin = number(line, "held_out_margin"),
                                                           .accuracy = number(line, "held_out_accuracy")};
    return true;
}

int metrics_read(const char *folder, struct metrics_point **out, int64_t *count, struct shu_error *err) {
    struct buf path = {0};
    struct points points = {0};
    int status = metrics_path(folder, &path, err);
    if (!status) status = visit_lines(path.data, add_point, &points, err);
    if (!status && points.failed) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the loss curve");
    if (status) {
        mem_free(points.list);
        points = (struct points){0};
    }
    buf_free(&path);
    *out = points.list;
    *count = points.count;
    return status;
}
