/* What every test of room base includes: cmocka with its prerequisites, and a scratch folder. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

/* Fails with the recorded message instead of a bare number. */
#define assert_ok(call, err)                                                                                           \
    do {                                                                                                               \
        if (call) fail_msg("%s: %s", #call, (err).message);                                                            \
    } while (0)

#define assert_contains(text, part)                                                                                    \
    do {                                                                                                               \
        if (!strstr((text), (part))) fail_msg("'%s' does not contain '%s'", (text), (part));                           \
    } while (0)

/* Runs `call` with the k-th operation of a kind failing, k = 1, 2, …, until it succeeds; counts the rounds.
 * Compiled-out counters would let a test pass without testing anything: they fail it. */
#define assert_fails_at_each(kind, status, call, rounds)                                                               \
    do {                                                                                                               \
        for ((rounds) = 0; (rounds) < 10000; (rounds)++) {                                                             \
            fault_arm((kind), (rounds) + 1);                                                                           \
            int got_ = (call);                                                                                         \
            long seen_ = fault_count(kind);                                                                            \
            fault_arm((kind), 0);                                                                                      \
            if (got_ == SHU_OK) {                                                                                      \
                assert_true(seen_ <= (rounds));                                                                        \
                break;                                                                                                 \
            }                                                                                                          \
            assert_int_equal(got_, (status));                                                                          \
        }                                                                                                              \
    } while (0)

#endif
