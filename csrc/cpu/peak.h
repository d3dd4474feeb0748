/* The float32 peak of one core, measured. */
#ifndef DICE_CPU_PEAK_H
#define DICE_CPU_PEAK_H

#include "base/cpu.h"

/* *gflops = what the largest tile multiply reaches on data in L1, in about 0.1 s. DICE_E_INPUT for scalar. */
dice_status dice_cpu_peak(dice_isa isa, double *gflops);

#endif
