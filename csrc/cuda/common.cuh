/* What the files of the plug-in share: errors, the current device, device memory. */
#ifndef DICE_CUDA_COMMON_CUH
#define DICE_CUDA_COMMON_CUH

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

extern "C" {
#include "backend/backend.h"
#include "backend/plugin.h"
#include "base/sizes.h"
}
#include "machine.cuh"

/* The functions of the core, which it passed when it opened the plug-in. */
extern const dice_plugin_core *dice_core;

/* Returns DICE_E_DEVICE with the detail "cuda:N: WHAT: the error's text". */
static inline dice_status cuda_fail(cudaError_t error, const char *what)
{
    int device = 0;
    cudaGetDevice(&device);
    cudaGetLastError(); /* clears the error, so that the next call does not report it again */
    return dice_core->fail(DICE_E_DEVICE, "cuda:%d: %s: %s", device, what, cudaGetErrorString(error));
}

#define CUDA_TRY(call, what)                                                                                 \
    do {                                                                                                     \
        const cudaError_t error_ = (call);                                                                   \
        if (error_ != cudaSuccess) {                                                                         \
            return cuda_fail(error_, what);                                                                  \
        }                                                                                                    \
    } while (0)

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        const dice_status status_ = (call);                                                                  \
        if (status_ != DICE_OK) {                                                                            \
            return status_;                                                                                  \
        }                                                                                                    \
    } while (0)

/* Makes `index` this thread's device, and restores the caller's device at the end of the scope. */
class on_device
{
  public:
    explicit on_device(int index)
    {
        cudaGetDevice(&before);
        error = index == before ? cudaSuccess : cudaSetDevice(index);
    }
    ~on_device()
    {
        int now = before;
        if (cudaGetDevice(&now) == cudaSuccess && now != before && cudaSetDevice(before) != cudaSuccess) {
            cudaGetLastError(); /* that device may be full, which the next launch must not report */
        }
    }
    on_device(const on_device &) = delete;
    on_device &operator=(const on_device &) = delete;
    cudaError_t error;

  private:
    int before = 0;
};

/* Device memory that grows when more is reserved and never shrinks. */
struct device_buffer {
    unsigned char *data = nullptr;
    size_t bytes = 0;

    cudaError_t reserve(size_t wanted)
    {
        if (wanted <= bytes) {
            return cudaSuccess;
        }
        release();
        const cudaError_t error = cudaMalloc(&data, wanted);
        bytes = error == cudaSuccess ? wanted : 0;
        return error;
    }
    void release()
    {
        if (data != nullptr) {
            cudaFree(data);
        }
        data = nullptr;
        bytes = 0;
    }
};

/* Lays out arrays in one buffer, each aligned for 16-byte access. */
struct carver {
    size_t used = 0;
    size_t take(size_t bytes)
    {
        const size_t at = used;
        used += dice_round_up(bytes, 256);
        return at;
    }
};

/* Runs run(first, rows) over n rows in waves of at most `most` rows, after reserve(rows) has made room for a
 * wave. Where there is too little memory, waves are halved. */
template <typename Reserve, typename Run>
static dice_status in_waves(size_t n, size_t most, Reserve reserve, Run run)
{
    for (size_t first = 0; first < n;) {
        const size_t rows = dice_least(n - first, most);
        const cudaError_t error = reserve(rows);
        if (error == cudaErrorMemoryAllocation && rows > 1) {
            cudaGetLastError();
            most = rows / 2;
            continue;
        }
        CUDA_TRY(error, "working memory");
        TRY(run(first, rows));
        first += rows;
    }
    return DICE_OK;
}

/* The device that `memory` is on; -1 for host memory. Memory that all devices share counts as on `device`. */
static inline int device_of(const void *memory, int device)
{
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    return attributes.type == cudaMemoryTypeManaged ? device
         : attributes.type == cudaMemoryTypeDevice  ? attributes.device
                                                    : -1;
}

/* Whether kernels on `device` can read and write `memory`. */
static inline bool lives_on(const void *memory, int device)
{
    return device_of(memory, device) == device;
}

#endif
