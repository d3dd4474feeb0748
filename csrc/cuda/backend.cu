/* The CUDA back end: the slots that the plug-in exports, and whether it can run on this machine. */
#include "slots.cuh"

#include <unistd.h>

#include <atomic>

const dice_plugin_core *dice_core;

static std::atomic<pid_t> started_in(0); /* the process in which the driver was first used; 0: not yet */

bool backend_is_forked()
{
    const pid_t process = started_in;
    return process != 0 && process != getpid();
}

static const char forked[] =
    "CUDA was started before this process was forked; start processes by spawn, or CUDA after the fork";

dice_status backend_check_process(int index)
{
    return backend_is_forked() ? dice_core->fail(DICE_E_DEVICE, "device cuda:%d: %s", index, forked)
                               : DICE_OK;
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
    if (backend_is_forked()) {
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

static const char *unavailable()
{
    int count;
    return count_devices(&count);
}

dice_status backend_check_device(int index)
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

static dice_status arrived(const dice_options *options, uintptr_t stream, const float *x, size_t count,
                           int *finite)
{
    TRY(backend_check_device(options->device));
    const on_device here(options->device);
    CUDA_TRY(here.error, "device");
    const int found = device_of(x, options->device), holder = found < 0 ? options->device : found;
    const on_device there(holder); /* `stream` may be a default stream, which belongs to this device */
    CUDA_TRY(there.error, "device");
    if (stream != 0) {
        CUDA_TRY(cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(stream)), "the stream of an array");
    }
    *finite = 1;
    return count == 0 ? DICE_OK : statistics_finite(x, count, holder, finite);
}

extern "C" __attribute__((visibility("default"))) const dice_backend *
dice_plugin(const dice_plugin_core *core)
{
    static dice_backend backend;
    if (core->abi != DICE_BACKEND_ABI) {
        return nullptr;
    }
    dice_core = core;
    backend.abi = DICE_BACKEND_ABI;
    backend.name = "cuda";
    backend.unavailable = unavailable;
    backend.net_takes = net_takes;
    backend.net_create = net_create;
    backend.net_forward = net_forward;
    backend.net_info = net_info;
    backend.net_free = net_free;
    backend.linear_create = linear_create;
    backend.linear_forward = linear_forward;
    backend.linear_info = linear_info;
    backend.linear_free = linear_free;
    backend.moments = statistics_moments;
    backend.rank = statistics_rank;
    backend.distance_create = distance_create;
    backend.distance_forward = distance_forward;
    backend.distance_free = distance_free;
    backend.arrived = arrived;
    return &backend;
}
