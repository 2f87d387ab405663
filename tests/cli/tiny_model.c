/* tiny_model ARCH OUT.gguf: writes a random little model for tests that run the program itself. */
#include "support/tiny.h"

int main(int argc, char **argv) {
    struct shu_error err = {0};
    struct tiny_spec spec;
    if (argc != 3) {
        fputs("usage: tiny_model ARCH OUT.gguf\n", stderr);
        return 2;
    }
    tiny_defaults(argv[1], &spec);
    if (tiny_write(argv[2], &spec, &err)) {
        fprintf(stderr, "tiny_model: %s\n", err.message);
        return 1;
    }
    return 0;
}
