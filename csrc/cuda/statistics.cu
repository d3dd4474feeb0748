/* Fitting DICE: the moments of the features, and the ranking of the last layer's weights.
 *
 * V = mean * W is never stored: it is computed in double each time that it is read. Its order statistics come
 * from radix selection on 64-bit keys, eight bits in a pass. That is exact, and the build makes no fused
 * multiply-adds, so that threshold and mask equal the CPU's bit by bit. */
#include <mutex>

#include "kernels.cuh"
#include "device.cuh"
#include "slots.cuh"

enum { THREADS = 256, BINS = 256, DIGIT = 8, BLOCKS = 512, MOST_DEVICES = 64 };
static const size_t MOST_FLOATS = size_t(64) << 20; /* copied to the device at once */

/* ---- ranking ---- */

struct contribution {
    const double *mean;  /* (D) */
    const float *weight; /* (M, D) */
    size_t count;        /* M D */
    int features, absolute;
};

struct selection {
    unsigned long long prefix,
        mask;                /* the candidates are the keys that agree with prefix in the bits of mask */
    unsigned long long rank; /* of the wanted key among the candidates */
    unsigned long long same; /* how many candidates there are */
    unsigned long long next; /* the smallest key above them */
    unsigned bins[BINS];
};

static __device__ inline double value_of(const contribution &v, size_t i)
{
    const double product = v.mean[i % size_t(v.features)] * double(v.weight[i]);
    return v.absolute ? fabs(product) : product;
}

/* key(x) < key(y) exactly where x < y; -0.0 and 0.0 have the same key. */
static __device__ inline unsigned long long key_of(double x)
{
    const unsigned long long bits = (unsigned long long)(__double_as_longlong(x + 0.0));
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}

static double value_of_key(unsigned long long key)
{
    const unsigned long long bits = key >> 63 ? key & ~(1ull << 63) : ~key;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static __global__ void count_digits(contribution v, selection *s, int shift)
{
    __shared__ unsigned bins[BINS];
    bins[threadIdx.x] = 0;
    __syncthreads();
    const unsigned long long prefix = s->prefix, mask = s->mask;
    for (size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x; i < v.count;
         i += size_t(gridDim.x) * THREADS) {
        const unsigned long long key = key_of(value_of(v, i));
        if ((key & mask) == prefix) {
            atomicAdd(&bins[key >> shift & (BINS - 1)], 1u);
        }
    }
    __syncthreads();
    if (bins[threadIdx.x] != 0) {
        atomicAdd(&s->bins[threadIdx.x], bins[threadIdx.x]);
    }
}

/* One thread extends the prefix by the bin that holds the rank, and clears the counts. */
static __global__ void choose_digit(selection *s, int shift)
{
    unsigned long long rank = s->rank;
    unsigned bin = 0;
    while (rank >= s->bins[bin]) {
        rank -= s->bins[bin++];
    }
    s->rank = rank;
    s->same = s->bins[bin];
    s->prefix |= (unsigned long long)bin << shift;
    s->mask |= (unsigned long long)(BINS - 1) << shift;
    for (int i = 0; i < BINS; i++) {
        s->bins[i] = 0;
    }
}

/* s->next = the smallest key above the one that was found. */
static __global__ void find_next(contribution v, selection *s)
{
    __shared__ unsigned long long least;
    if (threadIdx.x == 0) {
        least = ~0ull;
    }
    __syncthreads();
    const unsigned long long found = s->prefix;
    unsigned long long mine = ~0ull;
    for (size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x; i < v.count;
         i += size_t(gridDim.x) * THREADS) {
        const unsigned long long key = key_of(value_of(v, i));
        mine = key > found && key < mine ? key : mine;
    }
    atomicMin(&least, mine);
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicMin(&s->next, least);
    }
}

static __global__ void mark(contribution v, double threshold, uint8_t *keep)
{
    for (size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x; i < v.count;
         i += size_t(gridDim.x) * THREADS) {
        keep[i] = value_of(v, i) > threshold;
    }
}

/* ---- moments ---- */

/* mean (D) and squares (D), as `moments` in backend.h, of h (rows, D); *negative becomes 1 if a value is
 * below 0. A block takes 32 features; its warps share the rows. */
static __global__ void column_moments(const float *h, size_t rows, int features, double *mean,
                                      double *squares, int *negative)
{
    enum { WARPS = THREADS / 32 };
    __shared__ double partial[WARPS][32];
    const int lane = int(threadIdx.x), warp = int(threadIdx.y), feature = int(blockIdx.x) * 32 + lane;
    double centre = 0;
    for (int pass = 0; pass < 2; pass++) { /* first the mean, then the squared differences from it */
        double sum = 0;
        for (size_t row = size_t(warp); feature < features && row < rows; row += WARPS) {
            const double x = double(h[row * size_t(features) + size_t(feature)]), d = x - centre;
            sum += pass == 0 ? d : d * d;
            if (x < 0) {
                *negative = 1; /* all who write, write the same */
            }
        }
        partial[warp][lane] = sum;
        __syncthreads();
        sum = 0;
        for (int i = 0; i < WARPS; i++) {
            sum += partial[i][lane];
        }
        __syncthreads();
        if (pass == 0) {
            centre = sum / double(rows);
        } else if (warp == 0 && feature < features) {
            mean[feature] = centre;
            squares[feature] = sum;
        }
    }
}

static __global__ void find_nonfinite(const float *x, size_t count, int *found)
{
    for (size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += size_t(gridDim.x) * THREADS) {
        if ((__float_as_uint(x[i]) & 0x7f800000u) == 0x7f800000u) {
            *found = 1; /* all who write, write the same */
        }
    }
}

/* ---- the slots ---- */

namespace
{
struct session { /* what one call holds on the device */
    cudaStream_t stream = nullptr;
    device_buffer memory;
    ~session()
    {
        if (stream != nullptr) {
            cudaStreamSynchronize(stream);
            cudaStreamDestroy(stream);
        }
        memory.release();
    }
    dice_status open(size_t bytes)
    {
        if (stream == nullptr) {
            CUDA_TRY(cudaStreamCreate(&stream), "stream");
        }
        CUDA_TRY(memory.reserve(bytes), "memory");
        return DICE_OK;
    }
    template <typename T> T *at(size_t offset) const
    {
        return reinterpret_cast<T *>(memory.data + offset);
    }
    /* *there = `from` where kernels can read it, else its copy at `offset` in `memory`. */
    template <typename T>
    dice_status bring(const T *from, size_t count, size_t offset, const T **there, int device) const
    {
        *there = from;
        if (!lives_on(from, device)) {
            *there = at<const T>(offset);
            CUDA_TRY(
                cudaMemcpyAsync(memory.data + offset, from, count * sizeof(T), cudaMemcpyDefault, stream),
                "copy");
        }
        return DICE_OK;
    }
};
}  // namespace

static dice_status run_finite(const session &s, const float *x, size_t count, int *finite)
{
    int found = 0;
    const size_t blocks = dice_least(dice_ceil_div(count, THREADS), BLOCKS);
    CUDA_TRY(cudaMemsetAsync(s.at<int>(0), 0, sizeof(int), s.stream), "finite");
    launch(find_nonfinite, dim3(unsigned(blocks)), dim3(THREADS), s.stream, x, count, s.at<int>(0));
    CUDA_TRY(cudaGetLastError(), "finite");
    CUDA_TRY(cudaMemcpyAsync(&found, s.at<int>(0), sizeof found, cudaMemcpyDefault, s.stream), "finite");
    CUDA_TRY(cudaStreamSynchronize(s.stream), "finite");
    *finite = !found;
    return DICE_OK;
}

/* Every array is checked here before it is used; so each device keeps one session open for it. */
dice_status statistics_finite(const float *x, size_t count, int device, int *finite)
{
    static std::mutex lock;
    /* never freed: when the process ends, the driver may be unloaded first */
    static session *const open = new session[MOST_DEVICES];
    const std::lock_guard<std::mutex> hold(lock);
    if (device >= MOST_DEVICES) {
        return dice_core->fail(DICE_E_DEVICE, "cuda:%d: one of the first %d devices is wanted", device,
                               MOST_DEVICES);
    }
    session *s = &open[device];
    TRY(s->open(sizeof(int)));
    const dice_status status = run_finite(*s, x, count, finite);
    if (status != DICE_OK) {
        cudaStreamSynchronize(s->stream); /* it may still write to `found` of run_finite */
    }
    return status;
}

/* Offsets of the arrays in the memory for the moments of `rows` rows, and its size. */
struct moments_offsets {
    size_t mean, squares, negative, h, bytes;
    moments_offsets(size_t features, size_t rows, bool direct)
    {
        carver c;
        mean = c.take(features * sizeof(double));
        squares = c.take(features * sizeof(double));
        negative = c.take(sizeof(int));
        h = c.take(direct ? 0 : rows * features * sizeof(float));
        bytes = c.used;
    }
};

/* Adds the moments of `rows` more rows to mean and squares, which are those of `before` rows; added (2, D) is
 * working memory. */
static dice_status add_moments(const session &s, const float *h, size_t before, size_t rows, size_t features,
                               int device, double *added, double *mean, double *squares, int *negative)
{
    const moments_offsets at(features, rows, lives_on(h, device));
    int below = 0;
    TRY(s.bring(h, rows * features, at.h, &h, device));
    CUDA_TRY(cudaMemsetAsync(s.at<int>(at.negative), 0, sizeof(int), s.stream), "moments");
    launch(column_moments, dim3(unsigned(dice_ceil_div(features, 32))), dim3(32, THREADS / 32), s.stream, h,
           rows, int(features), s.at<double>(at.mean), s.at<double>(at.squares), s.at<int>(at.negative));
    CUDA_TRY(cudaGetLastError(), "moments");
    CUDA_TRY(
        cudaMemcpyAsync(added, s.at<double>(at.mean), features * sizeof(double), cudaMemcpyDefault, s.stream),
        "moments");
    CUDA_TRY(cudaMemcpyAsync(added + features, s.at<double>(at.squares), features * sizeof(double),
                             cudaMemcpyDefault, s.stream),
             "moments");
    CUDA_TRY(cudaMemcpyAsync(&below, s.at<int>(at.negative), sizeof(int), cudaMemcpyDefault, s.stream),
             "moments");
    CUDA_TRY(cudaStreamSynchronize(s.stream), "moments");
    const double m = double(before), k = double(rows);
    for (size_t d = 0; d < features; d++) { /* Chan, Golub & LeVeque 1979 */
        const double apart = added[d] - mean[d];
        mean[d] += apart * (k / (m + k));
        squares[d] += added[features + d] + apart * apart * (m * k / (m + k));
    }
    *negative |= below;
    return DICE_OK;
}

dice_status statistics_moments(const float *h, size_t n, size_t features, const dice_options *options,
                               double *mean, double *squares, int *negative)
{
    TRY(device_check(options->device));
    if (features > INT32_MAX) {
        return dice_core->fail(DICE_E_INPUT, "h: got %zu features, want at most 2^31 - 1", features);
    }
    const on_device here(options->device);
    CUDA_TRY(here.error, "device");
    session s;
    TRY(s.open(0));
    void *memory;
    TRY(dice_core->alloc(features, 2 * sizeof(double), &memory));
    memset(mean, 0, features * sizeof *mean);
    memset(squares, 0, features * sizeof *squares);
    *negative = 0;
    const bool direct = lives_on(h, options->device);
    const size_t most = direct ? n : MOST_FLOATS / features + 1;
    const dice_status status = in_waves(
        n, most, [&](size_t rows) { return s.memory.reserve(moments_offsets(features, rows, direct).bytes); },
        [&](size_t first, size_t rows) {
            const dice_status result = add_moments(s, h + first * features, first, rows, features,
                                                   options->device, static_cast<double *>(memory), mean,
                                                   squares, negative);
            if (result != DICE_OK) {
                cudaStreamSynchronize(s.stream); /* it may still write to `memory` and `below` */
            }
            return result;
        });
    dice_core->free(memory);
    return status;
}

/* *found = the element of rank `rank` (from 0) and, as `next`, that of rank + 1 if its key is another. */
static dice_status select_rank(const contribution &v, size_t rank, selection *device, dim3 blocks,
                               cudaStream_t stream, selection *found)
{
    *found = selection();
    found->rank = rank;
    found->next = ~0ull;
    CUDA_TRY(cudaMemcpyAsync(device, found, sizeof *found, cudaMemcpyHostToDevice, stream), "ranking");
    for (int shift = 64 - DIGIT; shift >= 0; shift -= DIGIT) {
        launch(count_digits, blocks, dim3(THREADS), stream, v, device, shift);
        launch(choose_digit, dim3(1), dim3(1), stream, device, shift);
    }
    launch(find_next, blocks, dim3(THREADS), stream, v, device);
    CUDA_TRY(cudaGetLastError(), "ranking");
    CUDA_TRY(cudaMemcpyAsync(found, device, sizeof *found, cudaMemcpyDeviceToHost, stream), "ranking");
    CUDA_TRY(cudaStreamSynchronize(stream), "ranking");
    return DICE_OK;
}

dice_status statistics_rank(const double *mean, const float *weight, size_t classes, size_t features,
                            int absolute, double p, const dice_options *options, double *threshold,
                            uint8_t *keep)
{
    TRY(device_check(options->device));
    const size_t count = classes * features;
    if (!(p >= 0 && p <= 100) || count > UINT32_MAX || features > INT32_MAX) {
        return dice_core->fail(DICE_E_INPUT,
                               "p: got %g, want 0 to 100; W: got %zu x %zu, want at most 2^32 weights", p,
                               classes, features);
    }
    const on_device here(options->device);
    CUDA_TRY(here.error, "device");
    carver c;
    const size_t mean_at = c.take(features * sizeof(double)), weight_at = c.take(count * sizeof(float));
    const size_t selection_at = c.take(sizeof(selection)), keep_at = c.take(count);
    session s;
    TRY(s.open(c.used));
    contribution v = {nullptr, nullptr, count, int(features), absolute};
    TRY(s.bring(mean, features, mean_at, &v.mean, options->device));
    TRY(s.bring(weight, count, weight_at, &v.weight, options->device));

    const dim3 blocks(unsigned(dice_least(dice_ceil_div(count, THREADS), BLOCKS)));
    const double index = double(count - 1) * (p / 100), whole = floor(index), t = index - whole;
    selection found;
    TRY(select_rank(v, size_t(whole), s.at<selection>(selection_at), blocks, s.stream, &found));
    const double a = value_of_key(found.prefix);
    const double b = found.rank + 1 < found.same || found.next == ~0ull ? a : value_of_key(found.next);
    if (!std::isfinite(a) || !std::isfinite(b)) {
        return dice_core->fail(DICE_E_INPUT,
                               "mean, W: their products leave the range of float64; scale the features");
    }
    *threshold = t >= 0.5 ? b - (b - a) * (1 - t)
                          : a + (b - a) * t; /* as numpy does, from the nearer value */

    launch(mark, blocks, dim3(THREADS), s.stream, v, *threshold, s.at<uint8_t>(keep_at));
    CUDA_TRY(cudaGetLastError(), "mask");
    CUDA_TRY(cudaMemcpyAsync(keep, s.at<uint8_t>(keep_at), count, cudaMemcpyDefault, s.stream), "mask");
    CUDA_TRY(cudaStreamSynchronize(s.stream), "mask");
    return DICE_OK;
}
