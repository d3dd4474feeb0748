/* Plain products, y (n, M) = x (n, K) w (M, K)', by cuBLAS where it is wanted and found, else by a kernel of
 * ours.
 *
 * cuBLAS chooses a kernel by the number of rows, so that the last bits of a row depend on that number; those
 * of our kernel do not. So cuBLAS serves only scores that allow it (plain_products in backend.h, distances),
 * unless the environment variable DICE_CUBLAS says otherwise:
 * - unset: cuBLAS serves those scores, if it is found;
 * - 0: it serves nothing;
 * - 1: it also serves 1 x 1 convolutions of networks and every dense linear; DICE_E_DEVICE if it is not
 * found;
 * - FILE: as 1, with this library.
 *
 * cuBLAS is searched for among the loaded libraries (such as PyTorch's), then in the system, then in the
 * nvidia-cublas and PyTorch wheels of each site-packages folder from which some library is loaded. */
#ifndef DICE_CUDA_GEMM_CUH
#define DICE_CUDA_GEMM_CUH

#include "kernels.cuh"

struct gemm_handle {
    cudaStream_t stream;
    int device;
    void *library; /* cublasHandle_t; null: our kernel is used */
    /* Memory for cuBLAS, so that it allocates nothing and chooses the same algorithm in every run. */
    device_buffer workspace;
};

/* Whether DICE_CUBLAS asks for cuBLAS everywhere (1 or FILE). */
bool gemm_forced();

/* Makes `gemm` ready on this thread's device, with cuBLAS if that is wanted and found; `scores` says that it
 * is for scores that allow cuBLAS. A closed handle is kept for the next call, since cuBLAS takes long to make
 * one. */
dice_status gemm_open(gemm_handle *gemm, cudaStream_t stream, bool scores);
void gemm_close(gemm_handle *gemm);

/* y (n, y.channels) = x (n, x.channels) w' in float32, by cuBLAS; with `bf16` it may round operands to
 * bfloat16. */
dice_status gemm_floats(const gemm_handle *gemm, bool bf16, map x, const float *w, map y, int n);

/* y (n, outputs) = x (n, inputs) w', in double, by cuBLAS or our kernel. */
dice_status gemm_doubles(const gemm_handle *gemm, const double *x, const double *w, double *y, int n,
                         int outputs, int inputs);

#endif
