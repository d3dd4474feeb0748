/* Plain products, y (n, M) = x (n, K) w (M, K)', by cuBLAS where it is wanted and found, else by a kernel of
 * ours.
 *
 * Which of the library's kernels runs, and so the last bits of a row, depends on how many rows there are;
 * with ours they do not. So the library is for the products of scores that say so (backend.h, dice_options),
 * and DICE_CUBLAS decides: unset   those products alone, where the library is found 0       never 1 also
 * networks' 1 x 1 convolutions and every dense head; DICE_E_DEVICE where it is not found FILE    the same
 * with this library It is looked for among what is loaded already (PyTorch's), the system's libraries, and
 * the nvidia-cublas wheel's and PyTorch's in the site-packages that this library, or anything else that is
 * loaded, lies in. */
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
