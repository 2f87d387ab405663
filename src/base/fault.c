/* Fault injection: the counters behind "fail the k-th allocation, read or write". */
#include "base/base.h"

#ifdef SHU_FAULTS

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Process-wide by nature: the k-th operation of the whole process is meant. */
static atomic_long armed_kth[FAULT_KINDS];
static atomic_long seen[FAULT_KINDS];

void fault_arm(enum fault_kind kind, long kth) {
    atomic_store(&armed_kth[kind], 0);
    atomic_store(&seen[kind], 0);
    atomic_store(&armed_kth[kind], kth);
}

long fault_count(enum fault_kind kind) {
    return atomic_load(&seen[kind]);
}

bool fault_fires(enum fault_kind kind) {
    long nth = atomic_fetch_add_explicit(&seen[kind], 1, memory_order_relaxed) + 1;
    return nth == atomic_load_explicit(&armed_kth[kind], memory_order_relaxed);
}

void fault_arm_from_env(void) {
    static const char *const names[FAULT_KINDS] = {"alloc:", "read:", "write:"};
    const char *wish = getenv("SHU_FAULT");
    for (int kind = 0; wish && kind < FAULT_KINDS; kind++) {
        size_t length = strlen(names[kind]);
        if (strncmp(wish, names[kind], length) == 0) fault_arm((enum fault_kind)kind, strtol(wish + length, NULL, 10));
    }
}

#else

void fault_arm(enum fault_kind kind, long kth) {
    (void)kind, (void)kth;
}
long fault_count(enum fault_kind kind) {
    return (void)kind, 0;
}
bool fault_fires(enum fault_kind kind) {
    return (void)kind, false;
}
void fault_arm_from_env(void) {}

#endif
