/* tensor: number formats, packed weights, and the kernels of each instruction set.
 *
 * Three kinds of data meet here.
 *   plain    rows as files hold them: F32, F16, BF16 or GGML quantised blocks
 *            (`struct tensor`, a view that owns nothing).
 *   packed   a weight matrix rearranged once, at load, into row panels for the
 *            machine's vector width, at its native bit width (`struct packed`).
 *   act8     activations quantised on the fly: per 32 columns 32 int8 values,
 *            one f32 scale and the sums that products need (`struct act8_block`).
 * `kernels_get()` picks the widest instruction set once (SHU_ISA=scalar|avx2|
 * avx512 forces one). Every table holds every kernel.
 *
 * The fixed-order rule. Each output element is reduced in one order that
 * depends only on its own row and column data: not on the number of threads,
 * on how work was cut into tiles, or on which other rows are in the batch. A
 * matrix product over one row gives bit for bit what the same row gives inside
 * a batch of 512. The order is the same in every instruction set (kernels.h
 * states it), so that scalar, AVX2 and AVX-512 kernels give the same bits; those of
 * training (tensor/training.h) keep it within a set.
 */
#ifndef TENSOR_H
#define TENSOR_H

#include "base/base.h"

/* ------------------------------------------------------------------ dtypes */

enum dtype {
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_Q4_0, /* 32 x 4 bit, f16 scale */
    DT_Q4_1, /* + f16 minimum */
    DT_Q5_0,
    DT_Q5_1,
    DT_Q8_0,
    DT_Q2_K, /* super-blocks of 256 */
    DT_Q3_K,
    DT_Q4_K,
    DT_Q5_K,
    DT_Q6_K,
    DT_I32,  /* token ids, positions */
    DT_ACT8, /* quantised activations; rows of act8_row_bytes(cols) */
    DT_COUNT
};

struct dtype_info {
    const char *name; /* "Q4_K" */
    int ggml_type;    /* number in GGUF files; -1 = never stored */
    int block;        /* elements per block; 1 for plain types */
    int block_bytes;
    /* Decode or encode `count` elements, a multiple of `block`. from_f32 may be
     * NULL (type is only read). Written: F32 F16 BF16 Q4_0 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K.
     * from_f32 may use per-column importance (NULL = all alike). */
    void (*to_f32)(const void *blocks, float *out, int64_t count);
    void (*from_f32)(const float *values, const float *importance, void *blocks, int64_t count);
};
extern const struct dtype_info dtype_table[DT_COUNT];

/* dtype for a GGUF type number or a name ("q4_k", case-blind); -1 if unknown. */
int dtype_from_ggml(uint32_t ggml_type);
int dtype_from_name(const char *name);
/* Bytes of a row of cols elements; 0 if cols is no multiple of the block. */
size_t dtype_row_bytes(enum dtype dtype, int64_t cols);

/* Scalar conversions (IEEE 754; round to nearest even; NaN stays NaN). */
float f16_to_f32(uint16_t half);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t value);
uint16_t f32_to_bf16(float value);

/* View of plain data, row-major, shape[0] is the innermost (contiguous) dimension. */
struct tensor {
    enum dtype dtype;
    int ndim;         /* 1…4 */
    int64_t shape[4]; /* columns, rows, …; unused = 1 */
    const void *data; /* not owned */
};
int64_t tensor_rows(const struct tensor *tensor); /* product of shape[1…3] */
size_t tensor_bytes(const struct tensor *tensor); /* sizes were checked at load */

/* ---------------------------------------------------------- packed weights */

/* Weight matrix [rows, cols] (rows = outputs) as panels of `lanes` rows. In a
 * panel, columns run outward and lanes inward, so that one vector load yields
 * the same column group of all lanes. The byte layout of each type is
 * described in tensor/packed.h. The last panel is padded with zero rows. */
struct packed {
    enum dtype dtype; /* of the source; the packed form keeps its bit width */
    int64_t rows, cols;
    int lanes; /* 8 (scalar, AVX2) or 16 (AVX-512) */
    size_t panel_bytes;
    uint8_t *data; /* panels * panel_bytes; 64-byte aligned; owner = whoever set it */
};
struct kernels;
/* Pure: fills dtype, rows, cols, lanes, panel_bytes; returns the total bytes to allocate. */
size_t packed_plan(const struct kernels *kernels, enum dtype dtype, int64_t rows, int64_t cols, struct packed *out);
int64_t packed_panels(const struct packed *packed);
/* Packs panels [first, last) from the plain rows of the whole matrix. Threads
 * may pack disjoint ranges. Values are kept exactly. */
void packed_fill(struct packed *packed, const void *plain_rows, int64_t first, int64_t last);
/* Decodes one row to f32 [cols]: embedding look-up from a tied output matrix. */
void packed_row(const struct packed *packed, int64_t row, float *out);

/* ------------------------------------------------------------- activations */

/* One ACT8 row of `cols` columns is one act8_block per 32 columns (padded with
 * zeros), then, if their number is even, one unused block: an odd number of
 * cache lines. Value of column c = scale * q[c]. The sums stand beside the
 * values so that a product corrects the offset of unsigned weights (q - 8, q -
 * 16, q - 32) exactly, with one add. part(h, k) = sum of q over the columns c
 * of half h (c / 16) with (c % 4) / 2 == k; |part| <= 1016. */
#define ACT8_BLOCK 32
struct act8_block {
    int8_t q[32];          /* |q| <= 127 */
    float scale;           /* max|x| / 127; NaN if any x is NaN or infinite; 0 (and q = 0) if max|x| < 2^-100 */
    float sum;             /* scale * sum of q */
    int16_t minus8[2];     /* [k] = -8 * (part(0, k) + part(1, k)) */
    int16_t minus16[2];    /* [k] = -16 * (part(0, k) + part(1, k)) */
    int16_t minus32[2][2]; /* [h][k] = -32 * part(h, k) */
    int16_t half_sum[2];   /* [h] = sum of q over half h */
    int32_t zero;          /* keeps the block at one cache line */
};
_Static_assert(sizeof(struct act8_block) == 64, "one cache line");
size_t act8_row_bytes(int64_t cols);

/* ---------------------------------------------------------------- KV pages */

/* The KV cache is cut into pages of KV_PAGE positions. One page of one layer
 * holds, for each KV head in turn, K then V:
 *   K  tiles of KV_TILE positions, transposed: [KV_PAGE / KV_TILE][D][KV_TILE]
 *   V  [KV_PAGE][D]
 * as f16, or as int8 followed by f32 scales: K [tiles][D][KV_TILE] int8,
 * V [KV_PAGE][D] int8, then k_scale[KV_PAGE], v_scale[KV_PAGE]; one scale per
 * position and head. Keys are stored after rotation. */
#define KV_PAGE      64
#define KV_TILE      16
#define HEAD_DIM_MAX 256 /* attention keeps a query in fixed scratch rows; room graph refuses more */
enum kv_type { KV_F16, KV_Q8 };
size_t kv_page_head_bytes(enum kv_type type, int head_dim); /* one head of one page, K and V */

/* One row (token) of a step: which sequence it belongs to and where it stands.
 * Rows of one sequence are consecutive and ascending in a step. */
struct kv_row {
    int32_t sequence; /* index into kv_step.tables */
    int32_t position; /* absolute, 0-based */
};

/* Where the sequences of a step keep their keys and values. Filled by room
 * infer, read by attention and rotation. Plain data; owns nothing. */
struct kv_step {
    enum kv_type type;
    int kv_heads, head_dim;
    int64_t rows;
    const struct kv_row *row;     /* [rows] */
    const int32_t *const *tables; /* [sequences] -> page numbers by position / KV_PAGE */
    uint8_t *const *layer_base;   /* [layers] start of the page array of a layer */
    size_t page_bytes;            /* from a page of a layer to its next one: kv_heads * kv_page_head_bytes or more */
};

/* Attention of one layer. q is [rows, heads * D], out likewise. */
struct attention_args {
    const struct kv_step *step;
    int layer, heads;
    float scale;   /* multiplies q·k */
    float softcap; /* 0 = none, else s = cap * tanh(s / cap) */
    int window;    /* 0 = full causal, else only the last `window` positions, itself included */
    const float *q;
    int64_t q_stride; /* elements between rows */
    float *out;
    int64_t out_stride;
};

/* ----------------------------------------------------------------- kernels */

/* Matrix product out[t, r] = sum_c x[t, c] * w[r, c] (+ bias[r]) for panels
 * [panel0, panel1) and token rows [t0, t1).
 * x is f32 rows for F32/F16/BF16 weights, ACT8 rows for quantised weights. */
struct matmul_args {
    const struct packed *weight;
    const void *x;
    size_t x_row_bytes;
    const float *bias;  /* [rows] or NULL */
    float *out;         /* [tokens, out_stride] */
    int64_t out_stride; /* elements */
};

enum unary_kind {
    UNARY_SILU,
    UNARY_GELU_TANH,
    UNARY_GELU_ERF,
    UNARY_RELU,
    UNARY_SIGMOID,
    UNARY_TANH,
    UNARY_EXP,
    UNARY_KINDS
};

#include "tensor/training.h"

struct kernels {
    const char *isa; /* "scalar", "avx2", "avx512" */
    int lanes;       /* rows per panel of packed weights */

    /* One per weight type; NULL only for types that are no weights. */
    void (*matmul[DT_COUNT])(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1);

    /* f32 row -> ACT8 row: scale = max|x| / 127 per 32 columns, q rounded to nearest even. NaN and
     * infinity give a NaN scale, so that they spread instead of vanishing. */
    void (*act8_quantize)(const float *x, int64_t cols, void *out);

    /* y = x / sqrt(mean(x^2) + eps) * gain (gain NULL = 1). Zhang & Sennrich 2019. y may be x. */
    void (*rms_norm)(const float *x, const float *gain, float eps, int64_t cols, float *y);
    /* y = (x - mean) / sqrt(var + eps) * gain + bias. Ba et al. 2016. y may be x. */
    void (*layer_norm)(const float *x, const float *gain, const float *bias, float eps, int64_t cols, float *y);
    /* y = softmax(scale * x), shifted by the maximum. y may be x. */
    void (*softmax)(const float *x, float scale, int64_t cols, float *y);
    /* y = f(x), element by element. y may be x. */
    void (*unary)(enum unary_kind kind, const float *x, int64_t count, float *y);
    /* y = f(gate) * up: SwiGLU, GeGLU (Shazeer 2020). y may be gate or up. */
    void (*gated)(enum unary_kind kind, const float *gate, const float *up, int64_t count, float *y);
    void (*add)(const float *a, const float *b, int64_t count, float *y);
    void (*mul)(const float *a, const float *b, int64_t count, float *y);
    void (*scale)(const float *x, float factor, int64_t count, float *y);
    void (*softcap)(const float *x, float cap, int64_t count, float *y); /* cap * tanh(x / cap) */

    /* Rotary embedding (Su et al. 2021) of `heads` vectors of head_dim. cos/sin are [rot / 2]; pairs
     * are (i, i + rot/2) when neox, else (2i, 2i + 1). Elements beyond rot stay. In place. */
    void (*rope)(float *x, int heads, int head_dim, int rot, bool neox, const float *cos_sin);

    /* Writes row `row` of a step into its KV page: k and v are [kv_heads * D] f32. */
    void (*kv_store)(const struct kv_step *step, int layer, int64_t row, const float *k, const float *v);
    /* Query rows [row0, row1), all of one sequence, query heads [head0, head1), all of one KV head.
     * Each query is reduced over key tiles in ascending absolute position: fixed order.
     * `scratch` is attention_scratch_bytes() of the calling thread's own memory, 64-byte aligned. */
    void (*attention)(const struct attention_args *args, int64_t row0, int64_t row1, int head0, int head1,
                      void *scratch);

    struct training_kernels training;
};

/* The table for this machine, or for the set named in SHU_ISA. kernels_select takes a name; NULL means SHU_ISA
 * or, where that is unset, the best; a set that is unknown or not to be had here is SHU_E_USAGE. kernels_get never
 * fails: it takes the best instead. */
const struct kernels *kernels_get(void);
int kernels_select(const char *isa, const struct kernels **out, struct shu_error *err);
size_t attention_scratch_bytes(int head_dim); /* of one thread; head_dim at most HEAD_DIM_MAX */

/* rope cos/sin table of one position: [rot/2] cos then [rot/2] sin, computed in
 * double. factors (may be NULL) divide the frequencies (llama 3 long context);
 * freq_scale multiplies positions (linear scaling, 1 = none). */
void rope_table(int32_t position, int rot, double freq_base, double freq_scale, const float *factors, float *cos_sin);

#endif
