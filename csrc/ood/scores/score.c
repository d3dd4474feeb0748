/* The table of rules and their runner. See score.h. */
#include "ood/scores/score.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/sizes.h"
#include "base/threads.h"

enum { IMAGES = 32 }; /* images in a task */

#define ADDRESS(name) &dice_score_##name,
static const dice_score_rule *const rules[] = {DICE_SCORE_RULES(ADDRESS)};

const dice_score_rule *dice_score_find(const char *name)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (strcmp(rules[i]->name, name) == 0) {
            return rules[i];
        }
    }
    return NULL;
}

typedef struct run_job {
    const dice_score_rule *rule;
    const dice_rows *z, *h;
    dice_score_image image;
    size_t n, scratch; /* images; doubles of working memory for a thread */
    double *memory;    /* (threads, scratch) */
    double *out;
} run_job;

static dice_status run_task(void *context, size_t index, int thread)
{
    const run_job *job = context;
    dice_score_image image = job->image;
    double *z = job->memory + (size_t)thread * job->scratch, *h = z + image.classes;
    image.scratch = h + image.features;
    const size_t first = index * IMAGES, end = dice_least(first + IMAGES, job->n);
    for (size_t i = first; i < end; i++) {
        image.z = job->z != NULL ? dice_rows_at(job->z, i, z) : NULL;
        image.h = job->h != NULL ? dice_rows_at(job->h, i, h) : NULL;
        double *out = job->out + i * (size_t)job->rule->outputs;
        job->rule->score(&image, out);
        for (int o = 0; o < job->rule->outputs; o++) {
            if (isnan(out[o])) {
                return dice_fail(DICE_E_INPUT,
                                 "%s: a score is not a number, since the logits or features are too "
                                 "large; scale them",
                                 job->rule->name);
            }
        }
    }
    return DICE_OK;
}

dice_status dice_score_run(const dice_score_rule *rule, const dice_rows *z, const dice_rows *h,
                           const double *const *arrays, const double *numbers, double *out)
{
    dice_isa isa;
    dice_status status = dice_isa_select(NULL, &isa);
    if (status != DICE_OK) {
        return status;
    }
    run_job job = {.rule = rule, .z = z, .h = h, .out = out, .n = z != NULL ? z->n : h->n};
    job.image.kernels = dice_row_kernels_for(isa);
    job.image.classes = z != NULL ? z->width : 0;
    job.image.features = h != NULL ? h->width : 0;
    job.image.arrays = arrays;
    job.image.numbers = numbers;
    job.scratch = dice_round_up(3 * job.image.classes + 2 * job.image.features, 8);
    void *memory;
    status = dice_alloc((size_t)dice_threads_count() * job.scratch, sizeof(double), &memory);
    if (status == DICE_OK) {
        job.memory = memory;
        status = dice_parallel_for(dice_ceil_div(job.n, IMAGES), run_task, &job);
        dice_free(memory);
    }
    return status;
}
