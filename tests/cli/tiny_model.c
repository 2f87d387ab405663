/* tiny_model ARCH OUT.gguf [ADAPTER.gguf]: writes a random little model, and a low-rank adapter of it, for tests that
 * run the program itself. */
#include "support/tiny.h"
#include "support/tiny_adapter.h"

static int write_adapter(const char *base, const char *path, struct shu_error *err) {
    struct model *model = NULL;
    struct tiny_adapter made;
    int status = model_open(base, &model, err);
    if (status) return status;
    tiny_adapter_new(model, 4, 5, &made);
    status = adapter_write_gguf(&made.write, path, err);
    tiny_adapter_free(&made);
    model_close(model);
    return status;
}

int main(int argc, char **argv) {
    struct shu_error err = {0};
    struct tiny_spec spec;
    if (argc != 3 && argc != 4) {
        fputs("usage: tiny_model ARCH OUT.gguf [ADAPTER.gguf]\n", stderr);
        return 2;
    }
    tiny_defaults(argv[1], &spec);
    if (tiny_write(argv[2], &spec, &err) || (argc == 4 && write_adapter(argv[2], argv[3], &err))) {
        fprintf(stderr, "tiny_model: %s\n", err.message);
        return 1;
    }
    return 0;
}
