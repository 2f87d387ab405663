/* Hostile checkpoints: taken over whole, or refused with one line and nothing changed. The checksum is put right first,
 * else nothing would get past it. */
#include "train/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "train/checksum.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char identity[] = "{\"base\":\"b\",\"data\":\"d\",\"recipe\":{\"rank\":8}}";
    float value[12] = {1}, m[12] = {2}, v[12] = {3}, bias[3] = {4}, bm[3] = {5}, bv[3] = {6};
    struct learn_parameter parameters[2] = {{.parameter = {"w", DT_F32, 3, 4, value, NULL}, .m = m, .v = v},
                                            {.parameter = {"bias", DT_F32, 1, 3, bias, NULL}, .m = bm, .v = bv}};
    struct run_state state = {.step = 7};
    const struct checkpoint content = {identity, &state, parameters, 2, size % 2};
    struct shu_error err = {0};
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) return 0;
    memcpy(copy, data, size);
    if (size >= 8) {
        uint64_t sum = checksum_of(copy, size - 8);
        memcpy(copy + size - 8, &sum, sizeof sum);
    }
    int status = checkpoint_parse(&content, copy, size, "fuzz", &err);
    if (status && (!err.message[0] || strchr(err.message, '\n') || state.step != 7 || value[0] != 1 || bias[0] != 4))
        abort();
    free(copy);
    return 0;
}
