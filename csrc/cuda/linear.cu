/* linear on the device: the logits, with the bias, then all reductions of a row in one kernel.
 *
 * Dense, where most weights stay: a 1 x 1 convolution of six bfloat16 products, or a product of cuBLAS
 * (gemm.cuh). Sparse: a warp takes one class and 32 images, and goes through the weights that stay. Scores
 * are computed in double from the float32 logits. */
#include <mutex>

#include "gemm.cuh"
#include "kernels.cuh"
#include "device.cuh"
#include "slots.cuh"

enum { IMAGES = 32, WARPS = 8, SCORE_THREADS = 128, MOST_ROWS = 4096 };
enum { SPARSE_SHARE = 4 }; /* sparse if at most a quarter of the weights stay */

struct dice_linear {
    std::mutex lock; /* one forward call at a time */
    int device, processors, classes, features;
    bool sparse;
    cudaStream_t stream;
    gemm_handle gemm;
    /* dense: packed or plain weights, then the bias; sparse: starts (M + 1), columns, values, the bias */
    device_buffer weights;
    size_t columns, values, bias; /* in bytes from the start of `weights` */
    device_buffer work;
};

/* out (D, rows padded to IMAGES) = h (rows, D)', so that the images of a warp are neighbours. */
static __global__ void transpose(const float *h, float *out, int rows, int features)
{
    const size_t padded = size_t((rows + IMAGES - 1) / IMAGES * IMAGES);
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < padded * size_t(features)) {
        const size_t row = i % padded, feature = i / padded;
        out[i] = row < size_t(rows) ? h[row * size_t(features) + feature] : 0.0f;
    }
}

/* logits (rows, M) by the sparse weights. A block takes IMAGES images and WARPS classes, a thread one of
 * each. */
static __global__ void sparse_logits(const float *transposed, const uint32_t *starts, const uint32_t *columns,
                                     const float *values, const float *bias, float clip, int rows,
                                     int classes, float *logits)
{
    const int image = int(blockIdx.x * IMAGES + threadIdx.x), m = int(blockIdx.y * WARPS + threadIdx.y);
    const size_t padded = size_t((rows + IMAGES - 1) / IMAGES * IMAGES);
    if (m >= classes || image >= rows) {
        return;
    }
    float sum = 0;
    for (uint32_t i = starts[m]; i < starts[m + 1]; i++) {
        sum = fmaf(values[i], fminf(transposed[columns[i] * padded + size_t(image)], clip), sum);
    }
    logits[size_t(image) * size_t(classes) + size_t(m)] = sum + bias[m];
}

static __global__ void clip_to(const float *h, float clip, float *out, size_t count)
{
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        out[i] = fminf(h[i], clip);
    }
}

struct score_args {
    const float *logits; /* (rows, M) */
    int classes;
    double *energy, *msp, *maxlogit;
    int32_t *label;
};

/* The reductions of the logits; a block takes one row. */
static __global__ void scores(score_args p)
{
    __shared__ float values[SCORE_THREADS];
    __shared__ int places[SCORE_THREADS];
    __shared__ double sums[SCORE_THREADS];
    const int thread = int(threadIdx.x);
    const float *z = p.logits + size_t(blockIdx.x) * size_t(p.classes);
    float largest = -INFINITY;
    int place = 0;
    for (int m = thread; m < p.classes; m += SCORE_THREADS) {
        if (z[m] > largest) {
            largest = z[m];
            place = m;
        }
    }
    values[thread] = largest;
    places[thread] = place;
    __syncthreads();
    for (int half = SCORE_THREADS / 2; half > 0; half /= 2) {
        if (thread < half) {
            const float other = values[thread + half];
            const int other_place = places[thread + half];
            if (other > values[thread] || (other == values[thread] && other_place < places[thread])) {
                values[thread] = other;
                places[thread] = other_place;
            }
        }
        __syncthreads();
    }
    const double top = double(values[0]);
    double sum = 0;
    for (int m = thread; m < p.classes; m += SCORE_THREADS) {
        sum += exp(double(z[m]) - top);
    }
    sums[thread] = sum;
    __syncthreads();
    for (int half = SCORE_THREADS / 2; half > 0; half /= 2) {
        if (thread < half) {
            sums[thread] += sums[thread + half];
        }
        __syncthreads();
    }
    if (thread == 0) {
        p.energy[blockIdx.x] = top + log(sums[0]);
        p.msp[blockIdx.x] = 1 / sums[0];
        p.maxlogit[blockIdx.x] = top;
        p.label[blockIdx.x] = places[0];
    }
}

static dice_status put_dense(dice_linear *linear, const float *weight, const uint8_t *keep)
{
    const size_t count = size_t(linear->classes) * size_t(linear->features);
    const bool plain = linear->gemm.library != nullptr;
    const size_t bytes = plain ? count * sizeof(float)
                               : conv_weight_bytes(3, linear->classes, linear->features, 1);
    carver c;
    c.take(bytes);
    linear->bias = c.take(size_t(linear->classes) * sizeof(float));
    CUDA_TRY(linear->weights.reserve(c.used), "linear");
    void *made;
    TRY(dice_core->alloc(bytes, 1, &made));
    if (plain) {
        for (size_t i = 0; i < count; i++) {
            static_cast<float *>(made)[i] = keep == nullptr || keep[i] ? weight[i] : 0.0f;
        }
    } else {
        conv_pack(3, weight, keep, linear->classes, linear->features, 1, static_cast<uint16_t *>(made));
    }
    const cudaError_t error = cudaMemcpy(linear->weights.data, made, bytes, cudaMemcpyHostToDevice);
    dice_core->free(made);
    CUDA_TRY(error, "linear");
    return DICE_OK;
}

static dice_status put_sparse(dice_linear *linear, const float *weight, const uint8_t *keep, size_t kept)
{
    const size_t classes = size_t(linear->classes), features = size_t(linear->features);
    carver c;
    const size_t starts_at = c.take((classes + 1) * sizeof(uint32_t));
    linear->columns = c.take(kept * sizeof(uint32_t));
    linear->values = c.take(kept * sizeof(float));
    const size_t bytes = c.used;
    linear->bias = c.take(classes * sizeof(float));
    CUDA_TRY(linear->weights.reserve(c.used), "linear");
    void *memory;
    TRY(dice_core->alloc(bytes, 1, &memory));
    unsigned char *host = static_cast<unsigned char *>(memory);
    uint32_t *starts = reinterpret_cast<uint32_t *>(host + starts_at);
    uint32_t *columns = reinterpret_cast<uint32_t *>(host + linear->columns);
    float *values = reinterpret_cast<float *>(host + linear->values);
    uint32_t found = 0;
    for (size_t m = 0; m < classes; m++) {
        starts[m] = found;
        for (size_t d = 0; d < features; d++) {
            if (keep[m * features + d]) {
                columns[found] = uint32_t(d);
                values[found++] = weight[m * features + d];
            }
        }
    }
    starts[classes] = found;
    const cudaError_t error = cudaMemcpy(linear->weights.data, host, bytes, cudaMemcpyHostToDevice);
    dice_core->free(memory);
    CUDA_TRY(error, "linear");
    return DICE_OK;
}

static dice_status fill(dice_linear *linear, const float *weight, const float *bias, const uint8_t *keep,
                        bool scores)
{
    const size_t count = size_t(linear->classes) * size_t(linear->features);
    size_t kept = keep == nullptr ? count : 0;
    for (size_t i = 0; keep != nullptr && i < count; i++) {
        kept += keep[i] != 0;
    }
    linear->sparse = kept * SPARSE_SHARE <= count;
    CUDA_TRY(cudaStreamCreate(&linear->stream), "stream");
    CUDA_TRY(cudaDeviceGetAttribute(&linear->processors, cudaDevAttrMultiProcessorCount, linear->device),
             "device");
    if (!linear->sparse) {
        TRY(gemm_open(&linear->gemm, linear->stream, scores));
    }
    void *copy = nullptr;
    if (device_of(weight, linear->device) >= 0) { /* copied to the host, where it is packed */
        TRY(dice_core->alloc(count, sizeof(float), &copy));
        const cudaError_t error = cudaMemcpy(copy, weight, count * sizeof(float), cudaMemcpyDefault);
        if (error != cudaSuccess) {
            dice_core->free(copy);
            return cuda_fail(error, "W");
        }
        weight = static_cast<const float *>(copy);
    }
    const dice_status status = linear->sparse ? put_sparse(linear, weight, keep, kept)
                                              : put_dense(linear, weight, keep);
    dice_core->free(copy);
    TRY(status);
    CUDA_TRY(cudaMemcpy(linear->weights.data + linear->bias, bias, size_t(linear->classes) * sizeof(float),
                        cudaMemcpyDefault),
             "linear");
    return DICE_OK;
}

dice_status linear_create(const float *weight, const float *bias, const uint8_t *keep, size_t classes,
                          size_t features, const dice_options *options, dice_linear **out)
{
    TRY(device_check(options->device));
    if (classes > 65535u * WARPS || features > 1u << 24 || classes * features > UINT32_MAX) {
        return dice_core->fail(DICE_E_INPUT, "W: %zu x %zu is too large for the device", classes, features);
    }
    const on_device here(options->device);
    CUDA_TRY(here.error, "device");
    dice_linear *linear = new (std::nothrow) dice_linear();
    if (linear == nullptr) {
        return dice_core->fail(DICE_E_MEMORY, "out of memory");
    }
    linear->device = options->device;
    linear->classes = int(classes);
    linear->features = int(features);
    const dice_status status = fill(linear, weight, bias, keep, options->plain_products);
    if (status != DICE_OK) {
        linear_free(linear);
        return status;
    }
    *out = linear;
    return DICE_OK;
}

void linear_free(dice_linear *linear)
{
    if (linear != nullptr && !device_is_forked()) {
        const on_device here(linear->device);
        gemm_close(&linear->gemm);
        if (linear->stream != nullptr) {
            cudaStreamDestroy(linear->stream);
        }
        linear->weights.release();
        linear->work.release();
        delete linear;
    }
}

const char *linear_info(const dice_linear *linear, size_t *bytes)
{
    *bytes = linear->weights.bytes;
    return linear->sparse ? "sparse" : "dense";
}

static dice_status start_logits(const dice_linear *linear, const float *h, float *room, int rows, float clip,
                                float *logits)
{
    const float *bias = reinterpret_cast<const float *>(linear->weights.data + linear->bias);
    if (linear->sparse) {
        const unsigned bundles = unsigned(dice_ceil_div32(rows, IMAGES));
        const size_t count = size_t(bundles) * IMAGES * size_t(linear->features);
        launch(transpose, dim3(unsigned(dice_ceil_div(count, 256))), dim3(256), linear->stream, h, room, rows,
               linear->features);
        launch(sparse_logits, dim3(bundles, unsigned(dice_ceil_div32(linear->classes, WARPS))),
               dim3(IMAGES, WARPS), linear->stream, const_cast<const float *>(room),
               reinterpret_cast<const uint32_t *>(linear->weights.data),
               reinterpret_cast<const uint32_t *>(linear->weights.data + linear->columns),
               reinterpret_cast<const float *>(linear->weights.data + linear->values), bias, clip, rows,
               linear->classes, logits);
    } else if (linear->gemm.library != nullptr) {
        const map to = {logits, linear->classes, linear->classes, 1, 1};
        if (clip < INFINITY) {
            const size_t count = size_t(rows) * size_t(linear->features);
            launch(clip_to, dim3(unsigned(dice_ceil_div(count, 256))), dim3(256), linear->stream, h, clip,
                   room, count);
            h = room;
        }
        TRY(gemm_floats(&linear->gemm, false,
                        {const_cast<float *>(h), linear->features, linear->features, 1, 1},
                        reinterpret_cast<const float *>(linear->weights.data), to, rows));
        epilogue_start(to, bias, nullptr, 0, 0, rows, linear->stream);
    } else {
        conv_args p = {};
        p.x = h, p.x_ld = p.channels = linear->features;
        p.y = logits, p.y_ld = p.out_channels = linear->classes;
        p.height = p.width = p.out_height = p.out_width = p.kernel = p.stride = 1;
        p.weight = reinterpret_cast<const uint16_t *>(linear->weights.data);
        p.bias = bias;
        p.pixels = rows;
        p.clip = clip;
        conv_start(3, linear->processors, p, linear->stream);
    }
    return DICE_OK;
}

/* Offsets of the arrays in the working memory for `rows` images, and its size. */
struct offsets {
    size_t h, room, logits, energy, msp, maxlogit, label, bytes;
    offsets(const dice_linear *linear, size_t rows, bool direct)
    {
        const size_t padded = dice_round_up(rows, IMAGES), features = size_t(linear->features);
        const bool copies = linear->sparse || linear->gemm.library != nullptr;
        carver c;
        h = c.take(direct ? 0 : rows * features * sizeof(float));
        room = c.take(copies ? padded * features * sizeof(float) : 0);
        logits = c.take(rows * size_t(linear->classes) * sizeof(float));
        energy = c.take(rows * sizeof(double));
        msp = c.take(rows * sizeof(double));
        maxlogit = c.take(rows * sizeof(double));
        label = c.take(rows * sizeof(int32_t));
        bytes = c.used;
    }
};

/* The outputs of n images, which h and the outputs begin with. */
static dice_status run_rows(dice_linear *linear, const float *h, size_t n, float clip,
                            const dice_linear_outputs *out, size_t first)
{
    const size_t classes = size_t(linear->classes), features = size_t(linear->features);
    const int rows = int(n);
    const bool direct = lives_on(h, linear->device);
    const offsets at(linear, n, direct);
    unsigned char *work = linear->work.data;
    if (!direct) {
        CUDA_TRY(
            cudaMemcpyAsync(work + at.h, h, n * features * sizeof(float), cudaMemcpyDefault, linear->stream),
            "features");
        h = reinterpret_cast<const float *>(work + at.h);
    }
    float *logits = reinterpret_cast<float *>(work + at.logits);
    TRY(start_logits(linear, h, reinterpret_cast<float *>(work + at.room), rows, clip, logits));
    if (out->energy != nullptr || out->msp != nullptr || out->maxlogit != nullptr || out->label != nullptr) {
        const score_args p = {logits,
                              linear->classes,
                              reinterpret_cast<double *>(work + at.energy),
                              reinterpret_cast<double *>(work + at.msp),
                              reinterpret_cast<double *>(work + at.maxlogit),
                              reinterpret_cast<int32_t *>(work + at.label)};
        launch(scores, dim3(unsigned(rows)), dim3(SCORE_THREADS), linear->stream, p);
    }
    CUDA_TRY(cudaGetLastError(), "linear");
    const auto give = [&](void *to, size_t from, size_t item) {
        return to == nullptr ? cudaSuccess
                             : cudaMemcpyAsync(static_cast<unsigned char *>(to) + first * item, work + from,
                                               n * item, cudaMemcpyDefault, linear->stream);
    };
    CUDA_TRY(give(out->energy, at.energy, sizeof(double)), "scores");
    CUDA_TRY(give(out->msp, at.msp, sizeof(double)), "scores");
    CUDA_TRY(give(out->maxlogit, at.maxlogit, sizeof(double)), "scores");
    CUDA_TRY(give(out->label, at.label, sizeof(int32_t)), "scores");
    CUDA_TRY(give(out->logits, at.logits, classes * sizeof(float)), "scores");
    CUDA_TRY(cudaStreamSynchronize(linear->stream), "scores");
    return DICE_OK;
}

dice_status linear_forward(dice_linear *linear, const float *h, size_t n, float clip,
                           const dice_linear_outputs *outputs)
{
    TRY(device_check_process(linear->device));
    const std::lock_guard<std::mutex> hold(linear->lock);
    const on_device here(linear->device);
    CUDA_TRY(here.error, "device");
    const bool direct = lives_on(h, linear->device);
    return in_waves(
        n, MOST_ROWS, [&](size_t rows) { return linear->work.reserve(offsets(linear, rows, direct).bytes); },
        [&](size_t first, size_t rows) {
            const dice_status status = run_rows(linear, h + first * size_t(linear->features), rows, clip,
                                                outputs, first);
            if (status != DICE_OK) {
                /* nothing may use the caller's arrays after the return */
                cudaStreamSynchronize(linear->stream);
            }
            return status;
        });
}
