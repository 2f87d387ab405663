/* Files: maps, reads, atomic writes, folders, XDG paths, SHA-256. */
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char scratch[64];

static const char *in_scratch(const char *name) {
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    return path;
}

static int enter_scratch(void **state) {
    (void)state;
    snprintf(scratch, sizeof scratch, "/tmp/shu-test-XXXXXX");
    return mkdtemp(scratch) ? 0 : -1;
}

static int leave_scratch(void **state) {
    (void)state;
    const char *const argv[] = {"rm", "-rf", scratch, NULL};
    return child_run(argv, NULL, NULL, NULL);
}

static void put(const char *path, const char *bytes, size_t count) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    fclose(file);
}

static int entries(const char *folder) {
    int count = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* -------------------------------------------------------------- reading */

static void maps_whole_files(void **state) {
    (void)state;
    struct map map;
    struct shu_error err = {0};
    char *big = mem_alloc(100000);
    for (int i = 0; i < 100000; i++) big[i] = (char)(i * 7);
    put(in_scratch("map"), big, 100000);
    assert_ok(map_open(in_scratch("map"), &map, &err), err);
    assert_int_equal(map.bytes, 100000);
    assert_memory_equal(map.data, big, 100000);
    map_release(&map, 5000, 60000);
    map_release(&map, 99999, 500);
    map_release(&map, 200000, 1);
    assert_memory_equal(map.data, big, 100000); /* comes back from the file */
    map_close(&map);
    map_close(&map); /* a closed map is empty */
    mem_free(big);
    put(in_scratch("empty"), "", 0);
    assert_ok(map_open(in_scratch("empty"), &map, &err), err);
    assert_int_equal(map.bytes, 0);
    map_close(&map);
}

static void refuses_what_is_no_file(void **state) {
    (void)state;
    struct map map;
    struct buf buf = {0};
    struct shu_error err = {0};
    assert_int_equal(map_open(in_scratch("none"), &map, &err), SHU_E_NOTFOUND);
    assert_contains(err.message, "no such file");
    assert_int_equal(map_open(scratch, &map, &err), SHU_E_IO);
    assert_contains(err.message, "found a folder");
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    assert_int_equal(map_open(in_scratch("fifo"), &map, &err), SHU_E_IO); /* and does not wait for a writer */
    assert_int_equal(file_read(in_scratch("none"), 10, &buf, &err), SHU_E_NOTFOUND);
    assert_int_equal(file_read(scratch, 10, &buf, &err), SHU_E_IO);
    buf_free(&buf);
}

static void reads_up_to_the_limit(void **state) {
    (void)state;
    struct buf buf = {0};
    struct shu_error err = {0};
    put(in_scratch("ten"), "0123456789", 10);
    assert_ok(file_read(in_scratch("ten"), 10, &buf, &err), err);
    assert_string_equal(buf.data, "0123456789");
    assert_ok(file_read(in_scratch("ten"), SIZE_MAX, &buf, &err), err); /* appends */
    assert_int_equal(buf.len, 20);
    buf_clear(&buf);
    assert_int_equal(file_read(in_scratch("ten"), 9, &buf, &err), SHU_E_RANGE);
    assert_int_equal(file_read("/dev/zero", 1000, &buf, &err), SHU_E_RANGE); /* endless */
    buf_free(&buf);
    struct buf tight = {.max = 10};
    assert_ok(file_read(in_scratch("ten"), SIZE_MAX, &tight, &err), err); /* just fits */
    assert_string_equal(tight.data, "0123456789");
    buf_free(&tight);
    struct buf small = {.max = 9};
    assert_int_equal(file_read(in_scratch("ten"), SIZE_MAX, &small, &err), SHU_E_RANGE);
    buf_free(&small);
    struct buf proc = {0};
    assert_ok(file_read("/proc/self/status", 1 << 20, &proc, &err), err); /* says size 0 and is not */
    assert_true(proc.len > 100);
    buf_free(&proc);
}

static void reads_may_fail(void **state) {
    (void)state;
    struct buf buf = {0};
    struct map map = {0};
    long rounds;
    put(in_scratch("ten"), "0123456789", 10);
    assert_fails_at_each(FAULT_READ, SHU_E_IO, file_read(in_scratch("ten"), 100, &buf, NULL), rounds);
    assert_int_equal(rounds, 2); /* the content, then its end */
    assert_fails_at_each(FAULT_READ, SHU_E_IO, map_open(in_scratch("ten"), &map, NULL), rounds);
    assert_int_equal(rounds, 1);
    map_close(&map);
    buf_free(&buf);
}

/* --------------------------------------------------------- atomic writes */

static int write_file(const char *path, const char *text, struct shu_error *err) {
    struct atomic_file file;
    int status = atomic_open(path, &file, err);
    if (status) return status;
    for (const char *at = text; *at && !status; at++) status = atomic_write(&file, at, 1, err);
    if (!status) return atomic_commit(&file, err);
    atomic_abort(&file);
    return status;
}

static void assert_content(const char *path, const char *expected) {
    struct buf buf = {0};
    struct shu_error err = {0};
    assert_ok(file_read(path, 1000, &buf, &err), err);
    assert_string_equal(buf.data, expected);
    buf_free(&buf);
}

static void appears_on_commit_only(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct atomic_file file;
    char path[200];
    assert_ok(dir_make(in_scratch("a"), &err), err);
    snprintf(path, sizeof path, "%s", in_scratch("a/file"));
    assert_ok(atomic_open(path, &file, &err), err);
    assert_ok(atomic_write(&file, "new", 3, &err), err);
    assert_int_equal(file.written_bytes, 3);
    assert_false(file_exists(path));
    assert_ok(atomic_commit(&file, &err), err);
    assert_content(path, "new");
    atomic_abort(&file); /* no-op after commit */
    assert_content(path, "new");
    assert_ok(atomic_open(path, &file, &err), err);
    assert_ok(atomic_write(&file, "other", 5, &err), err);
    atomic_abort(&file);
    atomic_abort(&file);
    assert_content(path, "new");
    assert_int_equal(entries(in_scratch("a")), 1);
}

static void two_writers_do_not_meet(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct atomic_file one, two;
    char path[200];
    snprintf(path, sizeof path, "%s", in_scratch("shared"));
    assert_ok(atomic_open(path, &one, &err), err);
    assert_ok(atomic_open(path, &two, &err), err);
    assert_string_not_equal(one.temp, two.temp);
    assert_ok(atomic_write(&one, "1", 1, &err), err);
    assert_ok(atomic_write(&two, "2", 1, &err), err);
    assert_ok(atomic_commit(&two, &err), err);
    assert_ok(atomic_commit(&one, &err), err);
    assert_content(path, "1");
}

static void special_targets_are_refused(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct atomic_file file;
    assert_int_equal(atomic_open("/dev/null", &file, &err), SHU_E_USAGE); /* as root, a rename would replace it */
    assert_int_equal(atomic_open(scratch, &file, &err), SHU_E_USAGE);
    assert_int_equal(atomic_open(in_scratch("no/such/folder"), &file, &err), SHU_E_IO);
    assert_int_equal(file.fd, -1);
    atomic_abort(&file);
}

static void every_write_may_fail(void **state) {
    (void)state;
    char path[200];
    struct shu_error err = {0};
    assert_ok(dir_make(in_scratch("w"), &err), err);
    snprintf(path, sizeof path, "%s", in_scratch("w/file"));
    long rounds;
    for (rounds = 0; rounds < 100; rounds++) {
        put(path, "old", 3);
        fault_arm(FAULT_WRITE, rounds + 1);
        int status = write_file(path, "newer", &err);
        fault_arm(FAULT_WRITE, 0);
        assert_int_equal(entries(in_scratch("w")), 1); /* no temp file stays */
        if (!status) break;
        assert_int_equal(status, SHU_E_IO);
        /* Only the very last step, the fsync of the folder, comes after the rename. */
        assert_content(path, strstr(err.message, "flushed in its folder") ? "newer" : "old");
    }
    assert_content(path, "newer");
    assert_int_equal(rounds, 1 + 5 + 3); /* open, five bytes, then fsync, rename, fsync of the folder */
    assert_fails_at_each(FAULT_ALLOC, SHU_E_NOMEM, write_file(path, "x", &err), rounds);
    assert_true(rounds >= 2);
    assert_int_equal(entries(in_scratch("w")), 1);
}

static void full_disk_is_one_clear_error(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct atomic_file file;
    assert_ok(atomic_open(in_scratch("full"), &file, &err), err);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(full >= 0);
    assert_int_equal(dup2(full, file.fd), file.fd);
    close(full);
    assert_int_equal(atomic_write(&file, "x", 1, &err), SHU_E_IO);
    assert_contains(err.message, "free some space");
    atomic_abort(&file);
    assert_false(file_exists(in_scratch("full")));
}

/* kill -9 at a random moment: the reader sees the old or the new text, never a mixture or nothing. */
static void survives_sudden_death(void **state) {
    (void)state;
    char path[200];
    snprintf(path, sizeof path, "%s", in_scratch("victim"));
    put(path, "aaaaaaaaaa", 10);
    for (int round = 0; round < 25; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            for (;;) {
                write_file(path, "aaaaaaaaaa", NULL);
                write_file(path, "bbbbbbbbbb", NULL);
            }
        }
        usleep((useconds_t)(500 + round * 331));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        struct buf buf = {0};
        assert_int_equal(file_read(path, 100, &buf, NULL), SHU_OK);
        assert_true(!strcmp(buf.data, "aaaaaaaaaa") || !strcmp(buf.data, "bbbbbbbbbb"));
        buf_free(&buf);
    }
}

/* ------------------------------------------------------ folders and paths */

static void makes_folders(void **state) {
    (void)state;
    struct shu_error err = {0};
    assert_ok(dir_make(in_scratch("p/q//r/"), &err), err);
    assert_ok(dir_make(in_scratch("p/q/r"), &err), err);
    assert_true(path_is_dir(in_scratch("p/q/r")));
    put(in_scratch("p/file"), "x", 1);
    assert_false(path_is_dir(in_scratch("p/file")));
    assert_int_equal(dir_make(in_scratch("p/file/below"), &err), SHU_E_IO);
    assert_int_equal(dir_make(in_scratch("p/file"), &err), SHU_E_IO);
    assert_contains(err.message, "found a file of that name");
    assert_ok(dir_make("/", &err), err);
}

static void xdg_paths(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct buf buf = {0};
    char *home = mem_strdup(getenv("HOME") ? getenv("HOME") : "/");
    setenv("HOME", "/tmp/li", 1);
    setenv("XDG_CACHE_HOME", "/var/cache/li", 1);
    assert_ok(path_cache("models", &buf, &err), err);
    assert_string_equal(buf.data, "/var/cache/li/shu/models");
    buf_clear(&buf);
    setenv("XDG_CACHE_HOME", "relative", 1); /* the specification: ignore it */
    assert_ok(path_cache(NULL, &buf, &err), err);
    assert_string_equal(buf.data, "/tmp/li/.cache/shu");
    buf_clear(&buf);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("XDG_CONFIG_HOME");
    assert_ok(path_config("models.yaml", &buf, &err), err);
    assert_string_equal(buf.data, "/tmp/li/.config/shu/models.yaml");
    unsetenv("HOME");
    assert_int_equal(path_config(NULL, &buf, &err), SHU_E_NOTFOUND);
    setenv("HOME", home, 1);
    mem_free(home);
    buf_free(&buf);
}

/* -------------------------------------------------------------- SHA-256 */

static void sha256_vectors(void **state) {
    (void)state;
    /* FIPS 180-4 examples of NIST, and the million a's (15,625 blocks). */
    static const struct {
        const char *text, *hex;
        int repeat;
    } table[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 1},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 1},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1", 1},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqr"
         "stu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1", 1},
        {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", 10000},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct sha256 hash;
        char hex[65];
        sha256_init(&hash);
        for (int r = 0; r < table[i].repeat; r++) sha256_update(&hash, table[i].text, strlen(table[i].text));
        sha256_update(&hash, NULL, 0);
        sha256_hex(&hash, hex);
        assert_string_equal(hex, table[i].hex);
    }
}

static void sha256_does_not_care_about_cuts(void **state) {
    (void)state;
    unsigned char data[300];
    for (int i = 0; i < 300; i++) data[i] = (unsigned char)(i * 31);
    char whole[65], cut[65];
    struct sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, data, sizeof data);
    sha256_hex(&hash, whole);
    for (size_t at = 0; at <= sizeof data; at++) {
        sha256_init(&hash);
        sha256_update(&hash, data, at);
        sha256_update(&hash, data + at, sizeof data - at);
        sha256_hex(&hash, cut);
        assert_string_equal(cut, whole);
    }
    data[299] ^= 1; /* negative control */
    sha256_init(&hash);
    sha256_update(&hash, data, sizeof data);
    sha256_hex(&hash, cut);
    assert_string_not_equal(cut, whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_whole_files),
        cmocka_unit_test(refuses_what_is_no_file),
        cmocka_unit_test(reads_up_to_the_limit),
        cmocka_unit_test(reads_may_fail),
        cmocka_unit_test(appears_on_commit_only),
        cmocka_unit_test(two_writers_do_not_meet),
        cmocka_unit_test(special_targets_are_refused),
        cmocka_unit_test(every_write_may_fail),
        cmocka_unit_test(full_disk_is_one_clear_error),
        cmocka_unit_test(survives_sudden_death),
        cmocka_unit_test(makes_folders),
        cmocka_unit_test(xdg_paths),
        cmocka_unit_test(sha256_vectors),
        cmocka_unit_test(sha256_does_not_care_about_cuts),
    };
    return cmocka_run_group_tests(tests, enter_scratch, leave_scratch);
}
