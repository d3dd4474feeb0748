/* The functions that start the kernels on a stream. Activations are float32, channels last; the channels of
 * neighbouring pixels are `ld` floats apart, so that a tensor may be a slice of another. In all kernels the
 * result of an image depends neither on other images nor on their number. */
#ifndef DICE_CUDA_KERNELS_CUH
#define DICE_CUDA_KERNELS_CUH

#include "common.cuh"

/* ---- conv.cu: convolutions and dense layers, on tensor cores ---- */

struct conv_args {
    const float *x;             /* (N, H, W, x_ld), at the first channel */
    const uint16_t *weight;     /* packed by conv_pack */
    const float *bias;          /* (O) or null */
    const float *scale, *shift; /* (C) or null: the prologue max(x * scale + shift, 0) */
    const float *residual;      /* (N, OH, OW, residual_ld) or null, added before the ReLU */
    float *y;                   /* (N, OH, OW, y_ld) */
    int x_ld, residual_ld, y_ld;
    int height, width, channels;
    int out_height, out_width, out_channels;
    int kernel, stride, pad, relu;
    int pixels;  /* N OH OW */
    float clip;  /* x = min(x, clip) before the prologue; INFINITY: no clip */
    int vectors; /* set by conv_start: whether four channels may be read at once */
};

/* The bytes of packed weights (out_channels, channels, kernel, kernel). `parts` is the number of bfloat16
 * parts of each factor (dice_precision_parts); 1, 2 or 3 parts take 1, 3 or 6 products. */
size_t conv_weight_bytes(int parts, int out_channels, int channels, int kernel);

/* Packs the weights into `packed` (host memory); a weight becomes 0 where keep (same shape, or null) is 0. */
void conv_pack(int parts, const float *weight, const uint8_t *keep, int out_channels, int channels,
               int kernel, uint16_t *packed);

/* An error if the plug-in has no code for this thread's device. */
cudaError_t conv_check();

void conv_start(int parts, int processors, conv_args args, cudaStream_t stream);

/* ---- ops.cu: what moves and averages ---- */

struct map { /* channels on height x width pixels of every image */
    float *data;
    int ld, channels, height, width;
};

/* y = (bytes (N, H, W, 3) / 255 - mean) / std, as the CPU computes it; or floats (N, C, H, W) as they are. */
struct normalisation {
    float mean[3], std[3];
};
void bytes_start(const uint8_t *bytes, normalisation by, int n, map y, cudaStream_t stream);
void floats_start(const float *floats, int n, map y, cudaStream_t stream);

/* out (N, C, H, W) = x */
void unpack_start(map x, int n, float *out, cudaStream_t stream);

/* See DICE_OP_MAXPOOL and DICE_OP_AVGPOOL; scale and shift are those of the prologue pre(x), or null. */
struct pool_args {
    map x, y;
    int kernel, stride, pad, average, zero_padded;
    const float *scale, *shift;
};
void pool_start(pool_args args, int n, cudaStream_t stream);

/* y (N, C) = mean over the pixels of pre(x), summed in double. */
void mean_start(map x, const float *scale, const float *shift, int n, map y, cudaStream_t stream);

/* y = act((x - mean) / sqrt(variance + eps) * weight + bias), mean and variance in double. */
struct norm_args {
    map x, y;
    const float *weight, *bias;
    int groups, relu;
    float eps;
};
void norm_start(norm_args args, int n, cudaStream_t stream);

/* x = act(x + bias + residual) in place, as conv does at its end; bias and residual may be null. */
void epilogue_start(map x, const float *bias, const float *residual, int residual_ld, int relu, int n,
                    cudaStream_t stream);

#endif
