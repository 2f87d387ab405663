/* Base and adapters in one file: every adapted row is decoded, added to in f32 and encoded once. */
#include <math.h>
#include <string.h>

#include "weights/lora.h"
#include "weights/quantize.h"

struct merge {
    struct row_change change; /* first: the callbacks get its address */
    const struct model *base;
    const struct adapter *const *adapters;
    const float *weights;
    int count;
};

static bool touches(const struct row_change *change, const struct model_tensor *tensor) {
    const struct merge *merge = (const struct merge *)change;
    for (int i = 0; i < merge->count; i++)
        if (merge->weights[i] != 0 && adapter_find(merge->adapters[i], tensor->name)) return true;
    return false;
}

/* values += factor * (row of B) A. */
static void add_pair(const struct adapter_pair *pair, const float *b, float factor, float *values) {
    for (int k = 0; k < pair->rank; k++) {
        const float *a = pair->a + (int64_t)k * pair->in;
        float share = factor * b[k];
        for (int64_t c = 0; c < pair->in; c++) values[c] += share * a[c];
    }
}

static void add_row(const struct row_change *change, const struct model_tensor *tensor, int64_t row, float *values) {
    const struct merge *merge = (const struct merge *)change;
    for (int i = 0; i < merge->count; i++) {
        const struct adapter *adapter = merge->adapters[i];
        const struct adapter_pair *pair = adapter_find(adapter, tensor->name);
        if (!pair || merge->weights[i] == 0) continue;
        const float *b = lora_b_row(pair, adapter_order(adapter, merge->base, pair), row);
        add_pair(pair, b, merge->weights[i] * adapter_scale(adapter), values);
    }
}

int model_merge(const struct model *base, const struct adapter *const *adapters, const float *weights, int count,
                const char *out_path, const char *target, struct pool *pool, struct progress *progress,
                struct shu_error *err) {
    struct merge merge = {{touches, add_row}, base, adapters, weights, count};
    for (int i = 0; i < count; i++) {
        if (!isfinite(weights[i]))
            return SHU_FAIL(err, SHU_E_USAGE, "the weight of adapter %.200s is %g; expected a finite number",
                            adapter_path(adapters[i]), (double)weights[i]);
        int status = adapter_check(adapters[i], base, err);
        if (status) return status;
    }
    return model_convert(base, out_path, target, &merge.change, pool, progress, err);
}
