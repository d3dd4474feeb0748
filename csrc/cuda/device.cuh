/* Whether a device can be used: driver, index, and a process that was not forked after CUDA was started. */
#ifndef DICE_CUDA_DEVICE_CUH
#define DICE_CUDA_DEVICE_CUH

#include "common.cuh"

/* Why no device can be used here ("no driver", "no device", ...), or null. */
const char *device_unavailable();

/* DICE_E_DEVICE if there is no device of that index, or this process cannot use it. */
dice_status device_check(int index);

/* Whether this process was forked after CUDA was started: no call of CUDA works here, and the locks of what
 * was made before may be held by threads that do not exist. */
bool device_is_forked();
dice_status device_check_process(int index); /* DICE_E_DEVICE where that is so; `index` names the device */

#endif
