/* Tokenising speed of llama.cpp through its public interface: MODEL FILE ROUNDS
 * to {"tokens", "seconds"}, the best round; loading stays outside. Built by
 * vs_tokenizers.py against the peer's libllama, never part of shu. */
#include "llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static char *read_file(const char *path, int32_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *bytes = (int32_t)ftell(file);
    rewind(file);
    char *text = malloc((size_t)*bytes + 1);
    if (text && fread(text, 1, (size_t)*bytes, file) != (size_t)*bytes) *bytes = 0;
    fclose(file);
    return text;
}

static void silent(enum ggml_log_level level, const char *text, void *context) {
    (void)level, (void)text, (void)context;
}

int main(int argc, char **argv) {
    int32_t bytes = 0;
    char *text = argc == 4 ? read_file(argv[2], &bytes) : NULL;
    if (!text) return fprintf(stderr, "usage: llama_tokenize MODEL FILE ROUNDS\n"), 2;
    llama_log_set(silent, NULL);
    struct llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    struct llama_model *model = llama_model_load_from_file(argv[1], params);
    llama_token *ids = malloc(((size_t)bytes + 8) * sizeof *ids);
    if (!model || !ids) return fprintf(stderr, "cannot load %s\n", argv[1]), 1;
    double best = 1e9;
    int32_t count = 0;
    for (long round = strtol(argv[3], NULL, 10); round > 0; round--) {
        double start = now_s();
        count = llama_tokenize(llama_model_get_vocab(model), text, bytes, ids, bytes + 8, false, false);
        double seconds = now_s() - start;
        if (seconds < best) best = seconds;
    }
    printf("{\"tokens\":%d,\"seconds\":%.9f}\n", (int)count, best);
    return 0;
}
