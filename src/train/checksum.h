/* Private to room train: XXH64 (Collet, xxHash specification 0.1.1) in slices. It finds damage, as of a cut or
 * torn file, at memory speed; it is no protection against intent. */
#ifndef TRAIN_CHECKSUM_H
#define TRAIN_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

struct checksum {
    uint64_t lane[4], total;
    uint8_t hold[32]; /* [total % 32] not yet mixed */
};
void checksum_init(struct checksum *sum);
void checksum_update(struct checksum *sum, const void *bytes, size_t count);
uint64_t checksum_finish(const struct checksum *sum);
uint64_t checksum_of(const void *bytes, size_t count);

#endif
