#include "tensor/quant_search.h"

#include <math.h>
#include <string.h>

/* Four lanes by the compilers' vector extension: SSE2 on every x86-64, NEON on ARM. Sums run over lanes,
 * which plain C loops may not be turned into without -ffast-math. */
typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));

static inline vec4 load4(const float *p) {
    vec4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vec4 splat4(float x) {
    return (vec4){x, x, x, x};
}

static inline float sum4(vec4 v) {
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static inline vec4 select4(int4 mask, vec4 yes, vec4 no) {
    return (vec4)((mask & (int4)yes) | (~mask & (int4)no));
}

/* Nearest whole number (ties to even) in [low, high]; NaN gives low, so that no later conversion overflows. */
static inline vec4 round4(vec4 t, vec4 low, vec4 high) {
    const vec4 magic = splat4(0x1.8p23f); /* pushes the fraction out of the significand */
    t = select4(t > low, t, low);
    t = select4(t < high, t, high);
    return (t + magic) - magic;
}

static float inverse(float scale) {
    return scale != 0 && isfinite(1.0f / scale) ? 1.0f / scale : 0.0f;
}

float quantize_with(const float *x, const float *w, int count, float scale, float min, int low, int high, float *q) {
    vec4 error = splat4(0), by = splat4(inverse(scale)), lo = splat4((float)low), hi = splat4((float)high);
    for (int i = 0; i < count; i += 4) {
        vec4 value = load4(x + i), r = round4((value - min) * by, lo, hi), off = value - (r * scale + min);
        error += load4(w + i) * off * off;
        memcpy(q + i, &r, sizeof r);
    }
    return sum4(error);
}

/* --------------------------------------------------------------- y = scale q */

/* Rounds on the grid 1 / by; returns by how much the error falls below sum w x^2 at the best scale. */
static float try_scale(const float *x, const float *w, int count, float by, float low, float high, float *scale) {
    vec4 xq = splat4(0), qq = splat4(0), lo = splat4(low), hi = splat4(high);
    for (int i = 0; i < count; i += 4) {
        vec4 value = load4(x + i), q = round4(value * by, lo, hi), wq = load4(w + i) * q;
        xq += wq * value;
        qq += wq * q;
    }
    float total = sum4(qq), cross = sum4(xq);
    if (!(total > 0)) return 0;
    *scale = cross / total;
    return cross * *scale;
}

float search_scale(const float *x, const float *w, int count, int low, int high) {
    float peak = 0, best = 0, best_gain = 0, scale = 0;
    for (int i = 0; i < count; i++) {
        if (!isfinite(x[i])) return NAN;
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    }
    if (peak == 0) return 0;
    /* Grids from 0.8 to 1.1 of the one that maps the peak to the end of the range: above 1 the peak is
     * clipped. Both signs, because the range may reach further on one side. */
    for (int side = 0; side < 2; side++) {
        float end = (float)(side ? high : low);
        for (int step = -8; step <= 7; step++) {
            float by = end * (1.0f + (float)step * (step < 0 ? 0.02f : 0.015f)) / peak;
            float gain = try_scale(x, w, count, by, (float)low, (float)high, &scale);
            if (gain > best_gain) best_gain = gain, best = scale;
        }
        if (low == -high) break; /* symmetric: the other side is the same grid mirrored */
    }
    for (int pass = 0; pass < 4; pass++) {
        float gain = try_scale(x, w, count, inverse(best), (float)low, (float)high, &scale);
        if (!(gain > best_gain)) break;
        best_gain = gain, best = scale;
    }
    return best;
}

/* --------------------------------------------------------- y = scale q + min */

/* Sums that do not depend on the grid. */
struct moments {
    double w, wx, wxx;
};

/* Rounds on the grid (x - from) * by; returns the error at the best scale and minimum for it. */
static double try_affine(const float *x, const float *w, int count, float from, float by, float high,
                         const struct moments *m, int only_negative, struct affine *out) {
    vec4 s1 = splat4(0), s2 = splat4(0), sx = splat4(0), lo = splat4(0), hi = splat4(high);
    for (int i = 0; i < count; i += 4) {
        vec4 value = load4(x + i), q = round4((value - from) * by, lo, hi), wq = load4(w + i) * q;
        s1 += wq;
        s2 += wq * q;
        sx += wq * value;
    }
    double q1 = (double)sum4(s1), q2 = (double)sum4(s2), xq = (double)sum4(sx);
    double det = m->w * q2 - q1 * q1, scale = 0, min = m->w > 0 ? m->wx / m->w : 0;
    if (det > 0) {
        scale = (m->w * xq - m->wx * q1) / det;
        min = (q2 * m->wx - q1 * xq) / det;
    }
    if (only_negative && min > 0) {
        min = 0;
        scale = q2 > 0 ? xq / q2 : 0;
    }
    *out = (struct affine){(float)scale, (float)min};
    return m->wxx - 2 * scale * xq - 2 * min * m->wx + scale * scale * q2 + 2 * scale * min * q1 + min * min * m->w;
}

struct affine search_affine(const float *x, const float *w, int count, int high, int only_negative) {
    struct moments m = {0, 0, 0};
    float bottom = x[0], top = x[0];
    for (int i = 0; i < count; i++) {
        m.w += (double)w[i];
        m.wx += (double)w[i] * (double)x[i];
        m.wxx += (double)w[i] * (double)x[i] * (double)x[i];
        bottom = x[i] < bottom ? x[i] : bottom;
        top = x[i] > top ? x[i] : top;
    }
    if (only_negative && bottom > 0) bottom = 0;
    if (!isfinite(m.wxx)) return (struct affine){NAN, NAN};
    if (!(top > bottom)) return (struct affine){0, bottom};
    struct affine best = {(top - bottom) / (float)high, bottom}, now;
    double least = INFINITY;
    for (int step = -10; step <= 10; step++) { /* grids a little wider and narrower than the extremes */
        float by = ((float)high + 0.1f * (float)step) / (top - bottom);
        double error = try_affine(x, w, count, bottom, by, (float)high, &m, only_negative, &now);
        if (error < least) least = error, best = now;
    }
    for (int pass = 0; pass < 5; pass++) {
        double error = try_affine(x, w, count, best.min, inverse(best.scale), (float)high, &m, only_negative, &now);
        if (!(error < least)) break;
        least = error, best = now;
    }
    return best;
}
