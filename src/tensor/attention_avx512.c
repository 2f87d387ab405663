/* Attention for AVX-512: a tile of 16 positions is one register, so the chains
 * in flight are queries; twelve cover latency four at two a cycle. */
#include "tensor/simd_avx512.h"

#define MICRO_QUERIES 12
#define MICRO_VECTORS 1
#define MICRO_EACH(...)                                                                                                \
    MICRO_CASE(1, __VA_ARGS__)                                                                                         \
    MICRO_CASE(2, __VA_ARGS__)                                                                                         \
    MICRO_CASE(3, __VA_ARGS__)                                                                                         \
    MICRO_CASE(4, __VA_ARGS__)                                                                                         \
    MICRO_CASE(5, __VA_ARGS__)                                                                                         \
    MICRO_CASE(6, __VA_ARGS__)                                                                                         \
    MICRO_CASE(7, __VA_ARGS__)                                                                                         \
    MICRO_CASE(8, __VA_ARGS__)                                                                                         \
    MICRO_CASE(9, __VA_ARGS__)                                                                                         \
    MICRO_CASE(10, __VA_ARGS__)                                                                                        \
    MICRO_CASE(11, __VA_ARGS__)                                                                                        \
    MICRO_CASE(12, __VA_ARGS__)

#include "tensor/attention_simd.h"

const struct attention_table attention_avx512 = {kv_store, attention};
