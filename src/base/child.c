/* Child processes: own group, rlimits, timeout, captured and capped output. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT_MAX_DEFAULT ((size_t)1 << 20)

struct child {
    const char *name; /* argv[0], for messages */
    pid_t pid;
    int status; /* of waitpid, valid once exited */
    bool exited;
    int fd[2]; /* stdout and stderr of the child, -1 when closed */
    struct buf text[2];
    size_t max_output;
    uint64_t start_ns, timeout_ms;
};

/* ------------------------------------------------------------- starting */

/* PATH is searched here and not in the child: "not installed" then is an error of its own. */
static int find_program(const char *name, struct buf *out, struct shu_error *err) {
    const char *at = getenv("PATH");
    if (strchr(name, '/'))
        at = NULL;
    else if (!at)
        at = "/usr/bin:/bin";
    int status = at ? SHU_OK : buf_puts(out, name);
    if (!at && !status && access(name, X_OK) == 0) return SHU_OK;
    for (; at && !status; at += *at == ':') {
        size_t length = strcspn(at, ":");
        buf_clear(out);
        status = buf_printf(out, "%.*s%s%s", (int)length, at, length ? "/" : "./", name);
        if (!status && access(out->data, X_OK) == 0 && !path_is_dir(out->data)) return SHU_OK;
        at += length;
        if (!*at) break;
    }
    if (status) return SHU_FAIL(err, status, "%s: not enough memory to start it", name);
    return SHU_FAIL(err, SHU_E_NOTFOUND, "%s: no such program in PATH; install it", name);
}

/* Runs in the child after fork: async-signal-safe calls only. `report` is closed by a successful exec. */
static _Noreturn void child_exec(const char *program, const char *const argv[], const struct child_options *options,
                                 const int out[2], int null_fd, int report) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlive us, whatever kills us */
    struct rlimit memory = {options->max_memory_bytes, options->max_memory_bytes}, core = {0, 0};
    bool ok = setpgid(0, 0) == 0 && setrlimit(RLIMIT_CORE, &core) == 0;
    ok = ok && dup2(null_fd, STDIN_FILENO) >= 0 && dup2(out[0], STDOUT_FILENO) >= 0 && dup2(out[1], STDERR_FILENO) >= 0;
    ok = ok && (!options->work_dir || chdir(options->work_dir) == 0);
    ok = ok && (!options->max_memory_bytes || setrlimit(RLIMIT_AS, &memory) == 0);
    if (ok) {
        for (int fd = 3; fd < 1024; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC); /* libraries may forget O_CLOEXEC */
        execv(program, (char *const *)(uintptr_t)argv);
    }
    int failure = errno;
    ssize_t ignored = write(report, &failure, sizeof failure);
    (void)ignored;
    _exit(127);
}

/* Reads the child's errno from the report pipe; end of file means that exec succeeded. */
static int start_outcome(struct child *child, int report, struct shu_error *err) {
    int failure = 0;
    ssize_t count;
    do count = read(report, &failure, sizeof failure);
    while (count < 0 && errno == EINTR);
    if (count != (ssize_t)sizeof failure) return SHU_OK;
    while (waitpid(child->pid, &child->status, 0) < 0 && errno == EINTR) continue;
    child->exited = true;
    return SHU_FAIL(err, SHU_E_CHILD, "%s: cannot be started: %s", child->name, strerror(failure));
}

static void close_pair(int pair[2]) {
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0) close(pair[i]);
        pair[i] = -1;
    }
}

static int child_start(struct child *child, const char *program, const char *const argv[],
                       const struct child_options *options, struct shu_error *err) {
    int out[2] = {-1, -1}, errors[2] = {-1, -1}, report[2] = {-1, -1};
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int status = SHU_OK;
    bool ok = null_fd >= 0 && !pipe2(out, O_CLOEXEC) && !pipe2(errors, O_CLOEXEC) && !pipe2(report, O_CLOEXEC);
    child->pid = ok ? fork() : -1;
    if (child->pid < 0) {
        status = SHU_FAIL(err, SHU_E_IO, "%s: cannot be started: %s", child->name, strerror(errno));
        goto out;
    }
    if (child->pid == 0) child_exec(program, argv, options, (int[2]){out[1], errors[1]}, null_fd, report[1]);
    close(report[1]);
    report[1] = -1;
    child->fd[0] = out[0];
    child->fd[1] = errors[0];
    out[0] = errors[0] = -1;
    status = start_outcome(child, report[0], err);
out:
    close_pair(out);
    close_pair(errors);
    close_pair(report);
    if (null_fd >= 0) close(null_fd);
    return status;
}

/* -------------------------------------------------------------- running */

/* Takes what a pipe holds; closes it at its end. Returns SHU_E_RANGE at the output limit. */
static int drain(struct child *child, int which) {
    char chunk[16384];
    ssize_t count = read(child->fd[which], chunk, sizeof chunk);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) return SHU_OK;
    if (count <= 0) {
        close(child->fd[which]);
        child->fd[which] = -1;
        return SHU_OK;
    }
    return buf_append(&child->text[which], chunk, (size_t)count);
}

/* Notices the end of the child without reaping it: until then its group number cannot be reused, and what it
 * left behind can be killed. */
static void look_for_exit(struct child *child) {
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == child->pid) {
        child->exited = true;
    }
}

static int check_limits(struct child *child, struct shu_error *err) {
    if (interrupt_pending()) return SHU_FAIL(err, SHU_E_CANCELLED, "%s: stopped by an interrupt", child->name);
    if (child->timeout_ms && clock_ns() - child->start_ns > child->timeout_ms * 1000000u) {
        return SHU_FAIL(err, SHU_E_CHILD, "%s: expected to end within %llu ms, stopped it", child->name,
                        (unsigned long long)child->timeout_ms);
    }
    return SHU_OK;
}

/* One round: waits up to wait_ms for output and takes it. *quiet tells that none came. */
static int pump(struct child *child, int wait_ms, bool *quiet, struct shu_error *err) {
    struct pollfd polled[2];
    for (int i = 0; i < 2; i++) polled[i] = (struct pollfd){.fd = child->fd[i], .events = POLLIN};
    int ready = poll(polled, 2, wait_ms);
    *quiet = ready <= 0;
    for (int i = 0; i < 2 && ready > 0; i++) {
        int status = polled[i].revents ? drain(child, i) : SHU_OK;
        if (status == SHU_E_RANGE) {
            return SHU_FAIL(err, SHU_E_CHILD, "%s: expected at most %zu bytes of output, found more; stopped it",
                            child->name, child->max_output);
        }
        if (status) return SHU_FAIL(err, status, "%s: not enough memory for its output", child->name);
    }
    return SHU_OK;
}

/* Until both pipes are closed and the child has ended. A daemon left behind may hold the pipes open for ever: what
 * is in them when the child has ended is all we wait for. */
static int supervise(struct child *child, struct shu_error *err) {
    int wait_ms = 1;
    for (;;) {
        bool was_exited = child->exited, quiet = false;
        int status = pump(child, was_exited ? 0 : wait_ms, &quiet, err);
        if (!status) status = check_limits(child, err);
        if (status) return status;
        if (was_exited && quiet) return SHU_OK;
        wait_ms = !quiet ? 1 : wait_ms < 32 ? wait_ms * 2 : 50;
        look_for_exit(child);
    }
}

static void child_finish(struct child *child) {
    close_pair(child->fd);
    if (child->pid <= 0) return;
    kill(-child->pid, SIGKILL);
    kill(child->pid, SIGKILL); /* the group may not exist yet */
    while (waitpid(child->pid, &child->status, 0) < 0 && errno == EINTR) continue;
}

/* -------------------------------------------------------------- outcome */

static void last_line(const struct buf *text, const char **line, int *length) {
    size_t end = text->len;
    while (end > 0 && strchr("\r\n\t ", text->data[end - 1])) end--;
    size_t start = end;
    while (start > 0 && text->data[start - 1] != '\n' && text->data[start - 1] != '\r') start--;
    *line = text->data ? text->data + start : "";
    *length = end - start > 300 ? 300 : (int)(end - start);
}

static int outcome(const struct child *child, struct shu_error *err) {
    const char *line;
    int length;
    if (WIFEXITED(child->status) && WEXITSTATUS(child->status) == 0) return SHU_OK;
    last_line(&child->text[1], &line, &length);
    const char *mark = length ? ": " : "";
    if (WIFSIGNALED(child->status)) {
        return SHU_FAIL(err, SHU_E_CHILD, "%s: ended by signal %d (%s)%s%.*s", child->name, WTERMSIG(child->status),
                        strsignal(WTERMSIG(child->status)), mark, length, line);
    }
    return SHU_FAIL(err, SHU_E_CHILD, "%s: failed with exit code %d%s%.*s", child->name, WEXITSTATUS(child->status),
                    mark, length, line);
}

int child_run(const char *const argv[], const struct child_options *options, struct buf *out_text,
              struct shu_error *err) {
    static const struct child_options none = {0};
    if (!options) options = &none;
    struct child child = {.name = argv[0], .fd = {-1, -1}, .timeout_ms = options->timeout_ms};
    child.max_output = options->max_output_bytes ? options->max_output_bytes : OUTPUT_MAX_DEFAULT;
    child.text[0].max = child.text[1].max = child.max_output;
    child.start_ns = clock_ns();
    struct buf program = {0};
    int status = find_program(argv[0], &program, err);
    if (status) goto out;
    status = child_start(&child, program.data, argv, options, err);
    if (status) {
        close_pair(child.fd);
        goto out;
    }
    status = supervise(&child, err);
    child_finish(&child);
    if (!status) status = outcome(&child, err);
    if (!status && out_text && child.text[0].len) {
        status = buf_append(out_text, child.text[0].data, child.text[0].len);
        if (status) SHU_FAIL(err, status, "%s: its output does not fit the buffer", child.name);
    }
out:
    buf_free(&program);
    buf_free(&child.text[0]);
    buf_free(&child.text[1]);
    return status;
}
