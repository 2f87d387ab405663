#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infer/infer.h"
#include "infer/logits.h"

enum {
    PENALTY_LAST_DEFAULT = 64,
    PENALTY_LAST_MAX = 65536,
    BUCKETS = 2048 /* of the radix descent below */
};

struct sampler {
    struct sampler_options options;
    struct rng rng;
    int vocab;
    bool penalise;
    float *work;   /* [V] logits after mask and penalties */
    float *weight; /* [V] unnormalised probabilities of the candidates */
    int32_t *list; /* [V] candidate ids; counters while penalties are applied */
    double mass[BUCKETS];
};

void sampler_defaults(struct sampler_options *options) {
    *options = (struct sampler_options){.temperature = 0.7f, .top_k = 40, .top_p = 0.9f, .repetition = 1.0f};
}

void sampler_greedy(struct sampler_options *options) {
    *options = (struct sampler_options){.top_p = 1.0f, .repetition = 1.0f};
}

static int options_check(const struct sampler_options *o, struct shu_error *err) {
    if (!(o->temperature >= 0 && o->temperature <= 100))
        return SHU_FAIL(err, SHU_E_USAGE, "temperature must be 0 to 100, found %g", (double)o->temperature);
    if (o->top_k < 0) return SHU_FAIL(err, SHU_E_USAGE, "top-k must be 0 (off) or more, found %d", o->top_k);
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return SHU_FAIL(err, SHU_E_USAGE, "top-p must be 0 to 1 (1 = off), found %g", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return SHU_FAIL(err, SHU_E_USAGE, "min-p must be 0 (off) to 1, found %g", (double)o->min_p);
    if (!(o->repetition > 0 && o->repetition <= 100))
        return SHU_FAIL(err, SHU_E_USAGE, "repetition penalty must be above 0 and at most 100 (1 = off), found %g",
                        (double)o->repetition);
    if (!(fabsf(o->presence) <= 100) || !(fabsf(o->frequency) <= 100))
        return SHU_FAIL(err, SHU_E_USAGE, "presence and frequency penalties must be -100 to 100, found %g and %g",
                        (double)o->presence, (double)o->frequency);
    if (o->penalty_last < 0 || o->penalty_last > PENALTY_LAST_MAX)
        return SHU_FAIL(err, SHU_E_USAGE, "penalties look back 0 (default) to %d tokens, found %d", PENALTY_LAST_MAX,
                        o->penalty_last);
    return SHU_OK;
}

int sampler_new(const struct sampler_options *options, int vocab, struct sampler **out, struct shu_error *err) {
    int status = options_check(options, err);
    if (status) return status;
    if (vocab < 1) return SHU_FAIL(err, SHU_E_USAGE, "a sampler needs a vocabulary, found %d entries", vocab);
    struct sampler *sampler = mem_calloc(1, sizeof *sampler);
    if (sampler) {
        sampler->options = *options;
        if (!sampler->options.penalty_last) sampler->options.penalty_last = PENALTY_LAST_DEFAULT;
        sampler->penalise = options->repetition != 1 || options->presence != 0 || options->frequency != 0;
        sampler->vocab = vocab;
        rng_seed(&sampler->rng, options->seed);
        sampler->work = mem_calloc((size_t)vocab, sizeof *sampler->work);
        sampler->weight = mem_calloc((size_t)vocab, sizeof *sampler->weight);
        sampler->list = mem_calloc((size_t)vocab, sizeof *sampler->list);
    }
    if (!sampler || !sampler->work || !sampler->weight || !sampler->list) {
        sampler_free(sampler);
        return SHU_FAIL(err, SHU_E_NOMEM, "no memory for a sampler over %d tokens", vocab);
    }
    *out = sampler;
    return SHU_OK;
}

void sampler_free(struct sampler *sampler) {
    if (!sampler) return;
    mem_free(sampler->work);
    mem_free(sampler->weight);
    mem_free(sampler->list);
    mem_free(sampler);
}

/* --------------------------------------------------------------- penalties */

static void penalise(struct sampler *sampler, const int32_t *history, size_t count) {
    const struct sampler_options *o = &sampler->options;
    if (count > (size_t)o->penalty_last) {
        history += count - (size_t)o->penalty_last;
        count = (size_t)o->penalty_last;
    }
    int32_t *seen = sampler->list;
    for (size_t i = 0; i < count; i++) {
        if (history[i] >= 0 && history[i] < sampler->vocab) seen[history[i]] = 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (history[i] >= 0 && history[i] < sampler->vocab) seen[history[i]]++;
    }
    for (size_t i = 0; i < count; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= sampler->vocab || seen[id] == 0) continue;
        float *x = &sampler->work[id];
        *x = *x > 0 ? *x / o->repetition : *x * o->repetition;
        *x -= o->presence + (float)seen[id] * o->frequency;
        seen[id] = 0; /* once per token, however often it occurs */
    }
}

/* ----------------------------------------------------------------- nucleus */

static inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Weights are in [0, 1], so their bit patterns order like their values. Three digits of the
 * pattern (13 + 11 + 8 bits) are fixed from the top, each time by summing the mass of the list per digit
 * and going down from the heaviest digit until the mass wanted is reached: no sorting, no extra
 * memory, linear whatever the distribution. */
struct cut {
    uint32_t bits; /* pattern of the lightest weight that stays; lighter ones go */
    double above;  /* mass of everything heavier */
    bool found;    /* false: the list does not reach the mass wanted */
};

static struct cut cut_find(struct sampler *sampler, const int32_t *list, int count, double wanted) {
    static const struct digit { int shift, bits; } digits[] = {{19, 11}, {8, 11}, {0, 8}};
    struct cut cut = {0, 0, true};
    for (size_t d = 0; d < sizeof digits / sizeof *digits && cut.found; d++) {
        int shift = digits[d].shift, above_shift = shift + digits[d].bits;
        uint32_t low = ((uint32_t)1 << digits[d].bits) - 1;
        memset(sampler->mass, 0, sizeof sampler->mass);
        for (int i = 0; i < count; i++) {
            uint32_t bits = float_bits(sampler->weight[list[i]]);
            if (bits >> above_shift == cut.bits >> above_shift)
                sampler->mass[(bits >> shift) & low] += (double)sampler->weight[list[i]];
        }
        int digit = (int)low;
        while (digit >= 0 && (sampler->mass[digit] == 0 || cut.above + sampler->mass[digit] < wanted))
            cut.above += sampler->mass[digit--];
        /* Below the first digit the mass is known to suffice but for rounding: then all of it stays. */
        cut.found = digit >= 0 || d > 0;
        cut.bits |= (uint32_t)(digit < 0 ? 0 : digit) << shift;
        if (digit < 0) break;
    }
    return cut;
}

/* Keeps the smallest set of heaviest candidates whose mass reaches `wanted`. Returns the new count. */
static int nucleus(struct sampler *sampler, int32_t *list, int count, double wanted) {
    struct cut cut = cut_find(sampler, list, count, wanted);
    if (!cut.found) return count;
    double mass = cut.above;
    bool crossed = false;
    int kept = 0;
    for (int i = 0; i < count; i++) {
        uint32_t bits = float_bits(sampler->weight[list[i]]);
        if (bits < cut.bits || (bits == cut.bits && crossed)) continue;
        if (bits == cut.bits) {
            mass += (double)sampler->weight[list[i]];
            crossed = mass >= wanted;
        }
        list[kept++] = list[i];
    }
    return kept;
}

/* ------------------------------------------------------------------- chain */

static int compare_ids(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Fills list (ascending ids) and weights with the candidates that top-k and a first, generous cut
 * leave. *total is the mass that top-p refers to. */
static int candidates(struct sampler *sampler, const float *x, float max, double *total) {
    const struct sampler_options *o = &sampler->options;
    float factor = 1.0f / (o->temperature < 1e-6f ? 1e-6f : o->temperature);
    int32_t *list = sampler->list;
    if (o->top_k > 0 && o->top_k < sampler->vocab) {
        int count = logits_top(x, sampler->vocab, o->top_k, list);
        qsort(list, (size_t)count, sizeof *list, compare_ids);
        *total = 0;
        for (int i = 0; i < count; i++) {
            float *weight = &sampler->weight[list[i]];
            logits_weights(&x[list[i]], 1, max, factor, weight);
            *total += (double)*weight;
        }
        return count;
    }
    *total = logits_weights(x, sampler->vocab, max, factor, sampler->weight);
    /* Peaked distributions, the usual case: a short list of heavy tokens already holds all that top-p keeps. */
    const float heavy = 1e-3f;
    if (o->top_p < 1) {
        int count = logits_above(sampler->weight, sampler->vocab, heavy, list);
        double mass = 0;
        for (int i = 0; i < count; i++) mass += (double)sampler->weight[list[i]];
        if (mass >= (double)o->top_p * *total) return count;
    }
    /* V tokens below (1 - p) * total / V together weigh less than top-p throws away: none of them can be in. */
    double lightest = (1.0 - (double)o->top_p) * *total / sampler->vocab / 2;
    if (lightest < (double)o->min_p) lightest = (double)o->min_p;
    float floor = (float)lightest;
    return logits_above(sampler->weight, sampler->vocab, floor > FLT_MIN ? floor : FLT_MIN, list);
}

static int32_t draw(struct sampler *sampler, const float *x, float max) {
    const struct sampler_options *o = &sampler->options;
    double total;
    int32_t *list = sampler->list;
    int count = candidates(sampler, x, max, &total);
    if (o->top_p < 1) count = nucleus(sampler, list, count, (double)o->top_p * total);
    double mass = 0;
    int kept = 0;
    for (int i = 0; i < count; i++) {
        if (sampler->weight[list[i]] < o->min_p) continue; /* the largest weight is exactly 1 */
        mass += (double)sampler->weight[list[i]];
        list[kept++] = list[i];
    }
    double aim = rng_uniform(&sampler->rng) * mass, sum = 0;
    for (int i = 0; i < kept; i++) {
        sum += (double)sampler->weight[list[i]];
        if (sum > aim) return list[i];
    }
    return list[kept - 1];
}

int sampler_draw(struct sampler *sampler, const float *logits, const uint64_t *mask, const int32_t *history,
                 size_t history_count, int32_t *out, float *logprob, struct shu_error *err) {
    const float *x = logits;
    size_t bytes = (size_t)sampler->vocab * sizeof *logits;
    if (mask || sampler->penalise) {
        if (mask)
            logits_mask(logits, mask, sampler->vocab, sampler->work);
        else
            memcpy(sampler->work, logits, bytes);
        if (sampler->penalise) penalise(sampler, history, history_count);
        x = sampler->work;
    }
    float max = logits_max(x, sampler->vocab);
    if (max != max || max == INFINITY)
        return SHU_FAIL(
            err, SHU_E_RANGE,
            "a logit is %s: the model's weights or the cache hold values that are no numbers; check the file",
            max != max ? "NaN" : "infinite");
    if (max == -INFINITY)
        return SHU_FAIL(err, SHU_E_NOTFOUND, "no token is allowed here: the grammar cannot go on with this vocabulary");
    *out = sampler->options.temperature == 0 ? logits_index_of(x, sampler->vocab, max) : draw(sampler, x, max);
    if (logprob) *logprob = (float)token_logprob(logits, sampler->vocab, *out);
    return SHU_OK;
}

double token_logprob(const float *logits, int vocab, int32_t token) {
    return (double)logits[token] - logits_log_sum(logits, vocab);
}

void top_logprobs(const float *logits, int vocab, int count, int32_t *ids, float *logprobs) {
    double log_sum = logits_log_sum(logits, vocab);
    int held = logits_top(logits, vocab, count, ids);
    for (int i = 1; i < held; i++) { /* insertion sort: count is small */
        int32_t id = ids[i];
        int at = i;
        for (; at > 0 && (logits[ids[at - 1]] < logits[id] || (logits[ids[at - 1]] == logits[id] && ids[at - 1] > id));
             at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
    for (int i = 0; i < count; i++) {
        if (i >= held) ids[i] = -1;
        logprobs[i] = i < held ? (float)((double)logits[ids[i]] - log_sum) : -INFINITY;
    }
}
