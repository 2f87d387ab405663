/* Products of quantised weights with ACT8 rows for AVX2.
 *
 * A vector holds four consecutive columns of eight rows (packed.h). vpmaddubsw multiplies it, as unsigned bytes, with a
 * broadcast of the four activations; the int16 pair sums are added up over a block and widened once by vpmaddwd. This
 * is exact for 4, 5 and 6 bits because the sum is only read modulo 2^16 at the end: the ACT8 block holds the
 * correction for the weights' offset (-8, -16, -32 times the sum of q), it is added first, and the corrected sum
 * of a block fits: 16 products of |w| <= 16 or 8 of |w| <= 32 with |q| <= 127 stay below 32513. What comes between
 * may wrap. Q8_0 has no such room: its signs move to the activations and each pair sum (<= 2 * 128 * 127) is widened.
 *
 * Fixed order: acc = fma(sum of a block, d * scale, acc), block by block; then minima likewise. One token or many
 * run the same operations on the same operands; only the number of accumulators differs. */
#include "tensor/matmul_avx2.h"

#include <immintrin.h>
#include <string.h>

#include "tensor/packed.h"

#define INLINE static inline __attribute__((always_inline))

/* -O2 keeps small fixed loops rolled and their arrays in memory: unroll by hand. */
#ifdef __clang__
#define UNROLL_4 _Pragma("unroll(4)")
#define UNROLL_8 _Pragma("unroll(8)")
#else
#define UNROLL_4 _Pragma("GCC unroll 4")
#define UNROLL_8 _Pragma("GCC unroll 8")
#endif

/* The activations that a step meets: blocks of `tokens` rows, x_row bytes apart. */
struct tile {
    const uint8_t *x;
    size_t x_row;
    int tokens;
    __m256 *acc; /* [tokens], eight rows each */
};

/* What the int16 sums start from. */
enum fix { FIX_NONE, FIX_8, FIX_16 };

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

INLINE const struct act8_block *block_of(const struct tile *tile, int token, int sub) {
    return (const struct act8_block *)(const void *)(tile->x + (size_t)token * tile->x_row) + sub;
}

/* int16 pair sums of four word groups, added to `sum`. */
INLINE __m256i dot4(const __m256i w[4], const int8_t *q, __m256i sum) {
    __m256i a = _mm256_maddubs_epi16(w[0], broadcast4(q)), b = _mm256_maddubs_epi16(w[1], broadcast4(q + 4));
    __m256i c = _mm256_maddubs_epi16(w[2], broadcast4(q + 8)), d = _mm256_maddubs_epi16(w[3], broadcast4(q + 12));
    return _mm256_add_epi16(_mm256_add_epi16(sum, a), _mm256_add_epi16(b, _mm256_add_epi16(c, d)));
}

INLINE __m256 fma_block(__m256i sums, __m256 d, const struct act8_block *x, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(d, _mm256_set1_ps(x->scale)), acc);
}

/* 32 columns with one scale: weight = d * (w - fix). */
INLINE void block_plain(const __m256i w[8], __m256 d, enum fix fix, int sub, const struct tile *tile) {
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL_4 for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, sub);
        __m256i sum = fix == FIX_NONE ? _mm256_setzero_si256() : broadcast4(fix == FIX_8 ? x->minus8 : x->minus16);
        sum = dot4(w + 4, x->q + 16, dot4(w, x->q, sum));
        tile->acc[t] = fma_block(_mm256_madd_epi16(sum, ones), d, x, tile->acc[t]);
    }
}

/* 32 columns of up to 4 bits with a minimum: weight = d * w + m. */
INLINE void block_min4(const __m256i w[8], __m256 d, __m256 m, int sub, const struct tile *tile) {
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL_4 for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, sub);
        __m256i sum = dot4(w + 4, x->q + 16, dot4(w, x->q, _mm256_setzero_si256()));
        tile->acc[t] = fma_block(_mm256_madd_epi16(sum, ones), d, x, tile->acc[t]);
        tile->acc[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(x->sum), tile->acc[t]);
    }
}

/* The same for 5 bits: 16 products of up to 31 * 127 need two int16 sums. */
INLINE void block_min5(const __m256i w[8], __m256 d, __m256 m, int sub, const struct tile *tile) {
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
    UNROLL_4 for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, sub);
        __m256i low = _mm256_madd_epi16(dot4(w, x->q, zero), ones);
        __m256i high = _mm256_madd_epi16(dot4(w + 4, x->q + 16, zero), ones);
        tile->acc[t] = fma_block(_mm256_add_epi32(low, high), d, x, tile->acc[t]);
        tile->acc[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(x->sum), tile->acc[t]);
    }
}

/* 32 columns with one integer scale (doubled int16) per 16: weight = d * scale * (w - 32). */
INLINE void block_scale16(const __m256i w[8], __m256i low_scale, __m256i high_scale, __m256 d, int sub,
                          const struct tile *tile) {
    UNROLL_4 for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, sub);
        __m256i low = _mm256_madd_epi16(dot4(w, x->q, broadcast4(x->minus32[0])), low_scale);
        __m256i high = _mm256_madd_epi16(dot4(w + 4, x->q + 16, broadcast4(x->minus32[1])), high_scale);
        tile->acc[t] = fma_block(_mm256_add_epi32(low, high), d, x, tile->acc[t]);
    }
}

/* ------------------------------------------------------- blocks of 32 */

INLINE void nibbles(const uint8_t *body, __m256i w[8]) {
    const __m256i low = _mm256_set1_epi8(15);
    UNROLL_4 for (int k = 0; k < 4; k++) {
        __m256i both = load(body + 32 * k);
        w[k] = _mm256_and_si256(both, low);
        w[k + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
}

/* Bit g of every byte of `planes` becomes bit 4 of w[g]. */
INLINE void fifth_bits(__m256i planes, __m256i w[8]) {
    const __m256i bit = _mm256_set1_epi8(16);
    w[0] = _mm256_or_si256(w[0], _mm256_and_si256(_mm256_slli_epi16(planes, 4), bit));
    w[1] = _mm256_or_si256(w[1], _mm256_and_si256(_mm256_slli_epi16(planes, 3), bit));
    w[2] = _mm256_or_si256(w[2], _mm256_and_si256(_mm256_slli_epi16(planes, 2), bit));
    w[3] = _mm256_or_si256(w[3], _mm256_and_si256(_mm256_slli_epi16(planes, 1), bit));
    w[4] = _mm256_or_si256(w[4], _mm256_and_si256(planes, bit));
    w[5] = _mm256_or_si256(w[5], _mm256_and_si256(_mm256_srli_epi16(planes, 1), bit));
    w[6] = _mm256_or_si256(w[6], _mm256_and_si256(_mm256_srli_epi16(planes, 2), bit));
    w[7] = _mm256_or_si256(w[7], _mm256_and_si256(_mm256_srli_epi16(planes, 3), bit));
}

INLINE void step_q4_0(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m256i w[8];
    nibbles(body, w);
    block_plain(w, load_halves(head), FIX_8, 0, tile);
}

INLINE void step_q4_1(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m256i w[8];
    nibbles(body, w);
    block_min4(w, load_halves(head), load_halves(head + 16), 0, tile);
}

INLINE void step_q5_0(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m256i w[8];
    nibbles(body + 32, w);
    fifth_bits(load(body), w);
    block_plain(w, load_halves(head), FIX_16, 0, tile);
}

INLINE void step_q5_1(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m256i w[8];
    nibbles(body + 32, w);
    fifth_bits(load(body), w);
    block_min5(w, load_halves(head), load_halves(head + 16), 0, tile);
}

INLINE void step_q8_0(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256 d = load_halves(head);
    __m256i size[8];
    UNROLL_8 for (int k = 0; k < 8; k++) size[k] = _mm256_abs_epi8(load(body + 32 * k));
    UNROLL_4 for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, 0);
        __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        UNROLL_8 for (int k = 0; k < 8; k++) {
            __m256i q = _mm256_sign_epi8(broadcast4(x->q + 4 * k), load(body + 32 * k));
            __m256i pairs = _mm256_maddubs_epi16(size[k], q);
            sum[k & 1] = _mm256_add_epi32(sum[k & 1], _mm256_madd_epi16(pairs, ones));
        }
        tile->acc[t] = fma_block(_mm256_add_epi32(sum[0], sum[1]), d, x, tile->acc[t]);
    }
}

/* ------------------------------------------------- super-blocks of 256 */

/* Byte `byte` of each 32-bit lane, as float. */
INLINE __m256 byte_to_float(__m256i words, int byte) {
    __m256i value = _mm256_and_si256(_mm256_srli_epi32(words, 8 * byte), _mm256_set1_epi32(255));
    return _mm256_cvtepi32_ps(value);
}

/* Q4_K, Q5_K: d * scale and dmin * min of the eight sub-blocks, both exact in f32. The minima are negated. */
INLINE void k_scales(const uint8_t *head, const uint8_t *words, __m256 scale[8], __m256 min[8]) {
    const __m256i low4 = _mm256_set1_epi8(15), low6 = _mm256_set1_epi8(63), top2 = _mm256_set1_epi8(48);
    const __m256 d = load_halves(head), dmin = _mm256_sub_ps(_mm256_setzero_ps(), load_halves(head + 16));
    __m256i a = load(words), b = load(words + 32), c = load(words + 64);
    __m256i scales[2] = {_mm256_and_si256(a, low6)}, mins[2] = {_mm256_and_si256(b, low6)};
    scales[1] = _mm256_or_si256(_mm256_and_si256(c, low4), _mm256_and_si256(_mm256_srli_epi16(a, 2), top2));
    mins[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(c, 4), low4),
                              _mm256_and_si256(_mm256_srli_epi16(b, 2), top2));
    UNROLL_8 for (int g = 0; g < 8; g++) {
        scale[g] = _mm256_mul_ps(d, byte_to_float(scales[g / 4], g % 4));
        min[g] = _mm256_mul_ps(dmin, byte_to_float(mins[g / 4], g % 4));
    }
}

INLINE void step_q4_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256 scale[8], min[8];
    k_scales(head, body, scale, min);
    const uint8_t *qs = body + 96;
    for (int pair = 0; pair < 4; pair++, qs += 256) {
        __m256i w[8];
        UNROLL_8 for (int k = 0; k < 8; k++) w[k] = _mm256_and_si256(load(qs + 32 * k), low);
        block_min4(w, scale[2 * pair], min[2 * pair], 2 * pair, tile);
        UNROLL_8 for (int k = 0; k < 8; k++) w[k] = _mm256_and_si256(_mm256_srli_epi16(load(qs + 32 * k), 4), low);
        block_min4(w, scale[2 * pair + 1], min[2 * pair + 1], 2 * pair + 1, tile);
    }
}

/* Moves bit `from` of every byte to bit `to` (other bits are rubbish); shift counts known at run time. */
INLINE __m256i bit_move(__m256i value, int from, int to) {
    return to > from ? _mm256_sll_epi16(value, _mm_cvtsi32_si128(to - from))
                     : _mm256_srl_epi16(value, _mm_cvtsi32_si128(from - to));
}

INLINE void step_q5_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m256i low = _mm256_set1_epi8(15), bit = _mm256_set1_epi8(16);
    __m256 scale[8], min[8];
    k_scales(head, body, scale, min);
    const uint8_t *high = body + 96;
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *qs = body + 352 + sub / 2 * 256;
        const __m128i nibble = _mm_cvtsi32_si128(sub % 2 * 4);
        __m256i w[8];
        UNROLL_8 for (int k = 0; k < 8; k++) {
            __m256i fifth = _mm256_and_si256(bit_move(load(high + 32 * k), sub, 4), bit);
            w[k] = _mm256_or_si256(_mm256_and_si256(_mm256_srl_epi16(load(qs + 32 * k), nibble), low), fifth);
        }
        block_min5(w, scale[sub], min[sub], sub, tile);
    }
}

/* Signed byte `byte` of each lane as int16 in both halves of the lane. */
INLINE __m256i byte_doubled(__m256i words, int byte) {
    const __m256i lanes =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 0, -1, 4, -1, 4, -1, 8, -1, 8, -1, 12, -1, 12));
    __m256i index = _mm256_add_epi8(lanes, _mm256_set1_epi16((int16_t)(byte << 8)));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(words, index), 8);
}

/* Quarter j of a half super-block: 32 columns of Q6_K. */
INLINE void quarter_q6_k(const uint8_t *ql, const uint8_t *qh, __m256i scales, __m256 d, int half, const int j,
                         const struct tile *tile) {
    const __m256i low = _mm256_set1_epi8(15), top = _mm256_set1_epi8(48);
    __m256i w[8];
    UNROLL_8 for (int k = 0; k < 8; k++) {
        __m256i nibble = load(ql + (j & 1) * 256 + 32 * k), bits = load(qh + 32 * k);
        if (j >= 2) nibble = _mm256_srli_epi16(nibble, 4);
        if (j == 0) bits = _mm256_slli_epi16(bits, 4);
        if (j == 1) bits = _mm256_slli_epi16(bits, 2);
        if (j == 3) bits = _mm256_srli_epi16(bits, 2);
        w[k] = _mm256_or_si256(_mm256_and_si256(nibble, low), _mm256_and_si256(bits, top));
    }
    block_scale16(w, byte_doubled(scales, j % 2 * 2), byte_doubled(scales, j % 2 * 2 + 1), d, half * 4 + j, tile);
}

INLINE void step_q6_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m256 d = load_halves(head);
    for (int half = 0; half < 2; half++) {
        const uint8_t *ql = body + 128 + half * 512, *qh = body + 1152 + half * 256;
        __m256i first = load(body + half * 64), second = load(body + half * 64 + 32);
        quarter_q6_k(ql, qh, first, d, half, 0, tile);
        quarter_q6_k(ql, qh, first, d, half, 1, tile);
        quarter_q6_k(ql, qh, second, d, half, 2, tile);
        quarter_q6_k(ql, qh, second, d, half, 3, tile);
    }
}

/* Q3_K as 3-bit w and int8 scales: weight = d * scale * (w - 4). The block's corrections for -32 give those for -4. */
INLINE void step_q3_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m256i low = _mm256_set1_epi8(15), top = _mm256_set1_epi8(48), bias = _mm256_set1_epi8(32);
    const __m256i two_bits = _mm256_set1_epi8(3), bit = _mm256_set1_epi8(4);
    const __m256 d = load_halves(head);
    __m256i a = load(body), b = load(body + 32), c = load(body + 64), scales[4];
    scales[0] = _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16(c, 4), top));
    scales[1] = _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16(c, 2), top));
    a = _mm256_srli_epi16(a, 4);
    b = _mm256_srli_epi16(b, 4);
    scales[2] = _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(c, top));
    scales[3] = _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_srli_epi16(c, 2), top));
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *qs = body + 96 + sub / 4 * 256, *high = body + 608;
        const __m128i shift = _mm_cvtsi32_si128(sub % 4 * 2);
        __m256i w[8], scale = _mm256_sub_epi8(scales[sub / 2], bias);
        UNROLL_8 for (int k = 0; k < 8; k++) {
            __m256i third = _mm256_and_si256(bit_move(load(high + 32 * k), sub, 2), bit);
            w[k] = _mm256_or_si256(_mm256_and_si256(_mm256_srl_epi16(load(qs + 32 * k), shift), two_bits), third);
        }
        __m256i low_scale = byte_doubled(scale, sub % 2 * 2), high_scale = byte_doubled(scale, sub % 2 * 2 + 1);
        for (int t = 0; t < tile->tokens; t++) {
            const struct act8_block *x = block_of(tile, t, sub);
            __m256i low_fix = _mm256_srai_epi16(broadcast4(x->minus32[0]), 3);
            __m256i high_fix = _mm256_srai_epi16(broadcast4(x->minus32[1]), 3);
            __m256i sum = _mm256_madd_epi16(dot4(w, x->q, low_fix), low_scale);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(dot4(w + 4, x->q + 16, high_fix), high_scale));
            tile->acc[t] = fma_block(sum, d, x, tile->acc[t]);
        }
    }
}

/* Q2_K: weight = d * (s & 15) * w - dmin * (s >> 4), one s for 16 columns. */
INLINE void step_q2_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m256i low = _mm256_set1_epi8(15), two_bits = _mm256_set1_epi8(3), zero = _mm256_setzero_si256();
    const __m256 d = load_halves(head), dmin = _mm256_sub_ps(_mm256_setzero_ps(), load_halves(head + 16));
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *qs = body + 128 + sub / 4 * 256;
        const __m128i shift = _mm_cvtsi32_si128(sub % 4 * 2);
        __m256i w[8], both = load(body + sub / 2 * 32);
        __m256i scale = _mm256_and_si256(both, low), min = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        UNROLL_8 for (int k = 0; k < 8; k++) w[k] =
            _mm256_and_si256(_mm256_srl_epi16(load(qs + 32 * k), shift), two_bits);
        __m256i low_scale = byte_doubled(scale, sub % 2 * 2), high_scale = byte_doubled(scale, sub % 2 * 2 + 1);
        /* The minima of the two halves side by side, to meet half_sum in one vpmaddwd. */
        __m256i mins = _mm256_blend_epi16(byte_doubled(min, sub % 2 * 2), byte_doubled(min, sub % 2 * 2 + 1), 0xaa);
        for (int t = 0; t < tile->tokens; t++) {
            const struct act8_block *x = block_of(tile, t, sub);
            __m256i sum = _mm256_madd_epi16(dot4(w, x->q, zero), low_scale);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(dot4(w + 4, x->q + 16, zero), high_scale));
            tile->acc[t] = fma_block(sum, d, x, tile->acc[t]);
            tile->acc[t] = fma_block(_mm256_madd_epi16(mins, broadcast4(x->half_sum)), dmin, x, tile->acc[t]);
        }
    }
}

/* ----------------------------------------------------------------- drivers */

/* Tokens that share one decoding of the weights; their accumulators lie in L1. */
#define TOKEN_TILE 32

typedef void step_fn(const uint8_t *head, const uint8_t *body, const struct tile *tile);

/* Shape of a type: bytes of one head and one body for 8 lanes, columns of a block. */
struct shape {
    size_t head, body;
    int columns;
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

/* One panel times `tokens` rows of x. */
INLINE void panel_times(const struct matmul_args *args, int64_t panel, int64_t token, const int tokens,
                        const struct shape shape, step_fn *step) {
    __m256 acc[TOKEN_TILE];
    UNROLL_4 for (int t = 0; t < tokens; t++) acc[t] = _mm256_setzero_ps();
    const uint8_t *at = args->weight->data + (size_t)panel * args->weight->panel_bytes;
    const size_t x_step = (size_t)shape.columns / ACT8_BLOCK * sizeof(struct act8_block);
    struct tile tile = {(const uint8_t *)args->x + (size_t)token * args->x_row_bytes, args->x_row_bytes, tokens, acc};
    int64_t blocks = args->weight->cols / shape.columns;
    for (int64_t b = 0; b < blocks; b += 2, at += 2 * (shape.head + shape.body)) {
        step(at, at + 2 * shape.head, &tile);
        tile.x += x_step;
        if (b + 1 == blocks) break;
        step(at + shape.head, at + 2 * shape.head + shape.body, &tile);
        tile.x += x_step;
    }
    UNROLL_4 for (int t = 0; t < tokens; t++) store_rows(args, panel, token + t, acc[t]);
}

/* Few tokens keep their accumulators in registers: one copy of the loop for each number. */
INLINE void panels_times(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1,
                         const struct shape shape, step_fn *step) {
    for (int64_t panel = panel0; panel < panel1; panel++)
        for (int64_t t = t0; t < t1; t += TOKEN_TILE) {
            int tokens = t1 - t < TOKEN_TILE ? (int)(t1 - t) : TOKEN_TILE;
            if (tokens == 1)
                panel_times(args, panel, t, 1, shape, step);
            else if (tokens == 2)
                panel_times(args, panel, t, 2, shape, step);
            else if (tokens == 3)
                panel_times(args, panel, t, 3, shape, step);
            else if (tokens == 4)
                panel_times(args, panel, t, 4, shape, step);
            else
                panel_times(args, panel, t, tokens, shape, step);
        }
}

#define DEFINE_MATMUL(name, halves, body, columns)                                                                     \
    void matmul_##name##_avx2(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0,              \
                              int64_t t1) {                                                                            \
        panels_times(args, panel0, panel1, t0, t1, (struct shape){16 * (halves), 8 * (body), columns}, step_##name);   \
    }

DEFINE_MATMUL(q4_0, 1, PACKED_BODY_Q4_0, 32)
DEFINE_MATMUL(q4_1, 2, PACKED_BODY_Q4_1, 32)
DEFINE_MATMUL(q5_0, 1, PACKED_BODY_Q5_0, 32)
DEFINE_MATMUL(q5_1, 2, PACKED_BODY_Q5_1, 32)
DEFINE_MATMUL(q8_0, 1, PACKED_BODY_Q8_0, 32)
DEFINE_MATMUL(q2_k, 2, PACKED_BODY_Q2_K, 256)
DEFINE_MATMUL(q3_k, 1, PACKED_BODY_Q3_K, 256)
DEFINE_MATMUL(q4_k, 2, PACKED_BODY_Q4_K, 256)
DEFINE_MATMUL(q5_k, 2, PACKED_BODY_Q5_K, 256)
DEFINE_MATMUL(q6_k, 1, PACKED_BODY_Q6_K, 256)
