/* The ops other than products: normalisation, layout, pools, means, GroupNorm, epilogues. See kernels.cuh. */
#include "kernels.cuh"

enum { THREADS = 256, WARPS = THREADS / 32 };

static dim3 blocks_for(size_t threads)
{
    return dim3(unsigned(dice_ceil_div(threads, THREADS)));
}

static __device__ inline size_t global_index()
{
    return size_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

static __host__ __device__ inline size_t area(const map &m)
{
    return size_t(m.height) * size_t(m.width);
}

/* ---- the input and the output ---- */

static __global__ void from_bytes(const uint8_t *bytes, normalisation by, size_t pixels, map y)
{
    const size_t pixel = global_index();
    if (pixel < pixels) {
        for (int c = 0; c < 3; c++) {
            y.data[pixel * size_t(y.ld) + size_t(c)] = (float(bytes[pixel * 3 + size_t(c)]) / 255.0f
                                                        - by.mean[c])
                                                     / by.std[c];
        }
    }
}

void bytes_start(const uint8_t *bytes, normalisation by, int n, map y, cudaStream_t stream)
{
    const size_t pixels = size_t(n) * area(y);
    launch(from_bytes, blocks_for(pixels), dim3(THREADS), stream, bytes, by, pixels, y);
}

/* Copies planes (N, C, H, W) to x (N, H, W, ld) or, with to_planes, x to planes. */
static __global__ void swap_layout(float *planes, map x, int to_planes, size_t count)
{
    const size_t i = global_index();
    if (i < count) {
        const size_t pixel = i % area(x), channel = i / area(x) % size_t(x.channels),
                     n = i / area(x) / size_t(x.channels);
        float *other = &x.data[(n * area(x) + pixel) * size_t(x.ld) + channel];
        if (to_planes) {
            planes[i] = *other;
        } else {
            *other = planes[i];
        }
    }
}

void floats_start(const float *floats, int n, map y, cudaStream_t stream)
{
    const size_t count = size_t(n) * size_t(y.channels) * area(y);
    launch(swap_layout, blocks_for(count), dim3(THREADS), stream, const_cast<float *>(floats), y, 0, count);
}

void unpack_start(map x, int n, float *out, cudaStream_t stream)
{
    const size_t count = size_t(n) * size_t(x.channels) * area(x);
    launch(swap_layout, blocks_for(count), dim3(THREADS), stream, out, x, 1, count);
}

/* ---- pools ---- */

static __device__ inline float prologue(float x, const float *scale, const float *shift, int channel)
{
    return scale == nullptr ? x : fmaxf(fmaf(x, scale[channel], shift[channel]), 0.0f);
}

static __global__ void pool(pool_args p, size_t count)
{
    const size_t i = global_index();
    if (i >= count) {
        return;
    }
    const int channel = int(i % size_t(p.y.channels));
    const size_t pixel = i / size_t(p.y.channels), n = pixel / area(p.y), within = pixel % area(p.y);
    const int top = int(within / size_t(p.y.width)) * p.stride - p.pad;
    const int left = int(within % size_t(p.y.width)) * p.stride - p.pad;
    float largest = -INFINITY, sum = 0;
    for (int y = top; y < top + p.kernel; y++) {
        for (int x = left; x < left + p.kernel; x++) {
            if (y < 0 || y >= p.x.height || x < 0 || x >= p.x.width) {
                largest = p.zero_padded ? fmaxf(largest, 0.0f) : largest;
                continue;
            }
            const size_t at = n * area(p.x) + size_t(y) * size_t(p.x.width) + size_t(x);
            const float value = prologue(p.x.data[at * size_t(p.x.ld) + size_t(channel)], p.scale, p.shift,
                                         channel);
            largest = fmaxf(largest, value);
            sum += value;
        }
    }
    p.y.data[pixel * size_t(p.y.ld) + size_t(channel)] = p.average ? sum / float(p.kernel * p.kernel)
                                                                   : largest;
}

void pool_start(pool_args p, int n, cudaStream_t stream)
{
    const size_t count = size_t(n) * area(p.y) * size_t(p.y.channels);
    launch(pool, blocks_for(count), dim3(THREADS), stream, p, count);
}

/* ---- sums over pixels ---- */

/* y (N, C) = mean over pixels of pre(x). A block takes 32 channels of an image, each warp some pixels. */
static __global__ void global_mean(map x, const float *scale, const float *shift, map y)
{
    __shared__ double partial[WARPS][32];
    const int lane = int(threadIdx.x), warp = int(threadIdx.y), channel = int(blockIdx.x) * 32 + lane;
    const size_t n = blockIdx.y;
    double sum = 0;
    if (channel < x.channels) {
        for (size_t pixel = size_t(warp); pixel < area(x); pixel += WARPS) {
            const float value = x.data[(n * area(x) + pixel) * size_t(x.ld) + size_t(channel)];
            sum += double(prologue(value, scale, shift, channel));
        }
    }
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && channel < x.channels) {
        for (int i = 1; i < WARPS; i++) {
            sum += partial[i][lane];
        }
        y.data[n * size_t(y.ld) + size_t(channel)] = float(sum / double(area(x)));
    }
}

void mean_start(map x, const float *scale, const float *shift, int n, map y, cudaStream_t stream)
{
    launch(global_mean, dim3(unsigned(dice_ceil_div32(x.channels, 32)), unsigned(n)), dim3(32, WARPS), stream,
           x, scale, shift, y);
}

/* The sum of `value` over all threads of the block, returned to each of them. */
static __device__ double block_sum(double value)
{
    __shared__ double partial[WARPS];
    for (int mask = 16; mask > 0; mask /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, mask);
    }
    __syncthreads(); /* until all threads have read the result of the call before */
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = value;
    }
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARPS; i++) {
        sum += partial[i];
    }
    return sum;
}

/* A block takes one group of one image. */
static __global__ void groupnorm(norm_args p)
{
    const int width = p.x.channels / p.groups, first = int(blockIdx.x) * width;
    const size_t n = blockIdx.y, count = area(p.x) * size_t(width);
    const float *x = p.x.data + n * area(p.x) * size_t(p.x.ld);
    float *y = p.y.data + n * area(p.y) * size_t(p.y.ld);
    const auto at = [&](size_t i, int ld) {
        return i / size_t(width) * size_t(ld) + size_t(first) + i % size_t(width);
    };
    double sum = 0;
    for (size_t i = threadIdx.x; i < count; i += THREADS) {
        sum += double(x[at(i, p.x.ld)]);
    }
    const double mean = block_sum(sum) / double(count);
    double squares = 0;
    for (size_t i = threadIdx.x; i < count; i += THREADS) {
        const double d = double(x[at(i, p.x.ld)]) - mean;
        squares += d * d;
    }
    const double scale = 1 / sqrt(block_sum(squares) / double(count) + double(p.eps));
    for (size_t i = threadIdx.x; i < count; i += THREADS) {
        const int channel = first + int(i % size_t(width));
        const float normal = float((double(x[at(i, p.x.ld)]) - mean) * scale);
        const float value = fmaf(normal, p.weight[channel], p.bias[channel]);
        y[at(i, p.y.ld)] = p.relu ? fmaxf(value, 0.0f) : value;
    }
}

void norm_start(norm_args args, int n, cudaStream_t stream)
{
    launch(groupnorm, dim3(unsigned(args.groups), unsigned(n)), dim3(THREADS), stream, args);
}

/* ---- after a library's product ---- */

static __global__ void epilogue(map x, const float *bias, const float *residual, int residual_ld, int relu,
                                size_t count)
{
    const size_t i = global_index();
    if (i < count) {
        const size_t pixel = i / size_t(x.channels), channel = i % size_t(x.channels);
        float *at = &x.data[pixel * size_t(x.ld) + channel];
        const float value = *at + (bias != nullptr ? bias[channel] : 0.0f)
                          + (residual != nullptr ? residual[pixel * size_t(residual_ld) + channel] : 0.0f);
        *at = relu ? fmaxf(value, 0.0f) : value;
    }
}

void epilogue_start(map x, const float *bias, const float *residual, int residual_ld, int relu, int n,
                    cudaStream_t stream)
{
    const size_t count = size_t(n) * area(x) * size_t(x.channels);
    launch(epilogue, blocks_for(count), dim3(THREADS), stream, x, bias, residual, residual_ld, relu, count);
}
