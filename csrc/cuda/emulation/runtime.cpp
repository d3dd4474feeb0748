/* The CUDA runtime library of the emulated machine. See cuda_runtime.h. */
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#include "base/sizes.h"

using emulation::die, emulation::setting;

long emulation::setting(const char *name, long otherwise)
{
    const char *text = std::getenv(name);
    return text == nullptr ? otherwise : std::atol(text);
}

void emulation::die(const char *what)
{
    std::fprintf(stderr, "emulated GPU: %s\n", what);
    std::abort();
}

struct emulated_graph {
    std::vector<std::function<void()>> work;
};
struct emulated_stream {
    std::vector<std::function<void()>> queue;
    emulated_graph *captured = nullptr;
};

namespace
{

enum { PAGE = 4096 };

struct allocation {
    void *mapping;
    size_t mapped, size;
    int device;
    cudaMemoryType type;
};
std::mutex memory_lock;
std::map<const unsigned char *, allocation> allocations; /* by first byte */
std::map<int, size_t> used;                              /* bytes, by device */
thread_local int current_device;
thread_local cudaError_t last_error;

cudaError_t report(cudaError_t error)
{
    last_error = error == cudaSuccess ? last_error : error;
    return error;
}

std::mutex fault_lock;
cudaError_t fault = cudaSuccess;
long calls_before_fault;
bool fault_stays, fault_came;

/* The error of this call, if emulated_fail_at has asked for one. */
cudaError_t failing()
{
    const std::lock_guard<std::mutex> hold(fault_lock);
    if (fault == cudaSuccess || (fault_came && !fault_stays) || (!fault_came && --calls_before_fault > 0)) {
        return cudaSuccess;
    }
    fault_came = true;
    return report(fault);
}

#define MAY_FAIL()                                                                                           \
    do {                                                                                                     \
        const cudaError_t failing_ = failing();                                                              \
        if (failing_ != cudaSuccess) {                                                                       \
            return failing_;                                                                                 \
        }                                                                                                    \
    } while (0)

/* *out = memory that ends right before a page that nobody may touch. */
cudaError_t allocate(void **out, size_t size, cudaMemoryType type)
{
    MAY_FAIL();
    const std::lock_guard<std::mutex> hold(memory_lock);
    const long limit = setting("DICE_EMULATED_BYTES", -1);
    if (type == cudaMemoryTypeDevice && limit >= 0 && used[current_device] + size > size_t(limit)) {
        return report(cudaErrorMemoryAllocation);
    }
    const size_t whole = dice_round_up(size, PAGE);
    void *mapping = mmap(nullptr, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED
        || mprotect(static_cast<unsigned char *>(mapping) + whole, PAGE, PROT_NONE) != 0) {
        return report(cudaErrorMemoryAllocation);
    }
    unsigned char *first = static_cast<unsigned char *>(mapping) + (whole - size) / 16 * 16;
    std::memset(first, 0x7e, size);
    allocations[first] = {mapping, whole + PAGE, size, current_device, type};
    used[current_device] += type == cudaMemoryTypeDevice ? size : 0;
    *out = first;
    return cudaSuccess;
}

cudaError_t release(void *memory)
{
    if (memory == nullptr) {
        return cudaSuccess;
    }
    const std::lock_guard<std::mutex> hold(memory_lock);
    const auto found = allocations.find(static_cast<unsigned char *>(memory));
    if (found == allocations.end()) {
        die("free of what was not allocated");
    }
    const allocation &a = found->second;
    used[a.device] -= a.type == cudaMemoryTypeDevice ? a.size : 0;
    munmap(a.mapping, a.mapped);
    allocations.erase(found);
    return cudaSuccess;
}

/* Sets the protection of the other devices' memory (mprotect's flags). */
void reach_others(int protection)
{
    if (setting("DICE_EMULATED_DEVICES", 1) > 1) {
        const std::lock_guard<std::mutex> hold(memory_lock);
        for (const auto &[first, a] : allocations) {
            if (a.type == cudaMemoryTypeDevice && a.device != current_device) {
                mprotect(a.mapping, a.mapped - PAGE, protection);
            }
        }
    }
}

bool fits(dim3 grid, dim3 block)
{
    const auto within = [](dim3 size, unsigned x, unsigned y, unsigned z) {
        return size.x - 1 < x && size.y - 1 < y && size.z - 1 < z; /* none of them 0 */
    };
    return within(grid, 0x7fffffff, 65535, 65535) && within(block, 1024, 1024, 64)
        && block.x * block.y * block.z <= 1024;
}

}  // namespace

int emulated_fail_at(long n, int error, int stays)
{
    const std::lock_guard<std::mutex> hold(fault_lock);
    const bool came = fault_came;
    fault = cudaError_t(error);
    calls_before_fault = n;
    fault_stays = stays != 0;
    fault_came = false;
    last_error = cudaSuccess;
    return came;
}

size_t emulated_used(int device)
{
    const std::lock_guard<std::mutex> hold(memory_lock);
    return used[device];
}

void emulation::enqueue(cudaStream_t stream, std::function<void()> work)
{
    if (stream == nullptr) {
        die("work on the default stream");
    }
    (stream->captured != nullptr ? stream->captured->work : stream->queue).push_back(std::move(work));
}

void emulation::start(dim3 grid, dim3 threads, cudaStream_t stream, std::function<void()> body)
{
    if (!fits(grid, threads)) {
        report(cudaErrorInvalidConfiguration);
    } else if (emulated_has_code() == cudaSuccess) {
        enqueue(stream, [=] {
            reach_others(PROT_NONE);
            run_grid(grid, threads, body);
            reach_others(PROT_READ | PROT_WRITE);
        });
    }
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoKernelImageForDevice:
        return "no kernel image is available for execution on the device";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    }
    return "unknown error";
}

cudaError_t cudaGetLastError()
{
    MAY_FAIL();
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = setting("DICE_EMULATED_DEVICES", 1) == -1 ? 0 : 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    MAY_FAIL();
    *count = int(setting("DICE_EMULATED_DEVICES", 1));
    return *count > 0 ? cudaSuccess : report(*count < 0 ? cudaErrorInsufficientDriver : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t emulated_set_device(int device)
{
    MAY_FAIL();
    if (device < 0 || device >= setting("DICE_EMULATED_DEVICES", 1)) {
        return report(cudaErrorInvalidDevice);
    }
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int)
{
    MAY_FAIL();
    *value = 2;
    return cudaSuccess;
}

cudaError_t emulated_has_code()
{
    return setting("DICE_EMULATED_CODE", 1) != 0 ? cudaSuccess : report(cudaErrorNoKernelImageForDevice);
}

cudaError_t emulated_malloc(void **out, size_t size)
{
    return allocate(out, size, cudaMemoryTypeDevice);
}
cudaError_t emulated_malloc_host(void **out, size_t size)
{
    return allocate(out, size, cudaMemoryTypeHost);
}
cudaError_t cudaFree(void *memory)
{
    return release(memory);
}
cudaError_t cudaFreeHost(void *memory)
{
    return release(memory);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *pointer)
{
    MAY_FAIL();
    const std::lock_guard<std::mutex> hold(memory_lock);
    const auto *byte = static_cast<const unsigned char *>(pointer);
    auto after = allocations.upper_bound(byte);
    *out = {cudaMemoryTypeUnregistered, current_device, nullptr, nullptr};
    if (after != allocations.begin()) {
        const auto &[first, a] = *--after;
        if (byte < first + a.size) {
            out->type = a.type;
            out->device = a.device;
        }
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind)
{
    MAY_FAIL();
    std::memcpy(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind, cudaStream_t stream)
{
    MAY_FAIL();
    emulation::enqueue(stream, [=] { std::memcpy(to, from, size); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream)
{
    MAY_FAIL();
    emulation::enqueue(stream, [=] { std::memset(to, value, size); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    MAY_FAIL();
    *stream = new emulated_stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (reinterpret_cast<uintptr_t>(stream) <= 2) {
        return failing(); /* a default stream, on which no work is ever started */
    }
    const cudaError_t error = failing();
    if (error != cudaSuccess) {
        stream->queue.clear();
        return error;
    }
    for (const auto &work : stream->queue) {
        work();
    }
    stream->queue.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    MAY_FAIL();
    stream->captured = new emulated_graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = stream->captured;
    stream->captured = nullptr;
    return failing();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    MAY_FAIL();
    *out = new emulated_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    MAY_FAIL();
    emulation::enqueue(stream, [graph] {
        for (const auto &work : graph->work) {
            work();
        }
    });
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    delete graph;
    return cudaSuccess;
}
