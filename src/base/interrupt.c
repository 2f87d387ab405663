/* Interrupts: the first Ctrl-C asks, a second one that nobody answered kills. */
#include "base/base.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>

/* Signal handlers have no context argument: this flag is the one hidden global of the program. */
static atomic_int pending;

static void on_signal(int number) {
    if (atomic_exchange(&pending, 1) == 0) return;
    signal(number, SIG_DFL);
    raise(number);
}

void interrupt_install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* no SA_RESTART: a blocked read must return and look at the flag */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupt_pending(void) {
    return atomic_load_explicit(&pending, memory_order_relaxed) != 0;
}
void interrupt_clear(void) {
    atomic_store(&pending, 0);
}
