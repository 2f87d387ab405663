/* Renders chat templates for template_parity.py: one JSON object a line on stdin,
 * {"template": "…", "variables": {…}, "time": seconds}, one answer a line on stdout,
 * {"text": "…"} or {"error": "…"}. */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

static void answer(const char *key, const char *text, size_t bytes) {
    json_t *value = json_stringn(text, bytes), *object = json_object();
    if (!value) value = json_string("(not UTF-8)");
    json_object_set_new(object, key, value);
    json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(object);
}

static void render_line(const char *line, size_t bytes) {
    struct shu_error err = {0};
    struct template *tpl = NULL;
    struct buf out = {0};
    json_t *request = NULL;
    int status = json_parse(line, bytes, "stdin", &request, &err);
    if (!status) {
        const json_t *source = json_object_get(request, "template");
        status = template_new(json_string_value(source), json_string_length(source), &tpl, &err);
    }
    if (!status) {
        template_set_time(tpl, json_integer_value(json_object_get(request, "time")));
        status = template_render(tpl, json_object_get(request, "variables"), NULL, &out, &err);
    }
    if (status)
        answer("error", err.message, strlen(err.message));
    else
        answer("text", out.data ? out.data : "", out.len);
    fflush(stdout);
    buf_free(&out);
    template_free(tpl);
    json_decref(request);
}

int main(void) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, stdin)) > 0) render_line(line, (size_t)n);
    free(line);
    return 0;
}
