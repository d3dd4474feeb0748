/* The threads of an emulated block. See cuda_runtime.h. */
#undef _FORTIFY_SOURCE /* its longjmp refuses to change stacks */
#include <cuda_runtime.h>

#include <csetjmp>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "base/sizes.h"
#include "machine.cuh"

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace
{

enum { WARP = 32, STACK = 64 * 1024 };

struct barrier {
    unsigned waiting = 0, generation = 0;
};

struct fragments { /* what a lane brings to mma_bf16 */
    float d[emulation::MOST_PRODUCTS][4];
    uint32_t a[4], b[emulation::MOST_PRODUCTS][2];
};

struct warp {
    barrier gate;
    fragments given[2][WARP]; /* used in turn: a lane may still read while the next exchange begins */
};

struct fiber {
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
    jmp_buf at;
    dim3 index;
    bool finished = true;
};

struct block_state {                            /* the block that this host thread runs */
    std::vector<std::unique_ptr<fiber>> fibers; /* kept from block to block */
    std::vector<warp> warps;
    barrier gate;
    unsigned threads = 0, current = 0, alive = 0;
    unsigned step = 1;      /* index of the next thread to run minus that of this one */
    unsigned long idle = 0; /* switches of threads since one of them made progress */
    jmp_buf home;
    const std::function<void()> *body = nullptr;
};
thread_local block_state block;

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

/* Waits until `expected` threads have come; the last one runs `action` before any goes on. */
template <typename Action> void wait(barrier &gate, unsigned expected, Action action)
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
            emulation::die("not every thread reaches the barrier");
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
                _longjmp(block.home, 1); /* just made, or the last of its block */
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
        block.fibers[i]->index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y,
                                      i / blockDim.x / blockDim.y);
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
    fragments *given = w.given[w.gate.generation % 2];
    std::memcpy(&given[block.current % WARP], mine, size);
    wait(w.gate, WARP, [] {});
    return &given[lane];
}

static float cut(double x)
{
    const float rounded = float(x);
    return std::fabs(double(rounded)) > std::fabs(x) ? std::nextafterf(rounded, 0.0f) : rounded;
}

/* The largest power of 2 that is not above x > 0. */
static double power_below(double x)
{
    return __longlong_as_double(__double_as_longlong(x) & 0x7ff0000000000000);
}

static float half_of(uint32_t pair, int upper)
{
    return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16);
}

/* sums (8) += eight products for each column. The exact products and the sum are truncated to 24 bits below
 * the first bit of the largest of them, added, and truncated to float32. */
static void add_eight(float (&sums)[8], const float *a, const float (*b)[8])
{
    double terms[9][8], largest[8] = {}, exact[8] = {}, unit[8], share[8];
    int32_t totals[8] = {};
    for (int k = 0; k < 9; k++) {
        for (int column = 0; column < 8; column++) {
            terms[k][column] = k < 8 ? double(a[k]) * double(b[k][column]) : double(sums[column]);
            const double size = std::fabs(terms[k][column]);
            largest[column] = largest[column] < size ? size : largest[column];
            exact[column] += terms[k][column];
        }
    }
    bool finite = true;
    for (int column = 0; column < 8; column++) {
        finite &= exact[column] - exact[column] == 0;
        unit[column] = largest[column] == 0 ? 1 : power_below(largest[column]) / (1 << 24);
        share[column] = 1 / unit[column];
    }
    for (int k = 0; finite && k < 9; k++) {
        for (int column = 0; column < 8; column++) {
            totals[column] += int32_t(terms[k][column] * share[column]);
        }
    }
    for (int column = 0; column < 8; column++) {
        sums[column] = cut(finite ? totals[column] * unit[column] : exact[column]);
    }
}

/* d of all lanes += a (16 x 16) times b of all lanes, as the instruction does for a whole warp. */
static void multiply_fragments(fragments *lanes, int n, const float (&a)[16][16])
{
    float b[16][8];
    for (int l = 0; l < WARP; l++) {
        for (int i = 0; i < 4; i++) {
            b[l % 4 * 2 + i % 2 + i / 2 * 8][l / 4] = half_of(lanes[l].b[n][i / 2], i % 2);
        }
    }
    float sums[16][8];
    for (int l = 0; l < WARP; l++) {
        for (int i = 0; i < 4; i++) {
            sums[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = lanes[l].d[n][i];
        }
    }
    for (int row = 0; row < 16; row++) {
        add_eight(sums[row], &a[row][0], &b[0]);
        add_eight(sums[row], &a[row][8], &b[8]);
    }
    for (int l = 0; l < WARP; l++) {
        for (int i = 0; i < 4; i++) {
            lanes[l].d[n][i] = sums[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
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
    /* tiles after the last pixel are all zeros: nothing to add */
    for (int n = 0; n < count && any != 0; n++) {
        multiply_fragments(lanes, n, a);
    }
}

void emulation::multiply(int count, float (*d)[4], const uint32_t *a, const uint32_t (*b)[2])
{
    warp &w = my_warp();
    fragments *given = w.given[w.gate.generation % 2];
    fragments &mine = given[block.current % WARP];
    std::memcpy(mine.d, d, size_t(count) * sizeof *d);
    std::memcpy(mine.a, a, sizeof mine.a);
    std::memcpy(mine.b, b, size_t(count) * sizeof *b);
    wait(w.gate, WARP, [given, count] { multiply_all(given, count); });
    std::memcpy(d, mine.d, size_t(count) * sizeof *d);
}

void emulation::run_grid(dim3 grid, dim3 threads, const std::function<void()> &body)
{
    gridDim = grid;
    blockDim = threads;
    block.body = &body;
    block.threads = threads.x * threads.y * threads.z;
    block.warps.assign(dice_ceil_div(block.threads, WARP), warp());
    block.gate = barrier();
    block.step = emulation::setting("DICE_EMULATED_BACKWARDS", 0) != 0 ? block.threads - 1 : 1;
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
