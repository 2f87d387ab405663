/* Fuzzes the template interpreter: bytes up to the first NUL are the template, the rest is the JSON of its variables.
 */
#include "text/text.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    size_t source = end ? (size_t)(end - data) : size;
    struct shu_error err = {0};
    struct template *tpl = NULL;
    json_t *variables = NULL;
    struct template_limits limits = {.max_steps = 20000, .max_output_bytes = 1 << 16};
    struct buf out = {0};
    if (end) (void)json_parse((const char *)end + 1, size - source - 1, "variables", &variables, &err);
    if (!json_is_object(variables)) {
        json_decref(variables);
        variables = json_pack("{s:[{s:s,s:s}], s:b, s:s, s:i, s:f}", "messages", "role", "user", "content", "hi 你好",
                              "t", 1, "s", "a b", "n", 3, "f", 2.5);
    }
    if (variables && template_new((const char *)data, source, &tpl, &err) == 0) {
        template_set_time(tpl, 1);
        (void)template_render(tpl, variables, &limits, &out, &err);
    }
    template_free(tpl);
    json_decref(variables);
    buf_free(&out);
    return 0;
}
