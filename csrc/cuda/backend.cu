/* The CUDA back end: the slots that the plug-in exports, and what it is told on loading. */
#include "device.cuh"
#include "slots.cuh"

static dice_status arrived(const dice_options *options, uintptr_t stream, const float *x, size_t count,
                           int *finite)
{
    TRY(device_check(options->device));
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
    backend.unavailable = device_unavailable;
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
