/* Private to room tensor: rows of weights to f32 with vectors, bit for bit what dtype_table's to_f32 gives. */
#ifndef TENSOR_DECODE_H
#define TENSOR_DECODE_H

#include "tensor/tensor.h"

typedef void decode_fn(const void *blocks, float *out, int64_t count);

extern decode_fn *const decode_avx2[DT_COUNT]; /* NULL: use to_f32 */

#endif
