/* bfloat16: the upper half of a float32. A float32 is a sum of up to three of them. */
#ifndef DICE_BASE_BF16_H
#define DICE_BASE_BF16_H

#include <stdint.h>
#include <string.h>

/* x rounded to the nearest bfloat16, ties to even; a finite x stays finite. */
static inline float dice_bf16_round(float x)
{
    uint32_t bits, up;
    memcpy(&bits, &x, sizeof bits);
    up = bits + 0x7fffu + ((bits >> 16) & 1u);
    if ((up & 0x7f800000u) == 0x7f800000u) {
        up = bits;
    }
    up &= 0xffff0000u;
    memcpy(&x, &up, sizeof x);
    return x;
}

/* The sum of the first `parts` bfloat16 parts of x. Three parts are x itself, except for denormals. */
static inline float dice_bf16_sum(float x, int parts)
{
    float sum = 0, rest = x;
    for (int i = 0; i < parts; i++) {
        const float part = dice_bf16_round(rest);
        sum += part;
        rest -= part;
    }
    return parts >= 3 ? x : sum;
}

#endif
