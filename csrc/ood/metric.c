/* One sweep of the threshold over both sorted sets. See metric.h. */
#include "ood/metric.h"

#include <math.h>
#include <stdint.h>

#include "base/memory.h"
#include "ood/compensated.h"
#include "ood/order.h"

/* The trapezoid below a curve given point by point, recall rising or falling. */
typedef struct area {
    double recall, precision;
    dice_pair sum;
} area;

static void area_to(area *a, double recall, double precision)
{
    a->sum = dice_pair_add_double(a->sum, fabs(recall - a->recall) * (precision + a->precision) / 2);
    a->recall = recall;
    a->precision = precision;
}

/* *keys = the scores' keys, ascending; (n) with as much scratch behind. */
static dice_status sorted_keys(const double *scores, size_t n, const char *name, void **keys)
{
    *keys = NULL;
    if (n == 0) {
        return dice_fail(DICE_E_INPUT, "%s: got no scores, want at least one", name);
    }
    for (size_t i = 0; i < n; i++) {
        if (isnan(scores[i])) {
            return dice_fail(DICE_E_INPUT, "%s: score %zu is NaN", name, i);
        }
    }
    const dice_status status = dice_alloc(n, 2 * sizeof(uint64_t), keys);
    if (status == DICE_OK) {
        uint64_t *out = *keys;
        for (size_t i = 0; i < n; i++) {
            out[i] = dice_order_key(scores[i]);
        }
        dice_order_sort(out, out + n, n);
    }
    return status;
}

/* The threshold climbs from below all scores to above them; i and o scores lie under it. */
static void sweep(const uint64_t *id, size_t n_id, const uint64_t *ood, size_t n_ood, dice_metric *out)
{
    const double ids = (double)n_id, oods = (double)n_ood, all = ids + oods;
    area roc = {1, 1, {0, 0}};  /* TPR (as precision) over FPR (as recall) */
    area in = {1, 0.5, {0, 0}}, outside = {0, 0, {0, 0}};
    double best = INFINITY;
    size_t i = 0, o = 0;
    for (;;) {
        const double below_id = (double)i, below_ood = (double)o;
        const double above_id = ids - below_id, above_ood = oods - below_ood;
        area_to(&roc, above_ood / oods, above_id / ids);
        if (i + o < n_id + n_ood) {
            area_to(&in, above_id / ids, above_id / (above_id + above_ood));
        }
        if (i + o > 0) {
            area_to(&outside, below_ood / oods, below_ood / (below_id + below_ood));
        }
        best = fmin(best, (below_id + above_ood) / all);
        if (i + o == n_id + n_ood) {
            break;
        }
        const uint64_t key = i == n_id || (o < n_ood && ood[o] < id[i]) ? ood[o] : id[i];
        for (; i < n_id && id[i] == key; i++) {
        }
        for (; o < n_ood && ood[o] == key; o++) {
        }
    }
    area_to(&in, 0, 0);
    area_to(&outside, 1, 0.5);
    out->auroc = roc.sum.high;
    out->auin = in.sum.high;
    out->auout = outside.sum.high;
    out->dterr = best;
}

dice_status dice_metric_paper(const double *id, size_t n_id, const double *ood, size_t n_ood, double miss,
                              dice_metric *out)
{
    void *id_keys = NULL, *ood_keys = NULL;
    dice_status status = sorted_keys(id, n_id, "scores_id", &id_keys);
    if (status != DICE_OK || (status = sorted_keys(ood, n_ood, "scores_ood", &ood_keys)) != DICE_OK) {
        goto done;
    }
    const uint64_t *ids = id_keys, *oods = ood_keys;
    const size_t rank = (size_t)nearbyint(miss * (double)n_id);  /* half to even, as Python's round */
    const uint64_t threshold = ids[rank < n_id ? rank : n_id - 1];
    size_t over = 0;
    while (over < n_ood && oods[n_ood - 1 - over] > threshold) {
        over++;
    }
    out->fpr = (double)over / (double)n_ood;
    sweep(ids, n_id, oods, n_ood, out);
done:
    dice_free(id_keys);
    dice_free(ood_keys);
    return status;
}
