/* exp of eight doubles at a time, for the kernels of every instruction set. It is plain vector arithmetic
 * without fused multiply-adds, so that all sets give the same bits. Both linalg and the back ends use it. */
#ifndef DICE_BASE_EXP8_H
#define DICE_BASE_EXP8_H

#include <stdint.h>

typedef double dice_double8 __attribute__((vector_size(64)));
typedef int64_t dice_long8 __attribute__((vector_size(64)));

/* *x = exp(*x) for x <= 0, to 1e-12 relative; below -708 the result is 2^-1021. It writes x = k ln 2 + r with
 * an integer k and a small r, and multiplies 2^k by the Taylor series of exp(r). */
static inline __attribute__((always_inline)) void dice_exp8(dice_double8 *x)
{
    const dice_double8 least = (dice_double8){0} - 708.0, magic = (dice_double8){0} + 0x1.8p52;
    const dice_long8 small = *x < least;
    const dice_double8 bounded = (dice_double8)(((dice_long8)least & small) | ((dice_long8)*x & ~small));
    const dice_double8 shifted = bounded * 0x1.71547652b82fep0 + magic;
    const dice_double8 k = shifted - magic;
    const dice_double8 r = bounded - k * 0x1.62e42feep-1 - k * 0x1.a39ef35793c76p-33;
    dice_double8 y = r * (1.0 / 3628800) + 1.0 / 362880;
    y = y * r + 1.0 / 40320;
    y = y * r + 1.0 / 5040;
    y = y * r + 1.0 / 720;
    y = y * r + 1.0 / 120;
    y = y * r + 1.0 / 24;
    y = y * r + 1.0 / 6;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    *x = y * (dice_double8)(((dice_long8)shifted + 1023) << 52);
}

/* The sum of s (8), in the one order that every reduction uses. */
static inline __attribute__((always_inline)) double dice_sum8(const double *s)
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

#endif
