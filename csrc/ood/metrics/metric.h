/* How well scores tell ID from OOD, by named convention; higher is more ID. */
#ifndef DICE_OOD_METRICS_METRIC_H
#define DICE_OOD_METRICS_METRIC_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Who is positive, how the rate of `fpr` is met and how precision is integrated over recall.
 * PAPER    the original DICE code, ID positive: fpr = share of OOD > sorted(ID)[round_half_even(miss *
 * N_id)]; trapezoids from precision 0 at recall 0 to 0.5 at recall 1. OPENOOD  OpenOOD v1.5, OOD positive:
 * fpr = share of ID <= t for the lowest corner t of the ROC at or below which at least `tpr` of OOD lies;
 * trapezoids from precision 1 at recall 0. SKLEARN  scikit-learn, ID positive: fpr = share of OOD >= t for
 * the highest corner t of the ROC at or above which at least `tpr` of ID lies; average precision. A corner is
 * a point that roc_curve keeps: where the next score level holds as many ID and as many OOD scores as this
 * one, this one is dropped, save the first and the last. */
typedef enum dice_metric_convention {
    DICE_METRIC_PAPER,
    DICE_METRIC_OPENOOD,
    DICE_METRIC_SKLEARN,
} dice_metric_convention;

typedef struct dice_metric_rule {
    dice_metric_convention convention;
    double tpr;  /* (0, 1] */
    double miss; /* 1 - tpr, rounded once from the decimal number */
} dice_metric_rule;

typedef struct dice_metric {
    double fpr;
    double auroc; /* area of the exact ROC, tied scores merged */
    double auin;  /* area under precision over recall, ID positive */
    double auout; /* the same, OOD positive */
    double dterr; /* min over thresholds of (FN + FP) / (N_id + N_ood) */
    double autc;  /* area under (FPR + FNR) / 2 over the thresholds, scores scaled to [0, 1]; all equal: 0.5;
                   * NaN where a score is infinite */
} dice_metric;

enum { DICE_METRIC_COUNT = sizeof(dice_metric) / sizeof(double) };

/* Any order; infinities are scores like others (but for autc), NaN and empty sets are refused. O(N log N). */
dice_status dice_metric_measure(const double *id, size_t n_id, const double *ood, size_t n_ood,
                                const dice_metric_rule *rule, dice_metric *out);

/* The metrics of `replicates` bootstrap samples, out (replicates): each draws n_id of the ID and n_ood of the
 * OOD scores with replacement. Draw j (ID first, then OOD) of replicate r is score floor(u n), u the top 53
 * bits of output j of SplitMix64 (Steele, Lea & Flood, 2014) from the state mix(mix(seed) + r): the same for
 * every thread count. At most 2^32 - 1 scores a set. */
dice_status dice_metric_bootstrap(const double *id, size_t n_id, const double *ood, size_t n_ood,
                                  const dice_metric_rule *rule, size_t replicates, uint64_t seed,
                                  dice_metric *out);

#endif
