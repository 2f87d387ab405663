/* Which characters some token holds side by side. */
#include "text/tokenizer.h"

int seams_new(struct seams *seams, struct shu_error *err) {
    seams->pairs = mem_calloc((size_t)1 << (SEAM_BITS - 6), sizeof *seams->pairs);
    if (!seams->pairs) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for the tokenizer's character pairs");
    return SHU_OK;
}

void seams_free(struct seams *seams) {
    mem_free(seams->pairs);
    seams->pairs = NULL;
}

void seams_mark(struct seams *seams, uint32_t left, uint32_t right) {
    uint32_t hash = seam_hash(left, right);
    seams->pairs[hash >> 6] |= (uint64_t)1 << (hash & 63);
    if (left < 128 && right < 128) seams->ascii[left][right >> 6] |= (uint64_t)1 << (right & 63);
}
