/* Grammars: decimal numbers within bounds, as automata over digits. */
#include "infer/grammar.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    FRACTION_DIGITS = 9,    /* of numbers with bounds */
    FREE_DIGITS = 15,       /* of numbers without: before and behind the point */
    LISTED_MULTIPLES = 1000 /* multiples that are written out one by one */
};
#define INTEGER_LIMIT INT64_C(999999999999999999)

/* ------------------------------------------------------------------- digits */

static const struct expr *digit(struct builder *b, char low, char high) {
    struct range range = {(uint32_t)low, (uint32_t)high};
    return expr_class(b, &range, 1, false, false);
}

static const struct expr *digits(struct builder *b, int64_t min, int64_t max) {
    return max == 0 ? expr_simple(b, EXPR_EMPTY) : expr_repeat(b, digit(b, '0', '9'), min, max);
}

/* Digit strings of the length of low and high, between them. */
static const struct expr *same_length(struct builder *b, const char *low, const char *high) {
    size_t n = strlen(low);
    if (n == 0) return expr_simple(b, EXPR_EMPTY);
    if (strspn(low, "0") == n && strspn(high, "9") == n) return digits(b, (int64_t)n, (int64_t)n);
    if (low[0] == high[0]) return expr_pair(b, EXPR_SEQ, digit(b, low[0], low[0]), same_length(b, low + 1, high + 1));
    static const char zeros[] = "0000000000000000000", nines[] = "9999999999999999999";
    const char *none = zeros + sizeof zeros - n, *all = nines + sizeof nines - n; /* n - 1 digits each */
    struct expr_items items = {0};
    if (expr_push(b, &items, expr_pair(b, EXPR_SEQ, digit(b, low[0], low[0]), same_length(b, low + 1, all))))
        return NULL;
    if (low[0] + 1 < high[0]) {
        const struct expr *middle = digit(b, (char)(low[0] + 1), (char)(high[0] - 1));
        if (expr_push(b, &items, expr_pair(b, EXPR_SEQ, middle, digits(b, (int64_t)n - 1, (int64_t)n - 1))))
            return NULL;
    }
    if (expr_push(b, &items, expr_pair(b, EXPR_SEQ, digit(b, high[0], high[0]), same_length(b, none, high + 1))))
        return NULL;
    return expr_list(b, EXPR_ALT, items.items, items.count);
}

/* Integers low…high without sign or leading zeros, 0 <= low; nothing if low > high. */
static const struct expr *natural(struct builder *b, int64_t low, int64_t high) {
    struct expr_items items = {0};
    int64_t first = 0, last = 9;
    while (first <= high) {
        int64_t from = low > first ? low : first, to = high < last ? high : last;
        char a[24], z[24];
        snprintf(a, sizeof a, "%" PRId64, from);
        snprintf(z, sizeof z, "%" PRId64, to);
        if (from <= to && expr_push(b, &items, same_length(b, a, z))) return NULL;
        if (last >= INTEGER_LIMIT) break;
        first = last + 1;
        last = last * 10 + 9;
    }
    return expr_list(b, EXPR_ALT, items.items, items.count);
}

/* ----------------------------------------------------------------- integers */

/* Integers low…high in steps of `step`, which is a power of ten: the number of tens, then its zeros. */
static const struct expr *stepped(struct builder *b, int64_t low, int64_t high, int64_t step) {
    if (step == 1) return natural(b, low, high);
    struct expr_items items = {0};
    char zeros[24];
    snprintf(zeros, sizeof zeros, "%" PRId64, step);
    int64_t from = low / step + (low % step != 0), to = high / step;
    if (low <= 0 && expr_push(b, &items, expr_text(b, "0"))) return NULL;
    if (from < 1) from = 1;
    if (from <= to && expr_push(b, &items, expr_pair(b, EXPR_SEQ, natural(b, from, to), expr_text(b, zeros + 1))))
        return NULL;
    return expr_list(b, EXPR_ALT, items.items, items.count);
}

static const struct expr *listed(struct builder *b, int64_t low, int64_t high, int64_t step) {
    struct expr_items items = {0};
    int64_t first = low >= 0 ? (low + step - 1) / step * step : -(-low / step * step);
    for (int64_t v = first; v <= high; v += step) {
        char text[24];
        snprintf(text, sizeof text, "%" PRId64, v);
        if (expr_push(b, &items, expr_text(b, text))) return NULL;
    }
    return expr_list(b, EXPR_ALT, items.items, items.count);
}

/* The tightest integers within the bounds and our 18 digits. */
static void integer_bounds(const struct bounds *bounds, int64_t *low, int64_t *high) {
    *low = -INTEGER_LIMIT;
    *high = INTEGER_LIMIT;
    if (bounds->has_low && bounds->low > -1e18) {
        double up = ceil(bounds->low);
        *low = up >= 1e18 ? INTEGER_LIMIT + 1 : (int64_t)up + (bounds->open_low && up == bounds->low);
    }
    if (bounds->has_high && bounds->high < 1e18) {
        double down = floor(bounds->high);
        *high = down <= -1e18 ? -INTEGER_LIMIT - 1 : (int64_t)down - (bounds->open_high && down == bounds->high);
    }
}

static bool power_of_ten(int64_t value) {
    while (value % 10 == 0) value /= 10;
    return value == 1;
}

int number_integer(struct builder *b, const struct bounds *bounds, int64_t multiple, const char *where,
                   const struct expr **out) {
    int64_t low, high;
    integer_bounds(bounds, &low, &high);
    struct expr_items items = {0};
    int status = 0;
    if (low > high) {
        *out = expr_simple(b, EXPR_NEVER);
        return *out ? 0 : SHU_E_NOMEM;
    }
    if (!power_of_ten(multiple)) {
        if ((high - low) / multiple > LISTED_MULTIPLES)
            return SHU_FAIL(b->err, SHU_E_UNSUPPORTED,
                            "schema, %s/multipleOf: %" PRId64
                            " is supported only with bounds that leave at most %d values",
                            where, multiple, LISTED_MULTIPLES);
        *out = listed(b, low, high, multiple);
        return *out ? 0 : SHU_E_NOMEM;
    }
    if (high >= 0) status = expr_push(b, &items, stepped(b, low > 0 ? low : 0, high, multiple));
    if (!status && low < 0) {
        const struct expr *magnitude = stepped(b, high < 0 ? -high : multiple, -low, multiple);
        status = expr_push(b, &items, expr_pair(b, EXPR_SEQ, expr_text(b, "-"), magnitude));
    }
    if (!status) *out = expr_list(b, EXPR_ALT, items.items, items.count);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}

/* ------------------------------------------------------------------ numbers */

/* A bound as a decimal: integer part and the digits behind the point, without trailing zeros. */
struct decimal {
    int64_t whole;
    char fraction[32];
};

/* The shortest decimal that reads back as `value` (>= 0). False if it has more digits than we write. */
static bool to_decimal(double value, struct decimal *out) {
    char text[64];
    for (int places = 0; places <= FRACTION_DIGITS; places++) {
        snprintf(text, sizeof text, "%.*f", places, value);
        if (strtod(text, NULL) != value) continue;
        char *point = strchr(text, '.');
        out->whole = strtoll(text, NULL, 10);
        snprintf(out->fraction, sizeof out->fraction, "%.*s", FRACTION_DIGITS, point ? point + 1 : "");
        for (size_t n = strlen(out->fraction); n > 0 && out->fraction[n - 1] == '0';) out->fraction[--n] = 0;
        return true;
    }
    return false;
}

static const struct expr *point_then(struct builder *b, const struct expr *fraction) {
    return expr_pair(b, EXPR_SEQ, expr_text(b, "."), fraction);
}

static const struct expr *optional_fraction(struct builder *b) {
    return expr_repeat(b, point_then(b, digits(b, 1, FRACTION_DIGITS)), 0, 1);
}

/* Digits behind the point that make at least (open: more than) `low`; may be none at all where that is enough. */
static int fraction_above(struct builder *b, const char *low, bool open, struct expr_items *out) {
    int64_t n = (int64_t)strlen(low);
    int status = 0;
    for (int64_t i = 0; !status && i < n; i++) { /* equal up to i, larger there */
        if (low[i] == '9') continue;
        const struct expr *head =
            expr_pair(b, EXPR_SEQ, expr_bytes(b, low, (size_t)i), digit(b, (char)(low[i] + 1), '9'));
        status = expr_push(b, out, point_then(b, expr_pair(b, EXPR_SEQ, head, digits(b, 0, FRACTION_DIGITS - i - 1))));
    }
    if (status) return status;
    if (!open) {
        if (n == 0) return expr_push(b, out, optional_fraction(b));
        return expr_push(
            b, out,
            point_then(b, expr_pair(b, EXPR_SEQ, expr_bytes(b, low, (size_t)n), digits(b, 0, FRACTION_DIGITS - n))));
    }
    for (int64_t zeros = 0; !status && n + zeros < FRACTION_DIGITS; zeros++) { /* equal, then zeros, then something */
        const struct expr *head =
            expr_pair(b, EXPR_SEQ, expr_bytes(b, low, (size_t)n), expr_bytes(b, "000000000", (size_t)zeros));
        const struct expr *tail =
            expr_pair(b, EXPR_SEQ, digit(b, '1', '9'), digits(b, 0, FRACTION_DIGITS - n - zeros - 1));
        status = expr_push(b, out, point_then(b, expr_pair(b, EXPR_SEQ, head, tail)));
    }
    return status;
}

/* Digits behind the point that make at most (open: less than) `high`. */
static int fraction_below(struct builder *b, const char *high, bool open, struct expr_items *out) {
    int64_t n = (int64_t)strlen(high);
    int status = n > 0 || !open ? expr_push(b, out, expr_simple(b, EXPR_EMPTY)) : 0;
    for (int64_t i = 0; !status && i < n; i++) {
        if (i > 0) status = expr_push(b, out, point_then(b, expr_bytes(b, high, (size_t)i))); /* a proper beginning */
        if (status || high[i] == '0') continue;
        const struct expr *head =
            expr_pair(b, EXPR_SEQ, expr_bytes(b, high, (size_t)i), digit(b, '0', (char)(high[i] - 1)));
        status = expr_push(b, out, point_then(b, expr_pair(b, EXPR_SEQ, head, digits(b, 0, FRACTION_DIGITS - i - 1))));
    }
    if (status || open) return status;
    const struct expr *zeros = expr_repeat(b, digit(b, '0', '0'), n == 0, FRACTION_DIGITS - n);
    if (n == FRACTION_DIGITS) zeros = expr_simple(b, EXPR_EMPTY);
    return expr_push(b, out, point_then(b, expr_pair(b, EXPR_SEQ, expr_bytes(b, high, (size_t)n), zeros)));
}

/* Fractions between two, as an intersection of the two lists above. */
static int fraction_between(struct builder *b, const char *low, bool open_low, const char *high, bool open_high,
                            const struct expr **out) {
    struct expr_items above = {0}, below = {0};
    int status = fraction_above(b, low, open_low, &above);
    if (!status) status = fraction_below(b, high, open_high, &below);
    if (status) return status;
    const struct expr *both[2] = {expr_list(b, EXPR_ALT, above.items, above.count),
                                  expr_list(b, EXPR_ALT, below.items, below.count)};
    return both[0] && both[1] ? expr_intersect(b, both, 2, out) : SHU_E_NOMEM;
}

static int push_whole(struct builder *b, struct expr_items *out, int64_t low, int64_t high,
                      const struct expr *fraction) {
    if (low > high) return 0;
    return expr_push(b, out, expr_pair(b, EXPR_SEQ, natural(b, low, high), fraction));
}

/* Magnitudes from low to high; NULL high = no limit. */
static int magnitudes(struct builder *b, const struct decimal *low, bool open_low, const struct decimal *high,
                      bool open_high, struct expr_items *out) {
    struct expr_items edge = {0};
    const struct expr *fraction = NULL;
    /* Beyond a million, decimals next to an open bound may round onto it: the next whole number is the bound then. */
    struct decimal above = {.whole = low->whole + 1}, under = {.whole = high ? high->whole - 1 : 0};
    if (open_low && low->whole > 1000000) {
        low = &above;
        open_low = false;
    }
    if (high && open_high && high->whole > 1000000) {
        high = &under;
        open_high = false;
    }
    int64_t last = high ? high->whole : INT64_C(999999999999999);
    if (high && high->whole < low->whole) return 0;
    if (high && high->whole == low->whole) {
        int status = fraction_between(b, low->fraction, open_low, high->fraction, open_high, &fraction);
        return status ? status : push_whole(b, out, low->whole, low->whole, fraction);
    }
    int status = fraction_above(b, low->fraction, open_low, &edge);
    if (!status) status = push_whole(b, out, low->whole, low->whole, expr_list(b, EXPR_ALT, edge.items, edge.count));
    if (!status) status = push_whole(b, out, low->whole + 1, high ? last - 1 : last, optional_fraction(b));
    if (status || !high) return status;
    edge = (struct expr_items){0};
    status = fraction_below(b, high->fraction, open_high, &edge);
    return status ? status : push_whole(b, out, last, last, expr_list(b, EXPR_ALT, edge.items, edge.count));
}

/* -?(0|[1-9][0-9]*)(.[0-9]+)?([eE][+-]?[0-9]{1,2})? */
static const struct expr *free_number(struct builder *b) {
    static const struct range letters[] = {{'E', 'E'}, {'e', 'e'}}, signs[] = {{'+', '+'}, {'-', '-'}};
    struct expr_items items = {0};
    const struct expr *exponent =
        expr_pair(b, EXPR_SEQ, expr_repeat(b, expr_class(b, signs, 2, false, false), 0, 1), digits(b, 1, 2));
    exponent = expr_pair(b, EXPR_SEQ, expr_class(b, letters, 2, false, false), exponent);
    if (expr_push(b, &items, expr_repeat(b, expr_text(b, "-"), 0, 1))) return NULL;
    if (expr_push(b, &items, natural(b, 0, INT64_C(999999999999999)))) return NULL;
    if (expr_push(b, &items, expr_repeat(b, point_then(b, digits(b, 1, FREE_DIGITS)), 0, 1))) return NULL;
    if (expr_push(b, &items, expr_repeat(b, exponent, 0, 1))) return NULL;
    return expr_list(b, EXPR_SEQ, items.items, items.count);
}

/* A bound of the range (low: its lower end) as a decimal that we can write, moved inwards if need be. Up to 10^6, nine
 * decimals are coarser than doubles, so that comparing digits is comparing numbers; beyond, whole numbers are. */
static bool inward(double value, bool low, bool *open, struct decimal *out) {
    char text[64];
    if (fabs(value) <= 1e6 && to_decimal(fabs(value), out)) return true;
    double scale = fabs(value) <= 1e6 ? 1e9 : 1, moved = low ? ceil(value * scale) : floor(value * scale);
    snprintf(text, sizeof text, "%.9f", moved / scale);
    if (low ? strtod(text, NULL) < value : strtod(text, NULL) > value) moved += low ? 1 : -1;
    if (scale > 1 || moved != value) *open = false;
    return to_decimal(fabs(moved / scale), out);
}

int number_real(struct builder *b, const struct bounds *bounds, const char *where, const struct expr **out) {
    static const struct decimal zero = {0};
    struct decimal low = {0}, high = {0};
    struct expr_items positive = {0}, negative = {0}, all = {0};
    struct bounds within = *bounds, *bd = &within;
    bd->has_low = bd->has_low && bd->low > -1e15; /* we write at most 15 digits before the point */
    bd->has_high = bd->has_high && bd->high < 1e15;
    if (!bd->has_low && !bd->has_high) {
        *out = free_number(b);
        return *out ? 0 : SHU_E_NOMEM;
    }
    bool known = (!bd->has_low || (bd->low < 1e15 && inward(bd->low, true, &bd->open_low, &low))) &&
                 (!bd->has_high || (bd->high > -1e15 && inward(bd->high, false, &bd->open_high, &high)));
    if (!known)
        return SHU_FAIL(b->err, SHU_E_UNSUPPORTED, "schema, %s: bounds of 10^15 and beyond are not supported", where);
    int status = 0;
    bool low_negative = !bd->has_low || bd->low < 0, high_positive = !bd->has_high || bd->high >= 0;
    if (!status && high_positive) {
        bool from_zero = !bd->has_low || bd->low < 0;
        status = magnitudes(b, from_zero ? &zero : &low, !from_zero && bd->open_low, bd->has_high ? &high : NULL,
                            bd->open_high, &positive);
    }
    if (!status && low_negative) { /* above zero in magnitude: -0 is written as 0 */
        bool to_zero = !bd->has_high || bd->high >= 0;
        status = magnitudes(b, to_zero ? &zero : &high, to_zero || bd->open_high, bd->has_low ? &low : NULL,
                            bd->open_low, &negative);
    }
    if (!status && positive.count) status = expr_push(b, &all, expr_list(b, EXPR_ALT, positive.items, positive.count));
    if (!status && negative.count)
        status = expr_push(
            b, &all, expr_pair(b, EXPR_SEQ, expr_text(b, "-"), expr_list(b, EXPR_ALT, negative.items, negative.count)));
    if (!status) *out = expr_list(b, EXPR_ALT, all.items, all.count);
    return status ? status : *out ? 0 : SHU_E_NOMEM;
}
