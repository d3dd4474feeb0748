/* The percentile, found by selection, and the mask. See contribution.h.
 *
 * A sample of V tells between which two values the wanted rank nearly always lies (Floyd & Rivest 1975). One
 * pass over V collects the values between them and counts those below; the wanted one is then selected among
 * the few collected.
 *
 * Where the sample does not help (a small V, many ties, bad luck), a pass counts the first digit of the keys
 * (sign, exponent, four bits of the fraction), and the next pass collects the bin that holds the wanted rank.
 * Where that bin has more than a sixteenth of V, further digits are counted first, so that memory stays
 * bounded. */
#include "ood/fit/contribution.h"

#include <math.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"
#include "linalg/rows.h"
#include "linalg/order.h"

enum { BLOCK = 256, FEW = 1 << 16, FEW_SHARE = 16, STRIPE_LIMIT = 1 << 30, SAMPLE = 8192 };

/* What a pass finds in one stripe. */
typedef struct share {
    size_t first, room; /* where in `collected` this stripe may write, and how much */
    size_t found;       /* number of wanted values, also of those that have no room */
    size_t below;       /* number of values below the wanted ones */
    double above;       /* smallest value above the wanted ones, if `ask_above` */
} share;

/* A pass over V in stripes of rows. */
typedef struct pass {
    const dice_row_kernels *kernels;
    const dice_contribution *v;
    size_t stripes;
    uint64_t mask, prefix; /* a pass counts the keys that agree with `prefix` in the bits of `mask` */
    int shift;             /* of the digit below the mask; negative where the mask has all bits */
    uint32_t *histograms;  /* (stripes, DICE_ORDER_BINS) */
    double low, end;       /* the wanted values are those in [low, end) */
    share *shares;         /* (stripes) */
    int ask_above;         /* whether the next rank lies above the wanted values */
    uint64_t *collected;   /* the keys of the wanted values, or NULL */
    double threshold;
    uint8_t *keep;
} pass;

/* What a pass does with n <= BLOCK neighbouring values of V, from index `at` on. */
typedef void (*block_use)(const pass *job, size_t stripe, const double *values, size_t n, size_t at);

static dice_status walk(const pass *job, size_t stripe, block_use use)
{
    const dice_contribution *v = job->v;
    const size_t end = v->classes * (stripe + 1) / job->stripes;
    double values[BLOCK];
    for (size_t row = v->classes * stripe / job->stripes; row < end; row++) {
        for (size_t first = 0; first < v->features; first += BLOCK) {
            const size_t n = dice_least(v->features - first, BLOCK);
            const size_t at = row * v->features + first;
            job->kernels->scaled(v->mean + first, v->weight + at, n, v->absolute, values);
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
    share *mine = job->shares + stripe;
    double inside[BLOCK];
    size_t below;
    const size_t found = job->kernels->between(values, n, job->low, job->end, inside, &below);
    for (size_t d = 0; job->ask_above && d < n; d++) {
        if (values[d] >= job->end && values[d] < mine->above) {
            mine->above = values[d];
        }
    }
    for (size_t i = 0; i < found && mine->found + i < mine->room; i++) {
        job->collected[mine->first + mine->found + i] = dice_order_key(inside[i]);
    }
    mine->found += found;
    mine->below += below;
}

static dice_status collect(void *context, size_t stripe, int thread)
{
    (void)thread;
    const pass *job = context;
    share *mine = job->shares + stripe;
    *mine = (share){.first = mine->first, .room = mine->room, .above = INFINITY};
    return walk(job, stripe, collect_block);
}

static void keep_block(const pass *job, size_t stripe, const double *values, size_t n, size_t at)
{
    (void)stripe;
    job->kernels->over(values, n, job->threshold, job->keep + at);
}

static dice_status keep(void *context, size_t stripe, int thread)
{
    (void)thread;
    return walk(context, stripe, keep_block);
}

static dice_status start_pass(const dice_contribution *v, pass *job)
{
    dice_isa isa;
    const dice_status status = dice_isa_select(NULL, &isa);
    if (status != DICE_OK) {
        return status;
    }
    const size_t n = v->classes * v->features;
    size_t stripes = (size_t)dice_threads_count() + n / STRIPE_LIMIT; /* the counters have 32 bits */
    stripes = dice_least(stripes, v->classes);
    *job = (pass){
        .kernels = dice_row_kernels_for(isa), .v = v, .stripes = stripes, .shift = 64 - DICE_ORDER_DIGIT};
    return DICE_OK;
}

/* Sets job->low and end such that the values of rank `rank` and rank + 1 nearly always lie between them; keys
 * (2 SAMPLE) is working memory. */
static void guess(pass *job, size_t rank, uint64_t *keys)
{
    const dice_contribution *v = job->v;
    const size_t n = v->classes * v->features;
    for (size_t i = 0; i < SAMPLE; i++) { /* multiples of the golden ratio spread evenly */
        const double place = (double)((i * 0x9e3779b97f4a7c15u) >> 11) * 0x1p-53;
        const size_t at = (size_t)(place * (double)n);
        double value;
        job->kernels->scaled(v->mean + at % v->features, v->weight + at, 1, v->absolute, &value);
        keys[i] = dice_order_key(value);
    }
    dice_order_sort(keys, keys + SAMPLE, SAMPLE);
    const double q = (double)rank / (double)n, deviation = sqrt(SAMPLE * q * (1 - q));
    const double first = floor(SAMPLE * q - 3.5 * deviation - 2),
                 last = ceil(SAMPLE * q + 3.5 * deviation + 2);
    job->low = first < 0 ? -INFINITY : dice_order_value(keys[(size_t)first]);
    job->end = last >= SAMPLE ? INFINITY : dice_order_value(keys[(size_t)last]);
}

/* Moves the values that the stripes collected to the front of `collected`. Returns their number, or 0 if a
 * stripe had too little room. */
static size_t gather(const pass *job)
{
    size_t found = 0;
    for (size_t i = 0; i < job->stripes; i++) {
        const share *from = job->shares + i;
        if (from->found > from->room) {
            return 0;
        }
        memmove(job->collected + found, job->collected + from->first, from->found * sizeof *job->collected);
        found += from->found;
    }
    return found;
}

/* *at_rank, *at_next = the elements of rank `rank` and rank + 1, by a sample; *found = 0 if that failed. */
static dice_status select_by_sample(pass *job, size_t rank, double *at_rank, double *at_next, int *found)
{
    const size_t n = job->v->classes * job->v->features, room = n / FEW_SHARE / job->stripes;
    void *collected = NULL;
    *found = 0;
    if (room * job->stripes < 2 * SAMPLE) {
        return DICE_OK;
    }
    dice_status status = dice_alloc(room * job->stripes, sizeof *job->collected, &collected);
    if (status != DICE_OK) {
        return status;
    }
    job->collected = collected;
    guess(job, rank, job->collected);
    for (size_t i = 0; i < job->stripes; i++) {
        job->shares[i] = (share){.first = i * room, .room = room};
    }
    status = job->low < job->end ? dice_parallel_for(job->stripes, collect, job) : DICE_OK;
    size_t below = 0;
    for (size_t i = 0; i < job->stripes; i++) {
        below += job->shares[i].below;
    }
    const size_t held = status == DICE_OK ? gather(job) : 0;
    if (below <= rank && rank < below + held && (rank + 1 < below + held || below + held == n)) {
        uint64_t key, next;
        dice_order_select(job->collected, held, rank - below, 64 - DICE_ORDER_DIGIT, dice_order_key(INFINITY),
                          job->histograms, &key, &next);
        *at_rank = dice_order_value(key);
        *at_next = dice_order_value(next);
        *found = 1;
    }
    job->collected = NULL;
    dice_free(collected);
    return status;
}

/* Counts one digit and extends the prefix by the bin that holds *rank. */
static dice_status narrow(pass *job, size_t *rank, size_t *found)
{
    const dice_status status = dice_parallel_for(job->stripes, count, job);
    if (status != DICE_OK) {
        return status;
    }
    const size_t bin = dice_order_find_bin(job->histograms, job->stripes, rank);
    *found = 0;
    for (size_t i = 0; i < job->stripes; i++) {
        const size_t room = job->histograms[i * DICE_ORDER_BINS + bin];
        job->shares[i] = (share){.first = *found, .room = room};
        *found += room;
    }
    job->prefix |= (uint64_t)bin << job->shift;
    job->mask |= (uint64_t)(DICE_ORDER_BINS - 1) << job->shift;
    job->shift -= DICE_ORDER_DIGIT;
    return DICE_OK;
}

/* The same as select_by_sample, found by counting digits. */
static dice_status select_by_digits(pass *job, size_t rank, double *at_rank, double *at_next)
{
    const size_t n = job->v->classes * job->v->features;
    size_t found;
    dice_status status;
    void *collected = NULL;
    do {
        status = narrow(job, &rank, &found);
        if (status != DICE_OK) {
            return status;
        }
    } while (job->shift >= 0 && found > FEW && found > n / FEW_SHARE);
    job->low = dice_order_value(job->prefix);
    job->end = dice_order_value((job->prefix | ~job->mask) + 1);
    if (!isfinite(job->low)) {
        return dice_fail(DICE_E_INPUT,
                         "mean, W: their products leave the range of float64; scale the features");
    }
    if (job->shift >= 0) {
        status = dice_alloc(found, sizeof *job->collected, &collected);
        if (status != DICE_OK) {
            return status;
        }
        job->collected = collected;
    } else { /* all values that agree with the prefix are equal */
        for (size_t i = 0; i < job->stripes; i++) {
            job->shares[i].room = 0;
        }
    }
    job->ask_above = rank + 1 == found;
    status = dice_parallel_for(job->stripes, collect, job);
    double beyond = INFINITY;
    for (size_t i = 0; i < job->stripes; i++) {
        beyond = fmin(beyond, job->shares[i].above);
    }
    uint64_t key = job->prefix, next = dice_order_key(beyond);
    if (status == DICE_OK && collected != NULL) {
        dice_order_select(job->collected, found, rank, job->shift, next, job->histograms, &key, &next);
    } else if (rank + 1 < found) {
        next = key;
    }
    *at_rank = dice_order_value(key);
    *at_next = dice_order_value(next);
    dice_free(collected);
    return status;
}

/* *at_rank, *at_next = the elements of rank `rank` and rank + 1; *at_next is infinite if there is none. */
static dice_status select_ranks(const dice_contribution *v, size_t rank, double *at_rank, double *at_next)
{
    pass job;
    void *histograms = NULL, *shares = NULL;
    int found = 0;
    dice_status status = start_pass(v, &job);
    if (status != DICE_OK) {
        return status;
    }
    status = dice_alloc(job.stripes * DICE_ORDER_BINS, sizeof *job.histograms, &histograms);
    if (status == DICE_OK) {
        status = dice_alloc(job.stripes, sizeof *job.shares, &shares);
    }
    if (status == DICE_OK) {
        job.histograms = histograms;
        job.shares = shares;
        status = select_by_sample(&job, rank, at_rank, at_next, &found);
    }
    if (status == DICE_OK && !found) {
        status = select_by_digits(&job, rank, at_rank, at_next);
    }
    dice_free(histograms);
    dice_free(shares);
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
    /* numpy's steps: the index is (n - 1) p / 100; the interpolation starts from the nearer value */
    const double index = (double)(v->classes * v->features - 1) * (p / 100);
    const double whole = floor(index), t = index - whole;
    double a = 0, b = 0;
    const dice_status status = select_ranks(v, (size_t)whole, &a, &b);
    if (status != DICE_OK) {
        return status;
    }
    b = isinf(b) ? a : b; /* the largest value has no next one */
    *threshold = t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
    return DICE_OK;
}

dice_status dice_contribution_keep(const dice_contribution *v, double threshold, uint8_t *out)
{
    pass job;
    const dice_status status = start_pass(v, &job);
    if (status != DICE_OK) {
        return status;
    }
    job.threshold = threshold;
    job.keep = out;
    return dice_parallel_for(job.stripes, keep, &job);
}
