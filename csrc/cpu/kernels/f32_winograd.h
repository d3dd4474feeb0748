/* The transforms of Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, CVPR 2016), for one instruction set.
 * Included by f32_winograd_<isa>.c. */
#include "cpu/kernels.h"
#include "cpu/kernels/vec16.h"

/* In place: x = B^T x over four values, B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]. */
INLINE void transform4(vec16 *a, vec16 *b, vec16 *c, vec16 *d)
{
    const vec16 t0 = vec16_sub(*a, *c), t1 = vec16_add(*b, *c), t2 = vec16_sub(*c, *b),
                t3 = vec16_sub(*b, *d);
    *a = t0;
    *b = t1;
    *c = t2;
    *d = t3;
}

static void winograd_input(const float *const *at, ptrdiff_t shift, const float *zeros, float *v,
                           size_t spacing)
{
    vec16 d[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        d[i] = vec16_load(at[i] == zeros ? zeros : at[i] + shift);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        transform4(&d[i], &d[4 + i], &d[8 + i], &d[12 + i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        transform4(&d[4 * i], &d[4 * i + 1], &d[4 * i + 2], &d[4 * i + 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        vec16_store(v + (size_t)i * spacing, d[i]);
    }
}

INLINE void finish(vec16 value, const dice_conv_out *out, int row, int column)
{
    if (out->residual != NULL) {
        value = vec16_add(value, vec16_load(out->residual + row * out->residual_plane + column * 16));
    }
    vec16_store(out->y + row * out->plane + column * 16,
                out->relu ? vec16_max(value, vec16_set1(0.0f)) : value);
}

/* A^T m A, with A^T = [1 1 1 0; 0 1 -1 -1]. */
static void winograd_output(const float *m, size_t spacing, const dice_conv_out *out)
{
    vec16 top[4], bottom[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        const vec16 a = vec16_load(m + i * spacing), b = vec16_load(m + (4 + i) * spacing);
        const vec16 d = vec16_load(m + (8 + i) * spacing), e = vec16_load(m + (12 + i) * spacing);
        top[i] = vec16_add(vec16_add(a, b), d);
        bottom[i] = vec16_sub(vec16_sub(b, d), e);
    }
    finish(vec16_add(vec16_add(top[0], top[1]), top[2]), out, 0, 0);
    finish(vec16_sub(vec16_sub(top[1], top[2]), top[3]), out, 0, 1);
    finish(vec16_add(vec16_add(bottom[0], bottom[1]), bottom[2]), out, 1, 0);
    finish(vec16_sub(vec16_sub(bottom[1], bottom[2]), bottom[3]), out, 1, 1);
}

#define WINOGRAD(isa)                                                                                        \
    const dice_winograd_kernels dice_winograd_kernels_##isa = {.input = winograd_input,                      \
                                                               .output = winograd_output}
