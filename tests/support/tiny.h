/* tiny: random little models for tests that need a decoder but no real weights.
 *
 *     struct tiny_spec spec;
 *     tiny_defaults("qwen2", &spec);     // or llama, qwen3, gemma2, gemma3
 *     spec.layers = 3;                   // change what the test is about
 *     if (tiny_write(path, &spec, &err)) fail_msg("%s", err.message);
 *     model_open(path, &model, &err);
 *
 * The file is a complete GGUF (version 3) that llama.cpp loads too: metadata of
 * the architecture, weights drawn from rng(seed), a byte-level BPE vocabulary
 * (256 bytes, some merges, <|endoftext|>, <|im_start|>, <|im_end|>) that encodes
 * any bytes, and a ChatML template. The same spec gives the same bytes.
 * Matrices have `dtype`; a matrix whose column count does not fill its blocks is
 * stored as F16; norms and biases are F32. The library is linked to every test.
 */
#ifndef TESTS_SUPPORT_TINY_H
#define TESTS_SUPPORT_TINY_H

#include "tensor/tensor.h"
#include "text/text.h"

#define TINY_PATH_BYTES 256

struct tiny_spec {
    const char *arch; /* llama | qwen2 | qwen3 | gemma2 | gemma3 */
    int layers, width, heads, kv_heads, head_dim, ffn, context;
    int window; /* sliding window (gemma); 0 = no key */
    bool tied;  /* no output.weight */
    float rope_base;
    float gain;       /* standard deviation of a matrix = gain / sqrt(columns); 1 by default */
    enum dtype dtype; /* of matrices; F32 by default */
    uint64_t seed;
};

/* 2 layers, width 64, 4 heads of 16 over 2 KV heads, ffn 96 (gemma: tied, window 8), context 512, seed 1. */
void tiny_defaults(const char *arch, struct tiny_spec *out);
/* Writes the model; SHU_E_USAGE for an unknown architecture. */
int tiny_write(const char *path, const struct tiny_spec *spec, struct shu_error *err);
/* Tokens in the vocabulary of every tiny model. */
int tiny_vocab_count(void);
/* A name in $TMPDIR (or /tmp) that no other process or call uses; the test removes the file. */
void tiny_path(char out[TINY_PATH_BYTES], const char *suffix);

#endif
