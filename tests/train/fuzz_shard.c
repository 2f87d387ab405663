/* Hostile shards: any bytes give a shard whose every token and passage can be read, or one error. The checksum is put
 * right first, else nothing would get past it. */
#include "train/shard.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1); /* aligned like a mapping */
    struct shard shard;
    struct shu_error err = {0};
    volatile uint64_t sum = 0; /* keeps the reads */
    if (!copy) return 0;
    memcpy(copy, data, size);
    if (size >= 8) {
        uint64_t checksum = checksum_of(copy, size - 8);
        memcpy(copy + size - 8, &checksum, sizeof checksum);
    }
    int status = shard_parse(copy, size, "fuzz", &shard, &err);
    if (status && (!err.message[0] || strchr(err.message, '\n'))) abort();
    for (uint64_t i = 0; !status && i < shard.counts.sequences; i++) {
        const uint32_t *tokens = shard_tokens(&shard, (int64_t)i);
        for (uint32_t t = 0; t < shard.index[i].tokens; t++) sum += tokens[t];
        for (uint32_t p = 0; p < shard.index[i].passages && p < 100; p++) {
            struct span id = shard_passage(&shard, (int64_t)i, (int)p);
            for (uint32_t b = 0; b < id.bytes; b++) sum += (uint8_t)id.text[b];
        }
    }
    (void)sum;
    free(copy);
    return 0;
}
