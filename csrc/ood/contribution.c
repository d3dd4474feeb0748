/* Percentile by selection. See contribution.h.
 *
 * The first pass counts the keys' first digit (sign, exponent, four bits of the fraction); the bin of the wanted
 * rank holds a few percent of V. The next pass collects that bin, and selection goes on inside it. Where a bin
 * holds more than a sixteenth of V (many ties), further digits are counted first, so memory stays bounded. */
#include "ood/contribution.h"

#include <math.h>

#include "base/memory.h"
#include "base/threads.h"
#include "ood/order.h"

enum { BLOCK = 256, FEW = 1 << 16, FEW_SHARE = 16, STRIPE_LIMIT = 1 << 30 };

/* A pass over V in stripes of rows. Only keys that agree with `prefix` in the bits of `mask` are wanted. */
typedef struct pass {
    const dice_contribution *v;
    size_t stripes;
    uint64_t mask, prefix;
    int shift;              /* of the digit below the mask; negative where the mask is whole */
    uint32_t *histograms;   /* (stripes, DICE_ORDER_BINS) */
    size_t *place;          /* (stripes + 1): where each stripe's share of the wanted keys begins */
    int ask_above;          /* the next rank lies beyond the wanted keys */
    double *above;          /* (stripes): smallest value beyond the wanted keys, where asked for */
    uint64_t *collected;    /* the wanted keys, or NULL */
    double threshold;
    uint8_t *keep;
} pass;

/* What a pass does with n <= BLOCK values of V, the first of them number `at`. */
typedef void (*block_use)(const pass *job, size_t stripe, const double *values, size_t n, size_t at);

static dice_status walk(const pass *job, size_t stripe, block_use use)
{
    const dice_contribution *v = job->v;
    const size_t end = v->classes * (stripe + 1) / job->stripes;
    double values[BLOCK];
    for (size_t row = v->classes * stripe / job->stripes; row < end; row++) {
        for (size_t first = 0; first < v->features; first += BLOCK) {
            const size_t n = v->features - first < BLOCK ? v->features - first : BLOCK;
            const size_t at = row * v->features + first;
            for (size_t d = 0; d < n; d++) {
                values[d] = v->mean[first + d] * (double)v->weight[at + d];
            }
            for (size_t d = 0; v->absolute && d < n; d++) {
                values[d] = fabs(values[d]);
            }
            use(job, stripe, values, n, at);
        }
    }
    return DICE_OK;
}

static void count_block(const pass *job, size_t stripe, const double *values, size_t n, size_t at)
{
    (void)at;
    uint32_t *histogram = job->histograms + stripe * DICE_ORDER_BINS;
    const uint64_t mask = job->mask, prefix = job->prefix;
    const int shift = job->shift;
    for (size_t d = 0; d < n; d++) {
        const uint64_t key = dice_order_key(values[d]);
        if ((key & mask) == prefix) {
            histogram[dice_order_digit(key, shift)]++;
        }
    }
}

static dice_status count(void *context, size_t stripe, int thread)
{
    (void)thread;
    const pass *job = context;
    memset(job->histograms + stripe * DICE_ORDER_BINS, 0, DICE_ORDER_BINS * sizeof *job->histograms);
    return walk(job, stripe, count_block);
}

static void collect_block(const pass *job, size_t stripe, const double *values, size_t n, size_t at)
{
    (void)at;
    const double low = dice_order_value(job->prefix), end = dice_order_value((job->prefix | ~job->mask) + 1);
    double wanted[BLOCK];
    size_t found = 0;
    for (size_t d = 0; job->ask_above && d < n; d++) {
        if (values[d] >= end && values[d] < job->above[stripe]) {
            job->above[stripe] = values[d];
        }
    }
    for (size_t d = 0; d < n; d++) {
        wanted[found] = values[d];
        found += (values[d] >= low) & (values[d] < end);
    }
    for (size_t i = 0; job->collected != NULL && i < found; i++) {
        job->collected[job->place[stripe]++] = dice_order_key(wanted[i]);
    }
}

static dice_status collect(void *context, size_t stripe, int thread)
{
    (void)thread;
    const pass *job = context;
    job->above[stripe] = INFINITY;
    return walk(job, stripe, collect_block);
}

static void keep_block(const pass *job, size_t stripe, const double *values, size_t n, size_t at)
{
    (void)stripe;
    const double threshold = job->threshold;
    uint8_t *keep = job->keep + at;
    for (size_t d = 0; d < n; d++) {
        keep[d] = values[d] > threshold;
    }
}

static dice_status keep(void *context, size_t stripe, int thread)
{
    (void)thread;
    return walk(context, stripe, keep_block);
}

/* Counts one digit and narrows the prefix to the bin that holds *rank. */
static dice_status narrow(pass *job, size_t *rank)
{
    const dice_status status = dice_parallel_for(job->stripes, count, job);
    if (status != DICE_OK) {
        return status;
    }
    const size_t bin = dice_order_find_bin(job->histograms, job->stripes, rank);
    job->place[0] = 0;
    for (size_t i = 0; i < job->stripes; i++) {
        job->place[i + 1] = job->place[i] + job->histograms[i * DICE_ORDER_BINS + bin];
    }
    job->prefix |= (uint64_t)bin << job->shift;
    job->mask |= (uint64_t)(DICE_ORDER_BINS - 1) << job->shift;
    job->shift -= DICE_ORDER_DIGIT;
    return DICE_OK;
}

static pass pass_of(const dice_contribution *v)
{
    const size_t n = v->classes * v->features;
    size_t stripes = (size_t)dice_threads_count() + n / STRIPE_LIMIT;  /* the counters have 32 bits */
    stripes = stripes < v->classes ? stripes : v->classes;
    return (pass){.v = v, .stripes = stripes, .shift = 64 - DICE_ORDER_DIGIT};
}

/* The elements of `rank` and of rank + 1; the latter is infinite where there is none. */
static dice_status select_ranks(const dice_contribution *v, size_t rank, double *at_rank, double *at_next)
{
    const size_t n = v->classes * v->features;
    pass job = pass_of(v);
    void *histograms = NULL, *place = NULL, *above = NULL, *collected = NULL;
    dice_status status = dice_alloc(job.stripes * DICE_ORDER_BINS, sizeof *job.histograms, &histograms);
    if (status != DICE_OK || (status = dice_alloc(job.stripes + 1, sizeof *job.place, &place)) != DICE_OK
        || (status = dice_alloc(job.stripes, sizeof *job.above, &above)) != DICE_OK) {
        goto done;
    }
    job.histograms = histograms;
    job.place = place;
    job.above = above;
    do {
        status = narrow(&job, &rank);
        if (status != DICE_OK) {
            goto done;
        }
    } while (job.shift >= 0 && job.place[job.stripes] > FEW && job.place[job.stripes] > n / FEW_SHARE);
    if (!isfinite(dice_order_value(job.prefix))) {
        status = dice_fail(DICE_E_INPUT, "mean, W: their products leave the range of float64; scale the features");
        goto done;
    }

    const size_t found = job.place[job.stripes];
    if (job.shift >= 0) {  /* else the found ones are equal */
        status = dice_alloc(found, sizeof *job.collected, &collected);
        if (status != DICE_OK) {
            goto done;
        }
        job.collected = collected;
    }
    job.ask_above = rank + 1 == found;
    status = dice_parallel_for(job.stripes, collect, &job);
    if (status != DICE_OK) {
        goto done;
    }
    double beyond = INFINITY;
    for (size_t i = 0; i < job.stripes; i++) {
        beyond = fmin(beyond, job.above[i]);
    }
    uint64_t key = job.prefix, next = dice_order_key(beyond);
    if (job.collected != NULL) {
        dice_order_select(job.collected, found, rank, job.shift, next, job.histograms, &key, &next);
    } else if (rank + 1 < found) {
        next = key;
    }
    *at_rank = dice_order_value(key);
    *at_next = dice_order_value(next);
done:
    dice_free(histograms);
    dice_free(place);
    dice_free(above);
    dice_free(collected);
    return status;
}

dice_status dice_contribution_percentile(const dice_contribution *v, double p, double *threshold)
{
    if (!(p >= 0 && p <= 100)) {
        return dice_fail(DICE_E_INPUT, "p: got %g, want a percentage from 0 to 100", p);
    }
    if (v->features > STRIPE_LIMIT) {
        return dice_fail(DICE_E_INPUT, "W: got %zu features, want at most %d", v->features, STRIPE_LIMIT);
    }
    /* numpy's own steps: index (n - 1) q, then the interpolation from the nearer end */
    const double index = (double)(v->classes * v->features - 1) * (p / 100);
    const double whole = floor(index), t = index - whole;
    double a = 0, b = 0;
    const dice_status status = select_ranks(v, (size_t)whole, &a, &b);
    if (status != DICE_OK) {
        return status;
    }
    b = isinf(b) ? a : b;  /* the last one has no next */
    *threshold = t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
    return DICE_OK;
}

dice_status dice_contribution_keep(const dice_contribution *v, double threshold, uint8_t *out)
{
    pass job = pass_of(v);
    job.threshold = threshold;
    job.keep = out;
    return dice_parallel_for(job.stripes, keep, &job);
}
