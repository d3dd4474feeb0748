/* Plain products, see gemm.cuh. The functions of cuBLAS are declared here, with the types and numbers of
 * cublas_api.h of CUDA 12 and 13, so that building needs no header of cuBLAS. */
#include "gemm.cuh"

#include <dlfcn.h>
#include <link.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <vector>

enum {
    OP_N = 0,
    OP_T = 1,
    REAL_32F = 0,
    REAL_64F = 1,
    COMPUTE_32F = 68,
    COMPUTE_64F = 70,
    COMPUTE_32F_FAST_16BF = 75,
    ALGORITHM_DEFAULT = -1
};
static const size_t WORKSPACE = size_t(32) << 20;

/* ---- the library ---- */

struct cublas {
    int (*create)(void **handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*set_workspace)(void *handle, void *workspace, size_t bytes);
    int (*gemm)(void *handle, int trans_a, int trans_b, int m, int n, int k, const void *alpha, const void *a,
                int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c,
                int c_type, int ldc, int compute, int algorithm);
    char file[PATH_MAX];
};

static bool take(void *library, const char *file, cublas *out)
{
    const auto find = [library](const char *name, auto *function) {
        *reinterpret_cast<void **>(function) = dlsym(library, name);
        return *function != nullptr;
    };
    snprintf(out->file, sizeof out->file, "%s", file);
    return find("cublasCreate_v2", &out->create) && find("cublasSetStream_v2", &out->set_stream)
        && find("cublasSetWorkspace_v2", &out->set_workspace) && find("cublasGemmEx", &out->gemm);
}

static bool load(const char *file, cublas *out)
{
    void *library = dlopen(file, RTLD_NOW);
    return library != nullptr && take(library, file, out);
}

/* The same for "....so.N", made for CUDA N, if the driver supports CUDA N. */
static bool load_if_it_runs(const char *file, cublas *out)
{
    int driver = 0;
    cudaDriverGetVersion(&driver);
    return atoi(strstr(file, ".so.") + strlen(".so.")) <= driver / 1000 && load(file, out);
}

/* Adds the site-packages folder of a loaded library; numpy's are loaded even if dice is built in place. */
static int add_folder(dl_phdr_info *info, size_t, void *out)
{
    auto *folders = static_cast<std::set<std::string> *>(out);
    for (const char *name : {"/site-packages/", "/dist-packages/"}) {
        const char *at = strstr(info->dlpi_name, name);
        if (at != nullptr) {
            folders->insert(std::string(info->dlpi_name, at + strlen(name)));
        }
    }
    return 0;
}

static bool load_from_packages(cublas *out)
{
    std::set<std::string> folders;
    dl_iterate_phdr(add_folder, &folders);
    for (const std::string &folder : folders) {
        for (const char *place : {"nvidia/cu13/lib/libcublas.so.13", "nvidia/cublas/lib/libcublas.so.12",
                                  "torch/lib/libcublas.so.13", "torch/lib/libcublas.so.12"}) {
            if (load_if_it_runs((folder + place).c_str(), out)) {
                return true;
            }
        }
    }
    return false;
}

/* cuBLAS, opened once and never closed; null where there is none. */
static const cublas *find_cublas()
{
    static cublas found;
    static const bool there = [] {
        const char *choice = getenv("DICE_CUBLAS");
        if (choice != nullptr && choice[0] != '\0' && strcmp(choice, "1") != 0) {
            return load(choice, &found);
        }
        return take(RTLD_DEFAULT, "already loaded", &found) || load_if_it_runs("libcublas.so.13", &found)
            || load_if_it_runs("libcublas.so.12", &found) || load_from_packages(&found);
    }();
    return there ? &found : nullptr;
}

static bool chosen(const char *value)
{
    const char *choice = getenv("DICE_CUBLAS");
    return strcmp(choice == nullptr ? "" : choice, value) == 0;
}

bool gemm_forced()
{
    return !chosen("") && !chosen("0");
}

static dice_status check(int status, const char *what)
{
    return status == 0
             ? DICE_OK
             : dice_core->fail(DICE_E_DEVICE, "cuBLAS (%s): %s: status %d; DICE_CUBLAS=0 does without it",
                               find_cublas()->file, what, status);
}

static std::mutex lock;
static std::vector<gemm_handle> closed;

/* A closed handle of this device, or a new one. */
static dice_status take_handle(const cublas *library, gemm_handle *gemm)
{
    {
        const std::lock_guard<std::mutex> hold(lock);
        for (gemm_handle &one : closed) {
            if (one.device == gemm->device) {
                gemm->library = one.library;
                gemm->workspace = one.workspace;
                one = closed.back();
                closed.pop_back();
                return DICE_OK;
            }
        }
    }
    CUDA_TRY(gemm->workspace.reserve(WORKSPACE), "cuBLAS workspace");
    return check(library->create(&gemm->library), "create");
}

dice_status gemm_open(gemm_handle *gemm, cudaStream_t stream, bool scores)
{
    gemm->stream = stream;
    if (!gemm_forced() && (!scores || chosen("0"))) {
        return DICE_OK;
    }
    const cublas *library = find_cublas();
    if (library == nullptr && !gemm_forced()) {
        return DICE_OK;
    }
    if (library == nullptr) {
        return dice_core->fail(DICE_E_DEVICE,
                               "DICE_CUBLAS=%s: no cuBLAS found; pip install nvidia-cublas, or unset it",
                               getenv("DICE_CUBLAS"));
    }
    CUDA_TRY(cudaGetDevice(&gemm->device), "device");
    TRY(take_handle(library, gemm));
    /* Setting the stream resets the workspace, so the workspace comes second. */
    TRY(check(library->set_stream(gemm->library, stream), "stream"));
    return check(library->set_workspace(gemm->library, gemm->workspace.data, WORKSPACE), "workspace");
}

void gemm_close(gemm_handle *gemm)
{
    if (gemm->library != nullptr) {
        const std::lock_guard<std::mutex> hold(lock);
        closed.push_back(*gemm);
    } else {
        gemm->workspace.release();
    }
    *gemm = gemm_handle();
}

/* y (n, outputs) = x w', which in BLAS's order of columns first is y' (outputs, n) = (w')' x'. */
static dice_status multiply(const gemm_handle *gemm, const void *one, const void *zero, int type, int compute,
                            const void *x, int x_ld, const void *w, void *y, int y_ld, int n, int outputs,
                            int inputs)
{
    return check(find_cublas()->gemm(gemm->library, OP_T, OP_N, outputs, n, inputs, one, w, type, inputs, x,
                                     type, x_ld, zero, y, type, y_ld, compute, ALGORITHM_DEFAULT),
                 "product");
}

dice_status gemm_floats(const gemm_handle *gemm, bool bf16, map x, const float *w, map y, int n)
{
    const float one = 1, zero = 0;
    return multiply(gemm, &one, &zero, REAL_32F, bf16 ? COMPUTE_32F_FAST_16BF : COMPUTE_32F, x.data, x.ld, w,
                    y.data, y.ld, n * x.height * x.width, y.channels, x.channels);
}

/* ---- ours, in double ---- */

enum { TILE = 16 };

/* A block computes TILE rows x TILE outputs. Each sum goes through the inputs in order, for any n. */
static __global__ void product(const double *x, const double *w, double *y, int n, int outputs, int inputs)
{
    __shared__ double x_shared[TILE][TILE + 1], w_shared[TILE][TILE + 1];
    const int tx = int(threadIdx.x), ty = int(threadIdx.y);
    const int row = int(blockIdx.x) * TILE + ty, output = int(blockIdx.y) * TILE + tx;
    const int w_row = int(blockIdx.y) * TILE + ty;
    double sum = 0;
    for (int k = 0; k < inputs; k += TILE) {
        const bool inside = k + tx < inputs;
        x_shared[ty][tx] = inside && row < n ? x[size_t(row) * size_t(inputs) + size_t(k + tx)] : 0;
        w_shared[ty][tx] = inside && w_row < outputs ? w[size_t(w_row) * size_t(inputs) + size_t(k + tx)] : 0;
        __syncthreads();
        for (int i = 0; i < TILE; i++) {
            sum = fma(x_shared[ty][i], w_shared[tx][i], sum);
        }
        __syncthreads();
    }
    if (row < n && output < outputs) {
        y[size_t(row) * size_t(outputs) + size_t(output)] = sum;
    }
}

dice_status gemm_doubles(const gemm_handle *gemm, const double *x, const double *w, double *y, int n,
                         int outputs, int inputs)
{
    if (gemm->library != nullptr) {
        const double one = 1, zero = 0;
        return multiply(gemm, &one, &zero, REAL_64F, COMPUTE_64F, x, inputs, w, y, outputs, n, outputs,
                        inputs);
    }
    const dim3 blocks(unsigned(dice_ceil_div32(n, TILE)), unsigned(dice_ceil_div32(outputs, TILE)));
    launch(product, blocks, dim3(TILE, TILE), gemm->stream, x, w, y, n, outputs, inputs);
    CUDA_TRY(cudaGetLastError(), "product");
    return DICE_OK;
}
