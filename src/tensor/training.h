/* Kernels that learning needs besides those of inference. Part of tensor.h; not included alone.
 *
 * Products. One routine serves all three of a linear layer y = x W^T:
 *     forward   y  = x W^T      b = W, b_transposed   (row n of b holds column n of the product)
 *     backward  dx = dy W       b = W
 *     weights   dW = dy^T x     a = dy with its strides exchanged, b = x
 * The right operand may be of any plain or block-quantised type and is decoded tile by tile into the
 * thread's scratch, so a frozen base is read from the mapped file at its own bit width, in both
 * directions, and never unpacked as a whole.
 *
 * The fixed-order rule holds: an element is the sum over k in ascending blocks of GEMM_DEPTH, each
 * summed in ascending k and then added to the element, whatever the tiles. Two instruction sets may
 * differ in the last bits here (unlike in inference): a run resumes bit for bit on the same machine.
 */
#ifndef TENSOR_TRAINING_H
#define TENSOR_TRAINING_H

#define GEMM_DEPTH 256 /* k per pass: one K-quant super-block */
#define GEMM_COLS  256 /* columns of a tile start at multiples of this */

/* GEMM_BF16: both operands are rounded to bf16 (nearest even, subnormal values to zero) and multiplied with f32
 * accumulation where the machine has AVX512_BF16; elsewhere it is the same function as GEMM_F32. Operands are rounded
 * in no other kernel. */
enum gemm_precision { GEMM_F32, GEMM_BF16, GEMM_PRECISIONS };

/* c[m, n] = (accumulate ? c[m, n] : bias ? bias[n] : 0) + alpha * sum over k of a[m, k] * b[k, n]. */
struct gemm_args {
    int64_t m, n, k;
    const float *a;
    int64_t a_row, a_col; /* strides in elements: a[m * a_row + k * a_col]; one of them is 1 */
    enum dtype b_dtype;   /* any type with to_f32 */
    const void *b;        /* rows of k columns (transposed: n rows) or of n columns (else: k rows) */
    size_t b_row_bytes;   /* from a row of b to the next */
    bool b_transposed;
    float alpha;
    bool accumulate;
    const float *bias; /* [n] or NULL; not with accumulate */
    float *c;
    int64_t c_row; /* elements */
};

/* Attention over whole sequences, several of them packed one behind the other (block-diagonal).
 * Row r belongs to the sequence that begins at row begin[r]; it sees rows begin[r]…r, or, where causal
 * is false, all rows of its sequence, in both cases only rows s with |r - s| < `window` (0 = no limit). */
struct sdpa_args {
    int64_t rows;
    const int32_t *begin; /* [rows], not descending, begin[r] <= r */
    int heads, kv_heads, head_dim;
    float scale, softcap; /* softcap 0 = none */
    int window;
    bool causal;
    const float *q, *k, *v;      /* [rows, heads * D], [rows, kv_heads * D] twice, after rotation */
    int64_t q_row, k_row, v_row; /* strides in elements */
    float *out, *lse;            /* [rows, heads * D]; log of the sum of exponentials [rows, heads] */
    int64_t out_row, lse_row;
    const float *d_out; /* backward only, as are the following */
    int64_t d_out_row;
    float *dq, *dk, *dv; /* shaped as q, k, v */
    int64_t dq_row, dk_row, dv_row;
};
#define SDPA_ROWS 64 /* rows of a unit of work at most; a unit never spans two sequences */

/* AdamW (Loshchilov & Hutter 2019), one step for `count` values that share their settings. */
struct adamw_args {
    float learning_rate, beta1, beta2, eps, weight_decay;
    float correction1, correction2; /* 1 - beta^step */
    float gradient_scale;           /* clipping: multiplies every gradient */
    uint64_t seed;                  /* of stochastic rounding; bf16 values only. Same seed, same bits */
    int64_t offset;                 /* index of the first value in its tensor: part of the seed */
};

struct training_kernels {
    /* Computes c[m0…m1, n0…n1). n0 is a multiple of GEMM_COLS, n1 likewise or n. Every call decodes its part of b once
     * per GEMM_COLS columns: worth it from some 256 rows on. scratch: gemm_scratch_bytes(), 64-byte aligned. */
    void (*gemm[GEMM_PRECISIONS])(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                                  void *scratch);

    /* Attention (FlashAttention-2, Dao 2023: online softmax, recomputation in the backward pass).
     * Rows [row0, row1) of one sequence, at most SDPA_ROWS, all query heads of KV head kv_head.
     * backward_q writes dq of these rows; backward_kv writes dk and dv of them, both without adding. */
    void (*sdpa_forward)(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);
    void (*sdpa_backward_q)(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);
    void (*sdpa_backward_kv)(const struct sdpa_args *args, int64_t row0, int64_t row1, int kv_head, void *scratch);

    /* One row: dx for y = rms_norm(x, gain). gain may be NULL. normed (may be NULL) receives x / rms, so that
     * the gain's gradient is the column sum of dy * normed. dx may be dy. */
    void (*rms_norm_backward)(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                              float *normed);
    void (*layer_norm_backward)(const float *dy, const float *x, const float *gain, float eps, int64_t cols, float *dx,
                                float *normed);
    /* dx for y = softmax(scale * x): dx = scale * y * (dy - sum(dy * y)). */
    void (*softmax_backward)(const float *dy, const float *y, float scale, int64_t cols, float *dx);
    /* dx = dy * f'(x). dx may be dy. */
    void (*unary_backward)(enum unary_kind kind, const float *dy, const float *x, int64_t count, float *dx);
    /* d_gate = dy * up * f'(gate), d_up = dy * f(gate). */
    void (*gated_backward)(enum unary_kind kind, const float *dy, const float *gate, const float *up, int64_t count,
                           float *d_gate, float *d_up);
    void (*softcap_backward)(const float *dy, const float *x, float cap, int64_t count, float *dx);
    /* One row of logits [count], in place: returns the negative log-likelihood of `target` and leaves
     * weight * (softmax - one_hot(target)). With gradient false the logits stay as they are. */
    float (*cross_entropy)(float *logits, int64_t count, int32_t target, float weight, bool gradient);
    /* sum[c] += x[c] over `rows` rows in ascending order, for columns [col0, col1). */
    void (*column_sum)(const float *x, int64_t x_row, int64_t rows, int64_t col0, int64_t col1, float *sum);
    double (*sum_of_squares)(const float *x, int64_t count);
    /* value and the two moments are f32, or all bf16 with f32 arithmetic and stochastic rounding of all three. */
    void (*adamw_f32)(const struct adamw_args *args, const float *gradient, int64_t count, float *value, float *m,
                      float *v);
    void (*adamw_bf16)(const struct adamw_args *args, const float *gradient, int64_t count, uint16_t *value,
                       uint16_t *m, uint16_t *v);
    /* One row: y = x times dropout_factor (below). y may be x. */
    void (*dropout)(uint64_t seed, int64_t row, float p, const float *x, int64_t cols, float *y);
};
size_t gemm_scratch_bytes(void);                    /* of one thread */
size_t sdpa_scratch_bytes(int head_dim, int group); /* of one thread; group = query heads per KV head */

/* Dropout by counter (no state): factor of element (row, col) under `seed`: 0 with probability p, else 1 / (1 - p). */
float dropout_factor(uint64_t seed, int64_t row, int64_t col, float p);

#endif
