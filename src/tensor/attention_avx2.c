/* Attention for AVX2 + FMA + F16C. Six queries by two registers keep twelve
 * independent chains in flight: two multiply-adds a cycle at a latency of four
 * need eight, and twelve leave registers for the operands. */
#include "tensor/simd_avx2.h"

#define MICRO_QUERIES 6
#define MICRO_VECTORS 2
#define MICRO_EACH(...)                                                                                                \
    MICRO_CASE(1, __VA_ARGS__)                                                                                         \
    MICRO_CASE(2, __VA_ARGS__)                                                                                         \
    MICRO_CASE(3, __VA_ARGS__)                                                                                         \
    MICRO_CASE(4, __VA_ARGS__)                                                                                         \
    MICRO_CASE(5, __VA_ARGS__)                                                                                         \
    MICRO_CASE(6, __VA_ARGS__)

#include "tensor/attention_simd.h"

const struct attention_table attention_avx2 = {kv_store, attention};
