/* Products of packed weights for AVX-512 with VNNI, 16 rows to a panel.
 *
 * vpdpbusd multiplies four consecutive columns of 16 rows, as unsigned bytes, with a broadcast of the four activations
 * and adds them in int32: no sum can overflow, and Q8_0 only needs its sign bit turned. The offset of unsigned
 * weights is taken out by vpdpwssd on the corrections of the ACT8 block. Layout: packed.h. Fixed order and the meaning
 * of the steps: matmul_q_avx2.c and matmul_f_avx2.c, whose structure this file follows. */
#include "tensor/kernels.h"

#ifndef SHU_EMULATED
#include <immintrin.h>
#endif
#include <string.h>

#include "tensor/packed.h"

/* Tokens that share one decoding of the weights. */
#define TOKEN_TILE 32
/* Columns of one partial sum of the float types. */
#define CHUNK 256

struct tile {
    const uint8_t *x; /* ACT8 blocks of `tokens` rows, x_row bytes apart */
    size_t x_row;
    int tokens;
    __m512 *acc; /* [tokens], sixteen rows each */
};

/* ------------------------------------------ what SIMDe 0.7.4 does not have */

#ifdef SHU_EMULATED
INLINE __m512 int_to_float(__m512i value) {
    int32_t in[16];
    float out[16];
    _mm512_storeu_si512(in, value);
    for (int i = 0; i < 16; i++) out[i] = (float)in[i];
    return _mm512_loadu_ps(out);
}

INLINE __m512 load_halves(const uint8_t *at) {
    float out[16];
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(at + 2 * i))));
    return _mm512_loadu_ps(out);
}

INLINE __m512 load_bf16(const uint8_t *at) {
    uint16_t in[16];
    float out[16];
    memcpy(in, at, sizeof in);
    for (int i = 0; i < 16; i++) out[i] = bf16_to_f32(in[i]);
    return _mm512_loadu_ps(out);
}

INLINE __m512 load_valid(const float *from, int valid) {
    float lanes[16] = {0};
    memcpy(lanes, from, (size_t)valid * sizeof *from);
    return _mm512_loadu_ps(lanes);
}

INLINE void store_valid(float *to, int valid, __m512 value) {
    float lanes[16];
    _mm512_storeu_ps(lanes, value);
    memcpy(to, lanes, (size_t)valid * sizeof *to);
}
#else
INLINE __m512 int_to_float(__m512i value) {
    return _mm512_cvtepi32_ps(value);
}

INLINE __m512 load_halves(const uint8_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

INLINE __m512 load_bf16(const uint8_t *at) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

INLINE __m512 load_valid(const float *from, int valid) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << valid) - 1), from);
}

INLINE void store_valid(float *to, int valid, __m512 value) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << valid) - 1), value);
}
#endif

/* ------------------------------------------------------------ small pieces */

INLINE __m512i load(const uint8_t *at) {
    return _mm512_loadu_si512((const void *)at);
}

INLINE __m512i bytes(int value) {
    return _mm512_set1_epi8((char)value);
}

INLINE __m512i and_shifted(__m512i value, int right, __m512i mask) {
    return _mm512_and_si512(_mm512_srl_epi16(value, _mm_cvtsi32_si128(right)), mask);
}

/* Moves bit `from` of every byte to bit `to`, keeps what `mask` shows. */
INLINE __m512i bits_moved(__m512i value, int from, int to, __m512i mask) {
    if (from >= to) return and_shifted(value, from - to, mask);
    return _mm512_and_si512(_mm512_sll_epi16(value, _mm_cvtsi32_si128(to - from)), mask);
}

INLINE __m512i broadcast4(const void *at) {
    int32_t word;
    memcpy(&word, at, sizeof word);
    return _mm512_set1_epi32(word);
}

INLINE const struct act8_block *block_of(const struct tile *tile, int token, int sub) {
    return (const struct act8_block *)(const void *)(tile->x + (size_t)token * tile->x_row) + sub;
}

INLINE __m512i dot4(const __m512i w[4], const int8_t *q, __m512i sum) {
    UNROLL_4 for (int k = 0; k < 4; k++) sum = _mm512_dpbusd_epi32(sum, w[k], broadcast4(q + 4 * k));
    return sum;
}

INLINE __m512 fma_block(__m512i sums, __m512 d, const struct act8_block *x, __m512 acc) {
    return _mm512_fmadd_ps(int_to_float(sums), _mm512_mul_ps(d, _mm512_set1_ps(x->scale)), acc);
}

/* 32 columns with one scale: weight = d * (w - 16 * fix16 - 8 * fix8). */
INLINE void block_plain(const __m512i w[8], __m512 d, int fix16, int fix8, const struct tile *tile) {
    const __m512i factor = _mm512_set1_epi16((int16_t)(fix16 ? fix16 : fix8)), zero = _mm512_setzero_si512();
    for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, 0);
        __m512i sum = _mm512_dpwssd_epi32(zero, broadcast4(fix16 ? x->minus16 : x->minus8), factor);
        sum = _mm512_add_epi32(dot4(w, x->q, sum), dot4(w + 4, x->q + 16, zero));
        tile->acc[t] = fma_block(sum, d, x, tile->acc[t]);
    }
}

/* 32 columns with a minimum: weight = d * w + m. */
INLINE void block_min(const __m512i w[8], __m512 d, __m512 m, int sub, const struct tile *tile) {
    const __m512i zero = _mm512_setzero_si512();
    for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, sub);
        __m512i sum = _mm512_add_epi32(dot4(w, x->q, zero), dot4(w + 4, x->q + 16, zero));
        tile->acc[t] = fma_block(sum, d, x, tile->acc[t]);
        tile->acc[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(x->sum), tile->acc[t]);
    }
}

/* 32 columns with one integer scale per 16: weight = d * scale * (w - 32 * fix / 8). */
INLINE void block_scale16(const __m512i w[8], const __m512i scale[2], __m512 d, int fix, int sub,
                          const struct tile *tile) {
    const __m512i zero = _mm512_setzero_si512(), ones = _mm512_set1_epi16(1);
    for (int t = 0; t < tile->tokens; t++) {
        const struct act8_block *x = block_of(tile, t, sub);
        __m512i part[2];
        UNROLL_4 for (int h = 0; h < 2; h++) {
            /* -32 times the sum, or an eighth of it: each int16 is a multiple of 32. */
            __m512i minus = broadcast4(x->minus32[h]);
            if (fix == 1) minus = _mm512_srai_epi16(minus, 3);
            __m512i start = fix ? _mm512_dpwssd_epi32(zero, minus, ones) : zero;
            part[h] = _mm512_mullo_epi32(dot4(w + 4 * h, x->q + 16 * h, start), scale[h]);
        }
        tile->acc[t] = fma_block(_mm512_add_epi32(part[0], part[1]), d, x, tile->acc[t]);
    }
}

/* ------------------------------------------------------- blocks of 32 */

INLINE void nibbles(const uint8_t *body, __m512i w[8]) {
    UNROLL_4 for (int k = 0; k < 4; k++) {
        __m512i both = load(body + 64 * k);
        w[k] = _mm512_and_si512(both, bytes(15));
        w[k + 4] = and_shifted(both, 4, bytes(15));
    }
}

/* Nibbles after a line of bit planes. */
INLINE void five_bits(const uint8_t *body, __m512i w[8]) {
    __m512i planes = load(body);
    nibbles(body + 64, w);
    UNROLL_8 for (int g = 0; g < 8; g++) w[g] = _mm512_or_si512(w[g], bits_moved(planes, g, 4, bytes(16)));
}

INLINE void step_q4_0(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512i w[8];
    nibbles(body, w);
    block_plain(w, load_halves(head), 0, 1, tile);
}

INLINE void step_q4_1(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512i w[8];
    nibbles(body, w);
    block_min(w, load_halves(head), load_halves(head + 32), 0, tile);
}

INLINE void step_q5_0(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512i w[8];
    five_bits(body, w);
    block_plain(w, load_halves(head), 1, 0, tile);
}

INLINE void step_q5_1(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512i w[8];
    five_bits(body, w);
    block_min(w, load_halves(head), load_halves(head + 32), 0, tile);
}

/* w + 128 is the byte with its sign bit turned; 8 corrections of -16 take it back. */
INLINE void step_q8_0(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512i w[8];
    UNROLL_8 for (int k = 0; k < 8; k++) w[k] = _mm512_xor_si512(load(body + 64 * k), bytes(128));
    block_plain(w, load_halves(head), 8, 0, tile);
}

/* ------------------------------------------------- super-blocks of 256 */

/* Byte `byte` of each lane as int32, zero- or sign-extended. */
INLINE __m512i byte_unsigned(__m512i words, int byte) {
    return _mm512_and_si512(_mm512_srl_epi32(words, _mm_cvtsi32_si128(8 * byte)), _mm512_set1_epi32(255));
}

INLINE __m512i byte_signed(__m512i words, int byte) {
    const __m512i sign = _mm512_set1_epi32(128);
    return _mm512_sub_epi32(_mm512_xor_si512(byte_unsigned(words, byte), sign), sign);
}

INLINE void k_scales(const uint8_t *head, const uint8_t *words, __m512 scale[8], __m512 min[8]) {
    const __m512 d = load_halves(head), dmin = _mm512_sub_ps(_mm512_setzero_ps(), load_halves(head + 32));
    __m512i a = load(words), b = load(words + 64), c = load(words + 128);
    __m512i scales[2] = {_mm512_and_si512(a, bytes(63))}, mins[2] = {_mm512_and_si512(b, bytes(63))};
    scales[1] = _mm512_or_si512(_mm512_and_si512(c, bytes(15)), and_shifted(a, 2, bytes(48)));
    mins[1] = _mm512_or_si512(and_shifted(c, 4, bytes(15)), and_shifted(b, 2, bytes(48)));
    UNROLL_8 for (int g = 0; g < 8; g++) {
        scale[g] = _mm512_mul_ps(d, int_to_float(byte_unsigned(scales[g / 4], g % 4)));
        min[g] = _mm512_mul_ps(dmin, int_to_float(byte_unsigned(mins[g / 4], g % 4)));
    }
}

INLINE void step_q4_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512 scale[8], min[8];
    k_scales(head, body, scale, min);
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *qs = body + 192 + sub / 2 * 512;
        __m512i w[8];
        UNROLL_8 for (int k = 0; k < 8; k++) w[k] = and_shifted(load(qs + 64 * k), sub % 2 * 4, bytes(15));
        block_min(w, scale[sub], min[sub], sub, tile);
    }
}

INLINE void step_q5_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    __m512 scale[8], min[8];
    k_scales(head, body, scale, min);
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *high = body + 192, *qs = body + 704 + sub / 2 * 512;
        __m512i w[8];
        UNROLL_8 for (int k = 0; k < 8; k++) {
            __m512i fifth = bits_moved(load(high + 64 * k), sub, 4, bytes(16));
            w[k] = _mm512_or_si512(and_shifted(load(qs + 64 * k), sub % 2 * 4, bytes(15)), fifth);
        }
        block_min(w, scale[sub], min[sub], sub, tile);
    }
}

INLINE void step_q6_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m512 d = load_halves(head);
    for (int sub = 0; sub < 8; sub++) {
        int half = sub / 4, j = sub % 4;
        const uint8_t *ql = body + 256 + half * 1536 + j % 2 * 512, *qh = body + 1280 + half * 1536;
        __m512i w[8], words = load(body + sub / 2 * 64);
        UNROLL_8 for (int k = 0; k < 8; k++) {
            __m512i top = bits_moved(load(qh + 64 * k), 2 * j, 4, bytes(48));
            w[k] = _mm512_or_si512(and_shifted(load(ql + 64 * k), j / 2 * 4, bytes(15)), top);
        }
        __m512i scale[2] = {byte_signed(words, sub % 2 * 2), byte_signed(words, sub % 2 * 2 + 1)};
        block_scale16(w, scale, d, 8, sub, tile);
    }
}

INLINE void step_q3_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m512 d = load_halves(head);
    __m512i a = load(body), b = load(body + 64), c = load(body + 128), scales[4];
    scales[0] = _mm512_or_si512(_mm512_and_si512(a, bytes(15)), bits_moved(c, 0, 4, bytes(48)));
    scales[1] = _mm512_or_si512(_mm512_and_si512(b, bytes(15)), bits_moved(c, 2, 4, bytes(48)));
    scales[2] = _mm512_or_si512(and_shifted(a, 4, bytes(15)), bits_moved(c, 4, 4, bytes(48)));
    scales[3] = _mm512_or_si512(and_shifted(b, 4, bytes(15)), bits_moved(c, 6, 4, bytes(48)));
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *qs = body + 192 + sub / 4 * 512, *high = body + 1216;
        __m512i w[8], words = _mm512_sub_epi8(scales[sub / 2], bytes(32));
        UNROLL_8 for (int k = 0; k < 8; k++) {
            __m512i third = bits_moved(load(high + 64 * k), sub, 2, bytes(4));
            w[k] = _mm512_or_si512(and_shifted(load(qs + 64 * k), sub % 4 * 2, bytes(3)), third);
        }
        __m512i scale[2] = {byte_signed(words, sub % 2 * 2), byte_signed(words, sub % 2 * 2 + 1)};
        block_scale16(w, scale, d, 1, sub, tile);
    }
}

INLINE void step_q2_k(const uint8_t *head, const uint8_t *body, const struct tile *tile) {
    const __m512 d = load_halves(head), dmin = _mm512_sub_ps(_mm512_setzero_ps(), load_halves(head + 32));
    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *qs = body + 256 + sub / 4 * 512;
        __m512i w[8], words = load(body + sub / 2 * 64);
        UNROLL_8 for (int k = 0; k < 8; k++) w[k] = and_shifted(load(qs + 64 * k), sub % 4 * 2, bytes(3));
        __m512i scales = _mm512_and_si512(words, bytes(15)), minima = and_shifted(words, 4, bytes(15));
        __m512i scale[2] = {byte_unsigned(scales, sub % 2 * 2), byte_unsigned(scales, sub % 2 * 2 + 1)};
        /* The minima of the two halves as int16 side by side, to meet half_sum. */
        __m512i high_min = _mm512_slli_epi32(byte_unsigned(minima, sub % 2 * 2 + 1), 16);
        __m512i mins = _mm512_or_si512(byte_unsigned(minima, sub % 2 * 2), high_min);
        block_scale16(w, scale, d, 0, sub, tile);
        for (int t = 0; t < tile->tokens; t++) {
            const struct act8_block *x = block_of(tile, t, sub);
            __m512i sum = _mm512_dpwssd_epi32(_mm512_setzero_si512(), mins, broadcast4(x->half_sum));
            tile->acc[t] = fma_block(sum, dmin, x, tile->acc[t]);
        }
    }
}

/* ----------------------------------------------------------------- drivers */

typedef void step_fn(const uint8_t *head, const uint8_t *body, const struct tile *tile);

/* Shape of a type: bytes of one head and one body for 16 lanes, columns of a block. */
struct shape {
    size_t head, body;
    int columns;
};

INLINE void store_rows(const struct matmul_args *args, int64_t panel, int64_t token, __m512 value) {
    int64_t row = panel * 16, left = args->weight->rows - row;
    int valid = left < 16 ? (int)left : 16;
    if (args->bias) value = _mm512_add_ps(value, load_valid(args->bias + row, valid));
    store_valid(args->out + token * args->out_stride + row, valid, value);
}

INLINE void panel_times(const struct matmul_args *args, int64_t panel, int64_t token, const int tokens,
                        const struct shape shape, step_fn *step) {
    __m512 acc[TOKEN_TILE];
    UNROLL_4 for (int t = 0; t < tokens; t++) acc[t] = _mm512_setzero_ps();
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

INLINE void panels_times(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1,
                         const struct shape shape, step_fn *step) {
    for (int64_t panel = panel0; panel < panel1; panel++)
        for (int64_t t = t0; t < t1; t += TOKEN_TILE) {
            int tokens = t1 - t < TOKEN_TILE ? (int)(t1 - t) : TOKEN_TILE;
            if (tokens == 1)
                panel_times(args, panel, t, 1, shape, step);
            else if (tokens == 2)
                panel_times(args, panel, t, 2, shape, step);
            else if (tokens == 4)
                panel_times(args, panel, t, 4, shape, step);
            else
                panel_times(args, panel, t, tokens, shape, step);
        }
}

#define DEFINE_MATMUL(name, halves, body, columns)                                                                     \
    static void times_##name(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) { \
        panels_times(args, panel0, panel1, t0, t1, (struct shape){32 * (halves), 16 * (body), columns}, step_##name);  \
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

/* ------------------------------------------------------------- float types */

typedef __m512 column_fn(const uint8_t *panel, int64_t column);

INLINE __m512 column_f32(const uint8_t *panel, int64_t column) {
    return _mm512_loadu_ps((const void *)(panel + column * 64));
}

INLINE __m512 column_f16(const uint8_t *panel, int64_t column) {
    return load_halves(panel + column * 32);
}

INLINE __m512 column_bf16(const uint8_t *panel, int64_t column) {
    return load_bf16(panel + column * 32);
}

/* `panels` x `tokens` outputs of sixteen rows, one fused chain each. */
INLINE void tile_times(const struct matmul_args *args, int64_t panel, int64_t token, const int panels, const int tokens,
                       column_fn *column) {
    const struct packed *weight = args->weight;
    const uint8_t *w[4];
    const float *x[8];
    __m512 total[16];
    UNROLL_8 for (int p = 0; p < panels; p++) w[p] = weight->data + (size_t)(panel + p) * weight->panel_bytes;
    UNROLL_8 for (int t = 0; t < tokens; t++) x[t] =
        (const float *)(const void *)((const uint8_t *)args->x + (size_t)(token + t) * args->x_row_bytes);
    for (int i = 0; i < panels * tokens; i++) total[i] = _mm512_setzero_ps();
    for (int64_t first = 0; first < weight->cols; first += CHUNK) {
        int64_t last = weight->cols - first < CHUNK ? weight->cols : first + CHUNK;
        __m512 part[16];
        UNROLL_8 for (int i = 0; i < panels * tokens; i++) part[i] = _mm512_setzero_ps();
        for (int64_t c = first; c < last; c++) UNROLL_8 for (int p = 0; p < panels; p++) {
                __m512 value = column(w[p], c);
                UNROLL_8 for (int t = 0; t < tokens; t++) part[p * tokens + t] =
                    _mm512_fmadd_ps(value, _mm512_set1_ps(x[t][c]), part[p * tokens + t]);
            }
        UNROLL_8 for (int i = 0; i < panels * tokens; i++) total[i] = _mm512_add_ps(total[i], part[i]);
    }
    for (int p = 0; p < panels; p++)
        for (int t = 0; t < tokens; t++) store_rows(args, panel + p, token + t, total[p * tokens + t]);
}

INLINE void floats_times(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1,
                         column_fn *column) {
    int64_t panel = panel0;
    if (t1 - t0 == 1)
        for (; panel + 4 <= panel1; panel += 4) tile_times(args, panel, t0, 4, 1, column);
    for (; panel < panel1; panel++) {
        int64_t t = t0;
        for (; t + 8 <= t1; t += 8) tile_times(args, panel, t, 1, 8, column);
        for (; t < t1; t++) tile_times(args, panel, t, 1, 1, column);
    }
}

static void times_f32(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    floats_times(args, panel0, panel1, t0, t1, column_f32);
}

static void times_f16(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    floats_times(args, panel0, panel1, t0, t1, column_f16);
}

static void times_bf16(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    floats_times(args, panel0, panel1, t0, t1, column_bf16);
}

static void quantize(const float *x, int64_t cols, void *out) {
    matmul_avx2.act8_quantize(x, cols, out); /* a block is too small to gain from wider vectors */
}

const struct matmul_table matmul_avx512 = {
    .lanes = 16,
    .matmul =
        {
            [DT_F32] = times_f32,
            [DT_F16] = times_f16,
            [DT_BF16] = times_bf16,
            [DT_Q4_0] = times_q4_0,
            [DT_Q4_1] = times_q4_1,
            [DT_Q5_0] = times_q5_0,
            [DT_Q5_1] = times_q5_1,
            [DT_Q8_0] = times_q8_0,
            [DT_Q2_K] = times_q2_k,
            [DT_Q3_K] = times_q3_k,
            [DT_Q4_K] = times_q4_k,
            [DT_Q5_K] = times_q5_k,
            [DT_Q6_K] = times_q6_k,
        },
    .act8_quantize = quantize,
};
