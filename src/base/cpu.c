/* How many cores this process may really use: affinity, and the CPU quota of its control groups. */
#include "base/base.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool read_small(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t count = read(fd, text, size - 1);
    close(fd);
    if (count <= 0) return false;
    text[count] = '\0';
    return true;
}

/* "QUOTA PERIOD" or "max PERIOD": cores rounded up, 0 = no limit. */
static int quota_cores(const char *text) {
    char *end = NULL;
    long long quota = strtoll(text, &end, 10);
    long long period = end == text ? 0 : strtoll(end, NULL, 10);
    if (quota <= 0 || period <= 0) return 0;
    return (int)((quota + period - 1) / period);
}

/* cgroup v2: the tightest limit on the way from our group up to the root counts. */
static int cgroup_cores(void) {
    char groups[4096], path[4600], limit[64];
    if (!read_small("/proc/self/cgroup", groups, sizeof groups)) return 0;
    char *group = strstr(groups, "0::/");
    if (!group) return 0;
    group += 3;
    group[strcspn(group, "\n")] = '\0';
    int cores = 0;
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        int here = read_small(path, limit, sizeof limit) ? quota_cores(limit) : 0;
        if (here > 0 && (cores == 0 || here < cores)) cores = here;
        char *slash = strrchr(group, '/');
        if (!slash) return cores;
        *slash = '\0';
    }
}

int cpu_usable(void) {
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)online;
    int quota = cgroup_cores();
    if (quota > 0 && quota < cores) cores = quota;
    return cores > 0 ? cores : 1;
}
