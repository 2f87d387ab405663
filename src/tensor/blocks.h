/* GGML's quantised blocks as files hold them (GGUF specification), byte arrays
 * only: no alignment is assumed and no padding can appear.
 *
 * 32-element blocks: element i < 16 sits in the low nibble of qs[i], element
 * i + 16 in the high nibble; fifth bits are bit i of the little-endian qh.
 * Value = d * (q - 8 or 16) for _0 types, d * q + m for _1 types.
 * Super-blocks of 256 are described at each struct. f16 fields are IEEE half. */
#ifndef TENSOR_BLOCKS_H
#define TENSOR_BLOCKS_H

#include <stdint.h>
#include <string.h>

#define QUANT_BLOCK 32
#define SUPER_BLOCK 256

struct block_q4_0 {
    uint8_t d[2];
    uint8_t qs[16];
};
struct block_q4_1 {
    uint8_t d[2], m[2];
    uint8_t qs[16];
};
struct block_q5_0 {
    uint8_t d[2];
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_q5_1 {
    uint8_t d[2], m[2];
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_q8_0 {
    uint8_t d[2];
    int8_t qs[32];
};
/* 16 groups of 16: value = d * (scales & 15) * q - dmin * (scales >> 4). Half h (128
 * elements), quarter j (32): 2 bits at shift 2j of qs[32 h + i]. */
struct block_q2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    uint8_t d[2], dmin[2];
};
/* 16 groups of 16: value = d * (scale - 32) * (q - 4 * !hbit); low bits as Q2_K, high bit of
 * element 32 k + i is bit k of hmask[i]; 6-bit scales: 4 low bits in scales[0…7], 2 high in [8…11]. */
struct block_q3_k {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint8_t d[2];
};
/* 8 groups of 32: value = d * scale * q - dmin * min; scales and minima of 6 bits packed in 12
 * bytes (scale_min_get). 64-element pair p: low nibbles of qs[32 p …], then high nibbles. */
struct block_q4_k {
    uint8_t d[2], dmin[2];
    uint8_t scales[12];
    uint8_t qs[128];
};
/* As Q4_K; the fifth bit of group g, element i is bit g of qh[i]. */
struct block_q5_k {
    uint8_t d[2], dmin[2];
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
/* 16 groups of 16: value = d * scale * (q - 32). Half h, quarter j: nibble j / 2 of
 * ql[64 h + 32 (j & 1) + i], two bits at shift 2j of qh[32 h + i]. */
struct block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint8_t d[2];
};

static inline uint16_t load_u16(const uint8_t bytes[2]) {
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static inline uint32_t load_u32(const uint8_t bytes[4]) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Group g (0…7) of Q4_K and Q5_K: six-bit scale and minimum. */
static inline void scale_min_get(const uint8_t packed[12], int g, uint8_t *scale, uint8_t *min) {
    if (g < 4) {
        *scale = packed[g] & 63;
        *min = packed[g + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4);
        *min = (uint8_t)((packed[g + 4] >> 4) | (packed[g] >> 6) << 4);
    }
}

#endif
