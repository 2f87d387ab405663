#include "infer/logits.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));

enum { LANES = 4, STEP = 16, BLOCK = 256 };

static inline v4f load4(const float *x) {
    v4f value;
    memcpy(&value, x, sizeof value);
    return value;
}

static inline void store4(float *x, v4f value) {
    memcpy(x, &value, sizeof value);
}

static inline v4f splat4(float x) {
    return (v4f){x, x, x, x};
}

static inline v4f select4(v4i condition, v4f yes, v4f no) {
    return (v4f)((condition & (v4i)yes) | (~condition & (v4i)no));
}

static inline bool any4(v4i condition) {
    int64_t half[2];
    memcpy(half, &condition, sizeof half);
    return (half[0] | half[1]) != 0;
}

/* True if any of x[0…15] is above the bar. */
static inline bool any_above(const float *x, v4f bar) {
    return any4((load4(x) > bar) | (load4(x + 4) > bar) | (load4(x + 8) > bar) | (load4(x + 12) > bar));
}

/* Written out four times, not looped: at -O2 GCC would keep arrays of accumulators in memory. */
float logits_max(const float *x, int count) {
    v4f max0 = splat4(-INFINITY), max1 = max0, max2 = max0, max3 = max0;
    v4i nan = {0};
    int i = 0;
    for (; i + STEP <= count; i += STEP) {
        v4f a = load4(x + i), b = load4(x + i + 4), c = load4(x + i + 8), d = load4(x + i + 12);
        nan |= (a != a) | (b != b) | (c != c) | (d != d);
        max0 = select4(a > max0, a, max0);
        max1 = select4(b > max1, b, max1);
        max2 = select4(c > max2, c, max2);
        max3 = select4(d > max3, d, max3);
    }
    max0 = select4(max1 > max0, max1, max0);
    max2 = select4(max3 > max2, max3, max2);
    max0 = select4(max2 > max0, max2, max0);
    float best = -INFINITY;
    bool bad = any4(nan);
    for (int lane = 0; lane < LANES; lane++) best = max0[lane] > best ? max0[lane] : best;
    for (; i < count; i++) {
        best = x[i] > best ? x[i] : best;
        bad |= x[i] != x[i];
    }
    return bad ? NAN : best;
}

int logits_index_of(const float *x, int count, float value) {
    v4f wanted = splat4(value);
    int i = 0;
    for (; i + STEP <= count; i += STEP) {
        if (any4((load4(x + i) == wanted) | (load4(x + i + 4) == wanted) | (load4(x + i + 8) == wanted) |
                 (load4(x + i + 12) == wanted)))
            break;
    }
    for (; i < count; i++) {
        if (x[i] == value) return i;
    }
    return -1;
}

/* exp for x <= 0 after Cephes: x = n ln2 + r, polynomial of degree 6 on |r| <= ln2 / 2. Arguments
 * below -87, where 2^n would leave the normal range, give 0. */
static inline v4f exp4(v4f x) {
    const v4f lowest = splat4(-87.0f), magic = splat4(12582912.0f); /* 1.5 * 2^23: adding it rounds to integer */
    v4i keep = x > lowest;
    x = select4(keep, x, lowest);
    v4f shifted = x * splat4(1.44269504f) + magic;
    v4f n = shifted - magic;
    v4f r = x - n * splat4(0.693359375f) + n * splat4(2.12194440e-4f);
    v4f p = splat4(1.0f / 720);
    p = p * r + splat4(1.0f / 120);
    p = p * r + splat4(1.0f / 24);
    p = p * r + splat4(1.0f / 6);
    p = p * r + splat4(0.5f);
    p = p * r + splat4(1.0f);
    p = p * r + splat4(1.0f);
    v4i power = ((v4i)shifted - (v4i)magic + 127) << 23;
    return (v4f)((v4i)(p * (v4f)power) & keep);
}

/* x[0…15] to weights; returns their sums by lane. */
static inline v4f step_weights(const float *x, v4f max, v4f factor, float *weight) {
    v4f a = exp4((load4(x) - max) * factor), b = exp4((load4(x + 4) - max) * factor);
    v4f c = exp4((load4(x + 8) - max) * factor), d = exp4((load4(x + 12) - max) * factor);
    if (weight) {
        store4(weight, a);
        store4(weight + 4, b);
        store4(weight + 8, c);
        store4(weight + 12, d);
    }
    return (a + b) + (c + d);
}

static double sum4(v4f x) {
    return (double)x[0] + (double)x[1] + (double)x[2] + (double)x[3];
}

double logits_weights(const float *x, int count, float max, float factor, float *weight) {
    v4f max4 = splat4(max), factor4 = splat4(factor);
    double sum = 0;
    int whole = count / STEP * STEP;
    for (int base = 0; base < whole; base += BLOCK) {
        v4f block = {0};
        int end = base + BLOCK < whole ? base + BLOCK : whole;
        for (int i = base; i < end; i += STEP) block += step_weights(x + i, max4, factor4, weight ? weight + i : NULL);
        sum += sum4(block);
    }
    if (whole < count) {
        float padded[STEP], out[STEP];
        for (int i = 0; i < STEP; i++) padded[i] = whole + i < count ? x[whole + i] : -INFINITY;
        sum += sum4(step_weights(padded, max4, factor4, out));
        if (weight) memcpy(weight + whole, out, (size_t)(count - whole) * sizeof *out);
    }
    return sum;
}

double logits_log_sum(const float *x, int count) {
    float max = logits_max(x, count);
    if (!(fabsf(max) < INFINITY)) return max;
    return (double)max + log(logits_weights(x, count, max, 1.0f, NULL));
}

void logits_mask(const float *x, const uint64_t *mask, int count, float *out) {
    for (int base = 0; base < count; base += 64) {
        uint64_t word = mask[base / 64];
        int width = count - base < 64 ? count - base : 64;
        if (word == UINT64_MAX) {
            memcpy(out + base, x + base, (size_t)width * sizeof *out);
            continue;
        }
        for (int i = 0; i < width; i++) out[base + i] = -INFINITY;
        if (width < 64) word &= ((uint64_t)1 << width) - 1;
        for (; word; word &= word - 1) {
            int i = base + __builtin_ctzll(word);
            out[i] = x[i];
        }
    }
}

/* ------------------------------------------------------------------- top k */

static inline bool worse(const float *x, int32_t a, int32_t b) {
    return x[a] < x[b] || (x[a] == x[b] && a > b);
}

/* Restores the heap (root = worst) below `at`. */
static void sift_down(const float *x, int32_t *ids, int count, int at) {
    int32_t moving = ids[at];
    for (int child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && worse(x, ids[child + 1], ids[child])) child++;
        if (!worse(x, ids[child], moving)) break;
        ids[at] = ids[child];
    }
    ids[at] = moving;
}

/* Nearly all entries of a long row fall below the worst of the best: 16 at a time are
 * compared with it and skipped. */
int logits_top(const float *x, int vocab, int count, int32_t *ids) {
    int held = 0, i = 0;
    for (; i < vocab && held < count; i++) {
        if (x[i] > -INFINITY) ids[held++] = i;
    }
    for (int at = held / 2 - 1; at >= 0; at--) sift_down(x, ids, held, at);
    while (i < vocab && held > 0) {
        v4f bar = splat4(x[ids[0]]);
        while (i + STEP <= vocab && !any_above(x + i, bar)) i += STEP;
        for (int end = i + STEP < vocab ? i + STEP : vocab; i < end; i++) {
            if (!(x[i] > x[ids[0]])) continue; /* equal: the lower id is already held */
            ids[0] = i;
            sift_down(x, ids, held, 0);
        }
    }
    return held;
}

int logits_above(const float *x, int count, float floor, int32_t *ids) {
    int held = 0, i = 0;
    /* The largest float below the floor: above it means at least the floor. */
    v4f bar = splat4(nextafterf(floor, -INFINITY));
    while (i < count) {
        while (i + STEP <= count && !any_above(x + i, bar)) i += STEP;
        for (int end = i + STEP < count ? i + STEP : count; i < end; i++) {
            ids[held] = i;
            held += x[i] >= floor;
        }
    }
    return held;
}
