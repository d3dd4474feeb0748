/* What the kernels need beyond CUDA C++, emulated on the host; device/machine.cuh has the same for a GPU. */
#ifndef DICE_CUDA_MACHINE_CUH
#define DICE_CUDA_MACHINE_CUH

#include <cuda_runtime.h>

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, Args... args)
{
    emulation::start(grid, block, stream, [=] { kernel(args...); });
}

namespace emulation
{
enum { MOST_PRODUCTS = 4 };
void multiply(int count, float (*d)[4], const uint32_t *a, const uint32_t (*b)[2]);
}  // namespace emulation

/* The sums are those of an A100 (Fasi, Higham, Mikaitis & Pranesh, Numerical behavior of NVIDIA tensor cores,
 * 2021), the least exact machine that has the instruction. */
template <int N> void mma_bf16(float (&d)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2])
{
    static_assert(N <= emulation::MOST_PRODUCTS, "room in what a lane gives");
    emulation::multiply(N, d, a, b);
}

#endif
