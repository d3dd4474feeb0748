/* The functions of cuBLAS that gemm.cu uses, on the host. gemm.cu finds them among the loaded libraries. */
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

EXPORT int cublasSetStream_v2(void *h, cudaStream_t stream)
{
    static_cast<handle *>(h)->stream = stream;
    return 0;
}

EXPORT int cublasSetWorkspace_v2(void *, void *, size_t)
{
    return 0;
}

template <typename T>
static void multiply(int m, int n, int k, const T *a, int lda, const T *b, int ldb, T *c, int ldc)
{
    for (int column = 0; column < n; column++) {
        for (int row = 0; row < m; row++) {
            double sum = 0;
            for (int i = 0; i < k; i++) {
                sum += double(a[size_t(row) * size_t(lda) + size_t(i)])
                     * double(b[size_t(column) * size_t(ldb) + size_t(i)]);
            }
            c[size_t(column) * size_t(ldc) + size_t(row)] = T(sum);
        }
    }
}

/* c (m, n) = a' (m, k) b (k, n), columns first, all of one type; other uses return an error. */
EXPORT int cublasGemmEx(void *h, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                        const void *a, int type, int lda, const void *b, int b_type, int ldb,
                        const void *beta, void *c, int c_type, int ldc, int compute, int)
{
    const bool wide = type == 1;
    const double one = wide ? *static_cast<const double *>(alpha)
                            : double(*static_cast<const float *>(alpha));
    const double zero = wide ? *static_cast<const double *>(beta) : double(*static_cast<const float *>(beta));
    if (trans_a != 1 || trans_b != 0 || one != 1 || zero != 0 || b_type != type || c_type != type
        || (wide ? compute != 70 : type != 0 || (compute != 68 && compute != 75))) {
        return 15; /* CUBLAS_STATUS_NOT_SUPPORTED */
    }
    emulation::enqueue(static_cast<handle *>(h)->stream, [=] {
        if (wide) {
            multiply(m, n, k, static_cast<const double *>(a), lda, static_cast<const double *>(b), ldb,
                     static_cast<double *>(c), ldc);
        } else {
            multiply(m, n, k, static_cast<const float *>(a), lda, static_cast<const float *>(b), ldb,
                     static_cast<float *>(c), ldc);
        }
    });
    return 0;
}
