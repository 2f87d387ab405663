/* Private to room tensor: how packed weights lie in memory.
 *
 * A panel holds L rows (L = packed.lanes: 8 or 16), columns outward, lanes
 * inward. Panels follow each other every panel_bytes (a multiple of 64). Rows
 * beyond the matrix are zero bytes, which decode to zero weights.
 *
 * FLOAT TYPES. Column after column: L elements of 4 (F32) or 2 (F16, BF16)
 * bytes. Any number of columns.
 *
 * QUANTISED TYPES keep the words of GGML's blocks as they are and only lay the
 * words of L rows side by side ("word k" is the k-th 32-bit little-endian word
 * of a span of the block, "half" a 16-bit float):
 *
 *   panel  = pair, pair, …             two blocks each (the last may hold one)
 *   pair   = head 0, head 1, body 0[, body 1]
 *   head   = for each half of the block: L x f16 (both heads are always there)
 *   body   = for each word of the type's spans: L x u32
 *
 *   type   block  halves   spans of words (offset in GGML's block, words)    bytes/weight as GGML
 *   Q4_0     32   d        qs (2,4)
 *   Q4_1     32   d m      qs (4,4)
 *   Q5_0     32   d        qh (2,1)* qs (6,4)
 *   Q5_1     32   d m      qh (4,1)* qs (8,4)
 *   Q8_0     32   d        qs (2,8)
 *   Q2_K    256   d dmin   scales (0,4)  qs (16,16)
 *   Q3_K    256   d        scales (96,3) qs (32,16) hmask (0,8)
 *   Q4_K    256   d dmin   scales (4,3)  qs (16,32)
 *   Q5_K    256   d dmin   scales (4,3)  qh (16,8)  qs (48,32)
 *   Q6_K    256   d        scales (192,4) ql (0,16) qh (128,8) ql (64,16) qh (160,8)
 *
 * Nothing grows: every type keeps its size, apart from the round-up of a panel
 * to 64 bytes and one unused head where the number of blocks is odd.
 *
 * Why this is the right form for integer dot products: a word of qs holds four
 * consecutive columns, which is what vpmaddubsw + vpmaddwd (or vpdpbusd)
 * reduce into one 32-bit lane. One vector of word k is therefore "columns
 * 4k…4k+3 of L rows", to be multiplied with one broadcast of four activations.
 * Two blocks share a pair so that with one half per block (16 bytes for L = 8)
 * all body vectors still are 32-byte aligned.
 *
 * (*) The fifth bits of Q5_0 and Q5_1 are the one exception: bit 4g + c of the
 * word (column 4g + c) moves to bit g of byte c, so that one shift of the whole
 * vector puts the bits of group g (columns 4g…4g+3) beneath their nibbles.
 */
#ifndef TENSOR_PACKED_H
#define TENSOR_PACKED_H

#include "tensor/tensor.h"

#define PACKED_MAX_LANES       16
#define PACKED_SPANS           5
#define PACKED_MAX_BLOCK_BYTES 210 /* Q6_K */

struct packed_span {
    uint8_t offset; /* bytes from the start of GGML's block */
    uint8_t words;
};

struct packed_layout {
    uint8_t halves;         /* f16 fields per block; 0 = not a quantised weight type */
    uint8_t half_offset[2]; /* where they lie in GGML's block */
    bool bit_planes;        /* the first word is bit-transposed, see (*) */
    struct packed_span span[PACKED_SPANS];
};
extern const struct packed_layout packed_layouts[DT_COUNT];

/* Bytes that one lane takes in a body: constants that kernels may fold. */
#define PACKED_BODY_Q4_0 16
#define PACKED_BODY_Q4_1 16
#define PACKED_BODY_Q5_0 20
#define PACKED_BODY_Q5_1 20
#define PACKED_BODY_Q8_0 32
#define PACKED_BODY_Q2_K 80
#define PACKED_BODY_Q3_K 108
#define PACKED_BODY_Q4_K 140
#define PACKED_BODY_Q5_K 172
#define PACKED_BODY_Q6_K 208

/* Restores the plain GGML block `block` of one row (dtype_table[].block_bytes bytes). Quantised types only. */
void packed_block(const struct packed *packed, int64_t row, int64_t block, uint8_t *out);

#endif
