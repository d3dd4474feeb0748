/* Plain products, y (n, M) = x (n, K) w (M, K)', by cuBLAS where it is wanted and found, else by a kernel of
 * ours.
 *
 * cuBLAS chooses a kernel by the number of rows, so that a row's last bits depend on it; with our kernel they
 * do not. So the library serves the scores that allow it (plain_products in backend.h, distances), and the
 * environment's DICE_CUBLAS widens or ends that:
 * - unset: those products alone, where the library is found;
 * - 0: none;
 * - 1: also networks' 1 x 1 convolutions and every dense linear; DICE_E_DEVICE where it is not found;
 * - FILE: the same with this library.
 *
 * It is looked for among the libraries that are loaded already (PyTorch's), then in the system's, then in the
 * nvidia-cublas wheel and PyTorch's in any site-packages folder that a loaded library lies in. */
#ifndef DICE_CUDA_GEMM_CUH
#define DICE_CUDA_GEMM_CUH

#include "kernels.cuh"

struct gemm_handle {
    cudaStream_t stream;
    int device;
    void *library;           /* cublasHandle_t, null: ours */
    device_buffer workspace; /* the library's own, so that it allocates nothing and its algorithm is the same
                                every run */
};

/* Whether DICE_CUBLAS asks for the library everywhere. */
bool gemm_forced();

/* Takes the library where it is wanted (`scores`: for a score that says so) and found, on this thread's
 * device. A closed handle waits for the next one that opens: making one takes the library long. */
dice_status gemm_open(gemm_handle *gemm, cudaStream_t stream, bool scores);
void gemm_close(gemm_handle *gemm);

/* y = x w' in float32, by the library. Rows are y.channels and x.ld apart; `bf16`: operands rounded to
 * bfloat16. */
dice_status gemm_floats(const gemm_handle *gemm, bool bf16, map x, const float *w, map y, int n);

/* y (n, outputs) = x (n, inputs) w' in double. */
dice_status gemm_doubles(const gemm_handle *gemm, const double *x, const double *w, double *y, int n,
                         int outputs, int inputs);

#endif
