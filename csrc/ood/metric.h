/* How well scores tell ID from OOD, in the convention of the DICE paper: ID is positive, higher is more ID. */
#ifndef DICE_OOD_METRIC_H
#define DICE_OOD_METRIC_H

#include <stddef.h>

#include "base/status.h"

typedef struct dice_metric {
    double fpr;    /* share of OOD scores > t, t = sorted(ID)[round_half_even(miss * N_id)] */
    double auroc;  /* area of the exact ROC, tied scores merged */
    double auin;   /* trapezoid of precision against recall, ID positive; ends (1, 0.5) and (0, 0) */
    double auout;  /* the same, OOD positive */
    double dterr;  /* min over thresholds of (FN + FP) / (N_id + N_ood) */
} dice_metric;

/* Any order; infinities are scores like others, NaN and empty sets are refused. `miss` in [0, 1) is the share of
 * ID below the threshold of `fpr`: 0.05 for FPR95. O(N log N). */
dice_status dice_metric_paper(const double *id, size_t n_id, const double *ood, size_t n_ood, double miss,
                              dice_metric *out);

#endif
