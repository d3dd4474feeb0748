/* What csrc/cuda uses of CUDA, emulated on the host for the tests. The plug-in's sources compile
 * unchanged.
 *
 * The threads of a block are fibers of one host thread, which switch at barriers, shuffles and tile products;
 * blocks run one after another. Streams are queues that run only when something waits for them, so that a
 * buffer that is reused or read too early shows in the results; an error of the machine empties them. Device
 * memory is host memory that is filled with 8e37 and ends at a guard page; kernels cannot reach the memory of
 * another device.
 *
 * Environment variables describe the machine:
 * - DICE_EMULATED_DEVICES (default 1): the number of devices; 0 no device, -1 no driver, -2 a driver that is
 * too old;
 * - DICE_EMULATED_BYTES (default no limit): the memory of a device;
 * - DICE_EMULATED_CODE=0: the plug-in has no code for these devices;
 * - DICE_EMULATED_BACKWARDS=1: the threads of a block run from the last to the first. If a barrier is
 * missing, the two orders give different results. */
#ifndef DICE_CUDA_EMULATION_RUNTIME_H
#define DICE_CUDA_EMULATION_RUNTIME_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}

extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

/* Threads of a block */
void __syncthreads();
namespace emulation
{
/* Waits until all 32 lanes of the warp have given their `size` bytes, then returns those of `lane`. */
const void *exchange(const void *mine, size_t size, unsigned lane);
unsigned lane();
}  // namespace emulation

template <typename T> T __shfl_xor_sync(unsigned, T value, int mask)
{
    T result;
    std::memcpy(&result, emulation::exchange(&value, sizeof value, emulation::lane() ^ unsigned(mask)),
                sizeof result);
    return result;
}

template <typename T> T atomicAdd(T *address, T value)
{
    const T old = *address;
    *address += value;
    return old;
}
template <typename T> T atomicMin(T *address, T value)
{
    const T old = *address;
    *address = value < old ? value : old;
    return old;
}

inline unsigned __float_as_uint(float x)
{
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float __uint_as_float(unsigned u)
{
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
inline long long __double_as_longlong(double x)
{
    long long u;
    std::memcpy(&u, &x, 8);
    return u;
}
inline double __longlong_as_double(long long u)
{
    double x;
    std::memcpy(&x, &u, 8);
    return x;
}

/* The runtime library */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorIllegalAddress = 700
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDefault = 4 };
enum cudaMemoryType {
    cudaMemoryTypeUnregistered,
    cudaMemoryTypeHost,
    cudaMemoryTypeDevice,
    cudaMemoryTypeManaged
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
enum { cudaStreamNonBlocking = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
struct cudaFuncAttributes {};
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};
typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph *cudaGraphExec_t;

const char *cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int *);
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaGetDevice(int *);
cudaError_t cudaDeviceGetAttribute(int *, cudaDeviceAttr, int);
extern "C" { /* the tests call them too */
__attribute__((visibility("default"))) cudaError_t emulated_set_device(int);
__attribute__((visibility("default"))) cudaError_t emulated_malloc(void **, size_t);
/* Makes the n-th call from now on, counting calls that can fail, return `error`, and with `stays` all calls
 * after it; error 0 turns this off. Returns whether the error that was asked for before has come. */
__attribute__((visibility("default"))) int emulated_fail_at(long n, int error, int stays);
__attribute__((visibility("default"))) size_t emulated_used(int device); /* bytes allocated */
}
inline cudaError_t cudaSetDevice(int device)
{
    return emulated_set_device(device);
}
cudaError_t emulated_has_code();
template <typename T> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, T *)
{
    return emulated_has_code();
}
cudaError_t cudaFree(void *);
cudaError_t emulated_malloc_host(void **, size_t);
template <typename T> cudaError_t cudaMalloc(T **p, size_t n)
{
    return emulated_malloc(reinterpret_cast<void **>(p), n);
}
template <typename T> cudaError_t cudaMallocHost(T **p, size_t n)
{
    return emulated_malloc_host(reinterpret_cast<void **>(p), n);
}
cudaError_t cudaFreeHost(void *);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *, const void *);
cudaError_t cudaMemcpy(void *, const void *, size_t, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void *, const void *, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void *, int, size_t, cudaStream_t);
cudaError_t cudaStreamCreate(cudaStream_t *);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);

namespace emulation
{
void enqueue(cudaStream_t stream, std::function<void()> work);
void start(dim3 grid, dim3 block, cudaStream_t stream, std::function<void()> body); /* a kernel */
void run_grid(dim3 grid, dim3 block, const std::function<void()> &body);
long setting(const char *name, long otherwise); /* of the environment */
[[noreturn]] void die(const char *what);
}  // namespace emulation

#endif
