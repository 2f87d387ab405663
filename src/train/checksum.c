/* XXH64. */
#include "train/checksum.h"

#include <string.h>

#define PRIME1 0x9E3779B185EBCA87u
#define PRIME2 0xC2B2AE3D27D4EB4Fu
#define PRIME3 0x165667B19E3779F9u
#define PRIME4 0x85EBCA77C2B2AE63u
#define PRIME5 0x27D4EB2F165667C5u

static uint64_t rotate(uint64_t x, int by) {
    return x << by | x >> (64 - by);
}

static uint64_t read64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static uint64_t mix(uint64_t lane, uint64_t input) {
    return rotate(lane + input * PRIME2, 31) * PRIME1;
}

void checksum_init(struct checksum *sum) {
    *sum = (struct checksum){.lane = {PRIME1 + PRIME2, PRIME2, 0, 0 - PRIME1}};
}

static const uint8_t *stripes(struct checksum *sum, const uint8_t *p, size_t count) {
    uint64_t a = sum->lane[0], b = sum->lane[1], c = sum->lane[2], d = sum->lane[3];
    for (; count >= 32; count -= 32, p += 32) {
        a = mix(a, read64(p));
        b = mix(b, read64(p + 8));
        c = mix(c, read64(p + 16));
        d = mix(d, read64(p + 24));
    }
    sum->lane[0] = a, sum->lane[1] = b, sum->lane[2] = c, sum->lane[3] = d;
    return p;
}

void checksum_update(struct checksum *sum, const void *bytes, size_t count) {
    const uint8_t *p = bytes;
    size_t held = sum->total % 32;
    sum->total += count;
    if (held) {
        size_t take = count < 32 - held ? count : 32 - held;
        memcpy(sum->hold + held, p, take);
        p += take;
        count -= take;
        if (held + take < 32) return;
        stripes(sum, sum->hold, 32);
    }
    p = stripes(sum, p, count);
    if (count % 32) memcpy(sum->hold, p, count % 32);
}

static uint64_t tail(uint64_t hash, const uint8_t *p, size_t count) {
    for (; count >= 8; count -= 8, p += 8) hash = rotate(hash ^ mix(0, read64(p)), 27) * PRIME1 + PRIME4;
    if (count >= 4) {
        uint32_t word;
        memcpy(&word, p, sizeof word);
        hash = rotate(hash ^ word * PRIME1, 23) * PRIME2 + PRIME3;
        count -= 4, p += 4;
    }
    for (; count; count--, p++) hash = rotate(hash ^ *p * PRIME5, 11) * PRIME1;
    return hash;
}

uint64_t checksum_finish(const struct checksum *sum) {
    uint64_t hash = PRIME5;
    if (sum->total >= 32) {
        const uint64_t *lane = sum->lane;
        hash = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
        for (int i = 0; i < 4; i++) hash = (hash ^ mix(0, lane[i])) * PRIME1 + PRIME4;
    }
    hash = tail(hash + sum->total, sum->hold, sum->total % 32);
    hash = (hash ^ hash >> 33) * PRIME2;
    hash = (hash ^ hash >> 29) * PRIME3;
    return hash ^ hash >> 32;
}

uint64_t checksum_of(const void *bytes, size_t count) {
    struct checksum sum;
    checksum_init(&sum);
    checksum_update(&sum, bytes, count);
    return checksum_finish(&sum);
}
