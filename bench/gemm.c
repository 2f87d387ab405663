/* Micro-benchmark of the products of training, one thread, beside the machine's multiply-add peak.
 *
 *   gemm [--isa NAME] [--rows N] [--seconds S] [TYPE…]     e.g. chrt -f 10 gemm q5_0 q4_k
 *
 * Shapes are those of a 0.5B and a 1.5B decoder: 1024 tokens through projections forward (x W^T), backward (dy W)
 * and into a weight's gradient (dy^T x), LoRA's narrow products, and the output matrix with 256 rows. Tiles of N rows
 * (256) and GEMM_COLS columns, as a pool of threads would take them. Best of the runs that fit into S seconds (0.3)
 * per line; the peak is measured again before every table. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "tensor/tensor.h"

struct shape {
    int64_t m, n, k;
};

static const struct shape shapes[] = {{1024, 896, 896},  {1024, 128, 896},   {1024, 4864, 896},  {1024, 896, 4864},
                                      {1024, 896, 128},  {1024, 1536, 1536}, {1024, 8960, 1536}, {1024, 1536, 8960},
                                      {1024, 16, 896},   {1024, 16, 4864},   {1024, 896, 16},    {1024, 4864, 16},
                                      {256, 151936, 896}};
#define SHAPES (sizeof shapes / sizeof *shapes)

enum way { FORWARD, BACKWARD, WEIGHTS, WAYS };
static const char *const way_names[WAYS] = {"x W^T", "dy W", "dy^T x"};

struct bench {
    const struct kernels *kernels;
    enum gemm_precision precision;
    int64_t rows;
    double seconds;
    void *scratch;
    float *a, *c;
    uint8_t *b;
    size_t values, b_bytes; /* room in a and c (f32) and in b */
};

static void die(const char *message) {
    fprintf(stderr, "gemm: %s\n", message);
    exit(1);
}

/* ---------------------------------------------------------------------- peak */

#if defined(__x86_64__)
/* Twelve independent chains, each in a register of its own. */
__attribute__((target("avx2,fma"))) static double peak_gflops(void) {
    const int64_t steps = 1 << 18;
    double best = 0;
    for (int round = 0; round < 40; round++) {
        uint64_t start = clock_ns();
        for (int64_t step = 0; step < steps; step++)
            __asm__ volatile("vfmadd231ps %%ymm15, %%ymm15, %%ymm0\n vfmadd231ps %%ymm15, %%ymm15, %%ymm1\n"
                             "vfmadd231ps %%ymm15, %%ymm15, %%ymm2\n vfmadd231ps %%ymm15, %%ymm15, %%ymm3\n"
                             "vfmadd231ps %%ymm15, %%ymm15, %%ymm4\n vfmadd231ps %%ymm15, %%ymm15, %%ymm5\n"
                             "vfmadd231ps %%ymm15, %%ymm15, %%ymm6\n vfmadd231ps %%ymm15, %%ymm15, %%ymm7\n"
                             "vfmadd231ps %%ymm15, %%ymm15, %%ymm8\n vfmadd231ps %%ymm15, %%ymm15, %%ymm9\n"
                             "vfmadd231ps %%ymm15, %%ymm15, %%ymm10\n vfmadd231ps %%ymm15, %%ymm15, %%ymm11\n" ::
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                                   "xmm10", "xmm11");
        double rate = 16.0 * 12 * (double)steps / (double)(clock_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}
#else
static double peak_gflops(void) {
    return NAN;
}
#endif

/* ------------------------------------------------------------------- product */

static double product_gflops(const struct bench *bench, const struct gemm_args *args) {
    uint64_t best = UINT64_MAX, begin = clock_ns();
    do {
        uint64_t start = clock_ns();
        for (int64_t m = 0; m < args->m; m += bench->rows)
            for (int64_t n = 0; n < args->n; n += GEMM_COLS)
                bench->kernels->training.gemm[bench->precision](
                    args, m, m + bench->rows < args->m ? m + bench->rows : args->m, n,
                    n + GEMM_COLS < args->n ? n + GEMM_COLS : args->n, bench->scratch);
        uint64_t took = clock_ns() - start;
        best = took < best ? took : best;
    } while ((double)(clock_ns() - begin) < bench->seconds * 1e9);
    return 2.0 * (double)(args->m * args->n * args->k) / (double)best;
}

/* The operands of one way; false if the type cannot be laid out so. */
static bool product_args(const struct bench *bench, enum way way, enum dtype dtype, struct shape shape,
                         struct gemm_args *out) {
    int64_t m = shape.m, n = shape.n, k = shape.k;
    *out = (struct gemm_args){.m = m, .n = n, .k = k, .a_row = k, .a_col = 1, .b_dtype = dtype};
    out->b_transposed = way == FORWARD;
    if (way == WEIGHTS) { /* [n, m] x [m, k]: the gradient of a weight with n rows */
        if (dtype != DT_F32) return false;
        *out = (struct gemm_args){.m = n, .n = k, .k = m, .a_row = 1, .a_col = n, .b_dtype = dtype};
        out->accumulate = true;
    }
    int64_t b_rows = out->b_transposed ? out->n : out->k, b_cols = out->b_transposed ? out->k : out->n;
    out->b_row_bytes = dtype_row_bytes(dtype, b_cols);
    out->alpha = 1, out->a = bench->a, out->b = bench->b, out->c = bench->c, out->c_row = out->n;
    return out->b_row_bytes > 0 && (size_t)b_rows * out->b_row_bytes <= bench->b_bytes &&
           (size_t)(out->m * out->n) <= bench->values && (size_t)(out->m * out->k) <= bench->values;
}

/* Small finite numbers in every format: halves with a low exponent, anything elsewhere. */
static void fill(struct bench *bench, enum dtype dtype) {
    struct rng rng;
    rng_seed(&rng, 1);
    for (size_t i = 0; i < bench->values; i++) bench->a[i] = rng_normal(&rng) * 0.1f;
    if (dtype == DT_F32)
        for (size_t i = 0; i < bench->b_bytes; i += bench->values)
            memcpy(bench->b + i, bench->a, bench->b_bytes - i < bench->values ? bench->b_bytes - i : bench->values);
    else
        for (size_t i = 0; i + 8 <= bench->b_bytes; i += 8) {
            uint64_t word = rng_next(&rng) & UINT64_C(0x2fff2fff2fff2fff);
            memcpy(bench->b + i, &word, 8);
        }
}

static void table(struct bench *bench, enum dtype dtype) {
    double peak = peak_gflops();
    fill(bench, dtype);
    printf("%s %s %s, %lld rows a tile; peak %.1f GFLOP/s\n", bench->kernels->isa, dtype_table[dtype].name,
           bench->precision == GEMM_BF16 ? "bf16" : "f32", (long long)bench->rows, peak);
    printf("%6s %7s %6s", "m", "n", "k");
    for (int way = 0; way < WAYS; way++) printf(" %14s", way_names[way]);
    printf("\n");
    for (size_t i = 0; i < SHAPES; i++) {
        printf("%6lld %7lld %6lld", (long long)shapes[i].m, (long long)shapes[i].n, (long long)shapes[i].k);
        for (enum way way = 0; way < WAYS; way++) {
            struct gemm_args args;
            if (!product_args(bench, way, dtype, shapes[i], &args)) {
                printf(" %14s", "-");
                continue;
            }
            double rate = product_gflops(bench, &args);
            printf(" %7.1f (%2.0f%%)", rate, 100 * rate / peak);
        }
        printf("\n");
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    struct bench bench = {.rows = 256, .seconds = 0.3, .values = (size_t)38 << 20, .b_bytes = (size_t)520 << 20};
    const char *isa = NULL;
    int at = 1;
    for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
        if (strcmp(argv[at], "--isa") == 0)
            isa = argv[at + 1];
        else if (strcmp(argv[at], "--rows") == 0)
            bench.rows = strtoll(argv[at + 1], NULL, 10);
        else if (strcmp(argv[at], "--seconds") == 0)
            bench.seconds = strtod(argv[at + 1], NULL);
        else if (strcmp(argv[at], "--precision") == 0)
            bench.precision = strcmp(argv[at + 1], "bf16") == 0 ? GEMM_BF16 : GEMM_F32;
        else
            die("usage: gemm [--isa NAME] [--rows N] [--seconds S] [--precision f32|bf16] [TYPE...]");
    }
    struct shu_error err = {0};
    if (bench.rows < 1 || kernels_select(isa, &bench.kernels, &err) != SHU_OK) die("no such instruction set or rows");
    bench.scratch = mem_alloc_large(gemm_scratch_bytes());
    bench.a = mem_alloc_large(bench.values * sizeof(float));
    bench.c = mem_alloc_large(bench.values * sizeof(float));
    bench.b = mem_alloc_large(bench.b_bytes);
    if (!bench.scratch || !bench.a || !bench.b || !bench.c) die("out of memory");
    if (at == argc) table(&bench, DT_F32);
    for (; at < argc; at++) {
        int dtype = dtype_from_name(argv[at]);
        if (dtype < 0 || !dtype_table[dtype].to_f32) die("unknown type");
        table(&bench, (enum dtype)dtype);
    }
    return 0;
}
