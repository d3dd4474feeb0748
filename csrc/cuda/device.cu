/* Whether a device can be used by this process. See device.cuh. */
#include "device.cuh"

#include <unistd.h>

#include <atomic>

const dice_plugin_core *dice_core;

static std::atomic<pid_t> started_in(0); /* the process in which the driver was first used; 0: not yet */

bool device_is_forked()
{
    const pid_t process = started_in;
    return process != 0 && process != getpid();
}

static const char forked[] =
    "CUDA was started before this process was forked; start processes by spawn, or CUDA after the fork";

dice_status device_check_process(int index)
{
    return device_is_forked() ? dice_core->fail(DICE_E_DEVICE, "device cuda:%d: %s", index, forked) : DICE_OK;
}

/* *count = the number of devices. Returns null, or the reason why there are none. The CUDA runtime is linked
 * in, but the driver belongs to the machine. */
static const char *count_devices(int *count)
{
    int version = 0;
    *count = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
        cudaGetLastError();
        return "no driver";
    }
    if (device_is_forked()) {
        return forked;
    }
    started_in = getpid();
    const cudaError_t error = cudaGetDeviceCount(count);
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver) {
        return "the driver is too old";
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && *count == 0)) {
        return "no device";
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char *device_unavailable()
{
    int count;
    return count_devices(&count);
}

dice_status device_check(int index)
{
    int count;
    const char *reason = count_devices(&count);
    if (reason != nullptr) {
        return dice_core->fail(DICE_E_DEVICE, "device cuda:%d: %s", index, reason);
    }
    if (index < 0 || index >= count) {
        return dice_core->fail(DICE_E_DEVICE, "device cuda:%d: this machine has %d (cuda:0 is the first)",
                               index, count);
    }
    return DICE_OK;
}
