/* Status details and memory. */
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "tests/check.h"

static void test_status(void)
{
    CHECK(dice_fail(DICE_E_INPUT, "%s %d", "file", 7) == DICE_E_INPUT);
    CHECK(strcmp(dice_status_detail(), "file 7") == 0);
    /* a detail may be built from the one before */
    dice_fail(DICE_E_INPUT, "layer: %s", dice_status_detail());
    CHECK(strcmp(dice_status_detail(), "layer: file 7") == 0);
    dice_status_set_detail(dice_status_detail());
    CHECK(strcmp(dice_status_detail(), "layer: file 7") == 0);
    char text[2000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    dice_fail(DICE_E_INPUT, "%s", text);
    CHECK(strlen(dice_status_detail()) == 1023);
}

static void test_memory(void)
{
    const long before = dice_memory_live();
    static const size_t counts[] = {0, 1, 63, 64, 65, 1000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        void *memory;
        CHECK(dice_alloc_zero(counts[i], 1, &memory) == DICE_OK);
        CHECK(memory != NULL && (uintptr_t)memory % DICE_ALIGN == 0);
        for (size_t j = 0; j < counts[i]; j++) {
            CHECK(((char *)memory)[j] == 0);
        }
        CHECK(dice_memory_live() == before + 1);
        dice_free(memory);
    }
    dice_free(NULL);
    CHECK(dice_memory_live() == before);

    static const size_t too_much[][2] = {
        {SIZE_MAX, 2}, {SIZE_MAX / 2 + 1, 2}, {SIZE_MAX / 8 + 1, 8}, {SIZE_MAX, 1}};
    for (size_t i = 0; i < sizeof too_much / sizeof *too_much; i++) {
        void *memory = &memory;
        CHECK(dice_alloc(too_much[i][0], too_much[i][1], &memory) == DICE_E_MEMORY);
        CHECK(memory == NULL);
    }
}

static void test_fail_at(void)
{
    void *memory;
    dice_memory_fail_at(2);
    for (int n = 1; n <= 3; n++) {
        CHECK(dice_alloc(8, 8, &memory) == (n == 2 ? DICE_E_MEMORY : DICE_OK));
        dice_free(memory);
    }
    CHECK(dice_memory_fail_at(5) == 0);
    CHECK(dice_memory_fail_at(1) == 5);
    CHECK(dice_memory_fail_at(0) == 1);
    CHECK(dice_alloc(8, 8, &memory) == DICE_OK);
    dice_free(memory);
}

static void test_sizes(void)
{
    CHECK(dice_least(3, 5) == 3 && dice_least(5, 3) == 3 && dice_least32(-1, 2) == -1);
    CHECK(dice_most(3, 5) == 5 && dice_most(5, 3) == 5);
    CHECK(dice_ceil_div(0, 4) == 0 && dice_ceil_div(1, 4) == 1);
    CHECK(dice_ceil_div(8, 4) == 2 && dice_ceil_div(9, 4) == 3);
    CHECK(dice_ceil_div32(0, 4) == 0 && dice_ceil_div32(8, 4) == 2 && dice_ceil_div32(9, 4) == 3);
    CHECK(dice_round_up(0, 4) == 0 && dice_round_up(8, 4) == 8 && dice_round_up(9, 4) == 12);
}

void test_base(void)
{
    test_sizes();
    test_status();
    test_memory();
    test_fail_at();
}
