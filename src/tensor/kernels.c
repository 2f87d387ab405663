/* The one dispatch point: assembles a table of kernels per instruction set and picks one. */
#include "tensor/kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "tensor/attention.h"
#include "tensor/ops.h"
#include "tensor/training_tables.h"

enum isa { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_COUNT };

/* Write-once, behind pthread_once. */
static struct kernels tables[ISA_COUNT]; /* isa NULL = not available here */
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void table_build(enum isa isa, const char *name, const struct matmul_table *matmul, const struct ops_table *ops,
                        const struct attention_table *attention, const struct training_kernels *training) {
    struct kernels k = {.isa = name, .lanes = matmul->lanes, .act8_quantize = matmul->act8_quantize};
    for (int i = 0; i < DT_COUNT; i++) k.matmul[i] = matmul->matmul[i];
    k.rms_norm = ops->rms_norm;
    k.layer_norm = ops->layer_norm;
    k.softmax = ops->softmax;
    k.unary = ops->unary;
    k.gated = ops->gated;
    k.add = ops->add;
    k.mul = ops->mul;
    k.scale = ops->scale;
    k.softcap = ops->softcap;
    k.rope = ops->rope;
    k.kv_store = attention->kv_store;
    k.attention = attention->attention;
    k.training = *training;
    tables[isa] = k;
}

#if defined(__x86_64__)
static bool cpu_has_f16c(void) { /* clang 14's __builtin_cpu_supports does not know it */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool cpu_has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           cpu_has_f16c();
}

static bool cpu_has_avx512(void) {
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(__x86_64__)
typedef void gemm_fn(const struct gemm_args *args, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void *scratch);

/* AVX-512 takes all of training but its products from AVX2. */
static void products_set(enum isa isa, gemm_fn *f32, gemm_fn *bf16) {
    tables[isa].training.gemm[GEMM_F32] = f32;
    tables[isa].training.gemm[GEMM_BF16] = bf16;
}
#endif

static void tables_build(void) {
    table_build(ISA_SCALAR, "scalar", &matmul_scalar, &ops_scalar, &attention_scalar, &training_scalar);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (cpu_has_avx2()) table_build(ISA_AVX2, "avx2", &matmul_avx2, &ops_avx2, &attention_avx2, &training_avx2);
    if (cpu_has_avx512()) {
        table_build(ISA_AVX512, "avx512", &matmul_avx512, &ops_avx512, &attention_avx512, &training_avx2);
        products_set(ISA_AVX512, gemm_avx512, __builtin_cpu_supports("avx512bf16") ? gemm_bf16_avx512 : gemm_avx512);
        return;
    }
#ifdef SHU_EMULATE_AVX512
    if (cpu_has_avx2()) {
        table_build(ISA_AVX512, "avx512", &matmul_avx512_emulated, &ops_avx512_emulated, &attention_avx512_emulated,
                    &training_avx2);
        products_set(ISA_AVX512, gemm_avx512_emulated, gemm_bf16_avx512_emulated);
    }
#endif
#endif
}

/* The widest set that the CPU itself has; emulation is never chosen unasked. */
static enum isa best_isa(void) {
#if defined(__x86_64__)
    if (cpu_has_avx512()) return ISA_AVX512;
    if (cpu_has_avx2()) return ISA_AVX2;
#endif
    return ISA_SCALAR;
}

int kernels_select(const char *isa, const struct kernels **out, struct shu_error *err) {
    static const char *const names[ISA_COUNT] = {"scalar", "avx2", "avx512"};
    pthread_once(&tables_once, tables_build);
    if (!isa) isa = getenv("SHU_ISA");
    if (!isa || !*isa) {
        *out = &tables[best_isa()];
        return SHU_OK;
    }
    for (int i = 0; i < ISA_COUNT; i++) {
        if (strcmp(names[i], isa) == 0 && tables[i].isa) {
            *out = &tables[i];
            return SHU_OK;
        }
    }
    return SHU_FAIL(err, SHU_E_USAGE, "SHU_ISA: expected one of scalar%s%s, found \"%.32s\"; unset it to use the best",
                    tables[ISA_AVX2].isa ? ", avx2" : "", tables[ISA_AVX512].isa ? ", avx512" : "", isa);
}

const struct kernels *kernels_get(void) {
    const struct kernels *kernels;
    if (kernels_select(NULL, &kernels, NULL) == SHU_OK) return kernels;
    return &tables[best_isa()];
}

/* ---------------------------------------------------------------- geometry */

size_t attention_scratch_bytes(int head_dim) {
    (void)head_dim; /* rows have a fixed stride: cheap addressing, and the whole is small */
    return sizeof(struct attention_scratch);
}

size_t kv_page_head_bytes(enum kv_type type, int head_dim) {
    size_t elements = (size_t)2 * KV_PAGE * (size_t)head_dim;
    return type == KV_F16 ? elements * 2 : elements + (size_t)2 * KV_PAGE * sizeof(float);
}

void rope_table(int32_t position, int rot, double freq_base, double freq_scale, const float *factors, float *cos_sin) {
    int half = rot / 2;
    for (int i = 0; i < half; i++) {
        double frequency = pow(freq_base, -2.0 * i / rot) / (factors ? (double)factors[i] : 1.0);
        double angle = (double)position * freq_scale * frequency;
        cos_sin[i] = (float)cos(angle);
        cos_sin[half + i] = (float)sin(angle);
    }
}
