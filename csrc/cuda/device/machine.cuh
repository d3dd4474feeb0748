/* What the kernels need beyond CUDA C++, on a GPU. emulation/machine.cuh has the same for the host. */
#ifndef DICE_CUDA_MACHINE_CUH
#define DICE_CUDA_MACHINE_CUH

#include <cstdint>

/* Starts kernel(args...) on `stream`; the caller checks cudaGetLastError(). */
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, Args... args)
{
    kernel<<<grid, block, 0, stream>>>(args...);
}

/* N products by the warp: d[n] (16 x 8) += a (16 x 16) b[n] (16 x 8), pairs of bfloat16 in a and b, float32
 * sums. Lane l = 4 g + t holds
 * - of a, the rows g, g + 8, g, g + 8 at k = 2t, 2t, 2t + 8, 2t + 8;
 * - of b, the column g at k = 2t, 2t + 8;
 * - of d, the rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1
 * (PTX ISA, "Matrix Fragments for mma.m16n8k16"). */
template <int N>
__device__ inline void mma_bf16(float (&d)[N][4], const uint32_t (&a)[4], const uint32_t (&b)[N][2])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
                     "%7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[n][0]), "r"(b[n][1]));
    }
}

#endif
