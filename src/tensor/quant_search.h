/* Least-squares search for block scales, shared by the encoders. Errors are
 * weighted squares, sum w (x - y)^2; counts are multiples of 4, at most 32. */
#ifndef TENSOR_QUANT_SEARCH_H
#define TENSOR_QUANT_SEARCH_H

#include <stdint.h>

/* y = scale * q, q whole in [low, high]: tries grids that put the largest
 * |x| near either end of the range, then alternates between rounding and the
 * best scale for the rounded values. Returns the scale; NaN if a value is not
 * finite, so that a spoilt block shows when it is read back. */
float search_scale(const float *x, const float *w, int count, int low, int high);

/* y = scale * q + min, q whole in [0, high]. With only_negative, min <= 0 (K-quants store -min unsigned). */
struct affine {
    float scale, min;
};
struct affine search_affine(const float *x, const float *w, int count, int high, int only_negative);

/* q = (x - min) / scale, rounded and clamped to [low, high] (as floats; scale 0 gives 0
 * or the nearest bound); returns the error of scale * q + min. */
float quantize_with(const float *x, const float *w, int count, float scale, float min, int low, int high, float *q);

#endif
