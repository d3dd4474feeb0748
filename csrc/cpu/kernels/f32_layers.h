/* Every kernel of a network but the tile multiply, for one instruction set: packing and storing for
 * convolutions, pooling, means, group normalisation. Included by f32_layers_<isa>.c. */
#include <math.h>

#include "base/sizes.h"
#include "cpu/kernels.h"
#include "cpu/kernels/vec16.h"

/* Channels [channel, channel + 16) of x at float offset `at`; lanes past the slice hold anything. */
INLINE vec16 load_channels(const dice_view *x, int32_t channel, ptrdiff_t at)
{
    const int32_t first = x->offset + channel;
    const float *p = x->data + (first / 16) * x->plane + at;
    const int32_t lane = first % 16;
    if (lane == 0) {
        return vec16_load(p);
    }
    float both[16];
    const int32_t left = dice_least32(x->channels - channel, 16);
    for (int32_t i = 0; i < 16; i++) {
        const int32_t j = lane + i;
        both[i] = i >= left ? 0.0f : j < 16 ? p[j] : p[x->plane + j - 16];
    }
    return vec16_load(both);
}

/* Stores `value` at the channels that load_channels reads; channels past the slice stay as they are. */
INLINE void store_channels(const dice_view *y, int32_t channel, ptrdiff_t at, vec16 value)
{
    const int32_t first = y->offset + channel;
    const int32_t left = y->channels - channel;
    float *p = y->data + (first / 16) * y->plane + at;
    const int32_t lane = first % 16;
    if (lane == 0) {
        if (left >= 16) {
            vec16_store(p, value);
        } else {
            vec16_store_lanes(p, value, 0, left);
        }
        return;
    }
    const int32_t count = dice_least32(left, 16);
    const int32_t here = dice_least32(count, 16 - lane);
    vec16_store_lanes(p + lane, value, 0, here);
    if (count > here) {
        vec16_store_lanes(p + y->plane + lane - 16, value, here, count);
    }
}

INLINE vec16 apply(dice_affine pre, int32_t channel, vec16 value)
{
    if (pre.scale == NULL) {
        return value;
    }
    return vec16_max(vec16_fma(value, vec16_load(pre.scale + channel), vec16_load(pre.shift + channel)),
                     vec16_set1(0.0f));
}

static void conv_store(const float *c, int rows, int vectors, int32_t first, const dice_view *y,
                       const ptrdiff_t *at, const dice_view *residual, const ptrdiff_t *residual_at, int relu)
{
    const vec16 zero = vec16_set1(0.0f);
    for (int v = 0; v < vectors; v++) {
        const int32_t channel = first + 16 * v;
        if (channel >= y->channels) {
            return;
        }
        const float *from = c + v * DICE_TILE_PLANE;
        if (dice_view_has_blocks(y, channel, 1)
            && (residual == NULL || dice_view_has_blocks(residual, channel, 1))) {
            float *to = y->data + (y->offset + channel) / 16 * y->plane;
            const float *add = residual == NULL
                                 ? NULL
                                 : residual->data + (residual->offset + channel) / 16 * residual->plane;
            for (int r = 0; r < rows; r++, from += 16) {
                vec16 value = vec16_load(from);
                value = add == NULL ? value : vec16_add(value, vec16_load(add + residual_at[r]));
                vec16_store(to + at[r], relu ? vec16_max(value, zero) : value);
            }
            continue;
        }
        for (int r = 0; r < rows; r++, from += 16) {
            vec16 value = vec16_load(from);
            if (residual != NULL) {
                value = vec16_add(value, load_channels(residual, channel, residual_at[r]));
            }
            store_channels(y, channel, at[r], relu ? vec16_max(value, zero) : value);
        }
    }
}

static void conv_pack(float *to, const dice_view *x, int32_t channel, ptrdiff_t from, ptrdiff_t spacing,
                      int32_t count, dice_affine pre)
{
    if (pre.scale == NULL) {
        for (int32_t i = 0; i < count; i++) {
            vec16_store(to + 16 * i, load_channels(x, channel, from + i * spacing));
        }
        return;
    }
    const vec16 scale = vec16_load(pre.scale + channel), shift = vec16_load(pre.shift + channel);
    const vec16 zero = vec16_set1(0.0f);
    for (int32_t i = 0; i < count; i++) {
        const vec16 value = load_channels(x, channel, from + i * spacing);
        vec16_store(to + 16 * i, vec16_max(vec16_fma(value, scale, shift), zero));
    }
}

static void conv_pack_narrow(float *to, size_t spacing, const float *from, ptrdiff_t pitch, int32_t rows,
                             int32_t length)
{
    vec16 block = vec16_set1(0.0f);
    int32_t lane = 0;
    for (; rows > 0; rows--, from += pitch) {
        for (int32_t done = 0; done < length;) {
            const int32_t end = dice_least32(lane + length - done, 16);
            block = vec16_add(block, vec16_load_lanes(from + done - lane, lane, end));
            done += end - lane;
            lane = end;
            if (lane == 16) {
                vec16_store(to, block);
                to += spacing;
                block = vec16_set1(0.0f);
                lane = 0;
            }
        }
    }
    if (lane > 0) {
        vec16_store(to, block);
    }
}

static void round_parts(float *x, size_t count, int parts)
{
    for (size_t i = 0; i < count; i++) {
        const vec16 value = vec16_load(x + 16 * i), first = vec16_round_bf16(value);
        const vec16 second = vec16_round_bf16(vec16_sub(value, first));
        vec16_store(x + 16 * i, parts == 1 ? first : vec16_add(first, second));
    }
}

static void maxpool(const dice_view *x, const dice_view *y, int32_t kernel, int32_t stride, int32_t pad,
                    int zero_padded, int32_t y0, int32_t y1)
{
    for (int32_t channel = 0; channel < x->channels; channel += 16) {
        for (int32_t oy = y0; oy < y1; oy++) {
            for (int32_t ox = 0; ox < y->width; ox++) {
                const int32_t top = oy * stride - pad, left = ox * stride - pad;
                const int inside = top >= 0 && left >= 0 && top + kernel <= x->height
                                && left + kernel <= x->width;
                vec16 best = vec16_set1(zero_padded && !inside ? 0.0f : -INFINITY);
                for (int32_t iy = top < 0 ? 0 : top; iy < top + kernel && iy < x->height; iy++) {
                    for (int32_t ix = left < 0 ? 0 : left; ix < left + kernel && ix < x->width; ix++) {
                        best = vec16_max(best, load_channels(x, channel, iy * x->pitch + ix * 16));
                    }
                }
                store_channels(y, channel, oy * y->pitch + ox * 16, best);
            }
        }
    }
}

static void avgpool(const dice_view *x, const dice_view *y, int32_t kernel, int32_t stride, dice_affine pre,
                    int32_t y0, int32_t y1)
{
    const vec16 factor = vec16_set1(1.0f / (float)(kernel * kernel));
    for (int32_t channel = 0; channel < x->channels; channel += 16) {
        for (int32_t oy = y0; oy < y1; oy++) {
            for (int32_t ox = 0; ox < y->width; ox++) {
                vec16 sum = vec16_set1(0.0f);
                for (int32_t ky = 0; ky < kernel; ky++) {
                    const ptrdiff_t row = (oy * stride + ky) * x->pitch + ox * stride * 16;
                    for (int32_t kx = 0; kx < kernel; kx++) {
                        sum = vec16_add(sum, apply(pre, channel, load_channels(x, channel, row + kx * 16)));
                    }
                }
                store_channels(y, channel, oy * y->pitch + ox * 16, vec16_mul(sum, factor));
            }
        }
    }
}

static void global_mean(const dice_view *x, const dice_view *y, dice_affine pre, int32_t c0, int32_t c1)
{
    const vec16 factor = vec16_set1(1.0f / ((float)x->height * (float)x->width));
    for (int32_t channel = c0; channel < c1; channel += 16) {
        vec16 sum = vec16_set1(0.0f);
        /* sums of row sums lose fewer digits than one long sum */
        for (int32_t iy = 0; iy < x->height; iy++) {
            vec16 row = vec16_set1(0.0f);
            for (int32_t ix = 0; ix < x->width; ix++) {
                row = vec16_add(row, apply(pre, channel, load_channels(x, channel, iy * x->pitch + ix * 16)));
            }
            sum = vec16_add(sum, row);
        }
        store_channels(y, channel, 0, vec16_mul(sum, factor));
    }
}

/* Sums over one row of x - centre and of its square. */
INLINE void row_sums(const dice_view *x, int32_t channel, int32_t iy, vec16 centre, float *sum, float *square)
{
    vec16 first = vec16_set1(0.0f), second = first;
    for (int32_t ix = 0; ix < x->width; ix++) {
        const vec16 value = vec16_sub(load_channels(x, channel, iy * x->pitch + ix * 16), centre);
        first = vec16_add(first, value);
        second = vec16_fma(value, value, second);
    }
    vec16_store(sum, first);
    vec16_store(square, second);
}

/* mean (16) = the means of 16 channels, square (16) = their sums of (x - mean)^2. Both come from differences
 * from the mean of the first row, which is so close to the mean of the channel that no digits are lost. The
 * sums of rows are added in double. */
INLINE void block_moments(const dice_view *x, int32_t channel, double *mean, double *square)
{
    const double n = (double)x->height * x->width;
    float centre[16], row[16], row_square[16];
    double sum[16] = {0};
    row_sums(x, channel, 0, vec16_set1(0.0f), centre, row_square);
    for (int i = 0; i < 16; i++) {
        centre[i] /= (float)x->width;
        square[i] = 0;
    }
    for (int32_t iy = 0; iy < x->height; iy++) {
        row_sums(x, channel, iy, vec16_load(centre), row, row_square);
        for (int i = 0; i < 16; i++) {
            sum[i] += row[i];
            square[i] += row_square[i];
        }
    }
    for (int i = 0; i < 16; i++) {
        mean[i] = centre[i] + sum[i] / n;
        square[i] -= sum[i] * sum[i] / n;
    }
}

/* Spreads one value for each group over 16 channels, from `channel` on: each lane is the value of its
 * channel's group. Group 0 begins at channel `start`; each group has `size` channels. */
INLINE vec16 by_group(const double *values, int32_t start, int32_t channel, int32_t size)
{
    float lanes[16];
    for (int32_t i = 0; i < 16; i++) {
        const int32_t group = (channel + i - start) / size;
        lanes[i] = group < 16 ? (float)values[group] : 0.0f;
    }
    return vec16_load(lanes);
}

static void groupnorm(const dice_view *x, const dice_view *y, int32_t groups, float eps, const float *weight,
                      const float *bias, int relu, int32_t c0, int32_t c1)
{
    const int32_t size = x->channels / groups;
    const int32_t unit = dice_groupnorm_unit(size); /* at most 16 groups */
    const double n = (double)x->height * x->width;
    const vec16 zero = vec16_set1(0.0f);
    for (int32_t start = c0; start < c1; start += unit) {
        const int32_t end = dice_least32(start + unit, x->channels);
        double mean[16] = {0}, variance[16] = {0}, counted[16] = {0};
        for (int32_t channel = start; channel < end; channel += 16) {
            double channel_mean[16], square[16];
            block_moments(x, channel, channel_mean, square);
            /* merged as by Chan, Golub and LeVeque, 1983 */
            for (int32_t i = 0; i < 16 && channel + i < end; i++) {
                const int32_t group = (channel + i - start) / size;
                const double delta = channel_mean[i] - mean[group], all = counted[group] + n;
                mean[group] += delta * n / all;
                variance[group] += square[i] + delta * delta * counted[group] * n / all;
                counted[group] = all;
            }
        }
        for (int group = 0; group < 16; group++) {
            variance[group] /= n * size;
        }
        for (int32_t channel = start; channel < end; channel += 16) {
            float scale[16] = {0}, shift[16] = {0};
            for (int32_t i = 0; i < 16 && channel + i < end; i++) {
                scale[i] = (float)(weight[channel + i] / sqrt(variance[(channel + i - start) / size] + eps));
                shift[i] = bias[channel + i];
            }
            const vec16 centre = by_group(mean, start, channel, size);
            const vec16 by = vec16_load(scale), plus = vec16_load(shift);
            for (int32_t iy = 0; iy < x->height; iy++) {
                for (int32_t ix = 0; ix < x->width; ix++) {
                    vec16 value = load_channels(x, channel, iy * x->pitch + ix * 16);
                    value = vec16_fma(vec16_sub(value, centre), by, plus);
                    store_channels(y, channel, iy * y->pitch + ix * 16,
                                   relu ? vec16_max(value, zero) : value);
                }
            }
        }
    }
}

#define LAYERS(table, isa, tile_unit)                                                                        \
    const dice_cpu_kernels dice_cpu_kernels_##table = {                                                      \
        .name = #table,                                                                                      \
        .conv = &dice_conv_tiles_##isa,                                                                      \
        .winograd = &dice_winograd_kernels_##isa,                                                            \
        .linear = &dice_linear_kernels_##isa,                                                                \
        .amx = tile_unit,                                                                                    \
        .round = round_parts,                                                                                \
        .conv_store = conv_store,                                                                            \
        .conv_pack_narrow = conv_pack_narrow,                                                                \
        .conv_pack = conv_pack,                                                                              \
        .maxpool = maxpool,                                                                                  \
        .avgpool = avgpool,                                                                                  \
        .global_mean = global_mean,                                                                          \
        .groupnorm = groupnorm,                                                                              \
    }
