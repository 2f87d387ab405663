/* The loss as a picture: an SVG of axes, grid, the training loss (thin: as it was; thick: smoothed) and the
 * held-out loss with a dot per evaluation. */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 760, HEIGHT = 420, LEFT = 64, RIGHT = 20, TOP = 48, BOTTOM = 52, POINTS_MAX = 700 };

struct axis {
    double low, high, step; /* of the ticks */
};

struct frame {
    struct axis x, y;
    struct buf *out;
};

/* 1, 2 or 5 times a power of ten, so that about `count` ticks fit. */
static double tick_step(double span, int count) {
    double raw = span / count, power = pow(10, floor(log10(raw))), lead = raw / power;
    return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

static struct axis axis_of(double low, double high, int ticks) {
    if (!(high > low)) high = low + (fabs(low) > 0 ? fabs(low) * 0.1 : 1);
    double step = tick_step(high - low, ticks);
    return (struct axis){floor(low / step) * step, ceil(high / step) * step, step};
}

static double place_x(const struct frame *frame, double step) {
    return LEFT + (step - frame->x.low) / (frame->x.high - frame->x.low) * (WIDTH - LEFT - RIGHT);
}

static double place_y(const struct frame *frame, double loss) {
    return HEIGHT - BOTTOM - (loss - frame->y.low) / (frame->y.high - frame->y.low) * (HEIGHT - TOP - BOTTOM);
}

/* --------------------------------------------------------------------- data */

/* Moving average that forgets over about a hundredth of the run. */
struct smooth {
    double mean, keep;
    int64_t seen;
};

static double smooth_next(struct smooth *smooth, double value) {
    double share = 1 / (double)++smooth->seen;
    if (share < 1 - smooth->keep) share = 1 - smooth->keep;
    return smooth->mean += share * (value - smooth->mean);
}

static struct smooth smooth_of(int64_t count) {
    double window = (double)count / 100;
    return (struct smooth){.keep = 1 - 1 / (window > 1 ? window : 1)};
}

/* The range of what must be seen: the smoothed and the held-out losses; single outliers may leave the picture. */
static void find_range(const struct metrics_point *points, int64_t count, double *low, double *high) {
    struct smooth smooth = smooth_of(count);
    *low = (double)INFINITY;
    *high = (double)-INFINITY;
    for (int64_t i = 0; i < count; i++) {
        double values[2] = {isfinite(points[i].loss) ? smooth_next(&smooth, points[i].loss) : (double)NAN,
                            points[i].held_out};
        for (int k = 0; k < 2; k++) {
            if (!isfinite(values[k])) continue;
            if (values[k] < *low) *low = values[k];
            if (values[k] > *high) *high = values[k];
        }
    }
    if (*low > *high) *low = 0, *high = 1;
}

/* ------------------------------------------------------------------ drawing */

static int draw_grid(const struct frame *frame) {
    struct buf *out = frame->out;
    int status = SHU_OK;
    for (double y = frame->y.low; y <= frame->y.high + frame->y.step / 1e6 && !status; y += frame->y.step) {
        double at = place_y(frame, y);
        status = buf_printf(out,
                            "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" class=\"grid\"/>"
                            "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                            LEFT, at, WIDTH - RIGHT, at, LEFT - 8, at + 4, fabs(y) < frame->y.step / 1e6 ? 0 : y);
    }
    for (double x = frame->x.low; x <= frame->x.high + frame->x.step / 1e6 && !status; x += frame->x.step) {
        double at = place_x(frame, x);
        status = buf_printf(out,
                            "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"tick\"/>"
                            "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.10g</text>\n",
                            at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 5, at, HEIGHT - BOTTOM + 20, x);
    }
    if (status) return status;
    return buf_printf(out,
                      "<path d=\"M%d %d V%d H%d\" class=\"axis\"/>\n"
                      "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">step</text>\n"
                      "<text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\">loss</text>\n",
                      LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12,
                      (TOP + HEIGHT - BOTTOM) / 2);
}

/* Many points become few: the mean of each bucket. */
static int draw_training(const struct frame *frame, const struct metrics_point *points, int64_t count, bool smoothed) {
    struct smooth smooth = smooth_of(count);
    int64_t bucket = (count + POINTS_MAX - 1) / POINTS_MAX, held = 0;
    double x = 0, y = 0;
    bool first = true;
    int status = buf_printf(frame->out, "<polyline class=\"%s\" points=\"", smoothed ? "train" : "raw");
    for (int64_t i = 0; i < count && !status; i++) {
        if (isfinite(points[i].loss)) {
            x += (double)points[i].step;
            y += smoothed ? smooth_next(&smooth, points[i].loss) : points[i].loss;
            held++;
        }
        if (held == 0 || (held < bucket && i + 1 < count)) continue;
        status = buf_printf(frame->out, "%s%.1f,%.1f", first ? "" : " ", place_x(frame, x / (double)held),
                            place_y(frame, y / (double)held));
        first = false;
        x = y = 0;
        held = 0;
    }
    return status ? status : buf_puts(frame->out, "\"/>\n");
}

static int draw_held_out(const struct frame *frame, const struct metrics_point *points, int64_t count, bool *any) {
    int status = buf_puts(frame->out, "<polyline class=\"held\" points=\"");
    *any = false;
    for (int64_t i = 0; i < count && !status; i++) {
        if (!isfinite(points[i].held_out)) continue;
        status = buf_printf(frame->out, "%s%.1f,%.1f", *any ? " " : "", place_x(frame, (double)points[i].step),
                            place_y(frame, points[i].held_out));
        *any = true;
    }
    if (!status) status = buf_puts(frame->out, "\"/>\n");
    for (int64_t i = 0; i < count && !status; i++)
        if (isfinite(points[i].held_out))
            status = buf_printf(frame->out, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>\n",
                                place_x(frame, (double)points[i].step), place_y(frame, points[i].held_out));
    return status;
}

static int draw_legend(const struct frame *frame, bool held_out) {
    int x = WIDTH - RIGHT - (held_out ? 190 : 90);
    int status = buf_printf(
        frame->out, "<path d=\"M%d 26 h24\" class=\"train\"/><text x=\"%d\" y=\"30\">training</text>\n", x, x + 30);
    if (status || !held_out) return status;
    return buf_printf(frame->out,
                      "<path d=\"M%d 26 h24\" class=\"held\"/><circle class=\"dot\" cx=\"%d\" cy=\"26\" r=\"3\"/>"
                      "<text x=\"%d\" y=\"30\">held out</text>\n",
                      x + 102, x + 114, x + 132);
}

static int escape(struct buf *out, const char *text) {
    int status = SHU_OK;
    for (; *text && !status; text++)
        status = *text == '<'                  ? buf_puts(out, "&lt;")
                 : *text == '&'                ? buf_puts(out, "&amp;")
                 : (unsigned char)*text < 0x20 ? buf_putc(out, ' ')
                                               : buf_putc(out, *text);
    return status;
}

static int draw_head(struct buf *out, const char *title) {
    int status =
        buf_printf(out,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
                   "font-family=\"Helvetica, Arial, 'Noto Sans CJK SC', sans-serif\" font-size=\"12\" fill=\"#444\">\n"
                   "<style>.grid{stroke:#e6e6e6}.tick,.axis{stroke:#888;fill:none}"
                   ".raw{stroke:#3a6ea5;stroke-opacity:.28;fill:none}"
                   ".train{stroke:#3a6ea5;stroke-width:2;fill:none;stroke-linejoin:round}"
                   ".held{stroke:#c8553d;stroke-width:2;fill:none;stroke-linejoin:round}"
                   ".dot{fill:#c8553d;stroke:#fff}</style>\n"
                   "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n"
                   "<clipPath id=\"plot\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath>\n"
                   "<text x=\"%d\" y=\"30\" font-size=\"15\" fill=\"#222\">",
                   WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT, LEFT, TOP - 4, WIDTH - LEFT - RIGHT + 4,
                   HEIGHT - TOP - BOTTOM + 8, LEFT);
    if (!status) status = escape(out, title);
    return status ? status : buf_puts(out, "</text>\n");
}

int curve_svg(const struct metrics_point *points, int64_t count, const char *title, struct buf *out) {
    double low, high;
    bool held_out = false;
    find_range(points, count, &low, &high);
    double first = count ? (double)points[0].step : 0, last = count ? (double)points[count - 1].step : 1;
    struct frame frame = {.x = axis_of(first > 1 ? first : 0, last, 8), .y = axis_of(low, high, 6), .out = out};
    frame.x.high = last > frame.x.low ? last : frame.x.low + 1; /* the curve ends at the edge */
    int status = draw_head(out, title);
    if (!status) status = draw_grid(&frame);
    if (!status) status = buf_puts(out, "<g clip-path=\"url(#plot)\">\n");
    if (!status) status = draw_training(&frame, points, count, false);
    if (!status) status = draw_training(&frame, points, count, true);
    if (!status) status = draw_held_out(&frame, points, count, &held_out);
    if (!status) status = buf_puts(out, "</g>\n");
    if (!status) status = draw_legend(&frame, held_out);
    return status ? status : buf_puts(out, "</svg>\n");
}
