/* Private to room weights: targets of a conversion. */
#ifndef WEIGHTS_QUANTIZE_H
#define WEIGHTS_QUANTIZE_H

#include "weights/model.h"

struct quantize_target {
    const char *name;
    enum dtype base;    /* type of a matrix that no rule singles out */
    uint32_t file_type; /* general.file_type */
};
/* NULL if there is no such target. */
const struct quantize_target *quantize_target_find(const char *name);

#endif
