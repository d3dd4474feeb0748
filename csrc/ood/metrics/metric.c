/* All metrics come from one sweep of the threshold over both sorted sets, or over a bootstrap sample of them.
 * See metric.h. */
#include "ood/metrics/metric.h"

#include <math.h>

#include "base/memory.h"
#include "base/threads.h"
#include "linalg/compensated.h"
#include "linalg/order.h"

/* The area under a curve that is given point by point, with recall rising or falling. It is a sum of
 * trapezoids or, where `steps`, of rectangles as high as the precision at the higher recall. */
typedef struct area {
    double recall, precision;
    int steps;
    dice_pair sum;
} area;

static void area_to(area *a, double recall, double precision)
{
    const double height = !a->steps          ? (precision + a->precision) / 2
                        : recall > a->recall ? precision
                                             : a->precision;
    a->sum = dice_pair_add_double(a->sum, fabs(recall - a->recall) * height);
    a->recall = recall;
    a->precision = precision;
}

/* The threshold rises from below all scores to above them, one level at a time. A level is a value that
 * occurs as a score. */
typedef struct sweep {
    dice_metric_convention convention;
    double tpr, ids, oods;
    double below_id, below_ood; /* how many scores are below the threshold */
    double level_id, level_ood; /* how many scores the last level has */
    double rank;                /* PAPER: the threshold's rank among the ID scores */
    double end;                 /* precision at recall 0 */
    double fpr, best;
    int found;             /* OPENOOD: fpr is known */
    area roc, in, outside; /* roc: TPR (as precision) over FPR (as recall) */
    double first, last;    /* places of the lowest and the highest level */
    dice_pair id_places, ood_places;
} sweep;

static sweep sweep_start(const dice_metric_rule *rule, size_t n_id, size_t n_ood)
{
    const int steps = rule->convention == DICE_METRIC_SKLEARN;
    const double end = rule->convention == DICE_METRIC_PAPER ? 0 : 1, ids = (double)n_id;
    return (sweep){
        .convention = rule->convention,
        .tpr = rule->tpr,
        .ids = ids,
        .oods = (double)n_ood,
        .rank = fmin(nearbyint(rule->miss * ids), ids - 1), /* half to even, as Python's round */
        .end = end,
        .best = INFINITY,
        .roc = {.recall = 1, .precision = 1},
        .in = {.recall = 1, .precision = 0.5, .steps = steps},
        .outside = {.precision = end, .steps = steps},
    };
}

/* Sets s->fpr if it is taken at the next level, of `id` and `ood` scores (PAPER, SKLEARN), or at the level
 * before it (OPENOOD). The counts in s do not include the next level yet. */
static void sweep_corner(sweep *s, double id, double ood)
{
    const int first = s->below_id + s->below_ood == 0;
    const int corner = id != s->level_id || ood != s->level_ood;
    switch (s->convention) {
    case DICE_METRIC_PAPER:
        if (s->below_id <= s->rank && s->below_id + id > s->rank) {
            s->fpr = (s->oods - s->below_ood - ood) / s->oods;
        }
        break;
    case DICE_METRIC_SKLEARN:
        if ((first || corner || s->below_id + id + s->below_ood + ood == s->ids + s->oods)
            && (s->ids - s->below_id) / s->ids >= s->tpr) {
            s->fpr = (s->oods - s->below_ood) / s->oods;
        }
        break;
    case DICE_METRIC_OPENOOD:
        if (!s->found && !first && s->below_ood / s->oods >= s->tpr
            && (corner || s->below_id + s->below_ood == s->level_id + s->level_ood)) {
            s->fpr = s->below_id / s->ids;
            s->found = 1;
        }
        break;
    }
}

/* Raises the threshold above the next level, which has `id` and `ood` scores. Its place is 0 for the lowest
 * score and 1 for the highest, linear in between. */
static void sweep_level(sweep *s, double id, double ood, double place)
{
    sweep_corner(s, id, ood);
    if (s->below_id + s->below_ood == 0) {
        s->first = place;
    }
    s->last = place;
    s->id_places = dice_pair_add_double(s->id_places, id * place);
    s->ood_places = dice_pair_add_double(s->ood_places, ood * place);
    const double above_id = s->ids - s->below_id, above_ood = s->oods - s->below_ood;
    area_to(&s->in, above_id / s->ids, above_id / (above_id + above_ood));
    s->best = fmin(s->best, s->below_id + above_ood);
    s->below_id += id;
    s->below_ood += ood;
    s->level_id = id;
    s->level_ood = ood;
    area_to(&s->roc, (s->oods - s->below_ood) / s->oods, (s->ids - s->below_id) / s->ids);
    area_to(&s->outside, s->below_ood / s->oods, s->below_ood / (s->below_id + s->below_ood));
}

static dice_metric sweep_end(sweep *s)
{
    if (s->convention == DICE_METRIC_OPENOOD) {
        sweep_corner(s, 0, 0);
    }
    area_to(&s->in, 0, s->end);
    const double width = s->last - s->first;
    const double id = s->id_places.high / s->ids, ood = s->ood_places.high / s->oods;
    return (dice_metric){
        .fpr = s->fpr,
        .auroc = s->roc.sum.high,
        .auin = s->in.sum.high,
        .auout = s->outside.sum.high,
        .dterr = fmin(s->best, s->below_id) / (s->ids + s->oods),
        /* the mean FPR over the thresholds is the mean place of the OOD scores, the mean FNR is 1 minus that
           of ID */
        .autc = width == 0 ? 0.5 : 0.5 - (id - ood) / width / 2,
    };
}

/* The keys of both sets, ascending, and the range of all scores. */
typedef struct sorted {
    uint64_t *id, *ood;
    size_t n_id, n_ood;
    /* Half the lowest score and half the range, which does not overflow; NaN where a score is infinite. */
    double low, width;
} sorted;

static double place_of(const sorted *s, uint64_t key)
{
    return s->width == 0 ? 0 : (dice_order_value(key) / 2 - s->low) / s->width;
}

/* *keys (n) = the keys of the scores, ascending, followed by n more that were working memory. */
static dice_status sorted_keys(const double *scores, size_t n, const char *name, uint64_t **keys)
{
    if (n == 0) {
        return dice_fail(DICE_E_INPUT, "%s: got no scores, want at least one", name);
    }
    for (size_t i = 0; i < n; i++) {
        if (isnan(scores[i])) {
            return dice_fail(DICE_E_INPUT, "%s: score %zu is NaN", name, i);
        }
    }
    void *memory = NULL;
    const dice_status status = dice_alloc(n, 2 * sizeof(uint64_t), &memory);
    if (status == DICE_OK) {
        *keys = memory;
        for (size_t i = 0; i < n; i++) {
            (*keys)[i] = dice_order_key(scores[i]);
        }
        dice_order_sort(*keys, *keys + n, n);
    }
    return status;
}

static dice_status sorted_init(sorted *s, const double *id, size_t n_id, const double *ood, size_t n_ood)
{
    *s = (sorted){.n_id = n_id, .n_ood = n_ood};
    dice_status status = sorted_keys(id, n_id, "scores_id", &s->id);
    if (status == DICE_OK) {
        status = sorted_keys(ood, n_ood, "scores_ood", &s->ood);
    }
    if (status == DICE_OK) {
        const double low = fmin(dice_order_value(s->id[0]), dice_order_value(s->ood[0]));
        const double high = fmax(dice_order_value(s->id[n_id - 1]), dice_order_value(s->ood[n_ood - 1]));
        s->low = low / 2;
        s->width = isinf(low) || isinf(high) ? NAN : high / 2 - low / 2;
    }
    return status;
}

static void sorted_free(sorted *s)
{
    dice_free(s->id);
    dice_free(s->ood);
}

/* The key of the level above the first *i ID and *o OOD scores, both of which move past the level. */
static uint64_t sorted_next(const sorted *s, size_t *i, size_t *o)
{
    const uint64_t key = *i == s->n_id || (*o < s->n_ood && s->ood[*o] < s->id[*i]) ? s->ood[*o] : s->id[*i];
    for (; *i < s->n_id && s->id[*i] == key; ++*i) {
    }
    for (; *o < s->n_ood && s->ood[*o] == key; ++*o) {
    }
    return key;
}

dice_status dice_metric_measure(const double *id, size_t n_id, const double *ood, size_t n_ood,
                                const dice_metric_rule *rule, dice_metric *out)
{
    sorted both;
    const dice_status status = sorted_init(&both, id, n_id, ood, n_ood);
    if (status == DICE_OK) {
        sweep s = sweep_start(rule, n_id, n_ood);
        for (size_t i = 0, o = 0; i + o < n_id + n_ood;) {
            const size_t i0 = i, o0 = o;
            const uint64_t key = sorted_next(&both, &i, &o);
            sweep_level(&s, (double)(i - i0), (double)(o - o0), place_of(&both, key));
        }
        *out = sweep_end(&s);
    }
    sorted_free(&both);
    return status;
}

/* What all replicates share. */
typedef struct bootstrap {
    const dice_metric_rule *rule;
    uint64_t seed;
    size_t n_id, n_ood, levels;
    const uint32_t *level_of; /* (n_id + n_ood): the level of each score */
    const double *places;     /* (levels) */
    uint32_t *counts;         /* (threads, levels, 2): how many ID and OOD scores were drawn */
    dice_metric *out;
} bootstrap;

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static dice_status replicate(void *context, size_t index, int thread)
{
    const bootstrap *b = context;
    uint32_t *counts = b->counts + 2 * b->levels * (size_t)thread;
    memset(counts, 0, 2 * b->levels * sizeof *counts);
    uint64_t state = mix(mix(b->seed) + index);
    for (int set = 0; set < 2; set++) {
        const uint32_t *level_of = b->level_of + (set ? b->n_id : 0);
        const size_t n = set ? b->n_ood : b->n_id;
        for (size_t i = 0; i < n; i++) {
            state += 0x9e3779b97f4a7c15u;
            const size_t drawn = (size_t)((double)(mix(state) >> 11) * 0x1p-53 * (double)n);
            counts[2 * (size_t)level_of[drawn] + (size_t)set]++;
        }
    }
    sweep s = sweep_start(b->rule, b->n_id, b->n_ood);
    for (size_t level = 0; level < b->levels; level++) {
        const uint32_t *drawn = counts + 2 * level;
        if (drawn[0] + drawn[1] > 0) {
            sweep_level(&s, drawn[0], drawn[1], b->places[level]);
        }
    }
    b->out[index] = sweep_end(&s);
    return DICE_OK;
}

dice_status dice_metric_bootstrap(const double *id, size_t n_id, const double *ood, size_t n_ood,
                                  const dice_metric_rule *rule, size_t replicates, uint64_t seed,
                                  dice_metric *out)
{
    if (n_id > UINT32_MAX / 2 || n_ood > UINT32_MAX / 2) {
        return dice_fail(DICE_E_INPUT, "scores: the bootstrap takes at most %u a set", UINT32_MAX / 2);
    }
    void *level_of = NULL, *places = NULL, *counts = NULL;
    sorted both;
    dice_status status = sorted_init(&both, id, n_id, ood, n_ood);
    if (status != DICE_OK || (status = dice_alloc(n_id + n_ood, sizeof(uint32_t), &level_of)) != DICE_OK
        || (status = dice_alloc(n_id + n_ood, sizeof(double), &places)) != DICE_OK) {
        goto done;
    }
    size_t levels = 0;
    uint32_t *of_id = level_of, *of_ood = of_id + n_id;
    for (size_t i = 0, o = 0, i0 = 0, o0 = 0; i + o < n_id + n_ood; levels++) {
        ((double *)places)[levels] = place_of(&both, sorted_next(&both, &i, &o));
        for (; i0 < i; i0++) {
            of_id[i0] = (uint32_t)levels;
        }
        for (; o0 < o; o0++) {
            of_ood[o0] = (uint32_t)levels;
        }
    }
    status = dice_alloc((size_t)dice_threads_count() * levels, 2 * sizeof(uint32_t), &counts);
    if (status == DICE_OK) {
        bootstrap b = {rule, seed, n_id, n_ood, levels, level_of, places, counts, out};
        status = dice_parallel_for(replicates, replicate, &b);
    }
done:
    sorted_free(&both);
    dice_free(level_of);
    dice_free(places);
    dice_free(counts);
    return status;
}
