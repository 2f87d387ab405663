/* Models that one address serves: fetched with libcurl into the partial
 * folder (resuming with a Range request), then joined like any other part. */
#include "weights/store.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_S 30L
#define STALL_SECONDS     60L /* less than one byte a second for so long = give up */
#define REDIRECTS_MAX     8L
#define COPY_BYTES        ((size_t)1 << 20)

struct download {
    struct pull *pull;
    int fd;
    uint64_t bytes; /* in the file */
    int status;     /* first failure inside a callback */
    struct shu_error *err;
};

static size_t take(char *bytes, size_t one, size_t count, void *context) {
    struct download *download = context;
    size_t left = one * count;
    if (left > download->pull->entry->bytes - download->bytes) {
        download->status =
            SHU_FAIL(download->err, SHU_E_CHECKSUM, "%s sends more than the %llu bytes the registry states",
                     download->pull->entry->url, (unsigned long long)download->pull->entry->bytes);
        return 0;
    }
    for (size_t at = 0; at < left;) {
        errno = EIO;
        ssize_t put = fault_fires(FAULT_WRITE) ? -1 : write(download->fd, bytes + at, left - at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) {
            download->status = SHU_FAIL(download->err, SHU_E_IO, "%s: cannot be written: %s", download->pull->partial,
                                        strerror(errno));
            return 0;
        }
        at += (size_t)put;
    }
    download->bytes += left;
    progress_update(&download->pull->progress, download->bytes);
    return left;
}

static int watch(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
    (void)context, (void)a, (void)b, (void)c, (void)d;
    return interrupt_pending(); /* called about once a second even when nothing arrives */
}

static int transfer_failed(const struct download *download, CURLcode code, CURL *curl, struct shu_error *err) {
    long http_status = 0;
    const char *url = download->pull->entry->url;
    if (download->status) return download->status;
    if (interrupt_pending())
        return SHU_FAIL(err, SHU_E_CANCELLED, "interrupted; what was fetched is kept, run the same command to go on");
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    if (code == CURLE_HTTP_RETURNED_ERROR)
        return SHU_FAIL(err, SHU_E_IO, "%s answers with status %ld; expected the file", url, http_status);
    return SHU_FAIL(err, SHU_E_IO, "%s: %s; what was fetched is kept, try again", url, curl_easy_strerror(code));
}

static CURLcode transfer(CURL *curl, struct download *download) {
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, download->pull->entry->url);
    if (code) return code;
    curl_easy_setopt(curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)download->bytes);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, REDIRECTS_MAX);
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, STALL_SECONDS);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "shu/" SHU_VERSION);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, download);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, watch);
    return curl_easy_perform(curl);
}

/* Empties the piece: the server ignores ranges, or the piece is longer than its file. */
static int start_over(struct download *download, struct shu_error *err) {
    if (ftruncate(download->fd, 0) || lseek(download->fd, 0, SEEK_SET) < 0)
        return SHU_FAIL(err, SHU_E_IO, "%s: cannot be truncated: %s", download->pull->partial, strerror(errno));
    download->bytes = 0;
    return SHU_OK;
}

static int fetch(struct download *download, struct shu_error *err) {
    CURL *curl = curl_easy_init();
    if (!curl) return SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    int status = SHU_OK;
    CURLcode code = transfer(curl, download);
    if (code == CURLE_RANGE_ERROR && !download->status) {
        status = start_over(download, err);
        if (!status) code = transfer(curl, download);
    }
    if (!status && code) status = transfer_failed(download, code, curl, err);
    curl_easy_cleanup(curl);
    return status;
}

/* Opens the piece at its end. */
static int open_piece(struct download *download, const char *path, struct shu_error *err) {
    download->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    off_t end = download->fd < 0 ? -1 : lseek(download->fd, 0, SEEK_END);
    if (end < 0) return SHU_FAIL(err, SHU_E_IO, "%s: cannot be opened for writing: %s", path, strerror(errno));
    download->bytes = (uint64_t)end;
    return download->bytes > download->pull->entry->bytes ? start_over(download, err) : SHU_OK;
}

static int join_piece(struct pull *pull, const char *path, struct shu_error *err) {
    struct map map;
    int status = map_open(path, &map, err);
    for (size_t at = 0; !status && at < map.bytes; at += COPY_BYTES) {
        size_t count = map.bytes - at < COPY_BYTES ? map.bytes - at : COPY_BYTES;
        status = pull_append(pull, map.data + at, count, err);
        map_release(&map, at, count);
    }
    map_close(&map);
    return status;
}

int pull_http(struct pull *pull, struct shu_error *err) {
    struct buf path = {0};
    struct download download = {.pull = pull, .fd = -1, .err = err};
    int status = buf_printf(&path, "%s/file", pull->partial);
    status = status ? SHU_FAIL(err, status, "out of memory") : open_piece(&download, path.data, err);
    if (!status && download.bytes < pull->entry->bytes) status = fetch(&download, err);
    if (download.fd >= 0) close(download.fd);
    if (!status) status = join_piece(pull, path.data, err);
    buf_free(&path);
    return status;
}
