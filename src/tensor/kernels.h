/* Private to room tensor: the parts from which kernels.c assembles the tables
 * of each instruction set (`struct kernels`).
 *
 * Matrix products and the quantiser of activations come from matmul_*.c as one
 * `struct matmul_table` per instruction set. A NULL entry means "no such
 * product". AVX-512 sources are compiled a second time through SIMDe
 * (SHU_EMULATED, see cmake/emulated.c.in); everything they export is renamed
 * here so that both may live in one program.
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
