/* The float32 peak of one core. See peak.h. */
#define _GNU_SOURCE
#include "cpu/peak.h"

#include <time.h>

#include "base/memory.h"
#include "cpu/kernels.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

dice_status dice_cpu_peak(dice_isa isa, double *gflops)
{
    enum { BLOCKS = 4, MOST = 3 * DICE_TILE_PLANE, CALLS = 2000 };
    const dice_cpu_kernels *kernels = dice_cpu_kernels_for(isa);
    if (kernels == NULL) {
        return dice_fail(DICE_E_INPUT, "isa %s: no fast kernels to measure", dice_isa_name(isa));
    }
    const int vectors = kernels->conv->max_rows[1] > 0 ? 2 : 1, rows = kernels->conv->max_rows[vectors - 1];
    const size_t weights = BLOCKS * DICE_BLOCK * (size_t)vectors * DICE_BLOCK;
    void *memory;
    const dice_status status = dice_alloc_zero(2 * MOST + MOST + weights, sizeof(float), &memory);
    if (status != DICE_OK) {
        return status;
    }
    float *x = memory, *c = x + MOST, *bias = c + MOST, *w = bias + MOST;
    const float *a[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) {
        a[b] = x;
    }
    const dice_conv_sum sum = {a, 1, BLOCKS, DICE_BLOCK};
    const dice_conv_out out = {.y = c, .plane = DICE_TILE_PLANE};
    double best = 0;
    for (const double end = now() + 0.1; now() < end;) {
        const double start = now();
        for (int i = 0; i < CALLS; i++) {
            kernels->conv->tile[vectors - 1][rows - 1](&sum, 0, w, bias, &out);
        }
        const double rate = 2e-9 * CALLS * rows * (double)weights / (now() - start);
        best = rate > best ? rate : best;
    }
    dice_free(memory);
    *gflops = best;
    return DICE_OK;
}
