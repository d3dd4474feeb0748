/* See gemm.cuh. The few functions of cuBLAS are declared here, so that building needs the compiler alone; their types
 * and numbers are those of cublas_api.h, the same in CUDA 12 and 13. */
#include "gemm.cuh"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

enum { OP_N = 0, OP_T = 1, REAL_32F = 0, COMPUTE_32F = 68, COMPUTE_32F_FAST_16BF = 75, ALGORITHM_DEFAULT = -1 };
static const size_t WORKSPACE = size_t(32) << 20;

struct cublas {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*set_workspace)(void *handle, void *workspace, size_t bytes);
    int (*gemm)(void *handle, int trans_a, int trans_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc, int compute,
                int algorithm);
};

static bool take(void *library, cublas *out)
{
    const auto find = [library](const char *name, auto *function) {
        *reinterpret_cast<void **>(function) = dlsym(library, name);
        return *function != nullptr;
    };
    return find("cublasCreate_v2", &out->create) && find("cublasDestroy_v2", &out->destroy)
        && find("cublasSetStream_v2", &out->set_stream) && find("cublasSetWorkspace_v2", &out->set_workspace)
        && find("cublasGemmEx", &out->gemm);
}

/* The library, opened once and never closed; null where there is none. */
static const cublas *find_cublas()
{
    static cublas found;
    static const bool there = [] {
        const char *choice = getenv("DICE_CUBLAS");
        if (strcmp(choice, "1") != 0) {
            void *library = dlopen(choice, RTLD_NOW);
            return library != nullptr && take(library, &found);
        }
        if (take(RTLD_DEFAULT, &found)) {
            return true;
        }
        /* the package's neighbours in site-packages: this library is site-packages/dice/_cuda.so */
        Dl_info self;
        char folder[1024] = "";
        if (dladdr(reinterpret_cast<void *>(&find_cublas), &self) != 0) {
            snprintf(folder, sizeof folder, "%s", self.dli_fname);
            char *slash = strrchr(folder, '/');
            *(slash != nullptr ? slash : folder) = '\0';
        }
        static const char *const names[] = {"libcublas.so.13", "libcublas.so.12",
                                            "%s/../nvidia/cu13/lib/libcublas.so.13",
                                            "%s/../nvidia/cublas/lib/libcublas.so.12",
                                            "%s/../torch/lib/libcublas.so.13", "%s/../torch/lib/libcublas.so.12"};
        for (const char *name : names) {
            char path[1200];
            snprintf(path, sizeof path, name, folder);
            void *library = dlopen(path, RTLD_NOW);
            if (library != nullptr && take(library, &found)) {
                return true;
            }
        }
        return false;
    }();
    return there ? &found : nullptr;
}

bool gemm_wanted()
{
    const char *choice = getenv("DICE_CUBLAS");
    return choice != nullptr && choice[0] != '\0' && strcmp(choice, "0") != 0;
}

static dice_status check(int status, const char *what)
{
    return status == 0 ? DICE_OK : dice_core->fail(DICE_E_DEVICE, "cuBLAS: %s: status %d", what, status);
}

dice_status gemm_open(gemm_handle *gemm, cudaStream_t stream)
{
    const cublas *library = find_cublas();
    if (library == nullptr) {
        return dice_core->fail(DICE_E_DEVICE, "DICE_CUBLAS=%s: no cuBLAS found; pip install nvidia-cublas, or unset it",
                               getenv("DICE_CUBLAS"));
    }
    CUDA_TRY(gemm->workspace.reserve(WORKSPACE), "cuBLAS workspace");
    TRY(check(library->create(&gemm->library), "create"));
    TRY(check(library->set_stream(gemm->library, stream), "stream"));
    return check(library->set_workspace(gemm->library, gemm->workspace.data, WORKSPACE), "workspace");
}

void gemm_close(gemm_handle *gemm)
{
    if (gemm->library != nullptr) {
        find_cublas()->destroy(gemm->library);
    }
    gemm->library = nullptr;
    gemm->workspace.release();
}

dice_status gemm_start(const gemm_handle *gemm, bool bf16, map x, const float *weight, map y, int n)
{
    const float one = 1, zero = 0;
    const int pixels = n * x.height * x.width;
    /* columns first, as BLAS has it: y' (O, pixels) = (weight')' * x' */
    return check(find_cublas()->gemm(gemm->library, OP_T, OP_N, y.channels, pixels, x.channels, &one, weight, REAL_32F,
                                     x.channels, x.data, REAL_32F, x.ld, &zero, y.data, REAL_32F, y.ld,
                                     bf16 ? COMPUTE_32F_FAST_16BF : COMPUTE_32F, ALGORITHM_DEFAULT), "product");
}
