/* Products of quantised weights with ACT8 rows for AVX2.
 *
 * A vector holds four consecutive columns of eight rows (packed.h). vpmaddubsw multiplies it, as unsigned bytes, with a
 * broadcast of the four activations; the int16 pair sums are added up over a block and widened once by vpmaddwd. This
 * is exact for 4, 5 and 6 bits because the sum is only read modulo 2^16 at the end: the ACT8 block holds the
 * correction for the weights' offset (-8, -16, -32 times the sum of q), it is added first, and the corrected sum
 * of a block fits: 16 products of |w| <= 16 or 8 of |w| <= 32 with |q| <= 127 stay below 32513. What comes between
 * may wrap. Q8_0 has no such room: its signs move to the activations and each pair sum (<= 2 * 128 * 127) is widened.
 *
 * Each type has a decoder, which turns 32 columns of a panel into `struct decoded`, and a kind, which says how decoded
 * weights meet activations. A few tokens meet the weights of one panel as they leave the decoder, in registers. More go
 * in tiles of 4 by 2 panels, a decoded block of either waiting in L1: a broadcast then serves two panels and a weight
 * four tokens, and loads no longer bound the loop.
 *
 * Fixed order: acc = fma(sum of 32 columns, d * scale, acc), ascending; then the minimum likewise. One token or many
 * run the same operations on the same operands. */
#include "tensor/matmul_avx2.h"

#include <immintrin.h>
#include <string.h>

#include "tensor/packed.h"

/* Compilers may reorder integer sums; gcc does, keeps every product waiting and spills them all. This pins a running
 * sum to a register after each step. */
#define PIN(vector) __asm__("" : "+x"(vector))

/* How 32 decoded columns meet activations. */
enum kind {
    KIND_FIX8,     /* weight = scale * (w - 8) */
    KIND_FIX16,    /* weight = scale * (w - 16) */
    KIND_MIN4,     /* weight = scale * w + min, w < 16 */
    KIND_MIN5,     /* the same, w < 32: 16 products need two int16 sums */
    KIND_HALVES32, /* weight = scale * half[column / 16] * (w - 32) */
    KIND_HALVES4,  /* weight = scale * half[column / 16] * (w - 4) */
    KIND_HALVES,   /* weight = scale * half[column / 16] * w + min * half_min[column / 16] */
    KIND_SIGNED    /* weight = scale * (int8)w */
};

/* 32 columns of eight rows. */
struct decoded {
    __m256i w[8];     /* four columns each, bytes */
    __m256 scale;     /* f32 per row */
    __m256 min;       /* MIN4, MIN5, HALVES */
    __m256i half[2];  /* HALVES*: integer scale per row, int16 twice */
    __m256i half_min; /* HALVES: integer minima of both halves, int16 side by side */
};

/* What a super-block shares, unpacked once for its eight sub-blocks. */
struct shared {
    __m256 scale[8], min[8]; /* Q4_K, Q5_K; Q2_K: [0] only */
    __m256i half[4];         /* signed bytes: integer scales of four groups of 16 in each lane */
    __m256i half_min[4];
};

INLINE __m256i load(const uint8_t *at) {
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

INLINE __m256 load_halves(const uint8_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

INLINE __m256i broadcast4(const void *at) {
    int32_t word;
    memcpy(&word, at, sizeof word);
    return _mm256_set1_epi32(word);
}

INLINE __m256 negated(__m256 value) {
    return _mm256_xor_ps(value, _mm256_set1_ps(-0.0f));
}

/* Bit `from` and what follows moves to bit `to` of every byte; `mask` keeps the bits that are wanted. */
INLINE __m256i bits(__m256i value, int from, int to, int mask) {
    if (from > to) value = _mm256_srl_epi16(value, _mm_cvtsi32_si128(from - to));
    if (from < to) value = _mm256_sll_epi16(value, _mm_cvtsi32_si128(to - from));
    return _mm256_and_si256(value, _mm256_set1_epi8((char)mask));
}

/* ------------------------------------------------------------ activations */

/* Tokens that share one decoding of the weights; their accumulators lie in L1. */
#define TOKEN_TILE 32
#define PANEL_TILE 2
#define SUBS_MAX   8

/* `tokens` rows from a block on. */
struct rows {
    const uint8_t *x;
    size_t x_row;
};

INLINE const struct act8_block *block_of(struct rows rows, int token) {
    return (const struct act8_block *)(const void *)(rows.x + (size_t)token * rows.x_row);
}

typedef __m256i sums[PANEL_TILE][4];

/* Adds int16 pair sums of word groups [first, first + count). */
INLINE void add_pairs(const struct decoded *w, const int panels, struct rows rows, const int tokens, const int first,
                      const int count, sums sum) {
    UNROLL_8 for (int g = first; g < first + count; g++) {
        __m256i weights[PANEL_TILE];
        UNROLL_8 for (int p = 0; p < panels; p++) weights[p] = w[p].w[g];
        UNROLL_8 for (int t = 0; t < tokens; t++) {
            __m256i q = broadcast4(block_of(rows, t)->q + 4 * g);
            UNROLL_8 for (int p = 0; p < panels; p++) {
                sum[p][t] = _mm256_add_epi16(sum[p][t], _mm256_maddubs_epi16(weights[p], q));
                PIN(sum[p][t]);
            }
        }
    }
}

/* Q8_0: signs move to the activations, every pair sum is widened at once. */
INLINE void add_signed(const struct decoded *w, const int panels, struct rows rows, const int tokens, sums sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL_8 for (int g = 0; g < 8; g++) {
        __m256i size[PANEL_TILE];
        UNROLL_8 for (int p = 0; p < panels; p++) size[p] = _mm256_abs_epi8(w[p].w[g]);
        UNROLL_8 for (int t = 0; t < tokens; t++) {
            __m256i q = broadcast4(block_of(rows, t)->q + 4 * g);
            UNROLL_8 for (int p = 0; p < panels; p++) {
                __m256i pairs = _mm256_maddubs_epi16(size[p], _mm256_sign_epi8(q, w[p].w[g]));
                sum[p][t] = _mm256_add_epi32(sum[p][t], _mm256_madd_epi16(pairs, ones));
                PIN(sum[p][t]);
            }
        }
    }
}

/* What the int16 sums of half h (or of all, for FIX8 and FIX16) start from. */
INLINE __m256i start_of(enum kind kind, const struct act8_block *x, int half) {
    if (kind == KIND_FIX8) return broadcast4(x->minus8);
    if (kind == KIND_FIX16) return broadcast4(x->minus16);
    if (kind == KIND_HALVES32) return broadcast4(x->minus32[half]);
    /* -4 times the sum is an eighth of -32 times: no bit is lost. */
    if (kind == KIND_HALVES4) return _mm256_srai_epi16(broadcast4(x->minus32[half]), 3);
    return _mm256_setzero_si256();
}

/* Exact integer sums over 32 columns. */
INLINE void dot(enum kind kind, const struct decoded *w, const int panels, struct rows rows, const int tokens,
                sums sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    const bool halves = kind == KIND_HALVES || kind == KIND_HALVES4 || kind == KIND_HALVES32;
    const int parts = halves || kind == KIND_MIN5 ? 2 : 1;
    UNROLL_8 for (int h = 0; h < parts; h++) {
        sums part;
        UNROLL_8 for (int t = 0; t < tokens; t++) {
            __m256i start = start_of(kind, block_of(rows, t), h);
            UNROLL_8 for (int p = 0; p < panels; p++) part[p][t] = start;
        }
        if (kind == KIND_SIGNED)
            add_signed(w, panels, rows, tokens, part);
        else
            add_pairs(w, panels, rows, tokens, h * 4, 8 / parts, part);
        UNROLL_8 for (int p = 0; p < panels; p++) UNROLL_8 for (int t = 0; t < tokens; t++) {
            __m256i wide = part[p][t];
            if (kind != KIND_SIGNED) wide = _mm256_madd_epi16(wide, halves ? w[p].half[h] : ones);
            sum[p][t] = h == 0 ? wide : _mm256_add_epi32(sum[p][t], wide);
        }
    }
}

/* acc[p * TOKEN_TILE + t] += 32 columns of panel p times row t. */
INLINE void block_times(enum kind kind, const struct decoded *w, const int panels, struct rows rows, const int tokens,
                        __m256 *acc) {
    sums sum;
    dot(kind, w, panels, rows, tokens, sum);
    UNROLL_8 for (int t = 0; t < tokens; t++) {
        const struct act8_block *x = block_of(rows, t);
        const __m256 scale = _mm256_set1_ps(x->scale);
        UNROLL_8 for (int p = 0; p < panels; p++) {
            __m256 total = acc[p * TOKEN_TILE + t];
            total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[p][t]), _mm256_mul_ps(w[p].scale, scale), total);
            if (kind == KIND_MIN4 || kind == KIND_MIN5)
                total = _mm256_fmadd_ps(w[p].min, _mm256_set1_ps(x->sum), total);
            if (kind == KIND_HALVES) {
                __m256i minimum = _mm256_madd_epi16(w[p].half_min, broadcast4(x->half_sum));
                total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(minimum), _mm256_mul_ps(w[p].min, scale), total);
            }
            acc[p * TOKEN_TILE + t] = total;
        }
    }
}

/* ------------------------------------------------------- blocks of 32 */

INLINE void nibbles(const uint8_t *body, struct decoded *out) {
    UNROLL_8 for (int k = 0; k < 4; k++) {
        __m256i both = load(body + 32 * k);
        out->w[k] = bits(both, 0, 0, 15);
        out->w[k + 4] = bits(both, 4, 0, 15);
    }
}

/* Nibbles after a line of bit planes. */
INLINE void five_bits(const uint8_t *body, struct decoded *out) {
    const __m256i planes = load(body), bit = _mm256_set1_epi8(16);
    nibbles(body + 32, out);
    __m256i high[8] = {_mm256_slli_epi16(planes, 4),
                       _mm256_slli_epi16(planes, 3),
                       _mm256_slli_epi16(planes, 2),
                       _mm256_slli_epi16(planes, 1),
                       planes,
                       _mm256_srli_epi16(planes, 1),
                       _mm256_srli_epi16(planes, 2),
                       _mm256_srli_epi16(planes, 3)};
    UNROLL_8 for (int g = 0; g < 8; g++) out->w[g] = _mm256_or_si256(out->w[g], _mm256_and_si256(high[g], bit));
}

INLINE void share_nothing(const uint8_t *head, const uint8_t *body, struct shared *out) {
    (void)head, (void)body, (void)out;
}

INLINE void decode_q4_0(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)shared, (void)sub;
    nibbles(body, out);
    out->scale = load_halves(head);
}

INLINE void decode_q4_1(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)shared, (void)sub;
    nibbles(body, out);
    out->scale = load_halves(head);
    out->min = load_halves(head + 16);
}

INLINE void decode_q5_0(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)shared, (void)sub;
    five_bits(body, out);
    out->scale = load_halves(head);
}

INLINE void decode_q5_1(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)shared, (void)sub;
    five_bits(body, out);
    out->scale = load_halves(head);
    out->min = load_halves(head + 16);
}

INLINE void decode_q8_0(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)shared, (void)sub;
    UNROLL_8 for (int k = 0; k < 8; k++) out->w[k] = load(body + 32 * k);
    out->scale = load_halves(head);
}

/* ------------------------------------------------- super-blocks of 256 */

/* Byte `byte` of each 32-bit lane, as float. */
INLINE __m256 byte_to_float(__m256i words, int byte) {
    __m256i value = _mm256_and_si256(_mm256_srli_epi32(words, 8 * byte), _mm256_set1_epi32(255));
    return _mm256_cvtepi32_ps(value);
}

/* Signed byte `byte` of each lane as int16 in both halves of the lane. */
INLINE __m256i byte_doubled(__m256i words, int byte) {
    const __m128i lanes = _mm_setr_epi8(-1, 0, -1, 0, -1, 4, -1, 4, -1, 8, -1, 8, -1, 12, -1, 12);
    __m256i index = _mm256_add_epi8(_mm256_broadcastsi128_si256(lanes), _mm256_set1_epi16((int16_t)(byte << 8)));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(words, index), 8);
}

INLINE void take_halves(const struct shared *shared, int sub, struct decoded *out) {
    out->scale = shared->scale[0];
    out->half[0] = byte_doubled(shared->half[sub / 2], sub % 2 * 2);
    out->half[1] = byte_doubled(shared->half[sub / 2], sub % 2 * 2 + 1);
}

/* Q4_K, Q5_K: d * scale and -dmin * min of the eight sub-blocks, both exact in f32. */
INLINE void share_k(const uint8_t *head, const uint8_t *body, struct shared *out) {
    const __m256 d = load_halves(head), dmin = negated(load_halves(head + 16));
    __m256i a = load(body), b = load(body + 32), c = load(body + 64);
    __m256i scales[2] = {bits(a, 0, 0, 63), _mm256_or_si256(bits(c, 0, 0, 15), bits(a, 2, 0, 48))};
    __m256i mins[2] = {bits(b, 0, 0, 63), _mm256_or_si256(bits(c, 4, 0, 15), bits(b, 2, 0, 48))};
    UNROLL_8 for (int g = 0; g < 8; g++) {
        out->scale[g] = _mm256_mul_ps(d, byte_to_float(scales[g / 4], g % 4));
        out->min[g] = _mm256_mul_ps(dmin, byte_to_float(mins[g / 4], g % 4));
    }
}

INLINE void decode_q4_k(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)head;
    const uint8_t *qs = body + 96 + sub / 2 * 256;
    UNROLL_8 for (int k = 0; k < 8; k++) out->w[k] = bits(load(qs + 32 * k), sub % 2 * 4, 0, 15);
    out->scale = shared->scale[sub];
    out->min = shared->min[sub];
}

INLINE void decode_q5_k(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)head;
    const uint8_t *high = body + 96, *qs = body + 352 + sub / 2 * 256;
    UNROLL_8 for (int k = 0; k < 8; k++) out->w[k] =
        _mm256_or_si256(bits(load(qs + 32 * k), sub % 2 * 4, 0, 15), bits(load(high + 32 * k), sub, 4, 16));
    out->scale = shared->scale[sub];
    out->min = shared->min[sub];
}

INLINE void share_q6_k(const uint8_t *head, const uint8_t *body, struct shared *out) {
    out->scale[0] = load_halves(head);
    UNROLL_8 for (int k = 0; k < 4; k++) out->half[k] = load(body + 32 * k);
}

INLINE void decode_q6_k(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)head;
    const int half = sub / 4, quarter = sub % 4;
    const uint8_t *ql = body + 128 + half * 768 + quarter % 2 * 256, *qh = body + 640 + half * 768;
    UNROLL_8 for (int k = 0; k < 8; k++) out->w[k] =
        _mm256_or_si256(bits(load(ql + 32 * k), quarter / 2 * 4, 0, 15), bits(load(qh + 32 * k), quarter * 2, 4, 48));
    take_halves(shared, sub, out);
}

INLINE void share_q3_k(const uint8_t *head, const uint8_t *body, struct shared *out) {
    __m256i a = load(body), b = load(body + 32), c = load(body + 64);
    out->scale[0] = load_halves(head);
    out->half[0] = _mm256_or_si256(bits(a, 0, 0, 15), bits(c, 0, 4, 48));
    out->half[1] = _mm256_or_si256(bits(b, 0, 0, 15), bits(c, 2, 4, 48));
    out->half[2] = _mm256_or_si256(bits(a, 4, 0, 15), bits(c, 4, 4, 48));
    out->half[3] = _mm256_or_si256(bits(b, 4, 0, 15), bits(c, 6, 4, 48));
    UNROLL_8 for (int k = 0; k < 4; k++) out->half[k] = _mm256_sub_epi8(out->half[k], _mm256_set1_epi8(32));
}

INLINE void decode_q3_k(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)head;
    const uint8_t *qs = body + 96 + sub / 4 * 256, *high = body + 608;
    UNROLL_8 for (int k = 0; k < 8; k++) out->w[k] =
        _mm256_or_si256(bits(load(qs + 32 * k), sub % 4 * 2, 0, 3), bits(load(high + 32 * k), sub, 2, 4));
    take_halves(shared, sub, out);
}

INLINE void share_q2_k(const uint8_t *head, const uint8_t *body, struct shared *out) {
    out->scale[0] = load_halves(head);
    out->min[0] = negated(load_halves(head + 16));
    UNROLL_8 for (int k = 0; k < 4; k++) {
        out->half[k] = bits(load(body + 32 * k), 0, 0, 15);
        out->half_min[k] = bits(load(body + 32 * k), 4, 0, 15);
    }
}

INLINE void decode_q2_k(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                        struct decoded *out) {
    (void)head;
    const uint8_t *qs = body + 128 + sub / 4 * 256;
    UNROLL_8 for (int k = 0; k < 8; k++) out->w[k] = bits(load(qs + 32 * k), sub % 4 * 2, 0, 3);
    take_halves(shared, sub, out);
    __m256i low = byte_doubled(shared->half_min[sub / 2], sub % 2 * 2);
    __m256i high = byte_doubled(shared->half_min[sub / 2], sub % 2 * 2 + 1);
    out->min = shared->min[0];
    out->half_min = _mm256_blend_epi16(low, high, 0xaa);
}

/* ----------------------------------------------------------------- drivers */

typedef void share_fn(const uint8_t *head, const uint8_t *body, struct shared *out);
typedef void decode_fn(const uint8_t *head, const uint8_t *body, const struct shared *shared, int sub,
                       struct decoded *out);

struct type {
    size_t head, body; /* bytes of one block of eight rows */
    int columns;       /* of a block */
    enum kind kind;
    share_fn *share;
    decode_fn *decode;
};

INLINE void store_rows(const struct matmul_args *args, int64_t panel, int64_t token, __m256 value) {
    int64_t row = panel * 8, valid = args->weight->rows - row;
    float *out = args->out + token * args->out_stride + row;
    if (valid >= 8) {
        if (args->bias) value = _mm256_add_ps(value, _mm256_loadu_ps(args->bias + row));
        _mm256_storeu_ps(out, value);
        return;
    }
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)valid), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    if (args->bias) value = _mm256_add_ps(value, _mm256_maskload_ps(args->bias + row, mask));
    _mm256_maskstore_ps(out, mask, value);
}

/* Head and body of a block inside its panel (packed.h). */
INLINE const uint8_t *head_of(const struct type type, const uint8_t *panel, int64_t block) {
    return panel + (size_t)(block / 2) * 2 * (type.head + type.body) + (size_t)(block % 2) * type.head;
}

INLINE const uint8_t *body_of(const struct type type, const uint8_t *panel, int64_t block) {
    return panel + (size_t)(block / 2) * 2 * (type.head + type.body) + 2 * type.head + (size_t)(block % 2) * type.body;
}

/* With few tokens the weights come from memory. Without help the time of a step is the time of a plain read plus the
 * time of the arithmetic: the hardware's prefetcher follows the loads too closely. Asking two kilobytes ahead hides
 * nearly all of the arithmetic (measured on Zen 3: 63-82 % of a plain read without, 86-93 % with; 1-4 KB are alike). */
#define PREFETCH_AHEAD 2048

/* Each sub-block asks for its share of a block's bytes. The count is the same for all: a line asked for twice costs
 * less than a loop whose count the processor mispredicts. The empty asm keeps each share at its sub-block: gcc moves
 * all prefetches of an unrolled block to its start, 27 lines of Q6_K at once, more than the processor can have under
 * way, and the loads behind them wait (measured: 71 -> 94 % of a plain read). */
INLINE void prefetch_share(const struct type type, const uint8_t *ahead, int sub) {
    const size_t share = (type.head + type.body) * ACT8_BLOCK / (size_t)type.columns;
    __asm__ volatile("" ::: "memory");
    UNROLL_8 for (size_t at = 0; at < share; at += 64)
        _mm_prefetch((const char *)ahead + (size_t)sub * share + at, _MM_HINT_T0);
}

INLINE void few_sub(const struct type type, const uint8_t *head, const uint8_t *body, const struct shared *shared,
                    const int sub, struct rows rows, const int tokens, __m256 *acc) {
    struct decoded w;
    prefetch_share(type, body + PREFETCH_AHEAD, sub);
    type.decode(head, body, shared, sub, &w);
    rows.x += (size_t)sub * sizeof(struct act8_block);
    block_times(type.kind, &w, 1, rows, tokens, acc);
}

/* One panel times a few rows: accumulators and weights stay in registers. */
INLINE void few_block(const struct type type, const uint8_t *head, const uint8_t *body, struct rows rows,
                      const int tokens, __m256 *acc) {
    struct shared shared;
    type.share(head, body, &shared);
    /* Unrolled: shift counts become constants. */
    UNROLL_8 for (int sub = 0; sub < type.columns / ACT8_BLOCK; sub++)
        few_sub(type, head, body, &shared, sub, rows, tokens, acc);
}

INLINE void few_times(const struct matmul_args *args, int64_t panel, int64_t token, const int tokens,
                      const struct type type) {
    __m256 acc[4];
    UNROLL_8 for (int t = 0; t < tokens; t++) acc[t] = _mm256_setzero_ps();
    const uint8_t *at = args->weight->data + (size_t)panel * args->weight->panel_bytes;
    const size_t x_step = (size_t)type.columns / ACT8_BLOCK * sizeof(struct act8_block);
    struct rows rows = {(const uint8_t *)args->x + (size_t)token * args->x_row_bytes, args->x_row_bytes};
    int64_t blocks = args->weight->cols / type.columns;
    for (int64_t b = 0; b < blocks; b++) {
        few_block(type, head_of(type, at, b), body_of(type, at, b), rows, tokens, acc);
        rows.x += x_step;
    }
    UNROLL_8 for (int t = 0; t < tokens; t++) store_rows(args, panel, token + t, acc[t]);
}

/* A decoded block of two panels times `tokens` rows. */
INLINE void tile_rows(const struct type type, struct decoded (*w)[PANEL_TILE], struct rows rows, const int tokens,
                      __m256 *acc) {
    for (int sub = 0; sub < type.columns / ACT8_BLOCK; sub++, rows.x += sizeof(struct act8_block))
        block_times(type.kind, w[sub], PANEL_TILE, rows, tokens, acc);
}

/* The same times a tile of rows. */
INLINE void tile_block(const struct type type, struct decoded (*w)[PANEL_TILE], struct rows rows, int tokens,
                       __m256 *acc) {
    int t = 0;
    for (; t + 4 <= tokens; t += 4, rows.x += 4 * rows.x_row) tile_rows(type, w, rows, 4, acc + t);
    if (t + 2 <= tokens) {
        tile_rows(type, w, rows, 2, acc + t);
        t += 2;
        rows.x += 2 * rows.x_row;
    }
    if (t < tokens) tile_rows(type, w, rows, 1, acc + t);
}

/* Two panels times a tile of rows. A lone last panel takes both places and is stored once: odd counts are rare, and a
 * second copy of all loops is not worth them. */
INLINE void tile_times(const struct matmul_args *args, int64_t panel, int panels, int64_t token, int tokens,
                       const struct type type) {
    __m256 acc[PANEL_TILE * TOKEN_TILE];
    struct decoded w[SUBS_MAX][PANEL_TILE];
    struct shared shared;
    for (int i = 0; i < PANEL_TILE * TOKEN_TILE; i++) acc[i] = _mm256_setzero_ps();
    struct rows rows = {(const uint8_t *)args->x + (size_t)token * args->x_row_bytes, args->x_row_bytes};
    const size_t panel_bytes = args->weight->panel_bytes;
    const uint8_t *first = args->weight->data + (size_t)panel * panel_bytes;
    const uint8_t *at[PANEL_TILE] = {first, panels == 2 ? first + panel_bytes : first};
    const size_t x_step = (size_t)type.columns / ACT8_BLOCK * sizeof(struct act8_block);
    int64_t blocks = args->weight->cols / type.columns;
    for (int64_t b = 0; b < blocks; b++) {
        UNROLL_8 for (int p = 0; p < PANEL_TILE; p++) {
            const uint8_t *head = head_of(type, at[p], b), *body = body_of(type, at[p], b);
            const uint8_t *ahead = body + PREFETCH_AHEAD;
            if (ahead >= at[p] + panel_bytes) ahead += panel_bytes; /* what follows is the other panel's */
            type.share(head, body, &shared);
            UNROLL_8 for (int sub = 0; sub < type.columns / ACT8_BLOCK; sub++) {
                prefetch_share(type, ahead, sub);
                type.decode(head, body, &shared, sub, &w[sub][p]);
            }
        }
        tile_block(type, w, rows, tokens, acc);
        rows.x += x_step;
    }
    for (int p = 0; p < panels; p++)
        for (int t = 0; t < tokens; t++) store_rows(args, panel + p, token + t, acc[p * TOKEN_TILE + t]);
}

/* Rows from which tiles beat registers, by measurement. Two groups of four read a panel of Q8_0 twice, the second time
 * from L2, and still win: a tile saves it no arithmetic. */
INLINE int64_t tile_from_of(const struct type type) {
    if (type.kind == KIND_SIGNED) return 9;
    return type.columns > ACT8_BLOCK ? 4 : 5;
}

INLINE void panels_times(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1,
                         const struct type type) {
    const int64_t tile_from = tile_from_of(type);
    if (t1 - t0 < tile_from) {
        for (int64_t panel = panel0; panel < panel1; panel++) {
            int64_t t = t0;
            if (tile_from > 4)
                for (; t + 4 <= t1; t += 4) few_times(args, panel, t, 4, type);
            if (t1 - t == 1) few_times(args, panel, t, 1, type);
            if (t1 - t == 2) few_times(args, panel, t, 2, type);
            if (t1 - t == 3) few_times(args, panel, t, 3, type);
        }
        return;
    }
    for (int64_t panel = panel0; panel < panel1; panel += PANEL_TILE)
        for (int64_t t = t0; t < t1; t += TOKEN_TILE)
            tile_times(args, panel, panel + 2 <= panel1 ? 2 : 1, t, t1 - t < TOKEN_TILE ? (int)(t1 - t) : TOKEN_TILE,
                       type);
}

#define DEFINE_MATMUL(name, halves, body, columns, kind, share)                                                        \
    void matmul_##name##_avx2(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0,              \
                              int64_t t1) {                                                                            \
        panels_times(args, panel0, panel1, t0, t1,                                                                     \
                     (struct type){16 * (halves), 8 * (body), columns, kind, share, decode_##name});                   \
    }

DEFINE_MATMUL(q4_0, 1, PACKED_BODY_Q4_0, 32, KIND_FIX8, share_nothing)
DEFINE_MATMUL(q4_1, 2, PACKED_BODY_Q4_1, 32, KIND_MIN4, share_nothing)
DEFINE_MATMUL(q5_0, 1, PACKED_BODY_Q5_0, 32, KIND_FIX16, share_nothing)
DEFINE_MATMUL(q5_1, 2, PACKED_BODY_Q5_1, 32, KIND_MIN5, share_nothing)
DEFINE_MATMUL(q8_0, 1, PACKED_BODY_Q8_0, 32, KIND_SIGNED, share_nothing)
DEFINE_MATMUL(q2_k, 2, PACKED_BODY_Q2_K, 256, KIND_HALVES, share_q2_k)
DEFINE_MATMUL(q3_k, 1, PACKED_BODY_Q3_K, 256, KIND_HALVES4, share_q3_k)
DEFINE_MATMUL(q4_k, 2, PACKED_BODY_Q4_K, 256, KIND_MIN4, share_k)
DEFINE_MATMUL(q5_k, 2, PACKED_BODY_Q5_K, 256, KIND_MIN5, share_k)
DEFINE_MATMUL(q6_k, 1, PACKED_BODY_Q6_K, 256, KIND_HALVES32, share_q6_k)
