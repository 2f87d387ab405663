/* Errors: one place where a failure is recorded, and so one breakpoint. */
#include "base/base.h"

#include <string.h>

const char *shu_status_name(int code) {
    switch (code) {
    case SHU_OK:
        return "ok";
    case SHU_E_NOMEM:
        return "nomem";
    case SHU_E_IO:
        return "io";
    case SHU_E_FORMAT:
        return "format";
    case SHU_E_RANGE:
        return "range";
    case SHU_E_UNSUPPORTED:
        return "unsupported";
    case SHU_E_NOTFOUND:
        return "notfound";
    case SHU_E_USAGE:
        return "usage";
    case SHU_E_CHECKSUM:
        return "checksum";
    case SHU_E_CANCELLED:
        return "cancelled";
    case SHU_E_CHILD:
        return "child";
    default:
        return "unknown";
    }
}

/* Messages quote names and text from hostile files: no byte of theirs may move a terminal's cursor, break the
 * one-line rule or make the message invalid UTF-8 (it also travels in JSON). vsnprintf may have cut a character. */
static void make_printable(char *text) {
    size_t left = strlen(text);
    while (left > 0) {
        uint32_t scalar = 0;
        int length = utf8_decode(text, left, &scalar);
        if (length == 0 && utf8_partial_tail(text, left) == left) {
            *text = '\0';
            return;
        }
        if (length == 0) *text = '?';
        bool control = scalar < 0x20 || scalar == 0x7f || (scalar >= 0x80 && scalar < 0xa0);
        if (length > 0 && control) memset(text, ' ', (size_t)length);
        size_t step = length > 0 ? (size_t)length : 1;
        text += step;
        left -= step;
    }
}

/* "…/room/file.c" -> "room/file.c": the same text wherever the tree was built. */
static const char *short_file(const char *file) {
    const char *at = file + strlen(file);
    for (int slashes = 0; at > file; at--) {
        if (at[-1] == '/' && ++slashes == 2) break;
    }
    return at;
}

int error_raise(struct shu_error *err, int code, const char *file, int line, const char *format, ...) {
    if (!err) return code;
    /* Arguments may point into err->message itself, so format beside it. */
    char message[sizeof err->message];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    make_printable(message);
    err->code = code;
    memcpy(err->message, message, sizeof message);
    snprintf(err->where, sizeof err->where, "%s:%d", short_file(file), line);
    return code;
}

int error_context(struct shu_error *err, int code, const char *format, ...) {
    if (!err) return code;
    char message[sizeof err->message];
    va_list args;
    va_start(args, format);
    int used = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof message) {
        snprintf(message + used, sizeof message - (size_t)used, "%s", err->message);
    }
    make_printable(message);
    memcpy(err->message, message, sizeof message);
    return err->code;
}
