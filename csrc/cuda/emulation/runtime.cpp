/* The emulated machine. See cuda_runtime.h beside this. */
#undef _FORTIFY_SOURCE  /* its longjmp refuses to change stacks */
#include <cuda_runtime.h>

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#include "machine.cuh"

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- threads of a block ---- */

namespace {

enum { WARP = 32, STACK = 64 * 1024 };

struct barrier {
    unsigned waiting = 0, generation = 0;
};

struct fragments {  /* what a lane brings to mma_bf16 */
    float d[emulation::MOST_PRODUCTS][4];
    uint32_t a[4], b[emulation::MOST_PRODUCTS][2];
};

struct warp {
    barrier gate;
    fragments slots[2][WARP];  /* used in turn: a lane may still read while the next exchange begins */
};

struct fiber {
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
    jmp_buf at;
    dim3 index;
    bool finished = true;
};

struct block_state {  /* the block that this host thread is running */
    std::vector<std::unique_ptr<fiber>> fibers;  /* kept from block to block */
    std::vector<warp> warps;
    barrier gate;
    unsigned threads = 0, current = 0, alive = 0;
    unsigned step = 1;       /* from a thread to the one that runs next */
    unsigned long idle = 0;  /* switches since anything happened */
    jmp_buf home;
    const std::function<void()> *body = nullptr;
};
thread_local block_state block;

long setting(const char *name, long otherwise)
{
    const char *text = std::getenv(name);
    return text == nullptr ? otherwise : std::atol(text);
}

[[noreturn]] void die(const char *what)
{
    std::fprintf(stderr, "emulated GPU: %s\n", what);
    std::abort();
}

[[noreturn]] void resume(unsigned thread)
{
    block.current = thread;
    threadIdx = block.fibers[thread]->index;
    _longjmp(block.fibers[thread]->at, 1);
}

[[noreturn]] void resume_next()
{
    unsigned next = block.current;
    do {
        next = (next + block.step) % block.threads;
    } while (block.fibers[next]->finished);
    resume(next);
}

/* Waits until `expected` threads came; the last one runs `action` before anybody goes on. */
template <typename Action>
void wait(barrier &gate, unsigned expected, Action action)
{
    block.idle = 0;
    const unsigned generation = gate.generation;
    if (++gate.waiting == expected) {
        action();
        gate.waiting = 0;
        gate.generation++;
        return;
    }
    while (gate.generation == generation) {
        if (++block.idle > 4ul * block.threads) {
            die("not every thread reaches the barrier");
        }
        if (_setjmp(block.fibers[block.current]->at) == 0) {
            resume_next();
        }
    }
}

void fiber_main()
{
    for (;;) {
        if (_setjmp(block.fibers[block.current]->at) == 0) {
            if (block.alive == 0) {
                _longjmp(block.home, 1);  /* just made, or the last of its block */
            }
            resume_next();
        }
        (*block.body)();
        block.fibers[block.current]->finished = true;
        block.alive--;
        block.idle = 0;
    }
}

void make_fiber()
{
    block.fibers.emplace_back(new fiber);
    block.current = unsigned(block.fibers.size() - 1);
    static thread_local ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = block.fibers.back()->stack.get();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    block.alive = 0;
    if (_setjmp(block.home) == 0) {
        setcontext(&context);
    }
}

void run_block()
{
    for (unsigned i = 0; i < block.threads; i++) {
        block.fibers[i]->finished = false;
        block.fibers[i]->index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    }
    block.alive = block.threads;
    if (_setjmp(block.home) == 0) {
        resume(block.step == 1 ? 0 : block.threads - 1);
    }
}

warp &my_warp()
{
    return block.warps[block.current / WARP];
}

}  // namespace

void __syncthreads()
{
    wait(block.gate, block.threads, [] {});
}

unsigned emulation::lane()
{
    return block.current % WARP;
}

const void *emulation::exchange(const void *mine, size_t size, unsigned lane)
{
    warp &w = my_warp();
    fragments *slots = w.slots[w.gate.generation % 2];
    std::memcpy(&slots[block.current % WARP], mine, size);
    wait(w.gate, WARP, [] {});
    return &slots[lane];
}

static float cut(double x)
{
    const float rounded = float(x);
    return std::fabs(double(rounded)) > std::fabs(x) ? std::nextafterf(rounded, 0.0f) : rounded;
}

static float half_of(uint32_t pair, int upper)
{
    return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16);
}

/* What the instruction does to the whole warp; a (16 x 16) has been put together. */
static void multiply_fragments(fragments *lanes, int n, const float (&a)[16][16])
{
    float b[16][8];
    for (int l = 0; l < WARP; l++) {
        for (int i = 0; i < 4; i++) {
            b[l % 4 * 2 + i % 2 + i / 2 * 8][l / 4] = half_of(lanes[l].b[n][i / 2], i % 2);
        }
    }
    double sums[16][8] = {};
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 8; column++) {
                sums[row][column] += double(a[row][k]) * double(b[k][column]);
            }
        }
    }
    for (int l = 0; l < WARP; l++) {
        for (int i = 0; i < 4; i++) {
            float &d = lanes[l].d[n][i];
            d = cut(double(d) + sums[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
        }
    }
}

static void multiply_all(fragments *lanes, int count)
{
    float a[16][16];
    uint32_t any = 0;
    for (int l = 0; l < WARP; l++) {
        for (int i = 0; i < 8; i++) {
            const uint32_t pair = lanes[l].a[i / 2];
            a[l / 4 + i / 2 % 2 * 8][l % 4 * 2 + i / 4 * 8 + i % 2] = half_of(pair, i % 2);
            any |= pair;
        }
    }
    for (int n = 0; n < count && any != 0; n++) {  /* rows past the last pixel are all zeros */
        multiply_fragments(lanes, n, a);
    }
}

void emulation::multiply(int count, float (*d)[4], const uint32_t *a, const uint32_t (*b)[2])
{
    warp &w = my_warp();
    fragments *slots = w.slots[w.gate.generation % 2];
    fragments &mine = slots[block.current % WARP];
    std::memcpy(mine.d, d, size_t(count) * sizeof *d);
    std::memcpy(mine.a, a, sizeof mine.a);
    std::memcpy(mine.b, b, size_t(count) * sizeof *b);
    wait(w.gate, WARP, [slots, count] { multiply_all(slots, count); });
    std::memcpy(d, mine.d, size_t(count) * sizeof *d);
}

void emulation::run_grid(dim3 grid, dim3 threads, const std::function<void()> &body)
{
    gridDim = grid;
    blockDim = threads;
    block.body = &body;
    block.threads = threads.x * threads.y * threads.z;
    block.warps.assign((block.threads + WARP - 1) / WARP, warp());
    block.gate = barrier();
    block.step = setting("DICE_EMULATED_BACKWARDS", 0) != 0 ? block.threads - 1 : 1;
    while (block.fibers.size() < block.threads) {
        make_fiber();
    }
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++) {
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++) {
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
                run_block();
            }
        }
    }
}

/* ---- the runtime library ---- */

struct emulated_graph {
    std::vector<std::function<void()>> work;
};
struct emulated_stream {
    std::vector<std::function<void()>> queue;
    emulated_graph *captured = nullptr;
};

namespace {

struct allocation {
    void *mapping;
    size_t mapped, size;
    int device;
    cudaMemoryType type;
};
std::mutex memory_lock;
std::map<const unsigned char *, allocation> allocations;  /* by first byte */
std::map<int, size_t> used;                               /* bytes, by device */
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

/* What this call fails with, as emulated_fail_at asked. */
cudaError_t failing()
{
    const std::lock_guard<std::mutex> hold(fault_lock);
    if (fault == cudaSuccess || (fault_came && !fault_stays) || (!fault_came && --calls_before_fault > 0)) {
        return cudaSuccess;
    }
    fault_came = true;
    return report(fault);
}

#define MAY_FAIL()                                   \
    do {                                             \
        const cudaError_t failing_ = failing();      \
        if (failing_ != cudaSuccess) {               \
            return failing_;                         \
        }                                            \
    } while (0)

/* Ends against a page that nobody may touch. */
cudaError_t allocate(void **out, size_t size, cudaMemoryType type)
{
    MAY_FAIL();
    const std::lock_guard<std::mutex> hold(memory_lock);
    const long limit = setting("DICE_EMULATED_BYTES", -1);
    if (type == cudaMemoryTypeDevice && limit >= 0 && used[current_device] + size > size_t(limit)) {
        return report(cudaErrorMemoryAllocation);
    }
    const size_t page = 4096, whole = (size + page - 1) / page * page;
    void *mapping = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED || mprotect(static_cast<unsigned char *>(mapping) + whole, page, PROT_NONE) != 0) {
        return report(cudaErrorMemoryAllocation);
    }
    unsigned char *first = static_cast<unsigned char *>(mapping) + (whole - size) / 16 * 16;
    std::memset(first, 0x7e, size);
    allocations[first] = {mapping, whole + page, size, current_device, type};
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

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
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

cudaError_t cudaSetDevice(int device)
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

cudaError_t emulated_malloc(void **out, size_t size) { return allocate(out, size, cudaMemoryTypeDevice); }
cudaError_t emulated_malloc_host(void **out, size_t size) { return allocate(out, size, cudaMemoryTypeHost); }
cudaError_t cudaFree(void *memory) { return release(memory); }
cudaError_t cudaFreeHost(void *memory) { return release(memory); }

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

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreate(stream); }

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (reinterpret_cast<uintptr_t>(stream) <= 2) {
        return failing();  /* the default streams: nothing is ever under way there */
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
