/* Convolution as an implicit matrix product on tensor cores, channels last.
 *
 * Rows are the output pixels of all images, columns the output channels; k runs over taps and, within a tap,
 * over channels padded to 4. A float32 is split into bfloat16 parts, x = hi + mid / 2^8 + lo / 2^16, exactly,
 * denormals too; 1, 2 or 3 parts take 1, 3 or 6 products, which are grouped by their power of 2^8 (their
 * order). Tensor cores truncate their sums instead of rounding them, which would bias a long sum. Therefore
 * each order of products, in each step of 16 k, starts from zero and is added to the total in rounded
 * float32.
 *
 * A sum has the same order of terms, and so the same bits, whatever the tile, the batch and other images. */
#include "kernels.cuh"

enum { THREADS = 128, ROWS = 64, DEPTH = 32 }; /* threads and pixels of a block; k of a step */
enum { LANES = 4 };                            /* channels that a thread fetches at once */

/* dice_round_up is for the host alone. */
static __host__ __device__ inline int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

/* The depth (k) and columns of the packed weights (parts, columns, depth). */
static __host__ __device__ inline int packed_depth(int channels, int kernel)
{
    return round_up(kernel * kernel * round_up(channels, LANES), DEPTH);
}
static __host__ __device__ inline int packed_columns(int out_channels)
{
    return round_up(out_channels, 64);
}

/* The factor by which products of one order are larger than those of the next. */
enum { ORDER = 1 << 8 };

/* parts[i] = a bfloat16 in the upper half of a word, such that x is the sum of parts[i] / ORDER^i. Each is
 * the rest of x rounded to nearest even, so that the errors of fewer parts have no common sign. Infinite only
 * if x is. */
template <int PARTS> static __host__ __device__ inline void split(float x, uint32_t (&parts)[PARTS])
{
    union {
        float value;
        uint32_t bits;
    } rest = {x};
    for (int i = 0; i < PARTS; i++) {
        union {
            uint32_t bits;
            float value;
        } part = {rest.bits + 0x7fffu + (rest.bits >> 16 & 1)};
        part.bits = ((part.bits & 0x7f800000u) == 0x7f800000u ? rest.bits : part.bits) & 0xffff0000u;
        parts[i] = part.bits;
        rest.value = (rest.value - part.value) * float(ORDER);
    }
}

/* v (4) = pre(x) of the channels from `channel` on of one pixel; 0 after the last channel. */
static __device__ inline void fetch(const conv_args &p, const float *x, int channel,
                                    const float (&scale)[LANES], const float (&shift)[LANES],
                                    float (&v)[LANES])
{
    float4 four = make_float4(0, 0, 0, 0);
    if (p.vectors) {
        four = *reinterpret_cast<const float4 *>(x + channel);
    } else {
        four.x = x[channel]; /* the first of the four always exists */
        four.y = channel + 1 < p.channels ? x[channel + 1] : 0.0f;
        four.z = channel + 2 < p.channels ? x[channel + 2] : 0.0f;
        four.w = channel + 3 < p.channels ? x[channel + 3] : 0.0f;
    }
    const float raw[LANES] = {four.x, four.y, four.z, four.w};
    for (int i = 0; i < LANES; i++) {
        const float clipped = fminf(raw[i], p.clip);
        const float value = p.scale == nullptr ? clipped : fmaxf(fmaf(clipped, scale[i], shift[i]), 0.0f);
        v[i] = channel + i < p.channels ? value : 0.0f;
    }
}

/* A block computes ROWS pixels x COLUMNS channels; its warps share them as 2 x 2, or 4 x 1 for 16 columns. */
template <int PARTS, int COLUMNS> __global__ void __launch_bounds__(THREADS, 3) conv(const conv_args p)
{
    enum {
        WARPS_N = COLUMNS == 16 ? 1 : 2,
        WARPS_M = 4 / WARPS_N,
        TILES_M = ROWS / WARPS_M / 16,
        TILES_N = COLUMNS / WARPS_N / 8,
        PITCH = DEPTH / 2 + 4,    /* words in a row; 4 more, so that 8 rows lie in different memory banks */
        FETCHERS = DEPTH / LANES, /* threads that fetch a row */
        STRIDE = THREADS / FETCHERS, /* rows that are fetched at once */
        FETCHES = ROWS / STRIDE
    };
    __shared__ __align__(16) uint32_t a_shared[PARTS][ROWS][PITCH];
    __shared__ __align__(16) uint32_t b_shared[PARTS][COLUMNS][PITCH];

    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int g = lane / 4, t = lane % 4;
    const int warp_row = warp / WARPS_N * TILES_M * 16, warp_column = warp % WARPS_N * TILES_N * 8;
    const int first_pixel = int(blockIdx.x) * ROWS, first_channel = int(blockIdx.y) * COLUMNS;
    const int padded = round_up(p.channels, LANES), taps = p.kernel * p.kernel;
    const int depth = packed_depth(p.channels, p.kernel);

    /* This thread fetches the same four k of the same rows in every step. */
    const int my_row = thread / FETCHERS, my_k = thread % FETCHERS * LANES;
    const float *image[FETCHES];
    int top[FETCHES], left[FETCHES];
    for (int i = 0; i < FETCHES; i++) {
        const int pixel = first_pixel + my_row + STRIDE * i, area = p.out_height * p.out_width;
        image[i] = p.x + size_t(pixel / area) * size_t(p.height) * size_t(p.width) * size_t(p.x_ld);
        /* a pixel after the last one is never inside the image */
        top[i] = pixel < p.pixels ? pixel % area / p.out_width * p.stride - p.pad : -(1 << 24);
        left[i] = pixel % p.out_width * p.stride - p.pad;
    }

    float sums[TILES_M][TILES_N][4] = {};
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        const int tap = (k0 + my_k) / padded, channel = (k0 + my_k) % padded;
        float scale[LANES] = {}, shift[LANES] = {};
        for (int i = 0; i < LANES; i++) {
            if (p.scale != nullptr && channel + i < p.channels) {
                scale[i] = p.scale[channel + i];
                shift[i] = p.shift[channel + i];
            }
        }
        for (int i = 0; i < FETCHES; i++) {
            const int y = top[i] + tap / p.kernel, x = left[i] + tap % p.kernel;
            float v[LANES] = {};
            if (tap < taps && y >= 0 && y < p.height && x >= 0 && x < p.width) {
                fetch(p, image[i] + (size_t(y) * size_t(p.width) + size_t(x)) * size_t(p.x_ld), channel,
                      scale, shift, v);
            }
            uint32_t parts[LANES][PARTS];
            for (int j = 0; j < LANES; j++) {
                split(v[j], parts[j]);
            }
            for (int part = 0; part < PARTS; part++) {
                uint32_t *words = &a_shared[part][my_row + STRIDE * i][my_k / 2];
                words[0] = parts[0][part] >> 16 | parts[1][part];
                words[1] = parts[2][part] >> 16 | parts[3][part];
            }
        }
        for (int i = thread; i < PARTS * COLUMNS * (DEPTH / 8); i += THREADS) {
            const int eighth = i % (DEPTH / 8), column = i / (DEPTH / 8) % COLUMNS,
                      part = i / (DEPTH / 8) / COLUMNS;
            const size_t row = size_t(part) * size_t(packed_columns(p.out_channels))
                             + size_t(first_channel + column);
            *reinterpret_cast<uint4 *>(&b_shared[part][column][eighth * 4]) =
                *reinterpret_cast<const uint4 *>(p.weight + row * size_t(depth) + size_t(k0 + eighth * 8));
        }
        __syncthreads();

#pragma unroll
        for (int k = 0; k < DEPTH / 2; k += 8) { /* 8 words hold 16 k */
            uint32_t b[PARTS][TILES_N][2];
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
#pragma unroll
                for (int n = 0; n < TILES_N; n++) {
                    const uint32_t *row = b_shared[part][warp_column + 8 * n + g];
                    b[part][n][0] = row[k + t];
                    b[part][n][1] = row[k + t + 4];
                }
            }
#pragma unroll
            for (int m = 0; m < TILES_M; m++) {
                uint32_t a[PARTS][4];
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    const uint32_t (*rows)[PITCH] = &a_shared[part][warp_row + 16 * m + g];
                    a[part][0] = rows[0][k + t];
                    a[part][1] = rows[8][k + t];
                    a[part][2] = rows[0][k + t + 4];
                    a[part][3] = rows[8][k + t + 4];
                }
                float step[TILES_N][4] = {};
#pragma unroll
                for (int order = PARTS - 1; order >= 0; order--) {
                    float products[TILES_N][4] = {};
#pragma unroll
                    for (int part = 0; part <= order; part++) {
                        mma_bf16(products, a[part], b[order - part]);
                    }
#pragma unroll
                    for (int n = 0; n < TILES_N; n++) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            step[n][i] = fmaf(step[n][i], 1.0f / ORDER, products[n][i]);
                        }
                    }
                }
#pragma unroll
                for (int n = 0; n < TILES_N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        sums[m][n][i] += step[n][i];
                    }
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int m = 0; m < TILES_M; m++) {
#pragma unroll
        for (int n = 0; n < TILES_N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int pixel = first_pixel + warp_row + 16 * m + g + i / 2 * 8;
                const int channel = first_channel + warp_column + 8 * n + 2 * t + i % 2;
                if (pixel < p.pixels && channel < p.out_channels) {
                    float v = sums[m][n][i] + (p.bias != nullptr ? p.bias[channel] : 0.0f);
                    if (p.residual != nullptr) {
                        v += p.residual[size_t(pixel) * size_t(p.residual_ld) + size_t(channel)];
                    }
                    p.y[size_t(pixel) * size_t(p.y_ld) + size_t(channel)] = p.relu ? fmaxf(v, 0.0f) : v;
                }
            }
        }
    }
}

size_t conv_weight_bytes(int parts, int out_channels, int channels, int kernel)
{
    return size_t(parts) * size_t(packed_columns(out_channels)) * size_t(packed_depth(channels, kernel))
         * sizeof(uint16_t);
}

template <int PARTS>
static void pack(const float *weight, const uint8_t *keep, int out_channels, int channels, int kernel,
                 uint16_t *packed)
{
    const int taps = kernel * kernel;
    const size_t depth = size_t(packed_depth(channels, kernel)),
                 plane = size_t(packed_columns(out_channels)) * depth;
    memset(packed, 0, PARTS * plane * sizeof *packed);
    size_t from = 0;
    for (int o = 0; o < out_channels; o++) {
        for (int c = 0; c < channels; c++) {
            for (int tap = 0; tap < taps; tap++, from++) {
                if (keep != nullptr && !keep[from]) {
                    continue;
                }
                uint32_t parts[PARTS];
                split(weight[from], parts);
                for (int part = 0; part < PARTS; part++) {
                    packed[size_t(part) * plane + size_t(o) * depth
                           + size_t(tap * round_up(channels, LANES) + c)] = uint16_t(parts[part] >> 16);
                }
            }
        }
    }
}

void conv_pack(int parts, const float *weight, const uint8_t *keep, int out_channels, int channels,
               int kernel, uint16_t *packed)
{
    const auto chosen = parts == 1 ? pack<1> : parts == 2 ? pack<2> : pack<3>;
    chosen(weight, keep, out_channels, channels, kernel, packed);
}

cudaError_t conv_check()
{
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, conv<3, 64>);
}

/* Tiles are 16 channels wide if there are no more channels, or if wider tiles would leave processors idle. */
void conv_start(int parts, int processors, conv_args p, cudaStream_t stream)
{
    const unsigned rows = unsigned(dice_ceil_div32(p.pixels, ROWS));
    const unsigned wide = unsigned(dice_ceil_div32(p.out_channels, 64)),
                   narrow = unsigned(dice_ceil_div32(p.out_channels, 16));
    p.vectors = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.x_ld % LANES == 0
             && (p.channels % LANES == 0 || p.x_ld == round_up(p.channels, LANES));
    if (p.out_channels <= 16 || rows * wide < unsigned(processors)) {
        const auto kernel = parts == 1 ? conv<1, 16> : parts == 2 ? conv<2, 16> : conv<3, 16>;
        launch(kernel, dim3(rows, narrow), dim3(THREADS), stream, p);
    } else {
        const auto kernel = parts == 1 ? conv<1, 64> : parts == 2 ? conv<2, 64> : conv<3, 64>;
        launch(kernel, dim3(rows, wide), dim3(THREADS), stream, p);
    }
}
