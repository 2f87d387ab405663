/* Shu: status codes and error detail, shared by every room and by embedders.
 *
 * Every function that can fail returns `int`: SHU_OK (0) or one of the negative
 * codes below. Detail goes to an optional `struct shu_error`, owned by the
 * caller; passing NULL discards the detail and is always legal. Library code
 * never prints, exits or aborts on bad input.
 *
 *     struct shu_error err = {0};
 *     if (model_open(path, &model, &err)) puts(err.message);
 */
#ifndef SHU_ERROR_H
#define SHU_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

enum shu_status {
    SHU_OK = 0,
    SHU_E_NOMEM = -1,       /* an allocation failed or a memory limit was reached */
    SHU_E_IO = -2,          /* the operating system refused a file or socket operation */
    SHU_E_FORMAT = -3,      /* input is malformed: cut short, wrong magic, bad syntax */
    SHU_E_RANGE = -4,       /* input is well formed but exceeds a limit (context, size) */
    SHU_E_UNSUPPORTED = -5, /* well formed, but a kind this build does not handle */
    SHU_E_NOTFOUND = -6,    /* a named thing does not exist */
    SHU_E_USAGE = -7,       /* the caller or the command line asked for something illegal */
    SHU_E_CHECKSUM = -8,    /* content does not match its recorded digest */
    SHU_E_CANCELLED = -9,   /* interrupted by the user or by a callback */
    SHU_E_CHILD = -10       /* a child process failed or timed out */
};

/* Detail of the first failure. Plain data: copy freely, nothing to release. */
struct shu_error {
    int code;          /* one of shu_status */
    char message[512]; /* UTF-8, one line: what was expected, what was found, what to do */
    char where[128];   /* source position "room/file.c:123" of the raise */
};

/* Short stable name of a status code ("io", "format", …) for JSON output.
 * Unknown codes give "unknown". Never NULL; static storage. */
const char *shu_status_name(int code);

#ifdef __cplusplus
}
#endif
#endif
