/* Streaming moments. See moments.h. */
#include "ood/fit/moments.h"

#include <stdatomic.h>

#include "base/sizes.h"
#include "base/threads.h"
#include "linalg/compensated.h"

enum { COLUMNS = 128 }; /* features a task */

/* Sum and centred squares of one feature over `count` images. */
typedef struct column {
    dice_pair sum, squares;
} column;

static column load(const dice_moments *m, size_t d)
{
    const double *at = m->state + d;
    const size_t row = m->features;
    return (column){{at[0], at[row]}, {at[2 * row], at[3 * row]}};
}

static void store(dice_moments *m, size_t d, column value)
{
    double *at = m->state + d;
    const size_t row = m->features;
    at[0] = value.sum.high;
    at[row] = value.sum.low;
    at[2 * row] = value.squares.high;
    at[3 * row] = value.squares.low;
}

/* S = S_a + S_b + (m_b - m_a)^2 n_a n_b / (n_a + n_b); the means are subtracted before they are rounded. */
static column combine(column a, double n_a, column b, double n_b)
{
    const dice_pair crossed = dice_pair_add(dice_pair_scale(b.sum, n_a), dice_pair_scale(a.sum, -n_b));
    const double difference = crossed.high / n_a / n_b;
    const double between = difference * difference * (n_a / (n_a + n_b)) * n_b;
    return (column){dice_pair_add(a.sum, b.sum),
                    dice_pair_add_double(dice_pair_add(a.squares, b.squares), between)};
}

typedef struct add_job {
    dice_moments *moments;
    const double *x;
    size_t n;
    atomic_int negative;
} add_job;

static dice_status add_columns(void *context, size_t index, int thread)
{
    (void)thread;
    add_job *job = context;
    const size_t features = job->moments->features, first = index * COLUMNS;
    const size_t width = dice_least(features - first, COLUMNS);
    const double n = (double)job->n;
    dice_pair sum[COLUMNS] = {{0, 0}}, squares[COLUMNS] = {{0, 0}}, offset[COLUMNS] = {{0, 0}};
    double centre[COLUMNS];
    int negative = 0;
    for (size_t i = 0; i < job->n; i++) {
        const double *x = job->x + i * features + first;
        for (size_t d = 0; d < width; d++) {
            negative |= x[d] < 0;
            sum[d] = dice_pair_add_double(sum[d], x[d]);
        }
    }
    for (size_t d = 0; d < width; d++) {
        centre[d] = sum[d].high / n;
    }
    for (size_t i = 0; i < job->n; i++) {
        const double *x = job->x + i * features + first;
        for (size_t d = 0; d < width; d++) {
            const double away = x[d] - centre[d];
            squares[d] = dice_pair_add_double(squares[d], away * away);
            offset[d] = dice_pair_add_double(offset[d], away);
        }
    }
    for (size_t d = 0; d < width; d++) {
        /* the centre is the rounded mean: subtract what the rounding adds to the squares */
        const column seen = {sum[d],
                             dice_pair_add_double(squares[d], -(offset[d].high * offset[d].high / n))};
        const double before = (double)job->moments->count;
        store(job->moments, first + d,
              before > 0 ? combine(load(job->moments, first + d), before, seen, n) : seen);
    }
    if (negative) {
        atomic_store(&job->negative, 1);
    }
    return DICE_OK;
}

dice_status dice_moments_add(dice_moments *moments, const double *x, size_t n, int *negative)
{
    if (n == 0) {
        return DICE_OK;
    }
    add_job job = {.moments = moments, .x = x, .n = n};
    const dice_status status = dice_parallel_for(dice_ceil_div(moments->features, COLUMNS), add_columns,
                                                 &job);
    if (status == DICE_OK) {
        moments->count += n;
        *negative |= atomic_load(&job.negative);
    }
    return status;
}

void dice_moments_merge(dice_moments *moments, const dice_moments *other)
{
    if (other->count == 0) {
        return;
    }
    for (size_t d = 0; d < moments->features; d++) {
        const column theirs = load(other, d);
        store(moments, d,
              moments->count == 0
                  ? theirs
                  : combine(load(moments, d), (double)moments->count, theirs, (double)other->count));
    }
    moments->count += other->count;
}
