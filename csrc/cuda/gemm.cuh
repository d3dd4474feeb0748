/* Plain products by cuBLAS, found at run time. Off unless DICE_CUBLAS asks for it: which of the library's kernels runs,
 * and so an image's last bits, depends on the size of the batch; our own have one order of summation.
 *
 * DICE_CUBLAS=1: the library that is loaded already (PyTorch's), the system's, the nvidia-cublas wheel's or PyTorch's
 * beside this package. DICE_CUBLAS=FILE: that one. */
#ifndef DICE_CUDA_GEMM_CUH
#define DICE_CUDA_GEMM_CUH

#include "kernels.cuh"

struct gemm_handle {
    void *library;               /* cublasHandle_t */
    device_buffer workspace;     /* its own, so that it allocates nothing and its algorithm is the same every run */
    cudaStream_t stream;
};

/* Whether DICE_CUBLAS asks for the library. */
bool gemm_wanted();

/* DICE_E_DEVICE where the library cannot be opened. */
dice_status gemm_open(gemm_handle *gemm, cudaStream_t stream);
void gemm_close(gemm_handle *gemm);

/* y (pixels, O) = x (pixels, C) * weight (O, C)', float32; `bf16`: operands rounded to bfloat16. */
dice_status gemm_start(const gemm_handle *gemm, bool bf16, map x, const float *weight, map y, int n);

#endif
