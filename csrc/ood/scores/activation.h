/* Rules that change the features of an image before the last layer, each image by itself. */
#ifndef DICE_OOD_SCORES_ACTIVATION_H
#define DICE_OOD_SCORES_ACTIVATION_H

#include <stddef.h>

#include "base/status.h"

typedef enum dice_activation {
    DICE_ASH_P, /* the k largest stay, the others become 0 (Djurisic et al., ICLR 2023) */
    DICE_ASH_B, /* the k largest become s1 / k, the others 0 */
    DICE_ASH_S, /* the k largest are multiplied by exp(s1 / s2), the others become 0 */
    DICE_SCALE  /* all are multiplied by exp(s1 / s2) (Xu et al., ICLR 2024) */
} dice_activation;

/* out (n, D) = h (n, D) changed by `rule`. k = D - round(D percentile / 100), but at least 1; of equal
 * features the earlier ones are kept. s1 is the sum of all D features, s2 that of the k largest; where s2 is
 * 0 nothing is multiplied. DICE_E_INPUT where a product is not finite in float. */
dice_status dice_activation_run(dice_activation rule, const float *h, size_t n, size_t features,
                                double percentile, float *out);

/* out (n, D) = h (n, D) with each feature d cut at its own ends: above high[d] it becomes high[d], below
 * low[d] it becomes below[d] (VRA: Xu et al., NeurIPS 2023). low, high, below: (D). */
dice_status dice_activation_cut(const float *h, size_t n, size_t features, const float *low,
                                const float *high, const float *below, float *out);

#endif
