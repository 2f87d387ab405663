/* bandwidth: best of five reads of 1 GiB with all threads, in GB/s (10^9). */
#ifndef BANDWIDTH_H
#define BANDWIDTH_H

#include "base/base.h"

int bandwidth_measure(int threads, double *gb_per_s, struct shu_error *err);

#endif
