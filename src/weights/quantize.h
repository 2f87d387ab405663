/* Private to room weights: targets of a conversion. */
#ifndef WEIGHTS_QUANTIZE_H
#define WEIGHTS_QUANTIZE_H

#include "weights/model.h"

struct quantize_target {
    const char *name;
    enum dtype base;    /* type of a matrix that no rule singles out */
    uint32_t file_type; /* general.file_type */
};
/* What is added to rows on their way, by any number of threads at once. */
struct row_change {
    bool (*touches)(const struct row_change *change, const struct model_tensor *tensor);
    /* row: of the model's tensor; values: [columns], decoded. */
    void (*add)(const struct row_change *change, const struct model_tensor *tensor, int64_t row, float *values);
};
/* model_quantize with a change (NULL = none). */
int model_convert(const struct model *model, const char *out_path, const char *target, const struct row_change *change,
                  struct pool *pool, struct progress *progress, struct shu_error *err);
/* NULL if there is no such target. */
const struct quantize_target *quantize_target_find(const char *name);

#endif
