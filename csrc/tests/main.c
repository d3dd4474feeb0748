/* Runs the C tests; see check.h. Exit status 0 when all hold. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "tests/check.h"

void check(int holds, const char *text, const char *file, int line)
{
    if (!holds) {
        fprintf(stderr, "%s:%d: does not hold: %s (last detail: %s)\n", file, line, text,
                dice_status_detail());
        exit(1);
    }
}

void check_failed_allocations(dice_status (*scenario)(void))
{
    const long before = dice_memory_live();
    dice_status status = DICE_E_MEMORY;
    int failures = -1;
    for (long n = 1; status != DICE_OK; n++, failures++) {
        dice_memory_fail_at(n);
        status = scenario();
        dice_memory_fail_at(0);
        CHECK(status == DICE_OK || status == DICE_E_MEMORY);
        CHECK(dice_memory_live() == before);
    }
    CHECK(failures > 0);
}

void *guarded(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = dice_round_up(bytes, page);
    char *start = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(start != MAP_FAILED);
    CHECK(mprotect(start + room, page, PROT_NONE) == 0);
    return start + room - bytes;
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"base", test_base},
    {"threads", test_threads},
    {"fork", test_fork},
    {"network", test_network},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (argc < 2 || strcmp(argv[1], tests[i].name) == 0) {
            tests[i].run();
            printf("%s: holds\n", tests[i].name);
        }
    }
    return 0;
}
