/* tiny_adapter: random low-rank adapters for tiny models (see tiny.h).
 *
 *     struct tiny_adapter made;
 *     tiny_adapter_new(model, 4, seed, &made);     // pairs for every projection and output.weight
 *     made.write.alpha = 8;
 *     adapter_write_gguf(&made.write, path, &err);
 *     tiny_adapter_free(&made);
 */
#ifndef TESTS_SUPPORT_TINY_ADAPTER_H
#define TESTS_SUPPORT_TINY_ADAPTER_H

#include "weights/weights.h"

#define TINY_PAIRS 128

struct tiny_adapter {
    struct adapter_pair pairs[TINY_PAIRS];
    struct adapter_write write; /* of these pairs; alpha = rank, so that the scale is 1 */
    float *block;
};
/* Aborts the test program when memory runs out. A and B are normal: A with variance 1 / in, B with deviation 0.3. */
void tiny_adapter_new(const struct model *model, int rank, uint64_t seed, struct tiny_adapter *out);
void tiny_adapter_free(struct tiny_adapter *adapter);

#endif
