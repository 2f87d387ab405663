/* Packing of weight matrices into row panels, and reading rows back. The layout is described in packed.h. */
#include "tensor/packed.h"

#include <string.h>

const struct packed_layout packed_layouts[DT_COUNT] = {
    [DT_Q4_0] = {1, {0}, false, {{2, 4}}},
    [DT_Q4_1] = {2, {0, 2}, false, {{4, 4}}},
    [DT_Q5_0] = {1, {0}, true, {{2, 1}, {6, 4}}},
    [DT_Q5_1] = {2, {0, 2}, true, {{4, 1}, {8, 4}}},
    [DT_Q8_0] = {1, {0}, false, {{2, 8}}},
    [DT_Q2_K] = {2, {80, 82}, false, {{0, 4}, {16, 16}}},
    [DT_Q3_K] = {1, {108}, false, {{96, 3}, {32, 16}, {0, 8}}},
    [DT_Q4_K] = {2, {0, 2}, false, {{4, 3}, {16, 32}}},
    [DT_Q5_K] = {2, {0, 2}, false, {{4, 3}, {16, 8}, {48, 32}}},
    [DT_Q6_K] = {1, {208}, false, {{192, 4}, {0, 16}, {128, 8}, {64, 16}, {160, 8}}},
};

/* Per lane: the PACKED_BODY_… constants. */
static size_t packed_body_bytes(enum dtype dtype) {
    const struct packed_span *span = packed_layouts[dtype].span;
    size_t words = 0;
    for (int s = 0; s < PACKED_SPANS; s++) words += span[s].words;
    return 4 * words;
}

static size_t head_bytes(const struct packed *packed) {
    return (size_t)packed->lanes * 2 * packed_layouts[packed->dtype].halves;
}

/* Offsets of head and body of a block inside its panel. */
static void block_offsets(const struct packed *packed, int64_t block, size_t *head, size_t *body) {
    size_t one_head = head_bytes(packed), one_body = (size_t)packed->lanes * packed_body_bytes(packed->dtype);
    size_t pair = (size_t)(block / 2) * 2 * (one_head + one_body), odd = (size_t)(block % 2);
    *head = pair + odd * one_head;
    *body = pair + 2 * one_head + odd * one_body;
}

/* ---------------------------------------------------------------- planning */

/* Bytes of a panel before it is rounded up. */
static size_t panel_used_bytes(const struct packed *packed) {
    if (packed_layouts[packed->dtype].halves == 0)
        return (size_t)packed->cols * (size_t)dtype_table[packed->dtype].block_bytes * (size_t)packed->lanes;
    size_t head, body;
    int64_t blocks = packed->cols / dtype_table[packed->dtype].block;
    block_offsets(packed, blocks, &head, &body);
    return blocks % 2 ? body : head; /* an odd block ends where the missing one would begin */
}

size_t packed_plan(const struct kernels *kernels, enum dtype dtype, int64_t rows, int64_t cols, struct packed *out) {
    *out = (struct packed){.dtype = dtype, .rows = rows, .cols = cols, .lanes = kernels->lanes};
    out->panel_bytes = (panel_used_bytes(out) + 63) & ~(size_t)63;
    return out->panel_bytes * (size_t)packed_panels(out);
}

int64_t packed_panels(const struct packed *packed) {
    return (packed->rows + packed->lanes - 1) / packed->lanes;
}

/* -------------------------------------------- fifth bits: (g, c) <-> (c, g) */

/* The index of a bit, g2 g1 g0 c1 c0, must become c1 c0 g2 g1 g0: four exchanges of index bits. */
#define BITS_SWAP(x, shift, mask)                                                                                      \
    do {                                                                                                               \
        uint32_t moved = ((x) >> (shift) ^ (x)) & (mask);                                                              \
        (x) ^= moved ^ moved << (shift);                                                                               \
    } while (0)

static uint32_t planes_from_word(uint32_t x) {
    BITS_SWAP(x, 14, 0x0000ccccu);
    BITS_SWAP(x, 7, 0x00aa00aau);
    BITS_SWAP(x, 2, 0x0c0c0c0cu);
    BITS_SWAP(x, 1, 0x22222222u);
    return x;
}

static uint32_t word_from_planes(uint32_t x) {
    BITS_SWAP(x, 1, 0x22222222u);
    BITS_SWAP(x, 2, 0x0c0c0c0cu);
    BITS_SWAP(x, 7, 0x00aa00aau);
    BITS_SWAP(x, 14, 0x0000ccccu);
    return x;
}

/* ----------------------------------------------------------------- packing */

typedef uint32_t u32x4 __attribute__((vector_size(16)));

static u32x4 load4(const uint8_t *bytes) {
    u32x4 value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static void store4(uint8_t *bytes, u32x4 value) {
    memcpy(bytes, &value, sizeof value);
}

/* Four words of four rows: out[k][lane] = word k of row lane, lines `stride` bytes apart. */
static void transpose4(const uint8_t *const row[4], size_t offset, uint8_t *out, size_t stride) {
    u32x4 a = load4(row[0] + offset), b = load4(row[1] + offset);
    u32x4 c = load4(row[2] + offset), d = load4(row[3] + offset);
    u32x4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    u32x4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    store4(out, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
    store4(out + stride, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
    store4(out + 2 * stride, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
    store4(out + 3 * stride, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
}

/* One block of all lanes. row[] are the plain blocks. */
static void block_fill(const struct packed_layout *layout, int lanes, const uint8_t *const *row, uint8_t *head,
                       uint8_t *body) {
    size_t line = (size_t)lanes * 4;
    for (int half = 0; half < layout->halves; half++)
        for (int lane = 0; lane < lanes; lane++, head += 2) memcpy(head, row[lane] + layout->half_offset[half], 2);
    for (int s = 0; s < PACKED_SPANS; s++) {
        size_t offset = layout->span[s].offset, words = layout->span[s].words, k = 0;
        for (; k + 4 <= words; k += 4, body += 4 * line)
            for (int lane = 0; lane < lanes; lane += 4) transpose4(row + lane, offset + 4 * k, body + lane * 4, line);
        for (; k < words; k++, body += line)
            for (int lane = 0; lane < lanes; lane++) {
                uint32_t word;
                memcpy(&word, row[lane] + offset + 4 * k, 4);
                if (layout->bit_planes && s == 0) word = planes_from_word(word);
                memcpy(body + lane * 4, &word, 4);
            }
    }
}

/* Rows beyond the matrix read these zeros over and over. */
static const uint8_t zero_block[PACKED_MAX_BLOCK_BYTES];

static void panel_fill_blocks(const struct packed *packed, const uint8_t *plain, int valid, uint8_t *out) {
    const struct packed_layout *layout = &packed_layouts[packed->dtype];
    size_t row_bytes = dtype_row_bytes(packed->dtype, packed->cols);
    size_t block_bytes = (size_t)dtype_table[packed->dtype].block_bytes;
    int64_t blocks = packed->cols / dtype_table[packed->dtype].block;
    const uint8_t *row[PACKED_MAX_LANES];
    size_t step[PACKED_MAX_LANES];
    for (int lane = 0; lane < packed->lanes; lane++) {
        row[lane] = lane < valid ? plain + (size_t)lane * row_bytes : zero_block;
        step[lane] = lane < valid ? block_bytes : 0;
    }
    for (int64_t b = 0; b < blocks; b++) {
        size_t head, body;
        block_offsets(packed, b, &head, &body);
        block_fill(layout, packed->lanes, row, out + head, out + body);
        for (int lane = 0; lane < packed->lanes; lane++) row[lane] += step[lane];
    }
    if (blocks % 2) { /* the head of the block that is not there */
        size_t head, body;
        block_offsets(packed, blocks, &head, &body);
        memset(out + head, 0, head_bytes(packed));
    }
}

static void panel_fill_floats(const struct packed *packed, const uint8_t *plain, int valid, uint8_t *out) {
    size_t size = (size_t)dtype_table[packed->dtype].block_bytes, lanes = (size_t)packed->lanes;
    memset(out, 0, panel_used_bytes(packed));
    for (size_t lane = 0; lane < (size_t)valid; lane++) {
        const uint8_t *row = plain + lane * (size_t)packed->cols * size;
        for (size_t c = 0; c < (size_t)packed->cols; c++) {
            if (size == 4)
                memcpy(out + (c * lanes + lane) * 4, row + c * 4, 4);
            else
                memcpy(out + (c * lanes + lane) * 2, row + c * 2, 2);
        }
    }
}

void packed_fill(struct packed *packed, const void *plain_rows, int64_t first, int64_t last) {
    size_t row_bytes = dtype_row_bytes(packed->dtype, packed->cols);
    for (int64_t panel = first; panel < last; panel++) {
        int64_t row = panel * packed->lanes, left = packed->rows - row;
        int valid = left < packed->lanes ? (int)left : packed->lanes;
        const uint8_t *plain = (const uint8_t *)plain_rows + (size_t)row * row_bytes;
        uint8_t *out = packed->data + (size_t)panel * packed->panel_bytes;
        if (packed_layouts[packed->dtype].halves == 0)
            panel_fill_floats(packed, plain, valid, out);
        else
            panel_fill_blocks(packed, plain, valid, out);
        size_t used = panel_used_bytes(packed);
        memset(out + used, 0, packed->panel_bytes - used);
    }
}

/* ------------------------------------------------------------ reading back */

void packed_block(const struct packed *packed, int64_t row, int64_t block, uint8_t *out) {
    const struct packed_layout *layout = &packed_layouts[packed->dtype];
    size_t lanes = (size_t)packed->lanes, lane = (size_t)(row % packed->lanes), head, body;
    const uint8_t *panel = packed->data + (size_t)(row / packed->lanes) * packed->panel_bytes;
    block_offsets(packed, block, &head, &body);
    for (size_t half = 0; half < layout->halves; half++)
        memcpy(out + layout->half_offset[half], panel + head + (half * lanes + lane) * 2, 2);
    const uint8_t *in = panel + body + lane * 4;
    for (int s = 0; s < PACKED_SPANS; s++)
        for (size_t k = 0; k < layout->span[s].words; k++, in += lanes * 4) {
            uint32_t word;
            memcpy(&word, in, 4);
            if (layout->bit_planes && s == 0) word = word_from_planes(word);
            memcpy(out + layout->span[s].offset + 4 * k, &word, 4);
        }
}

static void row_floats(const struct packed *packed, int64_t row, float *out) {
    const struct dtype_info *info = &dtype_table[packed->dtype];
    size_t size = (size_t)info->block_bytes, lanes = (size_t)packed->lanes;
    const uint8_t *in = packed->data + (size_t)(row / packed->lanes) * packed->panel_bytes;
    in += (size_t)(row % packed->lanes) * size;
    for (int64_t c = 0; c < packed->cols; c++, in += lanes * size) info->to_f32(in, out + c, 1);
}

void packed_row(const struct packed *packed, int64_t row, float *out) {
    const struct dtype_info *info = &dtype_table[packed->dtype];
    if (packed_layouts[packed->dtype].halves == 0) {
        row_floats(packed, row, out);
        return;
    }
    uint8_t plain[PACKED_MAX_BLOCK_BYTES];
    for (int64_t b = 0; b < packed->cols / info->block; b++) {
        packed_block(packed, row, b, plain);
        info->to_f32(plain, out + b * info->block, info->block);
    }
}

/* ------------------------------------------------------------- activations */

size_t act8_row_bytes(int64_t cols) {
    /* An odd number of cache lines, so that a column of blocks over many rows spreads over all cache sets. */
    return (((size_t)cols + ACT8_BLOCK - 1) / ACT8_BLOCK | 1) * sizeof(struct act8_block);
}
