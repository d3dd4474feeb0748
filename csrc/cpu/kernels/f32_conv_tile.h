/* The tile multiply of the convolutions in float32, for one instruction set: the sums of R pixels x V vectors
 * of 16 outputs stay in registers from the first term to the last.
 *
 * Included by f32_conv_tile_<isa>.c, which names the table that it fills. Each sum starts at the bias and
 * adds tap by tap, channel by channel, whatever R and V are: so an output's bits do not depend on the tile
 * that computes it. */
#include "cpu/kernels.h"
#include "cpu/kernels/vec16.h"

INLINE void tile(const int rows, const int vectors, const dice_conv_sum *s, ptrdiff_t shift, const float *w,
                 const float *bias, const dice_conv_out *out)
{
    vec16 sum[16][3];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = vec16_load(bias + 16 * v);
        }
    }
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(out->y + v * out->plane + 16 * r, 1);
        }
        if (out->residual != NULL) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                __builtin_prefetch(out->residual + v * out->residual_plane + 16 * r);
            }
        }
    }
    const float *const *a = s->a;
    for (int32_t tap = 0; tap < s->taps; tap++) {
        for (int32_t b = 0; b < s->blocks; b++) {
            const float *x = *a++ + shift;
            const int32_t channels = b + 1 < s->blocks ? 16 : s->tail;
#pragma GCC unroll 4
            for (int32_t k = 0; k < channels; k++) {
                vec16 weight[3];
#pragma GCC unroll 3
                for (int v = 0; v < vectors; v++) {
                    weight[v] = vec16_load(w + 16 * v);
                }
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    const vec16 value = vec16_set1(x[16 * r + k]);
#pragma GCC unroll 3
                    for (int v = 0; v < vectors; v++) {
                        sum[r][v] = vec16_fma(value, weight[v], sum[r][v]);
                    }
                }
                w += 16 * vectors;
            }
        }
    }
    const vec16 zero = vec16_set1(0.0f);
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        float *y = out->y + v * out->plane;
        if (out->residual != NULL) {
            const float *residual = out->residual + v * out->residual_plane;
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                sum[r][v] = vec16_add(sum[r][v], vec16_load(residual + 16 * r));
            }
        }
        if (out->relu) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                sum[r][v] = vec16_max(sum[r][v], zero);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            vec16_store(y + 16 * r, sum[r][v]);
        }
    }
}

#define CONV_TILE(R, V)                                                                                      \
    static void tile_##R##x##V(const dice_conv_sum *s, ptrdiff_t shift, const float *w, const float *bias,   \
                               const dice_conv_out *out)                                                     \
    {                                                                                                        \
        tile(R, V, s, shift, w, bias, out);                                                                  \
    }
