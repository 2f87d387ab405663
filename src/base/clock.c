/* Clock, and what the process costs in memory. */
#include "base/base.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A line "FIELD:   123 kB" of /proc/self/status, in bytes; 0 where there is no /proc. Not getrusage: its maximum
 * survives exec, and so reports the peak of whoever started us. */
static uint64_t status_field(const char *field) {
    char text[4096];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    if (count <= 0) return 0;
    text[count] = '\0';
    const char *found = strstr(text, field);
    return found ? (uint64_t)strtoull(found + strlen(field), NULL, 10) * 1024 : 0;
}

uint64_t rss_bytes(void) {
    return status_field("\nVmRSS:");
}
uint64_t rss_peak_bytes(void) {
    return status_field("\nVmHWM:");
}
