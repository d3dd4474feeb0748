/* Sums of about 106 bits: a number is kept as high + low (Dekker 1971). */
#ifndef DICE_LINALG_COMPENSATED_H
#define DICE_LINALG_COMPENSATED_H

#include <math.h>

typedef struct dice_pair {
    double high, low; /* value = high + low, |low| <= ulp(high) / 2 */
} dice_pair;

/* x + y, exactly; either may be the larger one. */
static inline dice_pair dice_pair_two_sum(double x, double y)
{
    const double sum = x + y;
    const double added = sum - x;
    return (dice_pair){sum, (x - (sum - added)) + (y - added)};
}

static inline dice_pair dice_pair_add(dice_pair a, dice_pair b)
{
    const dice_pair sum = dice_pair_two_sum(a.high, b.high);
    const dice_pair low = dice_pair_two_sum(a.low, b.low);
    const dice_pair folded = dice_pair_two_sum(sum.high, sum.low + low.high);
    return dice_pair_two_sum(folded.high, folded.low + low.low);
}

static inline dice_pair dice_pair_add_double(dice_pair a, double x)
{
    const dice_pair sum = dice_pair_two_sum(a.high, x);
    return dice_pair_two_sum(sum.high, sum.low + a.low);
}

/* a * x, correct to about 106 bits. */
static inline dice_pair dice_pair_scale(dice_pair a, double x)
{
    const double product = a.high * x;
    return dice_pair_two_sum(product, fma(a.high, x, -product) + a.low * x);
}

#endif
