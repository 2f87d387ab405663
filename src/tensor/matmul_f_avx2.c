/* Products of F32, F16 and BF16 weights with f32 rows for AVX2.
 *
 * Fixed order: within a chunk of 256 columns one fused chain per output, chunks then added in ascending order. A tile
 * of several panels and tokens only runs more such chains side by side: enough of them to hide the latency of the
 * fused multiply-add, and loads shared between them. */
#include "tensor/matmul_avx2.h"

#include <immintrin.h>

/* Columns that one partial sum takes before it joins the total: bounds the growth of rounding errors. */
#define CHUNK 256

typedef __m256 load_fn(const uint8_t *panel, int64_t column);

INLINE __m256 load_f32(const uint8_t *panel, int64_t column) {
    return _mm256_load_ps((const float *)(const void *)(panel + column * 32));
}

INLINE __m128i load_words(const uint8_t *panel, int64_t column) {
    return _mm_load_si128((const __m128i *)(const void *)(panel + column * 16));
}

INLINE __m256 load_f16(const uint8_t *panel, int64_t column) {
    return _mm256_cvtph_ps(load_words(panel, column));
}

INLINE __m256 load_bf16(const uint8_t *panel, int64_t column) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_words(panel, column)), 16));
}

INLINE void store_rows(const struct matmul_args *args, int64_t panel, int64_t token, __m256 value) {
    int64_t row = panel * 8, valid = args->weight->rows - row;
    float *out = args->out + token * args->out_stride + row;
    __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(valid < 8 ? (int)valid : 8), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    if (args->bias) value = _mm256_add_ps(value, _mm256_maskload_ps(args->bias + row, mask));
    _mm256_maskstore_ps(out, mask, value);
}

/* `panels` x `tokens` outputs of eight rows. */
INLINE void tile_times(const struct matmul_args *args, int64_t panel, int64_t token, const int panels, const int tokens,
                       load_fn *load) {
    const struct packed *weight = args->weight;
    const uint8_t *w[4], *x[6];
    __m256 total[4 * 6];
    UNROLL_8 for (int p = 0; p < panels; p++) w[p] = weight->data + (size_t)(panel + p) * weight->panel_bytes;
    UNROLL_8 for (int t = 0; t < tokens; t++) x[t] = (const uint8_t *)args->x + (size_t)(token + t) * args->x_row_bytes;
    for (int i = 0; i < panels * tokens; i++) total[i] = _mm256_setzero_ps();
    for (int64_t first = 0; first < weight->cols; first += CHUNK) {
        int64_t last = weight->cols - first < CHUNK ? weight->cols : first + CHUNK;
        __m256 part[4][6];
        UNROLL_8 for (int p = 0; p < panels; p++) UNROLL_8 for (int t = 0; t < tokens; t++) part[p][t] =
            _mm256_setzero_ps();
        for (int64_t c = first; c < last; c++) {
            __m256 column[4];
            UNROLL_8 for (int p = 0; p < panels; p++) column[p] = load(w[p], c);
            UNROLL_8 for (int t = 0; t < tokens; t++) {
                __m256 value = _mm256_broadcast_ss((const float *)(const void *)x[t] + c);
                UNROLL_8 for (int p = 0; p < panels; p++) part[p][t] = _mm256_fmadd_ps(column[p], value, part[p][t]);
            }
        }
        UNROLL_8 for (int p = 0; p < panels; p++) UNROLL_8 for (int t = 0; t < tokens; t++) total[p * tokens + t] =
            _mm256_add_ps(total[p * tokens + t], part[p][t]);
    }
    for (int p = 0; p < panels; p++)
        for (int t = 0; t < tokens; t++) store_rows(args, panel + p, token + t, total[p * tokens + t]);
}

INLINE void panels_tokens(const struct matmul_args *args, int64_t panel, const int panels, int64_t t0, int64_t t1,
                          load_fn *load) {
    int64_t t = t0;
    for (; t + 6 <= t1; t += 6) tile_times(args, panel, t, panels, 6, load);
    for (; t + 3 <= t1; t += 3) tile_times(args, panel, t, panels, 3, load);
    for (; t < t1; t++) tile_times(args, panel, t, panels, 1, load);
}

INLINE void floats_times(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1,
                         load_fn *load) {
    int64_t panel = panel0;
    if (t1 - t0 == 1) /* one token: several panels supply the independent chains */
        for (; panel + 4 <= panel1; panel += 4) tile_times(args, panel, t0, 4, 1, load);
    for (; panel + 2 <= panel1; panel += 2) panels_tokens(args, panel, 2, t0, t1, load);
    for (; panel < panel1; panel++) panels_tokens(args, panel, 1, t0, t1, load);
}

void matmul_f32_avx2(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    floats_times(args, panel0, panel1, t0, t1, load_f32);
}

void matmul_f16_avx2(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    floats_times(args, panel0, panel1, t0, t1, load_f16);
}

void matmul_bf16_avx2(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1) {
    floats_times(args, panel0, panel1, t0, t1, load_bf16);
}
