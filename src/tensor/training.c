/* What training needs once for all instruction sets: sizes of scratch memory, and dropout. */
#include "tensor/gemm.h"
#include "tensor/sdpa.h"
#include "tensor/training_tables.h"

size_t gemm_scratch_bytes(void) {
    return sizeof(struct gemm_scratch);
}

size_t sdpa_scratch_bytes(int head_dim, int group) {
    struct sdpa_scratch scratch;
    return sdpa_scratch_plan(NULL, head_dim, group, &scratch);
}

float dropout_factor(uint64_t seed, int64_t row, int64_t col, float p) {
    if (!(p > 0)) return 1;
    if (p >= 1) return 0;
    uint32_t bits = counter_bits(counter_key(seed, (uint64_t)row), (uint32_t)col) >> 8; /* 24 bits: exact in f32 */
    return (float)bits < p * 0x1p24f ? 0 : 1 / (1 - p);
}
