/* Attention in plain C. A tile of 16 positions is four registers; two queries
 * fill what SSE2 has with accumulators and operands. */
#include "tensor/simd_scalar.h"

#define MICRO_QUERIES 2
#define MICRO_VECTORS 4
#define MICRO_EACH(...)                                                                                                \
    MICRO_CASE(1, __VA_ARGS__)                                                                                         \
    MICRO_CASE(2, __VA_ARGS__)

#include "tensor/attention_simd.h"

const struct attention_table attention_scalar = {kv_store, attention};
