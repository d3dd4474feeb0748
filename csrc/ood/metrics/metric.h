/* Metrics of how well scores tell ID from OOD images, by a named convention. Higher scores are more ID. */
#ifndef DICE_OOD_METRICS_METRIC_H
#define DICE_OOD_METRICS_METRIC_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A convention says which set is positive, at which threshold `fpr` is taken, and how precision is integrated
 * over recall.
 * - PAPER, the original DICE code: ID is positive; fpr = share of OOD > sorted(ID)[round_half_even(miss *
 * N_id)]; trapezoids from precision 0 at recall 0 to precision 0.5 at recall 1.
 * - OPENOOD, OpenOOD v1.5: OOD is positive; fpr = share of ID <= t, where t is the lowest corner of the ROC
 * with at least the share `tpr` of OOD <= t; trapezoids from precision 1 at recall 0.
 * - SKLEARN, scikit-learn: ID is positive; fpr = share of OOD >= t, where t is the highest corner of the ROC
 * with at least the share `tpr` of ID >= t; average precision.
 *
 * A corner is a threshold that scikit-learn's roc_curve keeps. It drops a score if the next higher score
 * occurs as often in ID and as often in OOD, but never the lowest and the highest one. */
typedef enum dice_metric_convention {
    DICE_METRIC_PAPER,
    DICE_METRIC_OPENOOD,
    DICE_METRIC_SKLEARN,
} dice_metric_convention;

typedef struct dice_metric_rule {
    dice_metric_convention convention;
    double tpr;  /* (0, 1] */
    double miss; /* 1 - tpr, computed from the decimal digits that the user gave, then rounded once */
} dice_metric_rule;

typedef struct dice_metric {
    double fpr;
    double auroc; /* area of the exact ROC, tied scores merged */
    double auin;  /* area under precision over recall, ID positive */
    double auout; /* the same, OOD positive */
    double dterr; /* minimum over thresholds of (FN + FP) / (N_id + N_ood) */
    /* Area under (FPR + FNR) / 2 over the thresholds, with scores scaled to [0, 1]. 0.5 where all scores are
     * equal, NaN where one is infinite. */
    double autc;
} dice_metric;

enum { DICE_METRIC_COUNT = sizeof(dice_metric) / sizeof(double) };

/* *out = the metrics of id (n_id) and ood (n_ood), in any order. Infinite scores are allowed; DICE_E_INPUT
 * for NaN or an empty set. O(N). */
dice_status dice_metric_measure(const double *id, size_t n_id, const double *ood, size_t n_ood,
                                const dice_metric_rule *rule, dice_metric *out);

/* out (replicates) = the metrics of bootstrap samples, each of n_id ID and n_ood OOD scores drawn with
 * replacement. Draw j (ID first, then OOD) of replicate r takes the score of index floor(u n), where u in [0,
 * 1) is the top 53 bits of output j of SplitMix64 (Steele, Lea & Flood, 2014) from the state mix(mix(seed) +
 * r). So the samples are the same for every number of threads. A set may have at most 2^31 - 1 scores. */
dice_status dice_metric_bootstrap(const double *id, size_t n_id, const double *ood, size_t n_ood,
                                  const dice_metric_rule *rule, size_t replicates, uint64_t seed,
                                  dice_metric *out);

#endif
