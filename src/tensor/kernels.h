/* Private to room tensor: the parts from which kernels.c assembles the tables
 * of each instruction set (`struct kernels`).
 *
 * Matrix products and the quantiser of activations come from matmul_*.c as one
 * `struct matmul_table` per instruction set. A NULL entry means "no such
 * product". AVX-512 sources are compiled a second time through SIMDe
 * (SHU_EMULATED, see cmake/emulated.c.in); everything they export is renamed
 * here so that both may live in one program.
 *
 * THE ORDER OF OPERATIONS of all that inference uses. Every instruction set
 * follows it, so that all give the same bits. fma rounds once (scalar: simd_scalar.h); nothing is contracted,
 * reordered or approximated by an estimate of the processor's own.
 *
 *   quantised product   one lane per output, blocks of 32 columns ascending:
 *                         acc = fma(float(sum), scale * x.scale, acc)
 *                       sum: exact integers, w - offset times q; with integer scales per
 *                       16 columns these are in it. scale: d, or d * sub-scale rounded
 *                       before. A minimum follows in the same block:
 *                         acc = fma(min, x.sum, acc)                        Q4_1 Q5_1 Q4_K Q5_K
 *                         acc = fma(float(sum of min * q), -dmin * x.scale, acc)           Q2_K
 *   float product       one lane per output; part = fma(w, x, part) over 256 columns
 *                       ascending, then total += part
 *   bias                acc + bias, last
 *   row sums            norms, softmax: 32 partial sums, column i enters number i % 32
 *                       (squares by fma); then the upper half is added to the lower half,
 *                       16, 8, 4, 2, 1 times
 *   attention           attention.h; q * k one fma chain over dimensions; the sum of a
 *                       page's weights is 16 partial sums, position i enters number i % 16,
 *                       folded by halves as above; values one fma chain over positions
 *   elementwise         the polynomials of math_simd.h, division and square root exact
 *
 * A NaN is a NaN everywhere; its sign and payload are the processor's.
 */
#ifndef TENSOR_KERNELS_H
#define TENSOR_KERNELS_H

#include "tensor/tensor.h"

#ifdef SHU_EMULATED
#define matmul_avx512 matmul_avx512_emulated
#endif

/* Kernels are written to be inlined and unrolled whole: -O2 keeps small fixed loops rolled and their arrays in memory.
 * Where they are checked, not timed (emulation; SHU_COMPACT_KERNELS, set by CMake for sanitizers), one compact copy of
 * every loop keeps their compilation short. */
#if defined(SHU_EMULATED) || defined(SHU_COMPACT_KERNELS)
#define INLINE static __attribute__((noinline))
#define UNROLL_4
#define UNROLL_8
#else
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL_4 _Pragma("unroll(4)")
#define UNROLL_8 _Pragma("unroll(8)")
#else
#define UNROLL_4 _Pragma("GCC unroll 4")
#define UNROLL_8 _Pragma("GCC unroll 8")
#endif
#endif

typedef void matmul_fn(const struct matmul_args *args, int64_t panel0, int64_t panel1, int64_t t0, int64_t t1);

struct matmul_table {
    int lanes; /* rows per panel that these products expect */
    matmul_fn *matmul[DT_COUNT];
    void (*act8_quantize)(const float *x, int64_t cols, void *out);
};

extern const struct matmul_table matmul_scalar; /* every machine; 8 lanes */
extern const struct matmul_table matmul_avx2;   /* x86-64 with AVX2, FMA, F16C; 8 lanes */
extern const struct matmul_table matmul_avx512; /* AVX-512 F BW VL DQ VNNI; 16 lanes */
#ifdef SHU_EMULATE_AVX512
extern const struct matmul_table matmul_avx512_emulated;
#endif

#endif
