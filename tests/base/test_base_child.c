/* Child processes: output, failure, limits; interrupts. */
#include "check.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static int shell(const char *script, const struct child_options *options, struct buf *out, struct shu_error *err) {
    const char *const argv[] = {"sh", "-c", script, NULL};
    return child_run(argv, options, out, err);
}

static void captures_output(void **state) {
    (void)state;
    struct buf out = {0};
    struct shu_error err = {0};
    assert_ok(shell("echo one; echo two >&2; printf '%s' \"$0\"; cat", NULL, &out, &err), err); /* stdin is empty */
    assert_string_equal(out.data, "one\nsh");
    buf_clear(&out);
    assert_ok(shell("pwd", &(struct child_options){.work_dir = "/usr"}, &out, &err), err);
    assert_string_equal(out.data, "/usr\n");
    assert_ok(shell("exit 0", NULL, NULL, &err), err);
    buf_free(&out);
}

static void takes_large_output_of_both_pipes(void **state) {
    (void)state;
    struct buf out = {0};
    struct shu_error err = {0};
    struct child_options options = {.max_output_bytes = 2 << 20};
    assert_ok(shell("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo end", &options, &out, &err), err);
    assert_int_equal(out.len, 1000004);
    buf_free(&out);
}

static void failure_quotes_the_last_line(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct buf out = {0};
    assert_int_equal(shell("echo lost; echo first >&2; echo 'disk on fire' >&2; exit 3", NULL, &out, &err),
                     SHU_E_CHILD);
    assert_string_equal(err.message, "sh: failed with exit code 3: disk on fire");
    assert_null(out.data); /* nothing of a failed child */
    assert_int_equal(shell("exit 4", NULL, NULL, &err), SHU_E_CHILD);
    assert_string_equal(err.message, "sh: failed with exit code 4");
    assert_int_equal(shell("kill -9 $$", NULL, NULL, &err), SHU_E_CHILD);
    assert_contains(err.message, "signal 9");
}

static void missing_programs_and_folders(void **state) {
    (void)state;
    struct shu_error err = {0};
    const char *const none[] = {"shu-no-such-program", NULL}, *const path[] = {"/no/such/program", NULL};
    assert_int_equal(child_run(none, NULL, NULL, &err), SHU_E_NOTFOUND);
    assert_contains(err.message, "install it");
    assert_int_equal(child_run(path, NULL, NULL, &err), SHU_E_NOTFOUND);
    assert_int_equal(shell("true", &(struct child_options){.work_dir = "/no/such"}, NULL, &err), SHU_E_CHILD);
    assert_contains(err.message, "cannot be started");
    const char *const full[] = {"/bin/true", NULL};
    assert_ok(child_run(full, NULL, NULL, &err), err);
}

/* The whole group dies, also what the shell started: the background sleep would write the file. */
static void timeout_kills_the_group(void **state) {
    (void)state;
    struct shu_error err = {0};
    char path[] = "/tmp/shu-test-XXXXXX", script[200];
    close(mkstemp(path));
    snprintf(script, sizeof script, "(sleep 0.6; echo alive > %s) & sleep 30", path);
    uint64_t start = clock_ns();
    assert_int_equal(shell(script, &(struct child_options){.timeout_ms = 200}, NULL, &err), SHU_E_CHILD);
    assert_contains(err.message, "200 ms");
    assert_true(clock_ns() - start < 5000000000u);
    usleep(900000);
    struct buf text = {0};
    assert_int_equal(file_read(path, 100, &text, NULL), SHU_OK);
    assert_int_equal(text.len, 0);
    buf_free(&text);
    remove(path);
}

/* A daemon that keeps the pipes open must not keep us. */
static void does_not_wait_for_daemons(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct buf out = {0};
    uint64_t start = clock_ns();
    assert_ok(shell("sleep 20 & echo done", NULL, &out, &err), err);
    assert_true(clock_ns() - start < 5000000000u);
    assert_string_equal(out.data, "done\n");
    buf_free(&out);
}

static void limits_output_and_memory(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct buf out = {0};
    assert_int_equal(shell("yes", &(struct child_options){.max_output_bytes = 5000}, &out, &err), SHU_E_CHILD);
    assert_contains(err.message, "5000 bytes");
    assert_int_equal(shell("yes >&2", NULL, &out, &err), SHU_E_CHILD);
    /* 200 MB in one variable under a limit of 100 MB */
    const char *hungry = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";
    assert_int_equal(shell(hungry, &(struct child_options){.max_memory_bytes = 100u << 20}, &out, &err), SHU_E_CHILD);
    buf_free(&out);
    struct buf small = {.max = 3};
    assert_int_equal(shell("echo 12345", NULL, &small, &err), SHU_E_RANGE);
    buf_free(&small);
}

static void interrupt_stops_the_child(void **state) {
    (void)state;
    struct shu_error err = {0};
    interrupt_install();
    assert_false(interrupt_pending());
    raise(SIGINT);
    assert_true(interrupt_pending());
    uint64_t start = clock_ns();
    assert_int_equal(shell("sleep 20", NULL, NULL, &err), SHU_E_CANCELLED);
    assert_true(clock_ns() - start < 5000000000u);
    interrupt_clear();
    assert_false(interrupt_pending());
    assert_ok(shell("true", NULL, NULL, &err), err);
}

static void second_interrupt_kills(void **state) {
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        interrupt_install();
        raise(SIGTERM);
        if (!interrupt_pending()) _exit(1);
        raise(SIGTERM);
        _exit(2);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGTERM);
}

static void blocked_reads_return_on_interrupt(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        interrupt_install();
        dup2(ends[0], STDIN_FILENO);
        struct buf text = {0};
        int status = file_read("-", 100, &text, NULL);
        _exit(status == SHU_E_CANCELLED ? 0 : 1);
    }
    int status = -1;
    for (int i = 0; i < 100 && waitpid(pid, &status, WNOHANG) == 0; i++) {
        usleep(50000); /* the first signals may come before the handler stands or the read blocks */
        if (i == 2) kill(pid, SIGINT);
    }
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(ends[0]);
    close(ends[1]);
}

static void failures_leave_nothing_behind(void **state) {
    (void)state;
    struct buf out = {0};
    long rounds;
    assert_fails_at_each(FAULT_ALLOC, SHU_E_NOMEM, shell("echo x", NULL, &out, NULL), rounds);
    assert_true(rounds >= 2);
    assert_string_equal(out.data, "x\n");
    buf_free(&out);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no zombie */
    assert_int_equal(errno, ECHILD);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captures_output),
        cmocka_unit_test(takes_large_output_of_both_pipes),
        cmocka_unit_test(failure_quotes_the_last_line),
        cmocka_unit_test(missing_programs_and_folders),
        cmocka_unit_test(timeout_kills_the_group),
        cmocka_unit_test(does_not_wait_for_daemons),
        cmocka_unit_test(limits_output_and_memory),
        cmocka_unit_test(interrupt_stops_the_child),
        cmocka_unit_test(second_interrupt_kills),
        cmocka_unit_test(blocked_reads_return_on_interrupt),
        cmocka_unit_test(failures_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
