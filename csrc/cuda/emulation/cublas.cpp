/* The functions of cuBLAS that gemm.cu uses, on the host: DICE_CUBLAS names this very library in the tests. */
#include <cuda_runtime.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct handle {
    cudaStream_t stream;
};

EXPORT int cublasCreate_v2(void **out)
{
    *out = new handle();
    return 0;
}

EXPORT int cublasDestroy_v2(void *h)
{
    delete static_cast<handle *>(h);
    return 0;
}

EXPORT int cublasSetStream_v2(void *h, cudaStream_t stream)
{
    static_cast<handle *>(h)->stream = stream;
    return 0;
}

EXPORT int cublasSetWorkspace_v2(void *, void *, size_t) { return 0; }

/* c (m, n) = a' (m, k) * b (k, n), columns first; other uses are refused. */
EXPORT int cublasGemmEx(void *h, int trans_a, int trans_b, int m, int n, int k, const void *alpha, const void *a, int,
                        int lda, const void *b, int, int ldb, const void *beta, void *c, int, int ldc, int, int)
{
    if (trans_a != 1 || trans_b != 0 || *static_cast<const float *>(alpha) != 1 || *static_cast<const float *>(beta) != 0) {
        return 15;  /* CUBLAS_STATUS_NOT_SUPPORTED */
    }
    emulation::enqueue(static_cast<handle *>(h)->stream, [=] {
        for (int column = 0; column < n; column++) {
            for (int row = 0; row < m; row++) {
                double sum = 0;
                for (int i = 0; i < k; i++) {
                    sum += double(static_cast<const float *>(a)[size_t(row) * size_t(lda) + size_t(i)])
                        * double(static_cast<const float *>(b)[size_t(column) * size_t(ldb) + size_t(i)]);
                }
                static_cast<float *>(c)[size_t(column) * size_t(ldc) + size_t(row)] = float(sum);
            }
        }
    });
    return 0;
}
