/* Squared distances to the nearest of several means in a whitened space, in double: Mahalanobis on the
 * device.
 *
 * x = h - centre, y = root x, z = means y; the result is |y|^2 + min (|mean|^2 - 2 z), as on the CPU. */
#include <mutex>

#include "gemm.cuh"
#include "device.cuh"
#include "slots.cuh"

enum { THREADS = 256, MOST_ROWS = 4096 };

struct dice_distance {
    std::mutex lock; /* one forward call at a time */
    int device;
    size_t features, rank, classes;
    cudaStream_t stream;
    gemm_handle gemm;
    device_buffer arrays, work;
    size_t centre, root, means, norms; /* bytes from the start of `arrays` */
};

template <typename T>
static __global__ void centred(const T *h, const double *centre, double *x, size_t features, size_t count)
{
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        x[i] = double(h[i]) - centre[i % features];
    }
}

/* out (rows) = |y|^2 + min (norms - 2 z); a block takes one row. */
static __global__ void nearest(const double *y, const double *z, const double *norms, int rank, int classes,
                               double *out)
{
    __shared__ double sums[THREADS], least[THREADS];
    const int thread = int(threadIdx.x);
    double sum = 0, best = INFINITY;
    for (int i = thread; i < rank; i += THREADS) {
        const double v = y[size_t(blockIdx.x) * size_t(rank) + size_t(i)];
        sum = fma(v, v, sum);
    }
    for (int c = thread; c < classes; c += THREADS) {
        best = fmin(best, norms[c] - 2 * z[size_t(blockIdx.x) * size_t(classes) + size_t(c)]);
    }
    sums[thread] = sum;
    least[thread] = best;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) {
            sums[thread] += sums[thread + half];
            least[thread] = fmin(least[thread], least[thread + half]);
        }
        __syncthreads();
    }
    if (thread == 0) {
        out[blockIdx.x] = fmax(0.0, sums[0] + least[0]);
    }
}

static dice_status fill(dice_distance *d, const double *centre, const double *root, const double *means)
{
    CUDA_TRY(cudaStreamCreate(&d->stream), "stream");
    TRY(gemm_open(&d->gemm, d->stream, true));
    carver c;
    d->centre = c.take(d->features * sizeof(double));
    d->root = c.take(d->rank * d->features * sizeof(double));
    d->means = c.take(d->classes * d->rank * sizeof(double));
    d->norms = c.take(d->classes * sizeof(double));
    CUDA_TRY(d->arrays.reserve(c.used), "means");
    void *memory;
    TRY(dice_core->alloc(d->classes, sizeof(double), &memory));
    double *norms = static_cast<double *>(memory);
    for (size_t k = 0; k < d->classes; k++) {
        norms[k] = 0;
        for (size_t i = 0; i < d->rank; i++) {
            norms[k] += means[k * d->rank + i] * means[k * d->rank + i];
        }
    }
    cudaError_t error = cudaSuccess;
    const auto put = [&](size_t at, const double *from, size_t count) {
        error = error != cudaSuccess
                  ? error
                  : cudaMemcpy(d->arrays.data + at, from, count * sizeof(double), cudaMemcpyHostToDevice);
    };
    put(d->centre, centre, d->features);
    put(d->root, root, d->rank * d->features);
    put(d->means, means, d->classes * d->rank);
    put(d->norms, norms, d->classes);
    dice_core->free(memory);
    CUDA_TRY(error, "means");
    return DICE_OK;
}

dice_status distance_create(const double *centre, const double *root, const double *means, size_t features,
                            size_t rank, size_t classes, const dice_options *options, dice_distance **out)
{
    TRY(device_check(options->device));
    /* a block takes 16 of them, and a grid has at most 65535 blocks */
    if (features > 1u << 19 || classes > 1u << 19) {
        return dice_core->fail(DICE_E_INPUT, "%zu features and %zu classes are too many for the device",
                               features, classes);
    }
    const on_device here(options->device);
    CUDA_TRY(here.error, "device");
    dice_distance *d = new (std::nothrow) dice_distance();
    if (d == nullptr) {
        return dice_core->fail(DICE_E_MEMORY, "out of memory");
    }
    d->device = options->device;
    d->features = features;
    d->rank = rank;
    d->classes = classes;
    const dice_status status = fill(d, centre, root, means);
    if (status != DICE_OK) {
        distance_free(d);
        return status;
    }
    *out = d;
    return DICE_OK;
}

void distance_free(dice_distance *d)
{
    if (d != nullptr && !device_is_forked()) {
        const on_device here(d->device);
        gemm_close(&d->gemm);
        if (d->stream != nullptr) {
            cudaStreamDestroy(d->stream);
        }
        d->arrays.release();
        d->work.release();
        delete d;
    }
}

/* Offsets of the arrays in the working memory for `rows` images, and its size. */
struct offsets {
    size_t h, x, y, z, out, bytes;
    offsets(const dice_distance *d, size_t rows, size_t h_bytes)
    {
        carver c;
        h = c.take(h_bytes);
        x = c.take(rows * d->features * sizeof(double));
        y = c.take(rows * d->rank * sizeof(double));
        z = c.take(rows * d->classes * sizeof(double));
        out = c.take(rows * sizeof(double));
        bytes = c.used;
    }
};

static dice_status run_rows(dice_distance *d, const void *h, int is_double, size_t n, bool direct,
                            double *out)
{
    const size_t count = n * d->features, bytes = count * (is_double ? sizeof(double) : sizeof(float));
    const offsets at(d, n, direct ? 0 : bytes);
    const auto work_at = [d](size_t offset) { return reinterpret_cast<double *>(d->work.data + offset); };
    const auto array = [d](size_t offset) {
        return reinterpret_cast<const double *>(d->arrays.data + offset);
    };
    double *x = work_at(at.x), *y = work_at(at.y), *z = work_at(at.z), *found = work_at(at.out);
    if (!direct) {
        CUDA_TRY(cudaMemcpyAsync(work_at(at.h), h, bytes, cudaMemcpyDefault, d->stream), "features");
        h = work_at(at.h);
    }
    const dim3 blocks(unsigned(dice_ceil_div(count, THREADS)));
    if (is_double) {
        launch(centred<double>, blocks, dim3(THREADS), d->stream, static_cast<const double *>(h),
               array(d->centre), x, d->features, count);
    } else {
        launch(centred<float>, blocks, dim3(THREADS), d->stream, static_cast<const float *>(h),
               array(d->centre), x, d->features, count);
    }
    const int rows = int(n), rank = int(d->rank), classes = int(d->classes);
    if (rank > 0) {
        TRY(gemm_doubles(&d->gemm, x, array(d->root), y, rows, rank, int(d->features)));
        TRY(gemm_doubles(&d->gemm, y, array(d->means), z, rows, classes, rank));
    } else {
        CUDA_TRY(cudaMemsetAsync(z, 0, n * d->classes * sizeof(double), d->stream), "distances");
    }
    launch(nearest, dim3(unsigned(rows)), dim3(THREADS), d->stream, const_cast<const double *>(y),
           const_cast<const double *>(z), array(d->norms), rank, classes, found);
    CUDA_TRY(cudaGetLastError(), "distances");
    CUDA_TRY(cudaMemcpyAsync(out, found, n * sizeof(double), cudaMemcpyDefault, d->stream), "distances");
    CUDA_TRY(cudaStreamSynchronize(d->stream), "distances");
    return DICE_OK;
}

dice_status distance_forward(dice_distance *d, const void *h, int is_double, size_t n, double *out)
{
    TRY(device_check_process(d->device));
    const std::lock_guard<std::mutex> hold(d->lock);
    const on_device here(d->device);
    CUDA_TRY(here.error, "device");
    const bool direct = lives_on(h, d->device);
    const size_t row_bytes = d->features * (is_double ? sizeof(double) : sizeof(float));
    return in_waves(
        n, MOST_ROWS,
        [&](size_t rows) { return d->work.reserve(offsets(d, rows, direct ? 0 : rows * row_bytes).bytes); },
        [&](size_t first, size_t rows) {
            const dice_status status = run_rows(d, static_cast<const unsigned char *>(h) + first * row_bytes,
                                                is_double, rows, direct, out + first);
            if (status != DICE_OK) {
                cudaStreamSynchronize(d->stream); /* nothing may use the caller's arrays after the return */
            }
            return status;
        });
}
